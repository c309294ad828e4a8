"""The command line: every step of the pipeline without Snakemake.

Exit codes: 0 done; 1 failed (``check``: unsound); 2 bad input, with one line on the error stream;
75 stopped early with finished work saved, run again.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnet_limits.config import (
    ENGINES,
    Experiment,
    InputError,
    Shape,
    experiment_from_dict,
    load_experiment,
    one_line,
    read_input,
)
from resnet_limits.signals import STOPPED, Stopped, stop_signals

if TYPE_CHECKING:
    import xarray as xr

DONE, FAILED, BAD_INPUT = 0, 1, 2

_LOG = logging.getLogger("resnet_limits")
_COMMANDS = {"dmft": "dmft", "mean_ode": "mean-ode", "wide": "wide", "finite": "train"}
_OPTIONS = {"depth": "--depth", "width": "--width", "embed_dim": "--embed-dim"}

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Residual networks against their infinite-size limit.",
)


class CommandError(Exception):
    """Something failed that was no fault of the input. The message is one line."""


class _Session:
    """What the exit code and the messages depend on."""

    verbose = False
    saved = False


# --- arguments ------------------------------------------------------------------------------------

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Experiment file (YAML).")]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store: .zarr or .zarr.zip.")]
Out = Annotated[Path, typer.Option("--out", help="Store to write: .zarr or .zarr.zip.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of all results.")]
Depth = Annotated[int, typer.Option("--depth", min=1, help="Number of blocks, L.")]
Width = Annotated[int, typer.Option("--width", min=1, help="Hidden units per block, M.")]
EmbedDim = Annotated[int, typer.Option("--embed-dim", min=1, help="Embedding dimension, D.")]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", min=1, help="Number of seeds, 0..n-1; the experiment's if left out."),
]

_RESULTS = Path("results")


def _experiment(config: Path, **sweep: Any) -> Experiment:
    """Load an experiment, with keys of its sweep replaced by what the command line gives.

    The changed experiment is what is computed and what the store records, so that its stage key
    is that of an experiment file with the same values.
    """
    experiment = load_experiment(config)
    changes = {name: value for name, value in sweep.items() if value is not None}
    if not changes:
        return experiment
    values = experiment.model_dump(mode="json")
    values["sweep"] = {**values["sweep"], **changes}
    return experiment_from_dict(values, where="command line")


@contextmanager
def _naming(config: Path) -> Iterator[None]:
    """Let complaints about data, which know nothing of the experiment file, begin with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(one_line(f"{config}: {error}")) from None


def _check_out(path: Path) -> None:
    from resnet_limits import store

    try:
        store.check_target(path)
    except store.StoreError as error:
        raise InputError(f"--out: {error}") from None


def _existing_store(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"STORE: {path}: no such store")
    return path


def _pipeline_manifest(path: Path, experiment: Experiment, kind: str, **cell: int) -> Path | None:
    """Manifest of a store that is written to its own place among the results, else None."""
    from resnet_limits.stages.paths import Paths

    path = path.resolve()
    place = Paths(Path(), experiment.experiment).store(kind, **cell)
    if path.parts[-len(place.parts) :] != place.parts:
        return None
    root = Path(*path.parts[: -len(place.parts)])
    return Paths(root, experiment.experiment).manifest(kind, **cell)


def _store_manifest(path: Path) -> Path | None:
    """Manifest that belongs to a store, if there is one."""
    path = path.resolve()
    for folder in list(path.parents)[:2]:
        manifest = (folder / "manifests" / path.relative_to(folder)).with_suffix(".json")
        if manifest.is_file():
            return manifest
    return None


# --- computing ------------------------------------------------------------------------------------


def _save(
    dataset: Any,
    path: Path,
    kind: str,
    experiment: Experiment,
    *,
    started: float,
    manifest: Path | None,
    **cell: int,
) -> None:
    from resnet_limits import provenance
    from resnet_limits.stages.publish import publish

    publish(
        dataset,
        path,
        kind=kind,
        experiment=experiment,
        key=provenance.stage_key(kind, experiment, **cell),
        device="cpu",
        seeds=provenance.cell_seeds(kind, experiment, **cell),
        started=started,
        manifest=manifest,
    )
    _Session.saved = True
    _LOG.info("wrote %s", path)


def _dmft_for(experiment: Experiment, results: Path) -> xr.Dataset:
    """Take the DMFT limit, whose pilot fixed the quadrature, from the results, or solve it."""
    from resnet_limits import integrity, provenance, store
    from resnet_limits.stages.paths import Paths

    paths = Paths(results, experiment.experiment)
    key = provenance.stage_key("dmft", experiment)
    if integrity.manifest_matches(paths.manifest("dmft"), key):
        _LOG.debug("quadrature from %s", paths.store("dmft"))
        return store.open_store(paths.store("dmft"))
    from resnet_limits.stages import limits

    return limits.dmft(experiment)


