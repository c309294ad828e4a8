"""From single cells to one error per shape, and what its seeds say of its scatter.

Intervals come from a bootstrap over whole seeds, because the shapes of one seed share their
embedding rows. Shapes may have different numbers of seeds: resamples are then drawn within groups
of seeds that the same shapes have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from resnet_limits.kinds import DIVERGED, OK, SIZES
from resnet_limits.randomness import generator

Array = NDArray[np.float64]

OBSERVABLES = {
    "hidden": ("hidden_rms", "hidden_rms_stderr"),
    "hidden_max_mean_abs": ("hidden_max_mean_abs", "hidden_rms_stderr"),
    "output": ("output_rms", "output_rms_stderr"),
}
"""For each observable its distance and standard error in the errors store."""

RESAMPLES = 500
CONFIDENCE = 0.95
RESOLUTION = 10.0
"""An error counts as measured if it exceeds this many of its own standard errors."""

MIN_SEEDS = 2
"""Fewer cannot be resampled."""

_ROUNDING = 1e-12
"""Distances below this are rounding errors, whatever their standard error."""
_BLOCK_ELEMENTS = 1 << 22


# --- from cells to shapes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """The errors of one distance at one step, shapes by seeds.

    Attributes
    ----------
    sizes : ndarray of int, shape (shapes, 3)
        Shapes with at least one cell that is used.
    squares : ndarray, shape (shapes, seeds)
        Squared errors; 0 where not used.
    used : ndarray of bool, shape (shapes, seeds)
    cells : dict
        Counts of all cells.
    strata : ndarray of int, shape (seeds,)
        Number of the group of each seed: those that the same shapes have.
    fewest : int
        The fewest seeds that a shape has, used or not.
    """

    sizes: NDArray[np.int64]
    squares: Array
    used: NDArray[np.bool_]
    cells: dict[str, int]
    strata: NDArray[np.intp]
    fewest: int

    @property
    def seeds(self) -> int:
        """Number of seeds with at least one cell that is used."""
        return self.used.shape[1]

    @property
    def log_errors(self) -> Array:
        """Log of the RMS over seeds of each shape."""
        logs: Array = 0.5 * np.log(self.squares.sum(axis=1) / self.used.sum(axis=1))
        return logs

    def resampled(self, weights: Array) -> Iterator[tuple[slice, Array, NDArray[np.bool_]]]:
        """Log errors with weighted seeds, in blocks of bounded size.

        Parameters
        ----------
        weights : ndarray, shape (resamples, seeds)

        Yields
        ------
        rows : slice
            Which resamples.
        logs : ndarray, shape (rows, shapes)
            Log RMS errors; 0 where a resample holds no cell of the shape.
        valid : ndarray of bool, shape (rows, shapes)
            Where it holds one.
        """
        length = max(1, _BLOCK_ELEMENTS // len(self.sizes))
        for start in range(0, len(weights), length):
            rows = slice(start, start + length)
            count = weights[rows] @ self.used.T.astype(float)
            total = weights[rows] @ self.squares.T
            valid = count > 0
            mean = np.divide(total, count, out=np.ones_like(total), where=valid)
            yield rows, 0.5 * np.log(mean), valid


def make_study(dataset: xr.Dataset, observable: str, step: int) -> Study:
    """Sort the cells at a step into shapes by seeds, and count those that cannot be used."""
    name, stderr_name = OBSERVABLES[observable]
    if step in dataset["step"].values:
        at_step = dataset[[name, stderr_name]].sel(step=step)
        error, stderr = at_step[name].values, np.nan_to_num(at_step[stderr_name].values)
    else:
        error = np.full(dataset.sizes["cell"], np.nan)
        stderr = np.zeros_like(error)
    status = dataset["status"].values
    all_sizes = np.stack([dataset[size].values for size in SIZES], axis=1).astype(np.int64)
    sizes, shape = np.unique(all_sizes, axis=0, return_inverse=True)
    seeds, seed = np.unique(dataset["seed"].values, return_inverse=True)
    shape = shape.reshape(-1)
    table = (len(sizes), len(seeds))
    exists = np.zeros(table, bool)
    exists[shape, seed] = True

    diverged = status == DIVERGED
    sound = (status == OK) & np.isfinite(error)
    squares, noise = np.zeros(table), np.zeros(table)
    present = np.zeros(table, bool)
    squares[shape[sound], seed[sound]] = error[sound] ** 2
    noise[shape[sound], seed[sound]] = stderr[sound]
    present[shape[sound], seed[sound]] = True
    # A cell's standard error is held against its shape's RMS, not against its own error: leaving
    # out the smallest errors of a shape alone would make the others look larger than they are.
    rms = np.sqrt(squares.sum(axis=1) / np.maximum(present.sum(axis=1), 1))[:, None]
    used = present & (rms >= RESOLUTION * noise) & (rms > _ROUNDING)
    squares = np.where(used, squares, 0.0)
    kept = np.ix_(used.any(axis=1), used.any(axis=0))
    cells = {
        "total": int(exists.sum()),
        "used": int(used.sum()),
        "diverged": int(diverged.sum()),
        "below_resolution": int((present & ~used).sum()),
    }
    cells["missing"] = cells["total"] - cells["diverged"] - int(present.sum())
    return Study(
        sizes[used.any(axis=1)],
        squares[kept],
        used[kept],
        cells,
        _strata(exists[kept]),
        int(exists[kept].sum(axis=1).min(initial=len(seeds))),
    )


def _strata(exists: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Group seeds that the same shapes have, in groups of at least two where that is possible.

    Parameters
    ----------
    exists : ndarray of bool, shape (shapes, seeds)

    Returns
    -------
    ndarray of int, shape (seeds,)
    """
    if not exists.size:
        return np.zeros(exists.shape[1], np.intp)
    _, label = np.unique(exists, axis=1, return_inverse=True)
    label = label.reshape(-1)
    while True:
        names, counts = np.unique(label, return_counts=True)
        if len(names) < 2 or counts.min() >= MIN_SEEDS:
            return np.searchsorted(names, label)
        # A group of one seed would never vary.
        first, second = names[np.argsort(counts, kind="stable")[:2]]
        label = np.where(label == first, second, label)


