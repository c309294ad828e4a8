"""What the stores of the limits hold beside the limits themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from resnet_limits import store
from resnet_limits.config import Shape
from resnet_limits.problem import make_problem
from resnet_limits.stages import limits, networks

if TYPE_CHECKING:
    import xarray as xr

    from resnet_limits.config import Experiment


@pytest.fixture
def experiment(tiny_experiment: Callable[..., Experiment]) -> Callable[..., Any]:
    """Build an experiment of linear units, whose limits take no time."""

    def build(data: dict[str, Any], **sweep: Any) -> Experiment:
        return tiny_experiment(
            sweep=sweep,
            problem={"data": data},
            model={"unit": {"kind": "perceptron", "activation": "linear"}},
            training={"learning_rate": 0.01},
        )

    return build


def solved(experiment: Experiment) -> dict[str, xr.Dataset]:
    dmft = limits.dmft(experiment)
    return {
        "dmft": dmft,
        "mean_ode": limits.mean_ode(experiment, 4, dmft),
        "wide": limits.wide(experiment, 2, 4, dmft),
    }


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "linear_teacher", "samples": 1, "inputs": 3, "targets": 2},
        {"kind": "digits", "samples": 4, "classes": 2},
    ],
    ids=lambda data: data["kind"],
)
def test_stores_say_in_which_basis_rotated_inputs_are_meant(experiment, data, tmp_path):
    wanted = experiment(data)
    x = make_problem(wanted).x
    for kind, dataset in solved(wanted).items():
        Q = dataset["input_rotation"]
        assert Q.dims == ("input", "rank")
        np.testing.assert_allclose(x @ Q.values @ Q.values.T, x, atol=1e-12)
        targets = dataset.sizes["target"]
        assert dataset.sizes["embedding_direction"] == dataset.sizes["rank"] + targets
        store.write(dataset, tmp_path / f"{kind}.zarr", kind)
        again = store.open_store(tmp_path / f"{kind}.zarr")
        np.testing.assert_array_equal(again["input_rotation"].values, Q.values)


def test_inputs_that_span_their_space_have_no_rotation(experiment):
    data = {"kind": "gaussian", "samples": 3, "inputs": 2, "targets": 2}
    assert all("input_rotation" not in dataset for dataset in solved(experiment(data)).values())


def test_every_store_has_the_seeds_of_its_cell(experiment):
    """The smallest shape of the sweep has three, all others two, and any may be asked for."""
    data = {"kind": "gaussian", "samples": 2, "inputs": 2, "targets": 2}
    wanted = experiment(data, seeds=[{"parameters": 100, "seeds": 3}, {"seeds": 2}])
    dmft = limits.dmft(wanted)
    found = {
        "mean_ode D4": limits.mean_ode(wanted, 4, dmft),
        "mean_ode D16": limits.mean_ode(wanted, 16, dmft),
        "wide L2 D4": limits.wide(wanted, 2, 4, dmft),
        "wide L4 D4": limits.wide(wanted, 4, 4, dmft),
        "finite L2 D4": networks.finite(wanted, Shape(2, 8, 4)),
        "finite L4 D4": networks.finite(wanted, Shape(4, 8, 4)),
        "asked for": networks.finite(wanted, Shape(2, 8, 4), seeds=[5]),
    }
    assert {name: dataset["seed"].values.tolist() for name, dataset in found.items()} == {
        "mean_ode D4": [0, 1, 2],
        "mean_ode D16": [0, 1],
        "wide L2 D4": [0, 1, 2],
        "wide L4 D4": [0, 1],
        "finite L2 D4": [0, 1, 2],
        "finite L4 D4": [0, 1],
        "asked for": [5],
    }
    for name in ("mean_ode D4", "wide L4 D4"):
        nodes = found[name]["nodes"]
        assert nodes.dims == ("seed",)
        assert (nodes >= found[name].attrs["plan_nodes"]).all()
