"""Interpolation in depth, and fields and kernels over limit stores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_limits import fields

RNG = np.random.default_rng(5)
LEGENDRE = np.concatenate([[0.0], (np.polynomial.legendre.leggauss(6)[0] + 1) / 2, [1.0]])


def limit(seeds: int | None = 2, tokens: int | None = None) -> xr.Dataset:
    lead = (("seed", seeds),) if seeds else ()
    inner = (("sample", 3), *((("token", tokens),) if tokens else ()), ("embedding_direction", 4))
    dims = (*lead, ("step", 2), ("node", len(LEGENDRE)), *inner)
    names = tuple(name for name, _ in dims)
    shape = tuple(size for _, size in dims)
    coords: dict[str, Any] = {"node": LEGENDRE, "step": [0, 7]}
    if seeds:
        coords["seed"] = range(seeds)
    return xr.Dataset(
        {
            "hidden_coef": (names, RNG.normal(size=shape)),
            "backward_coef": (names, RNG.normal(size=shape)),
        },
        coords,
    )


@settings(deadline=None)
@given(
    degree=st.integers(0, 7),
    coefficients=st.lists(st.floats(-3, 3), min_size=8, max_size=8),
    points=st.lists(st.floats(0, 1), min_size=1, max_size=9),
)
def test_polynomials_are_reproduced(
    degree: int, coefficients: list[float], points: list[float]
) -> None:
    polynomial = np.polynomial.Polynomial(coefficients[: degree + 1])
    matrix = fields.interpolation_matrix(LEGENDRE, points)
    assert matrix.shape == (len(points), len(LEGENDRE))
    expected = polynomial(np.array(points))
    np.testing.assert_allclose(matrix @ polynomial(LEGENDRE), expected, atol=1e-10)


def test_one_degree_more_is_not_reproduced() -> None:
    n = len(LEGENDRE)
    matrix = fields.interpolation_matrix(LEGENDRE, [0.05])
    assert abs(matrix @ LEGENDRE**n - 0.05**n)[0] > 1e-9


@pytest.mark.parametrize("layers", [1, 2, 7, 33])
def test_a_point_at_a_node_takes_its_value(layers: int) -> None:
    nodes = np.arange(layers + 1) / layers
    # The same depths, computed another way: they differ in the last bit.
    points = np.cumsum(np.full(layers, 1.0 / layers))
    matrix = fields.interpolation_matrix(nodes, points)
    np.testing.assert_array_equal(matrix, np.eye(layers + 1)[1:])


@pytest.mark.parametrize("nodes", [[], [0.0, 0.5, 0.5], [[0.0, 1.0]]])
def test_nodes_that_define_no_polynomial_are_refused(nodes: Any) -> None:
    with pytest.raises(ValueError, match="nodes"):
        fields.interpolation_matrix(nodes, [0.5])


def test_a_single_node_is_a_constant() -> None:
    np.testing.assert_array_equal(fields.interpolation_matrix([0.3], [0.0, 0.9]), [[1.0], [1.0]])


@pytest.mark.parametrize("tokens", [None, 2])
@pytest.mark.parametrize("seeds", [None, 2])
def test_coefficients_have_the_dimensions_of_the_store(
    seeds: int | None, tokens: int | None
) -> None:
    ds = limit(seeds, tokens)
    s = np.array([0.0, 0.2, 1.0])
    at = fields.coefficients(ds, s)
    expected = tuple("s" if d == "node" else d for d in ds["hidden_coef"].dims)
    assert at.dims == expected
    np.testing.assert_array_equal(at["s"], s)
    np.testing.assert_allclose(at.isel(s=0), ds["hidden_coef"].isel(node=0))
    np.testing.assert_allclose(at.isel(s=-1), ds["hidden_coef"].isel(node=-1))


def test_coefficients_keep_the_name_of_given_depths() -> None:
    s = xr.DataArray([0.0, 0.5], dims="depth_point", coords={"layer": ("depth_point", [0, 4])})
    at = fields.coefficients(limit(), s, "backward_coef")
    assert at.dims == ("seed", "step", "depth_point", "sample", "embedding_direction")
    assert at.name == "backward_coef"
    np.testing.assert_array_equal(at["layer"], [0, 4])


def test_a_lazy_store_stays_lazy() -> None:
    ds = limit().chunk(step=1)
    assert fields.field(ds, RNG.normal(size=(6, 4)), [0.5]).chunks is not None


@pytest.mark.parametrize("tokens", [None, 2])
def test_field_is_embedding_times_coefficients(tokens: int | None) -> None:
    ds, s = limit(2, tokens), np.array([0.1, 0.6])
    rows = RNG.normal(size=(2, 5, 4))
    h = fields.field(ds, rows, s, "backward_coef")
    assert h.dims[-1] == "coordinate"
    assert h.dims[:3] == ("seed", "step", "s")
    coef = fields.coefficients(ds, s, "backward_coef").values
    for seed in range(2):
        np.testing.assert_allclose(h.values[seed], coef[seed] @ rows[seed].T)
    alone = fields.field(ds.isel(seed=1), rows[1], s, "backward_coef")
    np.testing.assert_allclose(alone.values, h.values[1])


def test_one_limit_serves_many_seeds() -> None:
    ds, rows = limit(None), RNG.normal(size=(3, 5, 4))
    h = fields.field(ds, rows, [1.0])
    assert h.dims == ("seed", "step", "s", "sample", "coordinate")
    np.testing.assert_allclose(h.values[2], fields.field(ds, rows[2], [1.0]).values)


@pytest.mark.parametrize("tokens", [None, 2])
def test_kernel_is_the_mean_product_of_fields(tokens: int | None) -> None:
    ds, s = limit(2, tokens), np.array([0.25, 1.0])
    rows = RNG.normal(size=(2, 9, 4))
    gram = rows.transpose(0, 2, 1) @ rows / 9
    gamma = fields.kernel(ds, s, gram)
    h = fields.field(ds, rows, s).values
    flat = h.reshape(2, 2, 2, -1, 9).transpose(0, 2, 1, 3, 4).reshape(2, 2, -1, 9)
    expected = np.einsum("spic,spjc->spij", flat, flat) / 9
    np.testing.assert_allclose(gamma.values.reshape(expected.shape), expected)
    inner = ("sample", *(("token",) if tokens else ()))
    assert gamma.dims == (
        "seed", "s", "step", *inner, "step_other", *(f"{d}_other" for d in inner)
    )  # fmt: skip
    np.testing.assert_array_equal(gamma["step_other"], [0, 7])


def test_kernel_of_one_seed_and_step() -> None:
    ds = limit().isel(seed=0, step=1)
    gamma = fields.kernel(ds, [0.5], np.eye(4))
    coef = fields.coefficients(ds, [0.5]).values
    np.testing.assert_allclose(gamma.values, coef @ coef.transpose(0, 2, 1))
    assert gamma.dims == ("s", "sample", "sample_other")
