"""Vector code of the products' innermost loops, written for the processor at hand.

A tile keeps the sums or the coefficients of a few rows in registers while it goes along these rows
once, and asks for the rows that come next while it computes. That overlaps memory with arithmetic,
which for a few samples take about the same time, and compilers arrive at neither. Vectors are as
wide as the processor's registers. NaN and infinity keep their meaning. Matrices are C-contiguous;
rows are given by the number of the first.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

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
def dots(_, rows, states, weights, w, x, n, scale, ahead, pace, out, o, m):
    """``out[o + j, m + i] = scale * sum_d weights[w + i, d] x[n + j, d]``, i < rows, j < states.

    `rows` and `states` are literal. What lies `ahead` numbers further on is asked for at a `pace`.
    """
    count, width = rows.literal_value, states.literal_value
    kinds = (rows, states, weights, w, x, n, scale, ahead, pace, out, o, m)

    def write(context, builder, _, arguments):
        _, _, weights_at, w_at, x_at, n_at, scale_at, ahead_at, pace_at, *places = arguments
        v = _Vectors(context, builder, weights.dtype)
        values = _Matrix(context, builder, weights, weights_at, w_at)
        y = _Matrix(context, builder, x, x_at, n_at)
        sums = [
            [cgutils.alloca_once_value(builder, v.vector(None)) for _ in range(width)]
            for _ in range(count)
        ]
        w_rows, y_rows = [values.row(i) for i in range(count)], [y.row(j) for j in range(width)]
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

        v.along(values.columns, body)
        to = _Matrix(context, builder, out, *places)
        for i in range(count):
            for j in range(width):
                total = builder.fmul(scale_at, v.sum(builder.load(sums[i][j])))
                builder.store(total, to.entry(j, i))
        return context.get_dummy_value()

    return types.void(*kinds), write


@intrinsic(prefer_literal=True)
def add(
    _, targets, sources, to, t, source, s, coefficients, n, m, swapped, scale, lo, hi, ahead, pace
):
    """Add rows of `source` times coefficients to rows of `to`, over columns lo..hi-1.

    ``to[t + i, lo:hi] += scale * sum_j c(i, j) source[s + j, lo:hi]`` for i < targets and
    j < sources, with ``c(i, j) = coefficients[n + i, m + j]``, or if `swapped`,
    ``coefficients[n + j, m + i]``. `targets`, `sources` and `swapped` are literal. What lies
    `ahead` numbers further on in `source` is asked for at a `pace`.
    """
    count, width, transposed = (kind.literal_value for kind in (targets, sources, swapped))
    kinds = (
        *(targets, sources, to, t, source, s),
        *(coefficients, n, m, swapped, scale, lo, hi, ahead, pace),
    )

    def write(context, builder, _, arguments):
        _, _, to_at, t_at, source_at, s_at, *others = arguments
        c_at, n_at, m_at, _, scale_at, lo_at, hi_at, *asked = others
        v = _Vectors(context, builder, to.dtype)
        target = _Matrix(context, builder, to, to_at, t_at, lo_at)
        values = _Matrix(context, builder, source, source_at, s_at, lo_at)
        c = _Matrix(context, builder, coefficients, c_at, n_at, m_at)

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
