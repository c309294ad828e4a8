"""Ways to break a run or its results, and what tells whether anything of it is left."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trees import Tree

from resnet_limits import integrity, store

# In the order in which they run; those of one number may run side by side.
STAGES = {
    "problem": 0,
    "dmft": 1,
    "finite": 1,
    "mean_ode": 2,
    "wide": 2,
    "prediction": 2,
    "errors": 3,
    "rates": 4,
    "figures": 5,
    "report": 6,
    "workflow_page": 6,
}


# --- what is there --------------------------------------------------------------------------------


def stores(folder: Path) -> dict[str, Path]:
    """All stores of an experiment, by their names."""
    found = [*folder.glob("*.zarr"), *folder.glob("*/*.zarr")]
    return {str(path.relative_to(folder)): path for path in sorted(found)}


def manifest(folder: Path, name: str) -> Path:
    return (folder / "manifests" / name).with_suffix(".json")


def contents(folder: Path) -> dict[str, str]:
    """Digests of all that has been computed, without where and when that was."""
    found = {name: store.data_digest(path) for name, path in stores(folder).items()}
    for path in folder.glob("rates.json"):
        rates = json.loads(path.read_text(encoding="utf-8"))
        del rates["provenance"]
        found[path.name] = hashlib.sha256(json.dumps(rates).encode()).hexdigest()
    for path in folder.glob("figures/*"):
        found[f"figures/{path.name}"] = integrity.file_digest(path)
    return found


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Names of what two trees do not have alike."""
    return sorted(
        name for name in {*found, *wanted} if found.get(name) != wanted.get(name)
    )  # fmt: skip


def unsound(
    folder: Path, *, vouched: bool = True, names: Collection[str] | None = None
) -> list[str]:
    """All that is wrong with any store; with ``vouched``, also where its manifest is missing."""
    findings = []
    for name, path in stores(folder).items():
        if names is not None and name not in names:
            continue
        paper = manifest(folder, name)
        if vouched and not paper.exists():
            findings.append(f"{name}: no manifest")
        there = {"manifest": paper} if paper.exists() else {}
        findings += [f"{name}: {finding}" for finding in store.check(path, **there)]
    return findings


def debris(folder: Path) -> list[str]:
    """Unfinished files that nobody is writing."""
    lasting = {".lock", ".jobs", ".plan"}
    found = (path for path in folder.rglob(".*") if path.name not in lasting)
    return sorted(str(path.relative_to(folder)) for path in found)


def modified(folder: Path) -> dict[str, int]:
    """When each store was put in its place."""
    return {name: path.stat().st_mtime_ns for name, path in stores(folder).items()}


def assert_whole(folder: Path, wanted: Mapping[str, str]) -> None:
    """Everything is there, as if nothing had happened."""
    assert differences(contents(folder), wanted) == []
    assert unsound(folder) == []
    assert debris(folder) == []
    for page in ("report.html", "workflow.html"):
        assert (folder / page).read_text(encoding="utf-8").rstrip().endswith("</html>")


# --- damage ---------------------------------------------------------------------------------------


def flip(file: Path, rng: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def files_of(path: Path) -> dict[str, list[Path]]:
    """Files of a store, by their class."""
    found = integrity.store_files(path)
    return {
        "chunk": [file for file in found if file.name != "zarr.json"],
        "zarr.json": [file for file in found if file.name == "zarr.json"],
    }


def read_all(path: Path) -> None:
    """Read every value of a store, as a reader would who knows nothing of manifests."""
    for part in store.open_groups(path).values():
        part.load()


def is_refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except Exception:
        return True
    return False


# --- runs -----------------------------------------------------------------------------------------


def lines(output: str) -> list[str]:
    """What a run that does not begin says, without Snakemake's introduction."""
    usual = ("Using", "Assuming", "Building DAG")
    return [line for line in output.splitlines() if line and not line.startswith(usual)]


def stages_at_work(folder: Path, since: float) -> set[str]:
    """Stages of the jobs that have begun since a time, and have not ended."""
    busy = set()
    for log in (folder / "logs").glob("*.log"):
        # Snakemake removes the log of an earlier run before it starts a job.
        with suppress(FileNotFoundError):
            if log.stat().st_mtime >= since and "done in" not in log.read_text(encoding="utf-8"):
                busy.add(re.sub(r"_\d+$", "", log.stem))
    return busy


@contextmanager
def started(tree: Tree, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run as a process group of its own, which is killed at the end."""
    with (tree.path / "output").open("a") as output:
        process = subprocess.Popen(
            tree.command(*arguments),
            cwd=tree.path,
            env=tree.environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def killed_run(
    tree: Tree, folder: Path, stage: str | None, delay: float, *arguments: str
) -> set[str] | None:
    """Run, and kill all processes at once.

    Parameters
    ----------
    stage : str or None
        Wait for a job of this stage, or of one that comes after it; None for no wait.
    delay : float
        Seconds from then on.

    Returns
    -------
    set of str or None
        The stages of the jobs that were killed (none: only Snakemake was at work); None if the
        run ended before.
    """
    # Times of files are a little coarser than the clock.
    since = time.time() - 0.02
    with started(tree, *arguments) as process:
        while stage is not None and process.poll() is None:
            busy = stages_at_work(folder, since)
            if stage in busy or any(STAGES[each] > STAGES[stage] for each in busy):
                break
            time.sleep(0.02)
        ended = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < ended:
            time.sleep(0.01)
        if process.poll() is not None:
            return None
        kill_group(process)
        return stages_at_work(folder, since)


def job_processes(tree: Tree, rule: str) -> list[int]:
    """Processes that run the script of a job of this rule, without Snakemake's own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0")
            place = (folder / "cwd").resolve()
        except OSError:
            continue
        script = command[1] if len(command) > 1 else ""
        if place == tree.path.resolve() and script.endswith(f".{rule}.py"):
            found.append(int(folder.name))
    return found


# --- file systems ---------------------------------------------------------------------------------


def mount(*options: str | Path) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as it looks through a mount that cannot be written."""
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def cannot_mount() -> str:
    """Say why file systems cannot be mounted here; empty if they can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    libc = ctypes.CDLL(None, use_errno=True)
    # To detach what is no mount fails with EINVAL where one may, with EPERM where one may not.
    libc.umount2(b"/proc/self", 2)
    return "" if ctypes.get_errno() != 1 else "mounting is not permitted here"


def status_of(folder: Path) -> dict[str, dict[str, Any]]:
    """How the runs of each finite shape ended, by its manifest."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["status"]
        for path in sorted((folder / "manifests" / "finite").glob("*.json"))
    }
