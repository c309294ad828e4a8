"""Compare a GPU with this machine's CPU, time it, and refit the cost model's constants for it.

One program for any machine with CUDA, of at most eight minutes; it needs no more than the numerical
part of the package does: numpy, scipy, torch, numba, pydantic and PyYAML. Each part has a time of
its own. What fails is a line of the table, and so is what there was no time for; the rest goes on.
The table is written anew after each line, to ``benchmarks/results/DEVICE.md``.

Exit codes: 0 if all holds, 1 if something does not or has not been seen, 2 without CUDA.

Usage: ``make gpu-check`` or ``PYTHONPATH=src python benchmarks/gpu_check.py [--out FOLDER]``.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import engine_cost
import limit_solver
import numpy as np
import torch
from machine import bandwidth, describe, matrix_rate, synchronize

from resnet_limits import devices
from resnet_limits.config import InputError, Shape
from resnet_limits.dynamics import Dynamics, make_dynamics
from resnet_limits.limits.models import Arithmetic, Limits, Plan, standard_error
from resnet_limits.networks import cost
from resnet_limits.networks.train import ENGINES, train
from resnet_limits.problem import Loss, limit_gram_root, make_problem
from resnet_limits.units import ACTIVATIONS, Perceptron
from resnet_limits.work import Work

PRECISIONS = {"float64": 1e-10, "float32": 1e-4}
"""Names, and how far GPU and CPU may differ, relative to the largest number."""
# Memory beside the arrays: workspaces of the libraries, temporary arrays of one layer.
_WORKSPACE = 512 << 20
_MOST_OF_PLAN = 1.1
_SEEDS = (0, 1)
_MEMORY, _ARITHMETIC = "memory, GB/s", "matrix product, GFLOP/s"


@dataclass(frozen=True)
class Sizes:
    """What is computed; the seconds that each part may take."""

    compared: tuple[int, int, int] = (6, 64, 96)
    points: int = 1 << 12
    dense: tuple[Shape, ...] = (Shape(100, 500, 500), Shape(100, 2000, 2000))
    implicit: tuple[Shape, ...] = (Shape(10, 100_000, 100_000),)
    rows: tuple[int, ...] = (1, 10)
    steps: int = 6
    limit: str = "paper-tanh"
    tolerances: tuple[float, ...] = (1e-4, 1e-5)
    costs: tuple[tuple[Shape, int, int, int], ...] = tuple(engine_cost.CASES)
    seconds: dict[str, float] = field(
        default_factory=lambda: {
            "rates": 20, "engines": 110, "limits": 60, "graphs": 20,
            "steps": 110, "tolerances": 80, "constants": 70,
        }
    )  # fmt: skip


TINY = Sizes(
    compared=(2, 6, 8),
    points=1 << 8,
    dense=(Shape(2, 8, 8),),
    implicit=(Shape(2, 100, 100),),
    steps=3,
    limit="one-sample",
    tolerances=(1e-2,),
    costs=((Shape(2, 8, 8), 1, 3, 1), (Shape(3, 8, 16), 2, 3, 2)),
    seconds=dict.fromkeys(Sizes().seconds, 600.0),
)
"""To try the program itself."""


class Unmet(Exception):  # noqa: N818
    """A check that does not hold."""


class OutOfTime(Exception):  # noqa: N818
    """A part has used up its time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after so many seconds, as soon as Python has its turn."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"not seen: out of time after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Table:
    """The results so far, in a file that is whole at any time.

    Parameters
    ----------
    file : Path
        Where it is written, after each line.
    title : str
        The device.
    facts : list of str
        What else there is to know of the machine.
    """

    def __init__(self, file: Path, title: str, facts: list[str]) -> None:
        self.file, self.title, self.facts = file, title, facts
        self.lines: list[str] = []
        self.good = self.bad = 0
        self.done = False

    def head(self, title: str, *columns: str) -> None:
        """Begin a part."""
        self._say("", f"## {title}", "", _line(columns), _line(["---"] * len(columns)))

    def row(self, *cells: str, good: bool = True) -> None:
        """Add a line and count it."""
        self.good, self.bad = self.good + good, self.bad + (not good)
        self._say(_line([*cells, "yes" if good else "**no**"]))

    def text(self, *lines: str) -> None:
        """Add plain lines."""
        self._say(*lines)

    def _say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self.lines += lines
        self.write()

    def write(self) -> None:
        """Put the file into its place."""
        state = "" if self.done else ", not finished"
        head = [f"# {self.title}", "", *self.facts]
        head += ["", f"{self.good} lines hold, {self.bad} do not{state}."]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        beside = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        beside.write_text("\n".join([*head, *self.lines, ""]))
        beside.replace(self.file)


