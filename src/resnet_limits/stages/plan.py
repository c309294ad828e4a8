"""Which results of an experiment are there already, and what a run would put in their place.

Before anything is planned all results are looked at: what is damaged, or of other code or values
than today's, is computed again. Results of other values are not replaced unless that is wanted,
for they may have taken days.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from resnet_limits import integrity, lock, provenance
from resnet_limits.config import Experiment
from resnet_limits.kinds import COMPUTED, KINDS
from resnet_limits.stages.paths import Paths, cells

EDITED = "the experiment, code or data were edited after this job was planned; run again"
"""Why a job refuses to compute what nobody has planned."""

# Results that are no more than this together are read at every planning, which takes a second or
# two; of more, those whose files have another size or time than when they were written.
_READ_BYTES, _READ_FILES = 256 * 2**20, 20_000
# A list of values may be long.
_SHOWN = 60
# Data from a file stand as a digest.
_DATA = "problem.data.path"


class PlanError(Exception):
    """Why nothing may be planned, or no job may begin. The message is one line."""


# --- what is planned ------------------------------------------------------------------------------


def what_is_planned(experiment: Experiment) -> dict[str, Any]:
    """Describe all that a job may take from the experiment, the code and the data."""
    return {
        "sweep": experiment.sweep.model_dump(mode="json"),
        "keys": {stage: provenance.stage_key(stage, experiment) for stage in provenance.STAGES},
    }


def record(experiment: Experiment, paths: Paths, run: str) -> None:
    """Write down what is planned, for the jobs of this run, and mark the folders as Zarr groups.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    paths : Paths
        Places of its results.
    run : str
        A name that no other run has.
    """
    integrity.write_json({**what_is_planned(experiment), "run": run}, paths.plan)
    for folder in paths.groups(experiment):
        # The same for all experiments and times, and so never older than what is in the group.
        integrity.write_json(integrity.RESULTS_GROUP, folder / integrity.ZARR_METADATA)


def refuse_another(experiment: Experiment, paths: Paths, run: str | None) -> None:
    """Stop a job of a cluster that is not part of what was planned last.

    Such jobs read the experiment file again, hours later, and would else take part in an experiment
    that nobody has planned; or they have waited since a run that was killed, and a later run has
    submitted them once more.

    Parameters
    ----------
    experiment : Experiment
        As the job has read it.
    paths : Paths
        Places of its results.
    run : str or None
        The run that has submitted the job; None where the cluster does not pass that on.

    Raises
    ------
    PlanError
        If it is another experiment, other code, other data or another run.
    """
    try:
        planned = integrity.read_json(paths.plan)
        planned_run = planned.pop("run", None)
    except (OSError, ValueError, TypeError, AttributeError):
        planned, planned_run = None, None
    if planned != what_is_planned(experiment):
        raise PlanError(EDITED)
    if run is not None and run != planned_run:
        raise PlanError(
            "this job was submitted by a run that was killed, and a later run has taken over"
        )


# --- what is there --------------------------------------------------------------------------------


class Replaced(NamedTuple):
    """A network or limit that a run would put another in the place of.

    Attributes
    ----------
    kind : str
        One of ``kinds.COMPUTED``.
    changes : dict of str to (object, object), or None
        The keys whose values changed, each with what it was and what it is; None if it is not
        recorded what the result was computed from.
    """

    kind: str
    changes: dict[str, tuple[Any, Any]] | None


@dataclass
class There:
    """What is there of an experiment.

    Attributes
    ----------
    current : dict of Path to (Path, mapping)
        Manifests of today's keys, each with its result and what it says.
    again : list of Path
        Files whose jobs are to run again: of other keys, or not readable.
    notes : list of str
        A line about each that is not readable.
    replaced : list of Replaced
        Networks and limits of other keys.
    """

    current: dict[Path, tuple[Path, Mapping[str, Any]]] = field(default_factory=dict)
    again: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)


def look(experiment: Experiment, paths: Paths) -> There:
    """Read the manifests of all results that an experiment asks for.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    paths : Paths
        Places of its results.
    """
    there = There()
    for kind in KINDS:
        values = cache(lambda kind=kind: provenance.values_read(kind, experiment))
        common = provenance.stage_key(kind, experiment)
        for cell in cells(kind, experiment):
            path, store = paths.manifest(kind, **cell), paths.store(kind, **cell)
            manifest = _manifest(path, path, there)
            # Also without a manifest, which is gone when a job was stopped.
            old = manifest or integrity.attributes(store)
            key = provenance.cell_key(common, kind, experiment, **cell) if old else None
            if not old or old.get("stage_key") == key:
                if manifest:
                    there.current[path] = (store, manifest)
                continue
            if manifest:
                there.again.append(path)
            old = integrity.attributes(store) if kind in COMPUTED else {}
            if old and old.get("stage_key") != key:
                seeds = len(provenance.cell_seeds(kind, experiment, **cell))
                changes = _changes(old, values(), seeds)
                # More seeds leave those that are there as they are.
                if changes != {} or len(old["seeds"]) >= seeds:
                    there.replaced.append(Replaced(kind, changes))
    return there


def _manifest(path: Path, tracked: Path, there: There) -> dict[str, Any] | None:
    """Read a manifest if there is one; if it is damaged, its result is planned again."""
    try:
        return integrity.read_manifest(path)
    except integrity.StoreError as error:
        if path.exists():
            there.notes.append(f"{error}: its result will be computed again")
            there.again.append(tracked)
        return None


def _look_at_pages(
    experiment: Experiment, paths: Paths, pages: Sequence[Path], there: There
) -> dict[Path, tuple[Path, Mapping[str, Any]]]:
    """Read the manifests of figures and pages; those of today's key, each with its page."""
    keys = {stage: provenance.stage_key(stage, experiment) for stage in ("figures", "report")}
    found: dict[Path, tuple[Path, Mapping[str, Any]]] = {}
    for page in pages:
        path = paths.page_manifest(page)
        manifest = _manifest(path, page, there) if page.exists() else None
        if manifest and manifest["stage_key"] == keys[paths.page_stage(page)]:
            found[path] = (page, manifest)
        elif manifest:
            there.again.append(page)
    return found


