"""Limits that need more depth nodes than the plan's, and what is left of the depth error."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from resnet_limits.config import experiment_from_dict
from resnet_limits.dynamics import make_dynamics
from resnet_limits.limits import depth, models, trajectories
from resnet_limits.limits.models import Limits, Plan, standard_error
from resnet_limits.limits.solver import LimitError
from resnet_limits.problem import embedding_rows, gram_root, limit_gram_root, make_problem


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.fixture(scope="module")
def case():
    """Two samples, ten steps at a learning rate of 1, and the root of a given D and seed."""
    experiment = experiment_from_dict(
        {
            "experiment": "depth",
            "problem": {
                "data": {"kind": "gaussian", "samples": 2, "inputs": 2, "targets": 2, "seed": 1}
            },
            "training": {"steps": 10, "learning_rate": 1.0},
            "sweep": {"shapes": [[8, 64, 2]], "seeds": 8},
        }
    )
    problem = make_problem(experiment)
    limits = Limits(make_dynamics(experiment, problem), limit_gram_root(problem))

    def root(embed_dim, seed):
        return gram_root(problem, embedding_rows(problem, 0, seed, embed_dim))

    plan = Plan("sobol", 4096, 8, 8, 0, "float32", 1e-6, tolerance=1e-2)
    return limits, root, plan


def test_a_limit_is_as_near_to_its_value_with_many_nodes_as_its_error_says(monkeypatch, case):
    monkeypatch.setattr(models, "_DEPTH_POINTS", 256)
    limits, root, plan = case
    finer = replace(plan, points=1 << 13, nodes=24, iteration_tolerance=1e-7)
    exact = limits.trajectories.solve(root(2, 3), depth.continuous, finer, "").output.mean(axis=0)
    found = limits.mean_ode(root(2, 3), plan)
    assert found.nodes > plan.nodes
    assert rms(found.trajectory.output.mean(axis=0) - exact) < 4 * rms(found.output_stderr)
    # The nodes of the plan, and the scatter alone, are the negative control.
    few = limits.trajectories.solve(root(2, 3), depth.continuous, plan, "").output
    assert rms(few.mean(axis=0) - exact) > 4 * rms(standard_error(few))


def test_what_nodes_cannot_mend_is_in_the_standard_error(monkeypatch, case):
    monkeypatch.setattr(models, "_DEPTH_POINTS", 256)
    monkeypatch.setattr(models.plans, "MAX_NODES", 8)
    limits, root, plan = case
    plan = replace(plan, points=2048, replicates=4)
    found = limits.mean_ode(root(2, 3), plan)
    scatter, change = standard_error(found.trajectory.output), found.depth_change.output
    assert found.nodes == 8
    assert rms(change) > rms(scatter)
    expected = np.hypot(np.hypot(scatter, change), found.rounding[:, None, None])
    np.testing.assert_allclose(found.output_stderr, expected)
    # Two rows do not span four directions; what noise there is outside of them is left out.
    spanned = np.linalg.pinv(root(2, 3), rcond=1e-6) @ root(2, 3)
    np.testing.assert_allclose(
        found.hidden_coef_change @ root(2, 3), found.depth_change.hidden @ spanned, atol=1e-6
    )


def test_limits_that_need_no_more_nodes_keep_those_of_the_plan(case):
    limits, root, plan = case
    for found in (limits.mean_ode(root(64, 0), plan), limits.wide(root(64, 0), 50, plan)):
        assert found.nodes == plan.nodes
        assert 0 < rms(found.depth_change.output) < 0.25 * plan.tolerance


def test_layers_that_are_all_nodes_have_no_depth_error(case):
    limits, root, plan = case
    found = limits.wide(root(64, 0), 6, replace(plan, points=1024, replicates=2))
    assert (found.depth_error == 0).all()
    assert len(found.knots) == 7


def test_all_depths_of_a_root_have_the_same_nodes(monkeypatch, case):
    """Their own errors differ; which nodes they get is decided on for the Mean ODE."""
    limits, root, plan = case
    seen = {"mean": 0.0, "wide": 0.0}

    def change(self, _root, grid, plan, _name, *_more):
        own = seen["mean" if grid is depth.continuous else "wide"]
        return self._constant_change(own, own if plan.nodes < 12 else 0.0)

    monkeypatch.setattr(Limits, "_depth_change", change)
    grids = depth.continuous, partial(depth.layered, 40)

    def nodes(mean, wide):
        seen.update(mean=mean, wide=wide)
        return [limits._enough_nodes(root(2, 0), grid, plan, "")[0].nodes for grid in grids]

    assert nodes(1e-4, 1e-4) == [8, 8]
    assert nodes(3e-3, 2e-3) == [12, 12]
    assert nodes(1e-4, 3e-3) == [8, 8]


def test_a_divergence_that_finer_nodes_do_not_confirm_is_none(monkeypatch, case):
    limits, root, plan = case
    sound = limits.trajectories.solve(root(64, 0), depth.continuous, replace(plan, points=1024), "")

    def solves(first, then):
        def trajectory(_self, _root, _grid, plan, _name, **_options):
            return replace(sound, diverged_step=first if plan.nodes == 8 else then)

        with monkeypatch.context() as patch:
            patch.setattr(trajectories.Trajectories, "solve", trajectory)
            found = limits.mean_ode(root(64, 0), replace(plan, tolerance=math.inf))
        return found.trajectory.diverged_step, found.nodes

    assert solves(5, -1) == (-1, 12)
    assert solves(5, 5) == (5, 8)
    assert solves(-1, -1) == (-1, 8)


def stand_in(monkeypatch, sound, ends):
    """Let solutions end as told by their number of nodes; return the nodes that were asked for."""
    asked = []

    def trajectory(_self, _root, _grid, plan, name, **_options):
        asked.append(plan.nodes)
        end = ends[plan.nodes]
        if end is None:
            raise LimitError(f"{name}: not settled", 3)
        return replace(sound, diverged_step=end)

    monkeypatch.setattr(trajectories.Trajectories, "solve", trajectory)
    return asked


@pytest.fixture(scope="module")
def sound(case):
    limits, root, plan = case
    few = replace(plan, points=512, replicates=2)
    return limits.trajectories.solve(root(64, 0), depth.continuous, few, "")


def test_a_confirmed_divergence_keeps_the_change_of_its_own_nodes(monkeypatch, case, sound):
    limits, root, plan = case
    stand_in(monkeypatch, sound, {8: 5, 12: 5})
    monkeypatch.setattr(
        Limits,
        "_depth_change",
        lambda self, _root, _grid, plan, *_more: self._constant_change(plan.nodes, 0.0),
    )
    found = limits.mean_ode(root(64, 0), replace(plan, tolerance=math.inf))
    assert found.nodes == 8
    assert (found.depth_change.output == 8).all()


def test_nothing_is_solved_again_where_all_layers_are_nodes(monkeypatch, case, sound):
    limits, root, plan = case
    asked = stand_in(monkeypatch, sound, {8: 5, 12: 5})
    assert limits.wide(root(64, 0), 6, plan).trajectory.diverged_step == 5
    assert asked == [8]
    asked.clear()
    grid = partial(depth.layered, 9)
    assert limits._bounded(root(64, 0), grid, plan, "")[1].diverged_step == 5
    assert asked == [8, 12]


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({8: 5, 12: 5}, "diverges at step 5"),
        ({8: 5, 12: 6}, "diverges at step 6"),
        ({8: None, 12: None}, "not settled: "),
        ({8: 5, 12: -1}, None),
        ({8: None, 12: -1}, None),
    ],
)
def test_the_dmft_limit_fails_only_where_more_nodes_confirm_it(
    monkeypatch, case, sound, ends, message
):
    limits, _root, plan = case
    asked = stand_in(monkeypatch, sound, ends)
    if message is None:
        assert limits._reference(plan)[0].nodes == 12
    else:
        with pytest.raises(LimitError, match=message):
            limits._reference(plan)
    assert asked == [8, 12]


def test_a_change_that_was_not_seen_is_filled_in_a_copy(case, sound):
    unseen = case[0]._constant_change(math.nan, math.inf)
    filled = unseen.filled(sound)
    np.testing.assert_array_equal(filled.output, sound.output.mean(axis=0))
    assert np.isnan(unseen.output).all()


@pytest.mark.parametrize("excess", [math.inf, math.nan])
def test_no_number_of_points_mends_an_error_that_is_not_finite(case, excess):
    plan = case[2]
    assert models.plans.with_more_points(plan, excess) is None
    assert models.plans.with_more_points(plan, 1e200).points == 16 * plan.points
    assert models.plans.with_more_points(plan, 1.1).points == plan.points


def test_points_are_drawn_once_whatever_the_nodes(monkeypatch, case):
    limits, _root, plan = case
    limits = Limits(limits.dynamics, limits.limit_root)
    drawn = []
    draw = trajectories.quadrature.sobol
    monkeypatch.setattr(
        trajectories.quadrature, "sobol", lambda *a, **k: drawn.append(1) or draw(*a, **k)
    )
    for other in ({}, {"nodes": 12}, {"tolerance": 1.0}, {"iteration_tolerance": 1e-5}):
        limits.trajectories.sample(
            replace(plan, points=64, **other), range(2), shared=False, kept=True
        )
    assert len(drawn) == 1
    limits.trajectories.sample(
        replace(plan, points=64, root_seed=1), range(2), shared=False, kept=True
    )
    assert len(drawn) == 2
