"""What the limits' standard error lets a fit see, and which tolerance would let it see all."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from resnet_limits.cells import RESOLUTION, Study

_DETECTION = 2.0
"""An error shows that there is one if it exceeds this many of its standard errors."""


def outstanding(study: Study) -> NDArray[np.bool_]:
    """Whether the error of each shape stands out from the limits' standard error."""
    seen: NDArray[np.bool_] = study.mean_squares > _DETECTION**2 * study.mean_noise
    return seen


def needed_tolerance(study: Study, limit_tolerance: float | None) -> float | None:
    """Find the tolerance of limits by which all cells would be resolved.

    The standard error is in proportion to the tolerance, so that it would have to be as many times
    smaller. An error that does not stand out is taken for as large as its standard error: it may
    be smaller, and take more.

    Parameters
    ----------
    study : Study
    limit_tolerance : float or None
        What the limits were solved to.

    Returns
    -------
    float or None
        Rounded down to one digit; None if all cells are resolved.
    """
    if limit_tolerance is None or study.resolved[study.used].all():
        return None
    noise = np.where(study.used, study.noise, 0.0).max(axis=1)
    error = np.maximum(study.mean_squares - study.mean_noise, study.mean_noise)
    ratio = np.sqrt((error / np.where(noise > 0, noise, np.inf))[noise > 0].min()) / RESOLUTION
    needed = limit_tolerance * min(1.0, float(ratio))
    digit = 10.0 ** math.floor(math.log10(needed))
    return float(f"{math.floor(needed / digit * (1 + 1e-9)) * digit:.0e}")


def warning(study: Study, needed: float | None) -> str | None:
    """Say how many cells are below resolution; None if none is."""
    below = int((study.used & ~study.resolved).sum())
    if not below:
        return None
    words = (
        f"{below} of {int(study.used.sum())} cells are below resolution (under {RESOLUTION:g} "
        "times the limits' standard error) and count less"
    )
    if needed is not None:
        words += f"; a limit_tolerance of {needed:g} would resolve them"
        if not outstanding(study).all():
            words += ", or a smaller one, as some do not stand out at all"
    return words
