"""The networks of an experiment and its limit, as single figures look at them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from resnet_limits.config import Experiment
from resnet_limits.figures.cells import along_diagonal
from resnet_limits.kinds import OK, Shape
from resnet_limits.store import StoreError

OpenStore = Callable[[str, dict[str, int]], xr.Dataset]

_MOST_NAMES = 4

NO_LIMIT = "The DMFT limit of this experiment was not solved."


class Networks:
    """The finite networks of an experiment, opened one shape at a time.

    Attributes
    ----------
    diverged, total : int
        Numbers of networks among those that were looked at.
    """

    def __init__(self, experiment: Experiment, open_store: OpenStore) -> None:
        self._open = open_store
        compared = any("finite" in pair.split("-") for pair in experiment.pairs)
        self.shapes = experiment.shapes if compared else []
        self.total = 0
        self.diverged = 0
        self.unreadable: list[str] = []

    def pick(self, count: int, smallest_embed_dim: int = 1) -> list[tuple[Shape, xr.Dataset]]:
        """Open shapes from small to large, each with its seeds that ended well.

        Shapes without such a seed, and those that cannot be opened, are replaced by others; those
        of a smaller embedding dimension than asked for only where there is nothing else.
        """
        opened: dict[Shape, xr.Dataset | None] = {}
        for least in (smallest_embed_dim, 1):
            candidates = [shape for shape in self.shapes if shape.embed_dim >= least]
            while candidates:
                chosen = along_diagonal(candidates, count)
                for shape in chosen:
                    if shape not in opened:
                        opened[shape] = self._good_seeds(shape)
                good = [
                    (shape, dataset) for shape in chosen if (dataset := opened[shape]) is not None
                ]
                if len(good) == len(chosen):
                    return good
                bad = {shape for shape, dataset in opened.items() if dataset is None}
                candidates = [shape for shape in candidates if shape not in bad]
        return []

    def _good_seeds(self, shape: Shape) -> xr.Dataset | None:
        try:
            dataset = self._open("finite", shape._asdict())
            status = dataset["status"].values
        except (StoreError, OSError, KeyError):
            self.unreadable.append(f"L{shape.depth}_M{shape.width}_D{shape.embed_dim}")
            return None
        self.total += len(status)
        self.diverged += int((status != OK).sum())
        good = np.flatnonzero(status == OK)
        return dataset.isel(seed=good) if len(good) else None

    @property
    def notes(self) -> list[str]:
        """Say which networks were passed over."""
        notes = []
        if self.diverged:
            notes.append(
                f"{self.diverged} of the {self.total} networks examined diverged and are left out."
            )
        if self.unreadable:
            more = len(self.unreadable) - _MOST_NAMES
            names = ", ".join(self.unreadable[:_MOST_NAMES])
            notes.append(f"Could not be opened: {names}{f' and {more} more' if more > 0 else ''}.")
        return notes

    @property
    def why_empty(self) -> str:
        """Say why there is no network to draw."""
        if not self.shapes:
            return "This experiment trains no finite network."
        if self.diverged and self.diverged == self.total:
            return f"All {self.total} networks diverged: there is nothing to draw."
        return "No finite network could be opened."


def open_limit(experiment: Experiment, open_store: OpenStore) -> xr.Dataset | None:
    """Open the DMFT limit, which is there as soon as any limit is."""
    if not experiment.limits_needed:
        return None
    try:
        return open_store("dmft", {})
    except (StoreError, OSError, KeyError):
        return None
