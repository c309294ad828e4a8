"""Stores of small arrays, each one chunk, written and read without a millisecond for each array.

zarr takes about that long to create, to write or to read an array, whatever its size, and a study
has thousands of stores of ten small arrays. Here zarr itself writes the metadata of one store of
a layout (names, dimensions, types and attributes), once in a process. Those of the next stores are
the same with other sizes and other attributes of their groups, and their chunks pass the same
codecs. What is written is, byte for byte, what zarr would have written, and what is read is what
it would have read; all that is out of the ordinary is left to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import xarray as xr
from numcodecs import Zstd
from numpy.typing import NDArray

from resnet_limits.integrity import ZARR_METADATA

Document = dict[str, Any]
Documents = dict[str, Document]

METADATA = ZARR_METADATA
"""Name of the file that holds the metadata of a group or an array."""

_COPIES = "consolidated_metadata"
_CHECKSUM_BYTES = 4
_CHUNK_KEYS = {"name": "default", "configuration": {"separator": "."}}
# What xarray takes out of the attributes when it reads a variable.
_ENCODED = ("_FillValue", "coordinates")
# With these attributes values are not what they seem.
_DECODED = {"scale_factor", "add_offset", "missing_value", "dtype", "calendar"}


class DamageError(Exception):
    """A chunk that is missing or not what was written. The message is one line."""


class _Variable(NamedTuple):
    name: str
    dims: tuple[str, ...]
    dtype: str
    attrs: str
    is_coord: bool


_Layout = tuple[tuple[str, tuple[_Variable, ...]], ...]
WriteMetadata = Callable[[dict[str, xr.Dataset]], Mapping[str, bytes]]


# --- chunks ---------------------------------------------------------------------------------------


def _codecs(level: int) -> list[Document]:
    return [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": level, "checksum": False}},
        {"name": "crc32c"},
    ]


@lru_cache(maxsize=16)
def _zstd(level: int) -> Zstd:
    return Zstd(level=level)


def _level(array: Document) -> int | None:
    """Zstd's level, where the codecs are the ones of this module."""
    codecs = array["codecs"]
    if len(codecs) != 3 or codecs[0]["name"] != "bytes" or codecs[1]["name"] != "zstd":
        return None
    level = int(codecs[1]["configuration"]["level"])
    # One byte has no order, and then zarr does not write one.
    known = _codecs(level)
    return level if codecs == known or codecs == [{"name": "bytes"}, *known[1:]] else None


def _chunk_name(dims: int) -> str:
    return ".".join(["c", *"0" * dims])


def encode(values: NDArray[Any], level: int) -> bytes:
    """Turn an array into the bytes of its one chunk."""
    packed = _zstd(level).encode(np.ascontiguousarray(values))
    return bytes(packed) + google_crc32c.value(packed).to_bytes(_CHECKSUM_BYTES, "little")


def decode(raw: bytes, dtype: np.dtype, shape: tuple[int, ...], level: int) -> NDArray[Any]:
    """Turn the bytes of an array's one chunk into the array.

    Raises
    ------
    DamageError
        If they are not the bytes that were written.
    """
    packed, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if google_crc32c.value(packed).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise DamageError("stored and computed checksum do not match")
    content = _zstd(level).decode(packed)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise DamageError(f"holds {len(content)} bytes, and not an array of shape {shape}")
    # An array of its own, so that its reader may change it.
    return np.frombuffer(content, dtype).reshape(shape).copy()


# --- writing --------------------------------------------------------------------------------------


def fits(dataset: xr.Dataset) -> bool:
    """Whether a dataset holds plain numbers that are in memory, which is what is written here."""
    return all(
        variable.chunks is None
        and variable.dtype.kind in "iuf"
        and variable.dtype == variable.dtype.newbyteorder("<")
        for variable in dataset.variables.values()
    )


