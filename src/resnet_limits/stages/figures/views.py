"""Figures of single networks beside the limit, from their stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from resnet_limits import fields
from resnet_limits.config import Experiment
from resnet_limits.figures import kernels as drawing
from resnet_limits.figures import learning, states
from resnet_limits.figures.picture import Picture
from resnet_limits.kept import saved_steps
from resnet_limits.kinds import Shape
from resnet_limits.problem import embedding_rows, limit_gram_root, problem_from
from resnet_limits.stages.figures.networks import NO_LIMIT, Networks, OpenStore, open_limit
from resnet_limits.store import StoreError

_LOSS_CURVES = 4
_NETWORKS = 3
_COORDINATES = 5
_SAMPLES = 3
_LIMIT_POINTS = 101
_KERNEL_SAMPLES = 4

_NO_DATA = "The data of this experiment could not be opened."

# --- figures from networks and the limit ----------------------------------------------------------


def loss_curves(experiment: Experiment, open_store: OpenStore) -> Picture:
    """Draw losses of networks of growing size beside the limit's."""
    networks = Networks(experiment, open_store)
    curves = [
        learning.LossCurve(shape, dataset["step"].values, dataset["loss"].values)
        for shape, dataset in networks.pick(_LOSS_CURVES)
    ]
    limit = open_limit(experiment, open_store)
    if limit is not None:
        limit = limit[["loss", "loss_stderr"]].load()
    return learning.loss_curves(curves, limit, networks.notes)


def _last_token(dataset: xr.Dataset) -> xr.Dataset:
    """Take the token that sees all others, also where it sees earlier ones alone."""
    return dataset.isel(token=-1) if "token" in dataset.dims else dataset


def _token_shown(dataset: xr.Dataset) -> int | None:
    return dataset.sizes["token"] - 1 if "token" in dataset.dims else None


def trajectories(experiment: Experiment, open_store: OpenStore) -> Picture:
    """Draw coordinates over depth of networks of growing size beside the limit's."""
    networks = Networks(experiment, open_store)
    limit = open_limit(experiment, open_store)
    if limit is None:
        return states.trajectories([], NO_LIMIT)
    chosen = networks.pick(_NETWORKS, _COORDINATES)
    if not chosen:
        return states.trajectories([], networks.why_empty)
    try:
        # From its store, since a data file may be gone or changed by now.
        problem = problem_from(experiment, open_store("problem", {}))
    except (StoreError, OSError, KeyError):
        return states.trajectories([], _NO_DATA)
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


def histograms(experiment: Experiment, open_store: OpenStore) -> Picture:
    """Draw the law of the last layer's coordinates in networks and in the limit."""
    networks = Networks(experiment, open_store)
    limit = open_limit(experiment, open_store)
    if limit is None:
        return states.histograms([], NO_LIMIT)
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


# --- kernels --------------------------------------------------------------------------------------


