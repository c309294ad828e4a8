"""All fitted exponents and amplitudes as rows of words, and as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resnet_limits.figures import style
from resnet_limits.fitted import Row, rates_table_rows

QUANTITIES = {
    "hidden": "hidden states, RMS",
    "hidden_max_mean_abs": "hidden states, maximum over depth of the mean absolute value",
    "output": "outputs, RMS",
}


@dataclass(frozen=True)
class Line:
    """One exponent or amplitude in words."""

    pair: str
    quantity: str
    step: str
    variable: str
    exponent: str
    theory: str
    amplitude: str
    used: str
    diverged: str
    below: str
    missing: str
    reason: str


def lines(rates: Mapping[str, Any]) -> list[Line]:
    """Put every row of `fitted.rates_table_rows` into words."""
    return [_line(row) for row in rates_table_rows(rates)]


def table(rates: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Give the rows with every digit, as header and rows of a CSV file."""
    rows = rates_table_rows(rates)
    header = list(rows[0]) if rows else []
    return header, [[row[name] for name in header] for row in rows]


def _line(row: Row) -> Line:
    # Exponents in P are there to tell those apart that differ by a few hundredths.
    places = 3 if row["kind"] in ("family", "budget") else 2
    return Line(
        pair=style.pair_name(row["pair"]),
        quantity=QUANTITIES.get(row["quantity"], row["quantity"]),
        step=str(row["step"]),
        variable=_variable(row),
        exponent=style.with_interval(
            row["exponent"],
            (row["exponent_low"], row["exponent_high"]),
            lambda value: style.fixed(value, places),
        ),
        theory=style.fraction(row["theory"]),
        amplitude=style.with_interval(
            row["amplitude"], (row["amplitude_low"], row["amplitude_high"])
        ),
        used=f"{_count(row, 'used')} of {_count(row, 'total')}",
        diverged=_count(row, "diverged"),
        below=_count(row, "below_resolution"),
        missing=_count(row, "missing"),
        reason=row["reason"],
    )


def _variable(row: Row) -> str:
    name = style.variable_name(row["variable"])
    return {
        "term": f"{name}, term",
        "alone": f"{name} alone",
        "budget": "P, best shapes",
    }.get(row["kind"], name)


def _count(row: Row, name: str) -> str:
    return style.number(None) if row[name] is None else str(row[name])
