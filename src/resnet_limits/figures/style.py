"""One look for all figures: a style sheet, colours and markers, names and numbers.

Figures are matplotlib objects without pyplot, so that nothing global is touched. What they look
like stands in ``default.mplstyle``; a sheet of the user's may be laid over it. The same thing has
the same colour and the same marker everywhere, so that figures are read in grey print too.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import matplotlib as mpl
import matplotlib.font_manager
import numpy as np
from matplotlib.colors import to_hex

from resnet_limits.config import InputError

DEFAULT_SHEET = Path(__file__).with_name("default.mplstyle")

_OWN: ContextVar[dict[str, Any] | None] = ContextVar("own", default=None)
# Without it the names inside an SVG would be drawn by chance.
_FIXED = {"svg.hashsalt": "resnet-limits"}

_P = ParamSpec("_P")
_T = TypeVar("_T")


class StyleError(InputError):
    """A style sheet is not one; the message says which line, and why."""


def read_sheet(path: Path | str) -> dict[str, Any]:
    """Read a matplotlib style sheet.

    Parameters
    ----------
    path : path
        A text file of lines ``key: value``, as in ``matplotlibrc``.

    Returns
    -------
    dict
        The settings, checked by matplotlib.

    Raises
    ------
    StyleError
        If the file cannot be read, names an unknown key or has a value that its key does not allow.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StyleError(f"figure style {path}: cannot be read: {error}") from None
    settings: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        # A colour such as "#0072b2" in quotes is none.
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if not content:
            continue
        where = f"figure style {path}, line {number}"
        name, colon, value = content.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or name not in mpl.rcParams:
            raise StyleError(
                f"{where}: {name!r} is not a setting of matplotlib; allowed: lines KEY: VALUE with "
                f"keys such as font.size, as in {DEFAULT_SHEET.name}"
            )
        if name == "backend" or name in _FIXED:
            raise StyleError(f"{where}: {name} is fixed, so that files are the same every time")
        try:
            # Its values are checked as they come in.
            settings |= dict(cast("Any", mpl.RcParams(cast("Any", {name: value.strip('"')}))))
        except ValueError as error:
            raise StyleError(f"{where}: {' '.join(str(error).split())}") from None
    return settings


@functools.cache
def _default() -> dict[str, Any]:
    return read_sheet(DEFAULT_SHEET)


@contextmanager
def sheet(path: Path | str | None) -> Iterator[None]:
    """Lay a style sheet over the default for all that is drawn and saved inside.

    Parameters
    ----------
    path : path or None
        The sheet; None leaves the default.

    Raises
    ------
    StyleError
        As for `read_sheet`.
    """
    token = _OWN.set(None if path is None else read_sheet(path))
    try:
        yield
    finally:
        _OWN.reset(token)


@contextmanager
def settings() -> Iterator[None]:
    """Put the settings of the style into force, and matplotlib's own back in the end."""
    # All that a matplotlibrc of the user may say is set aside: it would change figures silently.
    plain: dict[str, Any] = {
        name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"
    }
    with mpl.rc_context(cast("Any", {**plain, **_default(), **(_OWN.get() or {}), **_FIXED})):
        yield


def styled(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Run a drawing function with the settings of the style."""

    @functools.wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with settings():
            return draw(*args, **kwargs)

    return wrapper


# --- colours, markers, lines ----------------------------------------------------------------------

GREY = "#6e6e6e"
"""Colour of small print."""

PAIRS = ("finite-wide", "mean_ode-dmft", "wide-mean_ode", "finite-mean_ode", "finite-dmft")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
"""Markers of a series, in order."""
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (7, 1, 1, 1, 1, 1)),
)
"""Kinds of lines of a series, in order."""
DASHED = (0, (4, 2))
"""The limit, and the exponents of theory."""

# The bright end of colour maps is too pale for lines on white.
_MAP_RANGE = (0.0, 0.86)


def cycled(number: int) -> str:
    """Colour of the style's cycle; after the last one it starts again."""
    colours = mpl.rcParams["axes.prop_cycle"].by_key().get("color") or ["C0"]
    return to_hex(colours[number % len(colours)])


def pair_colour(pair: str) -> str:
    """Colour of a pair that is compared."""
    return cycled(PAIRS.index(pair) if pair in PAIRS else len(PAIRS))


def pair_marker(pair: str) -> str:
    """Marker of a pair that is compared."""
    return MARKERS[PAIRS.index(pair) if pair in PAIRS else len(PAIRS)]


def limit_colour() -> str:
    """Colour of the DMFT limit and of theory."""
    return to_hex(mpl.rcParams["text.color"])


def pale() -> str:
    """Colour of what stands behind: limits' standard errors, shapes beside others."""
    return to_hex(mpl.rcParams["grid.color"])


def series_colours(count: int) -> list[str]:
    """Colours of increasing sizes, from the style's colour map, dark first."""
    low, high = _MAP_RANGE
    points = [0.3] if count == 1 else np.linspace(low, high, count)
    return [to_hex(mpl.colormaps[mpl.rcParams["image.cmap"]](point)) for point in points]


def marker_of(number: int) -> str:
    """Marker of a series by its number."""
    return MARKERS[number % len(MARKERS)]


def faint() -> dict[str, Any]:
    """How fitted lines are drawn beside predicted ones."""
    return {"lw": 0.85 * mpl.rcParams["lines.linewidth"], "alpha": 0.55, "ls": (0, (1, 1))}


def small() -> float:
    """Size of small print in points."""
    return float(mpl.font_manager.FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size())


# --- names and numbers ----------------------------------------------------------------------------

SIZE_NAMES = {
    "depth": "depth $L$",
    "width": "hidden width $M$",
    "embed_dim": "embedding dimension $D$",
}

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


def number_math(value: float, digits: int = 1) -> str:
    """Write a number inside a figure, with powers of ten as powers."""
    mantissa, e, power = number(value, digits).partition("e")
    power = power.replace("\N{MINUS SIGN}", "-")
    return rf"${mantissa}\times10^{{{power}}}$" if e else mantissa


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


def variable_math(name: str) -> str:
    """Write a variable of rates.json as a formula inside a figure."""
    root = name.replace("sqrt(D/(LM))", r"\sqrt{D/(LM)}").replace("sqrt(LM)", r"\sqrt{LM}")
    return f"${root.replace('sqrt(D)', chr(92) + 'sqrt{D}')}$"


def shape_words(depth: int, width: int, embed_dim: int) -> str:
    """Name a shape: ``L = 8, M = 32, D = 64``; sizes of zero, which are infinite, are left out."""
    named = zip("LMD", (depth, width, embed_dim), strict=True)
    return ", ".join(f"{symbol} = {size}" for symbol, size in named if size)


def shape_math(depth: int, width: int, embed_dim: int) -> str:
    """Name a shape inside a figure, as `shape_words` does."""
    parts = shape_words(depth, width, embed_dim).split(", ")
    return ", ".join(f"${part}$" for part in parts)
