"""Predicted amplitudes beside limits and trained networks, for many problems.

For each problem the prediction of ``resnet-limits predict`` stands beside what is measured:

- A_L: L (W(L) - DMFT) at L = 1024, on other points and depth nodes than those of the prediction.
  Its interval is that of the scramblings.
- A_D: sqrt(D) times the RMS over seeds of Mean ODE less DMFT, with embeddings of D = 4096 drawn.
- A_W: the RMS over seeds of the hidden states of trained networks less those of the limit of the
  same depth and embedding, over sqrt(D/(L M)). The embeddings are drawn and made orthogonal, so
  that all have the Gram matrix, and the limit, of large D. It stands beside the amplitude of large
  L and D, and beside that of the networks' own L and D, which has the noise of independent units
  in the r directions of the embedding.
- B: the scatter about their mean over seeds of the outputs of these networks less those of that
  limit, times sqrt(L M). It has no part of the bias.

Every problem has data and seeds of its own, so that ratios of different problems are independent.
Intervals of RMS values over seeds are from a jackknife with Student's t, of 95 %; that of a ratio
holds the prediction's uncertainty too.

Usage: ``python benchmarks/predicted_amplitudes.py [--problems NAMES] [--seeds 24]
[--mean-odes 128] [--jobs 1] [--out FILE]``, which prints a Markdown table.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from resnet_limits.config import experiment_from_dict
from resnet_limits.dynamics import make_dynamics
from resnet_limits.kinds import Shape
from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import gram, layers, noise, width
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.amplitudes.changes import Ends
from resnet_limits.limits.amplitudes.prediction import PredictionError
from resnet_limits.limits.models import Limits
from resnet_limits.limits.plan import REPLICATES, Plan
from resnet_limits.networks.train import choose_engine, train
from resnet_limits.problem import Problem, embedding_rows, gram_root, limit_gram_root, make_problem

Array = NDArray[np.float64]

A_L, A_D, A_W, A_W_AT_L, B = AMPLITUDES = ("A_L", "A_D", "A_W", "A_W at L, D", "B")
QUANTITIES = ("hidden", "output")

# Sizes at which the next orders are small.
DEPTH, EMBED_DIM = 1024, 4096
NETWORKS = Shape(16, 4096, 512)
# Where the noise is alpha = 4 times as large, so is its next order, of alpha^2 D/(LM).
# Attention heads cost more. A layer of two branches has no amplitude at its own depth.
SHAPES = {
    "alpha 4": Shape(16, 16384, 256),
    "attention heads": Shape(16, 1024, 128),
    "transformer": Shape(32, 512, 128),
}
# What has no error but that of the next order in 1/L may be off by so much.
EXACT = 5e-3

PERCEPTRON = {"kind": "perceptron", "activation": "tanh"}
GAUSSIAN = {"kind": "gaussian", "samples": 3, "inputs": 2, "targets": 2}
TASKS = {"kind": "in_context_regression", "samples": 2, "tokens": 2, "inputs": 1, "targets": 1}


def _unit(**values: Any) -> dict[str, Any]:
    return {"model": {"unit": values}}


def _activation(name: str) -> dict[str, Any]:
    return _unit(kind="perceptron", activation=name)


# What each problem has beside the defaults: three samples in two dimensions, six states of tanh
# perceptrons at a rate of one.
PROBLEMS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "linear": {**_activation("linear"), "training": {"learning_rate": 0.3}},
    "erf": _activation("erf"),
    "relu": {**_activation("relu"), "training": {"learning_rate": 0.4}},
    "gelu": _activation("gelu"),
    "silu": {**_activation("silu"), "training": {"learning_rate": 0.15}},
    "alpha 0.25": {
        "model": {"unit": PERCEPTRON, "residual_scale": 0.25},
        "training": {"learning_rate": 0.5},
    },
    "alpha 4": {"model": {"unit": PERCEPTRON, "residual_scale": 4.0}},
    "other scales": {
        "model": {
            "unit": PERCEPTRON,
            "init_std": {"input": 0.7, "output": 1.3, "embedding": 0.8, "unembedding": 1.2},
        },
        "training": {"learning_rate_in": 1.5, "learning_rate_out": 0.5},
    },
    "momentum, decay": {
        "training": {
            "learning_rate": 0.5,
            "rule": {"kind": "sgd", "momentum": 0.8},
            "weight_decay": 0.2,
        }
    },
    "batches": {"training": {"learning_rate": 0.4, "batches": {"size": 1}}},
    "trained embeddings": {"training": {"train_embeddings": True, "learning_rate": 0.2}},
    "rms norms": {
        "model": {"layer": [{"unit": PERCEPTRON, "norm": "rms"}], "final_norm": "rms"},
        "training": {"learning_rate": 0.5},
    },
    "gated": {
        **_unit(kind="gated_perceptron", activation="silu"),
        "training": {"learning_rate": 0.04},
    },
    "attention heads": {
        "problem": {"data": TASKS, "loss": "squared_error"},
        **_unit(kind="attention_head", key_dim=2, causal=False),
        "training": {"learning_rate": 1.0},
    },
    "transformer": {
        "problem": {"data": TASKS, "loss": "squared_error"},
        "model": {
            "layer": [
                {"unit": {"kind": "attention_head", "key_dim": 2, "causal": True}, "norm": "rms"},
                {
                    "unit": {"kind": "perceptron", "activation": "gelu"},
                    "norm": "rms",
                    "width_ratio": 2,
                },
            ],
            "final_norm": "rms",
        },
        "training": {"learning_rate": 0.25},
    },
    "digits": {
        "problem": {
            "data": {"kind": "digits", "samples": 4, "classes": 2},
            "loss": "cross_entropy",
        },
        "model": {"unit": PERCEPTRON, "init_std": {"embedding": 0.125}},
        "training": {"learning_rate": 4.0},
    },
}


@dataclass(frozen=True)
class Case:
    """A problem, its limits, and the root of all its random streams."""

    problem: Problem
    limits: Limits
    seed: int

    @classmethod
    def named(cls, name: str) -> Case:
        """Make a problem of the table; its name gives its seeds."""
        seed = zlib.crc32(name.encode())
        values: dict[str, Any] = {
            "experiment": "benchmark",
            "seed": seed,
            "problem": {"data": GAUSSIAN, "loss": "squared_error"},
            "model": {"unit": PERCEPTRON},
            "sweep": {"shapes": [list(NETWORKS)]},
            **PROBLEMS[name],
        }
        values["problem"]["data"] = {**values["problem"]["data"], "seed": seed}
        values["training"] = {"steps": 6, "learning_rate": 1.0, **values.get("training", {})}
        experiment = experiment_from_dict(values, where="benchmark")
        problem = make_problem(experiment)
        dynamics = make_dynamics(experiment, problem)
        return cls(problem, Limits(dynamics, limit_gram_root(problem)), seed)

    def plan(self, points: int, replicates: int, nodes: int = 8, number: int = 0) -> Plan:
        """Give points of their own, other ones for each number; exact where units are linear."""
        if self.limits.dynamics.is_linear:
            return Plan("cubature", 0, 1, nodes, self.seed + number)
        return Plan("sobol", points, replicates, nodes, self.seed + number)

    def root(self, rows: Array) -> Array:
        """Give the Gram root of an embedding."""
        return gram_root(self.problem, rows)

    def rows(self, seed: int, embed_dim: int) -> Array:
        """Draw an embedding."""
        return embedding_rows(self.problem, self.seed, seed, embed_dim)

    def orthogonal(self, seed: int, embed_dim: int) -> Array:
        """Draw an embedding, turned and stretched so that its Gram matrix is the DMFT limit's."""
        rows = self.rows(seed, embed_dim)
        turned: Array = rows @ np.linalg.inv(self.root(rows)) @ self.limits.limit_root
        return turned


