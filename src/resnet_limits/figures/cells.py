"""The errors of one pair as figures show them: one point per shape, with its spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from resnet_limits.cells import VARIABLES, make_study
from resnet_limits.figures.style import number, pair_name, shape_words
from resnet_limits.kinds import SIZES, Shape
from resnet_limits.predicted import Prediction, unpredicted

Errors = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class ShapeErrors:
    """The errors of one pair at one step, one entry per shape.

    The limits' error adds its square to that of an error; it is taken off what is shown, as in the
    fits.

    Attributes
    ----------
    sizes : ndarray of int, (shapes, 3)
        Depth, width and embedding dimension; 0 where the pair does not depend on one.
    error, low, high : ndarray, (shapes,)
        Root mean square, smallest and largest over the good seeds, each without the limits' error;
        where that leaves nothing, as measured.
    stderr : ndarray, (shapes,)
        Root mean square over seeds of the standard error of the limits' quadrature.
    resolved : ndarray of bool, (shapes,)
        Whether all seeds stand out of the limits' own standard error.
    counts : mapping of str to int
        Numbers of cells, that is of shapes times seeds, by what became of them.
    """

    sizes: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    stderr: np.ndarray
    resolved: np.ndarray
    counts: Mapping[str, int]

    def __len__(self) -> int:
        """Count the shapes with at least one cell that is used."""
        return len(self.error)

    def size(self, name: str) -> np.ndarray:
        """One of the sizes, ``depth``, ``width`` or ``embed_dim``, per shape."""
        return self.sizes[:, SIZES.index(name)]

    def pick(self, mask: np.ndarray) -> ShapeErrors:
        """Take some of the shapes; the counts stay."""
        names = ("sizes", "error", "low", "high", "stderr", "resolved")
        return replace(self, **{name: getattr(self, name)[mask] for name in names})

    @property
    def parameters(self) -> np.ndarray:
        """P = L M D per shape, as floats."""
        return self.sizes.astype(float).prod(axis=1)

    @property
    def said(self) -> str:
        """Say what became of the cells; empty if there are none."""
        return said(self.counts)

    def why_empty(self, pair: str) -> str:
        """Say why there is nothing to draw."""
        total, diverged, missing = (
            self.counts.get(name, 0) for name in ("total", "diverged", "missing")
        )
        if not total:
            return f"This experiment does not compare {pair}."
        if diverged == total:
            return f"All {total} cells diverged: there is nothing to draw."
        if diverged + missing == total:
            return (
                f"{diverged} of {total} cells diverged and {missing} did not run: "
                "there is nothing to draw."
            )
        return "No cell has a finite error above rounding at this step."


def said(counts: Mapping[str, Any]) -> str:
    """Say what became of cells: ``48 of 81 cells used, 33 of them below resolution``."""
    if not counts.get("total"):
        return ""
    parts = [f"{counts['used']} of {counts['total']} cells used"]
    if counts.get("below_resolution"):
        parts.append(f"{counts['below_resolution']} below resolution")
    words = (("diverged", "diverged"), ("missing", "not run"))
    parts += [f"{counts[name]} {word}" for name, word in words if counts.get(name)]
    return ", ".join(parts)


def by_shape(errors: Errors, pair: str, quantity: str, step: int | None) -> ShapeErrors:
    """Reduce the cells of a pair to one point per shape.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The errors store, by pair.
    pair : str
        Which pair; one that is not there gives no shapes.
    quantity : {"hidden", "output"}
        Which distance.
    step : int or None
        Number of gradient steps.

    Returns
    -------
    ShapeErrors
        Only cells with status ok enter its errors; the others are counted.
    """
    dataset = errors.get(pair)
    if dataset is None or step is None or step not in dataset["step"].values:
        nothing = np.empty(0)
        return ShapeErrors(
            np.empty((0, len(SIZES)), dtype=int),
            *(nothing, nothing, nothing, nothing),
            resolved=nothing.astype(bool),
            counts={},
        )
    study = make_study(dataset[[*VARIABLES[quantity], "status"]].load(), quantity, step)
    if not study.seeds:
        return replace(by_shape({}, pair, quantity, step), counts=study.cells)
    noise = study.mean_noise[:, None]
    left = np.where(study.squares > noise, study.squares - noise, study.squares)
    mean = study.mean_squares
    error = np.sqrt(np.where(mean > noise[:, 0], mean - noise[:, 0], mean))
    low = np.sqrt(np.where(study.used, left, np.inf).min(axis=1))
    high = np.sqrt(np.where(study.used, left, 0.0).max(axis=1))
    return ShapeErrors(
        study.sizes,
        error,
        np.minimum(low, error),
        np.maximum(high, error),
        np.sqrt(noise[:, 0]),
        np.asarray((study.resolved | ~study.used).all(axis=1)),
        study.cells,
    )


def last_step(errors: Errors, rates: Mapping[str, Any]) -> int | None:
    """Choose the step that is drawn: the last one with rates, or else with errors."""
    if rates.get("steps"):
        return int(rates["steps"][-1])
    steps = [int(dataset["step"].values[-1]) for dataset in errors.values()]
    return min(steps) if steps else None


def along_diagonal(shapes: Sequence[Shape], count: int) -> list[Shape]:
    """Pick shapes from the smallest to the largest that all sizes grow along.

    The ends are the shapes of least and of most parameters; between them, those nearest to the
    straight line between the ends in (log L, log M, log D). A size of 0, which is infinite, is
    the same for all.
    """
    if not shapes:
        return []
    embed_dims = len({shape.embed_dim for shape in shapes})
    if embed_dims > 2:
        # More networks than this would not all differ in the size that matters most.
        count = min(count, embed_dims)
    ordered = sorted(shapes, key=lambda shape: (math.prod(size or 1 for size in shape), shape))
    logs = np.log(np.maximum(np.array(ordered, dtype=float), 1.0))
    points = np.linspace(0, 1, count)[:, None]
    line = logs[0] + points * (logs[-1] - logs[0])
    distances = ((line[:, None, :] - logs[None, :, :]) ** 2).sum(axis=-1)
    return [ordered[k] for k in sorted(set(distances.argmin(axis=1).tolist()))]


OBSERVABLES = ("hidden", "output")
"""What figures show side by side."""


def not_predicted(
    errors: Errors, prediction: Prediction | None, pairs: Sequence[str], step: int | None
) -> list[str]:
    """Say of each observable which terms of the drawn pairs are not predicted, and why."""
    drawn = [pair for pair in pairs if len(by_shape(errors, pair, "hidden", step))]
    return unpredicted(prediction, drawn, OBSERVABLES, step)


def counted(errors: Errors, pairs: Sequence[str], step: int | None) -> list[str]:
    """Say of each pair and observable what became of its cells."""
    found = []
    for pair in pairs:
        words = {name: by_shape(errors, pair, name, step).said for name in OBSERVABLES}
        if len(set(words.values())) == 1:
            words = {"": words["hidden"]}
        found += [
            f"{pair_name(pair)}{name and f', {name}'}: {text}."
            for name, text in words.items()
            if text
        ]
    return found


def extend(cells: ShapeErrors, lowest: float, highest: float) -> tuple[float, float]:
    """Widen a range to hold all errors that have a place on a logarithmic scale."""
    positive = cells.low[cells.low > 0]
    return (
        min(lowest, positive.min(initial=np.inf)),
        max(highest, cells.high.max(initial=0.0)),
    )


def extremes(cells: ShapeErrors, quantity: str) -> str:
    """Say between which errors some shapes lie: ``hidden errors from 0.18 (L = ...) to ...``."""
    if len(cells) == 0:
        return ""
    name = "hidden" if quantity == "hidden" else "output"
    least, most = int(cells.error.argmin()), int(cells.error.argmax())
    if len(cells) == 1:
        return f"the {name} error is {number(cells.error[0])}"
    ends = (
        f"{number(cells.error[k])} ({shape_words(*cells.sizes[k].tolist())})" for k in (least, most)
    )
    return f"the {name} error ranges from {' to '.join(ends)}"


def sentence(*parts: str) -> str:
    """Join clauses into a sentence; empty ones are left out."""
    text = "; ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
