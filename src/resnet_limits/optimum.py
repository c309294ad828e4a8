"""The shape of the smallest error for a number of parameters, where the error's law is known.

The square of the error is a sum of powers of L, M and D (`laws`). Every one of them falls, or
stays, as L or M grows, and at the same product L M as L grows. So the best shape spends all of its
parameters, and among those of one D it is the deepest. What is left depends on D alone, piece by
piece as a sum of powers c D^e, which is convex in log D. The minimum of a piece with two powers is
at D^(e1 - e2) = -c2 e2 / (c1 e1); those of others are found by bisection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet_limits.kinds import SIZES, Shape
from resnet_limits.laws import POWERS, in_quadrature

MAX_BUDGET = 10**18
"""Largest number of parameters that sizes are sought for."""

_SMALLEST, _LARGEST = Shape(1, 1, 1), Shape(MAX_BUDGET, MAX_BUDGET, MAX_BUDGET)
_EXTRA, _MANY = 16, 2**15
_NEARBY = 2000
_HALVINGS = 200


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest sizes that count.

    Attributes
    ----------
    least, most : Shape
        L, M and D at least and at most.
    """

    least: Shape = _SMALLEST
    most: Shape = _LARGEST

    def holding(self, size: str, value: float) -> Bounds:
        """Fix one of the sizes at any positive value."""
        fixed = {size: value}
        return Bounds(self.least._replace(**fixed), self.most._replace(**fixed))  # type: ignore[arg-type]

    def within(self, other: Bounds) -> Bounds:
        """Take what both allow."""
        return Bounds(
            Shape(*map(max, self.least, other.least)), Shape(*map(min, self.most, other.most))
        )

    @property
    def smallest(self) -> int:
        """The fewest parameters that a shape has."""
        return math.prod(self.least)


ANY = Bounds()
"""All sizes from 1 on."""


class Point(NamedTuple):
    """The best real sizes, and their error."""

    depth: float
    width: float
    embed_dim: float
    error: float


# --- real sizes -----------------------------------------------------------------------------------


def best_sizes(amplitudes: Mapping[str, float], budget: float, bounds: Bounds = ANY) -> Point:
    """Find the real L, M and D of the smallest error with L M D <= budget.

    Parameters
    ----------
    amplitudes : mapping of str to float
        By term, a key of `laws.POWERS`.
    budget : float
        P, at least as many as the smallest sizes have.
    bounds : Bounds
        Smallest and largest sizes.

    Raises
    ------
    ValueError
        If no sizes within the bounds have so few parameters.
    """
    room_least = bounds.least.depth * bounds.least.width
    low = float(bounds.least.embed_dim)
    high = min(float(bounds.most.embed_dim), budget / room_least)
    if high < low * (1 - 1e-12):
        raise ValueError(f"no shape within the bounds has {budget:g} parameters")
    high = max(low, high)
    # Where the deepest of all depths, and the widest of all widths, are reached.
    corners = (
        budget / (bounds.most.depth * bounds.most.width),
        budget / (bounds.most.depth * bounds.least.width),
    )
    edges = sorted({low, high, *(min(max(corner, low), high) for corner in corners)})
    points = [_at(amplitudes, budget, bounds, edge) for edge in edges]
    for left, right in itertools.pairwise(edges):
        inner = _stationary(
            _powers_of_embed_dim(amplitudes, budget, bounds, left, right), left, right
        )
        if inner is not None:
            points.append(_at(amplitudes, budget, bounds, inner))
    return min(points, key=lambda point: point.error)


def _split(budget: float, bounds: Bounds, embed_dim: float) -> tuple[float, float]:
    """Give the deepest L, and M, for a D."""
    room = max(budget / embed_dim, float(bounds.least.depth * bounds.least.width))
    depth = min(float(bounds.most.depth), room / bounds.least.width)
    return depth, min(float(bounds.most.width), room / depth)


def _at(amplitudes: Mapping[str, float], budget: float, bounds: Bounds, embed_dim: float) -> Point:
    sizes = (*_split(budget, bounds, embed_dim), embed_dim)
    return Point(*sizes, float(in_quadrature(amplitudes, np.array(sizes))))


def _powers_of_embed_dim(
    amplitudes: Mapping[str, float], budget: float, bounds: Bounds, left: float, right: float
) -> dict[float, float]:
    """Write the squared error between two corners as coefficients of powers of D."""
    middle = math.sqrt(left * right)
    depth, width = _split(budget, bounds, middle)
    # Each of the sizes is fixed there, or what the budget leaves.
    falls_depth = depth < bounds.most.depth
    falls_width = not falls_depth and width < bounds.most.width
    found: dict[float, float] = {}
    for name, amplitude in amplitudes.items():
        L, M, D = POWERS[name]
        power = 2 * (D - (L if falls_depth else 0.0) - (M if falls_width else 0.0))
        value = float(in_quadrature({name: amplitude}, np.array((depth, width, middle)))) ** 2
        if value > 0:
            found[power] = found.get(power, 0.0) + value / middle**power
    return found


