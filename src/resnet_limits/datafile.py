"""Arrays x and y from a file that anybody may have made.

Nothing in a data file is believed before it is looked at: what kind of file it is, how large it
says that it and its arrays are, and which codecs pack them. No pickle is ever read. Only `read`
imports what is heavy, so that the Snakefile can call `check`.
"""

from __future__ import annotations

import math
import os
import stat
import warnings
import zipfile
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_limits.config import MAX_DATA_VALUES, MAX_NUMBER, InputError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_FILE_BYTES = 512 * 2**20
"""Most bytes of a data file or of all files of a Zarr folder, packed and unpacked."""

MAX_FILES = 100_000
"""Most files in a Zarr folder, or members in an archive."""

CODECS = frozenset(
    {
        "bytes", "transpose", "sharding_indexed", "blosc", "zstd", "gzip", "zlib", "lz4", "bz2",
        "lzma", "pcodec", "zfpy", "shuffle", "delta", "bitround", "quantize", "fixedscaleoffset",
        "packbits", "astype", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3",
    }
)  # fmt: skip
"""Codecs of Zarr arrays that may be decoded: they turn numbers into numbers and do nothing else."""

_ENDINGS = ".npz, .zarr, .zarr.zip or .nc"
_BOTH = "x and y together"
_ARRAYS = "numeric arrays x and y"
# Of all the ways to pack a zip member, those whose unpacking can be stopped in time.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Widest number, and the header of an .npy file.
_MAX_ARRAY_BYTES = 16 * MAX_DATA_VALUES + 2**16
# What reading may take beyond what the process has; xarray and codecs hold several copies.
_READING_BYTES = 4 * 2**30


def _refusal(path: str, what: str, allowed: str) -> InputError:
    return InputError(one_line(f"problem.data.path: {path}: {what}; allowed: {allowed}"))


# --- the file -------------------------------------------------------------------------------------


def check(path: str) -> None:
    """Look at what kind of file the data are in, and how large it is, without opening it.

    Parameters
    ----------
    path : str
        ``problem.data.path`` of an experiment.

    Raises
    ------
    InputError
        If there is no such file, it is neither a regular file nor, for ``.zarr``, a folder of
        regular files, or it is too large.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise _refusal(path, "no such file", f"an existing {_ENDINGS}") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise _refusal(path, reason, f"a readable {_ENDINGS}") from None
    if stat.S_ISDIR(status.st_mode):
        if Path(path).suffix != ".zarr":
            raise _refusal(path, "is a folder", "a file, or a folder that ends in .zarr")
        _check_total(path, _folder_sizes(path, path))
    elif not stat.S_ISREG(status.st_mode):
        raise _refusal(path, "is not a regular file", f"a readable {_ENDINGS}")
    else:
        _check_total(path, [status.st_size])


def _folder_sizes(path: str, folder: str) -> Iterator[int]:
    """Sizes of all files in a folder, none of which may be a pipe, a device or a link to a folder.

    Reading a pipe would wait forever, a device would never end.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _folder_sizes(path, entry.path)
                elif entry.is_file():
                    yield entry.stat().st_size
                else:
                    inside = os.path.relpath(entry.path, path)
                    raise _refusal(path, f"{inside} is not a regular file", "files and folders")
    except OSError as error:
        raise _refusal(path, str(error.strerror).lower(), "a readable folder") from None
    except RecursionError:
        raise _refusal(path, "folders are nested too deeply", "a Zarr folder") from None


def _check_total(path: str, sizes: Iterator[int] | list[int]) -> None:
    total = 0
    for count, size in enumerate(sizes, start=1):
        total += size
        if count > MAX_FILES:
            raise _refusal(path, f"holds more than {MAX_FILES} files", f"at most {MAX_FILES}")
        if total > MAX_FILE_BYTES:
            raise _refusal(path, "too large", f"at most {MAX_FILE_BYTES} bytes, packed or not")


