"""Products of the block weights with a few rows of states, each reading the weights once.

Matrix libraries reach a fraction of the memory bandwidth and of the matrix rate on products as thin
as those of a few samples. These kernels, compiled for the processor at hand, go along the weights
a few rows at a time, all seeds of a layer in one call; their innermost loops are vector code
(:mod:`~resnet_limits.networks.vectors`). Plain loops in the best tiles found, compiled by numba,
take 1.06 to 1.44 times as much processor time with one sample and 1.08 to 2.02 times with ten
(``benchmarks/llvm_kernels.py``). NaN and infinity keep their meaning.

Weights are ``(L S m, d)``, states ``(L S n, d)`` and coefficients ``(L S n, m)``: the rows of all
layers and seeds below each other, C-contiguous and of one dtype. Making a view of one seed's rows
would take as long as a product of a small network. A kernel works on one layer. Gradient steps are
taken in place, while the weight rows at work are in the cache, or are kept as factors: then the
weights are ``initial * W + sum_r factors[r] past_c[r, m] past_x[r, d]`` over the rows r of earlier
steps. The order of sums does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray

from resnet_limits.jit import compiled
from resnet_limits.networks.vectors import ROWS, STATES, add, dots

# What only compiled functions call needs no code to be called from elsewhere.
INNER: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

Array = NDArray[np.floating]
Past = tuple[Array, Array, Array, Array]
"""Factors of the steps that the weights themselves do not have: their states ``(L S room, d)`` and
coefficients ``(L S room, m)``, scratch ``(S n, room)``, and what each of their rows counts,
``(room,)``."""

_AVAILABLE_THREADS: int = numba.get_num_threads()
# Weight rows that are worked on between two tasks on them.
_BLOCK = 16
# Numbers between the rows at work and those that are asked for: the time that memory takes.
_AHEAD = 2048
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


@njit(**INNER)
def _ask(group, groups, columns):
    """How far ahead a group of states asks for rows, and at what pace.

    A tile asks for as many rows as it has, about `_AHEAD` numbers further on: one group of states
    for all of them, of several the first for one half and the second for the other, so that memory
    is busy for longer.
    """
    tile = ROWS * columns
    ahead = tile * max(1, _AHEAD // tile)
    if groups == 1:
        return ahead, ROWS
    if group > 1:
        return 0, 0
    return ahead + group * tile // 2, ROWS // 2


@njit(**INNER)
def _project_rows(weights, w, x, n, states, scale, first, last, out, o):
    """``out[o + j, m] = scale * weights[w + m] . x[n + j]``, m in first..last-1, j < states."""
    groups = (states + STATES - 1) // STATES
    whole = last - (last - first) % ROWS
    # Divisions take as long as a tile of a small matrix.
    j, size = 0, states
    ahead, pace = _ask(0, groups, weights.shape[1])
    for m in range(first, whole, ROWS):
        for group in range(groups):
            if groups > 1:
                ahead, pace = _ask(group, groups, weights.shape[1])
                j = group * states // groups
                size = (group + 1) * states // groups - j
            if size == 1:
                dots(ROWS, 1, weights, w + m, x, n + j, scale, ahead, pace, out, o + j, m)
            elif size == 2:
                dots(ROWS, 2, weights, w + m, x, n + j, scale, ahead, pace, out, o + j, m)
            elif size == 3:
                dots(ROWS, 3, weights, w + m, x, n + j, scale, ahead, pace, out, o + j, m)
            elif size == 4:
                dots(ROWS, 4, weights, w + m, x, n + j, scale, ahead, pace, out, o + j, m)
            else:
                dots(ROWS, 5, weights, w + m, x, n + j, scale, ahead, pace, out, o + j, m)
    for m in range(whole, last):
        for j in range(states):
            dots(1, 1, weights, w + m, x, n + j, scale, 0, 0, out, o + j, m)


@njit(**INNER)
def _expand_rows(source, s, coefficients, n, states, scale, first, last, lo, hi, out, o):
    """``out[o + j] += scale * sum_m c[n + j, m] source[s + m]``, m in first..last-1, j < states.

    Columns lo..hi-1 of both.
    """
    groups = (states + STATES - 1) // STATES
    whole = last - (last - first) % ROWS
    c = coefficients
    j, size = 0, states
    ahead, pace = _ask(0, groups, source.shape[1])
    for m in range(first, whole, ROWS):
        at = s + m
        for group in range(groups):
            if groups > 1:
                ahead, pace = _ask(group, groups, source.shape[1])
                j = group * states // groups
                size = (group + 1) * states // groups - j
            t, k = o + j, n + j
            if size == 1:
                add(1, ROWS, out, t, source, at, c, k, m, False, scale, lo, hi, ahead, pace)
            elif size == 2:
                add(2, ROWS, out, t, source, at, c, k, m, False, scale, lo, hi, ahead, pace)
            elif size == 3:
                add(3, ROWS, out, t, source, at, c, k, m, False, scale, lo, hi, ahead, pace)
            elif size == 4:
                add(4, ROWS, out, t, source, at, c, k, m, False, scale, lo, hi, ahead, pace)
            else:
                add(5, ROWS, out, t, source, at, c, k, m, False, scale, lo, hi, ahead, pace)
    for m in range(whole, last):
        for j in range(states):
            add(1, 1, out, o + j, source, s + m, c, n + j, m, False, scale, lo, hi, 0, 0)


@njit(**INNER)
def _update_rows(weights, w, coefficients, x, n, states, step, first, last):
    """``weights[w + m] += step * sum_j c[n + j, m] x[n + j]``, m in first..last-1, j < states."""
    columns = x.shape[1]
    whole = last - (last - first) % ROWS
    c = coefficients
    for m in range(first, whole, ROWS):
        j = n
        while j + 4 <= n + states:
            add(ROWS, 4, weights, w + m, x, j, c, j, m, True, step, 0, columns, 0, 0)
            j += 4
        if j + 2 <= n + states:
            add(ROWS, 2, weights, w + m, x, j, c, j, m, True, step, 0, columns, 0, 0)
            j += 2
        if j < n + states:
            add(ROWS, 1, weights, w + m, x, j, c, j, m, True, step, 0, columns, 0, 0)
    for m in range(whole, last):
        for j in range(n, n + states):
            add(1, 1, weights, w + m, x, j, c, j, m, True, step, 0, columns, 0, 0)


@njit(**INNER)
def bound(part, parts, rows):
    """First row of a part: a multiple of a tile's, so that only the last part has rows left."""
    return rows if part == parts else part * rows // parts // ROWS * ROWS


