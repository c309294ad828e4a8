"""The DMFT limit of the published tanh setting: its time to a tolerance, and its honesty.

Solves the setting of ``config/paper-tanh.yaml`` with its own pilot, prints time, standard error and
depth error; then, with ``--solves n``, solves it again with n other sets of scramblings and
compares the scatter of the solutions with the standard error that each of them claims. The floor is
the time of the final solve's activations alone, measured in the same run.

Usage: ``python benchmarks/limit_solver.py [--tolerance 1e-3] [--solves 20]``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import describe, median_seconds

from resnet_limits.config import load_experiment
from resnet_limits.dynamics import make_dynamics
from resnet_limits.limits.models import Limits, standard_error
from resnet_limits.problem import limit_gram_root, make_problem

SETTING = Path(__file__).parents[1] / "config" / "paper-tanh.yaml"


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--solves", type=int, default=0)
    parser.add_argument("--finer", type=int, default=6, help="nodes added for the depth check")
    arguments = parser.parse_args()
    experiment = load_experiment(SETTING)
    problem = make_problem(experiment)
    limits = Limits(make_dynamics(experiment, problem), limit_gram_root(problem))

    start = time.perf_counter()
    plan, solution = limits.make_plan(arguments.tolerance, experiment.seed)
    seconds = time.perf_counter() - start
    output = solution.trajectory.output
    elements = plan.nodes * plan.replicates * plan.points * problem.rows
    block = torch.randn(1 << 18, dtype=torch.float64)
    each = median_seconds(lambda: torch.tanh(block)) / len(block)
    floor = each * elements * solution.trajectory.iterations / 2
    print(f"{describe('cpu')}: {plan}")
    print(f"time {seconds:.2f} s; activations of the last solve alone {floor:.2f} s")
    print(f"standard error {rms(standard_error(output)):.2e} (wanted {arguments.tolerance:.1e})")
    finer = limits.dmft(replace(plan, nodes=plan.nodes + arguments.finer)).trajectory.output
    print(
        f"depth error: estimate {rms(solution.depth_error):.1e}, against "
        f"{plan.nodes + arguments.finer} nodes {rms((finer - output).mean(axis=0)):.1e}"
    )
    if arguments.solves:
        solves = [
            limits.dmft(replace(plan, root_seed=10_000 + i)).trajectory.output
            for i in range(arguments.solves)
        ]
        claimed = rms(np.array([standard_error(o) for o in solves]))
        spread = rms(np.std([o.mean(axis=0) for o in solves], axis=0, ddof=1))
        print(
            f"{arguments.solves} solves: claimed {claimed:.2e}, seen {spread:.2e}, "
            f"ratio {spread / claimed:.2f}"
        )


if __name__ == "__main__":
    main()
