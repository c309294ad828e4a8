"""One visit to the units of the quadrature, fused and compiled for the processor at hand.

What a pass does to a unit, its pre-activations, activations, cotangents, gradient step and share of
the sums, is one loop over tiles of points that stay in the first cache. Called operation by
operation it would cost more in calls and in waiting for the interpreter than in arithmetic; a
kernel holds no lock of the interpreter, so that threads work at the same time.

Only units of one in- and one out-vector whose activation is arithmetic alone are compiled, and only
in float32: :func:`activation_code` names them. The first call compiles, later processes load what
was compiled.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from resnet_limits.jit import compiled, enabled
from resnet_limits.units import ACTIVATIONS, Perceptron, Unit

_TILE = 128
# Sums are kept in so many parts, one for each number of a wide register.
_LANES = 16
_TANH, _RELU = 0, 1
_CODES = {"tanh": _TANH, "relu": _RELU}

# The rational function of degree 13 over 6 that float32 libraries (Eigen, XLA) use for tanh: the
# coefficients of the odd powers above, of the even powers below, the highest first.
_TANH_END = np.float32(7.90531110763549805)
_T13 = np.float32(-2.76076847742355e-16)
_T11 = np.float32(2.00018790482477e-13)
_T9 = np.float32(-8.60467152213735e-11)
_T7 = np.float32(5.12229709037114e-08)
_T5 = np.float32(1.48572235717979e-05)
_T3 = np.float32(6.37261928875436e-04)
_T1 = np.float32(4.89352455891786e-03)
_B6 = np.float32(1.19825839466702e-06)
_B4 = np.float32(1.18534705686654e-04)
_B2 = np.float32(2.26843463243900e-03)
_B0 = np.float32(4.89352518554385e-03)


def activation_code(unit: Unit) -> int | None:
    """Return the number by which :func:`visit` knows a unit's activation, or None if it does not.

    None also where numba has been told not to compile.

    Parameters
    ----------
    unit : Unit
        Any residual unit.
    """
    # What is compiled is this class's own map; a subclass may have another.
    if type(unit) is not Perceptron or not enabled():
        return None
    known = (code for name, code in _CODES.items() if unit.activation is ACTIVATIONS[name])
    return next(known, None)


@njit(error_model="numpy", fastmath={"contract"})
def _combine(matrix, columns, at, total, there):
    """Add to a tile of `total`, from column `there` on, ``matrix @ columns``, from `at` on."""
    # An index without a sign needs no test for a negative one, which would keep the loops from
    # becoming vector code.
    at, there = np.uint64(at), np.uint64(there)
    inner = matrix.shape[1]
    for row in range(matrix.shape[0]):
        j = 0
        # As many terms at a time as make the loads and stores of the sum matter little.
        while j + 4 < inner:
            a, b, c = matrix[row, j], matrix[row, j + 1], matrix[row, j + 2]
            d, e = matrix[row, j + 3], matrix[row, j + 4]
            for t in range(_TILE):
                total[row, there + np.uint64(t)] += (
                    a * columns[j, at + np.uint64(t)]
                    + b * columns[j + 1, at + np.uint64(t)]
                    + c * columns[j + 2, at + np.uint64(t)]
                    + d * columns[j + 3, at + np.uint64(t)]
                    + e * columns[j + 4, at + np.uint64(t)]
                )
            j += 5
        while j < inner:
            a = matrix[row, j]
            for t in range(_TILE):
                total[row, there + np.uint64(t)] += a * columns[j, at + np.uint64(t)]
            j += 1


@njit(error_model="numpy", fastmath={"contract"})
def _correlate(weights, at, values, sums):
    """Add products of a tile of weights and of values, summed over points but for the lanes."""
    at = np.uint64(at)
    for k in range(weights.shape[0]):
        for row in range(values.shape[0]):
            for lane in range(_LANES):
                total = sums[k, row, lane]
                for part in range(_TILE // _LANES):
                    t = part * _LANES + lane
                    total += weights[k, at + np.uint64(t)] * values[row, t]
                sums[k, row, lane] = total


@njit(error_model="numpy", fastmath={"contract"})
def _tanh(x):
    # Written so that NaN stays NaN.
    x = _TANH_END if x > _TANH_END else x
    x = -_TANH_END if x < -_TANH_END else x
    y = x * x
    top = ((((((_T13 * y + _T11) * y + _T9) * y + _T7) * y + _T5) * y + _T3) * y + _T1) * x
    return top / (((_B6 * y + _B4) * y + _B2) * y + _B0)


@njit(error_model="numpy", fastmath={"contract"})
def _activate(code, p, g):
    for row in range(p.shape[0]):
        if code == _TANH:
            for t in range(_TILE):
                g[row, t] = _tanh(p[row, t])
        else:
            for t in range(_TILE):
                g[row, t] = p[row, t] if not p[row, t] < 0 else np.float32(0)


@njit(error_model="numpy", fastmath={"contract"})
def _differentiate(code, g, r):
    """Turn ``r`` into ``g'(p) r``."""
    one = np.float32(1)
    for row in range(g.shape[0]):
        if code == _TANH:
            for t in range(_TILE):
                r[row, t] *= one - g[row, t] * g[row, t]
        else:
            for t in range(_TILE):
                r[row, t] = r[row, t] if g[row, t] > 0 else np.float32(0)


