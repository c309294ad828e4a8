"""What a study spends on anything but computing: per cell, per start of a script, per plan.

Runs the stages of a part of an experiment in this process, into a temporary folder: all limits, and
networks of shapes that are spread over the sweep. Fields of networks are made up, unless they are
asked for with ``--train``: storing them takes the same time. Prints the time of every part of a
cell, of the stages that read all cells, of starting every script, and of Snakemake's plan of the
whole experiment before anything is there.

"cores" is the time of all cores; on a busy machine only its sums mean something.

Usage: ``python benchmarks/overhead.py [CONFIG] [--shapes 60] [--train] [--no-plan]``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from machine import describe

from resnet_limits import provenance, store
from resnet_limits.config import Experiment, Shape, experiment_from_dict, load_experiment
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.problem import make_problem
from resnet_limits.stages import errors, limits, networks, prediction, problem, rates
from resnet_limits.stages.paths import KINDS, Paths, cells
from resnet_limits.stages.publish import publish

ROOT = Path(__file__).parents[1]
STARTS = {
    "problem": "resnet_limits.stages.problem",
    "dmft, mean_ode, wide": "resnet_limits.stages.limits",
    "finite": "resnet_limits.stages.networks",
    "errors": "resnet_limits.stages.errors",
    "rates": "resnet_limits.stages.rates",
    "figures": "resnet_limits.stages.figures",
    "Snakefile": "resnet_limits.provenance",
}

wall: dict[str, float] = defaultdict(float)
cores: dict[str, float] = defaultdict(float)


@contextmanager
def clock(name: str) -> Iterator[None]:
    before = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        wall[name] += time.perf_counter() - before[0]
        cores[name] += time.process_time() - before[1]


def watch(owner: Any, function: str, name: str) -> None:
    """Time every call of a module's function from now on."""
    original = getattr(owner, function)

    @wraps(original)
    def timed(*arguments: Any, **options: Any) -> Any:
        with clock(name):
            return original(*arguments, **options)

    setattr(owner, function, timed)


def row(name: str, count: int = 1, indent: str = "") -> None:
    """Print milliseconds for each of some cells."""
    times = (1e3 * spent[name] / count for spent in (wall, cores))
    print(f"{indent + name:36}" + "".join(f"{each:10.2f}" for each in times))


def part_of(experiment: Experiment, count: int) -> Experiment:
    """Keep a box of about `count` shapes, spread over the sweep."""
    axes = [sorted(set(sizes)) for sizes in zip(*experiment.shapes, strict=True)]
    varied = sum(len(sizes) > 1 for sizes in axes)
    each = max(2, round(count ** (1 / max(1, varied))))
    kept = [
        {sizes[k] for k in np.linspace(0, len(sizes) - 1, min(each, len(sizes))).astype(int)}
        for sizes in axes
    ]
    values = experiment.model_dump(mode="json")
    values["sweep"]["grid"] = None
    values["sweep"]["shapes"] = [
        list(shape)
        for shape in experiment.shapes
        if all(size in sizes for size, sizes in zip(shape, kept, strict=True))
    ]
    return experiment_from_dict(values)


def made_up(experiment: Experiment, shape: Shape) -> xr.Dataset:
    """Give what ``stages.networks.finite`` would, with random numbers."""
    rng = np.random.default_rng(0)
    seeds, steps = np.array(experiment.seeds), np.array(saved_steps(experiment))
    layers = np.array(depth_layers(experiment, shape.depth))
    samples, targets = make_problem(experiment).y.shape
    field = ("seed", "step", "depth_point", "sample", "coordinate")
    sizes = (len(seeds), len(steps), len(layers), samples, shape.embed_dim)
    dtype = np.dtype(experiment.save.dtype).type
    return xr.Dataset(
        {
            "output": (
                ("seed", "step", "sample", "target"),
                rng.normal(size=(*sizes[:2], samples, targets)),
            ),
            "loss": (("seed", "step"), rng.normal(size=sizes[:2])),
            "hidden": (field, rng.standard_normal(sizes, np.float32).astype(dtype)),
            "backward": (field, rng.standard_normal(sizes, np.float32).astype(dtype)),
            "status": ("seed", np.zeros(len(seeds), np.int8)),
            "diverged_step": ("seed", np.full(len(seeds), -1)),
        },
        {
            "seed": seeds,
            "step": steps,
            "layer": ("depth_point", layers),
            "s": ("depth_point", layers / shape.depth),
        },
        {**shape._asdict(), "engine": "dense", "engine_reason": "made up", "device": "cpu"},
    )


