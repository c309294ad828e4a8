"""Shapes of x and y in a data file, from what the file says of itself.

For whoever plans: no array is read and nothing heavy is imported unless the file is netCDF. What
is wrong with a file is said by :mod:`resnet_limits.datafile` when it is read; here it is None.
"""

from __future__ import annotations

import ast
import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py

Shape = tuple[int, ...]

# More than any header of an array of numbers has; of Python's literals numpy takes no more either.
_HEADER_BYTES = 1 << 16
_LITERAL_BYTES = 10_000
_NAMES = ("x", "y")


def shapes(path: str) -> tuple[Shape, Shape] | None:
    """Give the shapes of x and y.

    Parameters
    ----------
    path : str
        ``problem.data.path`` of an experiment: .npz, .zarr, .zarr.zip or .nc.

    Returns
    -------
    tuple of two tuples of int, or None
        ``(samples, [tokens,] inputs)`` and ``(samples, [tokens,] targets)``; None where the file
        doesn't say so.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # Opening a pipe would wait forever.
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return None
    return _shapes(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _shapes(path: str, _modified_ns: int, _size: int) -> tuple[Shape, Shape] | None:
    name = path.rstrip("/")
    read = _netcdf if name.endswith(".nc") else _npz if name.endswith(".npz") else _zarr
    try:
        x, y = read(path)
    except Exception:
        # Whatever a foreign file makes of its header, reading it will say what is wrong.
        return None
    sound = len(x) in (2, 3) and len(x) == len(y) and min(*x, *y) > 0
    return (x, y) if sound else None


def _npz(path: str) -> list[Shape]:
    with zipfile.ZipFile(path) as archive:
        found = []
        for name in _NAMES:
            with archive.open(f"{name}.npy") as stream:
                start = stream.read(_HEADER_BYTES)
            # Magic and version, then the length in two bytes, in four from version 2 on.
            width = 2 if start[6] == 1 else 4
            length = int.from_bytes(start[8 : 8 + width], "little")
            if length > _LITERAL_BYTES:
                raise ValueError("too long a header")
            header = ast.literal_eval(start[8 + width : 8 + width + length].decode("latin1"))
            found.append(tuple(int(size) for size in header["shape"]))
    return found


def _zarr(path: str) -> list[Shape]:
    if not path.rstrip("/").endswith(".zip"):
        folder = Path(path)
        return [_zarr_shape(lambda file: _head(_inside(folder, file)), n) for n in _NAMES]
    with zipfile.ZipFile(path) as archive:
        return [_zarr_shape(lambda file: _head(archive.open(file)), n) for n in _NAMES]


def _inside(folder: Path, name: str) -> Any:
    """Open a regular file of a folder, not what a link to elsewhere or a pipe would give."""
    file = folder / name
    if not file.exists():
        raise FileNotFoundError(name)
    if not is_inside(file, folder):
        raise ValueError(f"{name} is not a file of the folder")
    return file.open("rb")


def is_inside(path: Path | str, folder: Path | str) -> bool:
    """Whether a name in a folder is a regular file, or a link to a regular file in the folder."""
    real = os.path.realpath(path)
    return os.path.isfile(real) and Path(real).is_relative_to(os.path.realpath(folder))


@contextmanager
def open_hdf5(path: str) -> Iterator[h5py.File]:
    """Open an HDF5 file through a stream.

    The library then takes no lock, which many shared file systems do not have.
    """
    import h5py

    with Path(path).open("rb") as stream, h5py.File(stream, "r") as file:
        yield file


def hdf5_array(file: h5py.File, name: str) -> h5py.Dataset:
    """Give an array of an open HDF5 file.

    Raises
    ------
    ValueError
        If it is no array or a link, which may lead to another file. The message is a few words.
    """
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    if not isinstance(file[name], h5py.Dataset):
        raise ValueError(f"{name} is not an array")
    return file[name]


def _head(stream: Any) -> bytes:
    with stream:
        content: bytes = stream.read(_HEADER_BYTES)
        return content


def _zarr_shape(read: Callable[[str], bytes], name: str) -> Shape:
    """Read an array's metadata, of Zarr 3 or, where there is none, of Zarr 2."""
    try:
        metadata = json.loads(read(f"{name}/zarr.json"))
    except (OSError, KeyError):
        metadata = json.loads(read(f"{name}/.zarray"))
    return tuple(int(size) for size in metadata["shape"])


def _netcdf(path: str) -> list[Shape]:
    with Path(path).open("rb") as stream:
        is_classic = stream.read(3) == b"CDF"
    if is_classic:
        from scipy.io import netcdf_file

        # With a map into memory, so that no values are read.
        with netcdf_file(path, mode="r", mmap=True) as dataset:
            return [tuple(dataset.variables[name].shape) for name in _NAMES]
    with open_hdf5(path) as file:
        return [tuple(hdf5_array(file, name).shape) for name in _NAMES]
