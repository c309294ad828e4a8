"""The command that predicts distances from the limit, without training a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_limits.cli.common import RESULTS, Config, columns, experiment_for, naming, place
from resnet_limits.cli.computing import Plan, dmft_for
from resnet_limits.cli.session import LOG
from resnet_limits.config import Experiment, InputError, Shape
from resnet_limits.kinds import SYMBOLS

AnyDepth = Annotated[
    int | None, typer.Option("--depth", metavar="L", min=1, help="Number of layers.")
]
AnyWidth = Annotated[
    int | None,
    typer.Option("--width", metavar="M", min=1, help="Number of hidden units in each layer."),
]
AnyEmbedDim = Annotated[
    int | None, typer.Option("--embed-dim", metavar="D", min=1, help="Embedding dimension.")
]
Minutes = Annotated[
    float,
    typer.Option(
        "--minutes", metavar="N", min=0, help="Minutes of one core that each amplitude may take."
    ),
]
MINUTES = 15.0
_SECONDS = 60.0
# Steps that the table shows: the first ones, and some of the later.
_SHOWN_STEPS = 8


def predict(
    *,
    config: Config,
    depth: AnyDepth = None,
    width: AnyWidth = None,
    embed_dim: AnyEmbedDim = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSON file to write.")
    ] = None,
    minutes: Minutes = MINUTES,
    results: Plan = RESULTS,
) -> None:
    """Predict distances from the limit, without training a network.

    Prints the amplitude of every term of the error; with a shape, also its distances and how their
    squares split.
    """
    experiment = experiment_for(config)
    shape = named_shape(depth, width, embed_dim)
    if out is None:
        predicted = _predicted(experiment, config, shape, minutes, results)
    else:
        if out.suffix != ".json" or out.is_dir():
            raise InputError(f"--out: {out}; allowed: a file name that ends in .json")
        with place(out, experiment, "prediction") as save:
            predicted = _predicted(experiment, config, shape, minutes, results)
            save(predicted)
    for line in _lines(predicted):
        typer.echo(line)


def named_shape(depth: int | None, width: int | None, embed_dim: int | None) -> Shape | None:
    """Give the shape that options name; None if they name no size of it.

    Raises
    ------
    InputError
        If they name some of its sizes only.
    """
    sizes = depth, width, embed_dim
    if all(size is None for size in sizes):
        return None
    if depth is None or width is None or embed_dim is None:
        raise InputError(
            "--depth, --width, --embed-dim: a shape needs all three; allowed: all of them, or none"
        )
    return Shape(depth, width, embed_dim)


def prediction_for(
    experiment: Experiment, config: Path, minutes: float, results: Path
) -> dict[str, Any]:
    """Take the prediction from the results, or make it.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    config : path
        Its file, for complaints.
    minutes : float
        Time of one core that one amplitude may take.
    results : path
        Folder of all results.
    """
    from resnet_limits import integrity, provenance
    from resnet_limits.stages.paths import Paths

    paths = Paths(results, experiment.experiment)
    key = provenance.stage_key("prediction", experiment)
    if integrity.manifest_matches(paths.manifest("prediction"), key):
        LOG.debug("prediction from %s", paths.store("prediction"))
        found: dict[str, Any] = integrity.read_json(paths.store("prediction"))
        return found
    return _predicted(experiment, config, None, minutes, results)


def _predicted(
    experiment: Experiment, config: Path, shape: Shape | None, minutes: float, results: Path
) -> dict[str, Any]:
    from resnet_limits.stages import prediction as stage

    with naming(config):
        dmft = dmft_for(experiment, results)
        return stage.prediction(experiment, dmft, most_seconds=_SECONDS * minutes, shape=shape)


def _lines(predicted: dict[str, Any]) -> Iterator[str]:
    """Amplitudes at some steps, a line for each term; distances of a shape; notes."""
    from resnet_limits.predicted import amplitudes

    steps = _shown(predicted["step"])
    rows = [["of", "term", *(f"step {step}" for step in steps)]]
    for name in ("hidden", "output"):
        for term, found in predicted[name].items():
            pairs = amplitudes(found)
            rows.append([name, term, *(_with_error(*(pairs[k] or (None, None))) for k in steps)])
    yield from columns(rows)
    if "shape" in predicted:
        yield from columns(_shape_rows(predicted["shape"], steps))
        for name in ("hidden", "output"):
            if without := predicted["shape"][name]["leading"]["without"]:
                yield f"note: {name}: leading order without {', '.join(without)}"
    for term, note in predicted["notes"].items():
        yield f"note: {term}: {note}"


def _shape_rows(shape: dict[str, Any], steps: Sequence[int]) -> list[list[str]]:
    sizes = " ".join(f"{letter}={shape[name]}" for name, letter in SYMBOLS.items())
    rows = [["of", sizes, *(f"step {step}" for step in steps)]]
    for name in ("hidden", "output"):
        found, leading = shape[name], shape[name]["leading"]
        for label, values in (("distance", found), ("leading order", leading)):
            pairs = [(values["distance"][k], values["uncertainty"][k]) for k in steps]
            rows.append([name, label, *(_with_error(*pair) for pair in pairs)])
        for term, shares in leading["share"].items():
            rows.append([name, f"share of {term}", *(_percent(shares[k]) for k in steps)])
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _shown(steps: Sequence[int]) -> list[int]:
    """Choose steps to show: all if they are few, else some, the first and the last among them."""
    if len(steps) <= _SHOWN_STEPS:
        return list(steps)
    last = len(steps) - 1
    return sorted({0, 1, 2, 3, 5, last // 2, last} & set(steps))


def _with_error(value: float | None, error: float | None) -> str:
    if value is None or error is None:
        return "-"
    if value == error == 0.0:
        return "0"
    return f"{value:.3g} +- {error:.1g}"
