"""How the error falls with P along families of shapes, and with which exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_limits.figures import style
from resnet_limits.figures.cells import said
from resnet_limits.fitted import Fit, power_of_ten
from resnet_limits.kinds import SIZES, SYMBOLS
from resnet_limits.predicted import Known, Prediction, distance, known, unpredicted

_QUANTITIES = ("hidden", "output")
_ROW_HEIGHT = 3.1
_HEAD_HEIGHT = 0.7
_LINE_HEIGHT = 0.055
"""Of the words in a panel, in parts of its height."""


@style.styled
def frontier(rates: Mapping[str, Any], prediction: Prediction | None = None) -> Figure:
    """Draw the error against P = L M D along each family of shapes, its parts apart.

    One row per family; left the hidden error, right the output error. Every pair has its predicted
    curve, its fitted power, faint, and, dashed where nothing is predicted, the exponent of theory
    through the middle of its points.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.
    prediction : mapping or None
        The contents of prediction.json.

    Returns
    -------
    Figure
        Without families it says so in words.
    """
    families = rates.get("families") or {}
    figure = style.new_figure(_HEAD_HEIGHT + _ROW_HEIGHT * max(1, len(families)))
    step = rates["steps"][-1] if rates.get("steps") else None
    if not families:
        axes = figure.add_subplot()
        style.headline(figure, "Error against number of parameters, along families of shapes")
        style.missing(axes, "This experiment has no families of shapes.", 60)
        return figure
    panels = figure.subplots(len(families), 2, squeeze=False)
    any_drawn, counted, pairs = False, [], dict[str, None]()
    for row, (name, family) in zip(panels, families.items(), strict=True):
        for axes, quantity in zip(row, _QUANTITIES, strict=True):
            fits = {
                pair: (found.get(quantity) or {}).get(str(step)) or {}
                for pair, found in (family.get("pairs") or {}).items()
            }
            axes.set_xlabel("P = L M D")
            axes.set_ylabel(style.AXIS_NAMES[quantity])
            axes.set_title(f"family {name}: {_powers(family)}", weight="bold")
            predictions = {pair: known(prediction, pair, quantity, step) for pair in fits}
            drawn = _panel(axes, fits, predictions)
            pairs |= dict.fromkeys(drawn)
            if drawn and not any_drawn:
                _name_pairs(axes, drawn)
            any_drawn = any_drawn or bool(drawn)
            counted += [
                f"{name}, {style.pair_name(pair)}, {quantity}: {words}."
                for pair, fit in fits.items()
                if (words := _lost(fit))
            ]
    style.headline(figure, f"Error along families of shapes, step {step}")
    style.footnote(
        figure,
        "Points: RMS over seeds, without the limits' own error, hollow if below ten of its "
        "standard errors; bars and brackets: 95 %; solid: prediction from the limit alone, without "
        "any fit; faint: fitted powers of P; dashed, where nothing is predicted: the slowest term "
        "of theory, whose exponent is in the last column."
        if any_drawn
        else "",
        *unpredicted(prediction, list(pairs), _QUANTITIES, step),
        *counted,
    )
    return figure


def _name_pairs(axes: Axes, pairs: Sequence[str]) -> None:
    """Say once for all panels what the colours are, where falling errors leave room."""
    handles = [
        Line2D([], [], color=style.PAIR_COLOURS[pair], marker="o", label=style.pair_name(pair))
        for pair in pairs
    ]
    axes.legend(handles=handles, loc="upper right")


def _powers(family: Mapping[str, Any]) -> str:
    """Write what a family is: ``D ~ P^(1/3), L ~ P^(1/6)``."""
    return ", ".join(
        f"{SYMBOLS[size]} ~ P^({style.fraction(family.get(size))})"
        for size in ("embed_dim", "depth")
    )


def _lost(fit: Fit) -> str:
    """Say what became of cells; empty if all are used and resolved."""
    cells = fit.get("cells") or {}
    whole = all(not cells.get(name) for name in ("diverged", "missing", "below_resolution"))
    return "" if whole else said(cells)


def _panel(axes: Axes, fits: Mapping[str, Fit], predictions: Mapping[str, Known]) -> list[str]:
    """Draw one distance along one family; return the pairs that have points."""
    shown = {pair: fit for pair, fit in fits.items() if fit.get("points")}
    if not shown:
        style.missing(axes, "No network or limit has an error at this step.", 40)
        return []
    lowest, highest = math.inf, 0.0
    lines = [(style.BLACK, _headings(next(iter(shown.values()))))]
    for pair, fit in shown.items():
        colour = style.PAIR_COLOURS[pair]
        P = np.array([point["parameters"] for point in fit["points"]])
        error = np.array([point["error"] for point in fit["points"]])
        ends = [point["error_interval"] or [point["error"]] * 2 for point in fit["points"]]
        bars = np.abs(np.array(ends).T - error)
        axes.errorbar(P, error, bars, fmt="o", ms=3.0, color=colour, elinewidth=0.8, zorder=3)
        hollow = np.array([not point.get("resolved", True) for point in fit["points"]])
        axes.plot(P[hollow], error[hollow], "o", ms=3.0, mfc="white", color=colour, zorder=4)
        # Intervals of few seeds may span decades; they must not flatten everything else.
        lowest = min(lowest, max(min(low for low, _ in ends), error.min() / 3))
        highest = max(highest, min(max(high for _, high in ends), error.max() * 3))
        sizes = np.array([[point[name] for name in SIZES] for point in fit["points"]], float)
        curve = distance(predictions[pair], sizes)
        if curve is None:
            _theory_line(axes, P, error, fit)
        else:
            axes.plot(P, curve, color=colour, label="_prediction", zorder=2)
        for found in fit["fits"]:
            if found["exponent"] is not None:
                span = np.array(found["parameters"])
                axes.plot(
                    span,
                    found["amplitude"] * span ** found["exponent"],
                    color=colour,
                    label="_fit",
                    zorder=2,
                    **style.FAINT,
                )
        lines.append((colour, _exponents(fit)))
    axes.set_xscale("log")
    # Room for the exponents below the points.
    room = _LINE_HEIGHT * (len(lines) + 0.5)
    decades = math.log10(highest / lowest) if highest > lowest else 1.0
    axes.set_ylim(lowest / 10 ** (decades * room / (1 - room) + 0.08), highest * 1.3)
    style.log_axis(axes, "y")
    _write(axes, lines)
    return list(shown)


def _theory_line(axes: Axes, P: np.ndarray, error: np.ndarray, fit: Fit) -> None:
    middle, level = np.exp(np.log(P).mean()), np.exp(np.log(error).mean())
    ends = np.array([P.min() / 1.5, P.max() * 1.5])
    axes.plot(
        ends,
        level * (ends / middle) ** fit["theory"],
        color=style.BLACK,
        lw=0.9,
        ls=(0, (4, 2)),
        label="_theory",
        zorder=1,
    )


def _exponents(fit: Fit) -> list[str]:
    """Write the exponents of all ranges of P, and that of theory."""
    values = [
        style.with_interval(
            found["exponent"], found["exponent_interval"], lambda x: style.fixed(x, 3)
        )
        for found in fit["fits"]
    ]
    return [*values, style.fraction(fit["theory"])]


def _headings(fit: Fit) -> list[str]:
    starts = [found["least"] for found in fit["fits"]]
    return [
        *(
            f"P \N{GREATER-THAN OR EQUAL TO} {power_of_ten(start)}" if start else "all P"
            for start in starts
        ),
        "slowest term",
    ]


def _write(axes: Axes, lines: Sequence[tuple[str, list[str]]]) -> None:
    """Write a table of exponents at the lower edge, its last column to the right."""
    for k, (colour, texts) in enumerate(reversed(lines)):
        *lefts, right = texts
        places = [(0.02 + 0.43 * number, "left") for number in range(len(lefts))] + [
            (0.98, "right")
        ]
        for (x, side), text in zip(places, [*lefts, right], strict=True):
            axes.text(
                x,
                0.015 + _LINE_HEIGHT * k,
                text,
                transform=axes.transAxes,
                ha=side,
                va="bottom",
                color=colour,
                fontsize=style.SMALL_SIZE - 0.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
                zorder=4,
            )
