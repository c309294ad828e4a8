"""Distances against plain NumPy, in bounded memory, and the tables of cells."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from synthetic import no_prediction

from resnet_limits import store
from resnet_limits.config import Experiment
from resnet_limits.errors import distances
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.kinds import DIVERGED, NOT_RUN, OK
from resnet_limits.problem import embedding_rows, make_problem
from resnet_limits.stages import errors as stage
from resnet_limits.stages import rates as rates_stage

S, K, P, N, D, R, T = 3, 4, 5, 2, 7, 4, 2
NODES = np.array([0.0, 0.2, 0.7, 1.0])
POINTS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
SIZES = {"sample": N, "embedding_direction": R, "target": T, "step": K, "node": len(NODES)}


def limit(
    rng: np.random.Generator,
    *,
    seeds: int | None = S,
    tokens: int | None = None,
    replicates: int = 3,
    scale: float = 1.0,
    unsampled: float = 0.0,
    **sizes: int,
) -> xr.Dataset:
    """Draw a limit; `unsampled` is the size of errors that scramblings do not show."""
    length = {**SIZES, "replicate": replicates, "seed": seeds, "token": tokens, **sizes}
    lead = () if seeds is None else ("seed",)
    rows = ("sample",) if tokens is None else ("sample", "token")

    def variable(*dims: str) -> tuple[tuple[str, ...], np.ndarray]:
        names = (*lead, *dims)
        return names, scale * rng.normal(size=tuple(length[d] for d in names))  # type: ignore[misc]

    def unseen(*dims: str) -> tuple[tuple[str, ...], np.ndarray]:
        names, values = variable(*dims)
        return names, unsampled / scale * values

    direction = "embedding_direction"
    return xr.Dataset(
        {
            "output": variable("step", *rows, "target"),
            "output_replicate": variable("replicate", "step", *rows, "target"),
            "hidden_coef": variable("step", "node", *rows, direction),
            "hidden_coef_replicate": variable("replicate", "step", *rows, direction),
            "output_depth_change": unseen("step", *rows, "target"),
            "hidden_coef_depth_change": unseen("step", *rows, direction),
            "rounding": unseen("step"),
            **({"status": ("seed", np.full(seeds, OK, np.int8))} if seeds is not None else {}),
        },
        {
            "node": NODES,
            "step": np.arange(length["step"] or 0),
            "replicate": np.arange(replicates),
            **({"seed": np.arange(seeds)} if seeds is not None else {}),
        },
    )


def network(
    rng: np.random.Generator, *, tokens: int | None = None, dtype: str = "float32"
) -> xr.Dataset:
    rows = (N,) if tokens is None else (N, tokens)
    names = ("sample",) if tokens is None else ("sample", "token")
    return xr.Dataset(
        {
            "output": (("seed", "step", *names, "target"), rng.normal(size=(S, K, *rows, T))),
            "hidden": (
                ("seed", "step", "depth_point", *names, "coordinate"),
                rng.normal(size=(S, K, P, *rows, D)).astype(dtype),
            ),
            "status": ("seed", np.zeros(S, np.int8)),
            "diverged_step": ("seed", np.full(S, -1)),
        },
        {
            "seed": np.arange(S),
            "step": np.arange(K),
            "layer": ("depth_point", np.arange(P)),
            "s": ("depth_point", POINTS),
        },
    )


def compare(
    finite: xr.Dataset, limits: dict[str, xr.Dataset], phi: np.ndarray
) -> dict[str, xr.Dataset]:
    seeds = [int(seed) for seed in finite["seed"]]
    prepared = {name: distances.prepare(ds, seeds, phi) for name, ds in limits.items()}
    return distances.finite_distances(finite, prepared, phi)


# --- brute force ----------------------------------------------------------------------------------


def interpolated(coef: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(node, ..., r) to (points, ..., r), through the coefficients of the polynomial."""
    basis = np.vander(points, len(NODES)) @ np.linalg.inv(np.vander(NODES))
    return np.tensordot(basis, coef, axes=1)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def of_seed(ds: xr.Dataset, seed: int) -> xr.Dataset:
    return ds.isel(seed=seed) if "seed" in ds.dims else ds


def spread(replicates: np.ndarray) -> float:
    """RMS standard error of the mean over the first axis."""
    count = len(replicates)
    if count == 1:
        return 0.0
    return rms(replicates.std(axis=0, ddof=1) / np.sqrt(count))


def in_quadrature(*errors: float) -> float:
    return math.sqrt(sum(error**2 for error in errors))


def brute_force(finite: xr.Dataset, ds: xr.Dataset, phi: np.ndarray, k: int, step: int) -> list:
    one, net = of_seed(ds, k).isel(step=step), finite.isel(seed=k, step=step)
    H = interpolated(one["hidden_coef"].values, POINTS) @ phi[k].T
    gap = net["hidden"].values.astype(float) - H
    per_depth = np.abs(gap).reshape(P, -1).mean(axis=1)
    return [
        rms(gap[-1]),
        per_depth.max(),
        rms(net["output"].values - one["output"].values),
        in_quadrature(
            spread(one["hidden_coef_replicate"].values @ phi[k].T),
            rms(one["hidden_coef_depth_change"].values @ phi[k].T),
            one["rounding"].values,
        ),
        in_quadrature(
            spread(one["output_replicate"].values),
            rms(one["output_depth_change"].values),
            one["rounding"].values,
        ),
    ]


