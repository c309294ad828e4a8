"""Commands that compute: the problem, the three limits and the finite networks."""

from __future__ import annotations

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
    Seeds,
    Width,
    check_out,
    experiment_for,
    naming,
    place,
    study_for,
)
from resnet_limits.cli.session import LOG
from resnet_limits.config import ENGINES, Experiment, Shape, one_line

if TYPE_CHECKING:
    import xarray as xr

Plan = Annotated[
    Path,
    typer.Option(
        "--results",
        metavar="FOLDER",
        help="Folder of all results; their DMFT limit gives the quadrature, and is solved first if "
        "it is missing.",
    ),
]


def validate(config: Config) -> None:
    """Check an experiment file and its data; compute nothing.

    Prints the sizes of the problem and how many results of each kind are asked for.
    """
    experiment = experiment_for(config)
    from resnet_limits.dynamics import make_dynamics
    from resnet_limits.problem import problem_from
    from resnet_limits.stages import paths, problem

    with naming(config):
        data = problem.problem(experiment)
        make_dynamics(experiment, problem_from(experiment, data))
    sizes = data.sizes
    typer.echo(one_line(f"{config}: experiment {experiment.experiment}"))
    tests = f", test samples {int(data['is_test'].sum())}" if "is_test" in data else ""
    typer.echo("problem: " + ", ".join(f"{name} {size}" for name, size in sizes.items()) + tests)
    typer.echo(f"shapes: {len(experiment.shapes)}, seeds: {len(experiment.seeds)}")
    typer.echo("pairs: " + ", ".join(experiment.pairs))
    for kind in COMMANDS:
        count = len(paths.cells(kind, experiment))
        typer.echo(f"{kind}: {count} result{'' if count == 1 else 's'}")


def dmft_for(experiment: Experiment, results: Path) -> xr.Dataset:
    """Take the DMFT limit, whose pilot fixed the quadrature, from the results, or solve it.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    results : path
        Folder of all results.
    """
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
    experiment = experiment_for(config)
    with place(out, experiment, "dmft") as save:
        from resnet_limits.stages import limits

        with naming(config):
            dataset = limits.dmft(experiment)
        save(dataset)


def mean_ode(
    config: Config,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    results: Plan = RESULTS,
) -> None:
    """Solve the Mean ODE: L and M to infinity, at one D."""
    check_out(out)
    experiment = study_for(config, seeds=seeds, limit_seeds=seeds)
    cell = {"embed_dim": embed_dim}
    with place(out, experiment, "mean_ode", **cell) as save:
        from resnet_limits.stages import limits

        with naming(config):
            dataset = limits.mean_ode(experiment, embed_dim, dmft_for(experiment, results))
        save(dataset)


def wide(
    *,
    config: Config,
    depth: Depth,
    embed_dim: EmbedDim,
    out: Out,
    seeds: Seeds = None,
    results: Plan = RESULTS,
) -> None:
    """Solve the infinitely wide network of one L and D."""
    check_out(out)
    experiment = study_for(config, seeds=seeds, limit_seeds=seeds)
    cell = {"depth": depth, "embed_dim": embed_dim}
    with place(out, experiment, "wide", **cell) as save:
        from resnet_limits.stages import limits

        with naming(config):
            dataset = limits.wide(experiment, depth, embed_dim, dmft_for(experiment, results))
        save(dataset)


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
            help=f"One of {', '.join(ENGINES)}; by default the experiment's.",
        ),
    ] = None,
) -> None:
    """Train the finite networks of one shape, all seeds together."""
    check_out(out)
    experiment = experiment_for(config, seeds=seeds, engine=engine)
    cell = {"depth": depth, "width": width, "embed_dim": embed_dim}
    with place(out, experiment, "finite", **cell) as save:
        from resnet_limits.stages import networks

        with naming(config):
            dataset = networks.finite(experiment, Shape(**cell), beside=out)
        save(dataset)