def _check_archive(path: str, names: Collection[str] | None = None) -> None:
    """Check members of a zip archive before they are unpacked whole.

    Sizes are first taken as the archive gives them, then found out in small pieces: no more is
    unpacked of a member than its size allows, and its checksum then tells if that was a lie.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if names is not None:
            members = [member for member in members if member.filename in names]
        for member in members:
            if member.compress_type not in _METHODS:
                raise _refusal(
                    path,
                    f"{member.filename} is packed by method {member.compress_type}",
                    "members that are stored or deflated",
                )
        if names is None:
            _check_total(path, [member.file_size for member in members])
        for member in members:
            with archive.open(member) as stream:
                while stream.read(2**20):
                    pass


# --- arrays ---------------------------------------------------------------------------------------


def read(path: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read and check the data.

    Parameters
    ----------
    path : str
        ``problem.data.path`` of an experiment.

    Returns
    -------
    x : ndarray, shape (samples, [tokens,] inputs)
    y : ndarray, shape (samples, [tokens,] targets)

    Raises
    ------
    InputError
        If the file is missing, unreadable, or larger than it may be; if an array is missing, holds
        what are no numbers, or too many; or if the two do not fit together.
    """
    check(path)
    reader = _read_npz if path.rstrip("/").endswith(".npz") else _read_xarray
    try:
        # What libraries remark about a foreign file would stand beside the one line.
        with _bounded_memory(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arrays = reader(path)
    except InputError:
        raise
    except MemoryError:
        raise _refusal(path, "unpacks to too much", f"at most {MAX_FILE_BYTES} bytes") from None
    except Exception as error:
        # Whatever numpy, xarray or a codec raises here, the file is what is wrong.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _refusal(path, f"cannot be read ({reason})", _ARRAYS) from None
    # What is decoded need not be what was declared.
    _check_kind(path, arrays)
    x, y = (_checked_values(path, name, arrays[name]) for name in ("x", "y"))
    if x.ndim != y.ndim or x.shape[:-1] != y.shape[:-1]:
        raise _refusal(
            path,
            f"x {x.shape} and y {y.shape} do not fit together",
            "x (samples, [tokens,] inputs) and y (samples, [tokens,] targets)",
        )
    return x, y


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let reading fail, and not the machine, where a few bytes unpack to very many.

    What a chunk unpacks to is known to its codec only. Where the system can't say how much memory
    a process has, or can't bound it, the other checks must do.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = pages * resource.getpagesize() + _READING_BYTES
    bounds = [bound, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check_names(path: str, names: Container[Any]) -> None:
    missing = [name for name in ("x", "y") if name not in names]
    if missing:
        raise _refusal(path, f"no array {' and '.join(missing)}", "arrays x and y")


def _check_kind(path: str, arrays: Mapping[Any, Any]) -> None:
    """Check types and sizes as the arrays declare them, before any value is read."""
    for name in ("x", "y"):
        dtype, shape = arrays[name].dtype, tuple(arrays[name].shape)
        if dtype.kind not in "fiub":
            raise _refusal(path, f"{name} has values of type {dtype}", "real numbers")
        _check_count(path, name, math.prod(shape))
        if len(shape) not in (2, 3) or 0 in shape:
            last = "inputs" if name == "x" else "targets"
            raise _refusal(path, f"{name} has shape {shape}", f"(samples, [tokens,] {last})")
    _check_count(path, _BOTH, sum(math.prod(arrays[name].shape) for name in "xy"))


def _check_count(path: str, name: str, values: int) -> None:
    if values > MAX_DATA_VALUES:
        verb = "hold" if name == _BOTH else "holds"
        raise _refusal(path, f"{name} {verb} {values} numbers", f"at most {MAX_DATA_VALUES}")


def _read_npz(path: str) -> dict[str, NDArray[Any]]:
    import numpy as np

    files = {name: f"{name}.npy" for name in ("x", "y")}
    with zipfile.ZipFile(path) as archive:
        _check_names(path, [file.removesuffix(".npy") for file in archive.namelist()])
        for name, file in files.items():
            size = archive.getinfo(file).file_size
            if size > _MAX_ARRAY_BYTES:
                _check_count(path, name, size // 16)
        _check_archive(path, files.values())
        for name, file in files.items():
            with archive.open(file) as stream:
                _check_header(path, name, stream)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in files}


def _check_header(path: str, name: str, stream: Any) -> None:
    """Check what an .npy file says of its array, for which memory is taken before it is read."""
    import numpy as np

    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise _refusal(path, f"{name} is of format {version}", "formats 1.0 and 2.0 of .npy")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise _refusal(path, f"{name} has values of type {dtype}", "real numbers")
    _check_count(path, name, math.prod(shape))


def _read_xarray(path: str) -> dict[str, NDArray[Any]]:
    import xarray as xr
    from zarr.storage import ZipStore

    name = path.rstrip("/")
    if name.endswith(".nc"):
        with Path(path).open("rb") as stream:
            is_classic = stream.read(3) == b"CDF"
        # Without the map of the file into memory, which can't be closed while an array is left.
        options: dict[str, Any] = {"engine": "scipy", "mmap": False} if is_classic else {}
        opened = xr.open_dataset(path, **options)
    else:
        if name.endswith(".zip"):
            _check_archive(path)
        source = ZipStore(path, mode="r") if name.endswith(".zip") else path
        others = _check_zarr(path, source)
        opened = xr.open_zarr(source, chunks=None, consolidated=False, drop_variables=others)
    with opened as dataset:
        _check_names(path, dataset)
        _check_kind(path, dataset)
        return {name: dataset[name].values for name in ("x", "y")}


def _check_zarr(path: str, source: Any) -> list[str]:
    """Check the metadata of x and y; names of all other arrays, which are left alone."""
    import zarr

    group = zarr.open_group(source, mode="r", use_consolidated=False)
    arrays = dict(group.arrays())
    _check_names(path, arrays)
    _check_kind(path, arrays)
    for name in ("x", "y"):
        foreign = sorted(set(_codecs(arrays[name].metadata.to_dict())) - CODECS)
        if foreign:
            raise _refusal(path, f"{name} is packed by {foreign[0]}", "the codecs of numbers")
        for sizes in (arrays[name].chunks, arrays[name].shards or ()):
            # A chunk is unpacked whole, however little of it is in the array.
            _check_count(path, f"a chunk of {name}", math.prod(sizes))
    return [name for name in arrays if name not in ("x", "y")]


def _codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Names of all codecs of an array, of either version of Zarr."""
    for codec in metadata.get("codecs") or ():
        yield str(codec["name"]).removeprefix("numcodecs.")
        configuration = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            yield from _codecs({"codecs": configuration.get(key)})
    for codec in (metadata.get("compressor"), *(metadata.get("filters") or ())):
        if codec is not None:
            yield str(codec["id"])


def _checked_values(path: str, name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    import numpy as np

    values = np.ascontiguousarray(array, dtype=np.float64)
    unsound = ~np.isfinite(values)
    if unsound.any():
        first = tuple(int(i) for i in np.argwhere(unsound)[0])
        raise _refusal(
            path,
            f"{name} holds {int(unsound.sum())} values that are NaN or infinite, the first at "
            f"{list(first)}",
            "finite numbers",
        )
    largest = float(np.abs(values).max())
    if largest > MAX_NUMBER:
        raise _refusal(path, f"{name} holds {largest:g}", f"numbers up to {MAX_NUMBER:g}")
    return values
