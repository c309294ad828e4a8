"""The experiment file: what it accepts, what follows from it, and how it refuses."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from resnet_limits.config import (
    ACTIVATIONS,
    ENGINES,
    INITIAL_LAWS,
    LOSSES,
    NORMS,
    PAIRS,
    RULE_KINDS,
    SCHEDULE_KINDS,
    UNIT_KINDS,
    Experiment,
    InputError,
    Shape,
    experiment_from_dict,
    json_schema,
    load_experiment,
)
from resnet_limits.config.loader import read_yaml
from resnet_limits.kept import saved_steps

_CONFIG = Path(__file__).parents[2] / "config"
_FILES = sorted(_CONFIG.rglob("*.yaml"))


def _minimal(**changes: Any) -> dict[str, Any]:
    """Give the smallest experiment; ``sweep__seeds=3`` sets a nested key."""
    values: dict[str, Any] = {
        "experiment": "e",
        "problem": {"data": {"kind": "gaussian", "samples": 4, "inputs": 2, "targets": 2}},
        "sweep": {"grid": {"depth": [4, 2], "width": [8], "embed_dim": [16, 4]}},
    }
    for key, value in changes.items():
        *folders, last = key.split("__")
        place = values
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return values


_FAMILY: dict[str, Any] = {
    "parameters": [1.0e3, "1e+4", 1.0e6],
    "depth": {"factor": 4, "exponent": "1/6"},
    "embed_dim": {"factor": 2, "exponent": "1/3"},
}


# Data with tokens.
_TASKS = {"kind": "in_context_regression", "samples": 4, "inputs": 2, "tokens": 3}


def _families(family: dict[str, Any]) -> dict[str, Any]:
    return {"families": {"h": family}}


def _steps(*steps: tuple[int | None, int]) -> list[dict[str, Any]]:
    return [
        {"seeds": seeds} if parameters is None else {"parameters": parameters, "seeds": seeds}
        for parameters, seeds in steps
    ]


def _refusal(values: object) -> str:
    with pytest.raises(InputError) as caught:
        experiment_from_dict(values, where="file.yaml")
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith("file.yaml: ")
    return message.removeprefix("file.yaml: ")


def _file_refusal(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# --- the files of the project ---------------------------------------------------------------------


@pytest.mark.parametrize("file", _FILES, ids=lambda file: str(file.relative_to(_CONFIG)))
def test_every_experiment_file_loads_and_fits_the_schema(file: Path) -> None:
    experiment = load_experiment(file)
    Draft202012Validator(json_schema()).validate(yaml.safe_load(file.read_text()))
    assert experiment_from_dict(experiment.model_dump()) == experiment
    header = file.read_text().splitlines()[0]
    schema = file.parent / header.removeprefix("# yaml-language-server: $schema=")
    assert schema.resolve() == _CONFIG / "config.schema.json"


def test_experiment_names_are_unique() -> None:
    names = [load_experiment(file).experiment for file in _FILES]
    assert len(set(names)) == len(names)


def test_schema_file_is_in_step() -> None:
    assert json.loads((_CONFIG / "config.schema.json").read_text()) == json_schema()
    Draft202012Validator.check_schema(json_schema())


def _keys(node: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    """Keys as the README writes them, with NAME for a name of one's own; "" for a value."""
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    if node.get("type") == "null":
        return
    below = dict(node.get("properties", {}))
    if "patternProperties" in node:
        below["NAME"] = next(iter(node["patternProperties"].values()))
    options = [] if below else [*node.get("oneOf", []), *node.get("anyOf", [])]
    if "$ref" in node.get("items", {}):
        options = [node["items"]]
    found = {key for option in options for key in _keys(option, root)}
    yield from found
    for name, value in below.items():
        yield from (f"{name}.{key}" if key else name for key in _keys(value, root))
    if not found and not below:
        yield ""


def test_readme_explains_every_key_and_no_other() -> None:
    readme = (_CONFIG / "README.md").read_text().partition("## Keys")[2]
    rows = "\n".join(line.split("|")[1] for line in readme.splitlines() if line.startswith("|"))
    found = re.findall(r"`([a-z_]+(?:\.(?:[a-z_]+|NAME))*)`", rows)
    assert set(found) - set(LOSSES) == set(_keys(json_schema(), json_schema()))


def test_frontier_covers_nine_decades_or_more_along_the_best_families() -> None:
    experiment = load_experiment(_CONFIG / "frontier.yaml")
    powers = {"hidden": (1 / 6, 1 / 3), "output": (1 / 5, 2 / 5)}
    largest = {"hidden": 1e12, "output": 1e13}
    assert set(experiment.families) == set(powers)
    for name, members in experiment.families.items():
        parameters = [P for P, _ in members]
        assert (parameters[0], parameters[-1]) == (1e3, largest[name])
        for (P, shape), (next_P, following) in itertools.pairwise(members):
            assert 3 < next_P / P < 3.3
            assert shape.parameters == pytest.approx(P, rel=0.09)
            # At all sizes enough for an interval.
            assert len(experiment.seeds_of(following)) >= 8
        first, last = members[0][1], members[-1][1]
        for size, power in zip(("depth", "embed_dim"), powers[name], strict=True):
            ratio = getattr(last, size) / getattr(first, size)
            assert ratio == pytest.approx((largest[name] / 1e3) ** power, rel=0.06)
    assert saved_steps(experiment) == (5,)
    assert "wide" not in experiment.limits_needed


def test_paper_linear_is_the_published_grid() -> None:
    experiment = load_experiment(_CONFIG / "paper-linear.yaml")
    sizes = [10, 13, 17, 23, 30, 40, 53, 70, 93, 123, 163, 216, 285, 378, 499]
    assert len(experiment.shapes) == 15**3
    for axis in zip(*experiment.shapes, strict=True):
        assert sorted(set(axis)) == sizes
    assert experiment.model.unit.activation == "linear"
    assert (experiment.training.steps, experiment.training.learning_rate) == (15, 0.1)
    assert experiment.sweep.seeds == 5
    assert experiment.problem.loss == "squared_error"


def test_paper_tanh_is_the_published_grid() -> None:
    experiment = load_experiment(_CONFIG / "paper-tanh.yaml")
    assert len(experiment.shapes) == 20**2
    assert {shape.depth for shape in experiment.shapes} == {50}
    assert experiment.shapes[-1] == (50, 2000, 2000)
    stds = experiment.model.init_std
    assert stds.embedding == 5**-0.5
    assert stds.unembedding == 5**0.5
    assert (experiment.training.steps, experiment.training.learning_rate) == (15, 1.0)
    assert experiment.problem.loss == "mean_squared_error"


