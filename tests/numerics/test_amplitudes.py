"""Amplitudes from the limit alone: kernels, transport and sums against independent solutions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from own_parts import Saturating, TwoVelocities

from resnet_limits.config import experiment_from_dict
from resnet_limits.dynamics import Branch, Dynamics, make_dynamics
from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import cost, gram, layers, noise, width
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.amplitudes.responses import branch_kernels
from resnet_limits.limits.amplitudes.transport import Carrier, end_variance
from resnet_limits.limits.models import Limits
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.quadrature import UnitSample
from resnet_limits.norms import RMS, Identity
from resnet_limits.problem import Loss, limit_gram_root, make_problem
from resnet_limits.rules import GradientDescent, move
from resnet_limits.units import AttentionHead, Convolution, GatedPerceptron, Perceptron, Unit

STEPS, ROWS, R = 4, 6, 3
PLAN = Plan("sobol", 1024, 8, 8, 0, "float32", 1e-7, 1e-3)


class Own(Unit):
    """A unit of a test, whose properties it does not declare: g = sin(p_1) cos(p_2)."""

    in_vectors, out_vectors = 2, 1

    def forward(self, p):
        return p[..., :1, :].sin() * p[..., 1:, :].cos()

    def backward(self, p, _values, r):
        first, second = p[..., :1, :], p[..., 1:, :]
        return torch.cat([first.cos() * second.cos() * r, -first.sin() * second.sin() * r], -2)


def test_a_mean_of_replicates_has_the_size_of_its_expectation():
    """Its own square is too large by its variance; the error is that of the size."""
    draws, replicates = 2000, 8
    expected = np.array([[0.0, 0.0], [3.0, 4.0], [30.0, 40.0]])
    noise_ = np.random.default_rng(0).standard_normal((draws, replicates, 3, 2))
    found = [Amplitude.of_means(expected + fields) for fields in noise_]
    squares = np.array([amplitude.value**2 for amplitude in found])
    # Mean squares of two targets; where there is nothing, half of the draws are cut off at zero.
    np.testing.assert_allclose(squares[:, 1:].mean(0), [12.5, 1250.0], rtol=0.01)
    assert squares[:, 0].mean() < 1 / replicates
    spread = np.std([amplitude.value[1:] for amplitude in found], axis=0)
    told = np.mean([amplitude.uncertainty[1:] for amplitude in found], axis=0)
    np.testing.assert_allclose(told, spread, rtol=0.1)
    assert np.mean([a.value[0] < 3 * a.uncertainty[0] for a in found]) > 0.9


# --- kernels --------------------------------------------------------------------------------------


def some_dynamics(unit, rule=None, batches=None, **branch):
    values = {"scale": 0.7, "input_std": 1.1, "output_std": 0.9, "rate_in": 0.6, "rate_out": 0.4}
    draw = np.random.default_rng(1).standard_normal
    return Dynamics(
        draw((ROWS, 2)),
        draw((ROWS, 1)),
        Loss("squared_error"),
        (Branch(unit, **{**values, **branch}),),
        STEPS,
        rule=rule or GradientDescent(),
        batches=batches,
    )


def trained_drift(dynamics, sample, u, z, place, row, size):
    """What units with explicit weights add to one coordinate more, of which a state has a part.

    The coordinate is one that no state has a part in but one state at one step and row. Weights in
    it are of size one, in both signs, so that their square is one in every pair of units.
    """
    branch = dynamics.layer[0]
    unit, steps = branch.unit, dynamics.steps
    weights = []
    count = max(unit.in_vectors, unit.out_vectors)
    for vectors, std in (
        (sample.in_vectors[0], branch.input_std),
        (sample.out_vectors[0], branch.output_std),
    ):
        more = []
        for number in range(2 * count):
            extra = torch.zeros(*vectors.shape[:2], 1, dtype=torch.float64)
            if number // 2 < vectors.shape[1]:
                extra[:, number // 2] = (-1.0) ** number * count**0.5
            more.append(torch.cat([vectors, extra], -1))
        weights.append(std * torch.cat(more))
    states = [torch.cat([x, torch.zeros(len(x), 1, dtype=torch.float64)], -1) for x in (u, z)]
    states[place][row, -1] = size
    parts = [[w, *(torch.zeros_like(w) for _ in range(dynamics.rule.buffers))] for w in weights]
    drifts = [[], []]
    for k in range(steps):
        here = slice(k * ROWS, (k + 1) * ROWS)
        p, r = (
            torch.einsum("pvd,nd->pvn", part[0], x[here])
            for part, x in zip(parts, states, strict=True)
        )
        values = unit.forward(p)
        g, dp = values[:, : unit.out_vectors], unit.backward(p, values, r)
        for found, part, seen in ((drifts[0], parts[1], g), (drifts[1], parts[0], dp)):
            found.append(branch.scale * torch.einsum("pv,pvn->n", part[0][..., -1], seen) / len(p))
        for part, seen, x, rate in (
            (parts[0], dp, states[0], branch.rate_in),
            (parts[1], g, states[1], branch.rate_out),
        ):
            gradient = torch.einsum("pvn,nd->pvd", seen, x[here])
            gradient /= branch.scale * dynamics.batch_size(k)
            if rate:
                move(dynamics.rule.transition(k, rate), part, gradient)
    return [torch.cat(found) for found in drifts]


UNITS = {
    "tanh": Perceptron("tanh"),
    "gelu": Perceptron("gelu"),
    "gated": GatedPerceptron("silu"),
    "attention": AttentionHead(2, True, 3),
    "convolution": Convolution([-1, 0, 2], "erf", 3),
    "own": Own(),
}
RULES = {
    "plain": {},
    "momentum": {"rule": GradientDescent(0.8, True, 0.2, (1.0, 0.5, 0.2))},
    "own": {"rule": TwoVelocities()},
    "batches": {"batches": ((0, 1, 2), (3, 4, 5), (0, 1, 2))},
    "rates": {"rate_in": 0.0, "rate_out": 1.3},
}


def kernels_of(dynamics, sample, u, z):
    found = branch_kernels(
        dynamics, dynamics.layer[0], sample, np.ones(1), u[None, None], z[None, None]
    )
    return found.forward[0, 0], found.backward[0, 0]


def problem_of(name, rule):
    """Units, states and a rule that no limit has: kernels are what they are for any."""
    draw = torch.Generator().manual_seed(3)
    unit = UNITS[name]
    options = dict(RULES[rule])
    dynamics = some_dynamics(unit, **options)
    ins, outs = (
        torch.randn(1, 40, count, R, dtype=torch.float64, generator=draw)
        for count in (unit.in_vectors, unit.out_vectors)
    )
    sample = UnitSample(ins, outs, shared=True)
    u, z = (torch.randn(STEPS * ROWS, R, dtype=torch.float64, generator=draw) for _ in range(2))
    if dynamics.batches is not None:
        for step, batch in enumerate(dynamics.batches):
            outside = [step * ROWS + row for row in range(ROWS) if row not in batch]
            z[outside] = 0.0
    return dynamics, sample, u, z


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", UNITS)
def test_kernels_are_what_units_add_to_one_more_coordinate(name, rule):
    """Against units with explicit weights, trained by their rule, without any tangent."""
    dynamics, sample, u, z = problem_of(name, rule)
    # Kernels of finite changes, as of units that do not say they have no kinks, are less accurate.
    tolerance = 1e-6 if dynamics.layer[0].unit.is_smooth else 0.1
    forward, backward = kernels_of(dynamics, sample, u, z)
    step = 1e-5
    for row in (0, ROWS + 2, 3 * ROWS - 1):
        for place, kernel, which in ((1, forward, 0), (0, backward, 1)):
            ends = [
                trained_drift(dynamics, sample, u, z, place, row, size)[which]
                for size in (step, -step)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            size = float(slope.abs().max())
            assert float((kernel[:, row] - slope).abs().max()) < tolerance * max(1.0, size)


def test_kinks_are_those_of_the_mean():
    """relu, as the limit of a softplus ever sharper, whose derivatives are exact."""

    class Softplus(Perceptron):
        sharpness = 12.0

        def __init__(self):
            super().__init__("relu")
            self.is_smooth = True

        def forward(self, p):
            return torch.nn.functional.softplus(p, self.sharpness)

        def backward(self, p, _values, r):
            return torch.sigmoid(self.sharpness * p) * r

    draw = torch.Generator().manual_seed(5)
    weights = (torch.randn(1, 1 << 14, 1, R, dtype=torch.float64, generator=draw) for _ in range(2))
    sample = UnitSample(*weights, shared=True)
    u, z = (torch.randn(STEPS * ROWS, R, dtype=torch.float64, generator=draw) for _ in range(2))
    small = {"rate_in": 0.2, "rate_out": 0.2}
    sharp, smooth = (
        kernels_of(some_dynamics(unit, **small), sample, u, z)
        for unit in (Perceptron("relu"), Softplus())
    )
    for found, expected in zip(sharp, smooth, strict=True):
        size = float(expected.square().mean().sqrt())
        assert float((found - expected).square().mean().sqrt()) < 0.1 * size
    # Without the kink, units of zero second derivative, the kernel is another one.
    blind = Perceptron("relu")
    blind.is_smooth = True
    _, without = kernels_of(some_dynamics(blind, **small), sample, u, z)
    size = float(smooth[1].square().mean().sqrt())
    assert float((without - smooth[1]).square().mean().sqrt()) > 0.2 * size


def test_a_unit_that_mixes_more_rows_than_it_says_is_found_out():
    """The check of every run, with a unit whose tangents are wrong."""
    unit = Convolution([-1, 0, 1], "tanh", 3)
    unit.tokens = 1
    values = quickstart_values(tokens=True)
    limits = limits_of(values, unit=unit)
    _, identity = width.width_variance(limits.trajectories, replace(PLAN, points=512))
    assert not identity.holds
    unit.tokens = 3
    _, identity = width.width_variance(limits.trajectories, replace(PLAN, points=512))
    assert identity.holds


# --- transport ------------------------------------------------------------------------------------


def random_carrier(nodes, steps, rows, seed=0):
    """A carrier whose kernels are causal in the step and polynomials of depth."""
    draw = np.random.default_rng(seed).standard_normal
    size = steps * rows
    step = np.arange(size) // rows
    before, so_far = (step[None] < step[:, None]), (step[None] <= step[:, None])
    grid = depth.continuous(nodes)
    powers = grid.s[:, None, None] ** np.arange(3)

    def kernel(mask):
        return np.einsum("nxa,aij->nij", powers, 0.4 * draw((3, size, size))) * mask

    def noise():
        factors = draw((3, size, size)) / size**0.5
        root = np.einsum("nxa,aij->nij", powers, factors)
        return root @ root.swapaxes(1, 2)

    ends = 0.3 * draw((2, size, size)) * np.stack([before, so_far])
    return Carrier(rows, kernel(before), kernel(so_far), *ends, noise(), noise()), grid


def layered_variance(carrier, grid, layers):
    """The same with a finite number of layers, whose noises are independent: one dense system."""
    size = len(carrier.start)
    middle = (np.arange(layers) + 0.5) / layers
    at = depth.interpolation_matrix(grid.s, middle)
    forward, backward, *noises = (
        np.tensordot(at, part, axes=1)
        for part in (
            carrier.forward,
            carrier.backward,
            carrier.forward_noise,
            carrier.backward_noise,
        )
    )
    edges = layers + 1
    matrix = np.eye(2 * edges * size)
    driven = np.zeros((2 * edges * size, 2 * layers * size))

    def h(edge):
        return slice(edge * size, (edge + 1) * size)

    def b(edge):
        return slice((edges + edge) * size, (edges + edge + 1) * size)

    def root(covariance):
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.maximum(values, 0))

    matrix[h(0), b(0)] -= carrier.start
    matrix[b(layers), h(layers)] -= carrier.end
    for k in range(layers):
        # The midpoint rule: second order in the layers, so that few of them are enough.
        matrix[h(k + 1), h(k)] -= np.eye(size)
        matrix[b(k), b(k + 1)] -= np.eye(size)
        for edge in (k, k + 1):
            matrix[h(k + 1), b(edge)] -= forward[k] / (2 * layers)
            matrix[b(k), h(edge)] -= backward[k] / (2 * layers)
        driven[h(k + 1), k * size : (k + 1) * size] = root(noises[0][k]) / layers**0.5
        driven[b(k), (layers + k) * size : (layers + k + 1) * size] = (
            root(noises[1][k]) / layers**0.5
        )
    solved = np.linalg.solve(matrix, driven)[h(layers)]
    return (solved**2).sum(axis=1)


def test_the_adjoint_is_the_limit_of_dense_layers():
    carrier, grid = random_carrier(8, 3, 2)
    found = end_variance(carrier, grid)
    coarse, fine = (layered_variance(carrier, grid, layers) for layers in (20, 40))
    expected = (4 * fine - coarse) / 3
    assert np.abs(found / expected - 1).max() < 1e-4
    # Noise that nothing carries on, and one end forgotten, are other numbers.
    still = replace(carrier, forward=0 * carrier.forward, backward=0 * carrier.backward)
    assert np.abs(end_variance(still, grid) / expected - 1).max() > 0.1
    for name in ("start", "end"):
        forgotten = replace(carrier, **{name: 0 * getattr(carrier, name)})
        assert np.abs(end_variance(forgotten, grid) / expected - 1).max() > 0.05


def test_layers_are_summed_exactly():
    """As many nodes as layers: one dense system of units that read h before and b after a layer."""
    layers, steps, rows = 5, 3, 2
    carrier, _ = random_carrier(layers, steps, rows)
    grid = depth.layered(layers, layers)
    size = len(carrier.start)

    def h(edge):
        return slice(edge * size, (edge + 1) * size)

    def b(edge):
        return slice((layers + 1 + edge) * size, (layers + 2 + edge) * size)

    def variance(of_b, of_h):
        matrix = np.eye(2 * (layers + 1) * size)
        matrix[h(0), b(0)] -= carrier.start
        matrix[b(layers), h(layers)] -= carrier.end
        for k in range(layers):
            matrix[h(k + 1), h(k)] -= np.eye(size)
            matrix[b(k), b(k + 1)] -= np.eye(size)
            matrix[h(k + 1), b(k + of_b)] -= carrier.forward[k] / layers
            matrix[b(k), h(k + of_h)] -= carrier.backward[k] / layers
        inverse = np.linalg.inv(matrix)[h(layers)]
        parts = [(inverse[:, h(k + 1)], carrier.forward_noise[k]) for k in range(layers)] + [
            (inverse[:, b(k)], carrier.backward_noise[k]) for k in range(layers)
        ]
        return sum(np.einsum("ij,jk,ik->i", x, noise, x) for x, noise in parts) / layers

    found = end_variance(carrier, grid)
    assert np.abs(found / variance(1, 0) - 1).max() < 1e-10
    # Units that read the other side of their layer.
    assert np.abs(found / variance(0, 1) - 1).max() > 1e-2


@pytest.mark.parametrize("norm", [RMS(), Saturating(), Identity()])
def test_norms_do_to_the_noise_of_a_coordinate_what_they_do_to_states(norm):
    """Many coordinates, whose noise is independent of the states."""
    draw = torch.Generator().manual_seed(0)
    size, step = 1 << 18, 1e-3
    h, v, *changes = (torch.randn(size, dtype=torch.float64, generator=draw) for _ in range(4))
    v = v + 0.7 * h
    basis = torch.linalg.qr(torch.stack([h, v]).T)[0]
    state, cotangent = (basis.T @ x / size**0.5 for x in (h, v))
    dh, dv = (x - basis @ (basis.T @ x) for x in changes)
    factor, bend = width._coordinate_norm(norm, state, cotangent)
    moved = norm.pull_back(h + step * dh, v + step * dv, -1, 1 / size)
    change = (moved - norm.pull_back(h, v, -1, 1 / size)) / step
    assert float((change - factor * dv - bend * dh).square().mean().sqrt()) < 5e-3
    forward = (norm.forward(h + step * dh, -1, 1 / size) - norm.forward(h, -1, 1 / size)) / step
    assert float((forward - factor * dh).square().mean().sqrt()) < 5e-3


# --- the Gram matrix ------------------------------------------------------------------------------


def sampled_covariance(law, sizes, embed_dim=64, draws=40_000):
    """D times the covariance of the entries of Phi^T Phi / D."""
    draw = np.random.default_rng(0)
    shape = (draws, embed_dim, len(sizes))
    entries = {
        "gaussian": lambda: draw.standard_normal(shape, dtype=np.float32),
        "uniform": lambda: draw.uniform(-(3**0.5), 3**0.5, shape),
        "rademacher": lambda: draw.choice([-1.0, 1.0], shape),
    }[law]()
    grams = (entries * sizes).swapaxes(1, 2) @ (entries * sizes) / embed_dim
    return embed_dim * np.cov(grams.reshape(draws, -1).T)


def directions_covariance(changes):
    lines = np.array([change.ravel() for change in changes])
    return lines.T @ lines


@pytest.mark.parametrize("law", ["gaussian", "uniform", "rademacher"])
def test_the_changes_of_the_gram_matrix_have_the_covariance_of_its_fluctuations(law):
    sizes = np.array([1.0, 0.5, 2.0])
    expected = sampled_covariance(law, sizes, draws=20_000)
    found = directions_covariance(gram.directions(np.diag(sizes**2), 0, law))
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max() + 0.02
    # As if the diagonal fluctuated like the rest.
    wrong = directions_covariance(
        np.triu(c) - np.diag(np.diag(c)) * (1 - 0.5**0.5) + np.triu(c, 1).T
        for c in gram.directions(np.diag(sizes**2), 0, "gaussian")
    )
    assert np.abs(wrong - sampled_covariance("gaussian", sizes, draws=2000)).max() > 3


def test_random_changes_are_so_on_average(monkeypatch):
    sizes = np.array([1.0, 0.5, 2.0])
    exact = directions_covariance(gram.directions(np.diag(sizes**2), 0, "gaussian"))
    monkeypatch.setattr(cost, "MOST_ENTRIES", 1)
    monkeypatch.setattr(cost, "RANDOM_DIRECTIONS", 20_000)
    found = directions_covariance(gram.directions(np.diag(sizes**2), 0, "gaussian"))
    assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max()


def test_directions_without_an_embedding_stay_out():
    changes = list(gram.directions(np.diag([1.0, 0.0, 4.0]), 0, "gaussian"))
    assert len(changes) == gram.entries(np.diag([1.0, 0.0, 4.0])) == 3
    assert not any(change[1].any() for change in changes)


# --- whole problems -------------------------------------------------------------------------------


def quickstart_values(tokens=False, **changes):
    """config/config.yaml in short."""
    data = {"kind": "gaussian", "samples": 4, "inputs": 2, "targets": 2, "seed": 0}
    if tokens:
        data = {
            "kind": "in_context_regression",
            "samples": 2,
            "tokens": 3,
            "inputs": 1,
            "targets": 1,
            "seed": 0,
        }
    return {
        "experiment": "quickstart",
        "problem": {"data": data, "loss": "squared_error"},
        "model": {"unit": {"kind": "perceptron", "activation": "tanh"}},
        "training": {"steps": 4 if tokens else 15, "learning_rate": 1.0},
        "sweep": {"shapes": [[4, 8, 16]]},
        **changes,
    }


def limits_of(values, **branch):
    experiment = experiment_from_dict(values)
    problem = make_problem(experiment)
    dynamics = make_dynamics(experiment, problem)
    if branch:
        dynamics = dynamics.with_branches(**branch)
    return Limits(dynamics, limit_gram_root(problem))


@pytest.fixture(scope="module")
def quickstart():
    return limits_of(quickstart_values())


# Of a plain solution with a fine layered grid, which networks of L = 64, M = D = 256 agree with.
WIDTH = {0: 0.599, 1: 0.630, 3: 0.664, 5: 0.687, 14: 0.82}
GRAM = {5: (1.483, 0.418), 14: (2.149, 0.341)}
LAYERS = {5: (0.0417, 0.0128), 14: (0.098, 0.0425)}
# Of 96 replicates of 2048 points.
NOISE = {5: (0.259, 0.02), 14: (0.28, 0.025)}


def gram_amplitudes(limits, plan=PLAN):
    root = limits.limit_root
    return gram.gram_amplitudes(gram.gram_slopes(limits.trajectories, plan), root @ root)


def close(found, expected, relative=0.02):
    return abs(found / expected - 1) < relative


def test_the_width_amplitude_of_the_quickstart(quickstart):
    variance, identity = width.width_variance(quickstart.trajectories, PLAN)
    assert identity.holds
    found = np.sqrt(variance.mean(axis=0))
    assert all(close(found[step], value) for step, value in WIDTH.items())


# Networks of eight layers, whose ratio to these is 0.998 to 1.009.
WIDTH_AT_8 = {0: 0.599, 1: 0.628, 3: 0.661, 5: 0.683, 8: 0.714, 11: 0.752, 14: 0.805}


def test_the_width_amplitude_of_few_layers(quickstart):
    variance, identity = width.width_variance(quickstart.trajectories, PLAN, layers=8)
    assert identity.holds
    found = np.sqrt(variance.mean(axis=0))
    assert all(close(found[step], value, 0.01) for step, value in WIDTH_AT_8.items())
    # That of many layers is another.
    assert not close(WIDTH[14], WIDTH_AT_8[14], 0.01)


def test_layers_of_several_branches_have_no_amplitude_at_their_depth():
    perceptron = {"unit": {"kind": "perceptron", "activation": "tanh"}}
    limits = limits_of(quickstart_values(model={"layer": [perceptron, perceptron]}))
    with pytest.raises(ValueError, match="2 branches in a layer: need 1"):
        width.width_variance(limits.trajectories, PLAN, layers=8)


def test_noise_that_nothing_carries_on_is_told_apart(quickstart, monkeypatch):
    """The negative control: the kernels forgotten, 0.668 and 0.70 at steps 5 and 14."""

    def still(carrier, grid):
        return end_variance(
            replace(carrier, forward=0 * carrier.forward, backward=0 * carrier.backward), grid
        )

    monkeypatch.setattr(width, "end_variance", still)
    found = np.sqrt(width.width_variance(quickstart.trajectories, PLAN)[0].mean(axis=0))
    assert close(found[5], 0.668, 0.01)
    assert close(found[14], 0.70, 0.01)
    assert not close(found[5], WIDTH[5])
    assert not close(found[14], WIDTH[14])


def test_the_gram_amplitudes_of_the_quickstart(quickstart):
    hidden, output, _ = gram_amplitudes(quickstart)
    for step, values in GRAM.items():
        assert close(hidden.value[step], values[0])
        assert close(output.value[step], values[1])
    assert hidden.value[0] < 1e-9


def test_a_wrong_covariance_of_the_gram_matrix_is_told_apart(quickstart, monkeypatch):
    """The negative control: a diagonal that fluctuates like the rest."""
    monkeypatch.setitem(gram._EXCESS, "gaussian", -1.0)
    hidden, output, _ = gram_amplitudes(quickstart)
    for step, values in GRAM.items():
        assert not close(hidden.value[step], values[0])
        assert not close(output.value[step], values[1])


def test_the_layer_amplitudes_of_the_quickstart(quickstart):
    hidden, output, _ = layers.layer_amplitudes(quickstart.trajectories, replace(PLAN, points=4096))
    for step, values in LAYERS.items():
        assert close(hidden.value[step], values[0])
        assert close(output.value[step], values[1])


def test_the_output_noise_of_the_quickstart(quickstart):
    _, found = noise.unit_noise(quickstart.trajectories, replace(PLAN, points=2048, replicates=192))
    for step, (value, error) in NOISE.items():
        assert abs(found.value[step] - value) < error


def test_initial_weights_of_another_size_are_told_apart(quickstart):
    """The negative control of a network whose weights are those of another initialisation."""
    other = limits_of(quickstart_values(), input_std=0.5)
    variance, identity = width.width_variance(other.trajectories, PLAN)
    assert identity.holds
    found = np.sqrt(variance.mean(axis=0))
    assert not any(close(found[step], value, 0.1) for step, value in WIDTH.items())


def test_linear_units_are_exact():
    """Step 0 of linear units has closed forms: A_W^2 and B^2 are mean squares of the inputs."""
    values = quickstart_values(model={"unit": {"kind": "perceptron", "activation": "linear"}})
    values["training"] = {"steps": 3, "learning_rate": 0.2}
    limits = limits_of(values)
    plan = Plan("cubature", 0, 1, 8, 0, "float64")
    variance, identity = width.width_variance(limits.trajectories, plan)
    assert identity.holds
    assert identity.deviation < 1e-10
    x = limits.dynamics.inputs
    assert close(variance[0, 0], np.square(x).sum(1).mean(), 1e-10)
    _, found = noise.unit_noise(limits.trajectories, replace(plan, points=1024, replicates=256))
    # W_u^T O p / sqrt(L M), with E |p|^2 = |x|^2 for each target.
    assert close(found.value[0], np.square(x).sum(1).mean() ** 0.5, 0.06)