def _stationary(powers: Mapping[float, float], left: float, right: float) -> float | None:
    """Find where a sum of powers with positive coefficients is smallest, if that is inside."""
    falling = {e: c for e, c in powers.items() if e < 0}
    rising = {e: c for e, c in powers.items() if e > 0}
    if not falling or not rising or not left < right:
        return None
    if len(falling) == len(rising) == 1:
        ((down, c_down),) = falling.items()
        ((up, c_up),) = rising.items()
        place = (-c_down * down / (c_up * up)) ** (1 / (up - down))
        return place if left < place < right else None

    def slope(log: float) -> float:
        return math.fsum(c * e * math.exp(e * log) for e, c in powers.items())

    ends = math.log(left), math.log(right)
    if slope(ends[0]) >= 0 or slope(ends[1]) <= 0:
        return None
    return math.exp(_crossing(lambda log: slope(log) >= 0, *ends))


def _crossing(holds: Callable[[float], bool], false_at: float, true_at: float) -> float:
    """Halve an interval until what does not hold at one end, and does at the other, is found."""
    for _ in range(_HALVINGS):
        middle = 0.5 * (false_at + true_at)
        if middle in (false_at, true_at):
            break
        if holds(middle):
            true_at = middle
        else:
            false_at = middle
    return true_at


def least_parameters(
    amplitudes: Mapping[str, float], error: float, bounds: Bounds = ANY
) -> float | None:
    """Find the fewest parameters, of real sizes, for such an error; None above `MAX_BUDGET`."""
    ends = math.log(bounds.smallest), math.log(MAX_BUDGET)

    def holds(log: float) -> bool:
        return best_sizes(amplitudes, math.exp(log), bounds).error <= error

    if not holds(ends[1]):
        return None
    return math.exp(ends[0] if holds(ends[0]) else _crossing(holds, *ends))


# --- whole numbers --------------------------------------------------------------------------------


def best_shape(
    amplitudes: Mapping[str, float], budget: int, bounds: Bounds = ANY
) -> tuple[Shape, float]:
    """Find the whole-number shape of the smallest error with L M D <= budget, and the error.

    Parameters
    ----------
    amplitudes : mapping of str to float
        By term, a key of `laws.POWERS`. Where 1/L is not among them L and M count alike, and are
        taken about equal.
    budget : int
        P.
    bounds : Bounds
        Smallest and largest sizes, whole numbers.

    Raises
    ------
    ValueError
        If no shape within the bounds has so few parameters.
    """
    shapes = _candidates(amplitudes, budget, bounds)
    if not len(shapes):
        raise ValueError(f"no shape within the bounds has {budget} parameters")
    errors = in_quadrature(amplitudes, shapes)
    place = int(np.argmin(errors))
    return Shape(*map(int, shapes[place])), float(errors[place])


