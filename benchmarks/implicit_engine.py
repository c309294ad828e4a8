"""Time and memory of training one network with the implicit engine, up to 1e14 parameters.

Each shape is trained in a process of its own, whose peak memory is printed beside what the planner
(``cost.memory_bytes``) expected and beside the block weights that a dense network would hold.

Usage: ``python benchmarks/implicit_engine.py [L,M,D ...] [--precision float64] [--steps 6]
[--samples 1] [--threads 2] [--transformer]``; by default L M D of 1e11, 1e12 and 1e13, which needs
7 GiB. With ``--transformer`` layers are a causal attention head (k = 2) and a gelu perceptron of
ratio 2 with rms norms, on samples of four tokens.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from dense_engine import problem
from machine import describe

from resnet_limits import devices
from resnet_limits.config import Shape
from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.networks import cost, implicit
from resnet_limits.norms import make_norm
from resnet_limits.units import AttentionHead, Perceptron
from resnet_limits.work import Work

SHAPES = ["10,100000,100000", "100,100000,100000", "50,450000,450000"]


TOKENS = 4


def transformer(samples: int, steps: int) -> Dynamics:
    """Make the same problem with tokens and layers of two branches."""
    rms = make_norm("rms")
    attention = Branch(AttentionHead(2, causal=True, tokens=TOKENS), rms, rate_in=0.3, rate_out=0.3)
    perceptron = Branch(Perceptron("gelu"), rms, ratio=2.0, rate_in=0.3, rate_out=0.3)
    return replace(problem(samples * TOKENS, steps), layer=(attention, perceptron), final_norm=rms)


def train(shape: Shape, samples: int, steps: int, precision: str, device: str, tokens: bool) -> str:
    """Train one network; return its line of the table."""
    dynamics = (transformer if tokens else problem)(samples, steps)
    dtype = devices.dtype(precision)
    embedding = np.random.default_rng(0).standard_normal((1, shape.embed_dim, 6))
    start = time.perf_counter()
    network = implicit.ImplicitNetwork(
        dynamics, shape, [0], embedding, 0, dtype=dtype, device=device
    )
    for step in range(steps):
        output = network.forward_pass()
        cotangent = dynamics.cotangent(output, network.targets, step)
        network.backward_pass(cotangent, update=step + 1 < steps)
    seconds = time.perf_counter() - start
    loss = float(dynamics.loss.value(output, network.targets)[0])
    work = Work.of(dynamics, shape, 1, dtype.itemsize)
    planned = cost.peak_bytes("implicit", work) / 2**30
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    units = sum(branch.vectors * branch.ratio for branch in work.branches)
    weights = units * shape.parameters * dtype.itemsize / 2**40
    return (
        f"{shape.depth:5d} {shape.width:9d} {shape.embed_dim:9d} {shape.parameters:9.1e} "
        f"{seconds:9.1f} {planned:12.2f} {peak / 2**30:9.2f} {weights:12.3f} {loss:9.5f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=SHAPES, metavar="L,M,D")
    parser.add_argument("--precision", default="float64", choices=["float32", "float64"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--transformer", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = [Shape(*map(int, shape.split(","))) for shape in arguments.shapes]
    if arguments.child:
        print(
            train(
                shapes[0],
                arguments.samples,
                arguments.steps,
                arguments.precision,
                arguments.device,
                arguments.transformer,
            )
        )
        return
    print(
        f"{describe(arguments.device)}, {arguments.precision}, N = {arguments.samples}, "
        f"K = {arguments.steps}"
    )
    print(
        f"{'L':>5} {'M':>9} {'D':>9} {'L M D':>9} {'seconds':>9} {'planned GiB':>12} "
        f"{'peak GiB':>9} {'weights TiB':>12} {'loss':>9}",
        flush=True,
    )
    options = [argument for argument in sys.argv[1:] if argument not in arguments.shapes]
    for shape in arguments.shapes:
        subprocess.run([sys.executable, __file__, shape, "--child", *options], check=True)


if __name__ == "__main__":
    main()
