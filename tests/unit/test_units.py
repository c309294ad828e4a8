"""The units' maps and derivatives against automatic differentiation and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.functional import jvp, vjp

from resnet_limits.config import ACTIVATIONS as NAMES
from resnet_limits.config import UNIT_KINDS, InputError
from resnet_limits.units import ACTIVATIONS, UNITS, Perceptron, make_unit

_REFERENCE = {
    "linear": lambda p: p,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}
_ODD = {"linear", "tanh", "erf"}


def _pre_activations(shape: tuple[int, ...] = (5, 1, 7), seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_config_and_units_name_the_same_things() -> None:
    assert set(UNIT_KINDS) == set(UNITS)
    assert set(NAMES) == set(ACTIVATIONS)
    assert set(_REFERENCE) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", NAMES)
def test_forward_is_the_named_activation(activation: str) -> None:
    p = _pre_activations()
    unit = make_unit("perceptron", activation=activation)
    torch.testing.assert_close(unit.forward(p), _REFERENCE[activation](p), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("activation", NAMES)
def test_backward_is_the_transposed_jacobian(activation: str) -> None:
    unit = make_unit("perceptron", activation=activation)
    p, r, v = (_pre_activations(seed=seed) for seed in (0, 1, 2))
    dp = unit.backward(p, unit.forward(p), r)
    expected = vjp(_REFERENCE[activation], p, r)[1]
    torch.testing.assert_close(dp, expected, rtol=1e-12, atol=1e-14)
    # <r, Dg v> = <Dg^T r, v>
    forward_mode = jvp(_REFERENCE[activation], p, v)[1]
    torch.testing.assert_close((r * forward_mode).sum(), (dp * v).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", NAMES)
def test_backward_agrees_with_finite_differences(activation: str) -> None:
    unit = make_unit("perceptron", activation=activation)
    p, step = _pre_activations(), 1e-5
    p = torch.where(p.abs() < 1e-2, 0.5, p)  # relu has no derivative at its kink
    slope = (unit.forward(p + step) - unit.forward(p - step)) / (2 * step)
    derivative = unit.backward(p, unit.forward(p), torch.ones_like(p))
    torch.testing.assert_close(derivative, slope, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("activation", NAMES)
def test_large_arguments_stay_finite(activation: str) -> None:
    p = torch.tensor([-300.0, -40.0, 0.0, 40.0, 300.0], dtype=torch.float64)
    unit = make_unit("perceptron", activation=activation)
    g = unit.forward(p)
    dp = unit.backward(p, g, torch.ones_like(p))
    assert torch.isfinite(g).all()
    assert torch.isfinite(dp).all()


@pytest.mark.parametrize("activation", NAMES)
def test_odd_and_linear_flags_say_what_the_map_does(activation: str) -> None:
    unit = make_unit("perceptron", activation=activation)
    p, q = _pre_activations(seed=0), _pre_activations(seed=1)
    odd = torch.allclose(unit.forward(-p), -unit.forward(p), rtol=1e-14, atol=0)
    linear = torch.allclose(
        unit.forward(2.0 * p - q), 2.0 * unit.forward(p) - unit.forward(q), rtol=1e-12
    )
    assert unit.is_odd == odd == (activation in _ODD)
    assert unit.is_linear == linear == (activation == "linear")


def test_vectors_and_batches_keep_their_shape() -> None:
    unit = make_unit("perceptron", activation="tanh")
    assert (unit.in_vectors, unit.out_vectors) == (1, 1)
    p = _pre_activations((2, 3, 1, 4))
    assert unit.forward(p).shape == p.shape
    assert unit.backward(p, unit.forward(p), torch.ones_like(p)).shape == p.shape


@pytest.mark.parametrize("activation", NAMES)
def test_float32_stays_float32(activation: str) -> None:
    unit = make_unit("perceptron", activation=activation)
    p = _pre_activations().float()
    assert unit.forward(p).dtype == torch.float32
    assert unit.backward(p, unit.forward(p), p).dtype == torch.float32


def test_unknown_names_are_input_errors() -> None:
    with pytest.raises(InputError, match="perceptron"):
        make_unit("head")
    with pytest.raises(InputError, match="linear, tanh, erf, relu, gelu, silu"):
        Perceptron("sine")
