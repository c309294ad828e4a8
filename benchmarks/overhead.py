"""What a study spends on anything but computing: per cell, per start of a script, per plan.

Runs the stages of a part of an experiment in this process, from the data to the figures, into a
temporary folder, and prints the time of every part of a finite cell, then of every stage, then of
the start of every script, then of Snakemake's plan of the whole experiment before and after it ran.
Cells are spread over the sweep, so that their mean stands for it.

Usage: ``python benchmarks/overhead.py [CONFIG] [--shapes 60] [--results FOLDER] [--no-plan]``.
"""

from __future__ import annotations

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

from resnet_limits import provenance, store
from resnet_limits.config import Experiment, experiment_from_dict, load_experiment
from resnet_limits.stages import errors, limits, networks, problem, publish
from resnet_limits.stages.paths import KINDS, Paths, cells

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "problem": "problem",
    "dmft, mean_ode, wide": "limits",
    "finite": "networks",
    "errors, rates": "errors",
    "figures": "figures",
}


class Clock:
    """Seconds of the wall and of all cores, summed under names."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cores: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cores = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[name] += time.perf_counter() - wall
            self.cores[name] += time.process_time() - cores

    def watch(self, owner: Any, function: str, name: str) -> None:
        """Time every call of a module's function from now on."""
        original = getattr(owner, function)

        @wraps(original)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self(name):
                return original(*arguments, **options)

        setattr(owner, function, timed)

    def row(self, name: str, count: int = 1, unit: float = 1e3) -> str:
        wall, cores = (unit * times[name] / count for times in (self.wall, self.cores))
        return f"{name:34} {wall:10.2f} {cores:10.2f}"


def part_of(experiment: Experiment, count: int) -> Experiment:
    """Keep a box of about `count` shapes, spread over the sweep."""
    sizes = [sorted({shape[axis] for shape in experiment.shapes}) for axis in range(3)]
    varied = sum(len(values) > 1 for values in sizes)
    each = max(2, round(count ** (1 / max(1, varied))))
    kept = [
        {values[i] for i in np.linspace(0, len(values) - 1, min(each, len(values))).astype(int)}
        for values in sizes
    ]
    values = experiment.model_dump(mode="json")
    values["sweep"]["grid"] = None
    values["sweep"]["shapes"] = [
        list(shape)
        for shape in experiment.shapes
        if all(size in k for size, k in zip(shape, kept, strict=True))
    ]
    return experiment_from_dict(values)


def stage_functions(
    experiment: Experiment, open_store: Callable[..., Any]
) -> dict[str, Callable[..., Any]]:
    """Give the function that computes one cell of each kind."""
    from resnet_limits.config import Shape

    return {
        "problem": partial(problem.problem, experiment),
        "dmft": partial(limits.dmft, experiment),
        "mean_ode": lambda embed_dim: limits.mean_ode(
            experiment, embed_dim, open_store("dmft", {})
        ),
        "wide": lambda depth, embed_dim: limits.wide(
            experiment, depth, embed_dim, open_store("dmft", {})
        ),
        "finite": lambda **cell: networks.finite(experiment, Shape(**cell)),
        "errors": lambda: errors.errors(experiment, open_store),
        "rates": lambda: errors.rates(
            experiment, {pair: open_store("errors", {}, pair) for pair in experiment.pairs}
        ),
    }


def study(experiment: Experiment, results: Path) -> None:
    """Run all stages, and print what each part took."""
    clock, paths = Clock(), Paths(results, experiment.experiment)

    def open_store(kind: str, cell: dict[str, int], group: str | None = None) -> Any:
        return store.open_store(paths.store(kind, **cell), group)

    def one(kind: str, cell: dict[str, int]) -> None:
        started = time.monotonic()
        with clock(f"{kind}: computing"):
            dataset = compute[kind](**cell)
        with clock(f"{kind}: publishing"):
            publish.publish(
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

    compute = stage_functions(experiment, open_store)
    watched = [
        (provenance, "stage_key", "key"),
        (provenance, "collect", "provenance"),
        (store, "write", "writing"),
        (store, "write_manifest", "manifest"),
    ]
    first = {kind: cells(kind, experiment)[0] for kind in KINDS}
    for kind in ("problem", "dmft", "mean_ode", "wide", "finite"):
        one(kind, first[kind])  # imports, compilation and caches are no part of a cell
    clock = Clock()
    print(f"{'ms for each cell of a kind':34} {'wall':>10} {'cores':>10}")
    for kind in ("mean_ode", "wide", "finite"):
        some = cells(kind, experiment)
        for cell in some:
            one(kind, cell)
        for part in ("computing", "publishing"):
            print(clock.row(f"{kind}: {part}", len(some)))
    for owner, function, name in watched:
        clock.watch(owner, function, name)
    for cell in some:
        one("finite", cell)
    for _, _, name in watched:
        print("  of which", clock.row(name, len(some)).replace(" " * 9, "", 1))
    with clock("checking"):
        for cell in some:
            assert not store.check(paths.store("finite", **cell), paths.manifest("finite", **cell))
    print(
        clock.row("finite: checking", 1).replace("finite: ", "")
        if False
        else clock.row("checking", len(some))
    )
    one("errors", {})
    one("rates", {})
    print(f"{f's for {len(some)} shapes':34} {'wall':>10} {'cores':>10}")
    for kind in ("errors", "rates"):
        for part in ("computing", "publishing"):
            print(clock.row(f"{kind}: {part}", 1, 1))
    print(clock.row("errors: computing", len(some)), "(ms for each shape)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        study(part_of(load_experiment(Path(sys.argv[1])), int(sys.argv[2])), Path(folder))
