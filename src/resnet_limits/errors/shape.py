"""The best shape for a number of parameters, by a fitted law."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_limits.config import InputError
from resnet_limits.kinds import SIZES, SYMBOLS
from resnet_limits.laws import ALONE, in_quadrature, law_of, variable_values

PAIR = "finite-dmft"
"""The distance that is made small."""

MAX_BUDGET = 1e18
"""Largest number of parameters that sizes are sought for."""

_EXTRA_WIDTHS = 16
_LITTLE = 0.01
_NEARBY = 2000


def best_shape(
    rates: Mapping[str, Any], budget: float, observable: str = "hidden", step: str | int = "last"
) -> dict[str, Any]:
    """Find the depth, width and embedding dimension with the smallest predicted error.

    The law fitted to the distance from the DMFT limit is minimised over integers with
    L M D <= budget. Depth reduces every term that width does, and 1/L too, so that the law always
    prefers the smallest width; widths below the smallest that was measured are not considered.
    Past some depth it hardly matters, and `shallower` says from where on. Where 1/L was not seen,
    depth and width count alike and are taken about equal.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.
    budget : float
        P, the largest L M D.
    observable : str
        ``hidden``, ``hidden_max_mean_abs`` or ``output``.
    step : str or int
        A step for which there are rates, or ``last``.

    Returns
    -------
    dict
        ``depth``, ``width``, ``embed_dim``, ``parameters`` (their product), ``predicted_error``,
        ``terms`` (the part of each term, which add in quadrature), ``shallower`` (the shape of
        the least depth, at the same embedding dimension, whose predicted error is within one per
        cent of the best; None where 1/L was not seen), ``note``.

    Raises
    ------
    InputError
        If the budget is not a number that some shape fits into, or the rates hold no such fit.
    """
    fit, at = _find_fit(rates, observable, step)
    notes: list[str] = []
    amplitudes = _amplitudes(rates, fit, observable, at, notes)
    smallest, parameters = _smallest_width(fit), _checked_budget(budget)
    if parameters < smallest:
        raise InputError(
            f"budget: {parameters} parameters, too few for the smallest width measured; "
            f"allowed: {smallest} to {MAX_BUDGET:g}"
        )
    shapes = _candidates(amplitudes, parameters, smallest)
    errors = in_quadrature(amplitudes, shapes)
    place = int(np.argmin(errors))
    best, error = shapes[place], float(errors[place])
    sizes, shallower = _named(best), None
    if "1/L" in amplitudes:
        shallower = _shallower(amplitudes, parameters, smallest, best, error)
        notes.append(
            f"the law prefers depth to width, so M is at or near {smallest}, the least measured"
        )
    else:
        notes.append("only the product L M counts without 1/L; L and M are taken about equal")
    return {
        **sizes,
        "parameters": math.prod(sizes.values()),
        "predicted_error": error,
        "terms": {
            name: float(a * variable_values(name, best[None])[0]) for name, a in amplitudes.items()
        },
        "shallower": shallower,
        "note": "; ".join([*notes, *_extrapolation(fit, sizes)]),
    }


def _named(shape: NDArray[np.int64]) -> dict[str, int]:
    return {name: int(size) for name, size in zip(SIZES, shape, strict=True)}


# --- what was measured ----------------------------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    """Take a mapping as it is, and anything else for an empty one: the file may be anyone's."""
    return value if isinstance(value, Mapping) else {}


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"


def _find_fit(
    rates: Mapping[str, Any], observable: str, step: str | int
) -> tuple[Mapping[str, Any], str]:
    observables = _mapping(_mapping(rates.get("pairs")).get(PAIR))
    if not observables:
        raise InputError(f"rates: no fits of the pair {PAIR}; allowed: rates.json with this pair")
    steps = _mapping(observables.get(observable))
    if not steps:
        raise InputError(
            f"rates: no fit of {observable!r} for {PAIR}; allowed: {_listed(observables)}"
        )
    at = max(steps, key=_step_number) if step == "last" else str(step)
    if at not in steps:
        raise InputError(
            f"rates: no fit of {observable} at step {step}; allowed: last, {_listed(steps)}"
        )
    fit = _mapping(steps[at])
    if not _mapping(fit.get("terms")):
        reason = fit.get("reason") or "no reason is given"
        raise InputError(
            f"rates: {observable} of {PAIR} at step {at} has no fitted terms ({reason}); "
            "allowed: a fit with terms"
        )
    return fit, at


def _step_number(step: str) -> int:
    return int(step) if step.isdecimal() else -1


def _number(value: Any) -> float | None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if sound and value >= 0 else None


