"""Dense passes in compiled code against products and units that are called one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.kinds import Shape
from resnet_limits.networks import passes, products
from resnet_limits.networks.dense import DenseNetwork
from resnet_limits.norms import make_norm
from resnet_limits.problem import Loss
from resnet_limits.units import AttentionHead, GatedPerceptron, Perceptron

STEPS, TOKENS = 4, 2
LAYERS = {
    "tanh": (Branch(Perceptron("tanh"), rate_in=0.2, rate_out=0.3),),
    "gated": (Branch(GatedPerceptron(), rate_in=0.02, rate_out=0.03),),
    "transformer": (
        Branch(AttentionHead(2, True, TOKENS), make_norm("rms"), rate_in=0.2, rate_out=0.3),
        Branch(Perceptron("gelu"), make_norm("rms"), 2.0, 0.7, rate_in=0.2, rate_out=0.3),
    ),
}
# Fewer units than a tile; more than one.
SHAPES = [Shape(3, 7, 9), Shape(2, 150, 400)]


def trained(layer, shape, kept, *, whole):
    """Outputs of all states and the last cotangents."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 2 * TOKENS, 3))
    problem = Dynamics(x, y, Loss("squared_error"), layer, STEPS)
    network = DenseNetwork(
        problem, shape, [0, 1], rng.standard_normal((2, shape[2], 6)), 0, kept=kept
    )
    for branch in network.branches:
        assert branch.passes is not None
        if not whole:
            branch.passes = None
            layers, seeds, rows, vectors = branch.at.g.shape
            units = vectors // branch.unit.out_vectors
            beside = layers, seeds, units, branch.unit.kept_vectors, rows
            branch.beside = branch.at.g.new_zeros(beside)
    outputs = []
    for step in range(STEPS):
        outputs.append(network.forward_pass())
        cotangent = problem.cotangent(outputs[-1], network.targets, step)
        network.backward_pass(cotangent, update=step + 1 < STEPS)
    return torch.stack(outputs), network.backward


# What takes steps as factors, or is shared by threads, is compiled apart, which takes long.
@pytest.mark.parametrize(
    ("name", "shape", "kept", "shared"),
    [
        *(("tanh", shape, kept, False) for shape in range(len(SHAPES)) for kept in (0, STEPS - 1)),
        ("gated", 0, 0, False),
        ("transformer", 0, 0, False),
        ("transformer", 0, 0, True),
    ],
)
def test_passes_are_their_parts(name, shape, kept, shared, monkeypatch):
    if shared:
        monkeypatch.setattr(products, "_SHARED_FROM", 0)
    compiled = trained(LAYERS[name], SHAPES[shape], kept, whole=True)
    parts = trained(LAYERS[name], SHAPES[shape], kept, whole=False)
    for got, right in zip(compiled, parts, strict=True):
        assert right.abs().max() > 1e-2
        torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-12)


def test_passes_of_different_units_are_kept_apart():
    """The codes of units without numbers of their own are equal, as tuples are."""
    tanh, gelu = (Perceptron(name).compiled for name in ("tanh", "gelu"))
    assert tanh == gelu
    made = [passes.shared(code)[0] for code in (tanh, gelu, tanh)]
    assert made[0] is made[2]
    assert made[0] is not made[1]
    assert made[0].__qualname__ != made[1].__qualname__


def test_the_order_of_branches_would_be_noticed():
    """The negative control."""
    layer = LAYERS["transformer"]
    right, wrong = (trained(x, SHAPES[0], 0, whole=True)[0] for x in (layer, layer[::-1]))
    assert (right - wrong).abs().max() > 1e-3
