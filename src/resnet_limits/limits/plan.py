"""The numerical parameters that all limits of an experiment share, and how a pilot finds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from resnet_limits.limits import quadrature
from resnet_limits.limits.solver import TIGHT

_PREFIX = "plan_"
REPLICATES = 8
MAX_POINTS = 1 << 22
# Points are dealt out to the nodes, so that more nodes cost no more; a power of two keeps the runs
# of a Sobol' sequence that the nodes get balanced.
FIRST_NODES = 8
MAX_NODES = 32
# Also in ``limits/cost.py``, which may not import torch; a test keeps the two in step.
FIRST_POINTS = 1 << 12
# Share of the tolerance that the pilot leaves to the depth error of the DMFT limit, and the larger
# one above which another limit takes more nodes than the plan's. Nodes of its own cost a limit the
# coupling of its points, so that a limit whose error is hardly larger keeps those of the plan.
DEPTH_SHARE = 0.1
OWN_DEPTH_SHARE = 0.25
# Fixed points are iterated to this share of the tolerance, and no further than to rounding. It is
# so small because the differences of coupled limits are far more accurate than the limits.
_ITERATION_SHARE = 1e-4
# The loosest tolerance that asks for the units' arithmetic in float64.
_DOUBLE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Plan:
    """Numerical parameters shared by all limits of an experiment.

    Attributes
    ----------
    quadrature : str
        ``cubature`` (exact, linear units) or ``sobol``.
    points, replicates : int
        Points of one scrambling, dealt out to the nodes, and independent scramblings.
    nodes : int
        Nodes in depth; a limit that needs more takes more.
    root_seed : int
        Root of the scramblings' random streams.
    precision : str
        ``float64`` or ``float32``: arithmetic of the units. States and sums are in float64.
    iteration_tolerance : float
        Relative tolerance of the fixed points over depth.
    tolerance : float
        Of the outputs, which decides whether a limit needs more nodes; infinite if none ever does.
    """

    quadrature: str
    points: int
    replicates: int
    nodes: int
    root_seed: int
    precision: str = "float64"
    iteration_tolerance: float = TIGHT
    tolerance: float = math.inf

    @classmethod
    def of_attributes(cls, attributes: Mapping[str, Any]) -> Plan:
        """Take the plan that a limit's attributes carry (:meth:`as_attributes`)."""
        return cls(**{name: attributes[_PREFIX + name] for name in cls.__dataclass_fields__})

    def as_attributes(self) -> dict[str, int | float | str]:
        """Return the plan as attributes of the limits that it made."""
        return {_PREFIX + name: value for name, value in self.as_dict().items()}

    def as_dict(self) -> dict[str, int | float | str]:
        """Return the plan as plain values; ``Plan(**values)`` gives it back."""
        return asdict(self)


def precision(tolerance: float, highest: torch.dtype) -> str:
    """Name the units' arithmetic that a tolerance asks for, no higher than is allowed."""
    single = tolerance > _DOUBLE_TOLERANCE or highest == torch.float32
    return "float32" if single else "float64"


def first_plan(tolerance: float, root_seed: int, highest: torch.dtype, *, linear: bool) -> Plan:
    """Return the plan that a pilot starts with; that of linear units is exact in its points."""
    if linear:
        exact = quadrature.CUBATURE, 0, 1, FIRST_NODES, root_seed, precision(0.0, highest)
        return Plan(*exact, tolerance=tolerance)
    return Plan(
        quadrature.SOBOL,
        FIRST_POINTS,
        REPLICATES,
        FIRST_NODES,
        root_seed,
        precision(tolerance, highest),
        max(TIGHT, _ITERATION_SHARE * tolerance),
        tolerance,
    )


def with_more_points(plan: Plan, excess: float) -> Plan | None:
    """Return the plan to try next, or None if there is none.

    Parameters
    ----------
    plan : Plan
        A plan with too few points. If the next one has as many, its first replicates are the same.
    excess : float
        Its standard error over the tolerance; no plan mends one that is not finite.
    """
    if not math.isfinite(excess):
        return None
    # Close to the goal more scramblings cost less than twice the points.
    replicates = plan.replicates * 1.05 * excess * 1.05 * excess
    if replicates <= 2 * REPLICATES - 1:
        return replace(plan, replicates=math.ceil(replicates))
    if plan.points >= MAX_POINTS:
        return None
    # The error falls at least like points^(-1/2), here nearly like points^(-2/3).
    factor = 2 ** max(1, round(1.5 * math.log2(excess)))
    points = min(MAX_POINTS, plan.points * min(16, factor))
    return replace(plan, points=points, replicates=REPLICATES)


def finer(nodes: int) -> int:
    """Return half as many nodes more: what a grid is compared with."""
    return nodes + max(2, nodes // 4 * 2)