@app.command()
def validate(config: Config) -> None:
    """Check an experiment file and its data; print what it asks for."""
    experiment = load_experiment(config)
    from resnet_limits.stages import paths, problem

    with _naming(config):
        sizes = problem.problem(experiment).sizes
    typer.echo(one_line(f"{config}: experiment {experiment.experiment}"))
    typer.echo("problem: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    typer.echo(f"shapes: {len(experiment.shapes)}, seeds: {len(experiment.seeds)}")
    typer.echo("pairs: " + ", ".join(experiment.pairs))
    for kind in _COMMANDS:
        typer.echo(f"{kind}: {len(paths.cells(kind, experiment))} results")


@app.command()
def dmft(config: Config, out: Out) -> None:
    """Solve the DMFT limit: infinite depth, width and embedding dimension."""
    _check_out(out)
    experiment = load_experiment(config)
    started = time.monotonic()
    from resnet_limits.stages import limits

    with _naming(config):
        dataset = limits.dmft(experiment)
    manifest = _pipeline_manifest(out, experiment, "dmft")
    _save(dataset, out, "dmft", experiment, started=started, manifest=manifest)


@app.command("mean-ode")
def mean_ode(
    config: Config,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    results: Results = _RESULTS,
) -> None:
    """Solve the Mean ODE: infinite depth and width at one embedding dimension."""
    _check_out(out)
    experiment = _experiment(config, seeds=seeds)
    started = time.monotonic()
    from resnet_limits.stages import limits

    with _naming(config):
        dataset = limits.mean_ode(experiment, embed_dim, _dmft_for(experiment, results))
    cell = {"embed_dim": embed_dim}
    manifest = _pipeline_manifest(out, experiment, "mean_ode", **cell)
    _save(dataset, out, "mean_ode", experiment, started=started, manifest=manifest, **cell)


@app.command()
def wide(
    *,
    config: Config,
    depth: Depth,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    results: Results = _RESULTS,
) -> None:
    """Solve the infinitely wide network of one depth and embedding dimension."""
    _check_out(out)
    experiment = _experiment(config, seeds=seeds)
    started = time.monotonic()
    from resnet_limits.stages import limits

    with _naming(config):
        dataset = limits.wide(experiment, depth, embed_dim, _dmft_for(experiment, results))
    cell = {"depth": depth, "embed_dim": embed_dim}
    manifest = _pipeline_manifest(out, experiment, "wide", **cell)
    _save(dataset, out, "wide", experiment, started=started, manifest=manifest, **cell)


@app.command()
def train(
    *,
    config: Config,
    depth: Depth,
    width: Width,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help=f"{' or '.join(ENGINES)}; the experiment's if left out."),
    ] = None,
) -> None:
    """Train the finite networks of one shape, all seeds in one batch."""
    _check_out(out)
    experiment = _experiment(config, seeds=seeds, engine=engine)
    started = time.monotonic()
    from resnet_limits.stages import networks

    with _naming(config):
        dataset = networks.finite(experiment, Shape(depth, width, embed_dim))
    cell = {"depth": depth, "width": width, "embed_dim": embed_dim}
    manifest = _pipeline_manifest(out, experiment, "finite", **cell)
    _save(dataset, out, "finite", experiment, started=started, manifest=manifest, **cell)


# --- comparing ------------------------------------------------------------------------------------


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
        if results != _RESULTS:
            command += f" --results {results}"
    else:
        sizes = "".join(f" {_OPTIONS[name]} {size}" for name, size in cell.items())
        command = f"{_COMMANDS[kind]} {config}{sizes} --out {paths.store(kind, **cell)}"
    raise CommandError(
        f"{paths.folder}: {len(missing)} of {len(wanted)} inputs missing or out of date: "
        f"{names}{more}; make the first with: resnet-limits {command}"
    )


@app.command()
def errors(config: Config, results: Results = _RESULTS) -> None:
    """Measure the distances between finite networks and limits; write errors.zarr."""
    from resnet_limits import store
    from resnet_limits.stages.paths import Paths

    experiment = load_experiment(config)
    paths = Paths(results, experiment.experiment)
    _require(tuple(_COMMANDS), experiment, config, results)
    started = time.monotonic()
    from resnet_limits.stages import errors as stage

    def open_result(kind: str, cell: dict[str, int]) -> xr.Dataset:
        return store.load(paths.store(kind, **cell), stage.READ[kind])

    _save(
        stage.errors(experiment, open_result),
        paths.store("errors"),
        "errors",
        experiment,
        started=started,
        manifest=paths.manifest("errors"),
    )


