"""Experiment files and data from anybody: a bad one is one line and exit 2, and runs nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from generated import WAYS, Bad, bad, places, valid
from resnet_limits.cli import BAD_INPUT, DONE, main
from resnet_limits.config import MAX_INPUT_BYTES, Experiment, json_schema, one_line

ROOT = Path(__file__).parents[2]


def drawn(examples: int) -> Any:
    """Draw the same examples in every run, and shrink none."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


# --- what an answer must be -----------------------------------------------------------------------


def findings(code: int, output: str, errors: str, file: object, place: str = "") -> list[str]:
    """Say what is wrong with the answer to a bad file."""
    found = []
    lines = errors.splitlines()
    if code != BAD_INPUT:
        found.append(f"exit code {code}")
    if output:
        found.append("has output")
    if len(lines) != 1 or not errors.endswith("\n"):
        found.append(f"{len(lines)} lines")
    if "Traceback" in errors:
        found.append("traceback")
    start = f"error: {file}: "
    if not errors.startswith(start):
        found.append("does not name the file")
    what, separator, allowed = errors.removeprefix(start).strip().partition("; allowed: ")
    if not separator or not allowed:
        found.append("does not say what is allowed")
    # A section may be named for what is wrong with a key in it, or a key for its section.
    place, named = one_line(place), what.partition(": ")[0]
    if place and not (
        f"{place}.".startswith(f"{named}.") or re.match(rf"{re.escape(place)}[.:]", what)
    ):
        found.append(f"names {named!r}")
    return found


def test_answers_that_are_none_are_seen():
    """The negative control."""
    good = "error: a.yaml: seed: got -1; allowed: an integer >= 0\n"
    assert findings(2, "", good, "a.yaml", "seed") == []
    assert (
        findings(2, "", "error: a.yaml: sweep: no sizes; allowed: b\n", "a.yaml", "sweep.x") == []
    )
    assert findings(1, "", good, "a.yaml") == ["exit code 1"]
    assert findings(2, "a.yaml: fine", good, "a.yaml") == ["has output"]
    assert findings(2, "", f"{good}more\n", "a.yaml") == ["2 lines"]
    assert findings(2, "", good, "b.yaml")[0] == "does not name the file"
    assert findings(2, "", good, "a.yaml", "save.steps") == ["names 'seed'"]
    assert findings(2, "", good.partition(";")[0] + "\n", "a.yaml") == [
        "does not say what is allowed"
    ]
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    traceback = f"Traceback (most recent call last):\n{caught.traceback[0]}\n{caught.value!r}\n"
    assert {"traceback", "does not name the file"} <= set(findings(1, "", traceback, "a.yaml"))


@pytest.fixture
def answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[bytes], tuple[int, str, str]]:
    """Validate a file of some content with the command line."""

    def ask(content: bytes) -> tuple[int, str, str]:
        (tmp_path / "e.yaml").write_bytes(content)
        capsys.readouterr()
        code = main(["--quiet", "validate", str(tmp_path / "e.yaml")])
        return code, *capsys.readouterr()

    return ask


@pytest.fixture
def data_file(tmp_path: Path) -> str:
    """Write data that every loss takes."""
    np.savez(tmp_path / "data.npz", x=np.arange(6.0).reshape(3, 2), y=np.eye(2)[[0, 1, 0]])
    return "data.npz"


# --- generated files ------------------------------------------------------------------------------


def test_every_valid_file_is_accepted(answer, data_file):
    accepted = set()

    @drawn(80)
    @given(valid(data_file))
    def ask(values: dict[str, Any]) -> None:
        content = yaml.safe_dump(values).encode()
        code, output, errors = answer(content)
        assert (code, errors) == (DONE, ""), content.decode()
        assert f"experiment {values['experiment']}\n" in output
        accepted.add(content)

    ask()
    assert len(accepted) >= 40


def test_every_key_is_among_the_valid_files():
    """All that the schema knows is drawn: a new key too is tried without a change here."""
    known, seen = set(), set()

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            known.update(value if key == "properties" else ())
            walk(value)

    walk(json_schema())

    @drawn(600)
    @given(valid())
    def look(values: dict[str, Any]) -> None:
        seen.update(key for path in places(values) for key in path)

    look()
    assert known <= seen
    assert set(Experiment.model_fields) <= known


