"""Fixtures: trees that the tests of the workflow and of faults share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import Tree, copy_sources, made_once


@pytest.fixture(scope="session")
def finished_tree(
    tmp_path_factory: pytest.TempPathFactory, tiny_values: Callable[..., dict[str, Any]]
) -> Tree:
    """Run a tiny experiment to its end. Not to be edited: take a copy."""

    def make(folder: Path) -> None:
        tree = copy_sources(folder)
        tree.write_experiment(tiny_values())
        done = tree.run("--configfile", "experiment.yaml")
        assert done.returncode == 0, done.stdout

    # Tests also plan in it, which leaves files beside the results: each process has its own.
    made = made_once(tmp_path_factory, "finished", make)
    return Tree(made).copy(tmp_path_factory.mktemp("workflow") / "finished")


@pytest.fixture(scope="session")
def source_tree(finished_tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Copy the workflow, with the code that a run has compiled. Not to be edited: take a copy."""
    return copy_sources(tmp_path_factory.mktemp("workflow") / "source", finished_tree.path)
