"""The stage and the command that predict distances: tables, shapes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from resnet_limits.cli import BAD_INPUT, DONE, FAILED, main, predicting
from resnet_limits.config import experiment_from_dict
from resnet_limits.dynamics import make_dynamics
from resnet_limits.kinds import Shape
from resnet_limits.laws import in_quadrature
from resnet_limits.limits.amplitudes import cost, prediction, width
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.models import Limits
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.solver import LimitError
from resnet_limits.predicted import distance_at, known
from resnet_limits.problem import limit_gram_root, make_problem
from resnet_limits.stages import prediction as stage
from resnet_limits.work import MemoryRefusedError

PLAN = Plan("sobol", 256, 8, 4, 0, "float32", 1e-6, 1e-2)
HIDDEN = {"1/L": 0.1, "sqrt(D/(LM))": 0.8, "1/sqrt(D)": 2.0}
OUTPUT = {"1/L": 0.05, "D/(LM)": None, "1/sqrt(LM)": 0.3, "1/sqrt(D)": 0.4}


def over_depth():
    """Amplitudes over the depth, squares of which are polynomials of low degree."""
    s = np.arange(17) / 16
    shapes = {"1/L": s, "sqrt(D/(LM))": np.sqrt(s), "1/sqrt(D)": np.sqrt(s**3)}
    table = {
        term: {
            "amplitude": (np.array([[1e-14], [HIDDEN[term]], [HIDDEN[term]]]) * shape).tolist(),
            "uncertainty": (0.01 * np.array([[0], [1], [1]]) * shape).tolist(),
        }
        for term, shape in shapes.items()
    }
    return {"s": s.tolist(), **table}


def predicted(notes=None):
    """What the stage returns, with numbers of nobody."""

    def table(amplitudes):
        return {
            term: {
                "amplitude": [0.0, value, value] if value else [None] * 3,
                "uncertainty": [0.0, 0.01 * value, 0.01 * value] if value else [None] * 3,
            }
            for term, value in amplitudes.items()
        }

    return {
        "step": [0, 1, 2],
        "hidden": table(HIDDEN),
        "output": table(OUTPUT),
        "hidden_at": over_depth(),
        "notes": notes or {},
        "identity": None,
    }


@pytest.fixture
def config(tmp_path, tiny_values, monkeypatch):
    """The tiny experiment, alone in a folder, with a prediction that costs nothing."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_values()))
    monkeypatch.setattr(predicting, "dmft_for", lambda *_: None)

    def prediction_of(*_, shape, **__):
        found = predicted({"1/L": "too long"})
        return stage.with_shape(found, shape) if shape else found

    monkeypatch.setattr(stage, "prediction", prediction_of)
    return "tiny.yaml"


def run(line, capsys):
    code = main(line.split())
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_a_table_of_all_terms(config, capsys):
    code, lines, _ = run(f"--quiet predict {config}", capsys)
    assert code == DONE
    assert [line.split()[:2] for line in lines[1:8]] == [
        *(["hidden", term] for term in HIDDEN),
        *(["output", term] for term in OUTPUT),
    ]
    assert "0.8 +- 0.008" in lines[2]
    assert lines[5].split()[2:] == ["-"] * 3
    assert lines[-1] == "note: 1/L: too long"


def test_what_is_rounding_beside_other_steps_is_zero(config, monkeypatch, capsys):
    """A_D of the hidden state at step 0, which the Gram matrix moves at second order only."""
    values = predicted()
    values["hidden"]["1/sqrt(D)"] = {
        "amplitude": [1e-14, 2.0, 1e-8],
        "uncertainty": [3e-15, 0.02, 1e-10],
    }
    monkeypatch.setattr(stage, "prediction", lambda *_, **__: values)
    _, lines, _ = run(f"--quiet predict {config}", capsys)
    assert " ".join(lines[3].split()) == "hidden 1/sqrt(D) 0 2 +- 0.02 1e-08 +- 1e-10"
    found = known(values, "mean_ode-dmft", "hidden", 0)
    assert (found.amplitudes, found.uncertainties) == ({"1/sqrt(D)": 0}, {"1/sqrt(D)": 0})
    # What is not known that well is not called zero.
    values["hidden"]["1/sqrt(D)"]["uncertainty"][0] = 0.1
    assert known(values, "mean_ode-dmft", "hidden", 0).amplitudes == {"1/sqrt(D)": 1e-14}


