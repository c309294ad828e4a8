"""Time of one training step of the dense engine against the floor of the machine.

floor = max(bytes / bandwidth, flops / matrix rate), with bytes = 2 L M D itemsize x 3 (the block
weights are read twice and written once) and flops = 12 L M D N. The time of a step is the mean over
a whole training of K states, so that what grows with the step, and what is done once in a while, is
counted. Both rates are measured anew before each training, and ratios are of neighbours in time:
the median over trainings is printed, with the range. Usage:
``python benchmarks/dense_engine.py [--threads 2] [--device cpu] [--out FILE.md]``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import bandwidth, describe, matrix_rate, synchronize

from resnet_limits import devices
from resnet_limits.config import Shape
from resnet_limits.dynamics import Dynamics
from resnet_limits.networks import cost
from resnet_limits.networks.dense import DenseNetwork
from resnet_limits.problem import Loss
from resnet_limits.units import Perceptron
from resnet_limits.work import Work

# (shape, samples, seeds): the cases that the engine is held to come first.
CASES = [
    (Shape(100, 500, 500), 1, 1),
    (Shape(100, 500, 500), 10, 1),
    (Shape(50, 1000, 1000), 1, 1),
    (Shape(50, 1000, 1000), 10, 1),
    (Shape(25, 1369, 1369), 1, 1),
    (Shape(25, 1369, 1369), 10, 1),
    (Shape(12, 2000, 2000), 1, 1),
    (Shape(12, 2000, 2000), 10, 1),
    (Shape(50, 96, 2000), 10, 1),
    (Shape(100, 123, 123), 1, 5),
    (Shape(50, 206, 206), 10, 5),
    (Shape(499, 60, 60), 1, 5),
    (Shape(100, 30, 30), 1, 5),
    (Shape(50, 31, 31), 10, 5),
    (Shape(100, 10, 10), 1, 5),
]


@dataclass(frozen=True)
class Measured:
    """One case: seconds of a step and of the two floors, and microseconds of a layer and step."""

    step: float
    memory: float
    arithmetic: float
    ratio: float
    least: float
    most: float
    layer: float


def problem(samples: int, steps: int) -> Dynamics:
    """Make a training problem of so many samples and states."""
    rng = np.random.default_rng(0)
    return Dynamics.of_unit(
        inputs=rng.standard_normal((samples, 3)),
        targets=rng.standard_normal((samples, 3)),
        loss=Loss("squared_error"),
        unit=Perceptron("tanh"),
        residual_scale=1.0,
        input_std=1.0,
        output_std=1.0,
        rate_in=1e-3,
        rate_out=1e-3,
        rate_embedding=0.0,
        steps=steps,
    )


def measure(
    shape: Shape, samples: int, seeds: int, steps: int, runs: int, dtype: torch.dtype, device: str
) -> Measured:
    """Train a network several times, with the floors measured before each time."""
    dynamics = problem(samples, steps)
    embedding = np.random.default_rng(1).standard_normal((seeds, shape.embed_dim, 6))
    network = DenseNetwork(dynamics, shape, range(seeds), embedding, 0, dtype=dtype, device=device)

    def train() -> float:
        # From the same weights: what an earlier training has kept as factors is left out.
        network.step = 0
        start = time.perf_counter()
        for step in range(steps):
            output = network.forward_pass()
            gradient = dynamics.loss.gradient(output, network.targets)
            network.backward_pass(gradient, update=step + 1 < steps)
        synchronize(device)
        return (time.perf_counter() - start) / steps

    train()
    weights = shape.parameters * seeds
    found = []
    for _ in range(runs):
        memory = 6 * weights * dtype.itemsize / bandwidth(dtype, device)
        arithmetic = 12 * weights * samples / matrix_rate(dtype, device)
        found.append((train(), memory, arithmetic))
    ratios = sorted(step / max(floors) for step, *floors in found)
    step, memory, arithmetic = np.median(found, axis=0)
    return Measured(
        step,
        memory,
        arithmetic,
        ratios[runs // 2],
        ratios[0],
        ratios[-1],
        step / shape.depth * 1e6,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float64", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=15, help="states K of a training")
    parser.add_argument("--runs", type=int, default=5, help="trainings of each case")
    parser.add_argument("--cases", type=int, nargs="*", help="only these, counted from 0")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = devices.dtype(arguments.precision)
    chosen = CASES if arguments.cases is None else [CASES[case] for case in arguments.cases]
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(
        f"{describe(arguments.device)}, {arguments.precision}, K = {arguments.steps}, "
        f"median of {arguments.runs} trainings"
    )
    say("")
    heads = ("L", "M", "D", "N", "seeds", "MiB", "memory ms", "arithmetic ms", "step ms")
    heads += ("ratio", "from", "to", "us a layer")
    say("| " + " | ".join(heads) + " |")
    say("| " + " | ".join("---:" for _ in heads) + " |")
    for shape, samples, seeds in chosen:
        case = measure(
            shape, samples, seeds, arguments.steps, arguments.runs, dtype, arguments.device
        )
        dynamics = problem(samples, arguments.steps)
        work = Work.of(dynamics, shape, seeds, dtype.itemsize)
        size = seeds * cost.memory_bytes("dense", work)
        figures = (
            *(shape.depth, shape.width, shape.embed_dim, samples, seeds, f"{size / 2**20:.0f}"),
            *(f"{seconds * 1e3:.2f}" for seconds in (case.memory, case.arithmetic, case.step)),
            *(f"{ratio:.2f}" for ratio in (case.ratio, case.least, case.most)),
            f"{case.layer:.1f}",
        )
        say("| " + " | ".join(str(figure) for figure in figures) + " |")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
