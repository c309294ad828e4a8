"""Arrays x and y, and weight and is_test where there are any, from a file that anybody made.

Nothing in a data file is believed before it is looked at: what kind of file it is, how large it
says that it and its arrays are, and which codecs pack them. No pickle is ever read, and no file
but the one that is named. Of these arrays the values are read as they are stored, with what the
conventions for packed values (CF, section 8.1) say of them; everything else in a file is left
alone. Only `read` imports what is heavy, so that the Snakefile can call `check`.
"""

from __future__ import annotations

import base64
import math
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnet_limits.config import MAX_DATA_VALUES, MAX_NUMBER, InputError, one_line
from resnet_limits.datashape import hdf5_array, is_inside, open_hdf5

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

HDF5_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
"""Numbers of the filters of netCDF-4 arrays that come with the library (deflate, shuffle,
fletcher32, szip, n-bit, scale-offset, lzf); any other would be looked for in the machine's
folders of plugins."""

_ENDINGS = ".npz, .zarr, .zarr.zip or .nc"
_INSIDE = "files of the folder itself, and links to them"
_BOTH = "x and y together"
_ARRAYS = "numeric arrays x and y"
_NAMES, _WEIGHT, _TEST = ("x", "y"), "weight", "is_test"
_SHAPES = {
    "x": "(samples, [tokens,] inputs)",
    "y": "(samples, [tokens,] targets)",
    _WEIGHT: "(samples, [tokens])",
    _TEST: "(samples)",
}
# Attributes that change what stored values mean.
_MISSING = ("_FillValue", "missing_value")
_PACKED = ("scale_factor", "add_offset")
_ATTRIBUTES = (*_MISSING, *_PACKED, "_Unsigned")
# Of all the ways to pack a zip member, those whose unpacking can be stopped in time.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Widest number, and the header of an .npy file.
_MAX_ARRAY_BYTES = 16 * MAX_DATA_VALUES + 2**16
# What reading may take beyond what the process has; xarray and codecs hold several copies.
_READING_BYTES = 4 * 2**30


class _Stored(NamedTuple):
    """An array in an open file, of which no value is read yet.

    Attributes
    ----------
    dtype, shape
        As the file declares them.
    attributes : mapping
        Its attributes.
    values : callable
        Reads the values as they are stored.
    """

    dtype: Any
    shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    values: Callable[[], Any]


class Data(NamedTuple):
    """Arrays of a data file.

    Attributes
    ----------
    x : ndarray, shape (samples, [tokens,] inputs)
    y : ndarray, shape (samples, [tokens,] targets)
    weight : ndarray, shape (samples, [tokens]), or None
        Not negative, and not all zero; None where the file has none.
    is_test : ndarray of bool, shape (samples,), or None
        The samples that are not trained on; None where there are none.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    weight: NDArray[np.float64] | None
    is_test: NDArray[np.bool_] | None


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
    """Sizes of all files in a folder: no pipes, no devices, no links to folders or out of it.

    Reading a pipe would wait forever, a device would never end.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _folder_sizes(path, entry.path)
                elif entry.is_file():
                    if entry.is_symlink() and not is_inside(entry.path, path):
                        inside = os.path.relpath(entry.path, path)
                        raise _refusal(path, f"{inside} is a link to a file elsewhere", _INSIDE)
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


