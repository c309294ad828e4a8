"""Distances of networks of small D and L, against trained networks of the same embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resnet_limits.config import experiment_from_dict
from resnet_limits.dynamics import make_dynamics
from resnet_limits.kinds import Shape
from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import bias, gram, noise, sizes
from resnet_limits.limits.models import Limits, minimum_norm
from resnet_limits.limits.plan import Plan
from resnet_limits.networks.dense import DenseNetwork
from resnet_limits.problem import embedding_rows, gram_root, limit_gram_root, make_problem

SHAPE = Shape(4, 24, 12)
EMBEDDINGS, NETWORKS, STEPS = 8, 48, 5
PLAN = Plan("sobol", 2048, 4, 8, 0, "float32", 1e-7)


def problem_of(tiny_values):
    values = tiny_values(training={"steps": STEPS, "learning_rate": 1.0})
    experiment = experiment_from_dict(values)
    return make_problem(experiment), experiment


@pytest.fixture(scope="module")
def case(tiny_values):
    """A problem, its limit, its embeddings, and what its units give."""
    problem, experiment = problem_of(tiny_values)
    limits = Limits(make_dynamics(experiment, problem), limit_gram_root(problem))
    rows = np.stack([embedding_rows(problem, 0, seed, SHAPE.embed_dim) for seed in range(8)])
    samples = limits.trajectories.sample(PLAN, range(PLAN.replicates), False)
    of_bias = bias.output_bias(
        limits.dynamics, limits.limit_root, depth.continuous(PLAN.nodes), samples
    )
    plan = replace(PLAN, points=1024, replicates=128)
    inside, output = noise.unit_noise(limits.trajectories, plan, SHAPE.depth)
    units = sizes.UnitNoise(inside.value**2, output.value**2, of_bias.mean(0).numpy())
    return limits, rows, [gram_root(problem, each) for each in rows], units


@pytest.fixture(scope="module")
def measured(case):
    """Mean squares of the distances of networks from the limit, and their standard errors."""
    limits, rows, _, _ = case
    dynamics = limits.dynamics
    dmft = limits.dmft(replace(PLAN, points=8192)).trajectory
    coefs = dmft.hidden[:, :, -1].mean(0) @ minimum_norm(limits.limit_root).T
    expected = dmft.output.mean(0)
    squares = []
    for number, embedding in enumerate(rows):
        seeds = range(number * NETWORKS, (number + 1) * NETWORKS)
        tables = np.repeat(embedding[None], NETWORKS, axis=0)
        network = DenseNetwork(dynamics, SHAPE, seeds, tables, 0, kept=0, batched=True)
        found = np.empty((2, STEPS, NETWORKS))
        for step in range(STEPS):
            output = network.forward_pass()
            state = network.hidden[-1].numpy()
            found[0, step] = np.square(state - coefs[step] @ embedding.T).mean((1, 2))
            found[1, step] = np.square(output.numpy() - expected[step]).mean((1, 2))
            cotangent = dynamics.cotangent(output, network.targets, step)
            network.backward_pass(cotangent, update=step + 1 < STEPS)
        squares.append(found)
    each = np.array(squares)
    error = np.sqrt(each.var(-1, ddof=1).sum(0) / NETWORKS) / len(rows)
    return each.mean((0, -1)), error


def _found(case) -> np.ndarray:
    """Predicted mean squares, hidden and output."""
    limits, _, roots, units = case
    found = sizes.shape_distances(limits.trajectories, PLAN, SHAPE, roots, units)
    return np.array([distance.whole.value**2 for distance in found])


def _deviation(measured, predicted: np.ndarray) -> np.ndarray:
    """Deviations over their errors, and over what the next order in D/(LM) = 1/8 may be."""
    value, error = measured
    return (value - predicted) / np.hypot(error, 0.02 * value)


def test_networks_have_the_predicted_distances(case, measured):
    assert np.abs(_deviation(measured, _found(case))).max() < 3


def test_slopes_give_the_mean_over_all_embeddings(case, tiny_values):
    """As many embeddings without them do, from a few; not so for half of the slopes."""
    limits, _, _, units = case
    few = replace(PLAN, points=512, replicates=2)
    slopes = gram.gram_slopes(limits.trajectories, few)
    problem, _ = problem_of(tiny_values)
    rows = [embedding_rows(problem, 1, seed, 48) for seed in range(40)]
    roots = [gram_root(problem, each) for each in rows]
    shape = Shape(64, 1024, 48)

    def found(roots, slopes=()):
        distances = sizes.shape_distances(limits.trajectories, few, shape, roots, units, slopes)
        whole = [(distance.whole.value, distance.whole.uncertainty) for distance in distances]
        return np.array(whole)[:, :, 1:].swapaxes(0, 1)

    many, error = found(roots)
    value, rest = found(roots[:8], slopes)
    plain = found(roots[:8])[1]
    assert np.square(rest).sum() < 0.2 * np.square(plain).sum()
    assert (np.abs(value - many) < 3 * np.hypot(error, rest)).all()
    halves = [slope._replace(ends=slope.ends.combined(slope.ends, 0.5, 0)) for slope in slopes]
    assert np.square(found(roots[:8], halves)[1]).sum() > 2 * np.square(rest).sum()


def test_the_leading_order_is_told_apart(case, measured):
    """The limit's own Gram matrix, with the noise and bias of all directions."""
    limits, _, _, units = case
    alone = [limits.limit_root] * 2
    found = sizes.shape_distances(limits.trajectories, PLAN, SHAPE, alone, units)
    deviation = _deviation(measured, np.array([distance.whole.value**2 for distance in found]))
    assert np.abs(deviation[:, 1:]).max(1).min() > 5


def test_noise_outside_of_the_span_alone_is_told_apart(case, measured):
    limits, rows, roots, units = case
    without = replace(units, inside=0 * units.inside)
    found = _found((limits, rows, roots, without))
    assert np.abs(_deviation(measured, found)).max() > 5
