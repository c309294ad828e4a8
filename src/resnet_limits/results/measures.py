"""Fields, kernels and distances of networks beside those of their limits, all of them lazy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from resnet_limits import fields
from resnet_limits.config import InputError
from resnet_limits.kinds import CELL_KEYS, OK, SIZES
from resnet_limits.laws import LAWS
from resnet_limits.problem import (
    Problem,
    embedding_rows,
    gram_root,
    limit_gram_root,
    problem_from,
)
from resnet_limits.results import tree
from resnet_limits.results.folder import Folder, NotThereError, listed

_LIMIT_DEPTH_POINTS = 17
_BLOCK_BYTES = 64 * 2**20
_SAME = "_other"

Chosen = int | Sequence[int] | None
"""One value, several, or all."""


# --- what is chosen -------------------------------------------------------------------------------


def is_one(wanted: Chosen) -> bool:
    """Whether one value is wanted, which drops its dimension."""
    return wanted is not None and np.ndim(wanted) == 0


def chosen(name: str, wanted: Chosen, there: Sequence[int]) -> list[int]:
    """List the values that are wanted of those that are there; all if nothing is said.

    Raises
    ------
    InputError
        If one of them is not there.
    """
    if wanted is None:
        return list(there)
    values = [int(value) for value in np.atleast_1d(np.asarray(wanted))]
    for value in values:
        if value not in there:
            raise InputError(f"{name}: got {value}; allowed: {listed(there)}")
    return values


def given(**choices: Chosen) -> dict[str, Chosen]:
    """Keep what is said."""
    return {name: wanted for name, wanted in choices.items() if wanted is not None}


def only(found: xr.DataArray, seeds: Sequence[int], wanted: Chosen) -> xr.DataArray:
    """Select those of some seeds that are there; one number drops the dimension."""
    there = [seed for seed in seeds if seed in found["seed"].values]
    if not there:
        raise NotThereError(f"seed: {listed(seeds)} not run")
    return found.sel(seed=there[0] if is_one(wanted) else there)


def selected(data: xr.Dataset, choices: Mapping[str, Chosen]) -> xr.Dataset:
    """Select sizes and seeds: a number drops its dimension, a list keeps it.

    Raises
    ------
    InputError
        If a value is not there.
    """
    for name, wanted in choices.items():
        if name not in data.coords:
            raise InputError(f"{name}: the pair {data.pair} does not depend on it")
        values = chosen(name, wanted, np.unique(data[name].values).tolist())
        if name in data.dims:
            data = data.sel({name: values[0] if is_one(wanted) else values})
        elif "shape" in data.dims:
            data = data.isel(shape=np.flatnonzero(np.isin(data[name].values, values)))
    sizes = LAWS[data.pair]["hidden"].depends
    if "shape" in data.dims and all(is_one(choices.get(name)) for name in sizes):
        if not data.sizes["shape"]:
            raise InputError(f"{', '.join(sizes)}: these sizes are not combined")
        data = data.isel(shape=0)
    return data


def problem(folder: Folder) -> Problem:
    """Take the problem from its store: its data are read."""
    return problem_from(folder.experiment, folder.open("problem"))


def _embedding(folder: Folder, made: Problem, seeds: Sequence[int], embed_dim: int) -> xr.DataArray:
    """Embedding rows of some seeds, named, a block for each seed."""
    root = folder.experiment.seed
    rows = np.stack([embedding_rows(made, root, int(seed), embed_dim) for seed in seeds])
    named = xr.DataArray(
        rows, dims=("seed", "coordinate", "embedding_direction"), coords={"seed": list(seeds)}
    )
    return named.chunk(seed=1)


# --- fields ---------------------------------------------------------------------------------------


def depth_points(folder: Folder, depth: int | None) -> xr.DataArray:
    """Depths at which networks of a depth are kept; without a depth those of limits."""
    if depth is None:
        s = np.linspace(0.0, 1.0, _LIMIT_DEPTH_POINTS)
        return xr.DataArray(s, dims="depth_point", coords={"s": ("depth_point", s)})
    layers = np.array(folder.layers(depth))
    coords = {"layer": ("depth_point", layers), "s": ("depth_point", layers / depth)}
    return xr.DataArray(layers / depth, dims="depth_point", coords=coords)


def network_field(folder: Folder, cell: dict[str, int], variable: str) -> xr.DataArray:
    """Field of the networks of one shape, as it is stored."""
    found = folder.open("finite", **cell)[variable]
    return found.assign_coords({name: found[name].compute() for name in ("layer", "s")})


def limit_field(
    folder: Folder,
    made: Problem,
    kind: str,
    cell: dict[str, int],
    seeds: Sequence[int],
    s: xr.DataArray,
    variable: str,
) -> xr.DataArray:
    """Field of a limit for the embedding rows of networks.

    Parameters
    ----------
    folder : Folder
        The results.
    made : Problem
        The problem.
    kind : str
        ``dmft``, ``mean_ode`` or ``wide``.
    cell : dict
        ``embed_dim``, and ``depth`` where the limit depends on it; other sizes are ignored.
    seeds : sequence of int
        The networks' seeds.
    s : DataArray
        Depths, with their dimension.
    variable : str
        ``hidden`` or ``backward``.
    """
    limit = _limit(folder, kind, cell)
    if "seed" in limit.dims:
        seeds = [seed for seed in seeds if seed in limit["seed"].values]
        limit = limit.sel(seed=seeds)
    rows = _embedding(folder, made, seeds, cell["embed_dim"])
    step_bytes = s.size * rows[0].size // rows.shape[-1] * 8 * made.rows
    limit = limit.chunk(step=max(1, _BLOCK_BYTES // step_bytes))
    found = fields.field(limit, rows, s, f"{variable}_coef")
    rest = [d for d in ("sample", "token", "coordinate") if d in found.dims]
    return found.transpose("seed", "step", *s.dims, *rest).assign_attrs(
        tree.attributes("finite", variable)
    )


def _limit(folder: Folder, kind: str, cell: dict[str, int]) -> xr.Dataset:
    return folder.open(kind, **{name: cell[name] for name in CELL_KEYS[kind]})


# --- kernels --------------------------------------------------------------------------------------


def network_kernel(field: xr.DataArray) -> xr.DataArray:
    """Mean over coordinates of the product of a field at two steps and samples."""
    own = field.astype(np.float64)
    doubled = [d for d in ("step", "sample", "token") if d in field.dims]
    other = own.rename({d: f"{d}{_SAME}" for d in doubled})
    product = xr.dot(own, other, dim="coordinate") / field.sizes["coordinate"]
    front = [d for d in field.dims if d in ("seed", "depth_point")]
    found = product.transpose(*front, *doubled, *(f"{d}{_SAME}" for d in doubled))
    return found.rename("kernel")


def limit_kernel(
    folder: Folder,
    made: Problem,
    kind: str,
    cell: dict[str, int],
    seeds: Sequence[int],
    steps: Sequence[int],
    s: xr.DataArray,
    variable: str,
) -> xr.DataArray:
    """Kernel of a limit: of infinite D for the DMFT limit, of each seed's rows for the others."""
    limit = _limit(folder, kind, cell).sel(step=list(steps))
    if "seed" not in limit.dims:
        root = limit_gram_root(made)
        return fields.kernel(limit, s, root @ root, f"{variable}_coef")
    seeds = [seed for seed in seeds if seed in limit["seed"].values]
    rows = _embedding(folder, made, seeds, cell["embed_dim"])
    roots = np.stack([gram_root(made, table) for table in rows.values])
    gram = xr.DataArray(
        roots @ roots,
        dims=("seed", "embedding_direction", f"embedding_direction{_SAME}"),
        coords={"seed": seeds},
    )
    return fields.kernel(limit.sel(seed=seeds), s, gram, f"{variable}_coef")


