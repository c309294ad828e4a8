"""The page: everything that is known of an experiment, in the order of its argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resnet_limits.config import Experiment
from resnet_limits.fitted import verdict_counts
from resnet_limits.report import claims, methods, rates, run
from resnet_limits.report.markup import (
    csv_bytes,
    data_link,
    environment,
    script_hash,
    source,
)


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes
    ----------
    name, title : str
        Its file's name, and its headline.
    message : str
        What it shows here, with its main numbers: what a screen reader says of it.
    caption : str
        How to read it, in Markdown.
    notes : list of str
        What was left out and why.
    why_empty : str
        Why there is nothing to draw; empty for a figure that is drawn.
    picture : bytes
        The picture itself; empty if there is none.
    kind : str
        Of the picture: ``image/svg+xml`` or ``image/png``.
    table : bytes
        Every number that is drawn, as CSV; empty if there are none, or too many for the page.
    header, rows : list
        The table's column names and first rows.
    row_count : int
        The number of its rows.
    files : list of str
        Names of the figure's files, relative to the page.
    """

    name: str
    title: str
    message: str
    caption: str
    notes: list[str] = field(default_factory=list)
    why_empty: str = ""
    picture: bytes = b""
    kind: str = "image/png"
    table: bytes = b""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    row_count: int = 0
    files: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The picture as an address."""
        return data_link(self.picture, self.kind)

    @property
    def csv(self) -> str:
        """The table as an address: inside the page, or beside it if that would be too large."""
        return data_link(self.table, "text/csv") if self.table else f"figures/{self.name}.csv"


@dataclass(frozen=True)
class Contents:
    """All that the page tells.

    Attributes
    ----------
    experiment : Experiment
        The validated experiment.
    rates : mapping
        The contents of rates.json.
    figures : sequence of Drawing
        In the order of the argument.
    made : sequence of run.Made
        The results of all kinds.
    reached : sequence of run.Reached
        The limits with their standard errors.
    configuration : str
        The experiment file with all values, as YAML.
    version : str
        Of the package.
    beside : mapping of str to str
        Files in the same folder and what they are.
    """

    experiment: Experiment
    rates: Mapping[str, Any]
    figures: Sequence[Drawing]
    made: Sequence[run.Made]
    reached: Sequence[run.Reached]
    configuration: str
    version: str
    beside: Mapping[str, str] = field(default_factory=dict)


def render(contents: Contents) -> str:
    """Write the page.

    Returns
    -------
    str
        One HTML text that needs no other file and no network, and works without its script.
    """
    script = source("page.js")
    header, rows = rates.table(contents.rates)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            contents=contents,
            name=contents.experiment.experiment,
            style=source("page.css"),
            script=script,
            script_hash=script_hash(script),
            verdict=claims.sentence(contents.rates),
            counts=verdict_counts(contents.rates),
            why_no_verdict=methods.why_undecided(
                contents.experiment, contents.rates, contents.made
            ),
            summary=claims.summary(contents.rates),
            steps=[str(step) for step in contents.rates.get("steps") or ()],
            claims=claims.rows(contents.rates),
            claims_csv=data_link(
                csv_bytes(claims.HEADER, claims.table(contents.rates)), "text/csv"
            ),
            ran=run.sentence(contents.experiment, contents.rates, contents.made, contents.reached),
            unwell=run.unwell(contents.made),
            cells=run.cell_rows(contents.rates),
            kinds=run.KIND_NAMES,
            methods=methods.paragraphs(contents.experiment),
            pairs=methods.pairs(contents.experiment),
            lines=rates.lines(contents.rates),
            rates_csv=data_link(csv_bytes(header, rows), "text/csv"),
            configuration_link=data_link(contents.configuration.encode(), "text/yaml"),
            versions=_each(contents.made, "versions"),
            libraries=_each(contents.made, "libraries"),
            duration=run.duration,
            memory=run.memory,
            pair_name=claims.style.pair_name,
            observables=claims.OBSERVABLES,
        )
    )


def _each(made: Sequence[run.Made], name: str) -> list[str]:
    """Gather what occurs in any kind of result, each once."""
    return list(dict.fromkeys(value for one in made for value in getattr(one, name)))
