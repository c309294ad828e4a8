"""Networks of growing size against their limit, for every pair of units, stacks, norms and rules.

For each combination networks of L = M = D = n are trained from many seeds, and the mean of their
outputs is compared with the limit of infinite width of as many layers at the limit's own Gram root.
What is left, of order 1/D and D/(LM), falls like 1/n; the differences of the last two sizes are
extrapolated to 1/n = 0. A z-score is the difference of an output of the last step, or of its loss,
over its standard error: that of the mean over seeds and that of the limit. The combinations are
chosen so that any two values of two axes meet.

With ``--broken`` the networks lack what the combination is about (the norms, the training rule, the
second branch's place), which their z-scores must show.

Usage: ``python benchmarks/networks_and_limits.py [--sizes 16 32 64] [--seeds 96] [--cases 3 7]
[--broken] [--out FILE]``, which prints a Markdown table; the exit code is 1 if an
extrapolated z-score is above 4, or with ``--broken`` if a combination shows nothing.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray

from resnet_limits.config import Shape
from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.limits.fixed_point import LimitError
from resnet_limits.limits.models import Limits, Plan
from resnet_limits.networks.train import train
from resnet_limits.norms import RMS, Identity
from resnet_limits.problem import Loss
from resnet_limits.rules import GradientDescent
from resnet_limits.units import (
    ACTIVATIONS,
    AttentionHead,
    Convolution,
    GatedPerceptron,
    Perceptron,
    Unit,
)

Array = NDArray[np.float64]

SAMPLES, TOKENS, STEPS = 2, 3, 5
ROWS = SAMPLES * TOKENS
LARGEST_Z = 4.0
TOLERANCE = 3e-3
# Rates are halved, down to this part of them, where the limit or one of the networks diverges.
SLOWEST = 16.0

UNITS: dict[str, partial[Unit]] = {
    **{name: partial(Perceptron, name) for name in ACTIVATIONS},
    "gated": partial(GatedPerceptron, "silu"),
    "causal attention": partial(AttentionHead, 2, True, TOKENS),
    "attention": partial(AttentionHead, 2, False, TOKENS),
    "convolution": partial(Convolution, (-1, 0, 2), "tanh", TOKENS),
}
STACKS = {"alone": 0.0, "and gelu, ratio 2": 2.0, "and gelu, ratio 1/2": 0.5}
NORMS = {"none": Identity(), "rms": RMS()}
COSINE = tuple(0.5 * (1 + np.cos(np.pi * k / (STEPS - 1))) for k in range(STEPS - 1))
BATCHES = ((0, 1, 2), (3, 4, 5), (0, 1, 2, 3, 4, 5), (3, 4, 5))
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"rule": GradientDescent(momentum=0.7)},
    "nesterov": {"rule": GradientDescent(momentum=0.7, nesterov=True)},
    "decay": {"rule": GradientDescent(decay=0.5)},
    "momentum, decay, cosine": {"rule": GradientDescent(0.7, False, 0.5, COSINE)},
    "batches": {"batches": BATCHES},
    "weights": {"weights": np.array([1.0, 0.0, 3.0, 0.5, 2.0, 1.0]) / 7.5},
    "trained embeddings": {"rate_embedding": 0.2, "rate_unembedding": 0.1},
}
AXES: list[list[str]] = [list(axis) for axis in (UNITS, STACKS, NORMS, NORMS, RULES)]


def all_pairs(axes: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Choose combinations in which any two values of two axes meet."""

    def pairs(case: tuple[str, ...]) -> set[tuple[int, int, str, str]]:
        return {(i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(axes)), 2)}

    rng = np.random.default_rng(0)
    left = set().union(*(pairs(case) for case in itertools.product(*axes)))
    chosen = []
    while left:
        some = [tuple(axis[rng.integers(len(axis))] for axis in axes) for _ in range(40)]
        best = max(some, key=lambda case: len(pairs(case) & left))
        if pairs(best) & left:
            chosen.append(best)
            left -= pairs(best)
    return chosen


def problem(
    unit: str, stack: str, norm: str, final: str, rule: str, slower: float = 1.0
) -> Dynamics:
    """Give the training problem of a combination, all its rates divided by a number."""
    rng = np.random.default_rng(3)
    rates = {"rate_in": 0.15 / slower, "rate_out": 0.15 / slower}
    ends = {name: rate / slower for name, rate in RULES[rule].items() if name.startswith("rate_")}
    layer = [Branch(UNITS[unit](), NORMS[norm], 1.0, 0.8, 1.1, 0.9, **rates)]
    if STACKS[stack]:
        layer.append(Branch(Perceptron("gelu"), NORMS[norm], STACKS[stack], 1.2, 0.8, 1.1, **rates))
    return Dynamics(
        inputs=rng.standard_normal((ROWS, 2)),
        targets=rng.standard_normal((ROWS, 2)),
        loss=Loss("squared_error"),
        layer=tuple(layer),
        steps=STEPS,
        final_norm=NORMS[final],
        **{**RULES[rule], **ends},
    )


