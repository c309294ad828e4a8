"""Data files made to do harm: nothing is unpickled, and nothing unpacks to more than it may."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pickle
import struct
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import ZipStore

from resnet_limits import datafile
from resnet_limits.config import InputError

X, Y = np.arange(12.0).reshape(4, 3), np.arange(8.0).reshape(4, 2)


class Evil:
    """What creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def refusal(path: Path, allowed: str = "") -> str:
    with pytest.raises(InputError) as caught:
        datafile.read(str(path))
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"problem.data.path: {path}: ")
    what, _, said = message.removeprefix(f"problem.data.path: {path}: ").partition("; allowed: ")
    assert said == allowed if allowed else said
    return what


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + content


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def archive(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def zarr_folder(path: Path, version: int, **more: np.ndarray) -> Path:
    arrays = {"x": (("sample", "input"), X), "y": (("sample", "target"), Y)}
    others = {name: ((f"dim_{name}",), values) for name, values in more.items()}
    xr.Dataset({**arrays, **others}).to_zarr(path, zarr_format=version, consolidated=False)
    return path


def edited(path: Path, name: str, **changes: Any) -> None:
    (file,) = [f for f in (path / name).iterdir() if f.name in {"zarr.json", ".zarray"}]
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, **changes}))


# --- .npz -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_sound_archive_is_read(tmp_path, method):
    x, y, *_ = datafile.read(str(archive(tmp_path / "d.npz", method, x=saved(X), y=saved(Y))))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_the_pickle_does_harm(tmp_path):
    """The negative control."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


def test_pickles_in_an_archive_are_refused(tmp_path, marker):
    evil = saved(np.array([[Evil(marker)]], dtype=object))
    assert "values of type object" in refusal(archive(tmp_path / "a.npz", x=evil, y=saved(Y)))
    bare = archive(tmp_path / "b.npz", x=pickle.dumps(Evil(marker)), y=saved(Y))
    assert "cannot be read" in refusal(bare)
    (tmp_path / "c.npz").write_bytes(pickle.dumps({"x": Evil(marker), "y": Y}))
    assert "cannot be read" in refusal(tmp_path / "c.npz")


HEADER = "{'descr': %s, 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    ("header", "version", "what"),
    [
        (HEADER % ("'<f8'", "(1000000000000, 3)"), b"\x01\x00", "x holds 3000000000000 numbers"),
        (HEADER % ("'<f8'", "(-1, 3)"), b"\x01\x00", "cannot be read"),
        (HEADER % ("'<U99999999'", "(4, 3)"), b"\x01\x00", ""),
        (HEADER % ("[('a', 'O')]", "(4, 3)"), b"\x02\x00", "values of type [('a', 'O')]"),
        (HEADER % ("'<f8'", "(4, 3)"), b"\x03\x00", "x is of format (3, 0)"),
        (HEADER % ("'<f8'", "(4, __import__('os'))"), b"\x01\x00", "cannot be read"),
        ("(" * 5000, b"\x01\x00", "cannot be read"),
    ],
    ids=["huge", "negative", "wide", "objects", "version", "code", "deep"],
)
def test_headers_are_checked_before_memory_is_taken(tmp_path, header, version, what):
    x = npy(header, X.tobytes(), version)
    assert what in refusal(archive(tmp_path / "d.npz", x=x, y=saved(Y)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_cannot_be_stopped_are_refused(tmp_path, method):
    path = archive(tmp_path / "d.npz", method, x=saved(X), y=saved(Y))
    assert f"packed by method {method}" in refusal(path)


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
    """It says that it holds X, and unpacks to 64 MB."""
    long = saved(X) + bytes(64 * 10**6)
    path = archive(tmp_path / "d.npz", zipfile.ZIP_DEFLATED, x=long, y=saved(Y))
    true, said = (struct.pack("<I", len(part)) for part in (long, saved(X)))
    content = path.read_bytes()
    assert content.count(true) == 2
    path.write_bytes(content.replace(true, said))
    assert "cannot be read (Bad CRC-32" in refusal(path)


def test_both_arrays_together_are_bounded(tmp_path, monkeypatch):
    path = archive(tmp_path / "d.npz", x=saved(X), y=saved(Y))
    monkeypatch.setattr(datafile, "MAX_DATA_VALUES", 19)
    assert refusal(path) == "x and y together hold 20 numbers"
    monkeypatch.setattr(datafile, "MAX_DATA_VALUES", 20)
    datafile.read(str(path))


def test_numbers_whose_squares_are_infinite_are_refused(tmp_path):
    assert refusal(archive(tmp_path / "d.npz", x=saved(X * 1e30), y=saved(Y))) == "x holds 1.1e+31"


# --- Zarr and NetCDF ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_folder_is_read_whatever_else_is_in_it(tmp_path, version):
    with warnings.catch_warnings(action="ignore"):
        path = zarr_folder(tmp_path / "d.zarr", version, names=np.array(["a", "b"]))
    with warnings.catch_warnings(action="error"):
        x, y, *_ = datafile.read(str(path))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize(
    "filters",
    [
        [{"id": "pickle", "protocol": 5}],
        # Behind a codec of text, an unpickling one was once decoded when the array was opened.
        [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}],
    ],
    ids=["pickle", "pickle behind text"],
)
@pytest.mark.parametrize("dtype", ["<f8", "|O"])
@pytest.mark.parametrize("name", ["x", "sample"])
def test_codecs_that_unpickle_are_never_decoded(
    tmp_path, marker, monkeypatch, name, dtype, filters
):
    """In x itself, and in an index, which xarray reads as soon as it opens it."""
    path = tmp_path / "d.zarr"
    arrays = {"x": (("sample", "input"), X), "y": (("sample", "target"), Y)}
    xr.Dataset(arrays, coords={"sample": np.arange(4)}).to_zarr(
        path, zarr_format=2, consolidated=False
    )
    edited(path, name, compressor=None, filters=filters, dtype=dtype, fill_value=None)
    chunk = path / name / ("0.0" if name == "x" else "0")
    chunk.write_bytes(pickle.dumps(Evil(marker)))
    # Versions of numcodecs differ in whether they unpickle: here all do.
    monkeypatch.setattr(
        numcodecs.pickles.Pickle, "decode", lambda self, buf, out=None: pickle.loads(bytes(buf))
    )
    assert numcodecs.get_codec({"id": "pickle", "protocol": 5}).decode(pickle.dumps(1)) == 1
    if name == "x":
        refusal(path)
        return
    with contextlib.suppress(InputError):
        datafile.read(str(path))


def test_codecs_of_no_numbers_are_named(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr", 2)
    edited(path, "x", filters=[{"id": "base64"}])
    assert refusal(path) == "x is packed by base64"


@pytest.mark.parametrize("version", [2, 3])
def test_sizes_in_metadata_are_bounded(tmp_path, version):
    path = zarr_folder(tmp_path / "d.zarr", version)
    edited(path, "x", shape=[10**9, 10**9])
    assert refusal(path) == f"x holds {10**18} numbers"


def test_sizes_of_chunks_are_bounded(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr", 2)
    edited(path, "x", chunks=[10**6, 10**6])
    assert refusal(path) == f"a chunk of x holds {10**12} numbers"


def zstd_zeros(size: int) -> bytes:
    """A frame of Zstandard of a few bytes for every 128 KiB of zeros (RFC 8878)."""
    block = 2**17
    count = size // block
    # One byte repeated: bit 0 says which is the last, bits 1 and 2 the kind, the rest the length.
    blocks = [((block << 3) | (1 << 1) | (number == count - 1)) for number in range(count)]
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", count * block)
    return head + b"".join(struct.pack("<I", word)[:3] + b"\0" for word in blocks)


def test_the_bomb_is_one():
    assert numcodecs.zstd.Zstd().decode(zstd_zeros(2**20)) == bytes(2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded where /proc tells it")
def test_a_chunk_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(datafile, "_READING_BYTES", 2**29)
    before = resource.getrlimit(resource.RLIMIT_AS)
    path = zarr_folder(tmp_path / "d.zarr", 2)
    edited(path, "x", compressor={"id": "zstd", "level": 0}, filters=None)
    (path / "x" / "0.0").write_bytes(zstd_zeros(2**32))
    assert "unpacks to too much" in refusal(path) or "cannot be read" in refusal(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < 2**32
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_members_of_a_zip_store_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "d.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zarr.json", bytes(10**6))
    monkeypatch.setattr(datafile, "MAX_FILE_BYTES", 10**5)
    assert refusal(path) == "too large"
    assert path.stat().st_size < 10**5


def test_pipes_and_devices_inside_a_folder_are_refused(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr", 3)
    (path / "x" / "c" / "9").symlink_to("/dev/zero")
    assert refusal(path) == "x/c/9 is not a regular file"
    (path / "x" / "c" / "9").unlink()
    os.mkfifo(path / "x" / "pipe")
    assert refusal(path) == "x/pipe is not a regular file"
    (path / "x" / "pipe").unlink()
    (path / "x" / "up").symlink_to(path)
    assert refusal(path) == "x/up is not a regular file"


def test_a_link_may_lead_to_a_file_inside_the_folder_only(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr", 3)
    chunk = next(file for file in sorted((path / "x" / "c").rglob("*")) if file.is_file())
    name = chunk.relative_to(path).as_posix()
    for target in (tmp_path / "elsewhere", tmp_path / "d.zarr.other"):
        chunk.rename(target)
        chunk.symlink_to(target)
        assert refusal(path) == f"{name} is a link to a file elsewhere"
        chunk.unlink()
        target.rename(chunk)
    # The negative control, also where the folder itself is reached through a link.
    chunk.rename(path / "moved")
    chunk.symlink_to(path / "moved")
    (tmp_path / "l.zarr").symlink_to(path)
    for folder in (path, tmp_path / "l.zarr"):
        np.testing.assert_array_equal(datafile.read(str(folder))[0].shape, X.shape)


def test_files_in_a_folder_are_counted(tmp_path, monkeypatch):
    path = zarr_folder(tmp_path / "d.zarr", 3)
    monkeypatch.setattr(datafile, "MAX_FILES", 4)
    assert refusal(path) == "holds more than 4 files"


def test_deeply_nested_metadata_are_refused(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr", 3)
    (path / "x" / "zarr.json").write_text("[" * 100_000)
    assert "x" in refusal(path)


def test_text_in_netcdf_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "d.nc"
    x = np.array([["a", "b"]] * 4)
    xr.Dataset({"x": (("s", "i"), x), "y": (("s", "t"), Y)}).to_netcdf(path, engine="scipy")
    assert "x has values of type" in refusal(path)


def test_a_netcdf_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "d.nc"
    xr.Dataset({"x": (("s", "i"), X), "y": (("s", "t"), Y)}).to_netcdf(path, engine="scipy")
    content = path.read_bytes()
    for size in (0, 4, 40, len(content) // 2, len(content) - 8):
        path.write_bytes(content[:size])
        refusal(path)


# --- what is read as it is stored -----------------------------------------------------------------


def zarr_arrays(path: Path, version: int, x: np.ndarray, y: np.ndarray, **options: Any) -> Path:
    """Write two bare arrays, without the names of dimensions."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name, values in (("x", x), ("y", y)):
        attributes = options.get("attributes", {}) if name == "x" else {}
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            attributes=attributes,
            **{key: value for key, value in options.items() if key != "attributes"},
        )
        array[...] = values
    return path