@pytest.mark.parametrize("name", ["paper-linear", "paper-tanh"])
def test_ci_files_differ_from_the_papers_in_size_only(name: str) -> None:
    full = load_experiment(_CONFIG / f"{name}.yaml")
    small = load_experiment(_CONFIG / "ci" / f"{name}.yaml")
    assert (small.problem, small.model, small.training, small.seed) == (
        full.problem,
        full.model,
        full.training,
        full.seed,
    )
    assert len(small.shapes) < 10


# --- what follows from a file ---------------------------------------------------------------------


def test_defaults_are_those_of_the_contract() -> None:
    experiment = experiment_from_dict(_minimal())
    assert experiment.seed == 0
    assert experiment.problem.loss == "squared_error"
    assert experiment.model.unit.model_dump() == {"kind": "perceptron", "activation": "tanh"}
    assert experiment.model.residual_scale == 1.0
    assert set(experiment.model.init_std.model_dump().values()) == {1.0}
    assert experiment.training.steps == 15
    assert experiment.training.learning_rate == 1.0
    assert not experiment.training.train_embeddings
    assert experiment.sweep.seeds == 4
    assert experiment.sweep.engine == "auto"
    assert experiment.pairs == PAIRS
    assert experiment.numerics.model_dump() == {
        "precision": "float64",
        "device": "auto",
        "limit_tolerance": 1e-3,
    }
    assert experiment.save.model_dump() == {
        "depth_points": 17,
        "steps": "all",
        "dtype": "float32",
    }


def test_the_three_forms_of_a_sweep_give_the_same_shapes() -> None:
    grid = experiment_from_dict(_minimal())
    direct = experiment_from_dict(
        _minimal(sweep={"depth": [2, 4, 4], "width": [8], "embed_dim": [4, 16]})
    )
    listed = [[4, 8, 16], [2, 8, 4], [2, 8, 16], [4, 8, 4], [4, 8, 16]]
    shapes = experiment_from_dict(_minimal(sweep={"shapes": listed}))
    expected = [(2, 8, 4), (2, 8, 16), (4, 8, 4), (4, 8, 16)]
    assert grid.shapes == direct.shapes == shapes.shapes == expected
    assert all(isinstance(shape, Shape) for shape in grid.shapes)
    assert grid.shapes[1].parameters == 2 * 8 * 16
    assert grid.embed_dims == [4, 16]
    assert grid.wide_cells == [(2, 4), (2, 16), (4, 4), (4, 16)]
    assert list(grid.seeds) == [0, 1, 2, 3]


def test_a_unit_is_a_layer_of_one_branch() -> None:
    unit = {"kind": "gated_perceptron", "activation": "tanh"}
    one, other = (
        experiment_from_dict(_minimal(**change)).model
        for change in ({"model__unit": unit}, {"model__layer": [{"unit": unit}]})
    )
    assert one.branches == other.branches
    assert (other.unit, one.layer) == (None, None)
    plain = experiment_from_dict(_minimal()).model
    assert plain.branches == experiment_from_dict(_minimal(model__layer=[{}])).model.branches
    assert plain == experiment_from_dict(_minimal(model={"unit": None, "layer": None})).model


def test_forms_of_yaml(tmp_path: Path) -> None:
    model = """
model:
  layer:
    - {unit: {kind: attention_head, key_dim: 2, causal: true}, norm: rms}
    - unit: {activation: gelu}
      width_ratio: 2
      init_std: {output: 1e-1}
training:
  steps: 3
  batches: [[0, 1], [2]]
  schedule: {kind: table, factors: [1, 5e-1]}
"""
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(_minimal(problem__data=_TASKS)) + model)
    experiment = load_experiment(file)
    head, perceptron = experiment.model.branches
    assert head.unit.model_dump() == {"kind": "attention_head", "key_dim": 2, "causal": True}
    assert (perceptron.unit.kind, perceptron.width_ratio) == ("perceptron", 2.0)
    assert perceptron.init_std.model_dump() == {"input": None, "output": 0.1}
    assert experiment.training.batches == ((0, 1), (2,))
    assert experiment.training.schedule.model_dump()["factors"] == (1.0, 0.5)


def test_names_are_those_of_the_code() -> None:
    from resnet_limits import norms, randomness, rules, units

    assert set(UNIT_KINDS) == set(units.UNITS)
    assert set(ACTIVATIONS) == set(units.ACTIVATIONS)
    assert set(NORMS) == set(norms.NORMS)
    assert set(RULE_KINDS) == set(rules.RULES)
    assert set(SCHEDULE_KINDS) == set(rules.SCHEDULES)
    assert set(INITIAL_LAWS) == set(randomness.LAWS)
    found = json_schema()["$defs"]
    for names, ending in ((UNIT_KINDS, "Unit"), (SCHEDULE_KINDS, "Schedule"), (RULE_KINDS, "Rule")):
        sections = [section for name, section in found.items() if name.endswith(ending)]
        assert {section["properties"]["kind"]["const"] for section in sections} == set(names)


def test_units_that_mix_tokens_are_those_of_the_code() -> None:
    from resnet_limits import units
    from resnet_limits.config import model

    sections = (
        model.PerceptronUnit, model.GatedPerceptronUnit, model.AttentionHeadUnit,
        model.ConvolutionUnit,
    )  # fmt: skip
    mixing = {
        kind
        for s in sections
        if s.mixes_tokens
        for kind in get_args(s.model_fields["kind"].annotation)
    }
    assert mixing == set(units.MIXES_TOKENS)


@pytest.mark.parametrize(
    ("pairs", "needed"),
    [
        (["finite-wide"], {"wide"}),
        (["wide-mean_ode"], {"wide", "mean_ode"}),
        (["finite-dmft", "finite-dmft"], {"dmft"}),
        (list(PAIRS), {"wide", "mean_ode", "dmft"}),
    ],
)
def test_pairs_decide_which_limits_are_needed(pairs: list[str], needed: set[str]) -> None:
    experiment = experiment_from_dict(_minimal(sweep__pairs=pairs))
    assert experiment.limits_needed == needed
    assert len(experiment.pairs) == len(set(pairs))


def test_pairs_come_in_one_order() -> None:
    experiment = experiment_from_dict(_minimal(sweep__pairs=["finite-dmft", "finite-wide"]))
    assert experiment.pairs == ("finite-wide", "finite-dmft")


def test_experiments_do_not_change() -> None:
    experiment = experiment_from_dict(_minimal())
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 3  # type: ignore[misc]
    experiment.shapes.clear()
    assert len(experiment.shapes) == 4


def test_numbers_with_an_exponent_but_no_dot_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(_minimal()) + "numerics: {limit_tolerance: 1e-4}\n")
    assert load_experiment(file).numerics.limit_tolerance == 1e-4


