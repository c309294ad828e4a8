"""All exponents and amplitudes in one table, and the verdicts on them in another."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from resnet_limits.figures import style
from resnet_limits.figures.picture import Picture, empty, finished, new_figure
from resnet_limits.fitted import CLAIM_COLUMNS, Row, claim_counts, claim_rows, rates_table_rows

# --- words ----------------------------------------------------------------------------------------


def exponent_words(row: Row) -> str:
    """Write the exponent of a row with its interval."""
    # Families are there to tell exponents apart that differ by a few hundredths.
    places = 3 if row["kind"] == "family" else 2
    return style.with_interval(
        row["exponent"],
        (row["exponent_low"], row["exponent_high"]),
        lambda value: style.fixed(value, places),
    )


def amplitude_words(row: Row) -> str:
    """Write the amplitude of a row with its interval."""
    return style.with_interval(row["amplitude"], (row["amplitude_low"], row["amplitude_high"]))


def variable_words(row: Row) -> str:
    """Name what a row of the table is about."""
    name = style.variable_name(row["variable"])
    return {
        "fit": name,
        "term": f"{name}, term",
        "floor": name,
        "alone": f"{name} alone",
        "budget": "P, best shapes",
        "family": name,
    }[row["kind"]]


def count_words(row: Row, name: str) -> str:
    """Write a number of cells."""
    return style.number(None) if row[name] is None else f"{row[name]}"


def _used(row: Row) -> str:
    return f"{count_words(row, 'used')}/{count_words(row, 'total')}"


# --- tables ---------------------------------------------------------------------------------------

_ROW_HEIGHT = 0.165
"""Height of one line of a table in inches."""


class _Sheet:
    """A figure that is a table: words in columns, in lines that are counted from above.

    Parameters
    ----------
    widths : sequence of float
        Those of the columns in inches.
    lines : float
        Height of all, in lines of the table.
    """

    def __init__(self, widths: Sequence[float], lines: float) -> None:
        self._width = sum(widths)
        self._lefts = [sum(widths[:k]) for k in range(len(widths))]
        width, height = mpl.rcParams["figure.figsize"]
        self.figure = new_figure(lines * _ROW_HEIGHT / height, self._width / width)
        self._axes = self.figure.add_subplot()
        self._axes.set_axis_off()

    def rule(self, at: float, thickness: float, colour: str = "black") -> None:
        """Draw a line across all columns."""
        self._axes.plot([0, self._width], [at, at], color=colour, lw=thickness, clip_on=False)

    def write(
        self,
        at: float,
        texts: Iterable[str],
        of_column: Mapping[int, Mapping[str, Any]] | None = None,
        **font: Any,
    ) -> None:
        """Write a line, from the first column on; single columns may have a font of their own."""
        for column, (left, text) in enumerate(zip(self._lefts, texts, strict=False)):
            own = {**font, **(of_column or {}).get(column, {})}
            self._axes.text(left, at + 0.55, text, va="center", fontsize=style.small(), **own)

    def finish(self, bottom: float) -> Figure:
        """End the table after its last line."""
        self._axes.set_xlim(-0.02, self._width)
        self._axes.set_ylim(bottom + 0.1, -0.1)
        return finished(self.figure)


# --- exponents and amplitudes ---------------------------------------------------------------------


_RATES_CAPTION = """\
All exponents and amplitudes of hidden states and outputs with 95 % intervals, beside the exponents
of theory. Intervals include the scatter over seeds (bootstrap over whole seeds), the limits' own
error, and the scatter of shapes about the law beyond both.

Amplitudes of a single power are fitted with the exponent of theory; lines marked "term" are fitted
together and add as root-sum-square. An amplitude of 0, or an interval that begins at 0, means that
the term is not seen beside the others. "P, best shapes" is the error of the best shape for each P.

