"""One function for each kind of fault: break it, see what is said, run again, compare.

Each takes a tree that it may spoil, and fails if anything is lost.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from trees import Tree, planned

import faults
from resnet_limits import integrity

LOG = logging.getLogger(__name__)
DAY = 86_400
TINY = ("--configfile", "experiment.yaml")
# A job that compiles its kernels takes up to 1.2 GiB of addresses, its threads' heaps as much as
# 0.3 GiB more; a network of LARGE x LARGE needs 2 GiB beside that.
MOST_MEMORY = 1_750_000_000
LARGE = 4500
SMALL = ((8, 8), (8, LARGE), (LARGE, 8))


def killed(
    tree: Tree,
    folder: Path,
    wanted: Mapping[str, str],
    kills: Iterable[tuple[str | None, float]],
    *arguments: str,
) -> list[set[str]]:
    """Kill runs one after the other, each in a stage and so many seconds into it; then run once.

    Returns
    -------
    list of set of str
        The stages that each kill hit; kills that came after the end are left out.
    """
    hit = []
    before: dict[str, int] = {}
    for stage, delay in kills:
        busy = faults.killed_run(tree, folder, stage, delay, *arguments)
        if busy is None:
            break
        hit.append(busy)
        LOG.info("killed while at work: %s", ", ".join(sorted(busy)) or "none")
        # Nothing that has a final name is partial, at any time.
        now = faults.modified(folder)
        new = [name for name in now if now[name] != before.get(name)]
        assert faults.unsound(folder, vouched=False, names=new) == []
        before = now
    finished(tree, folder, wanted, *arguments)
    return hit


def finished(tree: Tree, folder: Path, wanted: Mapping[str, str], *arguments: str) -> str:
    """Run to the end, to the wanted results; a further run does nothing."""
    done = tree.run(*arguments)
    assert done.returncode == 0, done.stdout
    faults.assert_whole(folder, wanted)
    assert planned(tree.run(*arguments).stdout) == {}
    return done.stdout


def full_disk(
    tree: Tree, folder: Path, wanted: Mapping[str, str], size: str, more: str, *arguments: str
) -> None:
    """Too small a disk for the results, which grows after the run has failed."""
    with faults.small_disk(folder.parent, size):
        failed = tree.run(*arguments)
        assert failed.returncode == 1, failed.stdout
        named = [line for line in failed.stdout.splitlines() if "No space left on device" in line]
        assert named, failed.stdout
        assert "Traceback" not in failed.stdout, failed.stdout
        assert faults.unsound(folder, vouched=False) == []
        faults.mount("-o", f"remount,size={more}", folder.parent)
        finished(tree, folder, wanted, *arguments)


def read_only(tree: Tree, folder: Path, *arguments: str) -> None:
    """Finished results on a mount that cannot be written: planning works, running says why not."""
    with faults.read_only(folder.parent):
        refused = tree.run(*arguments)
        assert refused.returncode == 2
        (line,) = faults.lines(refused.stdout)
        assert "cannot be written (Read-only file system); allowed:" in line
        plan = tree.run("--dry-run", *arguments)
        assert plan.returncode == 0
        assert planned(plan.stdout) == {}


def flipped_bits_are_noticed(folder: Path, rng: random.Random) -> dict[str, int]:
    """Flip a bit in a file of each class in every store; it is restored afterwards.

    Returns
    -------
    dict of str to int
        The number of bits flipped, by the class of the file.
    """
    count = {}
    for name, path in faults.stores(folder).items():
        paper = faults.manifest(folder, name)
        vouched = {paper: (path, integrity.read_manifest(paper))}
        for kind, files in faults.files_of(path).items():
            file = rng.choice(files)
            before = file.read_bytes()
            faults.flip(file, rng)
            try:
                assert faults.store.check(path, manifest=paper) != [], file
                assert list(integrity.damage(vouched)), file
                # Some of the metadata no reader looks at.
                assert kind != "chunk" or faults.is_refused(lambda p=path: faults.read_all(p)), file
            finally:
                file.write_bytes(before)
            count[kind] = count.get(kind, 0) + 1
        assert list(integrity.damage(vouched)) == []
    return count


def damaged(
    tree: Tree,
    folder: Path,
    wanted: Mapping[str, str],
    harm: Mapping[str, str],
    rng: random.Random,
    *arguments: str,
) -> None:
    """Harm some stores and pages; the next run names them, and computes them and no others.

    Parameters
    ----------
    harm : mapping of str to str
        Name of a store or page to "chunk", "zarr.json" or "page" (a bit flipped in such a file),
        "truncated", "removed" (a file of it), "gone" (all of it), "empty manifest" or "garbage".
    """
    before = faults.modified(folder)
    for name, how in harm.items():
        path, paper = folder / name, faults.manifest(folder, name)
        if how in ("chunk", "zarr.json"):
            faults.flip(rng.choice(faults.files_of(path)[how]), rng)
        elif how == "page":
            faults.flip(path, rng)
        elif how == "truncated":
            faults.truncate(rng.choice(faults.files_of(path)["chunk"]), rng)
        elif how == "removed":
            rng.choice(faults.files_of(path)["chunk"]).unlink()
        elif how == "gone":
            shutil.rmtree(path)
        else:
            paper.write_text("" if how == "empty manifest" else '{"store": 3')
    output = finished(tree, folder, wanted, *arguments)
    for name, how in harm.items():
        line = (
            f"{faults.manifest(folder, name).relative_to(tree.path)}: not a manifest"
            if "manifest" in how or how == "garbage"
            else f"{(folder / name).relative_to(tree.path)}: damaged"
        )
        assert line in output, (line, output)
    # A store whose manifest is lost is found to be sound; error tables follow from all others.
    sound = {name for name, how in harm.items() if "manifest" in how or how == "garbage"}
    again = {name for name in harm if name in before} - sound | {"errors.zarr"}
    after = faults.modified(folder)
    assert {name for name in before if after[name] != before[name]} == again


def clock_back(
    tree: Tree,
    folder: Path,
    wanted: Mapping[str, str],
    stage: str | None,
    *arguments: str,
) -> None:
    """A run is killed (in a stage, if one is given), and then the clock goes back by a day.

    Everything that is there is then dated a day ahead. A library that fakes the time for processes
    leaves the times of files as they are, and makes waiting hang.
    """
    if stage is not None:
        assert faults.killed_run(tree, folder, stage, 1.0, *arguments) is not None
    for path in (*folder.rglob("*"), *tree.path.glob(".snakemake/**/*")):
        os.utime(path, (time.time() + DAY, time.time() + DAY))
    newest = max(path.stat().st_mtime for path in (folder / "manifests").rglob("*.json"))
    assert newest > time.time() + DAY / 2
    finished(tree, folder, wanted, *arguments)


def killed_job(
    tree: Tree, folder: Path, wanted: Mapping[str, str], rule: str, *arguments: str
) -> None:
    """The kernel kills the process of one job, as where memory is out."""
    with faults.started(tree, *arguments) as process:
        ended = time.monotonic() + 300
        while not (jobs := faults.job_processes(tree, rule)):
            assert process.poll() is None
            assert time.monotonic() < ended
            time.sleep(0.01)
        # One that is at work, and not only starting.
        time.sleep(1.0)
        for job in jobs:
            os.kill(job, signal.SIGKILL)
        assert process.wait(timeout=600) == 1
    assert faults.unsound(folder, vouched=False) == []
    finished(tree, folder, wanted, *arguments)


def not_a_number(tree: Tree, values: Mapping[str, Any]) -> None:
    """Data of which one number is none: one line names it, and nothing is computed."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 2)), rng.normal(size=(3, 1))
    x[1, 1] = np.nan
    np.savez(tree.path / "data.npz", x=x, y=y)
    problem = {"data": {"kind": "file", "path": str(tree.path / "data.npz")}}
    tree.write_experiment({**values, "problem": problem})
    for command in ("validate", "dmft"):
        more = () if command == "validate" else ("--out", "dmft.zarr")
        done = subprocess.run(
            [sys.executable, "-m", "resnet_limits", command, "experiment.yaml", *more],
            cwd=tree.path,
            env=tree.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: "), done.stderr
        assert "data.npz" in done.stderr, done.stderr
    failed = tree.run("--configfile", "experiment.yaml")
    assert failed.returncode == 1, failed.stdout
    assert "data.npz" in failed.stdout
    assert "Traceback" not in failed.stdout, failed.stdout
    assert not faults.stores(tree.path / "results" / "tiny")


def diverging_cell(tree: Tree, values: Mapping[str, Any]) -> None:
    """One seed of one shape diverges: recorded as such, and all the rest is as usual."""
    model = {**values["model"], "unit": {"kind": "perceptron", "activation": "relu"}}
    training = {**values["training"], "steps": 8, "learning_rate": 1.2}
    pairs = ["finite-dmft"]
    grid = {"depth": [2], "width": [8], "embed_dim": [4, 16]}
    sweep = {**values["sweep"], "pairs": pairs, "grid": grid}
    tree.write_experiment({**values, "model": model, "training": training, "sweep": sweep})
    done = tree.run("--configfile", "experiment.yaml")
    assert done.returncode == 0, done.stdout
    folder = tree.path / "results" / "tiny"
    assert faults.status_of(folder) == {
        "L2_M8_D4": {"ok": 1, "diverged": 1, "not_run": 0},
        "L2_M8_D16": {"ok": 2, "diverged": 0, "not_run": 0},
    }
    assert faults.unsound(folder) == []
    assert (folder / "report.html").exists()


def out_of_memory(tree: Tree, values: Mapping[str, Any]) -> None:
    """Processes may have little more memory than they start with, and one shape needs more."""
    grid = {"depth": [2], "width": [8, LARGE], "embed_dim": [8, LARGE]}
    sweep = {**values["sweep"], "engine": "dense", "grid": grid, "seeds": 1}
    tree.write_experiment({**values, "sweep": sweep})
    command = ["prlimit", f"--as={MOST_MEMORY}", *tree.command("networks", *TINY)]
    failed = subprocess.run(
        command,
        cwd=tree.path,
        env=tree.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert failed.returncode == 1, failed.stdout
    name = f"finite/L2_M{LARGE}_D{LARGE}"
    assert re.search(rf"(?i)error {name}: .*memory", failed.stdout), failed.stdout
    folder = tree.path / "results" / "tiny"
    before = faults.modified(folder)
    small = {"problem.zarr", *(f"finite/L2_M{m}_D{d}.zarr" for m, d in SMALL)}
    assert set(before) == small, set(before) ^ small
    assert faults.unsound(folder, vouched=False) == []
    done = tree.run("networks", *TINY)
    assert done.returncode == 0, done.stdout
    after = faults.modified(folder)
    assert {name: after.pop(name) for name in small} == before
    assert set(after) == {f"{name}.zarr"}
    assert faults.unsound(folder) == []
