"""Stages ``dmft``, ``mean_ode`` and ``wide``: the three limits as datasets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import xarray as xr

from resnet_limits import devices
from resnet_limits.config import Experiment, InputError
from resnet_limits.dynamics import make_dynamics
from resnet_limits.interpolation import interpolation_matrix
from resnet_limits.kinds import DIVERGED, NOT_RUN, OK, SYMBOLS
from resnet_limits.limits import cost, kernels
from resnet_limits.limits import plan as plans
from resnet_limits.limits.models import (
    Arithmetic,
    LimitError,
    Limits,
    LimitSolution,
    Plan,
)
from resnet_limits.problem import (
    Problem,
    embedding_rows,
    gram_root,
    limit_gram_root,
    make_problem,
)
from resnet_limits.work import INFINITE, MemoryRefusedError, Work

logger = logging.getLogger(__name__)


# Kept from cell to cell of a job: the quadrature's points are the same for all.
@lru_cache(maxsize=1)
def _prepare(experiment: Experiment, made: Problem | None) -> tuple[Problem, Limits, str]:
    problem = make_problem(experiment) if made is None else made
    device = devices.choose(experiment.numerics.device)
    arithmetic = Arithmetic(devices.dtype(experiment.numerics.precision), device)
    limits = Limits(make_dynamics(experiment, problem), limit_gram_root(problem), arithmetic)
    return problem, limits, devices.describe(device)


def _dataset(problem: Problem, solution: LimitSolution, plan: Plan, device: str) -> xr.Dataset:
    """Lay one solution out with the dimensions of the stores."""
    trajectory = solution.trajectory
    token = () if problem.tokens is None else ("token",)
    rows = ("sample", *token)

    hidden, backward = solution.hidden_coef, solution.backward_coef
    output, loss = trajectory.output, trajectory.loss
    variables = {
        "output": (("step", *rows, "target"), problem.by_sample(output.mean(axis=0))),
        "output_stderr": (("step", *rows, "target"), problem.by_sample(solution.output_stderr)),
        "loss": (("step",), loss.mean(axis=0)),
        "loss_stderr": (("step",), solution.loss_stderr),
        "hidden_coef": (
            ("step", "node", *rows, "embedding_direction"),
            problem.by_sample(hidden.mean(axis=0)),
        ),
        "backward_coef": (
            ("step", "node", *rows, "embedding_direction"),
            problem.by_sample(backward.mean(axis=0)),
        ),
        "output_replicate": (("replicate", "step", *rows, "target"), problem.by_sample(output)),
        "hidden_coef_replicate": (
            ("replicate", "step", *rows, "embedding_direction"),
            # A copy, as a view would keep the states of all nodes while other seeds are solved.
            problem.by_sample(hidden[:, :, -1].copy()),
        ),
        "depth_error": (("step",), solution.depth_error),
        "output_depth_change": (
            ("step", *rows, "target"),
            problem.by_sample(solution.depth_change.output),
        ),
        "hidden_coef_depth_change": (
            ("step", *rows, "embedding_direction"),
            problem.by_sample(solution.hidden_coef_change),
        ),
        "rounding": (("step",), solution.rounding),
    }
    return xr.Dataset(
        variables,
        coords={
            "step": np.arange(len(solution.depth_error)),
            "node": solution.knots,
            "replicate": np.arange(len(output)),
        },
        attrs={
            "quadrature_kind": plan.quadrature,
            "quadrature_points": plan.points,
            "device": device,
            **plan.as_attributes(),
        },
    )


def _at_knots(part: xr.Dataset, knots: np.ndarray) -> xr.Dataset:
    """Give the states at other knots: polynomials in depth, which as many or more hold whole."""
    if np.array_equal(part.node, knots):
        return part
    matrix = interpolation_matrix(part.node.values, knots)
    variables = {}
    for name, variable in part.data_vars.items():
        values = variable.values
        if "node" in variable.dims:
            values = np.einsum("kj,sj...->sk...", matrix, values)
        variables[name] = (variable.dims, values)
    coords = {**{name: part[name].values for name in part.coords}, "node": knots}
    return xr.Dataset(variables, coords=coords, attrs=part.attrs)


def _with_data(problem: Problem, dataset: xr.Dataset) -> xr.Dataset:
    """Add what of the data explains the rest.

    That is which samples are not trained on, and the basis of the inputs' span in which the
    embedding is meant, if any.
    """
    if problem.is_test is not None:
        dataset = dataset.assign_coords(is_test=("sample", problem.is_test.astype(np.int8)))
    if problem.input_rotation is None:
        return dataset
    return dataset.assign(input_rotation=(("input", "rank"), problem.input_rotation))


def _admit(limits: Limits, plan: Plan, seeds: int, label: str, depth: int = 0) -> None:
    """Refuse what would not fit in memory, before it starts."""
    dynamics, arithmetic = limits.dynamics, limits.arithmetic
    work = Work.of(dynamics, INFINITE._replace(depth=depth), seeds, arithmetic.dtype.itemsize)
    has_kernel = all(kernels.code_of(b.unit) is not None for b in dynamics.layer)
    single = plan.precision == "float32"
    planned = cost.Quadrature(
        plan.points, plan.replicates, plan.nodes, single, single and has_kernel
    )
    size = cost.peak_bytes(work, planned)
    there = int(devices.MEMORY_SHARE * devices.memory(arithmetic.device))
    if size > there:
        raise MemoryRefusedError(
            f"{label}: needs {size / 2**30:.1f} GiB of memory, and {there / 2**30:.1f} GiB are "
            "available; "
            "allowed: fewer samples, fewer steps"
            + (", fewer seeds" if seeds > 1 else "")
            + " or a larger numerics.limit_tolerance"
        )


def dmft(experiment: Experiment, made: Problem | None = None) -> xr.Dataset:
    """Solve the DMFT limit, with a pilot that fixes the numerics of all limits.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    made : Problem, optional
        The problem, where it was made before; else it is made here.

    Returns
    -------
    Dataset
        The limit store's variables, without a seed.

    Raises
    ------
    LimitError
        If the limit can't be solved to ``numerics.limit_tolerance``.
    MemoryRefusedError
        If it would not fit in memory.
    """
    problem, limits, device = _prepare(experiment, made)
    tolerance = experiment.numerics.limit_tolerance
    # What the pilot tries first, which is the least that it takes.
    first = plans.first_plan(
        tolerance, experiment.seed, limits.arithmetic.dtype, linear=limits.dynamics.is_linear
    )
    _admit(limits, first, 0, "dmft")
    plan, solution = limits.make_plan(tolerance, experiment.seed)
    dataset = _with_data(problem, _dataset(problem, solution, plan, device))
    dataset.attrs["limit_tolerance"] = tolerance
    return dataset


def _each_seed(
    experiment: Experiment,
    problem: Problem,
    plan: Plan,
    embed_dim: int,
    seeds: Sequence[int],
    solve: Callable[..., LimitSolution],
    device: str,
) -> xr.Dataset:
    """Solve a limit for the embedding of every seed and join the datasets."""
    # A seed's solution is large, what is kept of it small.
    solved: dict[int, xr.Dataset] = {}
    ends: dict[int, int] = {}
    nodes: dict[int, int] = {}
    failures: list[LimitError] = []
    for seed in seeds:
        root = gram_root(problem, embedding_rows(problem, experiment.seed, seed, embed_dim))
        try:
            solution = solve(root, seed)
        except LimitError as error:
            logger.warning("%s: the limit of this seed is left out (not_run)", error)
            failures.append(error)
            continue
        solved[seed] = _dataset(problem, solution, plan, device)
        ends[seed] = solution.trajectory.diverged_step
        nodes[seed] = solution.nodes
    if not solved:
        raise failures[0]
    knots = max((part.node.values for part in solved.values()), key=len)
    parts = {seed: _at_knots(part, knots) for seed, part in solved.items()}
    absent = xr.full_like(next(iter(parts.values())), np.nan)
    joined = xr.concat(
        [parts.get(seed, absent) for seed in seeds], dim="seed", combine_attrs="identical"
    ).assign_coords(seed=list(seeds))
    first = np.array([ends.get(seed, -1) for seed in seeds])
    diverged = first >= 0
    if diverged.any():
        logger.warning(
            "D=%d: the limit of %d of %d seeds diverges, the first at step %d; NaN from there on",
            embed_dim,
            diverged.sum(),
            len(seeds),
            first[diverged].min(),
        )
    status = np.where(diverged, DIVERGED, OK)
    status[[seed not in solved for seed in seeds]] = NOT_RUN
    # Added here and not to the parts, where joining would repeat it for every seed.
    return _with_data(problem, joined).assign(
        nodes=("seed", np.array([nodes.get(seed, 0) for seed in seeds])),
        status=("seed", status.astype(np.int8)),
        diverged_step=("seed", first),
    )


def _of_cell(
    kind: str,
    cell: dict[str, int],
    solve: Callable[[Limits, np.ndarray, Plan, str], LimitSolution],
    experiment: Experiment,
    dmft: xr.Dataset,
    seeds: Sequence[int] | None,
    made: Problem | None,
) -> xr.Dataset:
    """Solve the limit of one cell for every seed, by the plan of the DMFT limit."""
    if experiment.model.initial_law != "gaussian":
        raise InputError(
            f"model.initial_law: {experiment.model.initial_law}, but at finite D the limit {kind} "
            "holds for Gaussian weights only; allowed: gaussian, or the limit dmft"
        )
    problem, limits, device = _prepare(experiment, made)
    plan = Plan.of_attributes(dmft.attrs)
    where = " ".join(f"{SYMBOLS[name]}={size}" for name, size in cell.items())
    used = list(experiment.cell_seeds(**cell) if seeds is None else seeds)
    _admit(limits, plan, len(used), f"{kind} {where}", cell.get("depth", 0))

    def solve_seed(root: np.ndarray, seed: int) -> LimitSolution:
        return solve(limits, root, plan, f"{where} seed={seed}")

    dataset = _each_seed(experiment, problem, plan, cell["embed_dim"], used, solve_seed, device)
    dataset.attrs |= cell
    logger.info("%s %s: solved for %d seeds", kind, where, dataset.sizes["seed"])
    return dataset


def mean_ode(
    experiment: Experiment,
    embed_dim: int,
    dmft: xr.Dataset,
    seeds: Sequence[int] | None = None,
    made: Problem | None = None,
) -> xr.Dataset:
    """Solve the Mean ODE of the first `embed_dim` embedding rows of each seed.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    embed_dim : int
        D.
    dmft : Dataset
        The DMFT limit, whose plan is used.
    seeds : sequence of int, optional
        By default those of the networks that are compared with it.
    made : Problem, optional
        The problem, where it was made before; else it is made here.

    Raises
    ------
    InputError
        If the initial weights are not Gaussian.
    MemoryRefusedError
        If it would not fit in memory.
    """

    def solve(limits: Limits, root: np.ndarray, plan: Plan, label: str) -> LimitSolution:
        return limits.mean_ode(root, plan, label)

    return _of_cell("mean_ode", {"embed_dim": embed_dim}, solve, experiment, dmft, seeds, made)


def wide(
    experiment: Experiment,
    depth: int,
    embed_dim: int,
    dmft: xr.Dataset,
    seeds: Sequence[int] | None = None,
    made: Problem | None = None,
) -> xr.Dataset:
    """Solve the infinite-width limit at finite depth and embedding dimension, for each seed.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    depth, embed_dim : int
        L and D.
    dmft : Dataset
        The DMFT limit, whose plan is used.
    seeds : sequence of int, optional
        By default those of the networks that are compared with it.
    made : Problem, optional
        The problem, where it was made before; else it is made here.

    Raises
    ------
    InputError
        If the initial weights are not Gaussian.
    MemoryRefusedError
        If it would not fit in memory.
    """

    def solve(limits: Limits, root: np.ndarray, plan: Plan, label: str) -> LimitSolution:
        return limits.wide(root, depth, plan, label)

    cell = {"depth": depth, "embed_dim": embed_dim}
    return _of_cell("wide", cell, solve, experiment, dmft, seeds, made)