def _amplitudes(
    rates: Mapping[str, Any], fit: Mapping[str, Any], observable: str, at: str, notes: list[str]
) -> dict[str, float]:
    """Amplitudes of all terms; one that the sum does not show is taken from its own pair.

    One that neither shows is kept as estimated, as long as others are detected: it may be there.
    """
    law = law_of(PAIR, observable)
    joint = _mapping(fit["terms"])
    found, detected = {}, False
    for name in law.terms:
        term = _mapping(joint.get(name))
        amplitude = _number(term.get("amplitude"))
        measured = amplitude if term.get("detected") is not False else None
        if not measured:
            pair, theory = ALONE.get(name, ("", 0.0))
            steps = _mapping(_mapping(_mapping(rates.get("pairs")).get(pair)).get(observable))
            alone = _mapping(steps.get(at))
            # The terms of a pair of its own may follow another power in another observable.
            if alone.get("theory") == theory:
                measured = _number(alone.get("amplitude_at_theory"))
            if measured:
                amplitude = measured
                notes.append(f"{name} as measured by {pair}")
            elif amplitude:
                notes.append(f"{name} is kept, though not detected")
        detected |= bool(measured)
        if amplitude:
            found[name] = amplitude
        else:
            notes.append(f"{name} is left out: not detected")
    if not detected:
        raise InputError(
            f"rates: no term is detected in {observable} of {PAIR} at step {at}; "
            "allowed: a fit with at least one term detected"
        )
    return found


def _smallest_width(fit: Mapping[str, Any]) -> int:
    measured = _measured(fit, "width")
    return 1 if measured is None else max(1, measured[0])


def _measured(fit: Mapping[str, Any], size: str) -> tuple[int, int] | None:
    bounds = _mapping(fit.get("sizes")).get(size)
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    low, high = (_number(bound) for bound in bounds)
    return None if low is None or high is None else (int(low), int(high))


def _extrapolation(fit: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """Say which sizes lie outside what was measured."""
    notes = []
    for name, size in sizes.items():
        measured = _measured(fit, name)
        if measured is None:
            notes.append(f"the range of {name} that was measured is not known")
        elif not measured[0] <= size <= measured[1]:
            notes.append(
                f"extrapolated: {SYMBOLS[name]} = {size} lies outside the measured "
                f"{measured[0]} to {measured[1]}"
            )
    return notes or ["all sizes lie within the measured ranges"]


# --- search ---------------------------------------------------------------------------------------


def _checked_budget(budget: float) -> int:
    sound = _number(budget)
    if sound is None or not 1 <= sound <= MAX_BUDGET:
        raise InputError(f"budget: {budget!r}; allowed: a number from 1 to {MAX_BUDGET:g}")
    return int(sound)


def _candidates(amplitudes: Mapping[str, float], budget: int, smallest: int) -> NDArray[np.int64]:
    """Shapes among which the best one is: all good (L, M) for each D near the optimum.

    Returns
    -------
    ndarray of int, shape (candidates, 3)
    """
    largest = budget // smallest
    D = np.arange(1, min(largest, _NEARBY) + 1)
    if largest > _NEARBY:
        # With LM = P/D every squared term is a power of D, so the error has a single minimum.
        fine = np.unique(np.geomspace(1, largest, 4096).astype(np.int64))
        if "1/L" in amplitudes:
            width = np.full(len(fine), float(smallest))
        else:
            width = np.maximum(smallest, np.sqrt(budget / fine))
        depth = np.maximum(1.0, budget / (fine * width))
        middle = int(
            fine[np.argmin(in_quadrature(amplitudes, np.stack([depth, width, fine], axis=1)))]
        )
        # The grid above is finer than one per cent, and rounding L to an integer matters less.
        reach = max(_NEARBY // 2, middle // 50)
        near = np.linspace(max(1, middle - reach), min(largest, middle + reach), 2 * _NEARBY)
        D = np.unique(near.astype(np.int64))
    room = budget // D
    if "1/L" in amplitudes:
        M = smallest + np.arange(_EXTRA_WIDTHS)[None, :]
    else:
        root = np.sqrt(room).astype(np.int64)[:, None]
        M = np.maximum(smallest, root - np.arange(_EXTRA_WIDTHS)[None, :])
    L = room[:, None] // M
    shapes = np.stack(np.broadcast_arrays(L, M, D[:, None]), axis=-1).reshape(-1, len(SIZES))
    kept: NDArray[np.int64] = shapes[shapes[:, 0] >= 1]
    return kept


def _shallower(
    amplitudes: Mapping[str, float],
    budget: int,
    smallest: int,
    best: NDArray[np.int64],
    error: float,
) -> dict[str, Any]:
    """Find the least depth, at the embedding dimension of the best shape, that loses little."""
    depth, _, embed_dim = (int(size) for size in best)
    L = np.unique(np.geomspace(1, depth, 4096).astype(np.int64))
    M = budget // embed_dim // L
    shapes = np.stack([L, M, np.full_like(L, embed_dim)], axis=1)[smallest <= M]
    errors = in_quadrature(amplitudes, shapes)
    # The best shape itself is among them, so there is a first one.
    first = int(np.argmax(errors <= (1 + _LITTLE) * error))
    return {**_named(shapes[first]), "predicted_error": float(errors[first])}
