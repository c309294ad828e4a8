"""Networks of the recommended shapes beside their neighbours of as many parameters.

For each budget the best shape is taken from the prediction alone (``resnet-limits shape --budget P
--max-depth L CONFIG``). It is trained from many seeds, and so are eight neighbours in which sizes
go up and down by factors so that L M D stays, and the best shape without a largest depth. The
distances from the DMFT limit at the last step, hidden, are compared seed by seed, as networks of
one seed share their embedding: the ratio of RMS distances has a 95 % interval from a jackknife over
seeds, with Student's t. Of nine shapes one is better by chance more often than one alone, so that a
shape counts as better if its interval at 1 - 0.05/9 lies below 1.

Usage: ``python benchmarks/recommended_shapes.py [--budgets 2e4 2e5 2e6] [--max-depth 32]
[--seeds 16] [--out FILE] [CONFIG]``, which prints a Markdown table; the exit code is 1 if a shape
is better than the recommended one.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import t as student

from resnet_limits.config import Experiment, Shape, experiment_from_dict, load_experiment
from resnet_limits.errors import shape as shapes
from resnet_limits.kinds import OK
from resnet_limits.laws import in_quadrature
from resnet_limits.optimum import Bounds
from resnet_limits.stages import errors, limits, networks, prediction

Array = NDArray[np.float64]

PAIR = "finite-dmft"
# Factors of L, M and D.
NEIGHBOURS = (
    *((2, 1 / 2, 1), (1 / 2, 2, 1)),
    *((2, 1, 1 / 2), (1 / 2, 1, 2)),
    *((1, 2, 1 / 2), (1, 1 / 2, 2)),
    *((1, 4, 1 / 4), (1, 1 / 4, 4)),
)
# They, and the best shape of any depth.
COMPARED = len(NEIGHBOURS) + 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", nargs="?", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--budgets", nargs="+", type=float, default=[2e4, 2e5, 2e6])
    parser.add_argument("--max-depth", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def compared(recommended: Shape, deepest: Shape) -> dict[str, Shape]:
    """Name the shapes of one budget, the recommended one first."""
    found = {"recommended": recommended}
    for factors in NEIGHBOURS:
        sizes = (max(1, round(f * size)) for f, size in zip(factors, recommended, strict=True))
        name = ", ".join(
            f"{letter} {'x' if f > 1 else '/'} {max(f, 1 / f):g}"
            for letter, f in zip("LMD", factors, strict=True)
            if f != 1
        )
        found[name] = Shape(*sizes)
    return {**found, "of any depth": deepest}


def with_shapes(experiment: Experiment, wanted: list[Shape], seeds: int) -> Experiment:
    """Ask for some shapes, and for nothing but the distance that is compared."""
    values = experiment.model_dump(mode="json")
    values["sweep"] |= {
        "grid": None,
        "families": None,
        "shapes": [list(shape) for shape in dict.fromkeys(wanted)],
        "seeds": seeds,
        "pairs": [PAIR],
    }
    values["save"] |= {"depth_points": 2, "steps": [experiment.training.steps - 1]}
    return experiment_from_dict(values, where="benchmark")


def squares_of(experiment: Experiment, dmft: xr.Dataset) -> dict[Shape, Array]:
    """Train all networks; give the squared distances at the last step, by shape, NaN where none."""

    @functools.cache
    def trained(shape: Shape) -> xr.Dataset:
        return networks.finite(experiment, shape)

    def open_store(kind: str, cell: dict[str, int]) -> xr.Dataset:
        return dmft if kind == "dmft" else trained(Shape(**cell))

    table = errors.errors(experiment, open_store)[PAIR].isel(step=-1)
    found = {}
    for shape in experiment.shapes:
        mine = table.isel(
            cell=np.flatnonzero(
                (table.depth == shape.depth)
                & (table.width == shape.width)
                & (table.embed_dim == shape.embed_dim)
            )
        ).sortby("seed")
        square = mine.hidden_rms.values**2 - mine.hidden_rms_stderr.values**2
        found[shape] = np.where(mine.status.values == OK, square, np.nan)
    return found


def rms(squares: Array) -> float:
    return float(np.sqrt(np.nanmean(squares)))


def ratio(one: Array, other: Array) -> tuple[float, float, float, float]:
    """Give a ratio of RMS distances over the same seeds, its 95 % interval, and its joint end."""
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]

    def log_ratio(kept: NDArray[np.bool_]) -> float:
        return 0.5 * float(np.log(one[kept].mean() / other[kept].mean()))

    count = len(one)
    without = np.array([log_ratio(np.arange(count) != k) for k in range(count)])
    stderr = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    middle = log_ratio(np.ones(count, bool))
    half, joint = student.ppf([0.975, 1 - 0.025 / COMPARED], count - 1) * stderr
    return tuple(np.exp([middle, middle - half, middle + half, middle + joint]).tolist())


def rows(args: argparse.Namespace) -> Iterator[tuple[list[str], bool]]:
    """Give a row of the table for each shape, and whether it is better than the recommended."""
    experiment = load_experiment(args.config)
    dmft = limits.dmft(experiment)
    law = shapes.predicted_law(prediction.prediction(experiment, dmft))
    bounds = Bounds(most=Bounds().most._replace(depth=args.max_depth))
    for budget in args.budgets:
        best, deepest = (
            Shape(*(found[name] for name in Shape._fields))
            for found in (
                shapes.best_shape(law, budget, bounds, tell_ranges=False),
                shapes.best_shape(law, budget, tell_ranges=False),
            )
        )
        named = compared(best, deepest)
        asked = with_shapes(experiment, list(named.values()), args.seeds)
        squares = squares_of(asked, dmft)
        least = float(in_quadrature(law.amplitudes, np.array(best)))
        for name, shape in named.items():
            predicted = float(in_quadrature(law.amplitudes, np.array(shape)))
            middle, low, high, joint = ratio(squares[shape], squares[best])
            own = shape == best
            yield (
                [
                    f"{budget:g}",
                    name,
                    *map(str, shape),
                    str(shape.parameters),
                    f"{predicted:.4f}",
                    f"{rms(squares[shape]):.4f}",
                    "1" if own else f"{predicted / least:.3f}",
                    "1" if own else f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                    str(int(np.isnan(squares[shape]).sum())),
                ],
                not own and joint < 1,
            )


HEAD = (
    *("budget", "shape", "L", "M", "D", "L M D", "predicted", "measured"),
    *("ratio predicted", "ratio measured [95 %]", "diverged"),
)


def main() -> int:
    args = parse()
    lines = [
        f"`{args.config.name}`, hidden state, last step, {args.seeds} seeds.\n",
        "| " + " | ".join(HEAD) + " |",
        "|" + " --- |" * len(HEAD),
    ]
    print(*lines, sep="\n", flush=True)
    better = 0
    for row, is_better in rows(args):
        better += is_better
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    lines.append(f"\n{better} shapes are better than the recommended one, by the joint intervals.")
    print(lines[-1])
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(better > 0)


if __name__ == "__main__":
    raise SystemExit(main())
