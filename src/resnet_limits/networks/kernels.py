"""Products of the block weights with a few rows of states, each reading the weights once.

Matrix libraries reach a fraction of the memory bandwidth and of the matrix rate on products as thin
as those of a few samples. These kernels, compiled for the processor at hand, go along the weights
a few rows at a time, all seeds of a layer in one call. Their innermost loops are written as vector
code: a tile keeps the sums or the coefficients of a few rows in registers while it goes along these
rows once, and asks for the rows that come next while it computes. That overlaps memory with
arithmetic, which for a few samples take about the same time, and compilers arrive at neither.
Plain loops in the best tiles found, compiled by numba, take 1.06 to 1.44 times as much processor
time with one sample and 1.08 to 2.02 times with ten (``benchmarks/llvm_kernels.py``).
Vectors are as wide as the processor's registers. NaN and infinity keep their meaning.

Weights are ``(L, S, m, d)``, states ``(L, S, n, d)`` and coefficients ``(L, S, n, m)``, all
C-contiguous and of one dtype; a kernel works on one layer. Gradient steps are taken in place, while
the weight rows at work are in the cache, or are kept as factors: then the weights are ``initial * W
+ sum_r factors[r] past_c[r, m] past_x[r, d]`` over the rows r of earlier steps. The order of sums
does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from resnet_limits.jit import compiled

Array = NDArray[np.floating]

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


_HAS_32_WIDE_REGISTERS = llvm.get_host_cpu_features().get("avx512f", False)
_BYTES = 64 if _HAS_32_WIDE_REGISTERS else 32

# Weight rows and most states of a tile: what the registers hold.
ROWS, STATES = 4, 5 if _HAS_32_WIDE_REGISTERS else 2

_INDEX = ir.IntType(64)
_INT = ir.IntType(32)
_POINTER = ir.IntType(8).as_pointer()


class _Matrix:
    """A C-contiguous matrix from one of its entries on, in code that is being written."""

    def __init__(self, context, builder, kind, value, row, column=None) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.builder = builder
        self.columns = cgutils.unpack_tuple(builder, array.shape, 2)[1]
        self.start = builder.gep(array.data, [builder.mul(row, self.columns)])
        if column is not None:
            self.start = builder.gep(self.start, [column])

    def row(self, index):
        """Pointer to the start of a row."""
        offset = _INDEX(index) if isinstance(index, int) else index
        return self.builder.gep(self.start, [self.builder.mul(self.columns, offset)])

    def entry(self, row, column):
        """Pointer to an entry."""
        return self.builder.gep(self.row(row), [_INDEX(column)])


class _Vectors:
    """Writes operations on vectors; those with a mask leave out the lanes beyond the end."""

    def __init__(self, context, builder, dtype) -> None:
        self.builder = builder
        self.scalar = context.get_data_type(dtype)
        self.size = context.get_abi_sizeof(self.scalar)
        self.lanes = _BYTES // self.size
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.name = f"v{self.lanes}f{8 * self.size}"

    def _call(self, name, result, *arguments, fastmath=()):
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments, fastmath=fastmath)

    def load(self, pointer, mask):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(pointer, align=self.size)
        name = f"llvm.masked.load.{self.name}.p0"
        return self._call(name, self.vector, pointer, _INT(self.size), mask, self.vector(None))

    def store(self, value, pointer, mask) -> None:
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, pointer, align=self.size)
            return
        name = f"llvm.masked.store.{self.name}.p0"
        self._call(name, ir.VoidType(), value, pointer, _INT(self.size), mask)

    def prefetch(self, start, column, pace, row) -> None:
        """Ask for the vector that is due at a column and row of a tile.

        Rows that follow each other in memory are asked for in the order of their addresses, `pace`
        vectors for each of the tile's: the machine's own prefetching keeps up with one stream, not
        with one in each row. They go to the second cache: the first is for the rows at work.
        """
        builder = self.builder
        offset = builder.add(builder.mul(column, pace), _INDEX(row * self.lanes))
        there = builder.bitcast(builder.gep(start, [offset]), _POINTER)
        self._call("llvm.prefetch.p0", ir.VoidType(), there, _INT(0), _INT(2), _INT(1))

    def multiply_add(self, x, y, total):
        return self._call(f"llvm.fma.{self.name}", self.vector, x, y, total)

    def splat(self, value):
        kind = ir.VectorType(value.type, self.lanes)
        empty = ir.Constant(kind, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(_INT, self.lanes), [0] * self.lanes)
        first = self.builder.insert_element(empty, value, _INT(0))
        return self.builder.shuffle_vector(first, empty, zeros)

    def sum(self, value):
        name = f"llvm.vector.reduce.fadd.{self.name}"
        return self._call(name, self.scalar, self.scalar(-0.0), value, fastmath=("reassoc",))

    def along(self, columns, body: Callable) -> None:
        """Write ``body(column, mask)`` for a row's whole vectors, then for its rest."""
        builder = self.builder
        whole = builder.and_(columns, _INDEX(-self.lanes))
        step = _INDEX(self.lanes)
        with cgutils.for_range_slice(builder, _INDEX(0), whole, step) as (column, _):
            body(column, None)
        rest = builder.sub(columns, whole)
        with builder.if_then(builder.icmp_signed(">", rest, _INDEX(0))):
            lanes = ir.Constant(ir.VectorType(_INDEX, self.lanes), list(range(self.lanes)))
            body(whole, builder.icmp_signed("<", lanes, self.splat(rest)))


