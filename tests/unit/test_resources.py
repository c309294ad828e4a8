"""What jobs ask of the machine or the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from resnet_limits.stages import estimates
from resnet_limits.stages.resources import (
    GPU_SECONDS,
    cores,
    doubling,
    gpus,
    mem_mb,
    minutes,
    resources,
)

if TYPE_CHECKING:
    from resnet_limits.config import Experiment

Make = Callable[..., "Experiment"]

SMALL = {"depth": 2, "width": 8, "embed_dim": 4}
LARGE = {"depth": 64, "width": 4096, "embed_dim": 4096}


def test_points_are_dealt_out_to_layers_so_that_depth_costs_nothing(tiny_experiment: Make) -> None:
    experiment = tiny_experiment()
    costs = {
        depth: estimates.seconds("wide", experiment, depth=depth, embed_dim=16)
        for depth in (1, 4, 100, 10_000)
    }
    mean_ode = estimates.seconds("mean_ode", experiment, embed_dim=16)
    assert costs[100] == costs[10_000] == mean_ode
    # The two small solutions that tell the depth error have no more nodes than layers.
    assert costs[1] < costs[4] < costs[100] < 1.25 * costs[1]


def test_cost_of_a_limit_grows_with_its_quadrature(tiny_experiment: Make) -> None:
    costs = [
        estimates.seconds("dmft", tiny_experiment(numerics={"limit_tolerance": tolerance}))
        for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    ]
    # The first points meet loose tolerances of so small a problem.
    assert costs[0] == costs[1] <= costs[2] < costs[3] < costs[4]
    assert costs[4] > 100 * costs[0]
    linear = tiny_experiment(model={"unit": {"activation": "linear"}})
    assert estimates.seconds("dmft", linear) < costs[0]


@pytest.mark.parametrize("estimate", [estimates.seconds, estimates.megabytes])
def test_networks_without_weights_are_thought_to_be_cheap_where_they_are_large(
    estimate: Callable[..., float], tiny_experiment: Make
) -> None:
    large = {"depth": 100, "width": 100_000, "embed_dim": 100_000}
    auto, dense, implicit = (
        tiny_experiment(sweep={"engine": engine}) for engine in ("auto", "dense", "implicit")
    )
    cost = estimate("finite", implicit, **large)
    assert estimate("finite", auto, **large) == cost < estimate("finite", dense, **large) / 100
    assert estimate("finite", auto, **SMALL) == estimate("finite", dense, **SMALL)


def test_large_networks_ask_for_their_memory_and_for_cores(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(sweep={"engine": "dense"})
    small, large = ([{"depth": 50, "width": size, "embed_dim": size}] for size in (100, 4000))
    weights = 2 * 50 * 4000**2 * 8 / 2**20
    assert weights < mem_mb("finite", experiment, large) < 3 * weights
    assert cores("finite", experiment, large) > cores("finite", experiment, small) == 1


def test_a_job_has_ten_times_the_time_that_it_is_thought_to_need(tiny_experiment: Make) -> None:
    experiment = tiny_experiment(sweep={"engine": "dense"})
    seconds = estimates.seconds("finite", experiment, **LARGE)
    asked = minutes("finite", experiment, [LARGE, LARGE])
    assert 10 * 2 * seconds <= 60 * (asked - 10) <= 10 * 2 * seconds + 60


def test_each_attempt_asks_for_twice_as_much() -> None:
    assert [doubling(100)(None, attempt=n) for n in (1, 2, 3)] == [100, 200, 400]


def test_only_large_jobs_that_may_use_a_gpu_ask_for_one(tiny_experiment: Make) -> None:
    sweep = {"seeds": 20, "engine": "dense"}

    def asked(device: str, *cells: dict[str, int]) -> int:
        return gpus("finite", tiny_experiment(numerics={"device": device}, sweep=sweep), cells)

    assert estimates.seconds("finite", tiny_experiment(sweep=sweep), **LARGE) > GPU_SECONDS
    assert [asked("auto", SMALL), asked("auto", LARGE), asked("auto", SMALL, LARGE)] == [0, 1, 1]
    assert [asked("cpu", SMALL), asked("cpu", LARGE)] == [0, 0]
    assert [asked("cuda", SMALL), asked("cuda", LARGE)] == [1, 1]


def test_a_site_says_what_only_jobs_with_a_gpu_need(tiny_experiment: Make) -> None:
    site = {"slurm_partition": "cpu", "gpu_slurm_partition": "gpu", "gpu_gres": "gpu:a100:1"}
    found = {}
    for device in ("cpu", "cuda"):
        asked = resources("dmft", tiny_experiment(numerics={"device": device}), [{}], site)
        assert {"mem_mb", "runtime"} <= asked.keys()
        found[device] = {name: asked[name] for name in asked if name not in ("mem_mb", "runtime")}
    assert found == {
        "cpu": {"gpu": 0},
        "cuda": {"gpu": 1, "slurm_partition": "gpu", "gres": "gpu:a100:1"},
    }


def test_fits_of_a_large_study_stay_far_within_what_their_rule_asks_for(
    tiny_experiment: Make,
) -> None:
    """3375 shapes of 5 seeds in 5 pairs took 4.6 s on one core, and 290 MiB."""
    sizes = list(range(2, 17))
    grid = {"depth": sizes, "width": sizes, "embed_dim": sizes}
    large = tiny_experiment(sweep={"grid": grid, "seeds": 5})
    assert 2 < estimates.seconds("rates", large) < 10
    assert estimates.megabytes("rates", large) < 2000