def read(path: str) -> Data:
    """Read and check the data.

    Parameters
    ----------
    path : str
        ``problem.data.path`` of an experiment.

    Returns
    -------
    Data

    Raises
    ------
    InputError
        If the file is missing, unreadable, or larger than it may be; if an array is missing, holds
        what are no numbers, or too many; if they do not fit together; if weights are negative; or
        if no sample that is trained on has one.
    """
    check(path)
    name = path.rstrip("/")
    reader: Callable[[str], dict[str, NDArray[Any]]] = _read_zarr
    if name.endswith(".npz"):
        reader = _read_npz
    elif name.endswith(".nc"):
        reader = _read_netcdf
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
        # Whatever numpy, zarr, h5py or a codec raises here, the file is what is wrong.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _refusal(path, f"cannot be read ({reason})", _ARRAYS) from None
    # What is decoded need not be what was declared.
    _check_kind(path, arrays)
    values = {name: _checked_values(path, name, array) for name, array in arrays.items()}
    x, y, weight = values["x"], values["y"], values.get(_WEIGHT)
    _check_together(path, x.shape, y.shape)
    if weight is not None:
        _check_weight(path, weight, x.shape[:-1])
    is_test = None
    if _TEST in values and values[_TEST].any():
        is_test = _checked_test(path, values[_TEST], weight, len(x))
    return Data(x, y, weight, is_test)


def _checked_test(
    path: str, values: NDArray[np.float64], weight: NDArray[np.float64] | None, samples: int
) -> NDArray[np.bool_]:
    """Check that every sample is said to be trained on or not, and one that counts is."""
    if len(values) != samples:
        raise _refusal(path, f"is_test has shape {values.shape}", f"one for each sample, {samples}")
    if (other := (values != 0) & (values != 1)).any():
        raise _refusal(
            path, f"is_test holds {values[other][0]:g} at {_first(other)}", "0 or 1, or booleans"
        )
    is_test = values == 1
    if is_test.all() or (weight is not None and not weight[~is_test].any()):
        raise _refusal(path, "no sample that is trained on has a weight above 0", "at least one")
    return is_test


def _check_weight(path: str, weight: NDArray[np.float64], rows: tuple[int, ...]) -> None:
    """Check that every row has a weight, none negative and not all zero."""
    if weight.shape != rows:
        raise _refusal(
            path, f"weight has shape {weight.shape}", f"{_SHAPES[_WEIGHT]} as x has, here {rows}"
        )
    if (negative := weight < 0).any():
        what = f"weight holds {int(negative.sum())} negative values, the first at"
        raise _refusal(path, f"{what} {_first(negative)}", "numbers from 0")
    if not weight.any():
        raise _refusal(path, "weight is zero everywhere", "at least one above 0")


