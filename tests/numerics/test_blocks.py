"""The dense engine on layers of several branches, norms and rules, against plain autograd.

The table pairs every unit, stack, norm, rule and way of keeping steps with every other.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from test_networks import SETS, drawn

import reference
from resnet_limits.config import InputError, Shape
from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.kinds import DIVERGED, OK
from resnet_limits.networks import cost, dense, products
from resnet_limits.networks import train as training
from resnet_limits.networks.train import choose_engine, train
from resnet_limits.norms import RMS, Identity
from resnet_limits.problem import Loss
from resnet_limits.rules import GradientDescent
from resnet_limits.units import AttentionHead, Convolution, GatedPerceptron, Perceptron
from resnet_limits.work import Work

SHAPE, SAMPLES, TOKENS, STEPS = Shape(3, 6, 8), 2, 3, 4
ROWS = SAMPLES * TOKENS

UNITS = {
    "tanh": lambda: Perceptron("tanh"),
    "relu": lambda: Perceptron("relu"),
    "gelu": lambda: Perceptron("gelu"),
    "gated": lambda: GatedPerceptron("silu"),
    "causal attention": lambda: AttentionHead(2, True, TOKENS),
    "attention": lambda: AttentionHead(2, False, TOKENS),
    "convolution": lambda: Convolution((-1, 0, 2), "tanh", TOKENS),
}
STACKS = {"one branch": None, "a wider one after it": 2.0, "a narrower one after it": 0.5}
NORMS = {"none": Identity, "rms": RMS}
COSINE = tuple(0.5 * (1 + np.cos(np.pi * k / (STEPS - 1))) for k in range(STEPS - 1))
# Samples 0 and 1 have rows 0..2 and 3..5.
BATCHES = ((0, 1, 2), (3, 4, 5), (0, 1, 2, 3, 4, 5))
RULES = {
    "plain": {},
    "momentum": {"rule": GradientDescent(momentum=0.8)},
    "nesterov": {"rule": GradientDescent(momentum=0.8, nesterov=True)},
    "decay": {"rule": GradientDescent(decay=0.3)},
    "all three": {"rule": GradientDescent(momentum=0.8, decay=0.3, factors=COSINE)},
    "batches": {"batches": BATCHES},
    "weights": {"weights": np.array([1.0, 0.0, 3.0, 0.5, 2.0, 1.0]) / 7.5},
    "rates of their own": {"rate_in": 0.7, "rate_out": 0.2},
    "trained embeddings": {"rate_embedding": 0.3, "rate_unembedding": 0.15},
}
STORES = {
    "factors": {"kept": STEPS - 1},
    "in place": {"kept": 0},
    "batched": {"batched": True},
}
TABLE = [list(axis) for axis in (UNITS, STACKS, NORMS, NORMS, RULES, STORES)]


def all_pairs(axes):
    """Combinations in which any two values of two axes meet, by a greedy choice of random ones."""

    def pairs(case):
        return {(i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(axes)), 2)}

    rng = np.random.default_rng(0)
    left = set().union(*(pairs(case) for case in itertools.product(*axes)))
    chosen = []
    while left:
        some = [tuple(axis[rng.integers(len(axis))] for axis in axes) for _ in range(40)]
        best = max(some, key=lambda case: len(pairs(case) & left))
        if pairs(best) & left:
            chosen.append(best)
            left -= pairs(best)
    return chosen


CASES = all_pairs(TABLE)


def make(unit="tanh", stack="one branch", norm="none", final="none", **changes):
    """A problem with every scale and rate another."""
    rng = np.random.default_rng(5)
    rates = {name: changes.pop(name, 0.4) for name in ("rate_in", "rate_out")}
    layer = [Branch(UNITS[unit](), NORMS[norm](), 1.0, 0.8, input_std=1.1, output_std=0.9, **rates)]
    if STACKS[stack]:
        after = Perceptron("gelu")
        layer.append(Branch(after, NORMS[norm](), STACKS[stack], 1.3, 0.7, 1.2, **rates))
    values = {
        "inputs": rng.standard_normal((ROWS, 2)),
        "targets": rng.standard_normal((ROWS, 2)),
        "loss": Loss("squared_error"),
        "layer": tuple(layer),
        "steps": STEPS,
        "residual_scale": 0.6,
        "final_norm": NORMS[final](),
    }
    return Dynamics(**(values | changes))


def table(seed=0):
    return np.random.default_rng(seed).standard_normal((SHAPE.embed_dim, 4))


def follow(dynamics, **options):
    """Train with the dense engine; give the network, and what `reference.train` gives."""
    network = dense.DenseNetwork(dynamics, SHAPE, [0], table()[None], 0, **options)
    outputs, losses, gradients = [], [], []
    states, cotangents = ([[] for _ in dynamics.layer] for _ in range(2))
    for step in range(dynamics.steps):
        f = network.forward_pass()
        cotangent = dynamics.cotangent(f, network.targets, step)
        number = dynamics.batch_size(step)
        last = network.hidden[-1, 0].clone()
        network.backward_pass(cotangent, update=step + 1 < dynamics.steps)
        outputs.append(f[0].numpy())
        losses.append(dynamics.value(f, network.targets)[0].item())
        for kept, now in ((states, network.states), (cotangents, network.cotangents)):
            for to, each in zip(kept, now, strict=True):
                to.append(each[:, 0].numpy().copy())
        found = []
        for pair in (("u", "dp"), ("next_b", "g")):
            for branch, of in zip(network.branches, dynamics.layer, strict=True):
                x, c = (getattr(branch.at, name)[:, 0] for name in pair)
                found += list(x.mT @ c / (of.scale * number))
        read = dynamics.final_norm.forward(last, -1, 1 / SHAPE.embed_dim)
        for x, c in ((network.backward[0, 0], network.inputs), (read, cotangent[0])):
            found.append(x.mT @ c / (dynamics.residual_scale * number))
        gradients.append(found)
    output, loss = np.array(outputs), np.array(losses)
    states, cotangents = ([np.array(each) for each in kept] for kept in (states, cotangents))
    return network, reference.Reference(output, loss, states, cotangents, gradients, [])


def by_autograd(dynamics, twin=None):
    return reference.train(dynamics, SHAPE, table(), *drawn(dynamics, SHAPE, 0), twin)


def gap(one, other):
    """Largest difference of outputs, losses, states, cotangents and gradients, over all steps."""
    lists = itertools.chain(*zip(one.gradients, other.gradients, strict=True))
    pairs = [
        *zip(one[:2], other[:2], strict=True),
        *zip(one.states + one.cotangents, other.states + other.cotangents, strict=True),
        *zip(*(itertools.chain(*each.gradients) for each in (one, other)), strict=True),
    ]
    del lists
    return max(
        np.abs(np.asarray(x) - np.asarray(y)).max() / max(1.0, np.abs(np.asarray(y)).max())
        for x, y in pairs
    )


def test_the_table_has_all_pairs():
    assert len(CASES) >= 40
    for i, j in itertools.combinations(range(len(TABLE)), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(TABLE[i], TABLE[j]))


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_training_is_that_of_autograd(case):
    *of_layer, rule, store = case
    dynamics = make(*of_layer, **RULES[rule])
    network, found = follow(dynamics, **STORES[store])
    plain = by_autograd(dynamics)
    assert gap(found, plain) < 1e-10
    assert np.abs(plain.output[-1] - plain.output[0]).max() > 1e-3
    if store == "factors":
        return
    # In place, the weights themselves are those of the last state.
    weights = [branch.at.incoming[:, 0] for branch in network.branches]
    weights += [branch.at.outgoing[:, 0] for branch in network.branches]
    ours = [*(w.mT for each in weights for w in each), network.embedding[0], network.unembedding[0]]
    for mine, plain_weights in zip(ours, plain.weights[-1], strict=True):
        torch.testing.assert_close(mine, plain_weights, rtol=1e-10, atol=1e-10)
