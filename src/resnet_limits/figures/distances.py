"""Where networks leave the limit: distances over depth and over gradient steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_limits.cells import NOISE_SHARE, ROUNDING, VARIABLES
from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import (
    OBSERVABLES,
    Errors,
    along_diagonal,
    by_shape,
    counted,
    last_step,
    sentence,
)
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.kinds import OK, SIZES, Shape
from resnet_limits.laws import LAWS
from resnet_limits.predicted import Prediction, distance, distance_at, known, unpredicted

_BY_DEPTH = "hidden_rms_at"
_PAIRS = ("finite-wide", "wide-mean_ode", "mean_ode-dmft", "finite-mean_ode", "finite-dmft")
"""The parts of a distance, and their sums."""
_MOST_PANELS = 4
_SHAPES = 4
_MOST_POINTS = 21
"""So many steps or depths are drawn of more."""
_SEEN = 1e-4
"""Distances below this part of the largest may be the rounding of stored states."""

_MARKS = """\
- **Points** are networks or limits of one shape, distinguished by colour and marker: the root mean
  square over seeds. **Bars** reach from the smallest to the largest seed.
- **Solid lines** are predicted from the limit alone for these sizes, without training any network
  and without a free parameter. They follow the law that holds for large sizes.
- A panel shows only the sizes on which its pair depends: an infinitely wide network has no M.
"""

_DEPTH_CAPTION = f"""\
Distance of hidden states over the depth s = layer/L at the last step with rates: one panel for each
cause of the error alone, and one for all causes together. Outputs have no depth; their distance is
shown in the figure over gradient steps.

{_MARKS}- Distances are shown as measured and include the limits' own error. Depths at which the two
  hidden states are equal, such as s = 0 if the embeddings are not trained, cannot be shown on the
  logarithmic axis.
"""

_STEPS_CAPTION = f"""\
Distance over gradient steps: one column for each cause of the error alone, and one for all causes
together. Above, the hidden states of the last layer; below, the outputs.

{_MARKS}- The limits' own error is subtracted as a square, unless it is larger than the distance.
  Steps at which a distance is nothing but rounding cannot be shown on the logarithmic axis.
