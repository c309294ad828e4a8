from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from resnet_limits import store
from resnet_limits.config import PAIRS
from resnet_limits.integrity import (
    StoreError,
    digest,
    manifest_matches,
    read_manifest,
    write_json,
    write_manifest,
)
from resnet_limits.stages.publish import publish
from resnet_limits.store import (
    SCHEMAS,
    check,
    data_digest,
    describe,
    groups,
    open_groups,
    open_store,
    packing,
    status_counts,
    write,
    writing,
)

KINDS = tuple(SCHEMAS)
PROVENANCE = dict.fromkeys(store.PROVENANCE, "x")


@pytest.fixture
def small_files(monkeypatch):
    """Cut even small variables into several chunks and shards."""
    monkeypatch.setattr(packing, "CHUNK_BYTES", 256)
    monkeypatch.setattr(packing, "SHARD_BYTES", 600)


@pytest.fixture(params=["whole", "sharded"])
def either_packing(request):
    if request.param == "sharded":
        request.getfixturevalue("small_files")
    return request.param


def same(found, wanted):
    """Compare values, names and types, not attributes."""
    xr.testing.assert_equal(found.compute(), wanted)
    assert {n: v.dtype for n, v in found.variables.items()} == {
        n: v.dtype for n, v in wanted.variables.items()
    }


def chunk_files(path):
    return sorted(file for file in path.rglob("c*") if file.is_file())


