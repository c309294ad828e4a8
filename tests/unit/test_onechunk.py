"""What is written without zarr is what zarr would have written, and is read as zarr would."""

from __future__ import annotations

import json
import re
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from resnet_limits import onechunk, store
from resnet_limits.store import SCHEMAS, StoreError, packing

KINDS = tuple(SCHEMAS)
PROVENANCE = {**dict.fromkeys(store.PROVENANCE, "ä"), "seeds": [0, 1], "wall_time_s": 0.5}


@pytest.fixture
def left_to_zarr(monkeypatch):
    """Write and read everything with zarr."""

    def choose():
        monkeypatch.setattr(onechunk, "fits", lambda dataset: False)
        monkeypatch.setattr(onechunk, "read", lambda *arguments: None)

    return choose


def files(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def write(content, path, kind):
    return store.write(content, path, kind, attrs=PROVENANCE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"tokens": True}, {"seed": 3, "step": 1, "cell": 0, "coordinate": 31}]
)
def test_every_file_is_the_one_that_zarr_writes(tmp_path, content, left_to_zarr, kind, options):
    wanted = content(kind, **options)
    found = files(write(wanted, tmp_path / "a.zarr", kind))
    left_to_zarr()
    expected = files(write(wanted, tmp_path / "b.zarr", kind))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_other_sizes_types_and_attributes_of_one_layout(tmp_path, left_to_zarr):
    """Metadata are copied from the first store of a layout; nothing of it may stay."""

    def dataset(length, dtype, note, *, index=True):
        own = {"long_name": "a", "note": note}
        return xr.Dataset(
            {
                "a": (("x", "y"), np.arange(3 * length, dtype=dtype).reshape(length, 3), own),
                "scalar": ((), np.float64(length), {"long_name": "b"}),
                "empty": ("z", np.zeros(0, dtype), {"long_name": "c"}),
            },
            {"x": np.arange(length)} if index else {"apart": ("w", np.ones(length))},
            {"sizes": np.arange(length), "name": note},
        )

    made = [
        dataset(length, dtype, note, index=index)
        for length in (1, 4)
        for dtype in ("f4", "f8", "i1", "i2", "u1")
        for note in ("one", "two")
        for index in (True, False)
    ]
    found = [files(store.write(ds, tmp_path / f"{k}.zarr")) for k, ds in enumerate(made)]
    left_to_zarr()
    for k, ds in enumerate(made):
        assert found[k] == files(store.write(ds, tmp_path / f"z{k}.zarr"))


@pytest.mark.parametrize(
    "values",
    [
        np.array([True, False]),
        np.array(["a", "b"]),
        np.array([0, 1], "datetime64[ns]"),
        np.array([0, 1], "timedelta64[s]"),
        np.array([1j, 2]),
        np.array([1, 2], ">f8"),
        da.ones(2),
    ],
    ids=lambda values: type(values).__name__ + str(values.dtype),
)
def test_anything_but_plain_numbers_in_memory_is_left_to_zarr(values, tmp_path):
    dataset = xr.Dataset({"a": ("x", values), "b": ("x", np.ones(2))})
    assert not onechunk.fits(dataset)
    assert onechunk.fits(dataset[["b"]])
    path = store.write(dataset, tmp_path / "a.zarr")
    xr.testing.assert_identical(
        store.load(path, ["a", "b"]).load().drop_attrs(), xr.open_zarr(path).load().drop_attrs()
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not SCHEMAS[kind].grouped])
def test_what_is_read_is_what_zarr_reads(tmp_path, content, kind):
    path = write(content(kind), tmp_path / "a.zarr", kind)
    expected = xr.open_zarr(path).load()
    found = onechunk.read(path)
    xr.testing.assert_identical(found, expected)
    assert set(found.coords) == set(expected.coords)
    for names in ([name] for name in expected.data_vars):
        part = onechunk.read(path, names)
        xr.testing.assert_identical(part, expected[names])
        xr.testing.assert_identical(store.load(path, names), part)
        part[names[0]].values[...] = 0  # its reader may change it


