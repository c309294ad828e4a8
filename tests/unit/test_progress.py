"""Records of running jobs, and how far an experiment is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from resnet_limits import provenance
from resnet_limits.cli import main
from resnet_limits.config import Experiment
from resnet_limits.stages import estimates, progress
from resnet_limits.stages.paths import Paths, cell_name, cells
from resnet_limits.stages.publish import publish


@pytest.fixture
def experiment(tiny_experiment: Callable[..., Experiment]) -> Experiment:
    return tiny_experiment()


@pytest.fixture
def paths(tmp_path: Path, experiment: Experiment) -> Paths:
    return Paths(tmp_path, experiment.experiment)


@pytest.fixture
def finish(
    experiment: Experiment, paths: Paths, make_dataset: Callable[..., xr.Dataset]
) -> Callable[..., None]:
    """Publish the result of one cell as a job does."""

    def write(cell: dict[str, int], *, device: str = "cpu", took: float = 0.0) -> None:
        publish(
            make_dataset("finite").assign_attrs(cell, device=device),
            paths.store("finite", **cell),
            kind="finite",
            experiment=experiment,
            key=provenance.stage_key("finite", experiment, **cell),
            device=device,
            started=time.monotonic() - took,
            manifest=paths.manifest("finite", **cell),
        )

    return write


def test_a_record_is_there_while_its_job_runs(paths: Paths) -> None:
    with progress.Record(paths, "finite_01", "finite") as record:
        record.at("finite/L2_M8_D4", 3, 7)
        (found,) = progress.running_jobs(paths)
        assert found["job"] == "finite_01"
        assert (found["at"], found["number"], found["total"]) == ("finite/L2_M8_D4", 3, 7)
        assert found["process"] == os.getpid()
        since = found["since"]
        record.at("finite/L2_M8_D4", 3, 7, "half of it read")
        (found,) = progress.running_jobs(paths)
        assert (found["note"], found["since"]) == ("half of it read", since)
    assert progress.running_jobs(paths) == []
    assert not list(paths.running.iterdir())


def test_a_job_that_fails_leaves_no_record(paths: Paths) -> None:
    with pytest.raises(RuntimeError), progress.Record(paths, "finite_01", "finite"):
        raise RuntimeError
    assert not list(paths.running.iterdir())


def test_records_of_killed_jobs_do_not_count(paths: Paths) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    paths.running.mkdir(parents=True)
    (paths.running / "broken.json").write_text("{")
    for name, host, process, age in (
        ("here", None, gone.pid, 0.0),
        ("elsewhere", "another-host", 1, 3600.0),
        ("alive", "another-host", 1, 1.0),
    ):
        with progress.Record(paths, name, "finite"):
            record = json.loads((paths.running / f"{name}.json").read_text())
        file = paths.running / f"{name}.json"
        file.write_text(json.dumps({**record, "host": host or record["host"], "process": process}))
        then = time.time() - age
        os.utime(file, (then, then))
    assert [record["job"] for record in progress.running_jobs(paths)] == ["alive"]


def test_heartbeat_renews_the_record(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.01)
    with progress.Record(paths, "finite_01", "finite"):
        file = paths.running / "finite_01.json"
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with progress.Record(Paths(tmp_path / "file", "tiny"), "finite_01", "finite") as record:
        record.at("finite/L2_M8_D4", 1, 1)


def test_every_result_is_in_exactly_one_state(
    experiment: Experiment, paths: Paths, finish: Callable[..., None]
) -> None:
    done, saved, stale, current = cells("finite", experiment)[:4]
    for cell in (done, saved, stale):
        finish(cell)
    paths.manifest("finite", **saved).unlink()
    manifest = paths.manifest("finite", **stale)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "stage_key": "other"}))
    with progress.Record(paths, "finite_01", "finite") as record:
        record.at(cell_name("finite", **current), 1, 1)
        count = progress.survey(experiment, paths).counts["finite"]
    states = (count.done, count.saved, count.stale, count.running, count.missing)
    assert states == (1, 1, 1, 1, count.results - 4)
    rest = [cell for cell in cells("finite", experiment) if cell not in (done, saved)]
    assert count.rest_seconds == pytest.approx(
        sum(estimates.seconds("finite", experiment, **cell) for cell in rest)
    )


def test_a_result_of_a_killed_job_with_another_key_is_not_saved(
    experiment: Experiment, paths: Paths, finish: Callable[..., None]
) -> None:
    cell = cells("finite", experiment)[0]
    finish(cell)
    paths.manifest("finite", **cell).unlink()
    other = experiment.model_copy(update={"seed": experiment.seed + 1})
    count = progress.survey(other, paths).counts["finite"]
    assert (count.saved, count.stale) == (0, 1)


def test_rest_is_scaled_by_what_finished_results_took(
    experiment: Experiment,
    paths: Paths,
    finish: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimates, "seconds", lambda *_, **cell: 10.0)
    plain = progress.survey(experiment, paths)
    assert plain.pace is None
    finish(cells("finite", experiment)[0], took=30.0)
    finish(cells("finite", experiment)[1], took=1.0, device="cuda (any)")
    found = progress.survey(experiment, paths)
    assert found.pace == pytest.approx(3.0, rel=0.02)
    assert found.telling == 1
    rest, before = (survey.rest_seconds - survey.start_seconds for survey in (found, plain))
    assert rest == pytest.approx(3 * (before - 20), rel=0.02)
    # A GPU's time does not depend on how slow this machine is.
    networks = sum(plain.counts[k].results for k in ("dmft", "mean_ode", "wide", "finite")) - 2
    for gpu in estimates.GPUS:
        assert found.gpu_seconds(gpu) == pytest.approx(estimates.gpu_seconds(gpu, 10.0 * networks))
        assert 0 < estimates.gpu_seconds(gpu, 10.0) < 1


def test_jobs_that_start_and_compile_count(
    experiment: Experiment, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for cold in (False, True):
        monkeypatch.setattr(estimates, "is_cold", lambda cold=cold: cold)
        survey = progress.survey(experiment, paths)
        assert survey.figures_seconds > 0
        found[cold] = survey.start_seconds
        rest = sum(count.rest_seconds for count in survey.counts.values())
        assert survey.rest_seconds == rest + survey.figures_seconds + survey.start_seconds
    kinds = ("dmft", "mean_ode", "wide", "finite")
    assert found[False] >= sum(estimates.start_seconds(kind) for kind in kinds) > 0
    assert found[True] - found[False] == pytest.approx(
        sum(estimates.start_seconds(k, cold=True) - estimates.start_seconds(k) for k in kinds)
    )


def test_the_plan_of_the_limit_says_what_other_limits_take(
    experiment: Experiment,
    paths: Paths,
    make_dataset: Callable[..., xr.Dataset],
) -> None:
    before = progress.survey(experiment, paths).counts["mean_ode"].rest_seconds
    plan = {
        "quadrature": "sobol", "points": 1 << 20, "replicates": 8, "nodes": 8, "root_seed": 0,
        "precision": "float32", "iteration_tolerance": 1e-6,
    }  # fmt: skip
    publish(
        make_dataset("dmft").assign_attrs({f"plan_{name}": value for name, value in plan.items()}),
        paths.store("dmft"),
        kind="dmft",
        experiment=experiment,
        key=provenance.stage_key("dmft", experiment),
        device="cpu",
        started=time.monotonic(),
        manifest=paths.manifest("dmft"),
    )
    assert progress.survey(experiment, paths).counts["mean_ode"].rest_seconds > 20 * before


def test_status_says_what_runs_and_what_the_rest_costs(
    experiment: Experiment,
    paths: Paths,
    tmp_path: Path,
    tiny_values: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(tiny_values()))
    with progress.Record(paths, "finite_01", "finite") as record:
        record.at("finite/L2_M8_D4", 1, 8)
        assert main(["status", str(config), "--results", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert f"running: finite_01 on {os.uname().nodename} (process {os.getpid()})" in output
    assert "finite/L2_M8_D4, 1 of 8" in output
    assert "rest on this machine: about" in output
    assert "not yet compared with a finished result" in output
    assert "rest on a GPU: at least" in output
