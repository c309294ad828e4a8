"""How the error falls with P along families of shapes, and with which exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import OBSERVABLES, said, sentence
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.fitted import Fit, power_of_ten
from resnet_limits.kinds import SIZES, SYMBOLS
from resnet_limits.predicted import Known, Prediction, distance, known, unpredicted

_LINE_HEIGHT = 0.055
"""Of the words in a panel, in parts of its height."""


_CAPTION = """\
Error against the number of parameters P = LMD along families of shapes, one row for each family:
depth and embedding dimension are the powers of P given in the title of the panel. Left, the hidden
states of the last layer; right, the outputs.

- **Colours and markers** distinguish the pairs of networks and limits: the two parts of the error,
  finite network to Mean ODE (width and depth) and Mean ODE to DMFT limit (embedding dimension), and
  their sum.
- **Points** are shapes: the root mean square over seeds, with the limits' own error subtracted;
  **bars** are 95 % intervals, drawn side by side. **Hollow points** are below resolution, that is
  below ten standard errors of the limits; they enter the fits, with that error in the likelihood.
- **Solid lines** are predicted from the limit alone for the shape of every point, without training
  any network and without a free parameter.
- **Dotted lines** are fitted powers of P, over all shapes and from the given P on; their exponents,
  with 95 % intervals, are listed below in the order and the colours of the pairs.
- The last column is the exponent of the slowest term of theory along the family. **Dashed lines**
  show this exponent, at the height of the points, where nothing is predicted. An error whose
  slowest term has a small amplitude falls faster: the distance of outputs to the Mean ODE, where
  1/L is small, falls as D/(LM) and 1/√(LM) do.
