"""All results of an experiment as one object: what it gives, and that it reads nothing before."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from resnet_limits import integrity, open_results, store
from resnet_limits.config import Experiment, InputError, experiment_from_dict
from resnet_limits.kinds import DIVERGED, NOT_RUN, OK, Shape
from resnet_limits.problem import embedding_rows, make_problem
from resnet_limits.provenance import cell_seeds
from resnet_limits.results import NotThereError, Results
from resnet_limits.results.folder import Folder
from resnet_limits.stages import (
    checking,
    errors,
    limits,
    networks,
    plan,
    prediction,
    problem,
    rates,
)
from resnet_limits.stages.paths import Paths, cells
from resnet_limits.stages.publish import publish

GRID: dict[str, Any] = {
    "sweep": {
        "grid": {"depth": [2, 4], "width": [4, 6], "embed_dim": [4, 8]},
        "seeds": 2,
        "limit_seeds": {"mean_ode": 3, "wide": 2},
    },
    "save": {"depth_points": 5, "steps": "all", "dtype": "float64"},
}
SHAPES: dict[str, Any] = {
    "sweep": {
        "shapes": [[2, 6, 4], [4, 4, 8], [2, 4, 8]],
        "seeds": [{"parameters": 50, "seeds": 3}, {"seeds": 2}],
        "pairs": ["finite-dmft", "finite-wide", "finite-mean_ode"],
    },
    "save": {"depth_points": 3, "steps": [1, 3], "dtype": "float64"},
}
TOKENS: dict[str, Any] = {
    "problem": {
        "data": {
            "kind": "in_context_regression",
            "samples": 2,
            "tokens": 3,
            "inputs": 1,
            "targets": 1,
            "seed": 0,
        }
    },
    "model": {
        "layer": [
            {"unit": {"kind": "attention_head", "key_dim": 1, "causal": True}, "norm": "rms"},
            {"unit": {"kind": "perceptron", "activation": "tanh"}, "norm": "rms"},
        ]
    },
    "sweep": {
        "grid": {"depth": [2], "width": [4], "embed_dim": [6]},
        "seeds": 2,
        "pairs": ["finite-dmft", "finite-wide"],
    },
    "save": {"depth_points": 3, "steps": "all", "dtype": "float64"},
}
DIVERGES = Shape(4, 6, 4)
MISSING = Shape(2, 6, 8)


def an_experiment(name: str, values: dict[str, Any]) -> Experiment:
    linear = {"data": {"kind": "gaussian", "samples": 3, "inputs": 2, "targets": 1, "seed": 0}}
    return experiment_from_dict(
        {
            "experiment": name,
            "problem": linear,
            "training": {"steps": 4, "learning_rate": 0.3},
            "numerics": {"precision": "float64", "device": "cpu", "limit_tolerance": 0.1},
            **values,
        }
    )


def make(root: Path, experiment: Experiment) -> Path:
    """Compute all results of an experiment, as its jobs do."""
    paths = Paths(root, experiment.experiment)

    def published(kind: str, found: Any, **cell: int) -> None:
        publish(
            found,
            paths.store(kind, **cell),
            kind=kind,
            experiment=experiment,
            key="made here",
            device="cpu",
            seeds=cell_seeds(kind, experiment, **cell),
            started=time.monotonic(),
            manifest=paths.manifest(kind, **cell),
        )

    published("problem", problem.problem(experiment))
    dmft = limits.dmft(experiment)
    published("dmft", dmft)
    for cell in cells("mean_ode", experiment):
        published("mean_ode", limits.mean_ode(experiment, cell["embed_dim"], dmft), **cell)
    for cell in cells("wide", experiment):
        found = limits.wide(experiment, cell["depth"], cell["embed_dim"], dmft)
        published("wide", found, **cell)
    for cell in cells("finite", experiment):
        shape = Shape(**cell)
        if experiment.experiment == "grid" and shape == MISSING:
            continue
        found = networks.finite(experiment, shape)
        if experiment.experiment == "grid" and shape == DIVERGES:
            found = diverged(found)
        published("finite", found, **cell)

    def opened(kind: str, cell: dict[str, int]) -> xr.Dataset:
        if kind == "finite" and not paths.store(kind, **cell).exists():
            # As of a shape whose networks were not run.
            other = networks.finite(experiment, Shape(**cell)).load()
            for name in ("output", "loss", "hidden", "backward"):
                other[name] *= np.nan
            other["status"][:] = NOT_RUN
            return other
        return store.open_store(paths.store(kind, **cell))

    tables = errors.errors(experiment, opened)
    published("errors", tables)
    # What takes longer to compute has no part in what is tested here.
    predicted = prediction.prediction(experiment, dmft, most_seconds=0.5)
    published("prediction", predicted)
    published("rates", rates.rates(experiment, tables, predicted))
    plan.record(experiment, paths, "a run")
    return paths.folder


def diverged(found: xr.Dataset) -> xr.Dataset:
    """Let the second seed diverge at step 2."""
    found = found.load().copy(deep=True)
    for name in ("output", "loss", "hidden", "backward"):
        found[name][1, 2:] = np.nan
    found["status"][1], found["diverged_step"][1] = DIVERGED, 2
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("results")
    kinds = {"grid": GRID, "shapes": SHAPES, "tokens": TOKENS}
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = make(root, an_experiment(name, kinds[name]))
        return made[name]

    return folder


@pytest.fixture
def grid(folders: Callable[[str], Path]) -> Results:
    return open_results(folders("grid"))


@pytest.fixture
def shapes(folders: Callable[[str], Path]) -> Results:
    return open_results(folders("shapes"))


# --- what is read ---------------------------------------------------------------------------------

READ: list[str] = []
WATCHED = [False]
CHUNK = re.compile(r"/(?P<store>[^/]+\.zarr)/(?:[^/]+/)*(?P<variable>[^/]+)/c(?:[./]\d+)*$")


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED[0] and event == "open" and (found := CHUNK.search(str(arguments[0]))):
        READ.append(f"{found['store']} {found['variable']}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Note every chunk that is opened, by whatever reads it."""
    if note not in HOOKS:
        sys.addaudithook(note)
        HOOKS.append(note)
    READ.clear()
    WATCHED[0] = True
    try:
        yield READ
    finally:
        WATCHED[0] = False