def zipped(path: Path) -> Path:
    target = path.with_suffix(".zarr.zip")
    with zipfile.ZipFile(target, "w") as file:
        for member in sorted(path.rglob("*")):
            file.write(member, member.relative_to(path).as_posix())
    return target


KINDS = [
    ("float zeros", np.array([[1.0, 0.0], [0.0, 2.0]]), {}),
    ("pixels", np.array([[0, 255], [7, 0]], np.uint8), {}),
    ("fill value 9", np.array([[9.0, 1.0], [2.0, 9.0]]), {"fill_value": 9.0}),
    ("fill value -1", np.array([[-1, 1], [2, -1]], np.int32), {"fill_value": -1}),
    ("booleans", np.array([[True, False], [False, True]]), {}),
    ("big-endian", np.array([[1.5, 0.0], [0.0, 2.0]], ">f4"), {}),
    ("half", np.array([[1.5, 0.0], [0.0, 2.0]], np.float16), {}),
    ("never written", np.zeros((4, 2)), {"chunks": (1, 1)}),
    ("long", np.array([[2**62, 0], [1, 2]], np.int64), {}),
]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("name", "x", "options"), KINDS, ids=[kind[0] for kind in KINDS])
def test_zarr_arrays_are_read_as_they_are_stored(tmp_path, packed, version, name, x, options):
    with warnings.catch_warnings(action="ignore"):
        path = zarr_arrays(tmp_path / "d.zarr", version, x, x, **options)
    found, other, *_ = datafile.read(str(zipped(path) if packed else path))
    np.testing.assert_array_equal(found, x.astype(float))
    np.testing.assert_array_equal(other, x.astype(float))