def broken(dynamics: Dynamics) -> Dynamics:
    """Give the problem without what is particular about it."""
    if len(dynamics.layer) > 1:
        return replace(dynamics, layer=dynamics.layer[:1])
    changed = {
        "rule": GradientDescent(),
        "batches": None,
        "weights": None,
        "rate_embedding": 0.0,
        "rate_unembedding": 0.0,
        "final_norm": Identity(),
    }
    unit = dynamics.layer[0].unit
    other = Perceptron("tanh" if unit.is_linear else "linear")
    return replace(dynamics, **changed).with_branches(norm=Identity(), unit=other)


def means(dynamics: Dynamics, size: int, seeds: range) -> tuple[Array, Array]:
    """Train networks of D = M; give mean and standard error of the last outputs and the loss."""
    trained = train(
        dynamics,
        Shape(size, size, size),
        seeds,
        lambda seed: np.random.default_rng((seed, 17)).standard_normal((size, 4)),
        root_seed=0,
        steps=[STEPS - 1],
        layers=[size],
        dtype=torch.float64,
    )
    values = np.column_stack([trained.output[:, 0].reshape(len(seeds), -1), trained.loss[:, 0]])
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(seeds))


def means_of_limit(limits: Limits, layers: int, plan: Plan) -> tuple[Array, Array]:
    """Solve the limit of so many layers; give the last outputs and the loss, and their errors."""
    wide = limits.wide(np.eye(4), layers, plan)
    solved = wide.trajectory
    output, loss = (values[:, -1].mean(axis=0) for values in (solved.output, solved.loss))
    return np.append(output, loss), np.append(wide.output_stderr[-1], wide.loss_stderr[-1])


Gap = tuple[Array, Array]
"""Differences of the means from the limit, and their standard errors."""


def gaps(
    case: tuple[str, ...], slower: float, sizes: Sequence[int], seeds: range, lacking: bool
) -> list[Gap]:
    """Compare networks of every size with their limits.

    Raises
    ------
    LimitError
        If the limit diverges.
    """
    dynamics = problem(*case, slower)
    limits = Limits(dynamics, np.eye(4))
    plan, _ = limits.make_plan(TOLERANCE, 0)
    networks = broken(dynamics) if lacking else dynamics
    found = []
    for size in sizes:
        limit, error = means_of_limit(limits, size, plan)
        mean, spread = means(networks, size, seeds)
        found.append((mean - limit, np.hypot(spread, error)))
    return found


def tamed(
    case: tuple[str, ...], sizes: Sequence[int], seeds: range, lacking: bool
) -> tuple[float, list[Gap]]:
    """Compare at rates so low that neither the limit nor a network diverges, or the lowest."""
    slower = 1.0
    while True:
        try:
            found = gaps(case, slower, sizes, seeds, lacking)
        except LimitError:
            if slower == SLOWEST:
                raise
        else:
            if slower == SLOWEST or all(np.isfinite(gap).all() for gap, _ in found):
                return slower, found
        slower *= 2.0


def _cell(difference: Array, spread: Array) -> str:
    z = np.abs(difference / spread).max()
    return f"{z:.1f} ({np.sqrt(np.mean(difference[:-1] ** 2)):.4f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--seeds", type=int, default=96)
    parser.add_argument("--cases", type=int, nargs="*", help="only these, counted from 0")
    parser.add_argument("--broken", action="store_true", help="networks without what is particular")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    cases = all_pairs(AXES)
    chosen = range(len(cases)) if arguments.cases is None else arguments.cases
    lines = [
        f"Networks of L = M = D = n: largest z-score of outputs and loss of step {STEPS - 1}, "
        f"{arguments.seeds} seeds; in brackets the RMS distance of the mean outputs. "
        f"{describe('cpu')}",
        "",
        "| | unit | stack | norm | final norm | rule | rates over | "
        + " | ".join(f"n = {size}" for size in arguments.sizes)
        + " | extrapolated |",
        "| --- " * (8 + len(arguments.sizes)) + "|",
    ]
    print("\n".join(lines), flush=True)
    bad = 0
    for number in chosen:
        # Other seeds for every combination, so that chance is not the same for all.
        seeds = range(number * arguments.seeds, (number + 1) * arguments.seeds)
        slower, found = tamed(cases[number], arguments.sizes, seeds, arguments.broken)
        cells = [_cell(*gap) for gap in found]
        (coarse, of_coarse), (fine, of_fine) = found[-2:]
        grown = arguments.sizes[-1] / arguments.sizes[-2]
        rest = (grown * fine - coarse) / (grown - 1)
        spread = np.hypot(grown * of_fine, of_coarse) / (grown - 1)
        cells.append(_cell(rest, spread))
        z = np.abs(rest / spread).max()
        bad += (z <= LARGEST_Z) if arguments.broken else not z <= LARGEST_Z
        lines.append(f"| {number} | " + " | ".join([*cases[number], f"{slower:g}", *cells]) + " |")
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    raise SystemExit(int(bad > 0))


if __name__ == "__main__":
    main()
