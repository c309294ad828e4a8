"""Time and memory of the errors stage on trajectories of many gigabytes, beside reading them once.

Makes up networks of some total size, as stores with the chunks, files and checksums of real ones
and random numbers in them, which do not compress, as those of real ones do not. Then each of the
following in a process of its own, from a cold page cache where this process may drop it:

- raw: the bytes of the files, read once;
- decoded: the same through zarr and Dask, with checksums compared and chunks decompressed;
- errors: the stage, networks against three limits.

Three kinds of study: few large networks, of 1 GB each; networks of several chunks; and many small
ones of one chunk each. Sizes are those of the hidden states, which is what is read. All networks of
a study are copies of one, in files of their own.

Usage: ``python benchmarks/errors_at_scale.py [--sizes 5 10 20] [--small 5] [--folder /tmp]``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from resnet_limits import store
from resnet_limits.config import Experiment, experiment_from_dict
from resnet_limits.kept import depth_layers
from resnet_limits.kinds import OK
from resnet_limits.problem import make_problem
from resnet_limits.stages.paths import Paths, cells

WORKERS = 2
SAMPLES, INPUTS, TARGETS, STEPS, POINTS, NODES, REPLICATES = 64, 32, 4, 15, 17, 9, 4
SEEDS = 4
KINDS = {"large": 4096, "middle": 64, "small": 16}
"""Embedding dimension of each kind of study."""


def experiment_of(kind: str, gigabytes: float) -> Experiment:
    """Build an experiment of so many bytes of hidden states."""
    embed_dim = KINDS[kind]
    network = STEPS * POINTS * SAMPLES * embed_dim * 4
    shapes = max(1, round(gigabytes * 1e9 / (network * SEEDS)))
    values = {
        "experiment": f"{kind}-{gigabytes:g}",
        "problem": {
            "data": {
                "kind": "gaussian", "samples": SAMPLES, "inputs": INPUTS, "targets": TARGETS,
            },
            "loss": "squared_error",
        },
        "model": {"unit": {"kind": "perceptron", "activation": "tanh"}},
        "training": {"steps": STEPS, "learning_rate": 0.1},
        "sweep": {
            "grid": {
                "depth": [64], "width": [8 + k for k in range(shapes)], "embed_dim": [embed_dim],
            },
            "seeds": SEEDS,
            "pairs": ["finite-wide", "finite-mean_ode", "finite-dmft"],
        },
        "save": {"depth_points": POINTS, "steps": "all", "dtype": "float32"},
    }  # fmt: skip
    return experiment_from_dict(values, where=kind)


# --- made-up results ------------------------------------------------------------------------------


def limit(experiment: Experiment, kind: str, rng: np.random.Generator) -> xr.Dataset:
    direction = make_problem(experiment).embedding_dims
    lead = () if kind == "dmft" else ("seed",)
    seeds = len(experiment.seeds)
    sizes = {
        "seed": seeds, "step": STEPS, "replicate": REPLICATES, "node": NODES, "sample": SAMPLES,
        "target": TARGETS, "embedding_direction": direction,
    }  # fmt: skip

    def variable(*dims: str) -> tuple[tuple[str, ...], np.ndarray]:
        return (*lead, *dims), rng.normal(size=[sizes[dim] for dim in (*lead, *dims)])

    rows, coefs = ("sample", "target"), ("sample", "embedding_direction")
    return xr.Dataset(
        {
            "output": variable("step", *rows),
            "output_replicate": variable("replicate", "step", *rows),
            "hidden_coef": variable("step", "node", *coefs),
            "hidden_coef_replicate": variable("replicate", "step", *coefs),
            "output_depth_change": variable("step", *rows),
            "hidden_coef_depth_change": variable("step", *coefs),
            "rounding": variable("step"),
            **({"status": ("seed", np.full(seeds, OK, np.int8))} if lead else {}),
        },
        {
            "step": np.arange(STEPS),
            "node": (1 - np.cos(np.pi * np.arange(NODES) / (NODES - 1))) / 2,
            "replicate": np.arange(REPLICATES),
            **({"seed": np.arange(seeds)} if lead else {}),
        },
    )


def network(experiment: Experiment, depth: int, embed_dim: int, block: np.ndarray) -> xr.Dataset:
    """Networks of one shape: the same random numbers in every file, which no file's codec sees."""
    import dask.array as da

    layers = np.array(depth_layers(experiment, depth))
    seeds = len(experiment.seeds)
    shape = (seeds, STEPS, len(layers), SAMPLES, embed_dim)
    _, pieces = store.packing.pack(
        ("seed", "step", "depth_point", "sample", "coordinate"), shape, 4
    )

    def filled(block_info: dict[Any, Any]) -> np.ndarray:
        wanted = block_info[None]["chunk-shape"]
        start = int(np.ravel_multi_index(block_info[None]["chunk-location"], shape)) % 1000
        return block[start : start + int(np.prod(wanted))].reshape(wanted)

    if pieces is None:
        hidden: Any = block[: int(np.prod(shape))].reshape(shape)
    else:
        chunks = da.core.normalize_chunks(pieces, shape, dtype=np.float32)
        hidden = da.map_blocks(filled, chunks=chunks, dtype=np.float32)
    rows = ("sample",)
    return xr.Dataset(
        {
            "output": (
                ("seed", "step", *rows, "target"),
                np.random.default_rng(depth).normal(size=(seeds, STEPS, SAMPLES, TARGETS)),
            ),
            "hidden": (("seed", "step", "depth_point", *rows, "coordinate"), hidden),
            "status": ("seed", np.full(seeds, OK, np.int8)),
            "diverged_step": ("seed", np.full(seeds, -1)),
        },
        {
            "seed": np.arange(seeds),
            "step": np.arange(STEPS),
            "layer": ("depth_point", layers),
            "s": ("depth_point", layers / depth),
        },
    )


