"""The three limits: DMFT, Mean ODE, and infinite width at finite depth.

Each is :func:`resnet_limits.limits.solver.solve` with another Gram root and depth grid. The number
of quadrature points and of depth nodes is found once, by :func:`make_plan` on the DMFT limit, and
used by all: the same points and the symmetric roots couple the limits, so that their differences
are far more accurate than each of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits import depth, quadrature
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.quadrature import Directions, UnitSample
from resnet_limits.limits.solver import TIGHT, LimitError, Trajectory, solve

logger = logging.getLogger(__name__)

REPLICATES = 8
MAX_POINTS = 1 << 22
# Points are dealt out to the nodes, so that more nodes cost no more; a power of two keeps the runs
# of a Sobol' sequence that the nodes get balanced.
FIRST_NODES = 8
MAX_NODES = 32
_FIRST_POINTS = 1 << 12
# Points that every node gets where the depth error is looked at.
_DEPTH_POINTS = 1 << 10
# Share of the tolerance that is left to the depth error, and the scramblings by which the pilot
# estimates it (later solves look with one, which is enough to see that it has not grown).
_DEPTH_SHARE = 0.1
_PILOT_REPLICATES = 4
# Fixed points are iterated to this share of the tolerance, and no further than to rounding. It is
# so small because the differences of coupled limits are far more accurate than the limits.
_ITERATION_SHARE = 1e-4
# The loosest tolerance that asks for the units' arithmetic in float64.
_DOUBLE_TOLERANCE = 1e-5
# As many replicates are solved side by side as have their units' weights in so many bytes. Samples
# of up to half of that are kept for the next limit.
_STATE_BYTES = 1 << 29
_KEPT_SAMPLES = 2
# Singular values of the Gram root below this share of the largest are directions that D < r rows
# of embedding do not span (the root of a rounding error is about 1e-8).
_RANK_TOLERANCE = 1e-6


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
        Nodes in depth.
    root_seed : int
        Root of the scramblings' random streams.
    precision : str
        ``float64`` or ``float32``: arithmetic of the units. States and sums are in float64.
    iteration_tolerance : float
        Relative tolerance of the fixed points over depth.
    """

    quadrature: str
    points: int
    replicates: int
    nodes: int
    root_seed: int
    precision: str = "float64"
    iteration_tolerance: float = TIGHT

    def as_dict(self) -> dict[str, int | float | str]:
        """Return the plan as plain values; ``Plan(**values)`` gives it back."""
        return asdict(self)


@dataclass(frozen=True)
class LimitSolution:
    """A solved limit: its trajectory, minimum-norm coefficients, grid and plan.

    Attributes
    ----------
    trajectory : Trajectory
        States in the reduced coordinates.
    hidden_coef, backward_coef : ndarray, shape (replicates, K, knots, rows, r)
        Minimum-norm coordinates of h and b on the embedding's columns, ``c = R^+ w``.
    knots : ndarray, shape (knots,)
        Depth of the stored states.
    depth_error : ndarray, shape (K,)
        RMS over rows and targets of the change of the outputs when two depth nodes are added,
        seen on a part of the points.
    plan : Plan
        What it was solved with.
    """

    trajectory: Trajectory
    hidden_coef: Array
    backward_coef: Array
    knots: Array
    depth_error: Array
    plan: Plan


@dataclass(frozen=True)
class Arithmetic:
    """Highest precision of the units' arithmetic, and the device."""

    dtype: torch.dtype = torch.float64
    device: str = "cpu"


def standard_error(values: Array) -> Array:
    """Return the standard error of the mean over the first axis (the replicates).

    Parameters
    ----------
    values : ndarray, shape (replicates, ...)
        One value a scrambling.

    Returns
    -------
    ndarray, shape (...)
        Zero for a single replicate, which is an exact cubature.
    """
    replicates = len(values)
    if replicates == 1:
        return np.zeros_like(values[0])
    error: Array = values.std(axis=0, ddof=1) / np.sqrt(replicates)
    return error


