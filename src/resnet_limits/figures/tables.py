"""All exponents and amplitudes in one table: as a web page, as a figure."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from resnet_limits.figures import style
from resnet_limits.fitted import Row, rates_table_rows

# --- words ----------------------------------------------------------------------------------------


def _exponent(row: Row) -> str:
    # Families are there to tell exponents apart that differ by a few hundredths.
    places = 3 if row["kind"] == "family" else 2
    return style.with_interval(
        row["exponent"],
        (row["exponent_low"], row["exponent_high"]),
        lambda value: style.fixed(value, places),
    )


def _amplitude(row: Row) -> str:
    return style.with_interval(row["amplitude"], (row["amplitude_low"], row["amplitude_high"]))


def _variable(row: Row) -> str:
    name = style.variable_name(row["variable"])
    return {
        "fit": name,
        "term": f"{name}, term",
        "floor": name,
        "alone": f"{name} alone",
        "budget": "P, best shapes",
        "family": name,
    }[row["kind"]]


def _count(row: Row, name: str) -> str:
    return style.number(None) if row[name] is None else f"{row[name]}"


def _used(row: Row) -> str:
    return f"{_count(row, 'used')}/{_count(row, 'total')}"


# --- web page -------------------------------------------------------------------------------------

_CSS = """
body { font: 14px/1.45 "DejaVu Sans", Arial, Helvetica, sans-serif; color: #111; margin: 2em; }
table { border-collapse: collapse; }
caption { text-align: left; font-weight: bold; padding-bottom: .6em; }
th, td { padding: .25em .8em; text-align: left; white-space: nowrap; }
th { border-bottom: 1.5px solid #111; }
thead th { border-top: 1.5px solid #111; }
tbody { border-bottom: 1px solid #bbb; }
tbody:last-of-type { border-bottom: 1.5px solid #111; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.r { color: #6e6e6e; white-space: normal; }
p { max-width: 52em; color: #444; }
"""

_HTML_COLUMNS = (
    "distance",
    "step",
    "variable",
    "exponent [95 %]",
    "theory",
    "amplitude [95 %]",
    "cells used",
    "diverged",
    "below resolution",
    "missing",
    "remark",
)

_EXPLANATION = (
    "Exponents are slopes of log error against the log of the variable. Intervals cover 95 %, by "
    "bootstrap over whole seeds, the limits' error and the misfit. Amplitudes of a "
    "single power are taken with the exponent of theory. Terms are fitted as a whole and add as "
    "squares. Below resolution: under ten times the limits' own standard error; such cells are "
    "used, with that error in the likelihood. Diverged and missing cells are left out of every fit."
)


def rates_table_html(rates: Mapping[str, Any]) -> str:
    """Write the table of all exponents as a web page that needs no other file.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.

    Returns
    -------
    str
        A whole HTML document.
    """
    title = f"Exponents and amplitudes, {rates.get('experiment', '')}".rstrip(", ")
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in _HTML_COLUMNS)
    body: list[str] = []
    pair = ""
    for row in rates_table_rows(rates):
        if row["pair"] != pair:
            pair = row["pair"]
            if body:
                body.append("</tbody>")
            body.append(
                f'<tbody><tr><th scope="rowgroup" colspan="{len(_HTML_COLUMNS)}">'
                f"{html.escape(style.pair_name(pair))}</th></tr>"
            )
        quantity = style.QUANTITY_NAMES.get(row["quantity"], str(row["quantity"]))
        numbers = (
            _exponent(row),
            style.fraction(row["theory"]),
            _amplitude(row),
            _used(row),
            *(_count(row, name) for name in ("diverged", "below_resolution", "missing")),
        )
        body.append(
            f"<tr><td>{html.escape(quantity)}</td><td class='n'>{row['step']}</td>"
            f"<td>{html.escape(_variable(row))}</td>"
            + "".join(f"<td class='n'>{html.escape(value)}</td>" for value in numbers)
            + f"<td class='r'>{html.escape(row['reason'])}</td></tr>"
        )
    if body:
        body.append("</tbody>")
    else:
        body.append(
            f'<tbody><tr><td colspan="{len(_HTML_COLUMNS)}">No rates were fitted.</td></tr></tbody>'
        )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body>\n"
        f"<table><caption>{html.escape(title)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n" + "\n".join(body) + "\n</table>\n"
        f"<p>{html.escape(_EXPLANATION)}</p>\n</body></html>\n"
    )


# --- figure ---------------------------------------------------------------------------------------

_ROW_HEIGHT = 0.165
"""Height of one line of the table in inches."""


@style.styled
def rates_table(rates: Mapping[str, Any]) -> Figure:
    """Draw the table: one line per exponent or term, the steps side by side.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.

    Returns
    -------
    Figure
        Counts of cells are those of the last step; exponents in one size alone stand in
        `rates_table_html` only.
    """
    rows = [row for row in rates_table_rows(rates) if row["kind"] != "alone"]
    steps = sorted({row["step"] for row in rows})
    lines: dict[str, dict[tuple[str, str], dict[int, Row]]] = {}
    for row in rows:
        key = (row["quantity"], _variable(row))
        lines.setdefault(row["pair"], {}).setdefault(key, {})[row["step"]] = row
    widths, headings = _columns(steps)
    lefts = [sum(widths[:k]) for k in range(len(widths))]
    count = len(headings) + sum(1.5 + len(of_pair) for of_pair in lines.values())
    figure = style.new_figure(max(1.6, (count + 4.5) * _ROW_HEIGHT), sum(widths))
    axes = figure.add_subplot()
    axes.set_axis_off()
    style.headline(figure, f"Exponents and amplitudes, {rates.get('experiment', '')}".rstrip(", "))
    if not lines:
        style.missing(axes, "No rates were fitted.", 60)
        return figure

    def rule(at: float, width: float, colour: str = style.BLACK) -> None:
        axes.plot([0, sum(widths)], [at, at], color=colour, lw=width, clip_on=False)

    def write(at: float, values: Iterable[str], **font: Any) -> None:
        for left, value in zip(lefts, values, strict=False):
            axes.text(left, at + 0.55, value, va="center", fontsize=style.SMALL_SIZE, **font)

    y = 0.0
    rule(y, 1.0)
    for heading in headings:
        write(y, heading, weight="bold")
        y += 1.0
    rule(y, 0.6)
    for number, (pair, of_pair) in enumerate(lines.items()):
        if number:
            rule(y + 0.25, 0.5, style.LIGHT_GREY)
        y += 0.25
        write(y, [style.pair_name(pair)], color=style.PAIR_COLOURS.get(pair), weight="bold")
        y += 1.0
        previous = None
        for (quantity, variable), by_step in of_pair.items():
            last = by_step[max(by_step)]
            name = style.QUANTITY_NAMES.get(quantity, quantity) if quantity != previous else ""
            write(
                y,
                [
                    name,
                    variable,
                    style.fraction(last["theory"]),
                    *(text for step in steps for text in _step_texts(by_step.get(step))),
                    _used(last),
                    *(_count(last, column) for column in ("diverged", "below_resolution")),
                    _count(last, "missing"),
                ],
            )
            previous = quantity
            y += 1.0
        y += 0.25
    rule(y, 1.0)
    axes.set_xlim(-0.02, sum(widths))
    axes.set_ylim(y + 0.1, -0.1)
    style.footnote(
        figure,
        "Intervals: 95 %, over seeds. Terms add as squares. Amplitudes of a single power: with the "
        "exponent of theory. Below resolution: under ten times the limits' own standard error; "
        "these are used, with that error in the likelihood. "
        f"Cells: at step {steps[-1]}; those that diverged or are missing are left out of the fits.",
        characters=math.floor(sum(widths) * 17),
    )
    return figure


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
    return _exponent(row), _amplitude(row)