def prepare(
    experiment: Experiment,
    paths: Paths,
    pages: Sequence[Path],
    *,
    is_dry: bool,
    replace: bool,
    replaceable: Collection[str] = COMPUTED,
    verify: bool = False,
    say: Callable[[str], object],
) -> list[Path]:
    """See that nobody else is at work, and that all that is there is what it should be.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    paths : Paths
        Places of its results, which are locked for this process unless it only looks.
    pages : sequence of Path
        Figures, the report and the page of the jobs.
    is_dry : bool
        Whether nothing may be changed.
    replace : bool
        Whether results of other values may be replaced.
    replaceable : collection of str
        The kinds of result that the run may compute.
    verify : bool
        Whether every result is to be read, however much that is.
    say : callable
        Takes a line for the user.

    Returns
    -------
    list of Path
        The files whose jobs must run again.

    Raises
    ------
    PlanError
        If another pipeline is at work, the results cannot be written, or results of other values
        would be replaced.
    """
    if not is_dry:
        _hold(paths, say)
    there = look(experiment, paths)
    found_pages = _look_at_pages(experiment, paths, pages, there)
    replaced = [result for result in there.replaced if result.kind in replaceable]
    for line in [*there.notes, *said(replaced, paths, will=replace)]:
        say(line)
    if not replace and any(result.changes != {} for result in replaced):
        how = (
            "give the changed experiment another name (experiment: NAME), or replace the results "
            "with --config replace=true or make run REPLACE=1"
        )
        if not is_dry:
            raise PlanError(f"{paths.folder}: results are kept and nothing was computed; {how}")
        say(f"{paths.folder}: a run will compute nothing; {how}")
    again = list(there.again)
    # The manifest stays, and with it the sharing of cells among jobs, until Snakemake removes it
    # before the job runs. The store goes, so that the job does not take it for sound.
    for damage in integrity.damage(
        there.current | found_pages,
        most_bytes=math.inf if verify else _READ_BYTES,
        most_files=math.inf if verify else _READ_FILES,
        refresh=not is_dry,
    ):
        if not is_dry:
            try:
                integrity.remove(damage.store)
            except OSError as error:
                raise PlanError(
                    f"{damage.store}: damaged, and cannot be removed: {error}"
                ) from None
        say(str(damage))
        again.append(damage.store if damage.manifest in found_pages else damage.manifest)
    return again


