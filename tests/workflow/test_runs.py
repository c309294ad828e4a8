"""Real runs: to the end, again, killed, and with bad input."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import Tree, planned

import faults
from derivations import loose_ends
from resnet_limits import integrity, store
from resnet_limits.config import experiment_from_dict
from resnet_limits.kinds import KINDS
from resnet_limits.stages import checking
from resnet_limits.stages.paths import FIGURE_FORMS, Paths, cells, figure_names

Values = Callable[..., dict[str, Any]]


def test_every_result_is_there_and_sound(finished_tree: Tree, tiny_values: Values) -> None:
    experiment = experiment_from_dict(tiny_values())
    paths = Paths(finished_tree.path / "results", "tiny")
    for kind in ("problem", "dmft", "mean_ode", "wide", "finite", "errors"):
        for cell in cells(kind, experiment):
            manifest = paths.manifest(kind, **cell)
            assert store.check(paths.store(kind, **cell), manifest=manifest) == []
    assert json.loads(paths.store("rates").read_text())["experiment"] == "tiny"
    names = {path.name for path in paths.figures.iterdir()}
    assert names == {f"{name}.{form}" for name in figure_names(experiment) for form in FIGURE_FORMS}


def test_provenance_names_every_result_and_leads_to_the_experiment(
    finished_tree: Tree, tiny_values: Values
) -> None:
    experiment = experiment_from_dict(tiny_values())
    paths = Paths(finished_tree.path / "results", "tiny")
    document = json.loads(paths.lineage["prov"].read_text())
    assert loose_ends(document) == []
    files = [paths.figure(name, form) for name in figure_names(experiment) for form in FIGURE_FORMS]
    stores = [paths.store(kind, **cell) for kind in KINDS for cell in cells(kind, experiment)]
    for path in (*stores, *files, paths.report):
        name = f"results:{path.relative_to(paths.folder).as_posix()}"
        assert document["entity"][name]["rl:sha256"] == integrity.digest(path)
    assert [
        found
        for path in checking.find(paths.folder)
        if (found := checking.check(path)) and found.findings
    ] == []


def test_every_job_has_a_log_and_a_benchmark(finished_tree: Tree) -> None:
    folder = finished_tree.path / "results" / "tiny"
    logs = {path.stem: path.read_text() for path in (folder / "logs").glob("*.log")}
    assert {path.stem for path in (folder / "benchmarks").glob("*.tsv")} == set(logs)
    expected = {"problem", "dmft", "finite_01", "errors", "rates", "figures", "report"}
    assert {*expected, "workflow_page"} <= set(logs)
    assert all("done in" in text for text in logs.values())


_FROM_ELSEWHERE = re.compile(r"""<(?:script|link|img)[^>]*(?:src|href)=["']https?:""")


def test_report_shows_every_figure_once_and_every_claim_offline(
    finished_tree: Tree, tiny_values: Values
) -> None:
    folder = finished_tree.path / "results" / "tiny"
    page = (folder / "report.html").read_text(encoding="utf-8")
    # Claims and rates are tables of HTML.
    figures = set(figure_names(experiment_from_dict(tiny_values()))) - {"rates_table", "verdicts"}
    for name in figures:
        told = json.loads((folder / "figures" / f"{name}.json").read_text(encoding="utf-8"))
        assert html.escape(told["title"]) in page
        assert page.count(f'id="figure-{name}"') == 1
    assert page.count("<img ") <= len(figures)
    claims = json.loads((folder / "rates.json").read_text(encoding="utf-8"))["claims"]
    assert page.count('<tr role="row" id="claim-') == len(claims) > 0
    assert not _FROM_ELSEWHERE.search(page)


def test_the_page_of_the_jobs_knows_every_job_and_embeds_no_figure(finished_tree: Tree) -> None:
    folder = finished_tree.path / "results" / "tiny"
    page = (folder / "workflow.html").read_text(encoding="utf-8")
    # Its statistics know every job but those of the two pages, and its stylesheet is ours.
    logs = {path.stem for path in (folder / "logs").glob("*.log")}
    assert page.count('"runtime": ') == len(logs - {"report", "workflow_page"})
    assert "safe center" in page
    for file in (folder / "figures").glob("*.*g"):
        assert base64.b64encode(file.read_bytes()[:300]).decode() not in page
    assert "report.html" in page
    assert not _FROM_ELSEWHERE.search(page)


def test_the_report_stays_if_the_page_of_the_jobs_cannot_be_made(
    finished_tree: Tree, tmp_path: Path
) -> None:
    tree = finished_tree.copy(tmp_path / "tree")
    tree.replace("workflow/scripts/workflow_page.py", '"--report"', '"--no-such-option"')
    for name in ("report.html", "workflow.html"):
        (tree.path / "results" / "tiny" / name).unlink()
    done = tree.run("--configfile", "experiment.yaml")
    assert done.returncode != 0
    assert (tree.path / "results/tiny/report.html").exists()
    assert not (tree.path / "results/tiny/workflow.html").exists()


