"""The figures of one experiment, from its stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from resnet_limits import fields
from resnet_limits.config import Experiment
from resnet_limits.figures import learning, states, tables
from resnet_limits.figures.against_parameters import error_vs_parameters
from resnet_limits.figures.against_shape import error_vs_shape
from resnet_limits.figures.frontier import frontier
from resnet_limits.figures.picture import Picture
from resnet_limits.figures.style import sheet
from resnet_limits.figures.terms import three_terms
from resnet_limits.kept import saved_steps
from resnet_limits.kinds import OK, Shape
from resnet_limits.problem import embedding_rows, problem_from
from resnet_limits.stages.paths import FIGURES
from resnet_limits.store import StoreError

__all__ = ["figure", "sheet"]

OpenStore = Callable[[str, dict[str, int]], xr.Dataset]

_LOSS_CURVES = 4
_NETWORKS = 3
_COORDINATES = 5
_SAMPLES = 3
_LIMIT_POINTS = 101
_MOST_NAMES = 4


def figure(
    name: str,
    experiment: Experiment,
    open_store: OpenStore,
    errors: Mapping[str, xr.Dataset],
    rates: Mapping[str, Any],
    prediction: Mapping[str, Any] | None = None,
) -> Picture:
    """Draw one figure.

    Parameters
    ----------
    name : str
        One of `FIGURES`.
    experiment : Experiment
        The validated experiment.
    open_store : callable
        From a kind and its cell to a lazy dataset, such as ``open_store("mean_ode",
        {"embed_dim": 64})``. Only what is drawn is loaded.
    errors : mapping of str to Dataset
        The errors store, by pair.
    rates : mapping
        The contents of rates.json.
    prediction : mapping or None
        The contents of prediction.json; None where there is none, as the figures then say.

    Returns
    -------
    Picture
        To be written with its ``save``. Where the experiment has no data for it, it says so in
        words.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    match name:
        case "error_vs_shape":
            return error_vs_shape(errors, rates, prediction)
        case "error_vs_parameters":
            return error_vs_parameters(errors, rates, prediction)
        case "three_terms":
            return three_terms(errors, rates, prediction)
        case "frontier":
            return frontier(rates, prediction)
        case "rates_table":
            return tables.rates_table(rates)
        case "verdicts":
            return tables.verdicts(rates)
        case "loss_curves":
            return _loss_curves(experiment, open_store)
        case "trajectories":
            return _trajectories(experiment, open_store)
        case "histograms":
            return _histograms(experiment, open_store)
    raise ValueError(f"figure {name!r}: must be one of {', '.join(FIGURES)}")


# --- choosing networks ----------------------------------------------------------------------------


def _along_diagonal(shapes: Sequence[Shape], count: int) -> list[Shape]:
    """Pick shapes from the smallest to the largest that all sizes grow along.

    The ends are the shapes of least and of most parameters; between them, those nearest to the
    straight line between the ends in (log L, log M, log D).
    """
    if not shapes:
        return []
    embed_dims = len({shape.embed_dim for shape in shapes})
    if embed_dims > 2:
        # More networks than this would not all differ in the size that matters most.
        count = min(count, embed_dims)
    ordered = sorted(shapes, key=lambda shape: (shape.parameters, shape))
    logs = np.log(np.array(ordered, dtype=float))
    points = np.linspace(0, 1, count)[:, None]
    line = logs[0] + points * (logs[-1] - logs[0])
    distances = ((line[:, None, :] - logs[None, :, :]) ** 2).sum(axis=-1)
    return [ordered[k] for k in sorted(set(distances.argmin(axis=1).tolist()))]


