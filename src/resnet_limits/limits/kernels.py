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
_INLINE = {**tiles.INNER, "forceinline": True}


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


@njit(**tiles.APART)
def _correlate(weights, at, values, sums):
    """Add products of a tile of weights and of values, summed over points but for the lanes."""
    tiles.apart()
    at = np.uint64(at)
    for v in range(np.uint64(len(weights))):
        for k in range(weights.shape[1]):
            for row in range(values.shape[1]):
                for lane in range(_LANES):
                    total = sums[k, row, lane]
                    for part in range(_TILE // _LANES):
                        t = part * _LANES + lane
                        total += weights[v, k, at + np.uint64(t)] * values[v, row, t]
                    sums[k, row, lane] = total


@njit(**tiles.APART)
def _forward(code, w, ins, at, p, values):
    """Set a tile of pre-activations to the products with states, and map it."""
    tiles.apart()
    for v in range(len(p)):
        _combine(w, ins, v, at, p, 0, True)
    tiles.forward(code, p, values, _TILE)


@njit(**tiles.APART)
def _backward(code, z, outs, at, p, values, r):
    """Set a tile of cotangents to the products with states, and pull it back, over p."""
    tiles.apart()
    for v in range(len(r)):
        _combine(z, outs, v, at, r, 0, True)
    tiles.backward(code, p, values, r, _TILE)


@njit(**tiles.APART)
def _add(matrix, tile, weights, at):
    """Add a tile's gradient to weights."""
    tiles.apart()
    for v in range(len(weights)):
        _combine(matrix, tile, v, 0, weights, at, False)


@njit(**tiles.INNER)
def _copy(source, start, target, to, count):
    """Copy so many points of all vectors. As an assignment it would cost seconds to compile."""
    start, to = np.uint64(start), np.uint64(to)
    vectors, inner, _ = source.shape
    for v in range(vectors):
        for k in range(inner):
            for t in range(count):
                target[v, k, to + np.uint64(t)] = source[v, k, start + np.uint64(t)]


@njit(**tiles.INNER)
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
        for j in range(len(matrix)):
            new = moved[j]
            old = weights[v, k, at : at + count] if j == 0 else buffers[j - 1][v, k, at:]
            for t in range(count):
                old[t] = new[t]


def _of_pair(buffers: Any, pair: int) -> Any:
    raise NotImplementedError


@overload(_of_pair, jit_options=tiles.INNER)
def _of_pair_of(buffers, pair):
    """Give the buffers of one pair, a tuple as long as the one given."""
    if len(buffers) == 1:
        return lambda buffers, pair: (buffers[0][pair],)
    return lambda buffers, pair: (buffers[0][pair], *_of_pair(buffers[1:], pair))


def _learn(
    moves: Any, incoming: Any, outgoing: Any, pair: int, point: int, count: int, ins: Any,
    outs: Any, at: int, room: Any, of_in: Any, of_out: Any,
) -> None:  # fmt: skip
    raise NotImplementedError


@overload(_learn, jit_options=tiles.INNER)
def _learn_of(
    moves, incoming, outgoing, pair, point, count, ins, outs, at, room, of_in, of_out
):  # fmt: skip
    """Let the points of a tile take a step of a pair's weights.

    They are columns of `ins` and `outs` from `at` on: of the weights themselves, or of copies with
    units that have no weights after them. Where steps do more than to add, `moves` has them; the
    weights with their buffers are so many columns as `count` from `point` on.
    """

    def add(moves, incoming, outgoing, pair, point, count, ins, outs, at, room, of_in, of_out):
        p, values, _, _ = room
        _add(of_in, p, ins, at)
        _add(of_out, values, outs, at)

    def move(moves, incoming, outgoing, pair, point, count, ins, outs, at, room, of_in, of_out):
        p, values, _, gradient = room
        step_in, step_out, in_buffers, out_buffers = moves
        of_pair = _of_pair(in_buffers, pair), _of_pair(out_buffers, pair)
        for v in range(len(ins)):
            _combine(of_in, p, v, 0, gradient, 0, True)
            _move(step_in, incoming[pair], of_pair[0], v, point, gradient, count)
        for v in range(len(outs)):
            _combine(of_out, values, v, 0, gradient, 0, True)
            _move(step_out, outgoing[pair], of_pair[1], v, point, gradient, count)
        if count < _TILE:
            _copy(incoming[pair], point, ins, 0, count)
            _copy(outgoing[pair], point, outs, 0, count)

    return add if isinstance(moves, types.NoneType) else move


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
    p = np.empty((a, rows, _TILE), np.float32)
    values = np.empty((c + kept, rows, _TILE), np.float32)
    cotangents = np.empty((c, rows, _TILE), np.float32)
    room = p, values, cotangents, np.empty((max(a, c), r, _TILE), np.float32)
    last_in, last_out = np.empty((a, r, _TILE), np.float32), np.empty((c, r, _TILE), np.float32)
    lanes = np.empty((2, r, rows, _LANES), np.float32)
    old_w, old_z, of_in, of_out = settled
    for pair in range(pairs):
        lanes[:] = 0
        for point in range(0, points, _TILE):
            count = min(_TILE, points - point)
            ins, outs, at = incoming[pair], outgoing[pair], point
            if count < _TILE:
                # The units that fill the tile have no weights and add nothing to any sum.
                ins, outs, at = last_in, last_out, 0
                ins[:] = 0
                outs[:] = 0
                _copy(incoming[pair], point, ins, 0, count)
                _copy(outgoing[pair], point, outs, 0, count)
            if trains:
                _forward(code, old_w[pair], ins, at, p, values)
                _backward(code, old_z[pair], outs, at, p, values, cotangents)
                _learn(
                    moves, incoming, outgoing, pair, point, count, ins, outs, at, room,
                    of_in[pair], of_out[pair],
                )  # fmt: skip
                if count < _TILE:
                    _copy(ins, 0, incoming[pair], point, count)
                    _copy(outs, 0, outgoing[pair], point, count)
            if wanted[0] or wanted[1]:
                _forward(code, w[pair], ins, at, p, values)
            if wanted[0]:
                _correlate(outs, at, values, lanes[0])
            if wanted[1]:
                _backward(code, z[pair], outs, at, p, values, cotangents)
                _correlate(ins, at, p, lanes[1])
        for way in range(2):
            for k in range(r):
                for row in range(rows):
                    total = 0.0
                    for lane in range(_LANES):
                        total += lanes[way, k, row, lane]
                    sums[way, pair, k, row] = total