def test_relative_data_path_starts_from_the_files_folder(tmp_path: Path) -> None:
    data = {"kind": "file", "path": "../x.npz"}
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "e.yaml"
    file.write_text(yaml.safe_dump(_minimal(problem={"data": data})))
    loaded = load_experiment(file)
    assert loaded.problem.data.model_dump()["path"] == str(tmp_path / "x.npz")
    assert experiment_from_dict(loaded.model_dump(mode="json")) == loaded
    absolute = {"kind": "file", "path": str(tmp_path / "x.nc")}
    file.write_text(yaml.safe_dump(_minimal(problem={"data": absolute})))
    assert load_experiment(file).problem.data.model_dump() == {**absolute, "positions": False}


def test_import_brings_in_nothing_heavy() -> None:
    program = "import sys, resnet_limits.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "scipy", "xarray", "zarr", "dask", "sklearn", "matplotlib"}
    assert not heavy & set(done.stdout.split())


# --- how it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "start", "allowed"),
    [
        ({"trainig": {}}, "trainig: unknown key (did you mean training?)", "experiment, seed,"),
        ({"save__step": "all"}, "save.step: unknown key", "depth_points, steps, dtype"),
        ({"problem__data__noise": 1}, "problem.data.noise: unknown key", "kind, samples,"),
        (
            {"sweep__grid__widht": [8]},
            "sweep.grid.widht: unknown key (did you mean width?)",
            "depth, width, embed_dim",
        ),
        ({"sweep__grid__width": [8, -3]}, "sweep.grid.width.1: got -3", "from 1 to 1000000000"),
        ({"sweep__grid__width": [2.5]}, "sweep.grid.width.0: got 2.5", "an integer from 1"),
        ({"sweep__grid__width": [True]}, "sweep.grid.width.0: got True", "an integer from 1"),
        ({"sweep__grid__width": ["8"]}, "sweep.grid.width.0: got '8'", "an integer from 1"),
        ({"sweep__grid__width": []}, "sweep.grid.width: got []", "a list of 1 to 10000 values"),
        ({"sweep__grid__width": 8}, "sweep.grid.width: got 8", "a list of"),
        ({"sweep__grid__width": [10**9 + 1]}, "sweep.grid.width.0: got 1000000001", "to 10000000"),
        ({"sweep__seeds": 0}, "sweep.seeds: got 0", "from 1 to 10000"),
        ({"sweep__seeds": 10**4000}, "sweep.seeds: got an integer of", "from 1 to 10000"),
        ({"sweep__engine": "sparse"}, "sweep.engine: got 'sparse'", ", ".join(ENGINES)),
        ({"sweep__pairs": ["dmft-wide"]}, "sweep.pairs.0: got 'dmft-wide'", ", ".join(PAIRS)),
        ({"sweep__pairs": []}, "sweep.pairs: got []", "a list of 1 to"),
        ({"training__steps": 0}, "training.steps: got 0", "from 1 to 10000"),
        ({"training__steps": 10_001}, "training.steps: got 10001", "from 1 to 10000"),
        ({"training__learning_rate": -1}, "training.learning_rate: got -1", "from 0 to 1e+30"),
        ({"training__learning_rate": float("nan")}, "training.learning_rate: got nan", "finite"),
        ({"training__learning_rate": "1e999"}, "training.learning_rate: got inf", "finite"),
        ({"training__learning_rate": "fast"}, "training.learning_rate: 'fast' is text", "a number"),
        ({"training__learning_rate": True}, "training.learning_rate: true and false", "a number"),
        ({"training__learning_rate": 10**400}, "training.learning_rate: got an integer", "finite"),
        ({"training__train_embeddings": 1}, "training.train_embeddings: got 1", "true or false"),
        ({"model__init_std__input": -0.1}, "model.init_std.input: got -0.1", "from 0 to 1e+30"),
        ({"model__residual_scale": 0}, "model.residual_scale: got 0", "number > 0"),
        ({"model__unit__kind": "head"}, "model.unit.kind: got", ", ".join(sorted(UNIT_KINDS))),
        ({"model__unit": 3}, "model.unit: got 3", "a mapping with kind attention_head"),
        ({"model__unit": {"kind": "attention_head"}}, "model.unit.key_dim: missing", "from 1 to"),
        (
            {"model__unit": {"kind": "convolution", "offsets": []}},
            "model.unit.offsets: got []", "a list of 1 to 1024 values, each an integer",
        ),
        (
            {"model__layer": [{"unit": {"kind": "convolution", "offsets": [0, "a"]}}]},
            "model.layer.0.unit.offsets.1: got 'a'", "an integer from",
        ),
        (
            {"model__layer": [{"unit": {"kind": "convolution", "offset": [0]}}]},
            "model.layer.0.unit.offset: unknown key (did you mean offsets?)", "kind, offsets,",
        ),
        ({"model__layer": [{"unit": {"kind": "x"}}]}, "model.layer.0.unit.kind: got 'x'", "gated"),
        ({"model__layer": [{"unit": {"activation": "sin"}}]}, "model.layer.0.unit.activ", "linear"),
        ({"model__layer": [{}, {"norm": "layer"}]}, "model.layer.1.norm: got 'layer'", "none, rms"),
        ({"model__layer": [{"width_ratio": 0}]}, "model.layer.0.width_ratio: got 0", "<= 1e+06"),
        ({"model__layer": [{"width_ratio": 2e6}]}, "model.layer.0.width_ratio: got", "<= 1e+06"),
        ({"model__layer": [{"widht_ratio": 1}]}, "model.layer.0.widht_ratio: unknown", "unit"),
        ({"model__layer": [{"init_std": {"embedding": 1}}]}, "model.layer.0.init_std.emb", "input"),
        ({"model__layer": []}, "model.layer: got []", "a list of 1 to 16 values"),
        ({"model__layer": {"unit": {}}}, "model.layer: got {'unit'", "a list of 1 to 16 values"),
        ({"model": {"layer": [{}], "unit": {}}}, "model: unit and layer are both given", "one of"),
        ({"model__final_norm": "batch"}, "model.final_norm: got 'batch'", "none, rms"),
        ({"model__initial_law": "normal"}, "model.initial_law: got", "gaussian, uniform, rade"),
        ({"training__rule": {"kind": "adam"}}, "training.rule.kind: got 'adam'", "sgd"),
        ({"training__rule": {"beta1": 0.9}}, "training.rule.beta1: unknown key", "kind, momentum"),
        ({"training__rule": {"momentum": 1}}, "training.rule.momentum: got 1", "from 0 to below 1"),
        ({"training__rule": {"nesterov": True}}, "training.rule: nesterov needs a mom", "momentum"),
        ({"training__weight_decay": -1}, "training.weight_decay: got -1", "from 0"),
        ({"training__schedule": {}}, "training.schedule.kind: missing", "constant, cosine, linear"),
        ({"training__schedule": {"kind": "step"}}, "training.schedule.kind: got 'step'", "table"),
        (
            {"training__schedule": {"kind": "cosine", "final": 3}},
            "training.schedule.final: unknown key", "kind",
        ),
        (
            {"training__schedule": {"kind": "table", "factors": [1, 2]}},
            "training: schedule.factors: 2 numbers", "14, one for each update of 15 states",
        ),
        (
            {"training__schedule": {"kind": "table", "factors": [1, -2]}},
            "training.schedule.factors.1: got -2", "a finite number from 0",
        ),
        ({"training__batches": 3}, "training.batches: got 3", "a mapping with the keys size, seed"),
        ({"training__batches": {"size": 0}}, "training.batches.size: got 0", "an integer from 1"),
        ({"training__batches": {"sise": 1}}, "training.batches.sise: unknown key", "size, seed"),
        ({"training__batches": {"size": 5}}, "training.batches.size: got 5", "1 to 4, the number"),
        ({"training__batches": [[0, "a"]]}, "training.batches.0.1: got 'a'", "an integer from 0"),
        ({"training__batches": [[]]}, "training.batches.0: got []", "a list of 1 to"),
        ({"training__batches": [[0], [1]]}, "training: batches: 2 lists", "14, one for each"),
        (
            {"training__batches": [[0, 0]], "training__steps": 2},
            "training: batches.0: a sample is named twice", "distinct samples",
        ),
        (
            {"training__batches": [[0], [4]], "training__steps": 3},
            "training.batches.1: there is no sample 4", "0 to 3",
        ),
        (
            {"training__learning_rate_embedding": 1},
            "training: learning_rate_embedding is given", "train_embeddings: true",
        ),
        (
            {"model__unit": {"kind": "attention_head", "key_dim": 2}},
            "model.unit.kind: attention_head works on the tokens", "data with tokens",
        ),
        (
            {"model__layer": [{}, {"unit": {"kind": "convolution", "offsets": [0]}}]},
            "model.layer.1.unit.kind: convolution works on the tokens", "data with tokens",
        ),
        (
            {"model__unit": {"kind": "convolution", "offsets": [0, -3]}, "problem__data": _TASKS},
            "model.unit.offsets: -3 goes beyond the 3 tokens", "-2 to 2",
        ),
        (
            {"model__initial_law": "uniform"},
            "sweep.pairs: finite-wide with model.initial_law uniform: at finite D", "finite-dmft",
        ),
        (
            {
                "model__initial_law": "rademacher", "sweep__pairs": ["finite-dmft"],
                "sweep__engine": "implicit",
            },
            "sweep.engine: implicit with model.initial_law rademacher", "auto, dense",
        ),
        ({"problem__data": {**_TASKS, "tokens": 1}}, "problem.data.tokens: got 1", "from 2 to"),
        (
            {"problem__data": {**_TASKS, "seq_len": 1}},
            "problem.data.seq_len: unknown key (did you mean tokens?)", "kind, samples, tokens",
        ),
        (
            {"problem__data": {**_TASKS, "samples": 10**6, "tokens": 1000}},
            "problem.data: samples * tokens * (inputs of a token + targets) = 4000000000",
            "at most 10000000",
        ),
        (
            {"problem__data": _TASKS, "problem__loss": "cross_entropy"},
            "problem: loss cross_entropy needs one-hot targets, which in_context_regression",
            "squared_error",
        ),
        (
            {"problem__data": {"kind": "characters", "samples": 800, "tokens": 57}},
            "problem.data: 800 samples of 57 tokens", "samples + tokens up to 856",
        ),
        (
            {
                "problem__data": {
                    "kind": "characters", "samples": 400, "tokens": 400, "positions": True
                }
            },
            "problem.data: samples * tokens * (inputs of a token + targets) =", "at most 10000000",
        ),
        (
            {"problem__data": {"kind": "characters", "samples": 4, "tokens": 5, "alphabet": 33}},
            "problem.data.alphabet: got 33", "from 2 to 32",
        ),
        ({"problem__data__positions": True}, "problem.data.positions: unknown", "kind, samples"),
        ({"model__unit__activation": "sin"}, "model.unit.activation: got", ", ".join(ACTIVATIONS)),
        ({"problem__loss": "hinge"}, "problem.loss: got 'hinge'", ", ".join(LOSSES)),
        ({"problem__loss": "cross_entropy"}, "problem: loss cross_entropy needs", "squared_error"),
        ({"problem__data__kind": "images"}, "problem.data.kind: got 'images'", "characters, dig"),
        ({"problem__data": {"samples": 2}}, "problem.data.kind: missing", "digits, file, gauss"),
        ({"problem__data": None}, "problem.data: got nothing", "a mapping with kind"),
        ({"problem__data__samples": 10**7}, "problem.data.samples: got", "from 1 to 1000000"),
        (
            {"problem__data__samples": 10**6, "problem__data__inputs": 10**5},
            "problem.data: samples * (inputs + targets) =",
            "at most 10000000",
        ),
        (
            {"problem__data": {"kind": "file", "path": "x.csv"}},
            "problem.data.path: got 'x.csv'",
            ".npz",
        ),
        (
            {"problem__data": {"kind": "digits", "samples": 4, "classes": 11}},
            "problem.data.classes: got 11",
            "from 2 to 10",
        ),
        ({"experiment": ""}, "experiment: got ''", "1 to 64 of"),
        ({"experiment": ".."}, "experiment: got '..'", "not a dot"),
        ({"experiment": "a/b"}, "experiment: got 'a/b'", "1 to 64 of"),
        ({"experiment": "a\n"}, r"experiment: got 'a\n'", "1 to 64 of"),
        ({"experiment": "x" * 65}, "experiment: got 'xxx", "1 to 64 of"),
        ({"experiment": 2024}, "experiment: got 2024", "1 to 64 of"),
        ({"seed": -1}, "seed: got -1", "from 0 to"),
        ({"save": None}, "save: got nothing", "a mapping with the keys"),
        ({"save__depth_points": 1}, "save.depth_points: got 1", "from 2 to 10000 or all"),
        ({"save__steps": [15]}, "save.steps: 15 is not a step", "0 to 14"),
        ({"save__steps": "last"}, "save.steps: got 'last'", "or all"),
        ({"save__steps": [-1]}, "save.steps.0: got -1", "from 0"),
        ({"save__dtype": "float16"}, "save.dtype: got 'float16'", "float32, float64"),
        ({"numerics__limit_tolerance": 0}, "numerics.limit_tolerance: got 0", "from 1e-12"),
        ({"numerics__precision": "double"}, "numerics.precision: got 'double'", "float64, float32"),
        ({"numerics__device": "tpu"}, "numerics.device: got 'tpu'", "auto, cpu, cuda"),
        ({"sweep": {}}, "sweep: no sizes are given", "exactly one of grid, or shapes, or"),
        ({"sweep__depth": [2]}, "sweep: sizes are given by grid, depth", "exactly one of"),
        ({"sweep__shapes": [[1, 1, 1]]}, "sweep: sizes are given by grid, sh", "exactly"),
        ({"sweep": {"depth": [2], "width": [2]}}, "sweep: sizes are given by d", "exactly"),
        ({"sweep": {"depth": [2]}}, "sweep: sizes are given by depth", "exactly one of"),
        ({"sweep": {"shapes": [[1, 2]]}}, "sweep.shapes.0", "a"),
        ({"sweep": {"shapes": [[1, 2, 3, 4]]}}, "sweep.shapes.0: got [1, 2, 3, 4]", "a list of 3"),
        ({"sweep": {"shapes": [[1, 0, 3]]}}, "sweep.shapes.0.1: got 0", "an integer from 1"),
        ({"sweep": {"shapes": []}}, "sweep.shapes: got []", "a list of 1"),
        ({"sweep": _families({})}, "sweep.families.h.parameters: missing", "a list of 1 to 1000"),
        ({"sweep": _families({"parameters": []})}, "sweep.families.h.parameters: got []", "1 to"),
        ({"sweep": _families({"parameters": [0.5]})}, "sweep.families.h.parameters.0: got", "1"),
        ({"sweep": _families(_FAMILY | {"wdith": 1})}, "sweep.families.h.wdith: unknown", "depth"),
        ({"sweep": _families(_FAMILY | {"depth": 3})}, "sweep.families.h.depth: got 3", "factor"),
        (
            {"sweep": _families(_FAMILY | {"depth": {"factor": 0, "exponent": 0}})},
            "sweep.families.h.depth.factor: got 0", "a finite number > 0 and <= 1e+09",
        ),
        (
            {"sweep": _families(_FAMILY | {"depth": {"factor": 1, "exponent": "1/0"}})},
            "sweep.families.h.depth.exponent: '1/0' is text", "a number or a fraction such as 1/6",
        ),
        (
            {"sweep": _families(_FAMILY | {"depth": {"factor": 1, "exponent": "7/6"}})},
            "sweep.families.h.depth.exponent: got 1.16", "from 0 to 1 or a fraction such as 1/6",
        ),
        (
            {"sweep": _families(_FAMILY | {"parameters": [1e27]})},
            "sweep.families.h: width is 3952850400424", "sizes from 1 to 1000000000",
        ),
        ({"sweep": {"families": {}}}, "sweep.families: got {}", "1 to 16 names, each with a map"),
        ({"sweep": {"families": {"a b": _FAMILY}}}, "sweep.families.a b: got 'a b'", "1 to 64 of"),
        ({"sweep__families": {"h": _FAMILY}}, "sweep: sizes are given by grid, fam", "exactly"),
        ({"sweep__seeds": 0}, "sweep.seeds: got 0", "an integer from 1 to 10000"),
        ({"sweep__seeds": "4"}, "sweep.seeds: got '4'", "or a list of 1 to 100 values, each a map"),
        ({"sweep__seeds": []}, "sweep.seeds: got []", "a list of 1 to 100"),
        ({"sweep__seeds": [4]}, "sweep.seeds.0: got 4", "the keys parameters, seeds"),
        ({"sweep__seeds": [{"seeds": 0}]}, "sweep.seeds.0.seeds: got 0", "from 1 to 10000"),
        ({"sweep__seeds": [{"seed": 1}]}, "sweep.seeds.0.seed: unknown", "parameters, seeds"),
        (
            {"sweep__seeds": [{"seeds": 4}, {"seeds": 2}]},
            "sweep.seeds: every step but the last must have the key parameters", "as in",
        ),
        (
            {"sweep__seeds": [{"parameters": 10, "seeds": 4}]},
            "sweep.seeds: every step but the last must have the key parameters", "as in",
        ),
        (
            {"sweep__seeds": _steps((10, 4), (10, 3), (None, 2))},
            "sweep.seeds: parameters do not grow", "growing values",
        ),
        (
            {
                "sweep": {
                    **{name: list(range(1, 101)) for name in ("depth", "width", "embed_dim")},
                    "seeds": [{"parameters": 10, "seeds": 2}, {"seeds": 1}],
                }
            },
            "sweep: 1000000 shapes with up to 2 seeds are 1000053 cells", "at most 1000000",
        ),
        (
            {"sweep": {name: list(range(1, 101)) for name in ("depth", "width", "embed_dim")}},
            "sweep: 1000000 shapes with 4 seeds are 4000000 cells",
            "at most 1000000",
        ),
        (
            {"sweep": {"shapes": [[10**9, 1, 1]]}, "save": {"depth_points": "all"}},
            "save.depth_points: all with depth 1000000000",
            "up to depth 100000",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_values_say_where_what_and_what_is_allowed(
    changes: dict[str, Any], start: str, allowed: str
) -> None:
    what, _, rest = _refusal(_minimal(**changes)).partition("; allowed: ")
    assert what.startswith(start)
    assert allowed in rest


@pytest.mark.parametrize("key", ["experiment", "problem", "sweep"])
def test_required_keys(key: str) -> None:
    values = _minimal()
    del values[key]
    assert _refusal(values).startswith(f"{key}: missing; allowed: ")


@pytest.mark.parametrize("content", [None, [], "text", 3, [1, 2], {"a"}, b"x"])
def test_content_that_is_no_mapping(content: object) -> None:
    assert "allowed: a mapping with the keys experiment, seed, problem" in _refusal(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; allowed: a mapping with"),
        ("# only a comment\n", "empty; allowed: a mapping with"),
        ("- 1\n", "got [1]; allowed: a mapping with"),
        ("plain text", "got 'plain text'; allowed: a mapping with"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: a value begins with a tab"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' appears twice; allowed: every key"),
        ("save: {dtype: float32, 'dtype': 1}", "line 1, column 24: key 'dtype' appears twice"),
        ("a: b: c", "line 1, column 5: not YAML: mapping values"),
        ("a: [1, 2", "line 1, column 9: not YAML"),
        ("a: *b", "line 1, column 4: not YAML: found undefined alias"),
        ("a: !!python/object:os.system x", "line 1, column 4: not YAML: could not determine"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: not YAML: but found another document"),
        ("? [a]\n: 1\n", "line 1, column 3: not YAML: found unhashable key"),
        ("a: \x07", "not YAML: unacceptable character"),
        ("a: 2024-13-40", "line 1, column 4: '2024-13-40' is not a valid timestamp"),
        ("a: " + "9" * 5000, "line 1, column 4: a number of 5000 characters"),
        ("[" * 5000, "nested too deeply"),
        (b"\xff\xfe\x00\xd8", "not UTF-8 text; allowed: a YAML file"),
        ("1: 2", "a key that is not text, 1; allowed: "),
        ("on: 2", "on: unknown key; allowed: "),
        ("? null\n: 2", "a key that is not text, nothing; allowed: "),
        ("x: &a [*a]", "x: unknown key"),
        ("experiment: &a [*a]", "experiment: got [[[...]]]"),
        ('experiment: "\\uD800"', "experiment: got"),
        ('"a\\nb": 1', r"a\nb: unknown key"),
    ],
    ids=lambda value: ascii(value[:12]),
)  # fmt: skip
def test_files_that_are_not_yaml(tmp_path: Path, text: str | bytes, message: str) -> None:
    refusal = _file_refusal(tmp_path / "e.yaml", text)
    assert refusal.startswith(message)
    assert "; allowed: " in refusal


_NUMBERS: list[tuple[str, object]] = [
    ("3", 3), ("+5", 5), ("-0", 0), ("1_000", 1000), ("1_000_000", 10**6),
    ("1e3", 1000.0), ("1E3", 1000.0), ("1e+3", 1000.0), ("1.e3", 1000.0), ("1_000e3", 1e6),
    ("-.5", -0.5), (".5", 0.5), (".5e3", 500.0), ("010.0", 10.0), ("00.5", 0.5), ("1.", 1.0),
    ("!!float 5", 5.0), ("yes", True), ("off", False),
    ("12:75", "12:75"), ("1/6", "1/6"), ("1e", "1e"), ("1.2.3", "1.2.3"), (".", "."), ("_1", "_1"),
    ("0x", "0x"), ("'016'", "016"), ("!!str 016", "016"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "value"), _NUMBERS, ids=[text for text, _ in _NUMBERS])
def test_numbers_are_read_as_they_look(written: str, value: object) -> None:
    found = read_yaml(f"a: {written}")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index]


_OTHERWISE = [
    ("016", "016 begins with a zero, as octal numbers do in YAML; allowed: 16, or quotes"),
    ("-007", "-007 begins with a zero"),
    ("00", "00 begins with a zero, as octal numbers do in YAML; allowed: 0,"),
    ("089", "089 begins with a zero"),
    ("0_1", "0_1 begins with a zero"),
    ("!!int 016", "016 begins with a zero"),
    ("0o16", "0o16 is not decimal"),
    ("0x1F", "0x1F is not decimal"),
    ("0b11", "0b11 is not decimal"),
    ("1:30", "1:30 is not decimal: YAML reads it to base 60; allowed: decimal numbers"),
    ("190:20:30", "190:20:30 is not decimal"),
    ("1:30.5", "1:30.5 is not decimal"),
    ("1_00", "1_00 is not grouped by thousands"),
    ("1_", "1_ is not grouped by thousands"),
    ("1_0.5", "1_0.5 is not grouped by thousands"),
]
_NUMERIC = (
    "seed", "problem: data: samples", "model: residual_scale", "training: steps",
    "training: learning_rate", "sweep: seeds", "numerics: limit_tolerance", "save: depth_points",
    "experiment",
)  # fmt: skip


@pytest.mark.parametrize(("written", "message"), _OTHERWISE, ids=[text for text, _ in _OTHERWISE])
def test_numbers_that_yaml_reads_otherwise_are_refused(
    tmp_path: Path, written: str, message: str
) -> None:
    for key in _NUMERIC:
        *folders, last = key.split(": ")
        text = "".join(f"{folder}: {{" for folder in folders) + f"{last}: {written}"
        refusal = _file_refusal(tmp_path / "e.yaml", text + "}" * len(folders))
        assert refusal.startswith(f"line 1, column {len(text) - len(written) + 1}: {message}")
    shapes = f"sweep: {{grid: {{depth: [1, {written}]}}}}"
    assert message in _file_refusal(tmp_path / "e.yaml", shapes)


def test_yaml_alone_would_train_other_sizes() -> None:
    """The negative control."""
    assert yaml.safe_load("[016, 1:30, 0x10]") == [14, 90, 16]


@pytest.mark.parametrize("name", ["yes", "No", "on", "OFF", "2024-01-01", "y", "nan-1"])
def test_words_may_be_names(tmp_path: Path, name: str) -> None:
    file = tmp_path / "e.yaml"
    values = _minimal(sweep={"families": {"NAME": _FAMILY}})
    text = yaml.safe_dump(values).replace("experiment: e", f"experiment: {name}")
    file.write_text(text.replace("NAME", name) + "training: {train_embeddings: yes}\n")
    experiment = load_experiment(file)
    assert (experiment.experiment, [*experiment.families]) == (name, [name])
    assert experiment.training.train_embeddings


@pytest.mark.parametrize(
    ("name", "shown"), [("2024", "2024"), ("1e3", "1000.0"), ("true", "True"), ("~", "nothing")]
)
def test_a_number_is_a_name_in_quotes_only(tmp_path: Path, name: str, shown: str) -> None:
    rest = yaml.safe_dump({key: value for key, value in _minimal().items() if key != "experiment"})
    refusal = _file_refusal(tmp_path / "e.yaml", f"experiment: {name}\n{rest}")
    assert refusal.startswith(f"experiment: got {shown}; allowed: 1 to 64 of")
    assert refusal.endswith("in quotes where it is a number")
    (tmp_path / "e.yaml").write_text(f"experiment: '{name.replace('~', '0123')}'\n{rest}")
    load_experiment(tmp_path / "e.yaml")


def test_a_word_that_is_a_name_may_be_a_value_elsewhere() -> None:
    assert read_yaml("a: &w on\nexperiment: *w\nb: *w") == {
        "a": True,
        "experiment": "on",
        "b": True,
    }


def test_an_integer_is_not_written_with_an_exponent(tmp_path: Path) -> None:
    refusal = _file_refusal(tmp_path / "e.yaml", yaml.safe_dump(_minimal()) + "seed: 1e3\n")
    assert refusal == f"seed: got 1000.0; allowed: an integer from 0 to {2**63 - 1}"


@pytest.mark.parametrize(
    "key",
    [
        "problem__data__tokens", "problem__data__num_tokens", "problem__tokens", "model__tokens",
        "model__unit__tokens", "training__sequence_length", "model__context_length", "tokens",
        "sweep__tokens", "save__seq_len", "problem__data__seqlen", "model__block_size",
    ],
)  # fmt: skip
@pytest.mark.parametrize("data", ["gaussian", "file"])
def test_tokens_come_from_the_data_alone(key: str, data: str) -> None:
    changes = {"problem__data": {"kind": "file", "path": "d.npz"}} if data == "file" else {}
    refusal = _refusal(_minimal(**changes, **{key: 8}))
    place = key.replace("__", ".")
    assert refusal.startswith(f"{place}: unknown key (tokens come from the data alone, whose x is")
    assert "; allowed: " in refusal


@pytest.mark.parametrize("key", ["samples", "inputs", "targets"])
def test_sizes_of_file_data_come_from_the_file(key: str) -> None:
    data = {"kind": "file", "path": "d.npz", key: 3}
    assert _refusal(_minimal(problem__data=data)) == (
        f"problem.data.{key}: unknown key (for data in a file, the shapes of x and y tell it); "
        "allowed: kind, path, positions"
    )


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    values = yaml.safe_dump(_minimal())
    merged = "training:\n  <<: {steps: 3, learning_rate: 0.5}\n  steps: 4\n"
    file.write_text(values + merged)
    training = load_experiment(file).training
    assert (training.steps, training.learning_rate) == (4, 0.5)


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(_minimal()).replace("\n", "\r\n").encode())
    assert load_experiment(file) == experiment_from_dict(_minimal())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.yaml", "no such file or directory; allowed: a readable YAML file"),
        (".", "is a folder; allowed: a YAML file"),
        ("n\0ul", "embedded null byte; allowed"),
        ("x" * 300, "file name too long; allowed"),
    ],
)
def test_paths_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_experiment(f"{tmp_path}/{name}")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("experiment: e")
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="permission denied; allowed: a readable YAML file"):
        load_experiment(file)


