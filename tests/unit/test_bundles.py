"""Which cells share a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from resnet_limits.stages import estimates
from resnet_limits.stages.bundles import MOST_BUNDLES, Bundle, bundles, cells_of_last_sweep
from resnet_limits.stages.paths import Paths, cell_name, cells

if TYPE_CHECKING:
    from resnet_limits.config import Experiment

Make = Callable[..., "Experiment"]


def _grid(*sizes: int) -> dict[str, Any]:
    return {"grid": {"depth": list(sizes), "width": list(sizes), "embed_dim": list(sizes)}}


def _names(experiment: Experiment) -> list[str]:
    return [cell_name("finite", **cell) for cell in cells("finite", experiment)]


def _shared(found: list[Bundle]) -> list[list[str]]:
    return [[cell_name("finite", **cell) for cell in bundle.cells] for bundle in found]


@pytest.mark.parametrize("kind", ["mean_ode", "wide", "finite"])
@pytest.mark.parametrize("sizes", [(4,), (4, 8), (10, 20, 40, 80, 160, 320)])
def test_every_cell_is_in_exactly_one_bundle(
    kind: str, sizes: tuple[int, ...], tiny_experiment: Make
) -> None:
    experiment = tiny_experiment(sweep=_grid(*sizes))
    shared = bundles(kind, experiment, {})
    found = [tuple(cell.values()) for bundle in shared for cell in bundle.cells]
    assert sorted(found) == sorted(tuple(cell.values()) for cell in cells(kind, experiment))
    assert len({bundle.name for bundle in shared}) == len(shared) <= MOST_BUNDLES
    assert all(bundle.cells for bundle in shared)


def test_many_cells_make_tens_of_jobs_of_like_cost(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(sweep=_grid(*range(20, 300, 20)), training={"steps": 15})
    shared = bundles("finite", experiment, {})
    each = [
        [estimates.seconds("finite", experiment, **cell) for cell in bundle.cells]
        for bundle in shared
    ]
    costs, dearest = [sum(part) for part in each], max(map(max, each))
    assert 10 <= len(shared) <= MOST_BUNDLES
    assert max(costs) <= sum(costs) / len(costs) + dearest
    # Three seconds to start Python are then little.
    assert sum(costs) / len(costs) >= 30


def test_small_experiments_are_one_job_a_kind(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    shared = [bundles(kind, experiment, {}) for kind in ("mean_ode", "wide", "finite")]
    assert [len(found) for found in shared] == [1, 1, 1]


def test_new_cells_do_not_share_jobs_with_those_of_the_last_sweep(tiny_experiment: Make) -> None:
    old = _names(tiny_experiment(sweep=_grid(4, 8)))
    shared = bundles("finite", tiny_experiment(sweep=_grid(4, 8, 12)), dict.fromkeys(old, 2))
    for names in _shared(shared):
        assert len({name in old for name in names}) == 1


def test_cells_of_a_job_have_the_same_number_of_seeds(tiny_experiment: Make) -> None:
    """It is in ``params``, so that a change of it plans the jobs of those cells only."""
    seeds = [{"parameters": 100, "seeds": 3}, {"seeds": 2}]
    shared = bundles("finite", tiny_experiment(sweep={**_grid(4, 8), "seeds": seeds}), {})
    assert sorted(bundle.seeds for bundle in shared) == [2, 3]
    for bundle in shared:
        for cell in bundle.cells:
            assert bundle.seeds == (3 if cell == dict.fromkeys(cell, 4) else 2)


def test_cells_with_more_seeds_than_before_do_not_share_jobs_with_others(
    tiny_experiment: Make,
) -> None:
    """A grid of one number of seeds, of which one cell is found with another."""
    experiment = tiny_experiment(sweep=_grid(4, 8))
    old = _names(experiment)
    shared = bundles("finite", experiment, {**dict.fromkeys(old, 2), old[3]: 1})
    assert [old[3]] in _shared(shared)


def test_the_last_sweep_is_what_the_error_tables_are_of(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "tiny")
    assert cells_of_last_sweep(paths) == {}
    manifest = paths.manifest("errors")
    manifest.parent.mkdir(parents=True)
    for text, found in (
        ("{", {}),
        ("{}", {}),
        ("[" * 200_000, {}),
        (json.dumps({"cells": {"a": 2}}), {"a": 2}),
    ):
        manifest.write_text(text, encoding="utf-8")
        assert cells_of_last_sweep(paths) == found


def test_a_bundle_says_what_is_in_it() -> None:
    first, last = ({"depth": 2, "width": 8, "embed_dim": size} for size in (4, 16))
    assert Bundle("finite_01", [first], 2).said() == "L2_M8_D4"
    assert Bundle("finite_12", [first, last], 2).said() == "2 results, L2_M8_D4 to L2_M8_D16"
    assert Bundle("mean_ode_01", [{"embed_dim": 4}], 2).said() == "D4"
