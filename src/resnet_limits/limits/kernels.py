"""One visit to the units of the quadrature, fused and compiled for the processor at hand.

What a pass does to a unit, its pre-activations, activations, cotangents, gradient step and share of
the sums, is one loop over tiles of points that stay in the first cache. Called operation by
operation it would cost more in calls and in waiting for the interpreter than in arithmetic; a
kernel holds no lock of the interpreter, so that threads work at the same time.

Only units with code of their own (:mod:`resnet_limits.tiles`) are compiled, and only in float32. The
first call for a kind of unit compiles, later processes load what was compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from resnet_limits import tiles
from resnet_limits.jit import compiled, enabled
from resnet_limits.units import Unit

_TILE = 128
# Sums are kept in so many parts, one for each number of a wide register.
_LANES = 16
_INLINE = {**tiles.OPTIONS, "forceinline": True}


def code_of(unit: Unit) -> Any:
    """Return what :func:`visit` knows a unit by, or None if it does not.

    None also where numba has been told not to compile.

    Parameters
    ----------
    unit : Unit
        Any residual unit.
    """
    return unit.compiled if enabled() else None


@njit(**_INLINE)
def _combine(matrix, columns, v, at, total, there, fresh):
    """Add to a tile of `total[v]`, from column `there` on, ``matrix @ columns[v]``, from `at` on.

    If `fresh`, the total begins at zero.
    """
    # An index without a sign needs no test for a negative one, which would keep the loops from
    # becoming vector code.
    v, at, there = np.uint64(v), np.uint64(at), np.uint64(there)
    inner = matrix.shape[1]
    for row in range(matrix.shape[0]):
        j = 0
        if fresh and inner > 4:
            a, b, c = matrix[row, 0], matrix[row, 1], matrix[row, 2]
            d, e = matrix[row, 3], matrix[row, 4]
            for t in range(_TILE):
                total[v, row, there + np.uint64(t)] = (
                    a * columns[v, 0, at + np.uint64(t)]
                    + b * columns[v, 1, at + np.uint64(t)]
                    + c * columns[v, 2, at + np.uint64(t)]
                    + d * columns[v, 3, at + np.uint64(t)]
                    + e * columns[v, 4, at + np.uint64(t)]
                )
            j = 5
        elif fresh:
            a = matrix[row, 0]
            for t in range(_TILE):
                total[v, row, there + np.uint64(t)] = a * columns[v, 0, at + np.uint64(t)]
            j = 1
        # As many terms at a time as make the loads and stores of the sum matter little.
        while j + 4 < inner:
            a, b, c = matrix[row, j], matrix[row, j + 1], matrix[row, j + 2]
            d, e = matrix[row, j + 3], matrix[row, j + 4]
            for t in range(_TILE):
                total[v, row, there + np.uint64(t)] += (
                    a * columns[v, j, at + np.uint64(t)]
                    + b * columns[v, j + 1, at + np.uint64(t)]
                    + c * columns[v, j + 2, at + np.uint64(t)]
                    + d * columns[v, j + 3, at + np.uint64(t)]
                    + e * columns[v, j + 4, at + np.uint64(t)]
                )
            j += 5
        while j < inner:
            a = matrix[row, j]
            for t in range(_TILE):
                total[v, row, there + np.uint64(t)] += a * columns[v, j, at + np.uint64(t)]
            j += 1


@njit(**_INLINE)
def _correlate(weights, v, at, values, sums):
    """Add products of a tile of weights and of values, summed over points but for the lanes."""
    v, at = np.uint64(v), np.uint64(at)
    for k in range(weights.shape[1]):
        for row in range(values.shape[1]):
            for lane in range(_LANES):
                total = sums[k, row, lane]
                for part in range(_TILE // _LANES):
                    t = part * _LANES + lane
                    total += weights[v, k, at + np.uint64(t)] * values[v, row, t]
                sums[k, row, lane] = total


@njit(**_INLINE)
def _pre_activate(w, weights, at, p):
    """Set a tile to the products with states, vector by vector."""
    for v in range(len(p)):
        _combine(w, weights, v, at, p, 0, True)


@njit(**tiles.OPTIONS)
def _visit_tile(code, ins, outs, at, trains, settled, w, z, wanted, room, forward, backward):
    """Do what :func:`visit` does with the points of a tile, from column `at` on."""
    p, values, r = room
    if trains:
        old_w, old_z, step_in, step_out = settled
        _pre_activate(old_w, ins, at, p)
        tiles.forward(code, p, values, _TILE)
        _pre_activate(old_z, outs, at, r)
        tiles.backward(code, p, values, r, _TILE)
        for v in range(len(p)):
            _combine(step_in, p, v, 0, ins, at, False)
        for v in range(len(r)):
            _combine(step_out, values, v, 0, outs, at, False)
    if wanted[0] or wanted[1]:
        _pre_activate(w, ins, at, p)
        tiles.forward(code, p, values, _TILE)
        if wanted[0]:
            for v in range(len(r)):
                _correlate(outs, v, at, values, forward)
        if wanted[1]:
            _pre_activate(z, outs, at, r)
            tiles.backward(code, p, values, r, _TILE)
            for v in range(len(p)):
                _correlate(ins, v, at, p, backward)


@compiled(nogil=True, **tiles.OPTIONS)
def visit(code, incoming, outgoing, trains, settled, w, z, wanted, sums):
    """Let units take a gradient step, then add up their drifts.

    Parameters
    ----------
    code : NamedTuple
        The unit's compiled code.
    incoming, outgoing : ndarray, shapes (pairs, a or c, r, points), C-contiguous
        Weights, changed in place by a gradient step.
    trains : bool
        Whether a gradient step is taken.
    settled : tuple of ndarray, shapes (pairs, rows, r) twice, (pairs, r, rows) twice
        States w and z of the gradient step, by rows, and w and z times the step's rates.
    w, z : ndarray, shape (pairs, rows, r)
        States at which drifts are wanted, by rows.
    wanted : tuple of bool
        Whether the forward and the backward drift are.
    sums : ndarray, shape (2, pairs, r, rows), float64
        Receive sums over points of ``O g(p)`` and ``I Dg(p)^T O^T z``, zero where not wanted.
    """
    pairs, a, r, points = incoming.shape
    c, rows = outgoing.shape[1], sums.shape[3]
    kept = tiles.kept(code)
    room = (
        np.empty((a, rows, _TILE), np.float32),
        np.empty((c + kept, rows, _TILE), np.float32),
        np.empty((c, rows, _TILE), np.float32),
    )
    last_in = np.zeros((a, r, _TILE), np.float32)
    last_out = np.zeros((c, r, _TILE), np.float32)
    lanes = np.empty((2, r, rows, _LANES), np.float32)
    rest = points % _TILE
    whole = points - rest
    for pair in range(pairs):
        lanes[:] = 0
        ins, outs = incoming[pair], outgoing[pair]
        old = settled[0][pair], settled[1][pair], settled[2][pair], settled[3][pair]
        states = w[pair], z[pair]
        for at in range(0, whole, _TILE):
            _visit_tile(code, ins, outs, at, trains, old, *states, wanted, room, lanes[0], lanes[1])
        if rest:
            # The units that fill the tile have no weights and add nothing to any sum.
            last_in[:, :, rest:] = 0
            last_out[:, :, rest:] = 0
            last_in[:, :, :rest] = ins[:, :, whole:]
            last_out[:, :, :rest] = outs[:, :, whole:]
            _visit_tile(
                code, last_in, last_out, 0, trains, old, *states, wanted, room, lanes[0], lanes[1]
            )
            if trains:
                ins[:, :, whole:] = last_in[:, :, :rest]
                outs[:, :, whole:] = last_out[:, :, :rest]
        for way in range(2):
            for k in range(r):
                for row in range(rows):
                    total = 0.0
                    for lane in range(_LANES):
                        total += lanes[way, k, row, lane]
                    sums[way, pair, k, row] = total
