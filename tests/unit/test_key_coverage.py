"""Whatever a result depends on is in its key: by value, or by the code that computes it.

The code of ``config`` is in no key. So nothing that a stage runs may come from there, except what
the key of that stage holds by value; and this is found out by changing the values.
"""

from __future__ import annotations

import ast
import inspect
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from test_provenance import CELLS

from resnet_limits import config, provenance
from resnet_limits.config import Experiment, experiment_from_dict
from resnet_limits.config import data as data_module
from resnet_limits.config import model as model_module
from resnet_limits.config import schema as schema_module
from resnet_limits.config import sweep as sweep_module
from resnet_limits.provenance import stage_key, stage_module

PACKAGE = provenance.PACKAGE_DIRECTORY
# What no result depends on, each with the reason.
NO_RESULT = {
    "SweepConfig.count": "only for the bound on the number of cells and its message",
    "SweepConfig._count_cells": "only for the bound on the number of cells and its message",
    "SweepConfig._most_seeds": "only for the bound on the number of cells and its message",
    "Experiment.seeds": "what validate prints; stages ask for the seeds of a shape or a cell",
}
# Stages that share a module with one that uses the value, and do not use it.
NO_USER = {"Experiment.cell_seeds": {"dmft"}}
# Constants of config that may be used where results are made: they only decide what is refused, or
# are lists of names of which an experiment's own are in the key.
CONSTANTS = {"MAX_DATA_VALUES", "MAX_NUMBER", "LOSSES", "PAIRS"}
MESSAGES = {"InputError", "one_line"}


def experiments() -> list[Experiment]:
    """Three that between them use every form of the section ``sweep``."""
    common: dict[str, Any] = {
        "experiment": "e",
        "problem": {"data": {"kind": "gaussian", "samples": 2, "inputs": 2, "targets": 1}},
    }
    power = {"depth": {"factor": 2, "exponent": "1/6"}, "embed_dim": {"factor": 4, "exponent": 0}}
    steps = [{"parameters": 100, "seeds": 3}, {"seeds": 2}]
    sweeps: list[dict[str, Any]] = [
        {
            "grid": {"depth": [2, 4], "width": [8], "embed_dim": [4, 16]},
            "seeds": 2,
            "limit_seeds": 3,
        },
        {"shapes": [[2, 8, 4], [4, 8, 16]], "seeds": steps},
        {"families": {"a": {"parameters": [64, 512], **power}}},
    ]
    return [experiment_from_dict({**common, "sweep": sweep}) for sweep in sweeps]


def keys() -> dict[str, list[str]]:
    """Keys of the same cells in all experiments, whatever these say of their cells."""
    sweep_module.most_seeds.cache_clear()
    found = experiments()
    return {stage: [stage_key(stage, e, **CELLS[stage]) for e in found] for stage in CELLS}


# --- by value -------------------------------------------------------------------------------------


def derived() -> dict[str, tuple[type, str]]:
    """Find all that the models of config compute: their methods and properties, checks apart."""
    found = {}
    for module in (schema_module, data_module, model_module, sweep_module):
        for model in vars(module).values():
            if not (inspect.isclass(model) and issubclass(model, BaseModel)):
                continue
            checks = set(model.__pydantic_decorators__.model_validators)
            checks |= set(model.__pydantic_decorators__.field_validators)
            for name, value in vars(model).items():
                computes = isinstance(value, property) or inspect.isfunction(value)
                ours = model.__module__ == module.__name__ and not name.startswith("__")
                if computes and ours and name not in checks and not name.startswith("model_"):
                    found[f"{model.__name__}.{name}"] = (model, name)
    return found


def other(value: Any) -> Any:
    """Give another value of the same kind."""
    match value:
        case config.BranchConfig():
            return value.model_copy(update={"width_ratio": value.width_ratio + 1})
        case config.Shape():
            return value._replace(depth=value.depth + 1)
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case range():
            return range(len(value) + 1)
        case dict():
            return dict(list(value.items())[1:])
        case set() | list() | tuple():
            return type(value)(other(part) for part in value)
    return value


def patch(monkeypatch: pytest.MonkeyPatch, model: type, name: str) -> None:
    original = vars(model)[name]
    if isinstance(original, property):
        assert original.fget is not None
        read = original.fget
        monkeypatch.setattr(model, name, property(lambda self: other(read(self))))
    else:
        monkeypatch.setattr(model, name, lambda self, *a, **k: other(original(self, *a, **k)))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    sweep_module.most_seeds.cache_clear()


@pytest.mark.parametrize("function", sorted(derived()))
def test_what_config_computes_is_in_keys_by_value(monkeypatch, function):
    model, name = derived()[function]
    users = users_of(name, PACKAGE) - NO_USER.get(function, set())
    before = keys()
    patch(monkeypatch, model, name)
    after = keys()
    changed = {stage for stage in CELLS if before[stage] != after[stage]}
    if function in NO_RESULT:
        assert not users, f"{function} is used by {', '.join(users)}"
    else:
        assert changed, f"{function} is in no key"
        assert users <= changed, f"{function} is not in the key of {users - changed}"


