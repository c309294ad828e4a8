"""Products of one layer's weights with a few rows of states, each reading the weights once.

Matrix libraries reach a fraction of the memory bandwidth on products as thin as those of a few
samples, and read a layer three times where the backward pass and the update need it once. These
kernels, compiled for the processor at hand, do the work row by row while the row is in the nearest
cache. Weights are ``(m, d)``, states ``(n, d)`` and coefficients ``(n, m)``, all C-contiguous and
of one dtype; threads split m, and sums over threads are taken in a fixed order.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Array = NDArray[np.floating]

_AVAILABLE_THREADS: int = numba.get_num_threads()

# Entries of d that are worked on at a time: the states' part of a tile stays in the first cache.
_TILE = 512
# Weight rows that are worked on between two tasks on them.
_BLOCK = 4
# Sums over m are split in this many parts whatever the number of threads, so that results do not
# depend on it.
PARTS = 8

# These let sums be vectorised; NaN and infinity keep their meaning, which the detection of
# divergence needs.
_FAST = {"reassoc", "nsz", "arcp", "contract"}
# Chains of fused multiply-adds as they are written.
_CHAIN = {"contract", "nsz"}


def use_threads(threads: int) -> None:
    """Use up to this many threads from now on."""
    numba.set_num_threads(min(threads, _AVAILABLE_THREADS))


@njit(fastmath=_FAST)
def _dots(w, u, x0, x1, x2, x3):
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = w.dtype.type(0)
    for d in range(len(w)):
        p = w[d]
        q = u[d]
        a0 += p * x0[d]
        a1 += p * x1[d]
        a2 += p * x2[d]
        a3 += p * x3[d]
        b0 += q * x0[d]
        b1 += q * x1[d]
        b2 += q * x2[d]
        b3 += q * x3[d]
    return a0, a1, a2, a3, b0, b1, b2, b3


@njit(fastmath=_FAST)
def _dot_pair(w, u, x):
    a = b = w.dtype.type(0)
    for d in range(len(w)):
        a += w[d] * x[d]
        b += u[d] * x[d]
    return a, b


@njit(fastmath=_CHAIN)
def _add_four(t, u, v0, v1, v2, v3, a0, a1, a2, a3, b0, b1, b2, b3):
    for d in range(len(t)):
        x0 = v0[d]
        x1 = v1[d]
        x2 = v2[d]
        x3 = v3[d]
        t[d] = t[d] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
        u[d] = u[d] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3


@njit(fastmath=_CHAIN)
def _add_one(t, u, v, a, b):
    for d in range(len(t)):
        t[d] += a * v[d]
        u[d] += b * v[d]


@njit(fastmath=_FAST)
def _project_pair(w, u, states, lo, hi, m, out):
    """Add the products of two weight rows with all states, over one tile of d, to out."""
    count = len(states)
    n = 0
    while n + 4 <= count:
        a0, a1, a2, a3, b0, b1, b2, b3 = _dots(
            w,
            u,
            states[n, lo:hi],
            states[n + 1, lo:hi],
            states[n + 2, lo:hi],
            states[n + 3, lo:hi],
        )
        out[n, m] += a0
        out[n + 1, m] += a1
        out[n + 2, m] += a2
        out[n + 3, m] += a3
        out[n, m + 1] += b0
        out[n + 1, m + 1] += b1
        out[n + 2, m + 1] += b2
        out[n + 3, m + 1] += b3
        n += 4
    while n < count:
        a, b = _dot_pair(w, u, states[n, lo:hi])
        out[n, m] += a
        out[n, m + 1] += b
        n += 1


@njit(fastmath=_FAST)
def _update_pair(w, u, coefficients, m, states, lo, hi, scale):
    """Add scale * sum_n coefficients[n, m] states[n] to two weight rows."""
    count = len(states)
    n = 0
    while n + 4 <= count:
        _add_four(
            w,
            u,
            states[n, lo:hi],
            states[n + 1, lo:hi],
            states[n + 2, lo:hi],
            states[n + 3, lo:hi],
            scale * coefficients[n, m],
            scale * coefficients[n + 1, m],
            scale * coefficients[n + 2, m],
            scale * coefficients[n + 3, m],
            scale * coefficients[n, m + 1],
            scale * coefficients[n + 1, m + 1],
            scale * coefficients[n + 2, m + 1],
            scale * coefficients[n + 3, m + 1],
        )
        n += 4
    while n < count:
        _add_one(
            w,
            u,
            states[n, lo:hi],
            scale * coefficients[n, m],
            scale * coefficients[n, m + 1],
        )
        n += 1


@njit(fastmath=_FAST)
def _expand_four(weights, m, lo, hi, coefficients, total, scratch):
    """Add four weight rows, over one tile of d, times their coefficients to every state's sum."""
    count = len(total)
    v0 = weights[m, lo:hi]
    v1 = weights[m + 1, lo:hi]
    v2 = weights[m + 2, lo:hi]
    v3 = weights[m + 3, lo:hi]
    n = 0
    while n < count:
        # An odd last state is paired with a row that nobody reads.
        paired = n + 1 < count
        other = total[n + 1, lo:hi] if paired else scratch[lo:hi]
        second = n + 1 if paired else n
        _add_four(
            total[n, lo:hi],
            other,
            v0,
            v1,
            v2,
            v3,
            coefficients[n, m],
            coefficients[n, m + 1],
            coefficients[n, m + 2],
            coefficients[n, m + 3],
            coefficients[second, m],
            coefficients[second, m + 1],
            coefficients[second, m + 2],
            coefficients[second, m + 3],
        )
        n += 2