def test_distances_over_the_depth_add_in_quadrature():
    values, shapes = predicted(), np.array([[16, 64, 32], [64, 16, 512]])
    s, found = distance_at(values, "finite-dmft", 2, shapes)
    assert s.tolist() == values["hidden_at"]["s"]
    assert found.shape == (2, 17)
    for row, (layers, width_, embed_dim) in zip(found, shapes, strict=True):
        np.testing.assert_allclose(
            row**2,
            (0.1 * s / layers) ** 2
            + 0.64 * s * embed_dim / (layers * width_)
            + 4 * s**3 / embed_dim,
            rtol=1e-12,
        )
    # The end is what the amplitudes of the last layer give.
    np.testing.assert_allclose(found[:, -1], in_quadrature(HIDDEN, shapes), rtol=1e-12)
    # At the depths of a network's own layers, for pairs of one term alone too.
    own = np.array([0.0, 0.1, 0.2, 0.9, 1.0])
    s, found = distance_at(values, "mean_ode-dmft", 1, [0, 0, 25], own)
    assert s.tolist() == own.tolist()
    np.testing.assert_allclose(found, 0.4 * own**1.5, rtol=1e-10, atol=1e-14)
    _, found = distance_at(values, "finite-wide", 1, [4, 25, 1], own)
    np.testing.assert_allclose(found, 0.08 * own**0.5, rtol=1e-10, atol=1e-14)
    # What is rounding beside later steps is zero.
    assert not distance_at(values, "mean_ode-dmft", 0, [0, 0, 25])[1].any()


def test_what_is_not_predicted_over_the_depth_is_none():
    values, shape = predicted(), [16, 64, 32]
    values["hidden_at"]["1/L"]["amplitude"][1] = [None] * 17
    assert distance_at(values, "finite-dmft", 1, shape) is None
    assert distance_at(values, "finite-dmft", 2, shape) is not None
    assert distance_at(values, "finite-wide", 1, shape) is not None
    assert distance_at(values, "finite-wide", 3, shape) is None
    del values["hidden_at"]
    assert distance_at(values, "finite-wide", 1, shape) is None
    assert distance_at(None, "finite-wide", 1, shape) is None


def test_a_shape_has_distances_that_add_in_quadrature(config, capsys):
    line = f"--quiet predict {config} --depth 16 --width 64 --embed-dim 32 --out p.json"
    code, lines, _ = run(line, capsys)
    assert code == DONE
    values = json.loads(Path("p.json").read_text())
    shape = values["shape"]
    assert [shape[name] for name in ("depth", "width", "embed_dim")] == [16, 64, 32]
    for name, amplitudes in (("hidden", HIDDEN), ("output", OUTPUT)):
        known = {term: value for term, value in amplitudes.items() if value}
        expected = float(in_quadrature(known, np.array([16, 64, 32])))
        leading = shape[name]["leading"]
        assert leading["distance"][1] == pytest.approx(expected)
        assert 0.001 * expected < leading["uncertainty"][1] <= 0.01 * expected
        assert sum(share[1] for share in leading["share"].values()) == pytest.approx(1)
        assert shape[name]["distance"] == leading["distance"]
        assert shape[name]["limit"] == [None] * 3
    assert shape["hidden"]["leading"]["without"] == []
    along = shape["hidden_at"]["leading"]
    at = distance_at(values, "finite-dmft", 1, [16, 64, 32])
    assert shape["hidden_at"]["s"] == at[0].tolist()
    np.testing.assert_allclose(along["distance"][1], at[1], rtol=1e-12)
    assert along["distance"][1][-1] == pytest.approx(shape["hidden"]["leading"]["distance"][1])
    assert along["without"] == []
    assert shape["output"]["leading"]["without"] == ["D/(LM)"]
    assert "note: output: leading order without D/(LM)" in lines
    assert values["provenance"]["stage_key"]
    assert values["output"]["D/(LM)"]["amplitude"] == [None] * 3


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--depth 4", "a shape needs all three; allowed: all of them, or none"),
        ("--out p.zarr", "--out: p.zarr; allowed: a file name that ends in .json"),
        ("--depth 0 --width 1 --embed-dim 1", "--depth"),
    ],
)
def test_bad_input_is_one_line(config, capsys, words, complaint):
    code, _, lines = run(f"predict {config} {words}", capsys)
    assert code == BAD_INPUT
    assert len(lines) == 1
    assert complaint in lines[0]


def tiny_limits(tiny_values, **changes):
    experiment = experiment_from_dict(tiny_values(**changes))
    problem = make_problem(experiment)
    return Limits(make_dynamics(experiment, problem), limit_gram_root(problem))


