"""Amplitudes beside the published ones: tables with known amplitudes give them back."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from resnet_limits import integrity, store
from resnet_limits.stages.paths import Paths

ROOT = Path(__file__).parents[2]
AXES: dict[str, Any] = {
    "depth": [10, 30, 93, 285],
    "width": [10, 53, 285],
    "embed_dim": [13, 93, 499],
}
SUM = {"sqrt(D/(LM))": 0.82, "1/sqrt(D)": 0.66}


@pytest.fixture(scope="module")
def published() -> Any:
    spec = importlib.util.spec_from_file_location("published", ROOT / "benchmarks/published.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["published"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["published"]


def errors(
    amplitudes: dict[str, float],
    *,
    scatter: float = 0.0,
    seeds: int = 5,
    diverged: int = 0,
    key: int = 0,
) -> xr.Dataset:
    """An errors store's group whose distances are a sum of terms, with a factor for each seed."""
    rng = np.random.default_rng(key)
    grid = np.stack(np.meshgrid(*AXES.values(), range(seeds), indexing="ij"), -1).reshape(-1, 4)
    L, M, D = grid.T[:3].astype(float)
    terms = {
        "sqrt(D/(LM))": np.sqrt(D / (L * M)),
        "D/(LM)": D / (L * M),
        "1/sqrt(D)": D**-0.5,
        "1/L": 1 / L,
    }
    value = np.zeros(len(grid))
    for name, amplitude in amplitudes.items():
        # A seed's rows make the term of all its shapes larger or smaller.
        value += amplitude * terms[name] * (1 + scatter * rng.normal(size=seeds))[grid[:, 3]]
    values = value[:, None] * np.array([0.5, 1.0, 2.0])
    status = np.zeros(len(grid), np.int8)
    worst = np.argsort(-D / (L * M), kind="stable")[:diverged]
    status[worst], values[worst, 1:] = 1, np.nan
    names = ("hidden_rms", "hidden_max_mean_abs", "output_rms")
    names += ("hidden_rms_stderr", "output_rms_stderr")
    return xr.Dataset(
        {**dict.fromkeys(names, (("cell", "step"), values)), "status": ("cell", status)},
        {
            "step": [0, 5, 14],
            **{
                name: ("cell", grid[:, k])
                for k, name in enumerate(("depth", "width", "embed_dim", "seed"))
            },
            "parameters": ("cell", L * M * D),
        },
    )


def test_amplitudes_of_a_sum_are_found(published):
    cells = published.cells_of(errors(SUM), "output_rms", 5)
    assert cells.errors.shape == (36, 5)
    np.testing.assert_allclose(published.fit(cells, list(SUM)), list(SUM.values()), rtol=1e-12)
    np.testing.assert_allclose(published.fit(cells, [*SUM, "1/L"])[-1], 0.0, atol=1e-12)
    late = published.cells_of(errors(SUM), "output_rms", 14)
    np.testing.assert_allclose(published.fit(late, list(SUM)), [1.64, 1.32], rtol=1e-12)


def test_a_term_that_would_be_negative_is_zero(published):
    cells = published.cells_of(errors({"1/sqrt(D)": 1.0, "1/L": -0.01}), "hidden_rms", 5)
    found = published.fit(cells, ["1/sqrt(D)", "1/L"])
    assert found[1] == 0
    assert 0.9 < found[0] < 1


def test_intervals_hold_the_truth(published):
    inside = []
    for key in range(60):
        cells = published.cells_of(errors(SUM, scatter=0.2, key=key), "hidden_rms", 5)
        intervals = published.jackknife(cells, list(SUM))
        inside += [low <= a <= high for (low, high), a in zip(intervals, SUM.values(), strict=True)]
    assert 0.88 <= np.mean(inside) <= 0.99
    (exact, _) = published.jackknife(published.cells_of(errors(SUM), "hidden_rms", 5), list(SUM))
    np.testing.assert_allclose(exact, 0.82, rtol=1e-12)


def test_diverged_runs_are_left_out_and_zeros_would_bias(published):
    table = errors(SUM, diverged=23)
    cells = published.cells_of(table, "hidden_rms", 5)
    assert cells.diverged.sum() == np.isnan(cells.errors).sum() == 23
    np.testing.assert_allclose(published.fit(cells, list(SUM)), list(SUM.values()), rtol=1e-12)
    biased = published.fit(cells, list(SUM), zeros=True)
    assert biased[0] < 0.95 * SUM["sqrt(D/(LM))"]
    # Before they diverge, runs are like others.
    assert not published.cells_of(table, "hidden_rms", 0).diverged.any()


def test_too_few_shapes_give_no_fit(published):
    table = errors(SUM).isel(cell=slice(5))
    cells = published.cells_of(table, "hidden_rms", 5)
    assert np.isnan(published.fit(cells, list(SUM))).all()
    one = published.cells_of(errors(SUM, seeds=1), "hidden_rms", 5)
    assert np.isnan(published.jackknife(one, list(SUM))).all()


def test_the_table(published, tmp_path, monkeypatch, capsys):
    paths = Paths(tmp_path, "paper-linear")
    tables = {"finite-dmft": errors(SUM, scatter=0.1, diverged=3)}
    store.write(tables, paths.store("errors"), "errors")
    alone = {"amplitude_at_theory": 0.8, "amplitude_at_theory_interval": [0.7, 0.9]}
    fit = {"terms": {"D/(LM)": {"amplitude": 0.15, "amplitude_interval": [0.1, 0.2]}}}
    observables = {
        "finite-wide": {"hidden_max_mean_abs": {"5": alone}, "output": {"5": {**alone, **fit}}},
        "mean_ode-dmft": {"output": {"5": alone}},
        "finite-dmft": {"output": {"5": fit}},
    }
    integrity.write_json({"pairs": observables}, paths.store("rates"))
    monkeypatch.setattr(sys, "argv", ["published", "paper-linear", "--results", str(tmp_path)])
    published.main()
    lines = [
        [field.strip() for field in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert len({len(line) for line in lines}) == 1
    rows = {(line[1], line[3]): line for line in lines[2:]}
    assert [key[1] for key in rows] == [
        *("`sqrt(D/(LM))`", "`1/sqrt(D)`", "`1/L`"),
        *("`D/(LM)`", "`1/sqrt(D)`", "`1/L`"),
    ]
    hidden = rows["`hidden_max_mean_abs`", "`sqrt(D/(LM))`"]
    assert hidden[:5] == ["paper-linear", "`hidden_max_mean_abs`", "5", "`sqrt(D/(LM))`", "0.82"]
    assert abs(float(hidden[5].split()[0]) - 0.82) < 0.15
    assert hidden[7:] == ["0.8 [0.7, 0.9]", "-", "177/180", "3"]
    assert rows["`output_rms`", "`D/(LM)`"][7:9] == ["0.15 [0.1, 0.2]"] * 2
    assert rows["`output_rms`", "`1/L`"][4] == "not detected"


def test_every_plot_is_of_an_experiment_that_keeps_its_step(published):
    from resnet_limits.config import load_experiment
    from resnet_limits.laws import LAWS

    for plot in published.PLOTS:
        experiment = load_experiment(ROOT / "config" / f"{plot.experiment}.yaml")
        assert plot.step in experiment.saved_steps
        assert "finite-dmft" in experiment.pairs
        law = LAWS["finite-dmft"]["output" if plot.observable == "output" else "hidden"]
        assert set(plot.amplitudes) <= set(law.terms)
        assert plot.step in (5, experiment.saved_steps[-1])
