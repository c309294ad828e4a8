"""A_L: what finite depth makes of the limit, 1/L.

``L (W(L) - DMFT)`` at the DMFT limit's own Gram matrix tends to a constant with an error of first
order in 1/L. Two depths L and 2L give the constant without that order, three how large the next is
(Richardson's extrapolation).
"""

from __future__ import annotations

import numpy as np

from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import cost
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.amplitudes.changes import Ends
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.trajectories import Trajectories


def layer_amplitudes(trajectories: Trajectories, plan: Plan) -> tuple[Amplitude, Amplitude]:
    """Find A_L of the hidden state at the last layer, and of the outputs.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        Points (every node gets all of them), nodes and scramblings.

    Returns
    -------
    hidden, output : Amplitude
        Their uncertainty is that over scramblings and of the extrapolation.

    Raises
    ------
    LimitError
        If a limit cannot be solved.
    """
    root = trajectories.limit_root

    def ends(layers: int | None) -> Ends:
        grid = depth.of_layers(layers)
        solved = trajectories.solve(root, grid, plan, "amplitudes: wide", shared=True)
        return Ends.of(solved, root)

    limit = ends(None)
    # L (W(L) - DMFT), to which the next depth adds as much as the order that is left.
    scaled = [ends(layers).combined(limit, layers, -layers) for layers in cost.DEPTHS]
    without = [scaled[k + 1].combined(scaled[k], 2.0, -1.0) for k in range(2)]
    last = without[1].combined(without[0], 4.0 / 3.0, -1.0 / 3.0)
    gram = root @ root
    each, mean = last.squares(gram), last.mean().squares(gram)[:, 0]
    before = without[1].mean().squares(gram)[:, 0]
    found = []
    for squares, final, other in zip(each, mean, before, strict=True):
        extrapolation = np.abs(np.sqrt(final) - np.sqrt(other))
        found.append(Amplitude.of_fields(squares, final).with_error(extrapolation))
    return found[0], found[1]
