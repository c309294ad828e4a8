"""The command that shows all cells of an experiment on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnet_limits.cli.session import LOG, Session

Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Folder of one experiment, such as results/quickstart."),
]


def explore(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", metavar="PAGE", help="Page to write: .html.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Also write a table of all cells and steps: .csv or .parquet.",
        ),
    ] = None,
) -> None:
    """Write a page to explore the distances of all cells.

    It is one file that opens in any browser, without a server or a network.
    """
    from resnet_limits.stages import explorer as stage

    stage.check_names(out, data)
    found = stage.gather(folder)
    page = stage.write_page(found, out)
    Session.saved = True
    size = len(page.html.encode()) / 1e6
    cells = sum(map(len, found.pairs.values()))
    steps = "all" if page.steps == page.all_steps else f"{page.steps} of"
    typer.echo(
        f"{out}: {size:.1f} MB, {cells} cells of {len(found.pairs)} "
        f"pair{'s' * (len(found.pairs) > 1)}, {steps} {page.all_steps} steps"
    )
    if data is not None:
        rows = stage.write_data(found, data)
        typer.echo(f"{data}: {rows} rows")
    LOG.info("open %s in a browser", out)