def test_very_large_file(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    with file.open("wb") as stream:
        stream.truncate(2**30)
    with pytest.raises(InputError, match="too large; allowed: at most"):
        load_experiment(file)


# --- generated files ------------------------------------------------------------------------------

_JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.dates(),
        st.binary(max_size=4),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
_NAMES = {part for key in _keys(json_schema(), json_schema()) for part in key.split(".")}
_LARGE = experiment_from_dict(
    _minimal(
        problem__data=_TASKS,
        model__layer=[
            {"unit": {"kind": "attention_head", "key_dim": 2}, "norm": "rms"},
            {"unit": {"kind": "convolution", "offsets": [0, -1]}, "init_std": {"input": 2}},
        ],
        training__steps=3,
        training__rule={"momentum": 0.5},
        training__schedule={"kind": "table", "factors": [1, 0.5]},
        training__batches=[[0, 1], [3]],
    )
).model_dump(mode="json")


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys: Any = values if isinstance(values, dict) else ()
    if isinstance(values, list):
        keys = range(len(values))
    for key in keys:
        yield from _places(values[key], (*path, key))


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


@st.composite
def _broken(draw: st.DrawFn) -> dict[str, Any]:
    """Change one thing of a valid experiment so that it cannot be valid any more."""
    values = copy.deepcopy(_LARGE)
    # Offsets may be negative.
    places = [path for path in _places(values) if path and "offsets" not in path]
    path = draw(st.sampled_from(places))
    holder, key = _at(values, path[:-1]), path[-1]
    match draw(st.sampled_from(["junk", "unknown key", "bad number", "bad text"])):
        case "unknown key":
            sections = [p for p in _places(values) if isinstance(_at(values, p), dict)]
            section = _at(values, draw(st.sampled_from(sections)))
            name = draw(st.one_of(st.text(max_size=9), st.integers(), st.booleans()))
            section[f"x{name}" if name in _NAMES else name] = draw(_JUNK)
        case "bad number":
            holder[key] = draw(st.sampled_from([-1, -(10**30), float("nan"), 0.5j, -0.5]))
        case "bad text":
            holder[key] = draw(st.text().filter(lambda text: not re.fullmatch(r"[\w.+-]+", text)))
        case "junk":
            junk = draw(st.lists(_JUNK.filter(lambda value: not _is_size(value)), min_size=1))
            holder[key] = {"a": junk} if draw(st.booleans()) else [junk]
    return values


def _is_size(value: object) -> bool:
    return isinstance(value, int)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_broken())
