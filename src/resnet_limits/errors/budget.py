"""How the error of the best shape falls with the number of parameters, P = L M D."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from resnet_limits.cells import Study
from resnet_limits.errors.intervals import Draws
from resnet_limits.errors.likelihood import UnfittableError, fit_power
from resnet_limits.errors.resolution import outstanding
from resnet_limits.kinds import SIZES

Fit = dict[str, Any]

_BINS_PER_DECADE = 4
_MIN_SHAPES_IN_BIN = 3
_MIN_BINS = 3


def no_budget(theory: float, reason: str) -> Fit:
    """Give what stands in the place of a fit that cannot be made."""
    return {
        "exponent": None,
        "exponent_interval": None,
        "theory": theory,
        "points": [],
        "reason": reason,
    }


def fit_budget(study: Study, draws: Draws, theory: float) -> Fit:
    """Fit the error of the best shape for each P = L M D as a power of P.

    Shapes are put into bins of a quarter decade of P. A bin counts if its best shape has neither
    the smallest nor the largest embedding dimension in the bin: at the edge of what was measured,
    the best shape measured says nothing of the best there is. Sizes that were measured at few
    values make the best errors wander about their law; this is no matter of seeds, but is part of
    the misfit, which the interval holds.

    Parameters
    ----------
    study : Study
    draws : Draws
    theory : float
        Exponent of theory.

    Returns
    -------
    dict
        ``exponent`` with interval, ``theory``, ``points`` (the best shapes and their errors),
        ``bins``, ``residual``, or ``reason``.
    """
    parameters = study.sizes.astype(float).prod(axis=1)
    embed_dims = study.sizes[:, SIZES.index("embed_dim")]
    label = np.floor(_BINS_PER_DECADE * np.log10(parameters) + 1e-9).astype(int)
    bins = [np.flatnonzero(label == value) for value in np.unique(label)]
    bins = [members for members in bins if len(members) >= _MIN_SHAPES_IN_BIN]
    if len(bins) < _MIN_BINS:
        return no_budget(
            theory,
            f"only {len(bins)} bins of P hold {_MIN_SHAPES_IN_BIN} shapes or more; "
            f"{_MIN_BINS} needed",
        )
    squares = study.mean_squares - study.mean_noise
    best = np.array([members[np.argmin(squares[members])] for members in bins])
    smallest = np.array([embed_dims[members].min() for members in bins])
    largest = np.array([embed_dims[members].max() for members in bins])
    inner = (embed_dims[best] > smallest) & (embed_dims[best] < largest)
    used = best[inner & outstanding(study)[best]]
    points = [
        {
            "parameters": parameters[k],
            "error": math.sqrt(squares[k]),
            **{name: study.sizes[k, axis] for axis, name in enumerate(SIZES)},
        }
        for k in used
    ]
    if len(used) < _MIN_BINS:
        reason = (
            f"in {int(inner.sum())} of {len(bins)} bins of P the best shape lies between the "
            "smallest and the largest D"
        )
        if len(used) < inner.sum():
            reason += f", and in {len(used)} of these it stands out of the limits' standard error"
        return {**no_budget(theory, f"{reason}; {_MIN_BINS} needed"), "points": points}
    try:
        line = fit_power(study.rows(used), draws, np.log(parameters[used])[:, None])
    except UnfittableError as why:
        return {**no_budget(theory, str(why)), "points": points}
    return {
        "exponent": line.values[0],
        "exponent_interval": line.interval(0),
        "theory": theory,
        "points": points,
        "bins": {"total": len(bins), "used": len(used)},
        "residual": line.residual,
    }
