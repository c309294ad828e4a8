"""Depth grids: integrals and sums of polynomials, and their common limit."""

import numpy as np
import pytest

from resnet_limits.limits import depth


def powers(where, degree):
    return where[:, None] ** np.arange(degree + 1)


@pytest.mark.parametrize("nodes", [1, 2, 5, 9])
def test_collocation_integrates_polynomials(nodes):
    grid = depth.continuous(nodes)
    degree = nodes - 1
    exact = powers(grid.s, nodes)[:, 1:] / np.arange(1, nodes + 1)
    np.testing.assert_allclose(grid.forward @ powers(grid.s, degree), exact, atol=1e-13)
    # Gauss's rule is exact to degree 2n - 1 at the end of the interval.
    full = 2 * nodes - 1
    np.testing.assert_allclose(grid.total @ powers(grid.s, full), 1 / np.arange(1, full + 2))
    np.testing.assert_allclose(grid.forward + grid.backward, np.tile(grid.total, (nodes, 1)))
    assert grid.knots[0] == 0.0
    assert grid.knots[-1] == 1.0


@pytest.mark.parametrize(("layers", "nodes"), [(1, 4), (4, 4), (7, 4), (50, 6), (1000, 8)])
def test_layered_sums_polynomials(layers, nodes):
    grid = depth.layered(layers, nodes)
    n = min(layers, nodes)
    places = np.arange(layers) / layers
    full = min(2 * n - 1, 9)
    expected = powers(places, full).sum(axis=0) / layers
    np.testing.assert_allclose(grid.total @ powers(grid.s, full), expected, rtol=1e-11)
    # A running sum of l^2 has a closed form that is a polynomial in the number of terms.
    if n >= 3:
        t = grid.s * layers
        below = (t - 1) * t * (2 * t - 1) / 6 / layers**3
        np.testing.assert_allclose(grid.forward @ grid.s**2, below, atol=1e-12)
        above = expected[2] - (t * (t + 1) * (2 * t + 1) / 6) / layers**3
        np.testing.assert_allclose(grid.backward @ grid.s**2, above, atol=1e-12)


def test_every_layer_is_a_node_where_there_are_enough():
    grid = depth.layered(5, 8)
    np.testing.assert_array_equal(grid.s, np.arange(5) / 5)
    np.testing.assert_allclose(grid.forward, np.tril(np.ones((5, 5)), -1) / 5, atol=1e-14)
    np.testing.assert_allclose(grid.backward, np.triu(np.ones((5, 5)), 1) / 5, atol=1e-14)


def test_layered_tends_to_collocation_as_one_over_depth():
    reference = depth.continuous(5)
    gaps = [np.abs(depth.layered(L, 5).forward - reference.forward).max() for L in (100, 1000)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