@njit(fastmath=_FAST)
def _project_rows(weights, states, first, last, out):
    """Products of the weight rows first..last-1 with all states."""
    columns = weights.shape[1]
    m = first
    while m + 2 <= last:
        for lo in range(0, columns, _TILE):
            hi = min(columns, lo + _TILE)
            _project_pair(weights[m, lo:hi], weights[m + 1, lo:hi], states, lo, hi, m, out)
        m += 2
    if m < last:
        for n in range(len(states)):
            out[n, m] += np.dot(weights[m], states[n])


@njit(fastmath=_FAST)
def _update_rows(weights, coefficients, states, scale, first, last):
    """Take the gradient step of the weight rows first..last-1."""
    columns = weights.shape[1]
    m = first
    while m + 2 <= last:
        for lo in range(0, columns, _TILE):
            hi = min(columns, lo + _TILE)
            _update_pair(
                weights[m, lo:hi], weights[m + 1, lo:hi], coefficients, m, states, lo, hi, scale
            )
        m += 2
    if m < last:
        for n in range(len(states)):
            weights[m] += scale * coefficients[n, m] * states[n]


@njit(fastmath=_FAST)
def _expand_rows(weights, coefficients, first, last, total, scratch):
    """Add the weight rows first..last-1 times their coefficients to every state's sum."""
    columns = weights.shape[1]
    m = first
    while m + 4 <= last:
        for lo in range(0, columns, _TILE):
            hi = min(columns, lo + _TILE)
            _expand_four(weights, m, lo, hi, coefficients, total, scratch)
        m += 4
    while m < last:
        for n in range(len(total)):
            total[n] += coefficients[n, m] * weights[m]
        m += 1


@njit(parallel=True, cache=True, fastmath=_FAST)
def project(weights: Array, states: Array, out: Array) -> None:
    """Compute ``out[n, m] = sum_d weights[m, d] states[n, d]``.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
    states : ndarray, shape (n, d)
    out : ndarray, shape (n, m)
        Overwritten.
    """
    rows = len(weights)
    out[:] = 0
    for block in prange((rows + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        _project_rows(weights, states, first, min(rows, first + _BLOCK), out)


@njit(parallel=True, cache=True, fastmath=_FAST)
def project_update(
    weights: Array, states: Array, out: Array, coefficients: Array, scale: float
) -> None:
    """Compute the products of :func:`project`, then step the weights, in one reading.

    ``weights[m, d] += scale * sum_n coefficients[n, m] states[n, d]``; the products are with the
    weights as they were.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
        Updated in place.
    states : ndarray, shape (n, d)
    out : ndarray, shape (n, m)
        Overwritten.
    coefficients : ndarray, shape (n, m)
    scale : float
        Of the weights' dtype.
    """
    rows = len(weights)
    out[:] = 0
    for block in prange((rows + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        last = min(rows, first + _BLOCK)
        _project_rows(weights, states, first, last, out)
        _update_rows(weights, coefficients, states, scale, first, last)


@njit(parallel=True, cache=True, fastmath=_FAST)
def expand(weights: Array, coefficients: Array, partial: Array) -> None:
    """Compute partial sums of ``sum_m coefficients[n, m] weights[m, d]``.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
    coefficients : ndarray, shape (n, m)
    partial : ndarray, shape (PARTS, n + 1, d)
        Overwritten; ``partial[:, :n].sum(0)`` is the result, the last row is scratch.
    """
    rows = len(weights)
    for part in prange(PARTS):
        partial[part] = 0
        first, last = part * rows // PARTS, (part + 1) * rows // PARTS
        _expand_rows(weights, coefficients, first, last, partial[part, :-1], partial[part, -1])


@njit(parallel=True, cache=True, fastmath=_FAST)
def expand_update(
    weights: Array, coefficients: Array, partial: Array, states: Array, scale: float
) -> None:
    """Compute the sums of :func:`expand`, then step the weights, in one reading.

    ``weights[m, d] += scale * sum_n coefficients[n, m] states[n, d]``; the sums are with the
    weights as they were.

    Parameters
    ----------
    weights : ndarray, shape (m, d)
        Updated in place.
    coefficients : ndarray, shape (n, m)
    partial : ndarray, shape (PARTS, n + 1, d)
        As in :func:`expand`.
    states : ndarray, shape (n, d)
    scale : float
        Of the weights' dtype.
    """
    rows = len(weights)
    for part in prange(PARTS):
        partial[part] = 0
        first, last = part * rows // PARTS, (part + 1) * rows // PARTS
        for start in range(first, last, _BLOCK):
            stop = min(last, start + _BLOCK)
            _expand_rows(weights, coefficients, start, stop, partial[part, :-1], partial[part, -1])
            _update_rows(weights, coefficients, states, scale, start, stop)