"""


@style.styled
def frontier(rates: Mapping[str, Any], prediction: Prediction | None = None) -> Picture:
    """Draw the error against P = L M D along each family of shapes, its parts apart.

    One row per family; left the hidden error, right the output error. Every pair has its predicted
    curve, its fitted power, and, dashed where nothing is predicted, the exponent of theory through
    the middle of its points.

    Parameters
    ----------
    rates : mapping
        The contents of rates.json.
    prediction : mapping or None
        The contents of prediction.json.

    Returns
    -------
    Picture
    """
    name = "frontier"
    families = rates.get("families") or {}
    step = rates["steps"][-1] if rates.get("steps") else None
    title = f"Error along families of shapes, step {step}"
    if not families:
        reason = "This experiment has no families of shapes."
        return empty(name, "Error along families of shapes", _CAPTION, reason)
    figure = new_figure(1.3 * len(families))
    axes_of = figure.subplots(len(families), len(OBSERVABLES), squeeze=False)
    twin, message, counts, pairs = Twin(), [], [], dict[str, None]()
    for row, (family_name, family) in zip(axes_of, families.items(), strict=True):
        for axes, quantity in zip(row, OBSERVABLES, strict=True):
            fits = {
                pair: (found.get(quantity) or {}).get(str(step)) or {}
                for pair, found in (family.get("pairs") or {}).items()
            }
            axes.set_xlabel("number of parameters $P = LMD$")
            axes.set_ylabel(style.AXIS_NAMES[quantity])
            axes.set_title(f"family {family_name}: {_powers(family)}")
            predictions = {pair: known(prediction, pair, quantity, step) for pair in fits}
            fixed = {"family": family_name, "observable": quantity, "gradient_step": step}
            drawn = _panel(axes, fits, predictions, (twin, fixed))
            pairs |= dict.fromkeys(drawn)
            message += [
                words
                for pair in drawn
                if pair == "finite-dmft" and (words := _said(family_name, quantity, fits[pair]))
            ]
            counts += [
                f"{family_name}, {style.pair_name(pair)}, {quantity}: {words}."
                for pair, fit in fits.items()
                if (words := _lost(fit))
            ]
    if not pairs:
        return empty(name, title, _CAPTION, "No family has an error at this step.", counts)
    panels.key(
        figure,
        [
            *(
                panels.mark(
                    style.pair_name(pair),
                    color=style.pair_colour(pair),
                    marker=style.pair_marker(pair),
                    ms=3.4,
                )
                for pair in pairs
            ),
            *panels.marks("interval", "fit"),
        ],
    )
    return Picture(
        name,
        title,
        sentence(f"step {step}, {len(families)} families", *message),
        _CAPTION,
        finished(figure),
        [*unpredicted(prediction, list(pairs), OBSERVABLES, step), *counts],
        twin.frame(),
    )


def _said(family: str, quantity: str, fit: Fit) -> str:
    """Say how the distance to the DMFT limit falls along a family, over all shapes."""
    for found in fit["fits"]:
        if found["exponent"] is not None:
            shown = style.with_interval(
                found["exponent"], found["exponent_interval"], lambda x: style.fixed(x, 3)
            )
            return (
                f"along the family {family} the {quantity} error scales as P to the power {shown} "
                f"(slowest term of theory {style.fraction(fit['theory'])})"
            )
    return ""


def _powers(family: Mapping[str, Any]) -> str:
    """Write what a family is, as in ``D ~ P^(1/3), L ~ P^(1/6)``, as formulas."""
    return ", ".join(
        rf"${SYMBOLS[size]} \sim P^{{{style.fraction(family.get(size))}}}$"
        for size in ("embed_dim", "depth")
    )


def _lost(fit: Fit) -> str:
    """Say what became of cells; empty if all are used and resolved."""
    cells = fit.get("cells") or {}
    whole = all(not cells.get(name) for name in ("diverged", "missing", "below_resolution"))
    return "" if whole else said(cells)


def _panel(
    axes: Axes,
    fits: Mapping[str, Fit],
    predictions: Mapping[str, Known],
    record: tuple[Twin, dict[str, Any]],
) -> list[str]:
    """Draw one distance along one family; return the pairs that have points."""
    shown = {pair: fit for pair, fit in fits.items() if fit.get("points")}
    if not shown:
        panels.small_print(axes, 0.05, 0.9, "No network or limit has an error at this step.")
        return []
    lowest, highest = math.inf, 0.0
    lines = [(style.limit_colour(), _headings(next(iter(shown.values()))))]
    for shift, (pair, fit) in zip(panels.shifts(len(shown)), shown.items(), strict=True):
        error, ends = _draw_pair(axes, pair, fit, predictions[pair], shift, record)
        # Intervals of few seeds may span decades; they must not flatten everything else.
        lowest = min(lowest, max(ends[:, 0].min(), error.min() / 3))
        highest = max(highest, min(ends[:, 1].max(), error.max() * 3))
        lines.append((style.pair_colour(pair), _exponents(fit)))
    panels.log_axis(axes, "x")
    # Room for the exponents below the points.
    room = _LINE_HEIGHT * (len(lines) + 0.5)
    decades = math.log10(highest / lowest) if highest > lowest else 1.0
    axes.set_ylim(lowest / 10 ** (decades * room / (1 - room) + 0.08), highest * 1.3)
    panels.log_axis(axes, "y")
    _write(axes, lines)
    return list(shown)


def _draw_pair(
    axes: Axes,
    pair: str,
    fit: Fit,
    found: Known,
    shift: float,
    record: tuple[Twin, dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points, law and fits of one pair; return its errors and the ends of their intervals."""
    twin, fixed = record[0], {**record[1], "pair": pair}
    colour, place = style.pair_colour(pair), panels.shifted(axes, shift)
    P = np.array([point["parameters"] for point in fit["points"]], float)
    error = np.array([point["error"] for point in fit["points"]])
    ends = np.array([point["error_interval"] or [point["error"]] * 2 for point in fit["points"]])
    hollow = np.array([not point.get("resolved", True) for point in fit["points"]])
    axes.vlines(
        P, ends[:, 0], ends[:, 1], colors=colour, lw=0.8, alpha=0.8, transform=place, zorder=3
    )
    look: dict[str, Any] = {
        "ls": "none",
        "marker": style.pair_marker(pair),
        "ms": 3.2,
        "color": colour,
    }
    axes.plot(P, error, label="_points", transform=place, zorder=3, **look)
    axes.plot(P[hollow], error[hollow], mfc="white", transform=place, zorder=4, **look)
    sizes = np.array([[point[name] for name in SIZES] for point in fit["points"]], float)
    columns = {name: sizes[:, k].astype(int) for k, name in enumerate(SIZES)}
    twin.add(
        series="measured",
        **fixed,
        parameters=P,
        **columns,
        error_rms=error,
        interval_low=ends[:, 0],
        interval_high=ends[:, 1],
        resolved=~hollow,
    )
    curve = distance(found, sizes)
    if curve is None:
        middle, level = np.exp(np.log(P).mean()), np.exp(np.log(error).mean())
        span = np.array([P.min() / 1.5, P.max() * 1.5])
        values = level * (span / middle) ** fit["theory"]
        look = {"color": style.limit_colour(), "lw": 0.9, "ls": style.DASHED}
        axes.plot(span, values, label="_theory", zorder=1, **look)
        twin.add(series="theory", **fixed, parameters=span, error_rms=values)
    else:
        axes.plot(P, curve, color=colour, label="_prediction", zorder=2)
        twin.add(series="predicted", **fixed, parameters=P, **columns, error_rms=curve)
    for of_range in fit["fits"]:
        if of_range["exponent"] is not None:
            span = np.array(of_range["parameters"], float)
            values = of_range["amplitude"] * span ** of_range["exponent"]
            axes.plot(span, values, color=colour, label="_fit", zorder=2, **style.faint())
            twin.add(series="fitted", **fixed, parameters=span, error_rms=values)
    return error, ends


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
        *(rf"$P \geq {_power_math(start)}$" if start else "all $P$" for start in starts),
        "slowest term",
    ]


def _power_math(value: float) -> str:
    mantissa, exponent = power_of_ten(value).split("e")
    first = "" if mantissa == "1" else rf"{mantissa} \times "
    return f"{first}10^{{{exponent}}}"


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
                fontsize=style.small() - 0.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
                zorder=4,
            )
