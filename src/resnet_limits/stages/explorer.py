"""The explorer of one experiment: a page and a table of every cell, from its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits import __version__, integrity, store
from resnet_limits.config import InputError, one_line
from resnet_limits.config.loader import read_yaml
from resnet_limits.explorer.cells import Losses, PairCells, frames, pair_cells
from resnet_limits.explorer.page import Heading, Page, render
from resnet_limits.kinds import CELL_KEYS, SIZES
from resnet_limits.stages.paths import Paths, cell_name
from resnet_limits.store import StoreError

GENERATOR = "resnet-limits explore"
"""By which a page is known to be one that may be replaced."""

DATA_FORMS = (".csv", ".parquet")
_HEAD_BYTES = 1000
_ROWS_AT_ONCE = 100_000


class Gathered(NamedTuple):
    """What a page shows.

    Attributes
    ----------
    pairs : dict of str to PairCells
    prediction : dict or None
        The contents of prediction.json.
    heading : Heading
    """

    pairs: dict[str, PairCells]
    prediction: dict[str, Any] | None
    heading: Heading


def check_names(out: Path, data: Path | None) -> None:
    """Refuse names that a page or a table must not take, before anything is read.

    Raises
    ------
    InputError
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out: {out}; allowed: a name that ends in .html")
    if data is not None and data.suffix.lower() not in DATA_FORMS:
        raise InputError(f"--data: {data}; allowed: a name that ends in {' or '.join(DATA_FORMS)}")
    for option, path in (("--out", out), ("--data", data)):
        if path is not None and path.is_dir():
            raise InputError(f"{option}: {path}: is a folder; allowed: the name of a file")
    if out.exists():
        try:
            with out.open("rb") as file:
                is_page = GENERATOR.encode() in file.read(_HEAD_BYTES)
        except OSError as error:
            raise InputError(f"--out: {out}: {error.strerror}") from None
        if not is_page:
            raise InputError(
                f"--out: {out}: exists and is not a page of this command; allowed: another name"
            )


def gather(folder: Path) -> Gathered:
    """Read the distances of an experiment, their losses and predictions.

    Parameters
    ----------
    folder : Path
        The results of one experiment, such as ``results/quickstart``.

    Raises
    ------
    InputError
        If it is no such folder, or its distances are not finished.
    StoreError
        If a store is damaged.
    """
    paths = _results_in(folder)
    distances = store.open_groups(paths.store("errors"))
    attrs = store.open_store(paths.store("errors")).attrs
    distances = {pair: part.load() for pair, part in distances.items() if "status" in part}
    distances = {pair: part for pair, part in distances.items() if part.sizes["cell"]}
    if not distances:
        raise InputError(f"FOLDER: {folder}: errors.zarr has no cells: sweep.pairs was empty")
    notes = []
    prediction = None
    try:
        prediction = integrity.read_json(paths.store("prediction"))
    except (OSError, ValueError):
        notes.append("There is no prediction.json, so nothing is predicted.")
    losses = _LossesOf(paths)
    pairs = {
        pair: pair_cells(pair, part, prediction, losses.of_pair(pair, part))
        for pair, part in distances.items()
    }
    notes += losses.notes
    if all(cells.profile is None for cells in pairs.values()):
        notes.append("errors.zarr has no distances over depth.")
    heading = Heading(_name(attrs, folder), str(attrs.get("created", "")), __version__, notes)
    return Gathered(pairs, prediction, heading)


def _results_in(folder: Path) -> Paths:
    """Give the places of results in a folder that has finished distances."""
    allowed = "allowed: the results of one experiment, such as results/quickstart"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"FOLDER: {folder}: {what}; {allowed}")
    # By its own name, also where it is given as "." or has another name than its experiment.
    whole = folder.resolve()
    paths = Paths(whole.parent, whole.name)
    errors = paths.store("errors")
    if not errors.is_dir():
        inside = next((path.parent for path in sorted(folder.glob("*/errors.zarr"))), None)
        such = f", here {inside}" if inside else ""
        raise InputError(
            f"FOLDER: {folder}: has no errors.zarr: it holds no results, or unfinished ones; "
            f"{allowed}{such}"
        )
    if not paths.manifest("errors").is_file():
        raise InputError(
            f"FOLDER: {folder}: its errors.zarr is not finished: it has no manifest; "
            "run the pipeline, or resnet-limits errors, again"
        )
    return paths


