"""Stage ``errors``: the distances of all cells."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from resnet_limits.config import Experiment
from resnet_limits.errors.distances import (
    BY_DEPTH,
    COMPARED,
    VARIABLES,
    finite_distances,
    limit_distances,
    prepare,
)
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.kinds import CELL_KEYS, NOT_RUN, SIZES, Shape
from resnet_limits.problem import Problem, embedding_rows, make_problem
from resnet_limits.work import block_weights, branches_of, saved_bytes

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

Tell = Callable[[str, int, int, str], None]
"""Hears which cell is being compared, its number, of how many, and how far it is in words."""

_LIMIT_DEPTH_POINTS = 17
_TELL_SECONDS = 10.0
# Of a cell's embedding rows: more seeds are compared some after the others.
_ROWS_BYTES = 256 * 2**20
# Small limits are kept in memory, because many networks are compared with each.
_KEPT_BYTES = 64 * 2**20
_KEPT_STORES = 8


def errors(
    experiment: Experiment,
    open_store: OpenStore,
    made: Problem | None = None,
    tell: Tell | None = None,
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
    tell : callable, optional
        Told every now and then how far the comparison is, as the log is.

    Returns
    -------
    dict of str to Dataset
        For each pair its cells, sorted by depth, width, embedding dimension and seed, with 0 for a
        size that the pair does not depend on. Every cell of the experiment is there: a network
        that diverged or was not run has a status and NaN from there on.
    """
    stores = _Stores(experiment, open_store, made)
    progress = _progress(stores, tell)
    found: dict[str, list[Compared]] = {pair: [] for pair in experiment.pairs}
    # Blocks share the cores; matrix products with threads of their own would wait for each other,
    # and on a busy machine for much longer than they take.
    with threadpool_limits(limits=1, user_api="blas"):
        cells = chain(_finite_cells(stores, progress), _limit_cells(stores, progress))
        for pair, sizes, distances in cells:
            seeds = experiment.cell_seeds(**{name: size for name, size in sizes.items() if size})
            found[pair].append((sizes, seeds, distances))
    # What a table is made of goes when it is made.
    return {pair: _with_weights(experiment, _table(found.pop(pair))) for pair in experiment.pairs}


class _Progress:
    """How far the comparison is: cells, bytes of hidden states, and when the networks are done."""

    def __init__(self, total: int, all_bytes: int, tell: Tell | None) -> None:
        self._total, self._all_bytes, self._tell = total, all_bytes, tell
        self._number = self._bytes = 0
        self._name = ""
        self._started = time.monotonic()
        self._said = -math.inf

    def at(self, name: str) -> None:
        """Begin a cell."""
        self._number += 1
        self._name = name
        self._say(always=self._number == self._total)

    def read(self, more: int) -> None:
        """Count bytes of hidden states that were compared."""
        self._bytes += more
        self._say()

    def _say(self, *, always: bool = False) -> None:
        now = time.monotonic()
        if now - self._said < _TELL_SECONDS and not always:
            return
        self._said = now
        note = ""
        if self._all_bytes:
            note = f"{self._bytes / 1e9:.2f} of {self._all_bytes / 1e9:.2f} GB read"
        if 0 < self._bytes < self._all_bytes:
            left = (now - self._started) * (self._all_bytes / self._bytes - 1)
            note += (
                f", networks done at {time.strftime('%H:%M', time.localtime(time.time() + left))}"
            )
        logger.info("distances of %s, %d of %d; %s", self._name, self._number, self._total, note)
        if self._tell is not None:
            self._tell(self._name, self._number, self._total, note)