def test_shards_are_read_and_bounded(tmp_path):
    path = zarr_arrays(tmp_path / "d.zarr", 3, X, X, chunks=(2, 3), shards=(4, 3))
    np.testing.assert_array_equal(datafile.read(str(path))[0], X)
    zarr_arrays(path, 3, X, X, chunks=(2, 3), shards=(4 * 10**6, 3))
    assert refusal(path) == "a chunk of x holds 12000000 numbers"


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_that_were_saved_without_a_group_are_read(tmp_path, version):
    path = tmp_path / "d.zarr"
    for name, values in (("x", X), ("y", Y)):
        zarr.create_array(path / name, data=values, zarr_format=version)
    (path / "zarr.json").unlink(missing_ok=True)
    np.testing.assert_array_equal(datafile.read(str(path))[1], Y)


def test_arrays_of_which_nothing_is_understood_are_left_alone(tmp_path):
    path = zarr_folder(tmp_path / "d.zarr", 3, other=np.arange(3))
    edited(path, "other", data_type="of another world", codecs=[{"name": "unheard of"}])
    datafile.read(str(path))


def test_what_is_there_is_named_where_x_and_y_are_not(tmp_path):
    path = tmp_path / "d.zarr"
    zarr.save(path, X, Y)
    assert refusal(path, "arrays x and y (the file has arr_0, arr_1)") == "no array x and y"
    inside = tmp_path / "e.zarr.zip"
    with zipfile.ZipFile(inside, "w") as file:
        file.writestr("e.zarr/x/zarr.json", "{}")
    assert refusal(inside, "arrays x and y (the file has e.zarr)") == "no array x and y"
    np.savez(tmp_path / "f.npz", X=X, y=Y)
    assert refusal(tmp_path / "f.npz", "arrays x and y (the file has X, y)") == "no array x"


