"""Compare what results are thought to cost with what they cost (``stages/estimates.py``).

Each result is computed by ``resnet-limits`` in a process of its own, with one thread. Its time is
user and system time of that process, and its memory the largest it ever had (``ru_maxrss``), so
that other work on the machine disturbs little. ``--cold`` gives every process an empty folder for
compiled code; otherwise one folder serves all, and each result is computed twice, of which the
first does not count.
``--whole`` runs the whole pipeline of the chosen experiments and compares what ``status`` tells
before it begins with the time of all its processes.

Told times are to be within a factor of 3, planned memory between 1 and 1.5 times the peak: what is
not is marked, and the exit code is 1.

Usage: ``python benchmarks/estimates.py [--list] [--only quickstart,relu] [--kinds dmft,finite]
[--cheap] [--cold] [--whole]``.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from resnet_limits.config import load_experiment
from resnet_limits.kinds import SIZES
from resnet_limits.stages import estimates, progress
from resnet_limits.stages.paths import Paths, cell_name

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "dmft": "dmft",
    "prediction": "predict",
    "mean_ode": "mean-ode",
    "wide": "wide",
    "finite": "train",
}
TIME_FACTOR, MEMORY_FACTOR = 3.0, 1.5

DIGITS2 = {
    "experiment": "digits2",
    "problem": {
        "data": {"kind": "digits", "samples": 32, "classes": 2, "seed": 0},
        "loss": "cross_entropy",
    },
    "model": {"init_std": {"embedding": 0.125}},
    "training": {"steps": 10, "learning_rate": 4.0},
    "sweep": {
        "grid": {"depth": [4, 8, 16], "width": [32, 128, 512], "embed_dim": [64, 128, 256]},
        "seeds": 3,
    },
    "numerics": {"limit_tolerance": 1e-2},
    "save": {"depth_points": 9},
}
FILE = {
    "experiment": "file400",
    "problem": {"data": {"kind": "file", "path": "file400.npz"}},
    "training": {"steps": 10, "learning_rate": 1.0},
    "sweep": {"grid": {"depth": [4, 16], "width": [32, 128], "embed_dim": [32, 128]}, "seeds": 3},
    "numerics": {"limit_tolerance": 1e-2},
}
IMPLICIT = {
    "experiment": "implicit",
    "problem": {"data": {"kind": "gaussian", "samples": 4, "inputs": 3, "targets": 3, "seed": 0}},
    "training": {"steps": 10, "learning_rate": 0.2},
    "sweep": {"shapes": [[100, 10000, 10000]], "seeds": 2, "pairs": ["finite-dmft"]},
}


class Case(NamedTuple):
    """An experiment, by its file or its values, and the results that are computed."""

    source: str | dict[str, Any]
    changes: dict[str, Any]
    cells: list[tuple[str, dict[str, int]]]


def _cells(*shapes: tuple[int, int, int]) -> list[tuple[str, dict[str, int]]]:
    """Give the limits of the last of some shapes, the prediction, and the networks of all."""
    L, _, D = shapes[-1]
    return [
        ("dmft", {}),
        ("prediction", {}),
        ("mean_ode", {"embed_dim": D}),
        ("wide", {"depth": L, "embed_dim": D}),
        *(("finite", dict(zip(SIZES, shape, strict=True))) for shape in shapes),
    ]


RELU = {"unit": {"kind": "perceptron", "activation": "relu"}}
GATED = {"unit": {"kind": "gated_perceptron"}, "final_norm": "rms"}
MOMENTUM = {"rule": {"momentum": 0.9}, "weight_decay": 0.1, "schedule": {"kind": "cosine"}}
CASES = {
    "quickstart": Case("config/config.yaml", {}, _cells((4, 8, 16), (64, 256, 256))),
    "relu": Case(
        "config/config.yaml",
        {"experiment": "relu", "model": RELU, "numerics": {"limit_tolerance": 1e-2}},
        _cells((64, 256, 256)),
    ),
    "transformer": Case("config/transformer.yaml", {}, _cells((4, 16, 16), (32, 128, 128))),
    "gated": Case(
        "config/config.yaml",
        {
            "experiment": "gated",
            "model": GATED,
            "training": {"learning_rate": 0.05},
            "numerics": {"limit_tolerance": 1e-2},
        },
        _cells((64, 256, 256)),
    ),
    "momentum": Case(
        "config/config.yaml",
        {"experiment": "momentum", "training": {**MOMENTUM, "learning_rate": 0.2}},
        _cells((64, 256, 256)),
    ),
    "digits2": Case(DIGITS2, {}, _cells((4, 32, 64), (16, 512, 256))),
    "digits10": Case("config/digits.yaml", {"experiment": "digits10"}, _cells((16, 512, 256))),
    "file400": Case(FILE, {}, _cells((4, 32, 32), (16, 128, 128))),
    "implicit": Case(IMPLICIT, {}, _cells((100, 10000, 10000))[::4]),
    "paper-tanh": Case("config/paper-tanh.yaml", {}, _cells((50, 2000, 2000))),
}
CHEAP = ("quickstart", "digits2")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        whole = not (isinstance(old, dict) and isinstance(change, dict)) or "kind" in change
        merged[key] = change if whole else _merged(old, change)
    return merged


def write_experiment(name: str, folder: Path) -> Path:
    """Write the experiment's file, and its data where it has some, to a folder."""
    case = CASES[name]
    values: Any = copy.deepcopy(case.source)
    if isinstance(values, str):
        values = yaml.safe_load((ROOT / values).read_text(encoding="utf-8"))
    if name == "file400":
        import numpy as np

        rng = np.random.default_rng(0)
        x = rng.standard_normal((400, 10)) / np.sqrt(10)
        values["problem"]["data"]["path"] = str(folder / "file400.npz")
        np.savez(folder / "file400.npz", x=x, y=np.tanh(x @ rng.standard_normal((10, 3))))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(_merged(values, case.changes)), encoding="utf-8")
    return path


