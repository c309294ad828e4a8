"""Fit the cost model by which ``auto`` chooses an engine (``networks/cost.py``).

Trains networks of some shapes with both engines on one thread, fits the constants of the model to
the times, all cases with equal relative weight, and prints them beside the measured and the fitted
times and how often the model takes the faster engine. Copy the constants by hand: they are part of
the package, and changing them makes networks of ``auto`` be computed anew.

Usage: ``python benchmarks/engine_cost.py [--repeat 2]``.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from dense_engine import problem
from machine import synchronize
from scipy.optimize import nnls

from resnet_limits.config import Shape
from resnet_limits.networks import cost
from resnet_limits.networks.train import ENGINES
from resnet_limits.work import Work

# (shape, samples, steps, seeds)
CASES = [
    (Shape(60, 10, 10), 1, 15, 5),
    (Shape(60, 30, 30), 1, 15, 5),
    (Shape(60, 30, 30), 1, 15, 1),
    (Shape(40, 100, 100), 1, 15, 5),
    (Shape(30, 200, 200), 1, 15, 5),
    (Shape(20, 30, 499), 1, 15, 5),
    (Shape(20, 300, 300), 1, 15, 5),
    (Shape(10, 499, 499), 1, 15, 5),
    (Shape(6, 1000, 1000), 1, 15, 1),
    (Shape(10, 3, 2000), 1, 6, 1),
    (Shape(10, 30, 30), 10, 15, 5),
    (Shape(10, 96, 96), 10, 15, 5),
    (Shape(6, 301, 301), 10, 15, 5),
    (Shape(4, 642, 642), 10, 15, 2),
    (Shape(4, 2000, 301), 10, 15, 1),
    (Shape(3, 1369, 1369), 10, 15, 1),
    (Shape(2, 2000, 2000), 10, 15, 1),
    (Shape(40, 20, 50), 4, 15, 4),
    (Shape(20, 256, 256), 4, 15, 4),
    (Shape(4, 20000, 500), 1, 6, 1),
    (Shape(2, 4000, 4000), 1, 6, 1),
]


def training_seconds(
    engine: str, shape: Shape, samples: int, steps: int, seeds: int, device: str = "cpu"
) -> float:
    """Time of drawing and training the networks of a shape: of one core, or of a GPU's clock."""
    dynamics = problem(samples, steps)
    embedding = np.random.default_rng(0).standard_normal((seeds, shape.embed_dim, 6))
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    network = ENGINES[engine](
        dynamics, shape, range(seeds), embedding, 0, dtype=torch.float64, device=device
    )
    for step in range(steps):
        output = network.forward_pass()
        gradient = dynamics.loss.gradient(output, network.targets)
        network.backward_pass(gradient, update=step + 1 < steps)
    synchronize(device)
    return clock() - start


def fit(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Constants of the terms (cases, constants), all cases with equal relative weight."""
    constants, _ = nnls(terms / seconds[:, None], np.ones(len(seconds)))
    return np.asarray(constants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=2, help="the fastest of so many runs counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # The first use compiles.
    training_seconds("dense", Shape(2, 400, 400), 10, 2, 1)
    works = [Work(shape, samples, steps, seeds) for shape, samples, steps, seeds in CASES]
    measured, fitted = {}, {}
    for engine in cost.ENGINES:
        measured[engine] = np.array(
            [
                min(training_seconds(engine, *case) for _ in range(arguments.repeat))
                for case in CASES
            ]
        )
        terms = np.array([cost.terms(engine, work) for work in works])
        constants = fit(terms, measured[engine])
        fitted[engine] = terms @ constants
        print(f"{engine}: {', '.join(f'{value:.3g}' for value in constants)}")
    print(f"{'L':>4} {'M':>6} {'D':>6} {'N':>3} {'K':>3} {'S':>3}" + 4 * "{:>10}".format(""))
    right = 0
    for index, (shape, samples, steps, seeds) in enumerate(CASES):
        times = " ".join(
            f"{name} {measured[name][index]:7.3f} ({fitted[name][index]:7.3f})"
            for name in cost.ENGINES
        )
        faster, taken = (
            min(cost.ENGINES, key=lambda name, table=table: table[name][index])
            for table in (measured, fitted)
        )
        right += faster == taken
        print(
            f"{shape.depth:4d} {shape.width:6d} {shape.embed_dim:6d} {samples:3d} {steps:3d} "
            f"{seeds:3d}  {times}  {faster}{'' if faster == taken else f', model: {taken}'}",
            flush=True,
        )
    print(f"the faster one is taken in {right} of {len(CASES)} cases")


if __name__ == "__main__":
    main()
