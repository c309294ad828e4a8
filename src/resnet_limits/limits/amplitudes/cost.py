"""What a prediction costs: time and memory of each of its parts.

Like ``limits/cost.py``, nothing here imports torch, and no result depends on it but through what is
refused, or not refined any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from resnet_limits.limits.cost import Quadrature, solve_seconds
from resnet_limits.limits.cost import peak_bytes as limit_bytes
from resnet_limits.work import Branch, Work

MOST_SECONDS = 900.0
"""What is thought to take longer is not begun, unless more is allowed."""
REFINED_SECONDS = 3.0
"""What is thought to take longer is not refined, however uncertain it is."""

WIDTH_POINTS, GRAM_POINTS, LAYER_POINTS = 512, 1024, 256
"""Points of each scrambling with which the parts begin; those of A_L are at every node."""
BIAS_POINTS, BIAS_NOISE, BIAS_CELLS = 1024, 16, 8
"""Points of each scrambling that the bias begins with, how many times as many its noisiest part
takes, and cells in depth."""
NOISE_POINTS, NOISE_SAMPLES, TOGETHER = 1024, 192, 64
"""Independent units of a sample, samples to begin with, and those solved side by side."""
SHAPE_SEEDS, SHAPE_REPLICATES = 16, 2
"""Embeddings for the distances of a shape, and scramblings of the noise for each."""
DEPTHS = (16, 32, 64)
"""Depths that A_L is extrapolated from, each twice the one before."""
MOST_ENTRIES, RANDOM_DIRECTIONS = 80, 48
"""Gram matrices of more entries are changed in so many random directions, not one by one."""

CHUNK_ELEMENTS = 1 << 19
"""Numbers of the largest array of a chunk of units' tangents; a few of them are there at once."""
# Units of a chunk at least, and arrays of its size that are there at once.
SMALLEST_CHUNK, _CHUNK_ARRAYS = 4, 8
# Matrices of Q x Q at every node beside the kernels that are kept.
_SQUARES = 16
# Likewise of the bias: matrices at every edge, and arrays as large as all units' histories.
_CARRIED_ARRAYS, _HISTORY_ARRAYS = 24, 8
# Points that refining ends at, nearly always: those of a scrambling, at every node.
_MOST_POINTS = 1 << 15

# Seconds of a multiplication in the products of the tangents' recursion, and of one number of a
# tangent in one step, on one core.
_PRODUCT, _TANGENT = 2.2e-10, 6e-9
# Times as long for each token that a unit's map mixes.
_MIXING = 2.0
# Where units have kinks they are evaluated anew for every change, in both directions.
_EVALUATION = 1.4e-8
# Seconds that the calls of a chunk of units take, whatever its size: for each step, and for each
# pair of a step and the later one of its answer; and how many times as many where a unit's answers
# are matrices, of several vectors or tokens.
_CHUNK_STEP, _CHUNK_PAIR, _MATRICES = 1e-3, 2e-4, 3.0
# Of the bias: seconds of a product of what is carried on, and of one number that a unit sees at one
# step, in both solutions and in a replay.
_CARRIED, _SOLVED, _REPLAYED = 8e-10, 3e-6, 6e-8


@dataclass(frozen=True)
class Sizes:
    """Sizes that a prediction's cost depends on.

    Attributes
    ----------
    work : Work
        The problem.
    smooth : tuple of bool
        Whether the units of each branch have no kinks.
    tokens : tuple of int
        So many rows the map of each branch's units mixes.
    quadrature : Quadrature
        Precision and code of the limits' units.
    """

    work: Work
    smooth: tuple[bool, ...]
    tokens: tuple[int, ...]
    quadrature: Quadrature


def _exact_units(sizes: Sizes, branch: Branch) -> int:
    """Count the units of a branch, all nodes together, that are exact for linear ones."""
    return 2 * sizes.quadrature.nodes * sizes.work.directions * branch.vectors


def limit_seconds(sizes: Sizes, points: int, replicates: int, solutions: int) -> float:
    """Estimate the time of so many solutions, each with so many points of each branch."""
    counts = [points * replicates or _exact_units(sizes, branch) for branch in sizes.work.branches]
    return solutions * solve_seconds(sizes.work, sizes.quadrature, counts)


def width_seconds(sizes: Sizes, points: int, replicates: int) -> float:
    """Estimate the time of A_W, with so many points of each branch."""
    total = 0.0
    for branch, smooth, tokens in zip(sizes.work.branches, sizes.smooth, sizes.tokens, strict=True):
        units = points * replicates or _exact_units(sizes, branch)
        total += units * _unit_seconds(sizes.work, branch, smooth, tokens)
        # Those of each node and scrambling are worked on by themselves.
        places = sizes.quadrature.nodes * (replicates if points else 1)
        chunks = places * math.ceil(
            units / places / chunk_units(_numbers(sizes.work, branch, smooth))
        )
        calls = _MATRICES if branch.vectors > 2 or tokens > 1 else 1.0
        total += chunks * calls * _chunk_seconds(sizes.work.steps)
    return total + limit_seconds(sizes, points, replicates, 1)


def _unit_seconds(work: Work, branch: Branch, smooth: bool, tokens: int) -> float:
    """Time of the tangents of one unit."""
    size = work.steps * work.rows
    seeds = work.rows * branch.vectors * (1 if smooth else 2)
    products = size**2 * work.steps / 6 * seeds * branch.vectors
    answered = size * work.steps / 2 * seeds * branch.vectors
    mixing = 1.0 if tokens == 1 else _MIXING * tokens
    each = _TANGENT * mixing if smooth else _EVALUATION
    return _PRODUCT * products + each * answered


