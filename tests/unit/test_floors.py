"""The package's floors: imports only go down, and light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_limits

PACKAGE = Path(resnet_limits.__file__).parent

FLOOR = {
    "config": 1, "units": 1, "norms": 1, "rules": 1, "randomness": 1, "fields": 1, "integrity": 1,
    "signals": 1, "openmp": 1, "onechunk": 1, "kinds": 1, "jit": 1, "tiles": 1, "interpolation": 1,
    "speeds": 1,
    "problem": 2, "datafile": 2, "store": 2, "provenance": 2, "lock": 2, "devices": 2, "laws": 2,
    "threads": 2, "cells": 2, "fitted": 2, "kept": 2, "datashape": 2,
    "optimum": 2, "predicted": 2,
    "dynamics": 3, "errors": 3, "explorer": 3, "figures": 3, "work": 3,
    "limits": 4, "networks": 4, "report": 4,
    "stages": 5,
    "results": 6, "cli": 6,
    "__main__": 7,
}  # fmt: skip
# Stages and what is above them may use these; they know places and costs, and no other stage.
SHARED_STAGES = {"stages.paths", "stages.estimates"}
PURE = {"limits", "networks"}
FILES = {
    "xarray", "zarr", "dask", "pathlib", "os", "io", "shutil", "tempfile", "pickle", "json",
    "snakemake", "matplotlib",
}  # fmt: skip
HEAVY = {"torch", "xarray", "zarr", "dask", "numpy", "scipy", "matplotlib", "sklearn", "snakemake"}
LIGHT = (
    "config",
    "integrity",
    "lock",
    "provenance",
    "kept",
    "kinds",
    "jit",
    "speeds",
    "work",
    "limits.cost",
    "limits.amplitudes.cost",
    "networks.cost",
    "stages.paths",
    "stages.estimates",
)
# Those of the Snakefile's imports that are heavy only when a job uses them.
LIGHT_AT_FIRST = ("datafile", "datashape")


class Module:
    """One source file: its name below the package, and what it imports."""

    def __init__(self, file: Path, root: Path) -> None:
        parts = file.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.folder = ".".join(parts[:-1])
        self.tree = ast.parse(file.read_text())

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def imports(self, *, late: bool = True) -> set[str]:
        """Absolute names imported; a name after ``from`` counts as a possible module."""
        found = set()
        nodes = list(ast.walk(self.tree)) if late else self.tree.body
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    here = ["resnet_limits", *filter(None, self.folder.split("."))]
                    here = here[: len(here) - node.level + 1]
                    base = ".".join([*here, *filter(None, [base])])
                found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        return found

    def calls_open(self) -> bool:
        return any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
            for node in ast.walk(self.tree)
        )


def modules(root: Path) -> dict[str, Module]:
    found = [Module(file, root) for file in sorted(root.rglob("*.py"))]
    return {module.name: module for module in found}


def inner_imports(module: Module, known: dict[str, Module], *, late: bool = True) -> set[str]:
    """Modules of the package that a module imports, each by its longest name."""
    prefix = "resnet_limits."
    names = {n.removeprefix(prefix) for n in module.imports(late=late) if n.startswith(prefix)}
    names = {name for name in names if name in known and name != module.name}
    # ``from resnet_limits.limits import solver`` names the package and the module.
    return {n for n in names if not any(other.startswith(f"{n}.") for other in names)}


def floor_findings(root: Path) -> list[str]:
    known = modules(root)
    findings = []
    for name, module in known.items():
        if not name:
            continue
        if module.top not in FLOOR:
            findings.append(f"{name}: has no floor")
            continue
        floor = FLOOR[module.top]
        for target in sorted(inner_imports(module, known)):
            other = known[target]
            if other.top not in FLOOR:
                continue
            same_folder = other.top == module.top if floor > 2 else floor == FLOOR[other.top]
            if FLOOR[other.top] >= floor and not same_folder:
                findings.append(f"{name}: imports {target}, which is not below it")
            # A stage may be a folder, whose modules are all that stage.
            another = name.split(".")[:2] != target.split(".")[:2]
            if module.top == other.top == "stages" and another and target not in SHARED_STAGES:
                findings.append(f"{name}: imports {target}, another stage")
            if target in SHARED_STAGES and floor < 5:
                findings.append(f"{name}: knows files' places")
            if module.top in PURE and other.top == "store":
                findings.append(f"{name}: knows stores")
        outer = {imported.partition(".")[0] for imported in module.imports()}
        if floor < 5 and "snakemake" in outer:
            findings.append(f"{name}: imports snakemake")
        if module.top in PURE:
            findings += [f"{name}: imports {bad}" for bad in sorted(outer & FILES)]
            findings += [f"{name}: opens files"] if module.calls_open() else []
        if module.top == "cli":
            early = inner_imports(module, known, late=False)
            findings += [
                f"{name}: imports {target} early"
                for target in sorted(early)
                if known[target].top != "cli" and FLOOR[known[target].top] > 1
            ]
        if name in LIGHT or module.is_package:
            findings += [f"{name}: imports {bad}" for bad in sorted(outer & HEAVY)]
    findings += [" -> ".join(cycle) + ": a circle" for cycle in circles(known)]
    return findings


def circles(known: dict[str, Module]) -> list[list[str]]:
    """Find import circles, each once, by depth-first search."""
    found, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for target in sorted(inner_imports(known[name], known)):
            visit(target, [*path, name])
        done.add(name)

    for name in known:
        visit(name, [])
    return found


def test_imports_only_go_down():
    assert floor_findings(PACKAGE) == []


BAD = {
    "config.py": ("import torch\n", "config: imports torch"),
    "units.py": (
        "from resnet_limits import problem\n",
        "units: imports problem, which is not below it",
    ),
    "novelty.py": ("", "novelty: has no floor"),
    "limits/solver.py": ("import xarray as xr\n", "limits.solver: imports xarray"),
    "limits/depth.py": ("def f():\n    open('x')\n", "limits.depth: opens files"),
    "limits/models.py": (
        "from resnet_limits.networks.train import train\n",
        "limits.models: imports networks.train, which is not below it",
    ),
    "networks/train.py": (
        "def f():\n    from ..store import write\n",
        "networks.train: knows stores",
    ),
    "networks/dense.py": ("import snakemake.script\n", "networks.dense: imports snakemake"),
    "errors/rates.py": (
        "from resnet_limits.stages.paths import Paths\n",
        "errors.rates: knows files' places",
    ),
    "errors/a.py": ("from . import b\n", "errors.a -> errors.b -> errors.a: a circle"),
    "errors/b.py": ("def f():\n    from .a import g\n", "errors.a -> errors.b -> errors.a"),
    "stages/errors.py": (
        "from resnet_limits.stages import limits\n",
        "stages.errors: imports stages.limits, another stage",
    ),
    "stages/figures/__init__.py": (
        "from resnet_limits.stages.figures import views\nfrom resnet_limits.stages import limits\n",
        "stages.figures: imports stages.limits, another stage",
    ),
    "stages/figures/views.py": (
        "from resnet_limits.stages.limits import x\n",
        "stages.figures.views: imports stages.limits, another stage",
    ),
    "cli.py": ("import resnet_limits.stages.limits\n", "cli: imports stages.limits early"),
    "figures/__init__.py": ("import matplotlib\n", "figures: imports matplotlib"),
}
GOOD = {
    "__init__.py": "",
    "problem.py": "import numpy as np\nfrom resnet_limits.config import x\n",
    "store.py": "import xarray\n",
    "stages/paths.py": "from pathlib import Path\n",
    "stages/limits.py": "from resnet_limits.stages.paths import Paths\nfrom ..store import write\n",
}


def make_package(root: Path, files: dict[str, str]) -> Path:
    folders = {Path(name).parent for name in files}
    for name, text in {**{f"{folder}/__init__.py": "" for folder in folders}, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_check_accepts_what_is_right(tmp_path):
    assert floor_findings(make_package(tmp_path, GOOD)) == []


@pytest.mark.parametrize("name", BAD)
def test_the_check_finds_what_is_wrong(tmp_path, name):
    text, finding = BAD[name]
    others = {other: "" for other in BAD if other != "novelty.py"}
    if name.startswith("errors/"):
        others.update({n: BAD[n][0] for n in ("errors/a.py", "errors/b.py")})
    found = floor_findings(make_package(tmp_path, {**others, **GOOD, name: text}))
    assert any(finding in line for line in found), found


def loaded_after(statement: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*(m for m in {sorted(HEAVY)!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
    )
    return set(done.stdout.split())


def test_what_the_snakefile_imports_loads_nothing_heavy():
    names = ", ".join(f"resnet_limits.{name}" for name in (*LIGHT, *LIGHT_AT_FIRST))
    assert loaded_after(f"import {names}") == set()


def test_packages_and_the_command_line_load_nothing_heavy():
    packages = ("limits", "networks", "errors", "figures", "stages", "cli")
    names = ", ".join(f"resnet_limits.{name}" for name in packages)
    assert loaded_after(f"import {names}") == set()


def test_heavy_imports_would_be_noticed():
    """The negative control."""
    assert loaded_after("import resnet_limits.randomness") >= {"numpy"}
