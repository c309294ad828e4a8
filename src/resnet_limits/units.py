"""Residual units: the map g, its derivative, and how many weight vectors it needs.

A unit reads ``a`` projections of the residual stream and writes along ``c`` directions
(docs/concepts/scaling.md). Every solver and network sees a unit only through this module,
with arrays laid out as ``(..., vectors, rows)``, where the rows are the samples, or for data with
tokens the (sample, token) pairs with the token index running fastest. A new unit is one class here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resnet_limits.config import InputError

_SQRT_2 = math.sqrt(2.0)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


class LinearCode(NamedTuple):
    """The identity, in compiled code (:mod:`resnet_limits.tiles`), as are those below."""


class TanhCode(NamedTuple):
    """tanh."""


class ErfCode(NamedTuple):
    """erf."""


class ReluCode(NamedTuple):
    """relu."""


class GeluCode(NamedTuple):
    """gelu."""


class SiluCode(NamedTuple):
    """silu."""


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
    is_smooth : bool
        Whether it has no kinks, so that derivatives of units may be taken twice.
    compiled : NamedTuple, optional
        Names its compiled code, where there is any.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    is_linear: bool = False
    is_odd: bool = False
    is_smooth: bool = True
    compiled: Any = None


def _normal_cdf(p: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-p / _SQRT_2)


def _gelu_derivative(p: Tensor, _g: Tensor) -> Tensor:
    return _normal_cdf(p) + p * torch.exp(-0.5 * p * p) * _INV_SQRT_2PI


def _silu_derivative(p: Tensor, g: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(p)
    return sigmoid + g * (1.0 - sigmoid)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(
        lambda p: p,
        lambda p, _g: torch.ones_like(p),
        is_linear=True,
        is_odd=True,
        compiled=LinearCode(),
    ),
    "tanh": Activation(torch.tanh, lambda _p, g: 1.0 - g * g, is_odd=True, compiled=TanhCode()),
    # erf without a rescaled argument, as torch and scipy define it.
    "erf": Activation(
        torch.erf,
        lambda p, _g: (2.0 / math.sqrt(math.pi)) * torch.exp(-p * p),
        is_odd=True,
        compiled=ErfCode(),
    ),
    "relu": Activation(
        torch.relu, lambda p, _g: (p > 0).to(p.dtype), is_smooth=False, compiled=ReluCode()
    ),
    "gelu": Activation(lambda p: p * _normal_cdf(p), _gelu_derivative, compiled=GeluCode()),
    "silu": Activation(torch.nn.functional.silu, _silu_derivative, compiled=SiluCode()),
}


class Unit(ABC):
    """What solvers and networks need to know of a residual unit.

    Attributes
    ----------
    in_vectors, out_vectors : int
        ``a`` and ``c``: the number of in- and out-vectors of one unit.
    kept_vectors : int
        Numbers that `forward` gives beside g, a row each, so that `backward` need not compute them
        again.
    is_linear : bool
        True if g is linear, so that all expectations over units are of second moments.
    is_odd : bool
        True if g(-p) = -g(p).
    is_smooth : bool
        True if automatic differentiation of `backward` gives its derivative: g has no kinks.
    tokens : int
        So many neighbouring rows the map mixes, those of a sample; 1 where each stands alone.
    compiled : NamedTuple or None
        Its type names the compiled code of the map (:mod:`resnet_limits.tiles`), its fields are
        what that needs to know; None where torch does the work.
    """

    in_vectors: int
    out_vectors: int
    kept_vectors: int = 0
    is_linear: bool = False
    is_odd: bool = False
    is_smooth: bool = False
    tokens: int = 1
    compiled: Any = None

    @abstractmethod
    def forward(self, p: Tensor) -> Tensor:
        """Map pre-activations ``(..., a, rows)`` to values ``(..., c + kept, rows)``, g first."""

    @abstractmethod
    def backward(self, p: Tensor, values: Tensor, r: Tensor) -> Tensor:
        """Return ``Dg(p)^T r``, shape ``(..., a, rows)``.

        Parameters
        ----------
        p : Tensor, shape (..., a, rows)
            Pre-activations.
        values : Tensor, shape (..., c + kept, rows)
            What `forward` gave for them.
        r : Tensor, shape (..., c, rows)
            Cotangents of g.
        """


def activation_of(name: str) -> Activation:
    """Look up an activation.

    Parameters
    ----------
    name : str
        A key of :data:`ACTIVATIONS`.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise InputError(
            f"unit.activation: unknown activation {name!r}; allowed: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def has_own_map(unit: Unit, kind: type[Unit]) -> bool:
    """Whether a unit's map is that of a class.

    What is known of the map of a class holds for a subclass only if that has no map of its own: it
    says itself what holds for it then.
    """
    methods = ("forward", "backward")
    return all(getattr(type(unit), name) is getattr(kind, name) for name in methods)


class PerceptronCode(NamedTuple):
    """Compiled code of :class:`Perceptron`."""

    activation: Any


class Perceptron(Unit):
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
        self.activation = activation_of(activation)
        own, code = has_own_map(self, Perceptron), self.activation.compiled
        self.is_linear = own and self.activation.is_linear
        self.is_odd = own and self.activation.is_odd
        self.is_smooth = own and self.activation.is_smooth
        if own and code is not None:
            self.compiled = PerceptronCode(code)

    def forward(self, p: Tensor) -> Tensor:
        """Map pre-activations ``(..., 1, rows)`` to activations of the same shape."""
        return self.activation.function(p)

    def backward(self, p: Tensor, values: Tensor, r: Tensor) -> Tensor:
        """Return ``g'(p) r``, shape ``(..., 1, rows)``."""
        return self.activation.derivative(p, values) * r


class GatedCode(NamedTuple):
    """Compiled code of :class:`GatedPerceptron`."""

    activation: Any


class GatedPerceptron(Unit):
    """Unit of a gated perceptron block: ``g(p_1, p_2) = act(p_1) p_2``.

    Parameters
    ----------
    activation : str
        A key of :data:`ACTIVATIONS`.

    Raises
    ------
    InputError
        If the activation is unknown.
    """

    in_vectors = 2
    out_vectors = 1
    kept_vectors = 1

    def __init__(self, activation: str = "silu") -> None:
        self.activation = activation_of(activation)
        own, code = has_own_map(self, GatedPerceptron), self.activation.compiled
        self.is_smooth = own and self.activation.is_smooth
        if own and code is not None:
            self.compiled = GatedCode(code)

    def forward(self, p: Tensor) -> Tensor:
        """Give g and the open gate ``act(p_1)``, shape ``(..., 2, rows)``."""
        gate = self.activation.function(p[..., :1, :])
        return torch.cat([gate * p[..., 1:, :], gate], dim=-2)

    def backward(self, p: Tensor, values: Tensor, r: Tensor) -> Tensor:
        """Return ``(act'(p_1) p_2 r, act(p_1) r)``, shape ``(..., 2, rows)``."""
        gate = values[..., 1:, :]
        slope = self.activation.derivative(p[..., :1, :], gate)
        return torch.cat([slope * p[..., 1:, :] * r, gate * r], dim=-2)


class AttentionCode(NamedTuple):
    """Compiled code of :class:`AttentionHead`."""

    key_dim: int
    tokens: int
    causal: bool


def _sum_of_products(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """``sum x y`` over pairs that broadcast."""
    (x, y), *others = pairs
    total = x * y
    for x, y in others:
        total.addcmul_(x, y)
    return total


def _joined(like: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Join vectors ``(..., vectors, samples, tokens)`` to ``(..., vectors, rows)``.

    Axes lie in memory in the order of those of `like`, ``(..., vectors, rows)``.
    """
    size = [*like.shape[:-2], sum(part.shape[-3] for part in parts), like.shape[-1]]
    strides = like.stride()
    order = sorted(range(like.dim()), key=lambda axis: -strides[axis])
    room = like.new_empty([size[axis] for axis in order])
    whole = room.permute([order.index(axis) for axis in range(like.dim())])
    start = 0
    for part in parts:
        stop = start + part.shape[-3]
        whole[..., start:stop, :].unflatten(-1, part.shape[-2:]).copy_(part)
        start = stop
    return whole


class AttentionHead(Unit):
    """An attention head: ``g_t = sum_t' softmax_t'(q_t . k_t' / sqrt(k)) v_t'``.

    Its 3k in-vectors are those of q, k and v, in this order, its k out-vectors those of the values.

    Parameters
    ----------
    key_dim : int
        k.
    causal : bool
        Whether a token sees itself and earlier ones alone.
    tokens : int
        Tokens of a sample.
    """

    def __init__(self, key_dim: int, causal: bool = False, tokens: int = 1) -> None:
        self.key_dim, self.causal, self.tokens = key_dim, causal, tokens
        self.in_vectors, self.out_vectors, self.kept_vectors = 3 * key_dim, key_dim, tokens
        self.scale = key_dim**-0.5
        # q and k change their signs together, so that the logits stay and v decides.
        self.is_odd = self.is_smooth = has_own_map(self, AttentionHead)
        if self.is_odd:
            self.compiled = AttentionCode(key_dim, tokens, causal)

    def _split(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give q, k and v, shape (..., k, samples, tokens)."""
        q, k, v = p.unflatten(-1, (-1, self.tokens)).split(self.key_dim, dim=-3)
        return q, k, v

    def forward(self, p: Tensor) -> Tensor:
        """Give g, then the weights ``softmax_t'`` of each token, ``(..., k + tokens, rows)``."""
        q, k, v = self._split(p)
        # Sums over the few components and tokens are spelled out: units lie side by side in memory.
        pairs = zip((self.scale * q).unbind(-3), k.unbind(-3), strict=True)
        logits = _sum_of_products((x[..., :, None], y[..., None, :]) for x, y in pairs)
        if self.causal:
            ones = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=p.device)
            logits = logits.masked_fill(ones.triu(1), -torch.inf)
        shares = (logits - reduce(torch.maximum, logits.unbind(-1))[..., None]).exp()
        weights = shares / reduce(torch.add, shares.unbind(-1))[..., None]
        seen = zip(weights[..., None, :, :, :].unbind(-1), v[..., None].unbind(-2), strict=True)
        return _joined(p, [_sum_of_products(seen), weights.movedim(-1, -3)])

    def backward(self, p: Tensor, values: Tensor, r: Tensor) -> Tensor:
        """Return the cotangents of q, k and v, shape ``(..., 3k, rows)``."""
        q, k, v = self._split(p)
        split = values.unflatten(-1, (-1, self.tokens))
        weights = split[..., self.key_dim :, :, :].movedim(-3, -1)
        rs = r.unflatten(-1, (-1, self.tokens))
        pairs = zip(rs.unbind(-3), v.unbind(-3), strict=True)
        of_weights = _sum_of_products((x[..., :, None], y[..., None, :]) for x, y in pairs)
        along = _sum_of_products(zip(weights.unbind(-1), of_weights.unbind(-1), strict=True))
        of_logits = self.scale * weights * (of_weights - along[..., None])

        def over(tokens: Tensor, axis: int, vectors: Tensor) -> Tensor:
            by_token = tokens[..., None, :, :, :].unbind(axis), vectors[..., None].unbind(-2)
            return _sum_of_products(zip(*by_token, strict=True))

        return _joined(p, [over(of_logits, -1, k), over(of_logits, -2, q), over(weights, -2, rs)])


class ConvolutionCode(NamedTuple):
    """Compiled code of :class:`Convolution`."""

    activation: Any
    offsets: tuple[int, ...]
    tokens: int


class Convolution(Unit):
    """A convolution over the tokens: ``g_t = act(sum_j p_(j, t + o_j))``, zero outside.

    Parameters
    ----------
    offsets : sequence of int
        ``o_1 .. o_a``, each smaller in size than the number of tokens.
    activation : str
        A key of :data:`ACTIVATIONS`.
    tokens : int
        Tokens of a sample.

    Raises
    ------
    InputError
        If the activation is unknown, or an offset goes beyond the tokens.
    """

    out_vectors = 1
    kept_vectors = 1

    def __init__(self, offsets: Sequence[int], activation: str = "tanh", tokens: int = 1) -> None:
        self.activation = activation_of(activation)
        self.offsets, self.tokens = tuple(offsets), tokens
        if beyond := [offset for offset in offsets if abs(offset) >= tokens]:
            raise InputError(
                f"unit.offsets: {beyond[0]} goes beyond the {tokens} tokens of a sample; "
                f"allowed: {1 - tokens} to {tokens - 1}"
            )
        self.in_vectors = len(self.offsets)
        own, code = has_own_map(self, Convolution), self.activation.compiled
        self.is_linear = own and self.activation.is_linear
        self.is_odd = own and self.activation.is_odd
        self.is_smooth = own and self.activation.is_smooth
        if own and code is not None:
            self.compiled = ConvolutionCode(code, self.offsets, tokens)

    def _shifted(self, values: Tensor, offset: int) -> Tensor:
        """Give ``values_(t + offset)``, zero outside, shape (..., samples, tokens)."""
        moved = torch.zeros_like(values)
        size = self.tokens - abs(offset)
        to, start = max(0, -offset), max(0, offset)
        moved[..., to : to + size] = values[..., start : start + size]
        return moved

    def forward(self, p: Tensor) -> Tensor:
        """Give g and the sums ``s_t = sum_j p_(j, t + o_j)``, shape ``(..., 2, rows)``."""
        split = p.unflatten(-1, (-1, self.tokens)).unbind(-3)
        moved = (self._shifted(q, o) for q, o in zip(split, self.offsets, strict=True))
        total = sum(moved, start=torch.zeros_like(split[0])).flatten(-2)[..., None, :]
        return torch.cat([self.activation.function(total), total], dim=-2)

    def backward(self, p: Tensor, values: Tensor, r: Tensor) -> Tensor:
        """Return ``act'(s_(t - o_j)) r_(t - o_j)``, shape ``(..., a, rows)``."""
        g, total = values[..., :1, :], values[..., 1:, :]
        change = (self.activation.derivative(total, g) * r).unflatten(-1, (-1, self.tokens))
        return torch.cat([self._shifted(change, -o) for o in self.offsets], dim=-3).flatten(-2)


def make_unit(kind: str, tokens: int | None = None, **options: Any) -> Unit:
    """Build the unit that an experiment names.

    Parameters
    ----------
    kind : str
        A key of :data:`UNITS`.
    tokens : int, optional
        Tokens of a sample, where the data have any.
    **options
        The other keys of the experiment's ``model.unit`` section.

    Raises
    ------
    InputError
        If the kind is not implemented, or needs tokens and there are none.
    """
    if kind not in UNITS:
        raise InputError(f"unit.kind: unit {kind!r} is not available; allowed: {', '.join(UNITS)}")
    if kind not in MIXES_TOKENS:
        return UNITS[kind](**options)
    if tokens is None:
        raise InputError(
            f"unit.kind: {kind} works on the tokens of a sample, and the data have none; "
            "allowed: data with tokens, or a unit that needs none"
        )
    return UNITS[kind](tokens=tokens, **options)


UNITS: dict[str, Callable[..., Unit]] = {
    "perceptron": Perceptron,
    "gated_perceptron": GatedPerceptron,
    "attention_head": AttentionHead,
    "convolution": Convolution,
}

MIXES_TOKENS = ("attention_head", "convolution")
"""Units that need to know the number of tokens."""
