"""The nonlinear limits against a plain layer-by-layer solution, symmetries and error estimates."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from plain_descent import SGD, dealt, descend

from resnet_limits.config import experiment_from_dict
from resnet_limits.dynamics import Dynamics, make_dynamics
from resnet_limits.limits import (
    depth,
    ensemble,
    fixed_point,
    kernels,
    models,
    quadrature,
    trajectories,
)
from resnet_limits.limits.models import Limits, Plan, standard_error
from resnet_limits.limits.quadrature import Directions
from resnet_limits.limits.solver import LimitError
from resnet_limits.problem import (
    Loss,
    embedding_rows,
    gram_root,
    limit_gram_root,
    make_problem,
)
from resnet_limits.units import Perceptron, Unit


def make(activation="tanh", samples=2, steps=4, seed=3, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "inputs": rng.standard_normal((samples, 2)),
        "targets": rng.standard_normal((samples, 2)),
        "loss": Loss("squared_error"),
        "unit": Perceptron(activation),
        "residual_scale": 1.0,
        "input_std": 1.0,
        "output_std": 1.0,
        "rate_in": 1.0,
        "rate_out": 1.0,
        "rate_embedding": 0.0,
        "steps": steps,
    }
    return Dynamics.of_unit(**(values | changes))


class Crossed(Unit):
    """A unit of three in-vectors and two out-vectors."""

    in_vectors = 3
    out_vectors = 2

    def forward(self, p):
        return torch.stack([torch.tanh(p[..., 0, :]) * p[..., 1, :], torch.sin(p[..., 2, :])], -2)

    def backward(self, p, g, r):
        first, second, third = p.unbind(-2)
        tanh = torch.tanh(first)
        parts = (1 - tanh**2) * second * r[..., 0, :], tanh * r[..., 0, :]
        return torch.stack([*parts, torch.cos(third) * r[..., 1, :]], -2)


class Doubled(Perceptron):
    """Of a known activation, which it does not take as it is."""

    def forward(self, p):
        return 2 * super().forward(p)


PROBLEMS = [
    ("tanh", {}),
    ("relu", {"residual_scale": 1.5}),
    ("gelu", {"input_std": 0.8, "output_std": 1.3, "rate_out": 0.4}),
    ("silu", {"loss": Loss("mean_squared_error")}),
    ("erf", {"rate_embedding": 0.3, "residual_scale": 0.7}),
    ("tanh", {"unit": Crossed(), "rate_in": 0.3, "rate_out": 0.6}),
]


@pytest.mark.parametrize(("activation", "changes"), PROBLEMS)
@pytest.mark.parametrize("way", ["all", "part", "given up"])
def test_finite_depth_is_gradient_descent_on_its_units(monkeypatch, activation, changes, way):
    """The oracle shares nothing with the solver but the units' map: gradients by autograd."""
    if way != "all":
        monkeypatch.setattr(fixed_point, "_PART_POINTS", 16)
    if way == "given up":
        monkeypatch.setattr(fixed_point, "MAX_PASSES", 1)
    dynamics = make(activation, **changes)
    root = np.diag([1.1, 0.9, 0.8, 1.2])
    limits = Limits(dynamics, root)
    plan = Plan("sobol", 384, 1, 6, 0)
    solved = limits.wide(root, 6, plan).trajectory
    expected = descend(dynamics, root, dealt(limits, plan, 6), ["none"], SGD())
    assert np.abs(expected[-1] - expected[0]).max() > 0.05
    np.testing.assert_allclose(solved.output[0], expected, atol=1e-9)
    # All units are iterated on; or corrected for; or iterated on after one pass was not enough, at
    # step 1, as at step 0 there is nothing to correct.
    assert solved.passes in {"all": [0], "part": range(8, 40), "given up": [2]}[way]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("part", [16, 1024])
