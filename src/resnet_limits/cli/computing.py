"""Commands that compute: the problem, the three limits and the finite networks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnet_limits.cli.common import (
    COMMANDS,
    RESULTS,
    Config,
    Depth,
    EmbedDim,
    Out,
    Results,
    Seeds,
    Width,
    check_out,
    experiment_for,
    naming,
    pipeline_manifest,
    save,
)
from resnet_limits.cli.session import LOG
from resnet_limits.config import ENGINES, Experiment, Shape, load_experiment, one_line

if TYPE_CHECKING:
    import xarray as xr


def validate(config: Config) -> None:
    """Check an experiment file and its data; compute nothing.

    Prints the sizes of the problem and how many results of each kind are asked for.
    """
    experiment = load_experiment(config)
    from resnet_limits.stages import paths, problem

    with naming(config):
        sizes = problem.problem(experiment).sizes
    typer.echo(one_line(f"{config}: experiment {experiment.experiment}"))
    typer.echo("problem: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    typer.echo(f"shapes: {len(experiment.shapes)}, seeds: {len(experiment.seeds)}")
    typer.echo("pairs: " + ", ".join(experiment.pairs))
    for kind in COMMANDS:
        typer.echo(f"{kind}: {len(paths.cells(kind, experiment))} results")


def _dmft_for(experiment: Experiment, results: Path) -> xr.Dataset:
    """Take the DMFT limit, whose pilot fixed the quadrature, from the results, or solve it."""
    from resnet_limits import integrity, provenance, store
    from resnet_limits.stages.paths import Paths

    paths = Paths(results, experiment.experiment)
    key = provenance.stage_key("dmft", experiment)
    if integrity.manifest_matches(paths.manifest("dmft"), key):
        LOG.debug("quadrature from %s", paths.store("dmft"))
        return store.open_store(paths.store("dmft"))
    from resnet_limits.stages import limits

    return limits.dmft(experiment)


def dmft(config: Config, out: Out) -> None:
    """Solve the DMFT limit: L, M and D to infinity."""
    check_out(out)
    experiment = load_experiment(config)
    started = time.monotonic()
    from resnet_limits.stages import limits

    with naming(config):
        dataset = limits.dmft(experiment)
    manifest = pipeline_manifest(out, experiment, "dmft")
    save(dataset, out, "dmft", experiment, started=started, manifest=manifest)


def mean_ode(
    config: Config,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    results: Results = RESULTS,
) -> None:
    """Solve the Mean ODE: L and M to infinity, at one D.

    The quadrature is that of the DMFT limit in the results; it is solved first where it is not
    there or out of date.
    """
    check_out(out)
    experiment = experiment_for(config, seeds=seeds)
    started = time.monotonic()
    from resnet_limits.stages import limits

    with naming(config):
        dataset = limits.mean_ode(experiment, embed_dim, _dmft_for(experiment, results))
    cell = {"embed_dim": embed_dim}
    manifest = pipeline_manifest(out, experiment, "mean_ode", **cell)
    save(dataset, out, "mean_ode", experiment, started=started, manifest=manifest, **cell)


def wide(
    *,
    config: Config,
    depth: Depth,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    results: Results = RESULTS,
) -> None:
    """Solve the infinitely wide network of one L and D.

    The quadrature is that of the DMFT limit in the results; it is solved first where it is not
    there or out of date.
    """
    check_out(out)
    experiment = experiment_for(config, seeds=seeds)
    started = time.monotonic()
    from resnet_limits.stages import limits

    with naming(config):
        dataset = limits.wide(experiment, depth, embed_dim, _dmft_for(experiment, results))
    cell = {"depth": depth, "embed_dim": embed_dim}
    manifest = pipeline_manifest(out, experiment, "wide", **cell)
    save(dataset, out, "wide", experiment, started=started, manifest=manifest, **cell)


def train(
    *,
    config: Config,
    depth: Depth,
    width: Width,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            help=f"{' or '.join(ENGINES)}; the experiment's if left out.",
        ),
    ] = None,
) -> None:
    """Train the finite networks of one shape, all seeds together."""
    check_out(out)
    experiment = experiment_for(config, seeds=seeds, engine=engine)
    started = time.monotonic()
    from resnet_limits.stages import networks

    with naming(config):
        dataset = networks.finite(experiment, Shape(depth, width, embed_dim))
    cell = {"depth": depth, "width": width, "embed_dim": embed_dim}
    manifest = pipeline_manifest(out, experiment, "finite", **cell)
    save(dataset, out, "finite", experiment, started=started, manifest=manifest, **cell)