# --- netCDF ---------------------------------------------------------------------------------------


def netcdf(path: Path, engine: str, x: Any = X, attrs: Any = None, **more: Any) -> Path:
    dataset = xr.Dataset(
        {"x": (("sample", "input"), x, attrs), "y": (("sample", "target"), Y), **more}
    )
    encoding = {name: {"_FillValue": None} for name in dataset.variables}
    dataset.to_netcdf(path, engine=engine, encoding=encoding)
    return path


ENGINES = ["scipy", "h5netcdf"]


@pytest.mark.parametrize("engine", ENGINES)
def test_both_kinds_of_netcdf_are_read(tmp_path, engine):
    x, y, *_ = datafile.read(str(netcdf(tmp_path / "d.nc", engine)))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    assert (tmp_path / "d.nc").read_bytes()[:3] == (b"CDF" if engine == "scipy" else b"\x89HD")


@pytest.mark.parametrize("engine", ENGINES)
def test_other_variables_in_netcdf_are_left_alone(tmp_path, engine):
    time = ("sample", np.arange(4.0), {"units": "days since 0000-00-00"})
    names = ("sample", np.array(list("abcd")))
    path = netcdf(tmp_path / "d.nc", engine, time=time, names=names)
    np.testing.assert_array_equal(datafile.read(str(path))[0], X)


