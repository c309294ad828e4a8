"""How far an experiment is: what is done, what is being computed, and what the rest will cost.

A running job keeps a small file among the results, ``running/JOB.json``, which says where it runs
and what it is at; a heartbeat renews it. It is a note for people: nothing is decided by it.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from resnet_limits import integrity, provenance
from resnet_limits.config import Experiment
from resnet_limits.kinds import CELL_KEYS, COMPUTED, KINDS
from resnet_limits.stages import estimates
from resnet_limits.stages.paths import Paths, cell_name, cells

HEARTBEAT_SECONDS = 30.0
"""How often a running job renews its record."""

# A record of another host that is older than this is of a job that was killed. Clocks of hosts
# differ, and file systems show a change late.
_SILENT_SECONDS = 10 * HEARTBEAT_SECONDS
# Results that took less say nothing about how fast the machine is.
_TELLING_SECONDS = 0.2
# About what a job computes before the next begins.
_SECONDS_OF_JOB = 120.0


class Record:
    """What a running job says of itself, in a file that is there while the job is.

    A context: entering it writes the file and starts the heartbeat, leaving it removes the file.

    Parameters
    ----------
    paths : Paths
        Places of the experiment's results.
    job : str
        Name of the job.
    stage : str
        What it computes.
    """

    def __init__(self, paths: Paths, job: str, stage: str) -> None:
        self._path = paths.running / f"{job}.json"
        self._facts: dict[str, Any] = {
            "job": job,
            "stage": stage,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": time.time(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }
        if not CELL_KEYS.get(stage):
            self._facts |= {"at": stage, "number": 1, "total": 1, "since": time.time()}
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def at(self, name: str, number: int, total: int, note: str = "") -> None:
        """Say which result the job is at, and in words how far it is."""
        if name != self._facts.get("at"):
            self._facts["since"] = time.time()
        self._facts |= {"at": name, "number": number, "total": total, "note": note}
        self._write()

    def __enter__(self) -> Record:
        self._write()
        self._heart.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._heart.join()
        with suppress(OSError):
            self._path.unlink()

    def _write(self) -> None:
        # A note that cannot be written must not stop the work that it is about.
        with suppress(OSError):
            integrity.write_json(self._facts, self._path)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._path)


def running_jobs(paths: Paths) -> list[dict[str, Any]]:
    """Give the records of the jobs that are running now, by name.

    A record whose process is gone (on this host), or that has long been silent (on another), is
    what a killed job has left, and is not among them.
    """
    found = []
    for path in sorted(paths.running.glob("*.json")):
        try:
            record = integrity.read_json(path)
            if record["host"] == socket.gethostname():
                alive = integrity.is_alive(int(record["process"]))
            else:
                alive = time.time() - path.stat().st_mtime < _SILENT_SECONDS
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if alive:
            found.append(record)
    return found


@dataclass
class Count:
    """Results of one kind, by what is with them.

    Attributes
    ----------
    results : int
        How many the experiment asks for: the sum of the next five.
    done, saved, running, missing, stale : int
        Finished and current; the same without a manifest, as a killed job leaves it, which the
        next run checks and keeps; being computed now; not there; of other code or values.
    diverged : int
        Runs of finished results that diverged.
    rest_seconds : float
        Estimate for what is not done, on one core of the machine of the estimates.
    start_seconds : float
        The same for its jobs to start, and to compile where nothing is compiled yet.
    """

    results: int = 0
    done: int = 0
    saved: int = 0
    running: int = 0
    missing: int = 0
    stale: int = 0
    diverged: int = 0
    rest_seconds: float = 0.0
    start_seconds: float = 0.0


@dataclass
class Survey:
    """State of an experiment.

    Attributes
    ----------
    counts : dict of str to Count
        By kind of result.
    jobs : list of dict
        Records of the running jobs.
    pace : float or None
        Time that finished networks and limits took here over their estimate; None if none tells.
    telling : int
        How many results the pace is from.
    figures_seconds : float
        Estimate for the figures, where what they show is not done.
    """

    counts: dict[str, Count] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    pace: float | None = None
    telling: int = 0
    figures_seconds: float = 0.0

    @property
    def rest_seconds(self) -> float:
        """Time on one core for what is not done, at the pace of what is, and its jobs' starts."""
        rest = sum(count.rest_seconds for count in self.counts.values())
        return (self.pace or 1.0) * (rest + self.figures_seconds) + self.start_seconds

    @property
    def start_seconds(self) -> float:
        """Time on one core for the jobs of what is not done to start."""
        return sum(count.start_seconds for count in self.counts.values())

    def gpu_seconds(self, gpu: str) -> float:
        """Time on one GPU for the networks and limits that are not done; from nominal figures."""
        rest = sum(count.rest_seconds for kind, count in self.counts.items() if kind in COMPUTED)
        return estimates.gpu_seconds(gpu, rest)


def survey(experiment: Experiment, paths: Paths) -> Survey:
    """Look at all results that an experiment asks for, by their manifests.

    Nothing is opened or computed; stores that are damaged since are found by ``check``.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    paths : Paths
        Places of its results.
    """
    jobs = running_jobs(paths)
    current = {record.get("at") for record in jobs}
    counts = {kind: Count() for kind in KINDS}
    took = thought = 0.0
    telling = 0
    # The plan of the DMFT limit says what the other limits take, if it is this experiment's.
    key = provenance.stage_key("dmft", experiment)
    done = integrity.matching_manifest(paths.manifest("dmft"), key)
    dmft = paths.store("dmft") if done else None
    for kind, count in counts.items():
        common = provenance.stage_key(kind, experiment)
        for cell in cells(kind, experiment):
            manifest = paths.manifest(kind, **cell)
            key = provenance.cell_key(common, kind, experiment, **cell)
            cost = estimates.seconds(kind, experiment, dmft, **cell)
            count.results += 1
            facts = integrity.matching_manifest(manifest, key)
            if facts is not None:
                count.done += 1
                count.diverged += (facts.get("status") or {}).get("diverged", 0)
                tells = kind in COMPUTED and facts.get("device") == "cpu"
                if tells and cost > _TELLING_SECONDS:
                    took, thought = took + facts["wall_time_s"], thought + cost
                    telling += 1
                continue
            saved = integrity.attributes(paths.store(kind, **cell)).get("stage_key")
            if not manifest.exists() and saved == key:
                count.saved += 1
                continue
            count.rest_seconds += cost
            if cell_name(kind, **cell) in current:
                count.running += 1
            elif paths.store(kind, **cell).exists():
                count.stale += 1
            else:
                count.missing += 1
        count.start_seconds = _start_seconds(kind, count)
    last = counts["rates"]
    figures = 0.0 if last.done else estimates.seconds("figures", experiment)
    return Survey(counts, jobs, took / thought if thought else None, telling, figures)


def _start_seconds(kind: str, count: Count) -> float:
    """Time for the jobs of what is not done to start: some for each kind, each of minutes."""
    rest = count.missing + count.stale
    if not rest:
        return 0.0
    jobs = min(rest, max(1, math.ceil(count.rest_seconds / _SECONDS_OF_JOB)))
    compiling = estimates.is_cold() and not count.done
    further = (jobs - 1) * estimates.start_seconds(kind)
    return estimates.start_seconds(kind, cold=compiling) + further
