"""One pipeline at a time on one folder of results, and no single command beside it.

The lock is the kernel's (``flock``): it belongs to a process, ends with it however it ends, and
holds for whoever sees the same folder, from any working directory and, where the file system
passes locks on, from any machine. The file that is locked stays and means nothing by itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from resnet_limits.integrity import error_line, open_regular

_PIPELINE, _JOBS = ".lock", ".jobs"
# What a link in the place of these files leads to is not theirs to write.
_WRITTEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
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
        with ExitStack() as failed:
            own = open_regular(folder / _PIPELINE, _WRITTEN)
            failed.callback(os.close, own)
            jobs = open_regular(folder / _JOBS, _WRITTEN)
            failed.pop_all()
    except OSError as error:
        raise LockError(
            f"{folder}: cannot be written ({error.strerror}); allowed: another folder of "
            "results, by --config results=FOLDER, or a dry run, which only reads"
        ) from error
    with os.fdopen(jobs), ExitStack() as failed:
        failed.callback(os.close, own)
        try:
            _take(own)
        except BlockingIOError:
            raise LockError(
                f"{folder}: another pipeline is at work here ({_holder(own)}); allowed: one at a "
                "time, so wait until it has ended, or end it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise LockError(f"{folder}: cannot be locked ({error_line(error)})") from error
            say(
                f"warning: {folder}: this file system has no locks ({error.strerror}); make "
                "sure that no other pipeline is at work here"
            )
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"{socket.gethostname()}, process {os.getpid()}, since {now}\n"
        try:
            os.ftruncate(own, 0)
            os.pwrite(own, holder.encode(), 0)
        except OSError as error:
            raise LockError(f"{folder}: cannot be written ({error.strerror})") from error
        _wait_for_jobs(jobs, folder, say)
        failed.pop_all()
    return own


def _take(descriptor: int) -> None:
    """Take the pipelines' lock; whoever only asks for it (`at_work_alone`) has it for an instant.

    Raises
    ------
    BlockingIOError
        If another process keeps it.
    """
    for pause in (0.05, 0.2, None):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause is None:
                raise
            time.sleep(pause)
        else:
            return


def _holder(descriptor: int) -> str:
    """Say who holds the pipelines' lock, as the holder has written into its file."""
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"


def _wait_for_jobs(jobs: int, folder: Path, say: Callable[[str], object]) -> None:
    try:
        fcntl.flock(jobs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            with _interruptible():
                say(
                    f"{folder}: jobs of a pipeline that was killed, or single commands, are still "
                    "at work; waiting for them to end"
                )
                fcntl.flock(jobs, fcntl.LOCK_EX)
        except KeyboardInterrupt:
            raise LockError(f"{folder}: interrupted while waiting for jobs at work") from None
    except OSError as error:
        # That there are no locks has been said.
        if error.errno not in _NO_LOCKS:
            raise LockError(f"{folder}: cannot be locked ({error_line(error)})") from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a wait at once, whoever else has asked to be told of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def at_work(folder: Path | str) -> Iterator[None]:
    """Let pipelines that start later know that a job is at work, for as long as the block lasts.

    Where that cannot be made known the job works all the same.
    """
    try:
        descriptor = open_regular(Path(folder) / _JOBS, _WRITTEN)
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


@contextmanager
def at_work_alone(folder: Path | str) -> Iterator[None]:
    """Be at work, as `at_work`, in a folder that no pipeline holds.

    Pipelines that start later wait for the end of the block.

    Raises
    ------
    LockError
        If a pipeline holds the folder.
    """
    with at_work(folder):
        # In this order: a pipeline that takes the folder after the question waits for this job.
        holder = _asked(Path(folder) / _PIPELINE)
        if holder is not None:
            raise LockError(
                f"{folder}: a pipeline is at work here ({holder}); allowed: another place, or wait "
                "until it has ended"
            )
        yield


def _asked(file: Path) -> str | None:
    """Say who holds the pipelines' lock; None if nobody does, or that cannot be known."""
    try:
        descriptor = open_regular(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def is_shared(folder: Path | str) -> bool:
    """Whether pipelines or jobs have been at work in a folder."""
    return any((Path(folder) / name).exists() for name in (_PIPELINE, _JOBS))
