"""The explorer's page: one HTML file that needs nothing besides itself."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import numpy as np
import vl_convert
from markupsafe import Markup
from numpy.typing import NDArray

from resnet_limits import predicted
from resnet_limits.explorer import charts, packing
from resnet_limits.explorer.cells import STATES, PairCells, state_of_loss
from resnet_limits.kinds import SIZES
from resnet_limits.laws import OBSERVABLES

BUDGET = 4_700_000
"""Bytes that a page may have; steps are left out where all of them would take more."""


_SCRIPTS = ("cells.js", "charts.js", "table.js")
_MARKUP_BYTES = 20_000
_LIBRARIES = "window.vegaEmbed = vegaEmbed;"

_LABELS = {
    "hidden": "hidden states, RMS at s = 1",
    "hidden_max_mean_abs": "hidden states, largest mean |difference| over depth",
    "output": "outputs, RMS",
    "loss": "loss",
}
_NAMES = {"finite": "networks", "wide": "infinite width", "mean_ode": "Mean ODE", "dmft": "DMFT"}


class Heading(NamedTuple):
    """What a page says of where it comes from.

    Attributes
    ----------
    experiment : str
        Its name.
    created : str
        When the distances were measured.
    version : str
        Of the package.
    notes : sequence of str
        Sentences on what is not there.
    """

    experiment: str
    created: str
    version: str
    notes: Sequence[str]


class Page(NamedTuple):
    """A page, and what it holds.

    Attributes
    ----------
    html : str
    steps, all_steps : int
        Numbers of steps on the page and in the results, of the pair with the most.
    """

    html: str
    steps: int
    all_steps: int


def render(
    pairs: Mapping[str, PairCells],
    prediction: predicted.Prediction | None,
    heading: Heading,
    budget: int = BUDGET,
) -> Page:
    """Make the page.

    Parameters
    ----------
    pairs : mapping of str to PairCells
        At least one.
    prediction : mapping or None
        The contents of prediction.json.
    heading : Heading
    budget : int
        Bytes that the page should not exceed. Distances over depth are there at the last step at
        least, distances at two steps at least, if there are so many.
    """
    libraries = _libraries()
    own = _own_script()
    style = _resource("page.css")
    columns = {pair: _Columns(cells, prediction) for pair, cells in pairs.items()}
    specs = {
        "panels": {pair: charts.panels(cells.sizes) for pair, cells in pairs.items()},
        "details": charts.details(),
    }
    beside = (libraries, own, style, _as_script_data(specs))
    room = budget - sum(len(text.encode()) for text in beside) - _MARKUP_BYTES
    kept = _fitting(list(columns.values()), room)
    pool = _Pool()
    content = {
        "experiment": heading.experiment,
        "digits": packing.DIGITS,
        "states": STATES,
        "marks": charts.SHAPES,
        "lines": charts.LINES,
        "labels": _LABELS,
        "names": _NAMES,
        "pairs": {pair: column.content(pool.add, kept) for pair, column in columns.items()},
        "specs": specs,
    }
    content["columns"] = pool.texts
    all_steps = max(len(cells.steps) for cells in pairs.values())
    steps = max(len(kept.steps(column.count)) for column in columns.values())
    notes = list(heading.notes)
    if steps < all_steps:
        notes.append(
            f"To keep this page small, it has {steps} of {all_steps} steps; "
            "the option --data writes all of them."
        )
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _resource("page.html.j2")
    )
    html = template.render(
        experiment=heading.experiment,
        created=heading.created,
        version=heading.version,
        notes=notes,
        digits=packing.DIGITS,
        sizes=SIZES,
        states=STATES,
        style=Markup(style),
        scripts=[Markup(libraries), Markup(own)],
        hashes=" ".join(f"'sha256-{_hash(text)}'" for text in (libraries, own)),
        data=Markup(_as_script_data(content)),
    )
    return Page(html, steps, all_steps)


@lru_cache(maxsize=1)
def _libraries() -> str:
    return vl_convert.javascript_bundle(_LIBRARIES)


def _own_script() -> str:
    """Join the parts of the page's own script, whose names are nobody else's."""
    parts = "\n".join(map(_resource, _SCRIPTS))
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _resource(name: str) -> str:
    return (resources.files("resnet_limits.explorer") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _as_script_data(content: Mapping[str, Any]) -> str:
    """Write JSON that no name inside can end: ``<`` as an escape, which means the same."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


# --- numbers --------------------------------------------------------------------------------------


