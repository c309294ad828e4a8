"""Arrays over many stores, or over a table of cells, of which nothing is read until it is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.kinds import NOT_RUN
from resnet_limits.stages.paths import Cell
from resnet_limits.store.packing import pack

if TYPE_CHECKING:
    import dask.array as da

FILL: dict[str, float] = {"status": NOT_RUN, "diverged_step": -1}
"""What stands where there is no network; NaN for all that is not named here."""

Load = Callable[[Cell, str], Mapping[Any, xr.Variable]]
"""Gives one variable of a cell's store, and the coordinates along its dimensions."""


class Stack:
    """One variable of the stores of many cells, as one array.

    A seed or step that a store lacks is filled like a store that is not there.

    Parameters
    ----------
    cells : ndarray of object
        Cells, or None, along the axes in front.
    variable : str
        Name of the variable.
    dims : sequence of str
        Its dimensions in a store.
    labels : mapping of str to ndarray
        The seeds and steps that are wanted, by the name of the dimension.
    sizes : mapping of str to int
        Sizes of the other dimensions.
    dtype : dtype
        Of the numbers.
    load : callable
        Reads a store.
    """

    def __init__(
        self,
        cells: NDArray[np.object_],
        variable: str,
        dims: Sequence[str],
        labels: Mapping[str, NDArray[np.int64]],
        sizes: Mapping[str, int],
        dtype: np.dtype,
        load: Load,
    ) -> None:
        self.cells = cells
        self.variable = variable
        self.dims = tuple(dims)
        self.labels = labels
        self.inner = tuple(len(labels[d]) if d in labels else sizes[d] for d in dims)
        self.shape = (*cells.shape, *self.inner)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(dtype)
        self.load = load

    def __getitem__(self, key: tuple[slice | int, ...]) -> NDArray[Any]:
        """Read a block; the key is a slice or a number for each axis, as Dask gives it."""
        parts = [slice(part, part + 1) if isinstance(part, int) else part for part in key]
        ranges = [range(n)[part] for n, part in zip(self.shape, parts, strict=True)]
        front, inner = ranges[: self.cells.ndim], ranges[self.cells.ndim :]
        block = np.full(list(map(len, ranges)), FILL.get(self.variable, np.nan), self.dtype)
        for place in product(*(range(len(part)) for part in front)):
            cell = self.cells[tuple(part[k] for part, k in zip(front, place, strict=True))]
            if cell is not None:
                self._fill(block[place], self.load(cell, self.variable), inner)
        numbers = tuple(axis for axis, part in enumerate(key) if isinstance(part, int))
        return block.squeeze(axis=numbers)

    def _fill(
        self, block: NDArray[Any], found: Mapping[Any, xr.Variable], inner: Sequence[range]
    ) -> None:
        """Copy from a store what it has of the seeds and steps that are wanted."""
        here, there = [], []
        for dim, part in zip(self.dims, inner, strict=True):
            wanted = np.arange(part.start, part.stop, part.step)
            if dim not in self.labels:
                here.append(np.arange(len(wanted)))
                there.append(wanted)
                continue
            position = {int(label): k for k, label in enumerate(found[dim].values)}
            names = self.labels[dim][wanted]
            here.append(np.flatnonzero([int(name) in position for name in names]))
            there.append(np.array([position[int(n)] for n in names if int(n) in position], int))
        if not all(map(len, here)):
            return
        variable = found[self.variable]
        if variable.chunks is not None:
            chosen = variable.isel(dict(zip(self.dims, there, strict=True)))
            # Blocks are read side by side already.
            block[np.ix_(*here)] = chosen.compute(scheduler="synchronous").values
        else:
            block[np.ix_(*here)] = variable.values[np.ix_(*there)]

    def array(self) -> da.Array:
        """Give it to Dask: a store, or a shard of its file where that is large, is one block."""
        chunks, shards = pack(self.dims, self.inner, self.dtype.itemsize)
        return _dask_array(self, (*(1,) * self.cells.ndim, *(shards or chunks)))


class Rows(Protocol):
    """Says which row of a table stands at each place; -1 where there is none."""

    @property
    def values(self) -> NDArray[np.intp]:
        """The rows."""
        ...


class Table:
    """One variable of a table of cells, spread over sizes and seeds.

    Parameters
    ----------
    shape : sequence of int
        Of the array, with what comes behind the cells.
    rows : Rows
        The row at each place in front.
    variable : Variable
        The table's variable, cells first.
    fill : float
        What stands where the table has no cell.
    """

    def __init__(
        self, shape: Sequence[int], rows: Rows, variable: xr.Variable, fill: float
    ) -> None:
        self.shape = tuple(shape)
        self.ndim = len(self.shape)
        self.dtype = variable.dtype
        self._rows, self._variable, self._fill = rows, variable, fill

    @cached_property
    def _spread(self) -> NDArray[Any]:
        rows = self._rows.values
        whole = np.full(self.shape, self._fill, self.dtype)
        whole[rows >= 0] = self._variable.compute(scheduler="synchronous").values[rows[rows >= 0]]
        return whole

    def __getitem__(self, key: tuple[slice | int, ...]) -> NDArray[Any]:
        return self._spread[key]

    def array(self) -> da.Array:
        """Give it to Dask as one block: tables are small beside what they were measured from."""
        return _dask_array(self, self.shape)


def _dask_array(source: Stack | Table, chunks: tuple[int, ...]) -> da.Array:
    import dask.array as da

    # A name of its own: hashing thousands of cells would take longer than all the rest.
    name = f"results-{os.urandom(8).hex()}"
    meta = np.empty((0,) * source.ndim, source.dtype)
    return da.from_array(
        source, chunks, name=name, asarray=True, fancy=False, meta=meta, inline_array=True
    )