HOOKS: list[Any] = []


def test_opening_reads_no_array(folders):
    folder = folders("grid")
    with watched() as read:
        results = open_results(folder)
        repr(results)
        results._repr_html_()
        results.networks, results.limit("wide"), results["fields/L4_D8"]
    assert read == []


def test_the_tree_reads_no_more_than_what_numbers_its_dimensions(folders):
    folder = folders("grid")
    with watched() as read:
        tree = open_results(folder).tree
        repr(tree)
    assert {name.split()[1] for name in read} <= {"step", "node", "replicate"}
    assert {name.split()[0] for name in read} <= {"dmft.zarr", "errors.zarr"}


def test_using_reads_what_is_used_and_no_more(grid):
    """The control of both, and how little one curve takes."""
    with watched() as read:
        grid.loss.sel(depth=2, width=4, embed_dim=8).load()
    assert {name for name in read if name.endswith("loss")} == {"L2_M4_D8.zarr loss"}
    assert {name.split()[0] for name in read} == {"L2_M4_D8.zarr"}
    assert not any(name.endswith(("hidden", "backward", "output")) for name in read)
    with watched() as read:
        field = grid.field(2, 4, 8)
        assert not any(name.endswith("hidden") for name in read)
        field.load()
    assert any(name.endswith("hidden") for name in read)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, resnet_limits; {}; print('xarray' in sys.modules)"
    for use, loaded in (("dir(resnet_limits)", "False"), ("resnet_limits.open_results", "True")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(use)], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == loaded


def test_the_package_knows_its_names():
    import resnet_limits

    assert "open_results" in dir(resnet_limits)
    with pytest.raises(AttributeError, match="has no attribute 'open_result'"):
        _ = resnet_limits.open_result


# --- networks -------------------------------------------------------------------------------------


def by_hand(folder: Path, name: str) -> xr.Dataset:
    return xr.open_zarr(folder / f"{name}.zarr").load()


@pytest.mark.parametrize("name", ["loss", "output"])
def test_networks_of_a_grid_are_those_of_their_stores(grid, name):
    stacked = grid.networks[name]
    assert stacked.dims[:5] == ("depth", "width", "embed_dim", "seed", "step")
    for depth, width, embed_dim in grid.experiment.shapes:
        one = stacked.sel(depth=depth, width=width, embed_dim=embed_dim)
        if (depth, width, embed_dim) == MISSING:
            assert np.isnan(one.values).all()
            continue
        own = by_hand(grid.path, f"finite/L{depth}_M{width}_D{embed_dim}")
        np.testing.assert_array_equal(one, own[name])


