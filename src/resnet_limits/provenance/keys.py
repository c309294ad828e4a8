"""Stage keys: names of everything that a result depends on.

A key covers the syntax of the code that the stage imports, the part of the experiment that it
reads, its cell, and the keys of the stages before it. Equal keys mean that nothing needs to be
computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from resnet_limits.config import Experiment
from resnet_limits.kinds import CELL_KEYS, SIZES
from resnet_limits.provenance import code
from resnet_limits.provenance.code import PACKAGE, canonical_json, digest


@dataclass(frozen=True)
class _Stage:
    """What one stage depends on.

    Attributes
    ----------
    module : str
        The module whose function computes the stage.
    reads : tuple of str
        Dotted keys of the experiment that the stage reads itself.
    cell : tuple of str
        The sizes (or names) that tell one job of the stage from another.
    after : tuple of str
        The stages whose results it reads; those among `_COMPARED` only as far as a pair needs them.
    also : tuple of str
        Further stages whose results it reads, and whose keys stand in those of `after` already.
    """

    module: str
    reads: tuple[str, ...] = ()
    cell: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


_LIMIT_READS = ("problem", "model", "training", "numerics", "seed")
_FINITE_READS = (
    "problem",
    "model",
    "training",
    "seed",
    "save",
    "numerics.precision",
    "numerics.device",
    "sweep.engine",
)
_COMPARED = ("dmft", "mean_ode", "wide", "finite")
# Each cell of these has its own number of seeds, which is part of its key and not of the stage's.
SEEDED = frozenset({"mean_ode", "wide", "finite"})
"""The stages whose results hold seeds."""

_AFTER_DMFT = ("dmft",), ("problem",)

_STAGES: dict[str, _Stage] = {
    "problem": _Stage(f"{PACKAGE}.stages.problem", ("problem",)),
    "dmft": _Stage(f"{PACKAGE}.stages.limits", _LIMIT_READS, (), ("problem",)),
    "mean_ode": _Stage(
        f"{PACKAGE}.stages.limits", _LIMIT_READS, CELL_KEYS["mean_ode"], *_AFTER_DMFT
    ),
    "wide": _Stage(f"{PACKAGE}.stages.limits", _LIMIT_READS, CELL_KEYS["wide"], *_AFTER_DMFT),
    "finite": _Stage(
        f"{PACKAGE}.stages.networks",
        _FINITE_READS,
        SIZES,
        ("problem",),
    ),
    "prediction": _Stage(f"{PACKAGE}.stages.prediction", _LIMIT_READS, (), *_AFTER_DMFT),
    "errors": _Stage(
        f"{PACKAGE}.stages.errors", ("pairs", "save", "cells"), (), _COMPARED, ("problem",)
    ),
    "rates": _Stage(f"{PACKAGE}.stages.rates", ("families",), (), ("errors", "prediction")),
    "figures": _Stage(
        f"{PACKAGE}.stages.figures",
        (),
        ("name",),
        ("rates", "prediction"),
        ("errors", "dmft", "finite"),
    ),
    "report": _Stage(f"{PACKAGE}.stages.report", (), (), ("figures",)),
}

STAGES = tuple(_STAGES)
"""The names of the stages, upstream first."""


def stage_module(stage: str) -> str:
    """Dotted name of the module that computes a stage."""
    return _stage(stage).module


def _stage(stage: str) -> _Stage:
    if stage not in _STAGES:
        raise ValueError(f"stage {stage!r}: must be one of {', '.join(STAGES)}")
    return _STAGES[stage]


def ancestors(stage: str, experiment: Experiment | None = None) -> tuple[str, ...]:
    """Name the stages whose results a stage reads, upstream first.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    experiment : Experiment, optional
        Whose pairs say which limits and networks there are; all of them are named without it.
    """
    description = _stage(stage)
    read = {*description.after, *description.also}
    if experiment is not None:
        # The DMFT limit's pilot fixes the quadrature of every limit.
        read -= set(_COMPARED) - _needed(experiment) - {"dmft"}
    return tuple(name for name in STAGES if name in read)


def stage_key(stage: str, experiment: Experiment, **cell: int | str) -> str:
    """Name everything that one result depends on.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    experiment : Experiment
        The validated experiment.
    **cell : int or str
        The sizes of one cell (``depth``, ``width``, ``embed_dim``, whichever the stage has; for
        figures ``name``). Left out, the key is the part that all cells of the stage share, which
        does not say how many seeds a cell has.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    ValueError
        If the stage is unknown, or the cell has other sizes than the stage's.
    """
    description = _stage(stage)
    if cell and set(cell) != set(description.cell):
        raise ValueError(
            f"cell of {stage}: got {', '.join(cell)}, needs {', '.join(description.cell) or 'none'}"
        )
    values = experiment.model_dump(mode="json")
    needed = _needed(experiment) if stage == "errors" else set(description.after)
    common = digest(
        canonical_json(
            {
                "stage": stage,
                "code": code.code_hash(description.module, experiment),
                "reads": {key: _part(experiment, values, key) for key in description.reads},
                "after": {
                    earlier: stage_key(earlier, experiment)
                    for earlier in description.after
                    if earlier in needed
                },
            }
        )
    )
    return cell_key(common, stage, experiment, **cell)


def cell_key(common: str, stage: str, experiment: Experiment, **cell: int | str) -> str:
    """Give the `stage_key` of one cell, from the part `common` that all cells of a stage share.

    Of thousands of cells, that part is found once. Without sizes it is the key.
    """
    if not cell:
        return common
    seeds = {"seeds": _ends(cell_seeds(stage, experiment, **cell))} if stage in SEEDED else {}
    return digest(common, canonical_json({**cell, **seeds}))


def cell_seeds(stage: str, experiment: Experiment, **cell: int | str) -> range:
    """Give the seeds inside one result: none for the problem and for limits without seeds.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    experiment : Experiment
        The validated experiment.
    **cell : int or str
        As for `stage_key`.
    """
    if stage in {"problem", "dmft", "prediction"}:
        return range(0)
    return experiment.cell_seeds(**{key: int(size) for key, size in cell.items()})


def values_read(stage: str, experiment: Experiment) -> dict[str, Any]:
    """Give the values that a stage and those before it read: all of its key that is not code.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    experiment : Experiment
        The validated experiment.

    Returns
    -------
    dict
        JSON values by dotted key of the experiment, none of them a mapping. Data from a file stand
        as the digest of their content.
    """
    values = experiment.model_dump(mode="json")
    stages, keys = [stage], dict[str, Any]()
    while stages:
        description = _stage(stages.pop())
        stages += description.after
        for key in description.reads:
            keys.update(_flat(key, _part(experiment, values, key)))
    return dict(sorted(keys.items()))


def _flat(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(f"{key}.{name}", part)
    else:
        yield key, value


def _named(kind: str, sizes: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(CELL_KEYS[kind], sizes, strict=True))


def _ends(seeds: range) -> tuple[int, int]:
    return seeds.start, seeds.stop


def _needed(experiment: Experiment) -> set[str]:
    """Find the compared kinds that the experiment's pairs ask for."""
    needed = set(experiment.limits_needed)
    if any("finite" in pair.split("-") for pair in experiment.pairs):
        needed.add("finite")
    return needed