def _progress(stores: _Stores, tell: Tell | None) -> _Progress:
    """Count what there is to compare."""
    experiment = stores.experiment
    total = all_bytes = 0
    if any(pair.startswith("finite-") for pair in experiment.pairs):
        total += len(experiment.shapes)
        item, steps = np.dtype(experiment.save.dtype).itemsize, saved_steps(experiment)
        for shape in experiment.shapes:
            layers, seeds = depth_layers(experiment, shape.depth), experiment.seeds_of(shape)
            # Half of what is kept: the backward states are not read.
            saved = saved_bytes(shape, stores.problem.rows, steps, layers, len(seeds), item)
            all_bytes += saved // 2
    total += len(experiment.wide_cells) * ("wide-mean_ode" in experiment.pairs)
    total += len(experiment.embed_dims) * ("mean_ode-dmft" in experiment.pairs)
    return _Progress(total, all_bytes, tell)


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

    @property
    def problem(self) -> Problem:
        """The data, made when they are first asked for."""
        if self._problem is None:
            self._problem = make_problem(self.experiment)
        return self._problem

    def parts(
        self, dataset: xr.Dataset, embed_dim: int, others: Sequence[xr.Dataset]
    ) -> list[xr.Dataset]:
        """Cut the seeds of a dataset so that the embedding rows of each part fit in memory.

        Parts that share no seed with one of the others are left out, unless all are.
        """
        seeds = dataset.sizes["seed"]
        fitting = max(1, _ROWS_BYTES // (8 * embed_dim * self.problem.embedding_dims))
        if seeds <= fitting:
            return [dataset]
        # Between the chunks of what is largest, each of which is read once.
        largest = max(dataset.variables.values(), key=lambda variable: variable.nbytes)
        chunk = largest.chunksizes.get("seed", (1,))[0]
        step = max(chunk, fitting - fitting % chunk)
        found = [dataset.isel(seed=slice(k, k + step)) for k in range(0, seeds, step)]
        known = [set(_seeds_of(other)) for other in others if "seed" in other.dims]
        shared = [part for part in found if all(own.intersection(_seeds_of(part)) for own in known)]
        return shared or [dataset]

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
        root, problem = self.experiment.seed, self.problem
        return np.stack([embedding_rows(problem, root, seed, embed_dim) for seed in seeds])


def _seeds_of(dataset: xr.Dataset) -> tuple[int, ...]:
    return tuple(int(seed) for seed in dataset["seed"].values)


Found = tuple[str, dict[str, int], xr.Dataset]


def _finite_cells(stores: _Stores, progress: _Progress) -> Iterator[Found]:
    """Compare the networks of every shape with all limits at once."""
    experiment = stores.experiment
    kinds = [pair.partition("-")[2] for pair in experiment.pairs if pair.startswith("finite-")]
    if not kinds:
        return
    # Shapes of one embedding dimension one after the other: they share rows and limits.
    for shape in sorted(experiment.shapes, key=lambda shape: (shape.embed_dim, *shape)):
        sizes = shape._asdict()
        finite = stores.open_store("finite", sizes)
        progress.at("L{}_M{}_D{}".format(*shape))
        parts = []
        limits = [stores.limit(kind, **sizes) for kind in kinds]
        for part in stores.parts(finite, shape.embed_dim, limits):
            seeds = _seeds_of(part)
            references = {kind: stores.reference(kind, seeds, **sizes) for kind in kinds}
            rows = stores.rows(shape.embed_dim, seeds)
            parts.append(finite_distances(part, references, rows, progress.read))
        for kind in kinds:
            yield f"finite-{kind}", sizes, _one([part[kind] for part in parts])


def _limit_cells(stores: _Stores, progress: _Progress) -> Iterator[Found]:
    """Compare limits with each other."""
    experiment = stores.experiment

    def compared(
        first: xr.Dataset, second: xr.Dataset, embed_dim: int, s: NDArray[np.float64]
    ) -> xr.Dataset:
        return _one(
            [
                limit_distances(part, second, stores.rows(embed_dim, _seeds_of(part)), s)
                for part in stores.parts(first, embed_dim, [second])
            ]
        )

    if "wide-mean_ode" in experiment.pairs:
        for depth, embed_dim in sorted(experiment.wide_cells, key=lambda cell: (cell[1], cell[0])):
            wide = stores.limit("wide", depth=depth, embed_dim=embed_dim)
            mean_ode = stores.limit("mean_ode", embed_dim=embed_dim)
            s = np.array(depth_layers(experiment, depth)) / depth
            progress.at(f"wide L{depth}_D{embed_dim}")
            sizes = {"depth": depth, "width": 0, "embed_dim": embed_dim}
            yield "wide-mean_ode", sizes, compared(wide, mean_ode, embed_dim, s)
    if "mean_ode-dmft" in experiment.pairs:
        points = experiment.save.depth_points
        s = np.linspace(0.0, 1.0, _LIMIT_DEPTH_POINTS if points == "all" else points)
        for embed_dim in experiment.embed_dims:
            mean_ode, dmft = stores.limit("mean_ode", embed_dim=embed_dim), stores.limit("dmft")
            progress.at(f"mean_ode D{embed_dim}")
            sizes = {"depth": 0, "width": 0, "embed_dim": embed_dim}
            yield "mean_ode-dmft", sizes, compared(mean_ode, dmft, embed_dim, s)


def _one(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put the seeds of several comparisons together."""
    if len(parts) == 1:
        return parts[0]
    return xr.concat(parts, "seed", data_vars="minimal", coords="minimal", compat="override")


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
