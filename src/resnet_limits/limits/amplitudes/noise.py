"""The noise of a finite number of units in the limit itself, 1/sqrt(L M).

At large D a network is the limit with L M units drawn independently. So B^2 is the number of
independent points times the variance of the outputs that the limit's solver gives with them. That
of the state is the noise inside of the span of the embedding, which networks of small D show
(docs/concepts/amplitudes-outputs.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from resnet_limits.limits import depth, quadrature
from resnet_limits.limits.amplitudes import cost
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.depth import Array
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.trajectories import Trajectories


def unit_noise(
    trajectories: Trajectories, plan: Plan, layers: int | None = None
) -> tuple[Amplitude, Amplitude]:
    """Find the noise of the state at the last layer in the span of the embedding, and B.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        The number of independent points, for a branch of as many units as the width, of nodes and
        of independent samples.

    Returns
    -------
    inside, output : Amplitude
        ``sqrt(L M)`` times the RMS over rows of the length over sqrt(D) of the noise in the span,
        and times that over rows and targets of the outputs'. Uncertainties are those over samples.

    Raises
    ------
    LimitError
        If a limit cannot be solved.
    """
    plain = replace(plan, quadrature=quadrature.INDEPENDENT)
    root = trajectories.limit_root
    # States of many samples side by side are large.
    solved = [
        trajectories.solve(
            root,
            depth.of_layers(layers),
            plain,
            "amplitudes: independent",
            replicates=range(first, min(first + cost.TOGETHER, plan.replicates)),
        )
        for first in range(0, plan.replicates, cost.TOGETHER)
    ]
    state = np.concatenate([part.hidden[:, :, -1] for part in solved])
    output = np.concatenate([part.output for part in solved])
    return (
        _spread(state, plan.points * state.shape[-1]),
        _spread(output, plan.points),
    )


def _spread(values: Array, factor: int) -> Amplitude:
    """Give the root of the factor times the mean variance over samples, (samples, K, rows, x)."""
    squares = factor * np.square(values - values.mean(axis=0)).mean(axis=(-2, -1))
    count = len(squares)
    squares *= count / (count - 1)
    return Amplitude.of_square(squares.mean(axis=0), squares.std(axis=0, ddof=1) / np.sqrt(count))
