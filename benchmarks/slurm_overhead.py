"""What a cluster costs beside computing: a quickstart on the tests' cluster, and on this machine.

    python benchmarks/slurm_overhead.py [EXPERIMENT_FILE]

Needs what ``make test-slurm`` needs. Times of jobs are SLURM's own, in whole seconds; the time that
a job computes is that in its benchmark file, which includes starting Python and importing torch.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "slurm"), str(ROOT / "tests" / "workflow")]

from cluster import Cluster, cluster  # noqa: E402
from runs import Site  # noqa: E402
from trees import Tree, copy_sources  # noqa: E402

# Jobs wait for all jobs of the kinds before them.
AFTER = {
    "problem": (),
    "dmft": ("problem",),
    "finite": ("problem",),
    "mean_ode": ("dmft",),
    "wide": ("dmft",),
    "evaluation": ("finite", "mean_ode", "wide"),
}
# Files of benchmarks of the jobs that share one.
GROUPS = {"evaluation": ("errors", "rates", "figures", "report")}


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def computing(folder: Path, name: str) -> float:
    """Seconds in the benchmark files of a job."""
    total = 0.0
    for part in GROUPS.get(name, (name,)):
        with (folder / "benchmarks" / f"{part}.tsv").open() as stream:
            total += sum(float(row["s"]) for row in csv.DictReader(stream, delimiter="\t"))
    return total


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def on_cluster(tree: Tree, made: Cluster, folder: Path) -> None:
    site = Site(tree, made)
    started = time.monotonic()
    try:
        site.finish(site.start())
    finally:
        site.end()
    wall = time.monotonic() - started
    rows, kinds, spans = [], {}, []
    for job in site.jobs():
        name = job["Comment"].removeprefix("rule_")
        # A job of a group has the names of all its rules behind that of the group.
        name = next((group for group in GROUPS if name.startswith(group)), name)
        submitted, begun, ended = (seconds(job[f"{at}Time"]) for at in ("Submit", "Start", "End"))
        spent = computing(folder, name)
        spans.append((ended - spent, ended))
        kind = name.rpartition("_")[0] if name[-1].isdigit() else name
        kinds.setdefault(kind, []).append((submitted, ended))
        rows.append((name, begun - submitted, ended - begun, spent))
    print(f"daemons up in {made.start_seconds:.2f} s\n")
    print("| job | queued s | ran s | computed s | beside s |\n| --- | --- | --- | --- | --- |")
    for name, queued, ran, spent in rows:
        print(f"| {name} | {queued:.0f} | {ran:.0f} | {spent:.1f} | {ran - spent:.1f} |")
    mean = sum(ran - spent + queued for _, queued, ran, spent in rows) / len(rows)
    print(f"\noverhead per submitted job: {mean:.1f} s\n")
    for kind, jobs in kinds.items():
        if AFTER[kind]:
            ready = max(ended for before in AFTER[kind] for _, ended in kinds[before])
            idle = min(submitted for submitted, _ in jobs) - ready
            print(f"idle before {kind}: {idle:.0f} s")
    idle_share = 1 - covered(spans) / wall
    print(f"\non the cluster: {wall:.0f} s, nothing computing for {100 * idle_share:.0f} %")


def on_this_machine(tree: Tree, folder: Path) -> None:
    started = time.time()
    subprocess.run(
        tree.command("--configfile", "experiment.yaml"),
        cwd=tree.path, env=tree.environment(), capture_output=True, check=True,
    )  # fmt: skip
    wall = time.time() - started
    spans = []
    for log in (folder / "logs").glob("*.log"):
        ended = log.stat().st_mtime
        spans.append((ended - computing(folder, log.stem), ended))
    idle_share = 1 - covered(spans) / wall
    print(f"on this machine: {wall:.0f} s, nothing computing for {100 * idle_share:.0f} %")


def main() -> None:
    file = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "config" / "config.yaml")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch, cluster() as made:
        source = copy_sources(Path(scratch) / "cluster")
        source.write_experiment(values)
        local = source.copy(Path(scratch) / "local")
        folder = Path("results", values["experiment"])
        on_cluster(source, made, source.path / folder)
        on_this_machine(local, local.path / folder)


if __name__ == "__main__":
    main()