@intrinsic(prefer_literal=True)
def _dots(_, rows, states, weights, m, x, n, scale, ahead, pace, out):
    """``out[n + j, m + i] = scale * sum_d weights[m + i, d] x[n + j, d]``, i < rows, j < states.

    `rows` and `states` are literal. What lies `ahead` numbers further on is asked for at a `pace`.
    """
    count, width = rows.literal_value, states.literal_value
    kinds = (rows, states, weights, m, x, n, scale, ahead, pace, out)

    def write(context, builder, _, arguments):
        _, _, weights_at, m_at, x_at, n_at, scale_at, ahead_at, pace_at, out_at = arguments
        v = _Vectors(context, builder, weights.dtype)
        w = _Matrix(context, builder, weights, weights_at, m_at)
        y = _Matrix(context, builder, x, x_at, n_at)
        sums = [
            [cgutils.alloca_once_value(builder, v.vector(None)) for _ in range(width)]
            for _ in range(count)
        ]
        w_rows, y_rows = [w.row(i) for i in range(count)], [y.row(j) for j in range(width)]
        start = builder.gep(w_rows[0], [ahead_at])

        def body(column, mask):
            ys = [v.load(builder.gep(row, [column]), mask) for row in y_rows]
            for i, (row, row_sums) in enumerate(zip(w_rows, sums, strict=True)):
                here = builder.gep(row, [column])
                value = v.load(here, mask)
                if mask is None:
                    v.prefetch(start, column, pace_at, i)
                for place, other in zip(row_sums, ys, strict=True):
                    builder.store(v.multiply_add(value, other, builder.load(place)), place)

        v.along(w.columns, body)
        o = _Matrix(context, builder, out, out_at, n_at, m_at)
        for i in range(count):
            for j in range(width):
                total = builder.fmul(scale_at, v.sum(builder.load(sums[i][j])))
                builder.store(total, o.entry(j, i))
        return context.get_dummy_value()

    return types.void(*kinds), write


