"""The training problem in canonical form."""

from __future__ import annotations

import pytest

from resnet_limits.dynamics import make_dynamics
from resnet_limits.problem import make_problem


@pytest.mark.parametrize(
    ("training", "rates"),
    [
        ({"learning_rate": 0.5}, (0.5, 0.5, 0.0)),
        ({"learning_rate": 0.5, "train_embeddings": True}, (0.5, 0.5, 0.5)),
        ({"learning_rate": 0.5, "learning_rate_in": 0.0, "learning_rate_out": 2}, (0.0, 2.0, 0.0)),
        ({"learning_rate": 0.5, "learning_rate_out": 0.0}, (0.5, 0.0, 0.0)),
    ],
)
def test_a_learning_rate_that_is_left_out_is_the_common_one(tiny_experiment, training, rates):
    experiment = tiny_experiment(training=training)
    found = make_dynamics(experiment, make_problem(experiment))
    (branch,) = found.layer
    assert (branch.rate_in, branch.rate_out, found.rate_embedding) == rates
    assert found.rate_unembedding == found.rate_embedding