def test_large_sharded_grouped_and_zipped_stores_are_left_to_zarr(
    tmp_path, content, make_dataset, monkeypatch
):
    small = write(content("finite"), tmp_path / "small.zarr", "finite")
    assert onechunk.read(small, ["hidden"], 10**6) is not None
    assert onechunk.read(small, ["hidden"], 100) is None
    zipped = write(content("finite"), tmp_path / "a.zarr.zip", "finite")
    grouped = write(content("errors"), tmp_path / "errors.zarr", "errors")
    monkeypatch.setattr(packing, "CHUNK_BYTES", 256)
    monkeypatch.setattr(packing, "SHARD_BYTES", 600)
    sharded = write(content("finite"), tmp_path / "sharded.zarr", "finite")
    assert [onechunk.read(path) for path in (zipped, grouped, sharded)] == [None] * 3
    for path in (zipped, sharded):
        found = store.load(path, ["hidden", "status"])
        assert set(found.data_vars) == {"hidden", "status"}
        xr.testing.assert_equal(found.load(), make_dataset("finite")[["hidden", "status"]])
    assert store.load(sharded, ["hidden"])["hidden"].chunks is not None


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"attributes": {"scale_factor": 2.0}},
        {"attributes": {"units": "days since 2000-01-01"}},
        {"data_type": "bool"},
        {"data_type": {"name": "numpy.datetime64"}},
        {"zarr_format": 2},
        {"shape": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_metadata_of_another_kind_are_left_to_zarr(tmp_path, content, change):
    path = write(content("finite"), tmp_path / "a.zarr", "finite")
    root = json.loads((path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["loss"].update(change)
    (path / "zarr.json").write_text(json.dumps(root))
    assert onechunk.read(path, ["loss"]) is None
    assert onechunk.read(path, ["output"]) is not None


@pytest.mark.parametrize("damage", ["flip", "short", "empty", "missing"])
def test_damage_is_named(tmp_path, content, damage):
    path = write(content("finite"), tmp_path / "a.zarr", "finite")
    rng = np.random.default_rng(0)
    for name in ("hidden", "status", "seed", "loss"):
        (file,) = (path / name).glob("c*")
        raw = file.read_bytes()
        for _ in range(20 if damage == "flip" else 1):
            spoilt = bytearray(raw)
            spoilt[rng.integers(len(raw))] ^= 1 << rng.integers(8)
            if damage == "missing":
                file.unlink()
            else:
                file.write_bytes({"flip": spoilt, "short": raw[:-1], "empty": b""}[damage])
            with pytest.raises(
                StoreError, match=rf"a\.zarr: {name}/{re.escape(file.name)}: "
            ) as caught:
                store.load(path, ["hidden", "status", "loss"])
            assert "\n" not in str(caught.value)
        file.write_bytes(raw)
    store.load(path, ["hidden", "status", "loss"])


def test_what_is_not_there_is_named(tmp_path, content):
    path = write(content("dmft"), tmp_path / "a.zarr", "dmft")
    with pytest.raises(StoreError, match="has no hidden, status"):
        store.load(path, ["output", "hidden", "status"])
    with pytest.raises(StoreError, match="no such store"):
        store.load(tmp_path / "b.zarr", ["output"])


def test_a_valid_checksum_does_not_make_up_for_a_wrong_length(tmp_path, content):
    path = write(content("dmft"), tmp_path / "a.zarr", "dmft")
    (file,) = (path / "loss").glob("c*")
    for length in (1, 100):
        file.write_bytes(onechunk.encode(np.zeros(length), 3))
        with pytest.raises(StoreError, match=r"loss/c\.0: holds"):
            store.load(path, ["loss"])


def test_codecs_that_are_not_known_are_not_written(tmp_path, make_dataset, monkeypatch):
    monkeypatch.setattr(onechunk, "_level", lambda array: None)
    with pytest.raises(RuntimeError, match="zarr wrote codecs"):
        write(make_dataset("dmft"), tmp_path / "a.zarr", "dmft")
    assert list(tmp_path.iterdir()) == []