def test_compiled_units_give_what_torch_gives(monkeypatch, activation, part):
    """A unit that the kernels do not know is left to torch."""
    monkeypatch.setattr(fixed_point, "_PART_POINTS", part)
    limits = Limits(make(activation, steps=4, rate_in=0.3, rate_out=0.3), np.eye(4))
    plan = Plan("sobol", 1000, 3, 6, 0, precision="float32", iteration_tolerance=1e-7)
    compiled = limits.dmft(plan).trajectory
    assert kernels.code_of(Crossed()) is None
    assert kernels.code_of(Doubled(activation)) is None
    monkeypatch.setattr(kernels, "code_of", lambda _unit: None)
    plain = limits.dmft(plan).trajectory
    assert (compiled.passes > 0) == (part == 16)
    assert not np.array_equal(compiled.output, plain.output)
    np.testing.assert_allclose(compiled.output, plain.output, atol=2e-5)
    np.testing.assert_allclose(compiled.backward, plain.backward, atol=1e-4)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_neither_threads_nor_chunks_nor_groups_of_replicates_matter(monkeypatch, precision):
    monkeypatch.setattr(fixed_point, "_PART_POINTS", 64)
    atol = {"float64": 1e-9, "float32": 2e-5}[precision]
    plan = Plan("sobol", 2048, 4, 8, 0, precision)

    def solved():
        return Limits(make(steps=3), np.eye(4)).dmft(plan).trajectory

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        base = solved()
        torch.set_num_threads(2)
        assert np.array_equal(solved().output, base.output)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert base.passes > 0
    monkeypatch.setattr(ensemble, "_CHUNK_ELEMENTS", {"cpu": 1 << 8, "compiled": 1 << 8})
    np.testing.assert_allclose(solved().output, base.output, atol=atol)
    monkeypatch.setattr(trajectories, "STATE_BYTES", 1 << 18)
    np.testing.assert_allclose(solved().output, base.output, atol=atol)


def test_precision_follows_the_tolerance_and_never_exceeds_what_is_allowed():
    free = Limits(make(steps=2), np.eye(4))
    forced = Limits(make(steps=2), np.eye(4), models.Arithmetic(torch.float32))
    assert free.make_plan(1e-2, 0)[0].precision == "float32"
    assert [
        models.plans.precision(tolerance, free.arithmetic.dtype) for tolerance in (2e-5, 1e-5)
    ] == ["float32", "float64"]
    assert models.plans.precision(1e-5, forced.arithmetic.dtype) == "float32"
    linear = Limits(make("linear", steps=2, rate_in=0.1, rate_out=0.1), np.eye(4))
    assert linear.make_plan(1e-2, 0)[0].precision == "float64"


def test_spectral_depth_agrees_with_every_layer():
    dynamics = make(steps=5, rate_in=0.5, rate_out=0.5)
    limits = Limits(dynamics, np.eye(4))
    plan = Plan("sobol", 256, 2, 8, 0)
    grid = partial(depth.layered, 40)
    spectral, every = (
        limits.trajectories.solve(
            np.eye(4), grid, replace(plan, nodes=nodes), "", shared=True
        ).output
        for nodes in (8, 40)
    )
    gaps = np.abs(spectral - every).max(axis=(0, 2, 3))
    # Training amplifies the error from step to step, the more the fewer the points.
    np.testing.assert_array_less(gaps, [1e-14, 1e-11, 1e-9, 1e-6, 1e-4])


def test_untrained_network_is_the_identity():
    dynamics = make("tanh")
    solution = Limits(dynamics, np.eye(4)).dmft(Plan("sobol", 512, 8, 4, 0))
    assert np.abs(solution.trajectory.output[:, 0]).max() < 1e-14
    first = solution.trajectory.hidden[:, 0]
    np.testing.assert_allclose(first, np.broadcast_to(first[:, :1], first.shape), atol=1e-14)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_independent_solves_scatter_as_claimed(activation):
    """Twenty solves with their own scramblings: their spread is the standard error they claim."""
    limits = Limits(make(activation, steps=4, rate_in=0.3, rate_out=0.3), np.eye(4))
    plans = [Plan("sobol", 128, 8, 4, seed) for seed in range(20)]
    outputs = np.array([limits.dmft(plan).trajectory.output for plan in plans])
    claimed = np.sqrt(np.mean([standard_error(output) ** 2 for output in outputs], axis=0))
    means = outputs.mean(axis=1)
    spread = means.std(axis=0, ddof=1)

    def ratio(spread):
        return np.sqrt(np.mean(spread[1:] ** 2) / np.mean(claimed[1:] ** 2))

    assert 0.7 < ratio(spread) < 1.4
    # The spread of single scramblings, eight times the variance, would not pass.
    assert not 0.7 < ratio(outputs.std(axis=1, ddof=1).mean(axis=0)) < 1.4


