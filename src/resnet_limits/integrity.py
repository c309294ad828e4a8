"""Finished results: files written whole or not at all, their digests, and their manifests.

Beside a result, a *manifest* records its stage key, its digest and its size; the manifest is
written last. Here is what writes it and what finds out whether a result is still what its manifest
vouches for. Nothing outside the standard library is imported, so that the Snakefile can ask.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

ZARR_METADATA = "zarr.json"
"""Name of the file that holds the metadata of a Zarr group or array."""

RESULTS_GROUP: dict[str, Any] = {
    "attributes": {"kind": "results", "title": "Results of one experiment, or of one kind"},
    "zarr_format": 3,
    "node_type": "group",
}
"""Metadata of a folder of results: a Zarr group, so that readers of Zarr find the stores in it."""

# .NAME.HOST-PROCESS-TOKEN.tmp, as `temporary` makes them.
_TEMPORARY = re.compile(r"\..+\.(?P<host>[^/]*)-(?P<process>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
# No result takes longer than this to be written, from its first file to its last.
_WRITING_SECONDS = 86_400


class StoreError(Exception):
    """A result that is absent, unsound, or may not be written. The message is one line."""


def error_line(error: BaseException) -> str:
    """Give the message of an error as one line; its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


# --- whole or not at all --------------------------------------------------------------------------


def remove(path: Path) -> None:
    """Remove a file or a whole directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this host is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove what writers into this folder left that were killed, on this machine or another.

    Of other machines' processes nothing is known: what they write is left over after a day. Only
    names that `temporary` makes count; whatever else lies there is the user's own.
    """
    host = socket.gethostname()
    with os.scandir(folder) as entries:
        found = [(entry, _TEMPORARY.fullmatch(entry.name)) for entry in entries]
    for entry, name in found:
        if name is None:
            continue
        # Another machine may finish its work while this looks at it; what cannot be looked at or
        # removed is in nobody's way.
        with suppress(OSError, StoreError):
            if f".{name['host']}".endswith(f".{host}"):
                is_left = not is_alive(int(name["process"]))
            else:
                newest = max(
                    entry.stat(follow_symlinks=False).st_mtime, size(entry.path).modified / 1e9
                )
                is_left = time.time() - newest > _WRITING_SECONDS
            if is_left:
                remove(Path(entry.path))


@lru_cache(maxsize=1024)
def _clean(folder: Path) -> None:
    """Once in a process: a folder of thousands of stores takes long to list."""
    remove_leftovers(folder)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Give a name beside the final one, gone again afterwards whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean(path.parent)
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    name = path.with_name(f".{path.name}.{token}.tmp")
    try:
        yield name
    finally:
        remove(name)


def write_json(value: Mapping[str, Any], path: Path | str) -> Path:
    """Write a JSON file, whole or not at all.

    Raises
    ------
    ValueError
        If a number is NaN or infinite, which JSON cannot say.
    """
    return write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: Path | str) -> Path:
    """Write a text file, whole or not at all."""
    path = Path(path)
    with temporary(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    return path


# --- digests --------------------------------------------------------------------------------------


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Give all files of a store, or raise StoreError if there is anything else in it.

    A pipe would be waited for forever, and folders elsewhere are no part of a store.
    """
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                # Hidden files are other programs' notes (file systems', workflow engines').
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file():
                    yield entry
                else:
                    inside = os.path.relpath(entry.path, folder)
                    raise StoreError(f"{folder}: {inside} is neither a file nor a folder")


def store_files(directory: Path) -> list[Path]:
    """All files of a store, in the order of their paths.

    Raises
    ------
    StoreError
        If it holds anything but files and folders.
    """
    return sorted(Path(entry.path) for entry in _entries(str(directory)))


def file_digest(file: Path | str) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def combined_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 of a list of names with their digests."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return text_digest(lines)


def digest(path: Path | str) -> str:
    """SHA-256 of a whole result: of the file, or of the list of the directory's files' digests.

    Raises
    ------
    StoreError
        If there is nothing under that name, or it holds anything but files and folders.
    """
    path = Path(path)
    if path.is_dir():
        start = len(str(path)) + 1
        return combined_digest(
            {
                entry.path[start:].replace(os.sep, "/"): file_digest(entry.path)
                for entry in _entries(str(path))
            }
        )
    if not path.is_file():
        raise StoreError(f"{path}: no such result")
    return file_digest(path)


class Size(NamedTuple):
    """What can be known of a result without reading it.

    Attributes
    ----------
    bytes, files : int
        Of its content.
    modified : int
        Time of the newest of its files, in nanoseconds.
    """

    bytes: int
    files: int
    modified: int


def size(path: Path | str) -> Size:
    """Measure a result without reading it; nothing at all has size zero.

    Raises
    ------
    StoreError
        If it holds anything but files and folders.
    """
    path = Path(path)
    if path.is_dir():
        found = [entry.stat() for entry in _entries(str(path))]
    else:
        found = [path.stat()] if path.exists() else []
    return Size(
        sum(each.st_size for each in found),
        len(found),
        max((each.st_mtime_ns for each in found), default=0),
    )


# --- manifests ------------------------------------------------------------------------------------


def write_manifest(
    path: Path | str, store_path: Path | str, *, kind: str, stage_key: str, **facts: Any
) -> Path:
    """Declare a result finished: its manifest is written last and renamed into place.

    Parameters
    ----------
    path : path
        The manifest.
    store_path : path
        The finished store or other file.
    kind, stage_key : str
        What it is, and what it depends on.
    **facts
        Further JSON values, such as ``status`` counts.

    Returns
    -------
    Path
        The manifest. It holds ``store`` (relative to the manifest's folder), ``kind``,
        ``stage_key``, ``digest``, ``bytes``, ``files``, ``modified`` (`Size`) and the facts.
    """
    path, store_path = Path(path), Path(store_path)
    return write_json(
        {
            "store": Path(os.path.relpath(store_path, path.parent)).as_posix(),
            "kind": kind,
            "stage_key": stage_key,
            "digest": digest(store_path),
            **size(store_path)._asdict(),
            **facts,
        },
        path,
    )


def open_regular(path: Path | str, flags: int) -> int:
    """Open a regular file as ``os.open`` does; a pipe in its place is not waited for.

    Raises
    ------
    OSError
        If it is anything else; also if it is a link and the flags have ``O_NOFOLLOW``.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, f"{Path(path).name} is a link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{Path(path).name} is not a regular file")
    return descriptor


def read_json(path: Path) -> Any:
    """Read a JSON file that anything may have happened to.

    Raises
    ------
    OSError, ValueError
        Whatever is wrong with it.
    """
    with open(path, encoding="utf-8", opener=open_regular) as file:
        try:
            return json.load(file)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def read_manifest(path: Path | str) -> dict[str, Any]:
    """Read a manifest.

    Raises
    ------
    StoreError
        If it is absent or not a manifest.
    """
    path = Path(path)
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such manifest") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a manifest: {error_line(error)}") from error
    if not isinstance(manifest, dict) or not {"store", "stage_key"} <= manifest.keys():
        raise StoreError(f"{path}: not a manifest: it names no store and stage_key")
    if not isinstance(manifest["store"], str):
        raise StoreError(f"{path}: not a manifest: its store is not a name")
    return manifest


