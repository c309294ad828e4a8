"""Which results a folder holds, found out without opening a single store.

Names of finished results come from the listing of the manifests, the experiment from the youngest
record among the results, and the sizes of the data from the metadata of the problem. No array is
read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import xarray as xr
import yaml

from resnet_limits import integrity, onechunk, store
from resnet_limits.config import Experiment, InputError, experiment_from_dict
from resnet_limits.kept import depth_layers, saved_steps
from resnet_limits.kinds import CELL_KEYS, COMPUTED, SIZES, SYMBOLS, Shape
from resnet_limits.provenance import cell_seeds
from resnet_limits.stages.paths import Cell, Paths, cell_name, cells

_RECORDS = ("rates", "errors", "prediction", "dmft", "problem")
"""The results that exist once, each of which says what the experiment is."""


class NotThereError(KeyError):
    """Something that these results do not hold. The message is one line."""

    def __str__(self) -> str:
        return str(self.args[0])


class Folder:
    """What is there of one experiment's results.

    Parameters
    ----------
    path : path
        ``results/<experiment>``.

    Raises
    ------
    InputError
        If there is no such folder, or no results in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"{path}: no such folder; allowed: results/NAME of an experiment")
        absolute = Path(os.path.abspath(self.path))
        self.paths = Paths(absolute.parent, absolute.name)
        self.experiment = self._experiment()
        self._seeds: dict[str, list[int]] = {}

    # --- the experiment -------------------------------------------------------------------------

    def _experiment(self) -> Experiment:
        """Take the experiment from the youngest result, with the sweep that was planned last."""
        found: dict[str, str] = {}
        for kind in _RECORDS:
            attrs = self._attributes(kind)
            if "experiment_file" in attrs:
                found[str(attrs.get("created", ""))] = str(attrs["experiment_file"])
        if not found:
            raise InputError(
                f"{self.path}: holds no results of an experiment; allowed: the folder "
                "results/NAME that a run has made"
            )
        values = yaml.safe_load(found[max(found)])
        try:
            planned = integrity.read_json(self.paths.plan)["sweep"]
            return experiment_from_dict({**values, "sweep": planned}, where=str(self.paths.plan))
        except (OSError, ValueError, KeyError, TypeError):
            return experiment_from_dict(values, where=str(self.path))

    def _attributes(self, kind: str) -> Mapping[str, Any]:
        path = self.paths.store(kind)
        if path.suffix != ".json":
            return integrity.attributes(path)
        return self.json(kind).get("provenance", {})

    def json(self, kind: str) -> dict[str, Any]:
        """Read ``rates`` or ``prediction``; empty if it is not there."""
        try:
            return dict(integrity.read_json(self.paths.store(kind)))
        except (OSError, ValueError, TypeError):
            return {}

    # --- what is there --------------------------------------------------------------------------

    @cached_property
    def _finished(self) -> frozenset[str]:
        """Names of all finished results, such as ``finite/L4_M8_D16``."""
        manifests = self.paths.folder / "manifests"
        # Stores that somebody copied without their manifests count as they are.
        root, ending = (manifests, ".json") if manifests.is_dir() else (self.paths.folder, ".zarr")
        names: set[str] = set()
        for kind, keys in CELL_KEYS.items():
            folder, prefix = (root / kind, f"{kind}/") if keys else (root, "")
            if folder.is_dir():
                names.update(
                    prefix + name.removesuffix(ending)
                    for name in os.listdir(folder)
                    if name.endswith(ending) and not name.startswith(".")
                )
        return frozenset(names)

    def is_there(self, kind: str, **cell: int) -> bool:
        """Whether a result is finished."""
        return cell_name(kind, **cell) in self._finished

    def cells(self, kind: str) -> list[Cell]:
        """All cells of a kind that the experiment asks for, whether they are there or not."""
        return cells(kind, self.experiment)

    def counts(self) -> dict[str, tuple[int, int]]:
        """For each kind of limit and network, how many results are there and how many are asked."""
        found = {}
        for kind in COMPUTED:
            wanted = self.cells(kind)
            if wanted:
                found[kind] = (sum(self.is_there(kind, **cell) for cell in wanted), len(wanted))
        return found

    def open(self, kind: str, **cell: int) -> xr.Dataset:
        """Open one store lazily.

        Raises
        ------
        NotThereError
            If it was not computed, or not yet.
        StoreError
            If it is damaged.
        """
        self.require(kind, **cell)
        return store.open_store(self.paths.store(kind, **cell))

    def require(self, kind: str, **cell: int) -> None:
        """Refuse what is not there.

        Raises
        ------
        NotThereError
            With what is there.
        """
        if self.is_there(kind, **cell):
            return
        wanted = self.cells(kind)
        if not wanted:
            kinds = ", ".join(name for name in COMPUTED if self.cells(name)) or "none"
            raise NotThereError(f"{kind}: no pair of this experiment needs it; there are: {kinds}")
        for name, value in cell.items():
            there = sorted({other[name] for other in wanted})
            if value not in there:
                raise NotThereError(f"{name}: got {value}; there are: {listed(there)}")
        name = "".join(f" {SYMBOLS[key]}={value}" for key, value in cell.items())
        if cell not in wanted:
            raise NotThereError(f"{kind}{name}: these sizes are not combined in this experiment")
        raise NotThereError(f"{kind}{name}: not run, or not finished")

    def require_pair(self, pair: str, there: Sequence[str]) -> None:
        """Refuse a pair that was not measured.

        Raises
        ------
        NotThereError
            With those that were.
        """
        if pair not in there:
            names = ", ".join(there) or "none, errors.zarr is not there"
            raise NotThereError(f"pair: got {pair}; there are: {names}")

    # --- what can be told without opening anything ------------------------------------------------

    @cached_property
    def shapes(self) -> list[Shape]:
        """Shapes of the networks, sorted."""
        return [Shape(**cell) for cell in self.cells("finite")] or self.experiment.shapes

    @cached_property
    def is_grid(self) -> bool:
        """Whether the shapes are all combinations of some depths, widths and dimensions."""
        return math.prod(map(len, self.values.values())) == len(self.shapes)

    @cached_property
    def values(self) -> dict[str, list[int]]:
        """The values of each size, sorted."""
        return {size: sorted({getattr(shape, size) for shape in self.shapes}) for size in SIZES}

    @cached_property
    def widths(self) -> dict[tuple[int, int], list[int]]:
        """The widths, sorted, of each depth and embedding dimension."""
        found: dict[tuple[int, int], list[int]] = {}
        for shape in self.shapes:
            found.setdefault((shape.depth, shape.embed_dim), []).append(shape.width)
        return found

    def seeds(self, kind: str) -> list[int]:
        """Seeds of a kind: those of the cell that has most."""
        if kind not in self._seeds:
            counts = [len(cell_seeds(kind, self.experiment, **cell)) for cell in self.cells(kind)]
            self._seeds[kind] = list(range(max(counts, default=0)))
        return self._seeds[kind]

    def steps(self, kind: str) -> list[int]:
        """List the steps that a kind keeps."""
        if kind == "finite":
            return list(saved_steps(self.experiment))
        return list(range(self.experiment.training.steps))

    def layers(self, depth: int) -> list[int]:
        """Layers that networks of a depth keep."""
        return list(depth_layers(self.experiment, depth))

    @cached_property
    def data_sizes(self) -> dict[str, int]:
        """Sizes of the data: ``sample``, ``token`` if there are tokens, and ``target``.

        Raises
        ------
        NotThereError
            If there is no problem.
        """
        found = self.metadata(self.paths.store("problem"))
        y = found.get("y")
        if y is None:
            raise NotThereError(f"{self.paths.store('problem')}: no such store")
        return dict(zip(y["dimension_names"], y["shape"], strict=True))

    @staticmethod
    def metadata(path: Path) -> dict[str, dict[str, Any]]:
        """Metadata of all arrays of a store by name, with its group; empty if it is not there."""
        try:
            document = integrity.read_json(path / onechunk.METADATA)
            return dict(document["consolidated_metadata"]["metadata"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}


_MOST_LISTED = 12


def listed(values: Sequence[int]) -> str:
    """List values, all of them where they are few."""
    if len(values) <= _MOST_LISTED:
        return ", ".join(map(str, values))
    ends = _MOST_LISTED // 2
    first, last = (", ".join(map(str, part)) for part in (values[:ends], values[-ends:]))
    return f"{first} ... {last} ({len(values)} values)"