Cells are combinations of a shape and a seed, counted at the last step. Those below resolution, that
is below ten standard errors of the limits, are used, with that error in the likelihood; those that
diverged or are missing are left out.
"""


@style.styled
def rates_table(rates: Mapping[str, Any]) -> Picture:
    """Draw the table: one line per exponent or term, the steps side by side.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.

    Returns
    -------
    Picture
        Counts of cells are those of the last step; exponents in one size alone are left out.
    """
    rows = [row for row in rates_table_rows(rates) if row["kind"] != "alone"]
    steps = sorted({row["step"] for row in rows})
    lines: dict[str, dict[tuple[str, str], dict[int, Row]]] = {}
    for row in rows:
        key = (row["quantity"], variable_words(row))
        lines.setdefault(row["pair"], {}).setdefault(key, {})[row["step"]] = row
    widths, headings = _columns(steps)
    count = len(headings) + sum(1.5 + len(of_pair) for of_pair in lines.values())
    name, title = "rates_table", "Exponents and amplitudes"
    if not lines:
        return empty(name, title, _RATES_CAPTION, "No rates were fitted.")
    sheet = _Sheet(widths, count + 0.5)
    y = 0.0
    sheet.rule(y, 1.0)
    for heading in headings:
        sheet.write(y, heading, weight="bold")
        y += 1.0
    sheet.rule(y, 0.6)
    for number, (pair, of_pair) in enumerate(lines.items()):
        if number:
            sheet.rule(y + 0.25, 0.5, style.pale())
        y += 0.25
        sheet.write(y, [style.pair_name(pair)], color=style.pair_colour(pair), weight="bold")
        y += 1.0
        previous = None
        for (quantity, variable), by_step in of_pair.items():
            last = by_step[max(by_step)]
            distance = style.QUANTITY_NAMES.get(quantity, quantity) if quantity != previous else ""
            sheet.write(
                y,
                [
                    distance,
                    variable,
                    style.fraction(last["theory"]),
                    *(text for step in steps for text in _step_texts(by_step.get(step))),
                    _used(last),
                    *(count_words(last, column) for column in ("diverged", "below_resolution")),
                    count_words(last, "missing"),
                ],
            )
            previous = quantity
            y += 1.0
        y += 0.25
    sheet.rule(y, 1.0)
    seen = sum(row["exponent"] is not None for row in rows)
    return Picture(
        name,
        title,
        f"{seen} of {len(rows)} rows have a fitted exponent; pairs: {len(lines)}, steps: "
        f"{', '.join(map(str, steps))}.",
        _RATES_CAPTION,
        sheet.finish(y),
        [f"Cells are counted at step {steps[-1]}."],
        pd.DataFrame(rows),
    )


def _columns(steps: list[int]) -> tuple[list[float], list[list[str]]]:
    """Widths in inches, and the two lines of the heading."""
    columns = [(1.3, "", "distance"), (1.15, "", "variable"), (0.5, "", "theory")]
    for step in steps:
        columns += [(1.4, f"step {step}", "exponent"), (1.5, "", "amplitude")]
    columns += [
        (0.7, "cells", "used"),
        (0.65, "", "diverged"),
        (0.75, "below", "resolution"),
        (0.55, "", "missing"),
    ]
    return [width for width, _, _ in columns], [
        [first for _, first, _ in columns],
        [second for _, _, second in columns],
    ]


def _step_texts(row: Row | None) -> tuple[str, str]:
    if row is None:
        return style.number(None), style.number(None)
    if row["reason"] and row["exponent"] is None and row["amplitude"] is None:
        return textwrap.shorten(row["reason"], 44, placeholder=" \N{HORIZONTAL ELLIPSIS}"), ""
    return exponent_words(row), amplitude_words(row)


# --- verdicts -------------------------------------------------------------------------------------

_VERDICT_WIDTHS = (1.15, 0.6, 0.4, 2.6, 0.55, 1.5, 0.75, 4.2)
"""Widths of the columns of the claims in inches."""

_VERDICT_COLOURS = {"agrees": "#117733", "disagrees": "#aa3377"}

_VERDICTS_CAPTION = """\
Every exponent and every amplitude claimed for hidden states and outputs, compared with the
measurement. Exponents are those of theory; amplitudes are predicted from the limit alone, without
any training. A sum of terms is judged as a whole, in units of its prediction.

A claim is about large sizes. It is judged on the shapes whose predicted distance from the limit is
small, with the next order of the law fitted as well. It agrees if it lies in the 95 % interval and
the interval is narrow enough. It disagrees if it lies so far outside that, were all claims true,
chance would put any claim of the table that far in at most one study of twenty. Otherwise it is
undecided, and the last column says what would decide. The full reasons are in `rates.json` under
`claims`.
"""


@style.styled
def verdicts(rates: Mapping[str, Any]) -> Picture:
    """Draw the table of claims: one line for each, with its verdict.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.
    """
    rows = claim_rows(rates)
    name, title = "verdicts", "Claims and verdicts"
    if not rows:
        return empty(name, title, _VERDICTS_CAPTION, "No claim was judged.")
    sheet = _Sheet(_VERDICT_WIDTHS, len(rows) + 1.5)
    place = CLAIM_COLUMNS.index("verdict")
    for number, row in enumerate((CLAIM_COLUMNS, *rows)):
        shown = [
            textwrap.shorten(text, int(width * 18), placeholder="...")
            for width, text in zip(_VERDICT_WIDTHS, row, strict=True)
        ]
        if not number:
            sheet.write(number, shown, weight="bold")
            continue
        verdict = row[place]
        weight = "bold" if verdict == "disagrees" else "normal"
        look = {"color": _VERDICT_COLOURS.get(verdict, style.limit_colour()), "weight": weight}
        sheet.write(number, shown, {place: look})
    for at in (0.0, 1.0, len(rows) + 1.0):
        sheet.rule(at, 0.6)
    return Picture(
        name,
        title,
        f"{claim_counts(rates)}.",
        _VERDICTS_CAPTION,
        sheet.finish(len(rows) + 1.0),
        table=pd.DataFrame(rows, columns=list(CLAIM_COLUMNS)),
    )