@njit(**INNER)
def _overlap(past, at, states, n, count, factors, first, last, out, o):
    """``out[o + j, r] = factors[r] * past[at + r] . states[n + j]``, r in first..last-1."""
    _project_rows(past, at, states, n, count, states.dtype.type(1), first, last, out, o)
    for j in range(o, o + count):
        for r in range(first, last):
            out[j, r] *= factors[r]


@njit(**INNER)
def overlap(past, x, sizes, layer, s, used):
    """Compute the overlaps of one seed's states with those of the factors, for `project_part`."""
    seeds, n = sizes
    past_x, _, overlaps, factors = past
    index = layer * seeds + s
    _overlap(past_x, index * len(factors), x, index * n, n, factors, 0, used, overlaps, s * n)


@njit(**INNER)
def project_part(weights, x, out, c, past, sizes, layer, s, used, scale, step, learn, first, last):
    """Project one seed's states on the weight rows first..last-1; update these if it learns."""
    seeds, n = sizes
    index = layer * seeds + s
    w, at = index * out.shape[1], index * n
    block = _BLOCK if learn else max(1, last - first)
    for start in range(first, last, block):
        stop = min(last, start + block)
        _project_rows(weights, w, x, at, n, scale, start, stop, out, at)
        if learn:
            _update_rows(weights, w, c, x, at, n, step, start, stop)
    if past is not None and used:
        _, past_c, overlaps, factors = past
        one, row = x.dtype.type(1), index * len(factors)
        _expand_rows(past_c, row, overlaps, s * n, n, one, 0, used, first, last, out, at)


