"""What a limit costs: the quadrature that it is expected to need, its time and its memory.

How many points meet a tolerance is only known once some have been tried: before that it is told
from the sizes of the problem, afterwards from the plan of the DMFT limit. Nothing here imports
torch, so that the workflow can plan with it. No limit depends on it; how far predicted amplitudes
are refined does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from resnet_limits import speeds
from resnet_limits.work import Branch, Work

# The pilot's numbers, those of ``limits/plan.py``, ``models.py`` and ``ensemble.py``; a test keeps
# them in step.
FIRST_POINTS, MAX_POINTS, REPLICATES, FIRST_NODES = 1 << 12, 1 << 22, 8, 8
DEPTH_POINTS, PILOT_REPLICATES = 3 << 8, 4
STATE_BYTES, KEPT_ELEMENTS, DRAWN_BLOCK = 1 << 29, 1 << 25, 1 << 15
DOUBLE_TOLERANCE = 1e-5

# Activations with compiled code, in every built-in unit; an empty name is that of a unit whose map
# is more than an activation.
_KERNELS = frozenset({"", "linear", "tanh", "erf", "relu", "gelu", "silu"})
# Standard error of the outputs with the pilot's first points, over the reduced dimension: fitted
# to 40 problems, within a factor of 2 or 3.
_FIRST_ERROR = 1.1e-4
# How a standard error falls with the number of points.
_POWER = 1.5
# States of all nodes that a step holds at once: forecasts and, where plain iteration does not
# converge, Anderson's memory; and with each branch more, what is kept of every branch.
_STATES, _BRANCH_STATES = 115, 20


@dataclass(frozen=True)
class Quadrature:
    """How a limit is solved, as far as costs depend on it.

    Attributes
    ----------
    points, replicates, nodes : int
        Those of the plan; no points for the exact cubature of linear units.
    single : bool
        Units are computed in float32.
    compiled : bool
        They have a kernel.
    """

    points: int
    replicates: int = REPLICATES
    nodes: int = FIRST_NODES
    single: bool = True
    compiled: bool = True

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the units' weights."""
        return 4 if self.single else 8


@dataclass(frozen=True)
class Scales:
    """What the outputs' standard error is taken to depend on.

    Attributes
    ----------
    activations : tuple of str
        Name of each branch's pointwise activation; empty where g is more than that.
    loss : str
        Name of the loss.
    tolerance : float
        ``numerics.limit_tolerance``.
    rate : float
        Learning rate.
    target : float
        Size of the targets.
    hidden, readout : float
        Sizes of the hidden state at step 0 and of the unembedding.
    residual : float
        alpha.
    """

    activations: tuple[str, ...]
    loss: str
    tolerance: float
    rate: float = 1.0
    target: float = 1.0
    hidden: float = 1.0
    readout: float = 1.0
    residual: float = 1.0


def first_error(work: Work, scales: Scales) -> float:
    """Estimate the standard error of the outputs with the pilot's first points.

    It is a share of the distance that training moves the outputs: up to the targets, or without
    end for ``cross_entropy``.
    """
    smooth = set(scales.activations).isdisjoint(("relu", "gelu", "silu"))
    hidden, readout = scales.hidden * scales.residual, scales.readout
    kernel = readout**2 * (min(1.0, hidden**2) + (min(hidden**2, 1.0) if smooth else hidden**2))
    weight = 1.0 / max(1, work.targets) if scales.loss == "mean_squared_error" else 1.0
    together = max(1, min(work.rows, work.inputs))
    time = scales.rate * weight * (work.steps - 1) * kernel / together
    endless = scales.loss == "cross_entropy"
    moved = math.log1p(time) if endless else scales.target * time / (1.0 + time)
    return _FIRST_ERROR * work.directions * (1.0 + time) ** 0.3 * moved**0.6