def _line(cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


@dataclass(frozen=True)
class Check:
    """Everything that a part needs."""

    table: Table
    device: str
    sizes: Sizes
    measured: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def case(self, *cells: str, columns: int = 0) -> Iterator[None]:
        """Turn what goes wrong into a line of the table; only time that is up ends the part."""
        try:
            yield
        except (OutOfTime, KeyboardInterrupt):
            raise
        except Exception as error:
            message = " ".join(str(error).split())[:200] or "failed"
            kind = "" if isinstance(error, Unmet) else f"{type(error).__name__}: "
            blank = [""] * max(0, columns - len(cells) - 2)
            self.table.row(*cells, *blank, f"{kind}{message}".replace("|", "/"), good=False)


def problem(activation: str, rows: int, steps: int, *, loss: str = "squared_error") -> Dynamics:
    """Make a training problem whose states stay of the order of one."""
    rng = np.random.default_rng(0)
    return Dynamics.of_unit(
        inputs=rng.standard_normal((rows, 3)),
        targets=rng.standard_normal((rows, 3)),
        loss=Loss(loss),
        unit=Perceptron(activation),
        residual_scale=1.0,
        input_std=1.0,
        output_std=1.0,
        rate_in=0.1,
        rate_out=0.1,
        rate_embedding=0.05,
        steps=steps,
    )


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference, relative to the largest number of `one`; infinite if any is no number."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    return float(np.abs(one - other).max() / np.abs(one).max())


def rates(check: Check) -> None:
    """Measure what the floors are made of, and see that float32 is what it says."""
    check.table.head("Rates", "", "float64", "float32", "holds")
    types = [devices.dtype(name) for name in PRECISIONS]
    for name, measure in ((_MEMORY, bandwidth), (_ARITHMETIC, matrix_rate)):
        with check.case(name, columns=4):
            found = [measure(dtype, check.device) for dtype in types]
            check.measured[name] = found[0]
            check.table.row(name, *(f"{value / 1e9:.0f}" for value in found))
    with check.case("rounding of a product", columns=4):
        x = np.random.default_rng(0).standard_normal((256, 256))
        errors = []
        for dtype in types:
            there = torch.as_tensor(x, dtype=dtype, device=check.device)
            here = there.cpu().double().numpy()
            errors.append(difference(here @ here, (there @ there).cpu().double().numpy()))
        good = errors[0] < 1e-13 and errors[1] < 1e-5
        check.table.row("rounding of a product", *(f"{e:.0e}" for e in errors), good=good)


def engines(check: Check) -> None:
    """Train the same networks on both devices."""
    check.table.head(
        "Networks against the CPU's", "engine", "activation", "precision", "difference", "holds"
    )
    shape = Shape(*check.sizes.compared)
    for engine in ENGINES:
        for activation in ACTIVATIONS:
            for precision, tolerance in PRECISIONS.items():
                with check.case(engine, activation, precision, columns=5):
                    dynamics = problem(activation, 2, 4)
                    here, there = (
                        train(
                            dynamics,
                            shape,
                            _SEEDS,
                            lambda s: np.random.default_rng(s).standard_normal(
                                (shape.embed_dim, 6)
                            ),
                            0,
                            engine=engine,
                            dtype=devices.dtype(precision),
                            device=device,
                            steps=range(dynamics.steps),
                            layers=range(shape.depth + 1),
                            saved_dtype=np.float64,
                        )
                        for device in ("cpu", check.device)
                    )
                    worst = max(
                        difference(getattr(here, name), getattr(there, name))
                        for name in ("output", "loss", "hidden", "backward")
                    )
                    cells = engine, activation, precision, f"{worst:.1e}"
                    check.table.row(*cells, good=worst <= tolerance)


def limits(check: Check) -> None:
    """Solve the same limits on both devices."""
    check.table.head(
        "Limits against the CPU's", "limit", "activation", "precision", "difference", "holds"
    )
    rng = np.random.default_rng(1)
    bent = 0.1 * rng.standard_normal((6, 6))
    root = np.eye(6) + bent + bent.T
    for activation in ACTIVATIONS:
        for precision, tolerance in PRECISIONS.items():
            dynamics = problem(activation, 2, 4)
            kind = ("cubature", 0, 1) if dynamics.is_linear else ("sobol", check.sizes.points, 2)
            # Fixed points are found to this tolerance on either device, by other ways.
            plan = Plan(*kind, 6, 0, precision, tolerance / 10)
            solvers = [
                Limits(dynamics, np.eye(6), Arithmetic(devices.dtype(precision), device))
                for device in ("cpu", check.device)
            ]
            for name, solve in (
                ("DMFT", lambda found, plan=plan: found.dmft(plan)),
                ("Mean ODE", lambda found, plan=plan: found.mean_ode(root, plan)),
                ("wide", lambda found, plan=plan: found.wide(root, 10, plan)),
            ):
                with check.case(name, activation, precision, columns=5):
                    here, there = (solve(found).trajectory for found in solvers)
                    worst = max(
                        difference(getattr(here, part), getattr(there, part))
                        for part in ("output", "loss", "hidden", "backward")
                    )
                    cells = name, activation, precision, f"{worst:.1e}"
                    check.table.row(*cells, good=worst <= tolerance)


def _network(check: Check, engine: str, shape: Shape, rows: int, **options: object):
    dynamics = problem("tanh", rows, check.sizes.steps)
    embedding = np.random.default_rng(1).standard_normal((1, shape.embed_dim, 6))
    network = ENGINES[engine](
        dynamics, shape, [0], embedding, 0, dtype=torch.float64, device=check.device, **options
    )
    return dynamics, network


def _train(check: Check, dynamics: Dynamics, network) -> tuple[float, np.ndarray]:
    """Seconds of a step but the first, which prepares what later ones use, and the last outputs."""
    for step in range(dynamics.steps):
        if step == 1:
            synchronize(check.device)
            start = time.perf_counter()
        output = network.forward_pass()
        gradient = dynamics.loss.gradient(output, network.targets)
        network.backward_pass(gradient, update=step + 1 < dynamics.steps)
    synchronize(check.device)
    return (time.perf_counter() - start) / (dynamics.steps - 1), output.cpu().numpy()


def graphs(check: Check) -> None:
    """Record and replay passes, and launch them one by one."""
    columns = ("shape", "recorded, ms a step", "launched, ms a step", "difference", "holds")
    check.table.head("Recorded passes", *columns)
    for shape in (Shape(*check.sizes.compared), Shape(100, 30, 30)):
        name = "L={} M={} D={}".format(*shape)
        with check.case(name, columns=5):
            found = [
                _train(check, *_network(check, "dense", shape, 2, graphs=graphs))
                for graphs in (True, False)
            ]
            (fast, one), (slow, other) = found
            apart = difference(one, other)
            cells = f"{fast * 1e3:.3f}", f"{slow * 1e3:.3f}", f"{apart:.0e}"
            check.table.row(name, *cells, good=apart <= 1e-12)


def _floor(engine: str, work: Work, memory: float, arithmetic: float) -> float:
    """Seconds that a step takes at least, by bytes and by operations.

    The dense engine reads its weights twice and writes them once; the implicit one goes along its
    earlier probes about twice.
    """
    if engine == "dense":
        weights = work.vectors * work.shape.parameters
        return max(3 * weights * work.itemsize / memory, 6 * weights * work.rows / arithmetic)
    pairs = cost.terms(engine, work)[-1] / work.steps
    return max(2 * pairs / work.rows * work.itemsize / memory, 4 * pairs / arithmetic)


def steps(check: Check) -> None:
    """Time steps in float64 against the floors, and see how much memory they need."""
    columns = ("engine", "shape", "N", "ms a step", "floor, ms", "ratio", "peak GiB")
    check.table.head("Steps and memory", *columns, "planned GiB", "holds")
    dtype, on_gpu = torch.float64, check.device == "cuda"
    memory, arithmetic = (check.measured.get(name, np.nan) for name in (_MEMORY, _ARITHMETIC))
    for engine, shapes in (("dense", check.sizes.dense), ("implicit", check.sizes.implicit)):
        for shape in shapes:
            for rows in check.sizes.rows:
                name = "L={} M={} D={}".format(*shape)
                with check.case(engine, name, f"{rows}", columns=9):
                    dynamics = problem("tanh", rows, check.sizes.steps)
                    work = Work.of(dynamics, shape, 1, dtype.itemsize)
                    planned = cost.memory_bytes(engine, work)
                    if planned > devices.memory(check.device):
                        raise Unmet(f"not seen: needs {planned / 2**30:.1f} GiB")
                    if on_gpu:
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated() if on_gpu else 0
                    seconds, output = _train(check, *_network(check, engine, shape, rows))
                    if not np.isfinite(output).all():
                        raise Unmet("outputs are no numbers")
                    peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
                    floor = _floor(engine, work, memory, arithmetic)
                    check.table.row(
                        *(engine, name, f"{rows}", f"{seconds * 1e3:.3f}", f"{floor * 1e3:.3f}"),
                        f"{seconds / floor:.2f}",
                        *(f"{size / 2**30:.2f}" for size in (peak, planned)),
                        good=peak <= _MOST_OF_PLAN * planned + _WORKSPACE,
                    )


def tolerances(check: Check) -> None:
    """Solve the tanh setting's DMFT limit to a tolerance."""
    columns = ("tolerance", "seconds", "standard error", "depth error", "points", "holds")
    check.table.head(f"The DMFT limit of {check.sizes.limit}", *columns)
    experiment = limit_solver.setting(check.sizes.limit)
    data = make_problem(experiment)
    found = Limits(
        make_dynamics(experiment, data),
        limit_gram_root(data),
        Arithmetic(torch.float64, check.device),
    )
    for tolerance in check.sizes.tolerances:
        with check.case(f"{tolerance:.0e}", columns=6):
            start = time.perf_counter()
            plan, solution = found.make_plan(tolerance, experiment.seed)
            synchronize(check.device)
            seconds = time.perf_counter() - start
            reached = limit_solver.rms(standard_error(solution.trajectory.output))
            check.table.row(
                f"{tolerance:.0e}",
                f"{seconds:.1f}",
                f"{reached:.1e}",
                f"{limit_solver.rms(solution.depth_error):.1e}",
                f"{plan.replicates} x {plan.points}",
                good=reached <= tolerance,
            )


def constants(check: Check) -> None:
    """Fit the cost model's constants to the times of this device."""
    check.table.head("Cost model", "engine", "cases", "times off by", "holds")
    fitted: dict[str, str] = {}
    measured: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    try:
        for engine in ENGINES:
            # The first use loads libraries.
            engine_cost.training_seconds(engine, Shape(2, 8, 8), 1, 2, 1, check.device)
        # Both engines case by case, so that what there is when time is up serves both.
        for case in check.sizes.costs:
            for engine, times in measured.items():
                times.append(engine_cost.training_seconds(engine, *case, check.device))
    finally:
        for engine, times in measured.items():
            works = [Work(*case) for case in check.sizes.costs[: len(times)]]
            if not works:
                continue
            terms = np.array([cost.terms(engine, work) for work in works])
            found = engine_cost.fit(terms, np.array(times))
            off = np.exp(np.abs(np.log(terms @ found / times)))
            fitted[engine] = ", ".join(f"{value:.2g}" for value in found)
            cells = engine, f"{len(times)} of {len(check.sizes.costs)}", f"at most {off.max():.1f}"
            check.table.row(*cells, good=len(times) == len(check.sizes.costs))
        check.table.text(
            "",
            "Seconds of the terms of `networks/cost.py`, in the order of its `_CONSTANTS`:",
            "",
            "```python",
            *(f'"{engine}": ({values}),' for engine, values in fitted.items()),
            "```",
        )


PARTS: dict[str, Callable[[Check], None]] = {
    part.__name__: part for part in (rates, engines, limits, graphs, steps, tolerances, constants)
}


def run(check: Check) -> int:
    """Run all parts; return the exit code."""
    for name, part in PARTS.items():
        seconds = check.sizes.seconds[name]
        start = time.perf_counter()
        try:
            with within(seconds), check.case(name):
                part(check)
        except OutOfTime as late:
            check.table.row(name, str(late), good=False)
        check.table.text("", f"{time.perf_counter() - start:.1f} s of {seconds:.0f} s.")
        if check.device == "cuda":
            torch.cuda.empty_cache()
    check.table.done = True
    check.table.write()
    return 1 if check.table.bad else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--try-on-cpu", action="store_true", help="tiny, with the CPU in the GPU's place"
    )
    options = parser.parse_args(arguments)
    if options.try_on_cpu:
        device, sizes = "cpu", TINY
    else:
        try:
            device, sizes = devices.choose("cuda"), Sizes()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    name = describe(device)
    facts = [f"torch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} CPU cores."]
    if device == "cuda":
        facts[0] += f" {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB."
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    table = Table(options.out / f"{slug}.md", name, facts)
    code = run(Check(table, device, sizes))
    print(f"\n{table.good} lines hold, {table.bad} do not: {table.file}")
    return code


if __name__ == "__main__":
    sys.exit(main())
