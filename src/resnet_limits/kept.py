"""Which layers and steps of a network are kept, from the experiment's section ``save``.

What stores, distances and predicted costs all go by. It is apart from `config`, whose code is in no
key: here it counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnet_limits.config import Experiment


def saved_steps(experiment: Experiment) -> tuple[int, ...]:
    """Give the steps that are kept, sorted, each once."""
    steps = experiment.save.steps
    return tuple(range(experiment.training.steps)) if steps == "all" else tuple(sorted(set(steps)))


def depth_layers(experiment: Experiment, depth: int) -> tuple[int, ...]:
    """Give the layers that are kept of a network of some depth.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    depth : int
        L, at least 1.

    Returns
    -------
    tuple of int
        Layer round(j L / (n - 1)) for each of the n depth points j, or all L + 1 layers where there
        are no more than n of them.
    """
    points = experiment.save.depth_points
    if points == "all" or depth + 1 <= points:
        return tuple(range(depth + 1))
    return tuple(round(j * depth / (points - 1)) for j in range(points))
