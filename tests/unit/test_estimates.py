"""What results are thought to cost: by all that it depends on, and in step with the code."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from resnet_limits import devices, jit
from resnet_limits.cli import main
from resnet_limits.config import Experiment, Shape
from resnet_limits.dynamics import make_dynamics
from resnet_limits.limits import cost as limit_cost
from resnet_limits.limits import ensemble, models, plan, quadrature, trajectories
from resnet_limits.networks import cost
from resnet_limits.problem import make_problem
from resnet_limits.stages import estimates
from resnet_limits.work import INFINITE, Branch, Work, block_weights

DOUBLE = """
from resnet_limits.jit import compiled

@compiled()
def double(x):
    return 2 * x
"""
CELLS = {
    "dmft": {},
    "mean_ode": {"embed_dim": 16},
    "wide": {"depth": 4, "embed_dim": 16},
    "finite": {"depth": 4, "width": 8, "embed_dim": 16},
}
Build = Callable[..., Experiment]


def double(source: Path) -> None:
    """Compile a function as a module of the package does."""
    spec = importlib.util.spec_from_file_location("doubling", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.double(3) == 6


def costs(kind: str, experiment: Experiment) -> tuple[float, int]:
    cell = CELLS[kind]
    return (
        estimates.seconds(kind, experiment, **cell),
        estimates.megabytes(kind, experiment, **cell),
    )


def data(samples: int, inputs: int = 2) -> dict[str, Any]:
    return {"data": {"kind": "gaussian", "samples": samples, "inputs": inputs, "targets": 2}}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"problem": data(200)}, {"problem": data(8000)}),
        ({"problem": data(200, 5)}, {"problem": data(200, 100)}),
        ({"problem": data(2000), "training": {"steps": 3}}, {"training": {"steps": 60}}),
    ],
    ids=["rows", "directions", "steps"],
)
def test_more_work_costs_more(
    tiny_experiment: Build, kind: str, less: dict[str, Any], more: dict[str, Any]
) -> None:
    first = costs(kind, tiny_experiment(**less))
    second = costs(kind, tiny_experiment(**{**less, **more}))
    directions = less["problem"] == data(200, 5)
    assert second[0] > first[0] or (kind == "finite" and directions)
    # Networks hold their embeddings, which are small beside their states.
    assert second[1] > first[1] or (kind == "finite" and directions)


@pytest.mark.parametrize("kind", ["mean_ode", "wide", "finite"])
def test_seeds_cost(tiny_experiment: Build, kind: str) -> None:
    sweep = {"grid": {"depth": [4], "width": [8], "embed_dim": [16]}}
    few, many = (
        costs(kind, tiny_experiment(problem=data(1000), sweep={**sweep, "seeds": seeds}))
        for seeds in (1, 32)
    )
    assert many[0] > 8 * (few[0] - estimates.STORE_SECONDS)
    assert many[1] > few[1]


@pytest.mark.parametrize("kind", ["dmft", "mean_ode", "wide"])
def test_a_smaller_tolerance_costs_more(tiny_experiment: Build, kind: str) -> None:
    loose, tight = (
        costs(kind, tiny_experiment(numerics={"limit_tolerance": tolerance}))
        for tolerance in (1e-2, 1e-6)
    )
    assert tight[0] > 100 * (loose[0] - estimates.STORE_SECONDS)
    assert tight[1] > loose[1]


def file_experiment(build: Build, path: Path, *shape: int) -> Experiment:
    np.savez(path, x=np.ones((*shape, 3)), y=np.ones((*shape, 2)))
    return build(problem={"data": {"kind": "file", "path": str(path)}})


@pytest.mark.parametrize("kind", CELLS)
def test_data_of_a_file_count(tiny_experiment: Build, tmp_path: Path, kind: str) -> None:
    own = file_experiment(tiny_experiment, tmp_path / "a.npz", 400)
    drawn = tiny_experiment(problem=data(400, 3))
    assert estimates.work(kind, own, **CELLS[kind]) == estimates.work(kind, drawn, **CELLS[kind])
    assert costs(kind, own)[0] == pytest.approx(costs(kind, drawn)[0], rel=0.2)
    assert costs(kind, own)[0] > costs(kind, tiny_experiment(problem=data(20, 3)))[0]


@pytest.mark.parametrize("kind", CELLS)
def test_tokens_are_rows(tiny_experiment: Build, tmp_path: Path, kind: str) -> None:
    plain = file_experiment(tiny_experiment, tmp_path / "a.npz", 400)
    tokens = file_experiment(tiny_experiment, tmp_path / "b.npz", 20, 20)
    few = file_experiment(tiny_experiment, tmp_path / "c.npz", 20, 2)
    assert costs(kind, tokens) == costs(kind, plain)
    assert costs(kind, few)[0] < costs(kind, plain)[0]


def test_a_file_that_does_not_say_its_shapes_stops_no_plan(
    tiny_experiment: Build, tmp_path: Path
) -> None:
    own = tiny_experiment(problem={"data": {"kind": "file", "path": str(tmp_path / "none.nc")}})
    assert all(costs(kind, own)[0] > 0 for kind in CELLS)


# --- several vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", cost.ENGINES)
def test_every_vector_of_a_unit_and_every_branch_counts(engine: str) -> None:
    plain = Work(Shape(8, 500, 400), 4, 10, 2)
    wide = replace(plain, branches=(Branch(9, 7),))
    twice = replace(plain, branches=(Branch(), Branch()))
    # 16 vectors for 2; what is of the residual stream's size stays as it is.
    assert cost.memory_bytes(engine, wide) > 3 * cost.memory_bytes(engine, plain)
    assert cost.seconds(engine, wide) > 2 * cost.seconds(engine, plain)
    assert cost.memory_bytes(engine, twice) > 1.9 * cost.memory_bytes(engine, plain)
    weights = Work(Shape(50, 2000, 2000), 1, 2, 1)
    assert cost.memory_bytes("dense", replace(weights, branches=(Branch(16, 16),))) == (
        pytest.approx(16 * cost.memory_bytes("dense", weights), rel=0.1)
    )


def test_every_vector_of_a_unit_counts_in_limits() -> None:
    plain = Work(INFINITE, 100, 10, 1, inputs=10, targets=10)
    wide = replace(plain, branches=(Branch(9, 7),))
    how = limit_cost.Quadrature(1 << 16, compiled=False)
    assert limit_cost.seconds(wide, how) > 6 * limit_cost.seconds(plain, how)
    assert limit_cost.peak_bytes(wide, how) > limit_cost.peak_bytes(plain, how) + 2**28


def test_vectors_of_a_unit_that_only_units_knows_count(
    tiny_experiment: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnet_limits import units

    class Heads(units.Perceptron):
        in_vectors, out_vectors = 6, 5

    monkeypatch.setitem(units.UNITS, "heads", Heads)
    experiment = tiny_experiment()
    unit = experiment.model.unit.model_copy(update={"kind": "heads"})
    monkeypatch.setattr(type(unit), "model_dump", lambda self, **_: {
        "kind": self.kind, "activation": self.activation
    })  # fmt: skip
    model = experiment.model.model_copy(update={"unit": unit})
    work = estimates.work("dmft", experiment.model_copy(update={"model": model}))
    assert work.branches == (Branch(6, 5),)


# --- in step with the code ------------------------------------------------------------------------


def test_the_pilots_numbers_are_the_solvers() -> None:
    assert limit_cost.FIRST_POINTS == plan.FIRST_POINTS
    assert limit_cost.MAX_POINTS == plan.MAX_POINTS
    assert limit_cost.REPLICATES == plan.REPLICATES
    assert limit_cost.FIRST_NODES == plan.FIRST_NODES
    assert limit_cost.DEPTH_POINTS == models._DEPTH_POINTS
    assert limit_cost.PILOT_REPLICATES == models._PILOT_REPLICATES
    assert limit_cost.STATE_BYTES == trajectories.STATE_BYTES
    assert limit_cost.DOUBLE_TOLERANCE == plan._DOUBLE_TOLERANCE
    assert [limit_cost.finer(nodes) for nodes in (8, 12, 32)] == [
        plan.finer(nodes) for nodes in (8, 12, 32)
    ]
    assert limit_cost.KEPT_ELEMENTS == ensemble._KEPT_ELEMENTS
    assert limit_cost.DRAWN_BLOCK == quadrature._BLOCK


def test_the_activations_with_compiled_code_are_those_of_the_units() -> None:
    from resnet_limits import units

    known = {name for name, found in units.ACTIVATIONS.items() if found.compiled is not None}
    assert known | {""} == limit_cost._KERNELS
    built_in = [make(units.make_unit, kind) for kind in units.UNITS]
    assert all(unit.compiled is not None for unit in built_in)


def make(make_unit: Callable[..., Any], kind: str) -> Any:
    """A unit of a kind, with what it needs and no more."""
    needs: dict[str, dict[str, Any]] = {
        "perceptron": {"activation": "tanh"},
        "attention_head": {"key_dim": 2},
        "convolution": {"offsets": (0, 1)},
    }
    return make_unit(kind, 3, **needs.get(kind, {}))


@pytest.mark.parametrize("activation", ["tanh", "gelu", "linear"])
def test_the_first_guess_is_what_the_pilot_begins_with(
    tiny_experiment: Build, activation: str
) -> None:
    experiment = tiny_experiment(model={"unit": {"kind": "perceptron", "activation": activation}})
    first = estimates._quadratures(experiment, None)[0]
    assert first.points == (0 if activation == "linear" else plan.FIRST_POINTS)
    assert first.compiled == (activation != "linear")


# --- refused before it starts ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", CELLS)
def test_what_does_not_fit_is_refused_in_one_line(
    tiny_values: Callable[..., dict[str, Any]],
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import json

    from resnet_limits.stages import limits as stage

    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(tiny_values()))
    command = {"mean_ode": "mean-ode", "finite": "train"}.get(kind, kind)
    sizes = [word for n, v in CELLS[kind].items() for word in (f"--{n.replace('_', '-')}", str(v))]
    words = [command, str(config), *sizes, "--out", str(tmp_path / "a.zarr")]
    monkeypatch.chdir(tmp_path)
    if kind in ("mean_ode", "wide"):
        own = tmp_path / "results" / "tiny" / "dmft.zarr"
        assert main(["dmft", str(config), "--out", str(own)]) == 0
        capsys.readouterr()

    def solve(*_: object, **__: object) -> None:
        raise AssertionError("was started")

    stage._prepare.cache_clear()
    monkeypatch.setattr(trajectories, "solve", solve)
    monkeypatch.setattr(devices, "memory", lambda device: 1000)
    assert main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    stage._prepare.cache_clear()
    (error,) = (line for line in lines if line.startswith("error:"))
    assert "GiB are available; allowed: " in error
    assert not (tmp_path / "a.zarr").exists()


# --- what is compiled -----------------------------------------------------------------------------


def test_a_machine_is_cold_until_something_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is the one that functions are really kept in."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(jit.tempfile, "tempdir", "/proc/nope")
    package = tmp_path / "package"
    for folder in ("limits", "networks"):
        (package / folder).mkdir(parents=True)
        (package / folder / "kernels.py").write_text(DOUBLE, encoding="utf-8")
    (package / "limits" / "other.py").write_text(DOUBLE, encoding="utf-8")
    assert estimates.is_cold(package)
    double(package / "limits" / "other.py")
    # The negative control: what is no part of the two modules does not count.
    assert list(tmp_path.glob("compiled/*/*.kernel"))
    assert estimates.is_cold(package)
    double(package / "networks" / "kernels.py")
    assert not estimates.is_cold(package)


def test_beside_the_source_is_a_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(jit.tempfile, "tempdir", "/proc/nope")
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits" / "kernels.py").write_text(DOUBLE, encoding="utf-8")
    assert estimates.is_cold(tmp_path)
    double(tmp_path / "limits" / "kernels.py")
    assert list(tmp_path.glob("limits/__pycache__/*.kernel"))
    assert not estimates.is_cold(tmp_path)


def test_asking_imports_no_numba(tmp_path: Path) -> None:
    code = (
        "import sys; from resnet_limits.stages import estimates; estimates.is_cold();"
        "sys.exit('numba' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


HEAD = {"unit": {"kind": "attention_head", "key_dim": 3, "causal": True}, "norm": "rms"}
LAYERS: dict[str, list[dict[str, Any]]] = {
    "perceptron": [{}],
    "gated_perceptron": [{"unit": {"kind": "gated_perceptron"}, "width_ratio": 0.5}],
    "attention_head": [HEAD],
    "convolution": [{"unit": {"kind": "convolution", "offsets": [0, -1, 2]}}],
    "transformer": [HEAD, {"unit": {"activation": "gelu"}, "norm": "rms", "width_ratio": 2.0}],
}
TASKS = {"kind": "in_context_regression", "samples": 3, "tokens": 4, "inputs": 2}
RULES: list[dict[str, Any]] = [
    {}, {"rule": {"momentum": 0.9, "nesterov": True}}, {"weight_decay": 0.1},
    {"schedule": {"kind": "cosine"}, "batches": {"size": 2}},
]  # fmt: skip


def test_every_unit_is_among_the_layers() -> None:
    from resnet_limits import units

    assert set(units.UNITS) <= set(LAYERS)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("training", RULES, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_told_from_the_file_is_what_the_problem_is(
    tiny_experiment: Build, layer: str, training: dict[str, Any], positions: bool
) -> None:
    experiment = tiny_experiment(
        problem={"data": {**TASKS, "positions": positions}},
        model={"unit": None, "layer": LAYERS[layer]},
        training=training,
    )
    told = estimates.work("finite", experiment, **CELLS["finite"])
    dynamics = make_dynamics(experiment, make_problem(experiment))
    made = Work.of(dynamics, told.shape, told.seeds, told.itemsize, told.saved)
    assert told == made


@pytest.mark.parametrize(
    "data",
    [
        TASKS,
        {**TASKS, "samples": 1, "positions": True},
        {"kind": "characters", "samples": 30, "tokens": 8, "alphabet": 9},
        {"kind": "characters", "samples": 30, "tokens": 8, "alphabet": 9, "positions": True},
        {"kind": "digits", "samples": 1797},
        {"kind": "gaussian", "samples": 3, "inputs": 2, "targets": 5},
        {"kind": "linear_teacher", "samples": 2, "inputs": 4, "targets": 1},
    ],
    ids=lambda data: data["kind"],
)
def test_sizes_of_every_kind_of_data_are_those_of_the_problem(
    tiny_experiment: Build, data: dict[str, Any]
) -> None:
    experiment = tiny_experiment(problem={"data": data})
    work, made = estimates.work("dmft", experiment), make_problem(experiment)
    assert (work.rows, work.inputs, work.targets) == (made.rows, made.input_dims, made.output_dims)
    assert estimates._data_sizes(experiment).tokens == made.tokens


def test_positions_in_a_file_count(tiny_experiment: Build, tmp_path: Path) -> None:
    plain = file_experiment(tiny_experiment, tmp_path / "a.npz", 20, 5)
    data = plain.problem.data.model_dump() | {"positions": True}
    placed = tiny_experiment(problem={"data": data})
    assert estimates._data_sizes(plain) == (100, 3, 2, 5)
    assert estimates._data_sizes(placed) == (100, 8, 2, 5)


def test_linear_layers_are_told_from_the_file(tiny_experiment: Build) -> None:
    """A limit needs no points where all units are linear."""
    pointwise = [
        {"unit": {"activation": "linear"}},
        {"unit": {"kind": "convolution", "offsets": [0], "activation": "linear"}},
    ]
    gated = {"unit": {"kind": "gated_perceptron", "activation": "linear"}}
    for layer in (pointwise, [gated], [*pointwise, gated], [{}]):
        experiment = tiny_experiment(problem={"data": TASKS}, model={"unit": None, "layer": layer})
        dynamics = make_dynamics(experiment, make_problem(experiment))
        told = estimates._quadratures(experiment, None)[0]
        assert (told.points == 0) == dynamics.is_linear == (layer is pointwise)


def test_weights_of_all_branches_are_counted() -> None:
    shape = Shape(3, 8, 5)
    branches = (Branch(6, 2, ratio=0.5), Branch(ratio=2.0))
    networks = [torch.zeros(3, m, n, 5) for m, n in ((4, 6), (4, 2), (16, 1), (16, 1))]
    assert block_weights(shape, branches) == sum(weights.numel() for weights in networks)
    assert block_weights(shape, (Branch(),)) == 2 * shape.parameters


# --- what is there only for an instant ------------------------------------------------------------


def test_a_limit_that_is_gone_meanwhile_is_guessed(tiny_experiment: Build, tmp_path: Path) -> None:
    experiment, cell = tiny_experiment(), CELLS["wide"]
    guessed = estimates.seconds("wide", experiment, **cell)
    assert estimates.seconds("wide", experiment, tmp_path / "gone.zarr", **cell) == guessed
    os.mkfifo(tmp_path / "pipe")
    for there in (tmp_path / "pipe", tmp_path / "pipe" / "dmft.zarr", tmp_path):
        assert estimates.seconds("wide", experiment, there, **cell) == guessed


def test_data_in_a_pipe_are_not_waited_for(tiny_experiment: Build, tmp_path: Path) -> None:
    """A plan that only reads is made of whatever bears the name of the data."""
    experiment = tiny_experiment(problem={"data": {"kind": "file", "path": str(tmp_path / "a.nc")}})
    os.mkfifo(tmp_path / "a.nc")
    assert estimates._data_sizes(experiment) == (100, 100, 10, None)


# --- distances ------------------------------------------------------------------------------------


def distances_of(build: Build, embed_dim: int = 64, widths: int = 2, **other: Any) -> Experiment:
    grid = {"depth": [16], "width": list(range(8, 8 + widths)), "embed_dim": [embed_dim]}
    sweep = {"grid": grid, **other.pop("sweep", {})}
    return build(problem=data(64, 32), sweep=sweep, save={"depth_points": 17}, **other)


def test_distances_take_time_with_bytes_and_limits(tiny_experiment: Build) -> None:
    one, four = (
        estimates.seconds("errors", distances_of(tiny_experiment, size)) for size in (4096, 16384)
    )
    assert four == pytest.approx(4 * one, rel=0.4)
    pairs = ["finite-dmft"]
    single = distances_of(tiny_experiment, 16384, sweep={"pairs": pairs})
    assert estimates.seconds("errors", single) < 0.8 * four
    # Limits alone: no network is read.
    between = distances_of(tiny_experiment, 4096, sweep={"pairs": ["mean_ode-dmft"]})
    assert estimates.seconds("errors", between) < 1.0 < one


def test_memory_of_distances_does_not_grow_with_a_network(tiny_experiment: Build) -> None:
    few, many = (
        estimates.megabytes(
            "errors", distances_of(tiny_experiment, 4096, training={"steps": steps})
        )
        for steps in (30, 300)
    )
    assert many < few + 200 < 2000
    # Rows of the embedding and tables do.
    wide = estimates.megabytes("errors", distances_of(tiny_experiment, 2**20))
    assert wide > few + 500
    cells = distances_of(tiny_experiment, 4, widths=2000, training={"steps": 300})
    assert estimates.megabytes("errors", cells) > few + 500
