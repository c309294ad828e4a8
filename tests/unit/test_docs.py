"""The documentation names only what is there: files, headings, commands, options, code and keys."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from resnet_limits import store
from resnet_limits.cli.running import app
from resnet_limits.config import experiment_from_dict, json_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(page for page in DOCS.rglob("*.md") if page.parent.name != "site"),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "config/README.md")),
]
COMMANDS = {
    name: {option for parameter in command.params for option in parameter.opts}
    for name, command in typer.main.get_command(app).commands.items()
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(text: str) -> str:
    """Text without code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# --- links ----------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(h) for h in re.findall(r"^#+ (.*)$", prose(page.read_text()), re.MULTILINE)}


def broken_links(page: Path, text: str | None = None) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text or page.read_text())):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        sound = file.exists() and (not anchor or anchor in anchors(file))
        if not sound:
            broken.append(target)
    return broken


@every_page
def test_relative_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_broken_links_are_seen():
    text = "[a](nowhere.md) [b](#no-such-heading) [c](README.md) [d](https://example.org/x)"
    assert broken_links(DOCS / "README.md", text) == ["nowhere.md", "#no-such-heading"]


def unsound_addresses(text: str) -> list[str]:
    """Addresses elsewhere that cannot be right; nothing is asked of them."""
    found = re.findall(r"\]\(([a-z]+:[^)]*)\)|<([a-z]+://[^>]*)>", prose(text))
    unsound = []
    for address in map("".join, found):
        parts = urlsplit(address)
        is_host = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc)
        if parts.scheme != "https" or not is_host or re.search(r"\s|[.,;]$", address):
            unsound.append(address)
    return unsound


@every_page
def test_addresses_elsewhere_are_well_formed(page):
    assert unsound_addresses(page.read_text()) == []


def test_unsound_addresses_are_seen():
    wrong = [
        "http://a.org/x",
        "https://localhost/x",
        "https://a.org/x y",
        "https://a.org/x.",
        "htps://a.org",
    ]
    text = " ".join(f"[a]({address})" for address in [*wrong, "https://arxiv.org/abs/2603.18168"])
    assert unsound_addresses(text) == wrong


@every_page
def test_pictures_have_alternative_texts(page):
    assert re.findall(r"!\[\s*\]\([^)]*\)", prose(page.read_text())) == []


@every_page
def test_headings_are_distinct(page):
    """Two headings of one name would share an anchor, which GitHub and the site number."""
    slugs = [slug(h) for h in re.findall(r"^#+ (.*)$", prose(page.read_text()), re.MULTILINE)]
    assert len(slugs) == len(set(slugs))


# --- pages that sources cite ----------------------------------------------------------------------


def pages_missing(text: str) -> list[str]:
    """Names of pages in a source that are no files of this project."""
    cited = re.findall(r"(?<![\w./{}-])[\w./-]+\.md\b", text)
    return [name for name in cited if not (ROOT / name).is_file()]


def test_sources_cite_only_pages_that_exist():
    missing = {
        str(file.relative_to(ROOT)): names
        for folder in ("src", "workflow", "rules", "tests/numerics")
        for file in sorted((ROOT / folder).rglob("*.*"))
        if file.suffix in (".py", ".smk", ".rst")
        if (names := pages_missing(file.read_text(encoding="utf-8")))
    }
    assert missing == {}


