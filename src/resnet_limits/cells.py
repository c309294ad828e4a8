"""From single cells of an errors store to the shapes of a study, and which errors are resolved.

Fits and figures count and average the same way, because both start here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.kinds import DIVERGED, OK, SIZES

Array = NDArray[np.float64]

VARIABLES = {
    "hidden": ("hidden_rms", "hidden_rms_stderr"),
    "hidden_max_mean_abs": ("hidden_max_mean_abs", "hidden_rms_stderr"),
    "output": ("output_rms", "output_rms_stderr"),
}
"""For each observable its distance and standard error in the errors store."""

NOISE_SHARE = {"hidden": 1.0, "hidden_max_mean_abs": 2.0 / np.pi, "output": 1.0}
"""What an error of a limit adds to the square of a distance, in units of its mean square.

The square of a mean absolute value is 2/pi of the mean square, if coordinates are Gaussian.
"""

RESOLUTION = 10.0
"""An error is resolved if its shape's RMS exceeds this many of its own standard errors."""

ROUNDING = 1e-12
"""Distances below this are rounding errors, whatever their standard error."""

LARGEST = 1e150
"""Distances above this have no square that a number holds, and count as missing."""


@dataclass(frozen=True)
class Study:
    """The errors of one distance at one step, shapes by seeds.

    Attributes
    ----------
    sizes : ndarray of int, shape (shapes, 3)
        Shapes with at least one cell that is used.
    squares : ndarray, shape (shapes, seeds)
        Squared errors as measured; 0 where not used.
    noise : ndarray, shape (shapes, seeds)
        Squared standard errors of the distance; 0 where not used.
    used : ndarray of bool, shape (shapes, seeds)
    resolved : ndarray of bool, shape (shapes, seeds)
        Cells that are used and stand out of their standard error.
    cells : dict
        Counts of all cells.
    exists : ndarray of bool, shape (shapes, seeds)
        Cells that were asked for.
    """

    sizes: NDArray[np.int64]
    squares: Array
    noise: Array
    used: NDArray[np.bool_]
    resolved: NDArray[np.bool_]
    cells: dict[str, int]
    exists: NDArray[np.bool_]

    @property
    def seeds(self) -> int:
        """Number of seeds with at least one cell that is used."""
        return self.used.shape[1]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of seeds of each shape that are used."""
        counts: NDArray[np.int64] = self.used.sum(axis=1)
        return counts

    @property
    def mean_squares(self) -> Array:
        """Mean over seeds of the squared errors of each shape, as measured."""
        means: Array = self.squares.sum(axis=1) / self.counts
        return means

    @property
    def mean_noise(self) -> Array:
        """Mean over seeds of the squared standard errors of each shape."""
        means: Array = self.noise.sum(axis=1) / self.counts
        return means

    def rows(self, rows: NDArray[np.intp]) -> Study:
        """Take some shapes, in a given order."""
        return Study(
            self.sizes[rows],
            self.squares[rows],
            self.noise[rows],
            self.used[rows],
            self.resolved[rows],
            self.cells,
            self.exists[rows],
        )


class Grid(NamedTuple):
    """The cells of one pair, sorted into shapes and seeds.

    Attributes
    ----------
    sizes : ndarray of int, shape (shapes, 3)
        Every shape once, sorted.
    seeds : ndarray of int, shape (seeds,)
        Every seed once, sorted.
    shape, seed : ndarray of int, shape (cells,)
        Where in them each cell is.
    status : ndarray of int, shape (cells,)
        How the runs compared ended: a `Status`.
    """

    sizes: NDArray[np.int64]
    seeds: NDArray[np.int64]
    shape: NDArray[np.intp]
    seed: NDArray[np.intp]
    status: NDArray[np.int8]

    @property
    def table(self) -> tuple[int, int]:
        """Numbers of shapes and seeds."""
        return len(self.sizes), len(self.seeds)


def make_grid(dataset: xr.Dataset) -> Grid:
    """Sort the cells of one group of an errors store into shapes and seeds."""
    all_sizes = np.stack([dataset[size].values for size in SIZES], axis=1).astype(np.int64)
    sizes, shape = np.unique(all_sizes, axis=0, return_inverse=True)
    seeds, seed = np.unique(dataset["seed"].values, return_inverse=True)
    return Grid(sizes, seeds, shape.reshape(-1), seed, dataset["status"].values)


class Judged(NamedTuple):
    """What counts of the cells of one distance at one step; each of shape (shapes, seeds).

    Attributes
    ----------
    squares, noise : ndarray
        Squared errors as measured, and squared standard errors of the distance; 0 where not
        present.
    present : ndarray of bool
        Cells that ended well and have a number.
    used : ndarray of bool
        Those of shapes that exceed rounding.
    resolved : ndarray of bool
        Those of the used of which the shape stands out of the cell's standard error.
    """

    squares: Array
    noise: Array
    present: NDArray[np.bool_]
    used: NDArray[np.bool_]
    resolved: NDArray[np.bool_]


def judge(grid: Grid, error: Array, stderr: Array, noise_share: float = 1.0) -> Judged:
    """Decide which cells count, by the rules of docs/concepts/errors.md.

    Parameters
    ----------
    grid : Grid
    error, stderr : ndarray, shape (cells,)
        A distance as measured, NaN where there is none, and its standard error.
    noise_share : float
        That of the observable: see `NOISE_SHARE`.
    """
    squares, noise = np.zeros(grid.table), np.zeros(grid.table)
    present = np.zeros(grid.table, bool)
    sound = (grid.status == OK) & (error < LARGEST)
    place = grid.shape[sound], grid.seed[sound]
    squares[place], present[place] = error[sound] ** 2, True
    noise[place] = noise_share * np.nan_to_num(stderr[sound]) ** 2
    # A cell's standard error is held against its shape's RMS, not against its own error: leaving
    # out the smallest errors of a shape alone would make the others look larger than they are.
    mean = (squares.sum(axis=1) / np.maximum(present.sum(axis=1), 1))[:, None]
    used = present & (mean > ROUNDING**2)
    resolved = used & (mean >= RESOLUTION**2 * noise)
    return Judged(squares, noise, present, used, resolved)


def make_study(dataset: xr.Dataset, observable: str, step: int) -> Study:
    """Sort the cells at a step into shapes by seeds, and count what became of them.

    Parameters
    ----------
    dataset : Dataset
        One group of an errors store.
    observable : str
        A key of `VARIABLES`.
    step : int
        Number of gradient steps.

    Returns
    -------
    Study
        ``cells`` has ``total``; ``used``, all that ended well and exceed rounding;
        ``below_resolution``, those of the used that lie below `RESOLUTION` of their own standard
        errors, and cells of nothing but rounding; ``diverged``; ``missing``, not run, without the
        step, or above `LARGEST`.
    """
    name, stderr_name = VARIABLES[observable]
    if step in dataset["step"].values:
        at_step = dataset[[name, stderr_name]].sel(step=step)
        error, stderr = at_step[name].values, at_step[stderr_name].values
    else:
        error = np.full(dataset.sizes["cell"], np.nan)
        stderr = np.zeros_like(error)
    grid = make_grid(dataset)
    found = judge(grid, error, stderr, NOISE_SHARE[observable])
    exists = np.zeros(grid.table, bool)
    exists[grid.shape, grid.seed] = True
    present, used = found.present, found.used
    diverged = int((grid.status == DIVERGED).sum())
    cells = {
        "total": int(exists.sum()),
        "used": int(used.sum()),
        "diverged": diverged,
        "below_resolution": int((present & ~found.resolved).sum()),
        "missing": int(exists.sum()) - diverged - int(present.sum()),
    }
    kept = np.ix_(used.any(axis=1), used.any(axis=0))
    return Study(
        grid.sizes[used.any(axis=1)],
        np.where(used, found.squares, 0.0)[kept],
        np.where(used, found.noise, 0.0)[kept],
        used[kept],
        found.resolved[kept],
        cells,
        exists[kept],
    )