def quadratures(work: Work, scales: Scales) -> list[Quadrature]:
    """Guess the quadratures that the pilot tries, the last of which all limits use."""
    single = scales.tolerance > DOUBLE_TOLERANCE or work.itemsize == 4
    compiled = single and _KERNELS.issuperset(scales.activations)
    if set(scales.activations) == {"linear"}:
        return [Quadrature(0, 1, FIRST_NODES, False, False)]
    error, points = first_error(work, scales), FIRST_POINTS
    tried = [Quadrature(points, single=single, compiled=compiled)]
    while error > scales.tolerance and points < MAX_POINTS:
        excess = error / scales.tolerance
        if excess < math.sqrt(2.0):
            more = math.ceil(REPLICATES * excess**2)
            tried.append(Quadrature(points, more, single=single, compiled=compiled))
            break
        factor = min(16, 2 ** max(1, round(_POWER * math.log2(excess))), MAX_POINTS // points)
        points, error = points * factor, error * factor ** (-1 / _POWER)
        tried.append(Quadrature(points, single=single, compiled=compiled))
    return tried


def _nodes(work: Work, nodes: int) -> int:
    """Nodes of a grid, of which there are no more than layers."""
    return min(nodes, work.shape.depth) if work.shape.depth else nodes


def finer(nodes: int) -> int:
    """Give half as many nodes more, those of ``limits/plan.py``."""
    return nodes + max(2, nodes // 4 * 2)


def _numbers(work: Work, branch: Branch) -> int:
    """Weights of a unit of a branch."""
    return branch.vectors * work.directions


def _units(work: Work, quadrature: Quadrature, branch: Branch) -> int:
    """Units of a branch in all replicates at all nodes."""
    if quadrature.points:
        return quadrature.points * quadrature.replicates
    return 2 * _numbers(work, branch) * _nodes(work, quadrature.nodes)


def _depth_units(work: Work, quadrature: Quadrature, branch: Branch, replicates: int) -> int:
    """Units of a branch in both solutions whose difference is the depth error."""
    each = min(DEPTH_POINTS, quadrature.points) or 2 * _numbers(work, branch)
    nodes = _nodes(work, quadrature.nodes) + _nodes(work, finer(quadrature.nodes))
    return each * nodes * min(replicates, quadrature.replicates)


def solve_seconds(work: Work, quadrature: Quadrature, units: list[int]) -> float:
    """Estimate the seconds of a solution with so many units of each branch.

    Parameters
    ----------
    work : Work
        The problem.
    quadrature : Quadrature
        Which code computes the units.
    units : list of int
        Units of each branch, of all replicates and nodes.
    """
    speed = speeds.COMPILED if quadrature.compiled else speeds.GENERIC
    total = speed.step * len(units)
    for branch, count in zip(work.branches, units, strict=True):
        weights = _numbers(work, branch)
        rows = work.rows * (branch.vectors + branch.kept_vectors) / 2
        learning = 1 + 0.5 * work.buffers
        each = speed.row * rows + learning * speed.weight * weights + speed.product * rows * weights
        total += count * each
    return work.steps * total


def _draw_seconds(work: Work, quadrature: Quadrature) -> float:
    points = quadrature.points * quadrature.replicates
    return speeds.DRAW * points * work.vectors * work.directions


def pilot_seconds(work: Work, tried: list[Quadrature]) -> float:
    """Seconds on one core of the DMFT limit, with the pilot that fixes the numerics of all.

    Parameters
    ----------
    work : Work
        The problem.
    tried : list of Quadrature
        As `quadratures` guesses them.
    """
    last = tried[-1]
    solved = sum(
        _draw_seconds(work, one)
        + solve_seconds(work, one, [_units(work, one, branch) for branch in work.branches])
        for one in tried
    )
    depth = [_depth_units(work, last, branch, PILOT_REPLICATES) for branch in work.branches]
    return solved + solve_seconds(work, last, depth)


def seconds(work: Work, quadrature: Quadrature) -> float:
    """Seconds on one core of the limits of all seeds, with a plan that is there.

    Parameters
    ----------
    work : Work
        The problem and the sizes of the limit.
    quadrature : Quadrature
        The plan.
    """
    units = [
        _units(work, quadrature, branch) + _depth_units(work, quadrature, branch, 1)
        for branch in work.branches
    ]
    return _draw_seconds(work, quadrature) + work.seeds * solve_seconds(work, quadrature, units)


def peak_bytes(work: Work, quadrature: Quadrature) -> int:
    """Bytes that limits take at their peak, beside the interpreter.

    The points and the units' weights of the replicates that are solved side by side, activations
    that are kept between iterations, states of a step, and the trajectories: twice while the
    coefficients are found, or while steps or replicates are joined; and what is kept of every seed.

    Parameters
    ----------
    work : Work
        The problem; with seeds, the limits of all of them.
    quadrature : Quadrature
        The plan.
    """
    r, nodes = work.directions, _nodes(work, quadrature.nodes)
    numbers = work.vectors * r
    replicates = quadrature.replicates
    drawn = quadrature.points * numbers * quadrature.itemsize
    one = max(1, drawn * (1 + work.buffers))
    together = min(replicates, max(1, STATE_BYTES // one))
    # Those of the points before are still kept, and a part of the units is there twice.
    units = together * drawn * (2.75 + 1.25 * work.buffers)
    drawing = (
        5
        * 8
        * min(DRAWN_BLOCK, quadrature.points)
        / 2
        * max(_numbers(work, branch) for branch in work.branches)
    )
    activations = 0
    if not quadrature.compiled:
        for share, depth in ((together / replicates, False), (1.0, True)):
            kept = 0
            for branch in work.branches:
                count = share * (
                    _depth_units(work, quadrature, branch, PILOT_REPLICATES)
                    if depth
                    else _units(work, quadrature, branch)
                )
                each = math.ceil(count * (branch.vectors + branch.kept_vectors) * work.rows)
                kept += each if each <= KEPT_ELEMENTS else 0
            activations = max(activations, kept)
    of_step = _STATES + _BRANCH_STATES * (len(work.branches) - 1)
    states = 8 * of_step * together * nodes * r * work.rows
    field = 8 * work.steps * (nodes + 2) * work.rows * r
    seeds = 2 * work.seeds * (2 * field + 8 * replicates * work.steps * work.rows * 2 * r)
    solving = units + drawing + quadrature.itemsize * activations + states
    return math.ceil(solving + 4 * replicates * field + seeds)
