"""Whether a store is sound: checksums, metadata, what its kind must be, values and digests."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr

from resnet_limits.integrity import (
    StoreError,
    combined_digest,
    digest,
    error_line,
    file_digest,
    read_manifest,
    store_files,
)
from resnet_limits.kinds import DIVERGED, NOT_RUN, OK
from resnet_limits.store import packing
from resnet_limits.store.reading import (
    ZARR_FORMAT,
    groups,
    is_zip,
    open_part,
    open_store,
    quiet_zarr,
    zarr_source,
)
from resnet_limits.store.schema import PROVENANCE, SCHEMAS, kind_findings

# What a run that ended well says of itself.
_WELL = {"status": int(OK), "diverged_step": -1}


def data_digest(path: Path | str) -> str:
    """SHA-256 of a store's arrays: values, types, chunks and the variables' attributes.

    Root and group attributes are left out, so that stores of equal content have equal digests
    whenever and wherever they were computed; a directory and its zip file have the same.

    Raises
    ------
    StoreError
        If there is no store of that name.
    """
    path = Path(path)
    with zarr_source(path) as source:
        members = zarr.open_group(
            source, mode="r", zarr_format=ZARR_FORMAT, use_consolidated=False
        ).members(max_depth=None)
        arrays = [name for name, member in members if isinstance(member, zarr.Array)]
    names = [name for name in _names(path) if name.startswith(tuple(f"{a}/" for a in arrays))]
    if not is_zip(path):
        return combined_digest({name: file_digest(path / name) for name in names})
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in names:
            with archive.open(name) as stream:
                found[name] = hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
    return combined_digest(found)


def _pieces(array: zarr.Array) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Index and extent of each file of an array."""
    piece = array.shards or array.chunks
    counts = [math.ceil(size / step) for size, step in zip(array.shape, piece, strict=True)]
    for index in np.ndindex(*counts):
        yield (
            index,
            tuple(
                slice(i * step, min((i + 1) * step, size))
                for i, step, size in zip(index, piece, array.shape, strict=True)
            ),
        )