def test_every_bad_file_is_one_line(answer, data_file, tmp_path):
    marker = tmp_path / "executed"
    seen: set[bytes] = set()

    def ask(example: Bad) -> None:
        code, output, errors = answer(example.content)
        wrong = findings(code, output, errors, tmp_path / "e.yaml", example.place)
        assert not wrong, (wrong, errors, example)
        seen.add(example.content)

    for way in WAYS:
        several = 40 if way in WAYS[:3] else 5
        drawn(several)(given(bad(way, str(marker), data_file))(ask))()
    assert len(WAYS) >= 60
    assert len(seen) >= 300
    assert not marker.exists()


def test_a_process_of_its_own_answers_alike(data_file, tmp_path):
    """Without pytest around it, where warnings and interpreters' messages would be seen."""
    answers = []

    def run(name: str, content: bytes) -> subprocess.CompletedProcess[str]:
        (tmp_path / name).write_bytes(content)
        command = [sys.executable, "-m", "resnet_limits", "--quiet", "validate", name]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )

    def ask(example: Bad) -> None:
        done = run("bad.yaml", example.content)
        wrong = findings(done.returncode, done.stdout, done.stderr, "bad.yaml", example.place)
        assert not wrong, (wrong, done.stderr)
        answers.append(done)

    for way in ("unknown key", "value: nan", "text: python call"):
        drawn(1)(given(bad(way, str(tmp_path / "executed"), data_file))(ask))()

    @drawn(2)
    @given(valid(data_file))
    def accept(values: dict[str, Any]) -> None:
        done = run("good.yaml", yaml.safe_dump(values).encode())
        assert (done.returncode, done.stderr) == (DONE, "")
        answers.append(done)

    accept()
    assert len(answers) == 5
    assert not (tmp_path / "executed").exists()


# --- sizes ----------------------------------------------------------------------------------------


def minimal(**sections: Any) -> dict[str, Any]:
    return {
        "experiment": "e",
        "problem": {"data": {"kind": "gaussian", "samples": 2, "inputs": 2, "targets": 2}},
        "sweep": {"shapes": [[1, 1, 1]]},
        **sections,
    }


def gaussian(**sizes: int) -> dict[str, Any]:
    return {"data": {"kind": "gaussian", "samples": 2, "inputs": 2, "targets": 2, **sizes}}


