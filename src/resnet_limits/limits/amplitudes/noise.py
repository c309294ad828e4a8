"""B: the noise of a finite number of units in the outputs, 1/sqrt(L M).

At large D a network is the limit with L M units drawn independently. So B^2 is the number of
independent points times the variance of the outputs that the limit's solver gives with them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from resnet_limits.limits import depth, quadrature
from resnet_limits.limits.amplitudes import cost
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.trajectories import Trajectories


def output_noise(trajectories: Trajectories, plan: Plan) -> Amplitude:
    """Find B of the outputs.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        The number of independent points, for a branch of as many units as the width, of nodes and
        of independent samples.

    Returns
    -------
    Amplitude
        Its uncertainty is that over samples.

    Raises
    ------
    LimitError
        If a limit cannot be solved.
    """
    plain = replace(plan, quadrature=quadrature.INDEPENDENT)
    root = trajectories.limit_root
    # States of many samples side by side are large.
    output = np.concatenate(
        [
            trajectories.solve(
                root,
                depth.continuous,
                plain,
                "amplitudes: independent",
                replicates=range(first, min(first + cost.TOGETHER, plan.replicates)),
            ).output
            for first in range(0, plan.replicates, cost.TOGETHER)
        ]
    )
    gap = output - output.mean(axis=0)
    squares = plan.points * np.square(gap).mean(axis=(-2, -1))
    count = len(squares)
    squares *= count / (count - 1)
    mean = squares.mean(axis=0)
    error = squares.std(axis=0, ddof=1) / np.sqrt(count)
    value = np.sqrt(mean)
    return Amplitude(value, np.divide(error, 2 * value, where=value > 0, out=0 * value))