class Limits:
    """The limits of one training problem.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    limit_root : ndarray, shape (r, r)
        Root of the Gram matrix in the DMFT limit, ``diag(s_e I, s_u I)``.
    arithmetic : Arithmetic
        Precision and device.
    """

    def __init__(
        self, dynamics: Dynamics, limit_root: Array, arithmetic: Arithmetic | None = None
    ) -> None:
        self.dynamics = dynamics
        self.limit_root = limit_root
        self.arithmetic = arithmetic or Arithmetic()
        # Every Mean ODE and finite-depth limit of a run asks for the same points.
        self._sampled = lru_cache(maxsize=_KEPT_SAMPLES)(self._sample)

    def _dtype(self, plan: Plan) -> torch.dtype:
        return torch.float32 if plan.precision == "float32" else self.arithmetic.dtype

    def _sample(self, plan: Plan, replicates: range, shared: bool) -> UnitSample:
        unit, r = self.dynamics.unit, len(self.limit_root)
        if plan.quadrature == quadrature.CUBATURE:
            return quadrature.cubature(unit.in_vectors, unit.out_vectors, r)
        r_in = self.dynamics.inputs.shape[1]
        directions = Directions.of_data(
            self.limit_root[:, :r_in] @ self.dynamics.inputs.T,
            self.limit_root[:, r_in:] @ self.dynamics.targets.T,
        )
        sample = quadrature.sobol(
            unit.in_vectors,
            unit.out_vectors,
            directions,
            points=plan.points,
            replicates=replicates,
            root_seed=plan.root_seed,
            flip_inputs=not unit.is_odd,
            dtype=self._dtype(plan),
        )
        return replace(sample, shared=shared)

    def _trajectory(
        self,
        root: Array,
        grid: Callable[[int], DepthGrid],
        plan: Plan,
        name: str,
        *,
        replicates: range | None = None,
        shared: bool = False,
    ) -> Trajectory:
        """Solve for the given replicates, all of the plan's by default."""
        unit, depth_grid = self.dynamics.unit, grid(plan.nodes)
        chosen = range(plan.replicates) if replicates is None else replicates
        units = plan.points * (depth_grid.nodes if shared else 1)
        weights = units * (unit.in_vectors + unit.out_vectors) * len(self.limit_root)
        size = max(1, weights * self._dtype(plan).itemsize)
        draw = self._sampled if 2 * len(chosen) * size <= _STATE_BYTES else self._sample
        together = max(1, _STATE_BYTES // size)
        parts = [
            solve(
                self.dynamics,
                root,
                depth_grid,
                draw(plan, chosen[first : first + together], shared),
                name=name,
                dtype=self._dtype(plan),
                device=self.arithmetic.device,
                tolerance=plan.iteration_tolerance,
            )
            for first in range(0, len(chosen), together)
        ]
        return Trajectory.joined(parts)

    def _depth_error(
        self,
        root: Array,
        grid: Callable[[int], DepthGrid],
        plan: Plan,
        name: str,
        replicates: int = 1,
    ) -> Array:
        """RMS change of the outputs at each step when two nodes are added.

        All nodes have the same few points here: dealt out anew, they would change more.
        """
        points = min(_DEPTH_POINTS, plan.points)
        small = replace(plan, points=points, replicates=min(plan.replicates, replicates))
        coarse, fine = (
            self._trajectory(
                root, grid, replace(small, nodes=nodes), name, shared=True
            ).output.mean(axis=0)
            for nodes in (plan.nodes, plan.nodes + 2)
        )
        error: Array = np.sqrt(np.mean((fine - coarse) ** 2, axis=(1, 2)))
        return error

    def _reference(self, plan: Plan, replicates: range | None = None) -> Trajectory:
        """Solve the DMFT limit, which everything else is measured against."""
        trajectory = self._trajectory(
            self.limit_root, depth.continuous, plan, "dmft", replicates=replicates
        )
        if trajectory.diverged_step >= 0:
            raise LimitError(
                f"dmft: the limit itself diverges at step {trajectory.diverged_step}: the "
                "learning rate or the residual scale is too large for these data"
            )
        return trajectory

    def _solve(
        self, root: Array, grid: Callable[[int], DepthGrid], plan: Plan, name: str
    ) -> LimitSolution:
        trajectory = self._trajectory(root, grid, plan, name)
        depth_error = self._depth_error(root, grid, plan, name)
        return self._solution(trajectory, root, grid(plan.nodes).knots, depth_error, plan)

    def _solution(
        self, trajectory: Trajectory, root: Array, knots: Array, depth_error: Array, plan: Plan
    ) -> LimitSolution:
        inverse = np.linalg.pinv(root, rcond=_RANK_TOLERANCE, hermitian=True)
        return LimitSolution(
            trajectory=trajectory,
            hidden_coef=trajectory.hidden @ inverse,
            backward_coef=trajectory.backward @ inverse,
            knots=knots,
            depth_error=depth_error,
            plan=plan,
        )

    def dmft(self, plan: Plan) -> LimitSolution:
        """Solve the DMFT limit: L, M and D to infinity.

        Raises
        ------
        LimitError
            If it diverges; the message names the step.
        """
        root, grid = self.limit_root, depth.continuous
        depth_error = self._depth_error(root, grid, plan, "dmft")
        knots = grid(plan.nodes).knots
        return self._solution(self._reference(plan), root, knots, depth_error, plan)

    def mean_ode(self, root: Array, plan: Plan, label: str = "") -> LimitSolution:
        """Solve the Mean ODE: L and M to infinity, with the Gram root of a sampled embedding."""
        return self._solve(root, depth.continuous, plan, f"mean_ode {label}".strip())

    def wide(self, root: Array, layers: int, plan: Plan, label: str = "") -> LimitSolution:
        """Solve the limit of infinite width at depth L = `layers`."""
        return self._solve(root, partial(depth.layered, layers), plan, f"wide {label}".strip())

    def make_plan(self, tolerance: float, root_seed: int) -> tuple[Plan, LimitSolution]:
        """Find points and nodes that meet a tolerance, and solve the DMFT limit with them.

        Parameters
        ----------
        tolerance : float
            Wanted RMS over (step, row, target) of the standard error of the outputs; absolute.
            The depth error is held below a tenth of it.
        root_seed : int
            Root of the scramblings' random streams.

        Returns
        -------
        plan : Plan
            What all limits of the experiment use.
        solution : LimitSolution
            The DMFT limit.

        Raises
        ------
        LimitError
            If the tolerance can't be met with MAX_POINTS points or MAX_NODES nodes; the message
            names the step at which the error passes the tolerance.
        """
        root, grid, name = self.limit_root, depth.continuous, "dmft"
        if self.dynamics.unit.is_linear:
            plan = Plan(quadrature.CUBATURE, 0, 1, FIRST_NODES, root_seed, self._precision(0.0))
            trajectory = self._reference(plan)
        else:
            plan, trajectory = self._enough_points(tolerance, root_seed)
        first_nodes = plan.nodes
        while True:
            error = self._depth_error(root, grid, plan, name, _PILOT_REPLICATES)
            worst = float(np.sqrt(np.mean(error**2)))
            logger.info("dmft: %d nodes: depth error %.1e", plan.nodes, worst)
            if worst <= _DEPTH_SHARE * tolerance:
                if plan.nodes > first_nodes:
                    trajectory = self._reference(plan)
                return plan, self._solution(trajectory, root, grid(plan.nodes).knots, error, plan)
            if plan.nodes >= MAX_NODES:
                raise LimitError(
                    f"dmft: the depth error is still {worst:.1e} with {plan.nodes} nodes, above "
                    f"{_DEPTH_SHARE} of limit_tolerance {tolerance:.1e}, from step "
                    f"{int(np.argmax(error > _DEPTH_SHARE * tolerance))} on"
                )
            plan = replace(plan, nodes=plan.nodes + 2)

    def _precision(self, tolerance: float) -> str:
        single = tolerance > _DOUBLE_TOLERANCE or self.arithmetic.dtype == torch.float32
        return "float32" if single else "float64"

    def _enough_points(self, tolerance: float, root_seed: int) -> tuple[Plan, Trajectory]:
        plan = Plan(
            quadrature.SOBOL,
            _FIRST_POINTS,
            REPLICATES,
            FIRST_NODES,
            root_seed,
            self._precision(tolerance),
            max(TIGHT, _ITERATION_SHARE * tolerance),
        )
        trajectory = self._reference(plan)
        while True:
            error = standard_error(trajectory.output)
            worst = float(np.sqrt(np.mean(error**2)))
            logger.info(
                "dmft: %d points x %d scramblings: standard error %.2e, wanted %.2e",
                plan.points,
                plan.replicates,
                worst,
                tolerance,
            )
            if worst <= tolerance:
                return plan, trajectory
            excess = worst / tolerance
            # Close to the goal more scramblings cost less than twice the points.
            replicates = int(np.ceil(plan.replicates * (1.05 * excess) ** 2))
            if replicates < 2 * REPLICATES:
                more = self._reference(plan, range(plan.replicates, replicates))
                trajectory = Trajectory.joined([trajectory, more])
                plan = replace(plan, replicates=replicates)
            elif plan.points < MAX_POINTS:
                # The error falls at least like points^(-1/2), here nearly like points^(-2/3).
                factor = 2 ** max(1, round(1.5 * np.log2(excess)))
                points = min(MAX_POINTS, plan.points * min(16, factor))
                plan = replace(plan, points=points, replicates=REPLICATES)
                trajectory = self._reference(plan)
            else:
                by_step = np.sqrt(np.mean(error**2, axis=(1, 2)))
                step = int(np.argmax(by_step > tolerance))
                raise LimitError(
                    f"dmft: limit_tolerance {tolerance:.1e} is not met with {MAX_POINTS} points: "
                    f"the standard error passes it at step {step} ({by_step[step]:.1e}) and is "
                    f"{by_step[-1]:.1e} at the last; the training dynamics amplify errors, so "
                    "allow a larger limit_tolerance, fewer steps or a smaller learning rate"
                )