class _Networks:
    """The finite networks of an experiment, opened one shape at a time.

    Attributes
    ----------
    diverged, total : int
        Numbers of networks among those that were looked at.
    """

    def __init__(self, experiment: Experiment, open_store: OpenStore) -> None:
        self._open = open_store
        compared = any("finite" in pair.split("-") for pair in experiment.pairs)
        self.shapes = experiment.shapes if compared else []
        self.total = 0
        self.diverged = 0
        self.unreadable: list[str] = []

    def pick(self, count: int, smallest_embed_dim: int = 1) -> list[tuple[Shape, xr.Dataset]]:
        """Open shapes from small to large, each with its seeds that ended well.

        Shapes without such a seed, and those that cannot be opened, are replaced by others; those
        of a smaller embedding dimension than asked for only where there is nothing else.
        """
        opened: dict[Shape, xr.Dataset | None] = {}
        for least in (smallest_embed_dim, 1):
            candidates = [shape for shape in self.shapes if shape.embed_dim >= least]
            while candidates:
                chosen = _along_diagonal(candidates, count)
                for shape in chosen:
                    if shape not in opened:
                        opened[shape] = self._good_seeds(shape)
                good = [
                    (shape, dataset) for shape in chosen if (dataset := opened[shape]) is not None
                ]
                if len(good) == len(chosen):
                    return good
                bad = {shape for shape, dataset in opened.items() if dataset is None}
                candidates = [shape for shape in candidates if shape not in bad]
        return []

    def _good_seeds(self, shape: Shape) -> xr.Dataset | None:
        try:
            dataset = self._open("finite", shape._asdict())
            status = dataset["status"].values
        except (StoreError, OSError, KeyError):
            self.unreadable.append(f"L{shape.depth}_M{shape.width}_D{shape.embed_dim}")
            return None
        self.total += len(status)
        self.diverged += int((status != OK).sum())
        good = np.flatnonzero(status == OK)
        return dataset.isel(seed=good) if len(good) else None

    @property
    def notes(self) -> list[str]:
        """Say which networks were passed over."""
        notes = []
        if self.diverged:
            notes.append(
                f"{self.diverged} of the {self.total} networks looked at diverged, left out."
            )
        if self.unreadable:
            more = len(self.unreadable) - _MOST_NAMES
            names = ", ".join(self.unreadable[:_MOST_NAMES])
            notes.append(f"Could not be opened: {names}{f' and {more} more' if more > 0 else ''}.")
        return notes

    @property
    def why_empty(self) -> str:
        """Say why there is no network to draw."""
        if not self.shapes:
            return "This experiment trains no finite network."
        if self.diverged and self.diverged == self.total:
            return f"All {self.total} networks diverged: there is nothing to draw."
        return "No finite network could be opened."


def _open_limit(experiment: Experiment, open_store: OpenStore) -> xr.Dataset | None:
    """Open the DMFT limit, which is there as soon as any limit is."""
    if not experiment.limits_needed:
        return None
    try:
        return open_store("dmft", {})
    except (StoreError, OSError, KeyError):
        return None


_NO_LIMIT = "The DMFT limit of this experiment was not solved."


# --- figures from networks and the limit ----------------------------------------------------------


def _loss_curves(experiment: Experiment, open_store: OpenStore) -> Picture:
    networks = _Networks(experiment, open_store)
    curves = [
        learning.LossCurve(shape, dataset["step"].values, dataset["loss"].values)
        for shape, dataset in networks.pick(_LOSS_CURVES)
    ]
    limit = _open_limit(experiment, open_store)
    if limit is not None:
        limit = limit[["loss", "loss_stderr"]].load()
    return learning.loss_curves(curves, limit, networks.notes)


def _last_token(dataset: xr.Dataset) -> xr.Dataset:
    """Take the token that sees all others, also where it sees earlier ones alone."""
    return dataset.isel(token=-1) if "token" in dataset.dims else dataset


def _token_shown(dataset: xr.Dataset) -> int | None:
    return dataset.sizes["token"] - 1 if "token" in dataset.dims else None


