"""What a network costs with each engine: its memory, and the model by which ``auto`` chooses.

Memory is counted exactly, by one formula for what is planned, chosen and refused. The constants of
the time were fitted by ``benchmarks/engine_cost.py`` to measured times and are shipped with the
package: every machine decides alike, and nothing is measured at run time. Only their ratios matter
for the choice. Nothing here imports torch, so that the workflow can plan with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from resnet_limits.work import Work

MEMORY = 8 << 30
"""An engine that needs more bytes for one network is chosen only if no other needs less."""

BATCH_BYTES = 2 << 30
"""Memory of the seeds that are trained side by side; one seed may be larger. Fixed, because the
size of a batch decides how sums are rounded."""


KEPT_BYTES = 4 << 30
"""Kept states of a shape that are held in memory; more are kept on disk and written in pieces.
Fixed, so that a job asks for the same memory wherever it is planned; no result depends on it."""


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
    visits = depth * work.steps * len(work.branches)
    if engine == "dense":
        weights = _coefficients(work) * depth * embed_dim * work.seeds
        read = weights * work.steps
        return visits, visits * work.seeds, weights, read * work.itemsize / 8, read * work.rows
    probes = work.rows * work.steps
    drawn = pairs = 0.0
    for branch in work.branches:
        for size in (branch.vectors * branch.width(width), branch.vectors * embed_dim):
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


def _coefficients(work: Work) -> int:
    """In- and out-vectors of all units of a layer: numbers of a row of coefficients."""
    return sum(branch.vectors * branch.width(work.shape.width) for branch in work.branches)


def _factor(work: Work) -> int:
    """Numbers of one row of one gradient step in one layer: two states and the coefficients."""
    return 2 * work.shape.embed_dim * len(work.branches) + _coefficients(work)


# Most numbers of a training's factors, in numbers of the weights, if a step in place only adds to
# them; and if it does more.
_FACTORS, _FACTORS_MOVED = 0.8, 2.0


def kept_steps(work: Work) -> int:
    """Gradient steps that the dense engine keeps as factors on a CPU: all of a training or none.

    A step that is kept costs every later product the factors' numbers in reads and operations; a
    step in place costs the weights' numbers once, in writes and operations. Over a training of U
    steps that is U^2 / 2 times the factors of a step against U times the weights, twice each for
    the two passes, so that the ratio of U steps of factors to the weights decides. Where steps in
    place become cheaper was measured: later for rules that do more than add gradients, whose steps
    in place are no part of the products and go through the weights and their buffers several times.

    Returns
    -------
    int
        K - 1; 0: each step is taken in place, and there are no factors.
    """
    updates = work.steps - 1
    factors = updates * work.rows * _factor(work)
    weights = _coefficients(work) * work.shape.embed_dim
    most = _FACTORS if work.additive else _FACTORS_MOVED
    return updates if factors <= most * weights else 0


def _states(work: Work) -> int:
    """Numbers of the hidden and the backward states before and after each branch."""
    depth, _, embed_dim = work.shape
    return 2 * (depth * len(work.branches) + 1) * work.rows * embed_dim


def _dense_bytes(work: Work) -> int:
    """Block weights with their buffers, states and coefficients of one step, or kept factors.

    A GPU, and a CPU that steps are taken in place on, has the buffers; who keeps factors has none.
    """
    depth, width, embed_dim = work.shape
    kept = kept_steps(work)
    weights = depth * _coefficients(work) * embed_dim
    # Those that norms give, and what units keep beside their values and coefficients.
    normed = depth * sum(branch.normed for branch in work.branches) * work.rows * embed_dim
    beside = sum(branch.kept_vectors * branch.width(width) for branch in work.branches)
    coefficients = depth * work.rows * (2 * _coefficients(work) + beside)
    numbers = _states(work) + normed + coefficients + kept * depth * work.rows * _factor(work)
    return (weights * (1 if kept else 1 + work.buffers) + numbers) * work.itemsize


def implicit_directions(embed_dim: int, unit_dim: int, probes: int) -> tuple[int, int]:
    """Most directions that the implicit engine's left and right probes can have."""
    return min(probes, embed_dim), min(probes, unit_dim)


