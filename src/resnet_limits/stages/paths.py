"""Where results live: pure functions from (kind, cell) to paths.

The one place that knows the layout of ``results/<experiment>/``. It reads no file and imports
nothing heavy, so that the Snakefile can use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from resnet_limits.kinds import CELL_KEYS, JSON_KINDS, KINDS, SYMBOLS

Cell = dict[str, int]

FIGURES = (
    "trajectories",
    "histograms",
    "kernels",
    "loss_curves",
    "accuracy",
    "distance_over_depth",
    "distance_over_steps",
    "three_terms",
    "error_vs_shape",
    "error_vs_parameters",
    "frontier",
    "rates_table",
    "verdicts",
)
"""Names of the figures, in the order of the argument."""

FIGURE_FORMS = ("png", "svg", "pdf", "csv", "json")
"""Endings of a figure's files: pictures, the table that is its twin, and what is said of it."""

FIGURE_STYLE = Path(__file__).parents[1] / "figures" / "default.mplstyle"
"""The style sheet of all figures, over which a user's own may be laid."""

TEMPLATES = Path(__file__).parents[1] / "report" / "templates"
"""What the report is written with."""


class _Shape(Protocol):
    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...


class _Data(Protocol):
    @property
    def kind(self) -> str: ...


class _Problem(Protocol):
    @property
    def loss(self) -> str: ...
    @property
    def data(self) -> _Data: ...


class _Experiment(Protocol):
    """What of ``config.Experiment`` decides which results exist."""

    @property
    def problem(self) -> _Problem: ...
    @property
    def shapes(self) -> Sequence[_Shape]: ...
    @property
    def pairs(self) -> tuple[str, ...]: ...
    @property
    def limits_needed(self) -> set[str]: ...
    @property
    def embed_dims(self) -> list[int]: ...
    @property
    def wide_cells(self) -> list[tuple[int, int]]: ...
    @property
    def families(self) -> Mapping[str, object]: ...


def cell_name(kind: str, **cell: int | str) -> str:
    """Name of one result relative to the experiment's folder, without its ending.

    Parameters
    ----------
    kind : str
        One of ``kinds.KINDS``.
    **cell : int or str
        The sizes in ``CELL_KEYS[kind]``, no more and no fewer.

    Raises
    ------
    ValueError
        If the kind is unknown, or the sizes are not those of the kind.
    """
    if kind not in CELL_KEYS:
        raise ValueError(f"kind {kind!r}: must be one of {', '.join(KINDS)}")
    keys = CELL_KEYS[kind]
    if set(cell) != set(keys):
        expected = ", ".join(keys) or "no sizes"
        raise ValueError(f"cell of {kind}: got {', '.join(cell) or 'no sizes'}, needs {expected}")
    if not keys:
        return kind
    return f"{kind}/" + "_".join(f"{SYMBOLS[key]}{cell[key]}" for key in keys)


def cells(kind: str, experiment: _Experiment) -> list[Cell]:
    """Every cell of a kind that the experiment asks for.

    What is compared decides what is solved: a kind that no pair needs has no cells. ``dmft`` is
    there as soon as any limit is, because its pilot fixes the quadrature for all of them.

    Parameters
    ----------
    kind : str
        One of ``kinds.KINDS``.
    experiment : config.Experiment
        The validated experiment.

    Returns
    -------
    list of dict
        One dictionary of sizes per result; ``[{}]`` for a kind that exists once.
    """
    cell_name(kind, **dict.fromkeys(CELL_KEYS.get(kind, ()), 0))
    needed = set(experiment.limits_needed)
    match kind:
        case "dmft":
            return [{}] if needed else []
        case "mean_ode":
            dims = experiment.embed_dims if kind in needed else []
            return [{"embed_dim": embed_dim} for embed_dim in dims]
        case "wide":
            sizes = experiment.wide_cells if kind in needed else []
            return [{"depth": depth, "embed_dim": embed_dim} for depth, embed_dim in sizes]
        case "finite":
            if not any("finite" in pair.split("-") for pair in experiment.pairs):
                return []
            return [
                {"depth": shape.depth, "width": shape.width, "embed_dim": shape.embed_dim}
                for shape in experiment.shapes
            ]
    return [{}]


def figure_names(experiment: _Experiment) -> tuple[str, ...]:
    """Names of the figures of an experiment.

    ``frontier`` is for families of shapes only, and ``accuracy`` for data that may have classes.
    """
    without = set()
    if not experiment.families:
        without.add("frontier")
    problem = experiment.problem
    if problem.loss != "cross_entropy" and problem.data.kind not in ("digits", "file"):
        without.add("accuracy")
    return tuple(name for name in FIGURES if name not in without)


class Paths:
    """The places of one experiment's results.

    Parameters
    ----------
    root : path
        The folder of all results, usually ``results``.
    experiment_name : str
        The key ``experiment`` of the experiment file.
    """

    def __init__(self, root: Path | str, experiment_name: str) -> None:
        self.root = Path(root)
        self.experiment_name = experiment_name

    @property
    def folder(self) -> Path:
        """The folder of this experiment's results."""
        return self.root / self.experiment_name

    def store(self, kind: str, **cell: int | str) -> Path:
        """Path of one result: a Zarr directory, or a JSON file."""
        ending = ".json" if kind in JSON_KINDS else ".zarr"
        return self.folder / (cell_name(kind, **cell) + ending)

    def manifest(self, kind: str, **cell: int | str) -> Path:
        """Path of the manifest that makes the result count as finished."""
        return self.folder / "manifests" / (cell_name(kind, **cell) + ".json")

    def groups(self, experiment: _Experiment) -> list[Path]:
        """Give the folders that are Zarr groups, the outer one first."""
        inner = (kind for kind, sizes in CELL_KEYS.items() if sizes and cells(kind, experiment))
        return [self.folder, *(self.folder / kind for kind in inner)]

    @property
    def plan(self) -> Path:
        """What the last run has planned, for its jobs."""
        return self.folder / ".plan"

    @property
    def running(self) -> Path:
        """The folder of the records of running jobs."""
        return self.folder / "running"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.folder / "figures"

    def figure(self, name: str, form: str) -> Path:
        """Path of one file of a figure."""
        return self.figures / f"{name}.{form}"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def lineage(self) -> dict[str, Path]:
        """What says of all results where they come from, by form.

        ``experiment``: the validated experiment file; ``prov``: W3C PROV; ``crate``: RO-Crate.
        """
        return {
            "experiment": self.folder / "experiment.yaml",
            "prov": self.folder / "provenance.json",
            "crate": self.folder / "ro-crate-metadata.json",
        }

    @property
    def workflow_page(self) -> Path:
        """The page of the pipeline's jobs, beside the report."""
        return self.folder / "workflow.html"

    def page_stage(self, page: Path) -> str:
        """Name the stage whose key a page carries; the page of the jobs follows the figures."""
        return "figures" if page.parent == self.figures or page == self.workflow_page else "report"

    def page_manifest(self, page: Path) -> Path:
        """Path of the manifest of a figure or a page, by which damage to it is found."""
        name = page.relative_to(self.folder)
        return self.folder / "manifests" / name.with_name(f"{name.name}.json")
