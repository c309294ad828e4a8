from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import time

import pytest
import yaml

from resnet_limits import provenance
from resnet_limits.config import BranchConfig, ModelConfig, experiment_from_dict
from resnet_limits.provenance import (
    cell_seeds,
    code_hash,
    collect,
    stage_key,
    stage_module,
)
from resnet_limits.store import PROVENANCE

CELLS = {
    "problem": {},
    "dmft": {},
    "mean_ode": {"embed_dim": 4},
    "wide": {"depth": 2, "embed_dim": 4},
    "finite": {"depth": 2, "width": 8, "embed_dim": 4},
    "errors": {},
    "rates": {},
    "figures": {"name": "loss"},
}
ALL = set(CELLS)
RESNET_LIMITS = provenance.PACKAGE_DIRECTORY


def imported_modules(module):
    """A module and everything of the package that it imports, each with its own hash."""
    return provenance.code._imported_modules(module, provenance.code.PACKAGE_DIRECTORY, frozenset())


# A package of the same form as the real one, whose every line the tests may edit.
SOURCES = {
    "__init__.py": '"""Package."""\n',
    "config.py": "LIMIT = 3\n",
    "units.py": "from resnet_limits.config import LIMIT\n\ndef g(p):\n    return p * LIMIT\n",
    "randomness.py": "def draw():\n    return 4\n",
    "problem.py": "from .randomness import draw\n\ndef make():\n    return draw()\n",
    "limits/__init__.py": "",
    "limits/solver.py": (
        '"""Solver."""\n\nfrom ..units import g\n\n\nclass Solver:\n    """Doc."""\n\n'
        '    def run(self, x=(1, 2)):\n        """Doc."""\n        # why\n'
        "        return g(x)\n"
    ),
    "limits/models.py": "from .solver import Solver\n\ndef dmft():\n    return Solver()\n",
    "limits/unused.py": "def nothing():\n    return 0\n",
    "networks/__init__.py": '"""Networks."""\n',
    "networks/dense.py": (
        "def step():\n    from resnet_limits import units\n    return units.g(1)\n"
    ),
    "networks/train.py": (
        "import importlib\n\ndef train():\n"
        '    return importlib.import_module("resnet_limits.networks.dense").step()\n'
    ),
    "errors/__init__.py": "from resnet_limits.errors import distances\n",
    "errors/distances.py": "def rms(a):\n    return abs(a)\n",
    "figures/__init__.py": "",
    "figures/panels.py": "def draw():\n    return 'panel'\n",
    "stages/__init__.py": "",
    "stages/problem.py": "from resnet_limits.problem import make\n",
    "stages/limits.py": (
        "from typing import TYPE_CHECKING\n\nfrom resnet_limits.limits import models\n\n"
        "if TYPE_CHECKING:\n    from resnet_limits.figures import panels\n"
    ),
    "stages/networks.py": "import resnet_limits.networks.train\n",
    "stages/prediction.py": "from resnet_limits.limits import models\n",
    "errors/rates.py": "def fit(a):\n    return a\n",
    "stages/errors.py": "import resnet_limits.errors\n",
    "stages/rates.py": "from resnet_limits.errors.rates import fit\n",
    "stages/figures.py": "from resnet_limits.figures.panels import draw\n",
}

