"""Distances between networks and limits, and between limits.

Every function compares all seeds and steps of one cell. Networks are read block by block through
Dask: each block of a store is read once and compared with all limits at once, so that memory is
bounded by the blocks. Differences between limits are linear in the embedding rows Phi, so that
their mean squares follow from the Gram matrix alone: the mean over coordinates of (Phi dc)^2 is
dc^T G dc with G = Phi^T Phi / D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from resnet_limits import fields

Array = NDArray[np.float64]

OK, DIVERGED, NOT_RUN = 0, 1, 2
"""Values of ``status``."""

VARIABLES = (
    "hidden_rms",
    "hidden_max_mean_abs",
    "output_rms",
    "hidden_rms_stderr",
    "output_rms_stderr",
)
"""Distances and their standard errors, each with dimensions (seed, step)."""

COMPARED = ("output", "output_replicate", "hidden_coef", "hidden_coef_replicate")
"""Variables of a limit store that are read."""

_FIELD = ("seed", "step", "depth_point", "sample", "token", "coordinate")
_GRAPH_BLOCKS = 128
_WORK_ELEMENTS = 1 << 18
"""Elements of one temporary array inside a block: small enough for a core's cache."""


def compared(limit: xr.Dataset) -> xr.Dataset:
    """Take the variables of a limit that comparisons read; of one with seeds also the status."""
    return limit[[*COMPARED, *(["status"] if "seed" in limit.dims else [])]]


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
        ``output`` and ``hidden_coef`` for those of the seeds that the limit has, and, computed,
        the RMS standard errors over scramblings, with dimensions (seed, step).

    Raises
    ------
    ValueError
        If the limit has none of the seeds, or the embedding does not fit.
    """
    _check_embedding(embedding, len(seeds))
    wanted = np.asarray(seeds)
    seeded = _with_seeds(limit, wanted)
    common = np.isin(wanted, seeded["seed"].values)
    if not common.any():
        raise ValueError("the limit and the networks have no seed in common")
    seeded = seeded.sel(seed=wanted[common])
    stderr = _compute(_standard_errors(seeded, None, _gram(embedding[common], wanted[common])))
    return seeded[["output", "hidden_coef", "status"]].assign(stderr)


def finite_distances(
    finite: xr.Dataset, limits: Mapping[str, xr.Dataset], embedding: Array
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

    Returns
    -------
    dict of str to Dataset
        For each limit the `VARIABLES` with dimensions (seed, step), and ``status(seed)``, over the
        seeds and steps that all stores have. From the step at which a seed diverged on, and for
        a seed that was not run, distances are NaN. Standard errors are the limit's.

    Raises
    ------
    ValueError
        If the stores share no seed or no step, or the embedding does not fit.
    """
    _check_embedding(embedding, finite.sizes["seed"], finite.sizes["coordinate"])
    (finite, *aligned), kept = _aligned([finite, *limits.values()])
    parts: dict[str, list[xr.Dataset]] = {name: [] for name in limits}
    for steps in _step_groups(finite["hidden"]):
        part = finite.isel(step=steps)
        by_name = {
            name: limit.isel(step=steps) for name, limit in zip(limits, aligned, strict=True)
        }
        lazy = _field_errors(part, by_name, embedding[kept])
        for name, limit in by_name.items():
            lazy[name]["output_rms"] = _rms(part["output"] - limit["output"])
            lazy[name] |= {v: limit[v] for v in VARIABLES if v in limit}
        computed = _compute(lazy)
        for name, variables in computed.items():
            parts[name].append(_table(variables))
    valid = _valid(finite)
    return {
        name: xr.concat(parts[name], "step").where(valid).assign(status=_ending(finite, limit))
        for name, limit in zip(limits, aligned, strict=True)
    }


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
        Depths over which ``hidden_max_mean_abs`` is maximal.

    Returns
    -------
    Dataset
        The `VARIABLES` with dimensions (seed, step), and ``status(seed)``, over the seeds and steps
        that both stores have. The standard errors are those of the difference: scramblings are
        paired, as both limits were solved with the same quadrature points.

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
    seeds = seeded["seed"].values
    (one, two), kept = _aligned([_with_seeds(limit, seeds) for limit in (first, second)])
    rows = embedding[kept]
    gram = _gram(rows, seeds[kept])

    def difference(depths: Array) -> xr.DataArray:
        return fields.coefficients(one, depths) - fields.coefficients(two, depths)

    end = difference(np.ones(1)).isel(s=0, drop=True)
    variables = {
        "hidden_rms": _root(_mean_square(end, gram)),
        "hidden_max_mean_abs": _max_mean_abs(difference(np.asarray(s, float)), rows),
        "output_rms": _rms(one["output"] - two["output"]),
        **_standard_errors(one, two, gram),
    }
    return _table(_compute(variables)).assign(status=_ending(one, two))


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _compute(lazy: dict[str, Any]) -> dict[str, Any]:
    """Compute everything in a dictionary at once."""
    # Dask's threads share the cores; matrix products with threads of their own would wait for
    # each other, and on a busy machine for much longer than they take.
    with _libraries().limit(limits=1, user_api="blas"):
        (computed,) = dask.compute(lazy)
    return dict(computed)


