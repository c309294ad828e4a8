"""How the error of networks depends on each of their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import (
    OBSERVABLES,
    Errors,
    ShapeErrors,
    by_shape,
    counted,
    extend,
    extremes,
    last_step,
    not_predicted,
    sentence,
)
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.fitted import Fit, fit_of, law
from resnet_limits.kinds import SIZES, SYMBOLS
from resnet_limits.predicted import Known, Prediction, distance, known

_ROOM = 38
"""Characters that fit over a panel, for the values of a size."""

_PANEL_SIZES = ("embed_dim", "depth", "width")
# The size that colours the lines, in order of preference, for each size on the x-axis.
_COLOUR_BY = {
    "embed_dim": ("width", "depth"),
    "depth": ("embed_dim", "width"),
    "width": ("embed_dim", "depth"),
}

_CAPTION = """\
Error of finite networks against embedding dimension D, depth L and hidden width M (columns): above,
in the hidden states of the last layer; below, in the outputs.

- **Points** are shapes: the root mean square over seeds, with the limits' own error subtracted as a
  square. **Bars** reach from the smallest to the largest seed; shapes at the same place on the axis
  are drawn side by side.
- **Hollow points** are below resolution, that is below ten standard errors of the limits. They
  enter the fits, with that error in the likelihood.
- **Solid lines** are predicted from the limit alone, without training any network and without a
  free parameter: the terms 1/L, √(D/(LM)) and 1/√D for the hidden states, and 1/L, D/(LM), 1/√(LM)
  and 1/√D for the outputs, added as root-sum-square. This law holds for large sizes.
- **Dotted lines** are the same law fitted to all shapes at once.
- Along a line, only the size on the axis changes. Colour and marker give the value of a second
  size, as the bar above shows; the third is fixed at the value written there.

