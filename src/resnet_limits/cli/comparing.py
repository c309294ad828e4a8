"""Commands that compare: distances and fitted laws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from resnet_limits.cli.common import (
    COMMANDS,
    RESULTS,
    Config,
    Results,
    columns,
    place,
    study_for,
)
from resnet_limits.cli.session import CommandError
from resnet_limits.config import Experiment

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
    if kind == "prediction":
        command = f"predict {config} --results {results} --out {paths.store(kind)}"
    elif kind == "errors":
        command = f"errors {config}"
        if results != RESULTS:
            command += f" --results {results}"
    else:
        sizes = "".join(f" {_OPTIONS[name]} {size}" for name, size in cell.items())
        command = f"{COMMANDS[kind]} {config}{sizes} --out {paths.store(kind, **cell)}"
    raise CommandError(
        f"{paths.folder}: {len(missing)} of {len(wanted)} inputs are missing or out of date: "
        f"{names}{more}; make the first with: resnet-limits {command}"
    )


def errors(config: Config, results: Results = RESULTS) -> None:
    """Measure the distances between networks and limits.

    Needs all limits and networks of the experiment in the results; writes errors.zarr.
    """
    from resnet_limits import store
    from resnet_limits.stages.paths import Paths

    experiment = study_for(config)
    paths = Paths(results, experiment.experiment)
    _require(tuple(COMMANDS), experiment, config, results)
    with place(paths.store("errors"), experiment, "errors") as save:
        from resnet_limits.stages import errors as stage

        def open_result(kind: str, cell: dict[str, int]) -> xr.Dataset:
            return store.load(paths.store(kind, **cell), stage.READ[kind])

        save(stage.errors(experiment, open_result))


def rates(config: Config, results: Results = RESULTS) -> None:
    """Fit exponents and amplitudes to the distances.

    Needs errors.zarr and prediction.json in the results; writes rates.json, and prints a table of
    all fits and one of all claims with their verdicts.
    """
    from resnet_limits import integrity, store
    from resnet_limits.stages.paths import Paths

    experiment = study_for(config)
    paths = Paths(results, experiment.experiment)
    _require(("errors", "prediction"), experiment, config, results)
    with place(paths.store("rates"), experiment, "rates") as save:
        from resnet_limits.stages import rates as stage

        distances = store.open_groups(paths.store("errors"))
        prediction = integrity.read_json(paths.store("prediction"))
        fitted = stage.rates(experiment, distances, prediction)
        save(fitted)
    for line in (*_rates_table(fitted), "", *claims_table(fitted)):
        typer.echo(line)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(value: Any) -> str:
    return "" if value[0] is None else f" [{_number(value[0])}, {_number(value[1])}]"


def _rates_table(fitted: dict[str, Any]) -> Iterator[str]:
    """One line for each fitted power, and for each term of a sum, in columns; then warnings."""
    from resnet_limits.fitted import rates_table_rows, warnings

    rows = [
        (
            "pair",
            "of",
            "step",
            "variable",
            "exponent [95 %]",
            "theory",
            "amplitude",
            "cells",
            "below",
        )
    ]
    for row in rates_table_rows(fitted):
        if row["kind"] not in ("fit", "term", "budget"):
            continue
        exponent, amplitude = (
            _number(row[name]) + _interval((row[f"{name}_low"], row[f"{name}_high"]))
            for name in ("exponent", "amplitude")
        )
        if row["exponent"] is None and row["amplitude"] is None and row["reason"]:
            exponent = row["reason"]
        names = {"term": f"{row['variable']}, term", "budget": "P, best shapes"}
        rows.append(
            (
                *(row["pair"], row["quantity"], str(row["step"])),
                names.get(row["kind"], str(row["variable"])),
                *(exponent, _number(row["theory"])),
                *(amplitude, f"{row['used'] or 0}/{row['total'] or 0}"),
                str(row["below_resolution"] or 0),
            )
        )
    yield from columns(rows)
    for where, words in warnings(fitted):
        yield f"warning: {where}: {words}"


def claims_table(fitted: dict[str, Any]) -> Iterator[str]:
    """One line for each claim with its verdict, in columns; then how many there are of each."""
    from resnet_limits.fitted import CLAIM_COLUMNS, claim_counts, claim_rows

    yield from columns([CLAIM_COLUMNS, *claim_rows(fitted)])
    yield claim_counts(fitted)