@njit(error_model="numpy", fastmath={"contract"})
def _visit_tile(code, ins, outs, at, trains, settled, w, z, wanted, p, g, forward, backward):
    """Do what :func:`visit` does with the points of a tile, from column `at` on."""
    if trains:
        old_w, old_z, step_in, step_out = settled
        p[:] = 0
        _combine(old_w, ins, at, p, 0)
        _activate(code, p, g)
        p[:] = 0
        _combine(old_z, outs, at, p, 0)
        _differentiate(code, g, p)
        _combine(step_in, p, 0, ins, at)
        _combine(step_out, g, 0, outs, at)
    if wanted[0] or wanted[1]:
        p[:] = 0
        _combine(w, ins, at, p, 0)
        _activate(code, p, g)
        if wanted[0]:
            _correlate(outs, at, g, forward)
        if wanted[1]:
            p[:] = 0
            _combine(z, outs, at, p, 0)
            _differentiate(code, g, p)
            _correlate(ins, at, p, backward)


@compiled(nogil=True, error_model="numpy", fastmath={"contract"})
def visit(code, incoming, outgoing, trains, settled, w, z, wanted, sums):
    """Let units take a gradient step, then add up their drifts.

    Parameters
    ----------
    code : int
        The activation.
    incoming, outgoing : ndarray, shape (pairs, r, points), C-contiguous
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
        Receive sums over points of ``O g(p)`` and ``I g'(p) O^T z``, zero where not wanted.
    """
    pairs, r, points = incoming.shape
    rows = sums.shape[3]
    p = np.empty((rows, _TILE), np.float32)
    g = np.empty((rows, _TILE), np.float32)
    last_in = np.zeros((r, _TILE), np.float32)
    last_out = np.zeros((r, _TILE), np.float32)
    lanes = np.empty((2, r, rows, _LANES), np.float32)
    rest = points % _TILE
    whole = points - rest
    for pair in range(pairs):
        lanes[:] = 0
        ins, outs = incoming[pair], outgoing[pair]
        old = settled[0][pair], settled[1][pair], settled[2][pair], settled[3][pair]
        states = w[pair], z[pair]
        for at in range(0, whole, _TILE):
            _visit_tile(code, ins, outs, at, trains, old, *states, wanted, p, g, lanes[0], lanes[1])
        if rest:
            # The units that fill the tile have no weights and add nothing to any sum.
            last_in[:, rest:] = 0
            last_out[:, rest:] = 0
            last_in[:, :rest] = ins[:, whole:]
            last_out[:, :rest] = outs[:, whole:]
            _visit_tile(
                code, last_in, last_out, 0, trains, old, *states, wanted, p, g, lanes[0], lanes[1]
            )
            if trains:
                ins[:, whole:] = last_in[:, :rest]
                outs[:, whole:] = last_out[:, :rest]
        for way in range(2):
            for k in range(r):
                for row in range(rows):
                    total = 0.0
                    for lane in range(_LANES):
                        total += lanes[way, k, row, lane]
                    sums[way, pair, k, row] = total
