"""Amplitudes of finished studies beside the published ones, as a Markdown table.

The published plots fit the distance between networks and the DMFT limit with a sum of two terms.
Here the same sum is fitted as a reader of those plots would: errors averaged over seeds, both
amplitudes nonnegative, together, by least squares of relative differences. Intervals (95 %) are
those of the jackknife over whole seeds. Runs that diverged are left out; the published linear study
counted them as zero, which the column "zeros" repeats. Beside it stand the study's own fits from
``rates.json``: each term alone, where two limits isolate it, and all terms of the whole distance
together, which there add in quadrature.

Usage: ``python benchmarks/published.py [--results results] [EXPERIMENT ...]``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import t as student

from resnet_limits import store
from resnet_limits.kinds import SIZES
from resnet_limits.laws import variable_values
from resnet_limits.stages.paths import Paths

Array = NDArray[np.float64]

PAIR = "finite-dmft"
# The pair of limits, or of networks and limit, whose distance is one term alone.
ALONE = {
    "1/L": "wide-mean_ode",
    "sqrt(D/(LM))": "finite-wide",
    "D/(LM)": "finite-wide",
    "1/sqrt(D)": "mean_ode-dmft",
}


@dataclass(frozen=True)
class Plot:
    """One published plot.

    Attributes
    ----------
    experiment : str
        The experiment with its setting.
    variable : str
        The distance, a variable of the errors store.
    observable : str
        Its name in ``rates.json``.
    step : int
        The step at which it is taken.
    amplitudes : dict of str to float
        Term to published amplitude.
    """

    experiment: str
    variable: str
    observable: str
    step: int
    amplitudes: dict[str, float]


PLOTS = (
    Plot(
        *("paper-linear", "hidden_max_mean_abs", "hidden_max_mean_abs", 5),
        {"sqrt(D/(LM))": 0.82, "1/sqrt(D)": 0.66},
    ),
    Plot(*("paper-linear", "output_rms", "output", 5), {"D/(LM)": 0.163, "1/sqrt(D)": 0.50}),
    Plot(*("paper-tanh", "hidden_rms", "hidden", 14), {"sqrt(D/(LM))": 0.8, "1/sqrt(D)": 2.5}),
    Plot(*("paper-tanh", "output_rms", "output", 14), {"D/(LM)": 0.15, "1/sqrt(D)": 0.9}),
)


@dataclass(frozen=True)
class Cells:
    """Distances of all shapes and seeds at one step.

    Attributes
    ----------
    sizes : ndarray of int, shape (shapes, 3)
        L, M and D.
    errors : ndarray, shape (shapes, seeds)
        NaN for runs that diverged or are not there.
    diverged : ndarray of bool, shape (shapes, seeds)
    """

    sizes: NDArray[np.int64]
    errors: Array
    diverged: NDArray[np.bool_]

    def of(self, seeds: Sequence[int]) -> Cells:
        """Keep some seeds, by position."""
        return Cells(self.sizes, self.errors[:, seeds], self.diverged[:, seeds])


def cells_of(errors: xr.Dataset, variable: str, step: int) -> Cells:
    """Arrange the cells of a pair as shapes times seeds."""
    sizes = np.stack([errors[name].values for name in SIZES], axis=1)
    shapes, row = np.unique(sizes, axis=0, return_inverse=True)
    seeds, column = np.unique(errors["seed"].values, return_inverse=True)
    found = np.full((len(shapes), len(seeds)), np.nan)
    diverged = np.zeros(found.shape, bool)
    place = row.reshape(-1), column
    found[place] = errors[variable].sel(step=step).values
    diverged[place] = np.isnan(found[place]) & (errors["status"].values == 1)
    return Cells(shapes, found, diverged)


def fit(cells: Cells, terms: Sequence[str], *, zeros: bool = False) -> Array:
    """Fit the sum of some terms to errors averaged over seeds.

    Parameters
    ----------
    cells : Cells
        Shapes without a seed that is there are left out.
    terms : sequence of str
        Keys of ``laws.POWERS``.
    zeros : bool
        Whether diverged runs count as zero in the average.

    Returns
    -------
    ndarray, shape (terms,)
        Nonnegative amplitudes; NaN if there are fewer shapes than terms.
    """
    errors = np.where(cells.diverged, 0.0, cells.errors) if zeros else cells.errors
    there = np.isfinite(errors)
    count = there.sum(axis=1)
    mean = np.where(there, errors, 0.0).sum(axis=1) / np.maximum(count, 1)
    used = (count > 0) & (mean > 0)
    if used.sum() < len(terms):
        return np.full(len(terms), np.nan)
    columns = np.stack([variable_values(term, cells.sizes[used]) for term in terms], axis=1)
    amplitudes, _ = nnls(columns / mean[used, None], np.ones(used.sum()))
    return np.asarray(amplitudes)


def jackknife(cells: Cells, terms: Sequence[str]) -> list[tuple[float, float]]:
    """95 % intervals of the amplitudes, from fits that leave out one seed each."""
    seeds = list(range(cells.errors.shape[1]))
    if len(seeds) < 2:
        return [(math.nan, math.nan)] * len(terms)
    without = np.stack([fit(cells.of([*seeds[:k], *seeds[k + 1 :]]), terms) for k in seeds])
    spread = np.sqrt((len(seeds) - 1) / len(seeds) * ((without - without.mean(axis=0)) ** 2).sum(0))
    half = student.ppf(0.975, len(seeds) - 1) * spread
    return [(max(0.0, a - h), a + h) for a, h in zip(fit(cells, terms), half, strict=True)]


def own_fit(rates: Mapping[str, Any], plot: Plot, term: str) -> tuple[Any, Any]:
    """Amplitude and interval of a term alone, from the pair that isolates it."""
    found = _found(rates, ALONE[term], plot)
    parts = found.get("terms") or {}
    if term in parts:
        return parts[term]["amplitude"], parts[term].get("amplitude_interval")
    return found.get("amplitude_at_theory"), found.get("amplitude_at_theory_interval")


def quadrature_fit(rates: Mapping[str, Any], plot: Plot, term: str) -> tuple[Any, Any]:
    """Amplitude and interval of a term of the whole distance, all terms in quadrature."""
    found = (_found(rates, PAIR, plot).get("terms") or {}).get(term) or {}
    return found.get("amplitude"), found.get("amplitude_interval")


def _found(rates: Mapping[str, Any], pair: str, plot: Plot) -> Mapping[str, Any]:
    steps = (rates["pairs"].get(pair) or {}).get(plot.observable) or {}
    return steps.get(str(plot.step)) or {}


def said(value: Any, interval: Any = None) -> str:
    """Write a number with its interval."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.3g}"
    return text if not interval else text + " [{:.3g}, {:.3g}]".format(*interval)


