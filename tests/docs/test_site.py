"""The site of the documentation: it builds without a warning, whole and for use without a network.

The site is built once for all tests here, in about half a minute.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import typer
from sphinx.util.inventory import InventoryFile
from trees import made_once

from resnet_limits.cli.running import app
from resnet_limits.config import json_schema

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"


def module(name: str) -> ModuleType:
    """One of the site's programs, which are no package."""
    sys.path.insert(0, str(SITE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SITE))


site_build = module("build_site")
generated = module("generated_pages")
mathml = module("mathml")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Warnings are errors."""

    def make(folder: Path) -> None:
        folder.mkdir()
        command = [sys.executable, str(SITE / "build_site.py"), "--out", str(folder / "html")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"the site does not build without warnings:\n{done.stderr}", pytrace=False)

    return made_once(tmp_path_factory, "site", make) / "html"


# --- it is whole ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_page_of_the_repository_is_in_the_site(site):
    pages = [page for page in (ROOT / "docs").rglob("*.md") if not page.is_relative_to(SITE)]
    pages += [ROOT / name for name in ("README.md", "CHANGELOG.md", "config/README.md")]
    missing = [
        page for page in pages if not (site / page.relative_to(ROOT)).with_suffix(".html").is_file()
    ]
    assert missing == []


def names_in(module_name: str) -> set[str]:
    """Public names of a module, by what is there when it is imported."""
    found = importlib.import_module(f"resnet_limits.{module_name}")
    if hasattr(found, "__all__"):
        return set(found.__all__)
    own = {
        name
        for name, value in vars(found).items()
        if getattr(value, "__module__", None) == found.__name__
        and (inspect.isclass(value) or inspect.isroutine(value))
    }
    return {name for name in own if not name.startswith("_")}


def undocumented(inventory: dict, module_name: str) -> set[str]:
    return {
        name
        for name in names_in(module_name)
        if not any(f"resnet_limits.{module_name}.{name}" in kind for kind in inventory.values())
    }


@pytest.fixture(scope="session")
def inventory(site) -> dict:
    kinds = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    return {kind: dict(names) for kind, names in kinds.items() if kind.startswith("py:")}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for names in generated.MODULES.values() for n in names])
def test_every_public_name_is_in_the_reference(name, site, inventory):
    text = (site / "docs" / "reference" / "python" / f"{name}.html").read_text(encoding="utf-8")
    # Those that another page describes are shown here too, and indexed there.
    assert {n for n in undocumented(inventory, name) if f">{n}<" not in text} == set()


@pytest.mark.slow
def test_names_that_are_not_documented_are_seen(inventory):
    kept = {kind: dict(names) for kind, names in inventory.items()}
    del kept["py:function"]["resnet_limits.fields.kernel"]
    assert undocumented(inventory, "fields") == set()
    assert undocumented(kept, "fields") == {"kernel"}


@pytest.mark.slow
def test_functions_have_signatures(site):
    page = (site / "docs" / "reference" / "python" / "fields.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", "", page)
    names = list(
        inspect.signature(importlib.import_module("resnet_limits.fields").field).parameters
    )
    assert re.search(r"fields\.field\(\s*" + r"[^()]*".join(names), shown)


def test_every_command_and_option_is_in_the_reference():
    text = generated.command_line()
    for name, command in typer.main.get_command(app).commands.items():
        section = text.partition(f"## `resnet-limits {name}`")[2].partition("\n## ")[0]
        options = [option for p in command.params for option in p.opts if option[0] == "-"]
        assert [option for option in options if f"`{option}" not in section] == [], name


def test_every_key_of_the_schema_is_in_the_reference():
    schema = json_schema()
    text = generated.experiment_keys(schema)
    keys = {key for node in (schema, *schema["$defs"].values()) for key in node["properties"]}
    assert len(keys) > 60
    assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_the_reference_of_keys_follows_the_schema():
    schema = {
        "$defs": {
            "Inner": {
                "type": "object",
                "description": "A mapping.",
                "properties": {"colour": {"enum": ["red", "blue"], "type": "string"}},
            }
        },
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 9, "description": "A size."},
            "inner": {"$ref": "#/$defs/Inner"},
            "numbers": {"type": "array", "items": {"type": "number"}, "default": [1.5]},
        },
        "required": ["size"],
    }
    lines = generated.experiment_keys(schema).splitlines()
    assert "| `size` | integer | must be given | at least 1, at most 9 | A size. |" in lines
    assert "| `inner` | mapping |  |  | A mapping. |" in lines
    assert "| `numbers` | list of numbers | `[1.5]` |  |  |" in lines
    assert "| `colour` | text |  | `red`, `blue` |  |" in lines


# --- it needs no network --------------------------------------------------------------------------


class Addresses(HTMLParser):
    """What a page fetches by itself, and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        elif tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon"):
            self.fetched.append(str(values["href"]))
        elif values.get("src"):
            self.fetched.append(str(values["src"]))


