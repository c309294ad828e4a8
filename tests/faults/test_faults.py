"""Every kind of fault once, with a small experiment; ``make torture`` has them in full."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trials
from trees import Tree, planned

import faults

Values = Callable[..., dict[str, Any]]

TINY = trials.TINY
HARM = {
    "problem.zarr": "gone",
    "mean_ode/D4.zarr": "chunk",
    "wide/L2_D16.zarr": "truncated",
    "finite/L2_M8_D4.zarr": "zarr.json",
    "finite/L4_M8_D4.zarr": "removed",
    "finite/L2_M8_D16.zarr": "empty manifest",
    "finite/L4_M8_D16.zarr": "garbage",
    "rates.json": "page",
    "figures/three_terms.svg": "page",
    "report.html": "page",
    "workflow.html": "page",
}


def folder_of(tree: Tree) -> Path:
    return tree.path / "results" / "tiny"


@pytest.fixture(scope="session")
def wanted(finished_tree: Tree) -> dict[str, str]:
    return faults.contents(folder_of(finished_tree))


@pytest.fixture
def copy(finished_tree: Tree, tmp_path: Path) -> Tree:
    return finished_tree.copy(tmp_path / "tree")


# --- what tells whether anything is lost ----------------------------------------------------------


def test_the_comparison_notices_one_bit_debris_and_a_lost_manifest(
    copy: Tree, wanted: dict[str, str]
) -> None:
    """The negative controls of all that follows."""
    folder, rng = folder_of(copy), random.Random(0)
    faults.assert_whole(folder, wanted)
    name = "finite/L2_M8_D4.zarr"
    faults.flip(rng.choice(faults.files_of(folder / name)["chunk"]), rng)
    assert faults.differences(faults.contents(folder), wanted) == [name]
    assert faults.unsound(folder)
    faults.manifest(folder, "dmft.zarr").unlink()
    assert "dmft.zarr: no manifest" in faults.unsound(folder)
    (folder / "wide" / ".L2_D4.zarr.host-1-0.tmp").mkdir()
    assert faults.debris(folder) == ["wide/.L2_D4.zarr.host-1-0.tmp"]


def test_a_bit_in_any_store_is_noticed(copy: Tree) -> None:
    folder = folder_of(copy)
    count = trials.flipped_bits_are_noticed(folder, random.Random(1))
    assert count == dict.fromkeys(("chunk", "zarr.json"), len(faults.stores(folder)))


# --- runs -----------------------------------------------------------------------------------------


def test_killed_runs_leave_nothing_and_lose_nothing(copy: Tree, wanted: dict[str, str]) -> None:
    """All is killed where networks, limits and then the error tables are computed."""
    folder = folder_of(copy)
    for name in ("finite", "mean_ode", "manifests/finite", "manifests/mean_ode"):
        shutil.rmtree(folder / name)
    kills = [("finite", 0.3), ("mean_ode", 0.3), ("errors", 0.1)]
    hit = trials.killed(copy, folder, wanted, kills, *TINY)
    assert len(hit) == 3
    assert all(hit)


def test_damage_is_computed_again_and_nothing_else(copy: Tree, wanted: dict[str, str]) -> None:
    trials.damaged(copy, folder_of(copy), wanted, HARM, random.Random(2), *TINY)


def test_a_dry_run_names_damage_and_changes_nothing(copy: Tree) -> None:
    folder = folder_of(copy)
    path = folder / "mean_ode" / "D4.zarr"
    faults.flip(path / "zarr.json", random.Random(3))
    for _ in range(2):
        done = copy.run("--dry-run", *TINY)
        assert "results/tiny/mean_ode/D4.zarr: damaged (its digest" in done.stdout
        assert planned(done.stdout) == {
            "mean_ode": 1, "measure_errors": 1, "fit_rates": 1, "draw_figures": 1,
            "write_report": 1, "write_workflow_page": 1, "all": 1,
        }  # fmt: skip
        assert path.exists()


def test_any_target_is_looked_at(copy: Tree) -> None:
    """Also one that is a file, and which no rule of targets knows."""
    shutil.rmtree(folder_of(copy) / "dmft.zarr")
    done = copy.run("--dry-run", *TINY, "--", "results/tiny/rates.json")
    assert planned(done.stdout)["dmft"] == 1


def test_a_job_that_meets_damage_has_it_computed_again(copy: Tree) -> None:
    """Here the damage happens after planning: the store is changed while the job starts."""
    folder = folder_of(copy)
    shutil.rmtree(folder / "errors.zarr")
    victim = folder / "wide" / "L2_D4.zarr"
    with faults.started(copy, "errors", *TINY) as process:
        while not faults.job_processes(copy, "errors"):
            assert process.poll() is None
            time.sleep(0.01)
        for file in faults.files_of(victim)["chunk"]:
            faults.flip(file, random.Random(4))
        assert process.wait(timeout=120) == 1
    output = (copy.path / "output").read_text()
    assert "results/tiny/wide/L2_D4.zarr: damaged (its digest" in output
    assert "run again" in output
    assert not victim.exists()
    plan = planned(copy.run("--dry-run", "errors", *TINY).stdout)
    assert plan == {"wide": 1, "measure_errors": 1, "fit_rates": 1, "errors": 1}


def test_a_job_killed_alone(copy: Tree, wanted: dict[str, str]) -> None:
    folder = folder_of(copy)
    shutil.rmtree(folder / "errors.zarr")
    trials.killed_job(copy, folder, wanted, "errors", *TINY)


def test_the_clock_goes_back(copy: Tree, wanted: dict[str, str]) -> None:
    faults.manifest(folder_of(copy), "errors.zarr").unlink()
    trials.clock_back(copy, folder_of(copy), wanted, None, *TINY)


def test_a_full_disk(source_tree: Tree, tmp_path: Path, tiny_values: Values) -> None:
    if reason := faults.cannot_mount():
        pytest.skip(reason)
    tree = source_tree.copy(tmp_path / "tree")
    tree.write_experiment(tiny_values())
    # Room for the problem and a shape or two.
    with faults.small_disk(tree.path / "results", "300k"):
        failed = tree.run("networks", *TINY)
        assert failed.returncode == 1
        assert "No space left on device" in failed.stdout
        assert "Traceback" not in failed.stdout
        assert faults.unsound(folder_of(tree), vouched=False) == []
        faults.mount("-o", "remount,size=20m", tree.path / "results")
        done = tree.run("networks", *TINY)
        assert done.returncode == 0, done.stdout
        assert faults.unsound(folder_of(tree)) == []
        assert faults.debris(folder_of(tree)) == []


def test_results_that_cannot_be_written(copy: Tree) -> None:
    if reason := faults.cannot_mount():
        pytest.skip(reason)
    trials.read_only(copy, folder_of(copy), *TINY)


def test_a_number_that_is_none(source_tree: Tree, tmp_path: Path, tiny_values: Values) -> None:
    trials.not_a_number(source_tree.copy(tmp_path / "tree"), tiny_values())


def test_a_diverging_cell(source_tree: Tree, tmp_path: Path, tiny_values: Values) -> None:
    trials.diverging_cell(source_tree.copy(tmp_path / "tree"), tiny_values())


def test_out_of_memory_in_one_cell(source_tree: Tree, tmp_path: Path, tiny_values: Values) -> None:
    trials.out_of_memory(source_tree.copy(tmp_path / "tree"), tiny_values())


# --- the lock -------------------------------------------------------------------------------------


def is_locked(file: Path) -> bool:
    try:
        with file.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def test_a_second_pipeline_is_refused_from_anywhere(copy: Tree, source_tree: Tree) -> None:
    """From the same place and from another copy; no lock is left by one that is killed."""
    shutil.rmtree(folder_of(copy) / "errors.zarr")
    results = copy.path / "results"
    elsewhere = (
        "--configfile",
        str(copy.path / "experiment.yaml"),
        "--config",
        f"results={results}",
    )
    with faults.started(copy, *TINY) as process:
        while not is_locked(folder_of(copy) / ".jobs"):
            assert process.poll() is None
            time.sleep(0.01)
        (job,) = faults.job_processes(copy, "errors")
        os.kill(job, signal.SIGSTOP)
        for refused in (copy.run(*TINY), source_tree.run(*elsewhere)):
            assert refused.returncode == 2
            (line,) = faults.lines(refused.stdout)
            assert "results/tiny: another pipeline is at work here (" in line
            assert f"process {process.pid}, since" in line
            assert "allowed: one at a time" in line
        assert copy.run("--dry-run", *TINY).returncode == 0
        # Snakemake alone is killed; its job goes on, and is waited for.
        process.send_signal(signal.SIGKILL)
        process.wait()
        with faults.started(copy, "errors", *TINY) as again:
            while (
                "jobs of a pipeline that was killed, or single commands, are still at work"
                not in ((copy.path / "output").read_text())
            ):
                assert again.poll() is None
                time.sleep(0.01)
            os.kill(job, signal.SIGCONT)
            assert again.wait(timeout=120) == 0


def test_options_are_checked(source_tree: Tree) -> None:
    done = source_tree.run("--dry-run", "--config", "verify=perhaps")
    assert done.returncode == 2
    assert faults.lines(done.stdout) == [
        "error: --config: verify: got perhaps; allowed: true, false"
    ]


def test_a_working_directory_needs_no_unlocking(copy: Tree) -> None:
    """Snakemake's own lock would stay after a kill."""
    assert not list((copy.path / ".snakemake" / "locks").glob("*"))
    assert subprocess.run(
        copy.command("--dry-run", *TINY), cwd=copy.path, env=copy.environment(), check=True
    )
