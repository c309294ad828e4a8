"""Functions over limit stores: coefficients, fields and Gram kernels at any depth.

A limit is stored as coordinates on the embedding's columns at a few depth nodes. Between the nodes
it is the interpolating polynomial, and the field of a network with embedding rows Phi is Phi times
the coordinates (docs/concepts/limits.md). All functions stay lazy on lazy
datasets.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from resnet_limits.interpolation import interpolation_matrix

__all__ = ["coefficients", "field", "interpolation_matrix", "kernel"]


def coefficients(
    ds: xr.Dataset, s: ArrayLike | xr.DataArray, variable: str = "hidden_coef"
) -> xr.DataArray:
    """Coordinates of a limit's field on the embedding's columns, at any depth.

    Parameters
    ----------
    ds : Dataset
        A limit store, or a selection of it that keeps ``node``.
    s : array_like or DataArray, shape (points,)
        Depths in [0, 1]. A DataArray gives its own dimension to the result, for example the
        ``s`` of a finite store its ``depth_point``.
    variable : str
        ``hidden_coef`` or ``backward_coef``.

    Returns
    -------
    DataArray, dimensions (..., s, sample, [token,] embedding_direction)
    """
    points = s if isinstance(s, xr.DataArray) else _depths(s)
    (dim,) = points.dims
    known = ds[variable]
    matrix = xr.DataArray(
        interpolation_matrix(ds["node"].values, points.values),
        dims=(dim, "node"),
        coords=points.coords,
    )
    order = [dim if d == "node" else d for d in known.dims]
    # One node index for both: coordinates that differ in rounding must not be aligned away.
    return xr.dot(known.drop_vars("node"), matrix, dim="node").transpose(*order).rename(variable)


def _depths(s: ArrayLike) -> xr.DataArray:
    values = np.atleast_1d(np.asarray(s, float))
    return xr.DataArray(values, dims="s", coords={"s": values})


def field(
    ds: xr.Dataset,
    embedding: ArrayLike | xr.DataArray,
    s: ArrayLike | xr.DataArray,
    variable: str = "hidden_coef",
) -> xr.DataArray:
    """Field that a limit predicts for a network with given embedding rows.

    Parameters
    ----------
    ds : Dataset
        A limit store, or a selection of it that keeps ``node``.
    embedding : array_like or DataArray, shape (D, r), or (seed, D, r) for stores with seeds
        Embedding rows Phi, from ``problem.embedding_rows``.
    s, variable
        As for `coefficients`.

    Returns
    -------
    DataArray, dimensions (..., s, sample, [token,] coordinate)
        h (or b) of every coordinate.
    """
    at_depth = coefficients(ds, s, variable)
    rows = _named(embedding, ("seed", "coordinate", "embedding_direction"))
    product = xr.dot(at_depth, rows, dim="embedding_direction")
    return product.transpose(*_leading(product, at_depth), "coordinate").rename(
        variable.removesuffix("_coef")
    )


def kernel(
    ds: xr.Dataset,
    s: ArrayLike | xr.DataArray,
    gram: ArrayLike | xr.DataArray,
    variable: str = "hidden_coef",
) -> xr.DataArray:
    """Correlations of a field between steps and samples, Gamma = c^T G c at one depth.

    Parameters
    ----------
    ds : Dataset
        A limit store, or a selection of it that keeps ``node``.
    s : array_like or DataArray, shape (points,)
        Depths in [0, 1].
    gram : array_like or DataArray, shape (r, r), or (seed, r, r) for stores with seeds
        Gram matrix G = Phi^T Phi / D of the embedding; its expectation diag(s_e^2, s_u^2) for the
        DMFT limit. The square of ``problem.gram_root`` and ``problem.limit_gram_root``.
    variable : str
        ``hidden_coef`` or ``backward_coef``.

    Returns
    -------
    DataArray, dimensions ([seed,] s, step, sample, ..., step_other, sample_other, ...)
        Mean over coordinates of the product of two fields.
    """
    at_depth = coefficients(ds, s, variable)
    shared = {"seed", "embedding_direction", *(s.dims if isinstance(s, xr.DataArray) else ("s",))}
    names = {d: f"{d}_other" for d in at_depth.dims if d not in shared}
    names["embedding_direction"] = "embedding_direction_other"
    # Indexes go along, so that a selected step is still known by its number.
    other = at_depth.rename(names)
    metric = _named(gram, ("seed", "embedding_direction", "embedding_direction_other"))
    product = xr.dot(
        at_depth, metric, other, dim=["embedding_direction", "embedding_direction_other"]
    )
    first = [d for d in _leading(product, at_depth) if d in shared]
    rest = [d for d in at_depth.dims if d in names and d in product.dims]
    return product.transpose(*first, *rest, *(names[d] for d in rest)).rename("kernel")


def _named(values: ArrayLike | xr.DataArray, dims: tuple[str, ...]) -> xr.DataArray:
    """Name the dimensions of a plain array, of which the first (seed) may be absent."""
    if isinstance(values, xr.DataArray):
        return values
    array = np.asarray(values, float)
    return xr.DataArray(array, dims=dims[len(dims) - array.ndim :])


def _leading(product: xr.DataArray, coefs: xr.DataArray) -> list[str]:
    """Dimensions of a product in the order of the coefficients, any others first."""
    known = [str(d) for d in coefs.dims if d in product.dims]
    new = [str(d) for d in product.dims if d not in coefs.dims and d == "seed"]
    return new + known
