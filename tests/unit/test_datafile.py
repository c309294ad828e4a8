"""Data files made to do harm: nothing is unpickled, and nothing unpacks to more than it may."""

from __future__ import annotations

import contextlib
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

import numcodecs
import numpy as np
import pytest
import xarray as xr
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


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        datafile.read(str(path))
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"problem.data.path: {path}: ")
    what, _, allowed = message.removeprefix(f"problem.data.path: {path}: ").partition("; allowed: ")
    assert allowed
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
    x, y = datafile.read(str(archive(tmp_path / "d.npz", method, x=saved(X), y=saved(Y))))
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
        x, y = datafile.read(str(path))
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


# --- damage of any kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npz", "nc", "zarr.zip"])
def test_any_damage_is_one_line_or_none(tmp_path, ending):
    path = tmp_path / f"d.{ending}"
    dataset = xr.Dataset({"x": (("s", "i"), X), "y": (("s", "t"), Y)})
    if ending == "npz":
        archive(path, zipfile.ZIP_DEFLATED, x=saved(X), y=saved(Y))
    elif ending == "nc":
        dataset.to_netcdf(path, engine="scipy")
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
            x, y = datafile.read(str(path))
        except InputError as error:
            messages.append(str(error))
        else:
            assert len(x) == len(y)
            assert np.isfinite(x).all()
    assert len(messages) > 20
    assert all(message.isprintable() for message in messages)