def _candidates(amplitudes: Mapping[str, float], budget: int, bounds: Bounds) -> NDArray[np.int64]:
    """Shapes among which the best one is: all good (L, M) for each D near the optimum.

    Returns
    -------
    ndarray of int, shape (candidates, 3)
    """
    least, most = bounds.least, bounds.most
    first, last = least.embed_dim, min(most.embed_dim, budget // (least.depth * least.width))
    if last < first:
        return np.empty((0, len(SIZES)), dtype=np.int64)
    if last - first >= _NEARBY:
        middle = best_sizes(amplitudes, budget, bounds).embed_dim
        # Rounding L and M to whole numbers moves the best D by much less than two per cent.
        reach = max(_NEARBY // 2, int(middle) // 50)
        ends = max(first, int(middle) - reach), min(last, int(middle) + reach)
        D = np.unique(np.linspace(*ends, 2 * _NEARBY).astype(np.int64))
    else:
        D = np.arange(first, last + 1)
    room = (budget // D)[:, None]
    # All of them where they are few.
    extra = np.arange(max(_EXTRA, min(budget, _MANY // len(D))))[None, :]
    if "1/L" in amplitudes:
        # The least width with which the depth stays in its bounds, and some above.
        M = np.maximum(least.width, room // most.depth) + extra
    else:
        root = np.sqrt(room).astype(np.int64)
        M = np.maximum(np.maximum(least.width, room // most.depth), root - extra)
    M = np.minimum(M, most.width)
    L = np.minimum(room // M, most.depth)
    sets = [(L, M)]
    if "1/L" in amplitudes:
        # Depths below the largest may leave less of the budget over.
        L = np.maximum(np.minimum(most.depth, room // least.width) - extra, 1)
        sets.append((L, np.minimum(room // L, most.width)))
    shapes = np.concatenate(
        [
            np.stack(np.broadcast_arrays(L, M, D[:, None]), axis=-1).reshape(-1, len(SIZES))
            for L, M in sets
        ]
    )
    kept: NDArray[np.int64] = shapes[(shapes >= np.array(least)).all(axis=1)]
    return kept


def smallest_budget(
    amplitudes: Mapping[str, float], error: float, bounds: Bounds = ANY
) -> int | None:
    """Find the fewest parameters for which some shape's error is so small.

    Returns
    -------
    int or None
        None if it takes more than `MAX_BUDGET`, or no shape within the bounds is so near.
    """
    real = least_parameters(amplitudes, error, bounds)
    if real is None:
        return None

    def holds(budget: int) -> bool:
        return best_shape(amplitudes, budget, bounds)[1] <= error

    # Whole numbers take more than real ones, and mostly little more.
    low, gap = max(bounds.smallest, math.ceil(real * (1 - 1e-9))), 1
    if holds(low):
        return low
    while not holds(low + gap):
        if low + gap > MAX_BUDGET:
            return None
        low, gap = low + gap, 2 * gap
    high = low + gap
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high if high <= MAX_BUDGET else None


# --- all shapes that are nearly as good -----------------------------------------------------------


def ranges(
    amplitudes: Mapping[str, float], budget: float, error: float, bounds: Bounds = ANY
) -> dict[str, tuple[float, float]]:
    """Find between which values each size may be for an error so small, the others at their best.

    Parameters
    ----------
    amplitudes, budget, bounds
        As for `best_sizes`.
    error : float
        Not below that of the best sizes.

    Returns
    -------
    dict
        By size the smallest and the largest real value.
    """
    best = best_sizes(amplitudes, budget, bounds)
    found = {}
    for place, size in enumerate(SIZES):

        def holds(log: float, size: str = size) -> bool:
            fixed = bounds.holding(size, math.exp(log))
            if fixed.smallest > budget * (1 + 1e-12):
                return False
            return best_sizes(amplitudes, budget, fixed).error <= error * (1 + 1e-12)

        others = math.prod(least for k, least in enumerate(bounds.least) if k != place)
        low = math.log(bounds.least[place])
        high = math.log(max(bounds.least[place], min(bounds.most[place], budget / others)))
        start = min(max(math.log(best[place]), low), high)
        ends = [end if holds(end) else _crossing(holds, end, start) for end in (low, high)]
        found[size] = math.exp(ends[0]), math.exp(ends[1])
    return found


def shallowest(
    amplitudes: Mapping[str, float], budget: int, error: float, bounds: Bounds = ANY
) -> tuple[Shape, float]:
    """Find the shape of the least depth with L M D <= budget and an error so small, and its error.

    Parameters
    ----------
    amplitudes, budget, bounds
        As for `best_shape`.
    error : float
        Not below that of the best shape.
    """
    least = ranges(amplitudes, budget, error, bounds)["depth"][0]
    depth = max(bounds.least.depth, math.ceil(least * (1 - 1e-9)))
    while True:
        fixed = replace(bounds, most=bounds.most._replace(depth=depth))
        shape, found = best_shape(amplitudes, budget, fixed)
        if found <= error:
            return shape, found
        # Rounding costs little, so that this is a matter of few steps.
        depth = depth + max(1, depth // 1000)


def spread(
    amplitudes: Mapping[str, float],
    uncertainties: Mapping[str, float],
    find: Callable[[Mapping[str, float]], Sequence[float]],
    standard_errors: float = 1.96,
) -> list[tuple[float, float]]:
    """Give intervals of what follows from amplitudes that are known to some standard errors.

    To first order in the logarithms, the amplitudes independent of each other.

    Parameters
    ----------
    amplitudes, uncertainties : mapping of str to float
        Both by term.
    find : callable
        From amplitudes to positive numbers.
    standard_errors : float
        Half the width of the intervals.
    """
    middle = np.log(find(amplitudes))
    variance = np.zeros_like(middle)
    for name, error in uncertainties.items():
        if error > 0 and amplitudes[name] > 0:
            step = min(error, 0.5 * amplitudes[name])
            up, down = (
                np.log(find({**amplitudes, name: amplitudes[name] + side * step}))
                for side in (1, -1)
            )
            variance += ((up - down) / 2 * (error / step)) ** 2
    half = standard_errors * np.sqrt(variance)
    return list(zip(np.exp(middle - half).tolist(), np.exp(middle + half).tolist(), strict=True))
