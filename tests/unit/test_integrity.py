"""Manifests, and what is found out with them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
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
    assert "cannot be read" in str(found)
    assert "x/c.0 is neither a file nor a folder" in str(found)


@pytest.mark.parametrize("most", [0, 10**9])
@pytest.mark.parametrize("what", ["pipe", "link to a folder", "link to a parent"])
def test_what_is_no_part_of_a_store_is_damage(results, tmp_path, what, most):
    """A pipe would be waited for, and a folder elsewhere is none of the store's."""
    (path, _), *_ = results.values()
    if what == "pipe":
        os.mkfifo(path / "x" / "c.1")
    else:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (path / "x" / "c.1").symlink_to(elsewhere if what == "link to a folder" else path)
    (found,) = damage(results, most_bytes=most)
    assert found.store == path
    assert "x/c.1 is neither a file nor a folder" in str(found)
    for look in (digest, size, integrity.store_files):
        with pytest.raises(integrity.StoreError, match=r"^[^\n]*neither a file nor a folder$"):
            look(path)


def _temporary(path, host, process, token="0123abcd"):
    return path.with_name(f".{path.name}.{host}-{process}-{token}.tmp")


def test_only_what_writers_left_is_removed(tmp_path):
    """What is called otherwise is the user's own, however old it is."""
    dead, host = 2**22 + 1, socket.gethostname()
    own = [
        tmp_path / name
        for name in (
            ".notes.tmp", ".build.tmp", ".a-1-b.tmp", "a.tmp", f".{host}-{dead}-0123abcd.tmp",
            f".a.{host}-{dead}-0123ABCD.tmp", f".a.{host}-x-0123abcd.tmp",
            f".a.{host}-{dead}-0123abcd.tmp.old", f"a.{host}-{dead}-0123abcd.tmp",
        )
    ]  # fmt: skip
    left = [
        _temporary(tmp_path / "a.json", host, dead),
        _temporary(tmp_path / "a-1.zarr", host, dead),
        _temporary(tmp_path / "a.json", "else-where.org", 1),
    ]
    young = [
        _temporary(tmp_path / "b.json", "elsewhere", 1),
        _temporary(tmp_path / "b.json", host, os.getpid()),
    ]
    for path in (*own, *left):
        path.mkdir() if path.name == ".build.tmp" else path.touch()
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    for path in young:
        path.touch()
    integrity.remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {*own, *young}


def test_a_temporary_name_is_one_that_is_cleared(tmp_path):
    """The negative control: the pattern is that of the names that are made."""
    with integrity.temporary(tmp_path / "a.b.json") as name:
        assert integrity._TEMPORARY.fullmatch(name.name)["process"] == str(os.getpid())


def test_a_listing_of_leftovers_is_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        integrity.remove_leftovers(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_manifest_of_unusable_values_vouches_for_nothing(results):
    manifest, (path, said) = next(iter(results.items()))
    for change in ({"digest": 3}, {"bytes": "many", "digest": None}, {"files": None, "digest": []}):
        assert stores(damage({manifest: (path, {**said, **change})})) == ["a.zarr"]


@pytest.mark.parametrize(
    "text",
    [
        "", '{"store"', "[]", '{"stage_key": "x"}', "\udcff", '{"store": 5, "stage_key": "x"}',
        '{"store": null, "stage_key": "x"}', "[" * 200_000, '{"a":' * 200_000,
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(integrity.StoreError, match=r"a\.json: not a manifest: [^\n]+$"):
        read_manifest(path)


def test_a_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(
        integrity.StoreError, match=r"a\.json: not a manifest: [^\n]*is not a regular file"
    ):
        read_manifest(tmp_path / "a.json")
    with pytest.raises(integrity.StoreError, match=r"not a manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("named", ["5", "[]", '"a\\u0000b"', '"\\ud800"', f'"{"a" * 5000}"'])
def test_a_manifest_of_what_is_no_name_matches_nothing(tmp_path, named):
    path = tmp_path / "a.json"
    path.write_text(f'{{"store": {named}, "stage_key": "x"}}')
    assert integrity.matching_manifest(path, "x") is None
    path.write_text('{"store": ".", "stage_key": "x"}')
    assert integrity.matching_manifest(path, "x") is not None


@pytest.mark.parametrize("text", ["", "[]", '{"attributes": 3}', "[" * 200_000, None])
def test_attributes_of_what_is_no_store_are_none(tmp_path, text):
    if text is None:
        os.mkfifo(tmp_path / "zarr.json")
    else:
        (tmp_path / "zarr.json").write_text(text)
    assert integrity.attributes(tmp_path) == {}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = integrity.write_json({"a": 1}, tmp_path / "a.json")
    with pytest.raises(ValueError, match="nan"):
        integrity.write_json({"a": float("nan")}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_folders_are_those_that_results_are_written_into(results, tmp_path):
    (tmp_path / ".hidden").mkdir()
    assert {path.name for path in integrity.folders(tmp_path)} == {tmp_path.name, "manifests"}
