"""How often the 95 % intervals of the fits hold the truth, in studies whose law is known.

A made-up study has everything that makes real ones hard: errors are vectors, made of a bias, of
noise that each network has of its own, and of what a seed's embedding rows bring, which nested
dimensions share; limits are off by one more vector, in few directions, which all cells compared
with them have in common, and whose size is known from eight scramblings only. The level of that
vector is set so that a wanted part of the cells is below resolution.

``old`` counts instead what was done before: cells below ten standard errors are left out.

A fit that raises an exception is a study whose interval does not hold the truth.

Usage: ``python benchmarks/interval_coverage.py [WHAT ...] [--draws 300] [--seed 0] [--seeds 3 4 16]
[--below 0 0.25 0.5] [--old]``, which prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.cells import RESOLUTION, VARIABLES
from resnet_limits.config import Shape
from resnet_limits.errors.families import Family, fit_family
from resnet_limits.errors.rates import fit
from resnet_limits.kinds import OK, SIZES
from resnet_limits.laws import variable_values

Array = NDArray[np.float64]

STEP = 5
SEEDS = (3, 4, 16)
BELOW = (0.0, 0.25, 0.5)
BAND = (0.92, 0.98)

_SCRAMBLINGS = 8
_DIRECTIONS = np.array([1.0, 0.6, 0.35, 0.2, 0.1])
"""Standard deviations of a limit's error along its main directions; about 2 of them count."""
_EMBEDDING = 12
"""Components that a seed's embedding rows move."""

_BIASES = {"1/L", "D/(LM)"}
_EMBEDDED = {"1/sqrt(D)"}