A larger D helps only if LM grows with it, which is why the error can rise again with D.
"""


@dataclass(frozen=True)
class _Lines:
    """What one panel holds fixed, and what tells its lines apart."""

    held: str
    held_value: int
    colour: str
    colour_values: list[int]
    left_out: list[int]


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
                most = min(len(style.MARKERS), _ROOM // (len(str(several[-1])) + 2))
                picked = panels.spread_indices(len(several), most)
                shown = [several[k] for k in picked]
                left_out = sorted(set(several) - set(shown))
                choice = _Lines(held, int(held_value), colour, shown, left_out)
                choices.append((len(shown), -preference, int(held_value), choice))
    return max(choices, key=lambda item: item[:3])[-1] if choices else None


def _why_no_lines(cells: ShapeErrors, x: str) -> str:
    symbol, values = SYMBOLS[x], np.unique(cells.size(x))
    if len(values) > 1:
        return f"No panel for {symbol}: no two shapes of this experiment differ in {symbol} alone."
    return f"No panel for {symbol}: all networks have {symbol} = {values[0]}."


def _total_pair(errors: Errors, step: int | None) -> str:
    """Choose the pair with the most of the error in it that has something to draw."""
    pairs = ("finite-dmft", "finite-mean_ode", "finite-wide")
    drawable = [pair for pair in pairs if len(by_shape(errors, pair, "hidden", step))]
    compared = [pair for pair in pairs if pair in errors]
    return (drawable or compared or list(pairs))[0]


@style.styled
def error_vs_shape(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Picture:
    """Draw the error of finite networks against D, against L and against M.

    One column per size that varies alone, the hidden error above, the output error below. Within a
    line only the size on the x-axis changes; a second size tells lines apart, the third is held.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair. The distance to the DMFT limit is drawn, or where that was not
        asked for, to the next limit below it.
    rates : mapping
        The contents of rates.json, for the fitted curves.
    prediction : mapping or None
        The contents of prediction.json, for the solid curves.

    Returns
    -------
    Picture
    """
    name = "error_vs_shape"
    step = last_step(errors, rates)
    pair = _total_pair(errors, step)
    title = f"Error against shape: {style.pair_name(pair)}, step {step}"
    cells = by_shape(errors, pair, "hidden", step)
    if not len(cells):
        return empty(name, title, _CAPTION, cells.why_empty(pair), counted(errors, [pair], step))
    lines = {x: _choose_lines(cells, x) for x in _PANEL_SIZES}
    chosen = {x: found for x, found in lines.items() if found}
    notes = [_why_no_lines(cells, x) for x in _PANEL_SIZES if x not in chosen]
    if not chosen:
        reasons = [note.partition(": ")[2].removesuffix(".") for note in notes]
        return empty(name, title, _CAPTION, sentence("no size varies alone", *reasons))
    figure = new_figure(1.9, 0.2 + 0.8 * len(chosen) / 3)
    axes_of = figure.subplots(2, len(chosen), sharex="col", squeeze=False)
    twin, message = Twin(), []
    for row, quantity in zip(axes_of, OBSERVABLES, strict=True):
        cells = by_shape(errors, pair, quantity, step)
        fit, reason = fit_of(rates, pair, quantity, step)
        found = known(prediction, pair, quantity, step)
        lowest, highest = np.inf, 0.0
        fixed = {"observable": quantity, "pair": pair, "gradient_step": step}
        for axes, (x, choice) in zip(row, chosen.items(), strict=True):
            shown = _size_lines(axes, cells, x, choice, fit, found, (twin, fixed))
            lowest, highest = extend(shown, lowest, highest)
        # Curves may leave small shapes far below them; they must not flatten everything else.
        curves = [line.get_ydata() for axes in row for line in axes.lines]
        most = max((np.max(curve, initial=0.0) for curve in curves), default=0.0)
        highest = max(highest, min(most, 2.5 * highest))
        panels.common_y(list(row), lowest / 1.3, highest * 1.3)
        row[0].set_ylabel(style.AXIS_NAMES[quantity])
        message.append(extremes(cells, quantity))
        if len(cells) and fit is None:
            notes.append(f"No fitted curve for the {quantity} error: {reason}")
    for column, (x, choice) in enumerate(chosen.items()):
        axes_of[1][column].set_xlabel(style.SIZE_NAMES[x])
        held = f"${SYMBOLS[choice.held]} = {choice.held_value}$"
        title_of = f"{style.SIZE_NAMES[choice.colour]}, at {held}"
        panels.size_key(figure, axes_of[0][column], choice.colour_values, title_of)
        if choice.left_out:
            values = ", ".join(map(str, choice.left_out))
            notes.append(
                f"The panel of {SYMBOLS[x]} has no room for the lines of "
                f"{SYMBOLS[choice.colour]} = {values}."
            )
    panels.key(figure, panels.marks(*panels.kinds_drawn(figure)))
    return Picture(
        name,
        title,
        sentence(f"step {step}, {len(cells)} shapes, {style.pair_name(pair)}", *message),
        _CAPTION,
        finished(figure),
        [*notes, *not_predicted(errors, prediction, [pair], step), *counted(errors, [pair], step)],
        twin.frame(),
    )


def _size_lines(
    axes: Axes,
    cells: ShapeErrors,
    x: str,
    chosen: _Lines,
    fit: Fit | None,
    found: Known,
    record: tuple[Twin, dict[str, Any]],
) -> ShapeErrors:
    """Draw the lines of one panel; return the shapes on them."""
    twin, fixed = record
    colours = style.series_colours(len(chosen.colour_values))
    held = cells.size(chosen.held) == chosen.held_value
    shown = cells.pick(held & np.isin(cells.size(chosen.colour), chosen.colour_values))
    beside = panels.shifts(len(colours))
    for k, (value, colour) in enumerate(zip(chosen.colour_values, colours, strict=True)):
        line = shown.pick(shown.size(chosen.colour) == value)
        sizes = line.size(x).astype(float)
        if not len(sizes):
            continue
        panels.points(axes, sizes, line, {"color": colour, "marker": style.marker_of(k)}, beside[k])
        twin.add(panel=x, series="measured", **fixed, **panels.error_columns(line))
        fine = np.geomspace(sizes.min(), sizes.max(), 40)
        on_curve: dict[str, Any] = {x: fine, chosen.held: chosen.held_value, chosen.colour: value}
        columns = np.broadcast_arrays(*(np.asarray(on_curve[name], float) for name in SIZES))
        curves = {
            "predicted": distance(found, np.stack(columns, axis=-1)),
            "fitted": None if fit is None else law(fit, **on_curve),
        }
        for series, label, look in (
            ("predicted", "_prediction", {}),
            ("fitted", "_fit", style.faint()),
        ):
            curve = curves[series]
            if curve is not None and curve.any():
                axes.plot(fine, curve, color=colour, label=label, zorder=2, **look)
                places = dict(zip(SIZES, columns, strict=True))
                twin.add(panel=x, series=series, **fixed, **places, error_rms=curve)
    panels.size_ticks(axes, list(shown.size(x)))
    return shown
