"""What the machine can do: the two rates that floors are made of, and a fair way to time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def synchronize(device: str) -> None:
    """Wait for the device to have finished what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], device: str = "cpu", runs: int = 9) -> float:
    """Median time of `runs` runs, after one that is not counted."""
    work()
    synchronize(device)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[runs // 2]


def bandwidth(dtype: torch.dtype, device: str = "cpu") -> float:
    """Bytes per second of two reads and one write over arrays far larger than the caches."""
    elements = (1 << 28) // dtype.itemsize
    x = torch.ones(elements, dtype=dtype, device=device)
    y = torch.ones(elements, dtype=dtype, device=device)
    return 3 * (1 << 28) / median_seconds(lambda: torch.add(x, y, out=y), device)


def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Floating-point operations per second of a square matrix product."""
    n = 8192 if device == "cuda" else 2048
    x = torch.randn(n, n, dtype=dtype, device=device)
    y = torch.empty_like(x)
    return 2 * n**3 / median_seconds(lambda: torch.mm(x, x, out=y), device)


def describe(device: str) -> str:
    """Name of the device and the number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