@intrinsic(prefer_literal=True)
def _add(_, targets, sources, to, t, source, s, coefficients, swapped, scale, lo, hi, ahead, pace):
    """Add rows of `source` times coefficients to rows of `to`, over columns lo..hi-1.

    ``to[t + i, lo:hi] += scale * sum_j c(i, j) source[s + j, lo:hi]`` for i < targets and
    j < sources, with ``c(i, j) = coefficients[t + i, s + j]``, or if `swapped`, its transpose's.
    `targets`, `sources` and `swapped` are literal. What lies `ahead` numbers further on in `source`
    is asked for at a `pace`.
    """
    count, width, transposed = (kind.literal_value for kind in (targets, sources, swapped))
    kinds = (
        *(targets, sources, to, t, source, s),
        *(coefficients, swapped, scale, lo, hi, ahead, pace),
    )

    def write(context, builder, _, arguments):
        _, _, to_at, t_at, source_at, s_at, c_at, _, scale_at, lo_at, hi_at, *asked = arguments
        v = _Vectors(context, builder, to.dtype)
        target = _Matrix(context, builder, to, to_at, t_at, lo_at)
        values = _Matrix(context, builder, source, source_at, s_at, lo_at)
        first = (s_at, t_at) if transposed else (t_at, s_at)
        c = _Matrix(context, builder, coefficients, c_at, *first)

        def coefficient(i, j):
            place = c.entry(j, i) if transposed else c.entry(i, j)
            return v.splat(builder.fmul(scale_at, builder.load(place)))

        factors = [[coefficient(i, j) for j in range(width)] for i in range(count)]
        rows = [values.row(j) for j in range(width)]
        target_rows = [target.row(i) for i in range(count)]
        ahead_at, pace_at = asked
        start = builder.gep(rows[0], [ahead_at])

        def body(column, mask):
            xs = []
            for j, row in enumerate(rows):
                here = builder.gep(row, [column])
                xs.append(v.load(here, mask))
                if mask is None:
                    v.prefetch(start, column, pace_at, j)
            for row, row_factors in zip(target_rows, factors, strict=True):
                place = builder.gep(row, [column])
                total = v.load(place, mask)
                for factor, x in zip(row_factors, xs, strict=True):
                    total = v.multiply_add(factor, x, total)
                v.store(total, place, mask)

        v.along(builder.sub(hi_at, lo_at), body)
        return context.get_dummy_value()

    return types.void(*kinds), write


@njit
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


@njit
def _project(weights, x, scale, first, last, out):
    """``out[n, m] = scale * weights[m] . x[n]`` for m in first..last-1."""
    states = len(x)
    groups = (states + STATES - 1) // STATES
    whole = last - (last - first) % ROWS
    # Divisions take as long as a tile of a small matrix.
    n, size = 0, states
    ahead, pace = _ask(0, groups, weights.shape[1])
    for m in range(first, whole, ROWS):
        for group in range(groups):
            if groups > 1:
                ahead, pace = _ask(group, groups, weights.shape[1])
                n = group * states // groups
                size = (group + 1) * states // groups - n
            if size == 1:
                _dots(ROWS, 1, weights, m, x, n, scale, ahead, pace, out)
            elif size == 2:
                _dots(ROWS, 2, weights, m, x, n, scale, ahead, pace, out)
            elif size == 3:
                _dots(ROWS, 3, weights, m, x, n, scale, ahead, pace, out)
            elif size == 4:
                _dots(ROWS, 4, weights, m, x, n, scale, ahead, pace, out)
            else:
                _dots(ROWS, 5, weights, m, x, n, scale, ahead, pace, out)
    for m in range(whole, last):
        for n in range(states):
            _dots(1, 1, weights, m, x, n, scale, 0, 0, out)


@njit
def _expand(source, coefficients, scale, first, last, lo, hi, out):
    """``out[n] += scale * sum_m coefficients[n, m] source[m]``, columns lo..hi-1 of both."""
    states = len(out)
    groups = (states + STATES - 1) // STATES
    whole = last - (last - first) % ROWS
    c = coefficients
    n, size = 0, states
    ahead, pace = _ask(0, groups, source.shape[1])
    for m in range(first, whole, ROWS):
        for group in range(groups):
            if groups > 1:
                ahead, pace = _ask(group, groups, source.shape[1])
                n = group * states // groups
                size = (group + 1) * states // groups - n
            if size == 1:
                _add(1, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead, pace)
            elif size == 2:
                _add(2, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead, pace)
            elif size == 3:
                _add(3, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead, pace)
            elif size == 4:
                _add(4, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead, pace)
            else:
                _add(5, ROWS, out, n, source, m, c, False, scale, lo, hi, ahead, pace)
    for m in range(whole, last):
        for n in range(states):
            _add(1, 1, out, n, source, m, c, False, scale, lo, hi, 0, 0)