LIMITS = {"dmft", "mean_ode", "wide"}
AFTER = {"errors", "rates", "figures"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that makes an edited copy of the package the one that is hashed."""
    count = iter(range(1000))

    def use(**edits):
        folder = tmp_path / str(next(count)) / "resnet_limits"
        for name, text in {**SOURCES, **edits.pop("files", {})}.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for name, (old, new) in edits.pop("replace", {}).items():
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))
        assert not edits
        monkeypatch.setattr(provenance.code, "PACKAGE_DIRECTORY", folder)

    use()
    return use


def keys(experiment):
    return {stage: stage_key(stage, experiment, **cell) for stage, cell in CELLS.items()}


def changed(before, after):
    return {stage for stage in before if before[stage] != after[stage]}


# --- code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "stages"),
    [
        # layout, comments and docstrings change nothing
        (("limits/solver.py", "# why", "# another reason"), set()),
        (("limits/solver.py", "        # why\n", "\n\n"), set()),
        (("limits/solver.py", '"""Doc."""', '"""Other words."""'), set()),
        (("limits/solver.py", '"""Solver."""', ""), set()),
        (("limits/solver.py", "(1, 2)", "(1,\n             2)"), set()),
        (("problem.py", "return draw()", "return (draw())"), set()),
        (("networks/__init__.py", "Networks", "All networks"), set()),
        # what is not imported, or only for type checks, changes nothing
        (("limits/unused.py", "return 0", "return 1"), set()),
        (("config.py", "LIMIT = 3", "LIMIT = 4"), set()),
        # code changes exactly the stages that run it, and those after them
        (("limits/solver.py", "g(x)", "g(x) + 1"), LIMITS | AFTER),
        (("limits/solver.py", "(1, 2)", "(1, 3)"), LIMITS | AFTER),
        (("limits/solver.py", "(1, 2)", "(1, 2.0)"), LIMITS | AFTER),
        (("limits/solver.py", "(1, 2)", "(1, None)"), LIMITS | AFTER),
        (("networks/dense.py", "g(1)", "g(2)"), {"finite"} | AFTER),
        (("networks/train.py", "step()", "step() + 1"), {"finite"} | AFTER),
        (("units.py", "p * LIMIT", "p / LIMIT"), LIMITS | {"finite"} | AFTER),
        (("randomness.py", "return 4", "return 5"), ALL),
        (("problem.py", "return draw()", "return -draw()"), ALL),
        (("errors/distances.py", "abs(a)", "-abs(a)"), AFTER),
        # editing a fit measures no distance again
        (("errors/rates.py", "return a", "return 2 * a"), {"rates", "figures"}),
        (("figures/panels.py", "'panel'", "'other'"), {"figures"}),
        (("stages/figures.py", "import draw", "import draw as paint"), {"figures"}),
    ],
)
def test_which_edit_makes_which_stage_stale(package, tiny_experiment, edit, stages):
    file, old, new = edit
    before = keys(tiny_experiment())
    package(replace={file: (old, new)})
    assert changed(before, keys(tiny_experiment())) == stages


UNITS = """
import torch

ROOT = 2.0 ** 0.5


class Activation:
    pass


def _cdf(p):
    return torch.erfc(-p / ROOT)


def _slope(p):
    return _cdf(p) + 1.0


def _shared(p):
    return p


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(torch.tanh, _shared),
    "gelu": Activation(lambda p: p * _cdf(p), _slope, _shared),
}


class Perceptron:
    def __init__(self, activation):
        self.activation = ACTIVATIONS[activation]


class Gated:
    def __init__(self, activation):
        self.gate = ACTIVATIONS[activation]


UNITS = {"perceptron": Perceptron, "gated_perceptron": Gated}


def g(p):
    return UNITS[p]
