"""The report in a browser: no request, no fault, for keyboard, screen reader and small screens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from conftest import Opened
from report_contents import CLAIMS, contents
from resnet_limits.report.page import render

SIZES = {"wide": (1280, 720), "narrow": (360, 740)}


@pytest.fixture
def page(tmp_path: Path, tiny_values: Callable[..., dict[str, Any]]) -> Path:
    file = tmp_path / "report.html"
    file.write_text(render(contents(tiny_values())), encoding="utf-8")
    return file


def changed(file: Path, old: str, new: str) -> Path:
    """Write a broken twin of a page."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    broken = file.with_name("broken.html")
    broken.write_text(text.replace(old, new), encoding="utf-8")
    return broken


def serious(opened: Opened) -> list[str]:
    """Name the faults that axe-core finds serious or critical."""
    found = Axe().run(opened.page).response["violations"]
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:120]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


def is_in_view(opened: Opened, selector: str) -> bool:
    """Whether an element lies wholly on the first screen."""
    box = opened.page.locator(selector).bounding_box()
    height = (opened.page.viewport_size or {})["height"]
    return box is not None and box["y"] >= 0 and box["y"] + box["height"] <= height


# --- one file -------------------------------------------------------------------------------------


def test_no_request_leaves_the_page(open_page: Any, page: Path) -> None:
    opened = open_page(page)
    opened.page.wait_for_timeout(300)
    assert opened.requests == []
    assert opened.faults == []


@pytest.mark.parametrize(
    "element",
    [
        '<img src="https://example.org/pixel.png" alt="">',
        '<link rel="stylesheet" href="https://example.org/style.css">',
        '<script src="https://example.org/script.js"></script>',
    ],
)
def test_a_request_would_be_noticed(open_page: Any, page: Path, element: str) -> None:
    """And the page's own policy refuses it before it is made."""
    broken = changed(page, "</main>", f"{element}</main>")
    opened = open_page(broken)
    opened.page.wait_for_timeout(300)
    assert opened.requests == []
    assert any("Content Security Policy" in fault for fault in opened.faults)
    without = changed(broken, 'http-equiv="Content-Security-Policy"', 'name="nothing"')
    opened = open_page(without)
    opened.page.wait_for_timeout(300)
    assert len(opened.requests) == 1


def test_no_other_script_runs(open_page: Any, page: Path) -> None:
    broken = changed(page, "</main>", "<script>document.title = 'taken'</script></main>")
    opened = open_page(broken)
    assert opened.page.title() != "taken"
    assert any("Content Security Policy" in fault for fault in opened.faults)


# --- the first screen -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_first_screen_says_which_claims_hold(open_page: Any, page: Path, size: str) -> None:
    width, height = SIZES[size]
    opened = open_page(page, width=width, height=height)
    assert is_in_view(opened, ".verdict")
    assert opened.page.locator(".verdict").inner_text() == (
        "2 of 5 claims agree, 1 disagrees, 2 are undecided."
    )
    assert is_in_view(opened, ".summary")
    chips = opened.page.locator(".summary .chip")
    assert chips.count() == len(CLAIMS)
    words = [chip.split(",")[0].split()[-1] for chip in chips.all_inner_texts()]
    assert sorted(words) == sorted(claim["verdict"] for claim in CLAIMS)
    for chip in chips.all():
        # Words are not cut off.
        assert chip.evaluate("e => e.scrollWidth <= e.clientWidth + 1")


@pytest.mark.parametrize("size", SIZES)
def test_the_page_does_not_scroll_sideways(open_page: Any, page: Path, size: str) -> None:
    width, height = SIZES[size]
    measure = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert open_page(page, width=width, height=height).page.evaluate(measure) == 0
    broken = changed(page, "</main>", '<div style="width: 2000px">wide</div></main>')
    assert open_page(broken, width=width, height=height).page.evaluate(measure) > 0


# --- for everyone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_fault(open_page: Any, page: Path, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    opened = open_page(page, width=width, height=height, color_scheme=scheme)
    assert serious(opened) == []
    # Also with everything open.
    opened.page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert serious(opened) == []


