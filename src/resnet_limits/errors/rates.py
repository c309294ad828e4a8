"""Exponents and amplitudes of the distances, with intervals over seeds.

Per shape the error is the root mean square over its seeds. A power law is fitted by least squares
on logs. A law of several terms is fitted as a whole, also on logs, with the terms in quadrature:
the parts are a bias (1/L, D/(LM)) and centred noise of independent origin (sqrt(D/(LM)),
1/sqrt(LM), 1/sqrt(D)), whose mean squares add (theory.md, "The claim under test").
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from resnet_limits.errors.samples import (
    OBSERVABLES,
    Array,
    Draws,
    Study,
    interval_method,
    make_study,
    regress,
    resample,
    t_quantile,
    wider,
)
from resnet_limits.kinds import SIZES
from resnet_limits.laws import POWERS, Law, law_of, variable_values

logger = logging.getLogger(__name__)

Fit = dict[str, Any]

_MIN_VALUES = 3
"""A power through fewer distinct values is not tested by anything."""
_BINS_PER_DECADE = 4
_MIN_SHAPES_IN_BIN = 3
_COLLINEAR = 1e-6
_WIDER = (
    "on each side the wider of the bootstrap over whole seeds and a t interval from the residuals "
    "of the {}"
)
_MAX_ITERATIONS = 200


def fit_rates(
    errors: Mapping[str, xr.Dataset], steps: Sequence[int], root_seed: int
) -> dict[str, dict[str, dict[str, Fit]]]:
    """Fit every pair and observable at some steps.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The groups of an errors store.
    steps : sequence of int
        Numbers of gradient steps.
    root_seed : int
        Root of the bootstrap's random stream.

    Returns
    -------
    dict
        ``[pair][observable][str(step)]`` is what `fit` returns. Holds JSON values only.
    """
    result: dict[str, dict[str, dict[str, Fit]]] = {}
    for pair, dataset in errors.items():
        loaded = dataset.load()
        result[pair] = {
            observable: {
                str(step): fit(loaded, pair, observable, step, root_seed) for step in steps
            }
            for observable in OBSERVABLES
        }
        logger.info("%s: rates fitted at step %s", pair, " and ".join(map(str, steps)))
    return result


def fit(dataset: xr.Dataset, pair: str, observable: str, step: int, root_seed: int = 0) -> Fit:
    """Fit the law of one distance at one step.

    Parameters
    ----------
    dataset : Dataset
        One group of an errors store.
    pair, observable : str
        Keys of `LAWS` and `OBSERVABLES`.
    step : int
        Number of gradient steps.
    root_seed : int
        Root of the bootstrap's random stream.

    Returns
    -------
    dict
        JSON values. ``variable``, ``model``, ``exponent``, ``theory``, ``amplitude`` and
        ``amplitude_at_theory`` (with the exponent of theory), each with its 95 % interval under
        ``..._interval``; ``terms`` for laws of several terms; ``individual`` exponents in each
        size; ``fixed_budget`` for finite-dmft; ``cells`` by what became of them; ``reason`` where
        there is no fit. What could not be found is None, never NaN.
    """
    law = law_of(pair, observable)
    result: Fit = {
        "variable": law.name,
        "model": law.model,
        "exponent": None,
        "exponent_interval": None,
        "theory": law.theory,
        "amplitude": None,
        "amplitude_interval": None,
        "amplitude_at_theory": None,
        "amplitude_at_theory_interval": None,
    }
    study = make_study(dataset, observable, step)
    result |= {
        "cells": study.cells,
        "shapes": len(study.sizes),
        "seeds": study.seeds,
        "interval_method": interval_method(study),
        "residual": None,
        "range": None,
        "sizes": {name: _range(column) for name, column in zip(SIZES, study.sizes.T, strict=True)},
        "individual": dict.fromkeys(SIZES),
    }
    if not study.seeds:
        result["reason"] = "no cell is left to fit"
        if law.terms:
            result["terms"] = None
        if law.budget is not None:
            result["fixed_budget"] = _no_budget(law.budget, result["reason"])
        return result
    draws = resample(study.strata, root_seed)
    if law.variable is not None and law.theory is not None:
        result |= _power_fit(study, draws, law.variable, law.theory)
    if law.terms:
        found = _joint_fit(study, draws, law.terms)
        if law.variable is not None:
            # The exponent stands beside the terms, and the residual and reason are its own.
            found["terms_residual"] = found.pop("residual", None)
            if "reason" in found:
                found["reason"] = result.get("reason", f"terms: {found['reason']}")
        result |= found
    result["individual"] = _individual_fits(study, draws, law)
    if law.budget is not None:
        result["fixed_budget"] = _budget_fit(study, draws, law.budget)
    values: Fit = json_values(result)
    return values


def _range(values: NDArray[Any]) -> list[Any] | None:
    return [values.min(), values.max()] if len(values) else None


def json_values(value: Any) -> Any:
    """Turn NumPy values into JSON ones, and numbers that are not finite into None."""
    if isinstance(value, dict):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


# --- power laws -----------------------------------------------------------------------------------


def _distinct(values: NDArray[Any]) -> int:
    """Count values that differ by more than rounding; logs or integers."""
    return len(np.unique(np.round(values, 9)))


def _exponentiated(interval: list[float] | None) -> list[float] | None:
    return None if interval is None else [math.exp(bound) for bound in interval]


def _power_fit(study: Study, draws: Draws, variable: str, theory: float) -> Fit:
    x = variable_values(variable, study.sizes)
    log_x = np.log(x)
    no_columns = np.empty((len(x), 0))
    fixed = regress(study, draws, no_columns, theory * log_x)
    found: Fit = {
        "amplitude_at_theory": math.exp(fixed.values[0, 0]),
        "amplitude_at_theory_interval": _exponentiated(fixed.interval(0)),
        "range": _range(x),
    }
    count = _distinct(log_x)
    if count < _MIN_VALUES:
        reason = f"needs {_MIN_VALUES} distinct values of {variable}, has {count}"
        return {**found, "reason": reason}
    free = regress(study, draws, log_x[:, None])
    return {
        **found,
        "exponent": free.values[0, 0],
        "exponent_interval": free.interval(0),
        "amplitude": math.exp(free.values[0, 1]),
        "amplitude_interval": _exponentiated(free.interval(1)),
        "residual": free.residual,
    }


def _individual_fits(study: Study, draws: Draws, law: Law) -> dict[str, Fit | None]:
    """Exponents in each size, the others held fixed, by multiple regression."""
    result: dict[str, Fit | None] = dict.fromkeys(SIZES)
    logs = {
        name: np.log(study.sizes[:, k].astype(float))
        for k, name in enumerate(SIZES)
        if name in law.depends and _distinct(study.sizes[:, k]) > 1
    }
    columns = np.stack(list(logs.values()), axis=1) if logs else np.empty((len(study.sizes), 0))
    if len(columns) <= columns.shape[1] + 1 or _collinear(
        np.column_stack([columns, np.ones(len(columns))])
    ):
        return result
    fitted = regress(study, draws, columns)
    for k, (name, values) in enumerate(logs.items()):
        if _distinct(values) < _MIN_VALUES:
            continue
        power = None if law.variable is None else POWERS[law.variable][SIZES.index(name)]
        result[name] = {
            "exponent": fitted.values[0, k],
            "exponent_interval": fitted.interval(k),
            "theory": None if power is None or law.theory is None else power * law.theory,
        }
    return result


def _collinear(columns: Array) -> bool:
    scaled = columns / np.linalg.norm(columns, axis=0)
    singular = np.linalg.svd(scaled, compute_uv=False)
    return bool(singular[-1] < _COLLINEAR * singular[0])


# --- laws of several terms ------------------------------------------------------------------------


def _joint_fit(study: Study, draws: Draws, terms: Sequence[str]) -> Fit:
    """Fit error^2 = sum of (amplitude x variable)^2 on logs."""
    found: Fit = {"terms": None}
    values = {name: variable_values(name, study.sizes) for name in terms}
    constant = [name for name in terms if _distinct(np.log(values[name])) < 2]
    varying = [name for name in terms if name not in constant]
    columns = [values[name] ** 2 for name in varying]
    if constant:
        # A term that is the same for all shapes cannot be told from anything else that is: its
        # place is held by a floor, which keeps the other terms from taking over its share.
        columns.append(np.ones(len(study.sizes)))
        found["left_out"] = {
            name: f"{name} has one value only; part of the floor" for name in constant
        }
    if not varying:
        return {**found, "reason": "all variables have one value only"}
    X = np.stack(columns, axis=1)
    if len(X) <= X.shape[1]:
        reason = f"{len(X)} shapes are too few for {X.shape[1]} amplitudes"
        return {**found, "reason": reason}
    if _collinear(X / np.exp(2 * study.log_errors)[:, None]):
        return {**found, "reason": "these shapes do not tell the terms apart"}
    squares, residuals = _fit_nonnegative(study, draws.weights, X)
    intervals = _amplitude_intervals(study, draws, X, squares, residuals)
    amplitudes = np.sqrt(squares[0])
    found["terms"] = {}
    for name, amplitude, interval in zip(varying, amplitudes, intervals, strict=False):
        detected = interval[0] > 0
        found["terms"][name] = {
            "amplitude": amplitude,
            "amplitude_interval": interval,
            "detected": detected,
        }
        if not detected:
            found["terms"][name]["reason"] = "not detected: the interval reaches 0"
    if study.seeds > 1:
        found["terms_interval_method"] = _WIDER.format("shapes")
    if constant:
        found["floor"] = {"amplitude": amplitudes[-1], "amplitude_interval": intervals[-1]}
    return {**found, "residual": np.sqrt(np.mean(residuals**2))}


def _amplitude_intervals(
    study: Study, draws: Draws, X: Array, squares: Array, residuals: Array
) -> list[list[float]]:
    """Intervals of amplitudes, the roots of squares (rows, terms).

    On each side the wider end of what seeds and what residuals say: a law that is not exact over
    the range of shapes misplaces small terms in every seed alike, so that seeds alone would show
    a term as absent for certain that is merely covered by the misfit of a larger one.
    """
    degrees = len(X) - X.shape[1]
    # Derivative of the log error in the squared amplitudes.
    slopes = 0.5 * X / (X @ squares[0])[:, None]
    variance = (residuals**2).sum() / degrees
    half = t_quantile(degrees) * np.sqrt(
        variance * np.diag(np.linalg.pinv(slopes.T @ slopes, hermitian=True))
    )
    intervals = [
        [math.sqrt(max(0.0, square - width)), math.sqrt(square + width)]
        for square, width in zip(squares[0], half, strict=True)
    ]
    return [
        wider(interval, draws.interval(column, 0.0))
        for interval, column in zip(intervals, np.sqrt(squares).T, strict=True)
    ]


def _fit_nonnegative(study: Study, weights: Array, X: Array) -> tuple[Array, Array]:
    """Minimise the sum of (log X A - log error^2)^2 over A >= 0, for all resamples at once.

    The estimate is the better of two descents; the resamples start from it.

    Parameters
    ----------
    X : ndarray, shape (shapes, terms)
        Squared variables.

    Returns
    -------
    squares : ndarray, shape (rows, terms)
        A, the squared amplitudes.
    residuals : ndarray, shape (shapes,)
        log error - log model of the first row.
    """
    # In units in which every term alone would explain the errors on average.
    unit = np.exp(np.mean(2 * study.log_errors[:, None] - np.log(X), axis=0))
    scaled = X * unit
    terms = X.shape[1]
    products = (scaled[:, :, None] * scaled[:, None, :]).reshape(len(X), -1)
    target = 2 * study.log_errors[None]
    inverse = np.exp(-target)
    relative = _nonnegative(((inverse**2) @ products).reshape(1, terms, terms), inverse @ scaled)
    even = np.full((1, terms), 1.0 / terms)
    everywhere = np.ones_like(target, dtype=bool)
    # A start needs a positive model for every shape; a little of every term sees to that.
    estimate, _ = min(
        (
            _descend(start, scaled, products, target, everywhere, 1e-13)
            for start in (relative + 1e-3 * even, even)
        ),
        key=lambda fit: float(fit[1][0]),
    )
    squares = np.empty((len(weights), terms))
    for rows, logs, valid in study.resampled(weights):
        start = np.repeat(estimate + 1e-3 * even, len(logs), axis=0)
        squares[rows], _ = _descend(start, scaled, products, 2 * logs, valid, 1e-8)
    squares[0] = estimate[0]
    residuals = study.log_errors - 0.5 * np.log(scaled @ squares[0])
    return squares * unit, residuals


def _descend(
    start: Array,
    X: Array,
    products: Array,
    target: Array,
    valid: NDArray[np.bool_],
    tolerance: float,
) -> tuple[Array, Array]:
    """Descend by Gauss-Newton steps from one start.

    Linearised in A, each step is a nonnegative least-squares problem, whose solution is a
    direction of descent for the step length.

    Parameters
    ----------
    start : ndarray, shape (rows, terms)
    X : ndarray, shape (shapes, terms)
    products : ndarray, shape (shapes, terms^2)
        Products of the columns of X.
    target : ndarray, shape (rows, shapes)
        Logs of squared errors, counted where `valid`.
    tolerance : float
        Relative decrease of the objective below which to stop.

    Returns
    -------
    A : ndarray, shape (rows, terms)
    objective : ndarray, shape (rows,)
    """
    terms = X.shape[1]
    A = start.copy()
    objective = _misfit(A @ X.T, target, valid)
    for _ in range(_MAX_ITERATIONS):
        model = A @ X.T
        inverse = np.where(valid, 1.0 / model, 0.0)
        aim = inverse * (1.0 - np.log(model) + target)
        matrix = ((inverse**2) @ products).reshape(-1, terms, terms)
        direction = _nonnegative(matrix, aim @ X) - A
        change = direction @ X.T
        before = objective
        length = np.ones(len(A))
        for _ in range(12):
            trial = _misfit(model + length[:, None] * change, target, valid)
            if (trial <= before).all():
                break
            length = np.where(trial <= before, length, 0.5 * length)
        taken = trial <= before
        A = A + np.where(taken, length, 0.0)[:, None] * direction
        objective = np.where(taken, trial, before)
        if np.all(before - objective <= tolerance * before):
            break
    return A, objective


def _misfit(model: Array, target: Array, valid: NDArray[np.bool_]) -> Array:
    """Sum of squared differences of logs; infinite where the model has no log."""
    positive = model > 0
    gap = np.where(valid, np.log(np.where(positive, model, 1.0)) - target, 0.0)
    return np.where((positive | ~valid).all(axis=1), (gap**2).sum(axis=1), np.inf)


def _nonnegative(matrix: Array, right: Array) -> Array:
    """Minimise A' matrix A / 2 - right A over A >= 0, by trying every set of positive entries.

    Parameters
    ----------
    matrix : ndarray, shape (rows, n, n)
        Positive semi-definite; n is at most 5.
    right : ndarray, shape (rows, n)

    Returns
    -------
    ndarray, shape (rows, n)
    """
    rows, n = right.shape
    best, lowest = np.zeros((rows, n)), np.zeros(rows)
    # Where resampling makes columns equal, the smallest solution is as good as any.
    ridge = 1e-12 * np.trace(matrix, axis1=1, axis2=2)[:, None, None] * np.eye(n) / n
    regular = matrix + ridge
    for size in range(1, n + 1):
        for chosen in combinations(range(n), size):
            index = np.array(chosen)
            part = np.linalg.solve(regular[:, index[:, None], index], right[:, index, None])[..., 0]
            # At the minimum over a subspace the objective is minus half of right A.
            value = -0.5 * (right[:, index] * part).sum(axis=1)
            accept = (part >= 0).all(axis=1) & (value < lowest)
            lowest = np.where(accept, value, lowest)
            candidate = np.zeros((rows, n))
            candidate[:, index] = part
            best[accept] = candidate[accept]
    return best


# --- best shapes for a budget ---------------------------------------------------------------------


def _no_budget(theory: float, reason: str) -> Fit:
    return {
        "exponent": None,
        "exponent_interval": None,
        "theory": theory,
        "points": [],
        "reason": reason,
    }


def _budget_fit(study: Study, draws: Draws, theory: float) -> Fit:
    """Fit the error of the best shape for each P = L M D as a power of P.

    Shapes are put into bins of a quarter decade of P. A bin counts if its best shape has neither
    the smallest nor the largest embedding dimension in the bin: at the edge of what was measured,
    the best shape measured says nothing of the best there is.
    """
    parameters = study.sizes.astype(float).prod(axis=1)
    embed_dims = study.sizes[:, SIZES.index("embed_dim")]
    label = np.floor(_BINS_PER_DECADE * np.log10(parameters) + 1e-9).astype(int)
    bins = [np.flatnonzero(label == value) for value in np.unique(label)]
    bins = [members for members in bins if len(members) >= _MIN_SHAPES_IN_BIN]
    if len(bins) < _MIN_VALUES:
        return _no_budget(
            theory,
            f"only {len(bins)} bins of P hold {_MIN_SHAPES_IN_BIN} shapes or more; "
            f"{_MIN_VALUES} needed",
        )
    log_parameters = np.log(parameters)
    slopes = np.full(len(draws.weights), np.nan)
    for rows, logs, valid in study.resampled(draws.weights):
        open_ended = np.where(valid, logs, np.inf)
        best = np.stack([m[open_ended[:, m].argmin(axis=1)] for m in bins], axis=1)
        error = np.take_along_axis(open_ended, best, axis=1)
        smallest = np.array([embed_dims[m].min() for m in bins])
        largest = np.array([embed_dims[m].max() for m in bins])
        counts = (embed_dims[best] > smallest) & (embed_dims[best] < largest) & np.isfinite(error)
        slopes[rows] = _slopes(log_parameters[best], np.where(counts, error, 0.0), counts)
        if rows.start == 0:
            first = best[0][counts[0]]
    points = [
        {
            "parameters": parameters[k],
            "error": math.exp(study.log_errors[k]),
            **{name: study.sizes[k, axis] for axis, name in enumerate(SIZES)},
        }
        for k in first
    ]
    if not np.isfinite(slopes[0]):
        reason = (
            f"in {len(first)} of {len(bins)} bins of P the best shape lies between the smallest "
            f"and the largest D; {_MIN_VALUES} needed"
        )
        return {**_no_budget(theory, reason), "points": points}
    x, y = log_parameters[first], study.log_errors[first]
    line = stats.linregress(x, y)
    interval, method = _budget_interval(slopes, float(line.stderr), len(x) - 2, draws)
    return {
        "exponent": slopes[0],
        "exponent_interval": interval,
        "interval_method": method,
        "theory": theory,
        "points": points,
        "bins": {"total": len(bins), "used": len(first)},
        "residual": np.sqrt(np.mean((y - line.intercept - line.slope * x) ** 2)),
    }


def _slopes(x: Array, y: Array, counts: NDArray[np.bool_]) -> Array:
    """Slopes of y on x (rows, bins) where they count; NaN with fewer than three."""
    number = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    centred = np.where(counts, x - (x * counts).sum(axis=1, keepdims=True) / number, 0.0)
    spread = (centred**2).sum(axis=1)
    enough = (counts.sum(axis=1) >= _MIN_VALUES) & (spread > 0)
    return np.where(enough, (centred * y).sum(axis=1) / np.where(enough, spread, 1.0), np.nan)


def _budget_interval(
    slopes: Array, stderr: float, degrees: int, draws: Draws
) -> tuple[list[float], str]:
    """Take the wider end, on each side, of what seeds and what bins say.

    Sizes that were measured at few values make the best errors wander about their law; this is no
    matter of seeds, but shows in the residuals.
    """
    half = t_quantile(degrees) * stderr
    interval = [slopes[0] - half, slopes[0] + half]
    by_seeds = draws.interval(slopes)
    if by_seeds is None:
        return interval, "t interval from the residuals of the bins"
    return (
        wider(interval, by_seeds),
        _WIDER.format("bins") + "; every resample chooses its best shapes anew",
    )