def files(
    parts: Mapping[str, xr.Dataset],
    attrs: Mapping[str, Mapping[str, Any]],
    explain: Callable[[str, Mapping[Any, Any]], dict[str, Any]],
    write_metadata: WriteMetadata,
) -> Iterator[tuple[str, bytes]]:
    """Give the names and contents of the files of a store.

    Parameters
    ----------
    parts : mapping of str to Dataset
        Group name to dataset, all of which `fits`; the root's name is empty.
    attrs : mapping of str to mapping
        Attributes of the groups, as JSON values; those of the root too, whatever groups there are.
    explain : callable
        Gives the attributes, as JSON values, of a variable from its name and its own attributes.
    write_metadata : callable
        Writes, with zarr, datasets without attributes and of size 1 in all dimensions, and gives
        the metadata files.
    """
    layout = tuple((group, _variables(part, explain)) for group, part in parts.items())
    template = _template(layout, write_metadata)
    arrays = {
        f"{group}/{name}" if group else str(name): variable
        for group, part in parts.items()
        for name, variable in part.variables.items()
    }
    copies = {}
    for name, copied in template[""][_COPIES]["metadata"].items():
        if name not in arrays:
            own = attrs.get(name, {})
            text, copies[name] = (_json(_with(own, each)) for each in (template[name], copied))
            yield f"{name}/{METADATA}", text.encode()
            continue
        array, level = arrays[name], _level(template[name])
        if level is None:
            raise RuntimeError(f"{name}: zarr wrote codecs {template[name]['codecs']}")
        text, copies[name] = _array_texts(layout, write_metadata, name, array.shape)
        yield f"{name}/{METADATA}", text.encode()
        if array.size:
            yield f"{name}/{_chunk_name(array.ndim)}", encode(array.values, level)
    yield METADATA, _root_text(_with(attrs.get("", {}), template[""]), copies).encode()


def _variables(
    part: xr.Dataset, explain: Callable[[str, Mapping[Any, Any]], dict[str, Any]]
) -> tuple[_Variable, ...]:
    return tuple(
        _Variable(
            str(name),
            tuple(map(str, variable.dims)),
            variable.dtype.str,
            json.dumps(explain(str(name), variable.attrs)),
            name in part.coords,
        )
        for name, variable in part.variables.items()
    )


# Stages write stores of one layout; a process seldom sees more than that of each kind.
@lru_cache(maxsize=16)
def _template(layout: _Layout, write_metadata: WriteMetadata) -> Documents:
    """Metadata of a store of this layout, by the names of its groups and arrays."""
    smallest = {}
    for group, variables in layout:
        smallest[group] = xr.Dataset(
            {
                v.name: (v.dims, np.zeros((1,) * len(v.dims), v.dtype), json.loads(v.attrs))
                for v in variables
            }
        ).set_coords([v.name for v in variables if v.is_coord])
    return {
        name.removesuffix(METADATA).rstrip("/"): json.loads(raw)
        for name, raw in write_metadata(smallest).items()
    }


@lru_cache(maxsize=1024)
def _array_texts(
    layout: _Layout, write_metadata: WriteMetadata, name: str, shape: tuple[int, ...]
) -> tuple[str, str]:
    """Metadata of an array of one chunk: its own, and the copy that the root has of it."""
    template = _template(layout, write_metadata)
    copied = template[""][_COPIES]["metadata"][name]
    return _json(_sized(template[name], shape)), _json(_sized(copied, shape))


def _sized(array: Document, shape: tuple[int, ...]) -> Document:
    """Give an array's metadata another shape, of one chunk."""
    grid = array["chunk_grid"]
    chunk = {"chunk_shape": [max(1, size) for size in shape]}
    return {
        **array,
        "shape": list(shape),
        "chunk_grid": {**grid, "configuration": {**grid["configuration"], **chunk}},
    }


def _with(attrs: Mapping[str, Any], group: Document) -> Document:
    """Give a group attributes before those that xarray adds."""
    return {**group, "attributes": {**attrs, **group["attributes"]}}


def _root_text(root: Document, copies: Mapping[str, str]) -> str:
    """Metadata of the root, around the finished texts of its copies of the others."""
    places = {name: f"\0{name}" for name in copies}
    text = _json({**root, _COPIES: {**root[_COPIES], "metadata": places}})
    for name, copied in copies.items():
        # No line of JSON ends inside a string: indenting changes nothing but the layout.
        text = text.replace(json.dumps(places[name]), copied.replace("\n", "\n      "), 1)
    return text


def _json(document: Document) -> str:
    return json.dumps(document, indent=2)


# --- reading --------------------------------------------------------------------------------------


