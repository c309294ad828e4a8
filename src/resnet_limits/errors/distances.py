"""Distances between networks and limits, and between limits.

Every function compares all seeds and steps of one cell. Fields of networks that are in memory are
compared as they are; lazy ones block by block through Dask: each block of a store is read once and
compared with all limits at once, so that memory is bounded by the blocks, however large a cell is.
Differences between limits are linear in the embedding rows Phi, so that their mean squares follow
from the Gram matrix alone: the mean over coordinates of (Phi dc)^2 is dc^T G dc with
G = Phi^T Phi / D.

Arrays have their axes in one order: seed, step, replicate, samples (and tokens), node, and what is
left. The axis of seeds has length one where nothing depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits import fields
from resnet_limits.kinds import DIVERGED, OK

if TYPE_CHECKING:
    import dask.array as da

Array = NDArray[np.float64]

VARIABLES = (
    "hidden_rms",
    "hidden_max_mean_abs",
    "output_rms",
    "hidden_rms_stderr",
    "output_rms_stderr",
)
"""Distances and their standard errors, each with dimensions (seed, step)."""

BY_DEPTH = "hidden_rms_at"
"""RMS of the difference of h at each depth, with dimensions (seed, step, depth_point)."""

MOST_DEPTHS = 65
"""Most depths of each cell at which `BY_DEPTH` is given, evenly spread over those compared."""

COMPARED = (
    *("output", "output_replicate", "hidden_coef", "hidden_coef_replicate"),
    *("output_depth_change", "hidden_coef_depth_change", "rounding"),
)
"""Variables of a limit store that are read."""

_AXES = (
    *("seed", "step", "replicate", "depth_point", "sample", "token", "node"),
    *("target", "coordinate", "embedding_direction"),
)
_FIELDS = 4
"""Of what is compared, the fields and their replicates come first."""
_UNCERTAIN = (*COMPARED[1:_FIELDS:2], *COMPARED[_FIELDS:])
_STDERR = ("hidden_rms_stderr", "output_rms_stderr")
_ENDING = ("status", "diverged_step")
_GRAPH_BLOCKS = 128
_WORK_ELEMENTS = 1 << 18
"""Elements of one temporary array inside a block: small enough for a core's cache."""
_COEF_ELEMENTS = 1 << 22
"""Elements of a limit's coefficients at all depths at once: 32 MiB."""
_PIECE_BYTES = 64 * 2**20
"""Bytes of lazy arrays that are read at once, unless one step alone has more."""


def prepare(limit: xr.Dataset, seeds: Sequence[int], embedding: Array) -> xr.Dataset:
    """Make a limit ready to be compared with networks.

    Done once for all shapes that are compared with it.

    Parameters
    ----------
    limit : Dataset
        A limit store, with or without ``seed``.
    seeds : sequence of int
        The networks' seeds.
    embedding : ndarray, shape (seeds, D, r)
        Embedding rows of each of the seeds.

    Returns
    -------
    Dataset
        ``output`` and ``hidden_coef``, for those of the seeds that the limit has, and, computed,
        the RMS standard errors over scramblings, with dimensions (seed, step).

    Raises
    ------
    ValueError
        If the limit has none of the seeds, or the embedding does not fit.
    """
    _check_embedding(embedding, len(seeds))
    wanted = np.asarray(seeds)
    seeded = "seed" in limit.dims
    kept = np.isin(wanted, limit["seed"].values) if seeded else np.full(len(wanted), True)
    if not kept.any():
        raise ValueError("the limit and the networks have no seed in common")
    names, gram = wanted[kept], _gram(embedding[kept])
    place = _Place(_positions(limit, "seed", names), slice(None))
    arrays = [_array(limit, name, place) for name in _UNCERTAIN]
    stderr = _joined([_standard_errors(gram, *piece) for piece in _pieces(arrays)])
    kept_fields = limit[["output", "hidden_coef"]]
    return (
        (kept_fields.sel(seed=names) if seeded else kept_fields)
        .assign({name: (("seed", "step"), values) for name, values in stderr.items()})
        .assign(status=("seed", _status(limit, place, len(names))))
        .assign_coords(seed=names)
    )


