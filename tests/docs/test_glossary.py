"""One word for one thing: words that the glossary has retired are nowhere in what users read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_site import generated

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"
PAGES = [
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page != GLOSSARY),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "config/README.md")),
]


def retired(text: str) -> list[str]:
    """Words in the left column of the glossary's last table."""
    table = text.partition("## Words that are not used")[2]
    cells = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)[2:]
    return [word.strip() for cell in cells for word in cell.split(",")]


WORDS = retired(GLOSSARY.read_text(encoding="utf-8"))


def used(text: str) -> list[str]:
    """Retired words in a text; names of code, in backquotes, are none."""
    plain = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    plain = " ".join(re.sub(r"^\s*#+ ?", "", plain, flags=re.MULTILINE).split())
    return [word for word in WORDS if re.search(rf"\b{re.escape(word)}s?\b", plain, re.IGNORECASE)]


def messages(source: str) -> Iterator[str]:
    """Texts in a source that users may see: first lines of docstrings, and strings with a space."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def test_the_glossary_names_words():
    assert {"in quadrature", "neuron", "time step"} <= set(WORDS)
    assert not {"", "not", "---"} & set(WORDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_keep_to_the_glossary(page):
    assert used(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "pattern", ["config/**/*.yaml", "rules/*.smk", "workflow/profiles/**/*.yaml"]
)
def test_comments_and_messages_of_the_workflow_keep_to_it(pattern):
    files = sorted(ROOT.glob(pattern))
    assert files
    assert {f.name: w for f in files if (w := used(f.read_text(encoding="utf-8")))} == {}


def test_help_keeps_to_it():
    assert used(generated.command_line()) == []
    assert used(generated.experiment_keys()) == []


def test_messages_keep_to_it():
    found = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        words = [w for text in messages(file.read_text(encoding="utf-8")) for w in used(text)]
        if words:
            found[str(file.relative_to(ROOT))] = words
    assert found == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The terms add in quadrature.", ["in quadrature"]),
        ("The terms add in\nQuadrature.", ["in quadrature"]),
        ("Neurons of a layer", ["neuron"]),
        ("the function `in quadrature` and the quadrature of a limit", []),
    ],
)
def test_retired_words_are_seen(text, found):
    assert used(text) == found


def test_retired_words_in_messages_are_seen():
    source = (
        'def f(x):\n    """Add in quadrature."""\n    raise ValueError(f"{x} neurons are few")\n'
    )
    assert [w for text in messages(source) for w in used(text)] == ["in quadrature", "neuron"]