def test_any_broken_experiment_is_one_line(values: dict[str, Any]) -> None:
    assert "; allowed: " in _refusal(values)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_broken_file_is_one_line(tmp_path: Path, data: st.DataObject) -> None:
    text = yaml.safe_dump(_LARGE, sort_keys=False)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    piece = data.draw(st.one_of(st.binary(max_size=8), st.text(max_size=8).map(_encoded)))
    file = tmp_path / "e.yaml"
    file.write_bytes(text[:start].encode() + piece + text[end:].encode())
    message = ""
    try:
        load_experiment(file)
    except InputError as error:
        message = str(error)
    # A change may be harmless; nothing but one line may come of it.
    assert not message or message.startswith(f"{file}: ")
    assert not message or "; allowed: " in message
    assert message.isprintable()


@settings(max_examples=300, deadline=None)
@given(_JUNK)
def test_any_other_content_is_one_line(content: object) -> None:
    assert "; allowed: " in _refusal(content)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=4)
_POSITIVE = st.floats(0, 1e6, exclude_min=True)


@st.composite
def _valid(draw: st.DrawFn) -> dict[str, Any]:
    steps = draw(st.integers(1, 200))
    axes = {name: draw(_SIZES) for name in ("depth", "width", "embed_dim")}
    forms = [
        {"grid": axes},
        axes,
        {"shapes": list(zip(*map(sorted, axes.values()), strict=False))},
        _families(_FAMILY),
    ]
    counts = {name: draw(st.integers(1, 50)) for name in ("samples", "inputs", "targets")}
    data: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"kind": "gaussian", **counts},
                {"kind": "linear_teacher", **counts, "noise": 0},
                {"kind": "digits", "samples": counts["samples"]},
                {"kind": "file", "path": "data/x.zarr", "positions": True},
                {"kind": "in_context_regression", **counts, "tokens": 9},
                {"kind": "characters", "samples": counts["samples"], "tokens": 9},
            ]
        )
    )
    one_hot = data["kind"] in {"digits", "file", "characters"}
    units: list[dict[str, Any]] = [
        {"activation": draw(st.sampled_from(ACTIVATIONS))},
        {"kind": "gated_perceptron"},
    ]
    if "tokens" in data:
        units += [
            {"kind": "attention_head", "key_dim": draw(st.integers(1, 8)), "causal": True},
            {"kind": "convolution", "offsets": draw(st.lists(st.integers(-8, 8), min_size=1))},
        ]
    unit = st.sampled_from(units)
    branch = st.fixed_dictionaries(
        {"unit": unit, "norm": st.sampled_from(NORMS), "width_ratio": st.floats(0.01, 1e6)}
    )
    schedules = [
        {"kind": "cosine"},
        {"kind": "linear", "warmup": 3},
        {"kind": "table", "factors": [0.5] * (steps - 1)},
    ]
    batches = [None, {"size": counts["samples"]}, [[0]] * (steps - 1)]
    return {
        "experiment": draw(st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", fullmatch=True)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "problem": {"data": data, "loss": draw(st.sampled_from(LOSSES if one_hot else LOSSES[:2]))},
        "model": {
            **draw(
                st.fixed_dictionaries({"unit": unit})
                | st.fixed_dictionaries({"layer": st.lists(branch, min_size=1, max_size=4)})
            ),
            "final_norm": draw(st.sampled_from(NORMS)),
            "residual_scale": draw(_POSITIVE),
            "init_std": {"input": draw(st.floats(0, 1e6))},
        },
        "training": {
            "steps": steps,
            "learning_rate": draw(st.floats(0, 1e6)),
            "learning_rate_in": draw(st.none() | st.floats(0, 1e6)),
            "train_embeddings": draw(st.booleans()),
            "rule": {"momentum": draw(st.floats(0.1, 0.9)), "nesterov": draw(st.booleans())},
            "schedule": draw(st.sampled_from(schedules)),
            "batches": draw(st.sampled_from(batches)),
        },
        "sweep": {
            **draw(st.sampled_from(forms)),
            "seeds": draw(st.integers(1, 10_000) | st.just(_steps((1, 90), (1000, 4), (None, 4)))),
            "pairs": draw(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=7)),
        },
        "numerics": {"limit_tolerance": draw(st.floats(1e-12, 1e3))},
        "save": {
            "depth_points": draw(st.integers(2, 100)),
            "steps": draw(st.just("all") | st.lists(st.integers(0, steps - 1), min_size=1)),
        },
    }