def test_the_plan_meets_its_tolerance_and_its_depth_error():
    limits = Limits(make(steps=6), np.eye(4))
    plan, solution = limits.make_plan(2e-3, 0)
    assert np.sqrt(np.mean(standard_error(solution.trajectory.output) ** 2)) <= 2e-3
    assert np.sqrt(np.mean(solution.depth_error**2)) <= 2e-4
    # The same points at all nodes: dealt out to other nodes they would change more than the depth.
    few, finer = (
        limits.trajectories.solve(
            np.eye(4), depth.continuous, replace(plan, nodes=nodes), "", shared=True
        )
        for nodes in (plan.nodes, plan.nodes + 6)
    )
    gap = few.output.mean(axis=0) - finer.output.mean(axis=0)
    assert np.sqrt(np.mean(gap**2)) <= 2e-4


def test_an_unreachable_tolerance_names_the_step(monkeypatch):
    monkeypatch.setattr(models.plans, "MAX_POINTS", 1024)
    with pytest.raises(LimitError, match=r"limit_tolerance 1.0e-07 is not met .* at step 1 "):
        Limits(make(), np.eye(4)).make_plan(1e-7, 0)


def test_a_diverging_limit_says_at_which_step():
    with pytest.raises(LimitError, match=r"dmft: .* at step \d+"):
        Limits(make("linear", rate_in=300.0, rate_out=300.0, steps=8), np.eye(4)).dmft(
            Plan("cubature", 0, 1, 4, 0)
        )


def test_symmetric_roots_couple_the_limits():
    """The difference of two limits is far more accurate than either, and far smaller."""
    limits = Limits(make(steps=5), np.eye(4))
    plan = Plan("sobol", 512, 8, 4, 0)
    rows = np.random.default_rng(0).standard_normal((65536, 4))
    values, vectors = np.linalg.eigh(rows.T @ rows / 65536)
    root = (vectors * np.sqrt(values)) @ vectors.T
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    base = limits.dmft(plan).trajectory.output

    def error(values):
        return np.sqrt(np.mean(standard_error(values) ** 2))

    coupled = error(limits.mean_ode(root, plan).trajectory.output - base)
    # Another root of the same Gram matrix has the same solution and none of the coupling.
    turned = error(limits.mean_ode(turn @ root, plan).trajectory.output - base)
    assert coupled < 0.25 * error(base)
    assert turned > 0.7 * error(base)


def test_minimum_norm_coefficients_give_the_state_back_where_rows_are_few():
    """With D < r rows the Gram matrix is singular; fields on the rows are what they must be."""
    dynamics = make(steps=3)
    rows = np.random.default_rng(2).standard_normal((3, 4))
    values, vectors = np.linalg.eigh(rows.T @ rows / 3)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    solution = Limits(dynamics, np.eye(4)).mean_ode(root, Plan("sobol", 256, 2, 4, 0))
    start = solution.hidden_coef[0, 0, 0] @ rows.T
    np.testing.assert_allclose(start, dynamics.inputs @ rows[:, :2].T, atol=1e-7)
    output = solution.hidden_coef[:, :, -1] @ rows.T @ rows[:, 2:] / 3
    np.testing.assert_allclose(output, solution.trajectory.output, atol=1e-7)


def test_float32_agrees_with_float64_to_its_rounding():
    arithmetic = models.Arithmetic(torch.float32)
    plan = Plan("sobol", 256, 2, 4, 0)
    single = Limits(make(), np.eye(4), arithmetic).dmft(plan).trajectory.output
    double = Limits(make(), np.eye(4)).dmft(plan).trajectory.output
    assert 1e-9 < np.abs(single - double).max() < 2e-4


def test_directions_are_orthonormal_and_start_with_the_data():
    rng = np.random.default_rng(4)
    hidden, readout = np.zeros((6, 5)), np.zeros((6, 5))
    hidden[:3], readout[3:] = rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
    directions = Directions.of_data(hidden, readout)
    for basis in (directions.incoming, directions.outgoing):
        np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-12)
    assert np.abs(directions.incoming[3:, :3]).max() < 1e-12
    assert np.abs(directions.outgoing[:3, :3]).max() < 1e-12


def test_cubature_has_the_second_moments_of_normals():
    sample = quadrature.cubature(2, 1, 3)
    joint = torch.cat([sample.in_vectors, sample.out_vectors], dim=2).reshape(-1, 9)
    np.testing.assert_allclose(joint.T @ joint / len(joint), np.eye(9), atol=1e-14)
    np.testing.assert_allclose(joint.mean(dim=0), 0.0, atol=1e-14)


