"""Dask's workers as jobs of a cluster: for the errors stage, and for a person in a notebook."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from cluster import Cluster
from trees import ROOT, Tree

from resnet_limits import store

PAGE = ROOT / "docs/how-to/interactive-on-a-cluster.md"


@pytest.fixture(scope="module")
def tree(
    prepared_tree: Tree,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_values: Callable[..., dict[str, Any]],
) -> Tree:
    """A tree with results, of which some networks have several chunks."""
    made = prepared_tree.copy(tmp_path_factory.mktemp("dask") / "tree")
    made.write_experiment(
        tiny_values(
            experiment="quickstart",
            problem={"data": {"kind": "gaussian", "samples": 16, "inputs": 2, "targets": 2}},
            sweep={"grid": {"depth": [2, 64], "width": [256], "embed_dim": [256, 2048]}},
            save={"depth_points": 17},
        )
    )
    done = made.run("errors", "--configfile", "experiment.yaml")
    assert done.returncode == 0, done.stdout
    return made


def started_in(cluster: Cluster, tree: Tree) -> list[dict[str, str]]:
    """Jobs of Dask's workers that were submitted from a tree."""
    here = [job for job in cluster.jobs() if job["WorkDir"] == str(tree.path)]
    return [job for job in here if job["JobName"] == "dask-worker"]


def in_cluster(cluster: Cluster, tree: Tree, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=tree.path,
        env={**tree.environment(), **cluster.environment_changes},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_errors_stage_in_jobs_gives_the_same_bits(cluster: Cluster, tree: Tree) -> None:
    folder = tree.path / "results/quickstart"
    by_threads = store.data_digest(folder / "errors.zarr")
    large = xr.open_zarr(folder / "finite/L64_M256_D2048.zarr")["hidden"]
    assert large.nbytes > 2 * store.packing.CHUNK_BYTES
    shutil.rmtree(folder / "errors.zarr")
    (folder / "manifests/errors.json").unlink()
    before = len(started_in(cluster, tree))
    arguments = ("errors", "--configfile", "experiment.yaml", "--config", "errors_workers=2")
    in_cluster(cluster, tree, *tree.command(*arguments))
    jobs = started_in(cluster, tree)[before:]
    # The work may be done before the second job begins.
    assert 1 <= len(jobs) <= 2
    assert {job["JobState"] for job in jobs} <= {"COMPLETED", "CANCELLED", "COMPLETING"}
    assert "blocks are computed by 2 SLURM jobs" in (folder / "logs/errors.log").read_text()
    assert store.data_digest(folder / "errors.zarr") == by_threads
    assert store.check(folder / "errors.zarr") == []
    # A number of jobs is in no key: nothing is computed again.
    assert "Nothing to be done" in tree.run("errors", "--configfile", "experiment.yaml").stdout


def test_ten_lines_of_the_page(cluster: Cluster, tree: Tree) -> None:
    code = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    before = len(started_in(cluster, tree))
    printed = in_cluster(cluster, tree, sys.executable, "-c", code)
    assert len(started_in(cluster, tree)) > before
    numbers = printed.replace("[", " ").replace("]", " ").split()
    folder = tree.path / "results/quickstart"
    networks = xr.open_zarr(folder / "finite/L64_M256_D256.zarr").load()
    last = networks["hidden"].isel(step=-1).astype(float)
    expected = np.sqrt((last**2).mean(["seed", "sample", "coordinate"])).values
    found = np.array(numbers[-len(expected) :], float)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(found[::-1], expected, rtol=1e-6)