def test_how_networks_ended(grid):
    status = grid.status.load()
    assert status.attrs["flag_meanings"] == "ok diverged not_run"
    assert (status.sel(MISSING._asdict()) == NOT_RUN).all()
    assert status.sel(DIVERGES._asdict()).values.tolist() == [OK, DIVERGED]
    assert int((status == OK).sum()) == 2 * 8 - 2 - 1
    assert grid.diverged.to_dict("records") == [{**DIVERGES._asdict(), "seed": 1, "step": 2}]


def test_networks_of_shapes_that_are_no_grid(shapes):
    loss = shapes.loss
    assert loss.dims == ("shape", "seed", "step")
    assert loss.sizes == {"shape": 3, "seed": 3, "step": 2}
    for depth, width, embed_dim in shapes.experiment.shapes:
        one = loss.sel(depth=depth, width=width, embed_dim=embed_dim)
        own = by_hand(shapes.path, f"finite/L{depth}_M{width}_D{embed_dim}")
        one = one.squeeze().transpose("seed", "step")
        np.testing.assert_array_equal(one.sel(seed=own.seed), own.loss)
        assert np.isnan(one.drop_sel(seed=own.seed)).all()
    wanted = [shape.parameters for shape in shapes.experiment.shapes]
    assert shapes.networks.parameters.values.tolist() == wanted


def test_limits_are_aligned_with_networks(grid, shapes):
    for results in (grid, shapes):
        for kind, keys in (("wide", "L{0}_D{2}"), ("mean_ode", "D{2}")):
            difference = (results.loss - results.limit(kind).loss).load()
            for shape in results.experiment.shapes:
                if results is grid and shape == MISSING:
                    continue
                own = by_hand(results.path, "finite/L{}_M{}_D{}".format(*shape))
                limit = by_hand(results.path, f"{kind}/{keys.format(*shape)}")
                here = difference.sel(shape._asdict()).squeeze()
                here = here.sel(seed=own.seed).transpose("seed", "step")
                wanted = own.loss - limit.loss
                np.testing.assert_array_equal(here, wanted.sel(seed=own.seed, step=own.step))
        own = by_hand(results.path, "dmft")
        np.testing.assert_array_equal(results.limit().loss, own.loss)


def test_fields_of_all_widths(grid):
    fields = grid["fields/L4_D8"]
    assert fields.hidden.dims == ("width", "seed", "step", "depth_point", "sample", "coordinate")
    for width in (4, 6):
        own = by_hand(grid.path, f"finite/L4_M{width}_D8")
        np.testing.assert_array_equal(fields.hidden.sel(width=width), own.hidden)
        np.testing.assert_array_equal(fields.layer, own.layer)
    assert np.isnan(grid["fields/L2_D8"].hidden.sel(width=6)).all()


def test_a_store_that_is_large_is_read_piece_by_piece(grid, monkeypatch):
    """Blocks are those on disk, and a block reads its own steps alone."""
    from resnet_limits.results import lazy
    from resnet_limits.store import packing

    monkeypatch.setattr(packing, "CHUNK_BYTES", 256)
    monkeypatch.setattr(packing, "SHARD_BYTES", 1024)
    assert lazy.pack is packing.pack
    fields = open_results(grid.path)["fields/L4_D8"]
    assert len(fields.hidden.chunks[2]) > 1
    own = by_hand(grid.path, "finite/L4_M4_D8")
    np.testing.assert_array_equal(fields.hidden.sel(width=4), own.hidden)
    few = fields.hidden.sel(width=4, step=3, seed=1)[..., ::2]
    np.testing.assert_array_equal(few, own.hidden.sel(step=3, seed=1)[..., ::2])


# --- fields and kernels ---------------------------------------------------------------------------


def limit_coefficients(limit: xr.Dataset, s: np.ndarray, name: str) -> np.ndarray:
    """Interpolate in depth with numpy alone: (..., step, point, sample, [token,] r)."""
    nodes = limit.node.values
    basis = np.vander(s, len(nodes)) @ np.linalg.inv(np.vander(nodes))
    axis = limit[name].dims.index("node")
    return np.moveaxis(np.tensordot(basis, limit[name].values, (1, axis)), 0, axis)


def limit_stores(results: Results, shape: Shape) -> dict[str, xr.Dataset]:
    names = {
        "dmft": "dmft",
        "mean_ode": f"mean_ode/D{shape[2]}",
        "wide": f"wide/L{shape[0]}_D{shape[2]}",
    }
    return {
        kind: by_hand(results.path, name)
        for kind, name in names.items()
        if (results.path / f"{name}.zarr").exists()
    }


