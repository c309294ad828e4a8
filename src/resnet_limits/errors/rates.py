"""Exponents and amplitudes of the distances, with intervals over seeds.

Per shape the mean square over its seeds is taken, and the law of the distance (`laws`) fitted to
it together with the known noise of the limits (`likelihood`): a power of one variable, or several
terms, added as root-sum-square.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.cells import Study, make_study
from resnet_limits.errors.budget import fit_budget, no_budget
from resnet_limits.errors.intervals import Draws, interval_method, resample, strata
from resnet_limits.errors.likelihood import (
    Fitted,
    UnfittableError,
    collinear,
    fit_power,
    fit_terms,
)
from resnet_limits.errors.resolution import needed_tolerance, outstanding, warning
from resnet_limits.kinds import SIZES
from resnet_limits.laws import BIASES, OBSERVABLES, POWERS, Law, law_of, variable_values

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Fit = dict[str, Any]

_MIN_VALUES = 3
"""A power through fewer distinct values is not tested by anything."""


def fit_rates(
    errors: Mapping[str, xr.Dataset],
    steps: Sequence[int],
    root_seed: int,
    limit_tolerance: float | None = None,
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
    limit_tolerance : float, optional
        The tolerance that the limits were solved to, to say which would resolve all cells.

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
                str(step): fit(loaded, pair, observable, step, root_seed, limit_tolerance)
                for step in steps
            }
            for observable in OBSERVABLES
        }
        logger.info("%s: rates fitted at step %s", pair, " and ".join(map(str, steps)))
    return result


def fit(
    dataset: xr.Dataset,
    pair: str,
    observable: str,
    step: int,
    root_seed: int = 0,
    limit_tolerance: float | None = None,
) -> Fit:
    """Fit the law of one distance at one step.

    Parameters
    ----------
    dataset : Dataset
        One group of an errors store.
    pair, observable : str
        Keys of `LAWS`, and one of `OBSERVABLES`.
    step : int
        Number of gradient steps.
    root_seed : int
        Root of the bootstrap's random stream.
    limit_tolerance : float, optional
        The tolerance that the limits were solved to.

    Returns
    -------
    dict
        JSON values. ``variable``, ``model``, ``exponent``, ``theory``, ``amplitude`` and
        ``amplitude_at_theory`` (with the exponent of theory), each with its 95 % interval under
        ``..._interval``; ``terms`` for laws of several terms; ``individual`` exponents in each
        size; ``fixed_budget`` for finite-dmft; ``cells`` by what became of them; ``noise``, the
        square of the limits' error relative to what is expected; ``warning`` if cells are below
        resolution, and ``limit_tolerance_needed``, which would resolve them; ``reason`` where
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
        "noise": None,
        "warning": None,
        "limit_tolerance_needed": None,
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
            result["fixed_budget"] = no_budget(law.budget, result["reason"])
        return result
    needed = needed_tolerance(study, limit_tolerance)
    result |= {"warning": warning(study, needed), "limit_tolerance_needed": needed}
    draws = resample(strata(study.exists), root_seed)
    if law.variable is not None and law.theory is not None:
        result |= _power_fit(study, draws, law)
    if law.terms:
        found = _joint_fit(study, draws, law.terms)
        if law.variable is not None:
            # The exponent stands beside the terms, and the residual, noise and reason are its own.
            found["terms_residual"] = found.pop("residual", None)
            found["terms_noise"] = found.pop("noise", None)
            if "reason" in found:
                found["reason"] = result.get("reason", f"terms: {found['reason']}")
        result |= found
    result["individual"] = _individual_fits(study, draws, law)
    if law.budget is not None:
        result["fixed_budget"] = fit_budget(study, draws, law.budget)
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


def distinct(values: NDArray[Any]) -> int:
    """Count values that differ by more than rounding; logs or integers."""
    return len(np.unique(np.round(values, 9)))


def exponentiated(interval: list[float] | None) -> list[float] | None:
    """Take an interval of a log to that of what it is the log of."""
    # Where next to nothing is known the upper end may be out of range.
    return None if interval is None else [float(np.exp(min(bound, 700.0))) for bound in interval]


def _power_fit(study: Study, draws: Draws, law: Law) -> Fit:
    variable, theory = law.variable or "", law.theory or 0.0
    bias = law.is_bias
    x = variable_values(variable, study.sizes)
    log_x = np.log(x)
    seen = outstanding(study)
    found: Fit = {"range": _range(x)}
    if not seen.any():
        return {**found, "reason": "no shape stands out from the limits' standard error"}
    try:
        fixed = fit_power(study, draws, np.empty((len(x), 0)), theory * log_x, bias=bias)
    except UnfittableError as why:
        return {**found, "reason": str(why)}
    found |= {
        "amplitude_at_theory": math.exp(fixed.values[0]),
        "amplitude_at_theory_interval": exponentiated(fixed.interval(0)),
        "noise": fixed.noise,
    }
    count = distinct(log_x)
    if count < _MIN_VALUES:
        reason = f"too few distinct values of {variable}: {count} of the {_MIN_VALUES} needed"
        return {**found, "reason": reason}
    count = distinct(log_x[seen])
    if count < _MIN_VALUES:
        return {**found, "reason": _too_noisy(f"values of {variable}", count, _MIN_VALUES)}
    free = fit_power(study, draws, log_x[:, None], bias=bias)
    return {
        **found,
        "exponent": free.values[0],
        "exponent_interval": free.interval(0),
        "amplitude": math.exp(free.values[1]),
        "amplitude_interval": exponentiated(free.interval(1)),
        "residual": free.residual,
        "noise": free.noise,
    }


