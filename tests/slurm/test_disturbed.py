"""What ends jobs in the middle costs only what was not finished."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable

import pytest
from cluster import wait_until
from runs import Site

# Two seconds for each of eight networks: time enough to be disturbed.
SLOW = """\
import time


def before(cell):
    time.sleep(2)
"""
CELLS = 8


def _state(site: Site) -> str:
    return site.jobs("finite")[-1]["JobState"]


def _requeued(site: Site, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Let the job that SLURM has put back into the queue go at once."""
    site.wait(lambda: site.jobs("finite")[-1]["Restarts"] == "1", "requeued")
    site.wait(lambda: _state(site) == "PENDING", "pending")
    site.cluster.begin_now(site.jobs("finite")[-1])
    return process


def cancelled(site: Site, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """The job is cancelled by hand: Snakemake submits it again."""
    site.cluster.run("scancel", site.jobs("finite")[-1]["JobId"])
    return process


def preempted(site: Site, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """A more urgent job needs the whole node."""
    (job,) = site.jobs("finite")
    node = job["BatchHost"]
    urgent = ("-p", "urgent", "-w", node, "-c", "4", "-o", "/dev/null", "--wrap", "sleep 1")
    site.cluster.run("sbatch", *urgent)
    return _requeued(site, process)


def node_lost(site: Site, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """The node is gone from one moment to the next, and stays away: another one takes the job."""
    (job,) = site.jobs("finite")
    site.cluster.kill_node(job["BatchHost"])
    return _requeued(site, process)


def interrupted(site: Site, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Ctrl-C: Snakemake cancels its jobs. Then it is started again."""
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    wait_until(lambda: _state(site) == "CANCELLED", 30, "cancelled")
    return site.start("networks")


def killed(site: Site, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Snakemake is killed, and its job lives on: cancelled by hand, unlocked, started again."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert _state(site) == "RUNNING"
    site.cluster.run("scancel", site.jobs("finite")[-1]["JobId"])
    wait_until(lambda: _state(site) == "CANCELLED", 30, "cancelled")
    assert site.start("networks", "--unlock").wait(60) == 0
    return site.start("networks")


@pytest.mark.parametrize(
    ("disturb", "jobs"),
    [(cancelled, 2), (preempted, 1), (node_lost, 1), (interrupted, 2), (killed, 2)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_finished_networks_are_kept(
    site: Site,
    disturb: Callable[[Site, subprocess.Popen[str]], subprocess.Popen[str]],
    jobs: int,
) -> None:
    site.hook(SLOW)
    process = site.start("networks")
    site.wait_for(2)
    process = disturb(site, process)
    before = site.finished()
    assert 2 <= len(before) < CELLS
    site.finish(process)
    after = site.finished()
    assert len(after) == CELLS
    assert {name: after[name] for name in before} == before
    assert len(site.jobs("finite")) == jobs
    assert _state(site) == "COMPLETED"


def test_job_at_its_time_limit_stops_in_time_and_goes_on_with_more(site: Site) -> None:
    site.hook(SLOW.replace("2", "7"))
    # SLURM counts in minutes, and warns up to half a minute early.
    site.tree.replace("workflow/profiles/slurm/config.yaml", "TERM@120", "TERM@5")
    process = site.start("networks", "--set-resources", "finite_01:runtime=1 + 3 * (attempt - 1)")
    site.wait_for(2)
    site.wait(lambda: site.jobs("finite")[0]["JobState"] == "FAILED", "the limit")
    before = site.finished()
    assert 2 <= len(before) < CELLS
    site.finish(process)
    first, second = site.jobs("finite")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("00:01:00", "00:04:00")
    log = next(site.tree.path.glob(f".snakemake/slurm_logs/*/{first['JobId']}.log")).read_text()
    (line,) = re.findall(r".*stopped by.*", log)
    assert f"stopped by SIGTERM: {len(before)} results finished and kept; run again" in line
    after = site.finished()
    assert len(after) == CELLS
    assert {name: after[name] for name in before} == before


def test_job_over_its_memory_is_given_more(site: Site) -> None:
    site.hook(
        """\
import time

cells = []


def before(cell):
    cells.append(cell)
    if len(cells) == 3:
        more = b"x" * (600 * 2**20)
        time.sleep(6)
"""
    )
    process = site.start("networks")
    site.wait(lambda: site.jobs("finite"), "submitted")
    site.wait(lambda: site.jobs("finite")[0]["JobState"] == "FAILED", "over its memory")
    before = site.finished()
    assert len(before) == 2
    site.finish(process)
    first, second = site.jobs("finite")
    asked = [int(job["MinMemoryNode"].removesuffix("M")) for job in (first, second)]
    assert asked[1] == 2 * asked[0]
    after = site.finished()
    assert len(after) == CELLS
    assert {name: after[name] for name in before} == before


def test_a_job_that_waited_since_a_killed_run_computes_nothing(site: Site) -> None:
    """The next run has submitted its work again."""

    def partition(state: str) -> None:
        site.cluster.run("scontrol", "update", "PartitionName=cpu", f"State={state}")

    partition("DOWN")
    try:
        process = site.start("networks")
        site.wait(lambda: site.jobs("finite"), "submitted")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = site.start("networks")
        site.wait(lambda: len(site.jobs("finite")) == 2, "submitted again")
    finally:
        partition("UP")
    site.finish(process)
    assert sorted(job["JobState"] for job in site.jobs("finite")) == ["COMPLETED", "FAILED"]
    logs = (site.tree.path / ".snakemake/slurm_logs").rglob("*.log")
    assert any("submitted by a run that was killed" in log.read_text() for log in logs)
    assert len(site.finished()) == CELLS


def test_nothing_is_said_of_accounting_where_there_is_none(site: Site) -> None:
    output = site.finish(site.start("networks"))
    assert "sacct:" not in output
    assert "SLURM account" not in output