def addresses(text: str) -> Addresses:
    found = Addresses()
    found.feed(text)
    return found


@pytest.mark.slow
def test_pages_fetch_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        for address in addresses(page.read_text(encoding="utf-8")).fetched:
            parts = urlsplit(address)
            assert not parts.scheme or parts.scheme == "data", (page, address)
            assert not parts.netloc, (page, address)
            assert (page.parent / unquote(parts.path)).exists(), (page, address)
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(encoding="utf-8").replace('"', "")


def test_what_a_page_fetches_is_seen():
    text = '<script src="https://a.org/x.js"></script><link rel="stylesheet" href="//b.org/y.css">'
    assert addresses(text).fetched == ["https://a.org/x.js", "//b.org/y.css"]


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site):
    ids: dict[Path, set[str]] = {}
    wrong = []
    for page in site.rglob("*.html"):
        for link in addresses(page.read_text(encoding="utf-8")).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                wrong.append((page.name, link))
            elif parts.fragment and target.suffix == ".html":
                if target not in ids:
                    text = target.read_text(encoding="utf-8")
                    ids[target] = set(re.findall(r'\bid="([^"]+)"', text))
                if unquote(parts.fragment) not in ids[target]:
                    wrong.append((page.name, link))
    assert wrong == []


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_formulas_are_in_the_pages(site):
    text = (site / "docs" / "concepts" / "limits.html").read_text(encoding="utf-8")
    assert text.count("<math") > 100
    assert "𝔼" in text
    assert not re.search(r"\\(?:frac|sum|mathbb|begin)", text)


@pytest.mark.parametrize(
    "formula", [r"\nosuchcommand x", r"\begin{nothing} a & b \end{nothing}", r"a & b", r"a \\ b"]
)
def test_formulas_that_are_not_understood_are_errors(formula):
    with pytest.raises(ValueError, match="not understood"):
        mathml.mathml(formula, is_block=True)


@pytest.mark.parametrize(
    ("formula", "has"),
    [
        (r"\mathbb R^a", "<mi>ℝ</mi>"),
        (r"\mathrm{round}(x)", "<mtext>round</mtext>"),
        (r"\texttt{hidden\_rms}", "hidden_rms"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtr>"),
        (r"|h|^2", "<mi>&#x0007C;</mi>"),
        (r"\Big\langle x \Big\rangle", "⟩"),
    ],
)
def test_formulas_are_translated(formula, has):
    assert has in mathml.mathml(formula, is_block=False)


# --- the test itself ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "# A page\n\n[a link](nowhere.md)\n",
        "# A page\n\n[a link](docs/tutorial.md#no-such-heading)\n",
        "# A page\n\n$\\nosuchcommand$\n",
        "# A page\n\n```{nodirective}\n```\n",
        None,
    ],
    ids=["page", "heading", "formula", "directive", "unlisted"],
)
def test_what_is_wrong_with_a_page_is_an_error(text, tmp_path, capfd):
    from sphinx.cmd.build import build_main

    source = tmp_path / "source"
    (source / "docs").mkdir(parents=True)
    unlisted = source / "docs" / "unlisted.md"
    if text is None:
        text = "# A page\n"
        unlisted.write_text("# A page that is in no list of contents\n")
    (source / "index.md").write_text(f"{text}\n```{{toctree}}\ndocs/tutorial\n```\n")
    shutil.copytree(SITE / "_static", source / "_static")
    (source / "docs" / "tutorial.md").write_text("# Tutorial\n\n## A heading\n")
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(SITE)]
    assert build_main([*options, str(source), str(tmp_path / "html")]) != 0
    unlisted.unlink(missing_ok=True)
    (source / "index.md").write_text(
        "# A page\n\n[a](docs/tutorial.md#a-heading)\n\n```{toctree}\ndocs/tutorial\n```\n"
    )
    assert build_main([*options, str(source), str(tmp_path / "html")]) == 0


def test_sections_come_from_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    found = site_build.sections(index)
    assert set(site_build.SECTIONS) < set(found)
    assert site_build.pages_of(found["How to"])[0] == "how-to/install.md"