def _table(variables: Mapping[str, xr.DataArray]) -> xr.Dataset:
    return xr.Dataset({name: variables[name] for name in VARIABLES}).transpose("seed", "step")


# --- alignment ------------------------------------------------------------------------------------


def _check_embedding(embedding: Array, seeds: int, embed_dim: int | None = None) -> None:
    if (
        embedding.ndim != 3
        or len(embedding) != seeds
        or embed_dim not in (None, embedding.shape[1])
    ):
        wanted = f"({seeds}, {'D' if embed_dim is None else embed_dim}, r)"
        raise ValueError(f"embedding of shape {embedding.shape}: must be {wanted}")


def _with_seeds(limit: xr.Dataset, seeds: NDArray[np.int64]) -> xr.Dataset:
    """Take what is compared of a limit; the fields of one without seeds are the same for all."""
    taken = compared(limit)
    if "seed" in limit.dims:
        return taken
    fields_of_all = taken[["output", "hidden_coef"]].expand_dims(seed=seeds)
    return taken.assign(fields_of_all).assign(status=("seed", np.full(len(seeds), OK, np.int8)))


def _aligned(datasets: Sequence[xr.Dataset]) -> tuple[list[xr.Dataset], NDArray[np.intp]]:
    """Restrict datasets to their common seeds and steps, in the order of the first.

    Returns
    -------
    datasets : list of Dataset
    kept : ndarray of int
        Positions of the remaining seeds among those of the first dataset.
    """
    aligned, kept = list(datasets), np.arange(0)
    for dim in ("step", "seed"):
        known = aligned[0][dim].values
        common = np.logical_and.reduce([np.isin(known, ds[dim].values) for ds in aligned])
        if not common.any():
            raise ValueError(f"the stores to compare have no {dim} in common")
        kept = np.flatnonzero(common)
        # Where nothing is left out, the graph of a lazy store stays as simple as it is.
        aligned = [
            ds if np.array_equal(ds[dim].values, known[kept]) else ds.sel({dim: known[kept]})
            for ds in aligned
        ]
    return aligned, kept


def _ending(one: xr.Dataset, two: xr.Dataset) -> xr.DataArray:
    """Status (seed) of a comparison: that of the side that did not end well."""
    first, second = one["status"].load(), two["status"].load()
    return first.where(first != OK, second).astype(np.int8)


def _valid(finite: xr.Dataset) -> xr.DataArray:
    """Whether (seed, step) holds a result of a run that was sound up to there."""
    status, first = finite["status"].load(), finite["diverged_step"].load()
    before = (status == DIVERGED) & (finite["step"] < first)
    return (status == OK) | before


# --- reductions -----------------------------------------------------------------------------------


def _inner(array: xr.DataArray) -> list[str]:
    """Dimensions that distances are averaged over."""
    return [str(d) for d in array.dims if d in ("sample", "token", "target", "coordinate")]


def _rms(difference: xr.DataArray, *also: str) -> xr.DataArray:
    return _root((difference**2).mean([*_inner(difference), *also], skipna=False))


def _root(squares: xr.DataArray) -> xr.DataArray:
    return squares**0.5


def _gram(rows: Array, seeds: NDArray[np.int64]) -> xr.DataArray:
    """G = Phi^T Phi / D for each seed."""
    gram = rows.transpose(0, 2, 1) @ rows / rows.shape[1]
    dims = ("seed", "embedding_direction", "other_direction")
    return xr.DataArray(gram, dims=dims, coords={"seed": seeds})