def leftovers(folder):
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "either_packing"),
    [
        ("a.zarr", "whole"),
        ("tokens.zarr", "sharded"),
        ("a.zarr.zip", "whole"),
        ("tokens.zarr.zip", "sharded"),
    ],
    indirect=["either_packing"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(tmp_path, content, kind, name, either_packing):
    wanted = content(kind, tokens="tokens" in name)
    path = tmp_path / name
    assert write(wanted, path, kind, attrs=PROVENANCE) == path
    parts = wanted if isinstance(wanted, dict) else {"": wanted}
    found = open_groups(path)
    assert found.keys() == parts.keys()
    for group, part in parts.items():
        same(found[group], part)
    assert groups(path) == (sorted(parts) if SCHEMAS[kind].grouped else [])
    assert check(path) == []
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_plain_xarray_opens_a_directory_without_complaint(tmp_path, content, kind):
    wanted = content(kind)
    write(wanted, tmp_path / "a.zarr", kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, part in (wanted if isinstance(wanted, dict) else {None: wanted}).items():
            same(xr.open_zarr(tmp_path / "a.zarr", group=name), part)


def test_plain_xarray_opens_a_zip_by_url(tmp_path, make_dataset):
    pytest.importorskip("fsspec")
    wanted = make_dataset("dmft")
    path = write(wanted, tmp_path / "a.zarr.zip", "dmft")
    same(xr.open_zarr(f"zip://::{path.resolve()}"), wanted)


def test_a_store_of_another_version_is_none_of_ours(tmp_path, make_dataset):
    """Version 2 of Zarr knows codecs that unpickle."""
    path = tmp_path / "a.zarr"
    make_dataset("dmft").to_zarr(path, zarr_format=2, consolidated=True)
    xr.testing.assert_equal(xr.open_zarr(path), make_dataset("dmft"))
    for read in (open_store, groups):
        with pytest.raises(StoreError, match="cannot be opened as a store"):
            read(path)
    assert check(path) != []


def test_opening_is_lazy(tmp_path, make_dataset, small_files):
    write(make_dataset("finite"), tmp_path / "a.zarr", "finite")
    dataset = open_store(tmp_path / "a.zarr")
    assert dataset["hidden"].chunks is not None
    assert dataset["hidden"].data.npartitions > 1


def test_a_store_explains_itself(tmp_path, content):
    for kind in KINDS:
        path = write(content(kind), tmp_path / f"{kind}.zarr", kind, attrs=PROVENANCE)
        attrs = open_store(path).attrs
        assert {"title", "summary", "kind", "schema_version", *store.PROVENANCE} <= attrs.keys()
        for part in open_groups(path).values():
            assert all(variable.attrs["long_name"] for variable in part.variables.values())
            if "status" in part:
                assert part["status"].attrs["flag_meanings"] == "ok diverged not_run"
                assert list(part["status"].attrs["flag_values"]) == [0, 1, 2]


def test_the_callers_dataset_is_left_alone(tmp_path, make_dataset):
    dataset = make_dataset("finite")
    before = dataset.copy(deep=True)
    write(dataset, tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    xr.testing.assert_identical(dataset, before)
    assert all(not v.attrs and not v.encoding for v in dataset.variables.values())


def test_a_store_can_be_written_again_from_the_store(tmp_path, make_dataset, small_files):
    """Encodings and Dask chunks of the source must not stand in the way."""
    wanted = make_dataset("finite")
    first = write(wanted, tmp_path / "a.zarr", "finite")
    again = write(open_store(first).chunk(step=2), tmp_path / "b.zarr", "finite")
    same(open_store(again), wanted)
    assert data_digest(first) == data_digest(again)


def test_numpy_attributes_are_written(tmp_path, make_dataset):
    dataset = make_dataset("wide")
    dataset.attrs["depth"] = np.int64(3)
    dataset.attrs["sizes"] = np.arange(2)
    attrs = open_store(write(dataset, tmp_path / "a.zarr", "wide")).attrs
    assert attrs["depth"] == 3
    assert attrs["sizes"] == [0, 1]


def test_nan_and_infinity_survive(tmp_path, make_dataset, either_packing, careless):
    dataset = make_dataset("finite")
    dataset["hidden"][0] = np.nan
    dataset["hidden"][1, 0] = np.inf
    same(open_store(write(dataset, tmp_path / "a.zarr", "finite")), dataset)


# --- few files, bounded pieces --------------------------------------------------------------------


def test_a_small_store_has_few_files(tmp_path, make_dataset):
    dataset = make_dataset("finite")
    write(dataset, tmp_path / "a.zarr", "finite")
    files = [file for file in (tmp_path / "a.zarr").rglob("*") if file.is_file()]
    assert len(files) == 2 * len(dataset.variables) + 1


@pytest.mark.parametrize(
    "sizes",
    [
        {"seed": 5, "step": 15, "depth_point": 17, "sample": 10, "coordinate": 2000},
        {"seed": 1, "step": 15, "depth_point": 17, "sample": 1, "coordinate": 100_000},
        {"seed": 4, "step": 1, "depth_point": 1001, "sample": 1, "coordinate": 512},
        {"seed": 1, "step": 1, "depth_point": 1, "sample": 1, "coordinate": 50_000_000},
        {"seed": 3, "step": 7, "depth_point": 1, "sample": 3, "coordinate": 5},
    ],
)
def test_chunks_and_shards_are_bounded(sizes):
    dims, shape = tuple(sizes), tuple(sizes.values())
    chunks, shards = packing.pack(dims, shape, 4)
    total = 4 * np.prod(shape, dtype=float)
    assert 4 * np.prod(chunks) <= packing.CHUNK_BYTES
    if shards is None:
        assert chunks == shape
        return
    assert 4 * np.prod(shards) <= packing.SHARD_BYTES
    assert all(shard % chunk == 0 for chunk, shard in zip(chunks, shards, strict=True))
    files = np.prod([-(-n // piece) for n, piece in zip(shape, shards, strict=True)])
    assert files <= 4 + 2 * total / packing.SHARD_BYTES
    assert 4 * np.prod(chunks) > packing.CHUNK_BYTES / 4


def test_a_step_of_one_layer_does_not_need_the_whole_file():
    dims = ("seed", "step", "depth_point", "sample", "coordinate")
    chunks, _ = packing.pack(dims, (5, 15, 17, 10, 2000), 4)
    assert chunks[1] == 1
    assert chunks[3:] == (10, 2000)


def test_empty_dimensions_are_written(tmp_path, make_dataset):
    dataset = make_dataset("errors", cell=0)
    write({PAIRS[0]: dataset}, tmp_path / "a.zarr", "errors")
    assert open_store(tmp_path / "a.zarr", PAIRS[0]).sizes["cell"] == 0


def test_large_dask_arrays_are_written_piece_by_piece(tmp_path, monkeypatch):
    """No task may hold much more than a shard, whatever the Dask chunks were."""
    monkeypatch.setattr(packing, "CHUNK_BYTES", 2**14)
    monkeypatch.setattr(packing, "SHARD_BYTES", 2**16)
    largest = []

    def make(block_info=None):
        shape = block_info[None]["chunk-shape"]
        return np.full(shape, float(block_info[None]["chunk-location"][0]))

    array = da.map_blocks(make, chunks=((1,) * 64, (1024,)), dtype="f8")
    dataset = xr.Dataset({"a": (("step", "coordinate"), array, {"long_name": "a"})})
    encoding = writing._prepared(dataset, {})[0]
    largest = max(np.prod(block) for block in encoding["a"].data.chunksize)
    assert 8 * largest <= 2**16
    write(dataset, tmp_path / "a.zarr")
    found = open_store(tmp_path / "a.zarr")["a"]
    np.testing.assert_array_equal(found, np.repeat(np.arange(64.0)[:, None], 1024, axis=1))


# --- checksums ------------------------------------------------------------------------------------


def flip_bit(file, rng):
    raw = bytearray(file.read_bytes())
    position = int(rng.integers(8 * len(raw)))
    raw[position // 8] ^= 1 << (position % 8)
    file.write_bytes(raw)


@pytest.mark.parametrize("kind", ["finite", "errors"])
def test_every_flipped_bit_of_a_chunk_is_found(tmp_path, content, kind, either_packing):
    path = write(content(kind), tmp_path / "a.zarr", kind, attrs=PROVENANCE)
    files = chunk_files(path)
    arrays = {part for file in files for part in file.relative_to(path).parts}
    assert {"step", "seed", "status"} <= arrays
    rng = np.random.default_rng(0)
    for number in range(30):
        file = files[number % len(files)]
        raw = file.read_bytes()
        flip_bit(file, rng)
        name = file.relative_to(path).as_posix()
        assert [finding for finding in check(path) if finding.startswith(name)], name
        file.write_bytes(raw)
    assert check(path) == []


def test_without_the_checksum_flipped_bits_pass(tmp_path, make_dataset):
    """The negative control: zstd alone does not notice."""
    from zarr.codecs import ZstdCodec

    noise = np.random.default_rng(0).normal(size=2000)
    dataset = xr.Dataset({"a": ("x", noise)})
    encoding = {"a": {"chunks": (2000,), "compressors": (ZstdCodec(),)}}
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False, encoding=encoding)
    file = tmp_path / "a.zarr" / "a" / "c" / "0"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    read = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)["a"].values
    assert (read != noise).any()


def test_a_shards_index_is_not_the_only_thing_checked(tmp_path, make_dataset, small_files):
    path = write(make_dataset("finite"), tmp_path / "a.zarr", "finite")
    metadata = json.loads((path / "hidden" / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["codecs"][-1]["name"] == "crc32c"
    assert len(chunk_files(path / "hidden")) > 1


def test_a_missing_file_is_found_and_not_taken_for_nan(
    tmp_path, make_dataset, either_packing, careless
):
    dataset = make_dataset("finite")
    dataset["hidden"][:] = np.nan
    path = write(dataset, tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    for name in ("hidden", "status", "s"):
        file = chunk_files(path / name)[-1]
        raw = file.read_bytes()
        file.unlink()
        assert check(path) == [f"{file.relative_to(path).as_posix()}: missing"]
        file.write_bytes(raw)


def test_damaged_metadata_is_found(tmp_path, content, either_packing):
    path = write(content("finite"), tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    manifest = write_manifest(tmp_path / "a.json", path, kind="finite", stage_key="k")
    assert check(path, manifest) == []
    rng = np.random.default_rng(1)
    files = sorted(path.rglob("zarr.json"))
    assert len(files) > 5
    for number in range(30):
        file = files[number % len(files)]
        raw = file.read_bytes()
        flip_bit(file, rng)
        assert check(path, manifest)
        file.write_bytes(raw)


def test_an_array_that_disagrees_with_its_copy_is_found_without_a_manifest(tmp_path, content):
    path = write(content("dmft"), tmp_path / "a.zarr", "dmft", attrs=PROVENANCE)
    file = path / "loss" / "zarr.json"
    file.write_text(file.read_text().replace("averaged", "summed"))
    assert check(path) == ["loss: the two copies of its metadata differ"]


def test_a_damaged_zip_is_found(tmp_path, content):
    path = write(content("dmft"), tmp_path / "a.zarr.zip", "dmft", attrs=PROVENANCE)
    manifest = write_manifest(tmp_path / "a.json", path, kind="dmft", stage_key="k")
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        chunk = archive.read("hidden_coef/c.0.0.0.0")
    damaged = bytearray(raw)
    damaged[raw.index(chunk) + 7] ^= 1
    path.write_bytes(damaged)
    assert check(path)
    assert check(path, manifest)
    path.write_bytes(raw[: len(raw) // 2])
    assert check(path) == [f"{path}: cannot be opened as a store: not a zip file"]


# --- schema ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda d: d.drop_vars("loss"), "loss: missing"),
        (lambda d: d.transpose(), "output: dimensions"),
        (lambda d: d.assign(loss=d["loss"].astype("f4")), "loss: type float32, must be float64"),
        (lambda d: d.assign(status=d["status"].astype("i4")), "status: type int32"),
        (lambda d: d.assign(extra=d["loss"]), "extra: unknown variable"),
        (lambda d: d.drop_attrs(deep=False), "attribute depth: missing"),
        (lambda d: d.rename(sample="token"), r"output: dimensions .*'token'"),
        (lambda d: d.assign(loss=d["loss"].isel(step=0)), "loss: dimensions"),
    ],
)
@pytest.mark.parametrize("ending", [".zarr", ".zarr.zip"])
def test_a_wrong_dataset_is_refused_and_leaves_nothing(
    tmp_path, make_dataset, change, finding, ending
):
    path = tmp_path / f"a{ending}"
    with pytest.raises(StoreError, match=finding):
        write(change(make_dataset("finite")), path, "finite")
    assert list(tmp_path.iterdir()) == []


def test_an_explained_extra_variable_is_accepted(tmp_path, make_dataset):
    dataset = make_dataset("finite")
    dataset["extra"] = ("seed", np.zeros(2), {"long_name": "something more"})
    path = write(dataset, tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    assert check(path) == []


def test_groups_must_be_pairs(tmp_path, make_dataset):
    dataset = make_dataset("errors")
    with pytest.raises(StoreError, match="group finite-finite: must be one of finite-wide"):
        write({"finite-finite": dataset}, tmp_path / "a.zarr", "errors")
    with pytest.raises(StoreError, match="group"):
        write({PAIRS[0]: make_dataset("dmft")}, tmp_path / "b.zarr", "dmft")
    with pytest.raises(ValueError, match="must be one of problem"):
        write(dataset, tmp_path / "c.zarr", "nothing")


def test_check_is_silent_about_a_file_that_is_not_the_stores(tmp_path, make_dataset):
    path = write(make_dataset("dmft"), tmp_path / "a.zarr", "dmft", attrs=PROVENANCE)
    (path / "notes.txt").touch()
    (path / "output" / "more").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(path) == []


def test_check_knows_stores_without_provenance_or_kind(tmp_path, make_dataset):
    path = write(make_dataset("dmft"), tmp_path / "a.zarr", "dmft")
    assert check(path) == [f"attribute {name}: missing" for name in store.PROVENANCE]
    unknown = write(make_dataset("problem"), tmp_path / "b.zarr", attrs=PROVENANCE)
    assert any("attribute kind" in finding for finding in check(unknown))


def test_check_and_open_name_what_is_not_a_store(tmp_path):
    absent = tmp_path / "absent.zarr"
    assert check(absent) == [f"{absent}: no such store"]
    for read in (open_store, groups, describe, digest):
        with pytest.raises(StoreError, match="no such"):
            read(absent)
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr" / "notes.txt").write_text("hello")
    for read in (open_store, groups, describe):
        with pytest.raises(StoreError, match="cannot be opened as a store") as caught:
            read(tmp_path / "other.zarr")
        assert "\n" not in str(caught.value)
    assert check(tmp_path / "other.zarr")[0].startswith("metadata:")


def test_a_group_that_is_not_there_is_named(tmp_path, content):
    path = write(content("errors"), tmp_path / "a.zarr", "errors")
    with pytest.raises(StoreError, match="group mean_ode-dmft: cannot be opened"):
        open_store(path, "mean_ode-dmft")


# --- values ---------------------------------------------------------------------------------------


def diverged(dataset, seed=1, step=2):
    """Let one seed diverge as the networks do: NaN after the step."""
    dataset["status"][seed] = 1
    dataset["diverged_step"][seed] = step
    for name in ("output", "loss", "hidden", "backward"):
        dataset[name][{"seed": seed, "step": slice(step, None)}] = np.nan
    return dataset


def test_a_diverged_run_is_sound_and_counted(tmp_path, make_dataset, either_packing):
    dataset = diverged(make_dataset("finite"))
    dataset["status"][0] = 2
    for name in ("output", "loss", "hidden", "backward"):
        dataset[name][0] = np.nan
    path = write(dataset, tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    assert check(path) == []
    assert status_counts(open_store(path)) == {"ok": 0, "diverged": 1, "not_run": 1}


@pytest.fixture
def careless(monkeypatch):
    """Let stores be written whatever their values are."""
    monkeypatch.setattr(writing, "value_findings", lambda part: [])


SPOILT = {
    "hidden": "hidden: NaN or infinite values where the status is ok; float32 ends at 3.4e+38",
    "early": "output: NaN or infinite values where the status is ok",
    "zero": "loss: values after a run has diverged",
    "at": "loss: values after a run has diverged",
    "late": "backward: values after a run has diverged",
    "step": "diverged_step: must be -1 exactly where",
    "flag": "status: values must be 0 to 2",
    "coordinate": "s: NaN or infinite values",
}


def spoilt(make_dataset, spoil):
    dataset = diverged(make_dataset("finite"), step=1)
    if spoil == "hidden":
        dataset["hidden"][0, 2, 1, 0, 0] = np.inf
    elif spoil == "early":
        dataset["output"][1, 0] = np.nan
    elif spoil == "zero":
        dataset["loss"][1, 2] = 0.0
    elif spoil == "at":
        dataset["loss"][1, 1] = 0.0
    elif spoil == "late":
        dataset["backward"][1, 2, 0, 0, 0] = np.inf
    elif spoil == "step":
        dataset["diverged_step"][1] = -1
    elif spoil == "flag":
        dataset["status"][0] = 3
    else:
        dataset["s"][0] = np.nan
    return dataset


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.usefixtures("careless")
def test_unsound_values_are_found(tmp_path, make_dataset, spoil, either_packing):
    path = write(spoilt(make_dataset, spoil), tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    assert any(found.startswith(SPOILT[spoil]) for found in check(path)), check(path)


@pytest.mark.parametrize("spoil", SPOILT)
def test_unsound_values_are_not_written(tmp_path, make_dataset, spoil, either_packing):
    """Whatever `check` would reject is refused, in a line, and what was there stays."""
    path = tmp_path / "a.zarr"
    before = write(make_dataset("finite"), path, "finite", attrs=PROVENANCE)
    wanted = open_store(before).load()
    with pytest.raises(StoreError, match=re.escape(SPOILT[spoil])) as refused:
        write(spoilt(make_dataset, spoil), path, "finite", attrs=PROVENANCE)
    assert str(refused.value).startswith(f"{path}: not a finite store: ")
    assert "\n" not in str(refused.value)
    same(open_store(path), wanted)


def test_an_overflow_names_the_type_that_would_hold_it(tmp_path, make_dataset):
    dataset = make_dataset("finite")
    large = 1e39 * dataset["backward"].astype("f8")
    with np.errstate(over="ignore"):
        dataset["backward"] = large.astype("f4")
    with pytest.raises(StoreError, match=r"backward: .*float32 .*allowed, save.dtype: float64$"):
        write(dataset, tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    assert not list(tmp_path.iterdir())
    dataset["backward"] = large
    assert check(write(dataset, tmp_path / "a.zarr", "finite", attrs=PROVENANCE)) == []


@pytest.mark.usefixtures("careless")
def test_limits_must_be_finite_and_diverged_cells_need_not(tmp_path, make_dataset, either_packing):
    limit = make_dataset("dmft")
    limit["hidden_coef"][0, 0] = np.nan
    path = write(limit, tmp_path / "a.zarr", "dmft", attrs=PROVENANCE)
    assert check(path) == ["hidden_coef: NaN or infinite values where the status is ok"]

    errors = make_dataset("errors")
    pair = {"finite-wide": errors}

    def findings():
        return check(write(pair, tmp_path / "b.zarr", "errors", attrs=PROVENANCE))

    errors["hidden_rms"][3, 1:] = np.nan
    errors["status"][3] = 1
    assert findings() == []
    errors["hidden_rms"][3, 1] = np.inf
    assert findings() == ["finite-wide/hidden_rms: infinite values; what is not there is NaN"]
    errors["hidden_rms"][3, 1] = np.nan
    errors["status"][3] = 0
    assert findings() == ["finite-wide/hidden_rms: NaN or infinite values where the status is ok"]


def test_status_counts_over_groups(make_dataset):
    errors = make_dataset("errors")
    errors["status"][:2] = 1
    assert status_counts({"a": errors, "b": errors}) == {"ok": 8, "diverged": 4, "not_run": 0}
    assert status_counts(make_dataset("dmft")) == {}


# --- equal content, equal bytes -------------------------------------------------------------------


def test_equal_content_gives_equal_bytes(tmp_path, make_dataset, either_packing):
    dataset = make_dataset("finite")
    shuffled = dataset[list(dataset.data_vars)[::-1]]
    first = write(dataset, tmp_path / "a.zarr", "finite", attrs=PROVENANCE)
    later = write(shuffled, tmp_path / "b.zarr", "finite", attrs={**PROVENANCE, "created": "later"})
    names = {file.relative_to(first) for file in first.rglob("*") if file.is_file()}
    assert names == {file.relative_to(later) for file in later.rglob("*") if file.is_file()}
    different = {n for n in names if (first / n).read_bytes() != (later / n).read_bytes()}
    assert different == {Path("zarr.json")}
    assert data_digest(first) == data_digest(later)
    assert digest(first) != digest(later)
    packed = write(dataset, tmp_path / "c.zarr.zip", "finite", attrs=PROVENANCE)
    assert data_digest(packed) == data_digest(first)
    assert data_digest(
        write(make_dataset("finite", seed=1), tmp_path / "d.zarr", "finite")
    ) != data_digest(first)


def test_equal_zips_have_equal_bytes(tmp_path, make_dataset):
    first = write(make_dataset("dmft"), tmp_path / "a.zarr.zip", "dmft")
    time.sleep(0.01)
    second = write(make_dataset("dmft"), tmp_path / "b.zarr.zip", "dmft")
    assert first.read_bytes() == second.read_bytes()


# --- whole or not at all --------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".zarr", ".zarr.zip"])
def test_a_store_is_replaced(tmp_path, make_dataset, ending):
    path = tmp_path / f"a{ending}"
    write(make_dataset("finite", seed=0), path, "finite")
    wanted = make_dataset("dmft", seed=1)
    write(wanted, path, "dmft")
    same(open_store(path), wanted)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError("no space"), Interrupted(), KeyboardInterrupt()])
@pytest.mark.parametrize("ending", [".zarr", ".zarr.zip"])
def test_a_failed_write_leaves_the_old_store_and_nothing_else(
    tmp_path, make_dataset, monkeypatch, either_packing, ending, error
):
    """Interrupted amid the chunks of a small store, and before the end of a large one."""
    path = tmp_path / f"a{ending}"
    wanted = make_dataset("finite")
    write(wanted, path, "finite")

    def fail(*_args, **_options):
        raise error

    with monkeypatch.context() as patch:
        if either_packing == "whole":
            patch.setattr(writing.onechunk, "encode", fail)
        else:
            patch.setattr(zarr, "consolidate_metadata", fail)
        with pytest.raises(type(error)):
            write(make_dataset("finite", seed=1), path, "finite")
        with pytest.raises(type(error)):
            write(make_dataset("finite", seed=1), tmp_path / f"b{ending}", "finite")
    same(open_store(path), wanted)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_failed_swap_puts_the_old_store_back(tmp_path, make_dataset, monkeypatch):
    path = tmp_path / "a.zarr"
    wanted = make_dataset("finite")
    write(wanted, path, "finite")
    rename = Path.rename

    def fail_once(self, target):
        if Path(target) == path and self.name.startswith(".") and (self / "loss_stderr").exists():
            raise OSError("no luck")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no luck"):
        write(make_dataset("dmft"), path, "dmft")
    same(open_store(path), wanted)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


KILLED = """
import pathlib, sys, time
import numpy as np, xarray as xr
from resnet_limits import store

def stop(*args, **options):
    print("writing", flush=True)
    time.sleep(60)

pathlib.Path.write_bytes = stop
store.write(xr.Dataset({"a": ("x", np.ones(3))}), sys.argv[1])
"""


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path, make_dataset):
    path = tmp_path / "a.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert len(leftovers(tmp_path)) == 1
    # The next writer of the same name cleans up, but touches no other's work in progress.
    running = tmp_path / f".a.zarr.{socket.gethostname()}-{os.getpid()}-00000000.tmp"
    elsewhere = tmp_path / ".a.zarr.another-host-1-00000000.tmp"
    old = tmp_path / ".a.zarr.another-host-1-00000001.tmp"
    for folder in (running, elsewhere, old):
        folder.mkdir()
    (old / "zarr.json").touch()
    yesterday = time.time() - 25 * 3600
    for place in (old / "zarr.json", old):
        os.utime(place, (yesterday, yesterday))
    write(make_dataset("dmft"), path, "dmft")
    assert sorted(leftovers(tmp_path)) == sorted([running.name, elsewhere.name])


@pytest.mark.parametrize("name", ["results", "a.nc", "a.zip", "zarr"])
def test_other_names_are_refused(tmp_path, make_dataset, name):
    with pytest.raises(StoreError, match=r"allowed: a name that ends in \.zarr or \.zarr\.zip"):
        write(make_dataset("dmft"), tmp_path / name, "dmft")


@pytest.mark.parametrize("ending", [".zarr", ".zarr.zip"])
def test_what_is_not_a_store_is_never_overwritten(tmp_path, make_dataset, ending):
    folder = tmp_path / f"a{ending}"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file = tmp_path / f"b{ending}"
    file.write_text("more work")
    for path in (folder, file):
        with pytest.raises(StoreError, match="exists and is not a store"):
            write(make_dataset("dmft"), path, "dmft")
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert file.read_text() == "more work"


# --- description, manifests -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_describe_names_every_variable(tmp_path, content, kind):
    path = write(content(kind), tmp_path / "a.zarr", kind, attrs=PROVENANCE)
    text = describe(path)
    assert SCHEMAS[kind].title in text
    for part in open_groups(path).values():
        for name, variable in part.variables.items():
            assert f"{name}(" in text
            assert variable.attrs["long_name"] in text
    for name in store.PROVENANCE:
        assert name.removesuffix("_file") in text


def test_manifests(tmp_path, make_dataset):
    path = write(diverged(make_dataset("finite")), tmp_path / "e" / "finite" / "a.zarr", "finite")
    manifest = tmp_path / "e" / "manifests" / "finite" / "a.json"
    assert not manifest_matches(manifest, "key")
    write_manifest(
        manifest, path, kind="finite", stage_key="key", status=status_counts(open_store(path))
    )
    found = read_manifest(manifest)
    assert found["store"] == "../../finite/a.zarr"
    assert found["digest"] == digest(path)
    assert found["status"] == {"ok": 1, "diverged": 1, "not_run": 0}
    assert found["files"] == len([file for file in path.rglob("*") if file.is_file()])
    assert found["bytes"] > 1000
    assert manifest_matches(manifest, "key")
    assert not manifest_matches(manifest, "another key")
    # Results may be moved as a whole.
    (tmp_path / "e").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "manifests" / "finite" / "a.json"
    assert manifest_matches(moved, "key")
    (tmp_path / "moved" / "finite" / "a.zarr").rename(tmp_path / "away.zarr")
    assert not manifest_matches(moved, "key")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"store": "a"}', "\xff"])
def test_what_is_not_a_manifest_matches_nothing(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    assert not manifest_matches(path, "key")
    with pytest.raises(StoreError, match="not a manifest"):
        read_manifest(path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = write_json({"a": 1}, tmp_path / "a.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json({"a": float("nan")}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_hidden_files_of_other_programs_do_not_count(tmp_path, make_dataset):
    path = write(make_dataset("dmft"), tmp_path / "a.zarr", "dmft")
    before = digest(path)
    (path / ".snakemake_timestamp").touch()
    assert digest(path) == before


# --- publishing -----------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, tiny_experiment):
    def run(dataset, kind="finite", name="finite/a.zarr", **options):
        manifest = tmp_path / "manifests" / Path(name).with_suffix(".json")
        publish(
            dataset,
            tmp_path / name,
            kind=kind,
            experiment=tiny_experiment(),
            key="key",
            device="cpu",
            seeds=range(2),
            started=time.monotonic(),
            manifest=manifest,
            **options,
        )
        return tmp_path / name, manifest

    return run


@pytest.fixture(autouse=True)
def any_code(monkeypatch):
    """The stages' own code is no matter of these tests."""
    monkeypatch.setattr("resnet_limits.provenance.code.code_hash", lambda *_: "0" * 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_store_is_sound_and_complete(published, content, kind):
    path, manifest = published(content(kind), kind, facts={"note": 1})
    assert check(path, manifest) == []
    assert manifest_matches(manifest, "key")
    assert read_manifest(manifest)["note"] == 1
    assert open_store(path).attrs["stage_key"] == "key"


def test_the_stages_own_device_wins(published, make_dataset):
    dataset = make_dataset("finite").assign_attrs(device="cuda (X)")
    path, _ = published(dataset)
    attrs = open_store(path).attrs
    assert attrs["device"] == "cuda (X)"
    assert "depth=2 width=8 embed_dim=5" in attrs["history"]


def test_rates_are_published_as_json(published):
    path, manifest = published({"pairs": {}}, "rates", "rates.json")
    found = json.loads(path.read_text())
    assert found["pairs"] == {}
    named = {"derived_from", "source", "references"}
    assert set(found["provenance"]) == {*store.PROVENANCE, *named}
    assert manifest_matches(manifest, "key")
    assert read_manifest(manifest)["digest"] == digest(path)


def test_a_failed_publication_leaves_no_manifest(published, make_dataset):
    _, manifest = published(make_dataset("finite"))
    assert manifest.exists()
    with pytest.raises(StoreError):
        published(make_dataset("finite").drop_vars("loss"))
    assert not manifest.exists()
