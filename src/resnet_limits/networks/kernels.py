"""Products of the block weights with a few rows of states, each reading the weights once.

Matrix libraries reach a fraction of the memory bandwidth and of the matrix rate on products as thin
as those of a few samples. These kernels, compiled for the processor at hand, go along the weights a
few rows at a time (:mod:`resnet_limits.networks.tiles`), all seeds of a layer in one call.

Weights are ``(L, S, m, d)``, states ``(L, S, n, d)`` and coefficients ``(L, S, n, m)``, all
C-contiguous and of one dtype; a kernel works on one layer. Gradient steps are taken in place, or
kept as factors: the weights then are ``W + step * sum_r past_c[r, m] past_x[r, d]`` over the rows r
of earlier steps. Sums are taken in an order that does not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray

from resnet_limits.networks.tiles import ROWS, STATES, add, dots

Array = NDArray[np.floating]

_AVAILABLE_THREADS: int = numba.get_num_threads()
# Weight rows that are worked on between two tasks on them.
_BLOCK = 4 * ROWS
# The work on one layer is split in this many parts, each for one thread. More parts would feed more
# threads and cost more to add up.
PARTS = 4
# Products over factors that are smaller than this are not worth waking other threads.
_SERIAL_BELOW = 1 << 16


def use_threads(threads: int) -> None:
    """Use up to this many threads from now on."""
    numba.set_num_threads(min(threads, _AVAILABLE_THREADS))
    # Both libraries may share one OpenMP, whose number of threads numba has set to its own.
    torch.set_num_threads(threads)


@njit
def _project(weights, x, scale, first, last, out):
    """``out[n, m] = scale * weights[m] . x[n]`` for m in first..last-1."""
    states = len(x)
    groups = (states + STATES - 1) // STATES
    whole = last - (last - first) % ROWS
    for m in range(first, whole, ROWS):
        # Rows are asked for while the states' first group is at work.
        ahead = ROWS
        for group in range(groups):
            n = group * states // groups
            size = (group + 1) * states // groups - n
            if size == 1:
                dots(ROWS, 1, weights, m, x, n, scale, ahead, out)
            elif size == 2:
                dots(ROWS, 2, weights, m, x, n, scale, ahead, out)
            elif size == 3:
                dots(ROWS, 3, weights, m, x, n, scale, ahead, out)
            elif size == 4:
                dots(ROWS, 4, weights, m, x, n, scale, ahead, out)
            else:
                dots(ROWS, 5, weights, m, x, n, scale, ahead, out)
            ahead = 0
    for m in range(whole, last):
        for n in range(states):
            dots(1, 1, weights, m, x, n, scale, 0, out)


@njit
def _expand(source, coefficients, scale, first, last, lo, hi, out):
    """``out[n] += scale * sum_m coefficients[n, m] source[m, lo:hi]``, m in first..last-1."""
    states = len(out)
    groups = (states + STATES - 1) // STATES
    whole = last - (last - first) % ROWS
    c = coefficients
    for m in range(first, whole, ROWS):
        ahead = ROWS
        for group in range(groups):
            n = group * states // groups
            size = (group + 1) * states // groups - n
            if size == 1:
                add(1, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead)
            elif size == 2:
                add(2, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead)
            elif size == 3:
                add(3, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead)
            elif size == 4:
                add(4, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead)
            else:
                add(5, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead)
            ahead = 0
    for m in range(whole, last):
        for n in range(states):
            add(1, 1, out, n, source, m, c, False, scale, lo, hi, 0)


@njit
def _update(weights, coefficients, x, step, first, last):
    """``weights[m] += step * sum_n coefficients[n, m] x[n]`` for m in first..last-1."""
    states, columns = x.shape
    whole = last - (last - first) % ROWS
    c = coefficients
    for m in range(first, whole, ROWS):
        n = 0
        while n + 4 <= states:
            add(ROWS, 4, weights, m, x, n, c, True, step, 0, columns, 0)
            n += 4
        if n + 2 <= states:
            add(ROWS, 2, weights, m, x, n, c, True, step, 0, columns, 0)
            n += 2
        if n < states:
            add(ROWS, 1, weights, m, x, n, c, True, step, 0, columns, 0)
    for m in range(whole, last):
        for n in range(states):
            add(1, 1, weights, m, x, n, c, True, step, 0, columns, 0)


@njit
def _bound(part, parts, rows):
    """First row of a part: a multiple of a tile's, so that only the last part has rows left."""
    return rows if part == parts else part * rows // parts // ROWS * ROWS