@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize(
    "chunks",
    [
        None,
        {},
        {"step": 1},
        {"seed": 2, "step": 3, "depth_point": 2, "sample": 1, "coordinate": 3},
    ],
)
def test_networks_against_brute_force(tokens: int | None, chunks: dict[str, int] | None) -> None:
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(S, D, R))
    finite = network(rng, tokens=tokens)
    limits = {
        "wide": limit(rng, tokens=tokens, unsampled=0.7),
        "mean_ode": limit(rng, tokens=tokens, replicates=1, unsampled=0.7),
        "dmft": limit(rng, seeds=None, tokens=tokens, unsampled=0.7),
    }
    lazy = finite if chunks is None else finite.chunk(chunks)
    sources = limits if chunks is None else {k: v.chunk(step=2) for k, v in limits.items()}
    found = compare(lazy, sources, phi)
    assert set(found) == set(limits)
    for name, ds in limits.items():
        assert found[name].sizes == {"seed": S, "step": K, "depth_point": P}
        assert found[name]["status"].dtype == np.int8
        for k in range(S):
            for step in range(K):
                expected = brute_force(finite, ds, phi, k, step)
                actual = [found[name][v].values[k, step] for v in distances.VARIABLES]
                np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize("chunks", [None, {"step": 1, "seed": 2, "node": 3, "replicate": 1}])
def test_limits_against_brute_force(tokens: int | None, chunks: dict[str, int] | None) -> None:
    rng = np.random.default_rng(2)
    phi = rng.normal(size=(S, D, R))
    one, two = (limit(rng, seeds=n, tokens=tokens, unsampled=0.7) for n in (S, None))
    sources = [ds if chunks is None else ds.chunk(_fitting(ds, chunks)) for ds in (one, two)]
    for first, second in (sources, sources[::-1]):
        found = distances.limit_distances(first, second, phi, POINTS)
        assert (found["status"] == OK).all()
        for k in range(S):
            for step in range(K):
                a, b = (of_seed(ds, k).isel(step=step) for ds in (one, two))
                coef = a["hidden_coef"].values - b["hidden_coef"].values
                gap = interpolated(coef, POINTS) @ phi[k].T
                replicates = a["hidden_coef_replicate"].values - b["hidden_coef_replicate"].values
                outputs = a["output_replicate"].values - b["output_replicate"].values
                # Changes with depth nodes are subtracted, rounding errors are independent.
                changes, output_changes = (
                    a[name].values - b[name].values
                    for name in ("hidden_coef_depth_change", "output_depth_change")
                )
                rounding = a["rounding"].values, b["rounding"].values
                expected = [
                    rms(gap[-1]),
                    np.abs(gap).reshape(P, -1).mean(axis=1).max(),
                    rms(a["output"].values - b["output"].values),
                    in_quadrature(
                        spread(replicates @ phi[k].T), rms(changes @ phi[k].T), *rounding
                    ),
                    in_quadrature(spread(outputs), rms(output_changes), *rounding),
                ]
                actual = [found[v].values[k, step] for v in distances.VARIABLES]
                np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-14)


def _fitting(ds: xr.Dataset, chunks: dict[str, int]) -> dict[str, int]:
    return {d: size for d, size in chunks.items() if d in ds.dims}


