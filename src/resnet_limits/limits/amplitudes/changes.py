"""Changes of the states and outputs of a limit: their mean squares as errors measure them.

A hidden state changes by ``Phi dc``, the mean square of whose coordinates is ``dc^T G dc``
(docs/concepts/errors.md), at the last layer and over the depth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resnet_limits.interpolation import interpolation_matrix
from resnet_limits.limits.depth import Array
from resnet_limits.limits.models import minimum_norm
from resnet_limits.limits.solver import Trajectory

DEPTHS = np.linspace(0.0, 1.0, 17)
"""Depths s at which amplitudes are found, those of stores by default: 0, ..., 1."""


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


def at_depths(states: Array, knots: Array) -> Array:
    """Interpolate states from the knots of a depth grid to `DEPTHS`.

    Parameters
    ----------
    states : ndarray, shape (..., knots, rows, r)
        Of a solution.
    knots : ndarray, shape (knots,)
        Their depths s.

    Returns
    -------
    ndarray, shape (..., n, rows, r)
    """
    matrix = interpolation_matrix(knots, DEPTHS)
    return np.moveaxis(np.tensordot(matrix, states, axes=(1, states.ndim - 3)), 0, -3)


def squares_at(change: Array, knots: Array, root: Array) -> Array:
    """Give mean squares over rows and coordinates of a change of the hidden state, at `DEPTHS`.

    Parameters
    ----------
    change : ndarray, shape (replicates, K, knots, rows, r)
        Of its minimum-norm coordinates.
    knots : ndarray, shape (knots,)
        Their depths s.
    root : ndarray, shape (r, r)
        Root of G.

    Returns
    -------
    ndarray, shape (replicates + 1, K, n)
        Of each replicate, and last of their mean.
    """
    # One replicate after the other: states at all depths are large.
    return np.stack(
        [
            np.square(at_depths(one, knots) @ root).sum(-1).mean(-1)
            for one in (*change, change.mean(axis=0))
        ]
    )
