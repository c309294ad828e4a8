"""What every store carries of its making: experiment, hashes, versions, device, time and memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import yaml

from resnet_limits.config import Experiment
from resnet_limits.provenance import citation, code
from resnet_limits.provenance.code import canonical_json, digest
from resnet_limits.provenance.keys import ancestors, stage_key, stage_module

_LIBRARIES = (
    "numpy",
    "scipy",
    "numba",
    "torch",
    "xarray",
    "zarr",
    "dask",
    "pydantic",
    "scikit-learn",
)


def collect(
    experiment: Experiment,
    *,
    stage: str,
    key: str,
    device: str,
    seeds: Iterable[int] = (),
    started: float,
    cell: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Gather the attributes that every store carries.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    stage : str
        One of `STAGES`.
    key : str
        The result's `stage_key`.
    device : str
        Where it was computed, in words, such as ``"cpu"``.
    seeds : iterable of int
        The seeds inside the store; none for a limit without seeds.
    started : float
        ``time.monotonic()`` at the start of the computation.
    cell : mapping, optional
        The sizes of the cell, for the history line.

    Returns
    -------
    dict
        ``experiment_file`` (YAML text), ``config_hash``, ``code_hash``, ``stage_key``,
        ``derived_from`` (JSON text: the kinds of result that it was made from, each with its stage
        key), ``source``, ``references``, ``package_version``, ``git_state``, ``library_versions``
        (JSON text), ``device``,
        ``cuda_visible_devices`` (the environment variable, or ``"unset"``), ``seeds``,
        ``created`` (UTC, ISO 8601), ``wall_time_s``, ``peak_memory_bytes``, ``history``.
    """
    from resnet_limits import __version__

    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sizes = "".join(f" {name}={size}" for name, size in (cell or {}).items())
    return {
        "experiment_file": experiment_text(experiment),
        "config_hash": config_hash(experiment),
        "code_hash": code.code_hash(stage_module(stage)),
        "stage_key": key,
        "derived_from": canonical_json(
            {earlier: stage_key(earlier, experiment) for earlier in ancestors(stage, experiment)}
        ),
        "source": f"{citation.NAME} {__version__}",
        "references": citation.references(),
        "package_version": __version__,
        "git_state": git_state(),
        "library_versions": canonical_json(library_versions()),
        "device": device,
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", "unset"),
        "seeds": [int(seed) for seed in seeds],
        "created": created,
        "wall_time_s": round(time.monotonic() - started, 3),
        "peak_memory_bytes": _peak_memory_bytes(),
        "history": f"{created} resnet-limits {__version__}: {stage}{sizes}",
    }


def config_hash(experiment: Experiment) -> str:
    """Hash of the validated experiment: 32 hexadecimal digits."""
    return digest(canonical_json(experiment.model_dump(mode="json")))


# The same for all cells of a job, and slower to write than a cell's chunks.
@lru_cache(maxsize=1)
def experiment_text(experiment: Experiment) -> str:
    """Write the validated experiment as YAML, with all that its file left out."""
    values = experiment.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@lru_cache(maxsize=1)
def git_state() -> str:
    """Commit of the running sources, with ``-dirty`` if they were edited or added to since.

    Returns
    -------
    str
        ``"unknown"`` where the sources are not under version control or git is not there.
    """
    # An installed copy may sit inside somebody else's repository, whose commit would be a lie.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return "unknown"
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=all", "*.py")
    if commit is None or changes is None:
        return "unknown"
    return commit + ("-dirty" if changes else "")


def _git(*arguments: str) -> str | None:
    import subprocess

    try:
        done = subprocess.run(
            ["git", "-C", str(code.PACKAGE_DIRECTORY), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on; ``absent`` for none."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


def _peak_memory_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