@app.command()
def rates(config: Config, results: Results = _RESULTS) -> None:
    """Fit exponents and amplitudes to the errors; write rates.json and print a table."""
    from resnet_limits import store
    from resnet_limits.stages.paths import Paths

    experiment = load_experiment(config)
    paths = Paths(results, experiment.experiment)
    _require(("errors",), experiment, config, results)
    started = time.monotonic()
    from resnet_limits.stages import rates as stage

    fitted = stage.rates(experiment, store.open_groups(paths.store("errors")))
    _save(
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
    yield from _columns(rows)
    for where, words in warnings(fitted):
        yield f"warning: {where}: {words}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


@app.command()
def shape(
    rates_file: Annotated[
        Path, typer.Argument(metavar="RATES", help="rates.json of an experiment.")
    ],
    budget: Annotated[float, typer.Option("--budget", help="Parameters to spend, P = L M D.")],
    observable: Annotated[
        str, typer.Option("--of", help="hidden, hidden_max_mean_abs or output.")
    ] = "hidden",
    step: Annotated[str, typer.Option("--step", help="A step in RATES, or last.")] = "last",
) -> None:
    """Print the depth, width and embedding dimension that spend a budget best."""
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


# --- looking --------------------------------------------------------------------------------------


@app.command()
def status(config: Config, results: Results = _RESULTS) -> None:
    """Count what is done, running, missing, out of date and diverged, and what the rest costs."""
    from resnet_limits.stages import estimates, progress
    from resnet_limits.stages.paths import Paths

    experiment = load_experiment(config)
    found = progress.survey(experiment, Paths(results, experiment.experiment))
    columns = ("results", "done", "saved", "running", "missing", "stale", "diverged")
    rows = [["kind", *columns]]
    for kind, count in found.counts.items():
        rows.append([kind, *(str(getattr(count, column)) for column in columns)])
    for line in _columns(rows):
        typer.echo(line)
    for job in found.jobs:
        typer.echo(_job_line(job))
    if found.rest_seconds:
        pace = "not compared with any finished result"
        if found.pace is not None:
            pace = (
                f"at the pace of {found.telling} finished results, {found.pace:.2g} x the estimate"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        here = _duration(found.rest_seconds)
        typer.echo(f"rest on this machine: about {here} of one core ({pace}); {cores} cores here")
        each = (f"{_duration(found.gpu_seconds(gpu))} on one {gpu}" for gpu in estimates.GPUS)
        typer.echo(
            f"rest on a GPU: at least {', '.join(each)} (by nominal bandwidth alone, not measured)"
        )


def _duration(seconds: float) -> str:
    """Write a time as people say it."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def _job_line(job: dict[str, Any]) -> str:
    """Say where a running job is and what it is at."""
    slurm = f", SLURM job {job['slurm_job']}" if job.get("slurm_job") else ""
    line = f"running: {job['job']} on {job['host']} (process {job['process']}{slurm})"
    if "at" in job:
        since = _duration(max(0.0, time.time() - job["since"]))
        line += f": {job['at']}, {job['number']} of {job['total']}, for {since}"
    return line


@app.command()
def inspect(path: StorePath) -> None:
    """Say what a store holds and where it comes from."""
    from resnet_limits import store

    typer.echo(store.describe(_existing_store(path)))


@app.command()
def check(path: StorePath) -> None:
    """Read every chunk of a store and say what is wrong with it; exit 1 if anything is."""
    from resnet_limits import store

    findings = store.check(_existing_store(path), manifest=_store_manifest(path))
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise CommandError(f"{path}: unsound, {len(findings)} findings")
    typer.echo(f"{path}: sound")


# --- running --------------------------------------------------------------------------------------


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress messages.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="More messages, and tracebacks of failures.")
    ] = False,
) -> None:
    """Residual networks against their infinite-size limit."""
    _Session.verbose = verbose
    _LOG.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


@contextmanager
def _logging() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    level = _LOG.level
    _LOG.addHandler(handler)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(level)


def _complain(message: object) -> None:
    print("error:", " ".join(str(message).split()), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; those of the process if left out.

    Returns
    -------
    int
        The exit code: 0, 1, 2 or 75.
    """
    _Session.verbose = _Session.saved = False
    with _logging(), stop_signals():
        try:
            code = app(
                args=None if arguments is None else list(arguments),
                prog_name="resnet-limits",
                standalone_mode=False,
            )
        except InputError as error:
            _complain(error)
            return BAD_INPUT
        except Stopped as signal_name:
            saved = "finished work is saved, run again" if _Session.saved else "nothing was saved"
            _complain(f"stopped by {signal_name}; {saved}")
            return STOPPED if _Session.saved else FAILED
        except Exception as error:
            # Usage errors: their classes moved between versions of typer, their methods did not.
            if hasattr(error, "format_message"):
                _complain(error.format_message())
                return int(getattr(error, "exit_code", BAD_INPUT))
            if _Session.verbose:
                traceback.print_exc()
            _complain(error if str(error) else type(error).__name__)
            return FAILED
    return code if isinstance(code, int) else DONE


if __name__ == "__main__":
    sys.exit(main())