def test_points_are_dealt_out_in_order_of_depth_and_by_weight():
    directions = Directions(np.eye(4), np.eye(4))
    sample = quadrature.sobol(
        1, 1, directions, points=1024, replicates=range(1), root_seed=0, flip_inputs=True
    )
    shares = depth.continuous(5).total
    dealt = sample.at_nodes(shares)
    joined = torch.cat([incoming for incoming, _ in dealt], dim=1)
    assert torch.equal(joined, sample.in_vectors)
    sizes = np.array([incoming.shape[1] for incoming, _ in dealt])
    assert np.abs(sizes - 1024 * shares).max() <= sample.group
    for _, outgoing in dealt:
        np.testing.assert_allclose(outgoing.mean(dim=1), 0.0, atol=1e-14)
    with pytest.raises(ValueError, match="1024 points are too few for 400 depth nodes"):
        sample.at_nodes(np.full(400, 1 / 400))


def test_points_of_their_own_at_every_node_are_worth_their_cost():
    """The same points at all nodes, as many for each node, have a far larger error."""
    limits = Limits(make(steps=4), np.eye(4))
    plan = Plan("sobol", 4096, 8, 8, 0)
    own = limits.dmft(plan).trajectory.output
    same = limits.trajectories.solve(
        np.eye(4), depth.continuous, replace(plan, points=512), "", shared=True
    ).output
    error, error_same = (np.sqrt(np.mean(standard_error(o) ** 2)) for o in (own, same))
    assert error < 0.6 * error_same
    gap = np.sqrt(np.mean((own.mean(axis=0) - same.mean(axis=0)) ** 2))
    assert gap < 2 * np.hypot(error, error_same)


def test_sobol_points_have_the_moments_of_normals_and_nest():
    directions = Directions(np.eye(4), np.eye(4))
    options = {"replicates": range(2), "root_seed": 0, "flip_inputs": True}
    long = quadrature.sobol(1, 1, directions, points=4096, **options)
    short = quadrature.sobol(1, 1, directions, points=1024, **options)
    joint = torch.cat([long.in_vectors, long.out_vectors], dim=2)[0].reshape(-1, 8)
    np.testing.assert_allclose(joint.mean(dim=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(joint.T @ joint / len(joint), np.eye(8), atol=0.02)
    assert torch.equal(long.in_vectors[:, :256], short.in_vectors[:, :256])
    assert not torch.equal(long.in_vectors[0], long.in_vectors[1])


def test_divergence_of_one_embedding_is_named_and_keeps_what_was_before():
    """The DMFT limit is stable here; the embedding of one seed, ten times as large, is not."""
    dynamics = make("linear", steps=8, rate_in=0.1, rate_out=0.1)
    limits = Limits(dynamics, np.eye(4))
    plan = Plan("cubature", 0, 1, 8, 0)
    stable = limits.mean_ode(np.eye(4), plan).trajectory
    unstable = limits.mean_ode(10.0 * np.eye(4), plan).trajectory
    assert stable.diverged_step == -1
    assert np.isfinite(stable.hidden).all()
    first = unstable.diverged_step
    assert 0 < first < 8
    for states in (unstable.output, unstable.loss, unstable.hidden, unstable.backward):
        assert np.isfinite(states[:, :first]).all()
        assert np.isnan(states[:, first:]).all()
    with pytest.raises(LimitError, match=rf"dmft: the limit itself diverges at step {first}"):
        Limits(dynamics, 10.0 * np.eye(4)).dmft(plan)


def test_stiff_depth_is_solved_where_plain_iteration_is_lost(monkeypatch):
    """At a rate that this embedding hardly bears, powers of the drift outgrow rounding."""
    experiment = experiment_from_dict(
        {
            "experiment": "stiff",
            "problem": {
                "data": {"kind": "linear_teacher", "inputs": 3, "targets": 3, "seed": 58},
            },
            "model": {"unit": {"kind": "perceptron", "activation": "linear"}},
            "training": {"steps": 11, "learning_rate": 1.0},
            "sweep": {"shapes": [[1, 1, 4]], "seeds": 4},
        }
    )
    problem = make_problem(experiment)
    limits = Limits(make_dynamics(experiment, problem), limit_gram_root(problem))
    root = gram_root(problem, embedding_rows(problem, 0, 3, 4))
    plan = Plan("cubature", 0, 1, 8, 0)
    solved = limits.mean_ode(root, plan).trajectory
    assert solved.diverged_step == -1
    assert np.isfinite(solved.output).all()
    monkeypatch.setattr(fixed_point, "PICARD_ITERATIONS", 10_000)
    with pytest.raises(LimitError, match=r"did not converge at step \d+"):
        limits.trajectories.solve(root, depth.continuous, plan, "")
