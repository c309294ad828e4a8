"""How the error of the best shape falls with the number of parameters, P = L M D."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_limits.cells import Study
from resnet_limits.errors.intervals import Draws, error_intervals
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
        "edges": [],
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
        ``exponent`` with interval, ``theory``, ``points`` (the best shapes, their errors
        with intervals), ``edges`` (those that do not count, and at which ``edge`` they lie),
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
            f"too few bins of P hold {_MIN_SHAPES_IN_BIN} shapes or more: {len(bins)} of the "
            f"{_MIN_BINS} needed",
        )
    squares = study.mean_squares - study.mean_noise
    best = np.array([members[np.argmin(squares[members])] for members in bins])
    smallest = np.array([embed_dims[members].min() for members in bins])
    largest = np.array([embed_dims[members].max() for members in bins])
    inner = (embed_dims[best] > smallest) & (embed_dims[best] < largest)
    used = best[inner & outstanding(study)[best]]
    points = _shapes(study, draws, used)
    lost = ~inner & (squares[best] > 0)
    edges = [
        {**shape, "edge": _edge(shape["embed_dim"], low, high)}
        for shape, low, high in zip(
            _shapes(study, draws, best[lost]), smallest[lost], largest[lost], strict=True
        )
    ]
    found = {"points": points, "edges": edges}
    if len(used) < _MIN_BINS:
        reason = (
            f"in {int(inner.sum())} of {len(bins)} bins of P the best shape lies between the "
            "smallest and the largest D"
        )
        if len(used) < inner.sum():
            reason += f", and in {len(used)} of these it stands out from the limits' standard error"
        return {**no_budget(theory, f"{reason}; {_MIN_BINS} such bins are needed"), **found}
    try:
        line = fit_power(study.rows(used), draws, np.log(parameters[used])[:, None])
    except UnfittableError as why:
        return {**no_budget(theory, str(why)), **found}
    return {
        "exponent": line.values[0],
        "exponent_interval": line.interval(0),
        "theory": theory,
        **found,
        "bins": {"total": len(bins), "used": len(used)},
        "residual": line.residual,
    }


def _edge(embed_dim: int, smallest: int, largest: int) -> str:
    """Say at which edge of a bin an embedding dimension lies."""
    if smallest == largest:
        return "only D"
    return "smallest D" if embed_dim == smallest else "largest D"


def _shapes(study: Study, draws: Draws, which: NDArray[np.intp]) -> list[dict[str, Any]]:
    """Give the sizes and errors of some shapes, with intervals over seeds."""
    part = study.rows(which)
    squares = part.mean_squares - part.mean_noise
    return [
        {
            "parameters": float(sizes.astype(float).prod()),
            "error": math.sqrt(square),
            "error_interval": interval,
            **dict(zip(SIZES, sizes, strict=True)),
        }
        for sizes, square, interval in zip(
            part.sizes, squares, error_intervals(part, draws), strict=True
        )
    ]