@settings(max_examples=200, deadline=None)
@given(_valid())
def test_valid_experiments_survive_a_round_trip(values: dict[str, Any]) -> None:
    experiment = experiment_from_dict(values)
    assert experiment_from_dict(experiment.model_dump()) == experiment
    assert experiment_from_dict(experiment.model_dump(mode="json")) == experiment
    text = yaml.safe_dump(experiment.model_dump(mode="json"))
    assert experiment_from_dict(yaml.safe_load(text)) == experiment
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
    Draft202012Validator(json_schema()).validate(experiment.model_dump(mode="json"))


# --- families and seeds ---------------------------------------------------------------------------


def test_shapes_of_a_family_are_powers_of_its_parameters() -> None:
    experiment = experiment_from_dict(_minimal(sweep=_families(_FAMILY)))
    assert experiment.families == {
        "h": [
            (1e3, Shape(13, 4, 20)),  # 4 * 3.162 and 2 * 10
            (1e4, Shape(19, 12, 43)),  # 4 * 4.642 and 2 * 21.54
            (1e6, Shape(40, 125, 200)),
        ]
    }
    assert experiment.shapes == [shape for _, shape in experiment.families["h"]]
    assert experiment.embed_dims == [20, 43, 200]
    assert experiment_from_dict(_minimal()).families == {}


