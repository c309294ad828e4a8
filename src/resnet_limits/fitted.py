"""Fitted laws as they stand in rates.json: looked up, evaluated, and flattened into rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from resnet_limits.kinds import SYMBOLS
from resnet_limits.laws import POWERS, in_quadrature, variable_values

Fit = Mapping[str, Any]
Row = dict[str, Any]

_COUNTS = ("total", "used", "diverged", "below_resolution", "missing")


# --- one fit --------------------------------------------------------------------------------------


def entry(rates: Mapping[str, Any], pair: str, quantity: str, step: int | None) -> Fit:
    """Look up what rates.json says of one distance; empty if it says nothing."""
    quantities = (rates.get("pairs") or {}).get(pair) or {}
    return (quantities.get(quantity) or {}).get(str(step)) or {}


def fit_of(
    rates: Mapping[str, Any], pair: str, quantity: str, step: int | None
) -> tuple[Fit | None, str]:
    """Look up one fit.

    Returns
    -------
    fit : mapping or None
        None if there is no fit.
    reason : str
        Why there is none, or no exponent; empty if all is there.
    """
    fit = entry(rates, pair, quantity, step)
    if fit.get("exponent") is None and not fit.get("terms"):
        return None, str(fit.get("reason") or "No fit was made.")
    return fit, str(fit.get("reason") or "")


def law(
    fit: Fit, depth: np.ndarray | float, width: np.ndarray | float, embed_dim: np.ndarray | float
) -> np.ndarray | None:
    """Evaluate a fitted law at any sizes.

    Parameters
    ----------
    fit : mapping
        An entry of rates.json: one power of one variable, or several terms that add as squares
        (and a floor, which holds the place of terms that are the same for all shapes).
    depth, width, embed_dim : array or float
        L, M, D, broadcast against each other; 0 stands for infinite.

    Returns
    -------
    ndarray or None
        The error by the law; None if the fit has a term of an unknown name.
    """
    sizes = np.stack(
        np.broadcast_arrays(*(np.asarray(x, float) for x in (depth, width, embed_dim))), axis=-1
    )
    terms = fit.get("terms")
    if not terms:
        return power(fit, sizes)
    amplitudes = {name: term.get("amplitude") for name, term in terms.items()}
    if any(name not in POWERS or value is None for name, value in amplitudes.items()):
        return None
    error = in_quadrature(amplitudes, sizes)
    floor = (fit.get("floor") or {}).get("amplitude") or 0.0
    return np.hypot(error, floor)


def power(fit: Fit, sizes: np.ndarray) -> np.ndarray | None:
    """Evaluate the single power of a fit at sizes (..., 3); None if it has none."""
    variable, exponent, amplitude = (
        fit.get(name) for name in ("variable", "exponent", "amplitude")
    )
    if variable not in POWERS or exponent is None or amplitude is None:
        return None
    return np.asarray(amplitude * variable_values(variable, sizes) ** exponent)


def warnings(rates: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what rates.json warns of: where, and in which words.

    Of each distance, at the step with the most cells below resolution.
    """
    for pair, quantities in (rates.get("pairs") or {}).items():
        for quantity, steps in (quantities or {}).items():
            found = [
                (fit["cells"]["below_resolution"], int(step), str(fit["warning"]))
                for step, fit in (steps or {}).items()
                if fit and fit.get("warning")
            ]
            if found:
                _, step, words = max(found)
                yield f"{pair}, {quantity}, step {step}", words


# --- all fits as rows -----------------------------------------------------------------------------


