"""Stage ``prediction``: the error law of an experiment, from its limit alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from resnet_limits import devices
from resnet_limits.config import Experiment
from resnet_limits.dynamics import make_dynamics
from resnet_limits.kinds import Shape
from resnet_limits.laws import PREDICTED, law_of, variable_values
from resnet_limits.limits.amplitudes import cost
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.amplitudes.changes import DEPTHS
from resnet_limits.limits.amplitudes.prediction import Shaped, predict
from resnet_limits.limits.amplitudes.sizes import Distance
from resnet_limits.limits.models import Arithmetic, Limits
from resnet_limits.limits.plan import Plan
from resnet_limits.problem import (
    Problem,
    embedding_rows,
    gram_root,
    limit_gram_root,
    make_problem,
)

Numbers = list[Any]
"""Numbers or null, one a step, or a list of them a step."""


def prediction(
    experiment: Experiment,
    dmft: xr.Dataset,
    made: Problem | None = None,
    most_seconds: float = cost.MOST_SECONDS,
    shape: Shape | None = None,
) -> dict[str, Any]:
    """Predict the amplitudes of all terms, at all steps, and the distances of a shape.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    dmft : Dataset
        Its DMFT limit, whose numerics are used.
    made : Problem, optional
        The problem, where it was made before; else it is made here.
    most_seconds : float
        Time on one core above which an amplitude is not computed.
    shape : Shape, optional
        A shape of which the distances are wanted, for the embeddings of its first seeds.

    Returns
    -------
    dict
        JSON values: ``step``; for ``hidden`` and ``output``, by term, ``amplitude`` and
        ``uncertainty``, one number a step, null where there is none; ``hidden_at``, the same of the
        hidden states over the depth, a list of numbers a step, one for each of the depths ``s``;
        ``notes``, why an amplitude is
        null of which theory gives one; ``identity``, the check of the kernels; ``scale``, the RMS
        of the limit's ``hidden`` states in the last layer, one number a step. With a shape,
        ``shape`` as `with_shape` gives it.

    Raises
    ------
    MemoryRefusedError
        If it would not fit in memory.
    PredictionError
        If the check fails.
    """
    problem = make_problem(experiment) if made is None else made
    # Differences of many small solutions and products of small matrices: the work of a CPU.
    arithmetic = Arithmetic(devices.dtype(experiment.numerics.precision), "cpu")
    limits = Limits(make_dynamics(experiment, problem), limit_gram_root(problem), arithmetic)
    # What limits of finite D stand for.
    gaussian = experiment.model.initial_law == "gaussian"
    found = predict(
        limits,
        Plan.of_attributes(dmft.attrs),
        most_seconds,
        most_bytes=devices.MEMORY_SHARE * devices.memory("cpu"),
        rotated=problem.input_rotation is not None,
        shaped=Shaped(shape, _roots(problem, experiment.seed, shape))
        if shape and gaussian
        else None,
    )
    steps = experiment.training.steps
    identity = found.identity
    values = {
        "step": list(range(steps)),
        **{name: _table(getattr(found, name), (steps,)) for name in PREDICTED},
        "hidden_at": {"s": DEPTHS.tolist(), **_table(found.hidden_at, (steps, len(DEPTHS)))},
        "scale": {"hidden": _scale(limits, dmft)},
        "notes": found.notes,
        "identity": identity
        and {
            "drift": identity.drift,
            "deviation": identity.deviation,
            "stderr": identity.stderr,
        },
    }
    return with_shape(values, shape, found.distances) if shape else values


def _roots(problem: Problem, root_seed: int, shape: Shape) -> list[np.ndarray]:
    """Give the Gram roots of the embeddings of the first seeds."""
    return [
        gram_root(problem, embedding_rows(problem, root_seed, seed, shape.embed_dim))
        for seed in range(cost.SHAPE_SEEDS)
    ]


def _scale(limits: Limits, dmft: xr.Dataset) -> list[float]:
    """Give the RMS over coordinates and rows of the limit's states in the last layer."""
    last = dmft["hidden_coef"].isel(node=-1).values @ limits.limit_root
    squares = np.square(last).sum(axis=-1)
    return np.sqrt(squares.reshape(len(squares), -1).mean(axis=1)).tolist()


