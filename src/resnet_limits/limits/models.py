"""The three limits: DMFT, Mean ODE, and infinite width at finite depth.

Each is :func:`resnet_limits.limits.solver.solve` with another Gram root and depth grid. The number
of quadrature points and of depth nodes is found once, by :func:`make_plan` on the DMFT limit, and
used by all: the same points and the symmetric roots couple the limits, so that their differences
are far more accurate than each of them. A limit whose depth error is larger than its share takes
more nodes, and what is left of that error is part of its standard error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits import depth
from resnet_limits.limits import plan as plans
from resnet_limits.limits.causes import likely_cause
from resnet_limits.limits.depth import Array, DepthGrid
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.solver import LimitError, Trajectory, accuracy
from resnet_limits.limits.trajectories import Arithmetic, Trajectories

__all__ = [
    "Arithmetic",
    "DepthChange",
    "LimitError",
    "LimitSolution",
    "Limits",
    "Plan",
    "standard_error",
]

logger = logging.getLogger(__name__)

# Points that every node gets where the depth error is looked at.
_DEPTH_POINTS = 3 << 8
# Scramblings by which the depth error is estimated where it decides on the nodes, those of the plan
# and those of one limit; one is enough to see that it is far below.
_PILOT_REPLICATES = 4
_DECIDING_REPLICATES = 2
# More nodes that leave more than this share of the depth error do not help.
_PROGRESS = 0.5
# Directions in which the embedding's columns, each of length one, extend by less than this are
# directions that D < r rows do not span (the root of a rounding error is about 1e-8).
_RANK_TOLERANCE = 1e-6


def _rms(values: Array, axis: tuple[int, ...] | None = None) -> Array:
    root: Array = np.sqrt(np.mean(values**2, axis=axis))
    return root


@dataclass(frozen=True)
class DepthChange:
    """What half as many depth nodes more would change, seen on a part of the points.

    NaN where it could not be seen, because one of the two grids has no bounded state.

    Attributes
    ----------
    output : ndarray, shape (K, rows, d_out)
        Change of the outputs.
    hidden : ndarray, shape (K, rows, r)
        Change of the hidden state at s = 1, in reduced coordinates.
    loss : ndarray, shape (K,)
        Change of the loss.
    size : float
        RMS of the change of the outputs up to a common divergence; infinite where the grids do not
        agree on the step of divergence.
    """

    output: Array
    hidden: Array
    loss: Array
    size: float

    @classmethod
    def constant(
        cls, value: float, size: float, steps: int, rows: int, targets: int, r: int
    ) -> DepthChange:
        """Return a change that is the same number everywhere.

        Parameters
        ----------
        value, size : float
            Every entry, and the RMS.
        steps, rows, targets, r : int
            K, rows, d_out and r.
        """
        output, hidden = np.full((steps, rows, targets), value), np.full((steps, rows, r), value)
        return cls(output, hidden, np.full(steps, value), size)

    @classmethod
    def between(cls, coarse: Trajectory, fine: Trajectory) -> DepthChange:
        """Subtract means over the replicates.

        Parameters
        ----------
        coarse, fine : Trajectory
            Solutions with fewer and with more nodes, of the same K, rows, d_out and r.
        """
        change = fine.output.mean(axis=0) - coarse.output.mean(axis=0)
        ends = {coarse.diverged_step, fine.diverged_step}
        sound = change[: max(ends)] if max(ends) >= 0 else change
        return cls(
            output=change,
            hidden=fine.hidden[:, :, -1].mean(axis=0) - coarse.hidden[:, :, -1].mean(axis=0),
            loss=fine.loss.mean(axis=0) - coarse.loss.mean(axis=0),
            size=math.inf if len(ends) > 1 else float(_rms(sound)) if len(sound) else 0.0,
        )

    def filled(self, trajectory: Trajectory) -> DepthChange:
        """Return a copy with the whole of a solution for its error where no change could be seen.

        NaN where the solution has diverged.

        Parameters
        ----------
        trajectory : Trajectory
            The solution, of the same K, rows, d_out and r.
        """
        loss = trajectory.loss.mean(axis=0)
        lost = np.isnan(self.loss) | np.isnan(loss)
        by_state = lost[:, None, None]
        return replace(
            self,
            output=np.where(by_state, trajectory.output.mean(axis=0), self.output),
            hidden=np.where(by_state, trajectory.hidden[:, :, -1].mean(axis=0), self.hidden),
            loss=np.where(lost, loss, self.loss),
        )


@dataclass(frozen=True)
class LimitSolution:
    """A solved limit: its trajectory, minimum-norm coefficients, grid and errors.

    Attributes
    ----------
    trajectory : Trajectory
        States in the reduced coordinates.
    hidden_coef, backward_coef : ndarray, shape (replicates, K, knots, rows, r)
        Minimum-norm coordinates of h and b on the embedding's columns, ``c = R^+ w``.
    knots : ndarray, shape (knots,)
        Depth of the stored states.
    nodes : int
        Depth nodes that it was solved with: those of the plan, or more.
    depth_change : DepthChange
        What half as many nodes more would change.
    hidden_coef_change : ndarray, shape (K, rows, r)
        The change of the hidden state in minimum-norm coordinates.
    rounding : ndarray, shape (K,)
        How far states may be off, by the tolerance of the fixed points and by rounding.
    """

    trajectory: Trajectory
    hidden_coef: Array
    backward_coef: Array
    knots: Array
    nodes: int
    depth_change: DepthChange
    hidden_coef_change: Array
    rounding: Array

    @property
    def depth_error(self) -> Array:
        """RMS over rows and targets of the depth change of the outputs, shape (K,)."""
        return _rms(self.depth_change.output, (1, 2))

    @property
    def output_stderr(self) -> Array:
        """Standard error of the mean outputs, shape (K, rows, d_out), with all that is known."""
        return self._with_depth(self.trajectory.output, self.depth_change.output)

    @property
    def loss_stderr(self) -> Array:
        """Standard error of the mean loss, shape (K,)."""
        return self._with_depth(self.trajectory.loss, self.depth_change.loss)

    def _with_depth(self, replicates: Array, change: Array) -> Array:
        floor = self.rounding.reshape(-1, *(1,) * (change.ndim - 1))
        error: Array = np.sqrt(standard_error(replicates) ** 2 + change**2 + floor**2)
        return error


def standard_error(values: Array) -> Array:
    """Return the standard error of the mean over the first axis (the replicates).

    Parameters
    ----------
    values : ndarray, shape (replicates, ...)
        One value a scrambling.

    Returns
    -------
    ndarray, shape (...)
        Zero for a single replicate, which is an exact cubature; NaN where a value is.
    """
    replicates = len(values)
    if replicates == 1:
        return np.where(np.isnan(values[0]), np.nan, 0.0)
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
        self.trajectories = Trajectories(dynamics, limit_root, self.arithmetic)

    def _depth_change(
        self,
        root: Array,
        grid: Callable[[int], DepthGrid],
        plan: Plan,
        name: str,
        replicates: int = 1,
        solved: dict[int, Trajectory] | None = None,
    ) -> DepthChange:
        """Compare a limit with that of half as many depth nodes more.

        All nodes have the same few points here: dealt out anew, they would change more. The dict
        `solved` keeps what was solved, by the number of nodes, for the next comparison. Where one
        of the two cannot be solved the change is unseen.
        """
        coarse, fine = grid(plan.nodes).nodes, grid(plans.finer(plan.nodes)).nodes
        if coarse == fine:
            # All layers are nodes.
            return self._constant_change(0.0, 0.0)
        points, number = min(_DEPTH_POINTS, plan.points), min(plan.replicates, replicates)
        small = replace(plan, points=points, replicates=number)
        known = {} if solved is None else solved
        try:
            for nodes in {coarse, fine} - known.keys():
                few = replace(small, nodes=nodes)
                known[nodes] = self.trajectories.solve(root, grid, few, name, shared=True)
        except LimitError as error:
            logger.debug("%s", error)
            return self._constant_change(math.nan, math.inf)
        return DepthChange.between(known[coarse], known[fine])

    def _constant_change(self, value: float, size: float) -> DepthChange:
        rows, targets = self.dynamics.targets.shape
        return DepthChange.constant(
            value, size, self.dynamics.steps, rows, targets, len(self.limit_root)
        )

    def _enough_nodes(
        self, root: Array, grid: Callable[[int], DepthGrid], plan: Plan, name: str
    ) -> tuple[Plan, DepthChange]:
        """Find how many depth nodes a limit needs, and what they leave of the depth error.

        Other nodes than the plan's are decided on for the Mean ODE of a root, so that its limits of
        all depths have the same and stay coupled.
        """
        allowed = plans.OWN_DEPTH_SHARE * plan.tolerance
        change = self._depth_change(root, grid, plan, name)
        if change.size <= 0.5 * allowed:
            return plan, change
        best, left, tried = plan, math.inf, plan
        solved: dict[int, Trajectory] = {}
        while True:
            size = self._depth_change(
                root, depth.continuous, tried, name, _DECIDING_REPLICATES, solved
            ).size
            if size > _PROGRESS * left:
                break
            best, left = tried, size
            if size <= allowed or tried.nodes >= plans.MAX_NODES:
                break
            tried = replace(tried, nodes=min(plans.MAX_NODES, plans.finer(tried.nodes)))
        logger.info("%s: %d nodes: depth error %.1e", name, best.nodes, left)
        return best, self._depth_change(root, grid, best, name, _DECIDING_REPLICATES)

    def _bounded(
        self,
        root: Array,
        grid: Callable[[int], DepthGrid],
        plan: Plan,
        name: str,
        replicates: range | None = None,
        most: int | None = None,
    ) -> tuple[Plan, Trajectory]:
        """Solve with as many depth nodes as a bounded state takes, those of the plan or more.

        Too few nodes may have no bounded state where the limit has one, so that a divergence counts
        only if half as many nodes more confirm it, or if all layers are nodes.
        """
        used, most = plan, plans.MAX_NODES if most is None else most
        diverged: tuple[Plan, Trajectory] | None = None
        while True:
            more = min(most, plans.finer(used.nodes))
            last = used.nodes >= most or grid(more).nodes == grid(used.nodes).nodes
            try:
                trajectory = self.trajectories.solve(root, grid, used, name, replicates=replicates)
            except LimitError:
                if last:
                    raise
            else:
                if trajectory.diverged_step < 0 or last:
                    return used, trajectory
                if diverged is not None and diverged[1].diverged_step == trajectory.diverged_step:
                    return diverged
                diverged = used, trajectory
            used = replace(used, nodes=more)

    def _reference(self, plan: Plan, replicates: range | None = None) -> tuple[Plan, Trajectory]:
        """Solve the DMFT limit, with no more than one refinement: a failure is to be told soon."""
        root, grid, most = self.limit_root, depth.continuous, plans.finer(plan.nodes)
        try:
            used, trajectory = self._bounded(root, grid, plan, "dmft", replicates, most)
        except LimitError as error:
            cause = likely_cause(self.dynamics, root, error.step)
            raise LimitError(f"{error}: {cause}", error.step) from None
        if trajectory.diverged_step >= 0:
            raise LimitError(
                f"dmft: the limit itself diverges at step {trajectory.diverged_step}: "
                + likely_cause(self.dynamics, root, trajectory.diverged_step),
                trajectory.diverged_step,
            )
        return used, trajectory

    def _solve(
        self, root: Array, grid: Callable[[int], DepthGrid], plan: Plan, name: str
    ) -> LimitSolution:
        """Solve with as many depth nodes as are needed."""
        enough, change = self._enough_nodes(root, grid, plan, name)
        used, trajectory = self._bounded(root, grid, enough, name)
        if used.nodes != enough.nodes:
            change = self._depth_change(root, grid, used, name)
        return self._solution(trajectory, root, grid, change, used)

    def _solution(
        self,
        trajectory: Trajectory,
        root: Array,
        grid: Callable[[int], DepthGrid],
        change: DepthChange,
        plan: Plan,
    ) -> LimitSolution:
        change = change.filled(trajectory)
        to_coordinates = minimum_norm(root)
        tolerance = accuracy(plan.iteration_tolerance, self.trajectories.dtype(plan))
        size = np.abs(trajectory.hidden[:, :, -1]).max(axis=(0, 2, 3))
        return LimitSolution(
            trajectory=trajectory,
            hidden_coef=trajectory.hidden @ to_coordinates.T,
            backward_coef=trajectory.backward @ to_coordinates.T,
            knots=grid(plan.nodes).knots,
            nodes=plan.nodes,
            depth_change=change,
            hidden_coef_change=change.hidden @ to_coordinates.T,
            rounding=tolerance * np.maximum(1.0, size),
        )

    def dmft(self, plan: Plan) -> LimitSolution:
        """Solve the DMFT limit: L, M and D to infinity.

        Raises
        ------
        LimitError
            If it diverges; the message names the step and the likely cause.
        """
        root, grid = self.limit_root, depth.continuous
        used, trajectory = self._reference(plan)
        change = self._depth_change(root, grid, used, "dmft")
        return self._solution(trajectory, root, grid, change, used)

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
            Wanted RMS over (step, row, target) of the standard error of the outputs over
            scramblings; absolute. The depth error is held below a tenth of it.
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
        root, grid = self.limit_root, depth.continuous
        plan, trajectory = self._enough_points(tolerance, root_seed)
        nodes = plan.nodes
        allowed = plans.DEPTH_SHARE * tolerance
        solved: dict[int, Trajectory] = {}
        while True:
            change = self._depth_change(root, grid, plan, "dmft", _PILOT_REPLICATES, solved)
            logger.info("dmft: %d nodes: depth error %.1e", plan.nodes, change.size)
            if change.size <= allowed:
                if plan.nodes == nodes:
                    return plan, self._solution(trajectory, root, grid, change, plan)
                plan, trajectory = self._reference(plan)
                nodes = plan.nodes
                continue
            if plan.nodes >= plans.MAX_NODES:
                by_step = _rms(change.output, (1, 2))
                raise LimitError(
                    f"dmft: the depth error is still {change.size:.1e} with {plan.nodes} nodes, "
                    f"above {plans.DEPTH_SHARE} of limit_tolerance {tolerance:.1e}, from step "
                    f"{int(np.argmax(~(by_step <= allowed)))} on; allowed: a larger "
                    "limit_tolerance, fewer steps or a smaller learning rate"
                )
            plan = replace(plan, nodes=min(plans.MAX_NODES, plans.finer(plan.nodes)))

    def _enough_points(self, tolerance: float, root_seed: int) -> tuple[Plan, Trajectory]:
        linear = self.dynamics.is_linear
        plan = plans.first_plan(tolerance, root_seed, self.arithmetic.dtype, linear=linear)
        plan, trajectory = self._reference(plan)
        while True:
            error = standard_error(trajectory.output)
            worst = float(_rms(error))
            logger.info(
                "dmft: %d points x %d scramblings: standard error %.2e, wanted %.2e",
                plan.points,
                plan.replicates,
                worst,
                tolerance,
            )
            if worst <= tolerance:
                return plan, trajectory
            more = plans.with_more_points(plan, worst / tolerance)
            if more is None:
                by_step = _rms(error, (1, 2))
                step = int(np.argmax(~(by_step <= tolerance)))
                raise LimitError(
                    f"dmft: limit_tolerance {tolerance:.1e} is not met with {plan.points} "
                    f"points: the standard error exceeds it at step {step} ({by_step[step]:.1e}) "
                    f"and is {by_step[-1]:.1e} at the last, as the training dynamics amplify "
                    "errors; allowed: a larger limit_tolerance, fewer steps or a smaller learning "
                    "rate"
                )
            if more.points == plan.points:
                used, new = self._reference(more, range(plan.replicates, more.replicates))
                if used.nodes == plan.nodes:
                    plan, trajectory = used, Trajectory.joined([trajectory, new])
                    continue
                more = used
            plan, trajectory = self._reference(more)


def minimum_norm(root: Array) -> Array:
    """Give the matrix that turns a state w into minimum-norm coordinates c with ``R c = w``.

    Parameters
    ----------
    root : ndarray, shape (r, r)
        R, the symmetric root of the Gram matrix, which may be singular. Its columns may be of very
        different length: what is independent is decided after they have been scaled to length one,
        which makes their products those of the embedding's columns scaled likewise.

    Returns
    -------
    ndarray, shape (r, r)
        ``R^+``.
    """
    lengths = np.linalg.norm(root, axis=0)
    scale = np.where(lengths > 0, lengths, 1.0)
    left, values, right = np.linalg.svd(root / scale)
    spans = values > _RANK_TOLERANCE
    some = (right[spans].T / values[spans]) @ left[:, spans].T / scale[:, None]
    # Coordinates that change no state, in the embedding's own scale.
    idle = np.linalg.qr(right[~spans].T / scale[:, None])[0]
    inverse: Array = some - idle @ (idle.T @ some)
    return inverse
