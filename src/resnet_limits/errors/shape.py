"""The best shape for a number of parameters, by a fitted or a predicted law."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_limits import optimum, predicted
from resnet_limits.config import InputError, Shape
from resnet_limits.kinds import SIZES, SYMBOLS
from resnet_limits.laws import ALONE, POWERS, in_quadrature, law_of, variable_values
from resnet_limits.optimum import ANY, MAX_BUDGET, Bounds

PAIR = "finite-dmft"
"""The distance that is made small."""

TOLERANCES = (0.01, 0.05, 0.2)
"""Parts by which shapes of a family may be above the least distance."""

_LITTLE = TOLERANCES[0]


@dataclass(frozen=True)
class Basis:
    """What is known of the distance from the DMFT limit at one step.

    Attributes
    ----------
    amplitudes : dict of str to float
        By term.
    uncertainties : dict of str to float
        Their standard errors; empty where intervals are not asked for.
    bounds : Bounds
        Sizes for which the law counts.
    measured : dict of str to (int, int), or None
        Smallest and largest of each size that was measured; None where nothing was.
    notes : tuple of str
        Where amplitudes come from, and which are left out.
    """

    amplitudes: dict[str, float]
    uncertainties: dict[str, float]
    bounds: Bounds = ANY
    measured: Mapping[str, tuple[int, int] | None] | None = None
    notes: tuple[str, ...] = ()


def best_shape(
    law: Basis, budget: float, bounds: Bounds = ANY, *, tell_ranges: bool = True
) -> dict[str, Any]:
    """Find the depth, width and embedding dimension with the smallest predicted error.

    The law of the distance from the DMFT limit is minimised over integers with L M D <= budget.
    Depth reduces every term that width does, and 1/L too, so that the law always prefers the
    smallest width. Past some depth it hardly matters, and `shallower` says from where on. Where 1/L
    is not known, depth and width count alike and are taken about equal.

    Parameters
    ----------
    law : Basis
        `fitted_law` or `predicted_law`.
    budget : float
        P, the largest L M D.
    bounds : Bounds
        Sizes that are allowed, beside those for which the law counts.
    tell_ranges : bool
        Whether to find `interval` and `within`.

    Returns
    -------
    dict
        ``depth``, ``width``, ``embed_dim``, ``parameters`` (their product), ``predicted_error``,
        ``terms`` (the part of each term; they add as root-sum-square), ``interval`` (95 % of the
        sizes and the error of the best real sizes, from the amplitudes' uncertainties; None without
        these), ``within`` (by part above the least error, between which values each size may
        lie, the others at their best), ``shallower`` (the shape of the least depth, at the same
        embedding dimension, whose predicted error is within one per cent of the best; None where
        1/L was not seen), ``note``.

    Raises
    ------
    InputError
        If the budget is not a number that some shape fits into.
    """
    amplitudes, parameters, allowed = law.amplitudes, _checked_budget(budget), _allowed(law, bounds)
    if parameters < allowed.smallest:
        raise InputError(
            f"budget: {parameters} parameters, too few for {_smallest_said(law, bounds)}; "
            f"allowed: {allowed.smallest} to {MAX_BUDGET:g}"
        )
    best, error = optimum.best_shape(amplitudes, parameters, allowed)
    shallower, notes = None, list(law.notes)
    if "1/L" in amplitudes:
        fixed = allowed.holding("embed_dim", best.embed_dim)
        found = optimum.shallowest(amplitudes, parameters, (1 + _LITTLE) * error, fixed)
        shallower = _with_error(*found)
        if best.depth < bounds.most.depth:
            least = "the least measured" if law.measured else "the least allowed"
            notes.append(
                f"the law prefers depth to width, so M is at or near {allowed.least.width}, {least}"
            )
    else:
        notes.append("without 1/L only the product L M matters, so L and M are taken about equal")
    if law.measured is not None:
        notes += _extrapolation(law.measured, best)
    return {
        **_with_error(best, error, parameters=best.parameters),
        "terms": {
            name: float(a * variable_values(name, np.array(best))) for name, a in amplitudes.items()
        },
        **(_ranges(law, best.parameters, allowed) if tell_ranges else {}),
        "shallower": shallower,
        "note": "; ".join(notes),
    }


def smallest_shape(law: Basis, error: float, bounds: Bounds = ANY) -> dict[str, Any]:
    """Find the shape of the fewest parameters with a predicted error so small.

    Parameters
    ----------
    law, bounds
        As for `best_shape`.
    error : float
        The largest distance from the DMFT limit.

    Returns
    -------
    dict
        What `best_shape` says of it, and in ``interval`` that of ``parameters`` too.

    Raises
    ------
    InputError
        If no shape is so near.
    """
    wanted = _number(error)
    if not wanted:
        raise InputError(f"error: {error!r}; allowed: a positive number")
    allowed = _allowed(law, bounds)
    budget = optimum.smallest_budget(law.amplitudes, wanted, allowed)
    if budget is None:
        raise InputError(
            f"error: {wanted:g}: no shape of up to {MAX_BUDGET:g} parameters within the bounds "
            f"reaches it; allowed: more than {_least_error(law, allowed):.3g}"
        )
    found = best_shape(law, budget, bounds)
    if found["interval"] is not None:

        def fewest(amplitudes: Mapping[str, float]) -> list[float]:
            least = optimum.least_parameters(amplitudes, wanted, allowed)
            return [float(MAX_BUDGET) if least is None else least]

        (ends,) = optimum.spread(law.amplitudes, law.uncertainties, fewest)
        found["interval"] = {"parameters": list(ends), **found["interval"]}
    return found


def waste(law: Basis, shape: Shape, bounds: Bounds = ANY) -> dict[str, Any]:
    """Hold a shape against the best one of as many parameters.

    Parameters
    ----------
    law, bounds
        As for `best_shape`; bounds are those of the best shape.
    shape : Shape
        L, M, D.

    Returns
    -------
    dict
        Sizes, ``parameters`` and ``predicted_error`` of the shape; ``waste``, this error over that
        of the best shape; ``best``, that shape; ``would_do``, the number of parameters with which
        the best shape is as near.
    """
    error = float(in_quadrature(law.amplitudes, np.array(shape)))
    best = best_shape(law, shape.parameters, bounds, tell_ranges=False)
    least = best["predicted_error"]
    return {
        **_with_error(shape, error, parameters=shape.parameters),
        "waste": error / least if least else 1.0,
        "best": {name: best[name] for name in (*SIZES, "predicted_error")},
        "would_do": optimum.smallest_budget(
            law.amplitudes, max(error, least), _allowed(law, bounds)
        ),
    }


def _allowed(law: Basis, bounds: Bounds) -> Bounds:
    allowed = law.bounds.within(bounds)
    for name, low, high in zip(SIZES, allowed.least, allowed.most, strict=True):
        if low > high:
            raise InputError(
                f"{SYMBOLS[name]}: no size is at least {low} and at most {high}; "
                "allowed: bounds that leave one"
            )
    return allowed


def _smallest_said(law: Basis, bounds: Bounds) -> str:
    if law.bounds.within(bounds).least == law.bounds.least and law.measured is not None:
        return "the smallest width measured"
    return "the smallest sizes allowed"


def _least_error(law: Basis, allowed: Bounds) -> float:
    return optimum.best_shape(law.amplitudes, MAX_BUDGET, allowed)[1]


def _with_error(shape: Shape, error: float, **more: int) -> dict[str, Any]:
    return {**shape._asdict(), **more, "predicted_error": error}


def _ranges(law: Basis, parameters: int, allowed: Bounds) -> dict[str, Any]:
    """Find how well the best sizes are known, and how far others may be from them."""
    amplitudes = law.amplitudes
    error = optimum.best_sizes(amplitudes, parameters, allowed).error
    interval = None
    if law.uncertainties:
        ends = optimum.spread(
            amplitudes,
            law.uncertainties,
            lambda varied: optimum.best_sizes(varied, parameters, allowed),
        )
        interval = {
            name: list(pair) for name, pair in zip((*SIZES, "predicted_error"), ends, strict=True)
        }
    within = {
        part: {
            name: _whole(*ends)
            for name, ends in optimum.ranges(
                amplitudes, parameters, (1 + part) * error, allowed
            ).items()
        }
        for part in TOLERANCES
    }
    return {"interval": interval, "within": within}


def _whole(low: float, high: float) -> list[int]:
    """Give the whole numbers at the ends of a range; the nearest one if there is none inside."""
    ends = math.ceil(low * (1 - 1e-9)), math.floor(high * (1 + 1e-9))
    return list(ends) if ends[0] <= ends[1] else [max(1, round(low))] * 2


# --- what was predicted ---------------------------------------------------------------------------


def predicted_law(
    prediction: Mapping[str, Any], observable: str = "hidden", step: str | int = "last"
) -> Basis:
    """Take the law of the distance from the DMFT limit from its prediction.

    Parameters
    ----------
    prediction : mapping
        The contents of prediction.json.
    observable : str
        ``hidden`` or ``output``.
    step : str or int
        A step of the training, or ``last``.

    Raises
    ------
    InputError
        If there is no such prediction, or it lacks what the best shape depends on.
    """
    steps = [str(number) for number in prediction.get("step") or []]
    at = steps[-1] if steps and step == "last" else str(step)
    if at not in steps:
        raise InputError(f"prediction: has no step {step}; allowed: last, {_listed(steps)}")
    names = [name for name in ("hidden", "output") if name in prediction]
    if observable not in names:
        raise InputError(f"prediction: has no {observable!r}; allowed: {_listed(names)}")
    found = predicted.known(prediction, PAIR, observable, int(at))
    # Without the first the best D is as small as may be, without the others as large as may be.
    if "1/sqrt(D)" not in found.amplitudes or not any(POWERS[n][1] for n in found.amplitudes):
        raise InputError(
            f"prediction: {observable} lacks {predicted.why_missing(prediction, found)}; "
            "allowed: a prediction of 1/sqrt(D) and of a term in M"
        )
    return Basis(
        found.amplitudes,
        found.uncertainties,
        notes=tuple(f"{name} is left out: not predicted" for name in found.without),
    )


# --- what was measured ----------------------------------------------------------------------------


def fitted_law(
    rates: Mapping[str, Any], observable: str = "hidden", step: str | int = "last"
) -> Basis:
    """Take the law of the distance from the DMFT limit from fits.

    Widths below the smallest that was measured are not considered.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.
    observable : str
        ``hidden``, ``hidden_max_mean_abs`` or ``output``.
    step : str or int
        A step for which there are rates, or ``last``.

    Raises
    ------
    InputError
        If the rates hold no such fit.
    """
    fit, at = _find_fit(rates, observable, step)
    notes: list[str] = []
    amplitudes = _amplitudes(rates, fit, observable, at, notes)
    measured = {name: _measured(fit, name) for name in SIZES}
    least = max(1, (measured["width"] or (1, 1))[0])
    return Basis(amplitudes, {}, Bounds(Shape(1, least, 1)), measured, tuple(notes))


def measured_bounds(
    rates: Mapping[str, Any], observable: str = "hidden", step: str | int = "last"
) -> Bounds:
    """Take the smallest and largest sizes that were measured.

    Raises
    ------
    InputError
        If the rates hold no such fit, or do not say of what sizes.
    """
    fit, at = _find_fit(rates, observable, step)
    found = [_measured(fit, name) for name in SIZES]
    ends = [pair for pair in found if pair is not None and 1 <= pair[0] <= pair[1]]
    if len(ends) < len(SIZES):
        raise InputError(
            f"rates: {observable} of {PAIR} at step {at} does not say which sizes were measured; "
            "allowed: a fit with sizes"
        )
    return Bounds(Shape(*(low for low, _ in ends)), Shape(*(high for _, high in ends)))


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


def _measured(fit: Mapping[str, Any], size: str) -> tuple[int, int] | None:
    bounds = _mapping(fit.get("sizes")).get(size)
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    low, high = (_number(bound) for bound in bounds)
    return None if low is None or high is None else (int(low), int(high))


def _extrapolation(measured: Mapping[str, tuple[int, int] | None], shape: Shape) -> list[str]:
    """Say which sizes lie outside what was measured."""
    notes = []
    for name, size in zip(SIZES, shape, strict=True):
        ends = measured[name]
        if ends is None:
            notes.append(f"the measured range of {SYMBOLS[name]} is not known")
        elif not ends[0] <= size <= ends[1]:
            notes.append(
                f"extrapolated: {SYMBOLS[name]} = {size} lies outside the measured "
                f"{ends[0]} to {ends[1]}"
            )
    return notes or ["all sizes lie within the measured ranges"]


def _checked_budget(budget: float) -> int:
    sound = _number(budget)
    if sound is None or not 1 <= sound <= MAX_BUDGET:
        raise InputError(f"budget: {budget!r}; allowed: a number from 1 to {MAX_BUDGET:g}")
    return int(sound)
