"""Units in compiled code: their maps on tiles of many units, for kernels to call.

A tile holds numbers of as many units as fit a core's first cache, ``(vectors, rows, lanes)`` with a
lane for each unit, innermost and contiguous: loops over lanes become vector code. What a kernel
calls is chosen by the type of the unit's :attr:`~resnet_limits.units.Unit.compiled` while the
kernel is compiled, so that it holds the code of one kind of unit. A new unit's code is registered
here under such a type.

Numbers are float32 or float64, and so is the arithmetic. Relative errors of activations are a few
units in the last place, for the normal distribution's tail times the square of the argument; NaN
and infinity keep their meaning, which the detection of divergence needs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial, inf, log, pi, sqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from resnet_limits.units import (
    AttentionCode,
    ConvolutionCode,
    ErfCode,
    GatedCode,
    GeluCode,
    LinearCode,
    PerceptronCode,
    ReluCode,
    SiluCode,
    TanhCode,
)

OPTIONS: Any = {"error_model": "numpy", "fastmath": {"contract"}}
"""How all of this is compiled: products and sums are joined, and nothing else is changed."""
INNER: Any = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""For what only compiled functions call, without code to call it from elsewhere."""
APART: Any = {**INNER, "forceinline": False}
"""For functions that call :func:`apart`: numba passes "forceinline" on to what is called."""


@intrinsic
def apart(_: Any) -> Any:
    """Keep the function that calls this out of its callers, so that it is compiled once."""

    def write(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), write