def test_a_fraction_is_the_nearest_number() -> None:
    sweep = experiment_from_dict(_minimal(sweep=_families(_FAMILY))).sweep
    assert sweep.families is not None
    assert sweep.families["h"].depth.exponent == 1 / 6
    number = copy.deepcopy(_FAMILY)
    number["depth"]["exponent"] = 1 / 6
    assert experiment_from_dict(_minimal(sweep=_families(number))).sweep == sweep


def test_sizes_do_not_hang_on_the_last_bit_of_a_power() -> None:
    """1.05 x 1000^(1/3) is 10.5 up to rounding, which the nearest integer would follow."""
    family = {**_FAMILY, "parameters": [1000.0], "embed_dim": {"factor": 1.05, "exponent": "1/3"}}
    (shape,) = experiment_from_dict(_minimal(sweep=_families(family))).shapes
    assert shape.embed_dim == 10
    assert 1.05 * 1000 ** (1 / 3) != 10.5


def test_small_parameters_leave_sizes_of_one() -> None:
    family = {
        "parameters": [1.0, 2.0, 1.0],
        "depth": {"factor": 0.1, "exponent": 0},
        "embed_dim": {"factor": 5, "exponent": 0},
    }
    experiment = experiment_from_dict(_minimal(sweep=_families(family)))
    assert experiment.families["h"] == [(1.0, Shape(1, 1, 5)), (2.0, Shape(1, 1, 5))]
    assert experiment.shapes == [Shape(1, 1, 5)]