def _name(attrs: Mapping[Any, Any], folder: Path) -> str:
    try:
        content = read_yaml(str(attrs["experiment_file"]))
        return str(content["experiment"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return folder.resolve().name


# --- losses ---------------------------------------------------------------------------------------


class _Loss(NamedTuple):
    """Losses of one store, shape (seeds, steps); one row for all seeds if it has none."""

    seeds: NDArray[np.int64] | None
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


class _LossesOf:
    """Losses of networks and limits, each store read once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._missing: dict[str, None] = {}
        self._read = lru_cache(maxsize=None)(self._read_anew)

    @property
    def notes(self) -> list[str]:
        """Say which stores are not there."""
        if not self._missing:
            return []
        first, count = next(iter(self._missing)), len(self._missing)
        more = f" and {count - 1} more" if count > 1 else ""
        return [f"Losses could not be read from {first}{more}."]

    def of_pair(self, pair: str, distances: xr.Dataset) -> Losses | None:
        """Give the losses of both sides at the cells and steps of a pair; None if none is there."""
        first, _, second = pair.partition("-")
        found = Losses(self._of_side(first, distances), self._of_side(second, distances))
        return found if any(np.isfinite(part).any() for part in found) else None

    def _of_side(self, kind: str, distances: xr.Dataset) -> NDArray[np.float64]:
        steps = distances["step"].values
        losses = np.full((distances.sizes["cell"], len(steps)), np.nan)
        keys = CELL_KEYS[kind]
        sizes = np.stack([distances[name].values for name in SIZES], axis=1)
        sizes = sizes[:, [SIZES.index(name) for name in keys]].astype(np.int64)
        seeds = distances["seed"].values
        for own in np.unique(sizes, axis=0):
            loss = self._read(kind, tuple(own.tolist()))
            if loss is None:
                continue
            _, here, there = np.intersect1d(steps, loss.steps, return_indices=True)
            cells = np.flatnonzero((sizes == own).all(axis=1))
            rows = np.zeros(len(cells), np.int64)
            if loss.seeds is not None:
                place = {int(seed): k for k, seed in enumerate(loss.seeds)}
                rows = np.array([place.get(int(seed), -1) for seed in seeds[cells]])
            cells, rows = cells[rows >= 0], rows[rows >= 0]
            losses[np.ix_(cells, here)] = loss.values[np.ix_(rows, there)]
        return losses

    def _read_anew(self, kind: str, sizes: tuple[int, ...]) -> _Loss | None:
        cell = dict(zip(CELL_KEYS[kind], sizes, strict=True))
        try:
            dataset = store.load(self._paths.store(kind, **cell), ("loss",))
            dims = ("seed", "step") if "seed" in dataset["loss"].dims else ("step",)
            values = dataset["loss"].transpose(*dims).values
        except (StoreError, OSError):
            self._missing.setdefault(cell_name(kind, **cell))
            return None
        seeds = dataset["seed"].values if "seed" in dims else None
        return _Loss(seeds, dataset["step"].values, np.atleast_2d(values))


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; what was written there then takes the place of the path."""
    try:
        with integrity.temporary(path) as unfinished:
            yield unfinished
            unfinished.replace(path)
    except OSError as error:
        reason = error.strerror or integrity.error_line(error)
        raise StoreError(one_line(f"{path}: cannot be written: {reason}")) from error


def write_page(found: Gathered, out: Path) -> Page:
    """Write the page, whole or not at all.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    page = render(found.pairs, found.prediction, found.heading)
    with _whole(out) as unfinished:
        unfinished.write_text(page.html, encoding="utf-8")
    return page


def write_data(found: Gathered, out: Path) -> int:
    """Write the table of all cells and steps as CSV or Parquet; give the number of its rows.

    Numbers have all of their digits.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    rows = 0
    with _whole(out) as unfinished:
        if out.suffix.lower() == ".csv":
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                for frame in frames(found.pairs):
                    frame.to_csv(file, index=False, header=not rows, chunksize=_ROWS_AT_ONCE)
                    rows += len(frame)
            return rows
        import pyarrow as pa
        import pyarrow.parquet as pq

        writer = None
        try:
            for frame in frames(found.pairs):
                table = pa.Table.from_pandas(
                    frame, preserve_index=False, schema=writer and writer.schema
                )
                writer = writer or pq.ParquetWriter(unfinished, table.schema)
                writer.write_table(table)
                rows += len(frame)
        finally:
            if writer is not None:
                writer.close()
    return rows