def _polynomial(double: tuple[float, ...], single: tuple[float, ...] | None = None) -> Any:
    """Make a function of a number x: the polynomial in x, of the type of x.

    Coefficients, of float64 and of float32, begin with that of the highest power.
    """
    coefficients = {types.float64: double, types.float32: single or double}

    @intrinsic
    def evaluate(_: Any, x: Any) -> Any:
        def write(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            (at,) = arguments
            first, *others = (ir.Constant(at.type, number) for number in coefficients[x])
            total = first
            for other in others:
                total = builder.fma(total, at, other)
            return total

        return x(x), write

    return evaluate


def _constant(double: float, single: float | None = None) -> Any:
    """Make a function of x: a constant of the type of x, which a plain number would widen."""
    return _polynomial((double,), None if single is None else (single,))


@intrinsic
def _power_of_two(_: Any, shifted: Any) -> Any:
    """``2^n`` for ``n + _ROUND``, n in the range of exponents: n is its last bits."""
    bits, mantissa = {types.float64: (64, 52), types.float32: (32, 23)}[shifted]
    one = (1 << (bits - mantissa - 2)) - 1 << mantissa

    def write(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(bits)
        moved = builder.shl(builder.bitcast(arguments[0], kind), kind(mantissa))
        return builder.bitcast(builder.add(moved, kind(one)), arguments[0].type)

    return shifted(shifted), write


_ZERO, _HALF, _ONE, _TWO = (_constant(number) for number in (0.0, 0.5, 1.0, 2.0))
_INFINITY = _constant(inf)

# --- exponentials ---------------------------------------------------------------------------------

# Numbers from here on are whole.
_ROUND = _constant(1.5 * 2.0**52, 1.5 * 2.0**23)
_LOG2_E = _constant(1.0 / log(2.0))
# Their products with n are exact.
_LN2_HIGH = _constant(float.fromhex("0x1.62e42feep-1"), 0.693359375)
_LN2_LOW = _constant(float.fromhex("0x1.a39ef35793c76p-33"), -2.12194440054690583e-4)
_LEAST, _MOST = _constant(-708.3, -87.3), _constant(709.3, 88.3)
# Taylor's series of e^r and of (e^r - 1) / r, for |r| <= ln(2) / 2.
_EXP = _polynomial(
    tuple(1.0 / factorial(k) for k in range(13, -1, -1)),
    tuple(1.0 / factorial(k) for k in range(7, -1, -1)),
)
_EXPM1 = _polynomial(
    tuple(1.0 / factorial(k) for k in range(14, 0, -1)),
    tuple(1.0 / factorial(k) for k in range(8, 0, -1)),
)


@njit(**INNER)
def _reduce(x):
    """Give ``n + _ROUND`` and r of ``x = n ln(2) + r``."""
    shifted = x * _LOG2_E(x) + _ROUND(x)
    n = shifted - _ROUND(x)
    return shifted, (x - n * _LN2_HIGH(x)) - n * _LN2_LOW(x)


@njit(**INNER)
def _exp(x):
    """``e^x``; 0 where it is too small for a normal number."""
    shifted, r = _reduce(x)
    y = _EXP(r) * _power_of_two(shifted)
    y = _ZERO(x) if x < _LEAST(x) else y
    return _INFINITY(x) if x > _MOST(x) else y


# The rational function of degree 13 over 6 that float32 libraries (Eigen, XLA) use for tanh:
# numerator over x and denominator, in x^2.
_TANH_END = _constant(22.0, 7.90531110763549805)
_TANH_TOP = (
    *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
    *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
)
_TANH_BOTTOM = (
    *(1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)
_TANH_TOP_OF, _TANH_BOTTOM_OF = _polynomial(_TANH_TOP), _polynomial(_TANH_BOTTOM)


def _tanh(x: float) -> float:
    raise NotImplementedError


@overload(_tanh, jit_options=INNER)
def _tanh_of(x):
    def single(x):
        # Written so that NaN stays NaN.
        x = _TANH_END(x) if x > _TANH_END(x) else x
        x = -_TANH_END(x) if x < -_TANH_END(x) else x
        y = x * x
        return _TANH_TOP_OF(y) * x / _TANH_BOTTOM_OF(y)

    def double(x):
        y = abs(x)
        y = _TANH_END(x) if y > _TANH_END(x) else y
        shifted, r = _reduce(y + y)
        power: Any = _power_of_two(shifted)
        # e^(2 y) - 1, without cancellation.
        change = power * (r * _EXPM1(r)) + (power - _ONE(x))
        y = change / (change + _TWO(x))
        return -y if x < _ZERO(x) else y

    return single if x == types.float32 else double


# erfc(x) e^(x^2) (x + 3), smooth in 1 / (x + 3): interpolated at Chebyshev's nodes up to the end,
# beyond which e^(-x^2) is zero. The argument goes from -1 to 1.
_THREE = _constant(3.0)
_ERFC_END = _constant(28.0, 10.5)
_ERFC_START = _constant(1.2142857142857142, 1.5714285714285714)
_ERFC_SLOPE = _constant(6.642857142857143, 7.714285714285714)
_ERFC = _polynomial(
    (
        *(-3.526876247758377e-10, 6.156004360075147e-10, 4.897819263535924e-09),
        *(-3.920932803945718e-09, -4.0891271578405913e-08, -3.46833929284874e-09),
        *(2.851019368566791e-07, 2.4519961810328205e-07, -1.958791517466383e-06),
        *(-2.8326724148042985e-06, 1.515730827693261e-05, 2.379716136499551e-05),
        *(-0.0001448631964861782, -0.00011834341421071522, 0.0016451551101703539),
        *(-0.0018399227780314205, -0.01533047955107854, 0.08801265552110618),
        *(-0.2646950789541295, 0.5607284216214279, -0.9093677502357113, 1.1653164165801329),
    ),
    (
        *(-3.470084542531365e-05, 2.2653640258607286e-05, 0.0005804566472352591),
        *(-0.001414170287509433, -0.006209911847845377, 0.05386782643187841),
        *(-0.20204729540054664, 0.5054173058260689, -0.9312182300475048, 1.303176707787711),
    ),
)
# erf(x) / x in x^2, interpolated likewise up to the limit, from which 1 - erfc(x) is as accurate.
_ERF_LIMIT = _constant(0.65)
_ERF = _polynomial(
    (
        *(1.2220982889794602e-08, -1.6114976987186543e-07, 1.644812562737759e-06),
        *(-1.4925162650006643e-05, 0.0001205532202098794, -0.0008548326864938173),
        *(0.005223977624011282, -0.026866170645055833, 0.11283791670954922),
        *(-0.3761263890318375, 1.1283791670955126),
    ),
    (
        *(-0.000716019378151808, 0.005160076890408987, -0.026852381028529416),
        *(0.11283656194519352, -0.376126340156796, 1.128379166808923),
    ),
)
_TWO_OVER_SQRT_PI = _constant(2.0 / sqrt(pi))
_INV_SQRT_2, _INV_SQRT_2PI = _constant(sqrt(0.5)), _constant(1.0 / sqrt(2.0 * pi))


@njit(**INNER)
def _erfc(x):
    """Give erfc(x) and ``e^(-x^2)``, for x >= 0."""
    bell = _exp(-(x * x))
    y = _ERFC_END(x) if x > _ERFC_END(x) else x
    inverse = _ONE(x) / (y + _THREE(x))
    return bell * (_ERFC(_ERFC_START(x) - _ERFC_SLOPE(x) * inverse) * inverse), bell


# --- activations ----------------------------------------------------------------------------------

_ACTIVATIONS: dict[type, Callable[..., Any]] = {}
_FORWARD: dict[type, Callable[..., Any]] = {}
_BACKWARD: dict[type, Callable[..., Any]] = {}
_KEPT: dict[type, Callable[..., Any]] = {}
_SLOPES: dict[type, Callable[..., Any]] = {}


def _registered(table: dict[type, Callable[..., Any]], kind: type) -> Callable[..., Any]:
    """Return a decorator that enters a function under a type of code."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        table[kind] = function
        return function

    return enter


def activate(code: Any, x: float) -> tuple[float, float]:
    """Give an activation and its derivative at x; for compiled code.

    Parameters
    ----------
    code : NamedTuple
        Of the activation.
    x : float
        Of float32 or float64.
    """
    raise NotImplementedError


@overload(activate, jit_options=INNER)
def _activate_of(code, x):
    return _ACTIVATIONS[code.instance_class]


@_registered(_ACTIVATIONS, LinearCode)
def _linear(code, x):
    return x, _ONE(x)


@_registered(_ACTIVATIONS, TanhCode)
def _of_tanh(code, x):
    g = _tanh(x)
    return g, _ONE(x) - g * g


@_registered(_ACTIVATIONS, ReluCode)
def _of_relu(code, x):
    return (_ZERO(x) if x < _ZERO(x) else x), (_ONE(x) if x > _ZERO(x) else _ZERO(x))


@_registered(_ACTIVATIONS, ErfCode)
def _of_erf(code, x):
    y = abs(x)
    rest, bell = _erfc(y)
    g = y * _ERF(y * y) if y < _ERF_LIMIT(x) else _ONE(x) - rest
    return (-g if x < _ZERO(x) else g), _TWO_OVER_SQRT_PI(x) * bell


@_registered(_ACTIVATIONS, GeluCode)
def _of_gelu(code, x):
    rest, bell = _erfc(abs(x) * _INV_SQRT_2(x))
    rest *= _HALF(x)
    below = rest if x < _ZERO(x) else _ONE(x) - rest
    return x * below, below + x * bell * _INV_SQRT_2PI(x)


@_registered(_ACTIVATIONS, SiluCode)
def _of_silu(code, x):
    sigmoid = _ONE(x) / (_ONE(x) + _exp(-x))
    g = x * sigmoid
    return g, sigmoid + g * (_ONE(x) - sigmoid)


def slope_is_of_value(code: Any) -> bool:
    """Whether :func:`slope_of_value` knows an activation; for compiled code, a constant there."""
    raise NotImplementedError


def slope_of_value(code: Any, g: float) -> float:
    """Give the derivative where an activation's value is g; for compiled code."""
    raise NotImplementedError


@overload(slope_is_of_value, jit_options=INNER)
def _slope_is_of_value_of(code):
    known = code.instance_class in _SLOPES
    return lambda code: known


@overload(slope_of_value, jit_options=INNER)
def _slope_of_value_of(code, g):
    return _SLOPES.get(code.instance_class, lambda code, g: g)


@_registered(_SLOPES, LinearCode)
def _linear_slope(code, g):
    return _ONE(g)


@_registered(_SLOPES, TanhCode)
def _tanh_slope(code, g):
    return _ONE(g) - g * g


@_registered(_SLOPES, ReluCode)
def _relu_slope(code, g):
    return _ONE(g) if g > _ZERO(g) else _ZERO(g)


# --- units ----------------------------------------------------------------------------------------


def kept(code: Any) -> int:
    """Give how many vectors :func:`forward` writes beside g; for compiled code.

    Parameters
    ----------
    code : NamedTuple
        Of the unit.
    """
    raise NotImplementedError


def forward(code: Any, p: Any, values: Any, lanes: int) -> None:
    """Map a tile of pre-activations; for compiled code.

    Parameters
    ----------
    code : NamedTuple
        Of the unit.
    p : ndarray, shape (a, rows, at least lanes)
    values : ndarray, shape (c + kept, rows, at least lanes)
        Receives g, then what :func:`backward` needs of it.
    lanes : int
        How many lanes count. A constant of the caller makes loops without ends.
    """
    raise NotImplementedError


def backward(code: Any, p: Any, values: Any, r: Any, lanes: int) -> None:
    """Pull cotangents of a tile back; for compiled code.

    Parameters
    ----------
    code : NamedTuple
        Of the unit.
    p : ndarray, shape (a, rows, at least lanes)
        The pre-activations, over which ``Dg(p)^T r`` is written.
    values : ndarray, shape (c + kept, rows, at least lanes)
        What :func:`forward` gave for p.
    r : ndarray, shape (c, rows, at least lanes)
        Cotangents of g.
    lanes : int
        How many lanes count.
    """
    raise NotImplementedError


@overload(kept, jit_options=INNER)
def _kept_of(code):
    return _KEPT[code.instance_class]


# The number of lanes is a constant where it is one of the caller.
_INLINE: Any = {"jit_options": {**INNER, "forceinline": True}}


@overload(forward, **_INLINE)
def _forward_of(code, p, values, lanes):
    return _FORWARD[code.instance_class]


@overload(backward, **_INLINE)
def _backward_of(code, p, values, r, lanes):
    return _BACKWARD[code.instance_class]


@_registered(_KEPT, PerceptronCode)
def _perceptron_kept(code):
    return 0 if slope_is_of_value(code.activation) else 1


@_registered(_FORWARD, PerceptronCode)
def _perceptron_forward(code, p, values, lanes):
    act = code.activation
    for row in range(p.shape[1]):
        if slope_is_of_value(act):
            for t in range(lanes):
                values[0, row, t] = activate(act, p[0, row, t])[0]
        else:
            for t in range(lanes):
                values[0, row, t], values[1, row, t] = activate(act, p[0, row, t])


@_registered(_BACKWARD, PerceptronCode)
def _perceptron_backward(code, p, values, r, lanes):
    act = code.activation
    for row in range(p.shape[1]):
        if slope_is_of_value(act):
            for t in range(lanes):
                p[0, row, t] = slope_of_value(act, values[0, row, t]) * r[0, row, t]
        else:
            for t in range(lanes):
                p[0, row, t] = values[1, row, t] * r[0, row, t]


@_registered(_KEPT, GatedCode)
def _gated_kept(code):
    return 2


@_registered(_FORWARD, GatedCode)
def _gated_forward(code, p, values, lanes):
    rows = p.shape[1]
    for row in range(rows):
        for t in range(lanes):
            gate, slope = activate(code.activation, p[0, row, t])
            values[0, row, t] = gate * p[1, row, t]
            values[1, row, t] = gate
            values[2, row, t] = slope


@_registered(_BACKWARD, GatedCode)
def _gated_backward(code, p, values, r, lanes):
    rows = p.shape[1]
    for row in range(rows):
        for t in range(lanes):
            p[0, row, t] = values[2, row, t] * p[1, row, t] * r[0, row, t]
            p[1, row, t] = values[1, row, t] * r[0, row, t]


# Attention has many loops, each of which takes time to compile: it is compiled once, and not into
# its callers. Indices without a sign need no test for negative ones, and arrays are indexed whole,
# since each view would be counted as a user of its array.


@_registered(_KEPT, AttentionCode)
def _attention_kept(code):
    return code.tokens


@_registered(_FORWARD, AttentionCode)
def _attention_forward(code, p, values, lanes):
    _attend(code, p, values, lanes)


@_registered(_BACKWARD, AttentionCode)
def _attention_backward(code, p, values, r, lanes):
    _attend_back(code, p, values, r, lanes)


@njit(**APART)
def _attend(code, p, values, lanes):
    """Keep the weight of token j for row i at ``values[key_dim + j, i]``."""
    apart()
    size, tokens, lanes = np.uint64(code.key_dim), np.uint64(code.tokens), np.uint64(lanes)
    one, scale = p.dtype.type(1), p.dtype.type(1.0 / np.sqrt(code.key_dim))
    for i in range(np.uint64(p.shape[1])):
        first = i // tokens * tokens
        seen = i - first + np.uint64(1) if code.causal else tokens
        for j in range(size + tokens):
            for t in range(lanes):
                values[j, i, t] = 0
        # First the largest logit, then the sum of the exponentials, are in the place of g.
        norm = np.uint64(0)
        for j in range(seen):
            for k in range(size):
                for t in range(lanes):
                    values[size + j, i, t] += scale * p[k, i, t] * p[size + k, first + j, t]
            for t in range(lanes):
                weight = values[size + j, i, t]
                if j == 0 or weight > values[norm, i, t]:
                    values[norm, i, t] = weight
        for j in range(seen):
            for t in range(lanes):
                values[size + j, i, t] = _exp(values[size + j, i, t] - values[norm, i, t])
        for t in range(lanes):
            values[norm, i, t] = 0
        for j in range(seen):
            for t in range(lanes):
                values[norm, i, t] += values[size + j, i, t]
        for t in range(lanes):
            values[norm, i, t] = one / values[norm, i, t]
        for j in range(seen):
            for t in range(lanes):
                values[size + j, i, t] *= values[norm, i, t]
        for k in range(size):
            for t in range(lanes):
                values[k, i, t] = 0
            for j in range(seen):
                for t in range(lanes):
                    values[k, i, t] += values[size + j, i, t] * p[size + size + k, first + j, t]


@njit(**APART)
def _attend_back(code, p, values, r, lanes):
    apart()
    size, tokens, lanes = np.uint64(code.key_dim), np.uint64(code.tokens), np.uint64(lanes)
    scale = p.dtype.type(1.0 / np.sqrt(code.key_dim))
    vectors = size + size + size
    change = np.empty((3 * code.key_dim, code.tokens, p.shape[2]), p.dtype)
    # Cotangents of the weights, then of the logits; last their mean, by the weights.
    cotangents = np.empty((code.tokens + 1, p.shape[2]), p.dtype)
    for first in range(np.uint64(0), np.uint64(p.shape[1]), tokens):
        for k in range(vectors):
            for j in range(tokens):
                for t in range(lanes):
                    change[k, j, t] = 0
        for token in range(tokens):
            i = first + token
            seen = token + np.uint64(1) if code.causal else tokens
            for j in range(tokens + np.uint64(1)):
                for t in range(lanes):
                    cotangents[j, t] = 0
            for j in range(seen):
                for k in range(size):
                    v = size + size + k
                    for t in range(lanes):
                        cotangents[j, t] += r[k, i, t] * p[v, first + j, t]
                        change[v, j, t] += r[k, i, t] * values[size + j, i, t]
                for t in range(lanes):
                    cotangents[tokens, t] += values[size + j, i, t] * cotangents[j, t]
            for j in range(seen):
                for t in range(lanes):
                    weight = scale * values[size + j, i, t]
                    cotangents[j, t] = weight * (cotangents[j, t] - cotangents[tokens, t])
                for k in range(size):
                    for t in range(lanes):
                        change[k, token, t] += cotangents[j, t] * p[size + k, first + j, t]
                        change[size + k, j, t] += cotangents[j, t] * p[k, i, t]
        for k in range(vectors):
            for j in range(tokens):
                for t in range(lanes):
                    p[k, first + j, t] = change[k, j, t]


@_registered(_KEPT, ConvolutionCode)
def _convolution_kept(code):
    return 1


@_registered(_FORWARD, ConvolutionCode)
def _convolution_forward(code, p, values, lanes):
    rows = p.shape[1]
    for i in range(rows):
        token = i % code.tokens
        total, slope = values[0, i], values[1, i]
        total[:] = 0
        for j in range(len(code.offsets)):
            if 0 <= token + code.offsets[j] < code.tokens:
                seen = p[j, i + code.offsets[j]]
                for t in range(lanes):
                    total[t] += seen[t]
        for t in range(lanes):
            total[t], slope[t] = activate(code.activation, total[t])


@_registered(_BACKWARD, ConvolutionCode)
def _convolution_backward(code, p, values, r, lanes):
    rows = p.shape[1]
    for i in range(rows):
        token = i % code.tokens
        for j in range(len(code.offsets)):
            here = p[j, i]
            if 0 <= token - code.offsets[j] < code.tokens:
                slope = values[1, i - code.offsets[j]]
                cotangent = r[0, i - code.offsets[j]]
                for t in range(lanes):
                    here[t] = slope[t] * cotangent[t]
            else:
                here[:] = 0