class _Pool:
    """Packed columns, each once."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def add(self, text: str) -> int:
        """Give the place of a column."""
        return self.places.setdefault(text, len(self.places))

    @property
    def texts(self) -> list[str]:
        """All columns, in the order of their places."""
        return list(self.places)


class _Kept(NamedTuple):
    """How many steps are kept: of all that changes with steps, and of distances over depth."""

    distances: int
    depths: int

    def steps(self, count: int) -> list[int]:
        """Give the places of the steps, evenly spread, the first and the last among them."""
        return _spread(range(count), self.distances)

    def depth_steps(self, count: int) -> list[int]:
        """Give the places of the steps at which there are distances over depth."""
        return _spread(self.steps(count), self.depths)


def _spread(places: Sequence[int], most: int) -> list[int]:
    """Choose from places evenly, the last one first of all."""
    if len(places) <= most:
        return list(places)
    if most == 1:
        return [places[-1]]
    return [places[k] for k in np.linspace(0, len(places) - 1, most).round().astype(int)]


class _Columns:
    """The packed columns of one pair, at all steps."""

    def __init__(self, cells: PairCells, prediction: predicted.Prediction | None) -> None:
        self.cells = cells
        self.count = len(cells.steps)
        self.fixed = {
            "columns": {name: packing.exact(column) for name, column in cells.columns.items()},
            "variables": {
                name: packing.exact(cells.variable(name)) for name in (*cells.terms, "D/(LM)")
            },
        }
        self.stepped: dict[str, dict[str, list[str]]] = {
            observable: {
                "value": _by_step(packing.values, distance.value),
                "stderr": _by_step(packing.values, distance.stderr),
                "state": _by_step(packing.codes, distance.state),
            }
            for observable, distance in cells.distances.items()
        }
        if cells.losses is not None:
            self.stepped["loss"] = {
                "value": _by_step(packing.values, cells.losses.first),
                "reference": _by_step(packing.values, cells.losses.second),
                "state": _by_step(packing.codes, state_of_loss(cells)),
            }
        self.why = {
            name: predicted.why_missing(prediction, distance.known[-1])
            for name, distance in cells.distances.items()
        }
        self.profile: list[str] = []
        self.predicted_profile: list[str | None] = []
        self.predicted_s: list[float] = []
        if cells.profile is not None:
            self.profile = _by_step(packing.values, cells.profile.values)
            sizes = np.stack([cells.columns[name] for name in SIZES], axis=-1)
            for step in cells.steps:
                found = predicted.distance_at(prediction, cells.pair, int(step), sizes)
                self.predicted_profile.append(None if found is None else packing.values(found[1]))
                if found is not None:
                    self.predicted_s = found[0].tolist()

    def texts(self, kept: _Kept) -> set[str]:
        """Every column that would be on the page."""
        texts = {text for part in self.fixed.values() for text in part.values()}
        for columns in self.stepped.values():
            for steps in columns.values():
                texts |= {steps[k] for k in kept.steps(self.count)}
        if self.profile:
            for k in kept.depth_steps(self.count):
                texts |= {self.profile[k], self.predicted_profile[k] or ""}
        return texts

    def content(self, add: Callable[[str], int], kept: _Kept) -> dict[str, Any]:
        """Describe the pair, with places of columns in place of numbers."""
        cells, places = self.cells, kept.steps(self.count)
        observables = {}
        for name, columns in self.stepped.items():
            entry: dict[str, Any] = {
                part: [add(steps[k]) for k in places] for part, steps in columns.items()
            }
            if name in OBSERVABLES:
                known = [cells.distances[name].known[k] for k in places]
                entry["amplitudes"] = [k.amplitudes if k.is_complete else None for k in known]
                entry["why"] = self.why[name]
            observables[name] = entry
        profile = None
        if cells.profile is not None:
            depth_places = kept.depth_steps(self.count)
            profile = {
                "points": cells.profile.s.shape[1],
                "s": add(packing.values(cells.profile.s)),
                "steps": [places.index(k) for k in depth_places],
                "value": [add(self.profile[k]) for k in depth_places],
                "predicted": [
                    None if (text := self.predicted_profile[k]) is None else add(text)
                    for k in depth_places
                ],
                "predicted_s": self.predicted_s,
            }
        first, _, second = cells.pair.partition("-")
        return {
            "count": len(cells),
            "first": first,
            "second": second,
            "sizes": list(cells.sizes),
            "steps": [int(cells.steps[k]) for k in places],
            **{
                part: {name: add(text) for name, text in texts.items()}
                for part, texts in self.fixed.items()
            },
            "observables": observables,
            "profile": profile,
        }


def _by_step(pack: Callable[[NDArray[Any]], str], values: NDArray[Any]) -> list[str]:
    """Pack the numbers of every step, in the order of the cells."""
    return [pack(values[:, k]) for k in range(values.shape[1])]


def _fitting(columns: Sequence[_Columns], room: int) -> _Kept:
    """Find how many steps fit: those of distances first, then those of distances over depth."""

    def fits(kept: _Kept) -> bool:
        texts = set().union(*(column.texts(kept) for column in columns))
        return sum(len(text) + 3 for text in texts) <= room

    most = max(column.count for column in columns)
    distances = next((count for count in range(most, 1, -1) if fits(_Kept(count, 1))), min(most, 2))
    depths = next((count for count in range(distances, 1, -1) if fits(_Kept(distances, count))), 1)
    return _Kept(distances, depths)
