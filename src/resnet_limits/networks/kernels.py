"""Products of one layer's weights with a few rows of states, each reading the weights once.

Matrix libraries reach a fraction of the memory bandwidth on products as thin as those of a few
samples, and read a layer three times where the backward pass and the update need it once. These
kernels, compiled for the processor at hand, do the work row by row while the row is in the nearest
cache. Weights are ``(m, d)``, states ``(n, d)`` and coefficients ``(n, m)``, all C-contiguous and
of one dtype. Threads split m; sums over m are taken in the same order whatever their number.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray

Array = NDArray[np.floating]

_AVAILABLE_THREADS: int = numba.get_num_threads()

# Entries of d that are worked on at a time: the states' part of a tile stays in the first cache.
_TILE = 512
# Weight rows that are worked on between two tasks on them.
_BLOCK = 4
# Sums over m are split in this many parts, each the work of one thread. More parts would feed more
# threads and cost more to add up.
PARTS = 4

# These let sums be vectorised; NaN and infinity keep their meaning, which the detection of
# divergence needs.
_FAST = {"reassoc", "nsz", "arcp", "contract"}
# Chains of fused multiply-adds as they are written.
_CHAIN = {"contract", "nsz"}


def use_threads(threads: int) -> None:
    """Use up to this many threads from now on."""
    numba.set_num_threads(min(threads, _AVAILABLE_THREADS))
    # Both libraries may share one OpenMP, whose number of threads numba has set to its own.
    torch.set_num_threads(threads)


@njit(fastmath=_FAST)
def _dots(w0, w1, w2, w3, x0, x1, x2, x3):
    """All products of four weight rows with four states, over one tile of d."""
    zero = w0.dtype.type(0)
    a0 = a1 = a2 = a3 = zero
    b0 = b1 = b2 = b3 = zero
    c0 = c1 = c2 = c3 = zero
    e0 = e1 = e2 = e3 = zero
    for d in range(len(w0)):
        y0 = x0[d]
        y1 = x1[d]
        y2 = x2[d]
        y3 = x3[d]
        a = w0[d]
        a0 += a * y0
        a1 += a * y1
        a2 += a * y2
        a3 += a * y3
        b = w1[d]
        b0 += b * y0
        b1 += b * y1
        b2 += b * y2
        b3 += b * y3
        c = w2[d]
        c0 += c * y0
        c1 += c * y1
        c2 += c * y2
        c3 += c * y3
        e = w3[d]
        e0 += e * y0
        e1 += e * y1
        e2 += e * y2
        e3 += e * y3
    return ((a0, a1, a2, a3), (b0, b1, b2, b3), (c0, c1, c2, c3), (e0, e1, e2, e3))


@njit(fastmath=_CHAIN)
def _add(t0, t1, t2, t3, v0, v1, v2, v3, k0, k1, k2, k3):
    """Add four vectors to each of four targets: ``t_i += sum_j k_i[j] v_j``."""
    a0, a1, a2, a3 = k0
    b0, b1, b2, b3 = k1
    c0, c1, c2, c3 = k2
    e0, e1, e2, e3 = k3
    for d in range(len(t0)):
        y0 = v0[d]
        y1 = v1[d]
        y2 = v2[d]
        y3 = v3[d]
        t0[d] = t0[d] + a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
        t1[d] = t1[d] + b0 * y0 + b1 * y1 + b2 * y2 + b3 * y3
        t2[d] = t2[d] + c0 * y0 + c1 * y1 + c2 * y2 + c3 * y3
        t3[d] = t3[d] + e0 * y0 + e1 * y1 + e2 * y2 + e3 * y3


@njit(fastmath=_FAST)
def _dot(w, x):
    total = w.dtype.type(0)
    for d in range(len(w)):
        total += w[d] * x[d]
    return total


@njit(fastmath=_CHAIN)
def _add_one(t, v, k):
    for d in range(len(t)):
        t[d] += k * v[d]


@njit(fastmath=_CHAIN)
def _add_to_one(t, v0, v1, v2, v3, k):
    k0, k1, k2, k3 = k
    for d in range(len(t)):
        t[d] = t[d] + k0 * v0[d] + k1 * v1[d] + k2 * v2[d] + k3 * v3[d]


@njit(fastmath=_FAST)
def _dots_pair(w0, w1, w2, w3, x0, x1):
    """All products of four weight rows with two states, over one tile of d."""
    a0 = a1 = b0 = b1 = c0 = c1 = e0 = e1 = w0.dtype.type(0)
    for d in range(len(w0)):
        y0 = x0[d]
        y1 = x1[d]
        a0 += w0[d] * y0
        a1 += w0[d] * y1
        b0 += w1[d] * y0
        b1 += w1[d] * y1
        c0 += w2[d] * y0
        c1 += w2[d] * y1
        e0 += w3[d] * y0
        e1 += w3[d] * y1
    return ((a0, a1), (b0, b1), (c0, c1), (e0, e1))


@njit(fastmath=_CHAIN)
def _add_pair(t0, t1, t2, t3, v0, v1, k0, k1):
    """Add two vectors to each of four targets: ``t_i += k0[i] v0 + k1[i] v1``."""
    a0, b0, c0, e0 = k0
    a1, b1, c1, e1 = k1
    for d in range(len(t0)):
        y0 = v0[d]
        y1 = v1[d]
        t0[d] = t0[d] + a0 * y0 + a1 * y1
        t1[d] = t1[d] + b0 * y0 + b1 * y1
        t2[d] = t2[d] + c0 * y0 + c1 * y1
        t3[d] = t3[d] + e0 * y0 + e1 * y1


@njit(fastmath=_CHAIN)
def _add_to_pair(t, u, v0, v1, v2, v3, k, q):
    """Add four vectors to each of two targets: ``t += sum_j k[j] v_j``, ``u += sum_j q[j] v_j``."""
    k0, k1, k2, k3 = k
    q0, q1, q2, q3 = q
    for d in range(len(t)):
        y0 = v0[d]
        y1 = v1[d]
        y2 = v2[d]
        y3 = v3[d]
        t[d] = t[d] + k0 * y0 + k1 * y1 + k2 * y2 + k3 * y3
        u[d] = u[d] + q0 * y0 + q1 * y1 + q2 * y2 + q3 * y3


@njit(fastmath=_FAST)
def _project_four(weights, states, m, lo, hi, out):
    """Add the products of four weight rows with all states, over one tile of d, to out."""
    w0, w1 = weights[m, lo:hi], weights[m + 1, lo:hi]
    w2, w3 = weights[m + 2, lo:hi], weights[m + 3, lo:hi]
    n = 0
    while n + 4 <= len(states):
        products = _dots(
            w0,
            w1,
            w2,
            w3,
            states[n, lo:hi],
            states[n + 1, lo:hi],
            states[n + 2, lo:hi],
            states[n + 3, lo:hi],
        )
        for i in range(4):
            row = products[i]
            for j in range(4):
                out[n + j, m + i] += row[j]
        n += 4
    if n + 2 <= len(states):
        pairs = _dots_pair(w0, w1, w2, w3, states[n, lo:hi], states[n + 1, lo:hi])
        for i in range(4):
            pair = pairs[i]
            out[n, m + i] += pair[0]
            out[n + 1, m + i] += pair[1]
        n += 2
    while n < len(states):
        x = states[n, lo:hi]
        out[n, m] += _dot(w0, x)
        out[n, m + 1] += _dot(w1, x)
        out[n, m + 2] += _dot(w2, x)
        out[n, m + 3] += _dot(w3, x)
        n += 1


@njit(fastmath=_FAST)
def _update_four(weights, coefficients, states, scale, m, lo, hi):
    """Add scale * sum_n coefficients[n, m] states[n], over one tile of d, to four weight rows."""
    w0, w1 = weights[m, lo:hi], weights[m + 1, lo:hi]
    w2, w3 = weights[m + 2, lo:hi], weights[m + 3, lo:hi]
    c = coefficients
    n = 0
    while n + 4 <= len(states):
        _add(
            w0,
            w1,
            w2,
            w3,
            states[n, lo:hi],
            states[n + 1, lo:hi],
            states[n + 2, lo:hi],
            states[n + 3, lo:hi],
            (scale * c[n, m], scale * c[n + 1, m], scale * c[n + 2, m], scale * c[n + 3, m]),
            (
                scale * c[n, m + 1],
                scale * c[n + 1, m + 1],
                scale * c[n + 2, m + 1],
                scale * c[n + 3, m + 1],
            ),
            (
                scale * c[n, m + 2],
                scale * c[n + 1, m + 2],
                scale * c[n + 2, m + 2],
                scale * c[n + 3, m + 2],
            ),
            (
                scale * c[n, m + 3],
                scale * c[n + 1, m + 3],
                scale * c[n + 2, m + 3],
                scale * c[n + 3, m + 3],
            ),
        )
        n += 4
    if n + 2 <= len(states):
        _add_pair(
            w0,
            w1,
            w2,
            w3,
            states[n, lo:hi],
            states[n + 1, lo:hi],
            (scale * c[n, m], scale * c[n, m + 1], scale * c[n, m + 2], scale * c[n, m + 3]),
            (
                scale * c[n + 1, m],
                scale * c[n + 1, m + 1],
                scale * c[n + 1, m + 2],
                scale * c[n + 1, m + 3],
            ),
        )
        n += 2
    while n < len(states):
        x = states[n, lo:hi]
        _add_one(w0, x, scale * c[n, m])
        _add_one(w1, x, scale * c[n, m + 1])
        _add_one(w2, x, scale * c[n, m + 2])
        _add_one(w3, x, scale * c[n, m + 3])
        n += 1


@njit(fastmath=_FAST)
def _expand_four(weights, coefficients, m, lo, hi, total):
    """Add four weight rows, over one tile of d, times their coefficients to every state's sum."""
    w0, w1 = weights[m, lo:hi], weights[m + 1, lo:hi]
    w2, w3 = weights[m + 2, lo:hi], weights[m + 3, lo:hi]
    c = coefficients
    n = 0
    while n + 4 <= len(total):
        _add(
            total[n, lo:hi],
            total[n + 1, lo:hi],
            total[n + 2, lo:hi],
            total[n + 3, lo:hi],
            w0,
            w1,
            w2,
            w3,
            (c[n, m], c[n, m + 1], c[n, m + 2], c[n, m + 3]),
            (c[n + 1, m], c[n + 1, m + 1], c[n + 1, m + 2], c[n + 1, m + 3]),
            (c[n + 2, m], c[n + 2, m + 1], c[n + 2, m + 2], c[n + 2, m + 3]),
            (c[n + 3, m], c[n + 3, m + 1], c[n + 3, m + 2], c[n + 3, m + 3]),
        )
        n += 4
    if n + 2 <= len(total):
        _add_to_pair(
            total[n, lo:hi],
            total[n + 1, lo:hi],
            w0,
            w1,
            w2,
            w3,
            (c[n, m], c[n, m + 1], c[n, m + 2], c[n, m + 3]),
            (c[n + 1, m], c[n + 1, m + 1], c[n + 1, m + 2], c[n + 1, m + 3]),
        )
        n += 2
    while n < len(total):
        _add_to_one(
            total[n, lo:hi], w0, w1, w2, w3, (c[n, m], c[n, m + 1], c[n, m + 2], c[n, m + 3])
        )
        n += 1


@njit(fastmath=_FAST)
def _project_rows(weights, states, first, last, out):
    """Products of the weight rows first..last-1 with all states."""
    columns = weights.shape[1]
    m = first
    while m + 4 <= last:
        for lo in range(0, columns, _TILE):
            _project_four(weights, states, m, lo, min(columns, lo + _TILE), out)
        m += 4
    while m < last:
        for n in range(len(states)):
            out[n, m] += _dot(weights[m], states[n])
        m += 1


@njit(fastmath=_FAST)
def _update_rows(weights, coefficients, states, step, first, last):
    """Take the gradient step of the weight rows first..last-1."""
    columns = weights.shape[1]
    m = first
    while m + 4 <= last:
        for lo in range(0, columns, _TILE):
            _update_four(weights, coefficients, states, step, m, lo, min(columns, lo + _TILE))
        m += 4
    while m < last:
        for n in range(len(states)):
            _add_one(weights[m], states[n], step * coefficients[n, m])
        m += 1


@njit(fastmath=_FAST)
def _expand_rows(weights, coefficients, first, last, total):
    """Add the weight rows first..last-1 times their coefficients to every state's sum."""
    columns = weights.shape[1]
    m = first
    while m + 4 <= last:
        for lo in range(0, columns, _TILE):
            _expand_four(weights, coefficients, m, lo, min(columns, lo + _TILE), total)
        m += 4
    while m < last:
        for n in range(len(total)):
            _add_one(total[n], weights[m], coefficients[n, m])
        m += 1


