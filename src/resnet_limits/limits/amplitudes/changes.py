"""Changes of the states and outputs of a limit: their mean squares as errors measure them.

A hidden state changes by ``Phi dc``, the mean square of whose coordinates is ``dc^T G dc``
(docs/concepts/errors.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resnet_limits.limits.depth import Array
from resnet_limits.limits.models import minimum_norm
from resnet_limits.limits.solver import Trajectory


class Ends(NamedTuple):
    """What is compared of a limit.

    Attributes
    ----------
    hidden : ndarray, shape (replicates, K, rows, r)
        Minimum-norm coordinates of the hidden state at s = 1.
    output : ndarray, shape (replicates, K, rows, d_out)
        Outputs.
    """

    hidden: Array
    output: Array

    @classmethod
    def of(cls, trajectory: Trajectory, root: Array) -> Ends:
        """Take them from a solution for a Gram root."""
        return cls(trajectory.hidden[:, :, -1] @ minimum_norm(root).T, trajectory.output)

    def combined(self, other: Ends, own: float, others: float) -> Ends:
        """Add up multiples of two."""
        return Ends(
            own * self.hidden + others * other.hidden, own * self.output + others * other.output
        )

    def mean(self) -> Ends:
        """Give the mean over the replicates, as one replicate."""
        return Ends(*(part.mean(axis=0, keepdims=True) for part in self))

    def squares(self, gram: Array) -> Array:
        """Give mean squares over rows, and coordinates or targets.

        Parameters
        ----------
        gram : ndarray, shape (r, r)
            G.

        Returns
        -------
        ndarray, shape (2, replicates, K)
            Of the hidden state and of the outputs.
        """
        hidden = np.einsum("bkna,ac,bknc->bkn", self.hidden, gram, self.hidden).mean(-1)
        return np.stack([hidden, np.square(self.output).mean(axis=(-2, -1))])