def rows(plot: Plot, errors: xr.Dataset, rates: Mapping[str, Any]) -> Iterator[list[str]]:
    """Give one row for each term of a plot, and one for 1/L where depth was varied."""
    cells = cells_of(errors, plot.variable, plot.step)
    terms = list(plot.amplitudes)
    amplitudes, zeros = fit(cells, terms), fit(cells, terms, zeros=True)
    used, diverged = int(np.isfinite(cells.errors).sum()), int(cells.diverged.sum())
    fitted = list(zip(terms, amplitudes, zeros, jackknife(cells, terms), strict=True))
    if len(set(cells.sizes[:, 0])) > 1:
        three = [*terms, "1/L"]
        last = fit(cells, three)[-1], fit(cells, three, zeros=True)[-1]
        fitted.append(("1/L", *last, jackknife(cells, three)[-1]))
    for term, amplitude, zero, interval in fitted:
        yield [
            *(plot.experiment, f"`{plot.variable}`", str(plot.step), f"`{term}`"),
            said(plot.amplitudes[term]) if term in plot.amplitudes else "not detected",
            *(said(amplitude, interval), said(zero)),
            *(said(*own_fit(rates, plot, term)), said(*quadrature_fit(rates, plot, term))),
            *(f"{used}/{cells.errors.size}", str(diverged)),
        ]


HEADER = (
    *("experiment", "distance", "step", "term", "published", "same sum [95 %]", "zeros"),
    *("term alone", "in quadrature", "cells used", "diverged"),
)


def table(found: Sequence[Sequence[str]]) -> Iterator[str]:
    """Write rows as Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *found]
    return ("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", default=["paper-linear", "paper-tanh"])
    parser.add_argument("--results", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    found = []
    for name in arguments.experiments:
        paths = Paths(arguments.results, name)
        errors = store.open_store(paths.store("errors"), PAIR).load()
        rates = json.loads(paths.store("rates").read_text(encoding="utf-8"))
        for plot in PLOTS:
            if plot.experiment == name:
                found += rows(plot, errors, rates)
    for line in table(found):
        print(line)


if __name__ == "__main__":
    main()
