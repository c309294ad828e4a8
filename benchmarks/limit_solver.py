"""The DMFT limit of a nonlinear setting: its time to a tolerance, and its honesty.

Solves a setting with its own pilot and prints time, standard error and depth error; then, with
``--solves n``, solves it again with n other sets of scramblings and compares the scatter of the
solutions with the standard error that each of them claims; with ``--finer n``, against n times the
points, which shows a bias that the replicates share. For scale, the
time of the activations of the final solve alone, by torch, is measured in the same run.

The settings: ``paper-tanh``, that of ``config/paper-tanh.yaml``, and ``one-sample``, a tanh network
with one sample, three inputs, three targets and six states at a learning rate of 1.

Usage: ``python benchmarks/limit_solver.py [--setting one-sample] [--tolerance 1e-4] [--solves 20]
[--finer 16]``.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import describe, median_seconds

from resnet_limits import devices
from resnet_limits.config import Experiment, experiment_from_dict, load_experiment
from resnet_limits.dynamics import make_dynamics
from resnet_limits.limits import depth
from resnet_limits.limits.models import LimitError, Limits, standard_error
from resnet_limits.problem import limit_gram_root, make_problem


def setting(name: str) -> Experiment:
    if name == "paper-tanh":
        return load_experiment(Path(__file__).parents[1] / "config" / "paper-tanh.yaml")
    return experiment_from_dict(
        {
            "experiment": name,
            "problem": {"data": {"kind": "gaussian", "samples": 1, "inputs": 3, "targets": 3}},
            "model": {"unit": {"kind": "perceptron", "activation": "tanh"}},
            "training": {"steps": 6, "learning_rate": 1.0},
            "sweep": {"shapes": [[1, 1, 4]]},
        }
    )


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=["paper-tanh", "one-sample"], default="paper-tanh")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--solves", type=int, default=0)
    parser.add_argument("--finer", type=int, default=0)
    parser.add_argument("--points", type=int, default=0, help="points of the checks; the plan's")
    arguments = parser.parse_args()
    experiment = setting(arguments.setting)
    problem = make_problem(experiment)
    limits = Limits(make_dynamics(experiment, problem), limit_gram_root(problem))

    start, busy = time.perf_counter(), time.process_time()
    try:
        plan, solution = limits.make_plan(arguments.tolerance, experiment.seed)
    except LimitError as error:
        raise SystemExit(f"limit_solver: {error}") from None
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    start = time.perf_counter()
    limits.mean_ode(limits.limit_root, plan)
    again = time.perf_counter() - start
    output = solution.trajectory.output
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    block = torch.randn(1 << 15, dtype=devices.dtype(plan.precision))
    kept = torch.empty_like(block)
    each = median_seconds(lambda: torch.tanh(block, out=kept)) / len(block)
    torch.set_num_threads(threads)
    floor = each * plan.replicates * plan.points * problem.rows * solution.trajectory.passes
    print(f"{describe('cpu')}: {plan}")
    print(f"time {seconds:.2f} s with its pilot ({busy:.2f} s of processors); again {again:.2f} s")
    print(f"activations of {solution.trajectory.passes} passes on one thread: {floor:.2f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    print(f"standard error {rms(standard_error(output)):.2e} (wanted {arguments.tolerance:.1e})")
    few = replace(plan, points=min(plan.points, 1 << 12), replicates=4)
    coarse, fine = (
        limits.trajectories.solve(
            limits.limit_root, depth.continuous, replace(few, nodes=nodes), "", shared=True
        ).output
        for nodes in (plan.nodes, plan.nodes + 6)
    )
    print(
        f"depth error: estimate {rms(solution.depth_error):.1e}, against {plan.nodes + 6} nodes "
        f"{rms((fine - coarse).mean(axis=0)):.1e}"
    )
    check = replace(plan, points=arguments.points or plan.points)
    if arguments.solves:
        solves = [
            limits.dmft(replace(check, root_seed=10_000 + i)).trajectory.output
            for i in range(arguments.solves)
        ]
        claimed = rms(np.array([standard_error(o) for o in solves]))
        spread = rms(np.std([o.mean(axis=0) for o in solves], axis=0, ddof=1))
        print(
            f"{arguments.solves} solves of {check.points} points: claimed {claimed:.2e}, seen "
            f"{spread:.2e}, ratio {spread / claimed:.2f}"
        )
        if arguments.finer:
            more = replace(check, points=arguments.finer * check.points, root_seed=20_000)
            exact = limits.dmft(more).trajectory.output
            mean = np.mean([o.mean(axis=0) for o in solves], axis=0)
            own = spread / len(solves) ** 0.5
            print(
                f"their mean against {more.points} points: {rms(mean - exact.mean(axis=0)):.2e}; "
                f"expected from scatter {np.hypot(own, rms(standard_error(exact))):.2e}"
            )


if __name__ == "__main__":
    main()