def rows_of(results: Results, embed_dim: int, seed: int) -> np.ndarray:
    made = make_problem(results.experiment)
    return embedding_rows(made, results.experiment.seed, seed, embed_dim)


@pytest.mark.parametrize("name", ["grid", "shapes", "tokens"])
@pytest.mark.parametrize("of", ["hidden", "backward"])
def test_fields_are_those_of_the_stores(folders, name, of):
    results = open_results(folders(name))
    shape = results.experiment.shapes[0]
    own = by_hand(results.path, "finite/L{}_M{}_D{}".format(*shape))
    field = results.field(*shape, of=of)
    xr.testing.assert_equal(field.drop_attrs(), own[of].drop_attrs())
    stores = limit_stores(results, shape)
    assert set(stores) == ({"dmft", "wide"} if name == "tokens" else {"dmft", "mean_ode", "wide"})
    for kind, limit in stores.items():
        found = results.field(*shape, limit=kind, of=of)
        assert found.dims == field.dims
        for dim in ("seed", "step", "s", "layer"):
            np.testing.assert_array_equal(found[dim], field[dim])
        coefs = limit_coefficients(limit, own.s.values, f"{of}_coef")
        for k, seed in enumerate(own.seed.values):
            of_seed = coefs[k] if "seed" in limit.dims else coefs
            wanted = (of_seed @ rows_of(results, shape[2], seed).T)[own.step.values]
            np.testing.assert_allclose(found.sel(seed=seed), wanted, rtol=1e-8, atol=1e-10)
            # The control: the rows of another seed are told apart.
            other = (of_seed @ rows_of(results, shape[2], seed + 1).T)[own.step.values]
            assert not np.allclose(found.sel(seed=seed), other, rtol=0.1)
    assert (field - results.field(*shape, limit="dmft")).shape == field.shape


def test_a_limit_at_other_depths_and_one_seed(grid):
    found = grid.field(4, 4, 8, limit="dmft", seed=1, s=[0.3])
    assert found.dims == ("step", "s", "sample", "coordinate")
    coefs = limit_coefficients(by_hand(grid.path, "dmft"), np.array([0.3]), "hidden_coef")
    np.testing.assert_allclose(found, coefs @ rows_of(grid, 8, 1).T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["grid", "tokens"])
def test_kernels_are_means_over_coordinates(folders, name):
    results = open_results(folders(name))
    shape = results.experiment.shapes[0]
    letters = "ijt" if name == "tokens" else "ij"
    doubled = ["step", "sample", "token"][: len(letters)]
    dims = (*doubled, *(f"{d}_other" for d in doubled))
    h = by_hand(results.path, "finite/L{}_M{}_D{}".format(*shape)).hidden.values
    upper = letters.upper()
    first, second = (f"s{x[0]}l{x[1:]}d" for x in (letters, upper))
    wanted = np.einsum(f"{first},{second}->sl{letters}{upper}", h, h) / shape[2]
    found = results.kernel(*shape)
    assert found.dims == ("seed", "depth_point", *dims)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    for kind, limit in limit_stores(results, shape).items():
        found = results.kernel(*shape, limit=kind)
        c = limit_coefficients(limit, found.s.values, "hidden_coef")
        r, grams = c.shape[-1], {}
        if kind == "dmft":
            assert found.dims == ("depth_point", *dims)
            grams[None] = np.eye(r)
        else:
            assert found.dims == ("seed", "depth_point", *dims)
            for seed in found.seed.values:
                rows = rows_of(results, shape[2], int(seed))
                grams[int(seed)] = rows.T @ rows / shape[2]
        for seed, gram in grams.items():
            a = c if seed is None else c[seed]
            first, second = (f"{x[0]}l{x[1:]}" for x in (letters, upper))
            wanted = np.einsum(f"{first}p,pq,{second}q->l{letters}{upper}", a, gram, a)
            one = found if seed is None else found.sel(seed=seed)
            np.testing.assert_allclose(one, wanted, rtol=1e-8, atol=1e-10)


def test_a_kernel_at_one_step_is_that_of_all(grid):
    shape = grid.experiment.shapes[0]
    for limit in (None, "dmft", "wide"):
        whole = grid.kernel(*shape, limit=limit)
        one = grid.kernel(*shape, limit=limit, step=np.int64(2))
        xr.testing.assert_allclose(one, whole.sel(step=2, step_other=2))


