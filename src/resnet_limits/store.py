"""Datasets on disk: what each kind holds, how it is written, and whether it is sound.

A store is a Zarr v3 directory, or a single zip file when its name ends in ``.zarr.zip``. It is
written beside its final name and renamed, so that a name that exists is a finished store. Every
chunk carries a checksum, also inside shards; every variable says what it is. Beside a store, a
*manifest* records its stage key and digest; the manifest is written last.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import stat
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore, ZipStore

from resnet_limits import onechunk
from resnet_limits.config import PAIRS
from resnet_limits.integrity import (
    StoreError,
    combined_digest,
    digest,
    error_line,
    file_digest,
    read_manifest,
    store_files,
    temporary,
)
from resnet_limits.kinds import CELL_KEYS, DIVERGED, NOT_RUN, OK, STATUS, STATUS_ATTRS

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

SCHEMA_VERSION = "1"

PROVENANCE = (
    "experiment_file",
    "config_hash",
    "code_hash",
    "stage_key",
    "package_version",
    "git_state",
    "library_versions",
    "device",
    "cuda_visible_devices",
    "seeds",
    "created",
    "wall_time_s",
    "peak_memory_bytes",
    "history",
)
"""Root attributes that every published store carries."""

# Version 2 knows codecs that unpickle: a store of that version is none of ours, and never opened.
_ZARR_FORMAT: Literal[3] = 3
_CHUNK_BYTES = 4 * 2**20
_SHARD_BYTES = 64 * 2**20
# Readers take whole steps and whole layers, so these are cut first and the rest stays together.
_CUT_FIRST = ("step", "depth_point", "node", "replicate", "seed", "cell")


# --- schemas --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variable:
    """What one variable of a store must be.

    Attributes
    ----------
    dims : tuple of str
        Dimensions in order; one that ends in ``?`` may be absent.
    dtype : str
        ``"float64"``, ``"float"`` (32 or 64 bits), ``"int"`` (any width) or ``"int8"``.
    long_name : str
        What it is, with the symbol of theory.md.
    units : str or None
        Written as the attribute ``units``; None for indices and flags.
    required : bool
        Whether a store without it is refused.
    attrs : mapping
        Further attributes.
    """

    dims: tuple[str, ...]
    dtype: str
    long_name: str
    units: str | None = "1"
    required: bool = True
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Schema:
    """What one kind of store must be.

    Attributes
    ----------
    title, summary : str
        Root attributes.
    variables, coords : dict
        Name to `Variable`.
    attrs : tuple of str
        Root attributes that must be there.
    grouped : bool
        Whether the variables live in one group per pair rather than at the root.
    """

    title: str
    summary: str
    variables: dict[str, Variable]
    coords: dict[str, Variable]
    attrs: tuple[str, ...] = ()
    grouped: bool = False

    @property
    def all(self) -> dict[str, Variable]:
        """Variables and coordinates together."""
        return {**self.variables, **self.coords}


def _index(name: str, long_name: str, *, required: bool = True) -> Variable:
    return Variable((name,), "int", long_name, units=None, required=required)


_STEP = _index("step", "number of gradient steps taken, k (0: before the first update)")
_SEED = _index("seed", "seed of the embedding rows and block weights")
_ROTATION = Variable(
    ("input", "rank"),
    "float64",
    "orthonormal basis Q of the span of the inputs; Phi = [W_e Q, W_u]",
    required=False,
)


_ENDING = {
    "status": Variable(("seed",), "int8", "how the run ended", units=None, attrs=STATUS_ATTRS),
    "diverged_step": Variable(
        ("seed",), "int", "first step with a diverged value; -1 if there is none", None
    ),
}


def _limit_schema(title: str, summary: str, *, seeded: bool, attrs: tuple[str, ...]) -> Schema:
    seed = ("seed",) if seeded else ()
    out = ("sample", "token?", "target")
    coefficients = ("sample", "token?", "embedding_direction")

    def variable(dims: tuple[str, ...], long_name: str) -> Variable:
        return Variable(seed + dims, "float64", long_name)

    return Schema(
        title,
        summary,
        {
            "output": variable(("step", *out), "output of the limit network, f_k"),
            "output_stderr": variable(
                ("step", *out), "standard error of output: scramblings, depth grid, rounding"
            ),
            "loss": variable(("step",), "loss, averaged over samples (and tokens)"),
            "loss_stderr": variable(
                ("step",), "standard error of loss: scramblings, depth grid, rounding"
            ),
            "hidden_coef": variable(
                ("step", "node", *coefficients),
                "minimum-norm coordinates of the residual stream h_k(s) on Phi = [W_e W_u]",
            ),
            "backward_coef": variable(
                ("step", "node", *coefficients),
                "minimum-norm coordinates of the backward field b_k(s) on Phi = [W_e W_u]",
            ),
            "output_replicate": variable(
                ("replicate", "step", *out), "output of each independent scrambling"
            ),
            "hidden_coef_replicate": variable(
                ("replicate", "step", *coefficients),
                "hidden_coef at depth s = 1 of each independent scrambling",
            ),
            "depth_error": variable(
                ("step",), "estimated error of the output that comes from the depth grid"
            ),
            "output_depth_change": variable(
                ("step", *out), "change of output with half as many depth nodes more"
            ),
            "hidden_coef_depth_change": variable(
                ("step", *coefficients),
                "change of hidden_coef at depth s = 1 with half as many depth nodes more",
            ),
            "rounding": variable(
                ("step",),
                "error of states by rounding and the tolerance of fixed points",
            ),
            "input_rotation": _ROTATION,
            **(_ENDING if seeded else {}),
        },
        {
            "step": _STEP,
            "node": Variable(
                ("node",), "float64", "depth s in [0, 1] of a node; between nodes, a polynomial"
            ),
            "replicate": _index("replicate", "number of the scrambling", required=False),
            **({"seed": _SEED} if seeded else {}),
        },
        ("quadrature_points", "quadrature_kind", *attrs),
    )


_FIELD = ("seed", "step", "depth_point", "sample", "token?", "coordinate")
_CELL_STEP = ("cell", "step")

SCHEMAS: dict[str, Schema] = {
    "problem": Schema(
        "Data of the learning problem",
        "Inputs x and targets y, the same for every network and limit of the experiment.",
        {
            "x": Variable(("sample", "token?", "input"), "float64", "inputs, x"),
            "y": Variable(("sample", "token?", "target"), "float64", "targets, y"),
            "input_rotation": _ROTATION,
        },
        {},
    ),
    "dmft": _limit_schema(
        "DMFT limit",
        "Training dynamics at infinite depth, width and embedding dimension.",
        seeded=False,
        attrs=(),
    ),
    "mean_ode": _limit_schema(
        "Mean ODE",
        "Training dynamics at infinite depth and width and finite embedding dimension, for each "
        "seed's embedding rows.",
        seeded=True,
        attrs=("embed_dim",),
    ),
    "wide": _limit_schema(
        "Infinitely wide network of finite depth",
        "Training dynamics at infinite width, finite depth and finite embedding dimension, for "
        "each seed's embedding rows.",
        seeded=True,
        attrs=CELL_KEYS["wide"],
    ),
    "finite": Schema(
        "Finite residual networks",
        "Training dynamics of networks of one shape, one per seed.",
        {
            "output": Variable(
                ("seed", "step", "sample", "token?", "target"), "float64", "network output, f_k"
            ),
            "loss": Variable(("seed", "step"), "float64", "loss, averaged over samples (tokens)"),
            "hidden": Variable(_FIELD, "float", "residual stream, h_k^l"),
            "backward": Variable(_FIELD, "float", "backward field, b_k^l = D d loss_i / d h^l"),
            **_ENDING,
        },
        {
            "seed": _SEED,
            "step": _STEP,
            "layer": Variable(("depth_point",), "int", "layer index l of a depth point", None),
            "s": Variable(("depth_point",), "float64", "depth fraction of a depth point, s = l/L"),
        },
        ("depth", "width", "embed_dim", "engine", "engine_reason"),
    ),
    "errors": Schema(
        "Distances between finite networks and limits",
        "One group per pair that is compared; a cell is one combination of sizes and seed, where "
        "0 stands for infinite or for a size that the pair does not depend on.",
        {
            "hidden_rms": Variable(
                _CELL_STEP,
                "float64",
                "root mean square of the difference of h over samples and coordinates at s = 1",
            ),
            "hidden_max_mean_abs": Variable(
                _CELL_STEP,
                "float64",
                "largest over stored depths of the mean absolute difference of h",
            ),
            "output_rms": Variable(
                _CELL_STEP,
                "float64",
                "root mean square of the difference of f over samples and targets",
            ),
            "hidden_rms_stderr": Variable(
                _CELL_STEP,
                "float64",
                "root mean square standard error of the difference behind hidden_rms, from the "
                "limits' quadrature",
            ),
            "output_rms_stderr": Variable(
                _CELL_STEP,
                "float64",
                "root mean square standard error of the difference behind output_rms, from the "
                "limits' quadrature",
            ),
            "status": Variable(
                ("cell",), "int8", "how the runs compared ended", units=None, attrs=STATUS_ATTRS
            ),
        },
        {
            "step": _STEP,
            "depth": Variable(("cell",), "int", "number of blocks, L", None),
            "width": Variable(("cell",), "int", "hidden units per block, M", None),
            "embed_dim": Variable(("cell",), "int", "embedding dimension, D", None),
            "seed": Variable(("cell",), "int", "seed of embedding rows and block weights", None),
            "parameters": Variable(("cell",), "float64", "P = L M D; 0 where a size is infinite"),
        },
        grouped=True,
    ),
}
"""What each kind of store holds."""


def _has_dtype(dtype: np.dtype, wanted: str) -> bool:
    if wanted == "int":
        return dtype.kind == "i"
    if wanted == "float":
        return dtype in (np.dtype("float32"), np.dtype("float64"))
    return dtype == np.dtype(wanted)


def _schema_findings(dataset: xr.Dataset, variables: Mapping[str, Variable]) -> list[str]:
    """Compare one dataset (or group) with what its kind holds."""
    findings = []
    for name, wanted in variables.items():
        if name not in dataset.variables:
            if wanted.required:
                findings.append(f"{name}: missing")
            continue
        found = dataset[name]
        dims = tuple(
            dim.removesuffix("?")
            for dim in wanted.dims
            if not dim.endswith("?") or dim.removesuffix("?") in dataset.sizes
        )
        if found.dims != dims:
            findings.append(f"{name}: dimensions {found.dims}, must be {dims}")
        if not _has_dtype(found.dtype, wanted.dtype):
            findings.append(f"{name}: type {found.dtype}, must be {wanted.dtype}")
    findings += [
        f"{name}: unknown variable; give it an attribute long_name"
        for name, variable in dataset.variables.items()
        if name not in variables and "long_name" not in variable.attrs
    ]
    return findings


def _datasets(dataset: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Group name to dataset; the root's name is empty."""
    return {"": dataset} if isinstance(dataset, xr.Dataset) else dict(dataset)