@dataclass(frozen=True)
class Measured:
    """Measured amplitudes, shape (K,), the standard errors of their logs, and their freedom."""

    value: Array
    error: Array
    freedom: int


def over_seeds(squares: Array, factor: float) -> Measured:
    """Give RMS values times a factor, of squares (seeds, K), with the errors of a jackknife."""
    count = len(squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = 0.5 * np.log((squares.sum(axis=0) - squares) / (count - 1))
        scatter = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    error = np.sqrt((count - 1) / count * scatter)
    return Measured(factor * np.sqrt(squares.mean(axis=0)), error, count - 1)


def measured_layers(case: Case) -> tuple[Measured, Measured]:
    """Measure A_L of the hidden state and of the outputs."""
    plan = case.plan(512, REPLICATES, nodes=12, number=1)
    trajectories, root = case.limits.trajectories, case.limits.limit_root
    ends = [
        Ends.of(trajectories.solve(root, grid, plan, "benchmark", shared=True), root)
        for grid in (partial(depth.layered, DEPTH), depth.continuous)
    ]
    gap = ends[0].combined(ends[1], DEPTH, -DEPTH)
    gram = root @ root
    each, mean = gap.squares(gram), gap.mean().squares(gram)[:, 0]
    found = [Amplitude.of_fields(*parts) for parts in zip(each, mean, strict=True)]
    hidden, output = (
        Measured(part.value, _relative(part.uncertainty, part.value), plan.replicates - 1)
        for part in found
    )
    return hidden, output


def _relative(error: Array, value: Array) -> Array:
    return np.divide(error, value, where=value > 0, out=np.zeros_like(error))


def measured_gram(case: Case, seeds: int) -> tuple[Measured, Measured]:
    """Measure A_D of the hidden state and of the outputs."""
    # Seeds take turns with the scramblings, whose errors are so no common ones.
    plan = case.plan(2048, REPLICATES, number=2)
    trajectories, limit_root = case.limits.trajectories, case.limits.limit_root
    solved = trajectories.solve(limit_root, depth.continuous, plan, "benchmark")
    limit = Ends.of(solved, limit_root)
    squares = []
    for seed in range(seeds):
        root = case.root(case.rows(seed, EMBED_DIM))
        one = seed % plan.replicates
        mean_ode = trajectories.solve(
            root, depth.continuous, plan, "benchmark", replicates=range(one, one + 1)
        )
        own = Ends(*(part[one : one + 1] for part in limit))
        squares.append(Ends.of(mean_ode, root).combined(own, 1.0, -1.0).squares(root @ root)[:, 0])
    hidden, output = (over_seeds(np.array(squares)[:, place], EMBED_DIM**0.5) for place in range(2))
    return hidden, output


def measured_networks(case: Case, seeds: int, shape: Shape = NETWORKS) -> tuple[Measured, Measured]:
    """Measure A_W of the hidden state and B of the outputs."""
    dynamics, trajectories = case.limits.dynamics, case.limits.trajectories
    steps, draws = list(range(dynamics.steps)), range(seeds)
    engine = choose_engine("auto", dynamics, shape, seeds, torch.float64).engine
    networks = train(
        dynamics,
        shape,
        draws,
        lambda seed: case.orthogonal(seed, shape.embed_dim),
        case.seed,
        steps=steps,
        layers=[shape.depth],
        engine=engine,
        saved_dtype=np.float64,
    )
    root = case.limits.limit_root
    wide = trajectories.solve(
        root,
        partial(depth.layered, shape.depth),
        case.plan(8192, REPLICATES, number=3),
        "benchmark",
    )
    limit = Ends.of(wide, root).mean()
    squares, gaps = [], []
    for seed, hidden, output in zip(draws, networks.hidden, networks.output, strict=True):
        rows = case.orthogonal(seed, shape.embed_dim)
        squares.append(np.square(hidden[:, 0] - limit.hidden[0] @ rows.T).mean(axis=(-2, -1)))
        gaps.append(output - limit.output[0])
    units = shape.depth * shape.width
    scatter = np.array(gaps) - np.mean(gaps, axis=0)
    scatter_squares = np.square(scatter).mean(axis=(-2, -1)) * seeds / (seeds - 1)
    return (
        over_seeds(np.array(squares), (units / shape.embed_dim) ** 0.5),
        over_seeds(scatter_squares, units**0.5),
    )


@dataclass(frozen=True)
class Row:
    """One number of the table: what is predicted and measured of an amplitude at a step."""

    problem: str
    amplitude: str
    quantity: str
    step: int
    predicted: tuple[float, float]
    measured: float
    log_ratio: float
    error: float
    freedom: int

    @property
    def half(self) -> float:
        """Half the interval of the log of the ratio."""
        return float(student.ppf(0.975, self.freedom)) * self.error if self.freedom else 0.0

    @property
    def inside(self) -> bool:
        """Whether the interval holds 1; what is exact is off by the next order alone."""
        return abs(self.log_ratio) <= max(self.half, EXACT)

    def __str__(self) -> str:
        value, uncertain = self.predicted
        ends = (np.exp(self.log_ratio + sign * self.half) for sign in (0.0, -1.0, 1.0))
        ratio, low, high = (f"{end:.3f}" for end in ends)
        return (
            f"| {self.problem} | {self.amplitude} | {self.quantity} | {self.step} "
            f"| {value:.4g} ± {uncertain:.1g} | {self.measured:.4g} "
            f"| {ratio} [{low}, {high}]{'' if self.inside else ' *'} |"
        )


def rows_of(
    problem: str, quantity: str, amplitude: str, found: Amplitude, measured: Measured
) -> Iterator[Row]:
    """Give the rows of one amplitude: one for each of three steps."""
    last = len(measured.value) - 1
    # The first step is the first at which it is not zero.
    first = int(np.argmax(found.value > 1e-6 * found.value.max()))
    for step in (first, (first + last) // 2, last):
        value, uncertain = found.value[step], found.uncertainty[step]
        yield Row(
            *(problem, amplitude, quantity, step),
            predicted=(value, uncertain),
            measured=measured.value[step],
            log_ratio=float(np.log(measured.value[step] / value)),
            error=float(np.hypot(measured.error[step], uncertain / value)),
            freedom=measured.freedom,
        )


def predicted(case: Case, shape: Shape) -> Iterator[tuple[str, str, Amplitude]]:
    """Give predictions: name of the amplitude, quantity and what it is."""
    trajectories, plan = case.limits.trajectories, case.plan(1024, REPLICATES)
    inside, output = noise.unit_noise(trajectories, replace(plan, points=2048, replicates=192))
    yield B, "output", output
    # Of the limit of large L and D, and of the networks' own.
    variance = _width(case, plan, None)
    yield A_W, "hidden", Amplitude.of_fields(variance)
    if len(case.limits.dynamics.layer) == 1:
        variance = _width(case, plan, shape.depth)
        share = len(case.limits.limit_root) / shape.embed_dim
        own = (1.0 - share) * variance + inside.value**2 / shape.embed_dim
        yield A_W_AT_L, "hidden", Amplitude.of_fields(own)
    fewer = replace(plan, points=plan.points // 2)
    of_layers = layers.layer_amplitudes(trajectories, fewer)
    root = case.limits.limit_root
    of_gram = gram.gram_amplitudes(gram.gram_slopes(trajectories, plan), root @ root)
    for name, pair in ((A_L, of_layers), (A_D, of_gram)):
        yield from zip((name, name), QUANTITIES, pair[:2], strict=True)


def _width(case: Case, plan: Plan, depth_of: int | None) -> Array:
    variance, identity = width.width_variance(case.limits.trajectories, plan, layers=depth_of)
    if not identity.holds:
        raise PredictionError(f"the kernels do not make the drifts of the states: {identity}")
    return variance


def compared(problem: str, seeds: int, mean_odes: int) -> list[Row]:
    """Give the rows of one problem."""
    case, shape = Case.named(problem), SHAPES.get(problem, NETWORKS)
    found = list(predicted(case, shape))
    of_width, of_noise = measured_networks(case, seeds, shape)
    measured = {
        A_L: measured_layers(case),
        A_D: measured_gram(case, mean_odes),
        A_W: (of_width, of_noise),
        A_W_AT_L: (of_width, of_noise),
        B: (of_width, of_noise),
    }
    rows: list[Row] = []
    for name, quantity, amplitude in found:
        mine = measured[name][QUANTITIES.index(quantity)]
        rows += rows_of(problem, quantity, name, amplitude, mine)
    return sorted(rows, key=lambda row: (row.quantity, AMPLITUDES.index(row.amplitude)))


def summary(rows: list[Row]) -> Iterator[str]:
    """Give for each amplitude how many intervals hold 1, and the mean ratio of the last step."""
    yield "\n| amplitude | | intervals that hold 1 | mean ratio, last step [95 %] |"
    yield "|" + " --- |" * 4
    last = max(row.step for row in rows)
    for quantity in QUANTITIES:
        for name in AMPLITUDES:
            mine = [row for row in rows if (row.amplitude, row.quantity) == (name, quantity)]
            if not mine:
                continue
            ends = [row for row in mine if row.step == last and row.error > EXACT]
            weights = np.array([row.error for row in ends]) ** -2.0
            mean = float(weights @ [row.log_ratio for row in ends] / weights.sum())
            half = 1.96 * float(weights.sum()) ** -0.5
            yield (
                f"| {name} | {quantity} | {sum(row.inside for row in mine)} of {len(mine)} "
                f"| {np.exp(mean):.3f} [{np.exp(mean - half):.3f}, {np.exp(mean + half):.3f}] |"
            )


HEAD = "| problem | amplitude | | step | predicted | measured | measured/predicted [95 %] |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--mean-odes", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print(HEAD, "|" + " --- |" * 7, sep="\n", flush=True)
    rows: list[Row] = []
    one = partial(compared, seeds=args.seeds, mean_odes=args.mean_odes)
    with ProcessPoolExecutor(args.jobs) as pool:
        for mine in pool.map(one, args.problems):
            print(*mine, sep="\n", flush=True)
            rows += mine
    end = list(summary(rows))
    print(*end, sep="\n")
    if args.out:
        head = (
            "# Predicted amplitudes beside networks and limits\n",
            f"`python benchmarks/predicted_amplitudes.py`, {args.seeds} networks and "
            f"{args.mean_odes} Mean ODEs of each problem; networks of "
            f"{_sizes(NETWORKS)}"
            + "".join(f", {name}: {_sizes(shape)}" for name, shape in SHAPES.items())
            + ". A star: the interval does not hold 1.\n",
        )
        table = [HEAD, "|" + " --- |" * 7, *map(str, rows)]
        args.out.write_text("\n".join([*head, *table, *end]) + "\n", encoding="utf-8")


def _sizes(shape: Shape) -> str:
    return ", ".join(f"{letter} = {size}" for letter, size in zip("LMD", shape, strict=True))


if __name__ == "__main__":
    main()
