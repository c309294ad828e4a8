"""The explorer's page, used as a person would: with the mouse, with keys, and without a network."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from resnet_limits import cli
from resnet_limits.explorer.cells import STATES
from resnet_limits.stages import explorer

ROOT = Path(__file__).parents[2]
EVIL = "</script><script>window.evil = 1</script><img src=http://192.0.2.1/x>"


def made_results() -> Any:
    spec = importlib.util.spec_from_file_location("made", ROOT / "benchmarks" / "explorer.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "evil"
    sizes = [4, 8, 16], [8, 16, 32], [16, 64]
    return made_results()(folder, *sizes, seeds=3, steps=6, name=EVIL)


@pytest.fixture(scope="module")
def file(results) -> Path:
    out = results.parent / "page.html"
    assert cli.main(["explore", str(results), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def truth(results) -> explorer.Gathered:
    return explorer.gather(results)


@pytest.fixture
def opened(open_page: Callable, file: Path) -> Any:
    found = open_page(file)
    found.page.wait_for_selector("html[data-ready=yes]")
    yield found
    assert found.requests == []
    assert found.faults == []


def settled(page: Page) -> None:
    """Wait until what was chosen is drawn: nothing changes for a while."""
    page.wait_for_timeout(400)


def table(page: Page) -> list[list[str]]:
    return page.eval_on_selector_all(
        "#table tbody tr",
        "rows => rows.map(row => [...row.cells].slice(0, -1).map(cell => cell.textContent))",
    )


def counts(page: Page) -> str:
    return page.text_content("#counts") or ""


def shown_number(text: str) -> float:
    return float("nan") if text == "\u2013" else float(text)


def expected(truth: explorer.Gathered, pair: str, observable: str, k: int) -> dict[str, np.ndarray]:
    cells = truth.pairs[pair]
    distance = cells.distances[observable]
    return {
        "value": distance.value[:, k],
        "stderr": distance.stderr[:, k],
        "predicted": cells.predicted(observable)[:, k],
        "state": distance.state[:, k],
    }


def assert_table_is(page: Page, found: dict[str, np.ndarray]) -> None:
    """The first rows are the first cells: state, value, standard error, RMS, predicted, ratio."""
    rows = table(page)
    assert len(rows) == 15
    for i, row in enumerate(rows):
        assert row[5] == STATES[found["state"][i]].replace("_", " ")
        for column, name in ((6, "value"), (7, "stderr"), (9, "predicted")):
            assert shown_number(row[column]) == pytest.approx(found[name][i], rel=6e-6, nan_ok=True)


PLACE = """
(wanted) => {
  const view = window.explorer.view();
  const found = [];
  const walk = (item, x, y) => {
    if (item.marktype) { item.items.forEach((child) => walk(child, x, y)); return; }
    if (item.items) {
      item.items.forEach((mark) => walk(mark, x + (item.x || 0), y + (item.y || 0)));
    } else if (item.datum && item.datum.i === wanted && item.mark.marktype === "symbol") {
      found.push([x + item.x, y + item.y, item.opacity]);
    }
  };
  walk(view.scenegraph().root, 0, 0);
  const padding = view.padding();
  const [left, top] = [view.origin()[0] + padding.left, view.origin()[1] + padding.top];
  const box = document.querySelector("#panels canvas").getBoundingClientRect();
  return found.map(([x, y, opacity]) => [box.left + left + x, box.top + top + y, opacity]);
}
"""


def places(page: Page, cell: int) -> list[list[float]]:
    """Where a cell is drawn, once in each panel, and its opacity."""
    return page.evaluate(PLACE, cell)


def test_every_cell_is_counted_and_drawn_in_every_panel(opened, truth):
    page = opened.page
    found = expected(truth, "finite-dmft", "hidden", 5)
    assert_table_is(page, found)
    for number, state in enumerate(STATES):
        assert f" {(found['state'] == number).sum()} {state.replace('_', ' ')}" in counts(page)
    for cell in range(len(found["value"])):
        assert len(places(page, cell)) == 5, cell
    assert EVIL in page.title()
    assert page.evaluate("window.evil") is None


def test_keys_choose_a_pair_an_observable_and_a_step(opened, truth):
    page = opened.page
    page.focus("#step")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    settled(page)
    assert page.text_content("#step-said") == "3"
    assert_table_is(page, expected(truth, "finite-dmft", "hidden", 3))
    page.focus("#observable")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    settled(page)
    assert_table_is(page, expected(truth, "finite-dmft", "output", 3))
    page.focus("#pair")
    page.keyboard.press("ArrowDown")
    settled(page)
    pair = page.input_value("#pair")
    assert pair != "finite-dmft"
    assert_table_is(page, expected(truth, pair, "output", 3))
    # The control: these numbers are not those of before.
    with pytest.raises(AssertionError):
        assert_table_is(page, expected(truth, "finite-dmft", "output", 3))


def test_sizes_that_are_infinite_have_no_panel(opened, truth):
    page = opened.page
    page.select_option("#pair", "mean_ode-dmft")
    settled(page)
    assert len(places(page, 0)) == 2
    assert table(page)[0][:2] == ["\u221e", "\u221e"]
    assert f"{len(truth.pairs['mean_ode-dmft'])} cells" in counts(page)


def test_a_rectangle_in_one_panel_selects_in_all(opened, truth):
    page = opened.page
    total = len(truth.pairs["finite-dmft"])
    assert "all selected" in counts(page)
    depth = truth.pairs["finite-dmft"].columns["depth"]
    value = truth.pairs["finite-dmft"].distances["hidden"].value[:, -1]
    inside = int(np.flatnonzero((depth == 8) & np.isfinite(value))[0])
    outside = int(np.flatnonzero((depth == 16) & np.isfinite(value))[0])
    x = places(page, inside)[1][0]
    box = page.locator("#panels canvas").bounding_box()
    page.mouse.move(x - 12, box["y"] + 12)
    page.mouse.down()
    page.mouse.move(x + 12, box["y"] + 235, steps=6)
    page.mouse.up()
    settled(page)
    wanted = ((depth == 8) & np.isfinite(value)).sum()
    assert 0 < wanted < total
    assert f"{total} shown, {wanted} selected" in counts(page)
    assert {row[0] for row in table(page)} == {"8"}
    assert all(place[2] > 0.5 for place in places(page, inside))
    assert all(place[2] < 0.2 for place in places(page, outside))
    page.click("#clear")
    settled(page)
    assert "all selected" in counts(page)
    assert all(place[2] > 0.5 for place in places(page, outside))


def test_keys_select_a_range_of_sizes(opened, truth):
    page = opened.page
    page.focus(".range[data-size=width] select[data-end=low]")
    page.keyboard.press("End")
    settled(page)
    wanted = (truth.pairs["finite-dmft"].columns["width"] == 32).sum()
    assert f"{wanted} selected" in counts(page)
    assert {row[1] for row in table(page)} == {"32"}


def test_marks_of_a_state_can_be_hidden_and_are_counted_still(opened):
    page = opened.page
    page.focus("[data-state=diverged]")
    page.keyboard.press("Space")
    settled(page)
    assert " 1 diverged" in counts(page)
    assert "53 shown" in counts(page)
    assert places(page, 0) == []
    page.keyboard.press("Space")
    settled(page)
    assert len(places(page, 0)) == 5


def test_hovering_shows_the_numbers_of_a_cell(opened, truth):
    page = opened.page
    assert page.is_hidden("#tip")
    cell = 40
    page.mouse.move(*places(page, cell)[0][:2])
    page.wait_for_selector("#tip:not([hidden])")
    names = page.eval_on_selector_all("#tip dt", "all => all.map(e => e.textContent)")
    texts = page.eval_on_selector_all("#tip dd", "all => all.map(e => e.textContent)")
    said = dict(zip(names, texts, strict=True))
    cells = truth.pairs["finite-dmft"]
    # Cells may lie over each other: the one on top is asked for by its own sizes.
    keys = {"L": "depth", "M": "width", "D": "embed_dim", "seed": "seed"}
    (i,) = np.flatnonzero(
        np.all([cells.columns[column] == float(said[key]) for key, column in keys.items()], axis=0)
    )
    found = expected(truth, "finite-dmft", "hidden", 5)
    assert float(said["value"]) == pytest.approx(found["value"][i], rel=6e-6)
    assert float(said["standard error"]) == pytest.approx(found["stderr"][i], rel=6e-6)
    assert float(said["predicted"]) == pytest.approx(found["predicted"][i], rel=1e-5)
    ratio = found["value"][i] / found["predicted"][i]
    assert float(said["value / predicted"]) == pytest.approx(ratio, rel=1e-5)
    assert said["state"] == STATES[found["state"][i]].replace("_", " ")
    page.mouse.move(2, 2)
    page.wait_for_selector("#tip", state="hidden")


def lines(page: Page, name: str, line: str) -> np.ndarray:
    rows = page.evaluate(
        "(name) => window.explorer.lines(name).map(({line, x, y}) => [line, x, y])", name
    )
    return np.array([(x, y) for own, x, y in rows if own == line])


def test_a_click_draws_the_trajectories_of_a_cell(opened, truth):
    page = opened.page
    cells = truth.pairs["finite-dmft"]
    before = page.text_content("#cell-title")
    cell = 40
    page.mouse.click(*places(page, cell)[0][:2])
    settled(page)
    title = page.text_content("#cell-title")
    assert title != before
    words = [part.split()[-1] for part in title.split(", ")]
    (i,) = np.flatnonzero(
        np.all(
            [
                cells.columns[name] == float(word)
                for name, word in zip(("depth", "width", "embed_dim", "seed"), words, strict=True)
            ],
            axis=0,
        )
    )
    for name, line, values in (
        ("losses", "this", cells.losses.first[i]),
        ("losses", "limit", cells.losses.second[i]),
        ("steps", "this", cells.distances["hidden"].value[i]),
        ("steps", "predicted", cells.predicted("hidden")[i]),
    ):
        drawn = lines(page, name, line)
        np.testing.assert_array_equal(drawn[:, 0], cells.steps)
        np.testing.assert_allclose(drawn[:, 1], values, rtol=1e-5)
    drawn = lines(page, "depths", "this")
    kept = cells.profile.values[i, -1] > 0
    np.testing.assert_allclose(drawn[:, 0], cells.profile.s[i][kept], rtol=6e-6)
    np.testing.assert_allclose(drawn[:, 1], cells.profile.values[i, -1][kept], rtol=6e-6)
    assert len(lines(page, "steps", "others")) == 2 * len(cells.steps)


def test_keys_choose_a_cell(opened):
    page = opened.page
    button = page.locator("#table tbody button").nth(4)
    button.focus()
    page.keyboard.press("Enter")
    settled(page)
    title = page.text_content("#cell-title")
    assert button.get_attribute("aria-label") == f"Show {title}"
    page.focus("#next")
    page.keyboard.press("Enter")
    settled(page)
    following = page.locator("#table tbody button").nth(5).get_attribute("aria-label")
    assert following == f"Show {page.text_content('#cell-title')}" != f"Show {title}"


def test_a_table_is_sorted_and_turned_over(opened):
    page = opened.page
    page.click("#table thead button[data-key=value]")
    values = [shown_number(row[6]) for row in table(page)]
    assert values == sorted(values)
    page.click("#last-page")
    assert [row[5] for row in table(page)][-2:] == ["diverged", "not run"]
    assert page.is_disabled("#page-on")


def test_what_is_drawn_often_keeps_its_elements(opened, truth):
    """Elements and marks that are made anew at every change fill the browser's memory."""
    page = opened.page
    kept = """() => [
        document.querySelector("#panels canvas"), document.querySelector("#steps canvas"),
        ...document.querySelectorAll("#table tbody *, #facts *")]"""
    before = page.evaluate_handle(kept)
    are_same = f"(before) => ({kept})().every((element, k) => element === before[k])"
    page.click("#page-on")
    page.click("#next")
    page.press("#step", "ArrowLeft")
    settled(page)
    page.select_option("#pair", "finite-wide")
    settled(page)
    assert page.evaluate(are_same, before)
    page.click("#first-page")
    assert_table_is(page, expected(truth, "finite-wide", "hidden", 4))
    assert all(len(places(page, cell)) == 5 for cell in range(54))
    # The controls: they are others where a pair has other panels.
    page.select_option("#pair", "mean_ode-dmft")
    settled(page)
    assert not page.evaluate(are_same, before)


