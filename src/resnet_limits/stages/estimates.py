"""What a result is expected to cost before it is computed: time and memory.

Rough: these numbers set the size and the limits of jobs and tell people how long to wait; never a
result. Times are those of one core, user and system together. The time of networks is that of the
cost model by which an engine is chosen; of limits that of the plan of the DMFT limit where it is
there, else of the plan that such a problem is thought to need. Nothing here imports torch, so that
the workflow can plan with it; of a data file only the header is read.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from resnet_limits import datashape, integrity, jit, provenance, speeds
from resnet_limits.config import (
    CharactersData,
    ConvolutionUnit,
    DigitsData,
    Experiment,
    FileData,
    InContextRegressionData,
    LimitSeedsConfig,
    LinearTeacherData,
    PerceptronUnit,
    UnitConfig,
)
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.kinds import COMPUTED
from resnet_limits.limits import cost as limit_cost
from resnet_limits.limits.amplitudes import cost as amplitude_cost
from resnet_limits.limits.amplitudes.cost import Sizes
from resnet_limits.limits.cost import Quadrature, Scales
from resnet_limits.networks import cost
from resnet_limits.stages.paths import cells
from resnet_limits.work import INFINITE, Work, branches_of, saved_bytes

STORE_SECONDS = 0.06
"""Seconds that writing and checking one small store takes."""

LIMIT_SHARE = 0.1
"""Share of a study's time that seeds of limits may take which no network has."""

MOST_LIMIT_SEEDS = 64
"""Most such seeds, unless the experiment file asks for more."""

LIMITS_WITH_SEEDS = ("mean_ode", "wide")
"""The limits that depend on an embedding, the cheaper ones first."""

GPUS = tuple(speeds.GPUS)
"""The devices that `gpu_seconds` knows."""

# Seconds of one number of a store: packing it, writing it, and its checksum.
_STORED_SECONDS = 3e-8
# Rows and sizes of data whose file does not say them.
_UNKNOWN_ROWS, _UNKNOWN_INPUTS, _UNKNOWN_TARGETS = 100, 100, 10
# Those of digits: pixels that are not the same in all images.
_PIXELS = 61
# Seconds of one number of a field of networks where distances are measured: reading it with its
# checksum, and comparing it with a limit, for each limit and for each embedding direction of it.
_READ_SECONDS, _GAP_SECONDS, _DIRECTION_SECONDS = 1.1e-8, 1.5e-9, 6e-11
# Bytes that the comparison keeps at most of limits, of which it keeps so many, and of a cell's
# fields and of its embedding rows.
_KEPT_LIMIT, _KEPT_LIMITS, _KEPT_CELL, _KEPT_ROWS = 64 * 2**20, 16, 64 * 2**20, 256 * 2**20
# Numbers of each cell and step in the table of a pair, beside those at each depth.
_TABLE_NUMBERS, _MOST_DEPTHS = 6, 65
# What jobs that measure, fit and draw take, and for each comparison of two results.
_JOB_SECONDS = {"problem": 0.2, "errors": 0.8, "rates": 0.5, "figures": 8.0}
_COMPARED_SECONDS = {"errors": 0.001, "rates": 5e-5, "figures": 0.01}
# Interpreter and libraries of each kind of job, what is compiled included, in MiB.
_BASE_MB = {
    "problem": 180, "dmft": 650, "mean_ode": 650, "wide": 650, "finite": 700, "prediction": 650,
    "errors": 340, "rates": 240, "figures": 300,
}  # fmt: skip
# Digits come with a library of their own, where the data are made.
_DIGITS_MB = 60
_WITHOUT_DATA = ("rates", "figures")
_ITEMSIZE = {"float32": 4, "float64": 8}
# Modules whose functions are compiled.
_COMPILED = ("limits/kernels.py", "networks/kernels.py", "networks/passes.py")


# --- what there is to compute ---------------------------------------------------------------------


class _Data(NamedTuple):
    """Sizes of the data: rows, independent inputs, targets, and tokens where there are any."""

    rows: int
    inputs: int
    targets: int
    tokens: int | None = None


