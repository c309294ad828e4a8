"""What devices take for the operations that the time of a result is thought to consist of.

These constants tell people and schedulers how long to wait, and nothing else: no result depends on
them, so that they may be refitted at any time. The constants by which ``auto`` chooses an engine,
on which results do depend, are those of ``networks/cost.py``.

Seconds are those of one core (user and system time), from ``benchmarks/estimates.py`` on an Intel
Xeon of 2023; GPUs have their makers' nominal figures.
"""

from __future__ import annotations

from typing import NamedTuple


class LimitSpeed(NamedTuple):
    """Seconds of a training step of a limit, and for each point of the quadrature in it.

    Attributes
    ----------
    step : float
        Of a step, whatever its size.
    row, weight, product : float
        Of a point: for each row, for each number of its unit's weights, for each of both.
    """

    step: float
    row: float
    weight: float
    product: float


COMPILED = LimitSpeed(2e-3, 4e-8, 1.2e-8, 6e-10)
"""Units that have a kernel of their own, in float32."""

GENERIC = LimitSpeed(5e-3, 6e-8, 2.2e-8, 5e-10)
"""All others."""

DRAW = 5e-8
"""Seconds of one number of the quadrature's points."""

UNIT = 2e-8
"""Seconds of a vector of a unit of a network, in one step of one row: activation and derivative."""

START = 4.0
"""Interpreter and libraries of a job that computes networks or limits."""

START_LIGHT = 2.5
"""The same of a job that measures, fits or draws."""

COMPILE = {"dmft": 8.0, "mean_ode": 8.0, "wide": 8.0, "finite": 25.0}
"""What is compiled by the first job of a kind on a machine, and then kept."""


class Gpu(NamedTuple):
    """A GPU, by its nominal figures.

    Attributes
    ----------
    bandwidth : float
        Bytes per second.
    share : float
        The part of it that well-made kernels reach.
    """

    bandwidth: float
    share: float = 0.6


GPUS = {"A100 80GB": Gpu(2.0e12), "H100 SXM": Gpu(3.35e12)}
"""GPUs for which times are told."""

CORE_BANDWIDTH = 3e10
"""Bytes per second that one core of the machine of the constants moves in a dense step."""