def downloaded(page: Page, button: str) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click(button)
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def test_tables_are_saved(opened, truth):
    page = opened.page
    cells = truth.pairs["finite-dmft"]
    rows = downloaded(page, "#save-table")
    assert len(rows) == len(cells)
    found = expected(truth, "finite-dmft", "hidden", 5)
    for i, row in enumerate(rows):
        assert row["state"] == STATES[found["state"][i]]
        assert float(row["hidden"] or "nan") == pytest.approx(
            found["value"][i], rel=6e-6, nan_ok=True
        )
    rows = downloaded(page, "#save-all")
    assert len(rows) == len(cells) * len(cells.steps)
    losses = np.array([float(row["loss"] or "nan") for row in rows])
    np.testing.assert_allclose(losses, cells.losses.first.T.ravel(), rtol=6e-6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_assistive_technology(open_page, file, scheme):
    found = open_page(file, color_scheme=scheme)
    found.page.wait_for_selector("html[data-ready=yes]")
    violations = Axe().run(found.page).response["violations"]
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == [], [(v["id"], v["nodes"][0]["html"]) for v in serious]
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_scripts_from_elsewhere_neither_run_nor_load(open_page, file, tmp_path):
    """The control: what a name could smuggle in is refused by the page itself."""
    text = file.read_text(encoding="utf-8")
    smuggled = "<script>window.evil = 1</script><img src='http://192.0.2.1/x'>"
    bad = tmp_path / "bad.html"
    bad.write_text(text.replace("<main>", f"<main>{smuggled}"), encoding="utf-8")
    found = open_page(bad)
    found.page.wait_for_selector("html[data-ready=yes]")
    assert found.page.evaluate("window.evil") is None
    assert len(found.faults) >= 2
    # Without the page's policy the same does run and load: the test sees it.
    policy = 'http-equiv="Content-Security-Policy"'
    bad.write_text(
        text.replace("<main>", f"<main>{smuggled}").replace(policy, 'name="none"'),
        encoding="utf-8",
    )
    found = open_page(bad)
    found.page.wait_for_selector("html[data-ready=yes]")
    assert found.page.evaluate("window.evil") == 1
    assert found.requests == ["http://192.0.2.1/x"]
