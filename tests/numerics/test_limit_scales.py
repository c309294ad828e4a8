"""Zeros, large and small scales: divergence, coordinates, rounding, and what messages blame."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from resnet_limits.config import Shape, experiment_from_dict
from resnet_limits.dynamics import make_dynamics
from resnet_limits.kinds import DIVERGED, OK
from resnet_limits.limits import kernels
from resnet_limits.limits.causes import likely_cause
from resnet_limits.limits.models import Limits, Plan, minimum_norm, standard_error
from resnet_limits.limits.solver import LimitError
from resnet_limits.networks.train import train
from resnet_limits.problem import Loss, embedding_rows, gram_root, limit_gram_root, make_problem
from resnet_limits.units import Perceptron


def make(activation="tanh", rate=0.1, steps=8, trained=True, **init_std):
    """Experiment, problem, dynamics and limits."""
    experiment = experiment_from_dict(
        {
            "experiment": "scales",
            "problem": {
                "data": {"kind": "gaussian", "samples": 2, "inputs": 2, "targets": 2, "seed": 1}
            },
            "model": {
                "unit": {"kind": "perceptron", "activation": activation},
                "init_std": init_std,
            },
            "training": {"steps": steps, "learning_rate": rate, "train_embeddings": trained},
            "sweep": {"shapes": [[4, 64, 64]], "seeds": 2},
        }
    )
    return experiment, make_problem(experiment)


def limits_of(experiment, problem, dynamics=None):
    return Limits(dynamics or make_dynamics(experiment, problem), limit_gram_root(problem))


def trained_networks(problem, dynamics):
    return train(
        dynamics,
        # Not so large that threads share it, which is compiled anew.
        Shape(4, 500, 128),
        [0, 1],
        lambda seed: embedding_rows(problem, 0, seed, 128),
        0,
        steps=range(dynamics.steps),
        layers=[0, 4],
    )


ZEROS = [
    {"embedding": 0.0},
    {"unembedding": 0.0},
    {"input": 0.0},
    {"output": 0.0},
    {"embedding": 0.0, "unembedding": 0.0, "input": 0.0, "output": 0.0},
    {"embedding": 1e-8},
]


@pytest.mark.parametrize("init_std", ZEROS, ids="-".join)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_zero_starts_are_trained_as_the_limit_is(init_std, activation):
    problem = make(activation, **init_std)
    dynamics = make_dynamics(*problem)
    networks = trained_networks(problem[1], dynamics)
    solved = limits_of(*problem).dmft(Plan("sobol", 1024, 4, 6, 0)).trajectory
    assert (networks.status == OK).all()
    assert solved.diverged_step == -1
    np.testing.assert_allclose(
        networks.loss.mean(axis=0), solved.loss.mean(axis=0), atol=0.25 * solved.loss.max()
    )
    if init_std == {"embedding": 0.0}:
        assert solved.loss.mean(axis=0)[-1] < 0.5 * solved.loss.mean(axis=0)[0]


def test_inputs_of_zero_are_no_divergence():
    experiment, problem = make(embedding=0.0)
    dynamics = make_dynamics(experiment, problem)
    dynamics = replace(dynamics, inputs=0.0 * dynamics.inputs)
    assert (trained_networks(problem, dynamics).status == OK).all()
    solved = limits_of(experiment, problem, dynamics).dmft(Plan("sobol", 512, 2, 6, 0))
    assert solved.trajectory.diverged_step == -1


def test_divergence_from_zero_is_still_seen():
    """The negative control: a rate that no state bears, in networks and in the limit."""
    problem = make("linear", rate=1e3, steps=12, embedding=0.0)
    networks = trained_networks(problem[1], make_dynamics(*problem))
    assert (networks.status == DIVERGED).all()
    with pytest.raises(LimitError, match=r"diverges at step \d+: .*learning rate of 1e\+03"):
        limits_of(*problem).dmft(Plan("cubature", 0, 1, 6, 0))


# --- coordinates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 1e-6, 1e6, 1e-7])
@pytest.mark.parametrize("rows", [8, 3])
def test_coordinates_are_of_minimum_norm_at_any_scales(ratio, rows):
    """Also where D < r; the closed form is the projection on the rows of the embedding."""
    problem = make(embedding=ratio)[1]
    phi = embedding_rows(problem, 0, 0, rows)
    root = gram_root(problem, phi)
    inverse = minimum_norm(root)
    coordinates = np.array([0.3, -1.2, 0.7, 0.4])
    # Coordinates in the span of the rows, which no other of the same state undercut.
    basis = np.linalg.qr(phi.T)[0] if rows < 4 else np.eye(4)
    wanted = basis @ (basis.T @ coordinates)
    found = inverse @ (root @ coordinates)
    np.testing.assert_allclose(phi @ found, phi @ coordinates, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_absolute_cut_would_lose_directions():
    problem = make(embedding=1e-6)[1]
    root = gram_root(problem, embedding_rows(problem, 0, 0, 8))
    coordinates = np.array([0.3, -1.2, 0.7, 0.4])
    cut = np.linalg.pinv(root, rcond=1e-5, hermitian=True)
    assert np.abs(cut @ root @ coordinates - coordinates).max() > 0.1


# --- rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-11), ("float64", 1e-11)])
def test_a_difference_of_rounding_size_is_not_resolved(precision, tolerance):
    """Linear units have no scatter; a root changed by rounding gives the same limit."""
    limits = limits_of(*make("linear", rate=0.1, trained=False))
    plan = Plan("cubature", 0, 1, 8, 0, precision, tolerance)
    base = limits.dmft(plan)
    size = np.finfo(precision).eps
    changed = limits.mean_ode((1 + size) * limits.limit_root, plan)
    gap = np.abs(changed.trajectory.output - base.trajectory.output)[0, 1:]
    assert gap.max() > 0
    assert (standard_error(base.trajectory.output) == 0).all()
    assert (gap < 10 * np.hypot(base.output_stderr, changed.output_stderr)[1:]).all()
    # A difference that is one is resolved.
    other = limits.mean_ode(1.01 * limits.limit_root, plan)
    apart = np.abs(other.trajectory.output - base.trajectory.output)[0, -1]
    assert (apart > 10 * np.hypot(base.output_stderr, other.output_stderr)[-1]).all()


# --- units of their own ---------------------------------------------------------------------------


class Twice(Perceptron):
    """g = 2 tanh."""

    def forward(self, p):
        return 2 * super().forward(p)

    def backward(self, p, g, r):
        return 2 * super().backward(p, g / 2, r)


class Bent(Perceptron):
    """Linear in its parent, and not itself: g = p + p^2 / 2."""

    def forward(self, p):
        return p + p * p / 2

    def backward(self, p, g, r):
        return (1 + p) * r


@pytest.mark.parametrize("activation", ["tanh", "relu", "linear"])
def test_a_subclass_is_not_computed_as_its_parent(activation):
    experiment, problem = make(rate=0.03, steps=4, trained=False)
    unit = (Bent if activation == "linear" else Twice)(activation)
    assert kernels.code_of(unit) is None
    assert not unit.is_linear
    dynamics = make_dynamics(experiment, problem).with_branches(unit=unit)
    limits = limits_of(experiment, problem, dynamics)
    plan = Plan("sobol", 2048, 2, 6, 0, "float32", 1e-7)
    single = limits.dmft(plan).trajectory.output
    double = limits.dmft(replace(plan, precision="float64")).trajectory.output
    np.testing.assert_allclose(single, double, atol=1e-4)
    parent = dynamics.with_branches(unit=Perceptron(activation))
    apart = limits_of(experiment, problem, parent).dmft(plan).trajectory.output
    assert np.abs(apart - double).max() > 1e-3


def test_properties_are_the_units_own():
    assert Perceptron("linear").is_linear
    assert Perceptron("tanh").is_odd
    assert not Bent("linear").is_odd
    assert kernels.code_of(Perceptron("tanh")) is not None
    p = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None, None]
    assert torch.allclose(Twice("tanh").forward(p), 2 * torch.tanh(p))


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["squared_error", "mean_squared_error"])
def test_raw_targets_are_blamed_when_the_limit_is_not_found(kind):
    experiment, problem = make(rate=0.5, trained=False)
    dynamics = make_dynamics(experiment, problem)
    raw = replace(dynamics, targets=1500 * dynamics.targets, loss=Loss(kind))
    with pytest.raises(LimitError, match=r"at step \d.*likely cause: targets of size 2.*divide y"):
        limits_of(experiment, problem, raw).dmft(Plan("sobol", 512, 2, 6, 0, "float32", 1e-6))


def changed(dynamics, **changes):
    """A copy with other numbers, of the branches too; the residual scale is one for both."""
    of_branch = {
        name: changes.pop(name)
        for name in ("input_std", "output_std", "rate_in", "rate_out")
        if name in changes
    }
    if "residual_scale" in changes:
        of_branch["scale"] = changes["residual_scale"]
    return replace(dynamics.with_branches(**of_branch), **changes)


def blamed_for(changes, root=(1.0, 1.0), step=3):
    """The message for scaled data and other numbers of the dynamics, and roots s_e and s_u."""
    dynamics = make_dynamics(*make(trained=False))
    scaled = {
        name: value * getattr(dynamics, name) if name in ("inputs", "targets") else value
        for name, value in changes.items()
    }
    message = likely_cause(changed(dynamics, **scaled), np.diag(np.repeat(root, 2)), step)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "root", "blamed"),
    [
        # No part of the size of a step: its size says nothing.
        ({"residual_scale": 1e4}, (1, 1), "residual_scale 1e[+]04, which is too large; lower it"),
        ({"input_std": 1e3}, (1, 1), "init_std.input 1e[+]03, which is too large; lower it"),
        ({"output_std": 1e3, "rate_in": 2}, (1, 1), "init_std.output 1e[+]03, which is too large"),
        # A part of it, which does not make it large.
        ({"inputs": 80, "rate_in": 1e-4, "rate_out": 0}, (1, 1), "inputs of size .*too large"),
        ({}, (1, 1), "lower training.learning_rate"),
        ({"residual_scale": 0.1, "rate_in": 1e-3, "rate_out": 0}, (1, 1), "lower training"),
    ],
)
def test_a_size_of_steps_that_is_not_the_cause_is_not_told(changes, root, blamed):
    message = blamed_for(changes, root)
    assert re.match(f"(likely cause: .*)?{blamed}", message), message
    assert "gradient step" not in message


@pytest.mark.parametrize(
    "changes", [{"rate_in": 0, "rate_out": 0, "residual_scale": 1e-9}, {"targets": 0.0}]
)
@pytest.mark.parametrize("step", [0, 4, None])
def test_where_nothing_moves_no_step_is_to_blame(changes, step):
    message = blamed_for(changes, step=step)
    assert not re.search("gradient step|learning_rate|cause", message), message
    message = blamed_for({**changes, "inputs": 80}, step=step)
    assert "likely cause: inputs of size" in message


@pytest.mark.parametrize(
    ("changes", "root", "blamed"),
    [
        ({"input_std": 1e6}, (1, 1), "init_std.input 1e[+]06"),
        ({"rate_in": 1e9, "output_std": 1e6}, (1, 1), "init_std.output 1e[+]06"),
        ({"rate_in": 1e9, "residual_scale": 1e6}, (1, 1), "residual_scale 1e[+]06.*too large"),
        ({"rate_in": 1e9, "inputs": 1e200}, (1, 1), "inputs of size [0-9.]+e[+](199|200), "),
        ({"rate_in": 1e9}, (1e6, 1), "init_std.embedding 1e[+]06"),
        ({"rate_in": 1e9}, (1, 1e6), "init_std.unembedding 1e[+]06"),
    ],
)
def test_before_the_first_step_only_what_states_start_from_is_named(changes, root, blamed):
    message = blamed_for(changes, root, step=0)
    assert re.search(f"likely cause: .*{blamed}", message), message
    assert "learning" not in message


@pytest.mark.parametrize(
    ("changes", "root", "blamed"),
    [
        ({}, (1e3, 1), "init_std.embedding 1e[+]03"),
        ({}, (1, 1e3), "init_std.unembedding 1e[+]03"),
        ({"rate_in": 500}, (1, 1), "a learning rate of 500"),
        # One-hot targets are not to be scaled.
        ({"targets": 1e3, "rate_in": 500}, (1, 1), "a learning rate of 500"),
    ],
)
def test_cross_entropy_blames_no_targets(changes, root, blamed):
    message = blamed_for({"loss": Loss("cross_entropy"), **changes}, root)
    assert re.search(f"step is of size .*likely cause: .*{blamed}, which is too large", message)


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"targets": 150.0}, "targets of size .*divide y by"),
        ({"inputs": 80.0}, "inputs of size .*divide x by"),
        ({"residual_scale": 1e-50}, "residual_scale 1e-50, which is too small"),
        ({"residual_scale": 1e20}, "residual_scale 1e[+]20, which is too large"),
        ({"rate_in": 1e4}, "a learning rate of 1e[+]04"),
        ({"input_std": 1e3}, "init_std.input 1e[+]03"),
        ({"output_std": 1e3}, "init_std.output 1e[+]03"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_message_blames_the_factor_that_is_out_of_order(changes, blamed):
    message = blamed_for(changes)
    assert re.search(blamed, message), message


@pytest.mark.parametrize(
    "changes", [{}, {"rate_in": 1e4}, {"rate_in": 0.0}, {"residual_scale": 0.1}]
)
def test_no_step_is_blamed_before_there_was_one(changes):
    """At step 0 nothing has moved: a learning rate, large or 0, is no cause."""
    dynamics = changed(make_dynamics(*make()), **changes)
    message = likely_cause(dynamics, np.eye(4), 0)
    assert "step" not in message
    assert "rate" not in message
    assert "cause" not in message
    wide = likely_cause(replace(dynamics, inputs=1e80 * dynamics.inputs), np.eye(4), 0)
    assert re.search("likely cause: inputs of size", wide), wide
    if changes == {"rate_in": 1e4}:  # the negative control
        assert "learning rate of 1e+04" in likely_cause(dynamics, np.eye(4), 1)
