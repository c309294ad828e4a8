"""Time of one training step of the dense engine against the floor of the machine.

floor = max(bytes / bandwidth, flops / matrix rate), with bytes = 2 L M D itemsize x 3 (the block
weights are read twice and written once) and flops = 12 L M D N; both rates are measured in the
same run. Usage: ``python benchmarks/dense_engine.py [--device cpu] [--precision float64]``.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from machine import bandwidth, describe, matrix_rate, median_seconds

from resnet_limits import devices
from resnet_limits.config import Shape
from resnet_limits.dynamics import Dynamics
from resnet_limits.networks.dense import DenseNetwork
from resnet_limits.problem import Loss
from resnet_limits.units import Perceptron

# (shape, samples, seeds): the two cases that the engine is held to come first.
CASES = [
    (Shape(100, 500, 500), 1, 1),
    (Shape(100, 500, 500), 10, 1),
    (Shape(50, 1369, 1369), 1, 1),
    (Shape(50, 1369, 1369), 10, 1),
    (Shape(100, 123, 123), 1, 5),
    (Shape(50, 206, 206), 10, 5),
    (Shape(100, 30, 30), 1, 5),
    (Shape(50, 31, 31), 10, 5),
]


def step_seconds(shape: Shape, samples: int, seeds: int, dtype: torch.dtype, device: str) -> float:
    rng = np.random.default_rng(0)
    dynamics = Dynamics(
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
        steps=1,
    )
    embedding = rng.standard_normal((seeds, shape.embed_dim, 6))
    network = DenseNetwork(dynamics, shape, range(seeds), embedding, 0, dtype=dtype, device=device)

    def step() -> None:
        output = network.forward_pass()
        network.backward_pass(dynamics.loss.gradient(output, network.targets), update=True)

    return median_seconds(step, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float64", choices=["float32", "float64"])
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    arguments = parser.parse_args()
    dtype = devices.dtype(arguments.precision)
    rate, flops = bandwidth(dtype, arguments.device), matrix_rate(dtype, arguments.device)
    print(
        f"{describe(arguments.device)}, {arguments.precision}: "
        f"{rate / 1e9:.1f} GB/s, {flops / 1e9:.0f} Gflop/s"
    )
    print(
        f"{'L':>5} {'M':>5} {'D':>5} {'N':>3} {'seeds':>5} "
        f"{'floor ms':>9} {'step ms':>9} {'ratio':>6}"
    )
    for shape, samples, seeds in CASES[: arguments.cases]:
        weights = shape.parameters * seeds
        floor = max(6 * weights * dtype.itemsize / rate, 12 * weights * samples / flops)
        time = step_seconds(shape, samples, seeds, dtype, arguments.device)
        print(
            f"{shape.depth:5d} {shape.width:5d} {shape.embed_dim:5d} {samples:3d} {seeds:5d} "
            f"{floor * 1e3:9.2f} {time * 1e3:9.2f} {time / floor:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
