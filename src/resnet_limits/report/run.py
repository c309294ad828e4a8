"""What was run, in one sentence with its numbers, and in two small tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resnet_limits.config import Experiment
from resnet_limits.figures import style
from resnet_limits.kinds import SIZES, SYMBOLS

KIND_NAMES = {
    "problem": "data",
    "dmft": "DMFT limit",
    "mean_ode": "Mean ODE",
    "wide": "infinite width",
    "finite": "finite networks",
    "prediction": "predicted amplitudes",
    "errors": "distances",
    "rates": "rates and claims",
}
"""Names of the kinds of result."""

LIMITS = ("dmft", "mean_ode", "wide")

_MOST_NAMES = 12


@dataclass(frozen=True)
class Made:
    """The results of one kind, as their manifests and attributes tell of them.

    Attributes
    ----------
    kind : str
        One of ``kinds.KINDS``.
    count : int
        Number of results that are there.
    missing : list of str
        Names of those that are not.
    ok, diverged, not_run : int
        Numbers of seeds by how they ended; zero for results without seeds.
    unwell : list of str
        Names of the results with seeds that did not end well, with their numbers.
    seconds : float
        Sum of the wall times of all results.
    peak_bytes : int
        Largest peak memory of the processes that made them; 0 where none is recorded.
    devices, code_hashes, git_states, versions, libraries : list of str
        Each that occurs, once.
    first, last : str
        When the first and the last was made (UTC); empty if there is none.
    """

    kind: str
    count: int = 0
    missing: list[str] = field(default_factory=list)
    ok: int = 0
    diverged: int = 0
    not_run: int = 0
    unwell: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    devices: list[str] = field(default_factory=list)
    code_hashes: list[str] = field(default_factory=list)
    git_states: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    first: str = ""
    last: str = ""


@dataclass(frozen=True)
class Reached:
    """The standard error of one limit's outputs.

    Attributes
    ----------
    name : str
        Which limit, such as ``wide/L4_D16``.
    error : float
        RMS over steps, samples and targets of ``output_stderr``; of the seed where it is largest.
    depth_error : float
        Largest ``depth_error`` of any step.
    """

    name: str
    error: float
    depth_error: float


# --- the sentence ---------------------------------------------------------------------------------


def sentence(
    experiment: Experiment,
    rates: Mapping[str, Any],
    made: Sequence[Made],
    reached: Sequence[Reached],
) -> str:
    """Say in one sentence what was run.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    rates : mapping
        The contents of rates.json.
    made : sequence of Made
        The results of all kinds.
    reached : sequence of Reached
        The limits with their standard errors.
    """
    of_kind = {one.kind: one for one in made}
    parts = [
        _networks(experiment, of_kind.get("finite")),
        _limits(experiment, [of_kind[kind] for kind in LIMITS if kind in of_kind], reached),
        _cells(rates),
        _cost(made),
    ]
    words = "; ".join(part for part in parts if part)
    return f"{words[:1].upper()}{words[1:]}."


def _networks(experiment: Experiment, finite: Made | None) -> str:
    if finite is None or not (finite.count or finite.missing):
        return "no finite network was trained; limits are compared with each other"
    shapes = experiment.shapes
    spans = ", ".join(
        f"{SYMBOLS[name]} {span([getattr(shape, name) for shape in shapes])}" for name in SIZES
    )
    seeds = span([len(experiment.seeds_of(shape)) for shape in shapes])
    total = finite.ok + finite.diverged + finite.not_run
    networks = "network" if total == 1 else "networks"
    shape = "shape" if len(shapes) == 1 else "shapes"
    said = f"{len(shapes)} {shape} ({spans}) with {seeds} {'seed' if seeds == '1' else 'seeds'}"
    said += f"{' each' if len(shapes) > 1 else ''} are {grouped(total)} finite {networks}"
    ends = [
        f"{'all' if 0 < finite.diverged == total else number(finite.diverged)} diverged",
        f"{number(finite.not_run)} {'was' if finite.not_run < 2 else 'were'} not run"
        if finite.not_run
        else "",
        f"{number(len(finite.missing))} of {finite.count + len(finite.missing)} results "
        f"{'is' if len(finite.missing) < 2 else 'are'} missing",
    ]
    return f"{said}, of which {listed(end for end in ends if end)}"


def _limits(experiment: Experiment, limits: Sequence[Made], reached: Sequence[Reached]) -> str:
    count = sum(one.count for one in limits)
    if not count:
        return ""
    said = (
        f"{grouped(count)} {'limit was' if count == 1 else 'limits were'} solved, with a requested "
        f"standard error of {small(experiment.numerics.limit_tolerance)} in the outputs"
    )
    if reached:
        worst = max(reached, key=lambda one: one.error)
        first = next((one for one in reached if one.name == "dmft"), worst)
        said += f", reaching {small(first.error)} ({KIND_NAMES.get(first.name, first.name)})"
        if worst.name != first.name:
            said += f", at worst {small(worst.error)} ({worst.name})"
        depth = max(one.depth_error for one in reached)
        said += f"; the depth grid contributes at most {small(depth)}"
    missing = sum(len(one.missing) for one in limits)
    diverged = sum(one.diverged for one in limits)
    if missing:
        said += f", {missing} missing"
    if diverged:
        said += f", {diverged} {'seed' if diverged == 1 else 'seeds'} of them diverged"
    return said


def _cells(rates: Mapping[str, Any]) -> str:
    rows = cell_rows(rates)
    if not rows:
        return "no distance was measured"
    total, used, below, diverged, missing = (
        sum(row[name] for row in rows)
        for name in ("total", "used", "below_resolution", "diverged", "missing")
    )
    return (
        f"of {grouped(total)} distances at step {rows[0]['step']}, {grouped(used)} are used in "
        f"the fits, {number(below)} of these below resolution, {number(diverged)} diverged and "
        f"{number(missing)} {'is' if missing < 2 else 'are'} missing"
    )


def _cost(made: Sequence[Made]) -> str:
    seconds = sum(one.seconds for one in made)
    if not any(one.count for one in made):
        return ""
    devices = listed(dict.fromkeys(device for one in made for device in one.devices))
    peak = max(one.peak_bytes for one in made)
    said = f"computing took {duration(seconds)} of wall time, summed over results"
    if peak:
        said += f", and at most {memory(peak)} of memory"
    return f"{said}, on {devices.replace('cpu', 'the CPU') or 'an unknown device'}"


# --- tables ---------------------------------------------------------------------------------------


def cell_rows(rates: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Count the cells of each pair and distance that claims are about, at the last step."""
    rows = []
    for pair, quantities in (rates.get("pairs") or {}).items():
        for observable in ("hidden", "output"):
            steps = (quantities or {}).get(observable) or {}
            if not steps:
                continue
            step = max(steps, key=int)
            fit = steps[step] or {}
            if fit.get("cells"):
                needed = fit.get("limit_tolerance_needed")
                head = {"pair": pair, "observable": observable, "step": int(step)}
                resolving = "\N{EN DASH}" if needed is None else small(needed)
                rows.append({**head, **fit["cells"], "resolving": resolving})
    return rows


