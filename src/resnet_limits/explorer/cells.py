"""Every cell of every pair: what was measured of it, what became of it, and what is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from resnet_limits import predicted
from resnet_limits.cells import NOISE_SHARE, VARIABLES, judge, make_grid
from resnet_limits.kinds import DIVERGED, NOT_RUN, SIZES
from resnet_limits.laws import OBSERVABLES, law_of, terms_of, variable_values

Array = NDArray[np.float64]

STATES = ("resolved", "below_resolution", "diverged", "not_run", "no_value")
"""What may have become of a cell at a step; the place of a name is its number.

``no_value`` is of cells that ended well and have no number at this step, or one that has no square.
"""
RESOLVED, BELOW_RESOLUTION, _DIVERGED, _NOT_RUN, NO_VALUE = range(len(STATES))


class Losses(NamedTuple):
    """The losses of the two sides of a pair, each of shape (cells, steps); NaN where unknown."""

    first: Array
    second: Array


class Profile(NamedTuple):
    """Distances over depth.

    Attributes
    ----------
    s : ndarray, shape (cells, points)
        Depth fractions; NaN where a cell stores fewer points.
    values : ndarray, shape (cells, steps, points)
    """

    s: Array
    values: Array


@dataclass(frozen=True)
class Distance:
    """One observable of a pair.

    Attributes
    ----------
    value : ndarray, shape (cells, steps)
        As measured; NaN where there is no number.
    stderr : ndarray, shape (cells, steps)
        The standard error of the limits behind it.
    state : ndarray of uint8, shape (cells, steps)
        Places in `STATES`.
    known : tuple of Known, one for each step
        The terms that are predicted.
    """

    value: Array
    stderr: Array
    state: NDArray[np.uint8]
    known: tuple[predicted.Known, ...]


@dataclass(frozen=True)
class PairCells:
    """The cells of one pair.

    Attributes
    ----------
    pair : str
        A key of `laws.LAWS`.
    steps : ndarray of int, shape (steps,)
    columns : mapping of str to ndarray, shape (cells,)
        ``depth``, ``width``, ``embed_dim``, ``seed``, ``parameters`` and, where it is known,
        ``weights``; 0 where a size is infinite.
    distances : mapping of str to Distance
        By observable.
    losses : Losses or None
        Where the networks and limits behind the pair are there.
    profile : Profile or None
        Where distances over depth were measured.
    """

    pair: str
    steps: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]
    distances: Mapping[str, Distance]
    losses: Losses | None = None
    profile: Profile | None = None
    _sizes: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = np.stack([self.columns[name] for name in SIZES], axis=-1)
        object.__setattr__(self, "_sizes", sizes)

    def __len__(self) -> int:
        """Count the cells."""
        return len(self._sizes)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The sizes that are finite in this pair."""
        return law_of(self.pair, "hidden").depends

    @property
    def terms(self) -> tuple[str, ...]:
        """Every term of its laws, once."""
        return tuple(
            dict.fromkeys(term for name in OBSERVABLES for term in terms_of(self.pair, name))
        )

    def variable(self, name: str) -> Array:
        """Evaluate a term, or a variable such as ``D/(LM)``, at every cell."""
        return variable_values(name, self._sizes)

    def predicted(self, observable: str) -> Array:
        """Evaluate the predicted distances, shape (cells, steps); NaN where there is none."""
        found = [
            predicted.distance(known, self._sizes) for known in self.distances[observable].known
        ]
        nothing = np.full(len(self), np.nan)
        return np.stack([nothing if law is None else law for law in found], axis=-1)


