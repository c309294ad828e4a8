"""Amplitudes of the hidden state over the depth, against closed forms, limits and networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_amplitudes import PLAN, limits_of, quickstart_values, random_carrier

from resnet_limits.config import experiment_from_dict
from resnet_limits.kinds import Shape
from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import bias, cost, gram, layers, transport, width
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.amplitudes.changes import DEPTHS, Ends
from resnet_limits.limits.amplitudes.transport import end_variance, variance_at
from resnet_limits.limits.models import minimum_norm
from resnet_limits.limits.plan import Plan
from resnet_limits.networks.train import train
from resnet_limits.problem import embedding_rows, gram_root, make_problem

QUARTERS = [4, 8, 12, 16]
CUBATURE = Plan("cubature", 0, 1, 8, 0, "float64")
FEW = replace(PLAN, points=512)
LINEAR = {"unit": {"kind": "perceptron", "activation": "linear"}}


def problem_values(activation="tanh", steps=6, **training):
    rate = {"relu": 0.4}.get(activation, 1.0)
    return quickstart_values(
        model={"unit": {"kind": "perceptron", "activation": activation}},
        training={"steps": steps, "learning_rate": rate, **training},
    )


TRANSFORMER = {
    **quickstart_values(tokens=True),
    "model": {
        "layer": [
            {"unit": {"kind": "attention_head", "key_dim": 2, "causal": True}, "norm": "rms"},
            {"unit": {"kind": "perceptron", "activation": "gelu"}, "norm": "rms", "width_ratio": 2},
        ],
        "final_norm": "rms",
    },
    "training": {"steps": 3, "learning_rate": 0.25, "train_embeddings": True},
}


def gram_at(limits, plan):
    root = limits.limit_root
    return gram.gram_amplitudes(gram.gram_slopes(limits.trajectories, plan), root @ root)


# --- transport ------------------------------------------------------------------------------------


def layered_variance(carrier, grid, cells):
    """The noises of many cells, carried on one by one: one dense system, (Q, cells + 1)."""
    middle, size = (np.arange(cells) + 0.5) / cells, len(carrier.start)
    at = depth.interpolation_matrix(grid.s, middle)
    parts = (carrier.forward, carrier.backward, carrier.forward_noise, carrier.backward_noise)
    forward, backward, *noises = (np.tensordot(at, part, axes=1) for part in parts)
    matrix = np.eye(2 * (cells + 1) * size)

    def place(state, edge):
        return slice((state * (cells + 1) + edge) * size, (state * (cells + 1) + edge + 1) * size)

    matrix[place(0, 0), place(1, 0)] -= carrier.start
    matrix[place(1, cells), place(0, cells)] -= carrier.end
    for k in range(cells):
        matrix[place(0, k + 1), place(0, k)] -= np.eye(size)
        matrix[place(1, k), place(1, k + 1)] -= np.eye(size)
        for edge in (k, k + 1):
            matrix[place(0, k + 1), place(1, edge)] -= forward[k] / (2 * cells)
            matrix[place(1, k), place(0, edge)] -= backward[k] / (2 * cells)
    inverse = np.linalg.inv(matrix)[: (cells + 1) * size]
    total = np.zeros(len(inverse))
    for state, noise in enumerate(noises):
        for k in range(cells):
            answer = inverse[:, place(state, k + 1 if state == 0 else k)]
            total += np.einsum("ij,jk,ik->i", answer, noise[k], answer) / cells
    return total.reshape(cells + 1, size).T


def test_the_variance_within_the_depth_is_the_limit_of_dense_layers():
    carrier, grid = random_carrier(8, 3, 2)
    found = variance_at(carrier, grid, DEPTHS[::4])
    coarse, fine = (layered_variance(carrier, grid, cells)[:, :: cells // 4] for cells in (16, 32))
    expected = (4 * fine - coarse) / 3
    size = expected.max()
    assert np.abs(found - expected).max() < 2e-4 * size
    np.testing.assert_allclose(found[:, -1], end_variance(carrier, grid), rtol=1e-12)
    # Nothing is carried on, or one end is forgotten.
    still = replace(carrier, forward=0 * carrier.forward, backward=0 * carrier.backward)
    forgotten = [replace(carrier, **{name: 0 * carrier.start}) for name in ("start", "end")]
    for other in (still, *forgotten):
        assert np.abs(variance_at(other, grid, DEPTHS[::4]) - expected)[:, 1:-1].max() > 0.05 * size


def test_what_happens_above_a_depth_counts_below_it(monkeypatch):
    """The negative control: the part of the depth above s left out, with its noise or without."""
    carrier, grid = random_carrier(8, 3, 2)
    inside = DEPTHS[4:-1:4]
    expected = variance_at(carrier, grid, inside)
    cut = transport._cut

    def no_noise(p, q, below, p_up, q_up, above):
        return cut(p, q, below, p_up, q_up, 0 * above)

    def no_answer(p, q, below, p_up, q_up, above):
        return cut(p, q, below, 0 * p_up, np.eye(len(p)), 0 * above)

    for wrong in (no_noise, no_answer):
        monkeypatch.setattr(transport, "_cut", wrong)
        assert (np.abs(variance_at(carrier, grid, inside) / expected - 1).max(axis=0) > 0.1).all()


# --- closed forms ---------------------------------------------------------------------------------


def linear_limits(rate, **changes):
    values = quickstart_values(model=LINEAR, training={"steps": 2, "learning_rate": rate})
    data = {"kind": "gaussian", "samples": 1, "inputs": 2, "targets": 2, "seed": 3}
    values["problem"] = {"data": data, "loss": "squared_error"}
    return limits_of(values, **changes)


def test_the_width_amplitude_of_linear_units_at_step_0_is_a_random_walk():
    limits = limits_of(quickstart_values(model=LINEAR, training={"steps": 3, "learning_rate": 0.2}))
    variance, identity = width.width_variance_at(limits.trajectories, CUBATURE)
    assert identity.holds
    expected = DEPTHS * np.square(limits.dynamics.inputs).sum(1).mean()
    np.testing.assert_allclose(variance[0, 0], expected, rtol=1e-10)
    # Embeddings are not trained: nothing has moved at s = 0.
    assert not variance[0, :, 0].any()


@pytest.mark.parametrize("std", [(1.0, 1.0), (0.7, 1.3)])
def test_the_gram_amplitude_of_linear_units_at_step_1_has_a_closed_form(std):
    """One row: w' = -k (w_0 . w) z_0 over the depth, to first order in the Gram matrix.

    With v the gradient, q = |w_0|^2 and f the change of the first outputs, the coordinates of
    W_u change by -k (s dq v + q (s f - k s^2 (v . f) v / 2)).
    """
    rate = 3.0
    limits = linear_limits(rate, input_std=std[0], output_std=std[1])
    found = gram_at(limits, CUBATURE).hidden_at
    x, y = limits.dynamics.inputs[0], limits.dynamics.targets[0]
    k, q, v = rate * (std[0] ** 2 + std[1] ** 2), x @ x, y @ y
    moved = 2 * q**2 * DEPTHS**2 * v
    moved += q**3 * (DEPTHS**2 * len(y) - k * DEPTHS**3 * v + (k * DEPTHS**2 / 2) ** 2 * v**2)
    np.testing.assert_allclose(found.value[1], k * np.sqrt(moved), rtol=1e-3)
    # As if the states at s had the slope of those at the end.
    straight = DEPTHS * k * np.sqrt(moved[-1])
    assert np.abs(straight[4:-1] / found.value[1][4:-1] - 1).max() > 0.02
    assert not found.value[:, 0].any()


def test_the_layer_amplitude_is_that_of_the_layers_themselves():
    """All layers of W(L) one by one, the states of layer l = s L less the limit's at s."""
    limits = limits_of(quickstart_values(model=LINEAR, training={"steps": 4, "learning_rate": 0.3}))
    trajectories, root = limits.trajectories, limits.limit_root
    found = layers.layer_amplitudes(trajectories, CUBATURE)
    at = layers.at_depths

    def states(count):
        exact = replace(CUBATURE, nodes=count)
        make = depth.of_layers(count)
        solved = trajectories.solve(root, make, exact, "layers", shared=True)
        assert solved.hidden.shape[2] == count + 1
        return solved.hidden[:, :, :: count // 16] @ minimum_norm(root).T

    limit = trajectories.solve(root, depth.continuous, CUBATURE, "limit", shared=True)
    at_limit = at(limit.hidden, depth.continuous(CUBATURE.nodes).knots) @ minimum_norm(root).T
    scaled = [count * (states(count) - at_limit) for count in (32, 64)]
    gap = (2 * scaled[1] - scaled[0]) @ root
    measured = np.sqrt(np.square(gap).sum(-1).mean(-1))[0]
    largest = measured.max(axis=1, keepdims=True)
    assert np.abs(found.hidden_at.value - measured)[2:].max() < 0.02 * largest[2:].min()
    assert not found.hidden_at.value[:, 0].any()
    # As if layer l were at the middle of its step, (l + 1/2)/L.
    slope = np.gradient(at_limit, DEPTHS, axis=2) @ root
    shifted = np.sqrt(np.square(gap + slope / 2).sum(-1).mean(-1))[0]
    assert (np.abs(shifted - measured)[2:].max(axis=1) > 0.1 * largest[2:, 0]).all()


# --- an independent solution, limits and networks -------------------------------------------------


@pytest.mark.parametrize("values", [problem_values(steps=4), TRANSFORMER], ids=["tanh", "stack"])
def test_the_noise_is_that_which_the_bias_of_the_outputs_takes(values, monkeypatch):
    """Sources in cells carried on one by one, other points for the kernels: `bias.output_bias`."""
    limits = limits_of(values)
    caught = []
    real = bias._Carrier.fluctuations

    def catching(self):
        caught.append(real(self))
        return caught[-1]

    monkeypatch.setattr(bias._Carrier, "fluctuations", catching)
    variance, identity = width.width_variance_at(limits.trajectories, FEW)
    assert identity.holds
    samples = limits.trajectories.sample(replace(FEW, points=2048), range(4), False)
    nothing = bias.Parts(noise=False, overlap=False, reaction=False)
    how = bias.Numerics(cells=16)
    grid = depth.continuous(FEW.nodes)
    bias.output_bias(limits.dynamics, limits.limit_root, grid, samples, parts=nothing, numerics=how)
    rows, steps = len(limits.dynamics.inputs), limits.dynamics.steps
    covariance = torch.stack([each.hidden for each in caught])
    other = covariance.diagonal(dim1=2, dim2=3).unflatten(2, (steps, rows)).mean(-1).mT.numpy()
    both = [Amplitude.of_fields(squares) for squares in (variance, other)]
    error = np.hypot(both[0].uncertainty, both[1].uncertainty)
    size = both[0].value.max()
    assert (error < 0.03 * size).all()
    assert (np.abs(both[0].value - both[1].value) < 4 * error + 2e-3 * size).all()
    # Trained embeddings have noise at s = 0.
    assert both[0].value[1:, 0].all() == bool(limits.dynamics.rate_embedding)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mean_odes_have_the_predicted_distances_at_all_depths(activation):
    experiment = experiment_from_dict(problem_values(activation))
    problem, limits = make_problem(experiment), limits_of(problem_values(activation))
    trajectories, limit_root = limits.trajectories, limits.limit_root
    plan = replace(PLAN, points=256, replicates=2)
    found = gram_at(limits, plan)
    knots = depth.continuous(plan.nodes).knots
    embed_dim, count = 1024, 96
    limit = trajectories.solve(limit_root, depth.continuous, plan, "limit").hidden
    limit = limit @ minimum_norm(limit_root).T
    squares = 0.0
    for seed in range(count):
        root = gram_root(problem, embedding_rows(problem, 0, seed, embed_dim))
        solved = trajectories.solve(root, depth.continuous, plan, "mean_ode").hidden
        squares = squares + layers.squares_at(solved @ minimum_norm(root).T - limit, knots, root)
    measured = np.sqrt(embed_dim * squares[-1] / count)
    ratio = measured[1:, QUARTERS] / found.hidden_at.value[1:, QUARTERS]
    # The embeddings drawn are the same at all depths.
    assert np.abs(ratio - 1).max() < 0.15
    assert np.abs(ratio / ratio[:, -1:] - 1).max() < 0.05
    # The amplitude of the last layer is not that of others.
    flat = measured[1:, QUARTERS[:-1]] / found.hidden.value[1:, None]
    assert (flat < 0.9).all()


@pytest.mark.parametrize("activation", ["tanh", "erf"])
def test_infinitely_wide_networks_have_the_predicted_distances_at_all_depths(activation):
    limits = limits_of(problem_values(activation))
    trajectories, root = limits.trajectories, limits.limit_root
    plan = replace(PLAN, points=cost.LAYER_POINTS)
    found = layers.layer_amplitudes(trajectories, plan)

    def states(grid):
        solved = trajectories.solve(root, grid, plan, "wide", shared=True)
        return layers.at_depths(solved.hidden, grid(plan.nodes).knots) @ minimum_norm(root).T

    limit = states(depth.continuous)
    last = range(2, 6)
    ratios = []
    for count in (64, 256):
        gap = count * (states(depth.of_layers(count)) - limit)
        ratio = np.sqrt(layers.squares_at(gap, DEPTHS, root)[-1][2:])
        ratios.append(ratio[:, QUARTERS] / found.hidden_at.value[2:, QUARTERS])
    assert len(ratios[0]) == len(last)
    assert np.abs(ratios[1] - 1).max() < 0.03
    # The next order is four times as large at 64 layers.
    assert np.abs(ratios[0] - 1).max() < 0.12


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_networks_have_the_predicted_distances_at_all_depths(activation):
    values = problem_values(activation, steps=4)
    experiment = experiment_from_dict(values)
    problem, limits = make_problem(experiment), limits_of(values)
    trajectories, root = limits.trajectories, limits.limit_root
    predicted = Amplitude.of_fields(width.width_variance_at(trajectories, FEW)[0])
    shape, seeds = Shape(32, 256, 128), range(12)

    def rows(seed):
        drawn = embedding_rows(problem, 0, seed, shape.embed_dim)
        # With the Gram matrix of the limit.
        return drawn @ np.linalg.inv(gram_root(problem, drawn)) @ root

    saved = [shape.depth * place // 16 for place in QUARTERS]
    networks = train(
        limits.dynamics,
        shape,
        seeds,
        rows,
        0,
        steps=list(range(4)),
        layers=saved,
        engine="dense",
        saved_dtype=np.float64,
    )
    plan = replace(PLAN, points=4096)
    make = depth.of_layers(shape.depth)
    wide = trajectories.solve(root, make, plan, "wide").hidden
    limit = layers.at_depths(wide, make(plan.nodes).knots).mean(0) @ minimum_norm(root).T
    squares = [
        np.square(hidden - limit[:, QUARTERS] @ rows(seed).T).mean((-2, -1))
        for seed, hidden in zip(seeds, networks.hidden, strict=True)
    ]
    factor = shape.embed_dim / (shape.depth * shape.width)
    ratio = np.sqrt(np.mean(squares, axis=0) / factor) / predicted.value[:, QUARTERS]
    # In the r directions of the embedding there is another noise.
    assert np.abs(ratio - 1).max() < 0.06
    # As if a coordinate did not answer to what training does to it.
    assert (
        np.abs(np.sqrt(np.mean(squares, 0) / factor) / predicted.value[:1, QUARTERS] - 1)[-1].max()
        > 0.06
    )


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [problem_values("erf", steps=4), TRANSFORMER],
    ids=["erf", "stack"],
)
def test_the_last_depth_is_the_last_layer(values):
    limits = limits_of(values)
    found = [
        gram_at(limits, replace(PLAN, points=256)),
        layers.layer_amplitudes(limits.trajectories, replace(PLAN, points=64)),
    ]
    for of_term in found:
        assert of_term.hidden_at.value.shape == (limits.dynamics.steps, len(DEPTHS))
        assert of_term.hidden_at.finite.all()
        for part in ("value", "uncertainty"):
            along, end = (getattr(each, part) for each in (of_term.hidden_at, of_term.hidden))
            size = float(of_term.hidden.value.max())
            np.testing.assert_allclose(along[:, -1], end, rtol=1e-7, atol=1e-12 * size)
    at, end = (
        function(limits.trajectories, replace(PLAN, points=128, replicates=2))[0]
        for function in (width.width_variance_at, width.width_variance)
    )
    assert (at[..., -1] == end).all()


def test_random_directions_have_depths_too(monkeypatch):
    monkeypatch.setattr(cost, "MOST_ENTRIES", 1)
    monkeypatch.setattr(cost, "RANDOM_DIRECTIONS", 12)
    limits = limits_of(problem_values(steps=3))
    found = gram_at(limits, replace(PLAN, points=128, replicates=2))
    for part in ("value", "uncertainty"):
        along, end = (getattr(each, part) for each in (found.hidden_at, found.hidden))
        np.testing.assert_allclose(along[1:, -1], end[1:], rtol=1e-7)
    assert (found.hidden_at.uncertainty[1:, 1:] > 0).all()


def test_ends_and_depths_are_measured_alike():
    """A change of random coordinates, seen by both."""
    draw = np.random.default_rng(0)
    change = draw.standard_normal((3, 2, 17, 4, 3))
    root = np.diag([1.0, 0.5, 2.0])
    ends = Ends(change[:, :, -1], np.zeros((3, 2, 4, 1)))
    found = layers.squares_at(change, DEPTHS, root)
    np.testing.assert_allclose(found[:-1, :, -1], ends.squares(root @ root)[0], rtol=1e-12)
    np.testing.assert_allclose(found[-1, :, -1], ends.mean().squares(root @ root)[0, 0], rtol=1e-12)