def test_the_table_of_exceptions_names_what_is_there():
    assert set(NO_RESULT) | set(NO_USER) <= set(derived())


# --- by code --------------------------------------------------------------------------------------


def hashed(stage: str, directory: Path) -> dict[str, ast.Module]:
    """Syntax trees of the modules of which a stage's key holds a hash."""
    names = provenance.code._imported_modules(stage_module(stage), directory, frozenset())
    found = {}
    for name in names:
        file = provenance.code._source_file(name, directory)
        assert file is not None
        found[name] = parsed(file.read_text())
    return found


@lru_cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def is_experiment(node: ast.AST) -> bool:
    """Whether an expression is an experiment or, through attributes, something of one."""
    while isinstance(node, ast.Attribute):
        if node.attr == "experiment":
            return True
        node = node.value
    return isinstance(node, ast.Name) and node.id == "experiment"


def users_of(name: str, directory: Path) -> set[str]:
    """Stages whose hashed code asks an experiment for something."""
    return {
        stage
        for stage in CELLS
        for tree in hashed(stage, directory).values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == name and is_experiment(node.value)
    }


def taken_from_config(directory: Path) -> dict[str, set[str]]:
    """Names that hashed code imports from config, by module."""
    found: dict[str, set[str]] = {}
    for stage in CELLS:
        for module, tree in hashed(stage, directory).items():
            for node in provenance.code._executed(tree):
                source = getattr(node, "module", None) or ""
                if isinstance(node, ast.ImportFrom) and source.startswith("resnet_limits.config"):
                    names = {alias.name for alias in node.names}
                    found.setdefault(module, set()).update(names)
    return found


def foreign(directory: Path) -> list[str]:
    """Find what hashed code may not take from config: anything that it could run."""
    return [
        f"{module}: {name}"
        for module, names in sorted(taken_from_config(directory).items())
        for name in sorted(names - CONSTANTS - MESSAGES)
        if not issubclass(getattr(config, name, object), BaseModel)
    ]


def test_nothing_that_results_depend_on_is_imported_from_config():
    assert "resnet_limits.datafile" in taken_from_config(PACKAGE)
    assert foreign(PACKAGE) == []


@pytest.fixture
def edited(monkeypatch, tmp_path) -> Callable[..., Path]:
    """Return a function that makes an edited copy of the package the one that is hashed."""

    def edit(file: str, old: str, new: str) -> Path:
        directory = tmp_path / "resnet_limits"
        if not directory.exists():
            shutil.copytree(PACKAGE, directory, ignore=shutil.ignore_patterns("__pycache__"))
        text = (directory / file).read_text()
        assert old in text
        (directory / file).write_text(text.replace(old, new))
        monkeypatch.setattr(provenance.code, "PACKAGE_DIRECTORY", directory)
        return directory

    return edit


AFTER = {"errors", "rates", "figures"}
LIMITS = {"dmft", "mean_ode", "wide"}


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("dynamics.py", "_own(training.learning_rate_out, rate)",
         "3 * _own(training.learning_rate_out, rate)", LIMITS | {"finite"} | AFTER),
        ("dynamics.py", "common if rate is None", "0 if rate is None", LIMITS | {"finite"} | AFTER),
        ("kept.py", "round(j * depth / (points - 1))", "j * depth // (points - 1)",
         {"finite"} | AFTER),
        ("kept.py", "range(experiment.training.steps)", "range(1, experiment.training.steps)",
         {"finite"} | AFTER),
        ("kinds.py", "self.depth * self.width * self.embed_dim", "self.depth * self.width",
         {"finite"} | AFTER),
        # the negative controls: what is said to the reader, and what is refused
        ("config/model.py", "eta_out of the units' out-vectors", "of the out-vectors", set()),
        ("config/sweep.py", "All combinations of the three lists.", "All combinations.", set()),
        ("config/messages.py", "did you mean", "perhaps", set()),
        ("config/values.py", "2**63 - 1", "2**62 - 1", set()),
    ],
)  # fmt: skip
def test_an_edit_of_the_sources_changes_the_keys_of_those_who_run_it(
    edited, file, old, new, stages
):
    before = keys()
    edited(file, old, new)
    after = keys()
    changed = {stage for stage in CELLS if before[stage] != after[stage]}
    assert stages <= changed
    assert bool(changed) == bool(stages)


def test_arithmetic_put_back_into_config_would_be_noticed(edited, monkeypatch):
    """The negative control of the two rules above."""
    call = "depth_layers(experiment, shape.depth)"
    directory = edited("stages/networks.py", call, "experiment.layers_of(shape.depth)")
    monkeypatch.setattr(Experiment, "layers_of", lambda self, depth: tuple(range(depth)), False)
    assert users_of("layers_of", directory) == {"finite"}
    before = keys()
    patch(monkeypatch, Experiment, "layers_of")
    assert keys() == before
    directory = edited("dynamics.py", "Experiment, InputError", "Experiment, InputError, Shape")
    assert foreign(directory) == ["resnet_limits.dynamics: Shape"]
