"""Whether a folder of results is sound: what is found in it, and what is said of it."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from resnet_limits import integrity, store
from resnet_limits.cli import BAD_INPUT, DONE, FAILED, main
from resnet_limits.stages import checking
from resnet_limits.stages.paths import Paths

KEY = "k" * 32
ATTRS = {**dict.fromkeys(store.PROVENANCE, "x"), "stage_key": KEY}
CELL = {"depth": 2, "width": 8, "embed_dim": 5}


@pytest.fixture
def paths(tmp_path, monkeypatch, content):
    """Results of one experiment as the pipeline leaves them: one of each kind, and pages."""
    monkeypatch.chdir(tmp_path)
    paths = Paths("results", "tiny")
    cells = {"problem": {}, "dmft": {}, "finite": CELL, "errors": {}}
    for kind, cell in cells.items():
        store.write(content(kind), paths.store(kind, **cell), kind, attrs=ATTRS)
    rates = {"pairs": {}, "provenance": {"stage_key": KEY}}
    integrity.write_json(rates, paths.store("rates"))
    for kind, cell in {**cells, "rates": {}}.items():
        integrity.write_manifest(
            paths.manifest(kind, **cell), paths.store(kind, **cell), kind=kind, stage_key=KEY
        )
    for page in (paths.figures / "frontier.png", paths.report):
        page.parent.mkdir(exist_ok=True)
        page.write_text("page")
        integrity.write_manifest(paths.page_manifest(page), page, kind="figures", stage_key=KEY)
    (paths.folder / "logs").mkdir()
    (paths.folder / "logs" / "rates.log").write_text("log")
    paths.running.mkdir()
    (paths.running / "wide.json").write_text("{}")
    (paths.folder / ".lock").touch()
    return paths


def run(capsys, *words):
    capsys.readouterr()
    code = main(["check", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


RESULTS = [
    "dmft.zarr",
    "errors.zarr",
    "finite/L2_M8_D5.zarr",
    "figures/frontier.png",
    "report.html",
    "problem.zarr",
    "rates.json",
]


@pytest.mark.parametrize("top", ["results", "results/tiny", "results/tiny/../tiny"])
def test_every_result_is_found_once(paths, top):
    found = [str(path) for path in checking.find(Path(top))]
    assert len(found) == len(set(found))
    places = [Path(path).resolve().relative_to(paths.folder.resolve()) for path in found]
    assert sorted(map(str, places)) == sorted(RESULTS)


def test_a_sound_folder_is_a_line_and_exit_0(paths, capsys):
    for top in ("results", "results/tiny", Path("results").resolve()):
        expected = (DONE, [f"{top}: 7 sound, 0 unfinished, 0 unsound"], [])
        assert run(capsys, top) == expected
    Path("link").symlink_to("results")
    assert run(capsys, "link")[0] == DONE


@pytest.mark.parametrize("top", ["results/tiny/manifests", "results/tiny/manifests/finite"])
def test_manifests_lead_to_their_results(paths, capsys, top):
    assert run(capsys, top)[0] == DONE
    shutil.rmtree(paths.store("finite", **CELL))
    code, lines, _ = run(capsys, top)
    assert code == FAILED
    assert (
        lines[0]
        == "results/tiny/finite/L2_M8_D5.zarr: unsound: missing, although its manifest is there"
    )


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)


def gone(path: Path) -> None:
    integrity.remove(path)


def other_key(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace(KEY, "o" * 32))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def misdirect(manifest: Path) -> None:
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"store": "../problem.zarr"}))


DAMAGE = {
    "a chunk": ("dmft.zarr/loss/c.0", flip, "dmft.zarr: unsound: loss/c.0: "),
    "a chunk in a group": (
        "errors.zarr/finite-wide/hidden_rms/c.0.0",
        flip,
        "errors.zarr: unsound: finite-wide/hidden_rms/c.0.0: ",
    ),
    "a lost chunk": (
        "finite/L2_M8_D5.zarr/status/c.0",
        gone,
        "finite/L2_M8_D5.zarr: unsound: status/c.0: missing",
    ),
    "no metadata": ("problem.zarr/zarr.json", gone, "problem.zarr: unsound: "),
    "a lost store": (
        "dmft.zarr",
        gone,
        "dmft.zarr: unsound: missing, although its manifest is there",
    ),
    "lost rates": (
        "rates.json",
        gone,
        "rates.json: unsound: missing, although its manifest is there",
    ),
    "a lost page": (
        "report.html",
        gone,
        "report.html: unsound: missing, although its manifest is there",
    ),
    "rates": ("rates.json", flip, "rates.json: unsound: digest: not the one in rates.json"),
    "a figure": (
        "figures/frontier.png",
        flip,
        "figures/frontier.png: unsound: digest: not the one in frontier.png.json",
    ),
    "the report": ("report.html", cut, "report.html: unsound: digest: not the one in report"),
    "a manifest's key": (
        "manifests/dmft.json",
        other_key,
        "dmft.zarr: unsound: stage_key: not the one in dmft.json",
    ),
    "the key of rates": (
        "manifests/rates.json",
        other_key,
        "rates.json: unsound: stage_key: not the one in rates.json",
    ),
    "half a manifest": (
        "manifests/report.html.json",
        cut,
        "manifests/report.html.json: unsound: not a manifest: ",
    ),
    "a manifest of another": (
        "manifests/report.html.json",
        misdirect,
        "manifests/report.html.json: unsound: vouches for ../problem.zarr, whose manifest is not",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage_is_one_line_and_exit_1(paths, capsys, name):
    place, break_it, line = DAMAGE[name]
    break_it(paths.folder / place)
    code, lines, complaint = run(capsys, "results")
    assert code == FAILED
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"results/tiny/{line}")
    assert lines[1].endswith("0 unfinished, 1 unsound")
    assert len(complaint) == 1
    assert complaint[0].startswith("error: results: unsound, 1 of ")


@pytest.mark.parametrize(
    ("kind", "cell"), [("dmft", {}), ("finite", CELL), ("errors", {}), ("rates", {})]
)
def test_what_has_no_manifest_is_named_as_unfinished(paths, capsys, kind, cell):
    paths.manifest(kind, **cell).unlink()
    code, lines, complaint = run(capsys, "results")
    assert (code, complaint) == (DONE, [])
    assert lines == [
        f"{paths.store(kind, **cell)}: unfinished: sound, but no manifest vouches for it",
        "results: 6 sound, 1 unfinished, 0 unsound",
    ]


def test_an_unfinished_store_can_be_unsound(paths, capsys):
    paths.manifest("dmft").unlink()
    flip(paths.store("dmft") / "loss/c.0")
    code, lines, _ = run(capsys, "results")
    assert code == FAILED
    assert "dmft.zarr: unsound: loss/c.0" in lines[0]


def test_a_broken_manifest_of_a_store_makes_it_unsound(paths, capsys):
    cut(paths.manifest("dmft"))
    _, lines, _ = run(capsys, "results")
    assert len(lines) == 3
    assert all("not a manifest" in line for line in lines[:2])


def test_what_is_being_written_is_passed_over(paths, capsys):
    unfinished = paths.folder / ".dmft.zarr.host-1-abc.tmp"
    shutil.copytree(paths.store("dmft"), unfinished)
    (unfinished / "loss" / "c.0").unlink()
    assert run(capsys, "results")[:2] == (DONE, ["results: 7 sound, 0 unfinished, 0 unsound"])


def test_a_result_that_is_taken_back_while_it_is_read_is_no_damage(paths, capsys, monkeypatch):
    look = store.check

    def check(path, manifest=None):
        if path.name == "dmft.zarr":
            paths.manifest("dmft").unlink()
            shutil.rmtree(path)
        return look(path, manifest)

    monkeypatch.setattr(store, "check", check)
    assert run(capsys, "results")[:2] == (DONE, ["results: 6 sound, 0 unfinished, 0 unsound"])


def test_a_result_that_is_replaced_while_it_is_read_is_looked_at_again(
    paths, capsys, monkeypatch, content
):
    look = store.check
    before = []

    def check(path, manifest=None):
        if path.name == "dmft.zarr" and not before:
            before.append(path)
            store.write(content("dmft", seed=7), path, "dmft", attrs=ATTRS)
            integrity.write_manifest(paths.manifest("dmft"), path, kind="dmft", stage_key=KEY)
            return ["loss/c.0: read while it was replaced"]
        return look(path, manifest)

    monkeypatch.setattr(store, "check", check)
    assert run(capsys, "results")[:2] == (DONE, ["results: 7 sound, 0 unfinished, 0 unsound"])


def test_stores_of_a_plain_folder_need_no_manifest(paths, capsys, content):
    for name in ("a.zarr", "b.zarr.zip", "deep/er/c.zarr"):
        store.write(content("dmft"), Path("mine") / name, "dmft", attrs=ATTRS)
    Path("mine/notes.json").write_text("no manifest")
    Path("mine/rates.json").write_text("no result")
    assert run(capsys, "mine") == (DONE, ["mine: 3 sound, 0 unfinished, 0 unsound"], [])
    with zipfile.ZipFile("mine/b.zarr.zip") as archive:
        archive.extractall("mine/unpacked")
    cut(Path("mine/b.zarr.zip"))
    Path("mine/d.zarr").write_text("a file")
    Path("mine/e.zarr").symlink_to("nowhere")
    code, lines, _ = run(capsys, "mine")
    assert code == FAILED
    assert [line.partition(": ")[0] for line in lines] == [
        "mine/b.zarr.zip",
        "mine/d.zarr",
        "mine/e.zarr",
        "mine",
    ]
    assert lines[-1] == "mine: 3 sound, 0 unfinished, 3 unsound"


def test_an_experiment_may_be_called_manifests(paths, capsys):
    paths.folder.rename(paths.root / "manifests")
    code, lines, _ = run(capsys, "results")
    assert (code, lines) == (DONE, ["results: 7 sound, 0 unfinished, 0 unsound"])


@pytest.mark.parametrize(
    "name", ["report.html", "figures/frontier.png", "rates.json", "manifests/dmft.json"]
)
def test_a_file_is_checked_by_its_manifest(paths, capsys, name):
    file = paths.folder / name
    assert run(capsys, file) == (DONE, [f"{file}: 1 sound, 0 unfinished, 0 unsound"], [])
    flip(paths.store("dmft") / "loss/c.0" if "manifests" in name else file)
    assert run(capsys, file)[0] == FAILED


@pytest.mark.parametrize("name", ["empty", "logs", "note.txt", "results/tiny/running"])
def test_what_holds_no_results_is_bad_input(paths, capsys, name):
    Path("empty").mkdir()
    Path("logs").mkdir()
    Path("logs/a.log").touch()
    Path("note.txt").touch()
    code, lines, complaint = run(capsys, name)
    assert (code, lines) == (BAD_INPUT, [])
    assert complaint == [
        f"error: STORE: {name}: holds no results; allowed: a store, .zarr or .zarr.zip, or a "
        "folder of them"
    ]


def test_loops_of_links_end(paths, capsys):
    (paths.folder / "finite" / "up").symlink_to(Path("results").resolve())
    assert run(capsys, "results")[1] == ["results: 7 sound, 0 unfinished, 0 unsound"]


@pytest.mark.parametrize(
    ("name", "such"),
    [("results", ", such as results/tiny/dmft.zarr"), ("results/tiny/report.html", "")],
)
def test_inspecting_what_is_no_store_is_one_line(paths, capsys, name, such):
    capsys.readouterr()
    assert main(["inspect", name]) == BAD_INPUT
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (
        "",
        f"error: STORE: {name}: not a store; allowed: a store, .zarr or .zarr.zip{such}\n",
    )
