"""Depth grids: where along the depth the limit's units sit, and how drifts add up between them.

The residual stream obeys ``dw/ds = F(s)`` with s in [0, 1] in the Mean ODE and
``w^(l+1) = w^l + F(l)/L`` at finite depth. Both are the same statement about a polynomial F: its
running integral, or its running sum, is a polynomial of one degree more. A grid therefore holds n
nodes and the matrices that map the drift at the nodes to the integral (sum) up to any place, and
one solver serves both. The nodes are those of Gauss's rule for the uniform measure on [0, 1]
(Legendre) or on the layers 0..L-1 (the discrete Legendre polynomials of Gram and Chebyshev); the
second tends to the first as L grows, and with n = L it is the plain sum over layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from resnet_limits.interpolation import interpolation_matrix

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DepthGrid:
    """Nodes in depth and the matrices that add up drifts.

    Attributes
    ----------
    s : ndarray, shape (n,)
        Depth of the units, in [0, 1]; layer l of a network of depth L sits at l/L.
    forward : ndarray, shape (n, n)
        ``w(s_j) = w(0) + sum_k forward[j, k] F_k`` with F the drift of the hidden state.
    total : ndarray, shape (n,)
        ``w(1) = w(0) + sum_k total[k] F_k``.
    backward : ndarray, shape (n, n)
        ``z_j = z(1) + sum_k backward[j, k] B_k``, with z_j the backward state that the unit at s_j
        sees: z(s_j) in the Mean ODE, z^(l+1) at finite depth.
    knots : ndarray, shape (m,)
        Where states are stored: 0, the nodes, 1, increasing.
    forward_knots, backward_knots : ndarray, shape (m, n)
        The same maps for the states at the knots (``z^l`` itself for the backward state).
    step : float
        1/L: the share of its drift that a branch adds to what the next branch of its layer sees;
        0 where depth is continuous.
    """

    s: Array
    forward: Array
    total: Array
    backward: Array
    knots: Array
    forward_knots: Array
    backward_knots: Array
    step: float = 0.0

    @property
    def nodes(self) -> int:
        """Number of nodes n."""
        return len(self.s)


def continuous(nodes: int) -> DepthGrid:
    """Gauss-Legendre collocation on [0, 1]: the grid of the Mean ODE and of its DMFT limit.

    Parameters
    ----------
    nodes : int
        Number of nodes; the outputs converge like the Gauss rule, twice as fast as the interior.
    """
    x, weights = np.polynomial.legendre.leggauss(nodes)
    s = (x + 1.0) / 2.0
    knots = np.concatenate([[0.0], s, [1.0]])
    # Integrals from 0 of the Lagrange polynomials, through a Gauss rule exact for their degree.
    forward_knots = np.stack(
        [knot * (weights / 2.0) @ interpolation_matrix(s, knot * s) for knot in knots]
    )
    total = forward_knots[-1]
    backward_knots = total - forward_knots
    return DepthGrid(
        s=s,
        forward=forward_knots[1:-1],
        total=total,
        backward=backward_knots[1:-1],
        knots=knots,
        forward_knots=forward_knots,
        backward_knots=backward_knots,
    )


def layered(depth: int, nodes: int) -> DepthGrid:
    """Layers 0..L-1 of a network of finite depth, summed exactly or spectrally.

    Parameters
    ----------
    depth : int
        Number of layers L.
    nodes : int
        Number of nodes wanted; with ``nodes >= depth`` every layer is a node and the grid is exact.
    """
    n = min(nodes, depth)
    k = np.arange(1, n)
    recurrence = k**2 * (depth**2 - k**2) / (4.0 * (4.0 * k**2 - 1.0))
    off_diagonal = np.sqrt(recurrence)
    centre = (depth - 1) / 2.0
    jacobi = np.diag(np.full(n, centre)) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    t = np.linalg.eigvalsh(jacobi)
    exact = n == depth
    if exact:
        t = np.arange(depth, dtype=np.float64)
    layers = np.arange(depth, dtype=np.float64)
    running = np.zeros((depth + 1, n))
    np.cumsum(interpolation_matrix(t, layers) / depth, axis=0, out=running[1:])
    # The running sum is a polynomial of degree n in the layer; n + 1 spread integers fix it.
    angles = np.pi * (np.arange(n + 1) + 0.5) / (n + 1)
    anchors = _distinct_integers((1.0 - np.cos(angles)) * depth / 2.0, depth)
    coefficients = running[anchors]

    def sums(where: Array) -> Array:
        return interpolation_matrix(anchors.astype(np.float64), where) @ coefficients

    total = running[-1]
    ends = np.array([0.0]), np.array([float(depth)])
    if exact:
        knots = np.arange(depth + 1, dtype=np.float64)
    else:
        knots = np.unique(np.concatenate([ends[0], t, ends[1]]))
    forward_knots = sums(knots)
    return DepthGrid(
        s=t / depth,
        forward=sums(t),
        total=total,
        backward=total - sums(t + 1.0),
        knots=knots / depth,
        forward_knots=forward_knots,
        backward_knots=total - forward_knots,
        step=1.0 / depth,
    )


def of_layers(layers: int | None) -> Callable[[int], DepthGrid]:
    """Give the grids of a number of layers, by their number of nodes; continuous ones for None."""
    return continuous if layers is None else partial(layered, layers)


def _distinct_integers(wanted: Array, largest: int) -> NDArray[np.int64]:
    """Round increasing numbers in [0, largest] to distinct integers, both ends included."""
    rounded = np.rint(wanted).astype(np.int64)
    rounded[0], rounded[-1] = 0, largest
    for i in range(1, len(rounded)):
        rounded[i] = max(rounded[i], rounded[i - 1] + 1)
    rounded[-1] = largest
    for i in range(len(rounded) - 2, -1, -1):
        rounded[i] = min(rounded[i], rounded[i + 1] - 1)
    return rounded
