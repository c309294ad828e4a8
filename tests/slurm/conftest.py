"""One cluster for all tests of a process, and a tree for each of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster as clusters
import pytest
from cluster import Cluster
from runs import Site
from trees import Tree, copy_sources


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = clusters.missing()
    if reason is not None:
        pytest.skip(reason)
    with clusters.cluster() as made:
        yield made


@pytest.fixture(scope="session")
def prepared_tree(
    tmp_path_factory: pytest.TempPathFactory, tiny_values: Callable[..., dict[str, Any]]
) -> Tree:
    """A tree whose problem is there, and whose kernels are compiled: networks train at once."""
    tree = copy_sources(tmp_path_factory.mktemp("slurm") / "prepared")
    grid = {"depth": [2, 4], "width": [8, 12], "embed_dim": [4, 16]}
    tree.write_experiment(tiny_values(sweep={"grid": grid}))
    done = tree.run("networks", "--configfile", "experiment.yaml")
    assert done.returncode == 0, done.stdout
    results = tree.path / "results/tiny"
    shutil.rmtree(results / "finite")
    shutil.rmtree(results / "manifests/finite")
    return tree


@pytest.fixture
def site(cluster: Cluster, prepared_tree: Tree, tmp_path: Path) -> Iterator[Site]:
    made = Site(prepared_tree.copy(tmp_path / "tree"), cluster)
    yield made
    made.end()
    cluster.restore()