def _hold(paths: Paths, say: Callable[[str], object]) -> None:
    """Lock the results for this process, and clear what killed processes have left in them."""
    try:
        lock.hold(paths.folder, say)
        for folder in integrity.folders(paths.folder):
            integrity.remove_leftovers(folder)
    except lock.LockError as error:
        raise PlanError(str(error)) from None
    except OSError as error:
        raise PlanError(f"{paths.folder}: {error}") from None


# --- what is replaced -----------------------------------------------------------------------------


def _changes(
    old: Mapping[str, Any], values: Mapping[str, Any], seeds: int
) -> dict[str, tuple[Any, Any]] | None:
    """Find the values that differ between a result's and today's; none if only code does."""
    try:
        changes = changed_values(json.loads(old["values_read"]), values)
        before = len(old["seeds"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return changes | ({"sweep.seeds": (before, seeds)} if before > seeds else {})


def changed_values(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Compare values by dotted key (`provenance.values_read`).

    A key that only one side has is of another version of the program, which says nothing; unless
    the other side has a value in the place of the section that it is in.

    Returns
    -------
    dict of str to (object, object)
        What each changed key was and is.
    """
    found = {key: (before[key], after[key]) for key in before if key in after}
    for key in before.keys() ^ after.keys():
        for section in _sections(key):
            if section in before or section in after:
                found[section] = (_section(before, section), _section(after, section))
    return {key: values for key, values in sorted(found.items()) if values[0] != values[1]}


def _sections(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _section(values: Mapping[str, Any], section: str) -> Any:
    start = f"{section}."
    inner = {key.removeprefix(start): values[key] for key in values if key.startswith(start)}
    return inner or values.get(section)


def said(replaced: Sequence[Replaced], paths: Paths, *, will: bool) -> Iterator[str]:
    """Say which results a run replaces, and what changed since they were computed.

    Parameters
    ----------
    replaced : sequence of Replaced
        The results.
    paths : Paths
        Places of the results.
    will : bool
        Whether they will be, or would be.
    """
    verb = "will" if will else "would"
    of_values = [result for result in replaced if result.changes]
    unknown = [result for result in replaced if result.changes is None]
    of_code = [result for result in replaced if result.changes == {}]
    if of_values:
        yield f"{paths.folder}: {_counted(of_values)} made with other values {verb} be replaced:"
        changes = [item for result in of_values for item in (result.changes or {}).items()]
        for key in dict.fromkeys(key for key, _ in changes):
            yield f"  {key}: {_said_change(key, [pair for name, pair in changes if name == key])}"
    if unknown:
        made = "made with values that were not recorded"
        yield f"{paths.folder}: {_counted(unknown)} {made} {verb} be replaced"
    if of_code:
        yield f"{paths.folder}: {_counted(of_code)} made with other code will be computed again"


def _said_change(key: str, changes: Sequence[tuple[Any, Any]]) -> str:
    if key == _DATA:
        return "other content"
    before = dict.fromkeys(_shown(old) for old, _ in changes)
    after = dict.fromkeys(_shown(new) for _, new in changes)
    return f"{', '.join(before)} -> {', '.join(after)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _counted(replaced: Sequence[Replaced]) -> str:
    networks = sum(result.kind == "finite" for result in replaced)
    counts = {"network": networks, "limit": len(replaced) - networks}
    return " and ".join(
        f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count
    )
