"""Runs of the workflow through the shipped profile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster import Cluster, wait_until
from trees import Tree

# The shipped profile is what is tested; here files are seen at once, and jobs are short.
PROFILE = (
    "--workflow-profile", "workflow/profiles/slurm",
    "--latency-wait", "5",
    "--slurm-init-seconds-before-status-checks", "1",
)  # fmt: skip


@dataclass
class Site:
    """A tree whose jobs run on a cluster."""

    tree: Tree
    cluster: Cluster
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.tree.path / "output.txt"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Snakemake; what it says goes to the file `output`."""
        with self.output.open("a") as output:
            process = subprocess.Popen(
                self.tree.command(*arguments, *PROFILE, "--configfile", "experiment.yaml"),
                cwd=self.tree.path,
                env={**self.tree.environment(), **self.cluster.environment_changes},
                stdout=output, stderr=output, text=True, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> str:
        """Wait for Snakemake to succeed, and give what it said."""
        assert process.wait(400) == 0, self.output.read_text()
        return self.output.read_text()

    def jobs(self, name: str = "") -> list[dict[str, str]]:
        return self.cluster.jobs_of(self.tree.path, name)

    def hook(self, source: str) -> None:
        """Let a function ``before(cell)`` run before each finite network of this tree."""
        scripts = "workflow/scripts"
        (self.tree.path / scripts / "_hook.py").write_text(source, encoding="utf-8")
        self.tree.replace(f"{scripts}/finite.py", "import running", "import running; import _hook")
        self.tree.replace(f"{scripts}/finite.py", "return ", "return _hook.before(cell) or ")

    def finished(self) -> dict[str, int]:
        """Give the finished networks, each with the time at which its manifest's store was made."""
        folder = self.tree.path / "results/tiny/finite"
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.zarr")}

    def wait(self, holds: Callable[[], object], what: str) -> None:
        """Wait for something to hold while Snakemake runs."""

        def checked() -> object:
            assert self.started[-1].poll() is None, self.output.read_text()
            return holds()

        wait_until(checked, 240, what)

    def wait_for(self, count: int) -> None:
        """Wait until some networks are finished."""
        self.wait(lambda: len(self.finished()) >= count, f"{count} networks")

    def end(self) -> None:
        """End what still runs of it."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        left = [job["JobId"] for job in self.jobs() if job["JobState"] in {"RUNNING", "PENDING"}]
        if left:
            self.cluster.run("scancel", *left)