BROKEN = {
    "contrast": (
        "--soft: light-dark(#555d68, #aab2bd)",
        "--soft: light-dark(#cccccc, #333333)",
        "color-contrast",
    ),
    "picture without words": ('alt="The distance', 'data-alt="The distance', "image-alt"),
    "no language": ('<html lang="en">', "<html>", "html-has-lang"),
    "region without a way in": (
        '<pre tabindex="0" role="region"',
        '<pre style="width: 60px" role="region"',
        "scrollable-region-focusable",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faults_would_be_found(open_page: Any, page: Path, fault: str) -> None:
    old, new, name = BROKEN[fault]
    opened = open_page(changed(page, old, new))
    assert any(found.startswith(name) for found in serious(opened))


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(
    open_page: Any, page: Path
) -> None:
    opened = open_page(page)
    keyboard = opened.page.keyboard
    keyboard.press("Tab")
    focused = opened.page.evaluate("document.activeElement.textContent")
    assert focused == "Skip to the claims"
    assert opened.page.locator(".skip").bounding_box()["x"] >= 0
    # Everything that can take the focus is reached, once, in the order of the page.
    opened.page.evaluate(
        """() => {
          document.querySelectorAll("details").forEach(e => { e.open = true; });
          const all = [...document.querySelectorAll(
            "a[href], button, summary, [tabindex='0']")].filter(e => e.getClientRects().length);
          all.forEach((e, k) => { e.dataset.place = k; });
          document.body.dataset.count = all.length;
        }"""
    )
    count = int(opened.page.evaluate("document.body.dataset.count"))
    places = ["0"]
    for _ in range(count - 1):
        keyboard.press("Tab")
        place, style, width = opened.page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
                 return [e.dataset.place, s.outlineStyle, parseFloat(s.outlineWidth)]; }"""
        )
        assert style == "solid"
        assert width >= 2
        places.append(place)
    assert places == [str(k) for k in range(count)]


def test_the_skip_link_and_verdicts_work_by_keyboard(open_page: Any, page: Path) -> None:
    opened = open_page(page)
    opened.page.locator(".summary .chip").first.press("Enter")
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate("location.hash").startswith("#claim-")
    # The row that a verdict leads to has opened, and its reason can be read.
    assert opened.page.locator("tr:target details").get_attribute("open") is not None
    assert opened.page.locator("tr:target details p").first.is_visible()
    closed = opened.page.locator("tr.undecided:not(:target) summary").first
    closed.press("Enter")
    assert closed.locator("..").get_attribute("open") is not None


def test_tables_are_sorted_by_their_headings(open_page: Any, page: Path) -> None:
    opened = open_page(page)
    heading = opened.page.locator("table.claims th", has_text="Measured").first
    rows = opened.page.locator("table.claims tbody tr td:nth-of-type(5)")

    def measured() -> list[float]:
        texts = [text.replace("\N{MINUS SIGN}", "-") for text in rows.all_inner_texts()]
        return [float(text) for text in texts if text != "\N{EN DASH}"]

    before = measured()
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert measured() == sorted(before) != before
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert measured() == sorted(before, reverse=True)
    # Columns of words sort too, and verdicts are not mistaken for numbers.
    opened.page.locator("table.claims th button", has_text="Verdict").click()
    first = opened.page.locator("table.claims tbody tr").first
    assert first.get_attribute("class") == "agrees"


def test_the_theme_is_chosen_and_kept(open_page: Any, page: Path) -> None:
    opened = open_page(page, color_scheme="light")
    back = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(back)
    opened.page.get_by_role("button", name="Dark theme").click()
    assert opened.page.evaluate(back) != light
    # Figures keep their white card.
    card = "getComputedStyle(document.querySelector('.picture')).backgroundColor"
    assert opened.page.evaluate(card) == "rgb(255, 255, 255)"
    opened.page.get_by_role("button", name="Light theme").click()
    assert opened.page.evaluate(back) == light


def test_the_page_works_without_its_script(open_page: Any, page: Path) -> None:
    opened = open_page(page, java_script_enabled=False)
    assert opened.page.locator("button").count() == 0
    assert opened.page.locator(".verdict").is_visible()
    opened.page.locator("table.claims summary").first.click()
    assert opened.page.locator("table.claims details[open] p").first.is_visible()
    opened.page.locator("figure summary").first.click()
    assert opened.page.locator("figure details[open] table").is_visible()
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("link", name="Claims as CSV").click()
    assert waiting.value.suggested_filename == "tiny-claims.csv"
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(CLAIMS) + 1


# --- on paper -------------------------------------------------------------------------------------


def test_on_paper_reasons_are_open_and_controls_are_gone(open_page: Any, page: Path) -> None:
    opened = open_page(page)
    reason = opened.page.locator("table.claims details p").first
    assert not reason.is_visible()
    opened.page.emulate_media(media="print")
    assert reason.is_visible()
    assert not opened.page.locator("nav").is_visible()
    assert not opened.page.locator("figure details").first.is_visible()
    for figure in opened.page.locator("figure").all():
        assert figure.evaluate("e => getComputedStyle(e).breakInside") == "avoid"
    assert opened.page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
