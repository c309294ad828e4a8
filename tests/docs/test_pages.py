"""Every block of code in the documentation runs, and prints what is shown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from pages import RUN, Runner, blocks, differences, is_shown
from trees import IGNORED, made_once

from resnet_limits.config import InputError, experiment_from_dict

ROOT = Path(__file__).parents[2]
PARTS = (
    *("Snakefile", "Makefile", "pyproject.toml", "README.md"),
    *("rules", "workflow", "profiles", "src", "config", "benchmarks"),
)
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "tutorial.md",
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *sorted((ROOT / "docs" / "concepts").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
    ROOT / "config" / "README.md",
]
LANGUAGES = {*RUN, "", "yaml", "json", "math"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def environment(folder: Path) -> dict[str, str]:
    """Commands of the tree's environment, and the package from its sources."""
    return {
        **os.environ,
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the quickstart has been run as README says. Not to be edited."""
    return made_once(tmp_path_factory, "docs", run_quickstart)


def run_quickstart(folder: Path) -> None:
    folder.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=IGNORED)
        else:
            shutil.copy(source, folder / name)
    # What "make" would install is there already.
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.prefix, "bin"))
    for stamp in ("installed", "installed-dev"):
        (folder / ".venv" / stamp).touch()
    # Where the quickstart has been run, its records say what of it is of today's code.
    for made in ("results/quickstart", ".snakemake/metadata"):
        if (ROOT / made).is_dir():
            shutil.copytree(ROOT / made, folder / made)
    subprocess.run(["make", "run"], cwd=folder, env=environment(folder), check=True)


@pytest.mark.slow
@every_page
def test_blocks_print_what_is_shown(page, clone, tmp_path):
    text = page.read_text(encoding="utf-8")
    if not any(block.is_run for block in blocks(text)):
        pytest.skip("nothing to run")
    folder = tmp_path / "resnet-limits"
    shutil.copytree(clone, folder, symlinks=True)
    if found := differences(text, Runner(folder, environment(folder))):
        pytest.fail("\n".join(found), pytrace=False)


NOTEBOOKS = sorted((ROOT / "workflow" / "notebooks").glob("*.ipynb"))


def run_notebook(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Run all cells of a notebook in a folder; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    return client.execute()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, clone):
    done = run_notebook(path, clone / path.parent.relative_to(ROOT))
    shown = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.slow
def test_an_error_in_a_notebook_is_seen(tmp_path):
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wrong.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_notebook(tmp_path / "wrong.ipynb", tmp_path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [c for c in cells if c.outputs or c.execution_count is not None] == []


@every_page
def test_blocks_have_a_language_that_is_known(page):
    assert {block.language for block in blocks(page.read_text(encoding="utf-8"))} <= LANGUAGES


# Sections that are shown whole; so are those with a kind of their own, or another form of a layer.
_WHOLE = ("grid", "sweep")


def merged(values: dict, changes: dict) -> dict:
    result = dict(values)
    for key, change in changes.items():
        both = isinstance(result.get(key), dict) and isinstance(change, dict)
        replaces = both and (not change.keys().isdisjoint(("kind", "layer")) or key in _WHOLE)
        result[key] = merged(result[key], change) if both and not replaces else change
    return result


@every_page
def test_parts_of_experiment_files_are_valid(page, tmp_path):
    """What is shown in YAML is an experiment file, or a part of one that fits the quickstart."""
    quickstart = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language != "yaml" or block.role:
            continue
        shown = yaml.safe_load(block.text)
        if "experiment" in shown:
            continue
        if set(shown) == {"sweep"}:
            shown["sweep"] = {**quickstart["sweep"], **shown["sweep"]}
            if "families" in shown["sweep"]:
                shown["sweep"].pop("grid")
        try:
            experiment_from_dict(merged(quickstart, shown), where=f"line {block.line}")
        except InputError as error:
            pytest.fail(str(error))


def test_ten_questions_take_ten_lines_each():
    text = (ROOT / "docs" / "how-to" / "ten-questions.md").read_text(encoding="utf-8")
    questions = text.split("\n## ")[1:]
    programs = [[b for b in blocks(part) if b.language == "python"] for part in questions]
    assert len(questions) == 10
    for question, (program, *more) in zip(questions, programs, strict=True):
        assert more == []
        assert program.is_run, question
        assert len(program.text.splitlines()) <= 10, question


# --- the test itself ------------------------------------------------------------------------------

PAGE = """
<!-- file: numbers.py -->
```python
x = 3.14159
```

```sh
echo "made of 3 parts, 0.1234 each"
```

```
made of 3 parts, 0.123 each
```

```python
from numbers import Number
print("first")
for k in range(5):
    print(k, 1 / (k + 1))
```

```
0 1.00
1 0.50
...
```

<!-- not run: takes an hour -->
```sh
sleep 3600
```
"""


def wrong(page: str, folder: Path) -> list[str]:
    return differences(page, Runner(folder, dict(os.environ)))


def test_a_page_that_is_right(tmp_path):
    assert wrong(PAGE, tmp_path) == []
    assert (tmp_path / "numbers.py").read_text() == "x = 3.14159\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.123 each", "0.127 each"),
        ("made of 3 parts, 0.1234", "made of 4 parts, 0.1234"),
        ("made of 3 parts, 0.123 ", "made from 3 parts, 0.123 "),
        ("1 0.50", "1 0.52"),
        ("1 0.50\n...", "2 0.33\n1 0.50"),
        ("print(k,", "print(k, missing,"),
        ("echo", "echoes"),
        ("<!-- not run: takes an hour -->\n```sh\nsleep 3600", "```sh\nfalse"),
    ],
)
def test_a_page_that_is_wrong(tmp_path, old, new):
    assert PAGE.count(old) == 1
    assert len(wrong(PAGE.replace(old, new), tmp_path)) == 1


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("[0.712 0.35  0.29 ]", "[0.7121 0.3504 0.2899]", True),
        ("[0.712 0.35  0.29 ]", "[0.7121 0.3504 0.3199]", False),
        ("7.5e-04", "7.6e-04", True),
        ("7.5e-04", "7.5e-05", False),
        ("4096 8", "4096 9", False),
        ("sizes ...", "sizes 1, 2 and 3", True),
        ("-0.10", "0.10", False),
        ("L4_M48_D16", "L4_M49_D16", False),
    ],
)
def test_numbers_are_compared_to_the_digits_shown(shown, printed, same):
    assert is_shown(shown, printed) is same
