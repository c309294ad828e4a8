"""How the error falls with the number of parameters, and how far the best shapes bring it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import (
    OBSERVABLES,
    Errors,
    ShapeErrors,
    by_shape,
    counted,
    extremes,
    last_step,
    not_predicted,
    sentence,
)
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.fitted import Fit, entry
from resnet_limits.kinds import SIZES
from resnet_limits.laws import BUDGET_EXPONENTS
from resnet_limits.optimum import best_sizes
from resnet_limits.predicted import Known, Prediction, known

_PAIR = "finite-dmft"
_FEW_SHAPES = 20
"""Up to this number, the points of all shapes are drawn large and dark."""

_CAPTION = """\
Distance of finite networks from the DMFT limit against the number of parameters P = LMD: left, in
the hidden states of the last layer; right, in the outputs.

- **Grey points** are shapes: the root mean square over seeds, with the limits' own error
  subtracted.
- **Large points** are the shapes with the smallest error among those of about the same P (within a
  quarter of a decade), with their 95 % interval over seeds.
- **Crossed points** are such shapes too, but their D is the smallest or the largest that was
  measured for this P. The best measured shape then says nothing about the best possible one, so
  these points are shown but do not enter the exponent.
- **Solid line**: the smallest distance that any shape of P parameters can have, predicted from the
  limit alone, without training any network and without a free parameter.
- **Dotted line**: the power of P fitted to the large points, with its exponent and 95 % interval.
- **Dashed line**: the exponent of theory, −1/6 for hidden states and −1/5 for outputs, at the
  height of the large points.
"""


@style.styled
def error_vs_parameters(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Picture:
    """Draw the distance to the DMFT limit against P = L M D, with the best shapes for each P.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair; ``finite-dmft`` is drawn.
    rates : mapping
        The contents of rates.json, for the best shapes and the slope through them.
    prediction : mapping or None
        The contents of prediction.json, for the least error that any shape of so many parameters
        is predicted to have.

    Returns
    -------
    Picture
    """
    name = "error_vs_parameters"
    step = last_step(errors, rates)
    title = f"Error against number of parameters: {style.pair_name(_PAIR)}, step {step}"
    first = by_shape(errors, _PAIR, "hidden", step)
    if not len(first):
        return empty(name, title, _CAPTION, first.why_empty(_PAIR), counted(errors, [_PAIR], step))
    figure = new_figure(1.3)
    twin, message, notes = Twin(), [], []
    for axes, quantity in zip(figure.subplots(1, 2), OBSERVABLES, strict=True):
        cells = by_shape(errors, _PAIR, quantity, step)
        axes.set_xlabel("number of parameters $P = LMD$")
        axes.set_ylabel(style.AXIS_NAMES[quantity])
        budget = entry(rates, _PAIR, quantity, step).get("fixed_budget") or {}
        found = known(prediction, _PAIR, quantity, step)
        fixed = {"observable": quantity, "pair": _PAIR, "gradient_step": step}
        _panel(axes, cells, budget, BUDGET_EXPONENTS[quantity], found, (twin, fixed))
        message.append(_said(cells, budget, quantity))
        if budget.get("exponent") is None:
            reason = budget.get("reason") or "no best shapes were found"
            notes.append(f"No exponent of the {quantity} error: {reason}.")
        notes += _edges(budget, quantity)
    panels.key(figure, _entries(figure))
    return Picture(
        name,
        title,
        sentence(f"step {step}, {len(first)} shapes", *message),
        _CAPTION,
        finished(figure),
        [
            *notes,
            *not_predicted(errors, prediction, [_PAIR], step),
            *counted(errors, [_PAIR], step),
        ],
        twin.frame(),
    )


def _entries(figure: Figure) -> list[Any]:
    """Name each kind of points and lines once, without the exponents, which panels have."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            kind = label.partition(", exponent")[0]
            if kind not in found:
                found[kind] = copy.copy(handle)
                found[kind].set_label(kind)
    return list(found.values())


def _said(cells: ShapeErrors, budget: Fit, quantity: str) -> str:
    if budget.get("exponent") is None:
        return extremes(cells, quantity)
    shown = style.with_interval(budget["exponent"], budget.get("exponent_interval"), style.fixed)
    return (
        f"the {quantity} error of the best shapes scales as P to the power {shown} "
        f"(theory {style.fraction(budget['theory'])})"
    )


def _edges(budget: Fit, quantity: str) -> list[str]:
    edges = budget.get("edges") or []
    if not edges:
        return []
    where = ", ".join(dict.fromkeys(f"the {point['edge']}" for point in edges))
    more = len(edges) + len(budget.get("points") or [])
    return [
        f"For {len(edges)} of {more} values of P the shape of least {quantity} error has {where} "
        "that was measured there; it is crossed and left out of the exponent."
    ]


