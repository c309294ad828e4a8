"""What a prediction costs: time and memory of each of its parts.

Like ``limits/cost.py``, nothing here imports torch, and no result depends on it but through what is
refused, or not refined any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from resnet_limits.limits.cost import Quadrature, solve_seconds
from resnet_limits.work import Branch, Work

MOST_SECONDS = 900.0
"""What is thought to take longer is not begun, unless more is allowed."""
REFINED_SECONDS = 15.0
"""What is thought to take longer is not refined, however uncertain it is."""

# Seconds of a multiplication in the products of the tangents' recursion, and of one number of a
# tangent in one step, on one core.
_PRODUCT, _TANGENT = 2.2e-10, 6e-9
# Where units have kinks they are evaluated anew for every change, in both directions.
_EVALUATION = 4e-8


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


def limit_seconds(sizes: Sizes, points: int, replicates: int, solutions: int) -> float:
    """Estimate the time of so many solutions, each with so many points of each branch."""
    counts = [
        points * replicates or 2 * sizes.quadrature.nodes * sizes.work.directions * branch.vectors
        for branch in sizes.work.branches
    ]
    return solutions * solve_seconds(sizes.work, sizes.quadrature, counts)


def width_seconds(sizes: Sizes, points: int, replicates: int) -> float:
    """Estimate the time of A_W, with so many points of each branch."""
    total = 0.0
    for branch, smooth, tokens in zip(sizes.work.branches, sizes.smooth, sizes.tokens, strict=True):
        units = points * replicates
        if not points:
            units = 2 * sizes.quadrature.nodes * sizes.work.directions * branch.vectors
        total += units * _unit_seconds(sizes.work, branch, smooth, tokens)
    return total + limit_seconds(sizes, points, replicates, 1)


def _unit_seconds(work: Work, branch: Branch, smooth: bool, tokens: int) -> float:
    """Time of the tangents of one unit."""
    size = work.steps * work.rows
    seeds = work.rows * branch.vectors * (1 if smooth else 2)
    products = size**2 * work.steps / 6 * seeds * branch.vectors
    answered = size * work.steps / 2 * seeds * branch.vectors
    each = _TANGENT * tokens if smooth else _EVALUATION
    return _PRODUCT * products + each * answered


def width_bytes(sizes: Sizes, replicates: int, chunk_elements: int) -> int:
    """Estimate the memory of A_W: kernels of all branches, adjoint states, and some chunks.

    Parameters
    ----------
    sizes : Sizes
        The problem.
    replicates : int
        Number of scramblings.
    chunk_elements : int
        Numbers of the largest array of a chunk.
    """
    work, nodes = sizes.work, sizes.quadrature.nodes
    square = (work.steps * work.rows) ** 2
    kernels = 8 * square * nodes * replicates * (6 * len(work.branches) + 2)
    adjoint = 8 * square * nodes * 8
    return kernels + adjoint + 8 * 16 * chunk_elements