def kernels(experiment: Experiment, open_store: OpenStore) -> Picture:
    """Draw kernels of networks of growing size beside those of the limit."""
    networks = Networks(experiment, open_store)
    limit = open_limit(experiment, open_store)
    if limit is None:
        return drawing.kernels([], None, NO_LIMIT)
    chosen = networks.pick(_NETWORKS)
    if not chosen:
        return drawing.kernels([], None, networks.why_empty)
    try:
        problem = problem_from(experiment, open_store("problem", {}))
    except (StoreError, OSError, KeyError):
        return drawing.kernels([], None, _NO_DATA)
    steps = saved_steps(experiment)
    samples = range(min(_KERNEL_SAMPLES, limit.sizes["sample"]))
    places = [drawing.Place(steps[-1], steps[-1], 0, 0)]
    if len(samples) > 1:
        places.append(drawing.Place(steps[-1], steps[-1], 0, 1))
    if len(steps) > 1:
        places.append(drawing.Place(steps[0], steps[-1], 0, 0))
    steps_read = sorted({steps[0], steps[-1]})
    of_networks = [
        _network_kernels(
            _last_token(dataset[["hidden", "backward"]].sel(step=steps_read)).isel(
                sample=list(samples)
            ),
            shape,
            places,
        )
        for shape, dataset in chosen
    ]
    at_steps = limit[["hidden_coef", "backward_coef"]].sel(step=steps_read)
    of_limit = _limit_kernels(
        _last_token(at_steps).isel(sample=list(samples)).load(),
        limit_gram_root(problem) ** 2,
        places,
    )
    token, notes = _token_shown(limit), networks.notes
    notes = [
        (f"Samples 0 to {samples[-1]}" if len(samples) > 1 else "Sample 0")
        + ("" if token is None else f", token {token}")
        + ", the means over coordinates of each seed.",
        *notes,
    ]
    return drawing.kernels(of_networks, of_limit, "", notes)


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of samples, each once."""
    first, second = np.triu_indices(count)
    return first, second


def _network_kernels(
    cells: xr.Dataset, shape: Shape, places: Sequence[drawing.Place]
) -> drawing.Kernels:
    over_depth, at_end = {}, {}
    for field in drawing.FIELDS:
        values = cells[field].transpose("seed", "step", "depth_point", "sample", "coordinate")
        x = values.values.astype(float)
        at = {int(step): k for k, step in enumerate(values["step"].values)}
        for place in places:
            one = x[:, at[place.step], :, place.sample]
            other = x[:, at[place.step_other], :, place.sample_other]
            over_depth[field, place] = (one * other).mean(axis=-1)
        first, second = _pairs(x.shape[3])
        end = x[:, -1, -1 if field == "hidden" else 0]
        at_end[field] = (end[:, first] * end[:, second]).mean(axis=-1)
    return drawing.Kernels(shape, cells["s"].values, over_depth, at_end)


def _limit_kernels(
    limit: xr.Dataset, gram: np.ndarray, places: Sequence[drawing.Place]
) -> drawing.Kernels:
    s = np.linspace(0, 1, _LIMIT_POINTS)
    over_depth, at_end = {}, {}
    for field in drawing.FIELDS:
        gamma = fields.kernel(limit, s, gram, f"{field}_coef")
        for place in places:
            one = gamma.sel(step=place.step, step_other=place.step_other)
            entry = one.isel(sample=place.sample, sample_other=place.sample_other)
            over_depth[field, place] = entry.values[None]
        first, second = _pairs(limit.sizes["sample"])
        end = gamma.isel(s=-1 if field == "hidden" else 0, step=-1, step_other=-1)
        at_end[field] = end.transpose("sample", "sample_other").values[first, second][None]
    return drawing.Kernels(None, s, over_depth, at_end)


# --- classes --------------------------------------------------------------------------------------


def accuracy(experiment: Experiment, open_store: OpenStore) -> Picture:
    """Draw shares of right answers where the targets are classes."""
    try:
        problem = open_store("problem", {}).load()
    except (StoreError, OSError, KeyError):
        return learning.accuracy([], _NO_DATA)
    y = problem["y"].values
    if not _one_hot(y):
        return learning.accuracy([], "The targets of this experiment are not classes.")
    parts = _parts(problem)
    networks = Networks(experiment, open_store)
    found = []
    for shape, dataset in networks.pick(_LOSS_CURVES):
        found += _shares(dataset["output"], dataset["step"].values, shape, y, parts)
    limit = open_limit(experiment, open_store)
    if limit is not None:
        output = limit["output"].expand_dims("seed")
        found += _shares(output, limit["step"].values, None, y, parts)
    return learning.accuracy(found, networks.why_empty, networks.notes)


def _one_hot(y: np.ndarray) -> bool:
    """Whether every row names one of several classes."""
    return bool(y.shape[-1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(axis=-1) == 1).all())


def _parts(problem: xr.Dataset) -> dict[str, np.ndarray]:
    """Give the rows (sample, [token]) of each part of the data that count."""
    rows = problem["y"].shape[:-1]
    counts = np.ones(rows, bool)
    if "weight" in problem:
        counts &= np.broadcast_to(problem["weight"].values > 0, rows)
    if "is_test" not in problem:
        return {"training": counts}
    is_test = problem["is_test"].values.astype(bool).reshape(-1, *(1,) * (len(rows) - 1))
    parts = {"training": counts & ~is_test, "test": np.broadcast_to(is_test, rows)}
    return {part: mask for part, mask in parts.items() if mask.any()}


def _shares(
    output: xr.DataArray,
    step: np.ndarray,
    shape: Shape | None,
    y: np.ndarray,
    parts: Mapping[str, np.ndarray],
) -> list[learning.Accuracy]:
    values = output.transpose("seed", "step", "sample", ..., "target").values
    right = values.argmax(axis=-1) == y.argmax(axis=-1)
    return [
        learning.Accuracy(shape, part, int(mask.sum()), step, right[:, :, mask].mean(axis=-1))
        for part, mask in parts.items()
    ]