@njit
def _update(weights, coefficients, x, step, first, last):
    """``weights[m] += step * sum_n coefficients[n, m] x[n]`` for m in first..last-1."""
    states, columns = x.shape
    whole = last - (last - first) % ROWS
    c = coefficients
    for m in range(first, whole, ROWS):
        n = 0
        while n + 4 <= states:
            _add(ROWS, 4, weights, m, x, n, c, True, step, 0, columns, 0, 0)
            n += 4
        if n + 2 <= states:
            _add(ROWS, 2, weights, m, x, n, c, True, step, 0, columns, 0, 0)
            n += 2
        if n < states:
            _add(ROWS, 1, weights, m, x, n, c, True, step, 0, columns, 0, 0)
    for m in range(whole, last):
        for n in range(states):
            _add(1, 1, weights, m, x, n, c, True, step, 0, columns, 0, 0)


@njit
def _bound(part, parts, rows):
    """First row of a part: a multiple of a tile's, so that only the last part has rows left."""
    return rows if part == parts else part * rows // parts // ROWS * ROWS


@njit
def _overlap(past, states, factors, first, last, out):
    """``out[n, r] = factors[r] * past[r] . states[n]`` for r in first..last-1."""
    _project(past, states, states.dtype.type(1), first, last, out)
    for n in range(len(states)):
        for r in range(first, last):
            out[n, r] *= factors[r]


@njit
def _project_part(w, x, out, c, past, layer, s, used, scale, step, update, first, last):
    """Project on the weight rows first..last-1; update them where that is asked for."""
    block = _BLOCK if update else max(1, last - first)
    for start in range(first, last, block):
        stop = min(last, start + block)
        _project(w, x, scale, start, stop, out)
        if update:
            _update(w, c, x, step, start, stop)
    if past is not None and used:
        _, past_c, overlaps, _ = past
        _expand(past_c[layer, s], overlaps[s], w.dtype.type(1), 0, used, first, last, out)


@njit
def _expand_part(w, c, x, partial, past, layer, s, used, initial, step, update, part, parts):
    """Sum up one part of the weight rows and of the factors; update where that is asked for."""
    columns = w.shape[1]
    partial[:] = 0
    first, last = _bound(part, parts, len(w)), _bound(part + 1, parts, len(w))
    block = _BLOCK if update else max(1, last - first)
    for start in range(first, last, block):
        stop = min(last, start + block)
        _expand(w, c, initial, start, stop, 0, columns, partial)
        if update:
            _update(w, c, x, step, start, stop)
    if past is not None and used:
        past_x, _, overlaps, _ = past
        first, last = _bound(part, parts, used), _bound(part + 1, parts, used)
        _expand(past_x[layer, s], overlaps[s], w.dtype.type(1), first, last, 0, columns, partial)


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


