"""How the error falls with P = L M D along families of shapes.

Along a family depth and embedding dimension are powers of P, so that every term of a law is one
too, and the slowest of them is the theory. Per shape the mean square over its seeds is taken; the
exponent is that of a power of the actual P, fitted like all others (`likelihood`), with weights
that are one over the variance of a shape's log mean square.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.cells import Study, make_study
from resnet_limits.errors.intervals import (
    MIN_SEEDS,
    Draws,
    error_intervals,
    interval_method,
    resample,
    resampled_logs,
    strata,
)
from resnet_limits.errors.likelihood import UnfittableError, fit_power
from resnet_limits.errors.rates import Fit, exponentiated, json_values
from resnet_limits.errors.resolution import outstanding, warning
from resnet_limits.kinds import SIZES, Shape
from resnet_limits.laws import OBSERVABLES, POWERS, Law, law_of

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

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
        Keys of `LAWS`, and one of `OBSERVABLES`.
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
    draws = resample(strata(study.exists), root_seed) if study.seeds else None
    result: Fit = {
        "theory": max(terms.values()),
        "terms": terms,
        "fits": [_fit(study, draws, parameters, nominal >= least, least) for least in ranges],
        "warning": warning(study, None),
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
    return study.rows(rows), [(unique[shapes[k]], shapes[k]) for k in there]


def _seed_variance(study: Study) -> Array:
    """Variance of the log of each shape's mean square, from the scatter that all have in common.

    One seed's log squared error has the pooled variance, and the mean over n seeds 1/n of it.
    Of shapes with few seeds the scatter would not be known well enough one by one.
    """
    ratio = np.where(study.used, study.squares / study.mean_squares[:, None] - 1.0, 0.0)
    degrees = (study.counts - 1).sum()
    pooled = (ratio**2).sum() / degrees if degrees else 0.0
    variance: Array = pooled / study.counts
    return variance


def _excess_variance(residuals: Array, X: Array, variance: Array) -> float:
    """Estimate the variance about a line beyond that of the seeds (DerSimonian and Laird).

    Parameters
    ----------
    residuals : ndarray, shape (shapes,)
        Log squared errors, less any line.
    X : ndarray, shape (shapes, 2)
        What the line is made of.
    variance : ndarray, shape (shapes,)
        Of the logs, by seeds.
    """
    W = 1.0 / variance
    inverse = np.linalg.pinv(X.T @ (W[:, None] * X), hermitian=True)
    residuals = residuals - X @ (inverse @ (X.T @ (W * residuals)))
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
    seen = outstanding(study)[inside]
    count = len(np.unique(logs[seen]))
    if draws is None or count < _MIN_SHAPES:
        return {
            **found,
            "reason": f"too few values of P have an error: {count} of the {_MIN_SHAPES} needed",
        }
    part = study.rows(inside)
    variance = _seed_variance(part)
    misfit, precision = 0.0, None
    try:
        # Without any scatter all shapes are known equally well.
        if (variance > 0).all():
            even = fit_power(part, draws, logs[:, None])
            # How far each shape's error follows the law, and not the noise beside it.
            law = np.exp(np.log(part.mean_squares) - even.residuals) - even.noise * part.mean_noise
            share = law * np.exp(even.residuals) / part.mean_squares
            X = share[:, None] * np.column_stack([logs, np.ones(len(logs))])
            misfit = _excess_variance(even.residuals, X, variance)
            precision = 1.0 / (variance + misfit)
        line = fit_power(part, draws, logs[:, None], precision=precision)
    except UnfittableError as why:
        return {**found, "reason": str(why)}
    return {
        **found,
        "exponent": line.values[0],
        "exponent_interval": line.interval(0),
        "amplitude": math.exp(line.values[1]),
        "amplitude_interval": exponentiated(line.interval(1)),
        # Of the error; what was estimated is of its square.
        "misfit": 0.5 * math.sqrt(misfit),
        "residual": line.residual,
    }


def _points(
    study: Study, draws: Draws, members: Sequence[tuple[float, Shape]]
) -> list[dict[str, Any]]:
    """Give the error of every shape with its interval and its number of seeds."""
    intervals = error_intervals(study, draws)
    resolved = np.asarray(study.resolved.any(axis=1))
    points = []
    for k, (nominal, shape) in enumerate(members):
        error = math.sqrt(max(0.0, study.mean_squares[k] - study.mean_noise[k]))
        points.append(
            {
                "nominal": nominal,
                "parameters": shape.parameters,
                **shape._asdict(),
                "error": error,
                "error_interval": intervals[k],
                "resolved": bool(resolved[k]),
                "seeds": study.counts[k],
            }
        )
    return points


def _slopes(study: Study, draws: Draws, parameters: Array) -> list[dict[str, Any]]:
    """Give the slopes between neighbours in P, which drift where the law does not hold yet."""
    changes = resampled_logs(study, draws)
    seen = outstanding(study).tolist()
    squares = study.mean_squares - study.mean_noise
    slopes = []
    for k in range(len(parameters) - 1):
        distance = math.log(parameters[k + 1] / parameters[k])
        if not distance or not (seen[k] and seen[k + 1]):
            continue
        first, second = 0.5 * np.log(squares[k : k + 2])
        slope, interval = (second - first) / distance, None
        if study.counts[k : k + 2].min() >= MIN_SEEDS:
            share = study.mean_squares[k : k + 2] / squares[k : k + 2]
            values = (share[1] * changes[:, k + 1] - share[0] * changes[:, k]) / distance
            spread = draws.spread(values)
            half, centre = float(spread.half_widths()), slope - float(spread.bias)
            interval = [min(centre - half, slope), max(centre + half, slope)]
        slopes.append(
            {
                "parameters": [parameters[k], parameters[k + 1]],
                "exponent": slope,
                "exponent_interval": interval,
            }
        )
    return slopes
