"""Limits that need more depth nodes than the plan's, and what is left of the depth error."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from resnet_limits.config import experiment_from_dict
from resnet_limits.dynamics import make_dynamics
from resnet_limits.limits import depth, models
from resnet_limits.limits.models import Limits, Plan, standard_error
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
    exact = limits._trajectory(root(2, 3), depth.continuous, finer, "").output.mean(axis=0)
    found = limits.mean_ode(root(2, 3), plan)
    assert found.nodes > plan.nodes
    assert rms(found.trajectory.output.mean(axis=0) - exact) < 4 * rms(found.output_stderr)
    # The nodes of the plan, and the scatter alone, are the negative control.
    few = limits._trajectory(root(2, 3), depth.continuous, plan, "").output
    assert rms(few.mean(axis=0) - exact) > 4 * rms(standard_error(few))


def test_what_nodes_cannot_mend_is_in_the_standard_error(monkeypatch, case):
    monkeypatch.setattr(models, "_DEPTH_POINTS", 256)
    monkeypatch.setattr(models.plans, "MAX_NODES", 8)
    limits, root, plan = case
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
    sound = limits._trajectory(root(64, 0), depth.continuous, replace(plan, points=1024), "")

    def solves(first, then):
        def trajectory(_self, _root, _grid, plan, _name, **_options):
            return replace(sound, diverged_step=first if plan.nodes == 8 else then)

        with monkeypatch.context() as patch:
            patch.setattr(Limits, "_trajectory", trajectory)
            found = limits.mean_ode(root(64, 0), replace(plan, tolerance=math.inf))
        return found.trajectory.diverged_step, found.nodes

    assert solves(5, -1) == (-1, 12)
    assert solves(5, 5) == (5, 8)
    assert solves(-1, -1) == (-1, 8)
