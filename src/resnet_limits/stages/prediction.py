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
from resnet_limits.limits.amplitudes.prediction import predict
from resnet_limits.limits.models import Arithmetic, Limits
from resnet_limits.limits.plan import Plan
from resnet_limits.problem import Problem, limit_gram_root, make_problem


def prediction(
    experiment: Experiment,
    dmft: xr.Dataset,
    made: Problem | None = None,
    most_seconds: float = cost.MOST_SECONDS,
) -> dict[str, Any]:
    """Predict the amplitudes of all terms, at all steps.

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

    Returns
    -------
    dict
        JSON values: ``step``; for ``hidden`` and ``output``, by term, ``amplitude`` and
        ``uncertainty``, one number a step, null where there is none; ``notes``, why an amplitude is
        null of which theory gives one; ``identity``, the check of the kernels; ``scale``, the RMS
        of the limit's ``hidden`` states in the last layer, one number a step.

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
    found = predict(
        limits,
        Plan.of_attributes(dmft.attrs),
        most_seconds,
        most_bytes=devices.MEMORY_SHARE * devices.memory("cpu"),
        rotated=problem.input_rotation is not None,
    )
    steps = experiment.training.steps
    identity = found.identity
    return {
        "step": list(range(steps)),
        **{name: _table(getattr(found, name), steps) for name in PREDICTED},
        "scale": {"hidden": _scale(limits, dmft)},
        "notes": found.notes,
        "identity": identity
        and {
            "drift": identity.drift,
            "deviation": identity.deviation,
            "stderr": identity.stderr,
        },
    }


def _scale(limits: Limits, dmft: xr.Dataset) -> list[float]:
    """Give the RMS over coordinates and rows of the limit's states in the last layer."""
    last = dmft["hidden_coef"].isel(node=-1).values @ limits.limit_root
    squares = np.square(last).sum(axis=-1)
    return np.sqrt(squares.reshape(len(squares), -1).mean(axis=1)).tolist()


def _table(amplitudes: Mapping[str, Amplitude | None], steps: int) -> dict[str, Any]:
    """Lay amplitudes out by term."""
    nothing = [None] * steps
    return {
        term: {
            "amplitude": nothing if found is None else _finite(found.value, found.finite),
            "uncertainty": nothing if found is None else _finite(found.uncertainty, found.finite),
        }
        for term, found in amplitudes.items()
    }


def _finite(values: np.ndarray, finite: np.ndarray) -> list[float | None]:
    """Give numbers for JSON, null where they are not finite."""
    return [float(value) if good else None for value, good in zip(values, finite, strict=True)]


def with_shape(predicted: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Add the predicted distances of networks of a shape from the DMFT limit.

    Parameters
    ----------
    predicted : mapping
        What `prediction` returned, or its JSON.
    shape : Shape
        L, M, D.

    Returns
    -------
    dict
        The same with ``shape``: ``depth``, ``width``, ``embed_dim``; for ``hidden`` and ``output``
        the RMS ``distance`` and its ``uncertainty`` at every step, ``share``, by term, of its
        square, null at steps at which a term is not finite, and ``without``, the terms that are
        known at no step and count as zero.
    """
    sizes = np.array(shape)
    added: dict[str, Any] = dict(shape._asdict())
    for name in PREDICTED:
        parts, errors, without = {}, [], []
        for term in law_of("finite-dmft", name).terms:
            value, error = (
                np.array(predicted[name][term][part], dtype=float)
                for part in ("amplitude", "uncertainty")
            )
            if not np.isfinite(value).any():
                without.append(term)
                continue
            factor = float(variable_values(term, sizes))
            parts[term] = np.square(factor * value)
            errors.append(parts[term] ** 0.5 * factor * error)
        zeros = np.zeros(len(predicted["step"]))
        square = sum(parts.values(), zeros)
        distance = np.sqrt(square)
        spread = np.sqrt(sum((error**2 for error in errors), zeros))

        def over(values: np.ndarray, by: np.ndarray) -> list[float | None]:
            ratio = np.divide(values, by, out=np.zeros_like(by), where=by != 0)
            return _finite(ratio, np.isfinite(ratio))

        added[name] = {
            "distance": _finite(distance, np.isfinite(distance)),
            "uncertainty": over(spread, distance),
            "share": {term: over(part, square) for term, part in parts.items()},
            "without": without,
        }
    return {**predicted, "shape": added}
