"""The claims of rates.json as the page shows them: a summary of pairs and distances, and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from resnet_limits.figures import style
from resnet_limits.fitted import (
    AMPLITUDE,
    EXPONENT,
    EXPONENT_IN_P,
    claim_kind,
    power_of_ten,
    ranked_claims,
    verdict_counts,
)
from resnet_limits.kinds import SIZES, SYMBOLS
from resnet_limits.laws import PREDICTED, terms_of
from resnet_limits.report.markup import distance, interval_picture

Claim = Mapping[str, Any]

OBSERVABLES = {"hidden": "hidden states", "output": "outputs"}
"""Names of the distances that claims are about."""

HEADER = (
    *("verdict", "claim", "pair", "distance of", "step", "theory", "predicted"),
    *("predicted_uncertainty", "measured", "low", "high", "chance", "why"),
)
"""Columns of the claims as CSV."""

_MARKS = {"agrees": "\N{CHECK MARK}", "disagrees": "\N{BALLOT X}", "undecided": "?"}


@dataclass(frozen=True)
class Row:
    """One claim in words.

    Attributes
    ----------
    name : str
        By which the summary points to the row.
    verdict, mark : str
        What became of it, as a word and as a sign.
    claim, pair, observable, step, theory, predicted, measured, interval, why : str
        As they are shown.
    short : str
        The measured value beside theory, for the summary.
    notes : list of str
        What it was judged on, and how the exponent changes with size.
    picture : Markup
        The interval about the reference; empty if there is none.
    """

    name: str
    verdict: str
    mark: str
    claim: str
    pair: str
    observable: str
    step: str
    theory: str
    predicted: str
    measured: str
    interval: str
    why: str
    short: str
    notes: list[str]
    picture: Markup


@dataclass(frozen=True)
class Line:
    """One line of the summary: a pair, and the claims of each column.

    Attributes
    ----------
    title, law : str
        The pair in words, and the terms of its distance of hidden states; or P and which shapes.
    cells : list of list of Row
        Claims of the exponent of hidden states and of outputs, and of their amplitudes, by step.
    """

    title: str
    law: str
    cells: list[list[Row]]


COLUMNS = tuple((kind, observable) for kind in (EXPONENT, AMPLITUDE) for observable in OBSERVABLES)
"""Columns of the summary."""


def rows(rates: Mapping[str, Any]) -> list[Row]:
    """Put every claim into words, in the order of `ranked_claims`."""
    return [_row(number, claim) for number, claim in enumerate(ranked_claims(rates), start=1)]


def summary(rates: Mapping[str, Any]) -> list[Line]:
    """Arrange all claims by pair, and by what they are about.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.

    Returns
    -------
    list of Line
        Every claim stands in one cell. A pair has a line for its law, and one for each exponent
        in P.
    """
    ranked = ranked_claims(rates)
    found: dict[tuple[str, str], dict[tuple[str, str], list[tuple[int, Row]]]] = {}
    order = {claim["where"]["pair"]: None for claim in rates.get("claims") or ()}
    for claim, row in zip(ranked, rows(rates), strict=True):
        where, kind = claim["where"], claim_kind(claim)
        # Exponents in P have a line of their own, in the columns of exponents.
        line = claim["claim"] if kind == EXPONENT_IN_P else ""
        column = (EXPONENT if kind == EXPONENT_IN_P else kind, where["observable"])
        of_line = found.setdefault((where["pair"], line), {})
        of_line.setdefault(column, []).append((int(where["step"]), row))
    keys = sorted(found, key=lambda key: (list(order).index(key[0]), key[1] != ""))
    lines = []
    for pair, line in keys:
        cells = [
            [row for _, row in sorted(found[pair, line].get(column, []), key=lambda one: one[0])]
            for column in COLUMNS
        ]
        law = " + ".join(map(style.variable_name, terms_of(pair, PREDICTED[0])))
        shapes = line.removeprefix(f"{EXPONENT_IN_P} of the ")
        lines.append(Line(style.pair_name(pair), f"P, {shapes}" if line else law, cells))
    return lines


def sentence(rates: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say how many claims hold, in pieces, each with the verdict that it is about (or "")."""
    counts = verdict_counts(rates)
    agree, disagree, undecided = counts.values()
    total = sum(counts.values())
    if not total:
        return [("No claim was judged.", "")]
    if total == 1:
        word = next(verdict for verdict, count in counts.items() if count)
        return [
            ("The one claim ", ""),
            (f"{'is ' if word == 'undecided' else ''}{word}", word),
            (".", ""),
        ]
    if agree == total:
        return [(f"All {total} claims agree", "agrees"), (".", "")]
    pieces = [
        (f"{agree or 'None'} of {total} claims {_verb('agree', agree)}", "agrees", agree),
        (f"{_none(disagree)} {_verb('disagree', disagree)}", "disagrees", disagree),
        (
            f"{_none(undecided)} {'are' if undecided > 1 else 'is'} undecided",
            "undecided",
            undecided,
        ),
    ]
    said: list[tuple[str, str]] = []
    for words, verdict, count in pieces:
        said += [(", ", "")] * bool(said) + [(words, verdict if count else "")]
    return [*said, (".", "")]


