"""Compiled code of units against their own maps in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from resnet_limits import tiles
from resnet_limits.units import (
    ACTIVATIONS,
    AttentionHead,
    Convolution,
    GatedPerceptron,
    Perceptron,
    TanhCode,
)

TOKENS, ROWS, LANES = 3, 6, 37
UNITS = {
    **{name: Perceptron(name) for name in ACTIVATIONS},
    **{f"gated {name}": GatedPerceptron(name) for name in ("silu", "relu", "tanh")},
    "attention": AttentionHead(2, tokens=TOKENS),
    "causal attention": AttentionHead(3, causal=True, tokens=TOKENS),
    "causal attention of one": AttentionHead(1, causal=True, tokens=TOKENS),
    "convolution": Convolution((-1, 0, 2), "gelu", tokens=TOKENS),
    "convolution to the left": Convolution((-2,), tokens=TOKENS),
}
EPSILON = {np.float64: 2.0**-53, np.float32: 2.0**-24}


@njit
def both_ways(code, p, values, r, lanes):
    tiles.forward(code, p, values, lanes)
    tiles.backward(code, p, values, r, lanes)


@njit
def kept(code):
    return tiles.kept(code)


@njit
def activated(code, x, g, slope):
    for i in range(len(x)):
        g[i], slope[i] = tiles.activate(code, x[i])


def in_tiles(unit, p, r, code=None):
    """g and the cotangents of p, ``(vectors, rows, lanes)``, by the compiled code."""
    code = unit.compiled if code is None else code
    values = np.full((unit.out_vectors + kept(code), *p.shape[1:]), np.nan, p.dtype)
    change = p.copy()
    both_ways(code, change, values, r, LANES)
    return values[: unit.out_vectors], change


def by_torch(unit, p, r):
    p, r = (torch.from_numpy(x.astype(float)).permute(2, 0, 1) for x in (p, r))
    values = unit.forward(p)
    found = values[:, : unit.out_vectors], unit.backward(p, values, r)
    return [x.permute(1, 2, 0).numpy() for x in found]


def draw(unit, dtype, size=1.5):
    rng = np.random.default_rng(0)
    shapes = [(v, ROWS, LANES) for v in (unit.in_vectors, unit.out_vectors)]
    return [(size * rng.standard_normal(shape)).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", UNITS)
def test_a_tile_is_the_unit(name, dtype):
    unit = UNITS[name]
    p, r = draw(unit, dtype)
    for got, right in zip(in_tiles(unit, p, r), by_torch(unit, p, r), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, right, rtol=0, atol=50 * EPSILON[dtype])


def test_another_units_code_would_be_noticed():
    """The negative control: tokens that are seen, an offset, an activation."""
    for name, code in {
        "causal attention": AttentionHead(3, tokens=TOKENS).compiled,
        "convolution": Convolution((-1, 0, 1), "gelu", tokens=TOKENS).compiled,
        "erf": Perceptron("tanh").compiled,
    }.items():
        p, r = draw(UNITS[name], np.float64)
        pairs = zip(in_tiles(UNITS[name], p, r, code), by_torch(UNITS[name], p, r), strict=True)
        assert all(np.abs(got - right).max() > 1e-2 for got, right in pairs)


def everywhere(dtype):
    """Numbers of all sizes, dense where activations bend, and the edges of their pieces."""
    sizes = 10.0 ** np.linspace(-30, 4, 4001)
    edges = np.array([0.0, 0.65, 0.65 * np.sqrt(2), 7.90531, 10.5, 28.0, 87.3, 88.3, 708.3, 709.3])
    near = np.concatenate([edges, edges * (1 + 1e-7), edges * (1 - 1e-7), np.linspace(0, 12, 9001)])
    x = np.concatenate([sizes, near])
    return np.concatenate([-x, x]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_accurate_everywhere(name, dtype):
    x = everywhere(dtype)
    g, slope = np.empty_like(x), np.empty_like(x)
    activated(ACTIVATIONS[name].compiled, x, g, slope)
    exact = torch.from_numpy(x.astype(float))
    right = ACTIVATIONS[name].function(exact)
    slopes = ACTIVATIONS[name].derivative(exact, right)
    # The normal distribution's tail follows from the square of a rounded argument.
    square = np.minimum(x.astype(float) ** 2, 1500.0) * (name == "gelu")
    relative = (12 + 4 * square) * EPSILON[dtype]
    tiny = np.finfo(dtype).tiny * 1e3
    assert (np.abs(g - right.numpy()) <= relative * np.abs(right.numpy()) + tiny).all()
    # Slopes that are sums of several terms cancel.
    assert (np.abs(slope - slopes.numpy()) <= 20 * EPSILON[dtype]).all()
    if ACTIVATIONS[name].is_odd:
        np.testing.assert_array_equal(g[: len(x) // 2], -g[len(x) // 2 :])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", UNITS)
def test_what_is_not_finite_stays_so(name, dtype):
    """Where torch gives NaN or infinity, the compiled code gives one of them, and nowhere else."""
    unit = UNITS[name]
    for bad in (np.nan, np.inf, -np.inf):
        p, r = draw(unit, dtype)
        p[:, 1, ::3] = bad
        r[:, 4, 1::3] = bad
        for got, right in zip(in_tiles(unit, p, r), by_torch(unit, p, r), strict=True):
            # A masked softmax lets nothing through from tokens that are not seen, but NaN.
            seen = [np.isfinite(x).all((0, 1)) if "causal" in name else np.isfinite(x)
                    for x in (got, right)]  # fmt: skip
            np.testing.assert_array_equal(*seen)


def test_a_unit_with_a_map_of_its_own_has_no_code():
    class Doubled(Perceptron):
        def forward(self, p):
            return 2 * super().forward(p)

    class Plain(Perceptron):
        pass

    assert Doubled("tanh").compiled is None
    assert Plain("tanh").compiled == (TanhCode(),)
    for kind in (GatedPerceptron, AttentionHead, Convolution):
        own = type("Own", (kind,), {"forward": Perceptron.forward})
        arguments = {GatedPerceptron: ("silu",), AttentionHead: (2,), Convolution: ((0,),)}[kind]
        assert own(*arguments).compiled is None
        assert kind(*arguments).compiled is not None