def _table(amplitudes: Mapping[str, Amplitude | None], shape: tuple[int, ...]) -> dict[str, Any]:
    """Lay amplitudes of a shape out by term."""
    nothing = np.full(shape, None).tolist()
    rows = {
        term: (nothing, nothing) if found is None else _columns(found)
        for term, found in amplitudes.items()
    }
    return {
        term: dict(zip(("amplitude", "uncertainty"), row, strict=True))
        for term, row in rows.items()
    }


def _columns(amplitude: Amplitude) -> tuple[Numbers, Numbers]:
    """Give values and uncertainties for JSON, both null where one of them is not finite."""
    known = amplitude.finite
    return _finite(amplitude.value, known), _finite(amplitude.uncertainty, known)


def _finite(values: np.ndarray, known: np.ndarray | None = None) -> Numbers:
    """Give numbers for JSON, null where they are not known or not finite."""
    numbers = values.astype(object)
    numbers[~(np.isfinite(values) if known is None else known)] = None
    listed: Numbers = numbers.tolist()
    return listed


def with_shape(
    predicted: Mapping[str, Any], shape: Shape, found: Mapping[str, Distance] | None = None
) -> dict[str, Any]:
    """Add the predicted distances of networks of a shape from the DMFT limit.

    Parameters
    ----------
    predicted : mapping
        What `prediction` gives without a shape.
    shape : Shape
        L, M, D.
    found : mapping of str to Distance, optional
        The distances beyond the leading order.

    Returns
    -------
    dict
        The same with ``shape``: ``depth``, ``width``, ``embed_dim``; for ``hidden`` and ``output``
        the RMS ``distance`` and its ``uncertainty`` at every step, and the two parts of which it
        is the root-sum-square, ``limit``, that of the limit of infinite width at this depth and
        embedding dimension, and ``noise`` of the units; and ``leading``, what the amplitudes alone
        give: ``distance``, ``uncertainty``, ``share``, by term, of the square, and ``without``, the
        terms that are known at no step and count as zero; and for ``hidden_at``, at the depths
        ``s``, ``leading`` of the hidden states over the depth. Numbers are null at steps at which
        they are not known.
    """
    added: dict[str, Any] = dict(shape._asdict())
    for name in PREDICTED:
        leading = _leading(predicted[name], name, shape)
        best = {"distance": leading["distance"], "uncertainty": leading["uncertainty"]}
        nothing: Numbers = [None] * len(leading["distance"])
        parts = dict.fromkeys(("limit", "noise"), nothing)
        if found and name in found:
            distance = found[name]
            best = dict(zip(best, _columns(distance.whole), strict=True))
            parts = {part: _finite(getattr(distance, part)) for part in parts}
        added[name] = {**best, **parts, "leading": leading}
    along = predicted["hidden_at"]
    added["hidden_at"] = {"s": along["s"], "leading": _leading(along, "hidden", shape)}
    return {**predicted, "shape": added}


def _leading(table: Mapping[str, Any], name: str, shape: Shape) -> dict[str, Any]:
    """Add up the terms of the law, as root-sum-square."""
    sizes = np.array(shape)
    parts, errors, without = {}, [], []
    for term in law_of("finite-dmft", name).terms:
        value, error = (
            np.array(table[term][part], dtype=float) for part in ("amplitude", "uncertainty")
        )
        if not np.isfinite(value).any():
            without.append(term)
            continue
        factor = float(variable_values(term, sizes))
        parts[term] = np.square(factor * value)
        errors.append(parts[term] ** 0.5 * factor * error)
    zeros = np.zeros(value.shape)
    square = sum(parts.values(), zeros)
    distance = np.sqrt(square)
    spread = np.sqrt(sum((error**2 for error in errors), zeros))

    def over(values: np.ndarray, by: np.ndarray) -> Numbers:
        return _finite(np.divide(values, by, out=np.zeros_like(by), where=by != 0))

    return {
        "distance": _finite(distance),
        "uncertainty": over(spread, distance),
        "share": {term: over(part, square) for term, part in parts.items()},
        "without": without,
    }