def test_missing_pages_are_seen():
    text = "As in theory.md, docs/concepts/nowhere.md and docs/concepts/limits.md."
    assert pages_missing(text) == ["theory.md", "docs/concepts/nowhere.md"]


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\(([^)#]+)", (DOCS / "README.md").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS)}
    pages.remove("README.md")
    assert pages <= linked


# --- commands -------------------------------------------------------------------------------------


def wrong_commands(text: str) -> list[str]:
    """Command lines with a command or an option that does not exist."""
    wrong = []
    for line in re.findall(r"resnet-limits [^\n`]*", text):
        words = shlex.split(line, comments=True, posix=False)[1:]
        words = [word.strip("[](),.;") for word in words]
        if not words or not re.fullmatch(r"[a-z][a-z-]+", words[0]):
            continue
        options = [word for word in words[1:] if word.startswith("--")]
        if words[0] not in COMMANDS or not set(options) <= COMMANDS[words[0]]:
            wrong.append(line)
    return wrong


@every_page
def test_commands_exist(page):
    assert wrong_commands(page.read_text()) == []


def test_wrong_commands_are_seen():
    text = "`resnet-limits frob X`, `resnet-limits dmft X --depth 3` and `resnet-limits rates X`"
    assert wrong_commands(text) == ["resnet-limits frob X", "resnet-limits dmft X --depth 3"]


def test_reference_has_every_command_and_option():
    sections = re.split(r"^## ", (DOCS / "reference" / "cli.md").read_text(), flags=re.MULTILINE)
    by_name = {section.partition("\n")[0]: section for section in sections}
    for name, options in COMMANDS.items():
        missing = [option for option in options if option not in by_name[name] and option[0] == "-"]
        assert missing == [], name


# --- code, keys, variables ------------------------------------------------------------------------


@cache
def keys() -> set[str]:
    """Dotted keys of the experiment file."""
    schema = json_schema()

    def walk(node: Any, path: tuple[str, ...]) -> Iterator[str]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for option in [*node.get("anyOf", []), *node.get("oneOf", [])]:
            yield from walk(option, path)
        for name, child in node.get("properties", {}).items():
            yield ".".join((*path, name))
            yield from walk(child, (*path, name))

    return set(walk(schema, ()))


@cache
def stored() -> set[str]:
    """Variables, coordinates, dimensions and attributes of all stores."""
    found = set(store.PROVENANCE)
    for schema in store.SCHEMAS.values():
        found |= {*schema.all, *schema.attrs}
        found |= {dim.removesuffix("?") for v in schema.all.values() for dim in v.dims}
    return found


def member(owner: Any, name: str) -> Any:
    """Attribute of a module, class or instance; True where only its presence can be seen."""
    if hasattr(owner, name):
        return getattr(owner, name)
    declared = name in getattr(owner, "__annotations__", {})
    if declared or (inspect.isclass(owner) and f"self.{name}" in inspect.getsource(owner)):
        return True
    raise AttributeError(name)


def in_code(name: str) -> bool:
    """Whether a dotted name leads to something in the package."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(["resnet_limits", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[length:]:
                found = member(found, part)
        except AttributeError:
            return False
        return True
    return False


def cells(page: Path, column: int) -> Iterator[str]:
    """Code names in one column of a page's tables."""
    for line in prose(page.read_text()).splitlines():
        fields = line.strip().strip("|").split(" | ")
        if line.startswith("|") and len(fields) > column:
            yield from re.findall(r"`([^`]+)`", fields[column])


def test_code_names_of_the_notation_exist():
    names = list(cells(DOCS / "concepts" / "notation.md", 1))
    assert len(names) > 50
    assert [n for n in names if not (in_code(n) or n in keys() or n in stored())] == []


def test_names_of_the_python_reference_exist():
    names = list(cells(DOCS / "reference" / "python-api.md", 0))
    assert len(names) > 40
    assert [name for name in names if not in_code(name)] == []


@pytest.mark.parametrize("name", ["config.Shape.colour", "limits.nothing.at_all", "nothing"])
def test_names_that_are_not_there_are_seen(name):
    assert not in_code(name)
    assert name not in keys() | stored()


def test_every_stored_variable_is_explained():
    text = (DOCS / "concepts" / "stores.md").read_text()
    missing = [name for name in stored() if not re.search(rf"\b{name}\b", text)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_whole_experiments_are_valid(page):
    for block in re.findall(r"^```yaml\n(experiment:.*?)^```$", page.read_text(), re.S | re.M):
        experiment_from_dict(yaml.safe_load(block))


# --- formulas -------------------------------------------------------------------------------------


def unsafe_math(text: str) -> list[str]:
    """Paragraphs with an odd dollar sign, and inline formulas that Markdown would change."""
    unsafe = []
    for paragraph in re.split(r"\n\s*\n|\n(?=[|-])", prose(text)):
        plain = re.sub(r"`[^`]*`", "", paragraph).replace("$$", "")
        if plain.count("$") % 2:
            unsafe.append(paragraph.strip())
        unsafe += [
            m for m in re.findall(r"\$([^$]*)\$", plain) if re.search(r"\\[\\,;!{}_|]|\n", m)
        ]
    return unsafe


@every_page
def test_formulas_survive_markdown(page):
    assert unsafe_math(page.read_text()) == []


def test_unsafe_formulas_are_seen():
    text = "One $a$ and $b.\n\n$x \\, y$ and $\\alpha_i$\n\n| `$` | $c$ |"
    assert unsafe_math(text) == ["One $a$ and $b.", "x \\, y"]
