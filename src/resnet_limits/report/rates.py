"""All fitted exponents and amplitudes as rows of words, and as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resnet_limits.figures import style, tables
from resnet_limits.fitted import Row, rates_table_rows

QUANTITIES = {
    "hidden": "hidden states, RMS",
    "hidden_max_mean_abs": "hidden states, maximum",
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
    return Line(
        pair=style.pair_name(row["pair"]),
        quantity=QUANTITIES[row["quantity"]],
        step=str(row["step"]),
        variable=tables.variable_words(row),
        exponent=tables.exponent_words(row),
        theory=style.fraction(row["theory"]),
        amplitude=tables.amplitude_words(row),
        used=f"{tables.count_words(row, 'used')} of {tables.count_words(row, 'total')}",
        diverged=tables.count_words(row, "diverged"),
        below=tables.count_words(row, "below_resolution"),
        missing=tables.count_words(row, "missing"),
        reason=row["reason"],
    )
