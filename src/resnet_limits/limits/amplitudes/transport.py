"""How the noise of finite width is carried through depth and training.

A coordinate of the states carries ``delta h`` and ``delta b``, which white noise in depth drives
and the kernels of the drift carry on (docs/concepts/amplitudes.md):

    d delta h = (K delta b) ds + noise          delta h(0) = E_0 delta b(0)
    -d delta b = (B delta h) ds + noise         delta b(1) = E_1 delta h(1)

What is wanted is the variance of delta h(1). States driven by white noise are rough, but the
adjoint states, by which delta h(1) is an integral over the noise, are as smooth as the kernels, so
that the depth nodes of the limit hold them too. Kernels are causal in the training step, so that
the adjoint problem is solved step by step, the last one first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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


def _pulled(kernels: Array, states: Array) -> Array:
    pulled: Array = kernels.swapaxes(1, 2) @ states
    return pulled


def _summed(weights: Array, slopes: Array) -> Array:
    """Integrate over depth from slopes at the nodes."""
    summed: Array = np.tensordot(weights, slopes, axes=1)
    return summed
