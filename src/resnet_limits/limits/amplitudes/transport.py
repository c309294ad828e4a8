"""How the noise of finite width is carried through depth and training.

A coordinate of the states carries ``delta h`` and ``delta b``, which white noise in depth drives
and the kernels of the drift carry on (docs/concepts/amplitudes.md):

    d delta h = (K delta b) ds + noise          delta h(0) = E_0 delta b(0)
    -d delta b = (B delta h) ds + noise         delta b(1) = E_1 delta h(1)

What is wanted is the variance of delta h(1). States driven by white noise are rough, but the
adjoint states, by which delta h(1) is an integral over the noise, are as smooth as the kernels, so
that the depth nodes of the limit hold them too. Kernels are causal in the training step, so that
the adjoint problem is solved step by step, the last one first.

Of delta h(s) within the depth the adjoint states jump at s. So there the depth is cut in two: the
part below s, with its end at 0, gives one linear relation of delta h(s) and delta b(s), whose right
side is the noise below, and the part above another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from resnet_limits.interpolation import interpolation_matrix
from resnet_limits.limits.depth import Array, DepthGrid


@dataclass(frozen=True)
class Carrier:
    """What carries the noise of a coordinate; rows and columns are the Q pairs (step, row).

    Attributes
    ----------
    rows : int
        R.
    forward, backward : ndarray, shape (nodes, Q, Q)
        K, of steps before the row's own alone, and B, of steps up to the row's own.
    start, end : ndarray, shape (Q, Q)
        E_0, of steps before the row's own, and E_1, of steps up to the row's own.
    forward_noise, backward_noise : ndarray, shape (nodes, Q, Q)
        Covariances of the noise of delta h and of delta b, in a unit of depth.
    """

    rows: int
    forward: Array
    backward: Array
    start: Array
    end: Array
    forward_noise: Array
    backward_noise: Array


def end_variance(carrier: Carrier, grid: DepthGrid) -> Array:
    """Variance of delta h(1) of every step and row.

    Parameters
    ----------
    carrier : Carrier
        What carries the noise.
    grid : DepthGrid
        Continuous depth; its nodes.

    Returns
    -------
    ndarray, shape (Q,)
    """
    nodes, size, rows = len(grid.s), len(carrier.start), carrier.rows
    # Adjoint states at the nodes; a column for each delta h(1) that is asked for.
    of_h, of_b = np.zeros((nodes, size, size)), np.zeros((nodes, size, size))
    of_h_start, of_b_end = np.zeros((size, size)), np.zeros((size, size))
    for first in reversed(range(0, size, rows)):
        here, later = slice(first, first + rows), slice(first + rows, size)
        so_far = slice(first, size)
        slope = _pulled(carrier.forward[:, later, here], of_h[:, later])
        start = -carrier.start[later, here].T @ of_h_start[later]
        of_b[:, here] = start - _summed(grid.forward, slope)
        of_b_end[here] = start - _summed(grid.total, slope)
        slope = _pulled(carrier.backward[:, so_far, here], of_b[:, so_far])
        end = np.eye(size)[here] - carrier.end[so_far, here].T @ of_b_end[so_far]
        of_h[:, here] = end - _summed(grid.backward, slope)
        of_h_start[here] = end - _summed(grid.total, slope)
    variance: Array = np.zeros(size)
    for states, noise in ((of_h, carrier.forward_noise), (of_b, carrier.backward_noise)):
        for node, share in enumerate(grid.total):
            variance += share * (states[node] * (noise[node] @ states[node])).sum(axis=0)
    return variance


def variance_at(carrier: Carrier, grid: DepthGrid, depths: Array) -> Array:
    """Variance of delta h(s) of every step and row, at some depths.

    At s = 1 it is `end_variance`.

    Parameters
    ----------
    carrier : Carrier
        What carries the noise.
    grid : DepthGrid
        Continuous depth; its nodes.
    depths : ndarray, shape (n,)
        s.

    Returns
    -------
    ndarray, shape (Q, n)
    """
    eye = np.eye(len(carrier.start))
    from_start = interpolation_matrix(grid.knots, depths) @ grid.forward_knots
    from_end = from_start - grid.total
    below = _Side.of(carrier, grid.forward, eye, -carrier.start.T)
    above = _Side.of(carrier, grid.forward - grid.total, -carrier.end.T, eye)
    found = []
    for upwards, downwards in zip(from_start, from_end, strict=True):
        p, q, noise = below.at(upwards)
        p_up, q_up, noise_up = above.at(downwards)
        found.append(_cut(p, q, noise, p_up, q_up, -noise_up))
    return np.stack(found, axis=1)


@dataclass(frozen=True)
class _Side:
    """The adjoint states of the part of the depth on one side of s, for every s.

    These are p and q, for which ``p delta h + q delta b`` does not change but by the noise,
    ``p noise_h - q noise_b``, and is zero at the side's end, 0 or 1; so at s it is the noise
    between. All are transposed: a column for each of the Q combinations.

    Attributes
    ----------
    of_h, of_b : ndarray, shape (Q, Q)
        p and q at the side's end.
    slope_h, slope_b : ndarray, shape (nodes, Q, Q)
        Their slopes in depth.
    noise : ndarray, shape (nodes, Q, Q)
        Covariance of the combinations' noise, in a unit of depth.
    """

    of_h: Array
    of_b: Array
    slope_h: Array
    slope_b: Array
    noise: Array

    @classmethod
    def of(cls, carrier: Carrier, weights: Array, of_h: Array, of_b: Array) -> _Side:
        """Solve from the states at the side's end, by the weights of integrals from there."""
        size, rows = len(carrier.start), carrier.rows
        shape = (len(weights), size, size)
        h, b, slope_h, slope_b = (np.zeros(shape) for _ in range(4))
        for first in reversed(range(0, size, rows)):
            here, later = slice(first, first + rows), slice(first + rows, size)
            so_far = slice(first, size)
            # Combinations of earlier steps have no part in this one.
            pulled = _pulled(carrier.forward[:, later, here], h[:, later, so_far])
            slope_b[:, here, so_far] = -pulled
            b[:, here] = of_b[here] + _summed(weights, slope_b[:, here])
            pulled = _pulled(carrier.backward[:, so_far, here], b[:, so_far, so_far])
            slope_h[:, here, so_far] = pulled
            h[:, here] = of_h[here] + _summed(weights, slope_h[:, here])
        noise = np.zeros(shape)
        for states, covariance in ((h, carrier.forward_noise), (b, carrier.backward_noise)):
            noise += states.swapaxes(1, 2) @ (covariance @ states)
        return cls(of_h, of_b, slope_h, slope_b, noise)

    def at(self, weights: Array) -> tuple[Array, Array, Array]:
        """Give p, q and the noise's covariance, by the weights of integrals from the side's end.

        Downwards, from the end at 1, that is minus the covariance.
        """
        p = self.of_h + _summed(weights, self.slope_h)
        q = self.of_b + _summed(weights, self.slope_b)
        return p.T, q.T, _summed(weights, self.noise)


