"""Distances of networks of one shape, beyond the leading order (docs/concepts/amplitudes.md).

A network differs from the DMFT limit as its infinite-width limit W(L, D) does, which is solved here
for the Gram matrices of embeddings of D rows at the network's own depth, and by the noise of its
units, whose amplitude is that at these Gram matrices and this depth, and smaller in the span of the
embedding. Biases add before anything is squared. What the fluctuation of a Gram matrix makes to
first order has a known mean square, A_D^2/D, so that only what is beyond it is left to a few
embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from resnet_limits.kinds import Shape
from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import cost, gram
from resnet_limits.limits.amplitudes.amplitude import Amplitude
from resnet_limits.limits.amplitudes.changes import Ends
from resnet_limits.limits.amplitudes.width import width_variance
from resnet_limits.limits.depth import Array
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.trajectories import Trajectories


@dataclass(frozen=True)
class UnitNoise:
    """What the units of the limit give.

    Attributes
    ----------
    inside : ndarray, shape (K,)
        Square of what `unit_noise` finds of the state in the span of the embedding.
    output : ndarray, shape (K,)
        B^2.
    bias : ndarray, shape (K, rows, d_out)
        A of the outputs.
    """

    inside: Array
    output: Array
    bias: Array


@dataclass(frozen=True)
class Distance:
    """An RMS distance from the DMFT limit at every step: the root-sum-square of two parts.

    Attributes
    ----------
    whole : Amplitude
        Of the network. Its uncertainty is that over embeddings.
    limit : ndarray, shape (K,)
        Of its infinite-width limit, together with the bias of finite width.
    noise : ndarray, shape (K,)
        Of the network from that.
    """

    whole: Amplitude
    limit: Array
    noise: Array

    @classmethod
    def of(cls, limit: Array, noise: Array, first: Array, known: Array) -> Distance:
        """Take it from the squares for several embeddings.

        Parameters
        ----------
        limit, noise : ndarray, shape (embeddings, K)
            The squares of both parts.
        first : ndarray, shape (embeddings, K)
            What is known of `limit`: its square to first order.
        known : ndarray, shape (K,)
            The expectation of `first`.
        """
        without = limit - first
        squares = known + without + noise
        error = squares.std(axis=0, ddof=1) / np.sqrt(len(squares))
        whole = Amplitude.of_square(np.maximum(squares.mean(axis=0), 0.0), error)
        of_limit = np.maximum(known + without.mean(axis=0), 0.0)
        return cls(whole, np.sqrt(of_limit), np.sqrt(np.mean(noise, axis=0)))


def shape_distances(
    trajectories: Trajectories,
    plan: Plan,
    shape: Shape,
    roots: Sequence[Array],
    units: UnitNoise,
    slopes: Sequence[gram.Slope] = (),
) -> tuple[Distance, Distance]:
    """Find the distances of networks of a shape from the DMFT limit.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        Nodes and scramblings, and points if units are exact.
    shape : Shape
        L, M, D.
    roots : sequence of ndarray, shape (r, r)
        Roots of the Gram matrices of embeddings of D rows, at least two.
    units : UnitNoise
        What the limit's units give.
    slopes : sequence of Slope, optional
        Derivatives along the entries of the Gram matrix, by which the mean is taken over all
        embeddings to first order; without them it is over those given.

    Returns
    -------
    hidden, output : Distance

    Raises
    ------
    LimitError
        If a limit cannot be solved.
    """
    few, some = (
        replace(plan, points=points) if plan.points else plan
        for points in (cost.WIDTH_POINTS, cost.GRAM_POINTS)
    )
    few = replace(few, replicates=min(plan.replicates, cost.SHAPE_REPLICATES))
    limit_root = trajectories.limit_root
    limit = Ends.of(
        trajectories.solve(limit_root, depth.continuous, some, "amplitudes: dmft"), limit_root
    )
    layers, width, embed_dim = shape
    spanned = min(len(limit_root), embed_dim)
    bias = (embed_dim - spanned) / (layers * width) * units.bias
    # With several branches in a layer the noise is known for many layers alone.
    own = layers if len(trajectories.dynamics.layer) == 1 else None
    centre = limit_root @ limit_root
    # Random directions do not give the change for one Gram matrix.
    by_entry = []
    if gram.entries(centre) <= cost.MOST_ENTRIES:
        by_entry = [slope._replace(ends=slope.ends.mean()) for slope in slopes]
    nothing = np.zeros((2, trajectories.dynamics.steps))
    known = nothing
    if by_entry:
        known = (
            sum((slope.ends.squares(centre)[:, 0] for slope in by_entry), start=nothing) / embed_dim
        )
    squares: tuple[list[Array], ...] = ([], [], [])
    for root in roots:
        solved = trajectories.solve(root, depth.of_layers(layers), some, "amplitudes: wide")
        gap = Ends.of(solved, root).combined(limit, 1.0, -1.0).mean()
        gap = gap._replace(output=gap.output + bias)
        amplitude = width_variance(trajectories, few, root, own)[0].mean(axis=0)
        noise = (embed_dim - spanned) * amplitude + units.inside
        squares[0].append(gap.squares(root @ root)[:, 0])
        squares[1].append(np.stack([noise, units.output]) / (layers * width))
        first = nothing
        if by_entry:
            first = gram.to_first_order(by_entry, root @ root - centre).squares(centre)[:, 0]
        squares[2].append(first)
    of_limit, of_units, first_order = (np.stack(part, axis=1) for part in squares)
    hidden, output = (
        Distance.of(of_limit[i], of_units[i], first_order[i], known[i]) for i in (0, 1)
    )
    return hidden, output
