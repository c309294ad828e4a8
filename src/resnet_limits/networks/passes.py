"""Passes of one branch over some layers in compiled code: products, units, and steps of weights.

Called product by product and unit by unit, a layer of a small network takes longer in calls than in
arithmetic, and one of a large network waits for its units while all threads but one are idle. Units
with code of their own (:mod:`resnet_limits.tiles`) are computed here between the products of
:mod:`~resnet_limits.networks.kernels`, in tiles of units: those of all seeds by one thread, or each
part of the weights and its units by one of several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from resnet_limits import tiles
from resnet_limits.jit import compiled
from resnet_limits.networks.kernels import (
    PARTS,
    bound,
    expand_part,
    expand_past,
    expand_past_shared,
    gather,
    overlap,
    overlap_shared,
    project_part,
)

# Units of a tile.
_TILE = 64
# What was made by the names of codes.
_SHARED: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {}


@njit(**tiles.INNER)
def _read(source, top, first, count, tile):
    """Copy the coefficients of some units, rows from `top` on, to a tile (vectors, rows, lanes)."""
    vectors, rows, _ = tile.shape
    if vectors == 1:
        # Written apart, so that it becomes a copy of whole vectors.
        for row in range(rows):
            for t in range(count):
                tile[0, row, t] = source[top + row, first + t]
        return
    for v in range(vectors):
        for row in range(rows):
            for t in range(count):
                tile[v, row, t] = source[top + row, (first + t) * vectors + v]


@njit(**tiles.INNER)
def _write(tile, vectors, rows, top, first, count, target):
    """Copy so many vectors of a tile to the coefficients of some units, rows from `top` on."""
    if vectors == 1:
        for row in range(rows):
            for t in range(count):
                target[top + row, first + t] = tile[0, row, t]
        return
    for v in range(vectors):
        for row in range(rows):
            for t in range(count):
                target[top + row, (first + t) * vectors + v] = tile[v, row, t]


@njit(**tiles.INNER)
def _room(code, vectors, rows, p):
    """Room for tiles of p, of values and of cotangents, of so many rows."""
    a, c = vectors
    lanes = min(_TILE, p.shape[1] // a)
    return (
        np.empty((a, rows, lanes), p.dtype),
        np.empty((c + tiles.kept(code), rows, lanes), p.dtype),
        np.empty((c, rows, lanes), p.dtype),
    )


@njit(**tiles.INNER)
def _activate(code, p, g, top, first, last, room):
    """Compute g of units first..last-1, of the rows from `top` on."""
    pre, values, cotangents = room
    rows = pre.shape[1]
    for start in range(first, last, _TILE):
        count = min(_TILE, last - start)
        _read(p, top, start, count, pre)
        tiles.forward(code, pre, values, count)
        _write(values, len(cotangents), rows, top, start, count, g)


@njit(**tiles.INNER)
def _pull_back(code, p, g, r, dp, top, first, last, room):
    """Compute dp of units first..last-1, of the rows from `top` on."""
    pre, values, cotangents = room
    rows = pre.shape[1]
    for start in range(first, last, _TILE):
        count = min(_TILE, last - start)
        _read(p, top, start, count, pre)
        if tiles.kept(code) == 0:
            _read(g, top, start, count, values)
        else:
            # What units need beside g costs less than to keep it for all layers.
            tiles.forward(code, pre, values, count)
        _read(r, top, start, count, cotangents)
        tiles.backward(code, pre, values, cotangents, count)
        _write(pre, len(pre), rows, top, start, count, dp)


@compiled()
def forward(code, vectors, arrays, partial, past_in, past_out, sizes, used, numbers, first, last):
    """Compute the states after the branch in layers first..last-1, one after the other.

    Parameters
    ----------
    code : NamedTuple
        The unit's compiled code.
    vectors : tuple of int
        a and c of the unit.
    arrays : tuple of ndarray
        I, O, u, h, the states after the branch, their cotangents, p, g and dp
        (:class:`~resnet_limits.networks.products.Arrays`), the rows of all layers and seeds below
        each other.
    partial : ndarray
        Scratch of :func:`~resnet_limits.networks.kernels.expand`.
    past_in, past_out : tuple, or None
        Factors of I and O, those of what is read times the scale of p.
    sizes : tuple of int
        Seeds, and rows of each.
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
    (seeds, rows), ins, outs = sizes, p.shape[1], g.shape[1]
    room = _room(code, vectors, seeds * rows, p)
    for layer in range(first, last):
        for s in range(seeds):
            if past_in is not None:
                overlap(past_in, u, sizes, layer, s, used)
            project_part(
                incoming, u, p, dp, past_in, sizes, layer, s, used, scale, scale, False, 0, ins
            )  # fmt: skip
        _activate(code, p, g, layer * seeds * rows, 0, ins // vectors[0], room)
        for s in range(seeds):
            expand_part(
                outgoing, g, next_b, partial, sizes, layer, s, initial, scale, False, 0, outs, 0
            )  # fmt: skip
            if past_out is not None and used:
                expand_past(g, partial, past_out, sizes, layer, s, 0, used, 0)
            gather(h, gain, partial, next_h, sizes, layer, s, 1)


@compiled()
def backward(
    code, vectors, arrays, partial, past_in, past_out, sizes, used, numbers, steps, learn, first,
    last,
):  # fmt: skip
    """Compute the cotangents before the branch in layers last-1..first, one after the other.

    Parameters
    ----------
    code, vectors, partial, sizes, used, first, last
        As for :func:`forward`.
    arrays : tuple of ndarray
        I, O, u, cotangents before and after the branch, what the former are added to (zeros, if
        that is they themselves), p, g, r and dp.
    past_in, past_out : tuple, or None
        Factors of I and O, those of what is read times the scale of r.
    numbers : tuple of float
        The scale of r, the gain of what is added, and what the weights I count.
    steps : tuple of float
        What the rows' products count in the steps of I and O.
    learn : tuple of bool
        Whether I and O take a step.
    """
    incoming, outgoing, u, b, next_b, base, p, g, r, dp = arrays
    scale, gain, initial = numbers
    (seeds, rows), ins, outs = sizes, p.shape[1], g.shape[1]
    room = _room(code, vectors, seeds * rows, p)
    for layer in range(last - 1, first - 1, -1):
        for s in range(seeds):
            if past_out is not None:
                overlap(past_out, next_b, sizes, layer, s, used)
            project_part(
                outgoing, next_b, r, g, past_out, sizes, layer, s, used, scale, steps[1], learn[1],
                0, outs,
            )  # fmt: skip
        _pull_back(code, p, g, r, dp, layer * seeds * rows, 0, ins // vectors[0], room)
        for s in range(seeds):
            expand_part(
                incoming, dp, u, partial, sizes, layer, s, initial, steps[0], learn[0], 0, ins, 0
            )  # fmt: skip
            if past_in is not None and used:
                expand_past(dp, partial, past_in, sizes, layer, s, 0, used, 0)
            gather(base, gain, partial, b, sizes, layer, s, 1)


def shared(code: NamedTuple) -> tuple[Callable[..., None], Callable[..., None]]:
    """Give :func:`forward` and :func:`backward` with the work on a layer shared by all threads.

    The loops that numba shares take no nested tuples: the code is a constant of theirs, not an
    argument.

    Parameters
    ----------
    code : NamedTuple
        The unit's compiled code.

    Returns
    -------
    tuple of callable
        They take what `forward` and `backward` take after the code.
    """
    # Named tuples of different kinds may be equal.
    name = repr(code)
    if name not in _SHARED:
        _SHARED[name] = _make_shared(code, name)
    return _SHARED[name]


def _make_shared(code: NamedTuple, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    def forward_shared(
        vectors, arrays, partial, past_in, past_out, sizes, used, numbers, first, last
    ):
        incoming, outgoing, u, h, next_h, next_b, p, g, dp = arrays
        scale, gain, initial = numbers
        a, c = vectors
        seeds, rows = sizes
        parts, units = PARTS, p.shape[1] // a
        for layer in range(first, last):
            if past_in is not None:
                overlap_shared(past_in, u, sizes, layer, used)
            for task in prange(seeds * parts):
                s, part = task // parts, task % parts
                lo, hi = bound(part, parts, units), bound(part + 1, parts, units)
                project_part(
                    incoming, u, p, dp, past_in, sizes, layer, s, used, scale, scale, False, a * lo,
                    a * hi,
                )  # fmt: skip
                top = (layer * seeds + s) * rows
                _activate(code, p, g, top, lo, hi, _room(code, vectors, rows, p))
                expand_part(
                    outgoing, g, next_b, partial, sizes, layer, s, initial, scale, False, c * lo,
                    c * hi, part,
                )  # fmt: skip
            if past_out is not None and used:
                expand_past_shared(g, partial, past_out, sizes, layer, used)
            for s in range(seeds):
                gather(h, gain, partial, next_h, sizes, layer, s, parts)

    def backward_shared(
        vectors, arrays, partial, past_in, past_out, sizes, used, numbers, steps, learn, first, last
    ):  # fmt: skip
        incoming, outgoing, u, b, next_b, base, p, g, r, dp = arrays
        scale, gain, initial = numbers
        a, c = vectors
        seeds, rows = sizes
        parts, units = PARTS, p.shape[1] // a
        step_in, step_out = steps
        learn_in, learn_out = learn
        for layer in range(last - 1, first - 1, -1):
            if past_out is not None:
                overlap_shared(past_out, next_b, sizes, layer, used)
            for task in prange(seeds * parts):
                s, part = task // parts, task % parts
                lo, hi = bound(part, parts, units), bound(part + 1, parts, units)
                project_part(
                    outgoing, next_b, r, g, past_out, sizes, layer, s, used, scale, step_out,
                    learn_out, c * lo, c * hi,
                )  # fmt: skip
                top = (layer * seeds + s) * rows
                _pull_back(code, p, g, r, dp, top, lo, hi, _room(code, vectors, rows, p))
                expand_part(
                    incoming, dp, u, partial, sizes, layer, s, initial, step_in, learn_in, a * lo,
                    a * hi, part,
                )  # fmt: skip
            if past_in is not None and used:
                expand_past_shared(dp, partial, past_in, sizes, layer, used)
            for s in range(seeds):
                gather(base, gain, partial, b, sizes, layer, s, parts)

    # In the cache compiled code is told apart by name.
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    for function in (forward_shared, backward_shared):
        function.__qualname__ = f"{function.__name__}_{digest}"
    return compiled(parallel=True)(forward_shared), compiled(parallel=True)(backward_shared)
