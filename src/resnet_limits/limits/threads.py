"""Worker threads that share work in whole pieces.

A piece of a limit's work is too small to be shared by threads, whose barriers would cost as much as
the work, the more so where the cores are shared with other jobs. So every worker takes whole pieces
and runs torch in one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Pool:
    """Worker threads, each of which runs torch in one thread."""

    executor: ThreadPoolExecutor
    threads: int


@contextmanager
def workers() -> Iterator[Pool | None]:
    """Give one worker to every thread that torch may use, or none where that is one."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield None
        return
    torch.set_num_threads(1)
    try:
        # The setting holds for the thread that makes it.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield Pool(pool, threads)
    finally:
        torch.set_num_threads(threads)