def _kind_findings(kind: str, attrs: Mapping[str, Any], parts: dict[str, xr.Dataset]) -> list[str]:
    schema = SCHEMAS[kind]
    findings = [f"attribute {name}: missing" for name in schema.attrs if name not in attrs]
    if schema.grouped:
        findings += [
            f"group {name}: must be one of {', '.join(PAIRS)}"
            for name in parts
            if name not in PAIRS
        ]
    elif set(parts) != {""}:
        findings.append(f"groups {', '.join(parts)}: a {kind} store has none")
    for group, part in parts.items():
        prefix = f"{group}/" if group else ""
        findings += [prefix + finding for finding in _schema_findings(part, schema.all)]
    return findings


def status_counts(dataset: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, int]:
    """Count runs by how they ended, over all groups.

    Returns
    -------
    dict
        ``{"ok": n, "diverged": n, "not_run": n}``; empty if nothing has a ``status``.
    """
    values = [part["status"].values for part in _datasets(dataset).values() if "status" in part]
    if not values:
        return {}
    counts = np.bincount(np.concatenate(values).astype(int), minlength=len(STATUS))
    return {name: int(count) for name, count in zip(STATUS, counts, strict=False)}


# --- writing --------------------------------------------------------------------------------------


def _packing(
    dims: Sequence[str], shape: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Choose chunks (what is read at once) and shards (what is one file).

    Returns
    -------
    chunks, shards : tuple of int
        ``shards`` is None for a variable that fits into one chunk. Shards are whole multiples of
        chunks and stay below `_SHARD_BYTES`, unless one chunk alone is larger.
    """
    chunks = [max(1, size) for size in shape]

    def nbytes(block: Sequence[int]) -> int:
        return math.prod(block) * itemsize

    if nbytes(chunks) <= _CHUNK_BYTES:
        return tuple(chunks), None
    order = [dims.index(name) for name in _CUT_FIRST if name in dims]
    order += [axis for axis in range(len(shape)) if axis not in order]
    for axis in order:
        pieces = min(shape[axis], math.ceil(nbytes(chunks) / _CHUNK_BYTES))
        chunks[axis] = math.ceil(shape[axis] / pieces)
    shards = list(chunks)
    for axis in reversed(order):
        blocks = math.ceil(shape[axis] / chunks[axis])
        room = max(1, _SHARD_BYTES // nbytes(shards))
        files = math.ceil(blocks / room)
        shards[axis] = chunks[axis] * math.ceil(blocks / files)
    return tuple(chunks), tuple(shards)


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
    for name, variable in list(dataset.variables.items()):
        variable.attrs = _explained(str(name), variable.attrs, variables)
        chunks, shards = _packing(
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
            dataset[name] = dataset[name].chunk(block)
    return dataset, encoding


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON values: numpy's scalars and arrays as Python's numbers and lists."""
    return {
        str(name): value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in attrs.items()
    }


@contextmanager
def _quiet_zarr() -> Iterator[None]:
    with warnings.catch_warnings():
        # Consolidated metadata are an agreed convention that every reader may ignore.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        yield


def _write_zarr(
    parts: Mapping[str, xr.Dataset],
    attrs: Mapping[str, Mapping[str, Any]],
    variables: Mapping[str, Variable],
    target: Path | MemoryStore,
) -> None:
    """Write with xarray and zarr, piece by piece."""
    with _quiet_zarr():
        xr.Dataset(attrs=attrs.get("")).to_zarr(
            target, mode="w", zarr_format=_ZARR_FORMAT, consolidated=False
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
                zarr_format=_ZARR_FORMAT,
                consolidated=False,
                encoding=encoding,
                write_empty_chunks=True,
            )
        zarr.consolidate_metadata(target, zarr_format=_ZARR_FORMAT)


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
    return onechunk.fits(part) and all(v.nbytes <= _CHUNK_BYTES for v in part.variables.values())


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


def _is_zip(path: Path) -> bool:
    return path.name.endswith(".zip")


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
        raise StoreError(f"{path}: a store's name must end in .zarr or .zarr.zip")
    if not path.exists():
        return
    is_store = zipfile.is_zipfile(path) if _is_zip(path) else (path / "zarr.json").is_file()
    is_empty = path.is_dir() and not any(path.iterdir())
    if not (is_store or is_empty):
        raise StoreError(f"{path}: exists and is not a store; choose another name")


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
        If the dataset is not what its kind must be, or the name may not be used.
    ValueError
        If the kind is unknown.
    """
    path = Path(path)
    if kind is not None and kind not in SCHEMAS:
        raise ValueError(f"kind {kind!r}: must be one of {', '.join(SCHEMAS)}")
    check_target(path)
    parts = _datasets(dataset)
    root = dict(attrs or {})
    if isinstance(dataset, xr.Dataset):
        root.update(cast("dict[str, Any]", dataset.attrs))
    variables: Mapping[str, Variable] = {}
    if kind is not None:
        schema = SCHEMAS[kind]
        variables = schema.all
        findings = _kind_findings(kind, root, parts)
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
        if _is_zip(path):
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


# --- reading --------------------------------------------------------------------------------------


@contextmanager
def _zarr_store(path: Path) -> Iterator[str | ZipStore]:
    """Open what zarr reads from, for as long as the block lasts."""
    if not path.exists():
        raise StoreError(f"{path}: no such store")
    if not _is_zip(path):
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
    return _open(Path(path), group, dict(chunks or {}))


def _open(path: Path, group: str | None, chunks: dict[str, int] | None) -> xr.Dataset:
    """Open with xarray: as Dask arrays, or without chunks as arrays that are read when used."""
    if not path.exists():
        raise StoreError(f"{path}: no such store")
    try:
        source = ZipStore(path, mode="r") if _is_zip(path) else str(path)
        return xr.open_zarr(
            source, group=group, chunks=chunks, consolidated=True, zarr_format=_ZARR_FORMAT
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
    path = Path(path)
    try:
        dataset = onechunk.read(path, names, _SHARD_BYTES)
    except onechunk.DamageError as error:
        raise StoreError(f"{path}: {error}") from error
    if dataset is not None:
        return dataset
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
    with _zarr_store(Path(path)) as source:
        try:
            return sorted(zarr.open_group(source, mode="r", zarr_format=_ZARR_FORMAT).group_keys())
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


# --- soundness ------------------------------------------------------------------------------------


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
    with _zarr_store(path) as source:
        members = zarr.open_group(
            source, mode="r", zarr_format=_ZARR_FORMAT, use_consolidated=False
        ).members(max_depth=None)
        arrays = [name for name, member in members if isinstance(member, zarr.Array)]
    found = {}
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if any(name.startswith(f"{array}/") for array in arrays):
                    with archive.open(name) as stream:
                        digester = hashlib.sha256()
                        while piece := stream.read(2**20):
                            digester.update(piece)
                        found[name] = digester.hexdigest()
    else:
        for array in arrays:
            for file in store_files(path / array):
                found[file.relative_to(path).as_posix()] = file_digest(file)
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


def _damage(path: Path) -> list[str]:
    """Read every chunk, and compare the two copies of the metadata."""
    findings: list[str] = []
    with _zarr_store(path) as source:
        try:
            root = zarr.open_group(
                source, mode="r", zarr_format=_ZARR_FORMAT, use_consolidated=False
            )
            members = dict(root.members(max_depth=None))
            copies = dict(
                zarr.open_group(
                    source, mode="r", zarr_format=_ZARR_FORMAT, use_consolidated=True
                ).members(max_depth=None)
            )
        except Exception as error:
            return [f"metadata: {error_line(error)}"]
        names = _names(path)
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
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    return {file.relative_to(path).as_posix() for file in store_files(path)}


def _loaded(path: Path, group: str | None) -> xr.Dataset:
    """Open a group; one that is no larger than a file may be is read, which is quicker."""
    part = _open(path, group, None)
    return part.load() if part.nbytes <= _SHARD_BYTES else open_store(path, group)


def _value_findings(part: xr.Dataset) -> list[str]:
    """Find values that are not numbers where they should be, and the other way round."""
    findings = []
    may_fail = xr.DataArray(False)
    must_fail = xr.DataArray(False)
    if "status" in part:
        status = part["status"].load()
        if bool(((status < OK) | (status > NOT_RUN)).any()):
            findings.append(f"status: values must be 0 to {NOT_RUN}")
        may_fail = status != OK
        if "diverged_step" in part:
            first = part["diverged_step"]
            diverged, not_run = status == DIVERGED, status == NOT_RUN
            if bool((diverged != (first >= 0)).any()):
                findings.append("diverged_step: must be -1 exactly where status is not diverged")
            may_fail = (not_run | (diverged & (part["step"] >= first))).load()
            must_fail = (not_run | (diverged & (part["step"] > first))).load()
    for name, variable in part.data_vars.items():
        if variable.dtype.kind != "f":
            continue
        inner = [dim for dim in variable.dims if dim not in may_fail.dims]
        finite = cast(xr.DataArray, np.isfinite(variable))
        broken = (~finite).any(inner)
        if bool((broken & ~may_fail).any()):
            findings.append(f"{name}: NaN or infinite values where the status is ok")
        if bool((finite.any(inner) & must_fail).any()):
            findings.append(f"{name}: values after a run has diverged")
    findings += [
        f"{name}: NaN or infinite values"
        for name, variable in part.coords.items()
        if variable.dtype.kind == "f" and not bool(np.isfinite(variable).all())
    ]
    return findings


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
                findings += _kind_findings(kind, attrs, parts)
            else:
                findings.append(f"attribute kind: {kind!r}, must be one of {', '.join(SCHEMAS)}")
            findings += [f"attribute {name}: missing" for name in PROVENANCE if name not in attrs]
            if not findings:
                for group, part in parts.items():
                    prefix = f"{group}/" if group else ""
                    findings += [prefix + finding for finding in _value_findings(part)]
        if manifest is not None and read_manifest(manifest).get("digest") != digest(path):
            findings.append(f"digest: not the one in {Path(manifest).name}")
    except StoreError as error:
        return [str(error)]
    return findings


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
    explained = {"title", "summary", "kind", "experiment_file"}
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