def _cut(p: Array, q: Array, below: Array, p_up: Array, q_up: Array, above: Array) -> Array:
    """Give the variances of h of ``p h + q b = x`` and ``p_up h + q_up b = y``.

    Parameters
    ----------
    p, q, p_up, q_up : ndarray, shape (Q, Q)
        Causal: lower triangular but for the step's own rows in p_up, with ones on the diagonals of
        p and q_up; q has no part of the own step.
    below, above : ndarray, shape (Q, Q)
        Covariances of x and y, which are independent.
    """

    def solved(lower: Array, right: Array, trans: int = 0) -> Array:
        found: Array = solve_triangular(
            lower, right, trans=trans, lower=True, unit_diagonal=True, check_finite=False
        )
        return found

    # b is taken out: (p - share p_up) h = x - share y.
    share = solved(q_up, q.T, trans=1).T
    whole = p - share @ p_up
    covariance = below + share @ above @ share.T
    variance: Array = np.diag(solved(whole, solved(whole, covariance).T)).copy()
    return variance


def _pulled(kernels: Array, states: Array) -> Array:
    pulled: Array = kernels.swapaxes(1, 2) @ states
    return pulled


def _summed(weights: Array, slopes: Array) -> Array:
    """Integrate over depth from slopes at the nodes."""
    summed: Array = np.tensordot(weights, slopes, axes=1)
    return summed
