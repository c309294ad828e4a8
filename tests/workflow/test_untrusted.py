"""Experiment files from anybody, as Snakemake meets them; and folders of any name."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from test_common import load_common
from trees import Tree, planned

from generated import valid
from resnet_limits import store
from resnet_limits.config import load_experiment
from resnet_limits.stages.paths import Paths, cells

Values = Callable[..., dict[str, Any]]


def examples(count: int, data_file: Path) -> list[dict[str, Any]]:
    """Draw the same valid files in every run."""
    np.savez(data_file, x=np.arange(6.0).reshape(3, 2), y=np.eye(2)[[0, 1, 0]])
    found: dict[str, dict[str, Any]] = {}

    @settings(
        max_examples=2 * count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(valid(str(data_file)))
    def draw(values: dict[str, Any]) -> None:
        found.setdefault(yaml.safe_dump(values), values)

    draw()
    assert len(found) >= count
    return list(found.values())[-count:]


def test_every_valid_file_can_be_planned(tmp_path: Path) -> None:
    """All that the rules ask for, and every number whole and finite."""
    file = tmp_path / "e.yaml"
    for values in examples(60, tmp_path / "data.npz"):
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        names = load_common(file, results=str(tmp_path / "results"))
        for kind in names["KINDS"]:
            assert names["stage_key"](kind)
        for kind in names["COMPUTED"]:
            for bundle in names["bundles"](kind):
                assert bundle.said() or not bundle.cells[0]
                asked = names["resources_of"](kind, bundle.cells)
                numbers = [asked[name](None, attempt=1) for name in ("mem_mb", "runtime")]
                numbers.append(names["cores"](kind, bundle.cells))
                assert all(type(number) is int and number > 0 for number in numbers)


def test_every_valid_file_has_a_dry_run(source_tree: Tree, tmp_path: Path) -> None:
    tree = source_tree.copy(tmp_path / "tree")
    files = []
    for number, values in enumerate(examples(6, tmp_path / "data.npz")):
        files.append(tree.path / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump({**values, "experiment": f"e{number}"}))

    def plan(file: Path) -> str:
        done = tree.run("--dry-run", "--config", f"experiment_file={file.name}")
        assert done.returncode == 0, done.stdout
        return done.stdout

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        plans = [planned(output) for output in pool.map(plan, files)]
    assert all({"problem", "measure_errors", "write_report", "all"} <= set(plan) for plan in plans)


BAD = {
    "evil tag": (b"x: !!python/object/apply:os.mkdir [executed]\n", "line 1, column 4"),
    # What Snakemake itself would evaluate in a file that is given as --configfile.
    "evil template": (
        b"__use_yte__: true\n__definitions__:\n- import os\n- os.mkdir('executed')\n",
        "__use_yte__: unknown key",
    ),
    "escape": (b"experiment: ../x\nproblem: {}\nsweep: {}\n", "experiment: got '../x'"),
    "no text": (b"\xff\xfe\x00", "not UTF-8 text"),
    "name too long": (
        b"experiment: e\nproblem: {data: {kind: file, path: %b.npz}}\nsweep: {shapes: [[1, 1, 1]]}"
        % (b"x" * 300),
        "file name too long",
    ),
    "device": (
        b"experiment: e\nproblem: {data: {kind: file, path: z.npz}}\nsweep: {shapes: [[1, 1, 1]]}",
        "z.npz: is not a regular file",
    ),
    "pipe": (None, "is not a regular file"),
}


def test_a_bad_file_is_one_line_of_snakemake_too(source_tree: Tree, tmp_path: Path) -> None:
    tree = source_tree.copy(tmp_path / "tree")
    (tree.path / "z.npz").symlink_to("/dev/zero")

    def run(name: str) -> tuple[str, Any]:
        file = tree.path / f"{name}.yaml"
        content = BAD[name][0]
        if content is None:
            os.mkfifo(file)
        else:
            file.write_bytes(content)
        return name, tree.run("--dry-run", "--config", f"experiment_file={file.name}")

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for name, done in pool.map(run, BAD):
            lines = [line for line in done.stdout.splitlines() if not line.startswith("Using")]
            assert (done.returncode, len(lines)) == (2, 1), done.stdout
            assert lines[0].startswith(f"error: {name}.yaml: ")
            assert BAD[name][1] in lines[0]
            assert "; allowed: " in lines[0]
    assert not (tree.path / "executed").exists()


@pytest.mark.parametrize("folder", ["a{width}", "a\nb", "a\x07"])
def test_results_that_snakemake_would_take_for_a_pattern_are_refused(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_common(results=folder)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --config: results: a")
    assert error.count("\n") == 1


def test_spaces_and_other_letters_in_every_name(
    source_tree: Tree, tiny_values: Values, tmp_path: Path
) -> None:
    """The checkout, the experiment file, the data and the results, all the way to the report."""
    tree = source_tree.copy(tmp_path / "mes données ünï" / "le dépôt")
    folder = tmp_path / "mes données ünï" / "expérience n° 1"
    folder.mkdir()
    np.savez(folder / "données à nous.npz", x=np.eye(2), y=np.eye(2)[::-1])
    values = tiny_values(
        problem={"data": {"kind": "file", "path": "données à nous.npz"}},
        sweep={"grid": {"depth": [2], "width": [8], "embed_dim": [4]}},
    )
    file = folder / "réseaux, petits.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    results = folder / "résultats 100 %"
    done = tree.run("--config", f"experiment_file={file}", f"results={results}")
    assert done.returncode == 0, done.stdout
    experiment = load_experiment(file)
    paths = Paths(results, "tiny")
    for kind in ("problem", "dmft", "mean_ode", "wide", "finite", "errors"):
        for cell in cells(kind, experiment):
            manifest = paths.manifest(kind, **cell)
            assert store.check(paths.store(kind, **cell), manifest=manifest) == []
    assert "données à nous.npz" in paths.report.read_text(encoding="utf-8")
    assert paths.workflow_page.read_text(encoding="utf-8").count('"runtime": ') >= 8
    again = tree.run("--dry-run", "--config", f"experiment_file={file}", f"results={results}")
    assert planned(again.stdout) == {}
