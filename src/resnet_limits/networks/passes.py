"""Passes of one branch over some layers in compiled code: products, units, and steps of weights.

Called product by product and unit by unit, a layer of a small network takes longer in calls than in
arithmetic. Units with code of their own (:mod:`resnet_limits.tiles`) are computed here between the
products of :mod:`~resnet_limits.networks.kernels`, in tiles of units, all by one thread.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from resnet_limits import tiles
from resnet_limits.jit import compiled
from resnet_limits.networks.kernels import expand, project

# Units of a tile.
_TILE = 64


@njit(**tiles.OPTIONS)
def _gather(source, first, count, tile):
    """Copy the coefficients of some units to a tile, ``(vectors, rows, lanes)``."""
    vectors, rows, _ = tile.shape
    if vectors == 1:
        # Written apart, so that it becomes a copy of whole vectors.
        for row in range(rows):
            to, numbers = tile[0, row], source[row, first : first + count]
            for t in range(count):
                to[t] = numbers[t]
        return
    for v in range(vectors):
        for row in range(rows):
            for t in range(count):
                tile[v, row, t] = source[row, (first + t) * vectors + v]


@njit(**tiles.OPTIONS)
def _scatter(tile, vectors, first, count, target):
    """Copy so many vectors of a tile to the coefficients of some units."""
    if vectors == 1:
        for row in range(len(target)):
            numbers, to = tile[0, row], target[row, first : first + count]
            for t in range(count):
                to[t] = numbers[t]
        return
    for v in range(vectors):
        for row in range(len(target)):
            for t in range(count):
                target[row, (first + t) * vectors + v] = tile[v, row, t]


@njit(**tiles.OPTIONS)
def _room(code, sizes, p):
    """Room for tiles of p, of values and of cotangents, all seeds and rows of a layer."""
    a, c = sizes
    _, seeds, rows, width = p.shape
    lanes = min(_TILE, width // a)
    return (
        np.empty((a, seeds * rows, lanes), p.dtype),
        np.empty((c + tiles.kept(code), seeds * rows, lanes), p.dtype),
        np.empty((c, seeds * rows, lanes), p.dtype),
    )


@njit(**tiles.OPTIONS)
def _flat(coefficients):
    """Give a layer's coefficients with the rows of all seeds below each other."""
    seeds, rows, width = coefficients.shape
    return coefficients.reshape((seeds * rows, width))


@njit(**tiles.OPTIONS)
def _activate(code, p, g, room):
    """Compute g of all units of a layer."""
    pre, values, cotangents = room
    p, g = _flat(p), _flat(g)
    a, c = len(pre), len(cotangents)
    units = p.shape[1] // a
    for start in range(0, units, _TILE):
        count = min(_TILE, units - start)
        _gather(p, start, count, pre)
        tiles.forward(code, pre, values, count)
        _scatter(values, c, start, count, g)


@njit(**tiles.OPTIONS)
def _pull_back(code, p, g, r, dp, room):
    """Compute dp of all units of a layer."""
    pre, values, cotangents = room
    p, g, r, dp = _flat(p), _flat(g), _flat(r), _flat(dp)
    a = len(pre)
    units = p.shape[1] // a
    for start in range(0, units, _TILE):
        count = min(_TILE, units - start)
        _gather(p, start, count, pre)
        if tiles.kept(code) == 0:
            _gather(g, start, count, values)
        else:
            # What units need beside g costs less than to keep it for all layers.
            tiles.forward(code, pre, values, count)
        _gather(r, start, count, cotangents)
        tiles.backward(code, pre, values, cotangents, count)
        _scatter(pre, a, start, count, dp)


@compiled()
def forward(code, sizes, arrays, partial, pasts, used, numbers, first, last):
    """Compute the states after the branch in layers first..last-1, one after the other.

    Parameters
    ----------
    code : NamedTuple
        The unit's compiled code.
    sizes : tuple of int
        a and c of the unit.
    arrays : tuple of ndarray
        I, O, u, h, the states after the branch, their cotangents, p, g and dp
        (:class:`~resnet_limits.networks.products.Arrays`).
    partial : ndarray
        Scratch of :func:`~resnet_limits.networks.kernels.expand`.
    pasts : tuple
        Factors of I for :func:`~resnet_limits.networks.kernels.project`, of O for `expand`.
    used : int
        Rows of the factors that count.
    numbers : tuple of float
        The scale of p, the gain of what is written, and what the weights O count; of the weights'
        dtype.
    first, last : int
        The layers.
    """
    incoming, outgoing, u, h, next_h, next_b, p, g, dp = arrays
    scale, gain, initial = numbers
    room = _room(code, sizes, p)
    for layer in range(first, last):
        project(incoming, u, p, dp, pasts[0], layer, used, scale, scale, False)
        _activate(code, p[layer], g[layer], room)
        expand(
            outgoing, g, h, next_h, next_b, partial, pasts[1], layer, used, gain, initial, scale,
            False,
        )  # fmt: skip


@compiled()
def backward(code, sizes, arrays, partial, pasts, used, numbers, steps, learn, first, last):
    """Compute the cotangents before the branch in layers last-1..first, one after the other.

    Parameters
    ----------
    code, sizes, partial, used, first, last
        As for :func:`forward`.
    arrays : tuple of ndarray
        I, O, u, cotangents before and after the branch, what the former are added to (zeros, if
        that is they themselves), p, g, r and dp.
    pasts : tuple
        Factors of O for :func:`~resnet_limits.networks.kernels.project`, of I for `expand`.
    numbers : tuple of float
        The scale of r, the gain of what is added, and what the weights I count.
    steps : tuple of float
        What the rows' products count in the steps of I and O.
    learn : tuple of bool
        Whether I and O take a step.
    """
    incoming, outgoing, u, b, next_b, base, p, g, r, dp = arrays
    scale, gain, initial = numbers
    room = _room(code, sizes, p)
    for layer in range(last - 1, first - 1, -1):
        project(outgoing, next_b, r, g, pasts[0], layer, used, scale, steps[1], learn[1])
        _pull_back(code, p[layer], g[layer], r[layer], dp[layer], room)
        expand(
            incoming, dp, base, b, u, partial, pasts[1], layer, used, gain, initial, steps[0],
            learn[0],
        )  # fmt: skip