def _check_together(path: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    """Check that x and y have the same samples, and the same tokens or none."""
    if x[:-1] == y[:-1]:
        return
    if len(x) != len(y):
        why = "one has tokens (three dimensions), the other has none"
    elif x[0] != y[0]:
        why = f"{x[0]} and {y[0]} samples"
    else:
        why = f"{x[1]} and {y[1]} tokens"
    raise _refusal(
        path,
        f"x {x} and y {y} do not fit together: {why}",
        f"x {_SHAPES['x']} and y {_SHAPES['y']}",
    )


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


def _present(path: str, names: Iterable[str]) -> tuple[str, ...]:
    """Give the names of the arrays that are read; weight and is_test where they are there."""
    there = sorted(names)
    missing = [name for name in _NAMES if name not in there]
    if missing:
        few = ", ".join(name[:40] for name in there[:5]) + (", ..." if len(there) > 5 else "")
        here = f" (the file has {few})" if there else ""
        raise _refusal(path, f"no array {' and '.join(missing)}", f"arrays x and y{here}")
    return (*_NAMES, *(name for name in (_WEIGHT, _TEST) if name in there))


def _check_kind(path: str, arrays: Mapping[Any, Any]) -> None:
    """Check types and sizes as the arrays declare them, before any value is read."""
    for name in arrays:
        dtype, shape = arrays[name].dtype, tuple(arrays[name].shape)
        if dtype.kind not in "fiub":
            raise _refusal(path, f"{name} has values of type {dtype}", "real numbers")
        _check_count(path, name, math.prod(shape))
        dims = len(shape) + (name in (_WEIGHT, _TEST))
        if dims not in ((2,) if name == _TEST else (2, 3)) or 0 in shape:
            column = f", here ({shape[0]}, 1)" if dims == 1 else ""
            raise _refusal(path, f"{name} has shape {shape}", f"{_SHAPES[name]}{column}")
    _check_count(path, _BOTH, sum(math.prod(arrays[name].shape) for name in _NAMES))


def _check_count(path: str, name: str, values: int) -> None:
    if values > MAX_DATA_VALUES:
        verb = "hold" if name == _BOTH else "holds"
        raise _refusal(path, f"{name} {verb} {values} numbers", f"at most {MAX_DATA_VALUES}")


def _read_npz(path: str) -> dict[str, NDArray[Any]]:
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        found = (file.removesuffix(".npy") for file in archive.namelist() if file.endswith(".npy"))
        files = {name: f"{name}.npy" for name in _present(path, found)}
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


def _read_netcdf(path: str) -> dict[str, NDArray[Any]]:
    with Path(path).open("rb") as stream:
        magic = stream.read(8)
    if magic[:4] in (b"CDF\x01", b"CDF\x02"):
        return _read_classic(path)
    if magic == b"\x89HDF\r\n\x1a\n":
        return _read_hdf5(path)
    what = "netCDF of format CDF-5" if magic[:4] == b"CDF\x05" else "no netCDF"
    raise _refusal(
        path, f"cannot be read ({what})", "netCDF classic, with 64-bit offsets, or netCDF-4"
    )


def _read_classic(path: str) -> dict[str, NDArray[Any]]:
    from scipy.io import netcdf_file

    # Without the map of the file into memory, which can't be closed while an array is left.
    with netcdf_file(path, "r", mmap=False) as file:
        found = {
            name: _Stored(data.dtype, data.shape, file.variables[name]._attributes, data.copy)
            for name in _present(path, file.variables)
            for data in [file.variables[name].data]
        }
        return _read_stored(path, found)


def _read_hdf5(path: str) -> dict[str, NDArray[Any]]:
    with open_hdf5(path) as file:
        names = _present(path, file)
        try:
            arrays = {name: hdf5_array(file, name) for name in names}
        except ValueError as error:
            raise _refusal(path, str(error), "arrays in the file itself") from None
        found = {
            name: _Stored(
                array.dtype,
                array.shape or (),
                {key: array.attrs[key] for key in _ATTRIBUTES if key in array.attrs},
                partial(array.__getitem__, ()),
            )
            for name, array in arrays.items()
        }
        # Text and references are objects, of which nothing may be asked.
        _check_kind(path, found)
        for name, array in arrays.items():
            if array.is_virtual or array.external:
                raise _refusal(
                    path, f"{name} is stored in other files", "arrays in the file itself"
                )
            plan = array.id.get_create_plist()
            used = {plan.get_filter(number)[0] for number in range(plan.get_nfilters())}
            if used - HDF5_FILTERS:
                which = f"filter {min(used - HDF5_FILTERS)}"
                raise _refusal(path, f"{name} is packed by {which}", "deflate, lzf or no packing")
            # A chunk is unpacked whole, however little of it is in the array.
            _check_count(path, f"a chunk of {name}", math.prod(array.chunks or ()))
        return _read_stored(path, found)


def _read_zarr(path: str) -> dict[str, NDArray[Any]]:
    import zarr
    from zarr.storage import ZipStore

    source: Any = path
    if path.endswith(".zip"):
        _check_archive(path)
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[0] for name in archive.namelist() if "/" in name}
        source = ZipStore(path, mode="r")
    else:
        names = {entry.name for entry in os.scandir(path) if entry.is_dir()}
        if not names:
            raise _refusal(path, "cannot be read (a folder without arrays)", _ARRAYS)
    # One by one: what the group says of itself, and all other arrays, are left alone.
    arrays = {name: zarr.open_array(source, path=name, mode="r") for name in _present(path, names)}
    found = {
        name: _Stored(array.dtype, array.shape, dict(array.attrs), partial(array.__getitem__, ...))
        for name, array in arrays.items()
    }
    _check_kind(path, found)
    for name, array in arrays.items():
        foreign = sorted(set(_codecs(array.metadata.to_dict())) - CODECS)
        if foreign:
            raise _refusal(path, f"{name} is packed by {foreign[0]}", "the codecs of numbers")
        for sizes in (array.chunks, array.shards or ()):
            # A chunk is unpacked whole, however little of it is in the array.
            _check_count(path, f"a chunk of {name}", math.prod(sizes))
    return _read_stored(path, found)


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


