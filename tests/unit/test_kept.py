"""The layers and steps that are kept of a network."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_limits.kept import depth_layers, saved_steps


# The fixture only builds experiments.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3000), st.integers(2, 40))
def test_depth_layers_are_those_of_the_contract(tiny_experiment, depth: int, points: int) -> None:
    layers = depth_layers(tiny_experiment(save={"depth_points": points}), depth)
    assert layers[0] == 0
    assert layers[-1] == depth
    assert list(layers) == sorted(set(layers))
    assert len(layers) == min(points, depth + 1)
    if len(layers) == points:
        assert layers == tuple(round(j * depth / (points - 1)) for j in range(points))


def test_all_layers_and_single_layer_networks(tiny_experiment) -> None:
    every = tiny_experiment(save={"depth_points": "all"})
    assert depth_layers(every, 100) == tuple(range(101))
    assert depth_layers(tiny_experiment(save={"depth_points": 17}), 1) == (0, 1)


def test_saved_steps(tiny_experiment) -> None:
    training = {"steps": 15}
    assert saved_steps(tiny_experiment(training=training)) == tuple(range(15))
    some = tiny_experiment(training=training, save={"steps": [14, 5, 5]})
    assert saved_steps(some) == (5, 14)
