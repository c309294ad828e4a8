"""The frame around every script."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from trees import ROOT

from resnet_limits import integrity, provenance, store
from resnet_limits.config import InputError
from resnet_limits.stages.paths import Paths, cells

if TYPE_CHECKING:
    import xarray as xr

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def job_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    monkeypatch.syspath_prepend(str(ROOT / "workflow" / "scripts"))
    yield importlib.import_module("_job")
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)


@pytest.fixture
def snakemake(tmp_path: Path, tiny_experiment: Callable[..., Any]) -> SimpleNamespace:
    """What Snakemake gives to the script of a job that trains two shapes."""
    experiment = tiny_experiment()
    paths = Paths(tmp_path, experiment.experiment)
    outputs = [paths.manifest("finite", **cell) for cell in cells("finite", experiment)[:2]]
    return SimpleNamespace(
        rule="finite_01",
        config={
            **experiment.model_dump(mode="json"),
            "experiment_file": "tiny.yaml",
            "results": str(tmp_path),
        },
        params=SimpleNamespace(key=provenance.stage_key("finite", experiment)),
        input=[],
        output=outputs,
        log=[str(tmp_path / "logs" / "finite_01.log")],
        threads=1,
    )


@pytest.fixture
def compute(make_dataset: Callable[..., xr.Dataset]) -> Callable[[dict[str, int]], xr.Dataset]:
    return lambda cell: make_dataset("finite").assign_attrs(cell)


def test_a_job_computes_the_cells_whose_manifests_are_expected(
    job_module: ModuleType, snakemake: SimpleNamespace, compute: Callable[..., Any]
) -> None:
    with job_module.running(snakemake, "finite") as job:
        assert len(job.cells) == 2
        job.publish_each(compute)
    for path in snakemake.output:
        manifest = integrity.read_manifest(path)
        assert store.check(path.parent / manifest["store"], manifest=path) == []
    assert "done in" in Path(snakemake.log[0]).read_text()


def test_sound_results_are_vouched_for_again_and_others_computed_again(
    job_module: ModuleType, snakemake: SimpleNamespace, compute: Callable[..., Any]
) -> None:
    with job_module.running(snakemake, "finite") as job:
        job.publish_each(compute)
        places = [job.paths.store("finite", **cell) for cell in job.cells]
        manifests = [path.read_bytes() for path in snakemake.output]
    (flipped,) = (places[1] / "hidden").glob("c*")
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    for path in snakemake.output:
        path.unlink()

    computed = []
    with job_module.running(snakemake, "finite") as job:
        job.publish_each(lambda cell: computed.append(cell) or compute(cell))
    assert computed == [job.cells[1]]
    assert snakemake.output[0].read_bytes() == manifests[0]
    assert store.check(places[1], manifest=snakemake.output[1]) == []


def test_result_of_another_key_is_not_vouched_for(
    job_module: ModuleType,
    snakemake: SimpleNamespace,
    compute: Callable[..., Any],
    tiny_experiment: Callable[..., Any],
) -> None:
    with job_module.running(snakemake, "finite") as job:
        job.publish_each(compute)
    other = tiny_experiment(training={"learning_rate": 0.25})
    snakemake.config |= other.model_dump(mode="json")
    snakemake.params.key = provenance.stage_key("finite", other)
    computed = []
    with job_module.running(snakemake, "finite") as job:
        job.publish_each(lambda cell: computed.append(cell) or compute(cell))
    assert computed == job.cells


def test_one_failed_cell_does_not_stop_the_others(
    job_module: ModuleType, snakemake: SimpleNamespace, compute: Callable[..., Any]
) -> None:
    def fails_first(cell: dict[str, int]) -> Any:
        if cell == job.cells[0]:
            raise RuntimeError("did not converge")
        return compute(cell)

    with pytest.raises(SystemExit) as ended, job_module.running(snakemake, "finite") as job:
        job.publish_each(fails_first)
    assert ended.value.code == 1
    assert [path.exists() for path in snakemake.output] == [False, True]
    log = Path(snakemake.log[0]).read_text()
    assert "RuntimeError: did not converge" in log
    assert "Traceback" in log


def test_edits_after_planning_are_refused(
    job_module: ModuleType, snakemake: SimpleNamespace, compute: Callable[..., Any]
) -> None:
    snakemake.params.key = "0" * 32
    with pytest.raises(SystemExit) as ended, job_module.running(snakemake, "finite") as job:
        job.publish_each(compute)
    assert ended.value.code == 1
    assert not any(path.exists() for path in snakemake.output)
    assert "edited after this job was planned" in Path(snakemake.log[0]).read_text()


def test_bad_input_is_one_line_without_traceback(
    job_module: ModuleType, snakemake: SimpleNamespace
) -> None:
    def refuse(cell: dict[str, int]) -> Any:
        raise InputError("problem.data: x has NaN; allowed: finite numbers")

    with pytest.raises(SystemExit) as ended, job_module.running(snakemake, "finite") as job:
        job.publish_each(refuse)
    assert ended.value.code == 2
    log = Path(snakemake.log[0]).read_text()
    assert "ERROR problem.data: x has NaN" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("when", ["computing", "publishing"])
def test_a_stopped_job_keeps_what_is_finished_and_says_so(
    job_module: ModuleType,
    snakemake: SimpleNamespace,
    compute: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    def stop_in_second(cell: dict[str, int]) -> Any:
        if when == "computing" and cell == job.cells[1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(cell)

    if when == "publishing":
        # A result that is being written when the signal comes is written to its end.
        write = store.write

        def stopped(*args: Any, **options: Any) -> Path:
            os.kill(os.getpid(), signal.SIGTERM)
            return write(*args, **options)

        monkeypatch.setattr(store, "write", stopped)
    with pytest.raises(SystemExit) as ended, job_module.running(snakemake, "finite") as job:
        job.publish_each(stop_in_second)
    assert ended.value.code == 75
    assert [path.exists() for path in snakemake.output] == [True, False]
    assert [job.paths.store("finite", **cell).exists() for cell in job.cells] == [True, False]
    log = Path(snakemake.log[0]).read_text()
    assert "stopped by SIGTERM: 1 results finished and kept; run again" in log
    assert "Traceback" not in log


def test_what_a_link_in_place_of_the_log_leads_to_is_not_written(
    job_module: ModuleType, tmp_path: Path
) -> None:
    own, log = tmp_path / "own.txt", tmp_path / "logs" / "a.log"
    own.write_text("my own", encoding="utf-8")
    log.parent.mkdir()
    log.symlink_to(own)
    job_module._log_to(log)
    logging.getLogger("resnet_limits").error("a line")
    assert own.read_text(encoding="utf-8") == "my own"
    # The negative control: without the link the log is written.
    log.unlink()
    job_module._log_to(log)
    logging.getLogger("resnet_limits").error("a line")
    assert "a line" in log.read_text(encoding="utf-8")