def _too_noisy(what: str, count: int, needed: int) -> str:
    return (
        f"too few {what} stand out from the limits' standard error: {count} of the {needed} needed"
    )


def _individual_fits(study: Study, draws: Draws, law: Law) -> dict[str, Fit | None]:
    """Exponents in each size, the others held fixed, by multiple regression."""
    result: dict[str, Fit | None] = dict.fromkeys(SIZES)
    logs = {
        name: np.log(study.sizes[:, k].astype(float))
        for k, name in enumerate(SIZES)
        if name in law.depends and distinct(study.sizes[:, k]) > 1
    }
    columns = np.stack(list(logs.values()), axis=1) if logs else np.empty((len(study.sizes), 0))
    seen = outstanding(study)
    if seen.sum() <= columns.shape[1] + 1 or collinear(
        np.column_stack([columns, np.ones(len(columns))])[seen]
    ):
        return result
    try:
        fitted = fit_power(study, draws, columns, bias=law.is_bias)
    except UnfittableError:
        return result
    for k, (name, values) in enumerate(logs.items()):
        if distinct(values[seen]) < _MIN_VALUES:
            continue
        power = None if law.variable is None else POWERS[law.variable][SIZES.index(name)]
        result[name] = {
            "exponent": fitted.values[k],
            "exponent_interval": fitted.interval(k),
            "theory": None if power is None or law.theory is None else power * law.theory,
        }
    return result


# --- laws of several terms ------------------------------------------------------------------------


def _joint_fit(study: Study, draws: Draws, terms: Sequence[str]) -> Fit:
    """Fit error^2 = sum of (amplitude x variable)^2."""
    found: Fit = {"terms": None}
    values = {name: variable_values(name, study.sizes) for name in terms}
    constant = [name for name in terms if distinct(np.log(values[name])) < 2]
    varying = [name for name in terms if name not in constant]
    columns = [values[name] ** 2 for name in varying]
    if constant:
        # A term that is the same for all shapes cannot be told from anything else that is: its
        # place is held by a floor, which keeps the other terms from taking over its share.
        columns.append(np.ones(len(study.sizes)))
        found["left_out"] = {
            name: f"{name} has only one value, so it is part of the floor" for name in constant
        }
    if not varying:
        return {**found, "reason": "every variable has only one value"}
    X = np.stack(columns, axis=1)
    if len(X) <= X.shape[1]:
        reason = f"too few shapes ({len(X)}) for the number of amplitudes ({X.shape[1]})"
        return {**found, "reason": reason}
    seen = outstanding(study)
    if seen.sum() <= X.shape[1]:
        return {**found, "reason": _too_noisy("shapes", int(seen.sum()), X.shape[1] + 1)}
    if collinear((X / study.mean_squares[:, None])[seen]):
        return {**found, "reason": "these shapes do not tell the terms apart"}
    bias = [name in BIASES for name in varying]
    if constant:
        # The floor is a bias where any of the terms that it stands for is.
        bias.append(not BIASES.isdisjoint(constant))
    try:
        fitted = fit_terms(study, draws, X, np.array(bias))
    except UnfittableError as why:
        return {**found, "reason": str(why)}
    found["terms"] = {}
    for k, name in enumerate(varying):
        term = _amplitude(fitted, k)
        term["detected"] = term["amplitude_interval"][0] > 0
        if not term["detected"]:
            term["reason"] = "not detected: the interval reaches 0"
        found["terms"][name] = term
    if constant:
        found["floor"] = _amplitude(fitted, len(varying))
    return {**found, "residual": fitted.residual, "noise": fitted.noise}


def _amplitude(fitted: Fitted, column: int) -> Fit:
    """Give the root of a squared amplitude, with its interval."""
    square = max(0.0, fitted.values[column])
    low, high = fitted.interval(column, 0.0) or [0.0, math.inf]
    # A mean of few squares is skew; its cube root is not (Wilson and Hilferty). The end above is
    # taken so, as far as the term is seen at all.
    above = min(high / square - 1.0, 1.0) if square and math.isfinite(high) else 0.0
    high += square * ((1.0 + above / 3.0) ** 3 - 1.0 - above)
    return {
        "amplitude": math.sqrt(square),
        "amplitude_interval": [math.sqrt(low), math.sqrt(high)],
    }
