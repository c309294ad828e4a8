"""What Snakemake takes to find that nothing is to be done, in a study of thousands of results.

Makes up a study of which everything is there: every store is a copy of the same few files, with
a manifest of today's key. Prints the seconds and the memory of a dry run, which looks at every
result, and of one that reads them all (``--config verify=true``).

Usage: ``python benchmarks/planning.py [--sizes 17] [--files 21] [--kilobytes 60]``.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from machine import describe

from resnet_limits import integrity, provenance
from resnet_limits.config import load_experiment
from resnet_limits.stages.paths import KINDS, Paths, cells, figure_names

ROOT = Path(__file__).parents[1]


def experiment_of(sizes: int) -> dict[str, object]:
    """Values of an experiment of sizes^3 shapes."""
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    some = [8 * (k + 1) for k in range(sizes)]
    values["experiment"] = "made-up"
    values["sweep"]["grid"] = {"depth": some, "width": some, "embed_dim": some}
    return values


def make_results(config: Path, root: Path, files: int, kilobytes: int) -> int:
    """Write all results of an experiment; count them."""
    experiment = load_experiment(config)
    paths = Paths(root, experiment.experiment)
    content = os.urandom(1024 * kilobytes // files)
    count = 0
    for kind in KINDS:
        for cell in cells(kind, experiment):
            place = paths.store(kind, **cell)
            for number in range(files) if kind != "rates" else ():
                file = place / f"variable{number // 2}" / f"file{number % 2}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            if kind == "rates":
                place.write_bytes(content)
            integrity.write_manifest(
                paths.manifest(kind, **cell),
                place,
                kind=kind,
                stage_key=provenance.stage_key(kind, experiment, **cell),
            )
            count += 1
    for name in figure_names(experiment):
        for form in ("png", "svg"):
            paths.figures.mkdir(exist_ok=True)
            (paths.figures / f"{name}.{form}").write_bytes(content)
    paths.report.write_bytes(content)
    return count


def dry_run(config: Path, *options: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--config", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, f"experiment_file={config}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    spent = time.perf_counter() - started
    planned = done.stdout.count("\nJob ")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss / 1024
    return f"{spent:6.1f} s, {used:6.1f} s of a core, {peak:5.0f} MB so far, {planned} jobs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=17, help="the study has this cubed shapes")
    parser.add_argument("--files", type=int, default=21, help="files of a store")
    parser.add_argument("--kilobytes", type=int, default=60, help="size of a store")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "made-up.yaml")
        config.write_text(yaml.safe_dump(experiment_of(arguments.sizes)), encoding="utf-8")
        results = f"results={folder}/results"
        print(f"{describe('cpu')}")
        print(f"nothing there         {dry_run(config, results)}")
        count = make_results(config, Path(folder, "results"), arguments.files, arguments.kilobytes)
        print(f"{count} results there   {dry_run(config, results)}")
        print(f"the same, all read    {dry_run(config, results, 'verify=true')}")


if __name__ == "__main__":
    main()
