"""How errors scale with the sizes: against each size, against P, and term by term."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_limits.figures import style
from resnet_limits.figures.cells import Errors, ShapeErrors, by_shape, last_step
from resnet_limits.fitted import Fit, entry, fit_of, law
from resnet_limits.kinds import SIZES, SYMBOLS
from resnet_limits.laws import BUDGET_EXPONENTS, terms_of, variable_values
from resnet_limits.optimum import best_sizes
from resnet_limits.predicted import Known, Prediction, distance, known, unpredicted

_QUANTITIES = ("hidden", "output")
_MOST_LINES = 5
_MANY_SHAPES = 150
"""From this number on, points are drawn smaller."""

_PANEL_SIZES = ("embed_dim", "depth", "width")
# The size that colours the lines, in order of preference, for each size on the x-axis.
_COLOUR_BY = {
    "embed_dim": ("width", "depth"),
    "depth": ("embed_dim", "width"),
    "width": ("embed_dim", "depth"),
}


def _points(axes: Axes, x: np.ndarray, cells: ShapeErrors, colour: str, size: float = 3.6) -> None:
    """Draw one marker per shape with a bar over its seeds; hollow where it is not resolved."""
    spread = np.clip([cells.error - cells.low, cells.high - cells.error], 0.0, None)
    axes.errorbar(x, cells.error, spread, fmt="none", ecolor=colour, elinewidth=0.8)
    for mask, face, label in (
        (cells.resolved, colour, "resolved"),
        (~cells.resolved, "white", "unresolved"),
    ):
        axes.plot(
            x[mask],
            cells.error[mask],
            "o",
            ms=size,
            mfc=face,
            mec=colour,
            mew=0.8,
            label=f"_{label}",
            zorder=3,
        )


_POINTS = (
    "Points: RMS over seeds, without the limits' own error, hollow if below ten of its standard "
    "errors; bars: range over seeds"
)
_LINES = "solid: prediction from the limit alone, without any fit; faint: fitted law"


def _unpredicted(
    errors: Errors, prediction: Prediction | None, pairs: Sequence[str], step: int | None
) -> list[str]:
    """Say of each quantity which terms of the drawn pairs are not predicted, and why."""
    drawn = [pair for pair in pairs if len(by_shape(errors, pair, "hidden", step))]
    return unpredicted(prediction, drawn, _QUANTITIES, step)


def _predicted_line(
    axes: Axes, x: np.ndarray, found: Known, sizes: np.ndarray, colour: str
) -> None:
    """Draw a predicted law at sizes (points, 3), where all of its terms are known."""
    curve = distance(found, sizes)
    if curve is not None and curve.any():
        axes.plot(x, curve, color=colour, label="_prediction", zorder=2)


def _counted(errors: Errors, pairs: Sequence[str], step: int | None) -> list[str]:
    """Say of each pair and quantity what became of its cells."""
    found = []
    for pair in pairs:
        words = {quantity: by_shape(errors, pair, quantity, step).said for quantity in _QUANTITIES}
        if len(set(words.values())) == 1:
            words = {"": words["hidden"]}
        found += [
            f"{style.pair_name(pair)}{quantity and f', {quantity}'}: {text}."
            for quantity, text in words.items()
            if text
        ]
    return found


def _extend(cells: ShapeErrors, lowest: float, highest: float) -> tuple[float, float]:
    """Widen a range to hold all errors that have a place on a logarithmic scale."""
    positive = cells.low[cells.low > 0]
    return min(lowest, positive.min(initial=np.inf)), max(highest, cells.high.max())


def _common_y(panels: list[Axes], lowest: float, highest: float) -> None:
    """Give panels of a row one logarithmic scale, labelled on the first of them only."""
    if not 0 < lowest < highest < np.inf:
        # Nothing but zeros: any scale will do.
        lowest, highest = 0.1, 1.0
    for panel in panels:
        panel.set_ylim(lowest, highest)
        style.log_axis(panel, "y")
        panel.tick_params(axis="y", which="both", labelleft=panel is panels[0])


# --- error against each size ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """What one panel of `error_vs_shape` holds fixed, and what tells its lines apart."""

    held: str
    held_value: int
    colour: str
    colour_values: list[int]


def _choose_lines(cells: ShapeErrors, x: str) -> _Lines | None:
    """Choose lines along which only ``x`` varies: as many as possible, the held size large."""
    choices = []
    for preference, colour in enumerate(_COLOUR_BY[x]):
        (held,) = (size for size in SIZES if size not in (x, colour))
        for held_value in np.unique(cells.size(held)):
            at_held = cells.size(held) == held_value
            values, counts = np.unique(cells.size(colour)[at_held], return_counts=True)
            several = [int(value) for value in values[counts > 1]]
            if several:
                shown = [several[k] for k in style.spread_indices(len(several), _MOST_LINES)]
                choice = _Lines(held, int(held_value), colour, shown)
                choices.append((len(shown), -preference, int(held_value), choice))
    return max(choices, key=lambda item: item[:3])[-1] if choices else None


def _why_no_lines(cells: ShapeErrors, x: str, pair: str) -> str:
    if not len(cells):
        return cells.why_empty(pair)
    symbol, values = SYMBOLS[x], np.unique(cells.size(x))
    if len(values) > 1:
        return f"No two shapes of this experiment differ in {symbol} alone."
    return f"All networks have {symbol} = {values[0]}: there is no dependence on it to show."


def _total_pair(errors: Errors, step: int | None) -> str:
    """Choose the pair with the most of the error in it that has something to draw."""
    pairs = ("finite-dmft", "finite-mean_ode", "finite-wide")
    drawable = [pair for pair in pairs if len(by_shape(errors, pair, "hidden", step))]
    compared = [pair for pair in pairs if pair in errors]
    return (drawable or compared or list(pairs))[0]


@style.styled
def error_vs_shape(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Figure:
    """Draw the error of finite networks against D, against L and against M.

    One column per size, the hidden error above, the output error below. Within a line only the
    size on the x-axis changes; a third size colours the lines, the fourth panel entry is held.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair. The distance to the DMFT limit is drawn, or where that was not
        asked for, to the next limit below it.
    rates : mapping
        The contents of rates.json, for the fitted curves, which are faint.
    prediction : mapping or None
        The contents of prediction.json, for the solid curves.

    Returns
    -------
    Figure
        A panel without data says why.
    """
    step = last_step(errors, rates)
    pair = _total_pair(errors, step)
    figure = style.new_figure(4.9)
    panels = figure.subplots(2, 3, sharex="col", squeeze=False)
    lines = [_choose_lines(by_shape(errors, pair, "hidden", step), x) for x in _PANEL_SIZES]
    notes = []
    for row, quantity in enumerate(_QUANTITIES):
        cells = by_shape(errors, pair, quantity, step)
        fit, reason = fit_of(rates, pair, quantity, step)
        found = known(prediction, pair, quantity, step)
        drawn, lowest, highest = [], np.inf, 0.0
        for axes, x, chosen in zip(panels[row], _PANEL_SIZES, lines, strict=True):
            if chosen is None or not len(cells):
                style.missing(axes, _why_no_lines(cells, x, pair), 24)
                continue
            drawn.append(axes)
            shown = _size_lines(axes, cells, x, chosen, fit, found)
            lowest, highest = _extend(shown, lowest, highest)
        if drawn:
            _common_y(drawn, lowest / 1.3, highest * 1.3)
        panels[row][0].set_ylabel(style.AXIS_NAMES[quantity])
        if len(cells) and fit is None:
            notes.append(f"No fitted curve for the {quantity} error: {reason}")
    for column, (x, chosen) in enumerate(zip(_PANEL_SIZES, lines, strict=True)):
        panels[1][column].set_xlabel(style.SIZE_NAMES[x])
        if chosen is not None:
            title = (
                f"{style.SIZE_NAMES[chosen.colour]}, "
                f"at {SYMBOLS[chosen.held]} = {chosen.held_value}"
            )
            style.size_key(figure, panels[0][column], chosen.colour, chosen.colour_values, title)
    style.headline(figure, f"Error against shape: {style.pair_name(pair)}, step {step}")
    style.footnote(
        figure,
        f"{_POINTS}; {_LINES}." if any(chosen is not None for chosen in lines) else "",
        *notes,
        *_unpredicted(errors, prediction, [pair], step),
        *_counted(errors, [pair], step),
    )
    return figure


def _size_lines(
    axes: Axes, cells: ShapeErrors, x: str, chosen: _Lines, fit: Fit | None, found: Known
) -> ShapeErrors:
    """Draw the lines of one panel; return the shapes on them."""
    colours = style.size_colours(chosen.colour, len(chosen.colour_values))
    held = cells.size(chosen.held) == chosen.held_value
    shown = cells.pick(held & np.isin(cells.size(chosen.colour), chosen.colour_values))
    for value, colour in zip(chosen.colour_values, colours, strict=True):
        line = shown.pick(shown.size(chosen.colour) == value)
        sizes = line.size(x).astype(float)
        _points(axes, sizes, line, colour)
        if not len(sizes):
            continue
        fine = np.geomspace(sizes.min(), sizes.max(), 60)
        on_curve: dict[str, Any] = {x: fine, chosen.held: chosen.held_value, chosen.colour: value}
        columns = np.broadcast_arrays(*(np.asarray(on_curve[name], float) for name in SIZES))
        _predicted_line(axes, fine, found, np.stack(columns, axis=-1), colour)
        curve = None if fit is None else law(fit, **on_curve)
        if curve is not None:
            axes.plot(fine, curve, color=colour, label="_fit", **style.FAINT)
    axes.set_xscale("log")
    style.size_ticks(axes, list(shown.size(x)))
    return shown


# --- error against the number of parameters -------------------------------------------------------


@style.styled
def error_vs_parameters(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Figure:
    """Draw the distance to the DMFT limit against P = L M D, with the best shapes for each P.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair; ``finite-dmft`` is drawn.
    rates : mapping
        The contents of rates.json, for the best shapes and the slope through them, which is faint.
    prediction : mapping or None
        The contents of prediction.json, for the least error that any shape of so many parameters
        is predicted to have, which is solid.

    Returns
    -------
    Figure
        Hidden error with the line P^(-1/6), output error with P^(-1/5).
    """
    pair = "finite-dmft"
    step = last_step(errors, rates)
    figure = style.new_figure(3.3)
    panels = figure.subplots(1, 2)
    any_drawn = False
    for axes, quantity in zip(panels, _QUANTITIES, strict=True):
        cells = by_shape(errors, pair, quantity, step)
        axes.set_xlabel("P = L M D")
        axes.set_ylabel(style.AXIS_NAMES[quantity])
        if not len(cells):
            style.missing(axes, cells.why_empty(pair))
            continue
        any_drawn = True
        found = known(prediction, pair, quantity, step)
        _parameter_panel(axes, cells, rates, quantity, step, found)
    style.headline(
        figure, f"Error against number of parameters: {style.pair_name(pair)}, step {step}"
    )
    style.footnote(
        figure,
        "Points: shapes, RMS over seeds; large: those with the smallest error among shapes of "
        "about the same P; solid: the least error that any shape of P parameters is predicted to "
        "have, without any fit; faint: power of P through the large points; dashed: exponent of "
        "theory."
        if any_drawn
        else "",
        *_unpredicted(errors, prediction, [pair], step),
        *_counted(errors, [pair], step),
    )
    return figure


def _parameter_panel(
    axes: Axes,
    cells: ShapeErrors,
    rates: Mapping[str, Any],
    quantity: str,
    step: int | None,
    found: Known,
) -> None:
    pair = "finite-dmft"
    budget = entry(rates, pair, quantity, step).get("fixed_budget") or {}
    points = budget.get("points") or []
    axes.plot(
        cells.parameters,
        cells.error,
        "o",
        ms=2.6,
        mfc=style.LIGHT_GREY,
        mec="none",
        label="all shapes",
        zorder=1,
    )
    if found.is_complete:
        P = np.geomspace(cells.parameters.min() / 1.5, cells.parameters.max() * 1.5, 60)
        least = [best_sizes(found.amplitudes, number).error for number in P]
        axes.plot(P, least, color=style.BLACK, label="prediction, best shape", zorder=2)
    if points:
        P = np.array([point["parameters"] for point in points], dtype=float)
        best = np.array([point["error"] for point in points], dtype=float)
        colour = style.PAIR_COLOURS[pair]
        axes.plot(P, best, "o", ms=4.2, color=colour, label="best shape for its P", zorder=3)
        middle, level = np.exp(np.log(P).mean()), np.exp(np.log(best).mean())
        ends = np.array([P.min() / 1.5, P.max() * 1.5])
        exponent = budget.get("exponent")
        if exponent is not None:
            axes.plot(
                ends,
                level * (ends / middle) ** exponent,
                color=colour,
                **style.FAINT,
                label="fit, exponent "
                + style.with_interval(exponent, budget.get("exponent_interval"), style.fixed),
                zorder=2,
            )
        theory = budget.get("theory", BUDGET_EXPONENTS[quantity])
        axes.plot(
            ends,
            level * (ends / middle) ** theory,
            color=style.BLACK,
            lw=1.1,
            ls=(0, (4, 2)),
            label=f"theory, exponent {style.fraction(theory)}",
            zorder=2,
        )
    axes.set_xscale("log")
    positive = cells.error[cells.error > 0]
    # Where all errors are zero, any scale will do.
    limits = (positive.min() / 3, positive.max() * 1.4) if len(positive) else (0.1, 1.0)
    axes.set_ylim(*limits)
    style.log_axis(axes, "y")
    axes.legend(loc="lower left")
    if budget.get("exponent") is None:
        reason = f"No slope: {budget.get('reason') or 'no best shapes were found'}."
        axes.set_title(textwrap.fill(reason, 58), color=style.GREY, fontsize=style.SMALL_SIZE)


# --- each term alone ------------------------------------------------------------------------------

_TERM_PANELS = (
    ("finite-wide", "D/(LM)", "D / (L M)"),
    ("wide-mean_ode", "L", "depth L"),
    ("mean_ode-dmft", "D", "embedding dimension D"),
)


def _term_variable(cells: ShapeErrors, name: str) -> np.ndarray:
    L, M, D = cells.sizes.astype(float).T
    return {"D/(LM)": lambda: D / (L * M), "L": lambda: L, "D": lambda: D}[name]()


@style.styled
def three_terms(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Figure:
    """Draw each of the three causes of error alone, with its measured exponent beside theory's.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair: ``finite-wide``, ``wide-mean_ode`` and ``mean_ode-dmft``.
    rates : mapping
        The contents of rates.json, for the fitted curves, which are faint.
    prediction : mapping or None
        The contents of prediction.json, for the solid curves.

    Returns
    -------
    Figure
        One column per term, the hidden error above, the output error below. The shaded band is the
        limits' own standard error; points below ten times it are hollow.
    """
    step = last_step(errors, rates)
    figure = style.new_figure(5.0)
    panels = figure.subplots(2, 3, sharex="col", squeeze=False)
    any_drawn = False
    for row, quantity in enumerate(_QUANTITIES):
        drawn, lowest, highest, noises = [], np.inf, 0.0, []
        for axes, (pair, name, _) in zip(panels[row], _TERM_PANELS, strict=True):
            cells = by_shape(errors, pair, quantity, step)
            if row == 0:
                axes.set_title(style.pair_name(pair), color=style.PAIR_COLOURS[pair], weight="bold")
            if not len(cells):
                style.missing(axes, cells.why_empty(pair), 24)
                continue
            drawn.append(axes)
            lowest, highest = _extend(cells, lowest, highest)
            noises.append(cells.stderr.max())
            found = known(prediction, pair, quantity, step)
            _term_panel(axes, cells, rates, (pair, name, quantity), step, found)
        any_drawn = any_drawn or bool(drawn)
        if drawn:
            # The limits' own error is shown where that does not flatten everything else.
            near = [noise for noise in noises if noise > lowest / 30]
            bottom = min([lowest, *near]) / 2
            # A quarter of the height above is for words.
            _common_y(drawn, bottom, highest * max(4.0, (highest / bottom) ** (1 / 3)))
            for axes, noise in zip(drawn, noises, strict=True):
                if noise <= bottom:
                    _small_noise(axes, noise)
        panels[row][0].set_ylabel(style.AXIS_NAMES[quantity])
    for axes, (_, _, label) in zip(panels[1], _TERM_PANELS, strict=True):
        axes.set_xlabel(label)
    style.headline(figure, f"The three terms of the error, each alone, step {step}")
    style.footnote(
        figure,
        f"{_POINTS}; shaded: standard error of the limits; {_LINES}; dashed, where nothing is "
        "predicted: exponent of theory, or one term alone, fitted."
        if any_drawn
        else "",
        *_unpredicted(errors, prediction, [pair for pair, _, _ in _TERM_PANELS], step),
        *_counted(errors, [pair for pair, _, _ in _TERM_PANELS], step),
    )
    return figure


def _term_panel(
    axes: Axes,
    cells: ShapeErrors,
    rates: Mapping[str, Any],
    what: tuple[str, str, str],
    step: int | None,
    found: Known,
) -> None:
    pair, name, quantity = what
    colour = style.PAIR_COLOURS[pair]
    x = _term_variable(cells, name)
    _points(axes, x, cells, colour, 3.2 if len(cells) < _MANY_SHAPES else 1.8)
    levels = np.unique(x)
    noise = np.array([cells.stderr[x == level].max() for level in levels])
    if noise.max() > 0:
        wide = np.concatenate([[levels[0] / 10], levels, [levels[-1] * 10]])
        axes.fill_between(
            wide,
            np.concatenate([noise[:1], noise, noise[-1:]]),
            1e-300,
            color=style.LIGHT_GREY,
            alpha=0.6,
            lw=0,
            zorder=0,
        )
    fit, reason = fit_of(rates, pair, quantity, step)
    words = textwrap.wrap(reason, 32)
    if len(terms_of(pair, quantity)) > 1:
        words = _sum_lines(axes, cells, fit, found) or words
    else:
        ends = np.argsort(x)[[0, -1]]
        wider = np.array([1 / 1.2, 1.2])
        # Only one of the sizes of each of these two is stretched, which stretches x as much.
        sizes = cells.sizes[ends].astype(float)
        sizes[:, SIZES.index("depth" if name == "L" else "embed_dim")] *= wider
        _predicted_line(axes, x[ends] * wider, found, sizes, colour)
        if fit is not None and fit.get("exponent") is not None:
            words = _power_lines(axes, x, name, fit, colour, found)
    # An error that grows along the axis leaves room on the left, one that falls on the right.
    left = name == "D/(LM)"
    axes.text(
        0.03 if left else 0.98,
        0.98,
        "\n".join(words),
        transform=axes.transAxes,
        ha="left" if left else "right",
        va="top",
        fontsize=style.SMALL_SIZE,
        linespacing=1.4,
    )
    axes.set_xscale("log")
    if name == "D/(LM)":
        axes.set_xlim(x.min() / 1.7, x.max() * 1.7)
    else:
        style.size_ticks(axes, list(x))


def _power_lines(
    axes: Axes, x: np.ndarray, name: str, fit: Fit, colour: str, found: Known
) -> list[str]:
    """Draw a fitted power, and that of theory if nothing is predicted; return what to say."""
    # The fits are in D/(LM), 1/L and 1/D: their exponents are positive.
    variable = x if name == "D/(LM)" else 1 / x
    ends = np.array([variable.min() / 1.2, variable.max() * 1.2])
    shown = ends if name == "D/(LM)" else 1 / ends
    theory, at_theory = fit.get("theory"), fit.get("amplitude_at_theory")
    if theory is not None and at_theory is not None and not found.is_complete:
        _dashed(axes, shown, at_theory * ends**theory)
    if fit.get("amplitude") is not None:
        power = fit["amplitude"] * ends ** fit["exponent"]
        axes.plot(shown, power, color=colour, label="_fit", **style.FAINT)
    return [
        *_amplitude_words(found, at_theory),
        f"exponent {_exponent_words(fit)}",
        f"theory {style.fraction(theory)}, in {style.variable_name(fit['variable'])}",
    ]


def _amplitude_words(found: Known, fitted: float | None) -> list[str]:
    """Say what amplitude is predicted, and which was fitted at the exponent of theory."""
    if len(found.amplitudes) != 1 or fitted is None:
        return []
    (amplitude,) = found.amplitudes.values()
    return [f"predicted {style.number(amplitude)}, fitted {style.number(fitted)}"]


def _exponent_words(fit: Fit) -> str:
    return style.with_interval(fit["exponent"], fit.get("exponent_interval"), style.fixed)


def _dashed(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    axes.plot(x, y, color=style.BLACK, lw=1.1, ls=(0, (4, 2)), label="_theory", zorder=2)


def _sum_lines(axes: Axes, cells: ShapeErrors, fit: Fit | None, found: Known) -> list[str]:
    """Draw laws of D/(LM) and 1/sqrt(LM), predicted and fitted; return what to say of them.

    It is no function of D/(LM) alone: there is a line for the smallest and one for the largest D.
    """
    fit = fit or {}
    terms: Mapping[str, Any] = fit.get("terms") or {}
    D_values = np.unique(cells.size("embed_dim"))
    D_values = D_values[[0, -1]] if len(D_values) > 1 else D_values
    colours = style.size_colours("embed_dim", len(D_values))
    keys: list[Line2D] = []
    for D, colour in zip(D_values, colours, strict=True):
        own = cells.sizes[cells.size("embed_dim") == D].astype(float)
        ratio = D / (own[:, 0] * own[:, 1])
        x = np.geomspace(ratio.min() / 1.2, ratio.max() * 1.2, 60)
        # Any depth and width of the right product will do.
        curve = law(fit, D / x, 1.0, D) if terms else None
        sizes = np.stack([D / x, np.ones_like(x), np.full_like(x, D)], axis=-1)
        _predicted_line(axes, x, found, sizes, colour)
        if curve is not None:
            axes.plot(x, curve, color=colour, label="_fit", zorder=2, **style.FAINT)
        if found.is_complete or curve is not None:
            keys.append(Line2D([], [], color=colour, label=f"D = {D}"))
    amplitude = (terms.get("D/(LM)") or {}).get("amplitude")
    if amplitude and not found.is_complete:
        ratio = variable_values("D/(LM)", cells.sizes)
        ends = np.array([ratio.min() / 1.2, ratio.max() * 1.2])
        _dashed(axes, ends, amplitude * ends)
    if keys:
        # Above what may be said of small noise at the lower edge.
        axes.legend(handles=keys, loc="lower right", bbox_to_anchor=(1.0, 0.06))
    said = [
        f"{style.variable_name(name)}: predicted {style.number(found.amplitudes.get(name), 2)}, "
        f"fitted {style.number((terms.get(name) or {}).get('amplitude'), 2)}"
        for name in terms or (*found.amplitudes, *found.without)
    ]
    if fit.get("exponent") is not None:
        said.append(f"one power: {_exponent_words(fit)}")
    return said


def _small_noise(axes: Axes, noise: float) -> None:
    """Say how small the limits' own standard error is where it lies below the axis."""
    words = "limits without quadrature error"
    if noise:
        words = f"limits' standard error {style.number(noise, 1)}, below"
    axes.text(
        0.03,
        0.02,
        words,
        transform=axes.transAxes,
        va="bottom",
        color=style.GREY,
        fontsize=style.SMALL_SIZE - 0.5,
    )