# --- intervals ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """Resamples of whole seeds, drawn within groups of seeds that the same shapes have.

    Every resample so holds as many seeds of each shape as there are.

    Attributes
    ----------
    weights : ndarray, shape (rows, seeds)
        How often each seed enters: the sample itself, then RESAMPLES resamples, and with several
        groups RESAMPLES more for each of them, in which the other groups stay as they are.
    sizes : tuple of int
        Numbers of seeds of the groups.
    """

    weights: Array
    sizes: tuple[int, ...]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return sum(self.sizes)

    def interval(self, values: Array, lowest: float = -math.inf) -> list[float] | None:
        """Interval from an estimate and its resamples.

        Parameters
        ----------
        values : ndarray, shape (rows,)
            One for each row of the weights; those that are not finite are left out.
        lowest : float
            Bound of what is possible.

        Returns
        -------
        list of two floats, or None if there are too few resamples, or seeds
        """
        estimate, *blocks = values[0], *values[1:].reshape(-1, RESAMPLES)
        blocks = [block[np.isfinite(block)] for block in blocks]
        if self.seeds < MIN_SEEDS or min(map(len, blocks)) < RESAMPLES / 2:
            return None
        resamples = blocks[0]
        # The mean of few squares has a log that is too low; resampling shows by how much.
        centre = 2 * estimate - resamples.mean()
        tail = (1 - CONFIDENCE) / 2
        variances = np.array([block.var() for block in blocks[1:]] or [1.0])
        spread = np.quantile(resamples, [tail, 1 - tail]) - resamples.mean()
        low, high = centre + _widening(variances, self.sizes) * spread
        return [max(lowest, min(low, estimate)), max(high, estimate)]


def resample(strata: NDArray[np.intp], root_seed: int) -> Draws:
    """Draw resamples of whole seeds.

    Parameters
    ----------
    strata : ndarray of int, shape (seeds,)
        Number of the group of each seed.
    root_seed : int
        Root of the random stream.
    """
    rng = generator(root_seed, "bootstrap")
    sizes = np.bincount(strata)
    drawn = np.ones((RESAMPLES, len(strata)))
    apart = []
    for group, size in enumerate(sizes):
        inside = strata == group
        drawn[:, inside] = rng.multinomial(size, np.full(size, 1.0 / size), size=RESAMPLES)
        apart.append(np.where(inside, drawn, 1.0))
    parts = [np.ones((1, len(strata))), drawn, *(apart if len(sizes) > 1 else [])]
    return Draws(np.concatenate(parts), tuple(sizes.tolist()))


def interval_method(study: Study) -> str | None:
    """Say in words how intervals are found."""
    if study.seeds == 0:
        return None
    if study.seeds == 1:
        return "t interval from the residuals: a single seed cannot be resampled"
    start = f"bootstrap over whole seeds, {RESAMPLES} resamples, "
    sizes = tuple(np.bincount(study.strata).tolist())
    if len(sizes) == 1:
        method = (
            f"percentiles corrected for bias and widened by "
            f"{_widening(np.ones(1), sizes):.2f} for {study.seeds} seeds"
        )
    else:
        method = (
            f"drawn within groups of {', '.join(map(str, sizes))} seeds that the same shapes have, "
            "percentiles corrected for bias and widened for the seeds of the groups that matter"
        )
    if study.fewest < MIN_SEEDS:
        method += (
            "; where that is wider, t interval from the residuals, which takes the scatter of "
            "shapes with one seed for independent"
        )
    return start + method


def t_quantile(degrees: float) -> float:
    """Half-width of a two-sided interval in standard errors, by Student's law."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees))


