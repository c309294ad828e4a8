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


# Seconds on one core, float64: per step and layer, per seed besides; per weight drawn; per weight
# and step, and per weight, step and row.
_DENSE_LAYER, _DENSE_SEED, _DENSE_DRAW, _DENSE_WEIGHT, _DENSE_ROW = 9e-5, 1e-5, 1.4e-8, 2e-9, 3e-10
# Seconds on one core, float64: per step and layer, per seed besides; per number drawn; per pair of
# a probe with another one and coordinate.
_IMPLICIT_LAYER, _IMPLICIT_SEED, _IMPLICIT_DRAW, _IMPLICIT_PAIR = 1.2e-3, 1e-4, 1.4e-8, 1e-8


def dense_seconds(work: Work) -> float:
    """Time of the dense engine on one core, all seeds; a rough one."""
    depth, width, embed_dim = work.shape
    weights = work.vectors * depth * width * embed_dim * work.seeds
    each = _DENSE_WEIGHT * work.itemsize / 8 + _DENSE_ROW * work.rows
    calls = depth * work.steps * (_DENSE_LAYER + _DENSE_SEED * work.seeds)
    return calls + weights * (_DENSE_DRAW + work.steps * each)


def implicit_seconds(work: Work) -> float:
    """Time of the implicit engine on one core, all seeds; a rough one."""
    depth, width, embed_dim = work.shape
    probes = work.rows * work.steps
    # A probe has products with the others that there are already, half of them on average, and no
    # more than there are dimensions.
    pairs = sum(
        size * probes * min(probes, 2 * size) / 2
        for size in (work.vectors * width, work.vectors * embed_dim)
    )
    drawn = sum(
        size * min(probes, 2 * size) for size in (work.vectors * width, work.vectors * embed_dim)
    )
    calls = depth * work.steps * (_IMPLICIT_LAYER + _IMPLICIT_SEED * work.seeds)
    numbers = depth * work.seeds * (_IMPLICIT_DRAW * drawn + _IMPLICIT_PAIR * pairs)
    return calls + numbers


def dense_bytes(work: Work) -> float:
    """Bytes of one network's block weights."""
    depth, width, embed_dim = work.shape
    return float(work.vectors) * depth * width * embed_dim * work.itemsize


def implicit_bytes(work: Work) -> float:
    """Bytes of one network's probes and products, about."""
    depth, width, embed_dim = work.shape
    probes = work.rows * work.steps
    return float(work.vectors) * depth * probes * (width + 2 * embed_dim) * work.itemsize


_SECONDS = {"dense": dense_seconds, "implicit": implicit_seconds}
_BYTES = {"dense": dense_bytes, "implicit": implicit_bytes}
ENGINES = tuple(_SECONDS)
"""Names of the engines."""


def seconds(engine: str, work: Work) -> float:
    """Time of an engine on one core, all seeds; ``auto``: of the one that it takes."""
    return _SECONDS[choose(work).engine if engine == "auto" else engine](work)


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
    cost = {name: _SECONDS[name](work) for name in ENGINES}
    best = min(small, key=cost.__getitem__)
    figures = ", ".join(
        f"{name} {cost[name]:.2g} s and {need[name] / 2**30:.2g} GiB" for name in ENGINES
    )
    why = "cheaper" if len(small) == len(ENGINES) else "needs less memory"
    return Choice(best, f"auto: {why} by the cost model ({figures})")
