"""Solutions of one problem for any Gram root, depth grid and number of points.

What all limits of a problem have in common: the units' first weights, which every limit takes from
the same points, and how many replicates are solved side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits import quadrature
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.quadrature import Directions, UnitSample
from resnet_limits.limits.solver import Trajectory, solve

STATE_BYTES = 1 << 29
"""As many replicates are solved side by side as have their units' weights in so many bytes."""
# Samples of up to half of that are kept for the next limit, and beside them the small ones by which
# the depth error is estimated, of one number of replicates each.
_KEPT_SAMPLES, _KEPT_SHARED = 2, 3


@dataclass(frozen=True)
class Arithmetic:
    """Highest precision of the units' arithmetic, and the device."""

    dtype: torch.dtype = torch.float64
    device: str = "cpu"


class Trajectories:
    """Solves one problem, again and again.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    limit_root : ndarray, shape (r, r)
        Root of the Gram matrix in the DMFT limit, which turns the points.
    arithmetic : Arithmetic
        Precision and device.
    """

    def __init__(self, dynamics: Dynamics, limit_root: Array, arithmetic: Arithmetic) -> None:
        self.dynamics, self.limit_root, self.arithmetic = dynamics, limit_root, arithmetic
        # Every limit of a run asks for the same points, as does every estimate of a depth error.
        self._drawn = lru_cache(maxsize=_KEPT_SAMPLES)(self._draw)
        self._drawn_shared = lru_cache(maxsize=_KEPT_SHARED)(self._draw)

    def dtype(self, plan: Plan) -> torch.dtype:
        """Give the units' arithmetic."""
        return torch.float32 if plan.precision == "float32" else self.arithmetic.dtype

    def sample(
        self, plan: Plan, replicates: range, shared: bool, kept: bool = False
    ) -> tuple[UnitSample, ...]:
        """Give the points of each branch.

        Parameters
        ----------
        plan : Plan
            Their number.
        replicates : range
            Numbers of the scramblings.
        shared : bool
            Whether every depth node gets all the points.
        kept : bool
            Whether they are taken from those kept, or to be kept, for the next limit.
        """
        draw = self._draw
        if kept:
            draw = self._drawn_shared if shared else self._drawn
        samples = draw(plan.quadrature, plan.points, plan.root_seed, self.dtype(plan), replicates)
        return tuple(replace(sample, shared=True) for sample in samples) if shared else samples

    def _draw(
        self, kind: str, points: int, root_seed: int, dtype: torch.dtype, replicates: range
    ) -> tuple[UnitSample, ...]:
        """Draw what depends on these numbers alone, whatever else is in a plan."""
        units, r = [branch.unit for branch in self.dynamics.layer], len(self.limit_root)
        if kind == quadrature.CUBATURE:
            return tuple(
                quadrature.cubature(unit.in_vectors, unit.out_vectors, r) for unit in units
            )
        if kind == quadrature.INDEPENDENT:
            return tuple(
                quadrature.independent(
                    branch.unit.in_vectors,
                    branch.unit.out_vectors,
                    r,
                    # A network has as many more of them as its branch is wider.
                    points=round(branch.ratio * points),
                    replicates=replicates,
                    root_seed=root_seed,
                    branch=number,
                    dtype=dtype,
                )
                for number, branch in enumerate(self.dynamics.layer)
            )
        r_in = self.dynamics.inputs.shape[1]
        directions = Directions.of_data(
            self.limit_root[:, :r_in] @ self.dynamics.inputs.T,
            self.limit_root[:, r_in:] @ self.dynamics.targets.T,
        )
        return tuple(
            quadrature.sobol(
                unit.in_vectors,
                unit.out_vectors,
                directions,
                points=points,
                replicates=replicates,
                root_seed=root_seed,
                flip_inputs=not unit.is_odd,
                branch=number,
                dtype=dtype,
            )
            for number, unit in enumerate(units)
        )

    def solve(
        self,
        root: Array,
        grid: Callable[[int], DepthGrid],
        plan: Plan,
        name: str,
        *,
        replicates: range | None = None,
        shared: bool = False,
    ) -> Trajectory:
        """Solve for one Gram root and one depth grid.

        Parameters
        ----------
        root : ndarray, shape (r, r)
            The symmetric root of the Gram matrix.
        grid : callable
            The depth grid of a number of nodes.
        plan : Plan
            Points, nodes and precision.
        name : str
            What is being solved, for messages.
        replicates : range, optional
            Numbers of the scramblings, all of the plan's by default.
        shared : bool
            Whether every depth node gets all the points.

        Raises
        ------
        LimitError
            If a fixed point over depth does not converge; the message names the step.
        """
        depth_grid = grid(plan.nodes)
        chosen = range(plan.replicates) if replicates is None else replicates
        units = plan.points * (depth_grid.nodes if shared else 1)
        each = (branch.unit for branch in self.dynamics.layer)
        vectors = sum(unit.in_vectors + unit.out_vectors for unit in each)
        numbers = units * vectors * len(self.limit_root) * (1 + self.dynamics.rule.buffers)
        size = max(1, numbers * self.dtype(plan).itemsize)
        kept = 2 * len(chosen) * size <= STATE_BYTES
        together = max(1, STATE_BYTES // size)
        parts = [
            solve(
                self.dynamics,
                root,
                depth_grid,
                self.sample(plan, chosen[first : first + together], shared, kept),
                name=name,
                dtype=self.dtype(plan),
                device=self.arithmetic.device,
                tolerance=plan.iteration_tolerance,
            )
            for first in range(0, len(chosen), together)
        ]
        return Trajectory.joined(parts)