@njit(**INNER)
def expand_part(
    weights, c, x, partial, sizes, layer, s, initial, step, learn, first, last, part
):  # fmt: skip
    """Sum one seed's weight rows first..last-1 up, to one part; update these if it learns."""
    seeds, n = sizes
    index = layer * seeds + s
    w, at, to = index * c.shape[1], index * n, (s * PARTS + part) * n
    columns = weights.shape[1]
    for j in range(to, to + n):
        for d in range(columns):
            partial[j, d] = 0
    block = _BLOCK if learn else max(1, last - first)
    for start in range(first, last, block):
        stop = min(last, start + block)
        _expand_rows(weights, w, c, at, n, initial, start, stop, 0, columns, partial, to)
        if learn:
            _update_rows(weights, w, c, x, at, n, step, start, stop)


@njit(**INNER)
def expand_past(c, partial, past, sizes, layer, s, first, last, part):
    """Add the factors' rows first..last-1 to one part."""
    seeds, n = sizes
    index = layer * seeds + s
    past_x, past_c, overlaps, factors = past
    row, to = index * len(factors), (s * PARTS + part) * n
    one = partial.dtype.type(1)
    _overlap(past_c, row, c, index * n, n, factors, first, last, overlaps, s * n)
    _expand_rows(
        past_x, row, overlaps, s * n, n, one, first, last, 0, past_x.shape[1], partial, to
    )  # fmt: skip


@njit(**{**INNER, "fastmath": {"contract", "nsz"}})
def gather(base, gain, partial, out, sizes, layer, s, parts):
    """``out = base + gain * sum of the parts`` of one seed, the parts in their order."""
    seeds, n = sizes
    at, to = (layer * seeds + s) * n, s * PARTS * n
    for j in range(n):
        for d in range(out.shape[1]):
            total = partial[to + j, d]
            for part in range(1, parts):
                total += partial[to + part * n + j, d]
            out[at + j, d] = base[at + j, d] + gain * total


@compiled()
def project(
    weights: Array,
    x: Array,
    out: Array,
    coefficients: Array,
    past: Past | None,
    sizes: tuple[int, int],
    layer: int,
    used: int,
    scale: float,
    step: float,
    learn: bool,
) -> None:
    """Compute ``out[n, m] = scale * sum_d weights[m, d] x[n, d]`` for one layer and all seeds.

    With `learn`, then ``weights[m, d] += step * sum_n coefficients[n, m] x[n, d]``.

    Parameters
    ----------
    weights : ndarray, shape (L S m, d)
    x : ndarray, shape (L S n, d)
    out : ndarray, shape (L S n, m)
        Overwritten in the layer's rows.
    coefficients : ndarray, shape (L S n, m)
    past : tuple of ndarray, or None
        Factors (:data:`Past`), what their rows count times `scale`.
    sizes : tuple of int
        S and n.
    layer : int
    used : int
        Rows of the factors that count.
    scale, step : float
        Of the weights' dtype; `scale` times what the weights themselves count.
    learn : bool
    """
    for s in range(sizes[0]):
        if past is not None:
            overlap(past, x, sizes, layer, s, used)
        project_part(
            weights, x, out, coefficients, past, sizes, layer, s, used, scale, step, learn, 0,
            out.shape[1],
        )  # fmt: skip


@compiled(parallel=True)
def overlap_shared(past: Past, x: Array, sizes: tuple[int, int], layer: int, used: int) -> None:
    """Compute what :func:`overlap` does, of all seeds, by all threads where that pays."""
    seeds, n = sizes
    past_x, _, overlaps, factors = past
    parts = PARTS
    if used * x.shape[1] * n * seeds < _SERIAL_BELOW:
        for s in range(seeds):
            overlap(past, x, sizes, layer, s, used)
    else:
        for task in prange(seeds * parts):
            s, part = task // parts, task % parts
            first, last = bound(part, parts, used), bound(part + 1, parts, used)
            index = layer * seeds + s
            _overlap(
                past_x, index * len(factors), x, index * n, n, factors, first, last, overlaps, s * n
            )


