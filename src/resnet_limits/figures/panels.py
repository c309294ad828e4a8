"""Parts that figures are made of: axes, points with bars, bands, keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from resnet_limits.figures import style
from resnet_limits.figures.cells import ShapeErrors

# --- axes -----------------------------------------------------------------------------------------


def _tick_label(value: float, _: object = None) -> str:
    if value <= 0:
        return ""
    power = math.floor(math.log10(value) + 1e-9)
    if -4 <= power < 5:
        return f"{value:g}"
    mantissa = value / 10.0**power
    first = "" if math.isclose(mantissa, 1.0) else rf"{mantissa:g}\times"
    return f"${first}10^{{{power}}}$"


def log_axis(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, with readable tick labels on short and long ranges alike.

    Parameters
    ----------
    axes : Axes
        With its data already drawn, whose limits decide on the labels.
    which : {"x", "y"}
        The axis.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = math.log10(high / low) if low > 0 else math.inf
    if decades < 0.3:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(FixedLocator([]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif decades < 2.3:
        # Powers of ten alone would leave one label or two on such a short range.
        subs: tuple[float, ...] = (1.0, 2.0, 5.0)
        if decades < 1.2:
            subs = (1.0, 2.0, 3.0, 5.0)
        if decades < 0.7:
            subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(_tick_label))
    axis.set_minor_formatter(NullFormatter())


def size_ticks(axes: Axes, values: Sequence[float], most: int = 6) -> None:
    """Label a logarithmic x-axis at sizes that occur, thinned to what there is room for."""
    sizes = sorted(set(values))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes, most)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_formatter(NullFormatter())
    margin = max((sizes[-1] / sizes[0]) ** 0.09, 1.09)
    axes.set_xlim(sizes[0] / margin, sizes[-1] * margin)


def _apart(sizes: Sequence[float], most: int) -> list[float]:
    """Pick sizes whose labels do not touch on a logarithmic axis: the ends, and others between."""
    span = math.log(sizes[-1] / sizes[0])
    if not span:
        return [sizes[0]]
    # In parts of the axis: what half of a label takes, by its number of digits.
    halves = [0.014 * (len(f"{size:g}") + 1) * 6 / most for size in sizes]
    places = [math.log(size / sizes[0]) / span for size in sizes]

    def touch(one: int, other: int) -> bool:
        return abs(places[one] - places[other]) < halves[one] + halves[other]

    last = len(sizes) - 1
    if touch(0, last):
        return [sizes[0]]
    picked = [0]
    for k in range(1, last):
        if not touch(picked[-1], k) and not touch(k, last):
            picked.append(k)
    picked = [picked[k] for k in spread_indices(len(picked), most - 1)]
    return [sizes[k] for k in (*picked, last)]


def spread_indices(count: int, most: int) -> list[int]:
    """Pick at most ``most`` indices out of ``range(count)``, evenly, with first and last."""
    if count <= most:
        return list(range(count))
    return sorted({round(k) for k in np.linspace(0, count - 1, most)})


def common_y(panels: Sequence[Axes], lowest: float, highest: float) -> None:
    """Give panels of a row one logarithmic scale, labelled on the first of them only."""
    if not 0 < lowest < highest < np.inf:
        # Nothing but zeros: any scale will do.
        lowest, highest = 0.1, 1.0
    for panel in panels:
        panel.set_ylim(lowest, highest)
        log_axis(panel, "y")
        panel.tick_params(axis="y", which="both", labelleft=panel is panels[0])


# --- points and bands -----------------------------------------------------------------------------


def shifted(axes: Axes, points: float) -> Transform:
    """Draw beside the true place, by some points to the right, so that bars do not overlap."""
    figure = axes.figure
    assert figure is not None
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def shifts(count: int, apart: float = 2.0, room: float = 9.0) -> np.ndarray:
    """Give the shifts, in points, of so many series that share their places."""
    return (np.arange(count) - (count - 1) / 2) * min(apart, room / max(1, count - 1))


def points(
    axes: Axes,
    x: np.ndarray,
    cells: ShapeErrors,
    look: Mapping[str, Any],
    shift: float = 0.0,
) -> None:
    """Draw one marker per shape with a bar over its seeds; hollow where it is not resolved.

    Parameters
    ----------
    axes : Axes
    x : ndarray, (shapes,)
        Places.
    cells : ShapeErrors
        Their errors.
    look : mapping
        ``color``, ``marker`` and, where it is not the style's, ``ms``.
    shift : float
        As for `shifted`.
    """
    place = shifted(axes, shift)
    colour = look["color"]
    wide = cells.high > cells.low
    if wide.any():
        low, high = cells.low[wide], cells.high[wide]
        look_of_bar: dict[str, Any] = {"lw": 0.7, "alpha": 0.7, "label": "_range"}
        axes.vlines(x[wide], low, high, colors=colour, transform=place, **look_of_bar)
    for mask, face, label in (
        (cells.resolved, colour, "resolved"),
        (~cells.resolved, "white", "unresolved"),
    ):
        axes.plot(
            x[mask],
            cells.error[mask],
            ls="none",
            mfc=face,
            mec=colour,
            mew=0.8,
            label=f"_{label}",
            zorder=3,
            transform=place,
            **look,
        )


def error_columns(cells: ShapeErrors) -> dict[str, Any]:
    """Give the columns of the twin table that `points` draws."""
    return {
        **{name: cells.size(name) for name in ("depth", "width", "embed_dim")},
        "error_rms": cells.error,
        "smallest_seed": cells.low,
        "largest_seed": cells.high,
        "limits_stderr": cells.stderr,
        "resolved": cells.resolved,
    }


def noise_band(axes: Axes, x: np.ndarray, noise: np.ndarray, bottom: float) -> bool:
    """Shade the limits' standard error where all of it lies above the lower edge.

    Clipped by the edge it would be stray triangles. Returns whether it was drawn.
    """
    if not (noise > bottom).all():
        return False
    axes.fill_between(
        x, noise, bottom, color=style.pale(), alpha=0.6, lw=0, zorder=0, label="_noise"
    )
    return True


# --- words and keys -------------------------------------------------------------------------------


def small_print(axes: Axes, x: float, y: float, text: str, **font: Any) -> None:
    """Write small print into axes, in parts of their width and height."""
    axes.text(x, y, text, transform=axes.transAxes, fontsize=style.small(), **font)


def key(figure: Figure, handles: Sequence[Line2D | Patch]) -> None:
    """Put a legend for all panels above them, in as many lines as it needs."""
    if not handles:
        return
    # In widths of a letter: a label, its handle, and the space between.
    letter = 0.58 * style.small() / 72
    widths = [len(str(h.get_label()).replace("$", "")) + 7.5 for h in handles]
    room = figure.get_figwidth() / letter
    columns = next(
        (
            count
            for count in range(len(handles), 1, -1)
            if sum(max(widths[k::count]) for k in range(count)) <= room
        ),
        1,
    )
    # Matplotlib fills column by column; so it reads line by line.
    lines = -(-len(handles) // columns)
    columns = -(-len(handles) // lines)
    figure.legend(handles=list(handles), loc="outside upper left", ncols=columns)


def size_key(figure: Figure, axes: Axes, values: Sequence[int], title: str) -> None:
    """Put a bar on top of axes with the colour and the marker of each value of a size."""
    bounds = np.arange(len(values) + 1)
    colours = style.series_colours(len(values))
    mappable = ScalarMappable(norm=BoundaryNorm(bounds, len(values)), cmap=ListedColormap(colours))
    bar = figure.colorbar(
        mappable, ax=axes, location="top", aspect=20, pad=0.03, ticks=bounds[:-1] + 0.5
    )
    for k in range(len(values)):
        bar.ax.plot(k + 0.5, 0.5, style.marker_of(k), ms=3.4, color="white", clip_on=False)
    bar.ax.set_xticklabels([f"{value}" for value in values])
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0, pad=1.5, labelsize=style.small())
    bar.outline.set_visible(False)
    bar.set_label(title, fontsize=style.small(), labelpad=3)


def mark(label: str, **look: Any) -> Line2D:
    """Make an entry of a key."""
    return Line2D([], [], label=label, **look)


def kinds_drawn(figure: Figure) -> list[str]:
    """Say which entries of `marks` a figure of errors needs, by what is in it."""
    labels = {
        str(artist.get_label())
        for axes in figure.axes
        for artist in (*axes.lines, *axes.collections)
        if not isinstance(artist, Line2D) or len(np.atleast_1d(artist.get_xdata()))
    }
    known = {
        "_resolved": "points",
        "_unresolved": "hollow",
        "_range": "range",
        "_prediction": "prediction",
        "_fit": "fit",
        "_theory": "theory",
        "_noise": "noise",
    }
    return [kind for label, kind in known.items() if label in labels]


def marks(*kinds: str) -> list[Line2D | Patch]:
    """Make entries of a key by their names, in grey."""
    dot = {"color": style.GREY, "marker": "o", "ls": "none"}
    width = mpl.rcParams["lines.linewidth"]
    known: dict[str, Line2D | Patch] = {
        "points": mark("network, RMS over seeds", **dot),
        "hollow": mark("below resolution", **{**dot, "mfc": "white"}),
        "range": mark("range over seeds", color=style.GREY, lw=0.7, marker="|", ls="none", ms=8),
        "interval": mark("95 % interval", color=style.GREY, lw=0.7, marker="|", ls="none", ms=8),
        "prediction": mark("prediction, without any fit", color=style.GREY, lw=width),
        "fit": mark("fit", color=style.GREY, **style.faint()),
        "theory": mark("exponent of theory", color=style.limit_colour(), lw=1.1, ls=style.DASHED),
        "limit": mark("DMFT limit", color=style.limit_colour(), lw=1.4, ls=style.DASHED),
        "noise": Patch(color=style.pale(), alpha=0.6, lw=0, label="limits' standard error"),
    }
    return [known[kind] for kind in kinds]