def _implicit_bytes(work: Work) -> int:
    """Bases, images and raw vectors in the stored precision, small matrices in float64."""
    depth, width, embed_dim = work.shape
    probes = work.rows * work.steps
    numbers = small = 0
    for branch in work.branches:
        for vectors in (branch.in_vectors, branch.out_vectors):
            unit_dim = vectors * branch.width(width)
            left, right = implicit_directions(embed_dim, unit_dim, probes)
            numbers += (left + right) * embed_dim + probes * unit_dim
            small += probes * (3 * left + right + probes) + left * right
    return (depth * numbers + _states(work)) * work.itemsize + 8 * depth * small


_BYTES = {"dense": _dense_bytes, "implicit": _implicit_bytes}


IMPLICIT_KEPT = 1 << 24
"""Numbers of a layer's raw vectors up to which the implicit engine keeps them over a pass."""

IMPLICIT_CHUNK = 1 << 18
"""Numbers of the raw vectors of some units that the implicit engine works on at a time."""

PIECE = 1 << 18
"""Most numbers of weights that the dense engine draws or moves at a time."""

# Arrays of one layer's states or coefficients that a pass holds beside those that stay, or pieces
# of weights with what libraries hold for their products, and the bytes of a number of theirs.
_SCRATCH, _DOUBLE = 8, 8
# A file of a store while it is written: its numbers, their compressed chunks, and these in one.
_WRITTEN = 4 * (64 << 20)


def seconds(engine: str, work: Work) -> float:
    """Seconds that all seeds take on one core, about; with ``auto`` of the engine that it takes."""
    return _seconds(choose(work).engine if engine == "auto" else engine, work)


def memory_bytes(engine: str, work: Work) -> int:
    """Bytes that one network (one seed) takes while it is trained.

    With ``auto``, those of the engine that it takes.
    """
    return _BYTES[choose(work).engine if engine == "auto" else engine](work)


def batch(engine: str, work: Work) -> int:
    """Seeds that are trained side by side."""
    return max(1, min(work.seeds, BATCH_BYTES // memory_bytes(engine, work)))


def in_pieces(work: Work) -> bool:
    """Whether the kept states are too many to be held in memory, wherever the networks train."""
    return work.saved > KEPT_BYTES


def held_bytes(engine: str, work: Work, *, in_pieces: bool = False) -> int:
    """Bytes that the kept states take in memory.

    All of them, and half of them twice more while they are written. With `in_pieces`, where they
    are on disk, those of one step of a batch, in the precision of the arithmetic and as they are
    stored, and one file of a store that is being written.
    """
    if not in_pieces:
        return 2 * work.saved
    step = batch(engine, work) * _states(work) * _DOUBLE
    return step + step // 2 + _WRITTEN


def peak_bytes(engine: str, work: Work, *, in_pieces: bool = False) -> int:
    """Bytes that training all seeds of a shape takes at its peak, beside the interpreter.

    Networks of a batch, their embeddings and scratch arrays of one layer, and of the states that
    are kept what `held_bytes` says.
    """
    together = batch(engine, work)
    _, width, embed_dim = work.shape
    of_units = (b.width(width) * (b.vectors + b.kept_vectors) for b in work.branches)
    rows = max(work.rows, work.directions)
    numbers = _SCRATCH * together * rows * max(embed_dim, *of_units)
    if (choose(work).engine if engine == "auto" else engine) == "dense":
        numbers += 2 * _SCRATCH * min(PIECE, together * _coefficients(work) * embed_dim)
    else:
        # What the units of one branch have seen, and what they keep of it, in float64.
        each = ((2 * b.vectors + b.kept_vectors) * b.width(width) for b in work.branches)
        seen = max(each) * work.rows * work.steps * together
        numbers += 2 * min(seen, IMPLICIT_KEPT) + _SCRATCH * min(seen, IMPLICIT_CHUNK)
    network = together * memory_bytes(engine, work)
    return network + _DOUBLE * numbers + held_bytes(engine, work, in_pieces=in_pieces)


# Time and memory of one network ask for it several times in a row, of thousands of networks.
@lru_cache(maxsize=8)
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
    if work.dense_only:
        return Choice("dense", "auto: no other engine trains these networks")
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
