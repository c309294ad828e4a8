"""Samples outside of training: nothing that is trained on may feel them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_laws import LAW_SEEDS, differences

from resnet_limits.config import Experiment, Shape
from resnet_limits.dynamics import Dynamics, make_dynamics
from resnet_limits.limits.models import Limits, Plan
from resnet_limits.networks.train import train
from resnet_limits.problem import (
    Problem,
    embedding_rows,
    gram_root,
    limit_gram_root,
    make_problem,
)
from resnet_limits.stages.errors import errors
from resnet_limits.stages.limits import dmft, mean_ode, wide
from resnet_limits.stages.networks import finite
from resnet_limits.stages.prediction import prediction

SHAPE = Shape(4, 6, 8)
SAMPLES, TESTS = 3, 2
TEACHER = {"kind": "linear_teacher", "samples": SAMPLES, "inputs": 2, "targets": 2, "noise": 0.3}
Build = Callable[..., Experiment]


def problems(build: Build, **sections: Any) -> tuple[Experiment, Experiment]:
    """An experiment without and with test samples."""
    without = {"problem": {"data": TEACHER}, **sections}
    with_tests = {**without["problem"], "data": {**without["problem"]["data"], "test_samples": 2}}
    return build(**without), build(**{**without, "problem": with_tests})


def outputs(experiment: Experiment, problem: Problem | None = None) -> np.ndarray:
    """Outputs of dense networks on the samples that are trained on."""
    found = finite(experiment, SHAPE, engine="dense", made=problem)["output"]
    return found.values[:, :, :SAMPLES]


def same(one: np.ndarray, other: np.ndarray, tolerance: float = 1e-11) -> bool:
    return bool(np.abs(one - other).max() < tolerance)


def weighing(problem: Problem, weight: float) -> Problem:
    """Let the test samples count a little: the broken twin."""
    weights = np.where(problem.is_test, weight, 1.0)
    return replace(problem, weight=weights, is_test=None)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [TEACHER, {"kind": "digits", "samples": 3, "classes": 3}], ids=["teacher", "digits"]
)
def test_training_samples_are_the_same_with_and_without(
    tiny_experiment: Build, data: dict[str, Any]
) -> None:
    one, other = map(make_problem, problems(tiny_experiment, problem={"data": data}))
    np.testing.assert_array_equal(one.x, other.x[:SAMPLES])
    np.testing.assert_array_equal(one.y, other.y[:SAMPLES])
    assert other.is_test is not None
    assert other.is_test.tolist() == [False] * SAMPLES + [True] * TESTS
    assert other.row_weights is not None
    np.testing.assert_allclose(other.row_weights, [1 / 3] * 3 + [0] * 2)
    assert one.is_test is None
    assert one.row_weights is None
    # No test sample is one of those that are trained on.
    apart = np.abs(other.x[:SAMPLES, None] - other.x[None, SAMPLES:]).max(axis=-1)
    assert apart.min() > 0.1


# --- networks -------------------------------------------------------------------------------------

ORDINARY = {
    "plain": {},
    "momentum and embeddings": {
        "training": {
            "steps": 5,
            "train_embeddings": True,
            "rule": {"kind": "sgd", "momentum": 0.5},
        }
    },
    "batches": {"training": {"steps": 6, "batches": {"size": 2, "seed": 1}}},
    "mean": {"problem": {"data": TEACHER, "loss": "mean_squared_error"}},
    "classes": {
        "problem": {
            "data": {"kind": "digits", "samples": 3, "classes": 3},
            "loss": "cross_entropy",
        },
        "model": {"init_std": {"embedding": 0.125}},
    },
}


@pytest.mark.parametrize("name", ORDINARY)
def test_dense_networks_do_not_feel_test_samples(tiny_experiment: Build, name: str) -> None:
    one, other = problems(tiny_experiment, **ORDINARY[name])
    assert same(outputs(one), outputs(other))
    a, b = (finite(e, SHAPE, engine="dense")["loss"].values for e in (one, other))
    np.testing.assert_allclose(a, b, rtol=1e-11)
    if name != "batches":
        assert not same(outputs(one), outputs(other, weighing(make_problem(other), 1e-3)), 1e-6)


def test_what_a_test_sample_gives_is_what_it_gives_alone(tiny_experiment: Build) -> None:
    """Each runs through the trained network as if it were the only one."""
    _, both = problems(tiny_experiment)
    problem = make_problem(both)
    whole = finite(both, SHAPE, engine="dense")["output"].values
    first = replace(
        problem, x=problem.x[:4], y=problem.y[:4], is_test=np.array([False] * 3 + [True])
    )
    alone = finite(both, SHAPE, engine="dense", made=first)["output"].values
    assert same(whole[:, :, :4], alone)
    assert not same(whole[:, -1, 3], whole[:, -1, 4], 1e-3)


def dynamics_pair(build: Build, **sections: Any) -> tuple[Dynamics, Dynamics]:
    one, other = problems(build, training={"steps": 4, "learning_rate": 2.0}, **sections)
    return tuple(make_dynamics(e, make_problem(e)) for e in (one, other))  # type: ignore[return-value]


def trained_rows(dynamics: Dynamics, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of every seed on the samples that are trained on."""
    last = dynamics.steps - 1
    found = train(
        dynamics,
        SHAPE,
        range(LAW_SEEDS),
        lambda _: rows,
        0,
        steps=[1, last],
        layers=[SHAPE.depth // 2, SHAPE.depth],
        engine="implicit",
        saved_dtype=np.float64,
    )
    numbers = {}
    for step in (0, 1):
        numbers |= {
            f"output {step} {i}": found.output[:, step].reshape(LAW_SEEDS, -1)[:, i]
            for i in range(SAMPLES)
        }
        states = found.hidden[:, step, :, :SAMPLES]
        numbers |= {f"hidden {step} {i}": states[:, i, 0, i] for i in (0, 1)}
        numbers[f"size {step}"] = (states[:, 1] ** 2).mean(axis=(1, 2))
        numbers[f"overlap {step}"] = (states[:, 1, 0] * states[:, 1, 1]).mean(axis=-1)
    return numbers


def test_implicit_networks_have_the_same_law_with_test_samples(tiny_experiment: Build) -> None:
    one, other = dynamics_pair(tiny_experiment)
    problem = make_problem(problems(tiny_experiment)[0])
    rows = embedding_rows(problem, 0, 0, SHAPE.embed_dim)
    plain = trained_rows(one, rows)
    assert differences(plain, trained_rows(other, rows)) == []
    # As if they were trained on.
    assert differences(plain, trained_rows(replace(other, weights=None), rows)) != []


# --- limits ---------------------------------------------------------------------------------------


def limits_of(experiment: Experiment, problem: Problem) -> Limits:
    return Limits(make_dynamics(experiment, problem), limit_gram_root(problem))


def solved(
    experiment: Experiment, problem: Problem, plan: Plan, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of a limit on the samples that are trained on, with standard errors."""
    limits = limits_of(experiment, problem)
    root = gram_root(problem, embedding_rows(problem, 0, 0, 8))
    solution = {
        "dmft": lambda: limits.dmft(plan),
        "mean_ode": lambda: limits.mean_ode(root, plan),
        "wide": lambda: limits.wide(root, 4, plan),
    }[kind]()
    output = solution.trajectory.output.mean(axis=0)[:, :SAMPLES]
    return output, solution.output_stderr[:, :SAMPLES]


@pytest.mark.parametrize("kind", ["dmft", "mean_ode", "wide"])
def test_exact_limits_do_not_feel_test_samples(tiny_experiment: Build, kind: str) -> None:
    model = {"unit": {"kind": "perceptron", "activation": "linear"}}
    one, other = problems(tiny_experiment, model=model)
    without, problem = make_problem(one), make_problem(other)
    plan, _ = limits_of(one, without).make_plan(1e-2, 0)
    plain, _ = solved(one, without, plan, kind)
    assert same(plain, solved(other, problem, plan, kind)[0], 1e-8)
    assert not same(plain, solved(other, weighing(problem, 1e-3), plan, kind)[0], 1e-6)


@pytest.mark.parametrize("kind", ["dmft", "mean_ode", "wide"])
def test_limits_do_not_feel_test_samples(tiny_experiment: Build, kind: str) -> None:
    """Up to the standard error: points are laid along the directions of all samples."""
    one, other = problems(tiny_experiment)
    without, problem = make_problem(one), make_problem(other)
    plan, _ = limits_of(one, without).make_plan(1e-2, 0)
    plain, error = solved(one, without, plan, kind)

    def apart(twin: Problem) -> float:
        """RMS difference after training, in standard errors."""
        found, its_error = solved(other, twin, plan, kind)
        scores = (found - plain)[1:] / np.hypot(error, its_error)[1:]
        return float(np.sqrt((scores**2).mean()))

    assert apart(problem) < 2.5
    assert apart(weighing(problem, 0.1)) > 10


# --- all together ---------------------------------------------------------------------------------


def test_every_stage_knows_test_samples(tiny_experiment: Build) -> None:
    """Distances and predictions are over all samples, those outside of training too."""
    grid = {"depth": [4], "width": [8], "embed_dim": [16]}
    _, experiment = problems(tiny_experiment, sweep={"grid": grid})
    problem = make_problem(experiment)
    stores = {"dmft": dmft(experiment, problem)}
    stores["mean_ode"] = mean_ode(experiment, 16, stores["dmft"], made=problem)
    stores["wide"] = wide(experiment, 4, 16, stores["dmft"], made=problem)
    stores["finite"] = finite(experiment, Shape(4, 8, 16), made=problem)
    for store in stores.values():
        assert store["is_test"].values.tolist() == [0] * SAMPLES + [1] * TESTS
    found = prediction(experiment, stores["dmft"], problem)
    amplitude = found["hidden"]["1/sqrt(D)"]["amplitude"]
    assert all(value is None or np.isfinite(value) for value in amplitude)
    assert amplitude[-1] > 0

    def open_store(kind: str, cell: dict[str, int]) -> Any:
        return stores[kind]

    distances = errors(experiment, open_store, problem)["finite-dmft"]
    output = stores["finite"]["output"] - stores["dmft"]["output"]
    rms = np.sqrt((output**2).mean(("sample", "target")))
    np.testing.assert_allclose(
        distances["output_rms"].transpose("cell", "step"), rms.transpose("seed", "step")
    )
