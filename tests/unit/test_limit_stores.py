"""What the stores of the limits hold beside the limits themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from resnet_limits import store
from resnet_limits.problem import make_problem
from resnet_limits.stages import limits

if TYPE_CHECKING:
    import xarray as xr

    from resnet_limits.config import Experiment


@pytest.fixture
def experiment(tiny_experiment: Callable[..., Experiment]) -> Callable[[dict[str, Any]], Any]:
    """Build an experiment of linear units, whose limits take no time."""

    def build(data: dict[str, Any]) -> Experiment:
        return tiny_experiment(
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
