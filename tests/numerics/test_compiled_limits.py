"""The limits' compiled kernel against what torch does in float64 with the same units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.limits import ensemble, kernels
from resnet_limits.limits.ensemble import Seen, Units
from resnet_limits.problem import Loss
from resnet_limits.rules import GradientDescent
from resnet_limits.units import AttentionHead, Convolution, GatedPerceptron, Perceptron

# Two nodes of two replicates; more points than two tiles, and not a whole number of them.
NODES, REPLICATES, R, ROWS, POINTS, TOKENS = 2, 2, 7, 6, 300, 3
UNITS = {
    **{name: Perceptron(name) for name in ("tanh", "relu", "gelu")},
    "gated": GatedPerceptron(),
    "attention": AttentionHead(2, causal=True, tokens=TOKENS),
    "convolution": Convolution((-1, 0), "erf", tokens=TOKENS),
}
RULES = {
    "sgd": GradientDescent(factors=(0.5, 1.0)),
    "decay": GradientDescent(decay=0.3),
    "momentum": GradientDescent(momentum=0.9, decay=0.1),
    "nesterov": GradientDescent(momentum=0.5, nesterov=True),
}


def draw(unit, points=POINTS):
    rng = np.random.default_rng(0)
    pairs = NODES * REPLICATES
    return [
        torch.from_numpy(rng.standard_normal((pairs, v, R, points)).astype(np.float32))
        for v in (unit.in_vectors, unit.out_vectors)
    ]


def units_of(unit, rule, dtype, rates=(0.4, 0.2)):
    """Units of float32 weights, the points of each node in two chunks of both replicates."""
    branch = Branch(unit, scale=0.7, rate_in=rates[0], rate_out=rates[1])
    rows = np.zeros((ROWS, 2))
    dynamics = Dynamics(rows, rows, Loss("squared_error"), (branch,), 4, rule=rule)
    chunks = []
    for node in range(NODES):
        pairs = slice(node * REPLICATES, (node + 1) * REPLICATES)
        for at in (slice(0, 140), slice(140, POINTS)):
            ins, outs = (w[pairs, :, :, at].to(dtype).contiguous() for w in draw(unit))
            buffers = [
                tuple(torch.zeros_like(w) for _ in range(rule.buffers if rate else 0))
                for w, rate in zip((ins, outs), rates, strict=True)
            ]
            chunks.append(ensemble._Chunk(pairs, ins.clone(), outs.clone(), *buffers))
    return Units(dynamics, branch, chunks, 1, None)


def trained(units, size=0.3):
    """Drifts at three states, with training steps between them; and the weights after that."""
    rng = np.random.default_rng(1)
    shape = (3, 2, NODES, REPLICATES, R, ROWS)
    # Rounded, so that both see the same.
    states = torch.from_numpy((size * rng.standard_normal(shape)).astype(np.float32)).double()
    found = [units.forward_drift(states[0, 0]), units.backward_drift(states[0, 0])(states[0, 1])]
    found += units.drifts(*states[1], Seen(0, *states[0]))
    found += units.drifts(*states[2], Seen(1, *states[1]))
    units.update(Seen(2, *states[2]))
    found += units.drifts(*states[0])
    weights = [
        w for chunk in units.chunks
        for w in (chunk.incoming, chunk.outgoing, *chunk.in_buffers, *chunk.out_buffers)
    ]  # fmt: skip
    return [x.double().numpy() for x in (*found, *weights)]


def distance(found, expected):
    """Largest error, over the size of what it is an error of."""
    return max(
        np.abs(got - right).max() / max(1.0, np.abs(right).max())
        for got, right in zip(found, expected, strict=True)
    )


# Each kind of unit is compiled once for rules that add and once for others, which takes long.
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, "sgd") for name in UNITS),
        *(("tanh", rule) for rule in RULES if rule != "sgd"),
        ("gated", "momentum"),
    ],
)
def test_the_kernel_does_what_torch_does(name, rule):
    compiled = units_of(UNITS[name], RULES[rule], torch.float32)
    plain = units_of(UNITS[name], RULES[rule], torch.float64)
    assert compiled.code is not None
    assert plain.code is None
    assert distance(trained(compiled), trained(plain)) < 5e-6


@pytest.mark.parametrize("rates", [(0.0, 0.2), (0.4, 0.0)])
def test_a_weight_without_a_rate_stays(rates):
    args = UNITS["gated"], RULES["momentum"]
    compiled = units_of(*args, torch.float32, rates)
    assert distance(trained(compiled), trained(units_of(*args, torch.float64, rates))) < 5e-6
    before = units_of(*args, torch.float32, rates).chunks[0]
    same = [
        torch.equal(getattr(compiled.chunks[0], name), getattr(before, name))
        for name in ("incoming", "outgoing")
    ]
    assert same == [not rate for rate in rates]


def test_what_another_rule_or_unit_does_would_be_noticed():
    """The negative control."""
    right = trained(units_of(UNITS["tanh"], RULES["momentum"], torch.float32))
    for unit, rule in (("tanh", "nesterov"), ("gelu", "momentum")):
        wrong = trained(units_of(UNITS[unit], RULES[rule], torch.float64))
        assert distance(right, wrong) > 1e-2


def test_what_is_not_finite_stays_so():
    for name in ("tanh", "attention"):
        found = trained(units_of(UNITS[name], RULES["sgd"], torch.float32), size=np.nan)
        assert all(np.isnan(x).all() for x in found[:6])


def test_without_a_compiler_torch_does_the_work(monkeypatch):
    monkeypatch.setattr(kernels, "enabled", lambda: False)
    assert units_of(UNITS["tanh"], RULES["sgd"], torch.float32).code is None
