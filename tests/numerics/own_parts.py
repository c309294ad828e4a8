"""A norm and a rule that only tests have: nothing of them is known but what they declare."""

from __future__ import annotations

import numpy as np

from resnet_limits.norms import Norm
from resnet_limits.rules import Rule, Transition


class Saturating(Norm):
    """A norm of a test: u = h / (1 + q)."""

    def factor(self, q):
        return 1 / (1 + q)

    def slope(self, q):
        return -1 / (1 + q) ** 2


class TwoVelocities(Rule):
    """A rule of a test: steps of two velocities, one of which feeds the other."""

    buffers = 2

    def transition(self, step, rate):
        eta = rate / (1 + step)
        if not rate:
            return Transition(np.eye(3), np.zeros(3))
        matrix = [[1 - 0.1 * eta, -0.5 * eta, 0.2 * eta], [0, 0.8, 0], [0, 0.3, 0.5]]
        return Transition(np.array(matrix), np.array([-eta, 1.0, 0.5]))