def _data_sizes(experiment: Experiment) -> _Data:
    """Tell the sizes of the data from the file, or from the header of the data's own."""
    data = experiment.problem.data
    match data:
        case DigitsData():
            return _Data(data.samples + data.test_samples, _PIXELS, data.classes)
        case InContextRegressionData(samples=samples, tokens=tokens):
            inputs = data.inputs + data.targets + data.positions * tokens
            return _Data(samples * tokens, inputs, data.targets, tokens)
        case CharactersData(samples=samples, tokens=tokens):
            # Both groups of one-hot inputs sum to one: a direction that they share.
            inputs = data.alphabet + data.positions * (tokens - 1)
            return _Data(samples * tokens, inputs, data.alphabet, tokens)
        case FileData():
            found = datashape.shapes(data.path)
            if found is None:
                return _Data(_UNKNOWN_ROWS, _UNKNOWN_INPUTS, _UNKNOWN_TARGETS)
            x, y = found
            if len(x) == 2:
                return _Data(x[0], x[-1], y[-1])
            return _Data(x[0] * x[1], x[-1] + data.positions * x[1], y[-1], x[1])
    tests = data.test_samples if isinstance(data, LinearTeacherData) else 0
    return _Data(data.samples + tests, data.inputs, data.targets)


def work(kind: str, experiment: Experiment, **cell: int) -> Work:
    """Say how much there is to compute for one network or limit with all its seeds.

    Parameters
    ----------
    kind : str
        ``dmft``, ``mean_ode``, ``wide`` or ``finite``.
    experiment : Experiment
        The validated experiment.
    **cell : int
        The sizes of the result.
    """
    data = _data_sizes(experiment)
    shape = INFINITE._replace(**cell)
    seeds = len(provenance.cell_seeds(kind, experiment, **cell)) if cell else 1
    saved = 0
    if kind == "finite":
        steps, layers = saved_steps(experiment), depth_layers(experiment, shape.depth)
        saved = saved_bytes(
            shape, data.rows, steps, layers, seeds, _ITEMSIZE[experiment.save.dtype]
        )
    buffers, additive = _rule(experiment)
    return Work(
        shape,
        data.rows,
        experiment.training.steps,
        seeds,
        branches_of(experiment, data.tokens),
        _ITEMSIZE[experiment.numerics.precision],
        # Inputs are rotated to the directions that they span.
        min(data.inputs, data.rows),
        data.targets,
        saved,
        buffers,
        additive,
        experiment.model.initial_law != "gaussian",
    )


def _rule(experiment: Experiment) -> tuple[int, bool]:
    """Tell the buffers of the training rule, and whether it only ever adds gradients."""
    training = experiment.training
    if training.rule.kind == "sgd":
        buffers = int(training.rule.momentum > 0)
        return buffers, not buffers and not training.weight_decay
    # Only numpy's module knows other rules.
    from resnet_limits.rules import make_rule

    rule = make_rule(**training.rule.model_dump(), factors=(), decay=training.weight_decay)
    return rule.buffers, rule.is_additive(training.steps)


def _activation(unit: UnitConfig) -> str:
    """Name the activation that a unit's map is, or linear; empty where it is more than that."""
    if isinstance(unit, PerceptronUnit):
        return unit.activation
    is_linear = isinstance(unit, ConvolutionUnit) and unit.activation == "linear"
    return "linear" if is_linear else ""


def _scales(experiment: Experiment) -> Scales:
    data, model = experiment.problem.data, experiment.model
    match data:
        case DigitsData():
            norm = math.sqrt(_PIXELS)
        case LinearTeacherData():
            norm = data.input_norm
        case CharactersData():
            norm = math.sqrt(1.0 + data.positions)
        case InContextRegressionData():
            norm = math.sqrt(data.inputs + data.targets + data.positions)
        case _:
            norm = math.sqrt(_data_sizes(experiment).inputs)
    scales = [branch.residual_scale or model.residual_scale for branch in model.branches]
    return Scales(
        tuple(_activation(branch.unit) for branch in model.branches),
        experiment.problem.loss,
        experiment.numerics.limit_tolerance,
        rate=experiment.training.learning_rate,
        hidden=model.init_std.embedding * norm,
        readout=model.init_std.unembedding,
        residual=math.fsum(scales),
    )


def _quadratures(experiment: Experiment, store: Path | None) -> list[Quadrature]:
    """Those that the pilot is thought to try; the last is what all limits take."""
    guessed = limit_cost.quadratures(work("dmft", experiment), _scales(experiment))
    known: Quadrature | None = None
    if store is not None:
        # A pipeline may remove or replace it at any time.
        with suppress(OSError):
            known = _planned(str(store), store.stat().st_mtime_ns)
    if known is None:
        return guessed
    compiled = guessed[-1].compiled and known.single
    return [Quadrature(known.points, known.replicates, known.nodes, known.single, compiled)]