def _widening(variances: Array, sizes: Sequence[int]) -> float:
    """Give the factor by which percentile intervals of few seeds are too narrow.

    Resamples of n values scatter with the variance (n - 1)/n of an unbiased estimate, and their
    percentiles are those of a normal law where Student's with n - 1 degrees of freedom is due.
    Where the variance is a sum over independent groups, its degrees of freedom are Satterthwaite's.

    Parameters
    ----------
    variances : ndarray, shape (groups,)
        Of the resamples of each group alone.
    sizes : sequence of int
        Numbers of seeds of the groups, at least 2.
    """
    normal = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    n = np.array(sizes, float)
    unbiased = variances * n / (n - 1)
    total = unbiased.sum()
    if total == 0:
        return 1.0
    degrees = total**2 / (unbiased**2 / (n - 1)).sum()
    return t_quantile(degrees) / normal * math.sqrt(total / variances.sum())


# --- regression -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regression:
    """Least squares of log errors on some columns and a constant.

    Attributes
    ----------
    values : ndarray, shape (1 + resamples, columns + 1)
        Coefficients, the constant last; the first row is the estimate.
    stderr : ndarray, shape (columns + 1,)
        Standard errors of the estimate from its residuals.
    degrees : int
        Degrees of freedom of the residuals.
    residual : float
        RMS of the residuals.
    draws : Draws
    fewest : int
        The fewest seeds of a shape.
    """

    values: Array
    stderr: Array
    degrees: int
    residual: float
    draws: Draws
    fewest: int

    def interval(self, column: int) -> list[float] | None:
        """Interval of one coefficient."""
        by_seeds = self.draws.interval(self.values[:, column])
        if self.fewest >= MIN_SEEDS:
            return by_seeds
        # Of a shape with one seed only the residuals can say how much it scatters.
        if self.degrees < 1:
            return None
        estimate = self.values[0, column]
        half = t_quantile(self.degrees) * self.stderr[column]
        return wider([estimate - half, estimate + half], by_seeds)


def wider(interval: list[float], other: list[float] | None) -> list[float]:
    """Take the wider end on each side."""
    low, high = other or interval
    return [min(low, interval[0]), max(high, interval[1])]


def regress(
    study: Study,
    draws: Draws,
    columns: Array,
    offset: Array | None = None,
    precision: Array | None = None,
) -> Regression:
    """Regress log errors, minus a known offset (shapes,), on columns (shapes, n).

    Shapes weigh by their precision (shapes,), all the same by default.
    """
    X = np.column_stack([columns, np.ones(len(study.sizes))])
    known = np.zeros(len(X)) if offset is None else offset
    weight = np.ones(len(X)) if precision is None else precision
    products = (weight[:, None, None] * X[:, :, None] * X[:, None, :]).reshape(len(X), -1)
    values = np.empty((len(draws.weights), X.shape[1]))
    for rows, logs, valid in study.resampled(draws.weights):
        normal = (valid.astype(float) @ products).reshape(-1, X.shape[1], X.shape[1])
        right = np.where(valid, weight * (logs - known), 0.0) @ X
        values[rows] = (np.linalg.pinv(normal, hermitian=True) @ right[..., None])[..., 0]
    residuals = study.log_errors - known - X @ values[0]
    degrees = len(X) - X.shape[1]
    variance = (weight * residuals**2).sum() / max(degrees, 1)
    covariance = variance * np.linalg.pinv(X.T @ (weight[:, None] * X), hermitian=True)
    return Regression(
        values,
        np.sqrt(np.diag(covariance).clip(min=0.0)),
        degrees,
        float(np.sqrt(np.mean(residuals**2))),
        draws,
        study.fewest,
    )
