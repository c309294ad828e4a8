"""Which device the numbers are computed on."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from resnet_limits.config import InputError


def choose(wanted: str) -> str:
    """Turn ``numerics.device`` into a torch device.

    Parameters
    ----------
    wanted : str
        ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If CUDA is asked for where there is none, or a cluster has reserved a GPU for this job and
        CUDA cannot use it: an expensive device would be idle, and nobody would notice.
    """
    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        # float32 means float32: an environment variable, which some containers set, would let
        # matrix products round to ten bits.
        torch.set_float32_matmul_precision("highest")
        return "cuda"
    reserved = _reserved_gpu()
    if reserved:
        raise InputError(
            f"numerics.device: {wanted}, but CUDA cannot use the GPU that SLURM has reserved for "
            f"this job ({reserved}); allowed here: cpu"
        )
    if wanted == "cuda":
        raise InputError(
            "numerics.device: cuda is asked for, but no CUDA device is visible; allowed here: "
            "auto, cpu"
        )
    return "cpu"


def _reserved_gpu() -> str:
    """Name the GPU that SLURM has reserved, as its variables do; empty if it has not."""
    names = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")
    if not any(os.environ.get(name) for name in names[:2]):
        return ""
    return ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


def describe(device: str) -> str:
    """Name a device for the record: ``cpu``, or ``cuda (NAME)`` with the accelerator's name."""
    return f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else device


def dtype(precision: str) -> torch.dtype:
    """Turn ``numerics.precision`` into a torch dtype."""
    return {"float64": torch.float64, "float32": torch.float32}[precision]


MEMORY_SHARE = 0.9
"""Share of the memory that results may take: the interpreter and the file need the rest."""


def memory(device: str) -> int:
    """Bytes of memory that a job may take on a device.

    On a GPU what is free there; on the CPU what the system has to give, or what a control group
    (a container, a cluster's job) or SLURM's own count leaves of it.
    """
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                bounds.append(1024 * int(line.split()[1]))
    except OSError:
        pass
    bounds += _group_limits() + _slurm_limits()
    return min(bounds)


def _slurm_limits() -> list[int]:
    """Memory that was asked of SLURM, which counts in MiB; not every cluster enforces it."""

    def number(name: str) -> int:
        value = os.environ.get(name, "")
        return int(value) if value.isdecimal() else 0

    asked = (
        number("SLURM_MEM_PER_NODE"),
        number("SLURM_MEM_PER_CPU") * number("SLURM_CPUS_ON_NODE"),
    )
    # 0 is SLURM's word for all that there is.
    return [mib * 2**20 for mib in asked if mib > 0]


def _group_limits() -> list[int]:
    """Limits of this process's control group and of those above it."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    limits = []
    for folder in (root / own, *(root / own).parents):
        try:
            limits.append(int((folder / "memory.max").read_text()))
        except (OSError, ValueError):
            # No such file, or "max": no limit here.
            continue
    return limits