"""


@dataclass(frozen=True)
class _Measured:
    """Distances of one shape over steps or depths: RMS, smallest and largest over seeds."""

    sizes: tuple[int, ...]
    x: np.ndarray
    rms: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int

    @property
    def is_seen(self) -> np.ndarray:
        """Whether each distance is more than the rounding of stored states."""
        return self.rms > max(ROUNDING, _SEEN * self.rms.max(initial=0.0))


def _panel_pairs(errors: Errors, step: int | None) -> list[str]:
    """Choose the pairs that are drawn: the parts, and the largest sum of them."""
    drawable = [pair for pair in _PAIRS if len(by_shape(errors, pair, "hidden", step))]
    if len(drawable) > _MOST_PANELS:
        drawable.remove("finite-mean_ode")
    return drawable


def _shapes(errors: Errors, pairs: Sequence[str], step: int | None) -> list[Shape]:
    """Choose shapes along the diagonal of the pair that has the most sizes."""
    pair = max(pairs, key=lambda name: (len(LAWS[name]["hidden"].depends), name == "finite-dmft"))
    sizes = by_shape(errors, pair, "hidden", step).sizes.tolist()
    return along_diagonal([Shape(*each) for each in sizes], _SHAPES)


def _of_pair(shape: Shape, pair: str) -> tuple[int, ...]:
    """Give the sizes of a shape as the errors of a pair have them: 0 where they do not matter."""
    depends = LAWS[pair]["hidden"].depends
    return tuple(size if name in depends else 0 for name, size in zip(SIZES, shape, strict=True))


def _rows(dataset: xr.Dataset, sizes: Sequence[int]) -> np.ndarray:
    """Find the sound cells of some sizes."""
    own = dataset["status"].values == OK
    for name, size in zip(SIZES, sizes, strict=True):
        own &= dataset[name].values == size
    return np.flatnonzero(own)


def _measured(sizes: tuple[int, ...], x: np.ndarray, squares: np.ndarray) -> _Measured:
    """Reduce squares (seeds, points) over seeds, thinned to what there is room for."""
    picked = panels.spread_indices(len(x), _MOST_POINTS)
    squares = squares[:, picked]
    roots = np.sqrt(squares)
    return _Measured(
        sizes,
        x[picked],
        np.sqrt(squares.mean(axis=0)),
        roots.min(axis=0),
        roots.max(axis=0),
        len(squares),
    )


def _look(shapes: Sequence[Shape], number: int) -> dict[str, Any]:
    return {
        "color": style.series_colours(len(shapes))[number],
        "marker": style.marker_of(number),
        "ms": 3.0,
    }


def _draw(
    axes: Axes,
    found: _Measured,
    look: Mapping[str, Any],
    predicted: tuple[np.ndarray, np.ndarray] | None,
    record: tuple[Twin, str, dict[str, Any]],
) -> None:
    """Draw distances of one shape beside the predicted, as far as they exceed rounding."""
    twin, x_name, fixed = record
    shown = found.is_seen
    x, rms, low, high = (v[shown] for v in (found.x, found.rms, found.low, found.high))
    # A seed of no distance at all has no place on the axis; its bar starts below it.
    low = np.where(low > 0, low, rms / 1e3)
    axes.vlines(x, low, high, colors=look["color"], lw=0.7, alpha=0.5)
    axes.plot(x, rms, ls="none", label="_measured", zorder=3, **look)
    sizes = {name: size for name, size in zip(SIZES, found.sizes, strict=True) if size}
    twin.add(
        series="measured",
        **fixed,
        **sizes,
        seeds=found.seeds,
        **{x_name: x},
        distance_rms=rms,
        smallest_seed=found.low[shown],
        largest_seed=high,
    )
    if predicted is not None:
        at, curve = predicted
        at, curve = at[curve > ROUNDING], curve[curve > ROUNDING]
        axes.plot(at, curve, color=look["color"], label="_prediction", lw=1.1, zorder=2)
        twin.add(series="predicted", **fixed, **sizes, **{x_name: at}, distance_rms=curve)


def _scale(row: Sequence[Axes], found: Sequence[_Measured]) -> None:
    """Give a row of panels one logarithmic scale."""
    lowest = min((m.rms[m.is_seen].min(initial=np.inf) for m in found), default=np.inf)
    highest = max((m.high.max() for m in found), default=0.0)
    panels.common_y(row, lowest / 2, highest * 1.4)


def _key(shapes: Sequence[Shape], twin: Twin, figure: Figure) -> None:
    handles = [
        panels.mark(style.shape_math(*shape), ls="none", **_look(shapes, k))
        for k, shape in enumerate(shapes)
    ]
    table = twin.frame()
    kinds = ["range"] if (table["seeds"] > 1).any() else []
    kinds += ["prediction"] if (table["series"] == "predicted").any() else []
    panels.key(figure, [*handles, *panels.marks(*kinds)])


def _heads(row: Sequence[Axes], pairs: Sequence[str]) -> None:
    for axes, pair in zip(row, pairs, strict=True):
        words = style.pair_name(pair) if len(pairs) < 4 else _broken(pair)
        axes.set_title(words, color=style.pair_colour(pair), weight="bold")


def _broken(pair: str) -> str:
    return style.pair_name(pair).replace(" \N{EN DASH} ", " \N{EN DASH}\n")


def _said(found: _Measured, predicted: float | None, pair: str, what: str) -> str:
    text = f"{style.pair_name(pair)}: {what} {style.number(found.rms[-1])}"
    named = style.shape_words(*found.sizes)
    more = "" if predicted is None else f", predicted {style.number(predicted)}"
    return f"{text} for {named}{more}"


# --- over depth -----------------------------------------------------------------------------------


@style.styled
def distance_over_depth(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Picture:
    """Draw the distance of hidden states against depth, measured and predicted.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair, with ``hidden_rms_at`` over ``depth_point``.
    rates : mapping
        The contents of rates.json, for the step.
    prediction : mapping or None
        The contents of prediction.json, with ``hidden_at``.

    Returns
    -------
    Picture
    """
    name, step = "distance_over_depth", last_step(errors, rates)
    title = f"Distance of hidden states over depth, step {step}"
    pairs = [pair for pair in _panel_pairs(errors, step) if _BY_DEPTH in errors[pair].data_vars]
    if not pairs:
        reason = "There are no distances of hidden states over depth."
        return empty(name, title, _DEPTH_CAPTION, reason, counted(errors, _PAIRS, step))
    shapes = _shapes(errors, pairs, step)
    figure = new_figure(1.25, max(0.6, min(1.0, 0.3 * len(pairs))))
    row = figure.subplots(1, len(pairs), squeeze=False)[0]
    twin, drawn, message, without = Twin(), [], [], []
    for axes, pair in zip(row, pairs, strict=True):
        dataset = errors[pair][[_BY_DEPTH, "status"]].sel(step=step).load()
        seen: set[tuple[int, ...]] = set()
        for k, shape in enumerate(shapes):
            sizes = _of_pair(shape, pair)
            rows = _rows(dataset, sizes)
            if sizes in seen or not len(rows):
                continue
            seen.add(sizes)
            found = _over_depth(dataset.isel(cell=rows), sizes)
            curve = distance_at(prediction, pair, int(step or 0), np.array(sizes, float))
            drawn.append(found)
            fixed = {"observable": "hidden", "pair": pair, "gradient_step": step}
            _draw(axes, found, _look(shapes, k), curve, (twin, "depth_s", fixed))
            last = (found, None if curve is None else float(curve[1][-1]))
        message.append(_said(*last, pair, "the distance at s = 1 is"))
        if last[1] is None:
            without.append(style.pair_name(pair))
        axes.set_xlabel(r"depth $s = \ell/L$")
        axes.set_xlim(-0.03, 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    _scale(row, drawn)
    _heads(row, pairs)
    row[0].set_ylabel("hidden distance (RMS)")
    _key(shapes, twin, figure)
    notes = [f"No predicted curve over depth of {', '.join(without)}."] if without else []
    return Picture(
        name,
        title,
        sentence(f"step {step}", *message),
        _DEPTH_CAPTION,
        finished(figure),
        [*notes, *_thinned(dataset.sizes["depth_point"], "depths"), *counted(errors, pairs, step)],
        twin.frame(),
    )


def _over_depth(cells: xr.Dataset, sizes: tuple[int, ...]) -> _Measured:
    s = cells["s"].values[0]
    inside = np.isfinite(s)
    values = cells[_BY_DEPTH].transpose("cell", "depth_point").values
    return _measured(sizes, s[inside], values[:, inside] ** 2)


def _thinned(count: int, what: str) -> list[str]:
    if count <= _MOST_POINTS:
        return []
    return [f"Of {count} {what}, {_MOST_POINTS} are drawn."]


# --- over steps -----------------------------------------------------------------------------------


@style.styled
def distance_over_steps(
    errors: Errors, rates: Mapping[str, Any], prediction: Prediction | None = None
) -> Picture:
    """Draw the distances of hidden states and outputs against gradient steps.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair.
    rates : mapping
        The contents of rates.json, for the step at which shapes are chosen.
    prediction : mapping or None
        The contents of prediction.json.

    Returns
    -------
    Picture
    """
    name, step = "distance_over_steps", last_step(errors, rates)
    title = "Distance over gradient steps"
    pairs = _panel_pairs(errors, step)
    if not pairs:
        reason = "No pair of networks and limits has a distance to draw."
        return empty(name, title, _STEPS_CAPTION, reason, counted(errors, _PAIRS, step))
    shapes = _shapes(errors, pairs, step)
    figure = new_figure(1.95, max(0.6, min(1.0, 0.3 * len(pairs))))
    axes_of = figure.subplots(2, len(pairs), sharex=True, squeeze=False)
    twin, message = Twin(), []
    for row, quantity in zip(axes_of, OBSERVABLES, strict=True):
        drawn = []
        for axes, pair in zip(row, pairs, strict=True):
            seen: set[tuple[int, ...]] = set()
            dataset = errors[pair][[*VARIABLES[quantity], "status"]].load()
            for k, shape in enumerate(shapes):
                sizes = _of_pair(shape, pair)
                rows = _rows(dataset, sizes)
                if sizes in seen or not len(rows):
                    continue
                seen.add(sizes)
                found = _over_steps(dataset.isel(cell=rows), quantity, sizes)
                curve = _predicted_over_steps(prediction, pair, quantity, sizes, found.x)
                drawn.append(found)
                fixed = {"observable": quantity, "pair": pair}
                _draw(axes, found, _look(shapes, k), curve, (twin, "gradient_step", fixed))
                last = (found, None if curve is None else float(curve[1][-1]))
            if pair == pairs[-1]:
                what = f"at step {found.x[-1]} the {quantity} distance is"
                message.append(_said(*last, pair, what))
        _scale(row, drawn)
        row[0].set_ylabel(f"{quantity} distance (RMS)")
    for axes in axes_of[-1]:
        axes.set_xlabel("gradient step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _heads(axes_of[0], pairs)
    _key(shapes, twin, figure)
    return Picture(
        name,
        title,
        sentence(*message),
        _STEPS_CAPTION,
        finished(figure),
        [
            *unpredicted(prediction, pairs, OBSERVABLES, step),
            *_thinned(dataset.sizes["step"], "steps"),
            *counted(errors, pairs, step),
        ],
        twin.frame(),
    )


def _over_steps(cells: xr.Dataset, quantity: str, sizes: tuple[int, ...]) -> _Measured:
    error, stderr = (cells[name].transpose("cell", "step").values for name in VARIABLES[quantity])
    noise = NOISE_SHARE[quantity] * np.nan_to_num(stderr) ** 2
    squares = error**2
    return _measured(
        sizes, cells["step"].values, np.where(squares > noise, squares - noise, squares)
    )


def _predicted_over_steps(
    prediction: Prediction | None,
    pair: str,
    quantity: str,
    sizes: tuple[int, ...],
    steps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:
    at = np.array(sizes, float)
    found = [distance(known(prediction, pair, quantity, int(step)), at) for step in steps]
    have = [k for k, value in enumerate(found) if value is not None]
    if not have:
        return None
    return steps[have], np.array([float(np.asarray(found[k])) for k in have])
