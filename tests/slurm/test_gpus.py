"""Jobs with a GPU: where they run, what they see, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from runs import Site

from resnet_limits import store

SLOW = """\
import time


def before(cell):
    time.sleep(2)
"""


def _on_gpus(*rules: str) -> list[str]:
    """Options that give jobs a GPU each, whatever their size."""
    wanted = [f"{rule}:{what}" for rule in rules for what in ("gpu=1", "slurm_partition=gpu")]
    return ["--set-resources", *wanted]


def test_each_job_has_one_gpu_for_itself_and_a_third_waits(site: Site) -> None:
    site.hook(SLOW)
    bundles = "src/resnet_limits/stages/bundles.py"
    site.tree.replace(bundles, "_BUNDLE_SECONDS = 120.0", "_BUNDLE_SECONDS = 0.01")
    site.tree.replace(bundles, "MOST_BUNDLES = 64", "MOST_BUNDLES = 3")
    site.finish(site.start("networks", *_on_gpus("finite_01", "finite_02", "finite_03")))
    jobs = site.jobs("finite")
    assert len(jobs) == 3
    assert {job["BatchHost"] for job in jobs} == {"g1"}
    *_, last = sorted(jobs, key=lambda job: job["StartTime"])
    others = [job for job in jobs if job is not last]
    assert last["SubmitTime"] < min(job["EndTime"] for job in others) <= last["StartTime"]
    folder = site.tree.path / "results/tiny/finite"
    seen = {path.name: store.open_store(path).attrs for path in folder.glob("*.zarr")}
    assert {attrs["device"] for attrs in seen.values()} == {"cpu"}
    assert {attrs["cuda_visible_devices"] for attrs in seen.values()} == {"0", "1"}


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_cannot_be_used_is_one_clear_line(
    site: Site, device: str, tiny_values: Callable[..., dict[str, Any]]
) -> None:
    site.tree.write_experiment(tiny_values(numerics={"device": device}))
    # Who writes "cuda" gets a GPU and its partition without asking.
    asked = _on_gpus("finite_01") if device == "auto" else []
    process = site.start("networks", "--retries", "0", *asked)
    assert process.wait(240) == 1, site.output.read_text()
    (job,) = site.jobs("finite")
    assert (job["Partition"], job["BatchHost"]) == ("gpu", "g1")
    log = (site.tree.path / "results/tiny/logs/finite_01.log").read_text()
    assert re.search(
        rf"ERROR numerics.device: {device}, but CUDA cannot use the GPU that SLURM has reserved "
        r"for this job \(SLURM_STEP_GPUS=[01], CUDA_VISIBLE_DEVICES=0\); allowed here: cpu\n$",
        log,
    ), log
    assert "Traceback" not in log
    assert site.finished() == {}
