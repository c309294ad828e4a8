"""The report: what stands on the page, in which words, and that values cannot break it."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import report_contents
from report_contents import CLAIMS, contents, drawing, made, rates
from resnet_limits import integrity
from resnet_limits.figures import style
from resnet_limits.fitted import claim_rows, ranked_claims
from resnet_limits.report import claims, run
from resnet_limits.report.markup import interval_picture, markdown
from resnet_limits.report.page import render
from resnet_limits.stages.paths import FIGURE_FORMS, Paths, cells, figure_names
from resnet_limits.stages.report import report

Values = Callable[..., dict[str, Any]]

# --- reading a page -------------------------------------------------------------------------------

_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Read(HTMLParser):
    """Reads a page: its elements with attributes and text, and whether they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[dict[str, Any]] = []
        self.all: list[dict[str, Any]] = []
        self.feed(page)
        assert self.open == [], [element["tag"] for element in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element: dict[str, Any] = {
            "tag": tag,
            "attrs": dict(attrs),
            "text": "",
            "within": [*self.open],
        }
        self.all.append(element)
        if tag not in _VOID and tag not in ("path", "rect", "circle"):
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append({"tag": tag, "attrs": dict(attrs), "text": "", "within": [*self.open]})

    def handle_endtag(self, tag: str) -> None:
        closed = self.open.pop()
        assert closed["tag"] == tag, f"{closed['tag']} is closed by {tag}"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def of(self, tag: str, **attrs: str) -> list[dict[str, Any]]:
        return [
            element
            for element in self.all
            if element["tag"] == tag
            and all(element["attrs"].get(name.rstrip("_")) == want for name, want in attrs.items())
        ]

    def inside(self, outer: dict[str, Any], tag: str) -> list[dict[str, Any]]:
        return [element for element in self.of(tag) if outer in element["within"]]

    @property
    def text(self) -> str:
        (body,) = self.of("body")
        return " ".join(body["text"].split())


def claims_on(page: str) -> list[tuple[str, str, str]]:
    """Find the claims of the table: what is claimed, where, and the verdict in words."""
    read = Read(page)
    found = []
    for row in read.of("tr"):
        if not str(row["attrs"].get("id", "")).startswith("claim-"):
            continue
        (head,) = read.inside(row, "th")
        cells_of_row = read.inside(row, "td")
        (summary,) = read.inside(row, "summary")
        verdict = summary["text"].split()[-1]
        where = f"{cells_of_row[0]['text']}, step {cells_of_row[1]['text']}"
        found.append((head["text"], where, verdict))
    return found


def expected_claims(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            style.variable_name(claim["claim"]),
            f"{style.pair_name(claim['where']['pair'])}, "
            f"{claims.OBSERVABLES[claim['where']['observable']]}, step {claim['where']['step']}",
            claim["verdict"],
        )
        for claim in found["claims"]
    ]


@pytest.fixture
def page(tiny_values: Values) -> str:
    return render(contents(tiny_values()))


# --- claims ---------------------------------------------------------------------------------------


def test_every_claim_stands_on_the_page_with_its_verdict(page: str) -> None:
    assert sorted(claims_on(page)) == sorted(expected_claims(rates()))


def test_a_claim_that_is_lost_or_another_verdict_would_be_noticed(tiny_values: Values) -> None:
    """The negative control of the test above."""
    lost = render(contents(tiny_values(), rates=rates(CLAIMS[1:])))
    assert sorted(claims_on(lost)) != sorted(expected_claims(rates()))
    other = rates()
    other["claims"][0]["verdict"] = "disagrees"
    turned = render(contents(tiny_values(), rates=other))
    assert sorted(claims_on(turned)) != sorted(expected_claims(rates()))


def test_every_claim_stands_once_in_the_summary_and_leads_to_its_row(page: str) -> None:
    read = Read(page)
    (table,) = read.of("table", class_="summary")
    links = [link["attrs"]["href"] for link in read.inside(table, "a")]
    assert sorted(links) == sorted(f"#claim-{k}" for k in range(1, len(CLAIMS) + 1))
    for link in read.inside(table, "a"):
        (row,) = read.of("tr", id=link["attrs"]["href"][1:])
        (head,) = read.inside(row, "th")
        assert row["attrs"]["class"] in link["text"].split()[1]
        assert head["text"] in link["text"]