def test_other_variables_in_zarr_are_left_alone(tmp_path):
    time = xr.DataArray(np.arange(4.0), dims="sample", attrs={"units": "days since 0000-00-00"})
    for version in (2, 3):
        path = zarr_folder(tmp_path / f"{version}.zarr", version)
        time.to_dataset(name="time").to_zarr(path, mode="a", consolidated=False)
        np.testing.assert_array_equal(datafile.read(str(path))[0], X)


def in_zarr(path: Path, x: np.ndarray, attrs: dict[str, Any]) -> Path:
    return zarr_arrays(path.with_suffix(".zarr"), 3, x, Y, attributes=attrs)


WRITERS = {
    "classic": lambda path, x, attrs: netcdf(path, "scipy", x, attrs),
    "netCDF-4": lambda path, x, attrs: netcdf(path, "h5netcdf", x, attrs),
    "Zarr": in_zarr,
}
SMALL = np.array([[1, 2, 3]] * 3 + [[4, -1, 6]], np.int8)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("x", "attrs", "wanted"),
    [
        (SMALL, {"scale_factor": 0.5, "add_offset": 10.0}, 10 + 0.5 * SMALL.astype(float)),
        (SMALL, {"_Unsigned": "true"}, SMALL.astype(np.uint8).astype(float)),
        (SMALL, {"valid_max": 2, "units": "days since 1970-01-01"}, SMALL.astype(float)),
        (SMALL, {"missing_value": 99}, SMALL.astype(float)),
        (X.astype(np.float32), {"missing_value": 1e20}, X),
    ],
    ids=["packed", "unsigned", "other attributes", "nothing missing", "nothing missing in floats"],
)
def test_packed_values_are_unpacked(tmp_path, kind, x, attrs, wanted):
    attrs = {key: value if kind == "Zarr" else _plain(value) for key, value in attrs.items()}
    found, *_ = datafile.read(str(WRITERS[kind](tmp_path / "d.nc", x, attrs)))
    np.testing.assert_array_equal(found, wanted)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else np.float64(value)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("x", "attrs", "what"),
    [
        (SMALL, {"missing_value": -1.0},
         "x holds 1 missing values (missing_value -1), the first at [3, 1]"),
        (X.astype(np.float32) / 10, {"missing_value": 0.1},
         "x holds 1 missing values (missing_value 0.1), the first at [0, 1]"),
        (SMALL, {"scale_factor": "0.1"}, "x has the attribute scale_factor '0.1'"),
        (SMALL, {"scale_factor": [1.0, 2.0]}, "x has the attribute scale_factor [1.0, 2.0]"),
        (SMALL, {"scale_factor": 1e31}, "x holds 6e+31"),
        (X + np.inf, {}, "x holds 12 values that are NaN or infinite, the first at [0, 0]"),
    ],
)  # fmt: skip
def test_values_that_are_missing_or_unclear_are_refused(tmp_path, kind, x, attrs, what):
    assert refusal(WRITERS[kind](tmp_path / "d.nc", x, attrs)) == what