def test_second_run_does_nothing(finished_tree: Tree) -> None:
    done = finished_tree.run("--configfile", "experiment.yaml")
    assert done.returncode == 0
    assert planned(done.stdout) == {}


def _modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.zarr")}


def test_killed_run_is_continued_where_it_was(
    finished_tree: Tree, tiny_values: Values, tmp_path: Path
) -> None:
    tree = finished_tree.copy(tmp_path / "tree")
    grid = {"depth": [2, 4], "width": [8, 12, 16, 20], "embed_dim": [4, 16]}
    tree.write_experiment(tiny_values(sweep={"grid": grid}))
    arguments = ("networks", "--configfile", "experiment.yaml")
    stores = tree.path / "results/tiny/finite"
    manifests = tree.path / "results/tiny/manifests/finite"
    before = _modified(stores)

    with faults.started(tree, *arguments) as process:
        deadline = time.monotonic() + 120
        while len(list(manifests.glob("*.json"))) <= len(before) + 1:
            assert process.poll() is None, (tree.path / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    survivors = _modified(stores)
    vouched = {path.stem for path in manifests.glob("*.json")}
    assert vouched <= {name.removesuffix(".zarr") for name in survivors}
    for name in survivors:
        assert store.check(stores / name) == []

    # One finished result of the first run is not vouched for either.
    (manifests / "L2_M8_D4.json").unlink()
    done = tree.run(*arguments)
    assert done.returncode == 0, done.stdout
    after = _modified(stores)
    assert len(after) == len({path.stem for path in manifests.glob("*.json")}) == 16
    # Nothing that was finished is computed again.
    assert {name: after[name] for name in survivors} == survivors
    assert {name: survivors[name] for name in before} == before
    assert not list(stores.glob(".*"))


def test_bad_input_is_one_line(source_tree: Tree, tiny_values: Values, tmp_path: Path) -> None:
    tree = source_tree.copy(tmp_path / "tree")
    tree.write_experiment(tiny_values(sweep={"grid": {"width": [-8]}}))
    done = tree.run("--dry-run", "--configfile", "experiment.yaml")
    assert done.returncode == 2
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Using")]
    assert len(lines) == 1, done.stdout
    assert lines[0].startswith("error: experiment.yaml: sweep.grid.width.0: got -8")


def test_a_job_of_a_cluster_refuses_what_was_edited_after_planning(
    finished_tree: Tree, tiny_values: Values, tmp_path: Path
) -> None:
    """Such jobs read the experiment file again, when their turn comes."""
    tree = finished_tree.copy(tmp_path / "tree")
    names = ("--configfile", "experiment.yaml", "--nolock", "--cores", "1")
    job = ("--mode", "remote", "--target-jobs", "fit_rates:", "--force", *names)
    rates = tree.path / "results/tiny/rates.json"
    before = rates.stat().st_mtime_ns
    for values in ({"training": {"learning_rate": 0.25}}, {"sweep": {"grid": {"width": [12]}}}):
        tree.write_experiment(tiny_values(**values))
        done = tree.run(*job)
        assert done.returncode == 2, done.stdout
        assert "experiment.yaml: the experiment, code or data were edited after" in done.stdout
        assert rates.stat().st_mtime_ns == before
    tree.write_experiment(tiny_values())
    done = tree.run(*job)
    assert done.returncode == 0, done.stdout
    assert rates.stat().st_mtime_ns > before


def test_the_report_is_of_the_experiment_that_was_planned(
    finished_tree: Tree, tiny_values: Values, tmp_path: Path
) -> None:
    tree = finished_tree.copy(tmp_path / "tree")
    (tree.path / "results/tiny/report.html").unlink()
    (tree.path / "results/tiny/workflow.html").unlink()
    arguments = ("--configfile", "experiment.yaml")
    with faults.started(tree, *arguments) as process:
        ended = time.monotonic() + 120
        while not faults.job_processes(tree, "workflow_page"):
            assert process.poll() is None, (tree.path / "output").read_text()
            assert time.monotonic() < ended
            time.sleep(0.01)
        tree.write_experiment(tiny_values(experiment="another"))
        assert process.wait(timeout=120) == 0, (tree.path / "output").read_text()
    assert (tree.path / "results/tiny/report.html").exists()


def _stores(tree: Tree) -> dict[str, int]:
    return {
        str(path.relative_to(tree.path)): path.stat().st_mtime_ns
        for path in (tree.path / "results").rglob("*.zarr")
    }


@pytest.mark.parametrize("records", ["kept", "lost"])
def test_results_of_other_values_are_replaced_only_when_that_is_wanted(
    records: str, finished_tree: Tree, tiny_values: Values, tmp_path: Path
) -> None:
    """With Snakemake's records of how they were computed, and without."""
    tree = finished_tree.copy(tmp_path / "tree")
    if records == "lost":
        (tree.path / ".snakemake").rename(tree.path / "lost")
    tree.write_experiment(tiny_values(training={"learning_rate": 0.25}))
    before = _stores(tree)
    names = ("networks", "--configfile", "experiment.yaml")
    asked = "results/tiny: 4 networks made with other values would be replaced:"
    change = "  training.learning_rate: 0.5 -> 0.25"

    done = tree.run(*names)
    lines = done.stdout.splitlines()
    assert done.returncode == 2, done.stdout
    assert lines[lines.index(asked) + 1] == change
    assert lines[-1].startswith("error: results/tiny: results are kept and nothing was computed; ")
    assert "--config replace=true" in lines[-1]
    assert "make run REPLACE=1" in lines[-1]
    assert _stores(tree) == before

    done = tree.run("--dry-run", *names)
    assert done.returncode == 0, done.stdout
    assert change in done.stdout
    assert planned(done.stdout) == {"finite": 1, "networks": 1}

    done = tree.run(*names, "--config", "replace=true")
    assert done.returncode == 0, done.stdout
    assert change in done.stdout
    after = _stores(tree)
    assert {name for name in after if after[name] != before[name]} == {
        name for name in before if "/finite/" in name
    }
    done = tree.run(*names)
    assert (done.returncode, planned(done.stdout)) == (0, {}), done.stdout


def test_results_of_other_code_do_not_ask_also_without_records(
    finished_tree: Tree, tmp_path: Path
) -> None:
    """A run was killed, and then code was edited."""
    tree = finished_tree.copy(tmp_path / "tree")
    (tree.path / ".snakemake").rename(tree.path / "lost")
    tree.append("src/resnet_limits/networks/dense.py", "EDITED = 1")
    done = tree.run("networks", "--dry-run", "--configfile", "experiment.yaml")
    assert done.returncode == 0, done.stdout
    assert "results/tiny: 4 networks made with other code will be computed again" in done.stdout
    assert planned(done.stdout) == {"finite": 1, "networks": 1}
    done = tree.run("networks", "--configfile", "experiment.yaml")
    assert done.returncode == 0, done.stdout


def test_the_name_of_the_checkout_plans_nothing(finished_tree: Tree, tmp_path: Path) -> None:
    tree = finished_tree.copy(tmp_path / "tree")
    link = tmp_path / "link"
    link.symlink_to(tree.path)
    code = tmp_path / "code"
    work = tmp_path / "work"
    work.mkdir()
    for name in ("results", ".snakemake", "experiment.yaml"):
        (tree.path / name).rename(work / name)
    shutil.copytree(tree.path, code, symlinks=True)
    (work / "near").symlink_to(code)
    for place, folder, arguments in (
        (tree.path / "Snakefile", tree.path, ("-d", work)),
        (link / "Snakefile", link, ("-d", work)),
        (link / "Snakefile", work, ()),
        ("../code/Snakefile", work, ()),
        ("near/Snakefile", work, ()),
        ("../link/../code/Snakefile", work, ()),
    ):
        done = subprocess.run(
            tree.command(
                "-s", str(place), *map(str, arguments), "--dry-run",
                "--workflow-profile", str(code / "workflow/profiles/local"),
                "--config", "experiment_file=experiment.yaml",
            ),
            cwd=folder,
            env=tree.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )  # fmt: skip
        assert planned(done.stdout) == {}, place


def test_what_ctrl_c_stops_ends_with_what_to_do(
    finished_tree: Tree, tiny_values: Values, tmp_path: Path
) -> None:
    tree = finished_tree.copy(tmp_path / "tree")
    grid = {"depth": [2, 4], "width": [8, 12, 16, 20], "embed_dim": [4, 16]}
    tree.write_experiment(tiny_values(sweep={"grid": grid}))
    manifests = tree.path / "results/tiny/manifests/finite"
    # Whoever runs the tests in the background has their processes ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with faults.started(tree, "networks", "--configfile", "experiment.yaml") as process:
        ended = time.monotonic() + 240
        while len(list(manifests.glob("*.json"))) <= 5:
            assert process.poll() is None, (tree.path / "output").read_text()
            assert time.monotonic() < ended
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) != 0
    output = (tree.path / "output").read_text()
    last = "stopped: what is finished is kept; run the same command again"
    assert output.splitlines()[-1] == last
    assert "finite/L" not in output.partition("Terminating processes")[2]