def unwell(made: Iterable[Made]) -> list[str]:
    """Name what diverged, was not run or is missing, in sentences."""
    said = []
    for one in made:
        name = KIND_NAMES.get(one.kind, one.kind)
        if one.unwell:
            said.append(f"{name}, diverged or not run: {_names(one.unwell)}.")
        if one.missing:
            said.append(f"{name}, missing: {_names(one.missing)}.")
    return [f"{words[:1].upper()}{words[1:]}" for words in said]


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown}{f', and {more} more (resnet-limits status lists all)' if more > 0 else ''}"


# --- numbers in words -----------------------------------------------------------------------------


def number(count: int) -> str:
    """Write a count inside a sentence: none, or its digits."""
    return grouped(count) if count else "none"


def grouped(count: int) -> str:
    """Write a count with thin spaces between thousands."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def small(value: float) -> str:
    """Write a small number with two digits, and no more of them than it has."""
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def span(values: Sequence[int]) -> str:
    """Write the smallest and the largest of some values."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def listed(words: Iterable[str]) -> str:
    """Join words as a sentence does."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{style.number(seconds / size, 2)} {unit}"
    return f"{style.number(seconds, 2)} seconds"


def memory(size: int) -> str:
    """Write a number of bytes in GiB."""
    return f"{style.number(size / 2**30, 2)} GiB"
