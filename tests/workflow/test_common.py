"""What the workflow reads, and how it shares cells among jobs."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from trees import ROOT

from resnet_limits import provenance
from resnet_limits.stages.paths import FIGURES

COMMON = ROOT / "rules" / "common.smk"


def load_common(*files: Path, **values: Any) -> dict[str, Any]:
    """Run the functions of the workflow as plain Python, as Snakemake would with these options."""
    workflow = SimpleNamespace(
        config_settings=SimpleNamespace(config=values),
        overwrite_configfiles=[str(file) for file in files],
        basedir=str(ROOT),
        resource_settings=SimpleNamespace(default_resources=None),
        is_main_process=True,
        execution_settings=None,
    )
    names: dict[str, Any] = {"workflow": workflow, "config": dict(values)}
    exec(compile(COMMON.read_text(encoding="utf-8"), str(COMMON), "exec"), names)
    return names


@pytest.fixture
def common(tmp_path: Path, tiny_values: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    def build(**overrides: Any) -> dict[str, Any]:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(tiny_values(**overrides)), encoding="utf-8")
        return load_common(file, results=str(tmp_path / "results"))

    return build


def _grid(*sizes: int) -> dict[str, Any]:
    return {"grid": {"depth": list(sizes), "width": list(sizes), "embed_dim": list(sizes)}}


def _finite_names(names: dict[str, Any]) -> list[str]:
    cells = names["cells"]("finite", names["EXPERIMENT"])
    return [names["cell_name"]("finite", **cell) for cell in cells]


def _write_last_sweep(names: dict[str, Any], seeds: dict[str, int]) -> None:
    """Leave the record of a complete sweep: its cells, each with its number of seeds."""
    manifest = names["PATHS"].manifest("errors")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"cells": seeds}), encoding="utf-8")


@pytest.mark.parametrize("kind", ["mean_ode", "wide", "finite"])
@pytest.mark.parametrize("sizes", [(4,), (4, 8), (10, 20, 40, 80, 160, 320)])
def test_every_cell_is_in_exactly_one_bundle(
    kind: str, sizes: tuple[int, ...], common: Callable[..., Any]
) -> None:
    names = common(sweep=_grid(*sizes))
    bundles = names["bundles"](kind)
    found = [tuple(cell.values()) for bundle in bundles for cell in bundle.cells]
    wanted = [tuple(cell.values()) for cell in names["cells"](kind, names["EXPERIMENT"])]
    assert sorted(found) == sorted(wanted)
    assert len({bundle.name for bundle in bundles}) == len(bundles) <= names["MOST_BUNDLES"]
    assert all(bundle.cells for bundle in bundles)


def test_many_cells_make_tens_of_jobs_of_like_cost(common: Callable[..., Any]) -> None:
    names = common(sweep=_grid(*range(20, 300, 20)), training={"steps": 15})
    bundles = names["bundles"]("finite")
    costs = [sum(names["seconds"]("finite", cell) for cell in b.cells) for b in bundles]
    dearest = max(names["seconds"]("finite", cell) for b in bundles for cell in b.cells)
    assert 10 <= len(bundles) <= 64
    assert max(costs) <= sum(costs) / len(costs) + dearest
    # Three seconds to start Python are then little.
    assert sum(costs) / len(costs) >= 30


def test_points_are_dealt_out_to_layers_so_that_depth_costs_nothing(
    common: Callable[..., Any],
) -> None:
    seconds = common()["seconds"]
    costs = {depth: seconds("wide", {"depth": depth, "embed_dim": 16}) for depth in (1, 4, 10_000)}
    assert costs[1] == costs[4] == costs[10_000] == seconds("mean_ode", {"embed_dim": 16})


def test_cost_of_a_limit_grows_with_its_quadrature(common: Callable[..., Any]) -> None:
    costs = [
        common(numerics={"limit_tolerance": tolerance})["seconds"]("dmft", {})
        for tolerance in (1e-2, 1e-3, 1e-4)
    ]
    assert 5 * costs[0] < 5 * costs[1] < costs[2]
    assert common(model={"unit": {"activation": "linear"}})["seconds"]("dmft", {}) < costs[0]


def test_a_unit_need_not_have_an_activation(common: Callable[..., Any]) -> None:
    names = common()
    tanh = names["seconds"]("dmft", {})
    model = names["EXPERIMENT"].model.model_copy(update={"unit": SimpleNamespace(kind="other")})
    names["EXPERIMENT"] = names["EXPERIMENT"].model_copy(update={"model": model})
    assert names["seconds"]("dmft", {}) == tanh


def test_small_experiments_are_one_job_a_kind(common: Callable[..., Any]) -> None:
    names = common()
    assert [len(names["bundles"](kind)) for kind in ("mean_ode", "wide", "finite")] == [1, 1, 1]


def test_new_cells_do_not_share_jobs_with_those_of_the_last_sweep(
    common: Callable[..., Any],
) -> None:
    names = common(sweep=_grid(4, 8))
    old = _finite_names(names)
    _write_last_sweep(names, dict.fromkeys(old, 2))
    names = common(sweep=_grid(4, 8, 12))
    for bundle in names["bundles"]("finite"):
        known = {names["cell_name"]("finite", **cell) in old for cell in bundle.cells}
        assert len(known) == 1


def test_cells_of_a_job_have_the_same_number_of_seeds(common: Callable[..., Any]) -> None:
    """It is in ``params``, so that a change of it plans the jobs of those cells only."""
    seeds = [{"parameters": 100, "seeds": 3}, {"seeds": 2}]
    names = common(sweep={**_grid(4, 8), "seeds": seeds})
    bundles = names["bundles"]("finite")
    assert sorted(bundle.seeds for bundle in bundles) == [2, 3]
    for bundle in bundles:
        for cell in bundle.cells:
            assert bundle.seeds == (3 if cell == dict.fromkeys(cell, 4) else 2)


def test_cells_with_more_seeds_than_before_do_not_share_jobs_with_others(
    common: Callable[..., Any],
) -> None:
    """A grid of one number of seeds, of which one cell is found with another."""
    names = common(sweep=_grid(4, 8))
    old = _finite_names(names)
    _write_last_sweep(names, {**dict.fromkeys(old, 2), old[3]: 1})
    shared = [
        [names["cell_name"]("finite", **cell) for cell in bundle.cells]
        for bundle in names["bundles"]("finite")
    ]
    assert [old[3]] in shared


def test_networks_without_weights_are_thought_to_be_cheap_where_they_are_large(
    common: Callable[..., Any],
) -> None:
    sweep = _grid(4)
    cell = {"depth": 100, "width": 100_000, "embed_dim": 100_000}
    small = {"depth": 4, "width": 8, "embed_dim": 8}
    auto, dense, implicit = (
        common(sweep={**sweep, "engine": engine}) for engine in ("auto", "dense", "implicit")
    )
    for estimate in ("seconds", "megabytes"):
        large = {name: names[estimate]("finite", cell) for name, names in
                 (("auto", auto), ("dense", dense), ("implicit", implicit))}  # fmt: skip
        assert large["auto"] == large["implicit"] < large["dense"] / 100
        assert auto[estimate]("finite", small) == dense[estimate]("finite", small)


def test_large_networks_ask_for_their_memory_and_for_cores(common: Callable[..., Any]) -> None:
    names = common(sweep={"engine": "dense"})
    small, large = ([{"depth": 50, "width": size, "embed_dim": size}] for size in (100, 4000))
    weights = 2 * 50 * 4000**2 * 8 / 2**20
    assert weights < names["mem_mb"]("finite", large) < 3 * weights
    assert names["cores"]("finite", large) > names["cores"]("finite", small) == 1


def test_every_figure_has_a_caption() -> None:
    for name in ("workflow", *FIGURES):
        assert (ROOT / "workflow" / "report" / f"{name}.rst").is_file()


def test_jobs_get_the_experiment_of_one_file(common: Callable[..., Any]) -> None:
    names = common(seed=7)
    assert names["EXPERIMENT"].seed == 7
    shared = {name: names["config"][name] for name in names["EXPERIMENT"].model_dump()}
    assert shared == names["EXPERIMENT"].model_dump(mode="json")


def test_default_experiment_is_the_quickstart() -> None:
    assert load_common()["EXPERIMENT"].experiment == "quickstart"


@pytest.mark.parametrize(
    ("files", "values", "message"),
    [
        ((), {"seed": 1}, "--config: seed: values of an experiment stand in its file"),
        (("config/config.yaml", "config/digits.yaml"), {}, "2 experiment files are given"),
        (("config/digits.yaml",), {"experiment_file": "config/config.yaml"}, "2 experiment files"),
        (("absent.yaml",), {}, "absent.yaml: no such file"),
    ],
)
def test_unclear_options_are_one_line(
    files: tuple[str, ...],
    values: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_common(*(Path(file) for file in files), **values)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_missing_data_file_is_one_line(
    common: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        common(problem={"data": {"kind": "file", "path": "absent.npz"}})
    assert ended.value.code == 2
    assert (
        "absent.npz: no such file; allowed: an existing .npz, .zarr, .zarr.zip or .nc\n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("first_record", "second_record", "refused"),
    [
        ("other", "other", False),  # Snakemake sees the change itself
        ("other seeds", "current", False),
        (None, "other", True),
        ("current", "current", True),
        ("other", None, True),  # with one record missing, Snakemake compares none
    ],
)
def test_results_that_snakemake_wrongly_takes_for_current_are_refused(
    first_record: str | None,
    second_record: str | None,
    refused: bool,
    common: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first result is stale, the second is not."""
    names = common()
    experiment, paths = names["EXPERIMENT"], names["PATHS"]
    first, second = (
        (paths.manifest("mean_ode", embed_dim=size), {"embed_dim": size}) for size in (4, 16)
    )
    keys = ["0" * 32, provenance.stage_key("mean_ode", experiment, **second[1])]
    for (path, _), key in zip((first, second), keys, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"store": "-", "stage_key": key}), encoding="utf-8")
    current = provenance.stage_key("mean_ode", experiment)
    params = {
        "other": ["'1'"],
        "other seeds": [repr(current), "1"],
        "current": [repr(current), "2"],
        None: None,
    }
    records = {str(first[0]): params[first_record], str(second[0]): params[second_record]}
    names["workflow"].persistence = SimpleNamespace(params=lambda path: records[str(path)])
    check = names["goal"]("result")
    if not refused:
        assert check(None) == ("result",)
        return
    with pytest.raises(SystemExit):
        check(None)
    assert f"{first[0]}: computed by other code" in capsys.readouterr().err


