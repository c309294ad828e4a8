"""What is shown of results at first: a few lines on what is there."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from resnet_limits import fitted
from resnet_limits.kinds import SIZES
from resnet_limits.results import tree
from resnet_limits.results.folder import Folder

_HOW = (
    "Ask .claims, .loss, .status, .diverged, .field(), .kernel(), .distance(), .predicted(), "
    ".limit(), .tree; nothing is read before it is used."
)
_FEW = 4


def _lines(folder: Folder, rates: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give what is there, with a name for each line."""
    counts, lines = folder.counts(), []
    if "finite" in counts:
        there, wanted = counts.pop("finite")
        axes = ", ".join(f"{name} {_values(folder, name)}" for name in SIZES)
        seeds = len(folder.seeds("finite"))
        lines.append(("networks", f"{there} of {wanted} shapes, seeds 0 to {seeds - 1}; {axes}"))
    if counts:
        named = (f"{kind} {there} of {wanted}" for kind, (there, wanted) in counts.items())
        lines.append(("limits", ", ".join(named)))
    lines.append(("errors", ", ".join(tree.pairs(folder)) or "not there"))
    lines.append(("claims", fitted.claim_counts(rates) if rates else "not there"))
    return lines


def _values(folder: Folder, size: str) -> str:
    values = folder.values[size]
    if len(values) <= _FEW:
        return ", ".join(map(str, values))
    return f"{values[0]} to {values[-1]} ({len(values)} values)"


def text(folder: Folder, rates: Mapping[str, Any]) -> str:
    """Say what is there, for a terminal."""
    lines = [f"  {name:9} {words}" for name, words in _lines(folder, rates)]
    return "\n".join(
        [f"<Results {folder.experiment.experiment}> {folder.path}", *lines, f"  {_HOW}"]
    )


def html(folder: Folder, rates: Mapping[str, Any]) -> str:
    """Say what is there, for a notebook."""
    rows = "".join(
        f"<tr><th scope='row' style='text-align:left'>{name}</th>"
        f"<td style='text-align:left'>{escape(words)}</td></tr>"
        for name, words in _lines(folder, rates)
    )
    title = escape(f"{folder.experiment.experiment}: {folder.path}")
    return f"<strong>{title}</strong><table>{rows}</table><p>{escape(_HOW)}</p>"