def power_of_ten(value: float) -> str:
    """Write a round number of parameters: 10000 as ``1e4``."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def rates_table_rows(rates: Mapping[str, Any]) -> list[Row]:
    """Flatten rates.json into one row per exponent or amplitude.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.

    Returns
    -------
    list of dict
        Keys ``pair``, ``quantity``, ``step`` (int); ``kind`` (``"fit"``: one power of a variable;
        ``"term"``: one of several terms, with the exponent of theory; ``"floor"``: what
        stands for terms that are the same for all shapes; ``"alone"``: the exponent in one
        size with the others fixed; ``"budget"``: best shapes against P; ``"family"``: the
        shapes of a family against P); ``variable``;
        ``exponent``, ``exponent_low``, ``exponent_high``, ``theory``, ``amplitude``,
        ``amplitude_low``, ``amplitude_high`` (float or None; the amplitude of a ``"fit"`` is that
        at the exponent of theory); ``total``, ``used``, ``diverged``, ``below_resolution``,
        ``missing`` (numbers of cells, or None); ``reason`` (why a fit is not there, else empty).
    """
    rows: list[Row] = []
    for pair, quantities in (rates.get("pairs") or {}).items():
        for quantity, steps in (quantities or {}).items():
            for step, fit in (steps or {}).items():
                head = {"pair": pair, "quantity": quantity, "step": int(step)}
                rows += [{**head, **row} for row in _fit_rows(fit or {})]
                for name, family in (rates.get("families") or {}).items():
                    found = family["pairs"][pair][quantity][step]
                    rows += [{**head, **row} for row in _family_rows(name, found)]
    return rows


def _family_rows(name: str, found: Mapping[str, Any]) -> Iterator[Row]:
    for fit in found["fits"]:
        start = (
            f" \N{GREATER-THAN OR EQUAL TO} {power_of_ten(fit['least'])}" if fit["least"] else ""
        )
        values = {**fit, "theory": found["theory"]}
        yield _row("family", f"P{start}, {name}", values, found["cells"], "amplitude")


def _row(
    kind: str, variable: str, values: Mapping[str, Any], cells: Mapping[str, Any], amplitude: str
) -> Row:
    low, high = values.get("exponent_interval") or (None, None)
    amplitude_low, amplitude_high = values.get(f"{amplitude}_interval") or (None, None)
    return {
        "kind": kind,
        "variable": variable,
        "exponent": values.get("exponent"),
        "exponent_low": low,
        "exponent_high": high,
        "theory": values.get("theory"),
        "amplitude": values.get(amplitude),
        "amplitude_low": amplitude_low,
        "amplitude_high": amplitude_high,
        **{name: cells.get(name) for name in _COUNTS},
        "reason": str(values.get("reason") or ""),
    }


def _fit_rows(fit: Fit) -> Iterator[Row]:
    cells = fit.get("cells") or {}
    terms = fit.get("terms") or {}
    single = fit.get("theory") is not None or fit.get("exponent") is not None
    if single or not terms:
        found = fit if single or fit.get("reason") else {**fit, "reason": "no fit was made"}
        variable = str(fit.get("variable") or "") if single else "all terms"
        yield _row("fit", variable, found, cells, "amplitude_at_theory")
    for name, term in terms.items():
        yield _row("term", name, term, cells, "amplitude")
    if fit.get("floor"):
        yield _row("floor", "floor", fit["floor"], cells, "amplitude")
    for size, alone in (fit.get("individual") or {}).items():
        if alone:
            yield _row("alone", SYMBOLS.get(size, size), alone, cells, "amplitude")
    if fit.get("fixed_budget"):
        yield _row("budget", "P", fit["fixed_budget"], cells, "amplitude")


# --- claims ---------------------------------------------------------------------------------------

CLAIM_COLUMNS = ("pair", "of", "step", "claim", "theory", "measured [95 %]", "verdict", "why")
"""Columns of the table of claims."""

VERDICTS = ("agrees", "disagrees", "undecided")
"""What may become of a claim."""

EXPONENT, EXPONENT_IN_P, AMPLITUDE = CLAIM_KINDS = ("exponent", "exponent in P", "amplitude")
"""What a claim may be about, in the order in which claims are told."""


def claim_kind(claim: Mapping[str, Any]) -> str:
    """Tell what a claim is about, one of `CLAIM_KINDS`; its words begin with it."""
    words = str(claim["claim"])
    if words.startswith(AMPLITUDE):
        return AMPLITUDE
    return EXPONENT_IN_P if words.startswith(EXPONENT_IN_P) else EXPONENT


def ranked_claims(rates: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give the claims of rates.json in the order in which they are told.

    Those that disagree come first, then exponents, exponents in P and amplitudes; of each kind by
    pair and observable, in the order of rates.json, the last step first.
    """
    claims = list(rates.get("claims") or ())
    places = {place: k for k, place in enumerate(dict.fromkeys(map(_place, claims)))}

    def rank(claim: Mapping[str, Any]) -> tuple[int, ...]:
        return (
            claim["verdict"] != "disagrees",
            CLAIM_KINDS.index(claim_kind(claim)),
            places[_place(claim)],
            -int(claim["where"]["step"]),
        )

    return sorted(claims, key=rank)


def _place(claim: Mapping[str, Any]) -> tuple[str, str]:
    return claim["where"]["pair"], claim["where"]["observable"]


def claim_rows(rates: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Give the claims of rates.json in words, a row for each under `CLAIM_COLUMNS`.

    Theory is the exponent or, for an amplitude, what is predicted of it. The order is that of
    `ranked_claims`.
    """
    rows: list[tuple[str, ...]] = []
    for claim in ranked_claims(rates):
        where, bounds = claim["where"], claim["interval"]
        theory = claim["predicted"] if claim["theory"] is None else claim["theory"]
        measured = _said(claim["measured"])
        if bounds:
            measured += f" [{_said(bounds[0])}, {_said(bounds[1])}]"
        rows.append(
            (
                *(where["pair"], where["observable"], str(where["step"]), claim["claim"]),
                *(_said(theory), measured, claim["verdict"], claim["why"]),
            )
        )
    return rows


def verdict_counts(rates: Mapping[str, Any]) -> dict[str, int]:
    """Count the claims of each of the `VERDICTS`."""
    verdicts = [claim["verdict"] for claim in rates.get("claims") or ()]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def claim_counts(rates: Mapping[str, Any]) -> str:
    """Say how many claims agree, disagree and are undecided."""
    agree, disagree, undecided = verdict_counts(rates).values()
    total = agree + disagree + undecided
    return (
        f"{total} claim{'s' * (total != 1)}: {agree} agree{'s' * (agree == 1)}, "
        f"{disagree} disagree{'s' * (disagree == 1)}, "
        f"{undecided} {'is' if undecided == 1 else 'are'} undecided"
    )


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
