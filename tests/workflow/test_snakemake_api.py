"""What the installed Snakemake must have inside for the workflow to work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake import jobs
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent
from trees import planned

from resnet_limits.stages.snakemake_api import (
    _ACCOUNT_GUESSES,
    _CONSEQUENCES,
    _LOGGER,
    _REMOVING,
    Snakemake,
)

SNAKEFILE = """
import json
from resnet_limits.stages.snakemake_api import Snakemake

SNAKEMAKE = Snakemake(workflow)
NAMES = (
    "options", "config_files", "folder", "is_main_process", "plans", "is_dry", "targets",
    "default_resources",
)


def plain(value):
    return sorted(value) if isinstance(value, set) else str(value)


def look(wildcards):
    with open("found.json", "w") as stream:
        json.dump({name: getattr(SNAKEMAKE, name) for name in NAMES}, stream, default=plain)
    if "again" in SNAKEMAKE.options:
        SNAKEMAKE.plan_again("a.txt")
    return "a.txt"


rule all:
    default_target: True
    input: look


rule other:
    input: look


rule make:
    output: "a.txt"
    shell: "touch {output}"
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    (tmp_path / "c.yaml").write_text("b: 2\n", encoding="utf-8")

    def snakemake(*arguments: str) -> tuple[str, dict[str, Any]]:
        (tmp_path / "found.json").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "-s", "code/Snakefile", "-j1", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout, json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))

    return snakemake


def test_everything_that_is_asked_of_snakemake_is_there(tmp_path: Path, run: Any) -> None:
    _, found = run(
        "other", "--dry-run", "--configfile", "c.yaml", "--config", "ab=1",
        "--default-resources", "gpu_gres='gpu:a100:1'", "mem_mb=100",
    )  # fmt: skip
    defaults = found.pop("default_resources")
    assert found == {
        "options": {"ab": 1},
        "config_files": [str(tmp_path / "c.yaml")],
        "folder": str(tmp_path / "code"),
        "is_main_process": True,
        "plans": True,
        "is_dry": True,
        "targets": ["other"],
    }
    assert defaults["mem_mb"] in (100, "100")
    assert defaults["gpu_gres"].strip("'") == "gpu:a100:1"
    _, found = run()
    assert (found["is_dry"], found["plans"], found["targets"]) == (False, True, [])
    assert found["default_resources"].keys() <= {"tmpdir"}


def test_a_job_is_planned_again_when_that_is_asked_for(run: Any) -> None:
    run()
    output, _ = run("--dry-run")
    assert planned(output) == {}
    output, _ = run("--dry-run", "--config", "again=1")
    assert planned(output) == {"make": 1, "all": 1}


def test_a_report_is_no_plan(run: Any) -> None:
    run()
    _, found = run("--report", "report.html")
    assert found["plans"] is False


def test_what_snakemake_says_of_stopped_jobs_is_known() -> None:
    assert {event.name for event in LogEvent} >= _CONSEQUENCES
    assert _REMOVING in Path(jobs.__file__).read_text(encoding="utf-8")
    assert logger is _LOGGER


def test_guesses_of_an_account_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    filters = list(logger.filters)
    logger.addHandler(caplog.handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        Snakemake(SimpleNamespace()).spare_account_guesses()
        logger.warning("No SLURM account given, trying to guess.")
        logger.warning("No account was given, not able to get a SLURM account via sacct: invalid")
        logger.warning("Unable to guess SLURM account. Trying to proceed without.")
        logger.warning("Guessed SLURM account: physics")
    finally:
        logger.removeHandler(caplog.handler)
        logger.filters[:] = filters
        logger.propagate = propagates
    assert [record.getMessage() for record in caplog.records] == ["Guessed SLURM account: physics"]


def test_the_guesses_are_those_of_the_plugin() -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    sources = "".join(path.read_text() for path in Path(plugin.__file__).parent.glob("*.py"))
    for line in _ACCOUNT_GUESSES:
        assert line in sources


STOPPED = """
import signal, sys, time
# Whoever runs the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from types import SimpleNamespace
from resnet_limits.stages.snakemake_api import Snakemake
snakemake = Snakemake(SimpleNamespace())
snakemake.say_when_stopped("stopped: run again")
snakemake.say_when_stopped("stopped: run again")
print("ready", flush=True)
time.sleep(60 if len(sys.argv) == 1 else 0)
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_last_line_of_what_is_stopped(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - started < 20
    assert output == "stopped: run again\n"
    assert process.returncode == 128 + number


def test_what_is_not_stopped_says_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, "0"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("ready\nended\n", "")
