"""Commands that compare: distances, fitted laws, and the best shape for a budget."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_limits.cli.common import COMMANDS, RESULTS, Config, Results, columns, save
from resnet_limits.cli.session import CommandError
from resnet_limits.config import Experiment, InputError, load_experiment, read_input

if TYPE_CHECKING:
    import xarray as xr

_OPTIONS = {"depth": "--depth", "width": "--width", "embed_dim": "--embed-dim"}


def _require(kinds: Sequence[str], experiment: Experiment, config: Path, results: Path) -> None:
    """Fail, naming what is missing and how to make it, unless every result is there."""
    from resnet_limits import integrity, provenance
    from resnet_limits.stages.paths import Paths, cell_name, cells

    paths = Paths(results, experiment.experiment)
    wanted = [(kind, cell) for kind in kinds for cell in cells(kind, experiment)]
    missing = [
        (kind, cell)
        for kind, cell in wanted
        if not integrity.manifest_matches(
            paths.manifest(kind, **cell), provenance.stage_key(kind, experiment, **cell)
        )
    ]
    if not missing:
        return
    names = ", ".join(cell_name(kind, **cell) for kind, cell in missing[:4])
    more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
    kind, cell = missing[0]
    if kind == "errors":
        command = f"errors {config}"
        if results != RESULTS:
            command += f" --results {results}"
    else:
        sizes = "".join(f" {_OPTIONS[name]} {size}" for name, size in cell.items())
        command = f"{COMMANDS[kind]} {config}{sizes} --out {paths.store(kind, **cell)}"
    raise CommandError(
        f"{paths.folder}: {len(missing)} of {len(wanted)} inputs missing or out of date: "
        f"{names}{more}; make the first with: resnet-limits {command}"
    )


def errors(config: Config, results: Results = RESULTS) -> None:
    """Measure the distances between networks and limits.

    Needs all limits and networks of the experiment in the results; writes errors.zarr.
    """
    from resnet_limits import store
    from resnet_limits.stages.paths import Paths

    experiment = load_experiment(config)
    paths = Paths(results, experiment.experiment)
    _require(tuple(COMMANDS), experiment, config, results)
    started = time.monotonic()
    from resnet_limits.stages import errors as stage

    def open_result(kind: str, cell: dict[str, int]) -> xr.Dataset:
        return store.load(paths.store(kind, **cell), stage.READ[kind])

    save(
        stage.errors(experiment, open_result),
        paths.store("errors"),
        "errors",
        experiment,
        started=started,
        manifest=paths.manifest("errors"),
    )


def rates(config: Config, results: Results = RESULTS) -> None:
    """Fit exponents and amplitudes to the distances.

    Needs errors.zarr in the results; writes rates.json and prints a table.
    """
    from resnet_limits import store
    from resnet_limits.stages.paths import Paths

    experiment = load_experiment(config)
    paths = Paths(results, experiment.experiment)
    _require(("errors",), experiment, config, results)
    started = time.monotonic()
    from resnet_limits.stages import rates as stage

    fitted = stage.rates(experiment, store.open_groups(paths.store("errors")))
    save(
        fitted,
        paths.store("rates"),
        "rates",
        experiment,
        started=started,
        manifest=paths.manifest("rates"),
    )
    for line in _rates_table(fitted):
        typer.echo(line)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(value: Any) -> str:
    return "" if not value else f" [{_number(value[0])}, {_number(value[1])}]"


def _rates_table(fitted: dict[str, Any]) -> Iterator[str]:
    """One line for each fitted power, and for each term of a sum, in columns."""
    rows = [("pair", "of", "step", "variable", "exponent [95 %]", "theory", "amplitude", "cells")]
    for pair, observables in fitted["pairs"].items():
        for observable, steps in observables.items():
            for step, fit in (steps or {}).items():
                found = fit or {}
                count = found.get("cells") or {}
                cells = f"{count.get('used', 0)}/{count.get('total', 0)}"
                for variable, exponent, theory, amplitude in _fitted_lines(found):
                    rows.append(
                        (pair, observable, str(step), variable, exponent, theory, amplitude, cells)
                    )
    yield from columns(rows)


def _fitted_lines(fit: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Variable, exponent, theory and amplitude of all that one fit found."""
    terms, budget = fit.get("terms") or {}, fit.get("fixed_budget") or {}
    if fit.get("exponent") is not None:
        exponent = _number(fit["exponent"]) + _interval(fit.get("exponent_interval"))
        amplitude = _number(fit.get("amplitude"))
        yield str(fit.get("variable", "-")), exponent, _number(fit.get("theory")), amplitude
    elif not terms:
        yield str(fit.get("variable", "-")), str(fit.get("reason", "no fit")), "-", "-"
    for name, term in terms.items():
        amplitude = _number(term.get("amplitude")) + _interval(term.get("amplitude_interval"))
        yield f"{name}, term", "-", "-", amplitude
    if budget:
        exponent = _number(budget.get("exponent")) + _interval(budget.get("exponent_interval"))
        yield "P, best shapes", exponent, _number(budget.get("theory")), "-"


def shape(
    rates_file: Annotated[
        Path, typer.Argument(metavar="RATES", help="rates.json of an experiment.")
    ],
    budget: Annotated[
        float, typer.Option("--budget", metavar="P", help="Parameters to spend, L M D.")
    ],
    observable: Annotated[
        str, typer.Option("--of", metavar="NAME", help="hidden, hidden_max_mean_abs or output.")
    ] = "hidden",
    step: Annotated[
        str, typer.Option("--step", metavar="K", help="A step in RATES, or last.")
    ] = "last",
) -> None:
    """Print the L, M and D that spend a budget best."""
    if not budget >= 1 or budget == float("inf"):
        raise InputError(f"--budget: {budget:g}, must be a finite number of at least 1")
    try:
        fitted = json.loads(read_input(rates_file, "a rates.json"))
    except InputError as error:
        raise InputError(f"RATES: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"RATES: {rates_file}: not a JSON file: {error}") from None
    if not isinstance(fitted, dict) or "pairs" not in fitted:
        raise InputError(f"RATES: {rates_file}: has no key pairs; give a rates.json")
    from resnet_limits.errors.shape import best_shape

    best = best_shape(fitted, budget, observable=observable, step=step)
    notes = str(best.pop("note", "")).split("; ")
    for name, value in best.items():
        typer.echo(f"{name}: {_said(value)}")
    for note in filter(None, notes):
        typer.echo(f"note: {note}")


def _said(value: Any) -> str:
    """Write a number, a name, or a mapping of them as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(part)}" for name, part in value.items())
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