@compiled()
def project(
    weights: Array,
    x: Array,
    out: Array,
    coefficients: Array,
    past: tuple[Array, Array, Array, Array] | None,
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
    weights : ndarray, shape (L, S, m, d)
    x : ndarray, shape (L, S, n, d)
    out : ndarray, shape (L, S, n, m)
        Overwritten.
    coefficients : ndarray, shape (L, S, n, m)
    past : tuple of ndarray, or None
        The factors of the steps that the weights themselves do not have: their states (L, S, room,
        d) and coefficients (L, S, room, m), scratch (S, n, room), and what each of their rows
        counts times `scale`, (room,).
    layer : int
    used : int
        Rows of the factors that count.
    scale, step : float
        Of the weights' dtype; `scale` times what the weights themselves count.
    learn : bool
    """
    _, seeds, rows, _ = weights.shape
    for s in range(seeds):
        w, y, c, o = weights[layer, s], x[layer, s], coefficients[layer, s], out[layer, s]
        if past is not None:
            past_x, _, overlaps, factors = past
            _overlap(past_x[layer, s], y, factors, 0, used, overlaps[s])
        _project_part(w, y, o, c, past, layer, s, used, scale, step, learn, 0, rows)


@compiled(parallel=True)
def _overlap_shared(
    past: Array, states: Array, overlaps: Array, factors: Array, layer: int, used: int
) -> None:
    """Compute what :func:`_overlap` does, of all seeds, by all threads where that pays."""
    _, seeds, rows, columns = states.shape
    parts = PARTS
    if used * columns * rows * seeds < _SERIAL_BELOW:
        for s in range(seeds):
            _overlap(past[layer, s], states[layer, s], factors, 0, used, overlaps[s])
    else:
        for task in prange(seeds * parts):
            s, part = task // parts, task % parts
            first, last = _bound(part, parts, used), _bound(part + 1, parts, used)
            _overlap(past[layer, s], states[layer, s], factors, first, last, overlaps[s])


@compiled(parallel=True)
def project_shared(
    weights: Array,
    x: Array,
    out: Array,
    coefficients: Array,
    past: tuple[Array, Array, Array, Array] | None,
    layer: int,
    used: int,
    scale: float,
    step: float,
    learn: bool,
) -> None:
    """Compute what :func:`project` does, the work shared by all threads."""
    _, seeds, rows, _ = weights.shape
    parts = PARTS
    if past is not None:
        past_x, _, overlaps, factors = past
        _overlap_shared(past_x, x, overlaps, factors, layer, used)
    for task in prange(seeds * parts):
        s, part = task // parts, task % parts
        _project_part(
            weights[layer, s],
            x[layer, s],
            out[layer, s],
            coefficients[layer, s],
            past,
            layer,
            s,
            used,
            scale,
            step,
            learn,
            _bound(part, parts, rows),
            _bound(part + 1, parts, rows),
        )


@compiled()
def expand(
    weights: Array,
    coefficients: Array,
    base: Array,
    out: Array,
    x: Array,
    partial: Array,
    past: tuple[Array, Array, Array, Array] | None,
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
    weights : ndarray, shape (L, S, m, d)
    coefficients : ndarray, shape (L, S, n, m)
    base : ndarray, shape (L, S, n, d)
    out : ndarray, shape (L, S, n, d)
        Overwritten; may be `base`.
    x : ndarray, shape (L, S, n, d)
        The states of the gradient step.
    partial : ndarray, shape (S, PARTS, n, at least d)
        Scratch.
    past : tuple of ndarray, or None
        As for :func:`project`; what its rows count is not scaled.
    layer : int
    used : int
        Rows of the factors that count.
    gain, initial, step : float
        Of the weights' dtype; `initial` is what the weights themselves count.
    learn : bool
    """
    seeds = weights.shape[1]
    for s in range(seeds):
        w, c, y = weights[layer, s], coefficients[layer, s], x[layer, s]
        total = partial[s]
        if past is not None:
            _, past_c, overlaps, factors = past
            _overlap(past_c[layer, s], c, factors, 0, used, overlaps[s])
        _expand_part(w, c, y, total[0], past, layer, s, used, initial, step, learn, 0, 1)
        _gather(base[layer, s], gain, total[:1], out[layer, s])


@compiled(parallel=True)
def expand_shared(
    weights: Array,
    coefficients: Array,
    base: Array,
    out: Array,
    x: Array,
    partial: Array,
    past: tuple[Array, Array, Array, Array] | None,
    layer: int,
    used: int,
    gain: float,
    initial: float,
    step: float,
    learn: bool,
) -> None:
    """Compute what :func:`expand` does, the work shared by all threads."""
    seeds, parts = weights.shape[1], PARTS
    if past is not None:
        _, past_c, overlaps, factors = past
        _overlap_shared(past_c, coefficients, overlaps, factors, layer, used)
    for task in prange(seeds * parts):
        s, part = task // parts, task % parts
        _expand_part(
            weights[layer, s],
            coefficients[layer, s],
            x[layer, s],
            partial[s, part],
            past,
            layer,
            s,
            used,
            initial,
            step,
            learn,
            part,
            parts,
        )
    for s in range(seeds):
        _gather(base[layer, s], gain, partial[s], out[layer, s])
