"""What the scripts share: one frame around a job, reading its inputs, publishing its results."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In an environment that Snakemake has made, the package is this checkout's.
sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))

from resnet_limits import integrity, lock, provenance
from resnet_limits.config import Experiment, InputError, experiment_from_dict
from resnet_limits.openmp import wait_asleep
from resnet_limits.signals import STOPPED, Stopped, StopSignals, stop_signals
from resnet_limits.stages.paths import Cell, Paths, cell_name, cells
from resnet_limits.stages.plan import EDITED

if TYPE_CHECKING:
    import xarray as xr

    from resnet_limits.problem import Problem
    from resnet_limits.stages.progress import Record

LOG = logging.getLogger("resnet_limits.workflow")


@dataclass(frozen=True)
class Job:
    """One running job.

    Attributes
    ----------
    stage : str
        The stage it computes.
    experiment : Experiment
        What Snakemake planned, even if the file has been edited since.
    paths : Paths
        Places of the experiment's results.
    outputs : frozenset of str
        The files that Snakemake expects.
    signals : StopSignals
        Whether the job has been asked to stop.
    record : Record
        What it says of itself while it runs.
    finished : list of str
        Names of the cells that are published.
    read : dict
        Manifests of the results that were opened, each with the path of its result.
    """

    stage: str
    experiment: Experiment
    paths: Paths
    outputs: frozenset[str]
    signals: StopSignals
    record: Record
    finished: list[str] = field(default_factory=list)
    read: dict[Path, Path] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """The cells whose manifests Snakemake expects of this job."""
        return [
            cell
            for cell in cells(self.stage, self.experiment)
            if str(self.paths.manifest(self.stage, **cell)) in self.outputs
        ]

    def open_store(self, kind: str, cell: Cell) -> xr.Dataset:
        """Open a result lazily."""
        from resnet_limits import store

        return store.open_store(self.path_of(kind, **cell))

    def load(self, kind: str, cell: Cell, names: Sequence[str]) -> xr.Dataset:
        """Open some variables of a result, in memory where they are small."""
        from resnet_limits import store

        return store.load(self.path_of(kind, **cell), names)

    def problem(self) -> Problem:
        """Take the problem that the stage of its name has made, data and rotation."""
        from resnet_limits.problem import problem_from

        return problem_from(self.experiment, self.open_store("problem", {}))

    def path_of(self, kind: str, **cell: int) -> Path:
        """Path of a result that is going to be read."""
        path = self.paths.store(kind, **cell)
        self.read[self.paths.manifest(kind, **cell)] = path
        return path

    def vouch_for(self, page: Path) -> None:
        """Write the manifest of a figure or a page."""
        integrity.write_manifest(
            self.paths.page_manifest(page),
            page,
            kind=self.stage,
            stage_key=provenance.stage_key(self.stage, self.experiment),
        )

    def remove_damaged(self) -> None:
        """Remove what was read and is not what its manifest vouches for: the next run makes it."""
        vouched = {}
        for manifest, path in self.read.items():
            with suppress(integrity.StoreError):
                vouched[manifest] = (path, integrity.read_manifest(manifest))
        for damage in integrity.damage(vouched):
            LOG.error("%s; run again", damage)
            with suppress(OSError):
                integrity.remove(damage.store)

    def publish(self, dataset: Any, started: float, cell: Cell, **facts: Any) -> None:
        """Write a result and its manifest, and stop after that if a signal came meanwhile."""
        from resnet_limits.stages.publish import publish

        with self.signals.held():
            publish(
                dataset,
                self.paths.store(self.stage, **cell),
                kind=self.stage,
                experiment=self.experiment,
                key=provenance.stage_key(self.stage, self.experiment, **cell),
                device="cpu",
                seeds=provenance.cell_seeds(self.stage, self.experiment, **cell),
                started=started,
                manifest=self.paths.manifest(self.stage, **cell),
                facts=facts,
            )
            self.finished.append(cell_name(self.stage, **cell))

    def publish_each(self, compute: Callable[[Cell], Any]) -> None:
        """Compute and publish one cell after the other; one that fails does not stop the rest.

        Raises
        ------
        RuntimeError
            At the end, if any cell failed; what was finished is found again by the next run.
        """
        wanted = self.cells
        failed = []
        for number, cell in enumerate(wanted, start=1):
            name = cell_name(self.stage, **cell)
            self.signals.check()
            self.record.at(name, number, len(wanted))
            if self._vouch_again(cell):
                LOG.info("%s (%d of %d): found, and sound", name, number, len(wanted))
                self.finished.append(name)
                continue
            LOG.info("%s (%d of %d)", name, number, len(wanted))
            started = time.monotonic()
            try:
                self.publish(compute(cell), started, cell)
            except InputError:
                raise
            except Exception as error:
                self.signals.check()
                LOG.error("%s: %s: %s", name, type(error).__name__, error)
                LOG.debug("Traceback", exc_info=True)
                failed.append(name)
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(wanted)} failed: {', '.join(failed)}")

    def _vouch_again(self, cell: Cell) -> bool:
        """Write the manifest of a result that is there, sound, and what is wanted.

        Snakemake removes a job's manifests before it runs, also those of cells that are finished.
        """
        from resnet_limits import store
        from resnet_limits.stages.publish import stated

        path = self.paths.store(self.stage, **cell)
        key = provenance.stage_key(self.stage, self.experiment, **cell)
        try:
            dataset = store.open_store(path)
        except integrity.StoreError:
            return False
        if dataset.attrs.get("stage_key") != key or store.check(path):
            return False
        integrity.write_manifest(
            self.paths.manifest(self.stage, **cell),
            path,
            kind=self.stage,
            stage_key=key,
            **stated(dataset, dataset.attrs),
        )
        return True


@contextmanager
def running(snakemake: Any, stage: str) -> Iterator[Job]:
    """Frame a job: its log, the experiment, and one clear line if it fails.

    Snakemake itself holds torch and numpy to the job's threads, through the environment.

    A signal to stop, such as a cluster sends ahead of a time limit, ends the job with exit code 75:
    results that are finished are kept, and found by the job that takes its place.

    Parameters
    ----------
    snakemake : Snakemake
        The object that Snakemake puts into every script.
    stage : str
        The stage that the script computes.
    """
    wait_asleep()
    _log_to(Path(snakemake.log[0]))
    started = time.monotonic()
    job = None
    try:
        with stop_signals() as signals:
            job = _job(snakemake, stage, signals)
            with lock.at_work(job.paths.folder), job.record:
                yield job
    except Stopped as signal_name:
        count = 0 if job is None else len(job.finished)
        LOG.error("stopped by %s: %d results finished and kept; run again", signal_name, count)
        sys.exit(STOPPED)
    except InputError as error:
        LOG.error("%s", error)
        sys.exit(2)
    except Exception as error:
        LOG.error("%s: %s", type(error).__name__, error)
        LOG.debug("Traceback", exc_info=True)
        if job is not None:
            job.remove_damaged()
        sys.exit(1)
    _bring_back_from_the_future(map(Path, snakemake.input))
    LOG.info("%s: done in %.1f s", snakemake.rule, time.monotonic() - started)


def _bring_back_from_the_future(files: Iterable[Path]) -> None:
    """Date files that a clock ahead of this one has made as of now.

    Snakemake takes it for a failure if a job's outputs are older than its inputs.
    """
    for file in files:
        with suppress(OSError):
            if file.stat().st_mtime > time.time():
                os.utime(file)


def _log_to(path: Path) -> None:
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    root = logging.getLogger()
    handlers: dict[int, logging.Handler] = {logging.INFO: logging.StreamHandler()}
    # On a full disk the job says so once; that its log cannot be written either is no news.
    logging.raiseExceptions = False
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a link in its place leads to is not the log's to write.
        os.close(integrity.open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW))
        # The terminal shows one line where the file has the whole traceback.
        handlers[logging.DEBUG] = logging.FileHandler(path, mode="w")
    for level, handler in handlers.items():
        handler.setLevel(level)
        handler.setFormatter(form)
        root.addHandler(handler)
    logging.getLogger("resnet_limits").setLevel(logging.DEBUG)
    logging.captureWarnings(True)


def _job(snakemake: Any, stage: str, signals: StopSignals) -> Job:
    values = {name: snakemake.config[name] for name in Experiment.model_fields}
    experiment = experiment_from_dict(values, where=snakemake.config["experiment_file"])
    if provenance.stage_key(stage, experiment) != snakemake.params.key:
        # A result must carry the key of what computed it.
        raise RuntimeError(EDITED)
    from resnet_limits.stages.progress import Record

    paths = Paths(snakemake.config["results"], experiment.experiment)
    return Job(
        stage,
        experiment,
        paths,
        frozenset(map(str, snakemake.output)),
        signals,
        Record(paths, snakemake.rule, stage),
    )
