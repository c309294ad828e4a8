"""The linear limit against tabulated values and against its closed moment equations."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from closed_moments import solve as solve_moments

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits.models import Limits, Plan
from resnet_limits.problem import Loss
from resnet_limits.units import Perceptron

FACT = json.loads((Path(__file__).parents[1] / "data" / "linear_fact.json").read_text())


def linear(x, y, rate, steps, **changes):
    values = {
        "inputs": np.asarray(x, float),
        "targets": np.asarray(y, float),
        "loss": Loss("squared_error"),
        "unit": Perceptron("linear"),
        "residual_scale": 1.0,
        "input_std": 1.0,
        "output_std": 1.0,
        "rate_in": rate,
        "rate_out": rate,
        "rate_embedding": 0.0,
        "steps": steps,
    }
    return Dynamics.of_unit(**(values | changes))


def fact_error(nodes=None, rate=FACT["learning_rate"]):
    limits = Limits(linear([FACT["x"]], [FACT["y"]], rate, len(FACT["output"])), np.eye(6))
    plan, solution = limits.make_plan(1e-3, 0)
    if nodes is not None:
        solution = limits.dmft(replace(plan, nodes=nodes))
    return np.abs(solution.trajectory.output[0, :, 0] - np.array(FACT["output"])).max()


def test_tabulated_outputs_hold_at_every_step():
    assert fact_error() < 1e-9


@pytest.mark.parametrize(("nodes", "bound"), [(4, 4e-9), (6, 1e-12)])
def test_depth_converges_spectrally(nodes, bound):
    # The table has twelve digits, which bounds what can be seen.
    assert fact_error(nodes) < bound


def test_two_nodes_or_another_rate_miss_the_table():
    assert fact_error(nodes=2) > 1e-6
    assert fact_error(rate=1.0001 * FACT["learning_rate"]) > 1e-6


@pytest.fixture(scope="module")
def several_samples():
    rng = np.random.default_rng(5)
    return rng.standard_normal((4, 3)), rng.standard_normal((4, 2))


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.7, 1.4, 1.3)])
def test_several_samples_agree_with_closed_moment_equations(several_samples, scales):
    x, y = several_samples
    s_e, s_u, alpha = scales
    root = np.diag([s_e] * 3 + [s_u] * 2)
    expected, correction = solve_moments(x, y, 0.4, 8, root, alpha)
    assert correction < 1e-10
    limits = Limits(linear(x, y, 0.4, 8, residual_scale=alpha), root)
    _, solution = limits.make_plan(1e-3, 0)
    assert np.abs(solution.trajectory.output[0] - expected).max() < 1e-8


def test_mean_ode_agrees_with_closed_moment_equations_for_any_gram_matrix(several_samples):
    x, y = several_samples
    rows = np.random.default_rng(6).standard_normal((7, 5))
    values, vectors = np.linalg.eigh(rows.T @ rows / 7)
    root = (vectors * np.sqrt(values)) @ vectors.T
    expected, _ = solve_moments(x, y, 0.2, 6, root)
    limits = Limits(linear(x, y, 0.2, 6), np.eye(5))
    plan, _ = limits.make_plan(1e-3, 0)
    assert np.abs(limits.mean_ode(root, plan).trajectory.output[0] - expected).max() < 1e-8


def test_a_wrong_factor_in_the_update_is_seen(several_samples):
    x, y = several_samples
    root = np.eye(5)
    expected, _ = solve_moments(x, y, 0.4, 4, root)
    limits = Limits(linear(x, y, 0.4, 4, rate_in=0.4 * len(x)), root)
    _, solution = limits.make_plan(1e-3, 0)
    assert np.abs(solution.trajectory.output[0] - expected).max() > 1e-3


def test_quasi_monte_carlo_agrees_with_the_exact_cubature(several_samples):
    x, y = several_samples
    limits = Limits(linear(x, y, 0.4, 5), np.eye(5))
    exact = limits.dmft(Plan("cubature", 0, 1, 6, 0)).trajectory.output[0]
    sampled = limits.dmft(Plan("sobol", 8192, 8, 6, 0)).trajectory.output
    error = sampled.std(axis=0, ddof=1) / np.sqrt(8)
    score = np.abs(sampled.mean(axis=0) - exact)[1:] / error[1:]
    assert score.max() < 6.0
    assert error.max() < 5e-3
