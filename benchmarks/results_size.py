"""Time and memory to open a folder of results, and to read one number of every network.

A folder of made-up results is written first, or taken as it is if it is there::

    python benchmarks/results_size.py --depths 17 --widths 17 --embed-dims 18 FOLDER
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

from resnet_limits import open_results, store
from resnet_limits.config import experiment_from_dict
from resnet_limits.integrity import write_json
from resnet_limits.kinds import OK
from resnet_limits.provenance import collect
from resnet_limits.stages import publish
from resnet_limits.stages.paths import Paths, cells

SAMPLES, TARGETS, STEPS, POINTS, SEEDS = 4, 2, 15, 3, 2


def experiment(arguments: argparse.Namespace, name: str):
    """Ask for a sweep of as many sizes as asked for, as a grid or as a list of shapes."""
    depths, widths, embed_dims = (
        list(range(2, 2 + count))
        for count in (arguments.depths, arguments.widths, arguments.embed_dims)
    )
    grid = {"depth": depths, "width": widths, "embed_dim": embed_dims}
    shapes = [[L, M, D] for L in depths for M in widths for D in embed_dims]
    return experiment_from_dict(
        {
            "experiment": name,
            "problem": {
                "data": {
                    "kind": "gaussian",
                    "samples": SAMPLES,
                    "inputs": 2,
                    "targets": TARGETS,
                }
            },
            "training": {"steps": STEPS},
            "sweep": {
                **({"grid": grid} if arguments.grid else {"shapes": shapes[:-1]}),
                "seeds": SEEDS,
                "pairs": ["finite-dmft"],
            },
            "save": {"depth_points": POINTS},
        }
    )


def make(folder: Path, arguments: argparse.Namespace) -> None:
    """Write networks of noise, with manifests and the table of errors."""
    study = experiment(arguments, folder.name)
    paths = Paths(folder.parent, folder.name)
    rng = np.random.default_rng(0)
    problem = xr.Dataset(
        {
            "x": (("sample", "input"), rng.normal(size=(SAMPLES, 2))),
            "y": (("sample", "target"), rng.normal(size=(SAMPLES, TARGETS))),
        }
    )
    facts = {"experiment": study, "key": "made-up", "device": "cpu", "started": time.monotonic()}
    publish.publish(
        problem, paths.store("problem"), kind="problem", manifest=paths.manifest("problem"), **facts
    )
    attrs = collect(
        study, stage="finite", key="made-up", device="cpu", seeds=range(SEEDS),
        started=time.monotonic(),
    )  # fmt: skip
    rows = []
    for cell in cells("finite", study):
        depth, embed_dim = cell["depth"], cell["embed_dim"]
        layers = [round(j * depth / (POINTS - 1)) for j in range(POINTS)]
        field = ("seed", "step", "depth_point", "sample", "coordinate")
        hidden = rng.normal(size=(SEEDS, STEPS, POINTS, SAMPLES, embed_dim)).astype(np.float32)
        network = xr.Dataset(
            {
                "output": (
                    ("seed", "step", "sample", "target"),
                    rng.normal(size=(SEEDS, STEPS, SAMPLES, TARGETS)),
                ),
                "loss": (("seed", "step"), rng.random((SEEDS, STEPS))),
                "hidden": (field, hidden),
                "backward": (field, hidden),
                "status": ("seed", np.full(SEEDS, OK, np.int8)),
                "diverged_step": ("seed", np.full(SEEDS, -1)),
            },
            {
                "seed": np.arange(SEEDS),
                "step": np.arange(STEPS),
                "layer": ("depth_point", layers),
                "s": ("depth_point", np.array(layers) / depth),
            },
            {**cell, "engine": "dense", "engine_reason": "made up"},
        )
        store.write(network, paths.store("finite", **cell), "finite", attrs=attrs)
        write_json(
            {
                "store": f"../../finite/{paths.store('finite', **cell).name}",
                "stage_key": "made-up",
                "status": {"ok": SEEDS, "diverged": 0, "not_run": 0},
            },
            paths.manifest("finite", **cell),
        )
        rows += [(*cell.values(), seed) for seed in range(SEEDS)]
    L, M, D, seed = np.array(rows).T
    distance = ("cell", "step"), rng.random((len(L), STEPS))
    names = ("hidden_rms", "hidden_max_mean_abs", "output_rms")
    table = xr.Dataset(
        {
            **dict.fromkeys((*names, "hidden_rms_stderr", "output_rms_stderr"), distance),
            "status": ("cell", np.full(len(L), OK, np.int8)),
        },
        {
            "step": np.arange(STEPS),
            **{
                name: ("cell", values)
                for name, values in zip(
                    ("depth", "width", "embed_dim", "seed"), (L, M, D, seed), strict=True
                )
            },
            "parameters": ("cell", (L * M * D).astype(float)),
        },
    ).copy(deep=True)
    publish.publish(
        {"finite-dmft": table},
        paths.store("errors"),
        kind="errors",
        manifest=paths.manifest("errors"),
        **facts,
    )


def measured(what: str, before: float) -> float:
    """Print time and peak memory up to now."""
    now = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:34} {now - before:7.2f} s   peak {peak:6.0f} MiB", flush=True)
    return time.process_time()


def measure(folder: Path) -> None:
    """Open, show, and read."""
    clock = measured("imports", 0.0)
    results = open_results(folder)
    repr(results)
    clock = measured("open and show", clock)
    lazy = results.loss
    clock = measured(f"loss, {lazy.size} numbers, lazy", clock)
    results.distance("finite-dmft", by="seed").load()
    clock = measured("distances, RMS by seed", clock)
    lazy.load()
    clock = measured("all loss curves", clock)
    tree = results.tree
    clock = measured(f"tree of {len(tree.groups)} groups", clock)


def main() -> None:
    """Make the folder if it is not there, and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depths", type=int, default=17)
    parser.add_argument("--widths", type=int, default=17)
    parser.add_argument("--embed-dims", type=int, default=18)
    parser.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only-measure", action="store_true")
    arguments = parser.parse_args()
    if arguments.only_measure:
        measure(arguments.folder)
        return
    if not arguments.folder.exists():
        make(arguments.folder, arguments)
    subprocess.run([sys.executable, __file__, "--only-measure", arguments.folder], check=True)


if __name__ == "__main__":
    main()