@njit
def _bound(part, rows):
    """First row of a part: a multiple of four, so that only the last part has rows left over."""
    return rows if part == PARTS else part * rows // PARTS // 4 * 4


@njit(fastmath=_FAST)
def _gather(partial, base, gain, out):
    for n in range(len(out)):
        out[n] = base[n]
        for part in range(PARTS):
            _add_one(out[n], partial[part, n], gain)


@njit(parallel=True, cache=True, fastmath=_FAST)
def project(weights: Array, states: Array, scale: float, out: Array) -> None:
    """Compute ``out[n, m] = scale * sum_d weights[m, d] states[n, d]``.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
    states : ndarray, shape (n, d)
    scale : float
        Of the weights' dtype, as all scales here.
    out : ndarray, shape (n, m)
        Overwritten.
    """
    rows = len(weights)
    for block in prange((rows + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        last = min(rows, first + _BLOCK)
        out[:, first:last] = 0
        _project_rows(weights, states, first, last, out)
        out[:, first:last] *= scale


@njit(parallel=True, cache=True, fastmath=_FAST)
def project_update(
    weights: Array, states: Array, scale: float, out: Array, coefficients: Array, step: float
) -> None:
    """Compute the products of :func:`project`, then step the weights, in one reading.

    ``weights[m, d] += step * sum_n coefficients[n, m] states[n, d]``; the products are with the
    weights as they were.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
        Updated in place.
    states : ndarray, shape (n, d)
    scale : float
    out : ndarray, shape (n, m)
        Overwritten.
    coefficients : ndarray, shape (n, m)
    step : float
    """
    rows = len(weights)
    for block in prange((rows + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        last = min(rows, first + _BLOCK)
        out[:, first:last] = 0
        _project_rows(weights, states, first, last, out)
        out[:, first:last] *= scale
        _update_rows(weights, coefficients, states, step, first, last)


@njit(parallel=True, cache=True, fastmath=_FAST)
def expand(
    weights: Array, coefficients: Array, base: Array, gain: float, partial: Array, out: Array
) -> None:
    """Compute ``out[n, d] = base[n, d] + gain * sum_m coefficients[n, m] weights[m, d]``.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
    coefficients : ndarray, shape (n, m)
    base : ndarray, shape (n, d)
    gain : float
    partial : ndarray, shape (PARTS, n, d)
        Scratch.
    out : ndarray, shape (n, d)
        Overwritten.
    """
    rows = len(weights)
    for part in prange(PARTS):
        partial[part] = 0
        first, last = _bound(part, rows), _bound(part + 1, rows)
        _expand_rows(weights, coefficients, first, last, partial[part])
    _gather(partial, base, gain, out)


@njit(parallel=True, cache=True, fastmath=_FAST)
def expand_update(
    weights: Array,
    coefficients: Array,
    base: Array,
    gain: float,
    partial: Array,
    out: Array,
    states: Array,
    step: float,
) -> None:
    """Compute the sums of :func:`expand`, then step the weights, in one reading.

    ``weights[m, d] += step * sum_n coefficients[n, m] states[n, d]``; the sums are with the
    weights as they were.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
        Updated in place.
    coefficients : ndarray, shape (n, m)
    base : ndarray, shape (n, d)
    gain : float
    partial : ndarray, shape (PARTS, n, d)
        Scratch.
    out : ndarray, shape (n, d)
        Overwritten.
    states : ndarray, shape (n, d)
    step : float
    """
    rows = len(weights)
    for part in prange(PARTS):
        partial[part] = 0
        first, last = _bound(part, rows), _bound(part + 1, rows)
        for start in range(first, last, _BLOCK):
            stop = min(last, start + _BLOCK)
            _expand_rows(weights, coefficients, start, stop, partial[part])
            _update_rows(weights, coefficients, states, step, start, stop)
    _gather(partial, base, gain, out)
