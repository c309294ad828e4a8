"""All that the workflow takes from inside Snakemake, beyond what its manual describes.

Another version of Snakemake may have other names for it: then this module is mended, and nothing
else. ``tests/workflow/test_snakemake_api.py`` asks the installed version for each of them.
"""

from __future__ import annotations

import atexit
import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from snakemake.io import IOFile

# The plugin for SLURM says so at every submission where no account is given. Its guess calls sacct
# with options of another program, and never works; SLURM knows the user's account by itself.
_ACCOUNT_GUESSES = (
    "No SLURM account given, trying to guess.",
    "No account was given, not able to get a SLURM account via sacct",
    "Unable to guess SLURM account. Trying to proceed without.",
)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What Snakemake says of jobs that Ctrl-C has stopped: each with all of its files.
_CONSEQUENCES = {"JOB_ERROR", "GROUP_ERROR", "ERROR"}
_REMOVING = "Removing output files of failed job"
_LOGGER = logging.getLogger("snakemake.logging")


class Snakemake:
    """The Snakemake that reads the workflow.

    Parameters
    ----------
    workflow : snakemake.workflow.Workflow
        The global ``workflow`` of a Snakefile.
    """

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        self._handlers: dict[int, Any] = {}
        self._is_stopped = False

    @property
    def options(self) -> dict[str, Any]:
        """The values of ``--config``."""
        return dict(self._workflow.config_settings.config)

    @property
    def config_files(self) -> list[Path]:
        """The files of ``--configfile``."""
        return [Path(file) for file in self._workflow.config_settings.configfiles]

    @property
    def folder(self) -> Path:
        """The folder of the Snakefile."""
        return Path(self._workflow.basedir)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that plans, and not one that runs a job for it."""
        return bool(self._workflow.is_main_process)

    @property
    def plans(self) -> bool:
        """Whether jobs are planned; not so where a report, a list or the like is asked for."""
        return self._workflow.execution_settings is not None

    @property
    def is_dry(self) -> bool:
        """Whether jobs are planned and none will run."""
        return bool(self._workflow.dryrun)

    @property
    def targets(self) -> set[str]:
        """The rules and files that are asked for; none where that is left to the Snakefile."""
        return set(self._workflow.dag_settings.targets)

    @property
    def default_resources(self) -> dict[str, Any]:
        """The default resources of all jobs, as they were given."""
        found = self._workflow.resource_settings.default_resources or {}
        return {name: getattr(value, "raw", value) for name, value in found.items()}

    def plan_again(self, file: Path) -> None:
        """Plan the job of one of its files, whatever Snakemake knows of it."""
        self._workflow.dag.forcefiles.add(IOFile(str(file)))

    def spare_account_guesses(self) -> None:
        """Leave out what the plugin for SLURM says of its guess of an account."""
        _LOGGER.addFilter(lambda line: not str(line.msg).startswith(_ACCOUNT_GUESSES))

    def say_when_stopped(self, line: str) -> None:
        """Let a line be the last of this process if a signal stops it, and spare what Ctrl-C makes.

        To be called before jobs are planned, and again when they begin: in between Snakemake takes
        SIGTERM for itself.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if not self._handlers:
            # What is registered first is called last.
            atexit.register(self._say_last, line)
        for number in _STOP_SIGNALS:
            before = signal.getsignal(number)
            if before not in (self._note_signal, signal.SIG_IGN):
                self._handlers[number] = before
                signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self._is_stopped:
            _LOGGER.addFilter(_is_no_consequence)
        self._is_stopped = True
        before = self._handlers[number]
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
        else:
            # Snakemake takes it for a KeyboardInterrupt, which would leave a traceback elsewhere.
            sys.exit(128 + number)

    def _say_last(self, line: str) -> None:
        if self._is_stopped:
            print(line, file=sys.stderr)


def _is_no_consequence(line: logging.LogRecord) -> bool:
    """Whether a line says more than that a job was stopped when everything was."""
    event = getattr(getattr(line, "event", None), "name", None)
    return event not in _CONSEQUENCES and not str(line.msg).startswith(_REMOVING)
