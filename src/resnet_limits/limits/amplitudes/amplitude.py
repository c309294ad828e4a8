"""An amplitude at every step, and how well it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from resnet_limits.limits.depth import Array


@dataclass(frozen=True)
class Amplitude:
    """The factor of one term of the error, at every step.

    Attributes
    ----------
    value, uncertainty : ndarray, shape (K,) or (K, n)
        The amplitude, at n depths where there are several, and the standard error of its
        computation.
    """

    value: Array
    uncertainty: Array

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Where both are finite: what they are found by may diverge later than the limit."""
        return np.isfinite(self.value) & np.isfinite(self.uncertainty)

    @classmethod
    def of_fields(cls, squares: Array, mean_square: Array | None = None) -> Amplitude:
        """Take it from its squares in independent replicates.

        Parameters
        ----------
        squares : ndarray, shape (replicates, K) or (replicates, K, n)
            Squares of the amplitude.
        mean_square : ndarray, shape (K,) or (K, n), optional
            A better estimate of the square than their mean.
        """
        mean = squares.mean(axis=0) if mean_square is None else mean_square
        value = np.sqrt(np.maximum(mean, 0.0))
        roots, count = np.sqrt(np.maximum(squares, 0.0)), len(squares)
        scatter = roots.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else 0.0 * value
        return cls(value, scatter)

    @classmethod
    def of_means(cls, fields: Array) -> Amplitude:
        """Take it from a field that independent replicates scatter around.

        The square of a mean exceeds that of the expectation by the mean's variance, which is taken
        off.

        Parameters
        ----------
        fields : ndarray, shape (replicates, K, ...)
            Its RMS over the last axes is the amplitude.
        """
        count, axes = len(fields), tuple(range(1, fields.ndim - 1))
        mean = fields.mean(axis=0)
        square = np.square(mean).mean(axis=axes)
        if count == 1:
            return cls(np.sqrt(square), 0.0 * square)
        square -= fields.var(axis=0, ddof=1).mean(axis=axes) / count
        # The mean without one replicate, for each of them (the jackknife).
        without = mean + (mean - fields) / (count - 1)
        roots = np.sqrt(np.square(without).mean(axis=tuple(axis + 1 for axis in axes)))
        error = np.sqrt((count - 1) * roots.var(axis=0))
        return cls(np.sqrt(np.maximum(square, 0.0)), error)

    @classmethod
    def of_square(cls, square: Array, error: Array) -> Amplitude:
        """Take it from its square and the standard error of that; not negative."""
        value = np.sqrt(square)
        return cls(value, np.divide(error, 2 * value, where=value > 0, out=0 * value))

    def with_error(self, error: Array) -> Amplitude:
        """Add another source of error, as root-sum-square."""
        return Amplitude(self.value, np.hypot(self.uncertainty, error))


class Amplitudes(NamedTuple):
    """The amplitudes of one term.

    Attributes
    ----------
    hidden, output : Amplitude or None
        Of the hidden state at the last layer, and of the outputs.
    hidden_at : Amplitude or None
        Of the hidden state at `changes.DEPTHS`, shape (K, n).
    """

    hidden: Amplitude | None = None
    output: Amplitude | None = None
    hidden_at: Amplitude | None = None
