"""Norms that a branch reads the residual stream through, and the one before the unembedding.

A norm here depends on a state only through its mean square, ``u = h phi(|h|^2 / D)``. Then it does
the same to the states of the infinite-size problem, whose squares are sums
(docs/concepts/scaling.md). A new norm is one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from resnet_limits.config import InputError

RMS_EPSILON = 1e-6
"""Added to the mean square, so that a state of zeros is left as it is."""


class Norm(ABC):
    """A map ``u = h phi(q)``, with q the mean square of h over its coordinates.

    Both methods take the axis of the coordinates and the weight of one in the mean: 1 / D for a
    network's states, 1 for the states w of the infinite-size problem, as ``|w|^2 = |h|^2 / D``.

    Attributes
    ----------
    is_identity : bool
        True if u is h, so that nothing needs to be computed.
    """

    is_identity = False

    @abstractmethod
    def factor(self, q: Tensor) -> Tensor:
        """Give phi(q), elementwise."""

    @abstractmethod
    def slope(self, q: Tensor) -> Tensor:
        """Give phi'(q), elementwise."""

    def forward(self, h: Tensor, axis: int, weight: float) -> Tensor:
        """Give u.

        Parameters
        ----------
        h : Tensor
            States.
        axis : int
            The axis of the coordinates.
        weight : float
            Weight of a coordinate in the mean square.

        Returns
        -------
        Tensor, the shape of `h`
        """
        if self.is_identity:
            return h
        return h * self.factor(weight * h.square().sum(axis, keepdim=True))

    def pull_back(self, h: Tensor, v: Tensor, axis: int, weight: float) -> Tensor:
        """Give ``J^T v``, with J the derivative of u with respect to h.

        Parameters
        ----------
        h, axis, weight
            As for `forward`.
        v : Tensor, the shape of `h`
            Cotangents of u.

        Returns
        -------
        Tensor, the shape of `h`
        """
        if self.is_identity:
            return v
        q = weight * h.square().sum(axis, keepdim=True)
        along = weight * (h * v).sum(axis, keepdim=True)
        return self.factor(q) * v + (2.0 * self.slope(q) * along) * h


class Identity(Norm):
    """No norm: u = h."""

    is_identity = True

    def factor(self, q: Tensor) -> Tensor:
        """Give 1."""
        return q.new_ones(q.shape)

    def slope(self, q: Tensor) -> Tensor:
        """Give 0."""
        return q.new_zeros(q.shape)


class RMS(Norm):
    """Division by the root mean square, ``u = h / sqrt(|h|^2 / D + RMS_EPSILON)``."""

    def factor(self, q: Tensor) -> Tensor:
        """Give ``(q + RMS_EPSILON)^(-1/2)``."""
        return (q + RMS_EPSILON).rsqrt()

    def slope(self, q: Tensor) -> Tensor:
        """Give ``-(q + RMS_EPSILON)^(-3/2) / 2``."""
        return -0.5 * (q + RMS_EPSILON).pow(-1.5)


NORMS: dict[str, type[Norm]] = {"none": Identity, "rms": RMS}


def make_norm(kind: str) -> Norm:
    """Build the norm that an experiment names.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if kind not in NORMS:
        raise InputError(f"norm {kind!r} is not available; allowed: {', '.join(NORMS)}")
    return NORMS[kind]()
