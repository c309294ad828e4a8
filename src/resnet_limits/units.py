"""Residual units: the map g, its derivative, and how many weight vectors it needs.

A unit reads ``a`` projections of the residual stream and writes along ``c`` directions
(docs/concepts/scaling.md). Every solver and network sees a unit only through this module,
with arrays laid out as ``(..., vectors, rows)``, where the rows are the samples, or for data with
tokens the (sample, token) pairs with the token index running fastest. A new block type is one
class here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from resnet_limits.config import InputError

_SQRT_2 = math.sqrt(2.0)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


@dataclass(frozen=True)
class Activation:
    """A pointwise activation and its derivative.

    Attributes
    ----------
    function : callable
        ``p -> g(p)``, elementwise.
    derivative : callable
        ``(p, g) -> g'(p)``; the value ``g`` is given so that it need not be computed again.
    is_linear, is_odd : bool
        Properties that the quadrature over units makes use of.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    is_linear: bool = False
    is_odd: bool = False


def _normal_cdf(p: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-p / _SQRT_2)


def _gelu_derivative(p: Tensor, _g: Tensor) -> Tensor:
    return _normal_cdf(p) + p * torch.exp(-0.5 * p * p) * _INV_SQRT_2PI


def _silu_derivative(p: Tensor, g: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(p)
    return sigmoid + g * (1.0 - sigmoid)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(
        lambda p: p, lambda p, _g: torch.ones_like(p), is_linear=True, is_odd=True
    ),
    "tanh": Activation(torch.tanh, lambda _p, g: 1.0 - g * g, is_odd=True),
    # erf without a rescaled argument, as torch and scipy define it.
    "erf": Activation(
        torch.erf,
        lambda p, _g: (2.0 / math.sqrt(math.pi)) * torch.exp(-p * p),
        is_odd=True,
    ),
    "relu": Activation(torch.relu, lambda p, _g: (p > 0).to(p.dtype)),
    "gelu": Activation(lambda p: p * _normal_cdf(p), _gelu_derivative),
    "silu": Activation(torch.nn.functional.silu, _silu_derivative),
}


class Unit(Protocol):
    """What solvers and networks need to know of a residual unit.

    Attributes
    ----------
    in_vectors, out_vectors : int
        ``a`` and ``c``: the number of in- and out-vectors of one unit.
    is_linear : bool
        True if g is linear, so that all expectations over units are of second moments.
    is_odd : bool
        True if g(-p) = -g(p).
    """

    in_vectors: int
    out_vectors: int
    is_linear: bool
    is_odd: bool

    def forward(self, p: Tensor) -> Tensor:
        """Map pre-activations ``(..., a, rows)`` to ``g(p)`` of shape ``(..., c, rows)``."""
        ...

    def backward(self, p: Tensor, g: Tensor, r: Tensor) -> Tensor:
        """Return ``Dg(p)^T r``, shape ``(..., a, rows)``, for cotangents r ``(..., c, rows)``."""
        ...


class Perceptron:
    """Unit of a two-layer perceptron block: one in-vector, one out-vector, pointwise g.

    Parameters
    ----------
    activation : str
        A key of :data:`ACTIVATIONS`.

    Raises
    ------
    InputError
        If the activation is unknown.
    """

    in_vectors = 1
    out_vectors = 1

    def __init__(self, activation: str) -> None:
        if activation not in ACTIVATIONS:
            raise InputError(
                f"model.unit.activation: unknown activation {activation!r}; "
                f"allowed: {', '.join(ACTIVATIONS)}"
            )
        self.activation = ACTIVATIONS[activation]
        # Properties of the activation are the unit's only if its map is the activation alone: a
        # subclass with a map of its own says itself what holds for it.
        methods = ("forward", "backward")
        own = all(getattr(type(self), name) is getattr(Perceptron, name) for name in methods)
        self.is_linear = own and self.activation.is_linear
        self.is_odd = own and self.activation.is_odd

    def forward(self, p: Tensor) -> Tensor:
        """Map pre-activations ``(..., 1, rows)`` to activations of the same shape."""
        return self.activation.function(p)

    def backward(self, p: Tensor, g: Tensor, r: Tensor) -> Tensor:
        """Return ``g'(p) r``, shape ``(..., 1, rows)``."""
        return self.activation.derivative(p, g) * r


def make_unit(kind: str, **options: object) -> Unit:
    """Build the unit that an experiment names.

    Parameters
    ----------
    kind : str
        A key of :data:`UNITS`.
    **options
        The other keys of the experiment's ``model.unit`` section.

    Raises
    ------
    InputError
        If the kind is not implemented.
    """
    if kind not in UNITS:
        raise InputError(
            f"model.unit.kind: unit {kind!r} is not available; allowed: {', '.join(UNITS)}"
        )
    return UNITS[kind](**options)


UNITS: dict[str, Callable[..., Unit]] = {"perceptron": Perceptron}
