"""Results as datasets with sizes as coordinates, and all of them as one tree.

Where the shapes are all combinations of some sizes, the sizes are dimensions. Where they are not,
one dimension ``shape`` has them as the levels of its index, so that nothing is made up for shapes
that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from resnet_limits import predicted, store
from resnet_limits.kinds import CELL_KEYS, SIZES, Shape
from resnet_limits.laws import LAWS
from resnet_limits.results.folder import Folder, NotThereError
from resnet_limits.results.lazy import FILL, Stack, Table
from resnet_limits.stages.paths import Cell
from resnet_limits.store import SCHEMAS

ANY_SIZE = {
    "finite": ("output", "loss", "status", "diverged_step"),
    "mean_ode": ("output", "output_stderr", "loss", "loss_stderr", "status", "diverged_step"),
    "wide": ("output", "output_stderr", "loss", "loss_stderr", "status", "diverged_step"),
}
"""Variables that are as large in a store as in any other of their kind."""

FIELDS = ("hidden", "backward")
"""Variables of a network that are as large as the network."""

_LIMITS = ("dmft", "mean_ode", "wide")
_DTYPES: dict[str, np.dtype] = {
    "status": np.dtype(np.int8),
    "diverged_step": np.dtype(np.int64),
}


def size_dims(folder: Folder, kind_sizes: Sequence[str]) -> tuple[str, ...]:
    """Name the dimensions that stand for some sizes: themselves, or ``shape``."""
    return tuple(kind_sizes) if folder.is_grid else ("shape",)


def size_coords(folder: Folder, sizes: Sequence[str]) -> xr.Coordinates:
    """Coordinates of some sizes."""
    if folder.is_grid:
        return xr.Coordinates(
            {
                name: xr.Variable(name, folder.values[name], attributes("errors", name))
                for name in sizes
            }
        )
    index = pd.MultiIndex.from_tuples(folder.shapes, names=SIZES)
    return xr.Coordinates.from_pandas_multiindex(index, "shape")


def _front(folder: Folder, sizes: Sequence[str]) -> tuple[int, ...]:
    """Lengths of the dimensions that stand for some sizes."""
    if not folder.is_grid:
        return (len(folder.shapes),)
    return tuple(len(folder.values[name]) for name in sizes)


def attributes(kind: str, name: str) -> dict[str, Any]:
    """Give the attributes of a variable as in its store."""
    wanted = SCHEMAS[kind].all[name]
    units = {} if wanted.units is None else {"units": wanted.units}
    return {"long_name": wanted.long_name, **units, **wanted.attrs}


# --- stores ---------------------------------------------------------------------------------------


def stacked(folder: Folder, kind: str) -> xr.Dataset:
    """Put all stores of a kind together, lazily: what does not grow with the network.

    Parameters
    ----------
    folder : Folder
        The results.
    kind : str
        ``finite``, ``mean_ode`` or ``wide``.

    Returns
    -------
    Dataset
        Dimensions: those of the sizes, ``seed``, ``step``, and those of the data.
    """
    sizes = CELL_KEYS[kind]
    places = np.empty(_front(folder, sizes), object)
    for place, cell in _places(folder, sizes):
        places[place] = cell if folder.is_there(kind, **cell) else None
    labels = {"seed": np.array(folder.seeds(kind)), "step": np.array(folder.steps(kind))}
    front = size_dims(folder, sizes)
    variables = {
        name: _lazy(folder, kind, name, places, front, labels, folder.data_sizes)
        for name in ANY_SIZE[kind]
    }
    coords = size_coords(folder, sizes).assign(_labels(labels))
    found = xr.Dataset(variables, coords, {"title": SCHEMAS[kind].title})
    if kind == "finite":
        found = _with_parameters(folder, found)
    return found


def _places(folder: Folder, sizes: Sequence[str]) -> Iterator[tuple[tuple[int, ...], Cell]]:
    """Give every place along the dimensions of some sizes, and the sizes there.

    Where there is a dimension ``shape``, a limit stands at every shape that it belongs to.
    """
    if not folder.is_grid:
        for number, shape in enumerate(folder.shapes):
            yield (number,), {name: getattr(shape, name) for name in sizes}
        return
    axes = [folder.values[name] for name in sizes]
    for place in product(*(range(len(axis)) for axis in axes)):
        yield place, {n: axis[k] for n, axis, k in zip(sizes, axes, place, strict=True)}


def _labels(labels: dict[str, NDArray[np.int64]]) -> dict[str, xr.Variable]:
    return {
        name: xr.Variable(name, values, attributes("finite", name))
        for name, values in labels.items()
    }


def _with_parameters(folder: Folder, dataset: xr.Dataset) -> xr.Dataset:
    """Add P = L M D along the sizes."""
    dims = size_dims(folder, SIZES)
    values = np.empty(_front(folder, SIZES))
    for place, cell in _places(folder, SIZES):
        values[place] = Shape(**cell).parameters
    return dataset.assign_coords(parameters=(dims, values, attributes("errors", "parameters")))


def _lazy(
    folder: Folder,
    kind: str,
    name: str,
    places: NDArray[np.object_],
    front: Sequence[str],
    labels: dict[str, NDArray[np.int64]],
    sizes: dict[str, int],
) -> xr.Variable:
    schema = SCHEMAS[kind].variables[name]
    known = {**sizes, **dict.fromkeys(labels, 0)}
    dims = [d.removesuffix("?") for d in schema.dims if d.removesuffix("?") in known]
    dtype = _DTYPES.get(name, np.dtype(np.float64))
    if name in FIELDS:
        dtype = np.dtype(folder.experiment.save.dtype)

    def load(cell: Cell, variable: str) -> Mapping[Any, xr.Variable]:
        return store.load_variables(folder.paths.store(kind, **cell), [variable])

    stack = Stack(places, name, dims, labels, sizes, dtype, load)
    return xr.Variable((*front, *dims), stack.array(), attributes(kind, name))


def network_fields(folder: Folder, depth: int, embed_dim: int) -> xr.Dataset:
    """Put the fields of all networks of one depth and embedding dimension together, lazily.

    Returns
    -------
    Dataset
        ``hidden`` and ``backward`` (width, seed, step, depth_point, sample, [token,] coordinate).
    """
    widths = folder.widths[depth, embed_dim]
    places = np.empty(len(widths), object)
    for k, width in enumerate(widths):
        cell = {"depth": depth, "width": width, "embed_dim": embed_dim}
        places[k] = cell if folder.is_there("finite", **cell) else None
    labels = {"seed": np.array(folder.seeds("finite")), "step": np.array(folder.steps("finite"))}
    layers = np.array(folder.layers(depth))
    sizes = {**folder.data_sizes, "depth_point": len(layers), "coordinate": embed_dim}
    sizes.pop("target")
    variables = {
        name: _lazy(folder, "finite", name, places, ("width",), labels, sizes) for name in FIELDS
    }
    return xr.Dataset(
        variables,
        {
            "width": ("width", widths, attributes("errors", "width")),
            **_labels(labels),
            "layer": ("depth_point", layers, attributes("finite", "layer")),
            "s": ("depth_point", layers / depth, attributes("finite", "s")),
        },
        {"depth": depth, "embed_dim": embed_dim},
    )


# --- tables ---------------------------------------------------------------------------------------


def pairs(folder: Folder) -> tuple[str, ...]:
    """Name the pairs whose distances are there."""
    found = folder.metadata(folder.paths.store("errors"))
    return tuple(pair for pair in LAWS if pair in found)


def distances(folder: Folder, pair: str) -> xr.Dataset:
    """Spread the distances of a pair over sizes and seeds, lazily.

    Parameters
    ----------
    folder : Folder
        The results.
    pair : str
        Such as ``finite-dmft``.

    Returns
    -------
    Dataset
        The variables of errors.zarr, with dimensions of the sizes that the pair depends on,
        ``seed``, and what else they have. Cells that were not compared are NaN, with the status
        not_run.

    Raises
    ------
    NotThereError
        If the pair was not measured.
    """
    folder.require_pair(pair, pairs(folder))
    table = store.open_store(folder.paths.store("errors"), pair)
    sizes = LAWS[pair]["hidden"].depends
    kind = pair.partition("-")[0]
    # Both sides have to have a seed, and the first has no more than the second.
    seeds = folder.seeds(kind)
    rows = _Rows(folder, table, sizes, seeds)
    front = (*size_dims(folder, sizes), "seed")
    lengths = (*_front(folder, sizes), len(seeds))
    variables = {
        str(name): xr.Variable(
            (*front, *variable.dims[1:]),
            Table(
                (*lengths, *variable.shape[1:]), rows, variable, FILL.get(str(name), np.nan)
            ).array(),
            variable.attrs,
        )
        for name, variable in table.variables.items()
        if variable.dims[:1] == ("cell",) and name not in _OF_CELLS
    }
    labels = _labels({"seed": np.array(seeds), "step": table["step"].values})
    data = xr.Dataset(variables, size_coords(folder, sizes).assign(labels), {"pair": pair})
    if "s" in data:
        data = data.set_coords("s")
    return _with_parameters(folder, data) if len(sizes) == len(SIZES) else data


_OF_CELLS = (*SIZES, "seed", "parameters", "weights")


class _Rows:
    """The row of a table of cells at each place along sizes and seeds; -1 where there is none."""

    def __init__(
        self, folder: Folder, table: xr.Dataset, sizes: Sequence[str], seeds: Sequence[int]
    ) -> None:
        self._arguments = folder, table, sizes, seeds

    @cached_property
    def values(self) -> NDArray[np.intp]:
        """The rows, found when they are first used."""
        folder, table, sizes, seeds = self._arguments
        columns = (table[name].values.tolist() for name in (*sizes, "seed"))
        row = {cell: k for k, cell in enumerate(zip(*columns, strict=True))}
        found = np.full((*_front(folder, sizes), len(seeds)), -1, np.intp)
        for place, cell in _places(folder, sizes):
            found[place] = [row.get((*cell.values(), seed), -1) for seed in seeds]
        return found


def predictions(
    folder: Folder, prediction: Mapping[str, Any], pair: str, observable: str
) -> xr.DataArray:
    """Evaluate the predicted law of a distance at all shapes and steps that were predicted."""
    sizes, points, values = _unpredicted(folder, prediction, pair)
    without: dict[str, None] = {}
    for k, step in enumerate(prediction["step"]):
        found = predicted.known(prediction, pair, observable, step)
        without |= dict.fromkeys(found.without)
        distance = predicted.distance(found, points)
        if distance is not None:
            values[..., k] = distance.reshape(values.shape[:-1])
    found_here = _named_prediction(folder, prediction, sizes, values, {}, pair, observable)
    return found_here.assign_attrs(without=", ".join(without))


def predictions_over_depth(
    folder: Folder, prediction: Mapping[str, Any], pair: str
) -> xr.DataArray:
    """Evaluate the predicted law of hidden states at all shapes, steps and depths.

    Raises
    ------
    NotThereError
        If the prediction has no depths.
    """
    sizes, points, front = _unpredicted(folder, prediction, pair)
    s = (prediction.get("hidden_at") or {}).get("s")
    if s is None:
        raise NotThereError("prediction.json has no hidden_at: it was made by an older version")
    values = np.full((*front.shape, len(s)), np.nan)
    for k, step in enumerate(prediction["step"]):
        found = predicted.distance_at(prediction, pair, step, points)
        if found is not None:
            values[..., k, :] = found[1].reshape(*front.shape[:-1], len(s))
    return _named_prediction(folder, prediction, sizes, values, {"s": s}, pair, "hidden")


def _unpredicted(
    folder: Folder, prediction: Mapping[str, Any], pair: str
) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.float64]]:
    """Give the sizes of a pair, its shapes, and NaN for each of them and every step."""
    sizes = LAWS[pair]["hidden"].depends
    points = np.array([[cell.get(name, 0) for name in SIZES] for _, cell in _places(folder, sizes)])
    return sizes, points, np.full((*_front(folder, sizes), len(prediction["step"])), np.nan)


def _named_prediction(
    folder: Folder,
    prediction: Mapping[str, Any],
    sizes: Sequence[str],
    values: NDArray[np.float64],
    depths: dict[str, Any],
    pair: str,
    observable: str,
) -> xr.DataArray:
    labels = _labels({"step": np.array(prediction["step"])})
    coords = size_coords(folder, sizes).assign({**labels, **depths})
    attrs = {"long_name": f"predicted distance of {observable}, {pair}", "units": "1"}
    return xr.DataArray(
        values,
        coords,
        (*size_dims(folder, sizes), "step", *depths),
        "predicted",
        {**attrs, "pair": pair, "observable": observable},
    )


# --- limits ---------------------------------------------------------------------------------------


def limits(folder: Folder) -> tuple[str, ...]:
    """Name the kinds of limits that are there, or will be."""
    return tuple(
        kind
        for kind in _LIMITS
        if (folder.is_there(kind) if kind == "dmft" else folder.cells(kind))
    )


def limit(folder: Folder, kind: str) -> xr.Dataset:
    """Open a limit: the store of the one that exists once, all stores of the others."""
    return folder.open(kind) if kind == "dmft" else stacked(folder, kind)
