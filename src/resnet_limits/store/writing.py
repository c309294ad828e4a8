"""Writing stores: whole or not at all, each chunk with a checksum, few files."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from resnet_limits import onechunk
from resnet_limits.integrity import StoreError, store_files, temporary
from resnet_limits.store import packing
from resnet_limits.store.reading import ZARR_FORMAT, is_zip, quiet_zarr
from resnet_limits.store.schema import SCHEMA_VERSION, SCHEMAS, Variable, as_parts, kind_findings
from resnet_limits.store.soundness import value_findings

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer


def _explained(
    name: str, attrs: Mapping[Any, Any], variables: Mapping[str, Variable]
) -> dict[str, Any]:
    """Attributes of a variable, with what its kind says of it."""
    described = variables.get(name)
    if described is None:
        return _plain(attrs)
    units = {} if described.units is None else {"units": described.units}
    return _plain({**attrs, **described.attrs, "long_name": described.long_name, **units})


def _prepared(
    dataset: xr.Dataset, variables: Mapping[str, Variable]
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Attach what explains the variables, and decide how each is encoded."""
    # Encodings that came along from the store a variable was read from do not apply here.
    dataset = dataset.drop_encoding()
    encoding: dict[str, dict[str, Any]] = {}
    # Put in their places at the end: the dataset takes copies of all its variables then.
    chunked = {}
    for name, variable in list(dataset.variables.items()):
        variable.attrs = _explained(str(name), variable.attrs, variables)
        chunks, shards = packing.pack(
            tuple(map(str, variable.dims)), variable.shape, variable.dtype.itemsize
        )
        encoding[str(name)] = {
            "chunks": chunks,
            # Zstd lets flipped bits pass; inside shards these are the inner codecs, so that the
            # checksum covers each chunk and not only the shard's index.
            "compressors": (ZstdCodec(level=3), Crc32cCodec()),
            # One file beside the metadata, where "/" would nest a folder for every dimension.
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        }
        if shards is not None:
            encoding[str(name)]["shards"] = shards
        if variable.dtype.kind == "f":
            encoding[str(name)]["_FillValue"] = np.nan
        if variable.chunks is not None:
            # A file written by two tasks at once would lose one of them.
            block = {
                dim: min(piece, size)
                for dim, piece, size in zip(
                    variable.dims, shards or chunks, variable.shape, strict=True
                )
            }
            chunked[name] = variable.chunk(block)
    return dataset.assign(chunked), encoding


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON values: numpy's scalars and arrays as Python's numbers and lists."""
    return {
        str(name): value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in attrs.items()
    }


def _write_zarr(
    parts: Mapping[str, xr.Dataset],
    attrs: Mapping[str, Mapping[str, Any]],
    variables: Mapping[str, Variable],
    target: Path | MemoryStore,
) -> None:
    """Write with xarray and zarr, piece by piece."""
    with quiet_zarr(), _one_at_a_time(parts.values()):
        xr.Dataset(attrs=attrs.get("")).to_zarr(
            target, mode="w", zarr_format=ZARR_FORMAT, consolidated=False
        )
        for group, part in parts.items():
            prepared, encoding = _prepared(part, variables)
            prepared.attrs = dict(attrs.get(group, {}))
            # Chunks that equal the fill value are written like others: a missing file is then
            # always a loss, never a saving.
            prepared.to_zarr(
                target,
                group=group or None,
                mode="a",
                zarr_format=ZARR_FORMAT,
                consolidated=False,
                encoding=encoding,
                write_empty_chunks=True,
            )
        zarr.consolidate_metadata(target, zarr_format=ZARR_FORMAT)


@contextmanager
def _one_at_a_time(parts: Iterable[xr.Dataset]) -> Iterator[None]:
    """Compute what is not in memory by one shard after the other, here.

    zarr compresses the chunks of a shard side by side; more shards would take memory by the number
    of cores, and what is in a file without a name can't be read by other processes.
    """
    if all(v.chunks is None for part in parts for v in part.variables.values()):
        yield
        return
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


def _zarr_metadata(parts: dict[str, xr.Dataset]) -> dict[str, bytes]:
    """Metadata files that zarr writes for some datasets."""
    files: dict[str, Buffer] = {}
    _write_zarr(parts, {}, {}, MemoryStore(files))
    return {
        name: content.to_bytes()
        for name, content in files.items()
        if name.endswith(onechunk.METADATA)
    }


def _write_directory(
    parts: Mapping[str, xr.Dataset],
    attrs: Mapping[str, Any],
    variables: Mapping[str, Variable],
    directory: Path,
) -> None:
    all_attrs = {group: _plain(part.attrs) for group, part in parts.items()} | {"": _plain(attrs)}
    if not all(map(_is_small, parts.values())):
        _write_zarr(parts, all_attrs, variables, directory)
        return

    def explain(name: str, own: Mapping[Any, Any]) -> dict[str, Any]:
        return _explained(name, own, variables)

    made = set()
    for name, content in onechunk.files(parts, all_attrs, explain, _zarr_metadata):
        file = directory / name
        if file.parent not in made:
            file.parent.mkdir(parents=True, exist_ok=True)
            made.add(file.parent)
        file.write_bytes(content)


def _is_small(part: xr.Dataset) -> bool:
    """Whether every variable is in memory and becomes one chunk."""
    return onechunk.fits(part) and all(
        v.nbytes <= packing.CHUNK_BYTES for v in part.variables.values()
    )


def _zip_directory(directory: Path, target: Path) -> None:
    """Pack a finished directory; equal directories give equal bytes."""
    with zipfile.ZipFile(target, "x", zipfile.ZIP_STORED) as archive:
        for file in store_files(directory):
            name = file.relative_to(directory).as_posix()
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as sink:
                shutil.copyfileobj(source, sink)


def check_target(path: Path | str) -> None:
    """Refuse a name that a store must not take.

    Raises
    ------
    StoreError
        If the name does not end in ``.zarr`` or ``.zarr.zip``, or if something exists under it
        that is not a store and would be lost.
    """
    path = Path(path)
    if not path.name.endswith((".zarr", ".zarr.zip")):
        raise StoreError(
            f"{path}: not the name of a store; allowed: a name that ends in .zarr or .zarr.zip"
        )
    if not path.exists():
        return
    is_store = zipfile.is_zipfile(path) if is_zip(path) else (path / onechunk.METADATA).is_file()
    is_empty = path.is_dir() and not any(path.iterdir())
    if not (is_store or is_empty):
        raise StoreError(f"{path}: exists and is not a store; allowed: a new name, or a store")


def _wrong_values(parts: Mapping[str, xr.Dataset]) -> list[str]:
    """Find what `check` would, in values that are in memory: computing others twice is dear."""
    return [
        f"{group}/{finding}" if group else finding
        for group, part in parts.items()
        if all(variable.chunks is None for variable in part.variables.values())
        for finding in value_findings(part)
    ]


def write(
    dataset: xr.Dataset | Mapping[str, xr.Dataset],
    path: Path | str,
    kind: str | None = None,
    *,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a store, whole or not at all.

    Parameters
    ----------
    dataset : Dataset or mapping of str to Dataset
        One dataset, or one per group. Dask arrays are computed shard by shard, in bounded memory.
    path : path
        Final name: a directory, or a zip file if it ends in ``.zarr.zip``. A store that is there
        already is replaced once the new one is complete.
    kind : str, optional
        One of `SCHEMAS`: the dataset is checked against it, and its variables are explained by it.
    attrs : mapping, optional
        Further root attributes, such as provenance; the dataset's own win.

    Returns
    -------
    Path
        The final name.

    Raises
    ------
    StoreError
        If the dataset is not what its kind must be, its values are not what ``status`` says of
        them, or the name may not be used.
    ValueError
        If the kind is unknown.
    """
    path = Path(path)
    if kind is not None and kind not in SCHEMAS:
        raise ValueError(f"kind {kind!r}: must be one of {', '.join(SCHEMAS)}")
    check_target(path)
    parts = as_parts(dataset)
    root = dict(attrs or {})
    if isinstance(dataset, xr.Dataset):
        root.update(cast("dict[str, Any]", dataset.attrs))
    variables: Mapping[str, Variable] = {}
    if kind is not None:
        schema = SCHEMAS[kind]
        variables = schema.all
        findings = kind_findings(kind, root, parts) or _wrong_values(parts)
        if findings:
            raise StoreError(f"{path}: not a {kind} store: {'; '.join(findings)}")
        root = {
            "title": schema.title,
            "summary": schema.summary,
            "kind": kind,
            "schema_version": SCHEMA_VERSION,
            **root,
        }
    with temporary(path) as finished:
        if is_zip(path):
            with temporary(path) as directory:
                _write_directory(parts, root, variables, directory)
                _zip_directory(directory, finished)
            finished.replace(path)
        else:
            _write_directory(parts, root, variables, finished)
            with temporary(path) as old:
                # A directory cannot be replaced in one step: the old one goes aside first.
                if path.exists():
                    path.rename(old)
                try:
                    finished.rename(path)
                except BaseException:
                    if old.exists():
                        old.rename(path)
                    raise
    return path
