"""A_D: what the fluctuation of the embedding's Gram matrix makes of the limit, 1/sqrt(D).

The Mean ODE differs from the DMFT limit by its Gram matrix alone, which fluctuates around its
expectation ``diag(g)`` with independent entries of variance ``2 g_a^2/D`` on the diagonal (for
Gaussian embeddings) and ``g_a g_b/D`` beside it. The mean square of a change of the limit to first
order is the sum of those of the changes with each entry (docs/concepts/amplitudes.md), which are
differences of solutions with the same points and so far more accurate than these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from resnet_limits import randomness
from resnet_limits.limits import depth
from resnet_limits.limits.amplitudes import cost
from resnet_limits.limits.amplitudes.amplitude import Amplitude, Amplitudes
from resnet_limits.limits.amplitudes.changes import Ends, squares_at
from resnet_limits.limits.depth import Array
from resnet_limits.limits.models import minimum_norm
from resnet_limits.limits.plan import Plan
from resnet_limits.limits.trajectories import Trajectories

# Relative size of a change: half of it leaves an error of second order, 2e-4, in differences of
# units in single precision that are off by 1e-5 of what they measure.
_STEP = 0.02
# Of the laws of the embedding's entries: fourth moment over the squared variance, minus 3.
_EXCESS = {"gaussian": 0.0, "uniform": -1.2, "rademacher": -2.0}


def entries(gram: Array) -> int:
    """Count the independent entries of a diagonal Gram matrix that fluctuate."""
    present = int(np.count_nonzero(np.diag(gram)))
    return present * (present + 1) // 2


def directions(gram: Array, root_seed: int, initial_law: str) -> Iterator[Array]:
    """Give changes of the Gram matrix, sqrt(D) times a fluctuation.

    Each entry by its standard deviation if these are few; the sum over them of what is quadratic in
    a change is then its expectation. Else so many independent fluctuations, divided by the root of
    their number, that the sum is so on average.

    Parameters
    ----------
    gram : ndarray, shape (r, r)
        Its expectation, diagonal.
    root_seed : int
        Root of the random streams.
    initial_law : str
        Law of the embedding's entries, which the variance of the diagonal depends on.

    Yields
    ------
    ndarray, shape (r, r)
        Symmetric.
    """
    sizes = np.sqrt(np.diag(gram))
    scale = np.outer(sizes, sizes)
    np.fill_diagonal(scale, np.sqrt(2.0 + _EXCESS[initial_law]) * sizes**2)
    if entries(gram) <= cost.MOST_ENTRIES:
        for a, b in zip(*np.triu_indices(len(gram)), strict=True):
            if scale[a, b]:
                change = np.zeros_like(gram)
                change[a, b] = change[b, a] = scale[a, b]
                yield change
        return
    generator = randomness.generator(root_seed, "gram directions")
    for _ in range(cost.RANDOM_DIRECTIONS):
        draw = np.triu(generator.standard_normal(gram.shape))
        yield scale * (draw + np.triu(draw, 1).T) / np.sqrt(cost.RANDOM_DIRECTIONS)


def _root(gram: Array) -> Array:
    values, vectors = np.linalg.eigh(gram)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


class Slope(NamedTuple):
    """The derivative of the limit along one change of its Gram matrix.

    Attributes
    ----------
    change : ndarray, shape (r, r)
        The change.
    ends : Ends
        The derivative, of each scrambling.
    squares_at : ndarray, shape (replicates + 1, K, n)
        Mean squares of that of the hidden state at `changes.DEPTHS`, of each scrambling and of
        their mean.
    """

    change: Array
    ends: Ends
    squares_at: Array


def gram_slopes(trajectories: Trajectories, plan: Plan) -> list[Slope]:
    """Find the derivatives of the limit along the `directions` of its Gram matrix.

    Parameters
    ----------
    trajectories : Trajectories
        The problem.
    plan : Plan
        Points, nodes and scramblings.

    Raises
    ------
    LimitError
        If a limit cannot be solved.
    """
    limit_root, dynamics = trajectories.limit_root, trajectories.dynamics
    gram, knots = limit_root @ limit_root, depth.continuous(plan.nodes).knots
    # At s = 0 a state is the embedding of its input, whose coordinates are the input as long as the
    # embedding is not trained.
    fixed = dynamics.steps if dynamics.rate_embedding == 0 else 1
    slopes = []
    for change in directions(gram, plan.root_seed, trajectories.dynamics.initial_law):
        step = _STEP / _largest(change, limit_root)
        both, slope = [], np.zeros(1)
        for sign in (1.0, -1.0):
            root = _root(gram + sign * step * change)
            solved = trajectories.solve(root, depth.continuous, plan, "amplitudes: mean_ode")
            both.append(Ends.of(solved, root))
            slope = slope + sign * 0.5 / step * (solved.hidden @ minimum_norm(root).T)
        squares = squares_at(slope, knots, limit_root)
        squares[:, :fixed, 0] *= 0.0
        slopes.append(Slope(change, both[0].combined(both[1], 0.5 / step, -0.5 / step), squares))
    return slopes


def gram_amplitudes(slopes: Sequence[Slope], gram: Array) -> Amplitudes:
    """Find A_D of the hidden state, at the last layer and over the depth, and of the outputs.

    Parameters
    ----------
    slopes : sequence of Slope
        From `gram_slopes`.
    gram : ndarray, shape (r, r)
        The limit's Gram matrix.

    Returns
    -------
    Amplitudes
        Their uncertainty is that over scramblings and over random directions.
    """
    squares = np.array([slope.ends.squares(gram) for slope in slopes])
    mean_squares = np.array([slope.ends.mean().squares(gram)[:, 0] for slope in slopes])
    at_depths = np.array([slope.squares_at for slope in slopes])
    each, mean = squares.sum(axis=0), mean_squares.sum(axis=0)
    each_at, mean_at = np.split(at_depths.sum(axis=0), [-1])
    each, mean = [*each, each_at], [*mean, mean_at[0]]
    found = [Amplitude.of_fields(*parts) for parts in zip(each, mean, strict=True)]
    if entries(gram) > cost.MOST_ENTRIES:
        # The error of a sum over independent draws, as one of the amplitude.
        root_count = np.sqrt(len(slopes))
        scatter = [
            *(np.std(mean_squares, axis=0, ddof=1) * root_count),
            np.std(at_depths[:, -1], axis=0, ddof=1) * root_count,
        ]
        found = [
            part.with_error(Amplitude.of_square(square, error).uncertainty)
            for part, square, error in zip(found, mean, scatter, strict=True)
        ]
    return Amplitudes(*found)


def to_first_order(slopes: Sequence[Slope], change: Array) -> Ends:
    """Give what a change of the Gram matrix makes of the limit to first order.

    Parameters
    ----------
    slopes : sequence of Slope
        Along each entry alone.
    change : ndarray, shape (r, r)
        Symmetric.
    """
    total = Ends(*(0.0 * part for part in slopes[0].ends))
    for slope in slopes:
        # The entry is where the direction is not zero.
        place = np.unravel_index(np.argmax(np.abs(slope.change)), change.shape)
        total = total.combined(slope.ends, 1.0, float(change[place] / slope.change[place]))
    return total


def _largest(change: Array, limit_root: Array) -> float:
    """Largest change of a direction relative to the Gram matrix's own size there."""
    sizes = np.diag(limit_root)
    inverse = np.divide(1.0, sizes, where=sizes > 0, out=np.zeros_like(sizes))
    return float(np.abs(np.linalg.eigvalsh(inverse[:, None] * change * inverse)).max())
