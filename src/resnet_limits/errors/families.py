"""How the error falls with P = L M D along families of shapes.

Along a family depth and embedding dimension are powers of P, so that every term of a law is one
too, and the slowest of them is the theory. Per shape the error is the root mean square over its
seeds; the exponent is the slope of its log on the log of the actual P, by weighted least squares,
and its interval comes from a bootstrap over whole seeds (`samples`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.config import Shape
from resnet_limits.errors.rates import Fit, json_values
from resnet_limits.errors.samples import (
    MIN_SEEDS,
    OBSERVABLES,
    Array,
    Draws,
    Study,
    interval_method,
    make_study,
    regress,
    resample,
)
from resnet_limits.kinds import SIZES
from resnet_limits.laws import POWERS, Law, law_of

logger = logging.getLogger(__name__)

RANGES = (0.0, 1e4)
"""Smallest nominal P of each fit: small shapes need not be where the law holds yet."""

_MIN_SHAPES = 3
"""A power through fewer points is not tested by anything."""


@dataclass(frozen=True)
class Family:
    """Shapes whose depth and embedding dimension are powers of P.

    Attributes
    ----------
    members : tuple of (float, Shape)
        Nominal P and the shape for it, which has nearly as many parameters.
    depth, embed_dim : float
        Exponents in P.
    """

    members: tuple[tuple[float, Shape], ...]
    depth: float
    embed_dim: float

    def exponent(self, powers: Sequence[float]) -> float:
        """Exponent in P of L^a M^b D^c, for the powers (a, b, c)."""
        sizes = (self.depth, 1.0 - self.depth - self.embed_dim, self.embed_dim)
        return math.fsum(power * size for power, size in zip(powers, sizes, strict=True))


def theory(family: Family, law: Law) -> dict[str, float]:
    """Give the exponent in P of each term of a law along a family."""
    if law.terms or law.variable is None:
        return {name: family.exponent(POWERS[name]) for name in law.terms}
    return {law.variable: (law.theory or 0.0) * family.exponent(POWERS[law.variable])}


def fit_families(
    errors: Mapping[str, xr.Dataset],
    families: Mapping[str, Family],
    steps: Sequence[int],
    root_seed: int,
) -> dict[str, Fit]:
    """Fit every family, pair and observable at some steps.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The groups of an errors store.
    families : mapping of str to Family
    steps : sequence of int
        Numbers of gradient steps.
    root_seed : int
        Root of the bootstrap's random stream.

    Returns
    -------
    dict
        ``[family]`` has the exponents ``depth`` and ``embed_dim`` and ``pairs``, in which
        ``[pair][observable][str(step)]`` is what `fit_family` returns. Holds JSON values only.
    """
    found: dict[str, Fit] = {}
    for name, family in families.items():
        found[name] = {"depth": family.depth, "embed_dim": family.embed_dim, "pairs": {}}
        for pair, dataset in errors.items():
            loaded = dataset.load()
            found[name]["pairs"][pair] = {
                observable: {
                    str(step): fit_family(loaded, family, pair, observable, step, root_seed)
                    for step in steps
                }
                for observable in OBSERVABLES
            }
        logger.info("family %s: exponents fitted", name)
    return found


def fit_family(
    dataset: xr.Dataset,
    family: Family,
    pair: str,
    observable: str,
    step: int,
    root_seed: int = 0,
    ranges: Sequence[float] = RANGES,
) -> Fit:
    """Fit one distance along one family at one step.

    Parameters
    ----------
    dataset : Dataset
        One group of an errors store.
    family : Family
    pair, observable : str
        Keys of `LAWS` and `OBSERVABLES`.
    step : int
        Number of gradient steps.
    root_seed : int
        Root of the bootstrap's random stream.
    ranges : sequence of float
        Smallest nominal P of each fit.

    Returns
    -------
    dict
        JSON values. ``theory``, the exponent of the slowest term, and those of all ``terms``;
        ``fits``, for each range its ``least`` P, ``exponent`` and ``amplitude`` with intervals,
        ``misfit`` (scatter of the shapes about the law beyond that of the seeds, relative),
        ``residual``, ``parameters`` (smallest and largest P), number of ``shapes``, or ``reason``;
        ``points`` with the error of every shape; ``slopes`` between neighbours in P; ``cells`` by
        what became of them. What could not be found is None, never NaN.
    """
    law = law_of(pair, observable)
    terms = theory(family, law)
    study, members = _along(dataset, family, law, observable, step)
    parameters = np.array([shape.parameters for _, shape in members], dtype=float)
    nominal = np.array([value for value, _ in members])
    draws = resample(study.strata, root_seed) if study.seeds else None
    result: Fit = {
        "theory": max(terms.values()),
        "terms": terms,
        "fits": [_fit(study, draws, parameters, nominal >= least, least) for least in ranges],
        "points": [] if draws is None else _points(study, draws, members),
        "slopes": [] if draws is None else _slopes(study, draws, parameters),
        "cells": study.cells,
        "interval_method": interval_method(study),
    }
    values: Fit = json_values(result)
    return values


def _along(
    dataset: xr.Dataset, family: Family, law: Law, observable: str, step: int
) -> tuple[Study, list[tuple[float, Shape]]]:
    """Take the members of a family that have an error, in the order of their P.

    A limit's cell, which lacks some of the sizes, stands for all shapes that share the others.
    """
    # Several small P may round to one shape.
    unique = {shape: nominal for nominal, shape in sorted(family.members, reverse=True)}
    shapes = sorted(unique, key=lambda shape: (shape.parameters, shape))
    depends = np.array([name in law.depends for name in SIZES])
    wanted = np.array(shapes) * depends
    found = np.stack([dataset[name].values for name in SIZES], axis=1)
    inside = (found[:, None] == wanted[None]).all(axis=2).any(axis=1)
    study = make_study(dataset.isel(cell=np.flatnonzero(inside)), observable, step)
    same = (wanted[:, None] == study.sizes[None]).all(axis=2)
    there = np.flatnonzero(same.any(axis=1))
    rows = same[there].argmax(axis=1) if len(there) else there
    return _rows(study, rows), [(unique[shapes[k]], shapes[k]) for k in there]


def _rows(study: Study, rows: NDArray[np.intp]) -> Study:
    return replace(
        study, sizes=study.sizes[rows], squares=study.squares[rows], used=study.used[rows]
    )


def _seed_variance(study: Study) -> Array:
    """Variance of each shape's log error, from the scatter that all have in common.

    Of shapes with few seeds the scatter would not be known well enough one by one.
    """
    counts = study.used.sum(axis=1)
    ratio = np.where(study.used, study.squares / np.exp(2 * study.log_errors)[:, None] - 1.0, 0.0)
    degrees = (counts - 1).sum()
    pooled = (ratio**2).sum() / degrees if degrees else 0.0
    # An error is the root of a mean of squares.
    variance: Array = 0.25 * pooled / counts
    return variance


def _misfit(logs: Array, X: Array, variance: Array) -> float:
    """Estimate the variance about a line beyond that of the seeds (DerSimonian and Laird).

    Parameters
    ----------
    logs : ndarray, shape (shapes,)
    X : ndarray, shape (shapes, 2)
    variance : ndarray, shape (shapes,)
        Of the logs, by seeds.
    """
    W = 1.0 / variance
    inverse = np.linalg.pinv(X.T @ (W[:, None] * X), hermitian=True)
    residuals = logs - X @ (inverse @ (X.T @ (W * logs)))
    excess = (W * residuals**2).sum() - (len(X) - X.shape[1])
    scale = W.sum() - np.trace(inverse @ (X.T @ ((W**2)[:, None] * X)))
    return max(0.0, float(excess / scale))


def _fit(
    study: Study, draws: Draws | None, parameters: Array, chosen: NDArray[np.bool_], least: float
) -> Fit:
    """Fit log error on log P over the chosen shapes, those from some nominal P on."""
    inside = np.flatnonzero(chosen)
    found: Fit = {
        "least": least,
        "exponent": None,
        "exponent_interval": None,
        "amplitude": None,
        "amplitude_interval": None,
        "misfit": None,
        "residual": None,
        "parameters": [parameters[inside].min(), parameters[inside].max()] if len(inside) else None,
        "shapes": len(inside),
    }
    logs = np.log(parameters[inside])
    if draws is None or len(np.unique(logs)) < _MIN_SHAPES:
        count = len(np.unique(logs))
        return {**found, "reason": f"needs {_MIN_SHAPES} values of P with an error, has {count}"}
    part = _rows(study, inside)
    variance = _seed_variance(part)
    misfit = 0.0
    if (variance > 0).all():
        X = np.column_stack([logs, np.ones(len(logs))])
        misfit = _misfit(part.log_errors, X, variance)
        precision = 1.0 / (variance + misfit)
    else:
        # Without any scatter all shapes are known equally well.
        precision = np.ones(len(logs))
    line = regress(part, draws, logs[:, None], precision=precision)
    amplitude = line.interval(1)
    return {
        **found,
        "exponent": line.values[0, 0],
        "exponent_interval": line.interval(0),
        "amplitude": math.exp(line.values[0, 1]),
        "amplitude_interval": None if amplitude is None else [math.exp(end) for end in amplitude],
        "misfit": math.sqrt(misfit),
        "residual": line.residual,
    }


def _resampled_logs(study: Study, draws: Draws) -> Array:
    """Log errors (rows, shapes) of all resamples; NaN where one holds no cell of a shape."""
    logs = np.empty((len(draws.weights), len(study.sizes)))
    for rows, values, valid in study.resampled(draws.weights):
        logs[rows] = np.where(valid, values, np.nan)
    return logs


def _points(
    study: Study, draws: Draws, members: Sequence[tuple[float, Shape]]
) -> list[dict[str, Any]]:
    """Give the error of every shape with its interval and its number of seeds."""
    counts = study.used.sum(axis=1)
    points = []
    for k, logs in enumerate(_resampled_logs(study, draws).T):
        interval = draws.interval(logs) if counts[k] >= MIN_SEEDS else None
        points.append(
            {
                "nominal": members[k][0],
                "parameters": members[k][1].parameters,
                **members[k][1]._asdict(),
                "error": math.exp(logs[0]),
                "error_interval": None if interval is None else [math.exp(end) for end in interval],
                "seeds": counts[k],
            }
        )
    return points


def _slopes(study: Study, draws: Draws, parameters: Array) -> list[dict[str, Any]]:
    """Give the slopes between neighbours in P, which drift where the law does not hold yet."""
    counts = study.used.sum(axis=1)
    logs = _resampled_logs(study, draws)
    slopes = []
    for k in range(len(parameters) - 1):
        distance = math.log(parameters[k + 1] / parameters[k])
        if not distance:
            continue
        values = (logs[:, k + 1] - logs[:, k]) / distance
        slopes.append(
            {
                "parameters": [parameters[k], parameters[k + 1]],
                "exponent": values[0],
                "exponent_interval": (
                    draws.interval(values) if counts[k : k + 2].min() >= MIN_SEEDS else None
                ),
            }
        )
    return slopes