# --- distances ------------------------------------------------------------------------------------


def cell_table(results: Results, pair: str) -> xr.Dataset:
    return xr.open_zarr(results.path / "errors.zarr", group=pair).load()


@pytest.mark.parametrize("name", ["grid", "shapes", "tokens"])
def test_distances_stand_at_their_sizes(folders, name):
    results = open_results(folders(name))
    for pair in results.experiment.pairs:
        table = cell_table(results, pair)
        for observable, variable in (("hidden", "hidden_rms"), ("output", "output_rms")):
            found = results.distance(pair, observable).load()
            for row in range(table.sizes["cell"]):
                at = table.isel(cell=row)
                sizes = {n: int(at[n]) for n in ("depth", "width", "embed_dim") if int(at[n])}
                if "shape" in found.dims:
                    one = results.distance(pair, observable, **sizes, seed=int(at.seed))
                else:
                    one = found.sel(**sizes, seed=int(at.seed))
                np.testing.assert_array_equal(np.squeeze(one), np.squeeze(at[variable]))
            assert int(found.notnull().sum()) == int(table[variable].notnull().sum())


def test_root_mean_squares_are_over_cells_that_ended_well(grid):
    table = cell_table(grid, "finite-dmft")
    good = table.isel(cell=np.flatnonzero(table.status == OK))
    assert good.sizes["cell"] == table.sizes["cell"] - 3
    for size in ("depth", "width", "embed_dim", "seed"):
        found = grid.distance(by=size)
        assert found.dims == (size, "step")
        for value in found[size].values:
            rows = good.hidden_rms.values[good[size].values == value]
            np.testing.assert_allclose(found.sel({size: value}), (rows**2).mean(0) ** 0.5)
    np.testing.assert_allclose(grid.distance(by="step"), (good.hidden_rms**2).mean("cell") ** 0.5)
    assert grid.distance(by=["embed_dim", "depth"], step=-1).dims == ("embed_dim", "depth")
    # The control: with what the diverged network had done before it is another number.
    with_all = (table.hidden_rms**2).mean("cell") ** 0.5
    assert not np.allclose(with_all, (good.hidden_rms**2).mean("cell") ** 0.5)


def test_root_mean_squares_where_shapes_are_no_grid(shapes):
    table = cell_table(shapes, "finite-dmft")
    found = shapes.distance(by="depth", step=3)
    assert found.dims == ("depth",)
    for depth in (2, 4):
        rows = table.hidden_rms.sel(step=3).values[table.depth.values == depth]
        np.testing.assert_allclose(found.sel(depth=depth), (rows**2).mean() ** 0.5)
    assert shapes.distance(by="shape").dims == ("shape", "step")
    with pytest.raises(InputError, match="by: got depth, width; allowed where the shapes are no"):
        shapes.distance(by=["depth", "width"])


@pytest.mark.parametrize("name", ["grid", "shapes", "tokens"])
def test_distance_over_depth_ends_in_the_distance(folders, name):
    results = open_results(folders(name))
    for pair in results.experiment.pairs:
        depends = [
            n
            for n, size in zip(("depth", "width", "embed_dim"), "LMD", strict=True)
            if pair.startswith("finite") or size == "D" or (size == "L" and "wide" in pair)
        ]
        shape = results.experiment.shapes[0]
        sizes = {n: getattr(shape, n) for n in depends}
        found = results.distance(pair, by=["s", "seed"], **sizes)
        assert found.dims == ("seed", "step", "s")
        last = results.distance(pair, **sizes).sel(seed=found.seed)
        np.testing.assert_allclose(found.sel(s=1.0), last, rtol=1e-6, atol=1e-9)
        one = results.distance(pair, by="s", seed=0, step=3, **sizes)
        np.testing.assert_array_equal(one, found.sel(seed=0, step=3))
        over = results.distance(pair, by="s", **sizes)
        np.testing.assert_allclose(over, (found**2).mean("seed") ** 0.5)


def test_distance_over_depth_by_hand(grid):
    shape = grid.experiment.shapes[0]
    own = by_hand(grid.path, "finite/L{}_M{}_D{}".format(*shape))
    coefs = limit_coefficients(by_hand(grid.path, "dmft"), own.s.values, "hidden_coef")
    found = grid.distance(by=["s", "seed"], **shape._asdict())
    assert found.layer.values.tolist() == own.layer.values.tolist()
    for k in (0, 1):
        difference = own.hidden.values[k] - coefs @ rows_of(grid, shape[2], k).T
        wanted = (difference**2).mean((-2, -1)) ** 0.5
        np.testing.assert_allclose(found.sel(seed=k), wanted, rtol=1e-7, atol=1e-10)


