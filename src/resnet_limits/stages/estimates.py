"""What a result is thought to cost before it is computed: time and memory.

Rough: these numbers set the size and the limits of jobs and tell people how long to wait; never a
result. The time of networks is that of the cost model by which an engine is chosen. Nothing here
imports torch or opens a file, so that the workflow can plan with it.
"""

from __future__ import annotations

import math

from resnet_limits import provenance
from resnet_limits.config import Experiment
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.kinds import Shape
from resnet_limits.networks import cost

STORE_SECONDS = 0.01
"""Seconds that writing and checking one small store takes."""

BATCH_MB = 2048
"""Seeds of one shape are in memory together as long as they take less than this."""

# What a limit takes for each point of the quadrature, step and sample, all passes together.
_POINT_SECONDS = 2e-8
# Points that a tolerance of 1e-3 takes, and how their number grows as it falls.
_POINTS, _POINTS_POWER = 7e4, 1.6
# What comes with every solve of a limit, and with every job that measures, fits or draws.
_SOLVE_SECONDS, _OTHER_SECONDS = 0.05, {"problem": 0.1, "errors": 0.5, "rates": 1.0}
# Interpreter and libraries; a limit with its chunks.
_BASE_MB, _LIMIT_MB = 1000, 2000
_ITEMSIZE = {"float32": 4, "float64": 8}

# Nominal memory bandwidth in bytes per second, from the makers' data sheets.
_GPU_BANDWIDTH = {"A100 80GB": 2.0e12, "H100 SXM": 3.35e12}
# What one core of the machine of the constants moves in a dense step at one sample.
_CORE_BANDWIDTH = 3e10
# A share of the nominal figure that is reached by well-made kernels.
_GPU_SHARE = 0.6
GPUS = tuple(_GPU_BANDWIDTH)
"""The devices that `gpu_seconds` knows."""


def _samples(experiment: Experiment) -> int:
    data = experiment.problem.data
    # A file is not opened for this.
    return 100 if data.kind == "file" else data.samples


def _directions(experiment: Experiment) -> int:
    """Estimate r, the embedding directions of the limits: rank of the inputs plus targets."""
    data = experiment.problem.data
    if data.kind == "file":
        return 100
    if data.kind == "digits":
        return min(64, data.samples) + data.classes
    return min(data.inputs, data.samples) + data.targets


def _work(experiment: Experiment, cell: dict[str, int]) -> cost.Work:
    """Describe the networks of one cell to the cost model."""
    return cost.Work(
        Shape(**cell),
        _samples(experiment),
        experiment.training.steps,
        len(provenance.cell_seeds("finite", experiment, **cell)),
        itemsize=_ITEMSIZE[experiment.numerics.precision],
    )


def seconds(kind: str, experiment: Experiment, **cell: int) -> float:
    """Estimate the time of one result with all its seeds.

    Parameters
    ----------
    kind : str
        One of ``stages.paths.KINDS``.
    experiment : Experiment
        The validated experiment.
    **cell : int
        The sizes of the result.

    Returns
    -------
    float
        Seconds on one core of the machine that the constants are from.
    """
    if kind == "finite":
        return STORE_SECONDS + cost.seconds(experiment.sweep.engine, _work(experiment, cell))
    if kind in _OTHER_SECONDS:
        return _OTHER_SECONDS[kind]
    if getattr(experiment.model.unit, "activation", None) == "linear":
        # The cubature's points, at every depth node.
        points = 8.0 * 4 * _directions(experiment)
    else:
        points = _POINTS * (1e-3 / experiment.numerics.limit_tolerance) ** _POINTS_POWER
    work_of_one = experiment.training.steps * _samples(experiment) * points * _POINT_SECONDS
    return max(1, len(provenance.cell_seeds(kind, experiment, **cell))) * (
        _SOLVE_SECONDS + work_of_one
    )


def gpu_seconds(gpu: str, cpu_seconds: float) -> float:
    """Scale the time of networks and limits to a GPU, by memory bandwidth.

    An estimate from nominal figures, not from a measurement: it knows nothing of launches, which
    dominate for small shapes.

    Parameters
    ----------
    gpu : str
        One of `GPUS`.
    cpu_seconds : float
        Seconds on one core, from `seconds`.
    """
    return cpu_seconds * _CORE_BANDWIDTH / (_GPU_SHARE * _GPU_BANDWIDTH[gpu])


def megabytes(kind: str, experiment: Experiment, **cell: int) -> int:
    """Estimate the peak memory of the job of one result, in MiB."""
    if kind != "finite":
        return _LIMIT_MB
    work = _work(experiment, cell)
    network = cost.memory_bytes(experiment.sweep.engine, work) / 2**20
    together = min(work.seeds, max(1, int(BATCH_MB // network)))
    kept = len(saved_steps(experiment)) * len(depth_layers(experiment, cell["depth"]))
    fields = 2 * work.seeds * kept * work.rows * cell["embed_dim"]
    stored = 2 * fields * _ITEMSIZE[experiment.save.dtype] / 2**20
    return math.ceil(_BASE_MB + 1.2 * together * network + stored)