def _amplitude_sizes(experiment: Experiment, dmft: Path | None) -> Sizes:
    """Tell what the cost of the predicted amplitudes depends on."""
    units = [branch.unit for branch in experiment.model.branches]
    tokens = _data_sizes(experiment).tokens or 1
    return Sizes(
        work("dmft", experiment),
        # Units that are not known here are taken for smooth ones.
        tuple(getattr(unit, "activation", "") != "relu" for unit in units),
        tuple(tokens if unit.mixes_tokens else 1 for unit in units),
        _quadratures(experiment, dmft)[-1],
    )


@lru_cache(maxsize=8)
def _planned(store: str, _modified_ns: int) -> Quadrature | None:
    """Read the plan that a store of the DMFT limit carries, without opening the store."""
    try:
        attributes = integrity.attributes(store)
        plan = {name.removeprefix("plan_"): value for name, value in attributes.items()}
        return Quadrature(
            int(plan["points"]),
            int(plan["replicates"]),
            int(plan["nodes"]),
            plan["precision"] == "float32",
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


# --- time -----------------------------------------------------------------------------------------


def seconds(kind: str, experiment: Experiment, dmft: Path | None = None, /, **cell: int) -> float:
    """Estimate the time of one result with all its seeds, in a job that has started.

    Parameters
    ----------
    kind : str
        One of ``kinds.KINDS``, or ``figures`` for all of them with the report.
    experiment : Experiment
        The validated experiment.
    dmft : path, optional
        A store of the experiment's DMFT limit, whose plan the other limits take.
    **cell : int
        The sizes of the result.

    Returns
    -------
    float
        Seconds on one core of the machine that the constants are from.
    """
    if kind == "prediction":
        sizes = _amplitude_sizes(experiment, dmft)
        return STORE_SECONDS + amplitude_cost.seconds(sizes, limit_cost.REPLICATES)
    if kind not in COMPUTED:
        compared = len(experiment.shapes) * len(experiment.seeds) * len(experiment.pairs)
        fixed = _JOB_SECONDS[kind] + _COMPARED_SECONDS.get(kind, 0.0) * compared
        return fixed + (_reading_seconds(experiment) if kind == "errors" else 0.0)
    wanted = work(kind, experiment, **cell)
    if kind == "finite":
        stored = _STORED_SECONDS * wanted.saved / _ITEMSIZE[experiment.save.dtype]
        units = wanted.vectors * wanted.shape.depth * wanted.shape.width * wanted.seeds
        activated = speeds.UNIT * units * wanted.rows * wanted.steps
        return STORE_SECONDS + stored + activated + cost.seconds(experiment.sweep.engine, wanted)
    tried = _quadratures(experiment, dmft)
    if kind == "dmft":
        return STORE_SECONDS + limit_cost.pilot_seconds(wanted, tried)
    return STORE_SECONDS + limit_cost.seconds(wanted, tried[-1])


def _networks(experiment: Experiment) -> list[Work]:
    """Give the networks of each shape that are compared with limits."""
    if not any(pair.startswith("finite-") for pair in experiment.pairs):
        return []
    return [work("finite", experiment, **shape._asdict()) for shape in experiment.shapes]


def _reading_seconds(experiment: Experiment) -> float:
    """Estimate the time of reading all hidden states and of comparing them with every limit."""
    limits = sum(pair.startswith("finite-") for pair in experiment.pairs)
    found = 0.0
    for wanted in _networks(experiment):
        # Half of what is kept: the backward states are not read.
        numbers = wanted.saved / _ITEMSIZE[experiment.save.dtype] / 2
        directions = wanted.inputs + wanted.targets
        gap = _GAP_SECONDS + _DIRECTION_SECONDS * directions
        found += numbers * (_READ_SECONDS + limits * gap)
    return found


def _comparing_bytes(experiment: Experiment, quadrature: Quadrature) -> float:
    """Estimate the memory of measuring distances, beside interpreter and libraries."""
    networks = _networks(experiment)
    data = _data_sizes(experiment)
    directions = min(data.inputs, data.rows) + data.targets
    seeds = len(experiment.seeds)
    of_seed = 8 * max(experiment.embed_dims, default=0) * directions
    rows = min(seeds * of_seed, _KEPT_ROWS + of_seed)
    cell = min(max((wanted.saved / 2 for wanted in networks), default=0.0), _KEPT_CELL)
    at_step = 8 * data.rows * directions * (quadrature.nodes + quadrature.replicates + 1)
    limit = min(at_step * experiment.training.steps * seeds, _KEPT_LIMIT)
    stores = 1 + len(experiment.embed_dims) + len(experiment.wide_cells)
    depths = max(
        (len(depth_layers(experiment, depth)) for depth, *_ in experiment.shapes), default=0
    )
    numbers = experiment.training.steps * (_TABLE_NUMBERS + min(depths, _MOST_DEPTHS))
    table = 8 * len(experiment.shapes) * seeds * numbers
    # Each pair has a table, and the one that is made is there twice; blocks come with copies.
    return (
        3 * rows
        + 5 * cell
        + limit * min(stores, _KEPT_LIMITS)
        + (len(experiment.pairs) + 1) * table
    )


@lru_cache(maxsize=8)
def with_limit_seeds(experiment: Experiment) -> Experiment:
    """Decide how many seeds limits have beside those of their networks, where that is left open.

    As many as fit in `LIMIT_SHARE` of the time of all networks and limits, by the cost model that
    is shipped, so that every machine decides alike: first of the Mean ODEs, then, in what is left
    of it, of the infinitely wide networks. A power of two, so that a few more shapes change
    nothing, and no more than `MOST_LIMIT_SEEDS`.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.

    Returns
    -------
    Experiment
        The same with all of ``sweep.limit_seeds``.
    """
    found = {kind: experiment.limit_seeds(kind) for kind in LIMITS_WITH_SEEDS}
    if None not in found.values():
        return experiment
    costs = {
        kind: [(seconds(kind, experiment, **cell), cell) for cell in cells(kind, experiment)]
        for kind in COMPUTED
    }
    left = LIMIT_SHARE * sum(cost for of_kind in costs.values() for cost, _ in of_kind)
    for kind, given in found.items():
        one = sum(
            cost / len(provenance.cell_seeds(kind, experiment, **cell))
            for cost, cell in costs[kind]
        )
        if given is None:
            fits = min(left / one, MOST_LIMIT_SEEDS) if one else 1.0
            found[kind] = 2 ** max(0, math.floor(math.log2(max(fits, 1.0))))
        left -= one * (found[kind] or 0)
    sweep = experiment.sweep.model_copy(update={"limit_seeds": LimitSeedsConfig(**found)})
    return experiment.model_copy(update={"sweep": sweep})


def start_seconds(kind: str, *, cold: bool = False) -> float:
    """Estimate what a job takes beside its results: interpreter, libraries, and compiling.

    Parameters
    ----------
    kind : str
        One of ``kinds.KINDS``, or ``figures``.
    cold : bool
        Nothing has been compiled on this machine yet.
    """
    if kind == "prediction":
        # What it needs has been compiled for the DMFT limit.
        return speeds.START
    if kind not in COMPUTED:
        return speeds.START_LIGHT
    return speeds.START + (speeds.COMPILE[kind] if cold else 0.0)


def is_cold(package: Path | None = None) -> bool:
    """Say whether no compiled code is kept here, so that the next jobs compile.

    Parameters
    ----------
    package : path, optional
        The package's folder.
    """
    folder = package or Path(__file__).parents[1]
    return not any(jit.is_kept(folder / module) for module in _COMPILED)


def gpu_seconds(gpu: str, cpu_seconds: float) -> float:
    """Scale the time of networks and limits to a GPU, by memory bandwidth.

    An estimate from nominal figures, not from a measurement: it knows nothing of launches, which
    dominate for small shapes.

    Parameters
    ----------
    gpu : str
        One of `GPUS`.
    cpu_seconds : float
        Seconds on one core, from `seconds`.
    """
    device = speeds.GPUS[gpu]
    return cpu_seconds * speeds.CORE_BANDWIDTH / (device.share * device.bandwidth)


# --- memory ---------------------------------------------------------------------------------------


def megabytes(kind: str, experiment: Experiment, dmft: Path | None = None, /, **cell: int) -> int:
    """Estimate the peak memory of the job of one result, in MiB; arguments as for `seconds`.

    Rather too much than too little, as a job that takes more than it has asked for is killed.
    """
    base = _BASE_MB[kind]
    if experiment.problem.data.kind == "digits" and kind not in _WITHOUT_DATA:
        base += _DIGITS_MB
    if kind == "prediction":
        size = amplitude_cost.peak_bytes(_amplitude_sizes(experiment, dmft))
        return math.ceil(base + size / 2**20)
    if kind == "errors":
        base += math.ceil(_comparing_bytes(experiment, _quadratures(experiment, dmft)[-1]) / 2**20)
    if kind not in COMPUTED:
        return base
    wanted = work(kind, experiment, **cell)
    if kind == "finite":
        size = cost.peak_bytes(experiment.sweep.engine, wanted, in_pieces=cost.in_pieces(wanted))
    else:
        size = limit_cost.peak_bytes(wanted, _quadratures(experiment, dmft)[-1])
    return math.ceil(base + size / 2**20)