"""


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("p * _cdf(p)", "p / _cdf(p)", {"gelu"}),
        ("_cdf(p) + 1.0", "_cdf(p) + 2.0", {"gelu"}),
        ("-p / ROOT", "p / ROOT", {"gelu"}),
        ("2.0 ** 0.5", "2.0 ** 0.4", {"gelu"}),
        ("torch.tanh", "torch.sin", {"tanh"}),
        ("return p\n", "return -p\n", {"tanh", "gelu"}),
        ("class Activation:\n    pass", "class Activation:\n    size = 1", {"tanh", "gelu"}),
        ("self.activation", "self.other", {"tanh", "gelu"}),
        ("self.gate", "self.other", set()),
        ("return UNITS[p]", "return UNITS.get(p)", {"tanh", "gelu"}),
        ('    "gelu":', '    "new": Activation(torch.sin),\n    "gelu":', set()),
        # A table that is not understood counts whole.
        ('"tanh": Activation(torch.tanh', '**{}, "tanh": Activation(torch.tanh', {"tanh", "gelu"}),
    ],
)
def test_of_activations_and_units_those_in_use_count(package, tiny_experiment, old, new, stale):
    package(files={"units.py": UNITS})
    experiments = {
        name: tiny_experiment(model={"unit": {"activation": name}}) for name in ("tanh", "gelu")
    }
    before = {name: keys(experiment) for name, experiment in experiments.items()}
    package(files={"units.py": UNITS}, replace={"units.py": (old, new)})
    for name, experiment in experiments.items():
        wanted = LIMITS | {"finite"} | AFTER if name in stale else set()
        assert changed(before[name], keys(experiment)) == wanted


def test_the_real_table_of_activations_is_understood(package, tiny_experiment):
    text = (RESNET_LIMITS / "units.py").read_text()
    for name in ("tanh", "gelu"):
        package(files={"units.py": text})
        before = keys(tiny_experiment(model={"unit": {"activation": name}}))
        package(files={"units.py": text}, replace={"units.py": ("p * torch.exp(", "torch.exp(")})
        after = keys(tiny_experiment(model={"unit": {"activation": name}}))
        assert bool(changed(before, after)) == (name == "gelu")


HEAD = {"unit": {"kind": "attention_head", "key_dim": 2}, "norm": "rms"}
TASKS = {"data": {"kind": "in_context_regression", "samples": 2, "tokens": 3, "inputs": 2}}


@pytest.mark.parametrize(
    ("file", "edit", "change", "is_stale"),
    [
        ("units.py", ("gate * p[..., 1:, :], gate", "gate, gate"), "gated", True),
        ("units.py", ("gate * p[..., 1:, :], gate", "gate, gate"), "plain", False),
        ("units.py", ("self.scale = key_dim**-0.5", "self.scale = 1.0"), "second branch", True),
        ("units.py", ("self.scale = key_dim**-0.5", "self.scale = 1.0"), "plain", False),
        ("units.py", ("p * torch.exp(", "torch.exp("), "second branch", True),
        ("units.py", ("p * torch.exp(", "torch.exp("), "gated", False),
        ("norms.py", ("(q + RMS_EPSILON).rsqrt()", "q.rsqrt()"), "second branch", True),
        ("norms.py", ("(q + RMS_EPSILON).rsqrt()", "q.rsqrt()"), "final norm", True),
        ("norms.py", ("(q + RMS_EPSILON).rsqrt()", "q.rsqrt()"), "plain", False),
        ("rules.py", ("0.5 * (1.0 + math.cos", "1.5 * (1.0 + math.cos"), "cosine", True),
        ("rules.py", ("0.5 * (1.0 + math.cos", "1.5 * (1.0 + math.cos"), "plain", False),
        ("rules.py", ("(k + 1) / (warmup + 1)", "k / (warmup + 1)"), "cosine", False),
        ("rules.py", ("kept = 1.0 - eta", "kept = 2.0 - eta"), "plain", True),
    ],
)
def test_of_units_norms_rules_and_schedules_those_in_use_count(
    monkeypatch, tmp_path, tiny_experiment, file, edit, change, is_stale
):
    """Of the real sources; a branch counts like any other."""
    experiment = tiny_experiment(
        **{
            "plain": {},
            "gated": {"model": {"unit": {"kind": "gated_perceptron"}}},
            "second branch": {
                "problem": TASKS,
                "model": {"unit": None, "layer": [{}, HEAD, {"unit": {"activation": "gelu"}}]},
            },
            "final norm": {"model": {"final_norm": "rms"}},
            "cosine": {"training": {"schedule": {"kind": "cosine"}}},
        }[change]
    )
    directory = tmp_path / "resnet_limits"
    shutil.copytree(RESNET_LIMITS, directory, ignore=shutil.ignore_patterns("__pycache__"))
    before = keys(experiment)
    text = (directory / file).read_text()
    assert edit[0] in text
    (directory / file).write_text(text.replace(*edit))
    monkeypatch.setattr(provenance.code, "PACKAGE_DIRECTORY", directory)
    wanted = LIMITS | {"finite"} | AFTER if is_stale else set()
    assert changed(before, keys(experiment)) == wanted


def test_a_rule_that_is_not_in_use_does_not_count(monkeypatch, tmp_path, tiny_experiment):
    """A second rule, put into a copy of the real sources."""
    directory = tmp_path / "resnet_limits"
    shutil.copytree(RESNET_LIMITS, directory, ignore=shutil.ignore_patterns("__pycache__"))
    text = (directory / "rules.py").read_text()
    table = 'RULES: dict[str, Callable[..., Rule]] = {"sgd": GradientDescent}'
    assert table in text
    found = []
    monkeypatch.setattr(provenance.code, "PACKAGE_DIRECTORY", directory)
    for number in (1.0, 2.0):
        other = f"class Other(GradientDescent):\n    speed = {number}\n\n\n"
        more = table.replace("}", ', "other": Other}')
        (directory / "rules.py").write_text(text.replace(table, other + more))
        provenance.code._code_hash.cache_clear()
        found.append(keys(tiny_experiment()))
    assert found[0] == found[1] == keys(tiny_experiment())


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"unit": None, "layer": [{}, {}]}},
        {"model": {"unit": None, "layer": [{"norm": "rms"}]}},
        {"model": {"unit": None, "layer": [{"width_ratio": 2}]}},
        {"model": {"final_norm": "rms"}},
        {"training": {"rule": {"momentum": 0.5}}},
        {"training": {"weight_decay": 0.5}},
        {"training": {"schedule": {"kind": "linear"}}},
        {"training": {"batches": {"size": 1}}},
        {"training": {"batches": [[0], [1]]}},
    ],
    ids=str,
)
def test_new_values_make_limits_and_networks_stale(tiny_experiment, change):
    assert changed(keys(tiny_experiment()), keys(tiny_experiment(**change))) == ALL - {"problem"}


def test_both_forms_of_a_layer_are_the_same(tiny_experiment):
    layer = [{"unit": {"kind": "perceptron", "activation": "tanh"}}]
    assert keys(tiny_experiment()) == keys(tiny_experiment(model={"unit": None, "layer": layer}))


def test_what_a_branch_leaves_out_is_in_the_key(tiny_experiment, monkeypatch):
    """The code of the configuration is in no key, so its defaults are by value."""
    before = keys(tiny_experiment())
    other = BranchConfig(norm="rms")
    monkeypatch.setattr(ModelConfig, "branches", property(lambda self: (other,)))
    assert changed(before, keys(tiny_experiment())) == ALL - {"problem"}


def test_an_init_that_does_something_counts(package):
    before = code_hash("resnet_limits.stages.limits")
    package(files={"limits/__init__.py": "SETTING = 1\n"})
    assert code_hash("resnet_limits.stages.limits") != before


def test_imports_are_found_wherever_they_stand(package):
    def found(stage):
        names = imported_modules(stage_module(stage))
        return {name.removeprefix("resnet_limits.") for name in names}

    assert found("finite") == {"stages.networks", "networks.train", "networks.dense", "units"}
    assert found("dmft") == {"stages.limits", "limits.models", "limits.solver", "units"}
    assert found("errors") == {"stages.errors", "errors", "errors.distances"}


def test_what_limits_cost_counts_only_where_amplitudes_are_refined_by_it(
    tmp_path, tiny_experiment, monkeypatch
):
    """An edit of either file of costs, and one that says only other words."""
    experiment = tiny_experiment()

    def hashes(edited="", line=""):
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(RESNET_LIMITS, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if edited:
            with (copy / edited).open("a", encoding="utf-8") as file:
                file.write(line)
        monkeypatch.setattr(provenance.code, "PACKAGE_DIRECTORY", copy)
        stages = ("problem", *CELLS, "prediction")
        return {stage: code_hash(stage_module(stage), experiment) for stage in stages}

    before = hashes()
    for file in ("limits/cost.py", "limits/amplitudes/cost.py"):
        assert hashes(file, "\n# Words.\n") == before
        after = hashes(file, "\nMORE = 1\n")
        stale = {stage for stage, value in after.items() if value != before[stage]}
        assert stale == {"prediction"}, file


def test_distances_know_nothing_of_fits():
    """Of the real sources: so that editing a law, a fit or an interval measures nothing again."""
    names = {
        name.removeprefix("resnet_limits.") for name in imported_modules(stage_module("errors"))
    }
    mine = {name for name in names if name.startswith("errors.")} | names & {"laws", "cells"}
    assert mine == {"errors.distances"}
    fits = imported_modules(stage_module("rates"))
    assert {"resnet_limits.laws", "resnet_limits.errors.rates"} <= set(fits)


def test_a_moved_package_has_the_same_hash(package):
    before = code_hash("resnet_limits.stages.limits")
    package()
    assert code_hash("resnet_limits.stages.limits") == before


def test_a_cycle_does_not_hang(package):
    package(files={"units.py": "from resnet_limits.limits import solver\n"})
    assert "resnet_limits.units" in imported_modules("resnet_limits.limits.solver")


def test_an_absent_module_is_named(package):
    with pytest.raises(ModuleNotFoundError, match=r"resnet_limits\.nowhere"):
        code_hash("resnet_limits.nowhere")


def test_hashes_do_not_depend_on_empty_fields():
    """Later Python versions add fields to the tree, empty where the feature is not used."""
    tree = ast.parse("def f(a):\n    return a\n")
    before = provenance.code._syntax(tree)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function._fields = (*function._fields, "new_feature")
    function.new_feature = []
    assert provenance.code._syntax(tree) == before


def test_the_real_stages_can_be_hashed_or_are_absent():
    assert len(code_hash("resnet_limits.stages.paths")) == 32
    assert "resnet_limits.config" not in imported_modules("resnet_limits.units")


# --- experiment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ({"experiment": "renamed"}, set()),
        ({"problem": {"data": {"samples": 3}}}, ALL),
        ({"problem": {"loss": "mean_squared_error"}}, ALL),
        ({"seed": 1}, ALL - {"problem"}),
        ({"model": {"unit": {"activation": "erf"}}}, ALL - {"problem"}),
        ({"training": {"learning_rate": 0.1}}, ALL - {"problem"}),
        ({"numerics": {"limit_tolerance": 1e-4}}, LIMITS | AFTER),
        ({"numerics": {"precision": "float32"}}, LIMITS | {"finite"} | AFTER),
        ({"save": {"dtype": "float64"}}, {"finite"} | AFTER),
        ({"sweep": {"seeds": 3}}, {"mean_ode", "wide", "finite"} | AFTER),
        ({"sweep": {"engine": "dense"}}, {"finite"} | AFTER),
        ({"sweep": {"pairs": ["finite-wide"]}}, AFTER),
        # more sizes: nothing that is there is computed again, but the comparison is
        ({"sweep": {"grid": {"width": [8, 16]}}}, AFTER),
        ({"sweep": {"grid": {"depth": [2, 4, 8], "embed_dim": [4, 16, 64]}}}, AFTER),
        # the same sizes written otherwise
        ({"sweep": {"grid": {"depth": [4, 2, 2]}}}, set()),
    ],
)
def test_which_value_makes_which_stage_stale(package, tiny_experiment, override, stages):
    assert changed(keys(tiny_experiment()), keys(tiny_experiment(**override))) == stages


def test_a_grid_and_the_list_of_its_shapes_are_the_same(package, tiny_experiment, tiny_values):
    experiment = tiny_experiment()
    values = tiny_values()
    sweep = {key: value for key, value in values["sweep"].items() if key != "grid"}
    values["sweep"] = {**sweep, "shapes": [list(shape) for shape in experiment.shapes]}
    other = experiment_from_dict(values)
    assert keys(other) == keys(experiment)


def test_seeds_are_part_of_a_cell_and_not_of_its_stage(package, tiny_experiment):
    """More seeds for small shapes: nothing else is computed again, but the comparison is."""
    steps = [{"parameters": 100, "seeds": 3}, {"seeds": 2}]
    one, other = tiny_experiment(), tiny_experiment(sweep={"seeds": steps})
    shared = {"mean_ode", "wide", "finite"}
    assert all(stage_key(stage, one) == stage_key(stage, other) for stage in shared)
    cells = {  # the shape L2_M8_D4 has 64 parameters, all others have more
        "mean_ode": [{"embed_dim": D} for D in (4, 16)],
        "wide": [{"depth": L, "embed_dim": D} for L in (2, 4) for D in (4, 16)],
        "finite": [{"depth": L, "width": 8, "embed_dim": D} for L in (2, 4) for D in (4, 16)],
    }
    stale = [
        tuple(cell.values())
        for stage, of_stage in cells.items()
        for cell in of_stage
        if stage_key(stage, one, **cell) != stage_key(stage, other, **cell)
    ]
    assert stale == [(4,), (2, 4), (2, 8, 4)]
    assert changed(keys(one), keys(other)) == shared | AFTER


def test_seeds_written_otherwise_are_the_same(package, tiny_experiment):
    steps = [{"parameters": 1000, "seeds": 2}, {"seeds": 2}]
    assert keys(tiny_experiment()) == keys(tiny_experiment(sweep={"seeds": steps}))


def test_seeds_inside_a_result(tiny_experiment):
    steps = [{"parameters": 100, "seeds": 3}, {"seeds": 2}]
    experiment = tiny_experiment(sweep={"seeds": steps})
    found = {
        stage: len(cell_seeds(stage, experiment, **CELLS[stage])) for stage in ALL - {"figures"}
    }
    assert found == {
        "problem": 0, "dmft": 0, "mean_ode": 3, "wide": 3, "finite": 3, "errors": 3, "rates": 3,
    }  # fmt: skip
    assert cell_seeds("mean_ode", experiment, embed_dim=16) == range(2)


def test_families_make_only_the_rates_stale(package, tiny_experiment, tiny_values):
    """A family of the same shapes as a list of them."""
    family = {
        "parameters": [100, 1000],
        "depth": {"factor": 2, "exponent": 0},
        "embed_dim": {"factor": 1, "exponent": "1/3"},
    }
    rest = {key: value for key, value in tiny_values()["sweep"].items() if key != "grid"}

    def experiment(**sweep):
        return experiment_from_dict(tiny_values() | {"sweep": rest | sweep})

    one = experiment(families={"a": family})
    listed = experiment(shapes=[list(shape) for shape in one.shapes])
    assert changed(keys(one), keys(listed)) == {"rates", "figures"}
    renamed = experiment(families={"b": family})
    assert changed(keys(one), keys(renamed)) == {"rates", "figures"}
    # Another exponent that rounds to the same shapes has another theory.
    near = family | {"embed_dim": {"factor": 1, "exponent": 0.3334}}
    assert changed(keys(one), keys(experiment(families={"a": near}))) == {"rates", "figures"}


def test_a_limit_that_no_pair_needs_does_not_count(package, tiny_experiment):
    experiment = tiny_experiment(sweep={"pairs": ["finite-wide"]})
    before = keys(experiment)
    without = tiny_experiment(sweep={"pairs": ["mean_ode-dmft"]})
    unused = keys(without)
    package(replace={"networks/dense.py": ("g(1)", "g(2)")})
    assert "errors" in changed(before, keys(experiment))
    assert changed(unused, keys(without)) == {"finite"}


def test_cells_have_their_own_keys_and_share_a_common_one(package, tiny_experiment):
    experiment = tiny_experiment()
    cell = {"depth": 2, "width": 8, "embed_dim": 4}
    found = {
        stage_key("finite", experiment, **cell),
        stage_key("finite", experiment, **(cell | {"width": 4, "embed_dim": 8})),
        stage_key("finite", experiment, **(cell | {"depth": 3})),
        stage_key("finite", experiment),
    }
    assert len(found) == 4


def test_keys_are_stable_within_and_between_processes(package, tiny_experiment):
    assert keys(tiny_experiment()) == keys(tiny_experiment())
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys(tiny_experiment()).values())


@pytest.mark.parametrize(
    ("stage", "cell"),
    [("finite", {"depth": 2}), ("dmft", {"depth": 2}), ("nothing", {})],
)
def test_wrong_stages_and_cells_are_refused(package, tiny_experiment, stage, cell):
    with pytest.raises(ValueError, match=r"^(cell of|stage)"):
        stage_key(stage, tiny_experiment(), **cell)


def test_data_files_count_by_their_content(package, tiny_experiment, tmp_path):
    def key(path):
        data = {"kind": "file", "path": str(path)}
        return stage_key("problem", tiny_experiment(problem={"data": data}))

    first, moved, edited = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz"
    absent = key(first)
    first.write_bytes(b"content")
    moved.write_bytes(b"content")
    edited.write_bytes(b"Content")
    assert key(first) == key(moved)
    assert len({absent, key(first), key(edited)}) == 3

    folder = tmp_path / "d.zarr"
    (folder / "x" / "c").mkdir(parents=True)
    (folder / "x" / "c" / "0").write_bytes(b"1")
    before = key(folder)
    (folder / "x" / "c" / "1").write_bytes(b"2")
    assert key(folder) != before


# --- provenance -----------------------------------------------------------------------------------


@pytest.fixture
def collected(package, tiny_experiment):
    return collect(
        tiny_experiment(),
        stage="finite",
        key="0" * 32,
        device="cpu",
        seeds=range(2),
        started=time.monotonic() - 1.0,
        cell={"depth": 2, "width": 8, "embed_dim": 4},
    )


def test_collect_gives_every_attribute_as_plain_json(collected):
    # Stores of earlier versions do not name their origins, and are sound.
    origins = {"derived_from", "source", "references"}
    assert tuple(name for name in collected if name not in origins) == PROVENANCE
    assert origins <= set(collected)
    assert json.loads(json.dumps(collected)) == collected


def test_the_experiment_can_be_read_back(collected, tiny_experiment):
    values = yaml.safe_load(collected["experiment_file"])
    assert experiment_from_dict(values) == tiny_experiment()


def test_collect_measures(collected):
    assert 1.0 <= collected["wall_time_s"] < 60.0
    assert 1e7 < collected["peak_memory_bytes"] < 1e12
    assert collected["seeds"] == [0, 1]
    assert set(json.loads(collected["library_versions"])) >= {"python", "numpy", "torch", "zarr"}
    assert "finite depth=2 width=8 embed_dim=4" in collected["history"]
    assert collected["created"].endswith("Z")


def test_config_hash_sees_every_value(package, tiny_experiment):
    def config_hash(**override):
        found = collect(
            tiny_experiment(**override), stage="problem", key="", device="cpu", started=0.0
        )
        return found["config_hash"]

    assert config_hash() == config_hash()
    assert config_hash() != config_hash(experiment="renamed")


@pytest.fixture
def git_state(monkeypatch):
    provenance.git_state.cache_clear()

    def state(folder):
        provenance.git_state.cache_clear()
        monkeypatch.setattr(provenance.code, "PACKAGE_DIRECTORY", folder)
        return provenance.git_state()

    yield state
    provenance.git_state.cache_clear()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_state(git_state, tmp_path, monkeypatch):
    # Variables that git sets for its hooks would lead it to another repository.
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        identity += ("-c", "commit.gpgSign=false")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    source = tmp_path / "__init__.py"
    source.write_text("")
    assert git_state(tmp_path) == "unknown"
    git("init", "-q")
    # Installed inside somebody else's repository, but not part of it.
    assert git_state(tmp_path) == "unknown"
    git("add", "__init__.py")
    git("commit", "-q", "-m", "m")
    assert git_state(tmp_path) == git("rev-parse", "HEAD")
    source.write_text("x = 1\n")
    assert git_state(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    git("checkout", "-q", "__init__.py")
    assert git_state(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("no source")
    assert git_state(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "models" / "new.py").write_text("")
    assert git_state(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_git_state_without_git(git_state, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == "unknown"