# --- distances ------------------------------------------------------------------------------------


def over_depth(
    folder: Folder,
    made: Problem,
    pair: str,
    by: Sequence[str],
    choices: Mapping[str, Chosen],
) -> xr.DataArray:
    """RMS distance of hidden states over samples and coordinates at each depth of one network.

    From ``hidden_rms_at`` of errors.zarr where that is there, else from the fields themselves.

    Returns
    -------
    DataArray, dimensions ([seed,] step, s)
        With ``seed`` if it is part of ``by``; else the root mean square over seeds that ended well.

    Raises
    ------
    InputError
        If the sizes are not those of one network, or not there.
    NotThereError
        If one side of the pair is not there.
    """
    sizes = LAWS[pair]["hidden"].depends
    if not all(is_one(choices.get(name)) for name in sizes):
        raise InputError(
            f"by: s needs one network; allowed: one number each for {', '.join(sizes)}"
        )
    cell = {name: int(np.asarray(choices[name])) for name in sizes}
    for kind in pair.split("-"):
        folder.require(kind, **{name: cell[name] for name in CELL_KEYS[kind]})
    seeds = chosen("seed", choices.get("seed"), folder.seeds(pair.partition("-")[0]))
    table = _one_shape(folder, tree.distances(folder, pair), cell)
    if "hidden_rms_at" in table:
        found = _stored_over_depth(table, cell)
    else:
        found = _measured_over_depth(folder, made, pair, cell, seeds)
    found = only(found, seeds, choices.get("seed"))
    if "seed" in by or is_one(choices.get("seed")):
        return found
    good = table["status"].reindex_like(found["seed"]) == OK
    return (found**2).where(good).mean("seed") ** 0.5