def test_fill_values_in_attributes_are_missing_ones(tmp_path):
    """As xarray writes them: in Zarr 3 as base64, where there are none they mask nothing."""
    path = tmp_path / "d.zarr"
    dataset = xr.Dataset({"x": (("s", "i"), X), "y": (("s", "t"), Y)})
    for number, wanted in ((-999.0, None), (5.0, "x holds 1 missing values (_FillValue 5)")):
        encoding = {"x": {"_FillValue": number}}
        dataset.to_zarr(path, mode="w", zarr_format=3, encoding=encoding, consolidated=False)
        dataset.to_netcdf(tmp_path / "d.nc", engine="h5netcdf", encoding=encoding)
        for file in (path, tmp_path / "d.nc"):
            if wanted is None:
                np.testing.assert_array_equal(datafile.read(str(file))[0], X)
            else:
                assert refusal(file).startswith(wanted)


def hdf5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in {"x": X, "y": Y, **arrays}.items():
            if array is not None:
                array(file, name) if callable(array) else file.create_dataset(name, data=array)
    return path


def external(file: Any, name: str) -> None:
    file.create_dataset(name, (4, 3), "f8", external=[("other.raw", 0, 96)])


def virtual(file: Any, name: str) -> None:
    layout = h5py.VirtualLayout((4, 3), "f8")
    layout[...] = h5py.VirtualSource("other.h5", "x", (4, 3))
    file.create_virtual_dataset(name, layout)


def linked(file: Any, name: str) -> None:
    file[name] = h5py.ExternalLink("other.h5", "/x")


def filtered(file: Any, name: str) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((4, 3))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((4, 3))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F64LE, space, plan)


def spread(file: Any, name: str) -> None:
    file.create_dataset(name, (4, 3), "f8", chunks=(4000, 3000), maxshape=(None, None))


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (external, "x is stored in other files"),
        (virtual, "x is stored in other files"),
        (linked, "x is a link"),
        (lambda file, name: file.create_group(name), "x is not an array"),
        (filtered, "x is packed by filter 32015"),
        (spread, "a chunk of x holds 12000000 numbers"),
        (lambda file, name: file.create_dataset(name, (10**6, 10**6), "f8", chunks=True),
         f"x holds {10**12} numbers"),
        (np.array([["a", "b"]] * 4, object), "x has values of type object"),
        (X * 1j, "x has values of type complex128"),
        (np.zeros(4, [("a", "f8")]), "x has values of type [('a', '<f8')]"),
        (h5py.Empty("f8"), "x has shape ()"),
        (X[:0], "x has shape (0, 3)"),
        (None, "no array x"),
    ],
)  # fmt: skip
def test_hdf5_that_leads_elsewhere_or_is_no_numbers_is_refused(tmp_path, x, what):
    other = hdf5(tmp_path / "other.h5")
    (tmp_path / "other.raw").write_bytes(X.tobytes())
    assert other.exists()
    assert refusal(hdf5(tmp_path / "d.nc", x=x)) == what


@pytest.mark.parametrize(
    "x",
    [X > 3, X.astype(">f4"), X.astype(np.float16), X.astype(np.uint64), X.astype(np.longdouble)],
    ids=lambda x: str(x.dtype),
)
def test_all_real_numbers_of_hdf5_are_read(tmp_path, x):
    def packed(file: Any, name: str) -> None:
        file.create_dataset(name, data=x, chunks=(2, 3), compression="gzip", shuffle=True)

    found, *_ = datafile.read(str(hdf5(tmp_path / "d.nc", x=packed, names=np.array([b"a"]))))
    np.testing.assert_array_equal(found, x.astype(float))


def test_a_file_that_another_program_has_locked_or_open_is_read(tmp_path):
    path = hdf5(tmp_path / "d.nc")
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            h5py.File(path)
        datafile.read(str(path))
    with h5py.File(path, "r+"):
        datafile.read(str(path))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"CDF\x05" + bytes(40), "cannot be read (netCDF of format CDF-5)"),
        (b"x,y\n1,2\n", "cannot be read (no netCDF)"),
    ],
)
def test_other_formats_are_named(tmp_path, content, what):
    (tmp_path / "d.nc").write_bytes(content)
    assert refusal(tmp_path / "d.nc") == what


