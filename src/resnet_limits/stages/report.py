"""Stage ``report``: the page that tells of an experiment, from its files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_limits import __version__, integrity, store
from resnet_limits.config import Experiment
from resnet_limits.kinds import JSON_KINDS, KINDS
from resnet_limits.report.page import Contents, Drawing, render
from resnet_limits.report.run import LIMITS, Made, Reached
from resnet_limits.stages.paths import FIGURE_FORMS, Paths, cell_name, cells, figure_names

_MOST_ROWS = 10
# A picture of many points is smaller as pixels.
_MOST_SVG_BYTES = 400_000
# Larger tables stay beside the page, so that it opens at once.
_MOST_CSV_BYTES = 1_000_000

_BESIDE = {
    "rates.json": "all rates and claims",
    "prediction.json": "predicted amplitudes",
    "errors.zarr": "all distances",
    "figures": "the figures as PNG, SVG and PDF",
    "experiment.yaml": "the validated experiment",
    "provenance.json": "where every result comes from, in W3C PROV",
    "ro-crate-metadata.json": "the folder as an RO-Crate",
}


def report(experiment: Experiment, paths: Paths) -> str:
    """Write the page of an experiment.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    paths : Paths
        Places of its results. What is missing is named on the page; rates.json must be there.

    Returns
    -------
    str
        HTML that needs no other file.

    Raises
    ------
    StoreError
        If rates.json or the text of a figure cannot be read.
    """
    rates = _json(paths.store("rates"))
    made = [_made(kind, experiment, paths) for kind in KINDS]
    recorded = rates.get("provenance") or {}
    contents = Contents(
        experiment=experiment,
        rates=rates,
        # The page writes both tables itself.
        figures=[
            _drawing(name, paths)
            for name in figure_names(experiment)
            if name not in ("rates_table", "verdicts")
        ],
        made=made,
        reached=list(_reached(experiment, paths)),
        configuration=str(recorded.get("experiment_file", "")),
        version=__version__,
        beside={
            # Made after this page, of which it is no part.
            paths.workflow_page.name: "the pipeline’s jobs, their graph and run times",
            # Provenance is written by the same job, after the page that it names.
            **{
                name: what
                for name, what in _BESIDE.items()
                if (file := paths.folder / name).exists() or file in paths.lineage.values()
            },
        },
    )
    return render(contents)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = integrity.read_json(path)
    except (OSError, ValueError) as error:
        raise integrity.StoreError(f"{path}: {integrity.error_line(error)}") from error
    if not isinstance(found, dict):
        raise integrity.StoreError(f"{path}: not a JSON object; allowed: what the pipeline writes")
    return found


# --- how results were made ------------------------------------------------------------------------


def _made(kind: str, experiment: Experiment, paths: Paths) -> Made:
    """Gather what manifests and attributes tell of the results of one kind."""
    missing: list[str] = []
    unwell: list[str] = []
    attributes: list[Mapping[str, Any]] = []
    status = dict.fromkeys(("ok", "diverged", "not_run"), 0)
    seconds = 0.0
    for cell in cells(kind, experiment):
        name = cell_name(kind, **cell)
        try:
            manifest = integrity.read_manifest(paths.manifest(kind, **cell))
        except integrity.StoreError:
            missing.append(name)
            continue
        own = manifest.get("status") or {}
        for end in status:
            status[end] += int(own.get(end, 0))
        unwell += _ends(name, own)
        path = paths.store(kind, **cell)
        if kind in JSON_KINDS:
            found = _json(path).get("provenance") or {}
        else:
            found = integrity.attributes(path)
        seconds += float(found.get("wall_time_s") or manifest.get("wall_time_s") or 0.0)
        attributes.append(found)

    def each(name: str) -> list[str]:
        return list(dict.fromkeys(str(found[name]) for found in attributes if found.get(name)))

    created = sorted(each("created"))
    return Made(
        kind,
        count=len(attributes),
        missing=missing,
        **status,
        unwell=unwell,
        seconds=seconds,
        peak_bytes=max(
            (int(found.get("peak_memory_bytes") or 0) for found in attributes), default=0
        ),
        devices=each("device"),
        code_hashes=each("code_hash"),
        git_states=each("git_state"),
        versions=each("package_version"),
        libraries=[_libraries(text) for text in each("library_versions")],
        first=created[0] if created else "",
        last=created[-1] if created else "",
    )


def _ends(name: str, status: Mapping[str, int]) -> Iterator[str]:
    """Name a result with seeds that did not end well."""
    total = sum(status.values())
    told = [
        f"{status[end]} of {total} seeds {word}"
        for end, word in (("diverged", "diverged"), ("not_run", "not run"))
        if status.get(end)
    ]
    if told:
        yield f"{name} ({', '.join(told)})"


def _libraries(text: str) -> str:
    try:
        return ", ".join(f"{name} {version}" for name, version in json.loads(text).items())
    except (ValueError, AttributeError):
        return text


def _reached(experiment: Experiment, paths: Paths) -> Iterator[Reached]:
    """Measure the standard errors of all limits that are there."""
    for kind in LIMITS:
        for cell in cells(kind, experiment):
            try:
                found = store.load(paths.store(kind, **cell), ("output_stderr", "depth_error"))
            except (integrity.StoreError, OSError, KeyError):
                continue
            error, depth_error = found["output_stderr"], found["depth_error"]
            inner = [dim for dim in error.dims if dim != "seed"]
            of_seed = np.sqrt((error**2).mean(inner).values)
            # A seed that was not run has no error; a limit of none of them has none to tell.
            if np.isfinite(of_seed).any():
                yield Reached(
                    cell_name(kind, **cell),
                    float(np.nanmax(of_seed)),
                    float(np.nanmax(depth_error.values, initial=0.0)),
                )


# --- figures --------------------------------------------------------------------------------------


def _drawing(name: str, paths: Paths) -> Drawing:
    """Read one figure: its picture, words and numbers."""
    told = _json(paths.figure(name, "json"))
    picture, kind = _picture(name, paths)
    table = paths.figure(name, "csv")
    content = table.read_bytes() if table.exists() else b""
    header, rows, count = _first_rows(content)
    files = [
        f"{paths.figures.name}/{file.name}"
        for form in FIGURE_FORMS
        if form != "json" and (file := paths.figure(name, form)).exists()
    ]
    return Drawing(
        name=name,
        title=str(told.get("title") or name),
        message=str(told.get("message") or ""),
        caption=str(told.get("caption") or ""),
        notes=[str(note) for note in told.get("notes") or ()],
        why_empty=str(told.get("why_empty") or "") if told.get("status") == "empty" else "",
        picture=picture,
        kind=kind,
        table=content if count and len(content) <= _MOST_CSV_BYTES else b"",
        header=header,
        rows=rows,
        row_count=count,
        files=files,
    )


def _picture(name: str, paths: Paths) -> tuple[bytes, str]:
    for form, kind, most in (
        ("svg", "image/svg+xml", _MOST_SVG_BYTES),
        ("png", "image/png", None),
    ):
        file = paths.figure(name, form)
        if file.exists() and (most is None or file.stat().st_size <= most):
            return file.read_bytes(), kind
    return b"", "image/png"


def _first_rows(content: bytes) -> tuple[list[str], list[list[str]], int]:
    """Take the column names, the first rows and the number of rows of a CSV file."""
    rows = list(csv.reader(io.StringIO(content.decode("utf-8"))))
    if not rows:
        return [], [], 0
    header, *rest = rows
    return header, [[_short(value) for value in row] for row in rest[:_MOST_ROWS]], len(rest)


def _short(value: str) -> str:
    """Write a number with few digits; other words stay as they are."""
    try:
        number = float(value)
    except ValueError:
        return value
    return value if len(value) <= 8 else f"{number:.5g}"
