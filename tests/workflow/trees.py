"""A copy of the workflow that tests may edit, and what Snakemake plans in it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "rules", "workflow", "profiles", "src", "config")
# Compiled code comes along, since it counts for the same sources wherever they lie; but not files
# that another process is about to move to their places.
IGNORED = shutil.ignore_patterns("*.egg-info", "*.kernel.*", "*.pyc.*")


@dataclass(frozen=True)
class Tree:
    """A copy of everything that Snakemake reads, with its own results."""

    path: Path

    def write_experiment(self, values: Mapping[str, Any]) -> None:
        (self.path / "experiment.yaml").write_text(yaml.safe_dump(dict(values)), encoding="utf-8")

    def append(self, file: str, text: str) -> None:
        with (self.path / file).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{text}\n")

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.path / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file}: {old!r} is there {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", *arguments]

    def environment(self, *before: Path) -> dict[str, str]:
        """Let every process import this copy of the package, and not the installed one."""
        paths = [*map(str, before), str(self.path / "src")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *arguments: str, before: Iterable[Path] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.path,
            env=self.environment(*before),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
            check=False,
        )

    def copy(self, path: Path) -> Tree:
        shutil.copytree(self.path, path, symlinks=True)
        return Tree(path)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Make a folder once for all processes of a test run; who comes second waits for it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, whole = root / name, root / f"{name}.whole"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            whole.touch()
    return folder


def copy_sources(path: Path, root: Path = ROOT) -> Tree:
    """Copy the workflow into a new folder."""
    path.mkdir(parents=True)
    for name in PARTS:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, path / name, symlinks=True, ignore=IGNORED)
        else:
            shutil.copy(source, path / name)
    return Tree(path)


def planned(output: str) -> dict[str, int]:
    """Read how many jobs of each rule Snakemake plans; bundles of a kind are counted together."""
    table = re.search(r"^Job stats:\n.*\n[- ]+\n((?:.+\n)*?)total ", output, re.MULTILINE)
    if table is None:
        assert "Nothing to be done" in output, output
        return {}
    counts: dict[str, int] = {}
    for line in table.group(1).splitlines():
        rule, count = line.split()
        rule = re.sub(r"_\d+$", "", rule)
        counts[rule] = counts.get(rule, 0) + int(count)
    return counts