def finite_distances(
    finite: xr.Dataset,
    limits: Mapping[str, xr.Dataset],
    embedding: Array,
    tell: Callable[[int], None] = lambda _: None,
) -> dict[str, xr.Dataset]:
    """Compare finite networks of one shape with limits.

    Parameters
    ----------
    finite : Dataset
        A finite store.
    limits : mapping of str to Dataset
        What `prepare` returned, by any name; all are compared in one pass over the store.
    embedding : ndarray, shape (seeds, D, r)
        Embedding rows of each of the finite store's seeds, in its order.
    tell : callable
        Called with the bytes of hidden states that were compared since it was called last.

    Returns
    -------
    dict of str to Dataset
        For each limit the `VARIABLES` with dimensions (seed, step), `BY_DEPTH` at the depths
        ``s(depth_point)``, and ``status(seed)``, over the seeds and steps that all stores have.
        From the step at which a seed diverged on, and for a seed that was not run, distances are
        NaN. Standard errors are the limit's.

    Raises
    ------
    ValueError
        If the stores share no seed or no step, or the embedding does not fit.
    """
    _check_embedding(embedding, finite.sizes["seed"], finite.sizes["coordinate"])
    (own, *places), seeds, steps = _common([finite, *limits.values()])
    points = finite.variables["s"].values
    operands = []
    for limit, place in zip(limits.values(), places, strict=True):
        operands += [
            fields.interpolation_matrix(limit.variables["node"].values, points),
            _array(limit, "hidden_coef", place),
        ]
    hidden = _array(finite, "hidden", own)
    if isinstance(hidden, np.ndarray):
        rows, parts = embedding[own.seeds], []
        for states, *coefs in _pieces([hidden, *operands[1::2]]):
            operands[1::2] = coefs
            parts.append(_block_sums(states, rows, *operands))
        sums = np.concatenate(parts, axis=2)
        tell(hidden.nbytes)
    else:
        sums = _lazy_sums(hidden, embedding[own.seeds], *operands, tell=tell)
    means = sums.reshape(sums.shape[:4]) / math.prod(hidden.shape[3:])
    outputs = [_array(finite, "output", own)]
    outputs += [
        _array(limit, "output", at) for limit, at in zip(limits.values(), places, strict=True)
    ]
    apart = [
        [_rms(output - reference) for reference in references]
        for output, *references in _pieces(outputs)
    ]
    status, first = (finite.variables[name].values[own.seeds] for name in _ENDING)
    before = (status == DIVERGED)[:, None] & (steps < first[:, None])
    valid = (status == OK)[:, None] | before
    last = int(np.argmax(points))
    shown = _spread(len(points))
    tables = {}
    for k, (name, limit) in enumerate(limits.items()):
        stderr = {v: np.asarray(_array(limit, v, places[k])) for v in _STDERR}
        distances = {
            "hidden_rms": np.sqrt(means[2 * k + 1, :, :, last]),
            "hidden_max_mean_abs": means[2 * k].max(axis=-1),
            "output_rms": np.concatenate([of_piece[k] for of_piece in apart], axis=1),
            **stderr,
        }
        ending = np.where(status == OK, _status(limit, places[k], len(seeds)), status)
        sound = {v: np.where(valid, values, np.nan) for v, values in distances.items()}
        at = np.where(valid[..., None], np.sqrt(means[2 * k + 1][..., shown]), np.nan)
        tables[name] = _table({**sound, BY_DEPTH: at}, ending, seeds, steps, points[shown])
    return tables


