"""Compiled kernels, and the cache that saves compiling them again.

:func:`compiled` is numba's ``njit`` with a cache of its own. A cache only saves time: where nothing
can be written, the disk is full, or a file of it is cut off or damaged, functions are compiled and
the work goes on. numba's own cache raises then; and of two processes that compile at once, for
different types, it may keep the code of one under the types of the other.

An entry is one file, written beside its place and moved there whole. It begins with a digest of the
rest, which names what was compiled, for which types and processor, from which sources and by which
versions; what does not fit is compiled anew. The sources are the file of the function and those of
all functions that it names, directly or through others. What is loaded is executed, so that only
files count that belong to this user, to root or to the owner of the source, and that no other may
write.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import pickle
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_DIGEST = hashlib.sha256
_SUFFIX = ".kernel"
# What a process that was killed while it wrote has left is removed after so many seconds.
_LEFT_BEHIND = 3600.0
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def enabled() -> bool:
    """Say whether numba compiles at all (``NUMBA_DISABLE_JIT`` tells it not to).

    Without compiled kernels torch does the work.
    """
    from numba.core import config

    return not config.DISABLE_JIT  # type: ignore[attr-defined]


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: ``numba.njit(**options)``, with the code kept for later processes.

    Parameters
    ----------
    **options
        Of ``numba.njit``, but for ``cache``.

    Notes
    -----
    numba has no public way to give a function another cache. Where its internals are no longer what
    is expected here, functions are compiled in each process.
    """
    from numba import njit

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        if hasattr(dispatcher, "_cache"):
            try:
                dispatcher._cache = _cache_class()(function)
            except Exception as error:
                logger.debug("%s: no cache: %s", function.__name__, error)
        return dispatcher

    return decorate


