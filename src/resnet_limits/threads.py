"""Worker threads that share work in whole pieces.

The pieces of a limit's or a network's work are too small to be shared by torch's own threads, whose
barriers would cost as much as the work, the more so where the cores are shared with other jobs. So
every worker takes whole pieces and runs torch in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Pool:
    """Worker threads, each of which runs torch in one thread.

    Parameters
    ----------
    threads : int
        How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        # The setting holds for the thread that makes it.
        self._executor = ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(1,)
        )

    def map(self, work: Callable[..., Result], *items: Iterable[Any]) -> Iterator[Result]:
        """Do work for all items at once; give the results in the items' order."""
        return self._executor.map(work, *items)

    def close(self) -> None:
        """End the threads once their work is done."""
        self._executor.shutdown()


def make_pool() -> Pool | None:
    """Give one worker to every thread that torch may use, or none where that is one.

    While they work, torch is to be held to :func:`one_thread`.
    """
    threads = torch.get_num_threads()
    return Pool(threads) if threads > 1 else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread, in the thread that asks for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def workers() -> Iterator[Pool | None]:
    """Give a pool for a time, with torch held to one thread; None where that is all it has."""
    pool = make_pool()
    if pool is None:
        yield None
        return
    try:
        with one_thread():
            yield pool
    finally:
        pool.close()
