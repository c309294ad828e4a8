"""Seeds of limits that no network has: where they count, and how many there are if nobody says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from resnet_limits import provenance
from resnet_limits.config import Experiment, InputError, Shape, experiment_from_dict
from resnet_limits.stages import bundles, errors, estimates, limits, networks
from resnet_limits.stages.paths import cells

WIDE, MEAN_ODE = {"depth": 4, "embed_dim": 8}, {"embed_dim": 8}
SHAPE = {"depth": 4, "width": 8, "embed_dim": 8}


def experiment(**sweep: Any) -> Experiment:
    return experiment_from_dict(
        {
            "experiment": "e",
            "problem": {"data": {"kind": "gaussian", "samples": 2, "inputs": 1, "targets": 1}},
            "model": {"unit": {"kind": "perceptron", "activation": "linear"}},
            "training": {"steps": 3},
            "sweep": {"depth": [4, 8], "width": [8], "embed_dim": [8, 16], "seeds": 2, **sweep},
        }
    )


def counts(study: Experiment) -> tuple[int, int, int]:
    """Seeds of a network, a wide limit and a Mean ODE."""
    return (
        len(study.cell_seeds(**SHAPE)),
        len(study.cell_seeds(**WIDE)),
        len(study.cell_seeds(**MEAN_ODE)),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (2, 2, 2)),
        ({"limit_seeds": 5}, (2, 5, 5)),
        ({"limit_seeds": 1}, (2, 2, 2)),
        ({"limit_seeds": {"mean_ode": 6}}, (2, 2, 6)),
        ({"limit_seeds": {"mean_ode": 3, "wide": 4}}, (2, 4, 4)),
        # Without a pair of limits nobody needs more of them.
        ({"limit_seeds": 5, "pairs": ["finite-wide", "finite-dmft"]}, (2, 2, 2)),
        ({"limit_seeds": 5, "pairs": ["finite-wide", "mean_ode-dmft"]}, (2, 2, 5)),
        ({"limit_seeds": 3, "seeds": [{"parameters": 300, "seeds": 4}, {"seeds": 2}]}, (4, 4, 4)),
    ],
)
def test_networks_keep_their_seeds_and_limits_have_at_least_as_many(given, expected) -> None:
    assert counts(experiment(**given)) == expected


@pytest.mark.parametrize("value", [0, "many", 20_000, {"finite": 3}, {"wide": 0}])
def test_bad_values_are_one_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"sweep\.limit_seeds") as caught:
        experiment(limit_seeds=value)
    assert "\n" not in str(caught.value)


def test_more_seeds_of_limits_train_nothing() -> None:
    few, many = experiment(limit_seeds=3), experiment(limit_seeds=4)
    for stage, cell, same in (
        ("finite", SHAPE, True),
        ("dmft", {}, True),
        ("prediction", {}, True),
        ("wide", WIDE, False),
        ("mean_ode", MEAN_ODE, False),
        ("errors", {}, False),
        ("rates", {}, False),
    ):
        keys = [provenance.stage_key(stage, study, **cell) for study in (few, many)]
        assert (keys[0] == keys[1]) == same, stage


def test_jobs_and_estimates_count_them() -> None:
    study = experiment(limit_seeds=5)
    assert {bundle.seeds for bundle in bundles.bundles("mean_ode", study, {})} == {5}
    assert {bundle.seeds for bundle in bundles.bundles("finite", study, {})} == {2}
    few, many = (estimates.seconds("mean_ode", each, **MEAN_ODE) for each in (experiment(), study))
    assert many > few


def test_pairs_of_limits_are_compared_for_more_seeds_and_the_values_nest() -> None:
    study, few = experiment(limit_seeds=5), experiment()
    stores: dict[str, Any] = {"dmft": limits.dmft(study)}

    def open_store(kind: str, cell: dict[str, int]) -> Any:
        name = f"{kind}{cell}" if cell else kind
        if name not in stores:
            if kind == "finite":
                stores[name] = networks.finite(study, Shape(**cell))
            else:
                solve = {"wide": limits.wide, "mean_ode": limits.mean_ode}[kind]
                stores[name] = solve(study, **cell, dmft=stores["dmft"])
        return stores[name]

    found = errors.errors(study, open_store)
    seeds = {pair: sorted(set(table["seed"].values)) for pair, table in found.items()}
    for pair, values in seeds.items():
        assert values == list(range(2 if pair.startswith("finite") else 5)), pair
    assert not any(table["hidden_rms"].isnull().any() for table in found.values())
    # The first seeds are the same as without the others.
    alone = limits.mean_ode(few, 8, stores["dmft"])
    more = open_store("mean_ode", MEAN_ODE)
    for name in ("output", "hidden_coef"):
        np.testing.assert_array_equal(alone[name].values, more[name].values[:2])


# --- how many, if nobody says ---------------------------------------------------------------------


def tanh(**sweep: Any) -> Experiment:
    """A study whose networks cost much more than its limits."""
    sizes = {"depth": [64, 128], "width": [256, 512, 1024], "embed_dim": [128, 256]}
    return experiment_from_dict(
        {
            "experiment": "e",
            "problem": {"data": {"kind": "gaussian", "samples": 4, "inputs": 2, "targets": 2}},
            "sweep": {**sizes, "seeds": 3, "engine": "dense", **sweep},
        }
    )


def cost(study: Experiment) -> dict[str, float]:
    return {
        kind: sum(estimates.seconds(kind, study, **cell) for cell in cells(kind, study))
        for kind in ("dmft", "mean_ode", "wide", "finite")
    }


def test_they_are_as_many_as_fit_in_a_tenth_of_the_cost() -> None:
    study = tanh()
    found = estimates.with_limit_seeds(study)
    _, wide, mean_ode = counts_of(found)
    assert mean_ode > 3
    assert mean_ode & (mean_ode - 1) == 0
    assert wide >= 3
    one = cost(tanh(seeds=1))
    share = 0.1 * sum(cost(study).values())
    assert mean_ode == 64 or mean_ode * one["mean_ode"] <= share < 2.2 * mean_ode * one["mean_ode"]
    # All machines decide alike, and a decision is final.
    assert estimates.with_limit_seeds(tanh()) == found
    assert estimates.with_limit_seeds(found) is found
    again = experiment_from_dict(found.model_dump(mode="json"))
    assert again == found


def counts_of(study: Experiment) -> tuple[int, int, int]:
    shape = study.shapes[0]
    cell = {"depth": shape.depth, "embed_dim": shape.embed_dim}
    return (
        len(study.seeds_of(shape)),
        len(study.cell_seeds(**cell)),
        len(study.cell_seeds(embed_dim=shape.embed_dim)),
    )


def test_a_few_more_shapes_change_nothing() -> None:
    """Or all limits would be solved again for one more width."""
    few = estimates.with_limit_seeds(tanh())
    more = estimates.with_limit_seeds(tanh(width=[8, 256, 512, 1024]))
    assert few.sweep.limit_seeds == more.sweep.limit_seeds


def test_what_is_given_stays_and_cheap_networks_get_no_more() -> None:
    given = estimates.with_limit_seeds(tanh(limit_seeds={"mean_ode": 7}))
    assert given.sweep.limit_seeds_for("mean_ode") == 7
    assert counts(estimates.with_limit_seeds(experiment(limit_seeds=4))) == (2, 4, 4)
    cheap = estimates.with_limit_seeds(tanh(depth=[2], width=[2], embed_dim=[4]))
    assert counts_of(cheap) == (3, 3, 3)
