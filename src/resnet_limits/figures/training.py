"""Single networks beside the limit: losses, coordinates over depth, and the law of coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_limits.figures import style
from resnet_limits.kinds import Shape

_DASHED = (0, (4, 2))


def _of_token(token: int | None) -> str:
    return "" if token is None else f" of token {token}"


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


@style.styled
def loss_curves(
    curves: Sequence[LossCurve], limit: xr.Dataset | None, notes: Sequence[str] = ()
) -> Figure:
    """Draw losses of finite networks of growing size, and their distance to the limit's.

    Parameters
    ----------
    curves : sequence of LossCurve
        From small to large.
    limit : Dataset or None
        A limit store with ``loss`` and ``loss_stderr`` over ``step``.
    notes : sequence of str
        Sentences for the small print, such as what diverged.

    Returns
    -------
    Figure
        Left the losses, right the root mean square over seeds of their distance to the limit's.
    """
    figure = style.new_figure(3.2)
    left, right = figure.subplots(1, 2)
    colours = style.finite_colours(len(curves))
    for curve, colour in zip(curves, colours, strict=True):
        name = style.shape_name(*curve.shape)
        left.plot(
            curve.step, curve.loss.mean(axis=0), "-o", ms=2.4, lw=1.1, color=colour, label=name
        )
        left.fill_between(
            curve.step,
            curve.loss.min(axis=0),
            curve.loss.max(axis=0),
            color=colour,
            alpha=0.18,
            lw=0,
        )
    if limit is not None:
        _limit_loss(left, limit)
        _loss_distance(right, curves, colours, limit)
    if limit is None or not curves:
        style.missing(right, _no_distance(limit is None))
    if limit is None and not curves:
        style.missing(left, "No network was trained to the end, and no limit was solved.")
    else:
        left.legend(loc="upper right")
    for axes, label in ((left, "loss"), (right, "|loss \N{MINUS SIGN} limit's loss|, RMS")):
        axes.set_xlabel("gradient step")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    style.headline(figure, "Losses of finite networks and of the limit")
    style.footnote(
        figure,
        "Blue: mean over seeds and, shaded, smallest to largest seed." if curves else "",
        "Grey band: standard error of the limit." if limit is not None else "",
        *notes,
    )
    return figure


def _no_distance(without_limit: bool) -> str:
    if without_limit:
        return "No limit was solved in this experiment, so there is no distance to it."
    return "No finite network of this experiment was trained to the end."


def _limit_loss(axes: Axes, limit: xr.Dataset) -> None:
    step, loss, stderr = (limit[name].values for name in ("step", "loss", "loss_stderr"))
    axes.fill_between(
        step, loss - 2 * stderr, loss + 2 * stderr, color=style.LIMIT_COLOUR, alpha=0.25, lw=0
    )
    axes.plot(step, loss, color=style.LIMIT_COLOUR, ls=_DASHED, lw=1.5, label="DMFT limit")


def _loss_distance(
    axes: Axes, curves: Sequence[LossCurve], colours: Sequence[str], limit: xr.Dataset
) -> None:
    lowest, highest = np.inf, 0.0
    for curve, colour in zip(curves, colours, strict=True):
        distance = curve.loss - limit["loss"].sel(step=curve.step).values
        rms = np.sqrt((distance**2).mean(axis=0))
        axes.plot(curve.step, rms, "-o", ms=2.4, lw=1.1, color=colour)
        lowest = min(lowest, rms[rms > 0].min(initial=np.inf))
        highest = max(highest, rms.max())
    if not np.isfinite(lowest):
        return
    axes.set_yscale("log")
    stderr = limit["loss_stderr"].values
    if stderr.max() > lowest / 100:
        axes.fill_between(
            limit["step"].values, stderr, 1e-300, color=style.LIGHT_GREY, alpha=0.7, lw=0
        )
    axes.set_ylim(min(lowest, max(stderr.max(), lowest / 100)) / 2, highest * 1.6)
    style.log_axis(axes, "y")


# --- coordinates over depth -----------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectory:
    """Coordinates of one network over depth, and the limit's for the same embedding rows.

    Attributes
    ----------
    shape : Shape
        Sizes of the network.
    seed, step : int
        Which network of this shape, and the number of gradient steps.
    coordinates : tuple of int
        Which coordinates.
    s : ndarray, (points,)
        Depths at which the network was stored.
    finite : ndarray, (points, coordinates)
        Its residual stream for one sample.
    limit_s : ndarray, (limit points,)
        Depths at which the limit was evaluated.
    limit : ndarray, (limit points, coordinates)
        The limit's residual stream.
    token : int or None
        Which token of the sample, where there are any.
    """

    shape: Shape
    seed: int
    step: int
    coordinates: tuple[int, ...]
    s: np.ndarray
    finite: np.ndarray
    limit_s: np.ndarray
    limit: np.ndarray
    token: int | None = None


@style.styled
def trajectories(panels: Sequence[Trajectory], why_empty: str, notes: Sequence[str] = ()) -> Figure:
    """Draw coordinates of the residual stream over depth, networks beside the limit.

    Parameters
    ----------
    panels : sequence of Trajectory
        From small to large; one panel each.
    why_empty : str
        What to say if there are none.
    notes : sequence of str
        Sentences for the small print.

    Returns
    -------
    Figure
    """
    figure = style.new_figure(3.0)
    axes = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    if not panels:
        style.missing(axes[0], why_empty, 60)
    for panel, ax in zip(panels, axes, strict=False):
        for k in range(len(panel.coordinates)):
            colour = style.COORDINATE_COLOURS[k % len(style.COORDINATE_COLOURS)]
            ax.plot(panel.s, panel.finite[:, k], color=colour, lw=0.9, label="_finite")
            ax.plot(
                panel.limit_s,
                panel.limit[:, k],
                color=colour,
                lw=2.0,
                ls=(0, (3, 1.6)),
                alpha=0.65,
                label="_limit",
            )
        ax.set_title(style.shape_name(*panel.shape))
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    for ax in axes:
        ax.set_xlabel("depth s = layer / L")
    axes[0].set_ylabel("coordinates of h")
    if panels:
        handles = [
            Line2D([], [], color=style.GREY, lw=0.9, label="finite network"),
            Line2D([], [], color=style.GREY, lw=2.0, ls=(0, (3, 1.6)), label="DMFT limit"),
        ]
        style.key(figure, handles)
        seeds = ", ".join(dict.fromkeys(str(panel.seed) for panel in panels))
        shown = ", ".join(str(d) for d in panels[-1].coordinates)
        notes = (
            f"Seed {seeds}, sample 0, coordinates {shown}{_of_token(panels[0].token)}. The limit "
            "takes the same rows of the embedding, which networks of all sizes share.",
            *notes,
        )
    step = f", step {panels[0].step}" if panels else ""
    style.headline(figure, f"Coordinates of the residual stream over depth{step}")
    style.footnote(figure, *notes)
    return figure


# --- law of the coordinates -----------------------------------------------------------------------


@dataclass(frozen=True)
class LastLayer:
    """Coordinates of the last layer, and the standard deviation of the limit's law.

    Attributes
    ----------
    shape : Shape
        Sizes of the networks.
    step : int
        Number of gradient steps.
    values : ndarray, (samples, coordinates of all networks)
        Entries of h at s = 1.
    limit_std : ndarray, (samples,)
        sqrt(c^T G c): the limit's coordinates have mean 0.
    token : int or None
        Which token of the samples, where there are any.
    is_gaussian : bool
        Whether the limit's coordinates are Gaussian, as those of Gaussian embeddings are.
    """

    shape: Shape
    step: int
    values: np.ndarray
    limit_std: np.ndarray
    token: int | None = None
    is_gaussian: bool = True


_REACH = 4.0
"""Half the range of a histogram in standard deviations of the limit."""


@style.styled
def histograms(rows: Sequence[LastLayer], why_empty: str, notes: Sequence[str] = ()) -> Figure:
    """Draw histograms of the last layer's coordinates under the Gaussian law of the limit.

    Parameters
    ----------
    rows : sequence of LastLayer
        From small to large; one row of panels each, one column per sample.
    why_empty : str
        What to say if there are none.
    notes : sequence of str
        Sentences for the small print.

    Returns
    -------
    Figure
    """
    columns = len(rows[0].limit_std) if rows else 1
    figure = style.new_figure(1.0 + 1.45 * max(1, len(rows)))
    panels = figure.subplots(max(1, len(rows)), columns, sharex="col", squeeze=False)
    if not rows:
        style.missing(panels[0][0], why_empty, 60)
    colours = style.finite_colours(len(rows))
    for row, colour, line in zip(rows, colours, panels, strict=False):
        for sample, axes in enumerate(line):
            _histogram(axes, row.values[sample], row.limit_std[sample], colour)
        line[0].set_ylabel("density")
        line[0].set_title(style.shape_name(*row.shape))
    for sample, axes in enumerate(panels[-1]):
        axes.set_xlabel(f"coordinate of h, sample {sample}" if rows else "coordinate of h")
    if rows:
        law = "DMFT limit, Gaussian" if rows[0].is_gaussian else "Gaussian of the limit's variance"
        style.key(figure, [Line2D([], [], color=style.LIMIT_COLOUR, ls=_DASHED, label=law)])
        notes = (
            f"All coordinates{_of_token(rows[0].token)} of the networks of all seeds together, n "
            "in number; \N{GREEK SMALL LETTER SIGMA}: their root mean square, and below it the "
            "limit's.",
            *notes,
        )
    step = f", step {rows[0].step}" if rows else ""
    style.headline(figure, f"Coordinates of the last layer{step}")
    style.footnote(figure, *notes)
    return figure


def _histogram(axes: Axes, values: np.ndarray, std: float, colour: str) -> None:
    rms = float(np.sqrt((values**2).mean()))
    scale = std if std > 0 else (rms or 1.0)
    reach = _REACH * scale
    bins = int(np.clip(3 * round(len(values) ** (1 / 3)), 8, 64))
    edges = np.linspace(-reach, reach, bins + 1)
    inside, _ = np.histogram(values, edges)
    # Coordinates beyond the range count in the norm, so that the two curves stay comparable.
    axes.stairs(
        inside / (len(values) * np.diff(edges)), edges, fill=True, color=colour, alpha=0.55, lw=0
    )
    tallest = inside.max() / (len(values) * (edges[1] - edges[0]))
    if std > 0:
        x = np.linspace(-reach, reach, 201)
        axes.plot(
            x,
            np.exp(-0.5 * (x / std) ** 2) / (std * np.sqrt(2 * np.pi)),
            color=style.LIMIT_COLOUR,
            ls=_DASHED,
            lw=1.2,
        )
        tallest = max(tallest, 1.15 / (std * np.sqrt(2 * np.pi)))
    outside = len(values) - int(inside.sum())
    words = [
        f"n = {len(values)}",
        f"\N{GREEK SMALL LETTER SIGMA} = {style.number(rms)}",
        f"limit {style.number(float(std))}",
    ]
    if outside:
        words.append(f"{outside} outside")
    axes.text(
        0.98,
        0.97,
        "\n".join(words),
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=style.SMALL_SIZE,
        linespacing=1.35,
    )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, 1.1 * tallest or 1.0)
    axes.set_yticks([])