def by_depth(
    fields: xr.DataArray, coef: xr.DataArray, phi: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """RMS of h - Phi c at each depth, by plain xarray: (seed, step, depth_point)."""
    basis = np.vander(points, len(NODES)) @ np.linalg.inv(np.vander(NODES))
    through = xr.DataArray(basis, dims=("depth_point", "node"))
    rows = xr.DataArray(phi, dims=("seed", "coordinate", "embedding_direction"))
    gap = fields - (rows * coef.drop_vars("node")).sum("embedding_direction").dot(through)
    rest = [dim for dim in gap.dims if dim not in ("seed", "step", "depth_point")]
    return np.sqrt((gap**2).mean(rest)).transpose("seed", "step", "depth_point").values


@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_distances_at_each_depth(tokens: int | None, lazy: bool) -> None:
    rng = np.random.default_rng(21)
    phi = rng.normal(size=(S, D, R))
    finite = network(rng, tokens=tokens, dtype="float64")
    limits = {"wide": limit(rng, tokens=tokens), "dmft": limit(rng, seeds=None, tokens=tokens)}
    found = compare(finite.chunk(step=1, depth_point=2) if lazy else finite, limits, phi)
    hidden = finite["hidden"].drop_vars("s")
    for name, ds in limits.items():
        at = found[name]["hidden_rms_at"]
        assert at.dims == ("seed", "step", "depth_point")
        np.testing.assert_array_equal(found[name]["s"], POINTS)
        expected = by_depth(hidden, ds["hidden_coef"], phi, POINTS)
        np.testing.assert_allclose(at, expected, rtol=1e-12)
        np.testing.assert_array_equal(at.isel(depth_point=-1), found[name]["hidden_rms"])
        # Depths in another order are other numbers.
        assert (abs(at.values[..., ::-1] / expected - 1) > 1e-6).any()
    between = distances.limit_distances(limits["wide"], limits["dmft"], phi, POINTS)
    gap = limits["wide"]["hidden_coef"] - limits["dmft"]["hidden_coef"]
    expected = by_depth(xr.zeros_like(hidden), gap, phi, POINTS)
    np.testing.assert_allclose(between["hidden_rms_at"], expected, rtol=1e-12)
    last = between["hidden_rms_at"].isel(depth_point=-1)
    np.testing.assert_array_equal(last, between["hidden_rms"])


@pytest.mark.parametrize(("points", "shown"), [(2, 2), (65, 65), (66, 65), (4001, 65)])
def test_many_depths_are_thinned(points: int, shown: int) -> None:
    rng = np.random.default_rng(22)
    one, two, phi = limit(rng), limit(rng, seeds=None), rng.normal(size=(S, D, R))
    s = np.linspace(0, 1, points)
    found = distances.limit_distances(one, two, phi, s)
    kept = found["s"].values
    assert (len(kept), kept[0], kept[-1]) == (shown, 0.0, 1.0)
    assert np.isin(kept, s).all()
    assert (np.diff(kept) > 0).all()
    assert np.diff(kept).max() <= 1 / (shown - 1) + 1 / (points - 1)
    whole = distances.limit_distances(one, two, phi, kept)
    np.testing.assert_allclose(found["hidden_rms_at"], whole["hidden_rms_at"], rtol=1e-12)


def test_cells_of_few_depths_are_padded(
    tiny_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = tiny_experiment(sweep={"grid": {"depth": [2, 4]}}, save={"depth_points": 5})
    tables = stage.errors(experiment, Results(experiment))
    for pair in ("finite-wide", "finite-mean_ode", "finite-dmft", "wide-mean_ode"):
        table = tables[pair]
        shallow = (table["depth"] == 2).values
        assert set(table["depth"].values) == {2, 4}
        np.testing.assert_array_equal(np.isnan(table["s"]).sum(axis=1), 2 * shallow)
        np.testing.assert_array_equal(table["s"][~shallow], [POINTS] * (~shallow).sum())
        np.testing.assert_array_equal(table["s"][shallow, :3], [[0, 0.5, 1]] * shallow.sum())
        at, ends = table["hidden_rms_at"].values, np.where(shallow, 2, 4)
        assert np.isnan(at[shallow][:, :, 3:]).all()
        last = at[np.arange(len(ends)), :, ends]
        np.testing.assert_array_equal(last, table["hidden_rms"])
    path = store.write(tables, tmp_path / "errors.zarr", "errors")
    assert [line for line in store.check(path) if "attribute" not in line] == []
    part = store.open_groups(path)["finite-dmft"]
    assert part["s"].dims == ("cell", "depth_point")
    assert "65" in part["hidden_rms_at"].attrs["comment"]


@pytest.mark.parametrize(
    ("cell", "depth", "value", "said"),
    [
        (0, 4, 1.0, "values at depths that a cell does not have"),
        (0, 1, np.nan, "NaN or infinite values where the status is ok"),
        (-1, 4, np.nan, "NaN or infinite values where the status is ok"),
    ],
)
def test_what_is_at_no_depth_and_what_is_missing_at_one_is_found(
    tiny_experiment: Callable[..., Experiment],
    tmp_path: Path,
    cell: int,
    depth: int,
    value: float,
    said: str,
) -> None:
    experiment = tiny_experiment(sweep={"grid": {"depth": [2, 4]}}, save={"depth_points": 5})
    tables = stage.errors(experiment, Results(experiment))
    tables["wide-mean_ode"]["hidden_rms_at"].values[cell, 0, depth] = value
    with pytest.raises(store.StoreError, match=f"wide-mean_ode/hidden_rms_at: {said}"):
        store.write(tables, tmp_path / "errors.zarr", "errors")
    assert not (tmp_path / "errors.zarr").exists()


def test_a_wrong_embedding_gives_another_distance() -> None:
    rng = np.random.default_rng(3)
    phi, finite, ds = rng.normal(size=(S, D, R)), network(rng), limit(rng)
    right, wrong = (compare(finite, {"wide": ds}, rows)["wide"] for rows in (phi, phi[::-1]))
    assert (abs(right["hidden_rms"] - wrong["hidden_rms"]) > 1e-3).any()


def test_a_network_that_follows_the_limit_is_at_no_distance() -> None:
    rng = np.random.default_rng(4)
    phi, ds = rng.normal(size=(S, D, R)), limit(rng)
    finite = network(rng, dtype="float64")
    for k in range(S):
        for step in range(K):
            coef = ds["hidden_coef"].values[k, step]
            finite["hidden"].values[k, step] = interpolated(coef, POINTS) @ phi[k].T
    finite["output"].values[:] = ds["output"].values
    found = compare(finite, {"wide": ds}, phi)["wide"]
    assert float(found["hidden_rms"].max()) < 1e-12
    assert float(found["hidden_max_mean_abs"].max()) < 1e-12
    assert float(found["output_rms"].max()) == 0


def test_a_limit_is_at_no_distance_from_itself() -> None:
    rng = np.random.default_rng(5)
    ds = limit(rng)
    found = distances.limit_distances(ds, ds, rng.normal(size=(S, D, R)), POINTS)
    assert all(float(found[name].max()) == 0 for name in distances.VARIABLES)


def test_triangle_inequality_through_a_third() -> None:
    rng = np.random.default_rng(6)
    phi, finite = rng.normal(size=(S, D, R)), network(rng)
    ode, dmft = limit(rng), limit(rng, seeds=None)
    found = compare(finite, {"ode": ode, "dmft": dmft}, phi)
    between = distances.limit_distances(ode, dmft, phi, POINTS)
    for name in ("hidden_rms", "hidden_max_mean_abs", "output_rms"):
        assert (found["dmft"][name] <= found["ode"][name] + between[name] + 1e-12).all()


def test_paired_scramblings_are_more_accurate_than_each_limit() -> None:
    rng = np.random.default_rng(7)
    one = limit(rng, replicates=8)
    two = one + 1e-3 * limit(rng, replicates=8)
    phi = rng.normal(size=(S, D, R))
    paired = distances.limit_distances(one, two, phi, POINTS)["hidden_rms_stderr"]
    alone = distances.prepare(one, range(S), phi)["hidden_rms_stderr"]
    assert float((paired / alone).max()) < 1e-2


def test_claimed_standard_error_is_the_scatter_of_repeated_limits() -> None:
    rng = np.random.default_rng(8)
    phi = rng.normal(size=(1, D, R))
    truth = rng.normal(size=(K, N, R))
    means, claimed = [], []
    for _ in range(200):
        ds = limit(rng, seeds=1, replicates=8, scale=0.3)
        ds["hidden_coef_replicate"] += xr.DataArray(
            truth, dims=("step", "sample", ds["hidden_coef"].dims[-1])
        )
        means.append(ds["hidden_coef_replicate"].values[0].mean(axis=0) @ phi[0].T)
        claimed.append(distances.prepare(ds, [0], phi)["hidden_rms_stderr"].values[0])
    scatter = np.sqrt((np.std(means, axis=0) ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(claimed), axis=0)), scatter, rtol=0.1)


# --- seeds and steps ------------------------------------------------------------------------------


def test_diverged_and_absent_runs_are_named_and_nan() -> None:
    rng = np.random.default_rng(9)
    phi, finite = rng.normal(size=(S, D, R)), network(rng)
    finite["status"].values[:] = [OK, DIVERGED, NOT_RUN]
    finite["diverged_step"].values[:] = [-1, 2, -1]
    # The diverging step itself may still hold numbers, however large.
    finite["hidden"].values[1, 2] *= 1e9
    finite["hidden"].values[1, 3:] = finite["hidden"].values[2] = np.nan
    finite["output"].values[1, 3:] = finite["output"].values[2] = np.nan
    found = compare(finite, {"dmft": limit(rng, seeds=None)}, phi)["dmft"]
    for name in distances.VARIABLES:
        finite_values = np.isfinite(found[name].values)
        np.testing.assert_array_equal(finite_values.sum(axis=1), [K, 2, 0])
        assert finite_values[1, :2].all()
    np.testing.assert_array_equal(found["status"], [OK, DIVERGED, NOT_RUN])


def test_common_seeds_and_steps_are_compared() -> None:
    rng = np.random.default_rng(10)
    phi, finite, ds = rng.normal(size=(S, D, R)), network(rng), limit(rng)
    whole = compare(finite, {"wide": ds}, phi)["wide"]
    part = compare(finite.isel(step=[1, 3]), {"wide": ds.isel(seed=[2, 0])}, phi)["wide"]
    np.testing.assert_array_equal(part["seed"], [0, 2])
    np.testing.assert_array_equal(part["step"], [1, 3])
    xr.testing.assert_allclose(part, whole.sel(seed=[0, 2], step=[1, 3]))
    other = ds.isel(seed=[1, 2], step=[0, 3])
    between = distances.limit_distances(ds, other, phi, POINTS)
    assert between.sizes == {"seed": 2, "step": 2, "depth_point": P}
    assert float(between["hidden_rms"].max()) == 0


@pytest.mark.parametrize("dim", ["seed", "step"])
def test_stores_with_nothing_in_common_are_refused(dim: str) -> None:
    rng = np.random.default_rng(11)
    ds, phi = limit(rng), rng.normal(size=(S, D, R))
    moved = ds.assign_coords({dim: ds[dim] + 100})
    with pytest.raises(ValueError, match=f"no {dim} in common"):
        distances.limit_distances(ds, moved, phi, POINTS)
    with pytest.raises(ValueError, match=f"no {dim} in common"):
        compare(network(rng), {"wide": moved}, phi)


def test_what_cannot_be_compared_is_refused() -> None:
    rng = np.random.default_rng(12)
    ds, phi = limit(rng), rng.normal(size=(S, D, R))
    with pytest.raises(ValueError, match="cannot be paired"):
        distances.limit_distances(ds, limit(rng, replicates=4), phi, POINTS)
    with pytest.raises(ValueError, match="seeds"):
        distances.limit_distances(limit(rng, seeds=None), limit(rng, seeds=None), phi, POINTS)
    for rows in (phi[:2], phi[0]):
        with pytest.raises(ValueError, match="embedding of shape"):
            distances.limit_distances(ds, ds, rows, POINTS)
    prepared = {"wide": distances.prepare(ds, range(S), phi)}
    with pytest.raises(ValueError, match="embedding of shape"):
        distances.finite_distances(network(rng), prepared, phi[:, : D - 1])


# --- memory ---------------------------------------------------------------------------------------

WIDE, STEPS, DEPTHS = 8192, 48, 16


def generated(read: Callable[[tuple[int, ...]], None]) -> xr.Dataset:
    """A network of 144 MiB in blocks of 1 MiB, made when they are read."""
    rng = np.random.default_rng(13)
    base = rng.normal(size=(1, 1, DEPTHS, 2, WIDE)).astype(np.float32)

    def block(block_info: dict[Any, Any]) -> np.ndarray:
        read(tuple(block_info[None]["chunk-location"]))
        return base + np.float32(0.0)

    hidden = da.map_blocks(
        block,
        chunks=((1,) * S, (1,) * STEPS, (DEPTHS,), (2,), (WIDE,)),
        dtype=np.float32,
        meta=np.empty((0,) * 5, np.float32),
    )
    return xr.Dataset(
        {
            "output": (("seed", "step", "sample", "target"), np.zeros((S, STEPS, 2, T))),
            "hidden": (("seed", "step", "depth_point", "sample", "coordinate"), hidden),
            "status": ("seed", np.zeros(S, np.int8)),
            "diverged_step": ("seed", np.full(S, -1)),
        },
        {
            "seed": np.arange(S),
            "step": np.arange(STEPS),
            "layer": ("depth_point", np.arange(DEPTHS)),
            "s": ("depth_point", np.arange(DEPTHS) / (DEPTHS - 1)),
        },
    )


def test_every_block_is_read_once_and_memory_is_bounded() -> None:
    rng = np.random.default_rng(14)
    reads: Counter[tuple[int, ...]] = Counter()
    finite = generated(lambda place: reads.update([place]))
    phi = rng.normal(size=(S, WIDE, R))
    limits = {
        "wide": limit(rng, step=STEPS),
        "mean_ode": limit(rng, step=STEPS),
        "dmft": limit(rng, seeds=None, step=STEPS),
    }
    block = DEPTHS * 2 * WIDE * 4
    assert finite["hidden"].nbytes == S * STEPS * block
    with dask.config.set(scheduler="synchronous"):
        prepared = {name: distances.prepare(ds, range(S), phi) for name, ds in limits.items()}
        tracemalloc.start()
        try:
            found = distances.finite_distances(finite, prepared, phi)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(reads) == S * STEPS
    assert set(reads.values()) == {1}
    assert all(np.isfinite(ds["hidden_rms"]).all() for ds in found.values())
    # A block, temporaries of a fixed size, and the graph of a limited number of blocks.
    assert peak < 24 * 2**20 < finite["hidden"].nbytes / 5


def traced_peak(compute: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_depths_of_limits_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(15)
    one, two = limit(rng, sample=32), limit(rng, seeds=None, sample=32)
    phi, s = rng.normal(size=(S, D, R)), np.linspace(0, 1, 2001)
    everything = S * K * len(s) * 32 * R * 8
    whole = distances.limit_distances(one, two, phi, s)
    monkeypatch.setattr(distances, "_COEF_ELEMENTS", 1 << 16)
    monkeypatch.setattr(distances, "_WORK_ELEMENTS", 1 << 14)
    found: list[xr.Dataset] = []
    peak = traced_peak(lambda: found.append(distances.limit_distances(one, two, phi, s)))
    assert peak < 6 * 2**20 < everything / 3
    xr.testing.assert_allclose(found[0], whole, rtol=1e-13)


def test_many_directions_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coefficients at all depths may be far larger than the states: with 64 directions, D = 2."""
    rng = np.random.default_rng(16)
    steps, points, rows, directions = 16, 64, 128, 64
    hidden = rng.normal(size=(1, steps, points, rows, 2)).astype(np.float32)
    coefs = rng.normal(size=(1, steps, rows, len(NODES), directions))
    matrix, phi = rng.normal(size=(points, len(NODES))), rng.normal(size=(1, 2, directions))
    whole = distances._block_sums(hidden, phi, matrix, coefs)
    monkeypatch.setattr(distances, "_COEF_ELEMENTS", 1 << 18)
    monkeypatch.setattr(distances, "_WORK_ELEMENTS", 1 << 14)
    found = []
    peak = traced_peak(lambda: found.append(distances._block_sums(hidden, phi, matrix, coefs)))
    everything = steps * points * rows * directions * 8
    assert peak < 12 * 2**20 < everything / 4
    np.testing.assert_allclose(found[0], whole, rtol=1e-13)


@pytest.mark.parametrize("lazy", [False, True])
def test_outputs_are_read_some_steps_at_a_time(lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(17)
    phi, finite, ds = rng.normal(size=(S, D, R)), network(rng), limit(rng)
    whole = compare(finite, {"wide": ds}, phi)["wide"]
    monkeypatch.setattr(distances, "_PIECE_BYTES", 2 * ds["output"].isel(step=0).nbytes)
    pieces = list(distances._pieces([ds["output"].chunk(step=1).data, finite["output"].data]))
    assert [len(piece[0][0]) for piece in pieces] == [2, 2]
    found = compare(finite.chunk(step=1) if lazy else finite, {"wide": ds.chunk(step=1)}, phi)
    xr.testing.assert_allclose(found["wide"], whole, rtol=1e-14)


# --- the stage ------------------------------------------------------------------------------------


class Results:
    """Made-up stores for the cells of an experiment."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.problem = make_problem(experiment)
        self.opened: list[tuple[str, tuple[int, ...]]] = []
        self.missing_seeds = 0

    def __call__(self, kind: str, cell: dict[str, int]) -> xr.Dataset:
        self.opened.append((kind, tuple(cell.values())))
        rng = np.random.default_rng([len(kind), *cell.values()])
        seeds, steps = len(self.experiment.cell_seeds(**cell)), self.experiment.training.steps
        samples, targets = self.problem.y.shape
        if kind != "finite":
            return limit(
                rng,
                seeds=None if kind == "dmft" else seeds,
                step=steps,
                sample=samples,
                target=targets,
                embedding_direction=self.problem.embedding_dims,
            ).chunk()
        layers = np.array(depth_layers(self.experiment, cell["depth"]))
        kept = list(saved_steps(self.experiment))
        shape = (seeds, len(kept), len(layers), samples, cell["embed_dim"])
        ds = xr.Dataset(
            {
                "output": (
                    ("seed", "step", "sample", "target"),
                    rng.normal(size=(seeds, len(kept), samples, targets)),
                ),
                "hidden": (
                    ("seed", "step", "depth_point", "sample", "coordinate"),
                    rng.normal(size=shape).astype(np.float32),
                ),
                "status": ("seed", np.full(seeds, OK, np.int8)),
                "diverged_step": ("seed", np.full(seeds, -1)),
            },
            {
                "seed": np.arange(seeds),
                "step": kept,
                "layer": ("depth_point", layers),
                "s": ("depth_point", layers / cell["depth"]),
            },
        )
        if cell == {"depth": 2, "width": 8, "embed_dim": 16} and seeds > 1:
            ds["status"].values[1], ds["diverged_step"].values[1] = DIVERGED, 1
            ds["hidden"].values[1, 1:] = ds["output"].values[1, 1:] = np.nan
        return ds.isel(seed=slice(seeds - self.missing_seeds)).chunk()


def coords(ds: xr.Dataset) -> list[tuple[int, ...]]:
    names = ("depth", "width", "embed_dim", "seed")
    return [tuple(map(int, row)) for row in np.stack([ds[name].values for name in names], axis=1)]


def test_every_cell_of_every_pair_in_order(
    tiny_experiment: Callable[..., Experiment], tmp_path: Any
) -> None:
    experiment = tiny_experiment(sweep={"grid": {"depth": [4, 2], "embed_dim": [16, 4]}})
    tables = stage.errors(experiment, Results(experiment))
    assert tuple(tables) == experiment.pairs
    grid = [(L, 8, e, k) for L in (2, 4) for e in (4, 16) for k in (0, 1)]
    for pair in ("finite-wide", "finite-mean_ode", "finite-dmft"):
        assert coords(tables[pair]) == grid
        np.testing.assert_array_equal(
            tables[pair]["parameters"], [L * M * e for L, M, e, _ in grid]
        )
        status = tables[pair]["status"]
        assert [grid[k] for k in np.flatnonzero(status != OK)] == [(2, 8, 16, 1)]
        values = tables[pair]["hidden_rms"].values[grid.index((2, 8, 16, 1))]
        np.testing.assert_array_equal(np.isfinite(values), [True, False, False])
    assert coords(tables["wide-mean_ode"]) == [(L, 0, e, k) for L, _, e, k in grid]
    assert coords(tables["mean_ode-dmft"]) == [(0, 0, e, k) for e in (4, 16) for k in (0, 1)]
    assert (tables["mean_ode-dmft"]["parameters"] == 0).all()
    store.write(tables, tmp_path / "errors.zarr", "errors")
    for pair, read in store.open_groups(tmp_path / "errors.zarr").items():
        xr.testing.assert_equal(read.load(), tables[pair])


def test_cells_hold_the_distances_of_their_own_stores(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    experiment = tiny_experiment()
    results = Results(experiment)
    tables = stage.errors(experiment, results)
    L, M, e = 4, 8, 16
    finite = results("finite", {"depth": L, "width": M, "embed_dim": e})
    phi = np.stack([embedding_rows(results.problem, experiment.seed, k, e) for k in (0, 1)])
    limits = {
        "wide": results("wide", {"depth": L, "embed_dim": e}),
        "mean_ode": results("mean_ode", {"embed_dim": e}),
        "dmft": results("dmft", {}),
    }
    expected = {f"finite-{kind}": ds for kind, ds in compare(finite, limits, phi).items()}
    s = np.array(depth_layers(experiment, L)) / L
    expected["wide-mean_ode"] = distances.limit_distances(
        limits["wide"], limits["mean_ode"], phi, s
    )
    expected["mean_ode-dmft"] = distances.limit_distances(
        limits["mean_ode"], limits["dmft"], phi, np.linspace(0, 1, 3)
    )
    for pair, ds in expected.items():
        table = tables[pair]
        here = (table["embed_dim"] == e) & table["depth"].isin([0, L])
        for name in distances.VARIABLES:
            np.testing.assert_allclose(table[name].values[here.values], ds[name].values, rtol=1e-12)


@pytest.mark.parametrize("reading", ["in memory", "lazy", "plain open"])
def test_tables_against_brute_force_through_files(
    tiny_experiment: Callable[..., Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reading: str,
) -> None:
    """Every number of the finite pairs, from stores on disk, by another way of computing it."""
    experiment = tiny_experiment(
        sweep={"grid": {"depth": [4, 8], "width": [8, 16]}}, save={"depth_points": P}
    )
    results = Results(experiment)
    written: dict[Any, Path] = {}
    if reading == "lazy":
        monkeypatch.setattr(store.packing, "CHUNK_BYTES", 512)
        monkeypatch.setattr(store.packing, "SHARD_BYTES", 1024)

    def open_store(kind: str, cell: dict[str, int]) -> xr.Dataset:
        key = (kind, *cell.values())
        if key not in written:
            written[key] = store.write(
                results(kind, cell).load(), tmp_path / f"{len(written)}.zarr"
            )
        if reading == "plain open":
            return xr.open_zarr(written[key])
        found = store.load(written[key], stage.READ[kind])
        assert (found["hidden" if kind == "finite" else "hidden_coef"].chunks is None) == (
            reading == "in memory"
        )
        return found

    tables = stage.errors(experiment, open_store)
    for shape in experiment.shapes:
        sizes = shape._asdict()
        phi = np.stack(
            [embedding_rows(results.problem, experiment.seed, k, shape.embed_dim) for k in (0, 1)]
        )
        limits = {
            "wide": results("wide", {"depth": shape.depth, "embed_dim": shape.embed_dim}),
            "mean_ode": results("mean_ode", {"embed_dim": shape.embed_dim}),
            "dmft": results("dmft", {}),
        }
        finite = results("finite", sizes)
        for kind, ds in limits.items():
            table = tables[f"finite-{kind}"]
            cells = np.logical_and.reduce([table[name] == size for name, size in sizes.items()])
            for k in (0, 1):
                found = table.isel(cell=np.flatnonzero(cells)[k])
                assert int(found["seed"]) == k
                for step in range(experiment.training.steps):
                    expected = brute_force(finite, ds, phi, k, step)
                    actual = [found[v].values[step] for v in distances.VARIABLES]
                    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("lazy", [False, True])
def test_seeds_whose_embedding_rows_do_not_fit_are_compared_in_parts(
    tiny_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, lazy: bool
) -> None:
    experiment = tiny_experiment(sweep={"seeds": 5, "limit_seeds": {"mean_ode": 7}})
    results = Results(experiment)

    def open_store(kind: str, cell: dict[str, int]) -> xr.Dataset:
        found = results(kind, cell).load()
        return found.chunk(seed=2, step=1) if lazy and "seed" in found.dims else found

    whole = stage.errors(experiment, open_store)
    monkeypatch.setattr(stage, "_ROWS_BYTES", 8 * 16 * results.problem.embedding_dims * 2)
    asked: list[int] = []
    rows = stage._Stores._rows

    def watched(self: Any, embed_dim: int, seeds: tuple[int, ...]) -> np.ndarray:
        asked.append(embed_dim * len(seeds))
        return rows(self, embed_dim, seeds)

    monkeypatch.setattr(stage._Stores, "_rows", watched)
    parts = stage.errors(experiment, open_store)
    assert max(asked) == 2 * 16
    for pair, table in whole.items():
        xr.testing.assert_identical(parts[pair], table)


def test_progress_is_told_and_ends_at_everything(
    tiny_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment()
    monkeypatch.setattr(stage, "_TELL_SECONDS", 0.0)
    told: list[tuple[str, int, int, str]] = []
    results = Results(experiment)
    stage.errors(experiment, results, tell=lambda *what: told.append(what))
    cells = len(experiment.shapes) + len(experiment.wide_cells) + len(experiment.embed_dims)
    assert {total for _, _, total, _ in told} == {cells}
    assert [number for _, number, _, _ in told] == sorted(number for _, number, _, _ in told)
    size = sum(results("finite", shape._asdict())["hidden"].nbytes for shape in experiment.shapes)
    assert told[0][0] == "L2_M8_D4"
    assert "networks done at" in told[1][3]
    assert told[-1][1:3] == (cells, cells)
    assert told[-1][3] == f"{size / 1e9:.2f} of {size / 1e9:.2f} GB read"
    # In between no more often than asked for.
    monkeypatch.setattr(stage, "_TELL_SECONDS", 1e9)
    told.clear()
    stage.errors(experiment, results, tell=lambda *what: told.append(what))
    assert [number for _, number, _, _ in told] == [1, cells]


def test_only_what_the_pairs_need_is_opened(tiny_experiment: Callable[..., Experiment]) -> None:
    experiment = tiny_experiment(sweep={"pairs": ["mean_ode-dmft"]})
    results = Results(experiment)
    assert set(stage.errors(experiment, results)) == {"mean_ode-dmft"}
    assert sorted(results.opened) == [("dmft", ()), ("mean_ode", (4,)), ("mean_ode", (16,))]
    experiment = tiny_experiment(sweep={"pairs": ["finite-dmft"]})
    results = Results(experiment)
    stage.errors(experiment, results)
    assert Counter(kind for kind, _ in results.opened) == {"finite": 4, "dmft": 1}


def test_seeds_that_a_store_lacks_are_not_run(tiny_experiment: Callable[..., Experiment]) -> None:
    experiment = tiny_experiment(sweep={"pairs": ["finite-mean_ode"]})
    results = Results(experiment)
    results.missing_seeds = 1
    table = stage.errors(experiment, results)["finite-mean_ode"]
    absent = table["seed"] == 1
    assert (table["status"] == xr.where(absent, NOT_RUN, OK)).all()
    assert table["status"].dtype == np.int8
    assert (np.isnan(table["hidden_rms"]) == absent).all()


def test_networks_of_few_seeds_are_compared_with_limits_of_many(
    tiny_experiment: Callable[..., Experiment],
) -> None:
    """The seeds of each cell are those of its shape; values are those of one number of seeds."""
    pairs = ["wide-mean_ode", "mean_ode-dmft", "finite-mean_ode", "finite-dmft"]
    steps = [{"parameters": 100, "seeds": 3}, {"parameters": 200, "seeds": 2}, {"seeds": 1}]
    experiment = tiny_experiment(sweep={"pairs": pairs, "seeds": steps})
    results = Results(experiment)
    tables = stage.errors(experiment, results)
    expected = {
        (2, 8, 4): 3, (4, 8, 4): 2, (2, 8, 16): 1, (4, 8, 16): 1,
        (2, 0, 4): 3, (4, 0, 4): 2, (2, 0, 16): 1, (4, 0, 16): 1,
        (0, 0, 4): 3, (0, 0, 16): 1,
    }  # fmt: skip
    for pair, table in tables.items():
        found = Counter(row[:3] for row in coords(table))
        assert found == {key: expected[key] for key in found}
        assert not (table["status"] == NOT_RUN).any(), pair
    assert sum(len(set(coords(table))) for table in tables.values()) == 2 * 7 + 7 + 4
    # The network of two seeds against the limit of three, by hand.
    mean_ode = results("mean_ode", {"embed_dim": 4})
    finite = results("finite", {"depth": 4, "width": 8, "embed_dim": 4})
    assert (mean_ode.sizes["seed"], finite.sizes["seed"]) == (3, 2)
    gap = finite["output"].values - mean_ode["output"].values[:2]
    table = tables["finite-mean_ode"]
    rows = (table["depth"] == 4) & (table["embed_dim"] == 4)
    np.testing.assert_allclose(
        table["output_rms"].values[rows.values], np.sqrt((gap**2).mean(axis=(2, 3)))
    )


def test_kept_steps_only(tiny_experiment: Callable[..., Experiment]) -> None:
    experiment = tiny_experiment(save={"steps": [0, 2]})
    tables = stage.errors(experiment, Results(experiment))
    np.testing.assert_array_equal(tables["finite-dmft"]["step"], [0, 2])
    np.testing.assert_array_equal(tables["wide-mean_ode"]["step"], [0, 1, 2])
    assert rates_stage.rates(experiment, tables, no_prediction(3))["steps"] == [2]


@pytest.mark.parametrize(
    ("steps", "saved", "expected"),
    [(15, "all", [5, 14]), (6, "all", [5]), (5, "all", [4]), (15, [0, 9], [9])],
)
def test_steps_of_the_rates(
    tiny_experiment: Callable[..., Experiment], steps: int, saved: Any, expected: list[int]
) -> None:
    experiment = tiny_experiment(
        training={"steps": steps},
        save={"steps": saved},
        sweep={"pairs": ["mean_ode-dmft"], "grid": {"embed_dim": [4, 8, 16]}},
    )
    tables = stage.errors(experiment, Results(experiment))
    found = rates_stage.rates(experiment, tables, no_prediction(steps))
    assert {claim["verdict"] for claim in found["claims"]} == {"undecided"}
    assert found["steps"] == expected
    assert list(found["pairs"]["mean_ode-dmft"]["output"]) == [str(k) for k in expected]
    assert found["experiment"] == "tiny"


def test_a_diverged_limit_is_a_diverged_comparison() -> None:
    rng = np.random.default_rng(4)
    one, two, phi = limit(rng), limit(rng, seeds=None), rng.normal(size=(S, 5, R))
    for name in distances.COMPARED:
        one[name] = one[name].where((one["seed"] != 1) | (one["step"] < 2))
    one["status"].values[1] = DIVERGED
    found = distances.limit_distances(one, two, phi, POINTS)
    np.testing.assert_array_equal(found["status"], [DIVERGED if k == 1 else OK for k in range(S)])
    for name in distances.VARIABLES:
        np.testing.assert_array_equal(np.isnan(found[name].values[1]), np.arange(K) >= 2)
        assert np.isfinite(found[name].values[0]).all()
    prepared = distances.prepare(one, range(S), phi)
    assert prepared["status"].values.tolist() == found["status"].values.tolist()