def attributes(store_path: Path | str) -> dict[str, Any]:
    """Root attributes of a Zarr directory, read without opening it; none if that cannot be."""
    try:
        return dict(read_json(Path(store_path) / ZARR_METADATA)["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def matching_manifest(path: Path | str, key: str) -> dict[str, Any] | None:
    """Read the manifest of a result that is there and was computed under this stage key.

    It is read once: a pipeline may remove or replace it at any time.
    """
    # A name that no file can have is not there either.
    with suppress(StoreError, OSError, ValueError):
        manifest = read_manifest(path)
        if manifest["stage_key"] == key and (Path(path).parent / manifest["store"]).exists():
            return manifest
    return None


def manifest_matches(path: Path | str, key: str) -> bool:
    """Whether a finished result is there that was computed under this stage key."""
    return matching_manifest(path, key) is not None


# --- damage ---------------------------------------------------------------------------------------


class Damage(NamedTuple):
    """A result that is not what its manifest vouches for.

    Attributes
    ----------
    manifest, store : Path
        Both, whether they are there or not.
    reason : str
        A few words.
    """

    manifest: Path
    store: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.store}: damaged ({self.reason}): it will be computed again"


def damage(
    results: Mapping[Path, tuple[Path, Mapping[str, Any]]],
    *,
    most_bytes: float = math.inf,
    most_files: float = math.inf,
    refresh: bool = False,
) -> Iterator[Damage]:
    """Find results that are not what their manifests vouch for.

    All are read and compared with the digests in their manifests if together they are small.
    If not, a result is read only where the number, the bytes or the times of its files differ.

    Parameters
    ----------
    results : mapping of Path to (Path, mapping)
        Path of the manifest to path of its result and what the manifest says (`read_manifest`).
    most_bytes, most_files : float
        What small is; everything if left out.
    refresh : bool
        Record new sizes and times of whole results in their manifests, so that the next look need
        not read them again. Only for whoever holds the results (`lock.hold`).

    Yields
    ------
    Damage
        One for each result that is gone, cannot be read or has another digest.
    """
    total = {
        name: sum(n for _, m in results.values() if isinstance(n := m.get(name), int))
        for name in ("bytes", "files")
    }
    read_all = total["bytes"] <= most_bytes and total["files"] <= most_files
    for path, (store_path, manifest) in results.items():
        if not store_path.exists():
            yield Damage(path, store_path, "it is gone")
            continue
        recorded = {name: manifest.get(name) for name in Size._fields}
        try:
            found = {} if read_all else size(store_path)._asdict()
            is_whole = found == recorded or digest(store_path) == manifest.get("digest")
        except (OSError, StoreError) as error:
            yield Damage(path, store_path, f"it cannot be read: {error_line(error)}")
            continue
        if not is_whole:
            yield Damage(path, store_path, "its digest is not the one in its manifest")
        elif refresh and not read_all and found != recorded:
            with suppress(OSError):
                write_json({**manifest, **found}, path)


def folders(root: Path) -> Iterable[Path]:
    """All folders that results are written into, below and with one."""
    for folder, inner, _ in os.walk(root):
        # Stores, and what is hidden, are never written into.
        inner[:] = [name for name in inner if not (name.startswith(".") or name.endswith(".zarr"))]
        yield Path(folder)
