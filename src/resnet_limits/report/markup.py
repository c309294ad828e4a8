"""HTML from values: templates that escape, Markdown, links that carry a table, small pictures."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

_HALF, _HEIGHT, _REACH = 60.0, 16, 3.0
"""Half the width and the height of an interval's picture in pixels, and the largest distance from
the reference that it shows, in units of the half-width that lets a claim agree."""


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Give the environment of the templates: everything is escaped, and no name may be missing."""
    made = Environment(
        loader=PackageLoader("resnet_limits", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["markdown"] = markdown
    return made


def source(name: str) -> Markup:
    """Give a file of the templates as it stands, for the page's style and script."""
    loader = environment().loader
    assert loader is not None
    return Markup(loader.get_source(environment(), name)[0])


def script_hash(script: str) -> str:
    """Name a script as a content security policy does, so that the page runs no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def markdown(text: str) -> Markup:
    """Render Markdown; tags in it are shown as text, and pictures are not loaded."""
    renderer = MarkdownIt("commonmark", {"html": False}).disable("image")
    return Markup(renderer.render(text))


def data_link(content: bytes, kind: str) -> str:
    """Give an address that holds the content itself, of a kind such as ``text/csv``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Write a table as CSV; None is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().encode()


def interval_picture(measured: float, low: float, high: float, unit: float) -> Markup:
    """Draw a measured value with its interval about a reference at 0.

    Parameters
    ----------
    measured, low, high : float
        Distances from the reference.
    unit : float
        The largest half-width that lets a claim agree, which is shaded.

    Returns
    -------
    Markup
        An SVG that screen readers pass over: the same numbers stand beside it as text. What lies
        beyond its edges is marked by arrows.
    """

    def place(value: float) -> float:
        share = max(-1.0, min(1.0, value / (_REACH * unit)))
        return round(_HALF + (_HALF - 4) * share, 1)

    middle = _HEIGHT / 2
    band = (_HALF - 4) / _REACH
    parts = [
        f'<rect class="band" x="{_HALF - band:.1f}" y="0" width="{2 * band:.1f}"'
        f' height="{_HEIGHT}"/>',
        f'<path class="reference" d="M{_HALF} 0V{_HEIGHT}"/>',
        f'<path class="interval" d="M{place(low)} {middle}H{place(high)}"/>',
    ]
    if low < -_REACH * unit:
        parts.append(f'<path class="end" d="M1 {middle}l6 -4v8z"/>')
    if high > _REACH * unit:
        parts.append(f'<path class="end" d="M{2 * _HALF - 1} {middle}l-6 -4v8z"/>')
    if abs(measured) <= _REACH * unit:
        parts.append(f'<circle class="end" cx="{place(measured)}" cy="{middle}" r="3"/>')
    size = f'width="{2 * _HALF:.0f}" height="{_HEIGHT}" viewBox="0 0 {2 * _HALF:.0f} {_HEIGHT}"'
    return Markup(f'<svg class="forest" {size} aria-hidden="true">{"".join(parts)}</svg>')


def distance(value: float, reference: float, *, is_amplitude: bool) -> float:
    """Give how far a value lies from a reference: of amplitudes, in the log."""
    if not is_amplitude:
        return value - reference
    return math.log(value / reference) if value > 0 and reference > 0 else -math.inf