def _codec_names(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the codecs that each chunk passes, the inner ones if there are shards."""
    codecs = cast("list[dict[str, Any]]", metadata["codecs"])
    for codec in codecs:
        if codec["name"] == "sharding_indexed":
            return _codec_names(codec["configuration"])
    return [codec["name"] for codec in codecs]


@quiet_zarr()
def _damage(path: Path) -> list[str]:
    """Read every chunk, and compare the two copies of the metadata."""
    findings: list[str] = []
    with zarr_source(path) as source:
        # First of all: what is no file would be waited for.
        names = _names(path)
        try:
            root = zarr.open_group(
                source, mode="r", zarr_format=ZARR_FORMAT, use_consolidated=False
            )
            members = dict(root.members(max_depth=None))
            copies = dict(
                zarr.open_group(
                    source, mode="r", zarr_format=ZARR_FORMAT, use_consolidated=True
                ).members(max_depth=None)
            )
        except Exception as error:
            return [f"metadata: {error_line(error)}"]
        for name in sorted(members.keys() | copies.keys()):
            member, copy = members.get(name), copies.get(name)
            if member is None or copy is None:
                findings.append(f"{name}: only one of two copies of its metadata is there")
                continue
            own, other = member.metadata.to_dict(), copy.metadata.to_dict()
            own.pop("consolidated_metadata", None)
            other.pop("consolidated_metadata", None)
            # NaN differs from itself, but not as text.
            if repr(own) != repr(other):
                findings.append(f"{name}: the two copies of its metadata differ")
                continue
            if not isinstance(member, zarr.Array):
                continue
            if "crc32c" not in _codec_names(cast("dict[str, Any]", own)):
                findings.append(f"{name}: chunks without checksum")
            for index, extent in _pieces(member):
                key = f"{name}/{member.metadata.encode_chunk_key(index)}"
                if key not in names:
                    findings.append(f"{key}: missing")
                    continue
                try:
                    member[extent]
                except Exception as error:
                    findings.append(f"{key}: {error_line(error)}")
    return findings


def _names(path: Path) -> set[str]:
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    if not path.is_dir():
        raise StoreError(f"{path}: is neither a folder nor a zip file")
    return {file.relative_to(path).as_posix() for file in store_files(path)}


def _loaded(path: Path, group: str | None) -> xr.Dataset:
    """Open a group; one that is no larger than a file may be is read, which is quicker."""
    part = open_part(path, group, None)
    return part.load() if part.nbytes <= packing.SHARD_BYTES else open_store(path, group)


def value_findings(part: xr.Dataset) -> list[str]:
    """Find values that are not what ``status`` says of them.

    Up to the step at which a run diverged all numbers are finite; from that step on, and in runs
    that were not made, all are NaN. What says no step, as cells of ``errors`` do, may be NaN
    wherever its status is not ok. Where cells have depths of their own, both these and what is at
    them are NaN beyond a cell's last. Nothing is ever infinite.
    """
    if _is_plainly_sound(part):
        return []
    findings = []
    may_fail = must_fail = xr.DataArray(False)
    if "status" in part:
        status = part["status"].load()
        if bool(((status < OK) | (status > NOT_RUN)).any()):
            findings.append(f"status: values must be 0 to {NOT_RUN}")
        may_fail, must_fail = status != OK, status == NOT_RUN
        if "diverged_step" in part:
            first = part["diverged_step"].load()
            diverged = status == DIVERGED
            if bool((diverged != (first >= 0)).any()):
                findings.append("diverged_step: must be -1 exactly where status is not diverged")
            may_fail = must_fail = must_fail | (diverged & (part["step"] >= first))
    padding = _padding(part)
    for name, variable in part.data_vars.items():
        if variable.dtype.kind != "f":
            continue
        own_depths = padding if "depth_point" in variable.dims else None
        if own_depths is not None and bool((own_depths & variable.notnull()).any()):
            findings.append(f"{name}: values at depths that a cell does not have")
            continue
        finite, missing, infinite = _kinds_of_values(_filled(variable, padding), may_fail.dims)
        if bool((~finite & ~may_fail).any()):
            holds = f"; {variable.dtype} ends at {np.finfo(variable.dtype).max:.2g}"
            hint = "" if variable.dtype == np.float64 else f"{holds}: allowed, save.dtype: float64"
            findings.append(f"{name}: NaN or infinite values where the status is ok{hint}")
        elif bool((~missing & must_fail).any()):
            findings.append(f"{name}: values after a run has diverged")
        elif bool(infinite.any()):
            findings.append(f"{name}: infinite values; what is not there is NaN")
    findings += [
        f"{name}: NaN or infinite values"
        for name, variable in part.coords.items()
        if variable.dtype.kind == "f" and not bool(np.isfinite(_filled(variable, padding)).all())
    ]
    return findings


def _padding(part: xr.Dataset) -> xr.DataArray | None:
    """Where a cell has fewer depths than another, if cells have depths of their own."""
    if "s" not in part.coords or part["s"].dims != ("cell", "depth_point"):
        return None
    missing = part["s"].load().isnull()
    return missing.drop_vars(missing.coords) if bool(missing.any()) else None


def _filled(variable: xr.DataArray, padding: xr.DataArray | None) -> xr.DataArray:
    """Put what a cell has at its first depth in place of what it does not have."""
    if padding is None or not set(padding.dims) <= set(variable.dims):
        return variable
    return variable.where(~padding, variable.isel(depth_point=0, drop=True))


def _is_plainly_sound(part: xr.Dataset) -> bool:
    """Whether all numbers are in memory and finite and all runs ended well, as nearly always."""
    for name, variable in part.variables.items():
        if variable.chunks is not None:
            return False
        values = variable.values
        if name in _WELL and (values != _WELL[str(name)]).any():
            return False
        # The ends of the range are NaN where any number is.
        if values.dtype.kind == "f" and values.size:
            with np.errstate(invalid="ignore"):
                if not (np.isfinite(values.min()) and np.isfinite(values.max())):
                    return False
    return True


def _kinds_of_values(
    variable: xr.DataArray, kept: tuple[Hashable, ...]
) -> tuple[xr.DataArray, ...]:
    """Whether, along dimensions not kept, all values are finite, all NaN, and any infinite."""
    variable = variable.drop_vars(variable.coords)
    # What says so of each value takes a good part of the memory of the values: piece by piece.
    outer = [dim for dim in variable.dims if dim in kept] or list(variable.dims[:1])
    inner = [dim for dim in variable.dims if dim not in outer]
    if variable.chunks is None and variable.nbytes > packing.CHUNK_BYTES:
        values = variable.transpose(*outer, *inner).values
        shape = values.shape[: len(outer)]
        flags = np.empty((3, *shape), bool)
        for place in np.ndindex(*shape):
            piece = values[place]
            flags[(slice(None), *place)] = (
                np.isfinite(piece).all(),
                np.isnan(piece).all(),
                np.isinf(piece).any(),
            )
        return tuple(xr.DataArray(flag, dims=outer) for flag in flags)
    found = xr.Dataset(
        {
            "finite": cast(xr.DataArray, np.isfinite(variable)).all(inner),
            "missing": cast(xr.DataArray, np.isnan(variable)).all(inner),
            "infinite": cast(xr.DataArray, np.isinf(variable)).any(inner),
        }
    ).compute()
    return found["finite"], found["missing"], found["infinite"]


def check(path: Path | str, manifest: Path | str | None = None) -> list[str]:
    """Look for anything wrong with a store.

    Every chunk is read, so that its checksum is compared; the two copies of the metadata are
    compared; the content is compared with what its kind must be; numbers must be finite unless
    the status says that a run diverged. Memory stays bounded by the size of one file.

    Parameters
    ----------
    path : path
        The store.
    manifest : path, optional
        Its manifest: the digest of the whole store, attributes too, must be the one written there.

    Returns
    -------
    list of str
        One line per finding; empty if the store is sound.
    """
    path = Path(path)
    try:
        findings = _damage(path)
        if not findings:
            parts = {name: _loaded(path, name or None) for name in groups(path) or [""]}
            attrs = parts[""].attrs if "" in parts else open_store(path).attrs
            kind = str(attrs.get("kind", ""))
            if kind in SCHEMAS:
                findings += kind_findings(kind, attrs, parts)
            else:
                findings.append(f"attribute kind: {kind!r}, must be one of {', '.join(SCHEMAS)}")
            findings += [f"attribute {name}: missing" for name in PROVENANCE if name not in attrs]
            if not findings:
                for group, part in parts.items():
                    prefix = f"{group}/" if group else ""
                    findings += [prefix + finding for finding in value_findings(part)]
        if manifest is not None and read_manifest(manifest).get("digest") != digest(path):
            findings.append(f"digest: not the one in {Path(manifest).name}")
    except StoreError as error:
        return [str(error)]
    return findings
