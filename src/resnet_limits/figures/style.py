"""One look for all figures: fonts, colours, names, and a reproducible way to write them.

Figures are matplotlib objects without pyplot, so that nothing global is touched. The same thing
has the same colour everywhere. Colours are those of Okabe and Ito, and trimmed viridis, plasma and
cividis for sizes: all are told apart by colour-blind readers.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from resnet_limits.integrity import temporary

FONT_SIZE = 8.0
SMALL_SIZE = 7.0
TITLE_SIZE = 9.0
WIDTH = 7.2
"""Width of a figure in inches: a full text column."""

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.titlelocation": "left",
    "axes.titlepad": 5.0,
    "axes.labelsize": FONT_SIZE,
    "axes.labelpad": 3.0,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": TITLE_SIZE,
    "figure.titleweight": "bold",
    "legend.fontsize": SMALL_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "legend.borderaxespad": 0.3,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "resnet-limits",
}
"""Settings that every figure is drawn and written with."""

BLACK = "#000000"
GREY = "#6e6e6e"
LIGHT_GREY = "#c9c9c9"

PAIR_COLOURS = {
    "finite-wide": "#0072b2",
    "wide-mean_ode": "#009e73",
    "mean_ode-dmft": "#d55e00",
    "finite-mean_ode": "#cc79a7",
    "finite-dmft": "#882255",
}
"""Colour of each pair that is compared."""

FAINT: dict[str, Any] = {"lw": 1.1, "alpha": 0.4, "ls": (0, (1, 1))}
"""How fitted lines are drawn beside predicted ones."""

LIMIT_COLOUR = BLACK
"""Colour of the DMFT limit."""

COORDINATE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that tell single coordinates apart."""

SIZE_NAMES = {
    "depth": "depth L",
    "width": "hidden width M",
    "embed_dim": "embedding dimension D",
}

_SIZE_MAPS = {"depth": "cividis", "width": "plasma", "embed_dim": "viridis"}
# The bright end of these maps is too pale for lines on white.
_SIZE_MAP_RANGE = {"depth": (0.0, 0.8), "width": (0.0, 0.84), "embed_dim": (0.0, 0.84)}

_MODEL_NAMES = {
    "finite": "finite network",
    "wide": "infinite width",
    "mean_ode": "Mean ODE",
    "dmft": "DMFT limit",
}

QUANTITY_NAMES = {
    "hidden": "hidden, RMS",
    "hidden_max_mean_abs": "hidden, max mean abs.",
    "output": "output, RMS",
}
"""Names of the distances, as in tables."""

AXIS_NAMES = {"hidden": "hidden error (RMS)", "output": "output error (RMS)"}
"""Names of the distances, as on axes."""

_P = ParamSpec("_P")


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Run a drawing function with the settings `RC`, and leave matplotlib's own as they were."""

    @functools.wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            figure = draw(*args, **kwargs)
            # Ticks are made on the first drawing, and take the settings of that moment.
            figure.draw_without_rendering()
            return figure

    return wrapper


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure of a size in inches, laid out so that nothing overlaps."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a figure so that the same figure always gives the same bytes.

    Parameters
    ----------
    figure : Figure
        What to write.
    path : path
        Where to; the ending decides on the format (``.svg`` with text as text, ``.png``, ``.pdf``).
    metadata : mapping, optional
        What the file says of its making, in the words of its format: what
        ``provenance.picture_metadata`` gives for it. A date in it would change with every run.

    Returns
    -------
    Path
        The file, whole: it is written beside its name and renamed.
    """
    path = Path(path)
    form = path.suffix.removeprefix(".").lower()
    unsaid: dict[str, Any] = {
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }.get(form, {})
    buffer = io.BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(buffer, format=form, metadata={**unsaid, **(metadata or {})})
    with temporary(path) as unfinished:
        unfinished.write_bytes(buffer.getvalue())
        unfinished.replace(path)
    return path


# --- names and numbers ----------------------------------------------------------------------------


def pair_name(pair: str) -> str:
    """Name a pair in words: ``finite-dmft`` is "finite network \N{EN DASH} DMFT limit"."""
    return " \N{EN DASH} ".join(_MODEL_NAMES.get(model, model) for model in pair.split("-"))


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits and a true minus sign; a dash for none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 5:
        text = f"{value:.{max(0, digits - 1 - exponent)}f}"
    else:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(power)}"
    return text.replace("-", "\N{MINUS SIGN}")


def fixed(value: float | None, places: int = 2) -> str:
    """Write a number with some decimals and a true minus sign; a dash for none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    # Adding zero takes the sign off a zero that rounding has left.
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", "\N{MINUS SIGN}")


