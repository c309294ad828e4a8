"""What networks and the limit learn, over gradient steps: losses, and shares of right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from resnet_limits.figures import panels, style
from resnet_limits.figures.cells import sentence
from resnet_limits.figures.picture import Picture, Twin, empty, finished, new_figure
from resnet_limits.kinds import SIZES, Shape

_STEP = "gradient step"


def look_of(number: int, count: int) -> dict[str, Any]:
    """Colour, marker and kind of line of the number-th of so many networks, the smallest first."""
    return {
        "color": style.series_colours(count)[number],
        "marker": style.marker_of(number),
        "ls": style.DASHES[number % len(style.DASHES)],
        "ms": 2.8,
        "lw": 1.1,
    }


def _sizes(shape: Shape) -> dict[str, int]:
    return dict(zip(SIZES, shape, strict=True))


def _network_keys(shapes: Sequence[Shape]) -> list[Any]:
    return [
        panels.mark(style.shape_math(*shape), **look_of(k, len(shapes)))
        for k, shape in enumerate(shapes)
    ]


# --- losses ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCurve:
    """Losses of the networks of one shape.

    Attributes
    ----------
    shape : Shape
        Their sizes.
    step : ndarray of int, (steps,)
        Numbers of gradient steps.
    loss : ndarray, (seeds, steps)
        Of the seeds that did not diverge, at least one.
    """

    shape: Shape
    step: np.ndarray
    loss: np.ndarray


_LOSS_CAPTION = """\
Left: losses of finite networks of growing size (mean over seeds; shaded, the range from the
smallest to the largest seed) and the loss of the DMFT limit (dashed) with two standard errors.
Right: root mean square over seeds of the distance to the limit's loss; the limit's own standard
error is shaded where it is large enough to be seen. Losses depend on the outputs alone; the hidden
states are compared in the figures of distances. Networks that diverged are counted in the notes
and, if possible, replaced by others.
"""


@style.styled
def loss_curves(
    curves: Sequence[LossCurve], limit: xr.Dataset | None, notes: Sequence[str] = ()
) -> Picture:
    """Draw losses of finite networks of growing size, and their distance to the limit's.

    Parameters
    ----------
    curves : sequence of LossCurve
        From small to large.
    limit : Dataset or None
        A limit store with ``loss`` and ``loss_stderr`` over ``step``.
    notes : sequence of str
        Sentences of what is left out, such as what diverged.

    Returns
    -------
    Picture
        Left the losses; right, where there are networks and a limit, the root mean square over
        seeds of their distance.
    """
    name, title = "loss_curves", "Losses of finite networks and of the limit"
    if limit is None and not curves:
        reason = "No network was trained to the end, and no limit was solved."
        return empty(name, title, _LOSS_CAPTION, reason, notes)
    both = limit is not None and bool(curves)
    figure = new_figure(1.15, 1.0 if both else 0.6)
    axes_of = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    twin = Twin()
    for k, curve in enumerate(curves):
        look = look_of(k, len(curves))
        low, high, mean = (f(curve.loss, axis=0) for f in (np.min, np.max, np.mean))
        label = style.shape_words(*curve.shape)
        axes_of[0].plot(curve.step, mean, label=label, **look)
        _band(axes_of[0], curve.step, low, high, look["color"])
        twin.add(
            series="network",
            **_sizes(curve.shape),
            seeds=len(curve.loss),
            gradient_step=curve.step,
            loss=mean,
            smallest_seed=low,
            largest_seed=high,
        )
    if limit is not None:
        _limit_loss(axes_of[0], limit, twin)
    kinds, words = ["limit"] if limit is not None else [], ""
    if both:
        assert limit is not None
        said, words = _loss_distance(axes_of[1], curves, limit, twin)
        notes = [*notes, said]
        kinds += [] if said else ["noise"]
    elif limit is None:
        notes = [*notes, "No limit was solved in this experiment, so there is no distance to it."]
    else:
        notes = [*notes, "No finite network of this experiment was trained to the end."]
    for axes, label in zip(
        axes_of, ("loss", "|loss \N{MINUS SIGN} limit's loss|, RMS over seeds"), strict=False
    ):
        _over_steps(axes, label)
    panels.key(figure, [*_network_keys([curve.shape for curve in curves]), *panels.marks(*kinds)])
    return Picture(
        name,
        title,
        sentence(_loss_words(curves, limit), words),
        _LOSS_CAPTION,
        finished(figure),
        notes,
        twin.frame(),
    )


def _over_steps(axes: Axes, label: str) -> None:
    axes.set_xlabel(_STEP)
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _band(axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0, zorder=1)


def _loss_words(curves: Sequence[LossCurve], limit: xr.Dataset | None) -> str:
    if not curves:
        assert limit is not None
        loss = limit["loss"].values
        return f"the limit's loss goes from {style.number(loss[0])} to {style.number(loss[-1])}"
    first, last = (curves[-1].loss.mean(axis=0)[k] for k in (0, -1))
    text = (
        f"the mean loss of networks with {style.shape_words(*curves[-1].shape)} goes from "
        f"{style.number(first)} to {style.number(last)} at step {curves[-1].step[-1]}"
    )
    if limit is not None:
        at_end = float(limit["loss"].sel(step=curves[-1].step[-1]))
        text += f", the limit's to {style.number(at_end)}"
    return text


def _limit_loss(axes: Axes, limit: xr.Dataset, twin: Twin) -> None:
    step, loss, stderr = (limit[name].values for name in ("step", "loss", "loss_stderr"))
    colour = style.limit_colour()
    _band(axes, step, loss - 2 * stderr, loss + 2 * stderr, colour)
    axes.plot(step, loss, color=colour, ls=style.DASHED, lw=1.5, label="DMFT limit", zorder=4)
    twin.add(series="DMFT limit", gradient_step=step, loss=loss, limits_stderr=stderr)


def _loss_distance(
    axes: Axes, curves: Sequence[LossCurve], limit: xr.Dataset, twin: Twin
) -> tuple[str, str]:
    """Draw distances to the limit's loss; return a note, and what they say."""
    lowest, highest, words = np.inf, 0.0, []
    for k, curve in enumerate(curves):
        distance = curve.loss - limit["loss"].sel(step=curve.step).values
        rms = np.sqrt((distance**2).mean(axis=0))
        axes.plot(curve.step, rms, **look_of(k, len(curves)))
        twin.add(
            series="distance to the limit's loss",
            **_sizes(curve.shape),
            seeds=len(curve.loss),
            gradient_step=curve.step,
            distance_rms=rms,
        )
        lowest = min(lowest, rms[rms > 0].min(initial=np.inf))
        highest = max(highest, rms.max())
        words.append(style.number(rms[-1]))
    said = f"at the last step the distance is {' and '.join(words[:: len(words) - 1 or 1])}"
    if len(words) > 1:
        said += " for the smallest and the largest of these shapes"
    if not np.isfinite(lowest):
        return "All losses are equal to those of the limit.", said
    stderr = limit["loss_stderr"].values
    bottom = min(lowest, stderr.min() if stderr.min() > lowest / 30 else lowest) / 1.6
    axes.set_ylim(bottom, highest * 1.6)
    panels.log_axis(axes, "y")
    if panels.noise_band(axes, limit["step"].values, stderr, bottom):
        return "", said
    shown = style.number(stderr.max(), 1)
    return f"The standard error of the limit's loss is at most {shown}, below the axis.", said