def _verb(word: str, count: int) -> str:
    return word if count > 1 else f"{word}s"


def _none(count: int) -> str:
    return str(count) if count else "none"


def table(rates: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Give the claims under `HEADER`, with every digit."""
    found: list[tuple[object, ...]] = []
    for claim in ranked_claims(rates):
        where = claim["where"]
        low, high = claim["interval"] or (None, None)
        found.append(
            (
                *(claim["verdict"], claim["claim"]),
                *(where["pair"], where["observable"], where["step"]),
                *(claim["theory"], claim["predicted"], claim.get("predicted_uncertainty")),
                *(claim["measured"], low, high, claim.get("chance"), claim["why"]),
            )
        )
    return found


# --- one claim ------------------------------------------------------------------------------------


def _row(number: int, claim: Claim) -> Row:
    where, kind = claim["where"], claim_kind(claim)
    is_amplitude = kind == AMPLITUDE
    show = _exponent if kind == EXPONENT else style.number
    measured, bounds, predicted = claim["measured"], claim["interval"], claim["predicted"]
    theory = style.fraction(claim["theory"])
    if measured is None:
        short = "not measured"
    elif is_amplitude:
        short = f"\N{MULTIPLICATION SIGN}\N{THIN SPACE}{style.fixed(measured / predicted)}"
    else:
        short = f"{show(measured)} ({theory})"
    return Row(
        name=f"claim-{number}",
        verdict=claim["verdict"],
        mark=_MARKS.get(claim["verdict"], ""),
        claim=style.variable_name(str(claim["claim"])),
        pair=style.pair_name(where["pair"]),
        observable=OBSERVABLES.get(where["observable"], where["observable"]),
        step=str(where["step"]),
        theory=theory,
        predicted=_predicted(claim, show),
        measured=show(measured),
        interval=f"[{show(bounds[0])}, {show(bounds[1])}]" if bounds else "\N{EN DASH}",
        why=_sentence(str(claim["why"])),
        short=short,
        notes=_notes(claim),
        picture=_picture(claim, is_amplitude=is_amplitude),
    )


def _exponent(value: float | None) -> str:
    return style.fixed(value, 3)


def _predicted(claim: Claim, show: Any) -> str:
    value, error = claim["predicted"], claim.get("predicted_uncertainty")
    if value is None or not error:
        return str(show(value))
    return f"{show(value)} \N{PLUS-MINUS SIGN} {style.number(error, 2)}"


def _picture(claim: Claim, *, is_amplitude: bool) -> Markup:
    reference = claim["theory"] if claim["predicted"] is None else claim["predicted"]
    if None in (reference, claim["measured"], claim.get("width")) or not claim["interval"]:
        return Markup("")
    measured, low, high = (
        distance(value, reference, is_amplitude=is_amplitude)
        for value in (claim["measured"], *claim["interval"])
    )
    return interval_picture(measured, low, high, claim["width"])


def _notes(claim: Claim) -> list[str]:
    notes = []
    judged = claim.get("range")
    if judged:
        sizes = ", ".join(
            f"{SYMBOLS[name]} {_span(judged[name], str)}" for name in SIZES if name in judged
        )
        if "parameters" in judged:
            sizes = f"P {_span(judged['parameters'], power_of_ten)}"
        shapes = f"{judged['shapes']} of {judged['of']} shapes"
        notes.append(f"Judged on {shapes}{f' ({sizes})' if sizes else ''}: {judged['rule']}.")
    slopes = claim.get("slopes") or []
    if slopes:
        told = ", ".join(
            f"{_exponent(slope['exponent'])} ({style.number(slope['from'], 2)} to "
            f"{style.number(slope['to'], 2)})"
            for slope in slopes
        )
        notes.append(f"Local exponents over all shapes, from small to large values: {told}.")
    return notes


def _span(ends: Sequence[Any], show: Any) -> str:
    low, high = ends
    return f"{show(low)}" if low == high else f"{show(low)} to {show(high)}"


def _sentence(words: str) -> str:
    """Begin with a capital letter, end with a full stop, and write signs as signs."""
    words = words.replace("+-", "\N{PLUS-MINUS SIGN}")
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"
