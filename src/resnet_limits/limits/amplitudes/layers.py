"""A_L: what finite depth makes of the limit, 1/L.

``L (W(L) - DMFT)`` at the DMFT limit's own Gram matrix tends to a constant with an error of first
order in 1/L. Two depths L and 2L give the constant without that order, three how large the next is
(Richardson's extrapolation). At a depth s the state of W(L) is that of the polynomial in the layer
that its states are, at l = s L.
"""

from __future__ import annotations

import numpy as np

from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import cost
from resnet_limits.limits.amplitudes.amplitude import Amplitude, Amplitudes
from resnet_limits.limits.amplitudes.changes import DEPTHS, Ends, at_depths, squares_at
from resnet_limits.limits.depth import Array
from resnet_limits.limits.models import minimum_norm
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.trajectories import Trajectories

# Weights of L (W(L) - DMFT) at the three depths in the extrapolation by all of them, and in that by
# the last two.
_BY_THREE, _BY_TWO = (1.0 / 3.0, -2.0, 8.0 / 3.0), (0.0, -1.0, 2.0)


def layer_amplitudes(trajectories: Trajectories, plan: Plan) -> Amplitudes:
    """Find A_L of the hidden state, at the last layer and over the depth, and of the outputs.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        Points (every node gets all of them), nodes and scramblings.

    Returns
    -------
    Amplitudes
        Their uncertainty is that over scramblings and of the extrapolation.

    Raises
    ------
    LimitError
        If a limit cannot be solved.
    """
    root = trajectories.limit_root

    def solved(layers: int | None) -> tuple[Ends, Array]:
        grid = depth.of_layers(layers)
        found = trajectories.solve(root, grid, plan, "amplitudes: wide", shared=True)
        return Ends.of(found, root), at_depths(found.hidden, grid(plan.nodes).knots)

    limit, limit_at = solved(None)
    # L (W(L) - DMFT), to which the next depth adds as much as the order that is left.
    scaled, by_three, by_two = [], np.zeros_like(limit_at), np.zeros_like(limit_at)
    for layers, *weights in zip(cost.DEPTHS, _BY_THREE, _BY_TWO, strict=True):
        ends, states = solved(layers)
        scaled.append(ends.combined(limit, layers, -layers))
        states -= limit_at
        by_three += layers * weights[0] * states
        by_two += layers * weights[1] * states
    without = [scaled[k + 1].combined(scaled[k], 2.0, -1.0) for k in range(2)]
    last = without[1].combined(without[0], 4.0 / 3.0, -1.0 / 3.0)
    gram = root @ root
    each, mean = last.squares(gram), last.mean().squares(gram)[:, 0]
    before = without[1].mean().squares(gram)[:, 0]
    *each_at, mean_at = squares_at(by_three @ minimum_norm(root).T, DEPTHS, root)
    before_at = squares_at(by_two @ minimum_norm(root).T, DEPTHS, root)[-1]
    parts = [*zip(each, mean, before, strict=True), (np.array(each_at), mean_at, before_at)]
    found = []
    for squares, final, other in parts:
        extrapolation = np.abs(np.sqrt(final) - np.sqrt(other))
        found.append(Amplitude.of_fields(squares, final).with_error(extrapolation))
    return Amplitudes(*found)