# --- classes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """Shares of samples whose largest output is that of their class.

    Attributes
    ----------
    shape : Shape or None
        Sizes of the networks; None for the limit.
    part : {"training", "test"}
        Which samples.
    samples : int
        How many these are; with tokens, how many pairs of sample and token.
    step : ndarray of int, (steps,)
    share : ndarray, (seeds, steps)
        One row for the limit.
    """

    shape: Shape | None
    part: str
    samples: int
    step: np.ndarray
    share: np.ndarray


_ACCURACY_CAPTION = """\
Accuracy over gradient steps: the share of samples whose largest output is that of their class, for
finite networks of growing size (mean over seeds; shaded, the range from the smallest to the largest
seed) and for the DMFT limit (dashed). One panel shows the training samples and, if there are test
samples, another shows these. Accuracy depends on the outputs alone; the hidden states are compared
in the figures of distances.
"""


@style.styled
def accuracy(found: Sequence[Accuracy], why_empty: str = "", notes: Sequence[str] = ()) -> Picture:
    """Draw shares of right answers over steps, training and test samples apart.

    Parameters
    ----------
    found : sequence of Accuracy
        Networks from small to large, and the limit.
    why_empty : str
        What to say if there are none.
    notes : sequence of str
        Sentences of what is left out.

    Returns
    -------
    Picture
    """
    name, title = "accuracy", "Accuracy of finite networks and of the limit"
    if not found:
        return empty(name, title, _ACCURACY_CAPTION, why_empty, notes)
    parts = list(dict.fromkeys(curve.part for curve in found))
    shapes = list(dict.fromkeys(curve.shape for curve in found if curve.shape is not None))
    figure = new_figure(1.1, 1.0 if len(parts) > 1 else 0.6)
    twin, words = Twin(), []
    axes_of = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, part in zip(axes_of, parts, strict=True):
        for curve in (curve for curve in found if curve.part == part):
            low, high, mean = (f(curve.share, axis=0) for f in (np.min, np.max, np.mean))
            sizes: Mapping[str, int] = {}
            if curve.shape is None:
                look: dict[str, Any] = {
                    "color": style.limit_colour(),
                    "ls": style.DASHED,
                    "lw": 1.5,
                    "zorder": 4,
                    "marker": "",
                    "label": "DMFT limit",
                }
            else:
                look = look_of(shapes.index(curve.shape), len(shapes))
                sizes = _sizes(curve.shape)
                _band(axes, curve.step, low, high, look["color"])
            axes.plot(curve.step, mean, **look)
            twin.add(
                series="DMFT limit" if curve.shape is None else "network",
                part=part,
                **sizes,
                samples=curve.samples,
                seeds=len(curve.share),
                gradient_step=curve.step,
                accuracy=mean,
                smallest_seed=low,
                largest_seed=high,
            )
        _over_steps(axes, "accuracy" if part == parts[0] else "")
        count = next(curve.samples for curve in found if curve.part == part)
        axes.set_title(f"{part} samples, n = {count}")
        last = [curve for curve in found if curve.part == part]
        ends = [
            f"{'the limit' if curve.shape is None else style.shape_words(*curve.shape)} "
            f"{style.fixed(100 * curve.share[:, -1].mean(), 0)} %"
            for curve in (last[-2:] if last[-1].shape is None else last[-1:])
        ]
        words.append(f"accuracy on the {part} samples at the last step: {' and '.join(ends)}")
    axes_of[0].set_ylim(-0.02, 1.04)
    has_limit = any(curve.shape is None for curve in found)
    panels.key(figure, [*_network_keys(shapes), *panels.marks(*["limit"] * has_limit)])
    return Picture(
        name, title, sentence(*words), _ACCURACY_CAPTION, finished(figure), notes, twin.frame()
    )
