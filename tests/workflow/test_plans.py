"""What Snakemake plans after each kind of change, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trees import Tree, planned

Values = Callable[..., dict[str, Any]]

PACKAGE = "src/resnet_limits"
FIGURES = {"draw_figures": 1, "write_report": 1, "write_workflow_page": 1, "all": 1}
RATES = {"fit_rates": 1, **FIGURES}
ERRORS = {"measure_errors": 1, **RATES}
NETWORKS = {"finite": 1, **ERRORS}
LIMITS = {"dmft": 1, "mean_ode": 1, "wide": 1, "predict": 1, **ERRORS}
UPGRADED = "upgraded"
GRID: dict[str, Any] = {"depth": [2, 4], "width": [8], "embed_dim": [4, 16]}


@dataclass(frozen=True)
class Change:
    """Something that a user does between two runs, and the jobs that follow from it."""

    make: Callable[[Tree, Values], object]
    jobs: dict[str, int]
    arguments: tuple[str, ...] = ()


def edit(file: str, text: str = "EDITED = 1") -> Callable[[Tree, Values], object]:
    return lambda tree, values: tree.append(file, text)


def replace(file: str, old: str, new: str) -> Callable[[Tree, Values], object]:
    def make(tree: Tree, values: Values) -> None:
        path = tree.path / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    return make


def upgrade(library: str) -> Callable[[Tree, Values], object]:
    """Let a library be of another version, for all that ask."""

    def make(tree: Tree, values: Values) -> None:
        record = tree.path / UPGRADED / f"{library}-9999.0.dist-info"
        record.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {library}\nVersion: 9999.0\n"
        (record / "METADATA").write_text(text, encoding="utf-8")
        asked = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import importlib.metadata as m; print(m.version({library!r}))",
            ],
            env=tree.environment(tree.path / UPGRADED),
            capture_output=True,
            text=True,
            check=True,
        )
        assert asked.stdout == "9999.0\n"

    return make


def experiment(**overrides: Any) -> Callable[[Tree, Values], object]:
    return lambda tree, values: tree.write_experiment(values(**overrides))


def several(*changes: Callable[[Tree, Values], object]) -> Callable[[Tree, Values], object]:
    def make(tree: Tree, values: Values) -> None:
        for change in changes:
            change(tree, values)

    return make


def touch_all(tree: Tree, values: Values) -> None:
    """Touch every file, and put a comment into one."""
    tree.append(f"{PACKAGE}/stages/networks.py", "# a remark")
    for name in ("Snakefile", "rules", "workflow", "src", "results", "experiment.yaml"):
        path = tree.path / name
        for file in [path, *path.rglob("*")]:
            os.utime(file)


def move_results(tree: Tree, values: Values) -> None:
    shutil.move(tree.path / "results", tree.path / "moved results")


CHANGES = {
    # Together: what any of them had done again would be planned.
    "what changes no result": Change(
        several(
            replace(
                f"{PACKAGE}/units.py",
                "sigmoid + g * (1.0 - sigmoid)",  # of an activation that is not used
                "sigmoid * (1.0 + p - g)",
            ),
            upgrade("xarray"),
            touch_all,
        ),
        {},
        ("--cores", "7", "--resources", "mem_mb=3000"),
    ),
    "results moved": Change(move_results, {}, ("--config", "results=moved results")),
    "style of the figures": Change(edit(f"{PACKAGE}/figures/style.py"), FIGURES),
    "code of the report": Change(
        edit(f"{PACKAGE}/report/claims.py"), {"write_report": 1, "all": 1}
    ),
    "template of the report": Change(
        edit(f"{PACKAGE}/report/templates/page.css", "p {}"), {"write_report": 1, "all": 1}
    ),
    "text of the page of the jobs": Change(
        edit("workflow/report/workflow.rst", "More."), {"write_workflow_page": 1, "all": 1}
    ),
    "fit of the rates": Change(edit(f"{PACKAGE}/errors/rates.py"), RATES),
    "distances": Change(edit(f"{PACKAGE}/errors/distances.py"), ERRORS),
    "code that reads data": Change(
        edit(f"{PACKAGE}/datafile.py"), {"problem": 1, "finite": 1, **LIMITS}
    ),
    "code of the activation that is used": Change(
        replace(f"{PACKAGE}/units.py", "1.0 - g * g", "(1.0 - g) * (1.0 + g)"),
        {"finite": 1, **LIMITS},
    ),
    "dense engine": Change(edit(f"{PACKAGE}/networks/dense.py"), NETWORKS),
    "quadrature": Change(edit(f"{PACKAGE}/limits/quadrature.py"), LIMITS),
    "learning rate": Change(experiment(training={"learning_rate": 0.25}), {"finite": 1, **LIMITS}),
    "width added": Change(
        experiment(sweep={"grid": {**GRID, "width": [8, 16]}}), {"finite": 1, **ERRORS}
    ),
    "embedding dimension added": Change(
        experiment(sweep={"grid": {**GRID, "embed_dim": [4, 8, 16]}}),
        {"finite": 1, "mean_ode": 1, "wide": 1, **ERRORS},
    ),
    "more seeds for the smallest shape": Change(
        experiment(sweep={"seeds": [{"parameters": 100, "seeds": 3}, {"seeds": 2}]}),
        {"finite": 1, "mean_ode": 1, "wide": 1, **ERRORS},
    ),
    "depth removed": Change(experiment(sweep={"grid": {**GRID, "depth": [4]}}), ERRORS),
}


@pytest.fixture(scope="module")
def plans(
    finished_tree: Tree, tiny_values: Values, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, int]]:
    """Plan after every change, each in its own copy, several at a time."""
    folder = tmp_path_factory.mktemp("plans")

    def plan(number: int, change: Change) -> dict[str, int]:
        tree = finished_tree.copy(folder / str(number))
        change.make(tree, tiny_values)
        arguments = ("--dry-run", "--configfile", "experiment.yaml", *change.arguments)
        return planned(tree.run(*arguments, before=[tree.path / UPGRADED]).stdout)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = pool.map(plan, range(len(CHANGES)), CHANGES.values())
        return dict(zip(CHANGES, jobs, strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_change_plans_exactly_what_follows_from_it(
    name: str, plans: dict[str, dict[str, int]]
) -> None:
    assert plans[name] == CHANGES[name].jobs


def test_quickstart_is_a_few_jobs_and_needs_no_heavy_library(
    source_tree: Tree, tmp_path: Path
) -> None:
    for name in ("torch", "xarray", "zarr"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} at planning')")
    done = source_tree.run("--dry-run", before=[tmp_path])
    assert done.returncode == 0, done.stdout
    plan = planned(done.stdout)
    assert plan == {
        "problem": 1,
        "dmft": 1,
        "predict": 1,
        "mean_ode": plan["mean_ode"],
        "wide": plan["wide"],
        "finite": 2,
        **ERRORS,
    }
    assert plan["mean_ode"] <= 3
    assert plan["wide"] <= 3


def test_lint_is_clean(source_tree: Tree) -> None:
    done = source_tree.run("--lint")
    assert done.returncode == 0, done.stdout
