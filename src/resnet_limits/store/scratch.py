"""Arrays that do not fit in memory, in files without a name until a store is written from them."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from resnet_limits.store import packing

if TYPE_CHECKING:
    import dask.array as da


class ScratchArray:
    """An array on disk, written block by block and read piece by piece.

    Its file has no name: it is gone with the array, and whatever ends the process leaves nothing.
    Pages of the file are in memory only while a piece is copied.

    Parameters
    ----------
    folder : path
        Where the file is; the nearest folder above it that exists if it does not.
    shape : tuple of int
        Two indices of a block, then the sizes of a block.
    dtype : numpy dtype
        Of floating-point numbers. Blocks that are never written are NaN.

    Raises
    ------
    OSError
        If there is no room for the file, here or when a block is written.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        place = next(each for each in (folder, *folder.parents) if each.is_dir())
        # It is closed with the last array that reads from it.
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115
        self._file.truncate(max(1, self.nbytes))
        self._written = np.zeros(shape[:2], bool)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __setitem__(self, place: tuple[int, int], block: NDArray[Any]) -> None:
        """Write one block."""
        wanted = np.ascontiguousarray(block, self.dtype)
        if wanted.shape != self.shape[2:]:
            raise ValueError(f"a block of shape {wanted.shape}: must be {self.shape[2:]}")
        first = int(np.ravel_multi_index(place, self.shape[:2]))
        self._file.seek(first * wanted.nbytes)
        self._file.write(wanted.data)
        # A full disk is told by the block that has no room.
        self._file.flush()
        self._written[place] = True

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Read a piece, which is a copy."""
        # Unmapped again with `whole`, which is all that refers to it.
        pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = np.frombuffer(pages, self.dtype, math.prod(self.shape)).reshape(self.shape)
        found = np.array(whole[key])
        if not self._written.all():
            written = self._written.reshape(*self.shape[:2], *(1,) * (self.ndim - 2))
            np.copyto(found, np.nan, where=~np.broadcast_to(written, self.shape)[key])
        return found

    def reshape(self, *shape: int) -> ScratchArray:
        """Give the same array with blocks of another shape; one size may be -1."""
        # numpy finds the size, of an array that takes one number.
        sizes = np.broadcast_to(np.empty((), np.int8), self.shape[2:]).reshape(shape[2:]).shape
        if shape[:2] != self.shape[:2]:
            raise ValueError(f"{shape}: must begin with {self.shape[:2]}")
        other = object.__new__(ScratchArray)
        vars(other).update(vars(self), shape=(*shape[:2], *sizes))
        return other

    def lazily(self, dims: Sequence[str]) -> da.Array:
        """Give it to Dask in the pieces that become files of a store.

        Parameters
        ----------
        dims : sequence of str
            Names of the dimensions.
        """
        import dask.array as da

        chunks, shards = packing.pack(dims, self.shape, self.dtype.itemsize)
        meta = np.empty((0,) * self.ndim, self.dtype)
        return da.from_array(
            self, shards or chunks, name=False, fancy=False, meta=meta, inline_array=True
        )
