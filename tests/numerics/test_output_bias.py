"""The bias of the outputs of order D/(LM): closed forms, other solvers and trained networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.kinds import Shape
from resnet_limits.limits.amplitudes import bias
from resnet_limits.limits.amplitudes.bias import Numerics, Parts, output_bias
from resnet_limits.limits.amplitudes.histories import Additions, replay, solve
from resnet_limits.limits.amplitudes.responses import branch_kernels
from resnet_limits.limits.depth import continuous, layered
from resnet_limits.limits.quadrature import Directions, UnitSample, cubature, sobol
from resnet_limits.limits.solver import solve as solve_limit
from resnet_limits.networks.dense import DenseNetwork
from resnet_limits.norms import RMS
from resnet_limits.problem import Loss
from resnet_limits.rules import make_rule
from resnet_limits.units import AttentionHead, GatedPerceptron, Perceptron

ROWS, STEPS, DIRECTIONS = 2, 5, 4
PARTS = ("noise", "overlap", "reaction")


def _data(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 2)), rng.standard_normal((rows, 2))


def _plain(unit, rows: int = ROWS, steps: int = STEPS, **changes) -> Dynamics:
    rates = {"rate_in": 1.0, "rate_out": 1.0} | changes
    return Dynamics.of_unit(*_data(rows), Loss("squared_error"), unit, steps, **rates)


def _transformer() -> Dynamics:
    inputs, targets = _data(4)
    # Rows of one size: a norm of small rows magnifies the noise beyond the first order.
    inputs *= 2**0.5 / np.linalg.norm(inputs, axis=1, keepdims=True)
    attention = Branch(AttentionHead(2, True, 2), norm=RMS(), rate_in=0.3, rate_out=0.3)
    perceptron = Branch(Perceptron("gelu"), norm=RMS(), ratio=2.0, rate_in=0.3, rate_out=0.3)
    return Dynamics(
        inputs,
        targets,
        Loss("squared_error"),
        (attention, perceptron),
        3,
        final_norm=RMS(),
        rate_embedding=0.1,
        rate_unembedding=0.1,
    )


def _rule():
    return make_rule("sgd", [1.0, 0.8, 0.6, 0.4], 0.3, momentum=0.9)


PROBLEMS = {
    "tanh": lambda: _plain(Perceptron("tanh")),
    "scales": lambda: _plain(
        Perceptron("tanh"),
        residual_scale=1.5,
        input_std=0.7,
        output_std=1.2,
        rate_in=1.5,
        rate_out=0.5,
    ),
    "gated": lambda: _plain(GatedPerceptron(), rate_in=0.3, rate_out=0.3),
    "rule": lambda: _plain(Perceptron("tanh"), rule=_rule()),
    "batches": lambda: _plain(Perceptron("tanh"), batches=((0,), (1,), (1,), (0,))),
    "transformer": _transformer,
}


def _samples(dynamics: Dynamics, points: int, replicates: int = 1) -> list[UnitSample]:
    root = np.eye(DIRECTIONS)
    directions = Directions.of_data(
        root[:, :2] @ dynamics.inputs.T, root[:, 2:] @ dynamics.targets.T
    )
    return [
        sobol(
            branch.unit.in_vectors,
            branch.unit.out_vectors,
            directions,
            points=points,
            replicates=range(replicates),
            root_seed=0,
            flip_inputs=not branch.unit.is_odd,
            branch=number,
        )
        for number, branch in enumerate(dynamics.layer)
    ]


# --- closed form ----------------------------------------------------------------------------------


def _linear_ratio(
    layers: int | None, scales: tuple[float, float, float], parts: Parts
) -> np.ndarray:
    """A_1 / f_1 of linear units and one row."""
    alpha, s_in, s_out = scales
    dynamics = _plain(
        Perceptron("linear"), 1, 2, residual_scale=alpha, input_std=s_in, output_std=s_out
    )
    grid = layered(layers, layers) if layers else continuous(4)
    sample = cubature(1, 1, DIRECTIONS)
    points = [(sample.in_vectors, sample.out_vectors)]
    limit = solve(dynamics, np.eye(DIRECTIONS), grid, points).output
    bias = output_bias(dynamics, np.eye(DIRECTIONS), grid, [sample], parts=parts)[0]
    return (bias[1] / limit[1]).numpy()


@pytest.mark.parametrize("layers", [4, 16, None])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.7, 1.3, 0.6)])
def test_linear_units_have_the_bias_of_the_closed_form(layers, scales):
    """docs/concepts/amplitudes-outputs.md, "A closed form"; each part by itself."""
    alpha, s_in, s_out = scales
    whole = alpha**2 * s_in**2 * s_out**2 * (1 - 1 / layers if layers else 1.0)
    of_noise = 0.5 * s_in**2 / (s_in**2 + s_out**2)
    shares = {"noise": of_noise, "overlap": 0.5 - of_noise, "reaction": 0.5}
    np.testing.assert_allclose(_linear_ratio(layers, scales, Parts()), whole, rtol=2e-4)
    for part, share in shares.items():
        alone = Parts(**{name: name == part for name in PARTS})
        found = _linear_ratio(layers, scales, alone)
        np.testing.assert_allclose(found, share * whole, rtol=2e-4)


@pytest.mark.parametrize("left_out", PARTS)
def test_a_part_left_out_is_seen_in_the_closed_form(left_out):
    parts = replace(Parts(), **{left_out: False})
    found = _linear_ratio(None, (1.0, 1.0, 1.0), parts)
    assert (np.abs(found - 1.0) > 0.2).all()


# --- other solvers --------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("depth", ["layered", "continuous"])
def test_without_additions_histories_are_the_limit(problem, depth):
    dynamics, root = PROBLEMS[problem](), np.eye(DIRECTIONS) + 0.1
    grid = layered(3, 3) if depth == "layered" else continuous(4)
    samples = [replace(sample, shared=True) for sample in _samples(dynamics, 64)]
    points = [(s.in_vectors, s.out_vectors) for s in samples]
    found = solve(dynamics, root, grid, points).output
    expected = solve_limit(dynamics, root, grid, samples, name="limit").output[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_kernels_are_the_differences_of_replayed_units(problem):
    """The tangents that carry the noise against central differences along whole trajectories."""
    dynamics, root, grid = PROBLEMS[problem](), np.eye(DIRECTIONS), continuous(2)
    samples = [replace(sample, shared=True) for sample in _samples(dynamics, 8)]
    points = [(s.in_vectors, s.out_vectors) for s in samples]
    solution = solve(dynamics, root, grid, points)
    for solved, of, sample in zip(solution.branches, points, samples, strict=True):
        states = solved.u[None], solved.z[None]
        found = branch_kernels(dynamics, solved.branch, sample, grid.total, *states)
        branch, size, step = solved.branch, solved.g.shape[-1], 1e-4
        for side, count, std, kernel, learned, seen in (
            ("to_r", branch.unit.out_vectors, branch.output_std, found.forward, "learned_out", "g"),
            ("to_p", branch.unit.in_vectors, branch.input_std, found.backward, "learned_in", "dp"),
        ):
            weights = getattr(solved, learned)
            values = getattr(solved, seen)
            moments = torch.einsum("npck,npcq->nkq", values, values) / solved.points
            expected = -weights.past * moments
            for q in range(size):
                for vector in range(count):
                    moved = []
                    for sign in (1, -1):
                        change = torch.zeros(1, 1, count, size, dtype=torch.float64)
                        change[..., vector, q] = sign * step
                        units = replay(dynamics, solved, of, Additions(**{side: change}))[2]
                        moved.append(getattr(units, seen)[:, :, vector].mean(1))
                    slope = (moved[0] - moved[1]) / (2 * step)
                    expected[..., q] += std**2 * weights.initial * slope
            np.testing.assert_allclose(kernel[0], branch.scale * expected, atol=3e-7)


@pytest.mark.parametrize("problem", ["tanh", "transformer"])
def test_random_signs_of_many_units_make_the_noise_part(problem, monkeypatch):
    """As all signs do; not so if they are equal, so that products of two directions remain."""
    dynamics, root, grid = PROBLEMS[problem](), np.eye(DIRECTIONS), continuous(2)
    alone = Parts(overlap=False, reaction=False)
    few, many = (_samples(dynamics, points, 4) for points in (512, 4096))

    def gap() -> float:
        """Give the difference over its standard error, RMS."""
        found = [
            output_bias(dynamics, root, grid, few, parts=alone, numerics=Numerics(4, noise))[:, 1:]
            for noise in (None, many)
        ]
        error = sum(x.var(0) / len(x) for x in found)
        return float(((found[0].mean(0) - found[1].mean(0)).square() / error).mean().sqrt())

    assert gap() < 2.0
    real = bias._signs

    def equal(generator, *sizes):
        return torch.ones_like(real(generator, *sizes)) if generator else real(None, *sizes)

    monkeypatch.setattr(bias, "_signs", equal)
    assert gap() > 4.0


def test_many_layers_tend_to_continuous_depth():
    dynamics, root = PROBLEMS["tanh"](), np.eye(DIRECTIONS)
    samples = [replace(sample, shared=True) for sample in _samples(dynamics, 64)]

    def at(grid) -> torch.Tensor:
        return output_bias(dynamics, root, grid, samples)[0]

    few, more, limit = at(layered(8, 8)), at(layered(16, 16)), at(continuous(6))
    scale = float(limit.square().mean().sqrt())
    assert float((more - limit).square().mean().sqrt()) > 0.05 * scale
    assert float((2 * more - few - limit).square().mean().sqrt()) < 0.04 * scale


# --- networks -------------------------------------------------------------------------------------


def _measured(dynamics: Dynamics, shape: Shape, seeds: int) -> torch.Tensor:
    """Outputs of trained networks less those of the limit with their own units, (seeds, K, ...).

    A network's units, projected on the span of its embedding, are points of the limit. Their
    solution has the noise of order 1/sqrt(LM) of the outputs, and the bias inside of the span, so
    that the difference shows what is outside.
    """
    depth, _, embed_dim = shape
    root, rng, found = np.eye(DIRECTIONS), np.random.default_rng(5), []
    for seed in range(seeds):
        basis, _ = np.linalg.qr(rng.standard_normal((embed_dim, DIRECTIONS)))
        rows = embed_dim**0.5 * basis
        network = DenseNetwork(dynamics, shape, [seed], rows[None], 0, kept=0, batched=True)
        points = []
        for branch, of in zip(network.branches, dynamics.layer, strict=True):
            sides = (
                (branch.at.incoming, of.input_std, of.unit.in_vectors),
                (branch.at.outgoing, of.output_std, of.unit.out_vectors),
            )
            projected = [
                (weights[:, 0] @ torch.from_numpy(basis) / (std * embed_dim**0.5)).unflatten(
                    1, (-1, vectors)
                )
                for weights, std, vectors in sides
            ]
            points.append((projected[0], projected[1]))
        control = solve(dynamics, root, layered(depth, depth), points).output
        outputs = []
        for step in range(dynamics.steps):
            output = network.forward_pass()
            outputs.append(output[0].clone())
            cotangent = dynamics.cotangent(output, network.targets, step)
            network.backward_pass(cotangent, update=step + 1 < dynamics.steps)
        found.append(torch.stack(outputs) - control)
    return torch.stack(found)


def _chi_square(measured: torch.Tensor, expected: torch.Tensor, order: float) -> float:
    """Mean square of the deviations over their errors: of the mean, and of the next order."""
    error = (
        measured.var(0) / len(measured) + (order * expected).square().mean((1, 2))[:, None, None]
    )
    return float(((measured.mean(0) - expected).square() / error)[1:].mean())


@pytest.mark.parametrize(
    ("problem", "width", "embed_dim", "seeds"),
    [
        ("tanh", 512, 128, 40),
        ("scales", 512, 128, 40),
        ("rule", 512, 128, 40),
        ("batches", 512, 128, 40),
        ("transformer", 256, 64, 20),
    ],
)
def test_networks_have_the_predicted_bias(problem, width, embed_dim, seeds):
    dynamics, depth = PROBLEMS[problem](), 4
    measured = _measured(dynamics, Shape(depth, width, embed_dim), seeds)
    measured *= depth * width / (embed_dim - DIRECTIONS)
    samples = _samples(dynamics, 4 * 512)
    root, grid = np.eye(DIRECTIONS), layered(depth, depth)

    def expected(parts: Parts) -> torch.Tensor:
        return output_bias(dynamics, root, grid, samples, parts=parts)[0]

    found = {name: expected(Parts(**{p: p == name for p in PARTS})) for name in PARTS}
    whole = sum(found.values())
    # At kappa = 1/16 the next order is some per cent.
    assert _chi_square(measured, whole, 0.08) < 2.0
    if problem != "tanh":
        return
    # What is left of the measured bias without a part has that part in full.
    for name, part in found.items():
        rest = measured.mean(0) - (whole - part)
        share = float((rest * part).sum() / part.square().sum())
        assert 0.6 < share < 1.4, name
