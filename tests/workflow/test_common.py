"""What the workflow reads, from the command line and from the experiment file."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from trees import ROOT

COMMON = ROOT / "rules" / "common.smk"


def load_common(*files: Path, **values: Any) -> dict[str, Any]:
    """Run the functions of the workflow as plain Python, as Snakemake would with these options."""
    workflow = SimpleNamespace(
        config_settings=SimpleNamespace(config=values, configfiles=[str(file) for file in files]),
        basedir=str(ROOT),
        resource_settings=SimpleNamespace(default_resources=None),
        is_main_process=True,
        execution_settings=None,
        dryrun=False,
    )
    names: dict[str, Any] = {"workflow": workflow, "config": dict(values)}
    # What stops this process is told to the tests, and the run has no jobs to name itself to.
    with (
        patch("resnet_limits.stages.snakemake_api.Snakemake.say_when_stopped"),
        patch.dict(os.environ),
    ):
        exec(compile(COMMON.read_text(encoding="utf-8"), str(COMMON), "exec"), names)
    return names


@pytest.fixture
def common(tmp_path: Path, tiny_values: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    def build(**overrides: Any) -> dict[str, Any]:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(tiny_values(**overrides)), encoding="utf-8")
        return load_common(file, results=str(tmp_path / "results"))

    return build


def test_a_style_of_ones_own_is_a_file_and_counts_by_its_content(
    common: Callable[..., Any], tmp_path: Path
) -> None:
    file, style = tmp_path / "experiment.yaml", tmp_path / "own.mplstyle"
    plain = common()
    assert plain["config"]["figure_style"] is None
    digests = [plain["style_digest"]()]
    for content in ("font.size: 9", "font.size: 10"):
        style.write_text(content)
        names = load_common(file, figure_style=str(style))
        assert names["config"]["figure_style"] == str(style)
        digests.append(names["style_digest"]())
    assert len(set(digests)) == 3
    style.rename(tmp_path / "elsewhere.mplstyle")
    moved = load_common(file, figure_style=str(tmp_path / "elsewhere.mplstyle"))
    assert moved["style_digest"]() == digests[-1]
    with pytest.raises(SystemExit) as stopped:
        load_common(file, figure_style=str(style))
    assert stopped.value.code == 2


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
        ((), {"seed": 1}, "--config: seed: the values of an experiment belong in its file"),
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


@pytest.mark.parametrize("name", ["results", "experiment_file"])
@pytest.mark.parametrize(
    "value", [0, 2024, 1.5, False, True, None, ["a"], {"a": "b"}, "~", "null", "false", "No"]
)
def test_names_that_are_read_as_other_values_are_refused(
    name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_common(**{name: value})
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --config: {name}: ")
    assert "Snakemake reads this name as a number" in error
    assert error.endswith("; allowed: a path, as in ./NAME\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["replace", "verify"])
def test_switches_are_true_or_false(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value, found in ((True, True), ("true", True), ("False", False), (False, False)):
        names = load_common(**{name: value})
        assert names["REPLACE" if name == "replace" else "VERIFY_ALL"] is found
    for value in (1, None, "yes", ""):
        with pytest.raises(SystemExit) as ended:
            load_common(**{name: value})
        assert ended.value.code == 2
        assert "allowed: true, false" in capsys.readouterr().err


def test_errors_workers_are_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    for value, found in ((0, 0), (8, 8)):
        assert load_common(errors_workers=value)["config"]["errors_workers"] == found
    assert load_common()["config"]["errors_workers"] == 0
    for value in (-1, 1.5, True, None, "slurm"):
        with pytest.raises(SystemExit) as ended:
            load_common(errors_workers=value)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --config: errors_workers: got ")
        assert error.endswith("; allowed: a number, 0 or more\n")


def test_texts_count_by_what_they_say(tmp_path: Path) -> None:
    """And not by where the checkout is, which may have several names."""
    digest = load_common()["workflow_texts_digest"]()
    (tmp_path / "workflow").mkdir()
    copy = tmp_path / "workflow" / "report"
    shutil.copytree(ROOT / "workflow" / "report", copy)
    names = load_common()
    names["SNAKEMAKE"]._workflow.basedir = str(tmp_path)
    assert names["workflow_texts_digest"]() == digest
    with (copy / "workflow.rst").open("a") as stream:
        stream.write("More.")
    assert names["workflow_texts_digest"]() != digest


def test_templates_count_by_what_they_say(tmp_path: Path) -> None:
    names = load_common()
    digest = names["templates_digest"]()
    copy = tmp_path / "templates"
    shutil.copytree(names["TEMPLATES"], copy)
    names["TEMPLATES"] = copy
    assert names["templates_digest"]() == digest
    with (copy / "page.css").open("a") as stream:
        stream.write("p {}")
    assert names["templates_digest"]() != digest


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
    assert found == wanted
