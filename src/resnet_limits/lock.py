"""One pipeline at a time on one folder of results.

The lock is the kernel's (``flock``): it belongs to a process, ends with it however it ends, and
holds for whoever sees the same folder, from any working directory and, where the file system
passes locks on, from any machine. The file that is locked stays and means nothing by itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resnet_limits.integrity import error_line

_PIPELINE, _JOBS = ".lock", ".jobs"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LockError(Exception):
    """A folder that this pipeline may not use now. The message is one line."""


def hold(folder: Path | str, say: Callable[[str], object]) -> int:
    """Take a folder of results for this process, until it ends.

    If jobs of an earlier pipeline, which was killed, are still at work, wait for their end.

    Parameters
    ----------
    folder : path
        The folder; it is made if it is not there.
    say : callable
        Takes a line for the user: what is waited for, or that the file system has no locks.

    Returns
    -------
    int
        The descriptor that holds the lock. Closing it would give the lock up.

    Raises
    ------
    LockError
        If another process holds the folder, or it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own, jobs = (
            os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666) for name in (_PIPELINE, _JOBS)
        )
    except OSError as error:
        raise LockError(
            f"{folder}: cannot be written ({error.strerror}); allowed: a folder of results that "
            "can be, as in --config results=FOLDER; a dry run only reads"
        ) from error
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _wait_for_jobs(jobs, folder, say)
    except BlockingIOError:
        holder = os.pread(own, 200, 0).decode(errors="replace").strip() or "unknown"
        os.close(own)
        raise LockError(
            f"{folder}: another pipeline is at work here ({holder}); allowed: one at a time, so "
            "wait until it has ended, or end it"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise LockError(f"{folder}: cannot be locked ({error_line(error)})") from error
        say(
            f"warning: {folder}: this file system has no locks ({error.strerror}); see to it that "
            "no other pipeline is at work here"
        )
    finally:
        os.close(jobs)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        os.ftruncate(own, 0)
        os.pwrite(own, f"{socket.gethostname()}, process {os.getpid()}, since {now}\n".encode(), 0)
    except OSError as error:
        os.close(own)
        raise LockError(f"{folder}: cannot be written ({error.strerror})") from error
    return own


def _wait_for_jobs(jobs: int, folder: Path, say: Callable[[str], object]) -> None:
    try:
        fcntl.flock(jobs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(
            f"{folder}: jobs of a pipeline that was killed are still at work; waiting for their end"
        )
        fcntl.flock(jobs, fcntl.LOCK_EX)


@contextmanager
def at_work(folder: Path | str) -> Iterator[None]:
    """Let pipelines that start later know that a job is at work, for as long as the block lasts.

    Where that cannot be made known the job works all the same.
    """
    try:
        descriptor = os.open(Path(folder) / _JOBS, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
