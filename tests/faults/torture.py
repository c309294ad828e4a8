"""Break the pipeline in every way there is, in full, and print what became of it.

The quickstart is run through the real pipeline: killed at random instants of every stage, and with
damage to every store. Faults that a smaller experiment shows as well are shown with that of the
tests. Takes twenty minutes on two cores.

Usage: ``python tests/faults/torture.py [--kills 50] [--folders 2] [--seed 0] [--only kills …]``.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "workflow"), str(TESTS / "faults")]

import trials  # noqa: E402
from trees import ROOT, Tree, copy_sources  # noqa: E402

import conftest  # noqa: E402
import faults  # noqa: E402
from resnet_limits.config import load_experiment  # noqa: E402

# Seconds into a stage within which it is killed: long ones need no longer.
MOST_SECONDS = 10.0
TINY = ("--configfile", "experiment.yaml")

LOG = logging.getLogger("torture")
tried: Counter[str] = Counter()
survived: Counter[str] = Counter()
skipped: dict[str, str] = {}


def attempt(fault: str, trial: Callable[[], object], count: int = 1) -> object:
    """Count how often something was tried, and how often all was well afterwards."""
    LOG.info("%s (%d)", fault, count)
    tried[fault] += count
    try:
        result = trial()
    except Exception:
        traceback.print_exc()
        return None
    survived[fault] += count
    return result


class Reference:
    """A finished tree of an experiment, undisturbed, with which others of it are compared."""

    def __init__(self, tree: Tree, arguments: tuple[str, ...], config: Path) -> None:
        self.tree, self.arguments = tree, arguments
        self.name = load_experiment(config).experiment
        started = time.monotonic()
        done = tree.run(*arguments)
        if done.returncode:
            raise SystemExit(done.stdout)
        self.wanted = faults.contents(self.folder(tree))
        seconds = time.monotonic() - started
        LOG.info("%s, undisturbed: %d results in %.0f s", self.name, len(self.wanted), seconds)

    def folder(self, tree: Tree) -> Path:
        return tree.path / "results" / self.name

    def begun(self, path: Path) -> Tree:
        """Make a tree of the same experiment without results."""
        tree = copy_sources(path)
        experiment = self.tree.path / "experiment.yaml"
        if experiment.exists():
            shutil.copy(experiment, tree.path)
        return tree

    def attempt(
        self, fault: str, trial: Callable[..., object], tree: Tree, *more: object, count: int = 1
    ) -> object:
        """Try a fault in a tree, the results of which are to be those of this one in the end."""
        arguments = (tree, self.folder(tree), self.wanted, *more, *self.arguments)
        return attempt(fault, partial(trial, *arguments), count)

    def durations(self) -> dict[str, float]:
        """Seconds that the longest job of each stage took."""
        found: dict[str, float] = {}
        for log in (self.folder(self.tree) / "logs").glob("*.log"):
            stage = re.sub(r"_\d+$", "", log.stem)
            (took,) = re.findall(r"done in ([0-9.]+) s", log.read_text(encoding="utf-8"))
            found[stage] = max(found.get(stage, 0.0), float(took))
        return found


def kills(reference: Reference, work: Path, rng: random.Random, number: int, parts: int) -> None:
    """Kill all at random instants, several times in a row, until every stage has been hit."""
    durations = reference.durations()
    stages = [None, *sorted(faults.STAGES, key=lambda stage: faults.STAGES[stage])]
    hits: Counter[str | None] = Counter()
    fault = "SIGKILL of all processes"
    for _ in range(parts + len(stages)):
        if tried[fault] >= number and all(hits[stage] for stage in stages):
            break
        # Beyond the number, one after the other for the stages that are missing.
        count = max(1, min(number - tried[fault], -(-number // parts)))
        rare = sorted(stages, key=lambda stage: hits[stage])
        chosen = sorted((rare[k % len(rare)] for k in range(count)), key=stages.index)
        instants = [
            (stage, rng.uniform(0, min(MOST_SECONDS, durations[stage]) if stage else 3.0))
            for stage in chosen
        ]
        tree = reference.begun(work / f"killed {tried[fault]}")
        # A kill that came after the end is none; such ones are made up for in another folder.
        before = tried[fault]
        hit = reference.attempt(fault, trials.killed, tree, instants, count=count)
        if isinstance(hit, list):
            tried[fault] = survived[fault] = before + len(hit)
            hits.update(stage for busy in hit for stage in (busy or {None}))
        LOG.info("hit: %s", dict(hits))
    print("\nSIGKILL: how often a job of each stage was at work\n")
    print("| stage | " + " | ".join(stage or "none, planning" for stage in stages) + " |")
    print("| --- |" + " --- |" * len(stages))
    print("| kills | " + " | ".join(str(hits[stage]) for stage in stages) + " |")


def damage(reference: Reference, work: Path, rng: random.Random) -> None:
    """Harm every store of the quickstart, of each kind of harm some."""
    tree = reference.tree.copy(work / "damaged")
    folder = reference.folder(tree)
    names = list(faults.stores(folder))
    noticed = partial(trials.flipped_bits_are_noticed, folder, rng)
    attempt("a flipped bit in every store: reader and check", noticed, 2 * len(names))
    rng.shuffle(names)
    some = len(names) // 6
    others = ("truncated", "removed", "gone", "empty manifest", "garbage")
    plans = [
        {name: rng.choice(["chunk", "zarr.json"]) for name in names[: len(names) // 2]},
        {name: rng.choice(["chunk", "zarr.json"]) for name in names[len(names) // 2 :]}
        | {"rates.json": "page", "report.html": "page", "figures/three_terms.png": "page"},
        {name: how for k, how in enumerate(others) for name in names[k * some // 5 :: some][:5]},
    ]
    titles = ["a flipped bit in every store: the pipeline"] * 2 + ["truncated, removed, garbage"]
    for title, harm in zip(titles, plans, strict=True):
        reference.attempt(title, trials.damaged, tree, harm, rng, count=len(harm))


def disks(reference: Reference, work: Path) -> None:
    for fault in ("full disk", "read-only results"):
        if reason := faults.cannot_mount():
            skipped[fault] = reason
            return
    tree = reference.tree.copy(work / "read-only")
    attempt("read-only results", partial(trials.read_only, tree, reference.folder(tree), *TINY))
    for size in ("64k", "1m", "4m"):
        tree = reference.begun(work / f"disk of {size}")
        reference.attempt("full disk", trials.full_disk, tree, size, "100m")


def clocks(reference: Reference, work: Path) -> None:
    for stage in ("dmft", "finite", "figures"):
        tree = reference.begun(work / f"clock in {stage}")
        reference.attempt("clock that goes back a day", trials.clock_back, tree, stage)
    tree = reference.tree.copy(work / "dated ahead")
    (reference.folder(tree) / "manifests" / "finite" / "L2_M8_D4.json").unlink()
    reference.attempt("clock that goes back a day", trials.clock_back, tree, None)


def memory(reference: Reference, work: Path) -> None:
    for rule in ("finite", "wide", "errors"):
        tree = reference.begun(work / f"killed job {rule}")
        reference.attempt("SIGKILL of one job", trials.killed_job, tree, rule)
    tree = copy_sources(work / "memory")
    attempt("out of memory in one cell", partial(trials.out_of_memory, tree, conftest._TINY))


def numbers(work: Path) -> None:
    tree = copy_sources(work / "not a number")
    attempt("NaN in the data", partial(trials.not_a_number, tree, conftest._TINY))
    tree = copy_sources(work / "diverging")
    attempt("a diverging cell", partial(trials.diverging_cell, tree, conftest._TINY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--folders", type=int, default=2, help="results that are begun anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "config.yaml")
    parser.add_argument("--reference", type=Path, help="a tree in which CONFIG has been run")
    parts = ("kills", "damage", "disks", "clocks", "memory", "numbers")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="torture ") as folder:
        work = Path(folder)
        if {"kills", "damage"} & set(arguments.only):
            tree = (
                Tree(arguments.reference)
                if arguments.reference
                else copy_sources(work / "quickstart")
            )
            config = ("--configfile", str(arguments.config.resolve()))
            quickstart = Reference(tree, config, arguments.config)
        if {"disks", "clocks", "memory"} & set(arguments.only):
            tree = copy_sources(work / "tiny")
            tree.write_experiment(conftest._TINY)
            tiny = Reference(tree, TINY, tree.path / "experiment.yaml")
        for part in arguments.only:
            match part:
                case "kills":
                    kills(quickstart, work, rng, arguments.kills, arguments.folders)
                case "damage":
                    damage(quickstart, work, rng)
                case "disks":
                    disks(tiny, work)
                case "clocks":
                    clocks(tiny, work)
                case "memory":
                    memory(tiny, work)
                case "numbers":
                    numbers(work)
    print("\n| fault | tried | survived | lost |\n| --- | --- | --- | --- |")
    for fault, count in tried.items():
        print(f"| {fault} | {count} | {survived[fault]} | {count - survived[fault]} |")
    for fault, reason in skipped.items():
        print(f"| {fault} | skipped: {reason} | | |")
    sys.exit(survived != tried)


if __name__ == "__main__":
    main()
