"""One visit to the units of the quadrature, fused and compiled for the processor at hand.

What a pass does to a unit, its pre-activations, activations, cotangents, gradient step and share of
the sums, is one loop over tiles of points that stay in the first cache. Called operation by
operation it would cost more in calls and in waiting for the interpreter than in arithmetic; a
kernel holds no lock of the interpreter, so that threads work at the same time.

Only units with code of their own (:mod:`resnet_limits.tiles`) are compiled, and only in float32.
The first call for a kind of unit compiles, later processes load what was compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

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
def _move(step, weights, buffers, v, at, gradient, count):
    """Take so many points of weights and their buffers through ``X <- T X + g G``."""
    matrix, of_gradient = step
    moved = np.empty((len(matrix), _TILE), np.float32)
    # In views, loops over points need no test for negative indices.
    for k in range(weights.shape[1]):
        g = gradient[v, k]
        for i in range(len(matrix)):
            new, share = moved[i], of_gradient[i]
            for t in range(count):
                new[t] = share * g[t]
            for j in range(len(matrix)):
                factor = matrix[i, j]
                old = weights[v, k, at : at + count] if j == 0 else buffers[j - 1][v, k, at:]
                for t in range(count):
                    new[t] += factor * old[t]
        weights[v, k, at : at + count] = moved[0, :count]
        for j in range(1, len(matrix)):
            buffers[j - 1][v, k, at : at + count] = moved[j, :count]


def _of_pair(buffers: Any, pair: int) -> Any:
    raise NotImplementedError


@overload(_of_pair, jit_options=tiles.OPTIONS)
def _of_pair_of(buffers, pair):
    """Give the buffers of one pair, a tuple as long as the one given."""
    if len(buffers) == 1:
        return lambda buffers, pair: (buffers[0][pair],)
    return lambda buffers, pair: (buffers[0][pair], *_of_pair(buffers[1:], pair))


@njit(**tiles.OPTIONS)
def _visit_tile(
    code, ins, outs, at, moves, point, count, trains, settled, w, z, wanted, room, sums
):
    """Do what :func:`visit` does with the points of a tile.

    They are columns of `ins` and `outs` from `at` on: of the weights themselves, or of copies with
    units that have no weights after them. Where steps do more than to add, `moves` has them, and
    the weights with their buffers, of which they are so many columns as `count` from `point` on.
    """
    p, values, r, gradient = room
    if trains:
        old_w, old_z, of_in, of_out = settled
        _pre_activate(old_w, ins, at, p)
        tiles.forward(code, p, values, _TILE)
        _pre_activate(old_z, outs, at, r)
        tiles.backward(code, p, values, r, _TILE)
        # Decided when it is compiled.
        if moves is None:
            for v in range(len(p)):
                _combine(of_in, p, v, 0, ins, at, False)
            for v in range(len(r)):
                _combine(of_out, values, v, 0, outs, at, False)
        else:
            step_in, step_out, all_ins, in_buffers, all_outs, out_buffers = moves
            for v in range(len(p)):
                _combine(of_in, p, v, 0, gradient, 0, True)
                _move(step_in, all_ins, in_buffers, v, point, gradient, count)
                if count < _TILE:
                    ins[v, :, :count] = all_ins[v, :, point:]
            for v in range(len(r)):
                _combine(of_out, values, v, 0, gradient, 0, True)
                _move(step_out, all_outs, out_buffers, v, point, gradient, count)
                if count < _TILE:
                    outs[v, :, :count] = all_outs[v, :, point:]
    if wanted[0] or wanted[1]:
        _pre_activate(w, ins, at, p)
        tiles.forward(code, p, values, _TILE)
        if wanted[0]:
            for v in range(len(r)):
                _correlate(outs, v, at, values, sums[0])
        if wanted[1]:
            _pre_activate(z, outs, at, r)
            tiles.backward(code, p, values, r, _TILE)
            for v in range(len(p)):
                _correlate(ins, v, at, p, sums[1])


def _moves_of(moves: Any, ins: Any, outs: Any, pair: int) -> Any:
    raise NotImplementedError


@overload(_moves_of, jit_options=tiles.OPTIONS)
def _moves_of_pair(moves, ins, outs, pair):
    """Give the steps of one pair with its weights and buffers, or None where there are none."""
    if isinstance(moves, types.NoneType):
        return lambda moves, ins, outs, pair: None

    def of_pair(moves, ins, outs, pair):
        step_in, step_out, in_buffers, out_buffers = moves
        ins_of, outs_of = _of_pair(in_buffers, pair), _of_pair(out_buffers, pair)
        return step_in, step_out, ins[pair], ins_of, outs[pair], outs_of

    return of_pair


@compiled(nogil=True, **tiles.OPTIONS)
def visit(code, incoming, outgoing, trains, settled, moves, w, z, wanted, sums):
    """Let units take a training step, then add up their drifts.

    Parameters
    ----------
    code : NamedTuple
        The unit's compiled code.
    incoming, outgoing : ndarray, shapes (pairs, a, r, points), (pairs, c, r, points), C-contiguous
        Weights, changed in place by a training step.
    trains : bool
        Whether a training step is taken.
    settled : tuple of ndarray, shapes (pairs, rows, r) twice, (pairs, r, rows) twice
        States w and z of the training step, by rows; and again, so scaled that their products with
        dp and g are gradients, or what is added where a step does only that.
    moves : tuple, or None
        None where steps only add. Otherwise the steps of the in- and out-vectors, each T and g of
        :class:`~resnet_limits.rules.Transition`, and tuples of their buffers, which are changed in
        place, of the weights' shapes. What stands there beyond the rule's buffers is not looked at;
        no tuple is empty.
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
        np.empty((max(a, c), r, _TILE), np.float32),
    )
    last = np.zeros((a, r, _TILE), np.float32), np.zeros((c, r, _TILE), np.float32)
    lanes = np.empty((2, r, rows, _LANES), np.float32)
    old_w, old_z, of_in, of_out = settled
    rest = points % _TILE
    whole = points - rest
    for pair in range(pairs):
        lanes[:] = 0
        ins, outs = incoming[pair], outgoing[pair]
        these = _moves_of(moves, incoming, outgoing, pair)
        old = old_w[pair], old_z[pair], of_in[pair], of_out[pair]
        u, v = w[pair], z[pair]
        both = lanes[0], lanes[1]
        for at in range(0, whole, _TILE):
            _visit_tile(
                code, ins, outs, at, these, at, _TILE, trains, old, u, v, wanted, room, both
            )
        if rest:
            # The units that fill the tile have no weights and add nothing to any sum.
            last[0][:, :, rest:] = 0
            last[1][:, :, rest:] = 0
            last[0][:, :, :rest] = ins[:, :, whole:]
            last[1][:, :, :rest] = outs[:, :, whole:]
            _visit_tile(code, *last, 0, these, whole, rest, trains, old, u, v, wanted, room, both)
            if trains:
                ins[:, :, whole:] = last[0][:, :, :rest]
                outs[:, :, whole:] = last[1][:, :, :rest]
        for way in range(2):
            for k in range(r):
                for row in range(rows):
                    total = 0.0
                    for lane in range(_LANES):
                        total += lanes[way, k, row, lane]
                    sums[way, pair, k, row] = total
