"""A unit, a norm and a rule of one's own, in every limit and engine.

Each is a class of its module's interface, as docs/how-to/add-a-unit.md shows. Nothing else of the
package knows them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_networks import drawn

import reference
from resnet_limits.config import Shape
from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.limits.models import Limits
from resnet_limits.networks.train import train
from resnet_limits.norms import Norm
from resnet_limits.problem import Loss
from resnet_limits.rules import Rule, Transition
from resnet_limits.units import Perceptron, Unit

# --- the three ------------------------------------------------------------------------------------


class Maxout(Unit):
    """Writes the larger of two pre-activations; keeps which one it is."""

    in_vectors, out_vectors, kept_vectors = 2, 1, 1

    def forward(self, p):
        first = (p[..., :1, :] > p[..., 1:, :]).to(p.dtype)
        return torch.cat([p.amax(-2, keepdim=True), first], dim=-2)

    def backward(self, p, values, r):
        first = values[..., 1:, :]
        return torch.cat([first * r, (1.0 - first) * r], dim=-2)


class Damped(Norm):
    """u = h / (1 + q)."""

    def factor(self, q):
        return 1.0 / (1.0 + q)

    def slope(self, q):
        return -1.0 / (1.0 + q).square()


class Averaged(Rule):
    """V <- beta V + (1 - beta) G, then W <- W - eta V."""

    buffers = 1

    def __init__(self, beta):
        self.beta = beta

    def transition(self, step, rate):
        b = self.beta
        matrix = np.array([[1.0, -rate * b], [0.0, b]])
        return Transition(matrix, np.array([-rate * (1.0 - b), 1.0 - b]))


def damped(norm, h):
    """The norm as a reference has it, for states (D, rows)."""
    return h if type(norm).__name__ == "Identity" else h / (1.0 + (h**2).mean(0))


def averaged(rule, rate, weight, velocity, gradient, step, coupled):
    """A step as a reference takes it."""
    del step, coupled
    velocity = rule.beta * velocity + (1.0 - rule.beta) * gradient
    return weight - rate * velocity, velocity


# --- the problem ----------------------------------------------------------------------------------

ROOT = np.eye(3)


def problem(steps=3, rate=6.0, **changes):
    rng = np.random.default_rng(3)
    rates = {"rate_in": rate, "rate_out": rate}
    layer = (
        Branch(Maxout(), Damped(), ratio=0.5, **rates),
        Branch(Perceptron("tanh"), scale=0.7, **rates),
    )
    values = {
        "inputs": rng.standard_normal((2, 2)),
        "targets": rng.standard_normal((2, 1)),
        "loss": Loss("squared_error"),
        "layer": layer,
        "steps": steps,
        "final_norm": Damped(),
        "rule": Averaged(0.4),
    }
    return Dynamics(**(values | changes))


def rows(embed_dim):
    return lambda seed: np.random.default_rng(100 + seed).standard_normal((embed_dim, 3))


def trained(dynamics, shape, seeds, engine):
    steps, layers = range(dynamics.steps), range(shape.depth + 1)
    return train(
        dynamics, shape, list(seeds), rows(shape.embed_dim), 0,
        steps=steps, layers=layers, engine=engine, saved_dtype=np.float64,
    )  # fmt: skip


def gram_root(table):
    values, vectors = np.linalg.eigh(table.T @ table / len(table))
    return vectors * np.sqrt(values) @ vectors.T


# --- engines --------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.setattr(reference, "_normed", damped)
    monkeypatch.setattr(reference, "_steps", averaged)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("trained_ends", [False, True])
def test_the_dense_engine_is_autograds(trained_ends):
    ends = {"rate_embedding": 0.3, "rate_unembedding": 0.2} if trained_ends else {}
    dynamics, shape = problem(steps=4, **ends), Shape(3, 6, 5)
    found = trained(dynamics, shape, [0], "dense")
    wanted = reference.train(dynamics, shape, rows(5)(0), *drawn(dynamics, shape, 0))
    np.testing.assert_allclose(found.output[0], wanted.output, atol=1e-10)
    np.testing.assert_allclose(found.hidden[0], wanted.hidden, atol=1e-10)
    np.testing.assert_allclose(found.backward[0], wanted.backward, atol=1e-10)
    # The negative control: a mistake is seen.
    twin = reference.train(
        dynamics, shape, rows(5)(0), *drawn(dynamics, shape, 0), "branches in another order"
    )
    assert np.abs(twin.output - wanted.output).max() > 1e-5


def z_scores(samples, limit, error):
    mean = samples.mean(axis=0)
    scatter = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return np.abs(mean - limit) / np.hypot(scatter, error)


# --- limits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan():
    return Limits(problem(), ROOT).make_plan(3e-3, 0)[0]


@pytest.mark.parametrize("engine", ["dense", "implicit"])
def test_networks_of_either_engine_are_the_infinitely_wide_ones_with_noise(engine, plan):
    """At the embedding of one seed, with fresh block weights for each network."""
    dynamics, shape = problem(), Shape(3, 1000, 24)
    table = rows(24)(0)
    found = train(
        dynamics, shape, list(range(32)), lambda seed: table, 0, steps=range(3), layers=[0, 3],
        engine=engine, saved_dtype=np.float64,
    )  # fmt: skip
    limit = Limits(dynamics, ROOT).wide(gram_root(table), 3, plan)
    output, error = limit.trajectory.output.mean(axis=0), limit.output_stderr
    # What noise does to the mean is of order D / (L M).
    bias = 0.5 * 24 / (3 * 1000)
    assert z_scores(found.output, output, np.hypot(error, bias)).max() < 4
    # The negative control: a limit with the plain rule is elsewhere.
    plain = Limits(replace(dynamics, rule=Averaged(0.0)), ROOT).wide(gram_root(table), 3, plan)
    other = plain.trajectory.output.mean(axis=0)
    assert z_scores(found.output, other, np.hypot(error, bias)).max() > 6


def test_limits_come_nearer_to_each_other_as_depth_grows(plan):
    limits, root = Limits(problem(), ROOT), gram_root(rows(24)(0))
    ode = limits.mean_ode(root, plan).trajectory.output.mean(axis=0)
    distances = [
        np.abs(limits.wide(root, depth, plan).trajectory.output.mean(axis=0) - ode).max()
        for depth in (8, 16, 32)
    ]
    ratios = np.array(distances[:-1]) / distances[1:]
    np.testing.assert_allclose(ratios, 2.0, rtol=0.15)


def test_the_mean_ode_of_the_limits_root_is_the_dmft_limit(plan):
    limits = Limits(problem(), ROOT)
    one, other = limits.dmft(plan).trajectory, limits.mean_ode(ROOT, plan).trajectory
    np.testing.assert_allclose(one.output, other.output, atol=1e-9)


def test_step_zero_is_told_by_the_norms_alone(plan):
    """Before training the DMFT limit is the identity."""
    trajectory = Limits(problem(), ROOT).dmft(plan).trajectory
    np.testing.assert_allclose(trajectory.output[:, 0], 0.0, atol=1e-3)