# --- x and y together -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ((4, 3, 2), (4, 2), "one has tokens (three dimensions), the other has none"),
        ((4, 2), (4, 3, 2), "one has tokens (three dimensions), the other has none"),
        ((4, 3, 2), (4, 2, 2), "3 and 2 tokens"),
        ((4, 3, 2), (5, 3, 2), "4 and 5 samples"),
        ((4, 3), (5, 3), "4 and 5 samples"),
    ],
)
def test_x_and_y_that_disagree_say_in_what(tmp_path, x, y, why):
    path = archive(tmp_path / "d.npz", x=saved(np.ones(x)), y=saved(np.ones(y)))
    assert refusal(path) == f"x {x} and y {y} do not fit together: {why}"


@pytest.mark.parametrize(
    ("x", "y", "what"),
    [
        (X, Y[:, 0], "y has shape (4,)"),
        (X[..., None, None], Y, "x has shape (4, 3, 1, 1)"),
        (X[:, :0], Y, "x has shape (4, 0)"),
        (X * 1j, Y, "x has values of type complex128"),
        (X.astype("U3"), Y, "x has values of type <U3"),
        (X.astype("M8[s]"), Y, "x has values of type datetime64[s]"),
        (np.where(X == 5, np.nan, X), Y,
         "x holds 1 values that are NaN or infinite, the first at [1, 2]"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_data_are_refused(tmp_path, x, y, what):
    assert refusal(archive(tmp_path / "d.npz", x=saved(x), y=saved(y))) == what


# --- damage of any kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npz", "nc", "4.nc", "zarr.zip"])
def test_any_damage_is_one_line_or_none(tmp_path, ending):
    path = tmp_path / f"d.{ending}"
    dataset = xr.Dataset({"x": (("s", "i"), X), "y": (("s", "t"), Y)})
    if ending == "npz":
        archive(path, zipfile.ZIP_DEFLATED, x=saved(X), y=saved(Y))
    elif ending.endswith("nc"):
        dataset.to_netcdf(path, engine="scipy" if ending == "nc" else "h5netcdf")
    else:
        with warnings.catch_warnings(action="ignore"), ZipStore(path, mode="w") as target:
            dataset.to_zarr(target, consolidated=False)
    whole = path.read_bytes()
    datafile.read(str(path))
    messages = []
    rng = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), rng.integers(1, 9)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content[: rng.integers(len(content) // 2, 2 * len(content))])
        try:
            x, y, *_ = datafile.read(str(path))
        except InputError as error:
            messages.append(str(error))
        else:
            assert len(x) == len(y)
            assert np.isfinite(x).all()
    assert len(messages) > 20
    assert all(message.isprintable() for message in messages)


# --- samples that are not trained on --------------------------------------------------------------


@pytest.mark.parametrize("values", [[False, True, False, True], [0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0]])
def test_samples_may_be_kept_out_of_training(tmp_path, values):
    path = tmp_path / "d.npz"
    np.savez(path, x=X, y=Y, is_test=np.array(values))
    assert datafile.read(str(path)).is_test.tolist() == [False, True, False, True]
    np.savez(path, x=X, y=Y, is_test=np.zeros(4))
    assert datafile.read(str(path)).is_test is None


@pytest.mark.parametrize(
    ("is_test", "weight", "what"),
    [
        ([0, 1], None, "is_test has shape (2,)"),
        ([[0], [1], [0], [1]], None, "is_test has shape (4, 1)"),
        ([0, 2, 0, 1], None, "is_test holds 2 at [1]"),
        ([1, 1, 1, 1], None, "no sample that is trained on has a weight above 0"),
        ([1, 0, 1, 1], [1, 0, 1, 1], "no sample that is trained on has a weight above 0"),
    ],
)
def test_what_is_no_choice_of_test_samples_is_refused(tmp_path, is_test, weight, what):
    more = {} if weight is None else {"weight": np.array(weight)}
    path = tmp_path / "d.npz"
    np.savez(path, x=X, y=Y, is_test=np.array(is_test), **more)
    with pytest.raises(InputError) as caught:
        datafile.read(str(path))
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "; allowed: " in str(caught.value)
