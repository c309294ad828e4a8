"""Which cells share a job.

Starting Python and importing torch takes longer than most cells, so a job computes many. It is
nobody's business but the scheduler's: it appears in no file of results and in no key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resnet_limits import integrity, provenance
from resnet_limits.config import Experiment
from resnet_limits.stages import estimates
from resnet_limits.stages.paths import Cell, Paths, cell_name, cells

# A start takes about three seconds, on a cluster two Snakemakes before it as much again: under a
# tenth of a job.
_BUNDLE_SECONDS = 120.0
MOST_BUNDLES = 64
"""Most jobs of a kind and number of seeds."""
# From here on it pays to use a second core.
_TWO_SECONDS = 6.0


class Bundle(NamedTuple):
    """Cells that one job computes.

    Attributes
    ----------
    name : str
        Of the job.
    cells : list of dict
        The sizes of each.
    seeds : int
        The number of seeds that each of them has.
    """

    name: str
    cells: list[Cell]
    seeds: int

    def said(self) -> str:
        """Say how many results they are, and which are the first and the last."""
        kind = self.name.rpartition("_")[0]
        names = [cell_name(kind, **cell).partition("/")[2] for cell in self.cells]
        if len(names) == 1:
            return names[0]
        return f"{len(names)} results, {names[0]} to {names[-1]}"


def bundles(kind: str, experiment: Experiment, last_sweep: Mapping[str, int]) -> list[Bundle]:
    """Share the cells of a kind among jobs of about equal cost.

    Cells that the last complete sweep had are kept apart from new ones and from those that had
    another number of seeds, so that a new sweep value plans jobs for its own cells only. The number
    of seeds is a parameter of the job, and so the same for all of its cells.

    Parameters
    ----------
    kind : str
        One of ``kinds.KINDS``.
    experiment : Experiment
        The validated experiment.
    last_sweep : mapping of str to int
        Number of seeds by the name of the cell, from `cells_of_last_sweep`.
    """
    groups: dict[tuple[bool, int], list[Cell]] = {}
    for cell in cells(kind, experiment):
        count = len(provenance.cell_seeds(kind, experiment, **cell))
        is_new = last_sweep.get(cell_name(kind, **cell)) != count
        groups.setdefault((is_new, count), []).append(cell)
    parts = [
        (part, count)
        for (_, count), group in sorted(groups.items())
        for part in _split(kind, experiment, group)
    ]
    return [
        Bundle(f"{kind}_{number:02d}", part, count)
        for number, (part, count) in enumerate(parts, start=1)
    ]


def cells_of_last_sweep(paths: Paths) -> dict[str, int]:
    """Name the cells behind the last error tables, each with its number of seeds.

    This does not change while networks and limits are computed, so that a job on a cluster, which
    plans again, finds the same bundles.
    """
    try:
        return dict(integrity.read_json(paths.manifest("errors"))["cells"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _split(kind: str, experiment: Experiment, some_cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cut the cells, from dear to cheap, into parts of about equal cost.

    Dear ones keep together because a job's memory is that of its largest cell.
    """
    costs = [(estimates.seconds(kind, experiment, **cell), cell) for cell in some_cells]
    total = sum(cost for cost, _ in costs)
    count = max(math.ceil(total / _BUNDLE_SECONDS), 2 if total > _TWO_SECONDS else 1)
    count = min(count, MOST_BUNDLES, len(some_cells))
    parts: list[list[Cell]] = [[] for _ in range(count)]
    before = 0.0
    for cost, cell in sorted(costs, key=lambda item: (-item[0], *item[1].values())):
        parts[min(count - 1, int(count * (before + cost / 2) / total))].append(cell)
        before += cost
    return [sorted(part, key=lambda cell: tuple(cell.values())) for part in parts if part]