def bias_seconds(sizes: Sizes, points: int, replicates: int) -> float:
    """Estimate the time of the bias of the outputs, with so many points of each branch."""
    work, exact = sizes.work, not points
    size, cells = work.steps * work.rows, BIAS_CELLS
    total = width_seconds(sizes, points, replicates)
    total += (4 * cells + 2) * cells * size**3 * _CARRIED * max(1, replicates)
    for branch, tokens in zip(work.branches, sizes.tokens, strict=True):
        vectors, units = branch.vectors, points * replicates
        seen = _SOLVED + 3 * BIAS_NOISE * _REPLAYED
        if exact:
            units = _exact_units(sizes, branch)
            # Along all directions, a power of two of them, in both senses.
            seen = _SOLVED + 4 * size * vectors * _REPLAYED
        total += units * vectors * size * tokens**0.5 * seen
    return total


def shape_seconds(sizes: Sizes, replicates: int, embeddings: int) -> float:
    """Estimate the time of the distances of a shape, by so many embeddings."""
    exact = not sizes.quadrature.points
    width, gram = (0 if exact else points for points in (WIDTH_POINTS, GRAM_POINTS))
    each = width_seconds(sizes, width, min(replicates, SHAPE_REPLICATES))
    of_units = limit_seconds(sizes, NOISE_POINTS, NOISE_SAMPLES, 1)
    return of_units + embeddings * each + limit_seconds(sizes, gram, replicates, 1 + embeddings)


def _chunk_seconds(steps: int) -> float:
    """Time of the calls of one chunk."""
    return _CHUNK_STEP * steps + _CHUNK_PAIR * steps * (steps + 1) / 2


def chunk_units(numbers: int) -> int:
    """Give how many units are worked on at once, of so many numbers in the largest array of one."""
    return max(SMALLEST_CHUNK, CHUNK_ELEMENTS // numbers)


def gram_solutions(entries: int) -> int:
    """Count the solutions that A_D takes, for a Gram matrix of so many entries."""
    return 2 * (entries if entries <= MOST_ENTRIES else RANDOM_DIRECTIONS)


def seconds(sizes: Sizes, replicates: int, most_seconds: float = MOST_SECONDS) -> float:
    """Estimate the time of a prediction whose parts are not refined.

    Parameters
    ----------
    sizes : Sizes
        The problem.
    replicates : int
        Scramblings.
    most_seconds : float
        What is thought to take longer is not begun.
    """
    r, exact = sizes.work.directions, not sizes.quadrature.points
    width, gram, layers = (
        0 if exact else points
        for points in (WIDTH_POINTS, GRAM_POINTS, LAYER_POINTS * sizes.quadrature.nodes)
    )
    parts = (
        width_seconds(sizes, width, replicates),
        limit_seconds(sizes, gram, replicates, gram_solutions(r * (r + 1) // 2)),
        limit_seconds(sizes, layers, replicates, 1 + len(DEPTHS)),
        limit_seconds(sizes, NOISE_POINTS, NOISE_SAMPLES, 1),
        bias_seconds(sizes, 0 if exact else BIAS_POINTS, replicates),
    )
    return sum(part for part in parts if part <= most_seconds)


def width_bytes(sizes: Sizes) -> int:
    """Estimate the memory of A_W: kernels of all branches, adjoint states, and some chunks."""
    work, nodes = sizes.work, sizes.quadrature.nodes
    square = (work.steps * work.rows) ** 2
    kernels = 8 * square * nodes * (4 * len(work.branches) + _SQUARES)
    chunk = max(
        CHUNK_ELEMENTS,
        *(
            SMALLEST_CHUNK * _numbers(work, branch, smooth)
            for branch, smooth in zip(work.branches, sizes.smooth, strict=True)
        ),
    )
    return kernels + 8 * _CHUNK_ARRAYS * chunk


def bias_bytes(sizes: Sizes) -> int:
    """Estimate the memory of the bias: noise and responses at all edges, and units' histories.

    As many scramblings are solved side by side as there are threads, at most all of them.
    """
    work = sizes.work
    size = work.steps * work.rows
    carried = 8 * size**2 * (BIAS_CELLS + 1) * _CARRIED_ARRAYS
    histories = [
        (BIAS_POINTS if sizes.quadrature.points else _exact_units(sizes, branch))
        * branch.vectors
        * size
        for branch in work.branches
    ]
    together = max(1, sizes.quadrature.replicates)
    return together * (carried + 8 * _HISTORY_ARRAYS * sum(histories))


def _numbers(work: Work, branch: Branch, smooth: bool) -> int:
    """Numbers of the largest array of the tangents of one unit."""
    seeds = work.rows * branch.vectors * (1 if smooth else 2)
    return work.steps * work.rows * seeds * max(branch.in_vectors, branch.out_vectors)


def peak_bytes(sizes: Sizes) -> int:
    """Estimate the memory of a prediction, beside the interpreter."""
    several = replace(sizes.quadrature, points=NOISE_POINTS, replicates=TOGETHER)
    one = replace(sizes.quadrature, points=_MOST_POINTS if sizes.quadrature.points else 0)
    return max(
        width_bytes(sizes),
        bias_bytes(sizes),
        *(limit_bytes(sizes.work, quadrature) for quadrature in (several, one)),
    )
