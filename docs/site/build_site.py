"""Build the site of the documentation, without a network: ``make docs``.

The pages are the Markdown files of the repository as they are. They are gathered in
``build/docs-source`` in the same tree, so that their links hold, beside the pages that are
generated (`generated_pages.py`). Which page belongs to which section, and in which order, is said
once, in ``docs/README.md``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

PAGES = ("README.md", "CHANGELOG.md", "config/README.md", "docs/**/*.md")
# What pages show or offer for download is found by their links.
_LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
SECTIONS = {
    "How to": "how-to",
    "Concepts": "concepts",
    "Results": "results",
    "Reference": "reference",
}
"""Sections of the index that become pages of their own, by the title they have there."""
GENERATED = {
    "cli-options": "every command and option",
    "python-modules": "every public name with its signature",
    "experiment-keys": "every key with type, default and what is allowed",
}
"""Pages of the section "Reference" that the code writes, with what they hold."""


# --- the index ------------------------------------------------------------------------------------


def sections(index: str) -> dict[str, str]:
    """Entries of each section of ``docs/README.md``, by the section's title."""
    parts = re.split(r"^\*\*(.+)\*\*$", index, flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def pages_of(entries: str) -> list[str]:
    """Pages that a section links to, in order, each once; paths from ``docs/``."""
    links = [link for link in _LINK.findall(entries) if link.endswith(".md")]
    return list(dict.fromkeys(links))


def _toctree(pages: Sequence[str], *options: str) -> str:
    names = [f"/{page.removesuffix('.md')}" for page in pages]
    names = [re.sub(r"^/(.+) <(.+)$", r"\1 </\2>", name) for name in names]
    head = ["```{toctree}", *(f":{option}:" for option in options), ""]
    return "\n".join([*head, *names, "```", ""])


def section_page(title: str, entries: str, more: Sequence[str] = ()) -> str:
    """Give the page of one section: its entries, and its table of contents for the sidebar."""
    pages = [_from_root(page) for page in pages_of(entries)]
    return f"# {title}\n\n{entries}\n\n" + _toctree([*pages, *more], "hidden")


def _from_root(page: str) -> str:
    return (ROOT / "docs" / page).resolve().relative_to(ROOT).as_posix()


# --- gathering ------------------------------------------------------------------------------------


def gather(source: Path) -> None:
    """Put everything that Sphinx reads into a folder.

    Parameters
    ----------
    source : Path
        Folder that is made anew.
    """
    import generated_pages as generated

    if source.exists():
        shutil.rmtree(source)
    for page in all_files():
        _copy(page, source)
    shutil.copytree(HERE / "_static", source / "_static")

    written = {
        "docs/reference/cli-options.md": generated.command_line(),
        "docs/reference/experiment-keys.md": generated.experiment_keys(),
        "docs/reference/python-modules.md": generated.python_index(),
        **{f"docs/reference/python/{n}.md": t for n, t in generated.python_modules().items()},
    }
    by_title = sections((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    for title, name in SECTIONS.items():
        entries, more = by_title[title], []
        if name == "reference":
            entries += "\n\nGenerated from the code:\n" + "".join(
                f"- [](reference/{page}.md): {what}\n" for page, what in GENERATED.items()
            )
        if name == "results":
            folder = source / "benchmarks" / "results"
            more = [page.relative_to(source).as_posix() for page in sorted(folder.glob("*.md"))]
        written[f"docs/{name}.md"] = section_page(title, entries, more)
    landing = (HERE / "index.md").read_text(encoding="utf-8")
    first = pages_of(by_title["Tutorial"])
    contents = [
        *(f"docs/{page}" for page in first),
        *(f"docs/{name}" for name in SECTIONS.values()),
        *("README at a glance <README", "All pages <docs/README"),
    ]
    written["index.md"] = f"{landing}\n{_toctree(contents, 'hidden')}"
    for name, text in written.items():
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def all_files() -> list[Path]:
    """Pages of the site, and what they link to or show: files of the repository."""
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    found = {page: None for page in pages if not page.is_relative_to(HERE)}
    unread = list(found)
    while unread:
        page = unread.pop()
        if page.suffix != ".md":
            continue
        for link in _LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if target.is_file() and target not in found:
                found[target] = None
                unread.append(target)
    return list(found)


def _copy(file: Path, source: Path) -> None:
    target = source / file.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


# --- building -------------------------------------------------------------------------------------


def build(out: Path, source: Path, *, quiet: bool = False) -> int:
    """Gather the pages and build the site.

    Returns
    -------
    int
        Exit code of Sphinx; warnings are errors.
    """
    from sphinx.cmd.build import build_main

    gather(source)
    options = ["-W", "--keep-going", "-c", str(HERE), "-d", str(source.with_name("docs-doctrees"))]
    if quiet:
        options.append("-q")
    return build_main(["-b", "html", *options, str(source), str(out)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder")
    given = parser.parse_args(arguments)
    code = build(given.out, given.out.with_name("docs-source"), quiet=True)
    if code == 0:
        print(f"built: {given.out / 'index.html'}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