def measure(command: Sequence[str], folder: Path, cache: Path) -> tuple[float, float]:
    """Run a command; give the seconds of it and its children, and its peak memory in MiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(cache)}
    with (folder / "last.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)}:\n{log.read()[-2000:]}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def _program(name: str) -> str:
    """Give the path of a program in the environment that this one runs in."""
    return str(Path(sys.executable).with_name(name))


def _chosen(
    names: Sequence[str], kinds: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, int]]]:
    for name in names:
        wanted = [(kind, cell) for kind, cell in CASES[name].cells if kind in kinds]
        if any(kind not in ("dmft", "finite") for kind, _ in wanted):
            # They take the plan of the DMFT limit.
            wanted = [("dmft", {}), *(pair for pair in wanted if pair[0] != "dmft")]
        for kind, cell in wanted:
            yield name, kind, cell


def run_cells(arguments: argparse.Namespace, folder: Path) -> int:
    """Compute the chosen results and print the table; count what is out of bounds."""
    warm = folder / "compiled"
    found = 0
    print(
        f"{'result':44} {'told s':>8} {'took s':>8} {'ratio':>6}   "
        f"{'planned':>8} {'peak MiB':>8} {'ratio':>6}",
        flush=True,
    )
    for number, (name, kind, cell) in enumerate(_chosen(arguments.only, arguments.kinds)):
        config = folder / f"{name}.yaml"
        if not config.exists():
            write_experiment(name, folder)
        experiment = load_experiment(config)
        store = Paths(folder / "results", experiment.experiment).store(kind, **cell)
        dmft = Paths(folder / "results", experiment.experiment).store("dmft")
        known = dmft if dmft.exists() else None
        cache = folder / f"cold{number}" if arguments.cold else warm
        told = estimates.seconds(kind, experiment, known, **cell)
        told += estimates.start_seconds(kind, cold=arguments.cold)
        planned = estimates.megabytes(kind, experiment, known, **cell)
        sizes = [w for n, v in cell.items() for w in (f"--{n.replace('_', '-')}", str(v))]
        words = [
            _program("resnet-limits"),
            COMMANDS[kind],
            str(config),
            *sizes,
            "--out",
            str(store),
        ]
        if not arguments.cold:
            # Each unit and rule has compiled code of its own.
            measure([*words[:-1], str(folder / f"uncounted{store.suffix}")], folder, cache)
        took, peak = measure(words, folder, cache)
        in_time = 1 / TIME_FACTOR <= told / took <= TIME_FACTOR
        in_memory = 1 <= planned / peak <= MEMORY_FACTOR
        found += not (in_time and in_memory)
        print(
            f"{name + ' ' + cell_name(kind, **cell):44} {told:8.1f} {took:8.1f} "
            f"{told / took:6.2f}{' ' if in_time else '!'}  {planned:8d} {peak:8.0f} "
            f"{planned / peak:6.2f}{' ' if in_memory else '!'}",
            flush=True,
        )
    return found


def compile_kernels(kind: str, folder: Path, cache: Path) -> None:
    """Let small results of a kind compile what all results of it need, once."""
    mark = cache / ("networks" if kind == "finite" else "limits")
    if mark.exists():
        return
    small = folder / "small.yaml"
    values = {
        "experiment": "small",
        "problem": {"data": {"kind": "gaussian", "samples": 1, "inputs": 1, "targets": 1}},
        "training": {"steps": 2, "learning_rate": 0.1},
        "sweep": {"shapes": [[2, 4, 4]], "seeds": 1, "engine": "dense"},
        "numerics": {"limit_tolerance": 0.1},
    }
    small.write_text(yaml.safe_dump(values), encoding="utf-8")
    commands = [["dmft", str(small)]]
    if kind == "finite":
        # Large layers have kernels of their own.
        commands = [
            ["train", str(small), "--depth", "2", "--width", size, "--embed-dim", size]
            for size in ("4", "400")
        ]
    for words in commands:
        out = str(folder / "small.zarr")
        measure([_program("resnet-limits"), *words, "--out", out], folder, cache)
    mark.touch()


def run_whole(arguments: argparse.Namespace, folder: Path) -> int:
    """Run pipelines; compare the time of all their processes with what ``status`` tells first."""
    found = 0
    print(f"{'experiment':20} {'told s':>8} {'took s':>8} {'ratio':>6}", flush=True)
    for name in arguments.only:
        config = write_experiment(name, folder)
        results = folder / "whole"
        cache = folder / f"cold_{name}" if arguments.cold else folder / "compiled"
        if not arguments.cold:
            for kind in ("dmft", "finite"):
                compile_kernels(kind, folder, cache)
        cache.mkdir(exist_ok=True)
        os.environ["NUMBA_CACHE_DIR"] = str(cache)
        experiment = load_experiment(config)
        told = progress.survey(experiment, Paths(results, experiment.experiment)).rest_seconds
        command = [
            *(_program("snakemake"), "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"),
            *("--directory", str(folder), "--config"),
            *(f"experiment_file={config}", f"results={results}"),
        ]
        took, _ = measure(command, folder, cache)
        is_right = 1 / TIME_FACTOR <= told / took <= TIME_FACTOR
        found += not is_right
        print(
            f"{name:20} {told:8.1f} {took:8.1f} {told / took:6.2f}{' ' if is_right else '!'}",
            flush=True,
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--list", action="store_true", help="print the experiments and results")
    parser.add_argument("--only", type=names, default=list(CASES), help="experiments")
    parser.add_argument("--kinds", type=names, default=list(COMMANDS), help="kinds of results")
    parser.add_argument("--cheap", action="store_true", help=f"only {', '.join(CHEAP)}")
    parser.add_argument("--cold", action="store_true", help="compile in every process")
    parser.add_argument("--whole", action="store_true", help="whole pipelines")
    arguments = parser.parse_args()
    if arguments.cheap:
        arguments.only = list(CHEAP)
    if arguments.list:
        for name, kind, cell in _chosen(arguments.only, arguments.kinds):
            print(name, cell_name(kind, **cell))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run = run_whole if arguments.whole else run_cells
        return int(run(arguments, Path(folder)) > 0)


if __name__ == "__main__":
    sys.exit(main())