def limit_distances(
    first: xr.Dataset, second: xr.Dataset, embedding: Array, s: Sequence[float] | Array
) -> xr.Dataset:
    """Compare two limits.

    Parameters
    ----------
    first, second : Dataset
        Limit stores; at least one with ``seed``.
    embedding : ndarray, shape (seeds, D, r)
        Embedding rows of each of the seeds of the store that has seeds (the first, if both have).
    s : array_like, shape (points,)
        Depths that are compared, the last of them 1: ``hidden_max_mean_abs`` is the maximum over
        them.

    Returns
    -------
    Dataset
        The `VARIABLES` with dimensions (seed, step), `BY_DEPTH` at the depths ``s(depth_point)``,
        and ``status(seed)``, over the seeds and steps that both stores have. The standard errors
        are those of the difference: scramblings are paired, as both limits were solved with the
        same quadrature points.

    Raises
    ------
    ValueError
        If the stores share no seed or no step, or numbers of scramblings or the embedding do not
        fit.
    """
    seeded = first if "seed" in first.dims else second
    if "seed" not in seeded.dims:
        raise ValueError("neither limit has seeds: there are no networks they could describe")
    _check_embedding(embedding, seeded.sizes["seed"])
    (one, two), seeds, steps = _common([first, second])
    rows = embedding[(one if seeded is first else two).seeds]
    gram, depths = _gram(rows), np.asarray(s, float)
    arrays = [
        _array(limit, name, place)
        for limit, place in ((first, one), (second, two))
        for name in COMPARED
    ]
    nodes = [limit.variables["node"].values for limit in (first, second)]
    parts = [
        _differences(piece[: len(COMPARED)], piece[len(COMPARED) :], nodes, depths, rows, gram)
        for piece in _pieces(arrays)
    ]
    endings = [_status(limit, at, len(seeds)) for limit, at in ((first, one), (second, two))]
    ending = np.where(endings[0] == OK, endings[1], endings[0])
    return _table(_joined(parts), ending, seeds, steps, depths[_spread(len(depths))])