def _measured_over_depth(
    folder: Folder, made: Problem, pair: str, cell: dict[str, int], seeds: Sequence[int]
) -> xr.DataArray:
    s = depth_points(folder, cell.get("depth"))
    first, second = (
        network_field(folder, cell, "hidden")
        if kind == "finite"
        else limit_field(folder, made, kind, cell, seeds, s, "hidden")
        for kind in pair.split("-")
    )
    difference = first.drop_vars(["layer", "s"], errors="ignore") - second
    rows = [d for d in ("sample", "token", "coordinate") if d in difference.dims]
    found = (difference.astype(np.float64) ** 2).mean(rows, skipna=False) ** 0.5
    return found.assign_coords(s.coords).swap_dims(depth_point="s")


def _stored_over_depth(table: xr.Dataset, cell: dict[str, int]) -> xr.DataArray:
    # The depths are those of all seeds; a seed that was not compared has none.
    s = table["s"].max("seed").values
    kept = np.flatnonzero(np.isfinite(s))
    coords: dict[str, tuple[str, np.ndarray]] = {"s": ("depth_point", s[kept])}
    if "depth" in cell:
        coords["layer"] = ("depth_point", np.rint(s[kept] * cell["depth"]).astype(int))
    found = table["hidden_rms_at"].drop_vars("s").isel(depth_point=kept)
    return found.assign_coords(coords).swap_dims(depth_point="s")


def _one_shape(folder: Folder, data: xr.Dataset, cell: dict[str, int]) -> xr.Dataset:
    """Select one shape of a dataset that has the dimensions of some sizes."""
    if folder.is_grid:
        return data.sel(cell)
    place = next(
        k
        for k, shape in enumerate(folder.shapes)
        if all(getattr(shape, name) == size for name, size in cell.items())
    )
    return data.isel(shape=place, drop=True)


def rms(data: xr.Dataset, name: str, by: Sequence[str]) -> xr.DataArray:
    """Root mean square of a distance over all cells that ended well, but along some dimensions.

    Parameters
    ----------
    data : Dataset
        The distances of a pair, with ``status``.
    name : str
        The distance.
    by : sequence of str
        What stays: dimensions, or one size of a dimension ``shape``.

    Raises
    ------
    InputError
        If several sizes of a dimension ``shape`` are to stay.
    """
    square = data[name].where(data["status"] == OK) ** 2
    levels = [size for size in by if size in SIZES and size not in square.dims]
    order = [name for name in by if name in square.dims or name in levels]
    if not levels or "shape" not in square.dims:
        rest = [d for d in square.dims if d not in ("step", *by)]
        return square.mean(rest).transpose(*(d for d in order if d in square.dims), ...) ** 0.5
    if len(levels) > 1:
        raise InputError(
            f"by: got {', '.join(by)}; allowed where the shapes are no grid: shape, or one of "
            f"{', '.join(SIZES)}"
        )
    (level,) = levels
    labels = square[level].values
    flat = square.drop_vars(["shape", *SIZES, "parameters"], errors="ignore")
    groups = flat.assign_coords({level: ("shape", labels)}).groupby(level)
    rest = [d for d in square.dims if d not in ("step", *by)]
    found: xr.DataArray = groups.mean(rest).transpose(*order, ...) ** 0.5
    return found