@dataclass(frozen=True)
class Place:
    """A folder that may hold compiled kernels.

    Attributes
    ----------
    folder : Path
        Made when it is first written to.
    private : bool
        It lies where every user can make folders, and counts only if it is this user's own.
    """

    folder: Path
    private: bool = False

    def open(self, *, create: bool) -> int:
        """Open the folder; its files are reached through it, whatever comes to bear its name.

        Raises
        ------
        OSError
            If there is none, or it ought to be this user's own and is not.
        """
        if create:
            mode = 0o700 if self.private else 0o777
            # Not with `parents`, which takes no mode.
            for part in reversed((self.folder, *self.folder.parents)):
                part.mkdir(mode=mode, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        found = os.fstat(handle)
        if self.private and (found.st_uid != os.geteuid() or found.st_mode & _BY_OTHERS):
            os.close(handle)
            raise PermissionError(f"{self.folder}: is not this user's own")
        return handle


def places(source: Path) -> Iterator[Place]:
    """Give the places for the kernels of a source file, the preferred one first.

    ``NUMBA_CACHE_DIR`` where that is set, else beside the source's bytecode and the user's cache
    folder; last the folder for temporary files.

    Parameters
    ----------
    source : Path
        The module's file.
    """
    # Who only asks what is kept need not wait for numba.
    config = sys.modules.get("numba.core.config")
    chosen: str = config.CACHE_DIR if config else os.environ.get("NUMBA_CACHE_DIR", "")
    parent = source.parent
    name = f"{parent.name}_{_DIGEST(str(parent).encode()).hexdigest()[:16]}"
    if chosen:
        yield Place(Path(chosen).absolute() / name)
    else:
        yield Place(parent / "__pycache__")
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        # Without a home, "~" stays as it is, and would be a folder of that name here.
        if home.is_absolute():
            yield Place(home / "resnet-limits" / name)
    try:
        yield Place(Path(tempfile.gettempdir()) / f"resnet-limits-{os.geteuid()}-{name}", True)
    except OSError:
        # No folder for temporary files can be written to either.
        return


def is_kept(source: Path) -> bool:
    """Whether compiled forms of functions of a source file are kept, so that few are compiled.

    Not whether they are of this processor and these versions, which only numba knows.

    Parameters
    ----------
    source : Path
        The module's file.
    """
    for place in places(source.absolute()):
        with suppress(OSError):
            folder = place.open(create=False)
            try:
                names = os.listdir(folder)
            finally:
                os.close(folder)
            if any(n.startswith(f"{source.stem}.") and n.endswith(_SUFFIX) for n in names):
                return True
    return False


def _read(folder: int, name: str, owners: set[int]) -> bytes:
    """Read a file that one of these owners, and nobody else, can have written."""
    # A pipe in the place of a file would be waited for.
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        own = found.st_uid in owners and not found.st_mode & _BY_OTHERS
        if not own or not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{name}: others may have written it")
        return file.read()


def _write(folder: int, name: str, content: bytes) -> None:
    """Put a file into its place, whole or not at all."""
    beside = f"{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    handle = os.open(beside, flags, 0o644, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise
    for other in os.listdir(folder):
        if f"{_SUFFIX}." in other:
            with suppress(OSError):
                if time.time() - os.stat(other, dir_fd=folder).st_mtime > _LEFT_BEHIND:
                    os.unlink(other, dir_fd=folder)


def _seal(key: tuple[str, ...], payload: bytes) -> bytes:
    body = pickle.dumps((key, payload))
    return _DIGEST(body).digest() + body


def _unseal(content: bytes, key: tuple[str, ...]) -> bytes:
    """Return the payload of an entry; raise ValueError if it is damaged or of something else."""
    size = _DIGEST().digest_size
    if _DIGEST(content[size:]).digest() != content[:size]:
        raise ValueError("damaged")
    found, payload = pickle.loads(content[size:])
    if found != key:
        raise ValueError("of another source or version")
    return bytes(payload)


def _sources(function: Callable[..., Any]) -> list[Path]:
    """Give the files of a function and of all that it names, while they are of one package.

    Libraries from elsewhere are told apart by their versions.
    """
    home = function.__module__.partition(".")[0]
    found: dict[str, None] = {}
    waiting, seen = [function], set()
    while waiting:
        one = waiting.pop()
        # Compiled functions, and those that write code, name what they were made of.
        one = getattr(one, "py_func", getattr(one, "__wrapped__", one))
        if id(one) in seen or getattr(one, "__module__", "").partition(".")[0] != home:
            continue
        seen.add(id(one))
        if (code := getattr(one, "__code__", None)) is None:
            continue
        found[code.co_filename] = None
        for name in code.co_names:
            value = one.__globals__.get(name)
            # A module's functions are named by their own names.
            if inspect.ismodule(value):
                waiting += [vars(value)[n] for n in code.co_names if n in vars(value)]
            elif callable(value):
                waiting.append(value)
    return [Path(name).absolute() for name in found]


def _cache_class() -> Any:
    """Return the class of caches, which is one of numba's; see :func:`compiled`."""
    import llvmlite
    import numba
    from numba.core.caching import NullCache
    from numba.core.compiler import CompileResult
    from numba.core.serialize import dumps

    class Cache(NullCache):
        """The compiled forms of one function. Whatever goes wrong, it holds nothing."""

        def __init__(self, function: Callable[..., Any]) -> None:
            self.source = Path(inspect.getfile(function)).absolute()
            self.name = f"{self.source.stem}.{function.__qualname__}"
            code = function.__code__
            self.stamp = (
                *(_DIGEST(file.read_bytes()).hexdigest() for file in _sources(function)),
                _DIGEST(code.co_code).hexdigest(),
                str(code.co_firstlineno),
            )
            self.owners = {os.geteuid(), 0, self.source.stat().st_uid}
            self.built_by = (sys.version, numba.__version__, llvmlite.__version__)

        @property
        def cache_path(self) -> str:
            """Where entries are written, if they can be."""
            return str(next(places(self.source)).folder)

        def _entry(self, signature: Any, codegen: Any) -> tuple[str, tuple[str, ...]]:
            """Name of a file, and what it must say that it holds.

            The source is not part of the name: what an edit makes useless is written over.
            """
            kind = (repr(signature), repr(codegen.magic_tuple()), *self.built_by)
            digest = _DIGEST(repr(kind).encode()).hexdigest()[:24]
            return f"{self.name}-{digest}{_SUFFIX}", (self.name, *kind, *self.stamp)

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            """Return the compiled form for a signature, or None."""
            try:
                target_context.refresh()
                name, key = self._entry(sig, target_context.codegen())
            except Exception as error:
                logger.debug("%s: not looked up: %s", self.name, error)
                return None
            for place in places(self.source):
                try:
                    folder = place.open(create=False)
                except OSError:
                    continue
                try:
                    payload = pickle.loads(_unseal(_read(folder, name, self.owners), key))
                    return CompileResult._rebuild(target_context, *payload)
                except FileNotFoundError:
                    continue
                except Exception as error:
                    logger.debug("%s: %s is not used: %s", self.name, place.folder / name, error)
                finally:
                    os.close(folder)
            return None

        def save_overload(self, sig: Any, data: Any) -> None:
            """Keep a compiled form in the first place that takes it."""
            try:
                if data.library.has_dynamic_globals or data.lifted:
                    return
                name, key = self._entry(sig, data.codegen)
                content = _seal(key, dumps(data._reduce()))
            except Exception as error:
                logger.debug("%s: not kept: %s", self.name, error)
                return
            for place in places(self.source):
                try:
                    folder = place.open(create=True)
                    try:
                        _write(folder, name, content)
                    finally:
                        os.close(folder)
                    return
                except OSError as error:
                    logger.debug("%s: not kept in %s: %s", self.name, place.folder, error)

    return Cache
