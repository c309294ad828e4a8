"""From the errors of single cells to one point per shape, with its spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from resnet_limits.kinds import DIVERGED, NOT_RUN, OK, SIZES

VARIABLES = {"hidden": "hidden_rms", "output": "output_rms"}
"""Name of a distance in rates.json to its variable in the errors store."""

RESOLUTION = 10.0
"""An error is resolved if its shape's RMS exceeds this many of its own standard errors."""

_ROUNDING = 1e-12

Errors = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class ShapeErrors:
    """The errors of one pair at one step, one entry per shape.

    Attributes
    ----------
    sizes : ndarray of int, (shapes, 3)
        Depth, width and embedding dimension; 0 where the pair does not depend on one.
    error, low, high : ndarray, (shapes,)
        Root mean square, smallest and largest over the seeds that enter the fits; over all good
        seeds where none is resolved.
    stderr : ndarray, (shapes,)
        Root mean square over those seeds of the standard error of the limits' quadrature.
    resolved : ndarray of bool, (shapes,)
        Whether any seed stands out of the limits' own standard error, and so enters the fits.
    total, diverged, not_run : int
        Numbers of cells, that is of shapes times seeds.
    """

    sizes: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    stderr: np.ndarray
    resolved: np.ndarray
    total: int
    diverged: int
    not_run: int

    def __len__(self) -> int:
        """Count the shapes with at least one cell that is used."""
        return len(self.error)

    def size(self, name: str) -> np.ndarray:
        """One of the sizes, ``depth``, ``width`` or ``embed_dim``, per shape."""
        return self.sizes[:, SIZES.index(name)]

    @property
    def parameters(self) -> np.ndarray:
        """P = L M D per shape, as floats."""
        return self.sizes.astype(float).prod(axis=1)

    @property
    def left_out(self) -> str:
        """Say which cells are not drawn; empty if all are."""
        parts = [
            f"{count} of {self.total} cells {what}"
            for count, what in ((self.diverged, "diverged"), (self.not_run, "not run"))
            if count
        ]
        return f"{' and '.join(parts)}, left out." if parts else ""

    def why_empty(self, pair: str) -> str:
        """Say why there is nothing to draw."""
        if not self.total:
            return f"This experiment does not compare {pair}."
        if self.diverged == self.total:
            return f"All {self.total} cells diverged: there is nothing to draw."
        if self.diverged + self.not_run == self.total:
            return (
                f"{self.diverged} of {self.total} cells diverged and {self.not_run} did not run: "
                "there is nothing to draw."
            )
        return "No cell has a finite error at this step."


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
            total=0,
            diverged=0,
            not_run=0,
        )
    name = VARIABLES[quantity]
    at_step = dataset[[name, f"{name}_stderr", "status"]].sel(step=step).load()
    status = at_step["status"].values
    error, stderr = at_step[name].values, np.nan_to_num(at_step[f"{name}_stderr"].values)
    good = (status == OK) & np.isfinite(error)
    all_sizes = np.stack([dataset[size].values for size in SIZES], axis=1).astype(int)
    sizes, group = np.unique(all_sizes[good], axis=0, return_inverse=True)
    group, error, stderr = group.reshape(-1), error[good], stderr[good]
    shapes = len(sizes)
    # The rule of the fits: the standard error of a cell is held against the RMS of its shape.
    rms = _rms(error, group, shapes)
    used = (rms[group] >= RESOLUTION * stderr) & (rms[group] > _ROUNDING)
    resolved = np.bincount(group, used, minlength=shapes) > 0
    shown = used | ~resolved[group]
    group, error, stderr = group[shown], error[shown], stderr[shown]
    low, high = np.full(shapes, np.inf), np.full(shapes, -np.inf)
    np.minimum.at(low, group, error)
    np.maximum.at(high, group, error)
    return ShapeErrors(
        sizes,
        _rms(error, group, shapes),
        low,
        high,
        _rms(stderr, group, shapes),
        resolved,
        total=len(status),
        diverged=int(np.sum(status == DIVERGED)),
        not_run=int(np.sum(status == NOT_RUN)),
    )


def _rms(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Root mean square of the values of each group, none of which is empty."""
    count = np.bincount(group, minlength=groups)
    return np.sqrt(np.bincount(group, values**2, minlength=groups) / count)


def last_step(errors: Errors, rates: Mapping[str, Any]) -> int | None:
    """Choose the step that is drawn: the last one with rates, or else with errors."""
    if rates.get("steps"):
        return int(rates["steps"][-1])
    steps = [int(dataset["step"].values[-1]) for dataset in errors.values()]
    return min(steps) if steps else None
