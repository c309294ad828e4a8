"""Commands that look: they compute nothing and change nothing."""

from __future__ import annotations

import os
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_limits.cli.common import RESULTS, Config, Results, columns, study_for
from resnet_limits.cli.session import CommandError
from resnet_limits.config import InputError, one_line

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store: .zarr or .zarr.zip.")]
Checkable = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store, or a folder of results or of stores.")
]
_STORES = "allowed: a store, .zarr or .zarr.zip"


def status(config: Config, results: Results = RESULTS) -> None:
    """Show what is done, running and missing, and what the rest costs.

    Opens no store and computes nothing.
    """
    from resnet_limits.stages import estimates, progress
    from resnet_limits.stages.paths import Paths

    experiment = study_for(config)
    found = progress.survey(experiment, Paths(results, experiment.experiment))
    states = ("results", "done", "saved", "running", "missing", "stale", "diverged")
    rows = [["kind", *states]]
    for kind, count in found.counts.items():
        rows.append([kind, *(str(getattr(count, state)) for state in states)])
    for line in columns(rows):
        typer.echo(line)
    for job in found.jobs:
        typer.echo(_job_line(job))
    if found.rest_seconds:
        pace = "an estimate, not yet compared with a finished result"
        if found.pace is not None:
            pace = (
                f"at the pace of {found.telling} finished result{'s' * (found.telling > 1)}, "
                f"{found.pace:.2g} times the estimate"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        here = _duration(found.rest_seconds)
        typer.echo(
            f"rest on this machine: about {here} on one core ({pace}); number of cores: {cores}"
        )
        each = (f"{_duration(found.gpu_seconds(gpu))} on one {gpu}" for gpu in estimates.GPUS)
        typer.echo(
            f"rest on a GPU: at least {', '.join(each)} "
            "(from nominal bandwidth alone, not measured)"
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
        if job.get("note"):
            line += f"; {job['note']}"
    return line


def inspect(path: StorePath) -> None:
    """Describe what a store holds and where it comes from."""
    _require_path(path, _STORES)
    from resnet_limits import store
    from resnet_limits.stages import checking

    if not checking.is_store(path):
        inside = filter(checking.is_store, checking.find(path) if path.is_dir() else ())
        such = "".join(f", such as {inner}" for inner in islice(inside, 1))
        raise InputError(f"STORE: {path}: not a store; {_STORES}{such}")
    typer.echo(store.describe(path))


def check(path: Checkable) -> None:
    """Look for damage; the exit code is 1 if anything is unsound.

    Reads every chunk of a store, or of every store in a folder, with rates.json and whatever else
    a manifest vouches for. Prints a line for each result that is unsound or unfinished, and then
    the numbers of results.
    """
    _require_path(path, f"{_STORES}, or a folder of them")
    from resnet_limits.stages import checking

    if checking.is_store(path):
        findings = checking.store_findings(path)
        for finding in findings:
            typer.echo(finding)
        if findings:
            number = len(findings)
            raise CommandError(f"{path}: unsound, {number} finding{'s' * (number > 1)}")
        typer.echo(f"{path}: sound")
        return
    number = unsound = unfinished = 0
    for result in checking.find(path) if path.is_dir() else checking.of_file(path):
        checked = checking.check(result)
        if checked is None:
            continue
        number += 1
        if checked.findings:
            unsound += 1
            more = len(checked.findings) - 1
            rest = f"; and {more} more" if more else ""
            typer.echo(one_line(f"{result}: unsound: {checked.findings[0]}{rest}"))
        elif not checked.is_finished:
            unfinished += 1
            typer.echo(one_line(f"{result}: unfinished: sound, but no manifest vouches for it"))
    if not number:
        raise InputError(f"STORE: {path}: holds no results; {_STORES}, or a folder of them")
    typer.echo(
        f"{path}: {number - unsound - unfinished} sound, {unfinished} unfinished, {unsound} unsound"
    )
    if unsound:
        raise CommandError(f"{path}: unsound, {unsound} of {number} result{'s' * (number > 1)}")


def _require_path(path: Path, allowed: str) -> None:
    if not path.exists():
        raise InputError(f"STORE: {path}: no such file; {allowed}")