def test_shapes_that_families_share_are_there_once() -> None:
    sweep = {"families": {"a": _FAMILY, "b": _FAMILY}}
    experiment = experiment_from_dict(_minimal(sweep=sweep))
    assert list(experiment.families) == ["a", "b"]
    assert len(experiment.shapes) == experiment.sweep.count == 3


def test_an_experiment_with_families_can_be_hashed() -> None:
    one, two = (experiment_from_dict(_minimal(sweep=_families(_FAMILY))) for _ in range(2))
    assert hash(one) == hash(two)


def test_seeds_by_parameters() -> None:
    shapes = [[1, 10, 10], [1, 1, 100], [1, 101, 1], [2, 50, 10], [7, 1, 999]]
    seeds = _steps((100, 9), (1000, 5), (None, 2))
    experiment = experiment_from_dict(_minimal(sweep={"shapes": shapes, "seeds": seeds}))
    counts = {tuple(shape): len(experiment.seeds_of(shape)) for shape in experiment.shapes}
    assert counts == {
        (1, 10, 10): 9, (1, 1, 100): 9, (1, 101, 1): 5, (2, 50, 10): 5, (7, 1, 999): 2,
    }  # fmt: skip
    assert experiment.seeds == range(9)
    assert experiment.cell_seeds(depth=2, width=50, embed_dim=10) == range(5)
    # A limit has the seeds of all networks that are compared with it.
    assert [len(experiment.cell_seeds(embed_dim=D)) for D in (1, 10, 100, 999)] == [5, 9, 9, 2]
    assert experiment.cell_seeds(depth=1, embed_dim=10) == range(9)
    assert experiment.cell_seeds(depth=2, embed_dim=10) == range(5)
    # Sizes that the sweep does not have.
    assert experiment.seeds_of(Shape(1, 1, 5)) == range(9)
    assert experiment.cell_seeds(embed_dim=5) == range(9)


def test_larger_shapes_may_have_more_seeds() -> None:
    """Both ends of a range of sizes carry an exponent."""
    shapes = [[1, 10, 10], [1, 50, 10], [1, 100, 10], [2, 100, 10]]
    seeds = _steps((100, 9), (500, 2), (1000, 20), (None, 4))
    experiment = experiment_from_dict(_minimal(sweep={"shapes": shapes, "seeds": seeds}))
    assert [len(experiment.seeds_of(shape)) for shape in experiment.shapes] == [9, 2, 20, 4]
    assert experiment.seeds == experiment.cell_seeds(embed_dim=10) == range(20)
    assert experiment.cell_seeds(depth=2, embed_dim=10) == range(4)


def test_one_number_of_seeds_is_for_all() -> None:
    one, steps = (
        experiment_from_dict(_minimal(sweep__seeds=seeds)) for seeds in (3, _steps((None, 3)))
    )
    for experiment in (one, steps):
        assert experiment.seeds == experiment.cell_seeds(embed_dim=4) == range(3)
        assert all(experiment.seeds_of(shape) == range(3) for shape in experiment.shapes)


def test_conftest_values_are_valid(tiny_values: Callable[..., dict[str, Any]]) -> None:
    assert experiment_from_dict(tiny_values()).experiment == "tiny"
