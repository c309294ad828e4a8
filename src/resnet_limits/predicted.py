"""Predicted laws as they stand in prediction.json: looked up and evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_limits.laws import in_quadrature, terms_of

Array = NDArray[np.float64]
Prediction = Mapping[str, Any]


class Known(NamedTuple):
    """The terms of one distance at one step.

    Attributes
    ----------
    amplitudes, uncertainties : dict of str to float
        Of the terms that are predicted, and their standard errors.
    without : tuple of str
        The terms of the law that are not.
    """

    amplitudes: dict[str, float]
    uncertainties: dict[str, float]
    without: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every term is predicted."""
        return bool(self.amplitudes) and not self.without


_ROUNDING = 1e-9


def amplitudes(found: Mapping[str, Any]) -> list[tuple[float, float] | None]:
    """Give the amplitude of a term and its uncertainty at every step; None where there is none.

    What is no more than rounding beside the largest of all steps is zero: at step 0 some terms
    vanish by theory, and their computation leaves the rounding of the states.

    Parameters
    ----------
    found : mapping
        ``amplitude`` and ``uncertainty`` of the term, one number a step or null.
    """
    values = list(found.get("amplitude") or [])
    errors = found.get("uncertainty") or [None] * len(values)
    least = _ROUNDING * max((value for value in values if value is not None), default=0.0)
    pairs = zip(values, errors, strict=True)
    return [
        None
        if value is None
        else (0.0, 0.0)
        if value < least and (error or 0.0) < least
        else (float(value), float(error or 0.0))
        for value, error in pairs
    ]


def known(prediction: Prediction | None, pair: str, quantity: str, step: int | None) -> Known:
    """Look up what is predicted of one distance.

    Parameters
    ----------
    prediction : mapping or None
        The contents of prediction.json.
    pair : str
        A key of `laws.LAWS`.
    quantity : str
        ``hidden`` or ``output``; nothing is predicted of others.
    step : int or None
        Number of gradient steps.
    """
    values, uncertainties = {}, {}
    terms = terms_of(pair, quantity)
    steps = list((prediction or {}).get("step") or [])
    predicted = (prediction or {}).get(quantity) or {}
    for term in terms if step in steps else ():
        found = amplitudes(predicted.get(term) or {})
        pair_of = found[steps.index(step)] if found else None
        if pair_of is not None:
            values[term], uncertainties[term] = pair_of
    return Known(values, uncertainties, tuple(t for t in terms if t not in values))


def distance(found: Known, sizes: np.ndarray) -> np.ndarray | None:
    """Evaluate the predicted law at sizes (..., 3); None unless all of its terms are known."""
    return in_quadrature(found.amplitudes, sizes) if found.is_complete else None


def distance_at(
    prediction: Prediction | None,
    pair: str,
    step: int,
    sizes: ArrayLike,
    s: ArrayLike | None = None,
) -> tuple[Array, Array] | None:
    """Evaluate the predicted RMS distance of the hidden states over the depth.

    Parameters
    ----------
    prediction : mapping or None
        The contents of prediction.json.
    pair : str
        A key of `laws.LAWS`; its terms add as root-sum-square.
    step : int
        Number of gradient steps.
    sizes : array_like, shape (..., 3)
        Depth, width and embedding dimension of each shape; those that the pair does not depend on
        may be anything.
    s : array_like, shape (m,), optional
        Depths in [0, 1], where layer l of L layers is at l/L; those of the table if left out.
        Between these the square is interpolated, which is smooth in the depth.

    Returns
    -------
    s : ndarray, shape (m,)
        The depths.
    distance : ndarray, shape (..., m)
        The distance at each of them. In place of both None, where the prediction has no such step
        or depths, or lacks one of the terms there; `why_missing` of `known` says why.
    """
    table = (prediction or {}).get("hidden_at") or {}
    steps = list((prediction or {}).get("step") or [])
    if step not in steps or "s" not in table:
        return None
    depths = np.array(table["s"], dtype=float)
    found = {}
    for term in terms_of(pair, "hidden"):
        values = _amplitudes_at(table.get(term) or {}, steps.index(step))
        if values is None:
            return None
        found[term] = values
    at = depths if s is None else np.atleast_1d(np.asarray(s, dtype=float))
    if s is not None:
        found = {term: _interpolated(depths, values, at) for term, values in found.items()}
    return at, in_quadrature(found, np.asarray(sizes)[..., None, :])


def _amplitudes_at(found: Mapping[str, Any], place: int) -> Array | None:
    """Give the amplitudes of a term at all depths of one step, (n,); None unless all are known.

    What is rounding is zero, as in `amplitudes`.
    """
    table = np.array(found.get("amplitude") or [[]], dtype=float)
    if not table.size or not np.isfinite(table[place]).all():
        return None
    errors = np.array(found["uncertainty"], dtype=float)[place]
    least = _ROUNDING * np.nanmax(table)
    return np.where((table[place] < least) & (errors < least), 0.0, table[place])


def _interpolated(depths: Array, values: Array, at: Array) -> Array:
    """Interpolate the squares of amplitudes, (n,), by a cubic spline."""
    from scipy.interpolate import CubicSpline

    squares = CubicSpline(depths, np.square(values))(at)
    amplitudes: Array = np.sqrt(np.maximum(squares, 0.0))
    return amplitudes


def why_missing(prediction: Prediction | None, found: Known) -> str:
    """Say which terms a prediction lacks, and why; empty if it has all of them."""
    if not prediction:
        return "all terms (no prediction was made)"
    notes = prediction.get("notes") or {}
    return ", ".join(
        term + (f" ({notes[term]})" if notes.get(term) else "") for term in found.without
    )


def unpredicted(
    prediction: Prediction | None, pairs: Sequence[str], quantities: Sequence[str], step: int | None
) -> list[str]:
    """Say in sentences which terms of some distances are not predicted."""
    if not pairs:
        return []
    if not prediction:
        return ["No prediction was made."]
    sentences: dict[str, list[str]] = {}
    for quantity in quantities:
        # Every term once, whatever distances it is part of.
        lacking = dict.fromkeys(
            term for pair in pairs for term in known(prediction, pair, quantity, step).without
        )
        if lacking:
            words = why_missing(prediction, Known({}, {}, tuple(lacking)))
            sentences.setdefault(words, []).append(quantity)
    return [
        f"No predicted curve where {' and '.join(names)} errors depend on {words}."
        for words, names in sentences.items()
    ]