def make_results(experiment: Experiment, paths: Paths) -> None:
    rng = np.random.default_rng(0)
    block = rng.standard_normal(store.packing.SHARD_BYTES // 4 + 2000, dtype=np.float32)
    for kind in ("dmft", "mean_ode", "wide"):
        for cell in cells(kind, experiment):
            store.write(limit(experiment, kind, rng), paths.store(kind, **cell))
    first, *others = (paths.store("finite", **shape._asdict()) for shape in experiment.shapes)
    shape = experiment.shapes[0]
    store.write(network(experiment, shape.depth, shape.embed_dim, block), first)
    for other in others:
        shutil.copytree(first, other)


# --- what is measured -----------------------------------------------------------------------------


def hidden_files(experiment: Experiment, paths: Paths) -> Iterator[Path]:
    for shape in experiment.shapes:
        folder = paths.store("finite", **shape._asdict()) / "hidden"
        yield from (file for file in sorted(folder.iterdir()) if file.name != "zarr.json")


def read_raw(experiment: Experiment, paths: Paths) -> None:
    buffer = bytearray(2**20)
    for file in hidden_files(experiment, paths):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def read_decoded(experiment: Experiment, paths: Paths) -> None:
    for shape in experiment.shapes:
        found = store.load(paths.store("finite", **shape._asdict()), ["hidden"])["hidden"].data
        if not isinstance(found, np.ndarray):
            found.map_blocks(lambda piece: np.zeros((1,) * piece.ndim), dtype=float).compute()


def measure_errors(experiment: Experiment, paths: Paths) -> None:
    from resnet_limits.stages import errors

    tables = errors.errors(
        experiment, lambda kind, cell: store.load(paths.store(kind, **cell), errors.READ[kind])
    )
    store.write(tables, paths.store("errors"), "errors")


MEASURED: dict[str, Callable[[Experiment, Paths], None]] = {
    "raw": read_raw,
    "decoded": read_decoded,
    "errors": measure_errors,
}


def measure(what: str, kind: str, gigabytes: float, folder: str) -> None:
    """Do one of them here, and print its seconds and peak memory."""
    import dask

    experiment = experiment_of(kind, gigabytes)
    paths = Paths(folder, experiment.experiment)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    with dask.config.set(scheduler="threads", num_workers=WORKERS):
        MEASURED[what](experiment, paths)
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "wall": time.perf_counter() - started,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak": peak_bytes(),
    }
    print(json.dumps(found))