def _trajectories(experiment: Experiment, open_store: OpenStore) -> Picture:
    networks = _Networks(experiment, open_store)
    limit = _open_limit(experiment, open_store)
    if limit is None:
        return states.trajectories([], _NO_LIMIT)
    chosen = networks.pick(_NETWORKS, _COORDINATES)
    if not chosen:
        return states.trajectories([], networks.why_empty)
    try:
        # From its store, since a data file may be gone or changed by now.
        problem = problem_from(experiment, open_store("problem", {}))
    except (StoreError, OSError, KeyError):
        return states.trajectories([], "The data of this experiment could not be opened.")
    step, token = saved_steps(experiment)[-1], _token_shown(limit)
    limit = _last_token(limit[["hidden_coef"]].sel(step=step)).isel(sample=[0]).load()
    s = np.linspace(0, 1, _LIMIT_POINTS)
    coordinates: np.ndarray | None = None
    panels = []
    seeds = [set(dataset["seed"].values.tolist()) for _, dataset in chosen]
    shared = set.intersection(*seeds)
    for (shape, dataset), own in zip(chosen, seeds, strict=True):
        # With one seed for all panels, the limit's curves are the same in each.
        seed = min(shared or own)
        rows = embedding_rows(problem, experiment.seed, seed, shape.embed_dim)
        if coordinates is None:
            # From the smallest network, and by the limit alone: spread over its values.
            last = _values(fields.field(limit, rows, np.ones(1), "hidden_coef"))[0]
            order = np.argsort(last, kind="stable")
            picks = np.linspace(0, len(order) - 1, min(_COORDINATES, len(order)))
            coordinates = np.sort(order[picks.round().astype(int)])
        coordinates = coordinates[coordinates < shape.embed_dim]
        field = _last_token(dataset[["hidden"]].sel(seed=seed, step=step))["hidden"]
        panels.append(
            states.Trajectory(
                shape,
                seed,
                step,
                tuple(int(d) for d in coordinates),
                dataset["s"].values,
                field.isel(sample=0, coordinate=coordinates)
                .transpose("depth_point", "coordinate")
                .values,
                s,
                _values(fields.field(limit, rows[coordinates], s, "hidden_coef")),
                token,
            )
        )
    return states.trajectories(panels, "", networks.notes)


def _values(field: xr.DataArray) -> np.ndarray:
    """Bring a field of one sample into the shape (s, coordinate)."""
    return field.isel(sample=0).transpose("s", "coordinate").values


def _histograms(experiment: Experiment, open_store: OpenStore) -> Picture:
    networks = _Networks(experiment, open_store)
    limit = _open_limit(experiment, open_store)
    if limit is None:
        return states.histograms([], _NO_LIMIT)
    chosen = networks.pick(_NETWORKS, _COORDINATES)
    if not chosen:
        return states.histograms([], networks.why_empty)
    step = saved_steps(experiment)[-1]
    samples, token = slice(0, _SAMPLES), _token_shown(limit)
    gaussian = experiment.model.initial_law == "gaussian"
    std = _limit_std(experiment, limit, step)[samples]
    rows = []
    for shape, dataset in chosen:
        last = _last_token(dataset[["hidden"]].sel(step=step))["hidden"]
        last = last.isel(depth_point=-1, sample=samples).transpose("sample", "seed", "coordinate")
        values = last.values.astype(float)
        values = values.reshape(values.shape[0], -1)
        rows.append(states.LastLayer(shape, step, values, std, token, gaussian))
    return states.histograms(rows, "", networks.notes)


def _limit_std(experiment: Experiment, limit: xr.Dataset, step: int) -> np.ndarray:
    """Give the standard deviation of the limit's coordinates at s = 1 for each sample.

    That is sqrt(c^T G c) with G the expected Gram matrix of the embedding rows,
    diag(s_e^2, ..., s_u^2, ...).
    """
    at_step = _last_token(limit[["output", "hidden_coef"]].sel(step=step))
    at_end = fields.coefficients(at_step, np.ones(1)).isel(s=0)
    coefficients = at_end.transpose("sample", "embedding_direction").values
    init_std = experiment.model.init_std
    targets = limit.sizes["target"]
    inputs = coefficients.shape[1] - targets
    scales = np.array([init_std.embedding] * inputs + [init_std.unembedding] * targets)
    return np.sqrt(((coefficients * scales) ** 2).sum(axis=1))
