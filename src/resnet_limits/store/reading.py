"""Opening stores: lazily, or at once where they are small; and saying what one holds."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import xarray as xr
import zarr
from zarr.storage import ZipStore

from resnet_limits import onechunk
from resnet_limits.integrity import StoreError, error_line, store_files
from resnet_limits.store import packing
from resnet_limits.store.schema import status_counts

# Version 2 knows codecs that unpickle: a store of that version is none of ours, and never opened.
ZARR_FORMAT: Literal[3] = 3

_Found = TypeVar("_Found", xr.Dataset, onechunk.Read)


def is_zip(path: Path) -> bool:
    """Whether a store of this name is a zip file."""
    return path.name.endswith(".zip")


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Keep zarr from warning of what is agreed on, or is said in another way."""
    with warnings.catch_warnings():
        # Consolidated metadata are a convention that every reader may ignore.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        # Files that are no part of a store belong to nobody's result.
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        yield


@contextmanager
def zarr_source(path: Path) -> Iterator[str | ZipStore]:
    """Open what zarr reads from, for as long as the block lasts."""
    if not path.exists():
        raise StoreError(f"{path}: no such store")
    if not is_zip(path):
        yield str(path)
        return
    if not zipfile.is_zipfile(path):
        raise StoreError(f"{path}: cannot be opened as a store: not a zip file")
    with ZipStore(path, mode="r") as archive:
        yield archive


def open_store(
    path: Path | str, group: str | None = None, chunks: Mapping[str, int] | None = None
) -> xr.Dataset:
    """Open a store lazily.

    ``xarray.open_zarr(path)`` does the same for a directory. It does not take the plain path of a
    zip file, but takes ``"zip://::" + absolute_path`` (through fsspec) or
    ``zarr.storage.ZipStore(path, mode="r")``, which is what is used here.

    Parameters
    ----------
    path : path
        The store.
    group : str, optional
        A group inside it; the root if left out.
    chunks : mapping, optional
        Dask chunks; those on disk if left out.

    Raises
    ------
    StoreError
        If there is no finished store of that name, or no such group.
    """
    return open_part(Path(path), group, dict(chunks or {}))


def open_part(path: Path, group: str | None, chunks: dict[str, int] | None) -> xr.Dataset:
    """Open with xarray: as Dask arrays, or without chunks as arrays that are read when used."""
    if not path.exists():
        raise StoreError(f"{path}: no such store")
    try:
        # A process elsewhere that reads a part of it may have another working folder.
        source = ZipStore(path, mode="r") if is_zip(path) else str(path.absolute())
        return xr.open_zarr(
            source, group=group, chunks=chunks, consolidated=True, zarr_format=ZARR_FORMAT
        )
    # Damaged metadata can fail in any way.
    except Exception as error:
        where = f"{path}, group {group}" if group else str(path)
        raise StoreError(f"{where}: cannot be opened as a store: {error_line(error)}") from error


def load(path: Path | str, names: Collection[str]) -> xr.Dataset:
    """Open some variables of a store: in memory where they are small, else lazily.

    Small is what takes no more memory than one file may; it is read at once, and thousands of
    stores so in seconds.

    Parameters
    ----------
    path : path
        The store, without groups.
    names : collection of str
        Variables; coordinates along their dimensions come with them.

    Raises
    ------
    StoreError
        If there is no finished store of that name, it lacks a variable, or a chunk is damaged.
    """
    found = _load(onechunk.read, Path(path), names)
    return _open_some(Path(path), names) if found is None else found


def load_variables(path: Path | str, names: Collection[str]) -> Mapping[Any, xr.Variable]:
    """Open as `load` does, for those who need no indexes: thousands of stores in less time.

    Raises
    ------
    StoreError
        As for `load`.
    """
    found = _load(onechunk.read_variables, Path(path), names)
    return _open_some(Path(path), names).variables if found is None else found.variables


def _load(
    read: Callable[[Path, Collection[str], int], _Found | None], path: Path, names: Collection[str]
) -> _Found | None:
    try:
        return read(path, names, packing.SHARD_BYTES)
    except onechunk.DamageError as error:
        raise StoreError(f"{path}: {error}") from error


def _open_some(path: Path, names: Collection[str]) -> xr.Dataset:
    dataset = open_store(path)
    missing = [name for name in names if name not in dataset.variables]
    if missing:
        raise StoreError(f"{path}: has no {', '.join(missing)}")
    return dataset[list(names)]


def groups(path: Path | str) -> list[str]:
    """Names of the groups inside a store, sorted; empty if all is at the root.

    Raises
    ------
    StoreError
        If there is no store of that name.
    """
    with zarr_source(Path(path)) as source:
        try:
            return sorted(zarr.open_group(source, mode="r", zarr_format=ZARR_FORMAT).group_keys())
        except Exception as error:
            raise StoreError(f"{path}: cannot be opened as a store: {error_line(error)}") from error


def open_groups(path: Path | str) -> dict[str, xr.Dataset]:
    """Open every group of a store lazily; the root's name is empty if there are no groups.

    Raises
    ------
    StoreError
        If there is no store of that name.
    """
    return {name: open_store(path, name or None) for name in groups(path) or [""]}


def describe(path: Path | str) -> str:
    """Describe a store in words and numbers, for a person.

    Raises
    ------
    StoreError
        If there is no store of that name.
    """
    path = Path(path)
    parts = open_groups(path)
    attrs = open_store(path).attrs
    files = store_files(path) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    lines = [
        f"{path.name}: {attrs.get('title', 'no title')} (kind {attrs.get('kind', 'unknown')})",
        f"  {len(files)} files, {_readable(size)}",
    ]
    if "summary" in attrs:
        lines.append(f"  {attrs['summary']}")
    for group, part in parts.items():
        lines.append("")
        if group:
            lines.append(f"group {group}")
        lines.append("  " + "  ".join(f"{dim} {length}" for dim, length in part.sizes.items()))
        for title, variables in (("coordinates", part.coords), ("variables", part.data_vars)):
            if not variables:
                continue
            lines.append(f"  {title}")
            for name, variable in variables.items():
                dims = ", ".join(map(str, variable.dims))
                meaning = variable.attrs.get("long_name", "")
                lines.append(f"    {name}({dims}) {variable.dtype}: {meaning}")
        counts = status_counts(part)
        if counts:
            lines.append("  status: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    explained = {"title", "summary", "kind", "experiment_file", "values_read"}
    rest = {name: value for name, value in attrs.items() if name not in explained}
    if rest:
        lines += ["", "attributes", *(f"  {name}: {value}" for name, value in rest.items())]
    if "experiment_file" in attrs:
        lines += ["", "experiment"]
        lines += [f"  {line}" for line in str(attrs["experiment_file"]).splitlines()]
    return "\n".join(lines)


def _readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
