"""What the seeds of a study say of the scatter of anything that is found from them.

Intervals come from a bootstrap over whole seeds, because the shapes of one seed share their
embedding rows. Shapes may have different numbers of seeds: resamples are then drawn within groups
of seeds that the same shapes have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from resnet_limits.cells import Study
from resnet_limits.randomness import generator

Array = NDArray[np.float64]

RESAMPLES = 500
CONFIDENCE = 0.95

SEEDS = "seeds"
"""The scatter over seeds, as a source of variance."""

MIN_SEEDS = 2
"""Fewer cannot be resampled."""

_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Draws:
    """Resamples of whole seeds, drawn within groups of seeds that the same shapes have.

    Every resample so holds as many seeds of each shape as there are.

    Attributes
    ----------
    weights : ndarray, shape (groups * RESAMPLES, seeds)
        How often each seed enters: for each group RESAMPLES resamples in which the other groups
        stay as they are. A group of a single seed has none.
    sizes : tuple of int
        Numbers of seeds of these groups.
    """

    weights: Array
    sizes: tuple[int, ...]

    def changes(self, study: Study) -> Iterator[tuple[slice, Array]]:
        """Yield changes of the log squared errors of shapes, in blocks of bounded size.

        Parameters
        ----------
        study : Study

        Yields
        ------
        rows : slice
            Which resamples.
        changes : ndarray, shape (rows, shapes)
            Log of the mean over the resample's seeds, less that over all; 0 where a resample holds
            no cell of the shape.
        """
        squares, used = study.squares.T, study.used.T.astype(float)
        length = max(1, _BLOCK_ELEMENTS // len(study.sizes))
        for start in range(0, len(self.weights), length):
            rows = slice(start, start + length)
            count = self.weights[rows] @ used
            total = self.weights[rows] @ squares
            mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
            yield rows, np.log(np.where(mean > 0, mean / study.mean_squares, 1.0))

    def spread(self, changes: Array) -> Spread:
        """Gather what resamples say of the scatter of some values.

        Parameters
        ----------
        changes : ndarray, shape (groups * RESAMPLES, ...)
            What changes of the values the resamples bring.
        """
        blocks = changes.reshape(len(self.sizes), RESAMPLES, *changes.shape[1:])
        sizes = np.array(self.sizes, float).reshape(-1, *(1,) * (changes.ndim - 1))
        # Resamples of n values scatter with (n - 1)/n of the variance of an unbiased estimate, and
        # so does the bias that comes of scatter.
        grown = sizes / (sizes - 1)
        return Spread(
            (blocks.mean(axis=1) * grown).sum(axis=0),
            blocks.var(axis=1) * grown,
            np.broadcast_to(sizes - 1, (len(self.sizes), *changes.shape[1:])),
            (SEEDS,) * len(self.sizes),
        )


@dataclass(frozen=True)
class Spread:
    """Bias and variance of some values, from independent sources.

    Attributes
    ----------
    bias : ndarray, shape (...)
    variances, degrees : ndarray, shape (sources, ...)
        Variance by each source, and from how many degrees of freedom it was estimated.
    sources : tuple of str
        What each source is: `SEEDS`, or a name given to `plus`.
    """

    bias: Array
    variances: Array
    degrees: Array
    sources: tuple[str, ...] = ()

    def plus(self, variance: Array, degrees: float, source: str) -> Spread:
        """Add a source of variance (...)."""
        return Spread(
            self.bias,
            np.concatenate([self.variances, variance[None]]),
            np.concatenate([self.degrees, np.full((1, *variance.shape), degrees)]),
            (*self.sources, source),
        )

    def freedom(self) -> Array:
        """Give the degrees of freedom of the sum of all variances: Satterthwaite's, at least 1."""
        total = self.variances.sum(axis=0)
        below = (self.variances**2 / self.degrees).sum(axis=0)
        # An infinite variance says that nothing is known, whatever its degrees.
        known = (below > 0) & np.isfinite(total)
        degrees = np.divide(total**2, below, out=np.full_like(total, np.inf), where=known)
        return np.maximum(degrees, 1.0)

    def half_widths(self) -> Array:
        """Give half the width of intervals, by Student's law."""
        total = self.variances.sum(axis=0)
        half: Array = stats.t.ppf(0.5 + CONFIDENCE / 2, self.freedom()) * np.sqrt(total)
        return half


def resample(groups: NDArray[np.intp], root_seed: int) -> Draws:
    """Draw resamples of whole seeds.

    Parameters
    ----------
    groups : ndarray of int, shape (seeds,)
        Number of the group of each seed, as from `strata`.
    root_seed : int
        Root of the random stream.
    """
    rng = generator(root_seed, "bootstrap")
    sizes = np.bincount(groups) if len(groups) else np.empty(0, int)
    parts, kept = [np.empty((0, len(groups)))], []
    for group, size in enumerate(sizes):
        if size < MIN_SEEDS:
            continue
        drawn = np.ones((RESAMPLES, len(groups)))
        drawn[:, groups == group] = rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
        parts.append(drawn)
        kept.append(int(size))
    return Draws(np.concatenate(parts), tuple(kept))


def strata(exists: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Group seeds that the same shapes have, in groups of at least two where that is possible.

    Parameters
    ----------
    exists : ndarray of bool, shape (shapes, seeds)

    Returns
    -------
    ndarray of int, shape (seeds,)
        Number of the group of each seed.
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


def resampled_logs(study: Study, draws: Draws) -> Array:
    """Give the changes of the log errors (rows, shapes) of all resamples."""
    logs = np.empty((len(draws.weights), len(study.sizes)))
    for rows, changes in draws.changes(study):
        logs[rows] = 0.5 * changes
    return logs


def error_intervals(study: Study, draws: Draws) -> list[list[float] | None]:
    """Give the 95 % interval of every shape's error, without the limits' own.

    Parameters
    ----------
    study : Study
    draws : Draws

    Returns
    -------
    list
        Low and high end for each shape; None where it has too few seeds.
    """
    if not len(study.sizes):
        return []
    spread = draws.spread(resampled_logs(study, draws))
    half = spread.half_widths()
    intervals: list[list[float] | None] = []
    for k, noise in enumerate(study.mean_noise):
        if study.counts[k] < MIN_SEEDS:
            intervals.append(None)
            continue
        error = math.sqrt(max(0.0, study.mean_squares[k] - noise))
        centre = 0.5 * math.log(study.mean_squares[k]) - spread.bias[k]
        low, high = (math.exp(min(centre + side * half[k], 300.0)) for side in (-1, 1))
        # The square of the limits' error may be nothing or twice as much as is expected.
        low = math.sqrt(max(0.0, low**2 - 2 * noise))
        intervals.append([min(low, error), max(high, error)])
    return intervals


def interval_method(study: Study) -> str | None:
    """Say in words how intervals are found."""
    if study.seeds == 0:
        return None
    misfit = "the scatter of shapes about the law"
    if study.seeds == 1:
        return f"Student's t, from {misfit}: a single seed cannot be resampled"
    sizes = np.bincount(strata(study.exists)).tolist()
    within = (
        f"{study.seeds} seeds"
        if len(sizes) == 1
        else f"groups of {', '.join(map(str, sizes))} seeds that the same shapes have"
    )
    noise = ", the limits' standard error" if study.noise.any() else ""
    return (
        f"bootstrap over whole seeds, {RESAMPLES} resamples of {within}; Student's t, from its "
        f"variance{noise} and {misfit} beyond both"
    )
