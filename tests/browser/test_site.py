"""The site of the documentation, opened as files in a browser that reaches nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).parents[2]
PAGES = (
    "index.html",
    "docs/tutorial.html",
    "docs/how-to.html",
    "docs/concepts/limits.html",
    "docs/concepts/notation.html",
    "docs/reference/experiment-keys.html",
    "docs/reference/python/problem.html",
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    program = ROOT / "docs" / "site" / "build_site.py"
    subprocess.run([sys.executable, str(program), "--out", str(folder)], check=True)
    return folder


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_and_ask_for_nothing(name, width, site, open_page):
    opened = open_page(site / name, width=width, within=site)
    opened.page.wait_for_load_state("load")
    assert (opened.requests, opened.faults) == ([], [])
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_request_from_a_page_is_seen(site, open_page):
    page = site / "asking.html"
    page.write_text("<!doctype html><title>x</title><img src='https://example.org/x.png'>")
    opened = open_page(page, within=site)
    assert opened.requests == ["https://example.org/x.png"]


def found_by_search(opened, words: str) -> list[str]:
    page = opened.page
    page.fill("input[name=q]", words)
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("#search-results p.search-summary")
    page.wait_for_function(
        "document.querySelector('p.search-summary').innerText.includes('found')"
        " || document.querySelector('p.search-summary').innerText.includes('not match')"
    )
    return page.locator("#search-results ul.search li a").all_inner_texts()


def test_search_works_from_files(site, open_page):
    opened = open_page(site / "index.html", within=site)
    titles = found_by_search(opened, "scrambled Sobol")
    assert "Expectations over units" in titles
    opened.page.get_by_role("link", name="Expectations over units").first.click()
    opened.page.wait_for_selector("h1")
    assert "quadrature.html" in opened.page.url
    assert (opened.requests, opened.faults) == ([], [])


def test_search_finds_names_of_code_and_not_everything(site, open_page):
    opened = open_page(site / "docs" / "tutorial.html", within=site)
    assert found_by_search(opened, "interpolation_matrix")
    assert found_by_search(opened, "zzzznosuchword") == []


def test_formulas_are_drawn_with_their_font(site, open_page):
    opened = open_page(site / "docs" / "concepts" / "limits.html", within=site)
    page = opened.page
    page.wait_for_function("document.fonts.ready.then(() => true)")
    assert page.evaluate("document.fonts.check('16px Formulas')")
    # A fraction is drawn as one: its parts stand one above the other.
    above, below = page.evaluate(
        "(() => { const f = document.querySelector('mfrac');"
        " return [...f.children].map(c => c.getBoundingClientRect().top); })()"
    )
    assert above < below - 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_have_no_serious_fault(name, scheme, site, open_page):
    opened = open_page(site / name, within=site, color_scheme=scheme)
    found = Axe().run(opened.page).response["violations"]
    serious = [
        (fault["id"], [node["html"][:200] for node in fault["nodes"]][:3])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
