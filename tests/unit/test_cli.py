from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from resnet_limits import __version__, integrity, lock, provenance, stages, store
from resnet_limits.cli import BAD_INPUT, DONE, FAILED, STOPPED, main, session
from resnet_limits.config import ENGINES, InputError, load_experiment
from resnet_limits.stages import estimates
from resnet_limits.stages.paths import Paths

SIZES = {"depth": 2, "width": 8, "embed_dim": 4}
FIT = {
    "variable": "D/(LM)",
    "exponent": 0.51,
    "exponent_interval": [0.45, 0.56],
    "theory": 0.5,
    "amplitude": 0.8,
    "cells": {"total": 8, "used": 7},
}
RATES = {
    "experiment": "tiny",
    "steps": [2],
    "pairs": {
        "finite-wide": {"hidden": {"2": FIT}, "output": {"2": None}},
        "wide-mean_ode": {"hidden": {"2": {"exponent": None, "reason": "too few depths"}}},
    },
}


@pytest.fixture
def fake(monkeypatch, make_dataset):
    """Put quick stand-ins in the place of the stages, and note how they are called."""
    calls = []

    def dataset(kind, experiment, **attrs):
        calls.append((kind, experiment, attrs))
        sizes = {"seed": len(experiment.seeds)}
        return make_dataset(kind, **sizes).assign_attrs(attrs)

    def mean_ode(experiment, embed_dim, dmft, seeds=None):
        assert "output" in dmft
        return dataset("mean_ode", experiment, embed_dim=embed_dim)

    def wide(experiment, depth, embed_dim, dmft, seeds=None):
        assert "output" in dmft
        return dataset("wide", experiment, depth=depth, embed_dim=embed_dim)

    def finite(experiment, shape, seeds=None, engine=None, beside=None):
        return dataset("finite", experiment, **shape._asdict())

    def errors(experiment, open_store):
        opened = [open_store("dmft", {}), open_store("finite", SIZES)]
        assert [set(part.data_vars) for part in opened] == [{"output"}, {"hidden", "status"}]
        return {pair: make_dataset("errors") for pair in experiment.pairs}

    def prediction(experiment, dmft, most_seconds, shape):
        assert "output" in dmft
        return {"step": [0], "hidden": {}, "output": {}, "notes": {}}

    modules = {
        "problem": {"problem": lambda experiment: dataset("problem", experiment)},
        "limits": {
            "dmft": lambda experiment: dataset("dmft", experiment),
            "mean_ode": mean_ode,
            "wide": wide,
        },
        "networks": {"finite": finite},
        "errors": {
            "errors": errors,
            "READ": {"dmft": ("output",), "finite": ("hidden", "status")},
        },
        "prediction": {"prediction": prediction},
        "rates": {"rates": lambda experiment, errors, predicted: dict(RATES)},
    }
    for name, functions in modules.items():
        module = types.ModuleType(f"resnet_limits.stages.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(stages, name, module, raising=False)
    monkeypatch.setattr(provenance.code, "code_hash", lambda *_: "0" * 32)
    return calls


@pytest.fixture
def config(tmp_path, tiny_values, monkeypatch):
    """Write the tiny experiment into an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_values()))
    return "tiny.yaml"


def rewrite(config, values):
    Path(config).write_text(yaml.safe_dump(values))


def run(line, capsys):
    """Run a command line; return exit code, output lines, error lines."""
    capsys.readouterr()
    code = main(shlex.split(line))
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def written():
    return sorted(str(path) for path in Path().rglob("*") if path.name != "tiny.yaml")


COMPUTE = {
    "dmft": "dmft {} --out {}",
    "mean_ode": "mean-ode {} --embed-dim 4 --out {}",
    "wide": "wide {} --depth 2 --embed-dim 4 --out {}",
    "finite": "train {} --depth 2 --width 8 --embed-dim 4 --out {}",
}


# --- computing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".zarr", ".zarr.zip"])
@pytest.mark.parametrize("kind", COMPUTE)
def test_a_subcommand_writes_a_sound_store(fake, config, capsys, kind, ending):
    out = f"new/folder/a{ending}"
    code, output, log = run(COMPUTE[kind].format(config, out), capsys)
    assert (code, output) == (DONE, [])
    assert "wrote" in log[-1]
    assert store.check(out) == []
    attrs = store.open_store(out).attrs
    assert attrs["kind"] == kind
    assert attrs["device"] == "cpu"
    # Away from the results there is nothing to keep a manifest for.
    assert not list(Path().rglob("*.json")) or ending == ".zarr"
    assert not Path("results").exists()


def test_quiet_says_nothing(fake, config, capsys):
    assert run(f"--quiet dmft {config} --out a.zarr", capsys) == (DONE, [], [])


def test_options_become_part_of_the_experiment(fake, config, capsys):
    line = COMPUTE["finite"].format(config, "a.zarr")
    assert run(f"{line} --seeds 3 --engine dense", capsys)[0] == DONE
    _, experiment, attrs = fake[-1]
    assert (len(experiment.seeds), experiment.sweep.engine) == (3, "dense")
    assert attrs == SIZES
    found = store.open_store("a.zarr").attrs
    assert yaml.safe_load(found["experiment_file"])["sweep"]["seeds"] == 3
    assert found["seeds"] == [0, 1, 2]
    # The same experiment written with these values has the same key.
    assert found["stage_key"] == provenance.stage_key("finite", experiment, **SIZES)


@pytest.fixture
def asked(monkeypatch):
    """Experiments whose seeds of limits were decided."""
    found = []
    real = estimates.with_limit_seeds
    monkeypatch.setattr(estimates, "with_limit_seeds", lambda one: found.append(one) or real(one))
    return found


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        (COMPUTE["dmft"], False),
        (COMPUTE["finite"], False),
        ("predict {} --out {}.json", False),
        (COMPUTE["mean_ode"], True),
        (COMPUTE["wide"], True),
        ("status {}", True),
    ],
)
def test_a_study_s_cost_is_told_only_where_seeds_of_limits_count(
    fake, asked, config, capsys, line, counts
):
    """That of a large study takes longer than a small command."""
    assert run(line.format(config, "a.zarr"), capsys)[0] == DONE
    assert bool(asked) == counts


def test_to_validate_is_to_estimate_nothing(asked, config, capsys):
    assert run(f"validate {config}", capsys)[0] == DONE
    assert not asked


def test_sizes_need_not_be_in_the_sweep(fake, config, capsys):
    code, _, _ = run(f"train {config} --depth 7 --width 3 --embed-dim 9 --out a.zarr", capsys)
    assert code == DONE
    assert fake[-1][2] == {"depth": 7, "width": 3, "embed_dim": 9}


def test_a_limit_uses_the_stored_quadrature_if_it_fits(fake, config, capsys, tiny_values):
    run(f"dmft {config} --out results/tiny/dmft.zarr", capsys)
    fake.clear()
    run(COMPUTE["mean_ode"].format(config, "a.zarr"), capsys)
    assert [kind for kind, _, _ in fake] == ["mean_ode"]
    fake.clear()
    run(COMPUTE["wide"].format(config, "b.zarr") + " --results elsewhere", capsys)
    assert [kind for kind, _, _ in fake] == ["dmft", "wide"]
    # Not if it was found for another experiment.
    rewrite(config, tiny_values(numerics={"limit_tolerance": 1e-4}))
    fake.clear()
    run(COMPUTE["mean_ode"].format(config, "a.zarr"), capsys)
    assert [kind for kind, _, _ in fake] == ["dmft", "mean_ode"]


# --- the pipeline by hand -------------------------------------------------------------------------


def follow_the_advice(config, capsys, command="errors"):
    """Run a command and then whatever it says is missing, until it is content."""
    for _ in range(100):
        code, output, complaint = run(f"--quiet {command} {config}", capsys)
        if code == DONE:
            return output
        assert code == FAILED
        assert len(complaint) == 1
        assert "inputs are missing or out of date" in complaint[0]
        advice = complaint[0].partition("make the first with: resnet-limits ")[2]
        assert run(f"--quiet {advice}", capsys)[0] == DONE
    raise AssertionError


def table(lines):
    rows = [line.split() for line in lines[1:] if not line.startswith(("rest", "running"))]
    return {row[0]: tuple(map(int, row[1:])) for row in rows}


def test_following_the_advice_makes_every_result(fake, config, capsys):
    code, output, _ = run(f"status {config}", capsys)
    assert code == DONE
    assert table(output) == {
        "problem": (1, 0, 0, 0, 1, 0, 0),
        "dmft": (1, 0, 0, 0, 1, 0, 0),
        "mean_ode": (2, 0, 0, 0, 2, 0, 0),
        "wide": (4, 0, 0, 0, 4, 0, 0),
        "finite": (4, 0, 0, 0, 4, 0, 0),
        "prediction": (1, 0, 0, 0, 1, 0, 0),
        "errors": (1, 0, 0, 0, 1, 0, 0),
        "rates": (1, 0, 0, 0, 1, 0, 0),
    }
    code, _, complaint = run(f"--quiet rates {config}", capsys)
    assert code == FAILED
    assert complaint[0].endswith(f"resnet-limits errors {config}")

    follow_the_advice(config, capsys)
    output = follow_the_advice(config, capsys, "rates")
    assert output[0].split()[:4] == ["pair", "of", "step", "variable"]
    assert "0.51 [0.45, 0.56]" in output[1]
    assert output[1].split()[-2:] == ["7/8", "0"]
    assert "no fit" in output[2]
    assert "too few depths" in output[3]
    assert json.loads(Path("results/tiny/rates.json").read_text())["pairs"] == RATES["pairs"]
    done = table(run(f"status {config}", capsys)[1])
    assert done == {
        "problem": (1, 0, 0, 0, 1, 0, 0),
        "dmft": (1, 1, 0, 0, 0, 0, 0),
        "mean_ode": (2, 2, 0, 0, 0, 0, 0),
        "wide": (4, 4, 0, 0, 0, 0, 0),
        "finite": (4, 4, 0, 0, 0, 0, 0),
        "prediction": (1, 1, 0, 0, 0, 0, 0),
        "errors": (1, 1, 0, 0, 0, 0, 0),
        "rates": (1, 1, 0, 0, 0, 0, 0),
    }
    for path in Path("results").rglob("*.zarr"):
        assert run(f"check {path}", capsys) == (DONE, [f"{path}: sound"], [])


def test_a_changed_experiment_makes_results_out_of_date(fake, config, capsys, tiny_values):
    line = "train {} --depth 2 --width 8 --embed-dim 4 --out results/tiny/finite/L2_M8_D4.zarr"
    run(line.format(config), capsys)
    run(f"dmft {config} --out results/tiny/dmft.zarr", capsys)
    grid = {"depth": [2], "width": [8, 16], "embed_dim": [4]}
    rewrite(config, tiny_values(sweep={"grid": grid}))
    assert table(run(f"status {config}", capsys)[1])["finite"] == (2, 1, 0, 0, 1, 0, 0)
    rewrite(config, tiny_values(training={"learning_rate": 0.1}))
    found = table(run(f"status {config}", capsys)[1])
    assert found["finite"] == (4, 0, 0, 0, 3, 1, 0)
    assert found["dmft"] == (1, 0, 0, 0, 0, 1, 0)


def test_fewer_seeds_than_the_experiment_has_do_not_count_as_done(fake, config, capsys):
    out = "results/tiny/finite/L2_M8_D4.zarr"
    run(COMPUTE["finite"].format(config, out) + " --seeds 1", capsys)
    assert table(run(f"status {config}", capsys)[1])["finite"] == (4, 0, 0, 0, 3, 1, 0)


def test_diverged_runs_are_counted(fake, config, capsys, monkeypatch, make_dataset):
    def finite(experiment, shape, seeds=None, engine=None, beside=None):
        dataset = make_dataset("finite").assign_attrs(shape._asdict())
        dataset["status"][1] = 1
        dataset["diverged_step"][1] = 0
        for name in ("output", "loss", "hidden", "backward"):
            dataset[name][1] = np.nan
        return dataset

    monkeypatch.setattr(stages.networks, "finite", finite)
    out = "results/tiny/finite/L2_M8_D4.zarr"
    assert run(COMPUTE["finite"].format(config, out), capsys)[0] == DONE
    assert table(run(f"status {config}", capsys)[1])["finite"] == (4, 1, 0, 0, 3, 0, 1)
    assert run(f"check {out}", capsys)[0] == DONE


# --- beside a pipeline ----------------------------------------------------------------------------


@pytest.fixture
def pipeline(fake, config, capsys):
    """Let another process hold the folder of an experiment that is computed."""
    follow_the_advice(config, capsys)
    fake.clear()
    program = (
        "import sys, time; from resnet_limits import lock; held = lock.hold(sys.argv[1], print); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "results/tiny"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    "line",
    [
        "train {} --depth 2 --width 8 --embed-dim 4 --out results/tiny/finite/L2_M8_D4.zarr",
        "dmft {} --out results/tiny/other/name.zarr",
        "wide {} --depth 2 --embed-dim 4 --out results/tiny/../tiny/wide/L2_D4.zarr",
        "errors {}",
    ],
)
def test_results_that_a_pipeline_holds_are_left_alone(pipeline, fake, config, capsys, line):
    before = written()
    code, output, complaint = run(f"--quiet {line.format(config)}", capsys)
    assert (code, output) == (BAD_INPUT, [])
    assert len(complaint) == 1
    assert "results/tiny: a pipeline is at work here" in complaint[0]
    assert f"process {pipeline.pid}" in complaint[0]
    assert written() == before
    # Before anything is computed.
    assert fake == []


@pytest.mark.parametrize(
    "line",
    [
        "dmft {} --out elsewhere/tiny/dmft.zarr",
        "dmft {} --out a.zarr",
        "status {}",
        "check results",
    ],
)
def test_other_places_are_free(pipeline, config, capsys, line):
    assert run(line.format(config), capsys)[0] == DONE


def test_a_pipeline_that_started_meanwhile_keeps_a_new_folder(
    fake, config, capsys, monkeypatch, make_dataset
):
    held = []

    def dmft(experiment):
        held.append(lock.hold("results/tiny", print))
        return make_dataset("dmft")

    monkeypatch.setattr(stages.limits, "dmft", dmft)
    code, _, complaint = run(f"dmft {config} --out results/tiny/dmft.zarr", capsys)
    os.close(held[0])
    assert code == BAD_INPUT
    assert "a pipeline is at work here" in complaint[0]
    assert not Path("results/tiny/dmft.zarr").exists()


# --- looking --------------------------------------------------------------------------------------


def test_validate_says_what_is_asked_for(fake, config, capsys):
    code, output, log = run(f"validate {config}", capsys)
    assert (code, log) == (DONE, [])
    assert output[0] == f"{config}: experiment tiny"
    assert "shapes: 4, seeds: 2" in output
    assert "wide: 4 results" in output
    assert written() == []


def test_inspect_and_check(fake, config, capsys):
    run(f"dmft {config} --out results/tiny/dmft.zarr", capsys)
    code, output, _ = run("inspect results/tiny/dmft.zarr", capsys)
    assert code == DONE
    assert output[0] == "dmft.zarr: DMFT limit (kind dmft)"
    assert any("learning_rate: 0.5" in line for line in output)

    metadata = Path("results/tiny/dmft.zarr/zarr.json")
    metadata.write_text(metadata.read_text().replace('"cpu"', '"gpu"'))
    code, output, complaint = run("check results/tiny/dmft.zarr", capsys)
    assert code == FAILED
    assert output == ["digest: not the one in dmft.json"]
    assert complaint == ["error: results/tiny/dmft.zarr: unsound, 1 finding"]


def test_check_finds_a_flipped_bit(fake, config, capsys):
    run(f"dmft {config} --out a.zarr", capsys)
    chunk = Path("a.zarr/loss/c.0")
    raw = bytearray(chunk.read_bytes())
    raw[3] ^= 4
    chunk.write_bytes(raw)
    code, output, complaint = run("check a.zarr", capsys)
    assert code == FAILED
    assert output[0].startswith("loss/c.0: ")
    assert len(complaint) == 1


def test_the_version_is_a_line_with_the_commit(capsys, monkeypatch):
    monkeypatch.setattr(provenance, "git_state", lambda: "0123abc-dirty")
    expected = f"resnet-limits {__version__} (git 0123abc-dirty)"
    assert run("--version", capsys) == (DONE, [expected], [])
    monkeypatch.setattr(provenance, "git_state", lambda: "unknown")
    assert run("--version dance", capsys) == (DONE, [f"resnet-limits {__version__}"], [])


def test_every_command_is_summed_up_in_one_line_of_the_help(capsys):
    code, output, _ = run("--help", capsys)
    assert code == DONE
    assert not [line for line in output if line.endswith("...") and "ARGS" not in line]
    assert "75" in " ".join(output)


AMPLITUDES = {"1/L": 0.5, "sqrt(D/(LM))": 0.8, "1/sqrt(D)": 1.5}


def fitted_rates():
    terms = {name: {"amplitude": a, "detected": True} for name, a in AMPLITUDES.items()}
    fit = {"terms": terms, "sizes": {"depth": [2, 9], "width": [4, 50], "embed_dim": [4, 64]}}
    return {"pairs": {"finite-dmft": {"hidden": {"2": fit}}}}


def predicted_amplitudes(*_):
    rows = {
        name: {"amplitude": [0.0, a, a], "uncertainty": [0.0, a / 100, a / 100]}
        for name, a in AMPLITUDES.items()
    }
    return {"step": [0, 1, 2], "hidden": rows, "output": {}, "notes": {}}


def test_shape_by_a_fit(monkeypatch, tmp_path, capsys):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(fitted_rates()))
    code, output, complaint = run(f"shape --budget 1e6 {file}", capsys)
    assert (code, complaint) == (DONE, [])
    names = [line.partition(":")[0] for line in output]
    assert names[:6] == [
        *("depth", "width", "embed_dim", "parameters", "predicted_error", "terms"),
    ]
    assert output[1] == "width: 4"
    assert names[6:10] == ["within 1 %", "within 5 %", "within 20 %", "shallower"]
    assert (
        "note: the law prefers depth to width, so M is at or near 4, the least measured" in output
    )
    assert run(f"shape --budget 1e6 --step 2 {file}", capsys)[1] == output
    _, output, _ = run(f"shape --budget 1e6 --max-depth 9 {file}", capsys)
    assert output[0] == "depth: 9"
    _, output, _ = run(f"shape --budget 1e6 --within {file} {file}", capsys)
    assert output[-1] == "note: all sizes lie within the measured ranges"
    # The bound of an experiment file is not that of a table that grows with the study.
    file.write_text(json.dumps({**fitted_rates(), "more": "x" * 2**21}))
    assert run(f"shape --budget 1e6 {file}", capsys)[0] == DONE
    monkeypatch.setattr("resnet_limits.cli.shaping.MAX_RATES_BYTES", 2**20)
    code, _, complaint = run(f"shape --budget 1e6 {file}", capsys)
    assert code == BAD_INPUT
    assert complaint == [f"error: RATES: {file}: too large; allowed: at most 1048576 bytes"]


def test_shape_by_a_prediction(config, monkeypatch, capsys):
    monkeypatch.setattr("resnet_limits.cli.shaping.prediction_for", predicted_amplitudes)
    code, output, complaint = run(f"shape --budget 1e6 {config}", capsys)
    assert (code, complaint) == (DONE, [])
    said = dict(line.split(": ", 1) for line in output)
    L, M, D = (int(said[name]) for name in ("depth", "width", "embed_dim"))
    assert said["width"] == "1"
    assert said["parameters"] == str(L * M * D)
    # A perceptron has one vector to read with and one to write with.
    assert said["weights"] == str(2 * L * M * D)
    assert said["interval"].startswith("depth ")
    assert "predicted_error" in said["interval"]
    _, output, _ = run(f"shape --error 0.2 {config}", capsys)
    fewest = dict(line.split(": ", 1) for line in output)
    assert float(fewest["predicted_error"]) <= 0.2
    assert fewest["interval"].startswith("parameters ")
    sizes = "--depth 2 --width 8 --embed-dim 64"
    _, output, _ = run(f"shape {sizes} {config}", capsys)
    assert [line.partition(":")[0] for line in output] == ["shape", "waste", "would_do"]
    assert output[0].startswith("shape: depth 2, width 8, embed_dim 64, predicted_error 1.63")
    assert output[2].endswith("parameters of 1024")
    _, both, _ = run(f"shape --budget 1e6 {sizes} {config}", capsys)
    assert both[-3:] == output
    Path("rates.json").write_text(json.dumps(fitted_rates()))
    _, output, _ = run(f"shape --budget 1e6 --within rates.json {config}", capsys)
    assert output[:3] == ["depth: 9", "width: 50", "embed_dim: 40"]


def test_shape_takes_the_prediction_of_the_results(fake, config, monkeypatch, capsys):
    experiment = load_experiment(config)
    monkeypatch.setattr(
        "resnet_limits.cli.predicting._predicted", lambda *_: pytest.fail("predicted again")
    )
    paths = Paths("results", experiment.experiment)
    file = paths.store("prediction")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(predicted_amplitudes()))
    integrity.write_manifest(
        paths.manifest("prediction"),
        file,
        kind="prediction",
        stage_key=provenance.stage_key("prediction", experiment),
    )
    code, output, complaint = run(f"shape --budget 1e6 {config}", capsys)
    assert (code, complaint) == (DONE, [])
    assert output[1] == "width: 1"
    monkeypatch.setattr("resnet_limits.cli.predicting._predicted", predicted_amplitudes)
    integrity.remove(paths.manifest("prediction"))
    assert run(f"shape --budget 1e6 {config}", capsys)[1] == output


def test_help_offers_the_engines_of_the_experiment_file(capsys):
    code, output, _ = run("train --help", capsys)
    assert code == DONE
    assert ", ".join(ENGINES) in " ".join(" ".join(output).split())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "Missing command"),
        ("dance", "No such command 'dance'"),
        ("--loud validate tiny.yaml", "--loud"),
        ("validate", "CONFIG"),
        ("validate absent.yaml", "absent.yaml"),
        ("dmft tiny.yaml", "--out"),
        ("dmft absent.yaml --out a.zarr", "absent.yaml"),
        (
            "dmft tiny.yaml --out a.nc",
            "--out: a.nc: not the name of a store; allowed: a name that ends in .zarr",
        ),
        ("dmft tiny.yaml --out taken.zarr", "taken.zarr: exists and is not a store"),
        ("dmft tiny.yaml --out a.zarr --speed 3", "--speed"),
        ("mean-ode tiny.yaml --out a.zarr", "--embed-dim"),
        ("mean-ode tiny.yaml --embed-dim 0 --out a.zarr", "--embed-dim"),
        ("mean-ode tiny.yaml --embed-dim 4 --seeds 0 --out a.zarr", "--seeds"),
        ("wide tiny.yaml --depth -1 --embed-dim 4 --out a.zarr", "--depth"),
        ("train tiny.yaml --depth 2 --width x --embed-dim 4 --out a.zarr", "--width"),
        (
            "train tiny.yaml --depth 2 --width 2 --embed-dim 4 --engine fast --out a.zarr",
            "engine",
        ),
        ("inspect absent.zarr", "STORE: absent.zarr: no such file; allowed: a store"),
        ("check absent.zarr", "STORE: absent.zarr: no such file; allowed: a store"),
        ("shape --budget 1e6 absent.json", "RATES: absent.json: no such file"),
        ("shape --budget 1e6 taken.zarr/notes", "RATES: taken.zarr/notes: not JSON ("),
        ("shape --budget 1e6 absent.yaml", "absent.yaml: no such file"),
        (
            "shape --budget 1e6 --within absent.json tiny.yaml",
            "--within: absent.json: no such file",
        ),
        ("shape --budget 1e6 --step 99 tiny.yaml", "--step: 99; allowed: last, 0 to "),
        ("shape --budget 1e6 --of hidden_max_mean_abs tiny.yaml", "allowed with CONFIG: hidden, "),
        ("shape --budget 1e6 --error 0.1 tiny.yaml", "--budget, --error: both are given"),
        ("shape --error 0 tiny.yaml", "--error: 0; allowed: a finite number above 0"),
        ("shape --depth 3 tiny.yaml", "a shape needs all three; allowed: all of them, or none"),
        ("shape --budget 1e6 --max-depth 0 tiny.yaml", "--max-depth"),
        (
            "shape --budget 1e6 list.json",
            "RATES: list.json: lacks the key pairs; allowed: a rates.json",
        ),
        ("shape --budget nan list.json", "--budget: nan; allowed: a finite number"),
        ("shape --budget inf list.json", "--budget: inf; allowed: a finite number"),
        ("shape list.json", "--budget"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(fake, config, capsys, line, part):
    Path("taken.zarr").mkdir()
    Path("taken.zarr/notes").touch()
    Path("list.json").write_text("[]")
    before = written()
    code, output, complaint = run(line, capsys)
    assert (code, output) == (BAD_INPUT, [])
    assert len(complaint) == 1, complaint
    assert complaint[0].startswith("error: ")
    assert part in complaint[0]
    assert written() == before


@pytest.mark.parametrize(
    "bad",
    [
        ({"speed": 3}, "speed"),
        ({"sweep": {"grid": {"width": [-8]}}}, "width"),
        ({"training": {"steps": "many"}}, "steps"),
    ],
)
@pytest.mark.parametrize(
    "line",
    ["validate {}", *(line.replace("--out {}", "--out a.zarr") for line in COMPUTE.values())],
)
def test_a_bad_experiment_is_one_line_and_exit_2(config, capsys, tiny_values, line, bad):
    override, part = bad
    rewrite(config, tiny_values(**override))
    code, output, complaint = run(line.format(config), capsys)
    assert (code, output) == (BAD_INPUT, [])
    assert len(complaint) == 1
    assert config in complaint[0]
    assert part in complaint[0]
    assert written() == []


def test_bad_data_are_one_line_and_exit_2(fake, config, capsys, monkeypatch):
    def problem(experiment):
        raise InputError("data.npz: x holds NaN; only finite numbers are allowed")

    monkeypatch.setattr(stages.problem, "problem", problem)
    assert run(f"validate {config}", capsys) == (
        BAD_INPUT,
        [],
        [f"error: {config}: data.npz: x holds NaN; only finite numbers are allowed"],
    )


# --- failures and signals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("no convergence\nin step 3"), "no convergence in step 3"),
        (MemoryError(), "MemoryError"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_a_failure_is_one_line_and_exit_1(config, capsys, monkeypatch, error, words):
    def dmft(experiment):
        raise error

    monkeypatch.setattr(stages.limits, "dmft", dmft)
    line = f"dmft {config} --out results/tiny/dmft.zarr"
    assert run(line, capsys) == (FAILED, [], [f"error: {words}"])
    assert written() == []
    code, _, complaint = run(f"--verbose {line}", capsys)
    assert code == FAILED
    assert complaint[0].startswith("Traceback")
    assert complaint[-1] == f"error: {words}"


def test_a_dataset_of_the_wrong_form_is_not_written(
    fake, config, capsys, monkeypatch, make_dataset
):
    monkeypatch.setattr(stages.limits, "dmft", lambda e: make_dataset("dmft").drop_vars("loss"))
    code, _, complaint = run(f"dmft {config} --out a.zarr", capsys)
    assert code == FAILED
    assert complaint == ["error: a.zarr: not a dmft store: loss: missing"]
    assert written() == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stopped_before_anything_was_saved(fake, config, capsys, monkeypatch, name):
    def dmft(experiment):
        os.kill(os.getpid(), getattr(signal, name))
        raise AssertionError

    monkeypatch.setattr(stages.limits, "dmft", dmft)
    assert run(f"dmft {config} --out a.zarr", capsys) == (
        FAILED,
        [],
        [f"error: stopped by {name}; nothing was saved: run the same command again"],
    )
    assert written() == []


def test_stopped_in_the_middle_of_writing(fake, config, capsys, monkeypatch):
    def stop(*_args, **_options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(store.writing.onechunk, "encode", stop)
    code, _, complaint = run(f"dmft {config} --out a.zarr", capsys)
    assert code == FAILED
    assert complaint == ["error: stopped by SIGTERM; nothing was saved: run the same command again"]
    assert written() == []


def test_stopped_after_work_was_saved(fake, config, capsys, monkeypatch):
    monkeypatch.setattr(session.LOG, "info", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, _, complaint = run(f"dmft {config} --out a.zarr", capsys)
    assert code == STOPPED
    assert complaint == [
        "error: stopped by SIGTERM after the result was saved: run the same command again"
    ]
    assert store.check("a.zarr") == []


def test_the_caller_gets_its_handlers_back(fake, config, capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    log = logging.getLogger("resnet_limits")
    handlers, level = list(log.handlers), log.level
    run(f"--verbose validate {config}", capsys)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (log.handlers, log.level) == (handlers, level)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], DONE), (["validate", "absent.yaml"], BAD_INPUT)]
)
def test_the_program_exits_with_the_code(arguments, code):
    done = subprocess.run(
        [sys.executable, "-m", "resnet_limits", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    if code == DONE:
        for command in (
            "validate", "dmft", "mean-ode", "wide", "train", "predict", "errors", "rates",
            "shape",
            "status", "inspect", "check",
        ):  # fmt: skip
            assert command in done.stdout


@pytest.mark.parametrize(("given", "found"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_told_otherwise(given, found, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == found