def test_a_prediction_that_fails_its_check_saves_nothing(
    tmp_path, tiny_values, monkeypatch, capsys
):
    """Kernels of half their size, as of a wrong factor."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_values()))
    real = width._drifts
    monkeypatch.setattr(width, "_drifts", lambda *parts: 0.5 * real(*parts))
    code, lines, complaint = run("--quiet predict tiny.yaml --out p.json", capsys)
    assert code == FAILED
    assert lines == []
    assert "the kernels do not reproduce the drifts of the states" in complaint[-1]
    assert not Path("p.json").exists()


def test_what_takes_too_long_is_left_out_and_said(tiny_values):
    limits = tiny_limits(tiny_values)
    found = prediction.predict(limits, PLAN, most_seconds=0.0)
    assert set(found.notes) == {"1/L", "sqrt(D/(LM))", "1/sqrt(D)", "1/sqrt(LM)", "D/(LM)"}
    assert all("minutes of one core" in note for note in found.notes.values())
    assert not any([*found.hidden.values(), *found.output.values()])


def test_what_is_not_finite_is_null_at_its_steps_and_said(tiny_values, monkeypatch):
    """Samples of few units may diverge where the limit does not."""

    def diverging(trajectories, plan):
        steps = trajectories.dynamics.steps
        value = np.where(np.arange(steps) < steps - 1, 0.5, np.nan)
        found = Amplitude(value, 0.001 * value)
        return found, found

    monkeypatch.setattr(prediction.noise, "unit_noise", diverging)
    monkeypatch.setattr(width, "width_variance_at", not_solved)
    monkeypatch.setattr(prediction.layers, "layer_amplitudes", not_solved)
    monkeypatch.setattr(prediction.gram, "gram_slopes", not_solved)
    monkeypatch.setattr(prediction.bias, "output_bias", not_solved)
    experiment = experiment_from_dict(tiny_values())
    monkeypatch.setattr(stage, "_scale", lambda *_: [1.0])
    monkeypatch.setattr(stage.Plan, "of_attributes", lambda _: PLAN)
    found = stage.prediction(experiment, xr.Dataset())
    last = experiment.training.steps - 1
    noise = found["output"]["1/sqrt(LM)"]
    assert noise["amplitude"] == [*[0.5] * last, None]
    assert noise["uncertainty"] == [*[0.0005] * last, None]
    assert found["notes"]["1/sqrt(LM)"].startswith(f"not finite from step {last} on")
    shape = stage.with_shape(found, Shape(4, 8, 16))["shape"]["output"]["leading"]
    assert shape["distance"] == [pytest.approx(0.5 / 32**0.5)] * last + [None]
    assert shape["share"]["1/sqrt(LM)"] == [1.0] * last + [None]
    assert "1/sqrt(LM)" not in shape["without"]
    assert found["hidden_at"]["1/L"]["amplitude"] == [[None] * 17] * (last + 1)
    json.dumps(found, allow_nan=False)


def not_solved(*_, **__):
    raise LimitError("not solved")


def test_what_does_not_fit_is_refused(tiny_values):
    with pytest.raises(MemoryRefusedError, match=r"prediction: needs .* GiB"):
        prediction.predict(tiny_limits(tiny_values), PLAN, most_bytes=1e6)


def test_memory_and_time_grow_with_the_problem(tiny_values):
    sizes = [
        prediction._Predictor(
            tiny_limits(tiny_values, training={"steps": steps}), PLAN, 1, False
        ).sizes
        for steps in (5, 50)
    ]
    small, large = (cost.width_bytes(one) for one in sizes)
    assert large > 20 * small - 20 * 8 * cost._CHUNK_ARRAYS * cost.CHUNK_ELEMENTS


def test_told_time_of_the_tangents_grows_as_their_recursion_does(tiny_values):
    """Calls as K and K^2, answers as K^2, products over all earlier steps as K^3."""
    sizes = prediction._Predictor(tiny_limits(tiny_values), PLAN, 1, False).sizes

    def told(steps, points=512):
        work = dataclasses.replace(sizes.work, steps=steps)
        return cost.width_seconds(dataclasses.replace(sizes, work=work), points, 8)

    assert told(10000) / told(5000) == pytest.approx(8, rel=0.1)
    assert 10 < told(50) / told(5) < 1000
    # At few steps it is calls that take time, and these are of chunks, not of units.
    assert told(5, 1024) < 1.5 * told(5, 512)
    assert told(5, 1 << 20) == pytest.approx(2 * told(5, 1 << 19), rel=0.1)
