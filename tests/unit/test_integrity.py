"""Manifests, and what is found out with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from resnet_limits import integrity
from resnet_limits.integrity import Size, damage, digest, read_manifest, size, write_manifest

DAY = 86_400


@pytest.fixture
def results(tmp_path):
    """Three stores of two files with their manifests, as `damage` takes them."""
    found = {}
    for name in "abc":
        path = tmp_path / f"{name}.zarr"
        (path / "x").mkdir(parents=True)
        (path / "zarr.json").write_text(name)
        (path / "x" / "c.0").write_bytes(bytes(100))
        manifest = write_manifest(
            tmp_path / "manifests" / f"{name}.json", path, kind="finite", stage_key=name
        )
        found[manifest] = (path, read_manifest(manifest))
    return found


def stores(found):
    return [each.store.name for each in found]


def move_times(path: Path, seconds: int) -> None:
    for file in integrity.store_files(path):
        now = file.stat()
        os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns + seconds * 10**9))


def test_a_manifest_records_size_and_time(results, tmp_path):
    (path, manifest), *_ = results.values()
    newest = max(file.stat().st_mtime_ns for file in integrity.store_files(path))
    assert size(path) == Size(101, 2, newest)
    assert {name: manifest[name] for name in Size._fields} == size(path)._asdict()
    assert size(tmp_path / "absent") == Size(0, 0, 0)


def test_what_is_whole_is_not_damaged(results):
    for most in (0, 10**9):
        assert list(damage(results, most_bytes=most, most_files=most)) == []


@pytest.mark.parametrize("most", [0, 10**9], ids=["sizes and times first", "all read"])
def test_damage_is_found(results, most):
    paths = [path for path, _ in results.values()]
    (paths[0] / "x" / "c.0").write_bytes(bytes(99) + b"1")
    shutil.rmtree(paths[2])
    found = list(damage(results, most_bytes=most, most_files=most))
    assert stores(found) == ["a.zarr", "c.zarr"]
    assert str(found[0]).endswith(
        "a.zarr: damaged (its digest is not the one in its manifest): it will be computed again"
    )
    assert "damaged (it is gone)" in str(found[1])


@pytest.mark.parametrize("limits", [{"most_bytes": 302}, {"most_files": 5}])
def test_of_many_results_those_of_unchanged_size_and_time_are_not_read(results, limits):
    """A flipped bit that changed neither is left to checksums, and to a look at all."""
    (path, _), *_ = results.values()
    file = path / "x" / "c.0"
    before = file.stat()
    file.write_bytes(bytes(99) + b"1")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stores(damage(results, **limits)) == []
    assert stores(damage(results)) == ["a.zarr"]
    assert stores(damage(results, most_bytes=303, most_files=6)) == ["a.zarr"]


def test_copied_results_are_read_once(results, monkeypatch):
    """Their times are new; their manifests say so when whoever may write has found them whole."""
    for path, _ in results.values():
        move_times(path, DAY)
    read = []
    monkeypatch.setattr(integrity, "digest", lambda path: read.append(path) or digest(path))
    for refresh, reads in ((False, 3), (True, 6), (True, 6)):
        now = {path: (store, read_manifest(path)) for path, (store, _) in results.items()}
        assert list(damage(now, most_bytes=0, refresh=refresh)) == []
        assert len(read) == reads
    for manifest, (_, before) in results.items():
        assert read_manifest(manifest) == {
            **before, "modified": before["modified"] + DAY * 10**9
        }  # fmt: skip


@pytest.mark.parametrize("most", [0, 10**9])
def test_what_cannot_be_read_is_damaged(results, most):
    (path, _), *_ = results.values()
    (path / "x" / "c.0").unlink()
    (path / "x" / "c.0").symlink_to(path / "nowhere")
    (found,) = damage(results, most_bytes=most)
    assert found.store == path
    assert "cannot be read: [Errno 2]" in str(found)


def test_a_manifest_of_unusable_values_vouches_for_nothing(results):
    manifest, (path, said) = next(iter(results.items()))
    for change in ({"digest": 3}, {"bytes": "many", "digest": None}, {"files": None, "digest": []}):
        assert stores(damage({manifest: (path, {**said, **change})})) == ["a.zarr"]


@pytest.mark.parametrize("text", ["", '{"store"', "[]", '{"stage_key": "x"}', "\udcff"])
def test_what_is_no_manifest_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(integrity.StoreError, match=r"a\.json: not a manifest: [^\n]+$"):
        read_manifest(path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = integrity.write_json({"a": 1}, tmp_path / "a.json")
    with pytest.raises(ValueError, match="nan"):
        integrity.write_json({"a": float("nan")}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_folders_are_those_that_results_are_written_into(results, tmp_path):
    (tmp_path / ".hidden").mkdir()
    assert {path.name for path in integrity.folders(tmp_path)} == {tmp_path.name, "manifests"}