def test_current_results_need_no_record(common: Callable[..., Any]) -> None:
    names = common()
    path = names["PATHS"].manifest("dmft")
    path.parent.mkdir(parents=True)
    key = provenance.stage_key("dmft", names["EXPERIMENT"])
    path.write_text(json.dumps({"store": "-", "stage_key": key}), encoding="utf-8")
    names["workflow"].persistence = SimpleNamespace(params=lambda path: None)
    assert names["goal"]("result")(None) == ("result",)


def test_environment_of_jobs_has_the_packages_of_the_project() -> None:
    names = {
        "dask-core": "dask",
        "matplotlib-base": "matplotlib",
        "pytorch": "torch",
        "snakemake-minimal": "snakemake",
    }
    file = ROOT / "workflow" / "envs" / "environment.yaml"
    found = {}
    for line in yaml.safe_load(file.read_text(encoding="utf-8"))["dependencies"]:
        name, bounds = line.split(" ", 1)
        found[names.get(name, name)] = bounds
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"python": project["requires-python"]}
    for line in project["dependencies"]:
        name, _, bounds = re.fullmatch(r"([a-z0-9-]+)(\[\w+\])?(.*)", line).groups()
        wanted[name] = bounds
    del wanted["typer"]  # of the command line, which no job uses
    assert found == wanted


