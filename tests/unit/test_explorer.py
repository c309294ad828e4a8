"""The data of the explorer: every cell is in it, with the numbers of the stores."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import Study, experiment

from resnet_limits import cli, integrity, predicted, store
from resnet_limits.cells import NOISE_SHARE, VARIABLES, make_study
from resnet_limits.explorer import packing
from resnet_limits.explorer.cells import STATES, Profile, frames, pair_cells
from resnet_limits.explorer.page import Heading, render
from resnet_limits.kinds import NOT_RUN, SIZES

HEADING = Heading("made up", "today", "0", [])
STEPS = 15
AMPLITUDES = {
    "hidden": {"1/L": 0.5, "sqrt(D/(LM))": 0.7, "1/sqrt(D)": 1.1},
    "output": {"1/L": 0.3, "D/(LM)": 0.15, "1/sqrt(LM)": 0.3},
}
PREDICTION: dict[str, Any] = {
    "step": list(range(STEPS)),
    **{
        quantity: {
            term: {"amplitude": [a * (1 + k) for k in range(STEPS)], "uncertainty": [0.0] * STEPS}
            for term, a in terms.items()
        }
        for quantity, terms in AMPLITUDES.items()
    },
    "notes": {"1/sqrt(D)": "not for outputs"},
}


@pytest.fixture(scope="module")
def errors():
    """Distances of which some diverged, were not run, are below resolution or have no number."""
    grid = {"depth": [4, 8], "width": [8, 16], "embed_dim": [8, 32]}
    study = Study(experiment(sweep={"grid": grid, "seeds": 3}), {(4, 8, 8, 1)})
    found = study.errors()
    part = found["finite-dmft"]
    part["status"][5] = NOT_RUN
    part["hidden_rms"][5] = np.nan
    part["hidden_rms"][9, 2] = np.nan
    part["hidden_rms_stderr"][12] = 10.0
    return found


@pytest.fixture(scope="module")
def pairs(errors):
    return {pair: pair_cells(pair, part, PREDICTION) for pair, part in errors.items()}


@pytest.mark.parametrize("observable", VARIABLES)
def test_every_cell_is_there_with_its_numbers(errors, pairs, observable):
    name, stderr_name = VARIABLES[observable]
    for pair, part in errors.items():
        cells = pairs[pair]
        assert len(cells) == part.sizes["cell"]
        for size in (*SIZES, "seed"):
            np.testing.assert_array_equal(cells.columns[size], part[size])
        distance = cells.distances[observable]
        np.testing.assert_array_equal(distance.value, part[name])
        share = np.sqrt(NOISE_SHARE[observable])
        np.testing.assert_allclose(distance.stderr, share * part[stderr_name])


def test_states_are_those_that_fits_count(errors, pairs):
    seen = set()
    for pair, part in errors.items():
        for observable in VARIABLES:
            for k, step in enumerate(part["step"].values):
                state = pairs[pair].distances[observable].state[:, k]
                number = {name: int((state == i).sum()) for i, name in enumerate(STATES)}
                counted = make_study(part, observable, int(step)).cells
                assert number["diverged"] == counted["diverged"]
                assert number["not_run"] + number["no_value"] == counted["missing"]
                assert number["below_resolution"] == counted["below_resolution"]
                assert sum(number.values()) == counted["total"]
                seen |= {name for name, count in number.items() if count}
    assert seen == set(STATES)


def test_predicted_values_are_those_of_the_law(pairs):
    cells = pairs["finite-dmft"]
    sizes = np.stack([cells.columns[name] for name in SIZES], axis=-1)
    known = predicted.known(PREDICTION, "finite-dmft", "hidden", 3)
    wanted = predicted.distance(known, sizes)
    np.testing.assert_array_equal(cells.predicted("hidden")[:, 3], wanted)
    # By hand, at the first cell.
    L, M, D = sizes[0]
    terms = 0.5 / L, 0.7 * np.sqrt(D / (L * M)), 1.1 / np.sqrt(D)
    assert wanted[0] == pytest.approx(4 * np.sqrt(sum(term**2 for term in terms)))
    # A law that lacks a term, or an observable that nothing is predicted of, gives no number.
    assert np.isnan(cells.predicted("output")).all()
    assert np.isnan(cells.predicted("hidden_max_mean_abs")).all()


def test_the_table_has_a_row_for_every_cell_and_step(pairs):
    table = pd.concat(frames(pairs))
    assert len(table) == sum(len(cells) * STEPS for cells in pairs.values())
    row = table[(table["pair"] == "finite-dmft") & (table["step"] == 14)].iloc[12]
    cells = pairs["finite-dmft"]
    assert row["hidden"] == cells.distances["hidden"].value[12, 14]
    assert row["hidden_state"] == "below_resolution"
    assert row["depth"] == cells.columns["depth"][12]
    assert np.isnan(row["loss"])


# --- the page -------------------------------------------------------------------------------------


def unpacked(text: str, size: int) -> np.ndarray:
    """Unpack a column as the page does."""
    whole = base64.b64decode(text)
    data = zlib.decompress(whole[4:] + packing.END, -zlib.MAX_WBITS)
    assert len(data) == int.from_bytes(whole[:4], "little")
    planes = np.frombuffer(data, np.uint8).reshape(size, -1)
    whole = np.zeros((planes.shape[1], 8), np.uint8)
    whole[:, 8 - size :] = planes.T
    return whole.view("<f8").ravel()


def test_packed_numbers_have_six_digits():
    numbers = np.random.default_rng(0).normal(size=999) * 10.0 ** np.arange(-160, 173)[
        : 999 // 3
    ].repeat(3)
    numbers[:4] = np.nan, np.inf, 0.0, 1e-300
    found = unpacked(packing.values(numbers), 4)
    np.testing.assert_allclose(found, numbers, rtol=0.5 * 10.0 ** (1 - packing.DIGITS) / 9)
    np.testing.assert_array_equal(unpacked(packing.exact(numbers), 8), numbers)
    with pytest.raises(AssertionError):  # the control: it does round
        np.testing.assert_array_equal(found, numbers)


def content(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_holds_every_number(pairs):
    page = render(pairs, PREDICTION, HEADING)
    found = content(page.html)
    assert page.steps == page.all_steps == STEPS
    for pair, cells in pairs.items():
        part = found["pairs"][pair]
        assert part["count"] == len(cells)
        for observable, distance in cells.distances.items():
            columns = part["observables"][observable]
            for k in range(STEPS):
                value = unpacked(found["columns"][columns["value"][k]], 4)
                np.testing.assert_allclose(value, distance.value[:, k], rtol=5e-7)
        amplitudes = part["observables"]["hidden"]["amplitudes"][3]
        assert (amplitudes is not None) == np.isfinite(cells.predicted("hidden")[:, 3]).all()
    squares = sum(
        (a * unpacked(found["columns"][found["pairs"]["finite-dmft"]["variables"][term]], 8)) ** 2
        for term, a in found["pairs"]["finite-dmft"]["observables"]["hidden"]["amplitudes"][
            3
        ].items()
    )
    np.testing.assert_allclose(np.sqrt(squares), pairs["finite-dmft"].predicted("hidden")[:, 3])


def test_a_page_that_would_be_too_large_has_fewer_steps_and_says_so(pairs):
    whole = render(pairs, PREDICTION, HEADING)
    small = render(pairs, PREDICTION, HEADING, budget=len(whole.html.encode()) - 150_000)
    assert 2 <= small.steps < STEPS == small.all_steps
    assert f"it has {small.steps} of 15 steps;" in small.html
    assert "To keep this page small" not in whole.html
    steps = content(small.html)["pairs"]["finite-dmft"]["steps"]
    assert steps[0] == 0
    assert steps[-1] == 14
    assert len(steps) == small.steps


def test_distances_over_depth_are_on_the_page(pairs):
    cells = pairs["finite-dmft"]
    s = np.linspace(0, 1, 5) * np.ones((len(cells), 1))
    values = cells.distances["hidden"].value[:, :, None] * s[:, None]
    found = content(
        render(
            {"finite-dmft": replace(cells, profile=Profile(s, values))}, PREDICTION, HEADING
        ).html
    )
    profile = found["pairs"]["finite-dmft"]["profile"]
    last = unpacked(found["columns"][profile["value"][-1]], 4).reshape(len(cells), 5)
    np.testing.assert_allclose(last, values[:, -1], rtol=5e-7)


def test_names_cannot_end_the_data_or_the_title(pairs):
    evil = "</script><script>alert(1)</script>"
    html = render(pairs, None, HEADING._replace(experiment=evil, notes=[evil])).html
    assert evil not in html
    assert content(html)["experiment"] == evil
    assert html.count("<script") == 3


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def results(errors, tmp_path) -> Path:
    folder = tmp_path / "results" / "study"
    attrs = {"experiment_file": "experiment: study\n", "created": "today"}
    store.write(errors, folder / "errors.zarr", attrs=attrs)
    integrity.write_manifest(
        folder / "manifests/errors.json", folder / "errors.zarr", kind="errors", stage_key="key"
    )
    integrity.write_json(PREDICTION, folder / "prediction.json")
    return folder


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_command_writes_a_page_and_the_same_data(results, pairs, tmp_path, capsys, form):
    page, data = tmp_path / "page.html", tmp_path / f"cells.{form}"
    assert cli.main(["explore", str(results), "--out", str(page), "--data", str(data)]) == 0
    read = pd.read_csv if form == "csv" else pd.read_parquet
    pd.testing.assert_frame_equal(
        read(data),
        pd.concat(frames(dict(sorted(pairs.items()))), ignore_index=True),
        check_dtype=False,
    )
    assert "Losses could not be read from" in page.read_text()
    assert f"{sum(map(len, pairs.values()))} cells of 5 pairs" in capsys.readouterr().out
    # Again, over the page that is there.
    assert cli.main(["explore", str(results), "--out", str(page)]) == 0


def complaint(capsys, *words: object) -> str:
    assert cli.main(["explore", *map(str, words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line(results, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert "no such folder; allowed" in complaint(capsys, tmp_path / "no", "--out", out)
    parent = complaint(capsys, results.parent, "--out", out)
    assert "has no errors.zarr: it holds no results, or unfinished ones; allowed" in parent
    assert f"here {results}" in parent
    folder = tmp_path / "folder.html"
    folder.mkdir()
    assert "is a folder" in complaint(capsys, results, "--out", folder)
    assert "ends in .html" in complaint(capsys, results, "--out", tmp_path / "page.txt")
    data = ("--data", tmp_path / "cells.xlsx")
    assert "ends in .csv or .parquet" in complaint(capsys, results, "--out", out, *data)
    report = tmp_path / "report.html"
    report.write_text("<html>")
    assert "not a page of this command" in complaint(capsys, results, "--out", report)
    assert report.read_text() == "<html>"
    (results / "manifests/errors.json").unlink()
    assert "not finished: it has no manifest" in complaint(capsys, results, "--out", out)
    assert not out.exists()


def test_losses_come_from_the_stores_of_both_sides(results, tmp_path):
    import xarray as xr

    from resnet_limits.stages import explorer

    steps = np.arange(STEPS)
    loss = np.arange(3)[:, None] + 0.01 * steps
    network = xr.Dataset({"loss": (("seed", "step"), loss)}, {"seed": [0, 1, 2], "step": steps})
    store.write(network, results / "finite/L8_M16_D32.zarr")
    limit = xr.Dataset({"loss": ("step", 5.0 + steps)}, {"step": steps})
    store.write(limit, results / "dmft.zarr")
    found = explorer.gather(results)
    cells = found.pairs["finite-dmft"]
    own = [cells.columns[name] == size for name, size in zip(SIZES, (8, 16, 32), strict=True)]
    places = np.flatnonzero(np.all(own, axis=0))
    np.testing.assert_array_equal(cells.losses.first[places], loss)
    assert np.isnan(np.delete(cells.losses.first, places, axis=0)).all()
    assert (cells.losses.second == 5.0 + steps).all()
    assert any("and" in note for note in found.heading.notes)