def _read_stored(path: str, found: Mapping[str, _Stored]) -> dict[str, NDArray[Any]]:
    _check_kind(path, found)
    return {
        name: _unpacked(path, name, stored.values(), stored.attributes)
        for name, stored in found.items()
    }


def _unpacked(
    path: str, name: str, values: NDArray[Any], attributes: Mapping[str, Any]
) -> NDArray[Any]:
    """Apply what the attributes of a variable say of its stored values.

    Values that stand for missing ones are refused; a fill value that Zarr keeps beside the
    attributes says only what was never written, and is a value like any other.
    """
    import numpy as np

    unsigned = attributes.get("_Unsigned")
    unsigned = unsigned.decode("latin1") if isinstance(unsigned, bytes) else unsigned
    turned = {"true": ("i", "u"), "false": ("u", "i")}.get(str(unsigned).lower())
    turns = turned is not None and values.dtype.kind == turned[0]
    for key in _MISSING:
        for number in _numbers(path, name, key, attributes, values.dtype.kind):
            with np.errstate(all="ignore"):
                stored = np.asarray(number).astype(values.dtype)
            is_there = values.dtype.kind == "f" or turns or stored == number
            missing = (values == stored) & is_there
            if missing.any():
                raise _refusal(
                    path,
                    f"{name} holds {int(missing.sum())} missing values ({key} {number:g}), "
                    f"the first at {_first(missing)}",
                    "finite numbers",
                )
    if turned is not None and turns:
        values = values.view(values.dtype.str.replace(*turned))
    scale, offset = (_numbers(path, name, key, attributes, values.dtype.kind) for key in _PACKED)
    if scale or offset:
        values = values.astype(np.float64) * (scale or [1.0])[0] + (offset or [0.0])[0]
    return values


def _numbers(
    path: str, name: str, key: str, attributes: Mapping[str, Any], kind: str
) -> list[float]:
    """Give the numbers in an attribute; none where it is absent."""
    import numpy as np

    if key not in attributes:
        return []
    value = attributes[key]
    if key == "_FillValue" and isinstance(value, str) and kind == "f":
        # In Zarr 3 xarray writes it as eight bytes in base64.
        try:
            return [struct.unpack("<d", base64.standard_b64decode(value))[0]]
        except (ValueError, struct.error):
            pass
    numbers = np.atleast_1d(np.asarray(value))
    several = numbers.size != 1 and key != "missing_value"
    if numbers.dtype.kind not in "fiu" or several or numbers.size > 100:
        plain = value.decode("latin1") if isinstance(value, bytes) else value
        text = repr(plain.tolist() if isinstance(plain, np.ndarray) else plain)[:60]
        raise _refusal(path, f"{name} has the attribute {key} {text}", "one number")
    found: list[float] = numbers.ravel().tolist()
    return found


def _first(where: NDArray[Any]) -> list[int]:
    import numpy as np

    return [int(i) for i in np.argwhere(where)[0]]


def _checked_values(path: str, name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    import numpy as np

    values = np.ascontiguousarray(array, dtype=np.float64)
    unsound = ~np.isfinite(values)
    if unsound.any():
        raise _refusal(
            path,
            f"{name} holds {int(unsound.sum())} values that are NaN or infinite, the first at "
            f"{_first(unsound)}",
            "finite numbers",
        )
    largest = float(np.abs(values).max())
    if largest > MAX_NUMBER:
        raise _refusal(path, f"{name} holds {largest:g}", f"numbers up to {MAX_NUMBER:g}")
    return values