def _best(
    axes: Axes, shapes: Sequence[Mapping[str, Any]], look: Mapping[str, Any]
) -> dict[str, Any]:
    """Draw best shapes with their intervals; return the columns of the twin table."""
    P, error = (
        np.array([point[key] for point in shapes], float) for key in ("parameters", "error")
    )
    ends = np.array([point.get("error_interval") or (np.nan, np.nan) for point in shapes], float)
    axes.vlines(P, ends[:, 0], ends[:, 1], colors=look["color"], lw=0.9, zorder=3)
    axes.plot(P, error, ls="none", zorder=4, **look)
    return {
        **{name: np.array([point[name] for point in shapes]) for name in SIZES},
        "parameters": P,
        "error_rms": error,
        "interval_low": ends[:, 0],
        "interval_high": ends[:, 1],
    }


def _panel(
    axes: Axes,
    cells: ShapeErrors,
    budget: Fit,
    theory: float,
    found: Known,
    record: tuple[Twin, dict[str, Any]],
) -> None:
    twin, fixed = record
    every = cells.parameters
    few = len(every) <= _FEW_SHAPES
    look: dict[str, Any] = {"ms": 4.0 if few else 2.6, "mfc": style.GREY if few else style.pale()}
    axes.plot(every, cells.error, "o", mec="none", label="all shapes", zorder=1, **look)
    twin.add(series="measured", **fixed, **panels.error_columns(cells), parameters=every)
    if found.is_complete:
        P = np.geomspace(every.min() / 1.5, every.max() * 1.5, 60)
        least = np.array([best_sizes(found.amplitudes, number).error for number in P])
        axes.plot(P, least, color=style.limit_colour(), label="prediction, best shape", zorder=2)
        twin.add(series="predicted, best shape", **fixed, parameters=P, error_rms=least)
    colour = style.pair_colour(_PAIR)
    edges, points = (budget.get(key) or [] for key in ("edges", "points"))
    if edges:
        look = {"color": colour, "marker": "X", "ms": 4.6, "mfc": "white", "mew": 0.8}
        columns = _best(axes, edges, {**look, "label": "best, at the edge of $D$"})
        names = np.array([point["edge"] for point in edges])
        twin.add(series="best shape, at an edge", **fixed, **columns, edge=names)
    if points:
        look = {"color": colour, "marker": "o", "ms": 4.2, "label": "best shape for its $P$"}
        columns = _best(axes, points, look)
        twin.add(series="best shape", **fixed, **columns)
        _powers(axes, columns["parameters"], columns["error_rms"], budget, theory, record)
    axes.set_xscale("log")
    positive = cells.error[cells.error > 0]
    # Where all errors are zero, any scale will do.
    low, high = (positive.min() / 1.4, positive.max() * 1.4) if len(positive) else (0.1, 1.0)
    # Intervals of few seeds may span decades; they must not flatten everything else.
    ends = [p["error_interval"][0] for p in (*points, *edges) if p.get("error_interval")]
    low = max(min([low, *(end / 1.1 for end in ends if end > 0)]), low / 3)
    axes.set_ylim(low, high)
    panels.log_axis(axes, "x")
    panels.log_axis(axes, "y")
    named = [str(line.get_label()) for line in axes.lines]
    exponents = [name for name in named if "exponent" in name]
    axes.set_title("; ".join(exponents), fontsize=style.small())


def _powers(
    axes: Axes,
    P: np.ndarray,
    best: np.ndarray,
    budget: Fit,
    theory: float,
    record: tuple[Twin, dict[str, Any]],
) -> None:
    """Draw the fitted power of P and that of theory, both through the middle of the points."""
    twin, fixed = record
    middle, level = np.exp(np.log(P).mean()), np.exp(np.log(best).mean())
    ends = np.array([P.min() / 1.5, P.max() * 1.5])
    theory = budget.get("theory", theory)
    exponent = budget.get("exponent")
    lines: list[tuple[str, float, str, dict[str, Any]]] = []
    if exponent is not None:
        shown = style.with_interval(exponent, budget.get("exponent_interval"), style.fixed)
        colour = style.pair_colour(_PAIR)
        look = {"color": colour, **style.faint()}
        lines.append(("fitted", exponent, f"fit, exponent {shown}", look))
    look = {"color": style.limit_colour(), "lw": 1.1, "ls": style.DASHED}
    lines.append(("theory", theory, f"theory, exponent {style.fraction(theory)}", look))
    for series, power, label, look in lines:
        error = level * (ends / middle) ** power
        axes.plot(ends, error, label=label, zorder=2, **look)
        twin.add(series=series, **fixed, parameters=ends, error_rms=error)