def _differences(
    one: Sequence[Array],
    two: Sequence[Array],
    nodes: Sequence[Array],
    depths: Array,
    rows: Array,
    gram: Array,
) -> dict[str, Array]:
    """Measure the difference of two limits, each given by what is `COMPARED` of it."""
    replicates = [len(limit[1][0, 0]) for limit in (one, two)]
    if replicates[0] != replicates[1]:
        raise ValueError(
            f"limits solved with {replicates[0]} and {replicates[1]} scramblings cannot be paired"
        )

    def difference(at: Array) -> Array:
        """Coordinates of h at some depths, shape (seeds, steps, samples, [tokens,] depths, r)."""
        first, second = (fields.interpolation_matrix(known, at) for known in nodes)
        return np.asarray(first @ one[2] - second @ two[2])

    last = np.sqrt(_mean_square(difference(np.ones(1)), gram))
    lines = math.prod(one[2].shape[1:-2]) * len(rows) * rows.shape[-1]
    of_blocks = [
        _mean_by_depth(np.moveaxis(difference(depths[block]), -2, 2), rows)
        for block in _blocks(len(depths), _COEF_ELEMENTS // lines)
    ]
    absolute, at = (np.concatenate(parts, axis=-1) for parts in zip(*of_blocks, strict=True))
    at = np.sqrt(at[..., _spread(len(depths))])
    # The same number as hidden_rms, and not one that differs from it by rounding.
    at[..., -1] = last
    return {
        "hidden_rms": last,
        "hidden_max_mean_abs": absolute.max(axis=-1),
        BY_DEPTH: at,
        "output_rms": _for_seeds(_rms(one[0] - two[0]), gram),
        **_standard_errors(
            gram,
            one[1] - two[1],
            one[3] - two[3],
            # Both depth grids are off in nearly the same way; rounding errors are their own.
            one[4] - two[4],
            one[5] - two[5],
            np.hypot(one[6], two[6]),
        ),
    }


# --- what stores hold -----------------------------------------------------------------------------


class _Place(NamedTuple):
    """Which seeds and steps of a dataset are compared, by position."""

    seeds: Any
    steps: Any


def _check_embedding(embedding: Array, seeds: int, embed_dim: int | None = None) -> None:
    if (
        embedding.ndim != 3
        or len(embedding) != seeds
        or embed_dim not in (None, embedding.shape[1])
    ):
        wanted = f"({seeds}, {'D' if embed_dim is None else embed_dim}, r)"
        raise ValueError(f"embedding of shape {embedding.shape}: must be {wanted}")


def _common(
    datasets: Sequence[xr.Dataset],
) -> tuple[list[_Place], NDArray[np.int64], NDArray[np.int64]]:
    """Find the common seeds and steps of datasets, in the order of the first that has any.

    Returns
    -------
    places : list of _Place
        For each dataset, where they are.
    seeds, steps : ndarray of int
        What they are.
    """
    names = {}
    for dim in ("seed", "step"):
        found = [ds.variables[dim].values for ds in datasets if dim in ds.variables]
        common = np.logical_and.reduce([np.isin(found[0], values) for values in found])
        if not common.any():
            raise ValueError(f"the stores to compare have no {dim} in common")
        names[dim] = found[0][common]
    places = [_Place(*(_positions(ds, dim, names[dim]) for dim in names)) for ds in datasets]
    return places, names["seed"], names["step"]


def _positions(ds: xr.Dataset, dim: str, wanted: NDArray[np.int64]) -> Any:
    """Index of some names of a dimension; one that takes all, as they are, where that is so."""
    known = ds.variables[dim].values if dim in ds.variables else wanted
    if np.array_equal(known, wanted):
        return slice(None)
    order = np.argsort(known)
    return order[np.searchsorted(known, wanted, sorter=order)]


def _array(ds: xr.Dataset, name: str, place: _Place) -> Any:
    """Take a variable as an array, lazy if it is, with its axes in order."""
    variable = ds.variables[name]
    data = variable.transpose(*(dim for dim in _AXES if dim in variable.dims)).data
    data = data[place.seeds] if "seed" in variable.dims else data[None]
    return data[:, place.steps]


def _pieces(arrays: Sequence[Any]) -> Iterator[list[Array]]:
    """Read arrays: all at once, or some steps after the others if any is lazy."""
    lazy = [array for array in arrays if not isinstance(array, np.ndarray)]
    if not lazy:
        yield list(arrays)
        return
    # Between the chunks of the largest, each of which is read once.
    largest = max(lazy, key=lambda array: array.nbytes)
    per_step = sum(array.nbytes for array in lazy) // largest.shape[1]
    ends = np.cumsum(largest.chunks[1])
    start = 0
    while start < ends[-1]:
        fitting = ends[(ends > start) & (ends - start <= _PIECE_BYTES // max(1, per_step))]
        end = int(fitting[-1] if len(fitting) else ends[ends > start][0])
        yield [np.asarray(array[:, start:end]) for array in arrays]
        start = end


def _joined(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Put the steps of several pieces together."""
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _status(limit: xr.Dataset, place: _Place, seeds: int) -> NDArray[np.int8]:
    if "status" not in limit.variables:
        return np.full(seeds, OK, np.int8)
    return np.asarray(limit.variables["status"].values[place.seeds])


def _spread(points: int) -> NDArray[np.int64]:
    """Choose which of some depths are shown: all, or `MOST_DEPTHS` of them with both ends."""
    return np.round(np.linspace(0, points - 1, min(points, MOST_DEPTHS))).astype(int)


def _table(
    variables: Mapping[str, Array],
    status: NDArray[np.integer],
    seeds: NDArray[np.int64],
    steps: NDArray[np.int64],
    s: Array,
) -> xr.Dataset:
    return xr.Dataset(
        {
            **{name: (("seed", "step"), variables[name]) for name in VARIABLES},
            BY_DEPTH: (("seed", "step", "depth_point"), variables[BY_DEPTH]),
            "status": ("seed", status.astype(np.int8)),
        },
        {"seed": seeds, "step": steps, "s": ("depth_point", s)},
    )


# --- reductions -----------------------------------------------------------------------------------


def _rms(difference: Array) -> Array:
    """Root mean square for each seed and step."""
    return np.sqrt((difference**2).mean(axis=tuple(range(2, difference.ndim))))


def _for_seeds(values: Array, gram: Array) -> Array:
    """Repeat what is the same for all seeds."""
    return np.broadcast_to(values, (len(gram), *values.shape[1:]))


def _gram(rows: Array) -> Array:
    """G = Phi^T Phi / D, shape (seeds, r, r)."""
    return rows.transpose(0, 2, 1) @ rows / rows.shape[1]


def _mean_square(coefs: Array, gram: Array) -> Array:
    """Mean of (Phi c)^2 for each seed and step, as trace of G c c^T."""
    lines = coefs.reshape(*coefs.shape[:2], -1, coefs.shape[-1])
    moments = lines.swapaxes(-1, -2) @ lines / lines.shape[2]
    # Rounding may leave a difference of nothing slightly below zero.
    return np.maximum((moments * gram[:, None]).sum(axis=(-2, -1)), 0.0)


def _standard_errors(
    gram: Array,
    output: Array,
    hidden: Array,
    output_change: Array,
    hidden_change: Array,
    rounding: Array,
) -> dict[str, Array]:
    """RMS standard errors of a limit, or of a difference of limits.

    The root-sum-square of the scatter over scramblings, of what more depth nodes would change, and
    of rounding.
    """
    # A single replicate is an exact cubature, and its deviation from itself is zero.
    share = 1.0 / max(1, hidden.shape[2] - 1)
    squares = _mean_square(hidden - hidden.mean(axis=2, keepdims=True), gram)
    spread = output - output.mean(axis=2, keepdims=True)
    floor = rounding**2
    hidden_square = share * squares + _mean_square(hidden_change, gram) + floor
    output_square = share * _rms(spread) ** 2 + _rms(output_change) ** 2 + floor
    return {
        "hidden_rms_stderr": np.sqrt(hidden_square),
        "output_rms_stderr": _for_seeds(np.sqrt(output_square), gram),
    }


def _mean_by_depth(coefs: Array, embedding: Array) -> tuple[Array, Array]:
    """Mean of |Phi c| and of (Phi c)^2 for each seed, step and depth (axis 2)."""
    seeds, (steps, points) = len(embedding), coefs.shape[1:3]
    coefs = np.broadcast_to(coefs, (seeds, *coefs.shape[1:]))
    means = np.empty((2, seeds, steps, points))
    for seed in range(seeds):
        sums = _line_sums(coefs[seed].reshape(-1, coefs.shape[-1]), embedding[seed])
        for mean, values in zip(means, sums, strict=True):
            mean[seed] = values.reshape(steps, points, -1).mean(axis=-1) / embedding.shape[1]
    return means[0], means[1]


def _line_sums(
    coefs: Array, embedding: Array, hidden: NDArray[np.floating] | None = None
) -> tuple[Array, Array]:
    """Sum |h - H| and (h - H)^2 over coordinates, with H = Phi c, in bounded memory.

    Lines are those of coefficients, shape (lines, r), one for each step, depth and sample, and of
    the states, shape (lines, D), which are zero if left out; Phi has the shape (D, r).
    """
    lines, embed_dim = len(coefs), len(embedding)
    absolute, squared = np.zeros(lines), np.zeros(lines)
    for columns in _blocks(embed_dim, _WORK_ELEMENTS):
        phi = embedding[columns].T
        for block in _blocks(lines, _WORK_ELEMENTS // phi.shape[1]):
            gap = coefs[block] @ phi
            if hidden is not None:
                np.subtract(hidden[block, columns], gap, out=gap)
            squared[block] += np.einsum("ij,ij->i", gap, gap)
            absolute[block] += np.abs(gap, out=gap).sum(axis=1)
    return absolute, squared


def _blocks(size: int, length: int) -> Iterator[slice]:
    length = max(1, length)
    return (slice(start, start + length) for start in range(0, size, length))


# --- fields of networks ---------------------------------------------------------------------------


def _lazy_sums(
    hidden: da.Array,
    embedding: Array,
    *interpolations_and_coefs: Any,
    tell: Callable[[int], None],
) -> Array:
    """Do the same as `_block_sums` for a lazy field, each block of which is read once."""
    found = []
    for steps in _step_groups(hidden):
        operands = list(interpolations_and_coefs)
        operands[1::2] = [coefs[:, steps] for coefs in operands[1::2]]
        found.append(_blockwise_sums(hidden[:, steps], embedding, operands).compute())
        tell(hidden[:, steps].nbytes)
    return np.concatenate(found, axis=2)


def _step_groups(hidden: da.Array) -> list[slice]:
    """Cut the steps between blocks, so that one graph does not describe too many blocks."""
    lengths = hidden.chunks[1]
    others = math.prod(hidden.numblocks) // len(lengths)
    per_group = max(1, _GRAPH_BLOCKS // others)
    ends = np.cumsum(lengths)[per_group - 1 : -1 : per_group]
    bounds = [0, *(int(end) for end in ends), hidden.shape[1]]
    return [slice(*pair) for pair in pairwise(bounds)]


def _blockwise_sums(hidden: da.Array, embedding: Array, operands: Sequence[Any]) -> da.Array:
    """Sum over samples and coordinates for every limit, seed, step and depth, lazily."""
    import dask.array as da

    dims = ["seed", "step", "depth_point", *map(str, range(hidden.ndim - 4)), "coordinate"]
    chunks = dict(zip(dims, hidden.chunks, strict=True))
    order = [d for d in dims if d not in ("depth_point", "coordinate")]
    # Without names these arrays would be hashed.
    rows = da.from_array(embedding, chunks=(chunks["seed"], chunks["coordinate"], -1), name=False)
    arguments: list[object] = [hidden, dims, rows, ("seed", "coordinate", "direction")]
    for k in range(0, len(operands), 2):
        matrix, coefs = operands[k : k + 2]
        shape = tuple(sum(chunks[d]) for d in order)
        if isinstance(coefs, np.ndarray):
            coefs = np.broadcast_to(coefs, (*shape, *coefs.shape[-2:]))
            coefs = da.from_array(coefs, (*(chunks[d] for d in order), -1, -1), name=False)
        else:
            coefs = da.broadcast_to(coefs, (*shape, *coefs.shape[-2:]))
            coefs = coefs.rechunk((*(chunks[d] for d in order), -1, -1))
        node = f"node of {k}"
        weights = da.from_array(matrix, chunks=(chunks["depth_point"], -1), name=False)
        arguments += [weights, ("depth_point", node), coefs, (*order, node, "direction")]
    sums = da.blockwise(
        _block_sums,
        ("sum", *dims),
        *arguments,
        new_axes={"sum": len(operands)},
        # Every block leaves one number for each seed, step and depth.
        adjust_chunks={d: (1,) * len(chunks[d]) for d in dims[3:]},
        concatenate=True,
        align_arrays=False,
        dtype=np.float64,
        meta=np.empty((0,) * (len(dims) + 1)),
    )
    return sums.sum(axis=tuple(range(4, sums.ndim)))


def _block_sums(
    hidden: NDArray[np.floating], embedding: Array, *interpolations_and_coefs: Array
) -> Array:
    """Reduce the hidden field, or one block of it, against all limits.

    Parameters
    ----------
    hidden : ndarray, shape (seeds, steps, points, samples, [tokens,] D)
        h.
    embedding : ndarray, shape (seeds, D, r)
        Embedding rows.
    *interpolations_and_coefs : ndarrays
        For each limit the interpolation in depth (points, nodes) and its coefficients
        (seeds or 1, steps, samples, [tokens,] nodes, r).

    Returns
    -------
    ndarray, shape (2 * limits, seeds, steps, points, 1, [1,] 1)
        For each limit the sum of |h - H| and the sum of (h - H)^2.
    """
    seeds, steps, points = hidden.shape[:3]
    limits = len(interpolations_and_coefs) // 2
    sums = np.empty((2 * limits, seeds, steps, points))
    for seed in range(seeds):
        for k in range(limits):
            matrix, coefs = interpolations_and_coefs[2 * k : 2 * k + 2]
            # As in the store, with nodes before rows: one product for all rows of a step.
            at_nodes = np.moveaxis(coefs[min(seed, len(coefs) - 1)], -2, 1)
            per_point = math.prod(at_nodes.shape[2:])
            for some in _blocks(steps, _COEF_ELEMENTS // (points * per_point)):
                flat = at_nodes[some].reshape(-1, at_nodes.shape[1], per_point)
                for depths in _blocks(points, _COEF_ELEMENTS // (len(flat) * per_point)):
                    lines = hidden[seed, some, depths].reshape(-1, hidden.shape[-1])
                    at = (matrix[depths] @ flat).reshape(len(lines), -1)
                    for which, values in enumerate(_line_sums(at, embedding[seed], lines)):
                        place = sums[2 * k + which, seed, some, depths]
                        place[:] = values.reshape(*place.shape, -1).sum(axis=-1)
    return sums.reshape(*sums.shape, *(1,) * (hidden.ndim - 3))