@njit
def _project_part(w, x, out, c, past_c, overlaps, used, scale, step, update, first, last):
    """Project on the weight rows first..last-1; update them where that is asked for."""
    block = _BLOCK if update else max(1, last - first)
    for start in range(first, last, block):
        stop = min(last, start + block)
        _project(w, x, scale, start, stop, out)
        if update:
            _update(w, c, x, step, start, stop)
    if used:
        _expand(past_c, overlaps, scale * step, 0, used, first, last, out)


@njit
def _expand_part(w, c, x, partial, past_x, overlaps, used, step, update, part, parts):
    """Sum up one part of the weight rows and of the factors; update where that is asked for."""
    columns = w.shape[1]
    partial[:] = 0
    first, last = _bound(part, parts, len(w)), _bound(part + 1, parts, len(w))
    block = _BLOCK if update else max(1, last - first)
    one = partial.dtype.type(1)
    for start in range(first, last, block):
        stop = min(last, start + block)
        _expand(w, c, one, start, stop, 0, columns, partial)
        if update:
            _update(w, c, x, step, start, stop)
    first, last = _bound(part, parts, used), _bound(part + 1, parts, used)
    _expand(past_x, overlaps, step, first, last, 0, columns, partial)


@njit(fastmath={"contract", "nsz"})
def _gather(base, gain, partial, out):
    """``out = base + gain * sum of the parts``, the parts in their order."""
    states, columns = out.shape
    for n in range(states):
        for d in range(columns):
            total = partial[0, n, d]
            for part in range(1, len(partial)):
                total += partial[part, n, d]
            out[n, d] = base[n, d] + gain * total


@njit
def _append(past, used, rows):
    past[used : used + len(rows)] = rows


@njit(cache=True)
def project(
    weights: Array,
    x: Array,
    out: Array,
    coefficients: Array,
    past_x: Array,
    past_c: Array,
    overlaps: Array,
    layer: int,
    used: int,
    scale: float,
    step: float,
    learn: bool,
) -> None:
    """Compute ``out[n, m] = scale * sum_d weights[m, d] x[n, d]`` for one layer and all seeds.

    With `learn`, then take the gradient step ``weights[m, d] += step * sum_n coefficients[n, m]
    x[n, d]``: in place where there is no room for factors, else as further rows of the factors.

    Parameters
    ----------
    weights : ndarray, shape (L, S, m, d)
    x : ndarray, shape (L, S, n, d)
    out : ndarray, shape (L, S, n, m)
        Overwritten.
    coefficients : ndarray, shape (L, S, n, m)
    past_x, past_c : ndarray, shape (L, S, room, d) and (L, S, room, m)
        Factors of the steps that the weights themselves do not have.
    overlaps : ndarray, shape (S, n, room)
        Scratch.
    layer : int
    used : int
        Rows of the factors that count.
    scale, step : float
        Of the weights' dtype.
    learn : bool
    """
    _, seeds, rows, _ = weights.shape
    in_place = learn and past_x.shape[2] == 0
    for s in range(seeds):
        w, y, c = weights[layer, s], x[layer, s], coefficients[layer, s]
        o, past, a = out[layer, s], past_x[layer, s], overlaps[s]
        _project(past, y, w.dtype.type(1), 0, used, a)
        _project_part(w, y, o, c, past_c[layer, s], a, used, scale, step, in_place, 0, rows)
        if learn and not in_place:
            _append(past, used, y)
            _append(past_c[layer, s], used, c)