def _part(experiment: Experiment, values: dict[str, Any], key: str) -> object:
    """Give one part of the experiment as plain JSON values."""
    if key == "pairs":
        return sorted(experiment.pairs)
    if key == "cells":
        # The same shapes written as a grid or as a list are the same experiment.
        cells: dict[str, list[tuple[int, ...]]] = {
            "mean_ode": [(embed_dim,) for embed_dim in experiment.embed_dims],
            "wide": [*experiment.wide_cells],
            "finite": [*experiment.shapes],
        }
        return {
            kind: [
                [*sizes, *_ends(cell_seeds(kind, experiment, **_named(kind, sizes)))]
                for sizes in found
            ]
            for kind, found in cells.items()
        }
    if key == "families":
        return {
            name: [
                [[parameters, *shape] for parameters, shape in members],
                values["sweep"]["families"][name]["depth"]["exponent"],
                values["sweep"]["families"][name]["embed_dim"]["exponent"],
            ]
            for name, members in experiment.families.items()
        }
    value: Any = values
    for name in key.split("."):
        value = value[name]
    if key == "model":
        value = {**value, **_layer(experiment)}
    if key == "problem" and value["data"]["kind"] == "file":
        # The data count by their content: a moved file is the same data, an edited one is not.
        digest = _data_digest(Path(value["data"]["path"]))
        value = {**value, "data": {**value["data"], "path": digest}}
    return value


def _layer(experiment: Experiment) -> dict[str, Any]:
    """Give the branches of a layer, of whichever form, with what the file leaves out."""
    branches = [branch.model_dump(mode="json") for branch in experiment.model.branches]
    if len(branches) == 1:
        return {"unit": branches[0].pop("unit"), "layer": branches[0]}
    return {"unit": None, "layer": {str(place): branch for place, branch in enumerate(branches)}}


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def _data_digest(path: Path) -> str:
    """Digest of a data file or Zarr directory; "missing" if there is none."""
    files = _files(path)
    if not files:
        return "missing"
    return digest(
        *(
            part
            for file in files
            for part in (
                file.relative_to(path).as_posix(),
                _file_digest(file, file.stat().st_mtime_ns, file.stat().st_size),
            )
        )
    )


@lru_cache(maxsize=4096)
def _file_digest(file: Path, _modified_ns: int, _size: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