def study(experiment: Experiment, paths: Paths, *, train: bool) -> None:
    """Run all stages, and print what each part took."""

    def load(kind: str, cell: dict[str, int]) -> xr.Dataset:
        return store.load(paths.store(kind, **cell), errors.READ[kind])

    def dmft() -> xr.Dataset:
        return store.open_store(paths.store("dmft"))

    def finite(**cell: int) -> xr.Dataset:
        shape = Shape(**cell)
        return networks.finite(experiment, shape) if train else made_up(experiment, shape)

    def distances() -> dict[str, xr.Dataset]:
        return store.open_groups(paths.store("errors"))

    compute: dict[str, Callable[..., Any]] = {
        "problem": partial(problem.problem, experiment),
        "dmft": partial(limits.dmft, experiment),
        "mean_ode": lambda embed_dim: limits.mean_ode(experiment, embed_dim, dmft()),
        "wide": lambda depth, embed_dim: limits.wide(experiment, depth, embed_dim, dmft()),
        "finite": finite,
        "prediction": lambda: prediction.prediction(experiment, dmft()),
        "errors": lambda: errors.errors(experiment, load),
        "rates": lambda: rates.rates(
            experiment, distances(), json.loads(paths.store("prediction").read_text())
        ),
    }

    def run(kind: str, cell: dict[str, int]) -> None:
        started = time.monotonic()
        with clock(f"{kind}: computing"):
            dataset = compute[kind](**cell)
        with clock(f"{kind}: publishing"):
            publish(
                dataset,
                paths.store(kind, **cell),
                kind=kind,
                experiment=experiment,
                key=provenance.stage_key(kind, experiment, **cell),
                device="cpu",
                seeds=() if kind in {"problem", "dmft"} else experiment.seeds,
                started=started,
                manifest=paths.manifest(kind, **cell),
            )

    for kind in KINDS[:-2]:
        if some := cells(kind, experiment):
            run(kind, some[0])  # imports, compilation and caches are no part of a cell
    parts = [
        *((provenance, "stage_key", "key"), (provenance, "collect", "provenance")),
        *((store, "write", "store"), (store, "write_manifest", "manifest")),
    ]
    print(f"{'milliseconds':36}{'wall':>10}{'cores':>10}")
    for kind in KINDS:
        some = cells(kind, experiment)
        if not some:
            continue
        new = some[1:] or some
        for name in (f"{kind}: computing", f"{kind}: publishing"):
            wall[name] = cores[name] = 0.0
        if kind == "finite":
            for owner, function, name in parts:
                watch(owner, function, name)
        for cell in new:
            run(kind, cell)
        print(f"{kind}, each of {len(new)}")
        row(f"{kind}: computing", len(new), "  ")
        row(f"{kind}: publishing", len(new), "  ")
        if kind == "finite":
            for _, _, name in parts:
                row(name, len(new), "    ")
            checked = some[:: math.ceil(len(some) / 60)]
            with clock("check"):
                for cell in checked:
                    place = {
                        "path": paths.store(kind, **cell),
                        "manifest": paths.manifest(kind, **cell),
                    }
                    assert store.check(**place) == []
            row("check", len(checked), "    ")
        if kind == "errors":
            row("errors: computing", len(cells("finite", experiment)), "  for each shape, ")


def seconds_of(*command: str | Path) -> str:
    """Wall time and processor time of a program."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, *command], check=True, cwd=ROOT, env=environment, capture_output=True
    )
    spent, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return f"{1e3 * spent:10.0f}{1e3 * used:10.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "config/paper-linear.yaml")
    parser.add_argument("--shapes", type=int, default=60)
    parser.add_argument("--train", action="store_true", help="train the networks")
    parser.add_argument("--no-plan", action="store_true", help="without Snakemake's plan")
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.config)
    print(f"{describe('cpu')}; {arguments.config.name}, {len(experiment.shapes)} shapes")
    with tempfile.TemporaryDirectory() as folder:
        part = part_of(experiment, arguments.shapes)
        study(part, Paths(folder, part.experiment), train=arguments.train)
        print("starting")
        for name, module in STARTS.items():
            print(f"  {name:34}{seconds_of('-c', f'import {module}')}")
        if not arguments.no_plan:
            command = ("-m", "snakemake", "--dry-run", "--configfile", arguments.config.resolve())
            spent = seconds_of(*command, "--config", f"results={folder}/none")
            print(f"  {'plan of all':34}{spent}")


if __name__ == "__main__":
    main()
