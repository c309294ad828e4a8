"""What a network costs with each engine: the model by which ``auto`` chooses.

The constants were fitted by ``benchmarks/engine_cost.py`` to measured times and are shipped with
the package: every machine decides alike, and nothing is measured at run time. Only their ratios
matter for the choice. Nothing here imports torch, so that the workflow can plan with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from resnet_limits.config import Shape

MEMORY = 8 << 30
"""An engine that needs more bytes for one network is chosen only if no other needs less."""


@dataclass(frozen=True)
class Work:
    """What the cost of training depends on.

    Attributes
    ----------
    shape : Shape
        L, M, D.
    rows, steps, seeds : int
        N, K and S.
    vectors : int
        a + c, in- and out-vectors of a unit.
    itemsize : int
        Bytes of one number.
    """

    shape: Shape
    rows: int
    steps: int
    seeds: int
    vectors: int = 2
    itemsize: int = 8


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen."""

    engine: str
    reason: str


# Seconds on one core, in float64, of the terms below.
_CONSTANTS = {
    "dense": (2.0e-5, 8.1e-6, 1.6e-8, 5.3e-10, 8.1e-11),
    "implicit": (7.6e-4, 5.8e-5, 3.7e-4, 4.2e-8, 9.3e-10),
}
ENGINES = tuple(_CONSTANTS)
"""Names of the engines."""


def terms(engine: str, work: Work) -> tuple[float, ...]:
    """Count what an engine's time is a sum of, each with a constant of its own.

    Parameters
    ----------
    engine : str
        One of :data:`ENGINES`.
    work : Work
        What is to be trained.

    Returns
    -------
    tuple of float
        ``dense``: layers and steps, the same for each seed, weights drawn, weights read in all
        steps (in numbers of 8 bytes), weights times rows in all steps. ``implicit``: layers and
        steps, the same for each seed, the same for each row, numbers drawn, pairs of probes times
        their length.
    """
    depth, width, embed_dim = work.shape
    visits = depth * work.steps
    if engine == "dense":
        weights = work.vectors * depth * width * embed_dim * work.seeds
        read = weights * work.steps
        return visits, visits * work.seeds, weights, read * work.itemsize / 8, read * work.rows
    probes = work.rows * work.steps
    drawn = pairs = 0.0
    for size in (work.vectors * width, work.vectors * embed_dim):
        # No more directions than dimensions; half of the others are there when a probe comes.
        directions = min(probes, size)
        drawn += depth * work.seeds * size * directions
        pairs += depth * work.seeds * size * probes * directions / 2
    return visits, visits * work.seeds, visits * work.rows, drawn, pairs


def _seconds(engine: str, work: Work) -> float:
    return sum(
        constant * count
        for constant, count in zip(_CONSTANTS[engine], terms(engine, work), strict=True)
    )


def _dense_bytes(work: Work) -> float:
    depth, width, embed_dim = work.shape
    weights = work.vectors * depth * width * embed_dim
    states = work.rows * depth * (2 * embed_dim + work.vectors * width)
    return float(weights + states) * work.itemsize


def _implicit_bytes(work: Work) -> float:
    depth, width, embed_dim = work.shape
    probes = work.rows * work.steps
    held = work.vectors * probes * (width + 2 * embed_dim)
    states = 2 * work.rows * embed_dim
    small = 8 * 5 * work.vectors * probes**2
    return float(depth) * ((held + states) * work.itemsize + small)


_BYTES = {"dense": _dense_bytes, "implicit": _implicit_bytes}


def seconds(engine: str, work: Work) -> float:
    """Seconds that all seeds take on one core, about; with ``auto`` of the engine that it takes."""
    return _seconds(choose(work).engine if engine == "auto" else engine, work)


def memory_bytes(engine: str, work: Work) -> float:
    """Bytes that one network takes, about; with ``auto`` those of the engine that it takes."""
    return _BYTES[choose(work).engine if engine == "auto" else engine](work)


def choose(work: Work) -> Choice:
    """Choose the cheaper engine among those that need little memory.

    Parameters
    ----------
    work : Work
        What is to be trained.

    Returns
    -------
    Choice
        The engine, and the figures that decided.
    """
    need = {name: size(work) for name, size in _BYTES.items()}
    small = [name for name in ENGINES if need[name] <= MEMORY] or [
        min(ENGINES, key=need.__getitem__)
    ]
    cost = {name: _seconds(name, work) for name in ENGINES}
    best = min(small, key=cost.__getitem__)
    figures = ", ".join(
        f"{name} {cost[name]:.2g} s and {need[name] / 2**30:.2g} GiB" for name in ENGINES
    )
    why = "cheaper" if len(small) == len(ENGINES) else "needs less memory"
    return Choice(best, f"auto: {why} by the cost model ({figures})")
