"""What a job asks of the machine or the cluster: cores, memory, time, GPUs.

From the estimates of its cells, with room to spare. None of it changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from resnet_limits.config import Experiment
from resnet_limits.kinds import COMPUTED
from resnet_limits.stages import estimates
from resnet_limits.stages.paths import Cell

CORE_MB = 8000
"""Memory that comes with one core of most machines."""

GPU_SECONDS = 60.0
"""Less than this on a core is not worth waiting for a GPU."""

_GPU_SITE = "gpu_"
# A cluster counts the two Snakemakes around a job as its memory, about 120 MB each.
_SNAKEMAKE_MB = 300
# What CUDA's libraries and its context take of a node's memory: not measured, as reported of torch.
_CUDA_MB = 3000


# Every resource of a job asks for these, of thousands of cells in all.
@lru_cache(maxsize=256)
def _costs(
    kind: str, experiment: Experiment, cells: tuple[tuple[tuple[str, int], ...], ...]
) -> tuple[float, int]:
    """Seconds of all cells, and the memory of the largest in MiB."""
    named = [dict(cell) for cell in cells]
    return (
        sum(estimates.seconds(kind, experiment, **cell) for cell in named),
        max(estimates.megabytes(kind, experiment, **cell) for cell in named),
    )


def _items(cells: Sequence[Cell]) -> tuple[tuple[tuple[str, int], ...], ...]:
    return tuple(tuple(cell.items()) for cell in cells)


def _seconds(kind: str, experiment: Experiment, cells: Sequence[Cell]) -> float:
    return _costs(kind, experiment, _items(cells))[0]


def mem_mb(kind: str, experiment: Experiment, cells: Sequence[Cell]) -> int:
    """Memory of a job, in MiB: that of its largest cell, and what comes with every job."""
    _, largest = _costs(kind, experiment, _items(cells))
    return largest + _SNAKEMAKE_MB + (_CUDA_MB if gpus(kind, experiment, cells) else 0)


def minutes(kind: str, experiment: Experiment, cells: Sequence[Cell]) -> int:
    """Time limit of a job: ten times what it is thought to need, and ten minutes."""
    return 10 + math.ceil(_seconds(kind, experiment, cells) / 6)


def cores(kind: str, experiment: Experiment, cells: Sequence[Cell]) -> int:
    """Cores of a job: one, as many small jobs side by side are fastest.

    More for what cannot be side by side: what takes more than a core's share of memory, and the
    DMFT limit, for which all other limits wait.
    """
    if kind == "dmft":
        return 1 + min(3, int(_seconds(kind, experiment, cells) / 10))
    return math.ceil(mem_mb(kind, experiment, cells) / CORE_MB)


def gpus(kind: str, experiment: Experiment, cells: Sequence[Cell]) -> int:
    """Count the GPUs that a job asks for: one if it may use it and is large, or must have it."""
    if kind not in COMPUTED:
        return 0
    device = experiment.numerics.device
    is_large = _seconds(kind, experiment, cells) >= GPU_SECONDS
    return int(device == "cuda" or (device == "auto" and is_large))


def doubling(amount: int) -> Callable[..., int]:
    """Give twice as much of a resource to a job at each further attempt.

    Only a cluster makes further attempts by itself, and there a job ends at what it has asked for.

    Returns
    -------
    callable
        What Snakemake takes for a resource: of ``wildcards`` and ``attempt``, from 1.
    """

    def resource(wildcards: object, attempt: int) -> int:
        return amount * 2 ** (attempt - 1)

    return resource


def resources(
    kind: str, experiment: Experiment, cells: Sequence[Cell], site: Mapping[str, Any]
) -> dict[str, Any]:
    """Gather the resources of a job that computes some cells.

    Parameters
    ----------
    kind : str
        One of ``kinds.COMPUTED``.
    experiment : Experiment
        The validated experiment.
    cells : sequence of dict
        The sizes of each.
    site : mapping
        The default resources of the profile. One named ``gpu_NAME`` is given to jobs with a GPU,
        as ``NAME``: default resources are all that a profile can say to rules whose number it does
        not know, and they do not see whether a job has a GPU.

    Returns
    -------
    dict
        ``mem_mb``, ``runtime`` (minutes), ``gpu`` (a number that nobody limits unless told to: on
        one machine ``--resources gpu=1`` lets such jobs take turns), and those of the site.
    """
    gpu = gpus(kind, experiment, cells)
    of_site = {
        name.removeprefix(_GPU_SITE): value
        for name, value in site.items()
        if gpu and name.startswith(_GPU_SITE)
    }
    return {
        **of_site,
        "mem_mb": doubling(mem_mb(kind, experiment, cells)),
        "runtime": doubling(minutes(kind, experiment, cells)),
        "gpu": gpu,
    }