def test_disagreements_come_first_then_exponents_then_amplitudes() -> None:
    ranked = [(claim["verdict"], claim["claim"]) for claim in ranked_claims(rates())]
    assert ranked[0] == ("disagrees", "amplitude of sqrt(D/(LM))")
    assert [words.split(" of ")[0] for _, words in ranked[1:]] == [
        "exponent",
        "exponent",
        "exponent in P",
        "amplitude",
    ]
    # The last step before earlier ones; and the terminal shows the same order.
    assert [claim["where"]["step"] for claim in ranked_claims(rates())[1:3]] == [14, 5]
    assert [row[3] for row in claim_rows(rates())] == [words for _, words in ranked]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((17, 0, 27), "17 of 44 claims agree, none disagrees, 27 are undecided."),
        ((1, 1, 1), "1 of 3 claims agrees, 1 disagrees, 1 is undecided."),
        ((0, 2, 0), "None of 2 claims agrees, 2 disagree, none is undecided."),
        ((5, 0, 0), "All 5 claims agree."),
        ((0, 0, 1), "The one claim is undecided."),
        ((0, 1, 0), "The one claim disagrees."),
        ((0, 0, 0), "No claim was judged."),
    ],
)
def test_the_verdict_is_one_sentence(numbers: tuple[int, ...], said: str) -> None:
    verdicts = zip(numbers, ("agrees", "disagrees", "undecided"), strict=True)
    found = {"claims": [{"verdict": name} for count, name in verdicts for _ in range(count)]}
    assert "".join(words for words, _ in claims.sentence(found)) == said


def test_reasons_and_what_they_rest_on_stand_with_the_claim(page: str) -> None:
    text = Read(page).text
    assert "Inside the 95 % interval, which at ±0.03 is no wider than ±0.1." in text
    assert "Judged on 9 of 12 shapes (L 2 to 8, M 8): large ones." in text
    assert "Local exponents over all shapes, from small to large values: 0.520" in text


def test_claims_as_csv_hold_every_digit(page: str) -> None:
    (link,) = Read(page).of("a", download="tiny-claims.csv")
    rows = list(csv.DictReader(io.StringIO(_data(link["attrs"]["href"]))))
    assert {float(row["measured"]) for row in rows if row["measured"]} == {
        claim["measured"] for claim in CLAIMS if claim["measured"] is not None
    }
    assert [row["verdict"] for row in rows] == [c["verdict"] for c in ranked_claims(rates())]


def test_pictures_of_intervals_are_about_the_reference() -> None:
    def circle(value: float) -> float:
        drawn = str(interval_picture(value, value - 0.01, value + 0.01, 0.1))
        return float(re.search(r'cx="([0-9.]+)"', drawn).group(1))  # type: ignore[union-attr]

    assert circle(0.0) == 60.0
    assert circle(0.1) - 60.0 == pytest.approx(60.0 - circle(-0.1))
    assert circle(0.1) > 70.0
    # What lies outside is an arrow, not a point at the edge.
    assert "circle" not in interval_picture(1.0, 0.9, 1.1, 0.1)
    assert "l-6" in interval_picture(1.0, 0.9, 1.1, 0.1)


# --- what was run ---------------------------------------------------------------------------------


def test_what_was_run_is_one_sentence_with_its_numbers(tiny_values: Values) -> None:
    given = contents(tiny_values())
    said = run.sentence(given.experiment, given.rates, given.made, given.reached)
    assert said.count(". ") == 0
    for part in (
        "4 shapes (L 2 to 4, M 8, D 4 to 16) with 2 seeds each are 8 finite networks",
        "of which 1 diverged and none of 4 results is missing",
        "2 limits were solved, with a requested standard error of 0.01 in the outputs, reaching "
        "0.00043 (DMFT limit), at worst 0.00065 (mean_ode/D4)",
        "1 missing",
        "of 24 distances at step 14, 22 are used in the fits, 4 of these below resolution, 2 "
        "diverged and none is missing",
        "computing took 2.4 minutes of wall time, summed over results, and at most 1.0 GiB",
        "on the CPU",
    ):
        assert part in said