def test_distance_over_depth_without_a_table_of_it(grid, tmp_path):
    """Tables of older versions lack it, and the fields themselves are compared."""
    folder = tmp_path / "grid"
    shutil.copytree(grid.path, folder)
    tables = store.open_groups(folder / "errors.zarr")
    older = {
        pair: table.load().drop_vars(["hidden_rms_at", "s"]).drop_encoding()
        for pair, table in tables.items()
    }
    shutil.rmtree(folder / "errors.zarr")
    attrs = store.open_store(grid.path / "errors.zarr").attrs
    store.write(older, folder / "errors.zarr", attrs=attrs)
    results = open_results(folder)
    for pair, sizes in (
        ("finite-dmft", {"depth": 4, "width": 6, "embed_dim": 4}),
        ("finite-wide", {"depth": 4, "width": 4, "embed_dim": 8}),
        ("wide-mean_ode", {"depth": 2, "embed_dim": 8}),
    ):
        found = results.distance(pair, by=["s", "seed"], **sizes)
        stored = grid.distance(pair, by=["s", "seed"], **sizes)
        np.testing.assert_allclose(found, stored, rtol=1e-7, atol=1e-10)
        np.testing.assert_array_equal(found.s, stored.s)


def test_distance_over_depth_is_taken_from_the_table_where_it_is_there(grid, tmp_path):
    """Doctored numbers show which of both is used; depths are padded as for other depths."""
    folder = tmp_path / "grid"
    shutil.copytree(grid.path, folder)
    tables = store.open_groups(folder / "errors.zarr")
    changed = {}
    for pair, lazy in tables.items():
        table = lazy.drop_vars(["hidden_rms_at", "s"], errors="ignore").load()
        cells_, steps, points = table.sizes["cell"], table.sizes["step"], 7
        depth = np.where(table.depth.values, table.depth.values, points - 1)
        s = np.full((cells_, points), np.nan)
        for row, L in enumerate(depth):
            s[row, : L + 1] = np.arange(L + 1) / L
        at = np.where(np.isnan(s)[:, None], np.nan, 7.0 + np.nan_to_num(s)[:, None])
        at = np.broadcast_to(at, (cells_, steps, points)).copy()
        table["hidden_rms_at"] = (("cell", "step", "depth_point"), at, {"long_name": "at s"})
        coords = {"s": (("cell", "depth_point"), s, {"long_name": "s"})}
        changed[pair] = table.assign_coords(coords).drop_encoding()
    shutil.rmtree(folder / "errors.zarr")
    attrs = store.open_store(grid.path / "errors.zarr").attrs
    store.write(changed, folder / "errors.zarr", attrs=attrs)
    results = open_results(folder)
    found = results.distance(by="s", depth=2, width=4, embed_dim=4, step=-1)
    assert found.s.values.tolist() == [0.0, 0.5, 1.0]
    assert found.layer.values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found, [7.0, 7.5, 8.0])
    found = results.distance("mean_ode-dmft", by="s", embed_dim=4, step=-1, seed=2)
    np.testing.assert_allclose(found, 7 + found.s)
    assert results["errors/finite-dmft"].hidden_rms_at.dims[-2:] == ("step", "depth_point")


def test_predicted_distances(grid):
    found = grid.predicted("finite-wide")
    assert found.dims == ("depth", "width", "embed_dim", "step")
    table = grid.prediction["hidden"]["sqrt(D/(LM))"]["amplitude"]
    wanted = table[3] * np.sqrt(8 / (4 * 6))
    assert float(found.sel(depth=4, width=6, embed_dim=8, step=3)) == pytest.approx(wanted)
    assert grid.predicted("mean_ode-dmft", "output").dims == ("embed_dim", "step")


def test_predicted_distances_over_depth(grid):
    """They end in those at s = 1, and bear the depths of the file."""
    over = grid.predicted("finite-wide", by="s")
    assert over.dims == ("depth", "width", "embed_dim", "step", "s")
    assert over.s.values.tolist() == grid.prediction["hidden_at"]["s"]
    np.testing.assert_allclose(over.sel(s=1.0), grid.predicted("finite-wide"), rtol=1e-9)
    with pytest.raises(InputError, match="by: got s of output; allowed: s of hidden"):
        grid.predicted("finite-wide", "output", by="s")


