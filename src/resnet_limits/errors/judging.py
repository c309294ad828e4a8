"""Rules by which a claim agrees, disagrees or is undecided (docs/concepts/verdicts.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from resnet_limits.errors.intervals import CONFIDENCE, SEEDS, Spread
from resnet_limits.errors.likelihood import LIMITS, MISFIT, Fitted

Claim = dict[str, Any]

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"

WIDTHS = {"exponent": 0.1, "amplitude": 0.1, "exponent in P": 1 / 60}
"""Largest half-width of an interval that lets a claim agree; of amplitudes, of their logs. That of
exponents in P is half the difference between 1/5 and 1/6."""

FAMILY_LEVEL = 1 - CONFIDENCE
"""Chance that a theory that is right disagrees anywhere in a study."""

_NOTHING = 1e-9
_PREDICTION = "prediction"


# --- one measured number --------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """One number that was measured: its value, and what its interval is made of."""

    value: float
    centre: float
    parts: Mapping[str, float]
    degrees: float
    seeds: int

    @classmethod
    def of(cls, fitted: Fitted, column: int, seeds: int, predicted: float = 0.0) -> Estimate:
        """Take a parameter of a fit; `predicted`: uncertainty of what it is held against."""
        whole = fitted.spread
        spread = Spread(
            whole.bias[column : column + 1],
            whole.variances[:, column : column + 1],
            whole.degrees[:, column : column + 1],
            whole.sources,
        ).plus(np.array([predicted**2]), math.inf, _PREDICTION)
        parts: dict[str, float] = {}
        for source, variance in zip(spread.sources, spread.variances[:, 0], strict=True):
            parts[source] = parts.get(source, 0.0) + float(variance)
        value = float(fitted.values[column])
        centre = value - float(spread.bias[0])
        return cls(value, centre, parts, float(spread.freedom()[0]), seeds)

    @classmethod
    def of_interval(cls, value: float, interval: Sequence[float], seeds: int) -> Estimate:
        """Take a number whose interval alone is known, with the scatter over seeds in it."""
        degrees = float(max(seeds - 1, 1))
        half = 0.5 * (interval[1] - interval[0])
        scatter = half / float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees))
        return cls(value, 0.5 * (interval[0] + interval[1]), {SEEDS: scatter**2}, degrees, seeds)

    @property
    def deviation(self) -> float:
        """Standard error, of all parts together."""
        return math.sqrt(sum(self.parts.values()))

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return float(stats.t.ppf(0.5 + CONFIDENCE / 2, self.degrees)) * self.deviation

    @property
    def interval(self) -> list[float] | None:
        """The interval, which holds the value itself."""
        if not math.isfinite(self.half):
            return None
        return [min(self.centre - self.half, self.value), max(self.centre + self.half, self.value)]

    def chance(self, reference: float) -> float:
        """Give the chance of a larger distance from the reference, were the reference true."""
        away = abs(reference - self.centre)
        if not math.isfinite(self.deviation):
            return 1.0
        if self.deviation == 0.0:
            return float(away <= _NOTHING)
        return float(2 * stats.t.sf(away / self.deviation, self.degrees))

    def would_decide(self, width: float, key: str, limit_tolerance: float | None) -> str:
        """Say what would make the interval as narrow as `width`."""
        other = sum(part for source, part in self.parts.items() if source != SEEDS)
        if not math.isfinite(other):
            return f"more seeds ({key}) would show the scatter"
        quantile = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
        allowed = (width / quantile) ** 2
        if other < 0.8 * allowed and self.parts.get(SEEDS):
            return f"about {self._seeds_for(width, other)} seeds ({key}) would decide"
        largest = max(self.parts, key=lambda source: self.parts[source] * (source != SEEDS))
        if largest == LIMITS and limit_tolerance is not None:
            factor = min(0.5, math.sqrt(0.5 * allowed / self.parts[LIMITS]))
            return f"a limit_tolerance of {limit_tolerance * factor:.0e} would decide"
        if largest == MISFIT:
            return "shapes scatter by more than their seeds do; more or larger shapes would decide"
        if largest == _PREDICTION:
            return "a prediction of smaller uncertainty would decide"
        return "larger shapes, where the next order is smaller, would decide"

    def _seeds_for(self, width: float, other: float) -> int:
        """Find the number of seeds, to two digits, of an interval of some half-width."""
        scatter, count = self.parts[SEEDS] * self.seeds, self.seeds
        while count < 10**6:
            quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(count - 1, 1)))
            if quantile**2 * (scatter / count + other) <= width**2:
                break
            count = max(count + 1, math.ceil(1.05 * count))
        digit = 10 ** max(0, math.floor(math.log10(count)) - 1)
        return math.ceil(count / digit) * digit


@dataclass
class Open:
    """A claim before all of a study are known, which a verdict depends on."""

    claim: Claim
    kind: str
    reference: float | None = None
    estimate: Estimate | None = None
    reason: str = ""
    key: str = "sweep.seeds"

    @property
    def chance(self) -> float | None:
        """The chance of a larger distance, were the claim true; None if nothing is known."""
        if self.estimate is None or self.reference is None:
            return None
        return self.estimate.chance(self.reference)


# --- verdicts -------------------------------------------------------------------------------------


def holm(chances: Sequence[float]) -> list[float]:
    """Adjust chances for how many there are (Holm 1979), whatever they have to do with each other.

    Those at most some level are then rejected with a chance of at most that level that any of them
    is rejected wrongly.
    """
    order = np.argsort(chances, kind="stable")
    adjusted = np.empty(len(chances))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[place]))
        adjusted[place] = largest
    return [float(value) for value in adjusted]


def decide(found: Sequence[Open], limit_tolerance: float | None) -> Iterator[Claim]:
    """Give every claim its verdict."""
    places = [k for k, one in enumerate(found) if one.chance is not None]
    adjusted = dict(zip(places, holm([found[k].chance or 0.0 for k in places]), strict=True))
    for k, one in enumerate(found):
        claim, estimate = one.claim, one.estimate
        claim["width"] = WIDTHS[one.kind]
        if estimate is not None:
            bounds = estimate.interval
            claim["measured"], claim["interval"] = estimate.value, bounds
            if one.kind == "amplitude":
                claim["measured"] = math.exp(estimate.value)
                claim["interval"] = bounds and [math.exp(min(bound, 700.0)) for bound in bounds]
        claim["chance"] = one.chance
        claim["verdict"], claim["why"] = _verdict(
            one, adjusted.get(k), len(places), limit_tolerance
        )
        yield claim


def _verdict(
    one: Open, adjusted: float | None, count: int, limit_tolerance: float | None
) -> tuple[str, str]:
    """Decide one claim, by rules alone, and say why."""
    if one.estimate is None or one.reference is None or adjusted is None:
        return UNDECIDED, one.reason or "not measured"
    estimate, width = one.estimate, WIDTHS[one.kind]
    half = estimate.half
    interval = estimate.interval
    unit = f"{width:.2g}" if one.kind != "amplitude" else f"{width:.0%}"
    if interval is None:
        return UNDECIDED, "a single seed does not show the scatter; two or more seeds would"
    said = f"{half:.2g}" if one.kind != "amplitude" else f"{math.expm1(min(half, 7.0)):.0%}"
    if adjusted <= FAMILY_LEVEL:
        return DISAGREES, (
            f"were the claim true, a deviation this large would have a chance of {one.chance:.1e}; "
            f"adjusted for the number of claims, {count} (Holm), that is {adjusted:.1e}, "
            f"at most {FAMILY_LEVEL:.2g}"
        )
    if not interval[0] <= one.reference <= interval[1]:
        return UNDECIDED, (
            "outside the 95 % interval, but adjusted for the number of claims, "
            f"{count} (Holm), the chance of that is {adjusted:.2g}; "
            f"twice the seeds ({one.key}) would tell"
        )
    if half > width:
        what = estimate.would_decide(width, one.key, limit_tolerance)
        return UNDECIDED, f"the 95 % interval, +-{said}, is wider than +-{unit}; {what}"
    return AGREES, f"inside the 95 % interval, which at +-{said} is no wider than +-{unit}"
