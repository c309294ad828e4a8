"""Fixtures: trees that the tests of the workflow and of faults share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trees import Tree, copy_sources


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Copy the workflow. Not to be edited: take a copy."""
    return copy_sources(tmp_path_factory.mktemp("workflow") / "source")


@pytest.fixture(scope="session")
def finished_tree(
    source_tree: Tree,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_values: Callable[..., dict[str, Any]],
) -> Tree:
    """Run a tiny experiment to its end. Not to be edited: take a copy."""
    tree = source_tree.copy(tmp_path_factory.mktemp("workflow") / "finished")
    tree.write_experiment(tiny_values())
    done = tree.run("--configfile", "experiment.yaml")
    assert done.returncode == 0, done.stdout
    return tree