@pytest.mark.parametrize(
    ("sections", "bound"),
    [
        ({"sweep": {"grid": dict.fromkeys(("depth", "width", "embed_dim"), range(1, 1001))}},
         "1000000000 shapes with 4 seeds are 4000000000 cells; allowed: at most 1000000"),
        ({"sweep": {"shapes": [[10**9 + 1, 1, 1]]}}, "1 to 1000000000"),
        ({"sweep": {"shapes": [[1, 1, 1]], "seeds": 10**12}}, "1 to 10000"),
        ({"sweep": {"depth": range(1, 10_002), "width": [1], "embed_dim": [1]}}, "1 to 10000 val"),
        ({"training": {"steps": 10**9}}, "1 to 10000"),
        ({"training": {"learning_rate": 1e31}}, "from 0 to 1e+30"),
        ({"model": {"residual_scale": 1e31}}, "<= 1e+30"),
        ({"seed": 2**63}, "0 to 9223372036854775807"),
        ({"problem": gaussian(samples=10**9)}, "1 to 1000000"),
        ({"problem": gaussian(inputs=10**9)}, "1 to 100000"),
        ({"problem": gaussian(samples=10**6, targets=100)}, "at most 10000000"),
        ({"save": {"depth_points": 10**9}}, "2 to 10000 or all"),
        ({"save": {"steps": [10**9]}}, "0 to 9999"),
        ({"numerics": {"limit_tolerance": 1e-30}}, "1e-12 to 1000"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_absurd_sizes_are_refused_with_their_bound(answer, tmp_path, sections, bound):
    values = yaml.safe_dump(_lists(minimal(**sections)))
    code, output, errors = answer(values.encode())
    assert findings(code, output, errors, tmp_path / "e.yaml") == []
    assert bound in errors.partition(": ")[2]


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(part) for key, part in value.items()}
    return list(value) if isinstance(value, range) else value


@pytest.mark.parametrize(
    "sweep",
    [
        {"shapes": [[50, 1414300, 1414300]], "seeds": 2},
        {"shapes": [[10**6, 10**6, 10**6], [10**9, 10**9, 1], [1, 10**9, 10**9]]},
        {"grid": dict.fromkeys(("depth", "width", "embed_dim"), range(1, 19)), "seeds": 100},
    ],
    ids=["a hundred million million parameters", "10^18", "5832 shapes"],
)
def test_large_experiments_are_accepted(answer, sweep):
    code, _, errors = answer(yaml.safe_dump(_lists(minimal(sweep=sweep))).encode())
    assert (code, errors) == (DONE, "")


@pytest.mark.parametrize("file", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda f: f.stem)
def test_files_of_the_project_are_accepted(file, capsys):
    assert main(["--quiet", "validate", str(file)]) == DONE


# --- files that are no files ----------------------------------------------------------------------


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _hole(path: Path) -> Path:
    with path.open("wb") as stream:
        stream.truncate(2**40)
    return path


_NO_FILES = {
    "pipe": (_fifo, "is not a regular file"),
    "device": (_device, "is not a regular file"),
    "folder": (_folder, "is a folder"),
    "a terabyte": (_hole, "too large"),
    "nothing": (lambda path: path, "no such file"),
    "circle of links": (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", _NO_FILES)
@pytest.mark.parametrize("command", ["validate {}", "shape --budget 1e6 {}"])
def test_an_experiment_that_is_no_file_is_refused_at_once(tmp_path, capsys, kind, command):
    make, reason = _NO_FILES[kind]
    make(tmp_path / "e.yaml")
    code = main(command.format(tmp_path / "e.yaml").split())
    output, errors = capsys.readouterr()
    name = tmp_path / "e.yaml"
    assert findings(code, output, errors.replace("RATES: ", ""), name) == []
    assert reason in errors


@pytest.mark.parametrize("ending", ["npz", "nc", "zarr", "zarr.zip"])
@pytest.mark.parametrize("kind", _NO_FILES)
def test_data_that_are_no_file_are_refused_at_once(answer, tmp_path, kind, ending):
    make, reason = _NO_FILES[kind]
    make(tmp_path / f"d.{ending}")
    values = minimal(problem={"data": {"kind": "file", "path": f"d.{ending}"}})
    code, output, errors = answer(yaml.safe_dump(values).encode())
    assert findings(code, output, errors, tmp_path / "e.yaml", "problem.data.path") == []
    assert (reason if (kind, ending) != ("folder", "zarr") else "cannot be read") in errors


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b" " * (MAX_INPUT_BYTES + 1), f"at most {MAX_INPUT_BYTES} bytes"),
        (b"\xff\xfe" + "seed: 1".encode("utf-16-le"), "not UTF-8 text"),
        (b"\x00" * 100, "unacceptable character"),
        (b"a: &a [1, 2]\nb: &b [*a, *a]\n" * 3, "second occurrence"),
        (b"a: &a {k: 1}\n" + b"".join(
            b"b%d: &a {<<: [%b]}\n" % (i, b", ".join([b"*a"] * 99)) for i in range(9)
        ), ""),
    ],
    ids=["empty", "mark", "large", "UTF-16", "zeros", "aliases", "merges"],
)  # fmt: skip
def test_unusual_files(answer, tmp_path, content, what):
    code, output, errors = answer(content)
    assert findings(code, output, errors, tmp_path / "e.yaml") == []
    assert what in errors


def test_names_of_files_may_be_anything_and_answers_still_one_line(tmp_path, capsys):
    folder = tmp_path / "mes données\nünï {depth} 100 %"
    folder.mkdir()
    np.savez(folder / "mes données.npz", x=np.ones((3, 2)), y=np.ones((3, 1)))
    values = minimal(problem={"data": {"kind": "file", "path": "mes données.npz"}})
    good, wrong = folder / "expérience.yaml", folder / os.fsdecode(b"\xff.yaml")
    good.write_text(yaml.safe_dump(values), encoding="utf-8")
    wrong.write_text("seed: -1")
    assert main(["--quiet", "validate", str(good)]) == DONE
    assert capsys.readouterr().out.count("\n") == 8
    code = main(["validate", str(wrong)])
    output, errors = capsys.readouterr()
    name = str(wrong).replace("\n", "\\n").replace("\udcff", "\\udcff")
    assert findings(code, output, errors, name) == []