@compiled(parallel=True)
def expand_past_shared(
    c: Array, partial: Array, past: Past, sizes: tuple[int, int], layer: int, used: int
) -> None:
    """Add the factors' rows of all seeds to the parts, by all threads where that pays."""
    seeds, n = sizes
    parts = PARTS
    if used * (c.shape[1] + partial.shape[1]) * n * seeds < _SERIAL_BELOW:
        for task in range(seeds * parts):
            s, part = task // parts, task % parts
            first, last = bound(part, parts, used), bound(part + 1, parts, used)
            expand_past(c, partial, past, sizes, layer, s, first, last, part)
    else:
        for task in prange(seeds * parts):
            s, part = task // parts, task % parts
            first, last = bound(part, parts, used), bound(part + 1, parts, used)
            expand_past(c, partial, past, sizes, layer, s, first, last, part)


@compiled(parallel=True)
def project_shared(
    weights: Array,
    x: Array,
    out: Array,
    coefficients: Array,
    past: Past | None,
    sizes: tuple[int, int],
    layer: int,
    used: int,
    scale: float,
    step: float,
    learn: bool,
) -> None:
    """Compute what :func:`project` does, the work shared by all threads."""
    rows = out.shape[1]
    parts = PARTS
    if past is not None:
        overlap_shared(past, x, sizes, layer, used)
    for task in prange(sizes[0] * parts):
        s, part = task // parts, task % parts
        first, last = bound(part, parts, rows), bound(part + 1, parts, rows)
        project_part(
            weights, x, out, coefficients, past, sizes, layer, s, used, scale, step, learn, first,
            last,
        )  # fmt: skip


@compiled()
def expand(
    weights: Array,
    coefficients: Array,
    base: Array,
    out: Array,
    x: Array,
    partial: Array,
    past: Past | None,
    sizes: tuple[int, int],
    layer: int,
    used: int,
    gain: float,
    initial: float,
    step: float,
    learn: bool,
) -> None:
    """Compute ``out[n, d] = base[n, d] + gain * sum_m coefficients[n, m] weights[m, d]``.

    With `learn`, then take the gradient step as :func:`project` does.

    Parameters
    ----------
    weights : ndarray, shape (L S m, d)
    coefficients : ndarray, shape (L S n, m)
    base : ndarray, shape (at least L S n, d)
    out : ndarray, shape (at least L S n, d)
        Overwritten in the layer's rows; may be `base`.
    x : ndarray, shape (at least L S n, d)
        The states of the gradient step.
    partial : ndarray, shape (S PARTS n, at least d)
        Scratch.
    past : tuple of ndarray, or None
        Factors (:data:`Past`); what their rows count is not scaled.
    sizes : tuple of int
        S and n.
    layer : int
    used : int
        Rows of the factors that count.
    gain, initial, step : float
        Of the weights' dtype; `initial` is what the weights themselves count.
    learn : bool
    """
    c = coefficients
    for s in range(sizes[0]):
        expand_part(
            weights, c, x, partial, sizes, layer, s, initial, step, learn, 0, c.shape[1], 0
        )  # fmt: skip
        if past is not None and used:
            expand_past(c, partial, past, sizes, layer, s, 0, used, 0)
        gather(base, gain, partial, out, sizes, layer, s, 1)


@compiled(parallel=True)
def expand_shared(
    weights: Array,
    coefficients: Array,
    base: Array,
    out: Array,
    x: Array,
    partial: Array,
    past: Past | None,
    sizes: tuple[int, int],
    layer: int,
    used: int,
    gain: float,
    initial: float,
    step: float,
    learn: bool,
) -> None:
    """Compute what :func:`expand` does, the work shared by all threads."""
    parts, rows = PARTS, coefficients.shape[1]
    for task in prange(sizes[0] * parts):
        s, part = task // parts, task % parts
        first, last = bound(part, parts, rows), bound(part + 1, parts, rows)
        expand_part(
            weights, coefficients, x, partial, sizes, layer, s, initial, step, learn, first, last,
            part,
        )  # fmt: skip
    if past is not None and used:
        expand_past_shared(coefficients, partial, past, sizes, layer, used)
    for s in range(sizes[0]):
        gather(base, gain, partial, out, sizes, layer, s, parts)
