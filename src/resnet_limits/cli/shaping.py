"""The command that chooses a shape, by a predicted or a fitted law."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_limits.cli.common import RESULTS, experiment_for
from resnet_limits.cli.computing import Plan
from resnet_limits.cli.predicting import (
    MINUTES,
    AnyDepth,
    AnyEmbedDim,
    AnyWidth,
    Minutes,
    named_shape,
    prediction_for,
)
from resnet_limits.config import Experiment, InputError, Shape, read_input
from resnet_limits.kinds import SIZES

if TYPE_CHECKING:
    from resnet_limits.errors.shape import Basis
    from resnet_limits.optimum import Bounds

# Of rates.json, which grows with the steps, pairs and families of a study.
MAX_RATES_BYTES = 64 * 2**20
_RATES = "a rates.json"
_CONFIG_ENDINGS = (".yaml", ".yml")


def shape(
    *,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RATES|CONFIG",
            help="rates.json of an experiment, for the law fitted to its networks; or an "
            "experiment file (.yaml), for the law that its limit predicts.",
        ),
    ],
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="P", help="Number of parameters, L M D.")
    ] = None,
    error: Annotated[
        float | None,
        typer.Option("--error", metavar="E", help="Distance to reach with the fewest parameters."),
    ] = None,
    depth: AnyDepth = None,
    width: AnyWidth = None,
    embed_dim: AnyEmbedDim = None,
    max_depth: Annotated[
        int | None, typer.Option("--max-depth", metavar="L", min=1, help="Largest depth allowed.")
    ] = None,
    within: Annotated[
        Path | None,
        typer.Option("--within", metavar="RATES", help="Stay within the sizes that were measured."),
    ] = None,
    observable: Annotated[
        str,
        typer.Option(
            "--of", metavar="NAME", help="hidden or output; with RATES also hidden_max_mean_abs."
        ),
    ] = "hidden",
    step: Annotated[
        str, typer.Option("--step", metavar="K", help="Number of a step, or last.")
    ] = "last",
    minutes: Minutes = MINUTES,
    results: Plan = RESULTS,
) -> None:
    """Print the best L, M and D for a budget, or for an error.

    With CONFIG no network is needed. With a shape, print how much that shape wastes.
    """
    named = named_shape(depth, width, embed_dim)
    _check_numbers(budget, error, named)
    from resnet_limits.errors import shape as shapes

    experiment: Experiment | None = None
    if source.suffix in _CONFIG_ENDINGS:
        experiment = experiment_for(source)
        if observable not in ("hidden", "output"):
            raise InputError(f"--of: {observable}; allowed with CONFIG: hidden, output")
        _check_step(step, experiment)
        bounds = _bounds(max_depth, within, observable, step)
        prediction = prediction_for(experiment, source, minutes, results)
        law = shapes.predicted_law(prediction, observable, step)
    else:
        law = shapes.fitted_law(_read_rates(source, "RATES"), observable, step)
        bounds = _bounds(max_depth, within, observable, step)
    for line in _answers(law, bounds, budget, error, named, experiment):
        typer.echo(line)


def _check_numbers(budget: float | None, error: float | None, named: Shape | None) -> None:
    if budget is not None and error is not None:
        raise InputError("--budget, --error: both are given; allowed: one of them")
    if budget is None and error is None and named is None:
        raise InputError("--budget, --error, a shape: none is given; allowed: one of them")
    if budget is not None and (not budget >= 1 or budget == float("inf")):
        raise InputError(f"--budget: {budget:g}; allowed: a finite number of at least 1")
    if error is not None and not 0 < error < float("inf"):
        raise InputError(f"--error: {error:g}; allowed: a finite number above 0")


def _check_step(step: str, experiment: Experiment) -> None:
    steps = experiment.training.steps
    if step != "last" and not (step.isdecimal() and int(step) < steps):
        raise InputError(f"--step: {step}; allowed: last, 0 to {steps - 1}")


def _read_rates(file: Path, where: str) -> dict[str, Any]:
    try:
        fitted = json.loads(read_input(file, _RATES, MAX_RATES_BYTES))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {file}: not JSON ({error}); allowed: {_RATES}") from None
    if not isinstance(fitted, dict) or "pairs" not in fitted:
        raise InputError(f"{where}: {file}: lacks the key pairs; allowed: {_RATES}")
    return fitted


def _bounds(max_depth: int | None, within: Path | None, observable: str, step: str) -> Bounds:
    from resnet_limits.errors.shape import measured_bounds
    from resnet_limits.optimum import ANY, Bounds

    bounds = ANY if max_depth is None else Bounds(most=ANY.most._replace(depth=max_depth))
    if within is None:
        return bounds
    measured = measured_bounds(_read_rates(within, "--within"), observable, step)
    return bounds.within(measured)


def _answers(
    law: Basis,
    bounds: Bounds,
    budget: float | None,
    error: float | None,
    named: Shape | None,
    experiment: Experiment | None,
) -> Iterator[str]:
    from resnet_limits.errors import shape as shapes

    best = None
    if budget is not None:
        best = shapes.best_shape(law, budget, bounds)
    elif error is not None:
        best = shapes.smallest_shape(law, error, bounds)
    if best is not None:
        yield from _lines(best, experiment)
    if named is not None:
        found = shapes.waste(law, named, bounds)
        yield f"shape: {_said({name: found[name] for name in (*SIZES, 'predicted_error')})}"
        yield f"waste: {found['waste']:.4g} times the error of {_said(found['best'])}"
        fewer = found["would_do"]
        yield f"would_do: {fewer} parameters of {named.parameters}"


def _lines(best: dict[str, Any], experiment: Experiment | None) -> Iterator[str]:
    """Write what is known of the best shape, a line each."""
    notes = str(best.get("note", "")).split("; ")
    for name, value in best.items():
        if name == "within":
            for part, ranges in value.items():
                yield f"within {100 * part:g} %: {_said(ranges)}"
        elif name not in ("note", "interval") or (name == "interval" and value is not None):
            yield f"{name}: {_said(value)}"
        if name == "parameters" and experiment is not None:
            yield f"weights: {_weights(best, experiment)}"
    for note in filter(None, notes):
        yield f"note: {note}"


def _weights(best: Mapping[str, Any], experiment: Experiment) -> int:
    from resnet_limits.work import block_weights, branches_of

    sizes = Shape(*(best[name] for name in SIZES))
    return block_weights(sizes, branches_of(experiment, None))


def _said(value: Any) -> str:
    """Write a number, a name, a range, or a mapping of them as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(part)}" for name, part in value.items())
    if isinstance(value, list):
        low, high = (str(end) if isinstance(end, int) else f"{end:.4g}" for end in value)
        return low if low == high else f"{low} to {high}"
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
