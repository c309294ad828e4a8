"""Verdicts on networks in another scaling: the negative control of a whole study.

Takes the limits and the prediction of a study that is done, and networks of its shapes and seeds
with the usual fan-in initialisation, out-vectors of variance M in place of D. Their claims are
judged like those of the study; at least so many as `--least` must disagree.

Usage: ``python benchmarks/fan_in.py [--config CONFIG] [--results results] [--least 3] [--out
FILE]``; prints a Markdown table of the claims that disagree, and counts all; the exit code is 1 if
they are too few.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import xarray as xr

from resnet_limits import store
from resnet_limits.config import Experiment, Shape, load_experiment
from resnet_limits.stages import errors, networks, rates
from resnet_limits.stages.paths import Paths


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--least", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def with_fan_in(experiment: Experiment, shape: Shape) -> Experiment:
    """Give out-vectors entries of variance M in place of D, for one shape."""
    std = (shape.width / shape.embed_dim) ** 0.5
    model = experiment.model
    scales = model.init_std.model_copy(update={"output": std})
    return experiment.model_copy(update={"model": model.model_copy(update={"init_std": scales})})


def main() -> int:
    args = parse()
    experiment = load_experiment(args.config)
    paths = Paths(args.results, experiment.experiment)

    def open_store(kind: str, cell: dict[str, int]) -> xr.Dataset:
        if kind == "finite":
            shape = Shape(**cell)
            return networks.finite(with_fan_in(experiment, shape), shape)
        return store.open_store(paths.store(kind, **cell))

    distances = errors.errors(experiment, open_store)
    prediction = json.loads(paths.store("prediction").read_text(encoding="utf-8"))
    claims = rates.rates(experiment, distances, prediction)["claims"]
    lines = [
        f"`{args.config.name}`, networks with fan-in initialisation.\n",
        "| pair | of | step | claim | theory | predicted | measured [95 %] |",
        "|" + " --- |" * 7,
    ]
    wrong = [claim for claim in claims if claim["verdict"] == "disagrees"]
    for claim in wrong:
        where, interval = claim["where"], claim["interval"]
        theory, predicted = (
            "" if claim[name] is None else f"{claim[name]:.3g}" for name in ("theory", "predicted")
        )
        lines.append(
            f"| {where['pair']} | {where['observable']} | {where['step']} | {claim['claim']} "
            f"| {theory} | {predicted} | {claim['measured']:.3g} "
            f"[{interval[0]:.3g}, {interval[1]:.3g}] |"
        )
    counts = Counter(claim["verdict"] for claim in claims)
    lines.append("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(len(wrong) < args.least)


if __name__ == "__main__":
    raise SystemExit(main())
