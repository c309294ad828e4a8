"""Predicted against measured errors along families of shapes, as ratios.

For every shape of the families of an experiment (`frontier`): the RMS error over seeds over what
the limit alone predicts, with the 95 % interval of the error. A prediction holds within five per
cent from some P on if from there on the interval of every ratio reaches into 0.95 to 1.05.

Usage: ``python benchmarks/predicted_frontier.py [--pair finite-dmft] [--out FILE] [FOLDER]``, with
the folder of the experiment's results (``rates.json`` and ``prediction.json``); prints Markdown
tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_limits.fitted import power_of_ten
from resnet_limits.kinds import SIZES
from resnet_limits.predicted import distance, known

NEAR = 0.05


def ratios(
    points: Sequence[Mapping[str, Any]], predicted: np.ndarray
) -> list[tuple[float, float, float]]:
    """Give the ratio of every shape and its interval, which is everything for too few seeds."""
    found = []
    for point, value in zip(points, predicted, strict=True):
        low, high = point["error_interval"] or (0.0, np.inf)
        found.append((point["error"] / value, low / value, high / value))
    return found


def holds_from(
    points: Sequence[Mapping[str, Any]], found: Sequence[tuple[float, float, float]]
) -> float | None:
    """Find the smallest P from which all intervals reach within five per cent of 1."""
    holding = None
    for point, (_, low, high) in zip(reversed(points), reversed(found), strict=True):
        if low > 1 + NEAR or high < 1 - NEAR:
            break
        holding = point["parameters"]
    return holding


def tables(rates: Mapping[str, Any], prediction: Mapping[str, Any], pair: str) -> Iterator[str]:
    step = rates["steps"][-1]
    for family, fits in rates["families"].items():
        for quantity in ("hidden", "output"):
            points = fits["pairs"][pair][quantity][str(step)]["points"]
            sizes = np.array([[point[name] for name in SIZES] for point in points], float)
            predicted = distance(known(prediction, pair, quantity, step), sizes)
            yield f"\n**Family {family}, {quantity}, {pair}, step {step}**\n"
            if predicted is None:
                yield "Not predicted."
                continue
            found = ratios(points, predicted)
            yield "| P | L | M | D | seeds | predicted | measured | measured/predicted [95 %] |"
            yield "|" + " --- |" * 8
            for point, value, (ratio, low, high) in zip(points, predicted, found, strict=True):
                shape = " | ".join(str(point[name]) for name in SIZES)
                yield (
                    f"| {point['parameters']:.3g} | {shape} | {point['seeds']} | {value:.4g} "
                    f"| {point['error']:.4g} | {ratio:.3f} [{low:.3f}, {high:.3f}] |"
                )
            start = holds_from(points, found)
            said = "no P" if start is None else f"P = {power_of_ten(start)}"
            yield f"\nWithin 5 %, as far as the intervals tell, from {said} on."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results/frontier"))
    parser.add_argument("--pair", default="finite-dmft")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rates, prediction = (
        json.loads((args.folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("rates", "prediction")
    )
    lines = list(tables(rates, prediction, args.pair))
    print(*lines, sep="\n")
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