def pair_cells(
    pair: str,
    dataset: xr.Dataset,
    prediction: predicted.Prediction | None,
    losses: Losses | None = None,
) -> PairCells:
    """Bring one group of an errors store into the form that the explorer shows.

    Parameters
    ----------
    pair : str
        Its name.
    dataset : Dataset
        The group. Nothing of it is left out.
    prediction : mapping or None
        The contents of prediction.json.
    losses : Losses, optional
        At the steps of the group.
    """
    columns = {
        name: dataset[name].values.astype(float)
        for name in (*SIZES, "seed", "parameters", "weights")
        if name in dataset.coords
    }
    grid = make_grid(dataset)
    steps = dataset["step"].values.astype(np.int64)
    distances = {}
    for observable, (name, stderr_name) in VARIABLES.items():
        value, stderr = (
            dataset[variable].transpose("cell", "step").values.astype(float)
            for variable in (name, stderr_name)
        )
        share = NOISE_SHARE[observable]
        state = np.empty(value.shape, np.uint8)
        for k in range(len(steps)):
            judged = judge(grid, value[:, k], stderr[:, k], share)
            present, resolved = (
                part[grid.shape, grid.seed] for part in (judged.present, judged.resolved)
            )
            state[:, k] = np.select(
                [grid.status == DIVERGED, grid.status == NOT_RUN, resolved, present],
                [_DIVERGED, _NOT_RUN, RESOLVED, BELOW_RESOLUTION],
                NO_VALUE,
            )
        known = tuple(predicted.known(prediction, pair, observable, int(k)) for k in steps)
        distances[observable] = Distance(value, np.sqrt(share) * stderr, state, known)
    profile = None
    if "hidden_rms_at" in dataset:
        values = dataset["hidden_rms_at"].transpose("cell", "step", "depth_point")
        s = dataset["s"].transpose("cell", "depth_point")
        profile = Profile(s.values.astype(float), values.values.astype(float))
    return PairCells(pair, steps, columns, distances, losses, profile)


def state_of_loss(cells: PairCells) -> NDArray[np.uint8]:
    """Tell what became of the losses of the first of a pair, as places in `STATES`."""
    assert cells.losses is not None
    ended = cells.distances["hidden"].state
    bad = (ended == _DIVERGED) | (ended == _NOT_RUN)
    has_value = np.isfinite(cells.losses.first)
    return np.where(bad, ended, np.where(has_value, RESOLVED, NO_VALUE)).astype(np.uint8)


# --- as a table -----------------------------------------------------------------------------------


def frames(pairs: Mapping[str, PairCells]) -> Iterator[pd.DataFrame]:
    """Give the table of each pair: a row for every cell and step.

    Columns: ``pair``; ``depth``, ``width``, ``embed_dim``, ``seed``, ``parameters``, ``weights``
    (0 where a size is infinite); ``step``; and of every observable its value, standard error,
    predicted value and state, as ``hidden``, ``hidden_stderr``, ``hidden_predicted``,
    ``hidden_state``; ``loss`` and ``reference_loss`` of the two that are compared. A number that
    there is not is NaN, which CSV leaves empty.
    """
    for pair, cells in pairs.items():
        count, steps = len(cells), len(cells.steps)
        table: dict[str, object] = {"pair": np.full(count * steps, pair, dtype=object)}
        for name in (*SIZES, "seed", "parameters", "weights"):
            values = cells.columns.get(name, np.full(count, np.nan))
            is_whole = name in (*SIZES, "seed")
            table[name] = np.repeat(values.astype(np.int64) if is_whole else values, steps)
        table["step"] = np.tile(cells.steps, count)
        for observable, distance in cells.distances.items():
            table[observable] = distance.value.ravel()
            table[f"{observable}_stderr"] = distance.stderr.ravel()
            table[f"{observable}_predicted"] = cells.predicted(observable).ravel()
            table[f"{observable}_state"] = np.array(STATES, dtype=object)[distance.state.ravel()]
        losses = cells.losses or Losses(*(np.full((count, steps), np.nan) for _ in range(2)))
        table["loss"], table["reference_loss"] = (part.ravel() for part in losses)
        yield pd.DataFrame(table)