def _mean_square(coefs: xr.DataArray, gram: xr.DataArray) -> xr.DataArray:
    """Mean over coordinates, samples, tokens and replicates of (Phi c)^2, as trace of G c c^T."""
    inner = [*_inner(coefs), *(d for d in ("replicate",) if d in coefs.dims)]
    other = coefs.rename(embedding_direction="other_direction")
    count = math.prod(coefs.sizes[d] for d in inner)
    moments = xr.dot(coefs, other, dim=inner) / count
    product = xr.dot(moments, gram, dim=["embedding_direction", "other_direction"])
    # Rounding may leave a difference of nothing slightly below zero.
    return product.clip(min=0.0)


def _standard_errors(
    one: xr.Dataset, two: xr.Dataset | None, gram: xr.DataArray
) -> dict[str, xr.DataArray]:
    """RMS standard errors of a limit, or of a difference of limits, from its scramblings."""
    hidden, output = one["hidden_coef_replicate"], one["output_replicate"]
    if two is not None:
        if one.sizes["replicate"] != two.sizes["replicate"]:
            raise ValueError(
                f"limits solved with {one.sizes['replicate']} and {two.sizes['replicate']} "
                "scramblings cannot be paired"
            )
        hidden = hidden - two["hidden_coef_replicate"]
        output = output - two["output_replicate"]
    # A single replicate is an exact cubature, and its deviation from itself is zero.
    share = 1.0 / max(1, one.sizes["replicate"] - 1)
    squares = _mean_square(hidden - hidden.mean("replicate"), gram)
    spread = output - output.mean("replicate")
    return {
        "hidden_rms_stderr": _root(share * squares),
        "output_rms_stderr": _rms(share**0.5 * spread, "replicate") * xr.ones_like(gram["seed"]),
    }


def _max_mean_abs(difference: xr.DataArray, rows: Array) -> xr.DataArray:
    """Maximum over depths of the mean over coordinates and samples of |Phi dc|, lazily."""
    inner = ["s", *(d for d in ("sample", "token") if d in difference.dims), "embedding_direction"]
    coefs = difference.transpose("seed", "step", *inner).chunk()
    coefs = coefs.chunk(dict.fromkeys(inner, -1))
    embedding = da.from_array(rows, chunks=(coefs.chunksizes["seed"], -1, -1))
    values = da.blockwise(
        _block_max,
        ("seed", "step"),
        *(coefs.data, coefs.dims),
        *(embedding, ("seed", "coordinate", "embedding_direction")),
        concatenate=True,
        align_arrays=False,
        dtype=np.float64,
        meta=np.empty((0, 0)),
    )
    coords = {d: difference[d] for d in ("seed", "step") if d in difference.coords}
    return xr.DataArray(values, dims=("seed", "step"), coords=coords)


def _block_max(coefs: Array, embedding: Array) -> Array:
    """Maximum over depths (axis 2) of the mean of |Phi c|, for each seed and step of a block."""
    seeds, steps, points = coefs.shape[:3]
    result = np.empty((seeds, steps))
    for seed in range(seeds):
        sums, _ = _line_sums(coefs[seed].reshape(-1, coefs.shape[-1]), embedding[seed])
        means = sums.reshape(steps, points, -1).mean(axis=-1) / embedding.shape[1]
        result[seed] = means.max(axis=-1)
    return result