@njit(parallel=True, cache=True)
def project_shared(
    weights: Array,
    x: Array,
    out: Array,
    coefficients: Array,
    past_x: Array,
    past_c: Array,
    overlaps: Array,
    layer: int,
    used: int,
    scale: float,
    step: float,
    learn: bool,
) -> None:
    """Compute what :func:`project` does, the work shared by all threads."""
    _, seeds, rows, columns = weights.shape
    parts = PARTS
    one = weights.dtype.type(1)
    in_place = learn and past_x.shape[2] == 0
    if used * columns * x.shape[2] * seeds < _SERIAL_BELOW:
        for s in range(seeds):
            _project(past_x[layer, s], x[layer, s], one, 0, used, overlaps[s])
    else:
        for task in prange(seeds * parts):
            s, part = task // parts, task % parts
            first, last = _bound(part, parts, used), _bound(part + 1, parts, used)
            _project(past_x[layer, s], x[layer, s], one, first, last, overlaps[s])
    for task in prange(seeds * parts):
        s, part = task // parts, task % parts
        _project_part(
            weights[layer, s],
            x[layer, s],
            out[layer, s],
            coefficients[layer, s],
            past_c[layer, s],
            overlaps[s],
            used,
            scale,
            step,
            in_place,
            _bound(part, parts, rows),
            _bound(part + 1, parts, rows),
        )
    if learn and not in_place:
        for s in range(seeds):
            _append(past_x[layer, s], used, x[layer, s])
            _append(past_c[layer, s], used, coefficients[layer, s])


@njit(cache=True)
def expand(
    weights: Array,
    coefficients: Array,
    base: Array,
    out: Array,
    x: Array,
    past_x: Array,
    past_c: Array,
    overlaps: Array,
    partial: Array,
    layer: int,
    used: int,
    gain: float,
    step: float,
    learn: bool,
) -> None:
    """Compute ``out[n, d] = base[n, d] + gain * sum_m coefficients[n, m] weights[m, d]``.

    With `learn`, then take the gradient step as :func:`project` does.

    Parameters
    ----------
    weights : ndarray, shape (L, S, m, d)
    coefficients : ndarray, shape (L, S, n, m)
    base : ndarray, shape (L, S, n, d)
    out : ndarray, shape (L, S, n, d)
        Overwritten.
    x : ndarray, shape (L, S, n, d)
        The states of the gradient step.
    past_x, past_c : ndarray, shape (L, S, room, d) and (L, S, room, m)
        Factors of the steps that the weights themselves do not have.
    overlaps : ndarray, shape (S, n, room)
        Scratch.
    partial : ndarray, shape (S, PARTS, n, at least d)
        Scratch.
    layer : int
    used : int
        Rows of the factors that count.
    gain, step : float
        Of the weights' dtype.
    learn : bool
    """
    seeds = weights.shape[1]
    in_place = learn and past_x.shape[2] == 0
    for s in range(seeds):
        w, c, y = weights[layer, s], coefficients[layer, s], x[layer, s]
        past, a, total = past_x[layer, s], overlaps[s], partial[s]
        _project(past_c[layer, s], c, w.dtype.type(1), 0, used, a)
        _expand_part(w, c, y, total[0], past, a, used, step, in_place, 0, 1)
        _gather(base[layer, s], gain, total[:1], out[layer, s])
        if learn and not in_place:
            _append(past, used, y)
            _append(past_c[layer, s], used, c)


@njit(parallel=True, cache=True)
def expand_shared(
    weights: Array,
    coefficients: Array,
    base: Array,
    out: Array,
    x: Array,
    past_x: Array,
    past_c: Array,
    overlaps: Array,
    partial: Array,
    layer: int,
    used: int,
    gain: float,
    step: float,
    learn: bool,
) -> None:
    """Compute what :func:`expand` does, the work shared by all threads."""
    _, seeds, rows, _ = weights.shape
    parts = PARTS
    one = weights.dtype.type(1)
    in_place = learn and past_x.shape[2] == 0
    if used * rows * x.shape[2] * seeds < _SERIAL_BELOW:
        for s in range(seeds):
            _project(past_c[layer, s], coefficients[layer, s], one, 0, used, overlaps[s])
    else:
        for task in prange(seeds * parts):
            s, part = task // parts, task % parts
            first, last = _bound(part, parts, used), _bound(part + 1, parts, used)
            _project(past_c[layer, s], coefficients[layer, s], one, first, last, overlaps[s])
    for task in prange(seeds * parts):
        s, part = task // parts, task % parts
        _expand_part(
            weights[layer, s],
            coefficients[layer, s],
            x[layer, s],
            partial[s, part],
            past_x[layer, s],
            overlaps[s],
            used,
            step,
            in_place,
            part,
            parts,
        )
    for s in range(seeds):
        _gather(base[layer, s], gain, partial[s], out[layer, s])
    if learn and not in_place:
        for s in range(seeds):
            _append(past_x[layer, s], used, x[layer, s])
            _append(past_c[layer, s], used, coefficients[layer, s])