def test_diverged_and_missing_are_named(page: str) -> None:
    text = Read(page).text
    assert "finite/L2_M8_D4 (1 of 2 seeds diverged)" in text
    assert "missing: mean_ode/D16." in text


def test_cells_by_pair_name_the_tolerance_that_would_resolve_them(page: str) -> None:
    assert "0.0006" in Read(page).text


CASES = {
    "limits alone": (
        {"sweep": {"pairs": ["wide-mean_ode", "mean_ode-dmft"]}},
        {"count": 0, "ok": 0, "diverged": 0, "unwell": [], "seconds": 0.0},
        "This experiment trains no finite network; it compares limits with each other.",
    ),
    "all diverged": (
        {},
        {"ok": 0, "diverged": 8},
        "All 8 finite networks diverged: no claim about them can be judged.",
    ),
    "one seed": (
        {"sweep": {"seeds": 1}},
        {"ok": 4, "diverged": 0, "unwell": []},
        "There is only one seed, so the scatter of networks is unknown.",
    ),
    "one shape": (
        {"sweep": {"grid": {"depth": [2], "width": [8], "embed_dim": [4]}}},
        {"count": 1, "ok": 2, "diverged": 0, "unwell": []},
        "There is only one shape, from which no exponent can be measured.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_keeps_claims_from_being_decided_is_said_in_words(
    case: str, page: str, tiny_values: Values
) -> None:
    changes, finite, said = CASES[case]
    found = render(contents(tiny_values(**changes), made=made(**finite)))
    assert said in Read(found).text
    # The negative control: the experiment as it is has two seeds, four shapes and networks.
    assert said not in Read(page).text


def test_without_claims_figures_and_rates_the_page_says_so(tiny_values: Values) -> None:
    empty = {"steps": [], "pairs": {}, "families": {}, "claims": []}
    text = Read(render(contents(tiny_values(), rates=empty, figures=[], reached=[]))).text
    for said in ("No claim was judged.", "No figure was drawn.", "No law was fitted."):
        assert said in text


# --- figures and tables ---------------------------------------------------------------------------


def test_figures_stand_in_their_order_once_with_alt_text_caption_and_data(page: str) -> None:
    read = Read(page)
    titles = [head["text"] for head in read.of("h3")]
    assert titles == ["1. Each cause alone", "2. Best shapes"]
    pictures = read.of("img")
    assert len(pictures) == 2
    for picture in pictures:
        assert picture["attrs"]["alt"] == drawing().message
        assert _bytes(picture["attrs"]["src"]) == report_contents.SVG
    encoded = base64.b64encode(report_contents.SVG).decode()
    assert page.count(encoded) == 2
    assert "<strong>hidden states</strong>" in page
    links = read.of("a", download="tiny-frontier.csv")
    assert [_bytes(link["attrs"]["href"]) for link in links] == [drawing().table]
    assert "The first 10 of 12 rows." in read.text


def test_a_figure_that_is_empty_says_why_and_shows_no_picture(tiny_values: Values) -> None:
    why = "This experiment trains no finite network."
    page = render(contents(tiny_values(), figures=[drawing(why_empty=why)]))
    assert f"Nothing is drawn: {why}" in Read(page).text
    assert Read(page).of("img") == []


def test_all_rates_stand_as_a_table_and_as_csv(page: str) -> None:
    read = Read(page)
    assert "0.51 [0.48, 0.54]" in read.text
    assert "too few values" in read.text
    (link,) = read.of("a", download="tiny-rates.csv")
    rows = list(csv.DictReader(io.StringIO(_data(link["attrs"]["href"]))))
    assert {row["exponent"] for row in rows} == {"0.51", ""}


# --- one file, for everyone -----------------------------------------------------------------------


def test_the_page_asks_for_nothing_but_files_beside_it(page: str) -> None:
    read = Read(page)
    addresses = [
        element["attrs"][name]
        for element in read.all
        for name in ("src", "href", "action", "data", "poster", "srcset")
        if element["attrs"].get(name)
    ]
    assert all(re.match(r"data:|#|workflow\.html$|figures/", address) for address in addresses)
    assert not re.search(r"url\(|@import|https?://", page.replace("http://www.w3.org/", ""))
    (policy,) = [e for e in read.of("meta") if e["attrs"].get("http-equiv")]
    assert policy["attrs"]["content"].startswith("default-src 'none'")


def test_headings_go_down_one_by_one_and_tables_have_captions_and_scopes(page: str) -> None:
    read = Read(page)
    levels = [int(e["tag"][1]) for e in read.all if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for table in read.of("table"):
        assert read.inside(table, "caption")[0]["text"].strip()
        assert all(th["attrs"].get("scope") in ("row", "col") for th in read.inside(table, "th"))
        (region,) = [e for e in table["within"] if e["attrs"].get("role") == "region"]
        assert region["attrs"]["tabindex"] == "0"
        assert region["attrs"]["aria-label"]
    for tag in ("header", "nav", "main", "footer"):
        assert len(read.of(tag)) == 1
    ids = [e["attrs"]["id"] for e in read.all if e["attrs"].get("id")]
    assert len(ids) == len(set(ids))


EVIL = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


def test_values_cannot_become_tags(tiny_values: Values) -> None:
    """Whatever stands in names, words, captions, tables or the configuration is text."""
    given = contents(
        tiny_values(),
        configuration=f"path: {EVIL}.npz\n",
        version=EVIL,
        beside={f"{EVIL}.html": EVIL},
        figures=[
            drawing(
                title=EVIL, message=EVIL, caption=EVIL, notes=[EVIL], header=[EVIL], rows=[[EVIL]],
                files=[f"figures/{EVIL}.png"],
            )
        ],
        made=made(unwell=[EVIL], devices=[EVIL], git_states=[EVIL], libraries=[EVIL]),
    )  # fmt: skip
    named = replace(given, experiment=given.experiment.model_copy(update={"experiment": EVIL}))
    hostile = rates([{**claim, "claim": f"exponent {EVIL}", "why": EVIL} for claim in CLAIMS])
    page = render(replace(named, rates=hostile))
    read = Read(page)
    assert len(read.of("script")) == 1
    assert "alert(1)" not in read.of("script")[0]["text"]
    assert not any(name.startswith("on") for element in read.all for name in element["attrs"])
    assert read.of("h1")[0]["text"] == EVIL
    assert "49" not in read.of("h1")[0]["text"]
    assert f"path: {EVIL}.npz" in read.of("pre")[0]["text"]
    # The negative control: the same name as it stands is a second script.
    escaped = "<h1>&lt;script&gt;alert(1)&lt;/script&gt;"
    broken = page.replace(escaped, "<h1><script>alert(1)</script>")
    assert broken != page
    assert len(Read(broken).of("script")) == 2


def test_captions_take_markdown_and_no_tags() -> None:
    assert "<strong>bold</strong>" in markdown("**bold**")
    rendered = markdown("<b>x</b> ![p](https://example.org/p.png) [l](javascript:alert(1))")
    assert "<b>" not in rendered
    assert "<img" not in rendered
    assert "href" not in rendered.replace('href="https', "")


def _bytes(address: str) -> bytes:
    return base64.b64decode(address.partition(";base64,")[2])


def _data(address: str) -> str:
    return _bytes(address).decode()


# --- from files -----------------------------------------------------------------------------------


def _write_figure(paths: Paths, name: str, **told: Any) -> None:
    words = {
        "name": name, "title": f"Title of {name}", "message": f"Message of {name}.",
        "caption": f"Caption of {name}.", "notes": [], "status": "drawn", "why_empty": "",
        **told,
    }  # fmt: skip
    integrity.write_json(words, paths.figure(name, "json"))
    for form in FIGURE_FORMS:
        if form != "json":
            paths.figure(name, form).write_bytes(report_contents.SVG)
    paths.figure(name, "csv").write_text("depth,error\n4,0.123456789\n")


@pytest.fixture
def folder(tmp_path: Path, tiny_experiment: Any, make_dataset: Any) -> tuple[Any, Paths]:
    """Results of the tiny experiment: rates, figures, and one network that diverged."""
    from resnet_limits import store

    experiment = tiny_experiment()
    paths = Paths(tmp_path, experiment.experiment)
    attrs = {**dict.fromkeys(store.PROVENANCE, "x"), "wall_time_s": 2.0, "peak_memory_bytes": 2**30}
    for kind in ("dmft", "finite"):
        for cell in cells(kind, experiment):
            dataset = make_dataset(kind)
            if kind == "dmft":
                dataset["output_stderr"][:] = 3e-3
                dataset["depth_error"][:] = 1e-4
            store.write(dataset, paths.store(kind, **cell), kind, attrs=attrs)
            status = {"ok": 1, "diverged": 1, "not_run": 0} if cell.get("depth") == 4 else {"ok": 2}
            integrity.write_manifest(
                *(paths.manifest(kind, **cell), paths.store(kind, **cell)),
                kind=kind,
                stage_key="k",
                status=status if cell else {},
            )
    integrity.write_json(
        {**rates(), "provenance": {"experiment_file": "experiment: tiny\n"}}, paths.store("rates")
    )
    for name in figure_names(experiment):
        _write_figure(paths, name)
    return experiment, paths


def test_the_page_is_made_from_files(folder: tuple[Any, Paths]) -> None:
    experiment, paths = folder
    read = Read(report(experiment, paths))
    assert sorted(claims_on(report(experiment, paths))) == sorted(expected_claims(rates()))
    names = [n for n in figure_names(experiment) if n not in ("rates_table", "verdicts")]
    assert [head["text"] for head in read.of("h3")] == [
        f"{number}. Title of {name}" for number, name in enumerate(names, start=1)
    ]
    assert "reaching 0.003 (DMFT limit)" in read.text
    assert "of which 2 diverged" in read.text
    assert "finite/L4_M8_D16 (1 of 2 seeds diverged)" in read.text
    assert "Mean ODE, missing: mean_ode/D4, mean_ode/D16." in read.text
    assert "10 seconds" in read.text
    assert "0.12346" in read.text
    # Made after this page, and named by it.
    for name in ("workflow.html", "provenance.json", "ro-crate-metadata.json", "experiment.yaml"):
        assert read.of("a", href=name)
    assert "arXiv:2603.18168" in read.text


def test_a_large_picture_is_embedded_as_pixels(folder: tuple[Any, Paths]) -> None:
    experiment, paths = folder
    paths.figure("three_terms", "svg").write_bytes(b"<svg>" + b" " * 500_000 + b"</svg>")
    paths.figure("three_terms", "png").write_bytes(b"PNG")
    sources = [img["attrs"]["src"] for img in Read(report(experiment, paths)).of("img")]
    assert [_bytes(src) for src in sources if src.startswith("data:image/png")] == [b"PNG"]
    assert sum(src.startswith("data:image/svg+xml") for src in sources) == len(sources) - 1


def test_a_large_table_stays_beside_the_page(folder: tuple[Any, Paths]) -> None:
    experiment, paths = folder
    paths.figure("three_terms", "csv").write_text("depth,error\n" + "4,0.5\n" * 200_000)
    read = Read(report(experiment, paths))
    saved = [e["attrs"] for e in read.of("a") if "download" in e["attrs"]]
    links = {attrs["download"]: attrs["href"] for attrs in saved}
    assert links["tiny-three_terms.csv"] == "figures/three_terms.csv"
    assert links["tiny-histograms.csv"].startswith("data:text/csv")
    assert "The first 10 of 200000 rows." in read.text


@pytest.mark.parametrize("name", ["rates.json", "figures/three_terms.json"])
@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_missing_or_damaged_text_is_one_line(
    folder: tuple[Any, Paths], name: str, text: str | None
) -> None:
    experiment, paths = folder
    file = paths.folder / name
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(integrity.StoreError, match=re.escape(name)) as error:
        report(experiment, paths)
    assert "\n" not in str(error.value)


def test_json_of_a_figure_is_what_the_page_reads(folder: tuple[Any, Paths]) -> None:
    experiment, paths = folder
    _write_figure(paths, "histograms", status="empty", why_empty="All 8 networks diverged.")
    assert json.loads(paths.figure("histograms", "json").read_text())["status"] == "empty"
    assert "Nothing is drawn: All 8 networks diverged." in Read(report(experiment, paths)).text
