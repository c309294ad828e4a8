"""What commands share: their arguments, tables, and writing a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_limits.cli.session import LOG, Session
from resnet_limits.config import (
    Experiment,
    InputError,
    experiment_from_dict,
    load_experiment,
    one_line,
)

COMMANDS = {"dmft": "dmft", "mean_ode": "mean-ode", "wide": "wide", "finite": "train"}
"""The command that computes each kind of result, upstream first."""

RESULTS = Path("results")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Experiment file (YAML).")]
Out = Annotated[
    Path, typer.Option("--out", metavar="STORE", help="Store to write: .zarr or .zarr.zip.")
]
Results = Annotated[
    Path, typer.Option("--results", metavar="FOLDER", help="Folder of all results.")
]
Depth = Annotated[int, typer.Option("--depth", metavar="L", min=1, help="Number of layers.")]
Width = Annotated[
    int, typer.Option("--width", metavar="M", min=1, help="Number of hidden units in each layer.")
]
EmbedDim = Annotated[
    int, typer.Option("--embed-dim", metavar="D", min=1, help="Embedding dimension.")
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", metavar="N", min=1, help="Take seeds 0 to N-1; by default the experiment's."
    ),
]


def experiment_for(config: Path, **sweep: Any) -> Experiment:
    """Load an experiment, with keys of its sweep replaced by what the command line gives.

    The changed experiment is what is computed and what the store records, so that its stage key
    is that of an experiment file with the same values. How many seeds limits have may still be
    open: see `study_for`.
    """
    experiment = load_experiment(config)
    changes = {name: value for name, value in sweep.items() if value is not None}
    if changes:
        values = experiment.model_dump(mode="json")
        values["sweep"] = {**values["sweep"], **changes}
        experiment = experiment_from_dict(values, where="command line")
    return experiment


def study_for(config: Path, **sweep: Any) -> Experiment:
    """Load an experiment as `experiment_for` does, and decide how many seeds its limits have.

    For what needs the number alone: where it is left open, all that the study costs is estimated.
    """
    from resnet_limits.stages.estimates import with_limit_seeds

    return with_limit_seeds(experiment_for(config, **sweep))


@contextmanager
def naming(config: Path) -> Iterator[None]:
    """Let complaints about data, which know nothing of the experiment file, begin with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(one_line(f"{config}: {error}")) from None


def check_out(path: Path) -> None:
    """Refuse a place that a store must not take, before anything is computed."""
    from resnet_limits import store

    try:
        store.check_target(path)
    except store.StoreError as error:
        raise InputError(f"--out: {error}") from None


@contextmanager
def place(
    path: Path, experiment: Experiment, kind: str, **cell: int
) -> Iterator[Callable[[Any], None]]:
    """Hold the place of a result while it is computed, and give what publishes it there.

    Among the results of an experiment no pipeline may be at work: it would remove, or compute and
    replace, what is written beside it.

    Raises
    ------
    InputError
        If a pipeline is at work there.
    """
    from resnet_limits import lock, provenance
    from resnet_limits.stages.publish import publish

    started = time.monotonic()
    manifest = _pipeline_manifest(path, experiment, kind, **cell)
    folder = _shared_folder(path, manifest)
    is_new = folder is not None and not folder.is_dir()
    with ExitStack() as held:

        def hold(folder: Path) -> None:
            try:
                held.enter_context(lock.at_work_alone(folder))
            except lock.LockError as error:
                raise InputError(str(error)) from None

        def save(result: Any) -> None:
            # What fails leaves no folder behind.
            if folder is not None and is_new:
                folder.mkdir(parents=True, exist_ok=True)
                hold(folder)
            publish(
                result,
                path,
                kind=kind,
                experiment=experiment,
                key=provenance.stage_key(kind, experiment, **cell),
                device="cpu",
                seeds=provenance.cell_seeds(kind, experiment, **cell),
                started=started,
                manifest=manifest,
            )
            Session.saved = True
            LOG.info("wrote %s", path)

        if folder is not None and not is_new:
            hold(folder)
        yield save


def _pipeline_manifest(path: Path, experiment: Experiment, kind: str, **cell: int) -> Path | None:
    """Manifest of a store that is written to its own place among the results, else None."""
    from resnet_limits.stages.paths import Paths

    path = path.resolve()
    own = Paths(Path(), experiment.experiment).store(kind, **cell)
    if path.parts[-len(own.parts) :] != own.parts:
        return None
    root = Path(*path.parts[: -len(own.parts)])
    return Paths(root, experiment.experiment).manifest(kind, **cell)


def _shared_folder(path: Path, manifest: Path | None) -> Path | None:
    """Folder of an experiment's results that a path lies in, if it does."""
    from resnet_limits import lock

    if manifest is not None:
        return next(folder for folder in manifest.parents if folder.name == "manifests").parent
    return next(filter(lock.is_shared, path.resolve().parents), None)


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out a table of words, a line for each row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
