"""The explorer's charts, as Vega-Lite specifications without data.

Data sets are named; the page fills them. The fields of a row are those of `FIELDS`; ``i`` is the
place of its cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from resnet_limits.kinds import SIZES, SYMBOLS

FIELDS = ("i", "x", "c", "value", "state", "inside", *SIZES, "parameters")
"""Fields of a row of the data sets ``cells`` and ``edge``.

``x`` is the variable of the first panel and ``c`` what colours show; ``inside`` is 1 for cells in
the ranges that are chosen. Cells without a number are in ``edge``, and drawn at the upper edge.
"""

SHAPES = {
    "resolved": "circle",
    "below_resolution": "triangle-down",
    "diverged": "cross",
    "not_run": "square",
    "no_value": "diamond",
}
"""The mark of each state."""

_PANELS = {
    **{name: f"{SYMBOLS[name]}, {words}" for name, words in zip(
        SIZES, ("depth", "width", "embedding dimension"), strict=True
    )},
    "parameters": "P = LMD",
}  # fmt: skip
_LOG: dict[str, Any] = {"type": "log", "nice": False, "padding": 6}
# Marks are drawn on a canvas, where no description of theirs is read; thousands of them are built
# at every change of the data unless they are turned off. Tooltips get the row itself, unwritten.
_POINT: dict[str, Any] = {
    "aria": False,
    "filled": True,
    "cursor": "pointer",
    "tooltip": alt.TooltipContent("data"),
}
_EDGE = 7
_FAINT = 0.06


class _Marks(NamedTuple):
    opacity: Any
    shape: Any
    color: Any


def panels(sizes: Sequence[str]) -> dict[str, Any]:
    """Specify the linked panels of a pair.

    The first has the chosen variable and the predictions, the others one size each. The parameter
    ``brush`` is the selection, in whichever panel it was drawn.

    Parameters
    ----------
    sizes : sequence of str
        The sizes that are finite in the pair; P is, where all are.
    """
    names = [*sizes, *(["parameters"] if len(sizes) == len(SIZES) else [])]
    chosen = alt.selection_interval(name="brush") & (alt.datum.inside == 1)
    marks = _Marks(
        alt.when(chosen).then(alt.value(0.85)).otherwise(alt.value(_FAINT)),
        alt.Shape("state:N").scale(domain=list(SHAPES), range=list(SHAPES.values())).legend(None),
        alt.Color("c:Q").scale(scheme="viridis"),
    )
    row = [_panel("x", "x", marks, is_first=True)]
    row += [_panel(name, _PANELS[name], marks, is_first=False) for name in names]
    chart = alt.hconcat(*row, spacing=12).resolve_scale(y="shared", color="shared")
    content = _plain(chart)
    # One selection for all panels, in the layer of the cells, whose name Altair has made longer.
    layers = [layer for panel in content["hconcat"] for layer in panel["layer"]]
    views = [layer["name"] for layer in layers if "name" in layer]
    content["params"] = [
        {"name": "brush", "select": {"type": "interval", "resolve": "global"}, "views": views}
    ]
    return content


def _panel(field: str, title: str, marks: _Marks, *, is_first: bool) -> Any:
    x = alt.X(f"{field}:Q").scale(type="log", nice=False, padding=12).title(title)
    x = x.axis(labelOverlap=True, grid=True, tickCount=6 if is_first else 4)
    y = alt.Y("value:Q").scale(type="log", nice=False, padding=14)
    y = y.title("value") if is_first else y.axis(labels=False, ticks=False, title=None)
    cells = alt.Chart(alt.NamedData("cells")).mark_point(**_POINT, size=24)
    cells = cells.encode(x, y, marks.color, marks.shape, opacity=marks.opacity)
    cells = cells.properties(name=f"cells_{field}")
    edge = alt.Chart(alt.NamedData("edge")).mark_point(**_POINT, size=44, style="edge")
    edge = edge.encode(x, marks.shape, y=alt.value(_EDGE), opacity=marks.opacity)
    ring = alt.Chart(alt.NamedData("chosen")).mark_point(
        aria=False, size=170, strokeWidth=2.5, opacity=1, style="chosen"
    )
    ring = ring.encode(x, y).transform_filter("isValid(datum.value)")
    edge_ring = ring.encode(y=alt.value(_EDGE)).copy()
    edge_ring.transform = [alt.FilterTransform("!isValid(datum.value)")]
    layers = [cells, edge, ring, edge_ring]
    if is_first:
        ticks = alt.Chart(alt.NamedData("predicted")).mark_tick(
            aria=False, orient="horizontal", width=12, thickness=1.2, opacity=0.9, style="predicted"
        )
        layers.insert(1, ticks.encode(x, y))
    return alt.layer(*layers).properties(name=f"panel_{field}")


def details() -> dict[str, dict[str, Any]]:
    """Specify the charts of one cell: losses and distances over steps, distances over depth.

    Each is named as its data set, of which rows have ``x``, ``y``, ``line`` (one of `LINES`) and
    ``part`` (lines of one kind are apart).
    """
    return {
        "losses": _plain(_lines("losses", "gradient step", "loss", is_log=False)),
        "steps": _plain(_lines("steps", "gradient step", "distance", is_log=True)),
        "depths": _plain(_lines("depths", "depth s = layer / L", "distance", is_log=True)),
    }


LINES = ("this", "others", "limit", "predicted", "stderr")
"""Lines of the charts of one cell: itself, other seeds of its shape, the limit's, what is
predicted, and the standard error."""


def _lines(name: str, x: str, y: str, *, is_log: bool) -> Any:
    base = alt.Chart(alt.NamedData(name)).encode(
        alt.X("x:Q").title(x).scale(nice=False).axis(grid=False),
        alt.Y("y:Q").title(y).scale(**(_LOG if is_log else {"zero": False})),
        alt.Color("line:N").scale(domain=list(LINES)).legend(None),
        alt.Detail("part:N"),
    )
    dashes = alt.StrokeDash("line:N").legend(None)
    dashes = dashes.scale(domain=list(LINES), range=[[1, 0], [1, 0], [6, 3], [2, 2], [1, 3]])
    width = alt.when(alt.datum.line == "others").then(alt.value(0.8)).otherwise(alt.value(2))
    lines = base.mark_line(aria=False, clip=True).encode(dashes, strokeWidth=width)
    points = base.mark_point(aria=False, filled=True, size=22, opacity=1).transform_filter(
        alt.datum.line == "this"
    )
    points = points.encode(tooltip=[alt.Tooltip("x:Q"), alt.Tooltip("y:Q", format=".6g")])
    return alt.layer(lines, points)


def _plain(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Give a chart as plain values, without the theme and the address of its schema."""
    content: dict[str, Any] = chart.to_dict(validate=True)
    content.pop("$schema", None)
    content.pop("config", None)
    return content
