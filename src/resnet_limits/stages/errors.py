"""Stage ``errors``: the distances of all cells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.config import Experiment
from resnet_limits.errors.distances import (
    BY_DEPTH,
    COMPARED,
    VARIABLES,
    finite_distances,
    limit_distances,
    prepare,
)
from resnet_limits.kept import depth_layers
from resnet_limits.kinds import CELL_KEYS, NOT_RUN, SIZES, Shape
from resnet_limits.problem import Problem, embedding_rows, make_problem
from resnet_limits.work import block_weights, branches_of

logger = logging.getLogger(__name__)

OpenStore = Callable[[str, dict[str, int]], xr.Dataset]
"""Opens the store of a kind and cell, such as ``("wide", {"depth": 8, "embed_dim": 32})``."""

READ = {
    "dmft": COMPARED,
    "mean_ode": (*COMPARED, "status"),
    "wide": (*COMPARED, "status"),
    "finite": ("output", "hidden", "status", "diverged_step"),
}
"""Variables of each kind of store that are read."""

_LIMIT_DEPTH_POINTS = 17
# Small limits are kept in memory, because many networks are compared with each.
_KEPT_BYTES = 64 * 2**20
_KEPT_STORES = 8


def errors(
    experiment: Experiment, open_store: OpenStore, made: Problem | None = None
) -> dict[str, xr.Dataset]:
    """Measure the distances of all pairs that the experiment compares.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    open_store : callable
        Gives the dataset of a kind and its cell; it is asked for what the pairs need.
    made : Problem, optional
        The problem, where it was made before; else it is made here.

    Returns
    -------
    dict of str to Dataset
        For each pair its cells, sorted by depth, width, embedding dimension and seed, with 0 for a
        size that the pair does not depend on. Every cell of the experiment is there: a network
        that diverged or was not run has a status and NaN from there on.
    """
    stores = _Stores(experiment, open_store, made)
    found: dict[str, list[Compared]] = {pair: [] for pair in experiment.pairs}
    for pair, sizes, distances in chain(_finite_cells(stores), _limit_cells(stores)):
        seeds = experiment.cell_seeds(**{name: size for name, size in sizes.items() if size})
        found[pair].append((sizes, seeds, distances))
    return {pair: _with_weights(experiment, _table(parts)) for pair, parts in found.items()}


# --- stores ---------------------------------------------------------------------------------------


class _Stores:
    """What the comparison reads, each limit and table of embedding rows once in a while."""

    def __init__(self, experiment: Experiment, open_store: OpenStore, made: Problem | None) -> None:
        self.experiment = experiment
        self.open_store = open_store
        self.opened = lru_cache(maxsize=_KEPT_STORES)(self._opened)
        self.rows = lru_cache(maxsize=1)(self._rows)
        self.prepared = lru_cache(maxsize=_KEPT_STORES)(self._prepared)
        self._problem = made

    def limit(self, kind: str, **sizes: int) -> xr.Dataset:
        """Open a limit; sizes that it does not depend on are ignored."""
        return self.opened(kind, *(sizes[name] for name in CELL_KEYS[kind]))

    def reference(self, kind: str, seeds: tuple[int, ...], **sizes: int) -> xr.Dataset:
        """Open a limit that networks are compared with."""
        # Standard errors depend on the embedding, also where the limit itself does not.
        keys = dict.fromkeys((*CELL_KEYS[kind], "embed_dim"))
        return self.prepared(kind, seeds, *((name, sizes[name]) for name in keys))

    def _opened(self, kind: str, *sizes: int) -> xr.Dataset:
        cell = dict(zip(CELL_KEYS[kind], sizes, strict=True))
        dataset = self.open_store(kind, cell)[list(READ[kind])]
        return dataset.load() if dataset.nbytes <= _KEPT_BYTES else dataset

    def _prepared(self, kind: str, seeds: tuple[int, ...], *sizes: tuple[str, int]) -> xr.Dataset:
        named = dict(sizes)
        return prepare(self.limit(kind, **named), seeds, self.rows(named["embed_dim"], seeds))

    def _rows(self, embed_dim: int, seeds: tuple[int, ...]) -> NDArray[np.float64]:
        """Embedding rows, shape (seeds, D, r)."""
        if self._problem is None:
            self._problem = make_problem(self.experiment)
        root = self.experiment.seed
        return np.stack([embedding_rows(self._problem, root, seed, embed_dim) for seed in seeds])


def _seeds_of(dataset: xr.Dataset) -> tuple[int, ...]:
    return tuple(int(seed) for seed in dataset["seed"].values)


Found = tuple[str, dict[str, int], xr.Dataset]


def _finite_cells(stores: _Stores) -> Iterator[Found]:
    """Compare the networks of every shape with all limits at once."""
    experiment = stores.experiment
    kinds = [pair.partition("-")[2] for pair in experiment.pairs if pair.startswith("finite-")]
    if not kinds:
        return
    # Shapes of one embedding dimension one after the other: they share rows and limits.
    shapes = sorted(experiment.shapes, key=lambda shape: (shape.embed_dim, *shape))
    for number, shape in enumerate(shapes, start=1):
        finite = stores.open_store("finite", shape._asdict())
        seeds, sizes = _seeds_of(finite), shape._asdict()
        limits = {kind: stores.reference(kind, seeds, **sizes) for kind in kinds}
        found = finite_distances(finite, limits, stores.rows(shape.embed_dim, seeds))
        logger.info("distances of L%d_M%d_D%d: %d of %d shapes", *shape, number, len(shapes))
        for kind in kinds:
            yield f"finite-{kind}", sizes, found[kind]


def _limit_cells(stores: _Stores) -> Iterator[Found]:
    """Compare limits with each other."""
    experiment = stores.experiment
    if "wide-mean_ode" in experiment.pairs:
        cells = sorted(experiment.wide_cells, key=lambda cell: (cell[1], cell[0]))
        for number, (depth, embed_dim) in enumerate(cells, start=1):
            wide = stores.limit("wide", depth=depth, embed_dim=embed_dim)
            mean_ode = stores.limit("mean_ode", embed_dim=embed_dim)
            s = np.array(depth_layers(experiment, depth)) / depth
            rows = stores.rows(embed_dim, _seeds_of(wide))
            found = limit_distances(wide, mean_ode, rows, s)
            logger.info("distances of wide L%d_D%d: %d of %d", depth, embed_dim, number, len(cells))
            yield "wide-mean_ode", {"depth": depth, "width": 0, "embed_dim": embed_dim}, found
    if "mean_ode-dmft" in experiment.pairs:
        points = experiment.save.depth_points
        s = np.linspace(0.0, 1.0, _LIMIT_DEPTH_POINTS if points == "all" else points)
        for embed_dim in experiment.embed_dims:
            mean_ode = stores.limit("mean_ode", embed_dim=embed_dim)
            rows = stores.rows(embed_dim, _seeds_of(mean_ode))
            found = limit_distances(mean_ode, stores.limit("dmft"), rows, s)
            logger.info("distances of mean_ode D%d", embed_dim)
            yield "mean_ode-dmft", {"depth": 0, "width": 0, "embed_dim": embed_dim}, found


# --- tables ---------------------------------------------------------------------------------------


Compared = tuple[Mapping[str, int], Sequence[int], xr.Dataset]
"""Sizes, the seeds that are wanted, and distances of those that are there."""


def _table(found: Sequence[Compared]) -> xr.Dataset:
    """Turn comparisons into cells over their common steps, sorted by size and seed.

    Seeds that a comparison lacks were not run; depths that it lacks are NaN, in ``s`` too.
    """
    steps = reduce(np.intersect1d, (distances["step"].values for _, _, distances in found))
    points = max(distances.sizes["depth_point"] for _, _, distances in found)
    cells = {
        name: np.concatenate([np.full(len(seeds), sizes[name]) for sizes, seeds, _ in found])
        for name in SIZES
    }
    cells["seed"] = np.concatenate([np.array(seeds) for _, seeds, _ in found])
    order = np.lexsort([cells[name] for name in ("seed", *reversed(SIZES))])
    rank = np.argsort(order)
    dims = {
        **dict.fromkeys(VARIABLES, ("cell", "step")),
        BY_DEPTH: ("cell", "step", "depth_point"),
        "s": ("cell", "depth_point"),
    }
    length = {"cell": len(order), "step": len(steps), "depth_point": points}
    table = {
        name: np.full([length[dim] for dim in of_name], np.nan) for name, of_name in dims.items()
    }
    status = np.full(len(order), NOT_RUN, np.int8)
    start = 0
    for _, seeds, distances in found:
        place = {int(seed): k for k, seed in enumerate(distances.variables["seed"].values)}
        here = [k for k, seed in enumerate(seeds) if seed in place]
        there = [place[seeds[k]] for k in here]
        kept = np.isin(distances.variables["step"].values, steps)
        rows = rank[start : start + len(seeds)]
        start += len(seeds)
        depths = distances.sizes["depth_point"]
        for name in VARIABLES:
            table[name][rows[here]] = distances.variables[name].values[there][:, kept]
        table[BY_DEPTH][rows[here], :, :depths] = distances.variables[BY_DEPTH].values[there][
            :, kept
        ]
        table["s"][rows, :depths] = distances.variables["s"].values
        status[rows[here]] = distances.variables["status"].values[there]
    parameters = np.prod([cells[name] for name in SIZES], axis=0, dtype=float)
    return xr.Dataset(
        {
            **{name: (dims[name], table[name]) for name in (*VARIABLES, BY_DEPTH)},
            "status": ("cell", status),
        },
        {
            "step": steps,
            **{name: ("cell", values[order]) for name, values in cells.items()},
            "parameters": ("cell", parameters[order]),
            "s": (dims["s"], table["s"]),
        },
    )


def _with_weights(experiment: Experiment, table: xr.Dataset) -> xr.Dataset:
    """Add how many weights the branches of each network have, beside P = L M D."""
    branches = branches_of(experiment, None)
    shapes = (
        Shape(*map(int, sizes))
        for sizes in zip(*(table[name].values for name in SIZES), strict=True)
    )
    weights = [float(block_weights(shape, branches)) if all(shape) else 0.0 for shape in shapes]
    return table.assign_coords(weights=("cell", np.array(weights)))
