"""The implicit engine: replayed with explicit weights, and its law beside the dense engine's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from engine_laws import FALSE_ALARM, differences, observables
from implicit_weights import disagreement, explicit, replay, trajectory
from scipy import stats
from test_networks import make, run, table

from resnet_limits.config import Shape
from resnet_limits.kinds import DIVERGED, OK
from resnet_limits.networks import conditioned, cost, implicit
from resnet_limits.networks.train import choose_engine, train
from resnet_limits.units import GatedPerceptron


class Head:
    """Three in-vectors, two out-vectors, and rows that see each other, as tokens do."""

    in_vectors, out_vectors, kept_vectors, is_linear, is_odd = 3, 2, 0, False, False

    def forward(self, p):
        value = torch.tanh(p[..., :2, :])
        return value + 0.3 * p[..., 2:, :].mean(-1, keepdim=True)

    def backward(self, p, g, r):
        value = torch.tanh(p[..., :2, :])
        own = (1 - value**2) * r
        shared = 0.3 * r.sum((-2, -1), keepdim=True) / p.shape[-1]
        return torch.cat([own, shared.expand_as(own[..., :1, :])], dim=-2)


CASES = {
    "tanh": ({}, Shape(4, 40, 60)),
    "one sample": ({"samples": 1, "steps": 6}, Shape(4, 40, 60)),
    "other scales, trained embeddings": (
        {
            "residual_scale": 0.7,
            "input_std": 1.2,
            "output_std": 0.8,
            "rate_in": 0.3,
            "rate_out": 0.6,
            "rate_embedding": 0.2,
        },
        Shape(4, 30, 50),
    ),
    "more probes than dimensions": ({"steps": 5}, Shape(5, 7, 11)),
    "one unit, one coordinate": ({}, Shape(3, 1, 1)),
    "gated": (
        {"unit": GatedPerceptron(), "rate_in": 0.02, "rate_out": 0.02, "residual_scale": 0.5},
        Shape(3, 20, 40),
    ),
    "head": ({"unit": Head(), "rate_in": 0.2, "rate_out": 0.2}, Shape(3, 15, 40)),
}


@pytest.mark.parametrize("case", CASES)
def test_products_replayed_with_explicit_weights_agree_to_rounding(case):
    changes, shape = CASES[case]
    trained = trajectory(make(**changes), shape, [0, 1])
    for index in (0, 1):
        replayed = replay(trained.network, index, index)
        assert disagreement(trained.of_seed(index), replayed) < 1e-9
        assert np.abs(replayed["output"][-1] - replayed["output"][0]).max() > 0.01


def test_nearly_dependent_probes_replay_to_their_tolerance():
    # Linear units at a small rate: the probes of 15 steps are dependent to seven digits or more.
    dynamics = make("linear", samples=1, steps=15, rate_in=0.1, rate_out=0.1)
    trained = trajectory(dynamics, Shape(3, 200, 300), [0])
    found = [branch.incoming.lefts for (branch,) in trained.network.layers]
    assert found[0] == 1
    assert max(found) < 15
    assert disagreement(trained.of_seed(0), replay(trained.network, 0, 0)) < 2e-6


def test_float32_replays_to_its_precision():
    trained = trajectory(make(), Shape(4, 200, 300), [0], torch.float32)
    assert 1e-9 < disagreement(trained.of_seed(0), replay(trained.network, 0, 0)) < 1e-4


@pytest.mark.parametrize("broken", ["xi", "tau", "alpha"])
def test_replay_notices_a_wrong_coefficient(broken):
    trained = trajectory(make(), Shape(4, 40, 60), [0])
    getattr(trained.network.layers[1][0].incoming, broken)[0, 0, 0] *= 1.01
    found = disagreement(trained.of_seed(0), replay(trained.network, 0, 0))
    # Coordinates of past probes are read while training only: the bases hold all the same.
    assert found < 1e-9 if broken == "alpha" else found > 1e-6


def test_probes_of_frozen_embeddings_are_found_dependent():
    network = trajectory(make(samples=3, steps=4), Shape(4, 40, 60), [0, 1]).network
    (first,), (last,) = network.layers[0], network.layers[-1]
    # Two inputs span the first hidden states, two targets the last backward states, at all steps.
    assert (first.incoming.lefts, last.outgoing.lefts) == (2, 2)
    assert (last.incoming.lefts, first.outgoing.lefts) == (12, 12)


def test_chunks_streams_and_kept_vectors_change_nothing_but_rounding(monkeypatch):
    shape = Shape(3, 130, 90)
    whole = trajectory(make(), shape, [0, 1])
    monkeypatch.setattr(implicit, "_KEPT_ELEMENTS", 0)
    monkeypatch.setattr(implicit, "_CHUNK_ELEMENTS", 1)
    chunked = trajectory(make(), shape, [0, 1])
    for seed in (0, 1):
        assert disagreement(chunked.of_seed(seed), whole.of_seed(seed)) < 1e-11
    monkeypatch.setattr(conditioned, "_NOISE_BLOCK", 32)
    other_draws = trajectory(make(), shape, [0, 1])
    assert np.abs(other_draws.output - whole.output).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "shape", "bound"),
    [
        ({"activation": "relu", "samples": 2}, Shape(4, 30, 40), 1e-10),
        # Some of the 90 probes are dependent to seven digits, and directions of others are small.
        ({"samples": 6, "steps": 15, "rate_in": 0.1, "rate_out": 0.1}, Shape(3, 200, 150), 1e-6),
    ],
)
def test_a_seed_is_the_same_alone_and_in_a_batch(changes, shape, bound):
    dynamics = make(**changes)
    together = run(dynamics, shape, range(4), engine="implicit")
    alone = run(dynamics, shape, [2], engine="implicit")
    np.testing.assert_allclose(together.hidden[2], alone.hidden[0], atol=bound)
    assert np.abs(together.hidden[1] - together.hidden[2]).max() > 0.1


# --- the law --------------------------------------------------------------------------------------

LAW_SHAPES = [Shape(3, 24, 32), Shape(2, 5, 6)]


@pytest.fixture(scope="module")
def dense_law():
    dynamics = make(samples=2, steps=4, rate_in=1.0, rate_out=1.0)
    return dynamics, {shape: observables(dynamics, shape, "dense") for shape in LAW_SHAPES}


@pytest.mark.parametrize("shape", LAW_SHAPES)
def test_the_law_of_all_states_is_that_of_the_dense_engine(dense_law, shape):
    dynamics, expected = dense_law
    assert not differences(observables(dynamics, shape, "implicit"), expected[shape])


def _independent(monkeypatch):
    """Every new direction gets noise that knows nothing of earlier products."""
    right = conditioned.Conditioned.ask_right

    def ask_right(self, inner):
        asked = right(self, inner)
        return dataclasses.replace(asked, onto=0 * asked.onto)

    monkeypatch.setattr(conditioned.Conditioned, "ask_right", ask_right)


def _half_noise(monkeypatch):
    """The noise of new directions is ten per cent too small."""
    fill = conditioned.Noise.fill
    monkeypatch.setattr(
        conditioned.Noise, "fill", lambda self, t, found, std: fill(self, t, found, 0.9 * std)
    )


def _untrained(monkeypatch):
    """Training terms of the in-vectors are left out of the products."""
    of = conditioned.Course.of
    monkeypatch.setattr(
        conditioned.Course,
        "of",
        lambda *arguments: dataclasses.replace(of(*arguments), rate=np.zeros(arguments[0].steps)),
    )


@pytest.mark.parametrize("breaking", [_independent, _half_noise, _untrained])
def test_a_broken_engine_does_not_have_the_law(dense_law, monkeypatch, breaking):
    dynamics, expected = dense_law
    breaking(monkeypatch)
    shape = LAW_SHAPES[0]
    assert differences(observables(dynamics, shape, "implicit"), expected[shape])


def test_weights_that_are_behind_a_network_are_independent_normal():
    """All entries, and the projections on a probed, an unprobed and a mixed pair of directions."""
    dynamics = make(samples=2, steps=4, rate_in=1.0, rate_out=1.0)
    shape = Shape(2, 24, 32)
    network = trajectory(dynamics, shape, range(200)).network
    rng = np.random.default_rng(5)
    a = table(32)(0)[:, 0]
    left = {"probed": a / np.linalg.norm(a), "other": np.eye(32)[3]}
    right = {"even": np.full(24, 24**-0.5), "one": np.eye(24)[1]}
    for which in ("incoming", "outgoing"):
        matrices = [
            explicit(network, 1, 0, which, seed, lambda d, m: rng.standard_normal((d, m)) * 32**0.5)
            / 32**0.5
            for seed in range(200)
        ]
        samples = [np.concatenate([w.ravel() for w in matrices])]
        samples += [np.concatenate([u @ w for w in matrices]) for u in left.values()]
        samples += [np.concatenate([w @ v for w in matrices]) for v in right.values()]
        for sample in samples:
            assert stats.kstest(sample, "norm").pvalue > FALSE_ALARM / 10
            assert stats.kstest(1.2 * sample, "norm").pvalue < FALSE_ALARM / 10


# --- the door -------------------------------------------------------------------------------------


def test_divergence_is_named_and_harms_no_other_seed():
    dynamics = make("linear", steps=6, rate_in=0.2, rate_out=0.2)
    shape = Shape(5, 30, 40)

    def embedding(seed):
        return table(40)(seed) * (60.0 if seed == 0 else 1.0)

    options = {"steps": range(6), "layers": [5], "saved_dtype": np.float64, "engine": "implicit"}
    trained = train(dynamics, shape, [0, 1], embedding, 0, **options)
    alone = train(dynamics, shape, [1], embedding, 0, **options)
    assert trained.status.tolist() == [DIVERGED, OK]
    first = trained.diverged_step[0]
    assert np.isnan(trained.hidden[0, first:]).all()
    np.testing.assert_allclose(trained.hidden[1], alone.hidden[0], atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "engine"), [(Shape(10, 8, 8), "dense"), (Shape(100, 10**5, 10**5), "implicit")]
)
def test_auto_takes_the_cheaper_engine_and_says_why(shape, engine):
    choice = choose_engine("auto", make(), shape, 4, torch.float64)
    assert choice.engine == engine
    assert choice.reason.startswith("auto: ")
    assert all(name in choice.reason for name in cost.ENGINES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_cuda_agrees_with_the_cpu(precision):
    shape = Shape(6, 64, 96)
    options = {"engine": "implicit", "dtype": precision}
    cpu = run(make(), shape, (0, 1), **options)
    gpu = run(make(), shape, (0, 1), device="cuda", **options)
    tolerance = 1e-8 if precision == torch.float64 else 1e-2
    np.testing.assert_allclose(gpu.hidden, cpu.hidden, atol=tolerance)
