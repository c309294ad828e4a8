"""What a drawing function returns: the picture, what it says, and every number that is in it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnet_limits.figures import style
from resnet_limits.integrity import temporary, write_json

PICTURES = ("png", "svg", "pdf")
FORMS = (*PICTURES, "csv", "json")
"""Endings of the files of one figure."""

# What would make a file another one every time, or name a version of matplotlib.
_NO_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_KEYS = {
    "svg": {"title": "Title", "description": "Description"},
    "png": {"title": "Title", "description": "Description"},
    "pdf": {"title": "Title", "description": "Subject"},
}


class Twin:
    """The table that is a figure's twin, written row by row while the figure is drawn."""

    def __init__(self) -> None:
        self._parts: list[pd.DataFrame] = []

    def add(self, **columns: Any) -> None:
        """Add one row, or a row for each entry of the arrays among the columns."""
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v)) for v in columns.values()))
        if len(arrays[0]):
            self._parts.append(pd.DataFrame(dict(zip(columns, arrays, strict=True))))

    def frame(self) -> pd.DataFrame:
        """Give the table; its columns stand in the order in which they came."""
        return pd.concat(self._parts, ignore_index=True) if self._parts else pd.DataFrame()


@dataclass(frozen=True)
class Picture:
    """One figure with all that is said of it.

    Attributes
    ----------
    name : str
        One of ``stages.paths.FIGURES``.
    title : str
        Headline, which is not part of the picture.
    message : str
        What the figure shows of these very data, in one or two sentences with the main numbers.
    caption : str
        How to read it: Markdown, complete sentences.
    figure : Figure
        The picture. Where there is nothing to draw, it says so in words.
    notes : sequence of str
        Sentences on what is left out, counted or not predicted here.
    table : DataFrame
        Every number that is drawn.
    why_empty : str
        Why nothing is drawn; empty if something is.
    """

    name: str
    title: str
    message: str
    caption: str
    figure: Figure
    notes: Sequence[str] = ()
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    why_empty: str = ""

    def description(self) -> dict[str, Any]:
        """Give what ``NAME.json`` holds."""
        return {
            "name": self.name,
            "title": self.title,
            "message": self.message,
            "caption": self.caption,
            "notes": [note for note in self.notes if note],
            "status": "empty" if self.why_empty else "drawn",
            "why_empty": self.why_empty,
        }

    def save(self, path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
        """Write one of the figure's files so that the same figure always gives the same bytes.

        Parameters
        ----------
        path : path
            Where to; the ending, one of `FORMS`, says what is written: ``.png``, ``.svg`` (text as
            text), ``.pdf``, the table as ``.csv``, or what is said of the figure as ``.json``.
        metadata : mapping, optional
            What a picture says of its making beside title and description, in the words of its
            format. A date in it would change with every run.

        Returns
        -------
        Path
            The file, whole: it is written beside its name and renamed.

        Raises
        ------
        ValueError
            If the ending is another.
        """
        path = Path(path)
        form = path.suffix.removeprefix(".").lower()
        if form not in FORMS:
            raise ValueError(f"{path}: must end in one of {', '.join(FORMS)}")
        if form == "json":
            write_json(self.description(), path)
            return path
        if form == "csv":
            content = self.table.to_csv(index=False, lineterminator="\n").encode()
        else:
            content = _rendered(self, form, metadata or {})
        with temporary(path) as unfinished:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        return path


def _rendered(picture: Picture, form: str, metadata: Mapping[str, str]) -> bytes:
    names = _KEYS[form]
    said = {names["title"]: picture.title, names["description"]: picture.message}
    buffer = io.BytesIO()
    with style.settings():
        picture.figure.savefig(
            buffer, format=form, metadata={**_NO_DATES[form], **said, **metadata}
        )
    return buffer.getvalue()


def new_figure(rows: float, columns: float = 1.0) -> Figure:
    """Make an empty figure, laid out so that nothing overlaps.

    Parameters
    ----------
    rows : float
        Height, in units of the style's height of one row of panels.
    columns : float
        Width, in units of the style's width of a figure.
    """
    width, height = mpl.rcParams["figure.figsize"]
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def empty(name: str, title: str, caption: str, reason: str, notes: Sequence[str] = ()) -> Picture:
    """Make a figure that says in words why there is nothing to draw."""
    figure = new_figure(0.4)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, ha="center", va="center", color=style.GREY, wrap=True)
    return Picture(name, title, reason, caption, finished(figure), notes, why_empty=reason)


def finished(figure: Figure) -> Figure:
    """Lay a figure out for good, so that writing it in several formats does not do it again."""
    # Ticks are made on the first drawing, and take the settings of that moment.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure
