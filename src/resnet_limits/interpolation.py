"""Interpolation by polynomials, of states along the depth and of sums over layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Depths of layers and nodes are the same numbers up to rounding, and far closer than any two nodes.
_SAME_DEPTH = 1e-12


def interpolation_matrix(nodes: ArrayLike, points: ArrayLike) -> Array:
    """Matrix that evaluates the interpolating polynomial through nodes at other points.

    Barycentric formula of the second kind (Berrut and Trefethen, SIAM Review 46, 2004), exact for
    polynomials of degree below the number of nodes.

    Parameters
    ----------
    nodes : array_like, shape (n,)
        Distinct places where values are known.
    points : array_like, shape (m,)
        Places where values are wanted.

    Returns
    -------
    ndarray, shape (m, n)
        Rows that add up to one; a point at a node takes that node's value alone.

    Raises
    ------
    ValueError
        If there are no nodes, two nodes coincide, or an argument has more than one dimension.
    """
    x, at = np.atleast_1d(np.asarray(nodes, float)), np.atleast_1d(np.asarray(points, float))
    if x.ndim != 1 or at.ndim != 1 or not x.size:
        raise ValueError(f"nodes {x.shape} and points {at.shape}: must be lists, nodes not empty")
    gaps = x[:, None] - x
    np.fill_diagonal(gaps, 1.0)
    if not gaps.all():
        raise ValueError(f"nodes {x.tolist()}: must be distinct")
    # Products over many nodes leave the range of floating point; only their ratios matter.
    log_size = -np.log(np.abs(gaps)).sum(axis=1)
    weights = np.prod(np.sign(gaps), axis=1) * np.exp(log_size - log_size.max())
    distance = at[:, None] - x
    hit = np.abs(distance) <= _SAME_DEPTH
    terms = weights / np.where(hit, 1.0, distance)
    on_node = hit.any(axis=1, keepdims=True)
    terms = np.where(on_node, hit, terms)
    matrix: Array = terms / terms.sum(axis=1, keepdims=True)
    return matrix