def peak_bytes() -> int:
    """Most memory that this process had; getrusage's includes that of the process before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def drop_page_cache() -> bool:
    """Forget what was read and written, where this process may."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def in_own_process(what: str, kind: str, gigabytes: float, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, kind, str(gigabytes), folder]
    environment = {**os.environ, "OMP_NUM_THREADS": str(WORKERS)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def study(kind: str, gigabytes: float, parent: str) -> dict[str, Any]:
    """Make up a study, measure all there is, and remove it."""
    with tempfile.TemporaryDirectory(prefix="errors-", dir=parent) as folder:
        experiment = experiment_of(kind, gigabytes)
        paths = Paths(folder, experiment.experiment)
        make_results(experiment, paths)
        on_disk = sum(file.stat().st_size for file in hidden_files(experiment, paths))
        shape = experiment.shapes[0]
        size = len(experiment.seeds) * STEPS * POINTS * SAMPLES * shape.embed_dim * 4
        found: dict[str, Any] = {
            "kind": kind,
            "cells": len(experiment.shapes),
            "cell": size,
            "bytes": size * len(experiment.shapes),
            "disk": on_disk,
        }
        for what in MEASURED:
            found["cold"] = drop_page_cache()
            found[what] = in_own_process(what, kind, gigabytes, folder)
    return found


HEADER = """\
| study | networks' bytes | shapes | of each | on disk | raw, s | decoded, s (cpu) | \
errors, s (cpu) | errors/decoded, cpu | errors, cpu s/GB | peak, GiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def row(found: dict[str, Any]) -> str:
    decoded, errors = found["decoded"], found["errors"]
    size = found["bytes"] / 1e9
    entries = (
        found["kind"],
        f"{size:.1f} GB",
        str(found["cells"]),
        f"{found['cell'] / 1e6:.1f} MB",
        f"{found['disk'] / 1e9:.1f} GB",
        f"{found['raw']['wall']:.1f}",
        f"{decoded['wall']:.0f} ({decoded['cpu']:.0f})",
        f"{errors['wall']:.0f} ({errors['cpu']:.0f})",
        f"{errors['cpu'] / decoded['cpu']:.2f}",
        f"{errors['cpu'] / size:.2f}",
        f"{errors['peak'] / 2**30:.2f}",
    )
    return f"| {' | '.join(entries)} |"


def extrapolated(rows: list[dict[str, Any]]) -> str:
    """Fit a line through the large studies and say where it ends."""
    sizes = np.array([found["bytes"] / 1e9 for found in rows])
    lines = []
    for name in ("cpu", "wall"):
        times = np.array([found["errors"][name] for found in rows])
        slope, start = np.polyfit(sizes, times, 1)
        power = np.polyfit(np.log(sizes), np.log(times), 1)[0]
        off = np.abs(slope * sizes + start - times).max() / times.max()
        lines.append(
            f"{name}: {slope:.2f} s/GB and {start:.1f} s, off the line by {100 * off:.0f} % of the "
            f"longest at most; exponent {power:.2f}; 100 GB: {(slope * 100 + start) / 60:.0f} min"
        )
    return "\n".join(f"- {line}" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="*", default=[5.0, 10.0, 20.0])
    parser.add_argument("--small", type=float, nargs="*", default=[5.0])
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, kind, gigabytes, folder = options.measure
        measure(what, kind, float(gigabytes), folder)
        return
    # What measures does not import torch, whose memory would be counted.
    from machine import describe

    print(describe("cpu"), flush=True)
    print(HEADER, flush=True)
    wanted = [("large", size) for size in options.sizes]
    wanted += [(kind, size) for size in options.small for kind in ("middle", "small")]
    done = []
    for kind, size in wanted:
        done.append(study(kind, size, options.folder))
        print(row(done[-1]), flush=True)
    print("page cache:", "cold" if all(found["cold"] for found in done) else "warm")
    large = [found for found in done if found["kind"] == "large"]
    if len(large) > 1:
        print(extrapolated(large))


if __name__ == "__main__":
    main()
