"""Threads that share the blocks of a long axis among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from resnet_limits.threads import make_pool

# Coordinates of embedding space that one thread works on at a time.
_LONG_BLOCK = 1 << 14
# Numbers below which handing out work takes longer than doing it.
_SHARED_FROM = 1 << 16

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Workers:
    """Threads that share the blocks of a long axis among them.

    torch itself would share out every single operation, which are too small for that. So it is to
    be held to one thread while these work (``threads.one_thread``), and the blocks are what they
    are whatever the number of threads.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        self.pool = make_pool() if self.on_cpu else None

    def run(
        self, work: Callable[[_Job], _Result], jobs: Sequence[_Job], numbers: int
    ) -> list[_Result]:
        """Do all jobs, which go through so many numbers; return their results in order."""
        if self.pool is None or len(jobs) == 1 or numbers < _SHARED_FROM:
            return [work(job) for job in jobs]
        return list(self.pool.map(work, jobs))

    def blocks(self, length: int, size: int) -> list[slice]:
        """Cut an axis into blocks of a size; on a GPU it stays whole."""
        size = size if self.on_cpu else length
        return [slice(start, min(length, start + size)) for start in range(0, length, size)]

    def dot(self, one: Tensor, other: Tensor) -> Tensor:
        """Inner products over the last axis: ``(S, n, D)`` and ``(S, m, D)`` give ``(S, n, m)``."""
        places = self.blocks(one.shape[-1], _LONG_BLOCK)
        numbers = one.numel() + other.numel()
        parts = self.run(lambda at: torch.bmm(one[..., at], other[..., at].mT), places, numbers)
        return reduce(torch.add, parts)

    def add_(self, target: Tensor, coefficients: Tensor, vectors: Tensor) -> None:
        """``target += coefficients @ vectors``, with ``(S, n, m)`` and ``(S, m, D)``."""

        def add(at: slice) -> None:
            target[..., at].baddbmm_(coefficients, vectors[..., at])

        numbers = target.numel() + vectors.numel()
        self.run(add, self.blocks(target.shape[-1], _LONG_BLOCK), numbers)