def with_interval(
    value: float | None,
    interval: Sequence[float | None] | None,
    show: Callable[[float | None], str] = number,
) -> str:
    """Write a number with its interval: ``0.503 [0.481, 0.524]``."""
    if value is None:
        return "\N{EN DASH}"
    if interval is None or any(end is None for end in interval):
        return show(value)
    low, high = interval
    return f"{show(value)} [{show(low)}, {show(high)}]"


def fraction(value: float | None) -> str:
    """Write a theoretical exponent as the simple fraction it is: 0.5 as ``1/2``."""
    if value is None:
        return "\N{EN DASH}"
    sign = "\N{MINUS SIGN}" if value < 0 else ""
    for below in (1, 2, 3, 4, 5, 6, 8, 10, 12):
        above = round(abs(value) * below)
        if above and math.isclose(abs(value) * below, above, rel_tol=1e-6):
            return sign + (f"{above}" if below == 1 else f"{above}/{below}")
    return number(value)


def variable_name(name: str) -> str:
    """Write a variable of rates.json with root signs: ``1/sqrt(D)`` as 1/√D."""
    name = name.replace("sqrt(D)", "√D")
    return name.replace("sqrt(", "√(")


def shape_name(depth: int, width: int, embed_dim: int) -> str:
    """Name a shape: ``L = 8, M = 32, D = 64``."""
    return f"L = {depth}, M = {width}, D = {embed_dim}"


# --- parts of a figure ----------------------------------------------------------------------------


def missing(axes: Axes, sentence: str, width: int = 30) -> None:
    """Say in plain words, in the middle of otherwise empty axes, why nothing is drawn."""
    axes.text(
        0.5,
        0.5,
        textwrap.fill(sentence, width),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=GREY,
        fontsize=FONT_SIZE,
        linespacing=1.4,
    )
    axes.tick_params(
        which="both", left=False, bottom=False, labelleft=False, labelbottom=False, length=0
    )


def footnote(figure: Figure, *sentences: str, characters: int = 128) -> None:
    """Write small print below the figure, left-aligned; empty sentences are left out."""
    text = "  ".join(sentence for sentence in sentences if sentence)
    if text:
        figure.supxlabel(
            textwrap.fill(text, characters),
            x=0.01,
            ha="left",
            fontsize=SMALL_SIZE,
            color=GREY,
            linespacing=1.35,
        )


def key(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put a legend for all panels beside the headline, where it covers nothing."""
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles))


def headline(figure: Figure, text: str) -> None:
    """Write the figure's headline, left-aligned."""
    figure.suptitle(text, x=0.01, ha="left")


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
    if decades < 1.7:
        # Powers of ten alone would leave one label, or none, on such a short range.
        subs = (1.0, 2.0, 5.0) if decades > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def size_ticks(axes: Axes, values: Sequence[float], most: int = 6) -> None:
    """Label a logarithmic x-axis at sizes that occur, thinned to what there is room for."""
    sizes = sorted(set(values))
    axes.xaxis.set_major_locator(mpl.ticker.FixedLocator(_apart(sizes, most)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(mpl.ticker.FixedLocator(sizes))
    axes.xaxis.set_minor_formatter(NullFormatter())
    margin = (sizes[-1] / sizes[0]) ** 0.05
    axes.set_xlim(sizes[0] / max(margin, 1.05), sizes[-1] * max(margin, 1.05))


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


def size_colours(key: str, count: int) -> list[str]:
    """Colours of increasing values of one size, from its own colour map, dark first."""
    low, high = _SIZE_MAP_RANGE[key]
    points = [0.3] if count == 1 else np.linspace(low, high, count)
    return [to_hex(mpl.colormaps[_SIZE_MAPS[key]](point)) for point in points]


def finite_colours(count: int) -> list[str]:
    """Colours of finite networks of increasing size: from light to dark blue."""
    points = [0.8] if count == 1 else np.linspace(0.42, 0.95, count)
    return [to_hex(mpl.colormaps["Blues"](point)) for point in points]


def size_key(figure: Figure, axes: Axes, key: str, values: Sequence[int], title: str) -> None:
    """Put a discrete colour bar on top of axes, one field for each value of a size."""
    bounds = np.arange(len(values) + 1)
    mappable = ScalarMappable(
        norm=BoundaryNorm(bounds, len(values)),
        cmap=ListedColormap(size_colours(key, len(values))),
    )
    bar = figure.colorbar(
        mappable, ax=axes, location="top", aspect=28, pad=0.03, ticks=bounds[:-1] + 0.5
    )
    bar.ax.set_xticklabels([f"{value}" for value in values])
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0, pad=1.5, labelsize=SMALL_SIZE)
    bar.outline.set_visible(False)
    bar.set_label(title, fontsize=SMALL_SIZE, labelpad=3)
