"""Commands that look: they compute nothing and change nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_limits.cli.common import RESULTS, Config, Results, columns
from resnet_limits.cli.session import CommandError
from resnet_limits.config import InputError, load_experiment

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store: .zarr or .zarr.zip.")]


def _existing_store(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"STORE: {path}: no such store")
    return path


def _store_manifest(path: Path) -> Path | None:
    """Manifest that belongs to a store, if there is one."""
    path = path.resolve()
    for folder in list(path.parents)[:2]:
        manifest = (folder / "manifests" / path.relative_to(folder)).with_suffix(".json")
        if manifest.is_file():
            return manifest
    return None


def status(config: Config, results: Results = RESULTS) -> None:
    """Say what is done, running and missing, and what the rest costs.

    Opens no store and computes nothing.
    """
    from resnet_limits.stages import estimates, progress
    from resnet_limits.stages.paths import Paths

    experiment = load_experiment(config)
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


def inspect(path: StorePath) -> None:
    """Say what a store holds and where it comes from."""
    from resnet_limits import store

    typer.echo(store.describe(_existing_store(path)))


def check(path: StorePath) -> None:
    """Read every chunk of a store and say what is wrong with it; exit 1 if anything is."""
    from resnet_limits import store

    findings = store.check(_existing_store(path), manifest=_store_manifest(path))
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise CommandError(f"{path}: unsound, {len(findings)} findings")
    typer.echo(f"{path}: sound")