def test_claims_are_those_of_the_file(grid):
    claims = json.loads((grid.path / "rates.json").read_text())["claims"]
    frame = grid.claims
    assert len(frame) == len(claims) > 0
    for row, claim in zip(frame.to_dict("records"), claims, strict=True):
        assert (row["claim"], row["verdict"]) == (claim["claim"], claim["verdict"])
        assert row["pair"] == claim["where"]["pair"]
    assert {"pair", "quantity", "step", "exponent"} <= set(grid.rates.columns)


# --- what is said ---------------------------------------------------------------------------------


def test_what_is_shown(grid, shapes):
    assert re.search(r"networks +7 of 8 shapes, seeds 0 to 1; depth 2, 4, width 4, 6", repr(grid))
    assert "mean_ode 2 of 2, wide 4 of 4" in repr(grid)
    assert "<th scope='row'" in grid._repr_html_()
    assert "limits/wide" in grid._ipython_key_completions_()
    assert list(shapes)[:2] == ["problem", "networks"]


BAD: dict[str, tuple[Callable[[Results], Any], type[Exception], str]] = {
    "depth": (lambda r: r.field(3, 4, 4), NotThereError, "depth: got 3; there are: 2, 4"),
    "missing": (lambda r: r.field(*MISSING), NotThereError, "finite L=2 M=6 D=8: not run"),
    "limit": (
        lambda r: r.field(2, 4, 4, limit="ode"),
        InputError,
        "limit: got ode; allowed: dmft, mean_ode, wide, or none",
    ),
    "of": (lambda r: r.kernel(2, 4, 4, of="h"), InputError, "of: got h; allowed: hidden, backward"),
    "seed": (lambda r: r.field(2, 4, 4, seed=9), InputError, "seed: got 9; allowed: 0, 1"),
    "step": (lambda r: r.kernel(2, 4, 4, step=9), InputError, "step: got 9; allowed: 0, 1, 2, 3"),
    "s": (lambda r: r.field(2, 4, 4, s=[0.5]), InputError, "allowed: with a limit"),
    "outside": (
        lambda r: r.field(2, 4, 4, limit="dmft", s=[2.0]),
        InputError,
        "s: got a depth outside; allowed: numbers from 0 to 1",
    ),
    "pair": (
        lambda r: r.distance("dmft-finite"),
        NotThereError,
        "pair: got dmft-finite; there are: finite-wide, ",
    ),
    "observable": (lambda r: r.distance(observable="h"), InputError, "observable: got h; allowed"),
    "by": (lambda r: r.distance(by="layer"), InputError, "by: got layer; allowed: depth, width, "),
    "over depth": (lambda r: r.distance(by="s"), InputError, "by: s needs one network"),
    "width": (
        lambda r: r.distance("mean_ode-dmft", width=4),
        InputError,
        "width: the pair mean_ode-dmft does not depend on it",
    ),
    "size": (lambda r: r.distance(width=5), InputError, "width: got 5; allowed: 4, 6"),
    "name": (lambda r: r["nets"], NotThereError, "nets: no such dataset; there are: problem, "),
    "kind": (lambda r: r.store("ode"), InputError, "kind: got ode; allowed: problem, dmft, "),
    "sizes": (
        lambda r: r.store("wide", depth=2),
        InputError,
        "wide: got depth; allowed: depth, embed_dim",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_told_in_one_line(grid, name):
    call, kind, message = BAD[name]
    with pytest.raises(kind) as caught:
        call(grid)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, KeyError | ValueError)


def test_folders_that_hold_no_results(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_results(tmp_path / "none")
    with pytest.raises(InputError, match="holds no results of an experiment"):
        open_results(tmp_path)


def test_results_that_are_not_complete(grid, tmp_path):
    """A run that was stopped: no errors, no rates, networks of a sweep that has grown since."""
    folder = tmp_path / "grid"
    shutil.copytree(grid.path, folder)
    for name in ("errors.zarr", "rates.json", "prediction.json"):
        integrity.remove(folder / name)
        (folder / "manifests" / name).with_suffix(".json").unlink()
    planned = integrity.read_json(folder / ".plan")
    planned["sweep"]["grid"]["depth"] = [2, 4, 8]
    integrity.write_json(planned, folder / ".plan")
    results = open_results(folder)
    assert "7 of 12 shapes" in repr(results)
    assert "claims    not there" in repr(results)
    assert results.loss.sel(depth=8).isnull().all()
    assert results.claims.empty
    with pytest.raises(NotThereError, match=r"none, errors\.zarr is not there"):
        results.distance()
    with pytest.raises(NotThereError, match="no prediction was made"):
        results.predicted()
    with pytest.raises(NotThereError, match="finite L=8 M=4 D=4: not run, or not finished"):
        results.field(8, 4, 4)


def test_a_store_without_its_manifest_is_not_there(grid, tmp_path):
    folder = tmp_path / "grid"
    shutil.copytree(grid.path, folder)
    (folder / "manifests/finite/L2_M4_D4.json").unlink()
    assert open_results(folder).loss.sel(depth=2, width=4, embed_dim=4).isnull().all()
    # Where somebody has copied stores alone, all of them count.
    shutil.rmtree(folder / "manifests")
    assert open_results(folder).loss.sel(depth=2, width=4, embed_dim=4).notnull().all()


def test_a_damaged_store_is_told(grid, tmp_path):
    folder = tmp_path / "grid"
    shutil.copytree(grid.path, folder)
    (chunk,) = (folder / "finite/L2_M4_D4.zarr/loss").glob("c.*")
    raw = bytearray(chunk.read_bytes())
    raw[5] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(
        store.StoreError, match=r"L2_M4_D4\.zarr: loss/c\.0\.0: stored and computed"
    ):
        open_results(folder).loss.load()


# --- without the package --------------------------------------------------------------------------

PLAIN = """
import sys, json, warnings

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "resnet_limits":
            raise ImportError("not here")

sys.meta_path.insert(0, Forbidden())
warnings.simplefilter("ignore")
import xarray as xr

tree = xr.open_datatree(sys.argv[1], engine="zarr")
loss = {
    group: tree[group].loss.values.tolist()
    for group in tree.groups if group.startswith(("/finite/", "/wide/", "/dmft"))
}
cells = {name: tree["errors.zarr"][name].sizes["cell"] for name in tree["errors.zarr"].children}
json.dump([loss, cells], sys.stdout)
"""


def read_plainly(folder: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_plain_xarray_opens_the_folder_as_a_tree(grid, tmp_path):
    loss, found = read_plainly(grid.path)
    stores = [*(grid.path / "finite").glob("*.zarr"), *(grid.path / "wide").glob("*.zarr")]
    assert set(loss) == {f"/{s.parent.name}/{s.name}" for s in stores} | {"/dmft.zarr"}
    own = by_hand(grid.path, "finite/L4_M4_D8").loss.values
    np.testing.assert_array_equal(loss["/finite/L4_M4_D8.zarr"], own)
    assert set(found) == set(grid.experiment.pairs)


def test_a_plain_tree_is_never_older_than_its_stores(grid, tmp_path):
    """A store with more seeds takes the place of another: there is no copy of its metadata."""
    folder = tmp_path / "grid"
    shutil.copytree(grid.path, folder)
    read_plainly(folder)
    experiment = an_experiment("grid", GRID)
    more = networks.finite(experiment, Shape(4, 4, 8), seeds=range(5))
    attrs = store.open_store(folder / "finite/L4_M4_D8.zarr").attrs
    shutil.rmtree(folder / "finite/L4_M4_D8.zarr")
    store.write(more, folder / "finite/L4_M4_D8.zarr", "finite", attrs=attrs)
    loss, _ = read_plainly(folder)
    np.testing.assert_array_equal(loss["/finite/L4_M4_D8.zarr"], more.loss)


def test_folders_of_results_are_no_stores(grid):
    assert (grid.path / "zarr.json").is_file()
    assert not checking.is_store(grid.path)
    assert not checking.is_store(grid.path / "finite")
    assert checking.is_store(grid.path / "finite/L4_M4_D8.zarr")
    found = list(checking.find(grid.path))
    assert grid.path / "finite/L4_M4_D8.zarr" in found
    assert grid.path / "finite" not in found
    assert Folder(grid.path).is_there("finite", depth=4, width=4, embed_dim=8)


def test_opening_is_in_no_stage_key():
    from resnet_limits.provenance import code

    for stage in ("problem", "limits", "networks", "errors", "rates", "figures"):
        module = f"resnet_limits.stages.{stage}"
        found = code._imported_modules(module, code.PACKAGE_DIRECTORY, frozenset())
        assert not any(name.startswith("resnet_limits.results") for name in found)
    found = code._imported_modules("resnet_limits.results", code.PACKAGE_DIRECTORY, frozenset())
    assert "resnet_limits.results.lazy" in found