def read(
    path: Path, names: Collection[str] | None = None, most_bytes: int | None = None
) -> xr.Dataset | None:
    """Read variables of a store without groups into memory.

    Parameters
    ----------
    path : path
        The store, a directory.
    names : collection of str, optional
        The variables wanted; coordinates along their dimensions come with them. All if left out.
    most_bytes : int, optional
        Leave the store to zarr if the variables take more memory than this.

    Returns
    -------
    Dataset or None
        What ``xarray.open_zarr`` would give, in memory; None if the store is to be left to zarr:
        it is no directory, lacks a variable, or holds one that is not one chunk of plain numbers.

    Raises
    ------
    DamageError
        If a chunk is missing or damaged.
    """
    found = read_variables(path, names, most_bytes)
    if found is None:
        return None
    is_coord = {
        name: name in found.coords or variable.dims == (name,)
        for name, variable in found.variables.items()
    }
    return xr.Dataset(
        {name: found.variables[name] for name in is_coord if not is_coord[name]},
        {name: found.variables[name] for name in is_coord if is_coord[name]},
        found.attrs,
    )


class Read(NamedTuple):
    """Variables that were read, which of them are coordinates, and the store's attributes."""

    variables: dict[str, xr.Variable]
    coords: set[str]
    attrs: Document


def read_variables(
    path: Path, names: Collection[str] | None = None, most_bytes: int | None = None
) -> Read | None:
    """Read as `read` does, without the indexes of a dataset, which take longer than small arrays.

    Raises
    ------
    DamageError
        If a chunk is missing or damaged.
    """
    try:
        root = json.loads((path / METADATA).read_bytes())
        found = root[_COPIES]["metadata"]
        wanted = _wanted(found, names)
        # Anything that cannot be understood is zarr's to read, or to complain about.
        arrays = {name: _array(found[name]) for name in wanted}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    if most_bytes is not None and most_bytes < sum(array.nbytes for array in arrays.values()):
        return None
    coords = {name for array in arrays.values() for name in array.coords}
    variables = {name: array.read(path / name) for name, array in arrays.items()}
    return Read(variables, coords, root["attributes"])


def _wanted(found: Documents, names: Collection[str] | None) -> list[str]:
    """Names of variables with those of the coordinates that belong to them, sorted."""
    if any(document["node_type"] != "array" for document in found.values()):
        raise ValueError("has groups")
    if names is None:
        return sorted(found)
    dims = {dim for name in names for dim in found[name]["dimension_names"]}
    coords = dims.union(
        *(document["attributes"].get("coordinates", "").split() for document in found.values())
    )
    fitting = {c for c in coords & found.keys() if dims.issuperset(found[c]["dimension_names"])}
    return sorted(fitting.union(names))


@dataclass(frozen=True)
class _Array:
    """What has to be known of an array to read its chunk."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    level: int
    attrs: dict[str, Any]
    coords: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, folder: Path) -> xr.Variable:
        file = folder / _chunk_name(len(self.shape))
        if not self.nbytes:
            return xr.Variable(self.dims, np.zeros(self.shape, self.dtype), self.attrs)
        try:
            values = decode(file.read_bytes(), self.dtype, self.shape, self.level)
        except FileNotFoundError:
            raise DamageError(f"{folder.name}/{file.name}: missing") from None
        except (DamageError, OSError, ValueError, RuntimeError) as error:
            raise DamageError(f"{folder.name}/{file.name}: {error}") from error
        return xr.Variable(self.dims, values, self.attrs)


def _array(document: Document) -> _Array:
    """Understand an array's metadata.

    Raises
    ------
    ValueError
        If it is not one chunk of plain numbers.
    """
    shape, attrs = tuple(document["shape"]), dict(document["attributes"])
    dtype, level = np.dtype(document["data_type"]).newbyteorder("<"), _level(document)
    known = (
        document["zarr_format"] == 3
        and document["chunk_grid"]["name"] == "regular"
        and document["chunk_key_encoding"] == _CHUNK_KEYS
        and not document.get("storage_transformers")
        and dtype.kind in "iuf"
        and not _DECODED & attrs.keys()
        and " since " not in str(attrs.get("units"))
    )
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
    if not known or level is None or chunk != [max(1, size) for size in shape]:
        raise ValueError("not one chunk of plain numbers")
    coords = tuple(attrs.get("coordinates", "").split())
    kept = {name: value for name, value in attrs.items() if name not in _ENCODED}
    return _Array(tuple(document["dimension_names"]), shape, dtype, level, kept, coords)