# --- what jobs ask of a cluster -------------------------------------------------------------------


def test_each_attempt_asks_for_twice_as_much(common: Callable[..., Any]) -> None:
    resource = common()["doubling"](100)
    assert [resource(wildcards=None, attempt=n) for n in (1, 2, 3)] == [100, 200, 400]


def test_only_large_jobs_that_may_use_a_gpu_ask_for_one(common: Callable[..., Any]) -> None:
    large = {"depth": 64, "width": 4096, "embed_dim": 4096}
    small = {"depth": 2, "width": 8, "embed_dim": 4}

    sweep = {"seeds": 20, "engine": "dense"}

    def asked(device: str, *cells: dict[str, int]) -> int:
        names = common(numerics={"device": device}, sweep=sweep)
        return names["gpus"]("finite", cells)

    names = common(sweep=sweep)
    assert names["seconds"]("finite", large) > names["GPU_SECONDS"]
    assert [asked("auto", small), asked("auto", large), asked("auto", small, large)] == [0, 1, 1]
    assert [asked("cpu", small), asked("cpu", large)] == [0, 0]
    assert [asked("cuda", small), asked("cuda", large)] == [1, 1]


def test_a_site_says_what_only_jobs_with_a_gpu_need(common: Callable[..., Any]) -> None:
    site = {"slurm_partition": "cpu", "gpu_slurm_partition": "gpu", "gpu_gres": "gpu:a100:1"}
    found = {}
    for device in ("cpu", "cuda"):
        names = common(numerics={"device": device})
        names["workflow"].resource_settings.default_resources = site
        found[device] = names["gpu_site"]("dmft", [{}])
    assert found == {"cpu": {}, "cuda": {"slurm_partition": "gpu", "gres": "gpu:a100:1"}}