Grid = tuple[Sequence[int], Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Setting:
    """One kind of study, and what of its fit is looked at.

    Attributes
    ----------
    pair, observable : str
        Whose law is fitted.
    amplitudes : dict of str to float
        The true terms.
    shapes : ndarray of int, shape (shapes, 3)
    truths : callable
        From a fit, pairs of the truth and the interval, by name.
    family : Family, optional
        Fitted in place of the pair.
    shared : float
        How much of the square of the limits' error all cells share; the rest is of each embedding
        dimension and seed.
    components : int
        Of a vector of errors: samples times targets. The fewer, the more errors scatter.
    """

    pair: str
    observable: str
    amplitudes: dict[str, float]
    shapes: NDArray[np.int64]
    truths: Callable[[dict[str, Any]], dict[str, tuple[float, Sequence[float] | None]]]
    family: Family | None = None
    shared: float = 1.0
    components: int = 16


def study(setting: Setting, seeds: int, below: float, draw: int, root: int = 0) -> xr.Dataset:
    """Make up the errors of a study.

    Parameters
    ----------
    setting : Setting
    seeds : int
        Of every shape.
    below : float
        Part of the shapes that are below resolution, about.
    draw : int
        Number of the study.
    root : int
        Root of the random stream.

    Returns
    -------
    Dataset
        As a group of an errors store.
    """
    rng = np.random.default_rng([root, draw, seeds, round(100 * below)])
    shapes, components = setting.shapes, setting.components
    truth = np.zeros(len(shapes))
    vectors = np.zeros((len(shapes), seeds, components))
    for name, amplitude in setting.amplitudes.items():
        size = amplitude * variable_values(name, shapes)
        truth += size**2
        if name in _BIASES:
            # A direction of its own, a little different in every seed, among those that matter.
            direction = rng.normal(size=components) + 0.3 * rng.normal(size=(seeds, components))
            direction[:, len(_DIRECTIONS) :] = 0.0
            direction /= np.sqrt((direction**2).mean(axis=1, keepdims=True))
            vectors += size[:, None, None] * direction
        elif name in _EMBEDDED:
            vectors += amplitude * _nested(rng, shapes[:, 2], seeds, components)
        else:
            own = rng.normal(size=(len(shapes), seeds, components))
            vectors += size[:, None, None] * own
    sigma = 0.0
    if below:
        sigma = float(np.quantile(np.sqrt(truth), below)) / RESOLUTION
    noise, stderr = _limit_errors(rng, setting, seeds, sigma)
    error = np.sqrt(((vectors - noise) ** 2).mean(axis=2))
    cells = np.array([(*shape, k) for shape in shapes for k in range(seeds)])
    values = {name: error for name, _ in VARIABLES.values()}
    values |= {name: np.broadcast_to(stderr, error.shape) for _, name in VARIABLES.values()}
    return xr.Dataset(
        {
            **{name: (("cell", "step"), array.reshape(-1, 1)) for name, array in values.items()},
            "status": ("cell", np.full(len(cells), OK, np.int8)),
        },
        {
            "step": [STEP],
            **{name: ("cell", cells[:, k]) for k, name in enumerate((*SIZES, "seed"))},
        },
    )


def _nested(
    rng: np.random.Generator, embed_dims: NDArray[np.int64], seeds: int, components: int
) -> Array:
    """Draw what embedding rows bring, of mean square 1/D: means over the first D of one table.

    Returns
    -------
    ndarray, shape (shapes, seeds, components)
    """
    values, place = np.unique(embed_dims, return_inverse=True)
    steps = np.diff(values, prepend=0)
    jumps = rng.normal(size=(len(values), seeds, _EMBEDDING)) * np.sqrt(steps)[:, None, None]
    sums = jumps.cumsum(axis=0) / values[:, None, None]
    scale = np.sqrt(components / _EMBEDDING)
    padded = np.pad(scale * sums, ((0, 0), (0, 0), (0, components - _EMBEDDING)))
    found: Array = padded[place.reshape(-1)]
    return found


def _limit_errors(
    rng: np.random.Generator, setting: Setting, seeds: int, sigma: float
) -> tuple[Array, Array]:
    """Draw the errors of limits and estimate their size.

    Returns
    -------
    error : ndarray, shape (shapes, seeds, components)
    stderr : ndarray, shape (shapes, seeds)
        From the scatter of scramblings.
    """
    components = setting.components
    scale = np.zeros(components)
    directions = _DIRECTIONS[:components]
    scale[: len(directions)] = directions * sigma / np.sqrt((directions**2).sum() / components)
    scale *= np.sqrt(_SCRAMBLINGS)
    values, place = np.unique(setting.shapes[:, 2], return_inverse=True)
    common = rng.normal(size=(1, 1, _SCRAMBLINGS, components))
    own = rng.normal(size=(len(values), seeds, _SCRAMBLINGS, components))
    replicates = np.sqrt(setting.shared) * common + np.sqrt(1 - setting.shared) * own
    replicates = replicates * scale
    mean = replicates.mean(axis=2)
    squares = ((replicates - mean[:, :, None]) ** 2).mean(axis=3).sum(axis=2)
    stderr = np.sqrt(squares / (_SCRAMBLINGS * (_SCRAMBLINGS - 1)))
    return mean[place.reshape(-1)], stderr[place.reshape(-1)]


# --- settings -------------------------------------------------------------------------------------


def _grid(*sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.array(list(itertools.product(*sizes)))


def _exponent(truth: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: {"exponent": (truth, found["exponent_interval"])}


def _terms(amplitudes: dict[str, float]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: {
        name: (truth, found["terms"] and found["terms"][name]["amplitude_interval"])
        for name, truth in amplitudes.items()
    }


_FAMILY = Family(
    tuple(
        (P, Shape(round(4 * P ** (1 / 6)), round(P ** (1 / 2) / 8), round(2 * P ** (1 / 3))))
        for P in (10.0**k for k in range(3, 11))
    ),
    1 / 6,
    1 / 3,
)
_TINY = [8, 32, 128]
_SMALL = [8, 16, 32, 64]
_LARGE = [6, 10, 16, 25, 40, 63, 100, 160, 250, 400]
_HIDDEN = {"1/L": 3.0, "sqrt(D/(LM))": 0.8, "1/sqrt(D)": 1.5}
_OUTPUT = {"D/(LM)": 0.3, "1/sqrt(LM)": 0.4}
_BUDGET = {"1/L": 0.5, "sqrt(D/(LM))": 0.8, "1/sqrt(D)": 1.5}

SETTINGS: dict[str, Setting] = {
    "power": Setting(
        *("finite-wide", "hidden", {"sqrt(D/(LM))": 0.8}, _grid(_TINY, _TINY, _TINY)),
        _exponent(0.5),
        shared=0.5,
    ),
    "scattered power": Setting(
        *("finite-wide", "hidden", {"sqrt(D/(LM))": 0.8}, _grid(_SMALL, _SMALL, _SMALL)),
        _exponent(0.5),
        components=2,
    ),
    "depth power": Setting(
        *("wide-mean_ode", "hidden", {"1/L": 0.5}, _grid(_SMALL, [0], _SMALL)), _exponent(1.0)
    ),
    "nested power": Setting(
        *("mean_ode-dmft", "hidden", {"1/sqrt(D)": 1.5}, _grid([0], [0], _LARGE)), _exponent(0.5)
    ),
    "terms": Setting(
        "finite-dmft", "hidden", _HIDDEN, _grid(_SMALL, _SMALL, _SMALL), _terms(_HIDDEN)
    ),
    "output terms": Setting(
        *("finite-wide", "output", _OUTPUT, _grid(_SMALL, _SMALL, _SMALL)),
        _terms(_OUTPUT),
        shared=0.5,
    ),
    "family": Setting(
        *("finite-dmft", "hidden", {"sqrt(D/(LM))": 0.8, "1/sqrt(D)": 1.5}),
        np.array([shape for _, shape in _FAMILY.members]),
        lambda found: {"exponent in P": (-1 / 6, found["fits"][0]["exponent_interval"])},
        _FAMILY,
    ),
    "budget": Setting(
        *("finite-dmft", "hidden", _BUDGET, _grid(_LARGE, _LARGE, _LARGE)),
        lambda found: {"best shapes": (-1 / 6, found["fixed_budget"]["exponent_interval"])},
    ),
}


# --- coverage -------------------------------------------------------------------------------------


def hits(
    setting: Setting, seeds: int, below: float, draws: int, *, root: int = 0, old: bool = False
) -> tuple[dict[str, float], float, dict[str, float]]:
    """Count the studies whose intervals hold the truth.

    Returns
    -------
    coverage : dict of str to float
        Part of the studies, by what is looked at; one without an interval, or of which the fit
        raises an exception, does not hold it.
    below : float
        Part of the cells that were below resolution.
    width : dict of str to float
        Median width of the intervals.
    """
    found: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    parts, failures = [], []
    for draw in range(draws):
        dataset = study(setting, seeds, below, draw, root)
        if old:
            dataset = _cut(dataset, setting.observable)
        try:
            values = _fitted(setting, dataset, draw)
        except Exception as failure:
            failures.append(failure)
            continue
        parts.append(values["cells"]["below_resolution"] / values["cells"]["total"])
        for name, (truth, interval) in setting.truths(values).items():
            hit = interval is not None and interval[0] <= truth <= (interval[1] or np.inf)
            found.setdefault(name, []).append(hit)
            wide = np.inf if interval is None or interval[1] is None else interval[1] - interval[0]
            widths.setdefault(name, []).append(wide)
    if failures:
        warnings.warn(f"{len(failures)} of {draws} fits failed: {failures[0]!r}", stacklevel=2)
    if not found:
        raise failures[0]
    return (
        {name: sum(values) / draws for name, values in found.items()},
        float(np.mean(parts)),
        {name: float(np.median(values)) for name, values in widths.items()},
    )


def _fitted(setting: Setting, dataset: xr.Dataset, draw: int) -> dict[str, Any]:
    if setting.family is None:
        return fit(dataset, setting.pair, setting.observable, STEP, draw)
    return fit_family(dataset, setting.family, setting.pair, setting.observable, STEP, draw)


def _cut(dataset: xr.Dataset, observable: str) -> xr.Dataset:
    """Leave out what is below ten standard errors, and take the rest for exact."""
    name, stderr = VARIABLES[observable]
    squares = (dataset[name] ** 2).isel(step=0)
    shape = dataset["depth"] * 10**12 + dataset["width"] * 10**6 + dataset["embed_dim"]
    mean = squares.groupby(shape.rename("shape")).mean()
    rms = np.sqrt(mean.sel(shape=shape.values).values)
    kept = rms >= RESOLUTION * dataset[stderr].isel(step=0).values
    cut = dataset.isel(cell=np.flatnonzero(kept))
    return cut.assign({stderr: 0 * cut[stderr]})


def table(
    names: Sequence[str],
    draws: int,
    *,
    root: int = 0,
    numbers: Sequence[int] = SEEDS,
    parts: Sequence[float] = BELOW,
    old: bool = False,
) -> Iterator[str]:
    """Write the coverage as lines of a Markdown table."""
    columns = [f"{seeds} seeds" for seeds in numbers]
    yield f"| study | of | below | {' | '.join(columns)} |"
    yield "| --- | --- | --- |" + " --- |" * len(columns)
    inside, total = 0, 0
    for name, below in itertools.product(names, parts):
        results = [
            hits(SETTINGS[name], seeds, below, draws, root=root, old=old) for seeds in numbers
        ]
        measured = np.mean([result[1] for result in results])
        for what in results[0][0]:
            total += len(results)
            inside += sum(BAND[0] <= result[0][what] <= BAND[1] for result in results)
            values = [
                f"{100 * coverage[what]:.1f} ({width[what]:.2g})" for coverage, _, width in results
            ]
            yield f"| {name} | {what} | {100 * measured:.0f} % | {' | '.join(values)} |"
    yield ""
    yield f"{inside} of {total} lie within {100 * BAND[0]:g} to {100 * BAND[1]:g} %."


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=", ".join(SETTINGS))
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="root of the random streams")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds of a study")
    parser.add_argument(
        "--below", type=float, nargs="+", default=BELOW, help="parts below resolution, about"
    )
    parser.add_argument("--old", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.what) - set(SETTINGS)
    if unknown:
        parser.error(f"WHAT: {', '.join(unknown)}; allowed: {', '.join(SETTINGS)}")
    lines = table(
        arguments.what or list(SETTINGS),
        arguments.draws,
        root=arguments.seed,
        numbers=arguments.seeds,
        parts=arguments.below,
        old=arguments.old,
    )
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