def _line_sums(
    coefs: Array, embedding: Array, hidden: NDArray[np.floating] | None = None
) -> tuple[Array, Array]:
    """Sum |h - H| and (h - H)^2 over coordinates, with H = Phi c, in bounded memory.

    Parameters
    ----------
    coefs : ndarray, shape (lines, r)
        c, one line for each step, depth and sample.
    embedding : ndarray, shape (D, r)
        Phi.
    hidden : ndarray, shape (lines, D), optional
        h; zero if left out.

    Returns
    -------
    absolute, squared : ndarray, shape (lines,)
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


# --- one pass over a finite store -----------------------------------------------------------------


def _step_groups(hidden: xr.DataArray) -> list[slice]:
    """Cut the steps between blocks, so that one graph does not describe too many blocks."""
    lengths = hidden.chunksizes.get("step") or (hidden.sizes["step"],)
    others = math.prod(len(sizes) for d, sizes in hidden.chunksizes.items() if d != "step")
    per_group = max(1, _GRAPH_BLOCKS // others)
    ends = np.cumsum(lengths)[per_group - 1 : -1 : per_group]
    bounds = [0, *(int(end) for end in ends), hidden.sizes["step"]]
    return [slice(*pair) for pair in pairwise(bounds)]


def _field_errors(
    finite: xr.Dataset, limits: Mapping[str, xr.Dataset], rows: Array
) -> dict[str, dict[str, xr.DataArray]]:
    """Hidden distances to every limit, lazily, from one reading of the hidden field."""
    hidden = finite["hidden"].chunk()
    dims = [d for d in _FIELD if d in hidden.dims]
    hidden = hidden.transpose(*dims)
    chunks = dict(hidden.chunksizes)
    embedding = da.from_array(rows, chunks=(chunks["seed"], chunks["coordinate"], -1))
    operands: list[object] = [
        *(hidden.data, dims),
        *(embedding, ("seed", "coordinate", "embedding_direction")),
    ]
    order = [d for d in dims if d not in ("depth_point", "coordinate")]
    for name, limit in limits.items():
        node = f"node of {name}"
        matrix = fields.interpolation_matrix(limit["node"].values, finite["s"].values)
        coefs = limit["hidden_coef"].transpose(*order, "node", "embedding_direction")
        coefs = coefs.chunk(
            {**{d: chunks[d] for d in order}, "node": -1, "embedding_direction": -1}
        )
        operands += [
            *(da.from_array(matrix, chunks=(chunks["depth_point"], -1)), ("depth_point", node)),
            *(coefs.data, (*order, node, "embedding_direction")),
        ]
    inner = [d for d in dims if d in ("sample", "token", "coordinate")]
    sums = da.blockwise(
        _block_sums,
        ("sum", *dims),
        *operands,
        new_axes={"sum": 2 * len(limits)},
        # Every block leaves one number for each seed, step and depth.
        adjust_chunks={d: (1,) * len(chunks[d]) for d in inner},
        concatenate=True,
        align_arrays=False,
        dtype=np.float64,
        meta=np.empty((0,) * (len(dims) + 1)),
    )
    count = np.prod([hidden.sizes[d] for d in inner])
    means = xr.DataArray(
        sums.sum(axis=tuple(1 + dims.index(d) for d in inner)) / count,
        dims=("sum", "seed", "step", "depth_point"),
        coords={d: finite[d] for d in ("seed", "step")},
    )
    last = int(np.argmax(finite["s"].values))
    return {
        name: {
            "hidden_rms": _root(means.isel(sum=2 * k + 1, depth_point=last)),
            "hidden_max_mean_abs": means.isel(sum=2 * k).max("depth_point", skipna=False),
        }
        for k, name in enumerate(limits)
    }


def _block_sums(
    hidden: NDArray[np.floating], embedding: Array, *interpolations_and_coefs: Array
) -> Array:
    """Reduce one block of the hidden field against all limits.

    Parameters
    ----------
    hidden : ndarray, shape (seeds, steps, points, samples, [tokens,] D)
        A block of h.
    embedding : ndarray, shape (seeds, D, r)
        Its embedding rows.
    *interpolations_and_coefs : ndarrays
        For each limit the interpolation in depth (points, nodes) and its coefficients
        (seeds, steps, samples, [tokens,] nodes, r).

    Returns
    -------
    ndarray, shape (2 * limits, seeds, steps, points, 1, [1,] 1)
        For each limit the sum of |h - H| and the sum of (h - H)^2.
    """
    seeds, steps, points = hidden.shape[:3]
    limits = len(interpolations_and_coefs) // 2
    sums = np.empty((2 * limits, seeds, steps, points))
    for seed in range(seeds):
        lines = hidden[seed].reshape(-1, hidden.shape[-1])
        for k in range(limits):
            matrix, coefs = (
                interpolations_and_coefs[2 * k],
                interpolations_and_coefs[2 * k + 1][seed],
            )
            at_depth = np.moveaxis(matrix @ coefs, -2, 1)
            found = _line_sums(at_depth.reshape(len(lines), -1), embedding[seed], lines)
            for which, values in enumerate(found):
                sums[2 * k + which, seed] = values.reshape(steps, points, -1).sum(axis=-1)
    return sums.reshape(*sums.shape, *(1,) * (hidden.ndim - 3))
