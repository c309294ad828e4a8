"""The implicit engine on layers of several branches, norms and linear rules."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from engine_laws import differences, observables
from implicit_weights import disagreement, replay, trajectory

from resnet_limits.config import InputError, Shape
from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.networks import conditioned, cost
from resnet_limits.norms import make_norm
from resnet_limits.problem import Loss
from resnet_limits.rules import GradientDescent
from resnet_limits.units import AttentionHead, Convolution, GatedPerceptron, Perceptron
from resnet_limits.work import Work

TOKENS = 3


def branch(unit, norm="none", **changes):
    values = {"scale": 1.0, "rate_in": 0.4, "rate_out": 0.4} | changes
    return Branch(unit, make_norm(norm), **values)


def problem(*layer, samples=2, steps=4, rank=6, **changes):
    rng = np.random.default_rng(4)
    rows = samples * TOKENS
    values = {
        "inputs": rng.standard_normal((rows, rank)) / np.sqrt(rank / 2),
        "targets": rng.standard_normal((rows, 2)),
        "loss": Loss("squared_error"),
        "layer": layer,
        "steps": steps,
    }
    return Dynamics(**(values | changes))


def head(**options):
    return AttentionHead(2, tokens=TOKENS, **options)


def rows_of(*batches):
    return tuple(tuple(TOKENS * i + t for i in batch for t in range(TOKENS)) for batch in batches)


UNITS = {
    "tanh": lambda: Perceptron("tanh"),
    "gelu": lambda: Perceptron("gelu"),
    "relu": lambda: Perceptron("relu"),
    "gated": lambda: GatedPerceptron("silu"),
    "head": head,
    "causal head": lambda: head(causal=True),
    "convolution": lambda: Convolution((-1, 0, 2), "tanh", TOKENS),
}
RULES = {
    "plain": {},
    "momentum, decay": {"rule": GradientDescent(0.8, decay=0.3, factors=(1.0, 0.5, 0.7))},
    "nesterov, frozen start": {"rule": GradientDescent(0.7, nesterov=True, factors=(0.0, 1.0))},
    "batches": {"batches": rows_of((1,), (0, 1), (0,))},
    "batches, momentum, weights, decay": {
        "batches": rows_of((1,), (1,), (0,)),
        "rule": GradientDescent(0.5, decay=0.2),
        "weights": np.array([1, 2, 3, 0, 5, 6]) / 17.0,
    },
}
LAYERS = {f"{unit}, {norm}": ((unit, norm),) for unit in UNITS for norm in ("none", "rms")}
LAYERS["transformer"] = ("causal head", "rms"), ("gelu", "rms")
LAYERS["three"] = ("convolution", "none"), ("head", "rms"), ("gated", "rms")
# Products of weights and states grow fast where nothing bounds them.
RATES = {("gated", "none"): 0.1, ("head", "none"): 0.1, ("causal head", "none"): 0.1}


def layer_of(name):
    """Branches of their own sizes, scales and rates."""
    return [
        branch(
            UNITS[unit](),
            norm,
            ratio=(1.0, 2.0, 0.5)[n],
            scale=(1.0, 0.7, 1.3)[n],
            input_std=(1.0, 0.8, 1.1)[n] * (0.5 if (unit, norm) == ("gated", "none") else 1.0),
            output_std=(0.9, 1.0, 1.2)[n],
            rate_in=RATES.get((unit, norm), 1.0) * (0.4, 0.2, 0.0)[n],
            rate_out=RATES.get((unit, norm), 1.0) * (0.3, 0.5, 0.2)[n],
        )
        for n, (unit, norm) in enumerate(LAYERS[name])
    ]


def case(layer, rule, **changes):
    final = make_norm("rms" if "rms" in layer or layer == "transformer" else "none")
    grows = layer == "gated, none"
    trained = {"rate_embedding": 0.1, "rate_unembedding": 0.05}
    if grows or rule == "batches":
        trained = {}
    return problem(*layer_of(layer), **({"final_norm": final} | trained | RULES[rule] | changes))


SHAPE = Shape(3, 30, 60)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_products_replayed_with_explicit_weights_agree_to_rounding(layer, rule):
    found = trajectory(case(layer, rule), SHAPE, [0, 1])
    replayed = replay(found.network, 1, 1)
    assert disagreement(found.of_seed(1), replayed) < 1e-7
    assert np.abs(replayed["output"][-1] - replayed["output"][0]).max() > 0.01


@pytest.mark.parametrize(
    ("layer", "rule", "twin"),
    [
        ("three", "plain", "branches in another order"),
        ("transformer", "plain", "branches in parallel"),
        ("transformer", "plain", "cotangent from before the branch"),
        ("head, rms", "batches", "rows of all samples"),
        ("gated, rms", "momentum, decay", "coupled decay"),
    ],
)
def test_replay_tells_mistakes_apart(layer, rule, twin):
    found = trajectory(case(layer, rule), SHAPE, [0])
    right, wrong = (replay(found.network, 0, 0, twin=t) for t in (None, twin))
    assert disagreement(found.of_seed(0), right) < 1e-9
    assert np.abs(found.output[:, 0] - wrong["output"]).max() > 1e-4


def _lost_share(monkeypatch):
    """What is left of the initial weights is taken for all of them."""
    of = conditioned.Course.of
    monkeypatch.setattr(
        conditioned.Course,
        "of",
        lambda *arguments: dataclasses.replace(of(*arguments), initial=np.ones(arguments[0].steps)),
    )


def _wrong_step(monkeypatch):
    """Coefficients are those of the state before."""
    of = conditioned.Course.of

    def late(*arguments):
        right = of(*arguments)
        return dataclasses.replace(right, shares=np.roll(right.shares, 1, axis=0))

    monkeypatch.setattr(conditioned.Course, "of", late)


def _all_samples(monkeypatch):
    """Gradients of batches are divided by the number of all rows."""
    of = conditioned.Course.of

    def diluted(dynamics, rate, scale):
        whole = dataclasses.replace(dynamics, batches=None)
        return of(whole, rate, scale)

    monkeypatch.setattr(conditioned.Course, "of", diluted)


@pytest.mark.parametrize(
    ("breaking", "rule"),
    [(_lost_share, "momentum, decay"), (_wrong_step, "momentum, decay"), (_all_samples, "batches")],
)
def test_replay_notices_wrong_coefficients(monkeypatch, breaking, rule):
    breaking(monkeypatch)
    found = trajectory(case("transformer", rule), SHAPE, [0])
    assert disagreement(found.of_seed(0), replay(found.network, 0, 0)) > 1e-3


# --- dependent probes -----------------------------------------------------------------------------


def test_rows_outside_a_batch_bring_no_directions():
    batch = rows_of((1,))[0]
    dynamics = case("transformer", "batches", batches=(batch,) * 3, steps=4)
    network = trajectory(dynamics, SHAPE, [0]).network
    for branches in network.layers:
        for one in branches:
            # Three states of a batch of one sample, and the last one's of both.
            assert one.outgoing.lefts == 3 * TOKENS + 2 * TOKENS
            assert one.incoming.rights == 3 * TOKENS + 2 * TOKENS
            outside = [r for r in range(2 * TOKENS) if r not in batch]
            assert not one.r[0].unflatten(0, (4, -1))[:3, outside].any()


def test_a_batch_again_and_again_with_weights_frozen_is_nothing_new():
    layer = [dataclasses.replace(b, rate_in=0.0, rate_out=0.0) for b in layer_of("transformer")]
    batches = rows_of((1,), (1,), (1,))
    dynamics = problem(*layer, batches=batches)
    found = trajectory(dynamics, SHAPE, [0])
    for branches in found.network.layers:
        for one in branches:
            assert one.incoming.lefts == one.outgoing.rights == 2 * TOKENS
            # The targets span the last backward states.
            assert one.outgoing.lefts <= one.incoming.rights == 2 * TOKENS
    assert disagreement(found.of_seed(0), replay(found.network, 0, 0)) < 1e-9
    for states in found.states:
        np.testing.assert_allclose(states[1:], states[:1].repeat(3, 0), atol=1e-9)


def test_tokens_that_nearly_depend_on_each_other_replay_to_their_tolerance():
    found = trajectory(case("transformer", "momentum, decay", inputs=_close()), SHAPE, [0])
    assert disagreement(found.of_seed(0), replay(found.network, 0, 0)) < 1e-4


def _close():
    """Inputs of rank 2, two of them close."""
    inputs = np.random.default_rng(3).standard_normal((2 * TOKENS, 2))
    inputs[1] = inputs[0] + 1e-3 * inputs[1]
    return inputs


# --- the law --------------------------------------------------------------------------------------

LAWS = {
    "transformer": (("causal head", "rms"), ("gelu", "rms"), {}),
    "gated, momentum, decay": (
        ("gated", "rms"),
        {"rule": GradientDescent(0.9, decay=0.3, factors=(1.0, 0.75, 0.25))},
    ),
    "transformer, batches": (
        ("causal head", "rms"),
        ("gelu", "rms"),
        {
            "batches": rows_of((1,), (0,), (1,)),
            "weights": np.array([1, 2, 3, 0, 5, 6]) / 17.0,
        },
    ),
}
LAW_SHAPE = Shape(2, 6, 10)


def law_problem(name):
    *branches, changes = LAWS[name]
    layer = [
        branch(UNITS[unit](), norm, ratio=1.0 + n, rate_in=1.0, rate_out=1.0)
        for n, (unit, norm) in enumerate(branches)
    ]
    return problem(*layer, rank=2, final_norm=make_norm("rms"), **changes)


@pytest.fixture(scope="module")
def dense_laws():
    return {name: observables(law_problem(name), LAW_SHAPE, "dense") for name in LAWS}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_all_states_is_that_of_the_dense_engine(dense_laws, name):
    found = observables(law_problem(name), LAW_SHAPE, "implicit")
    assert not differences(found, dense_laws[name])


@pytest.mark.parametrize(
    ("breaking", "name"),
    [
        (_lost_share, "gated, momentum, decay"),
        (_wrong_step, "gated, momentum, decay"),
        (_all_samples, "transformer, batches"),
    ],
)
def test_a_broken_engine_does_not_have_the_law(dense_laws, monkeypatch, breaking, name):
    breaking(monkeypatch)
    found = observables(law_problem(name), LAW_SHAPE, "implicit")
    assert differences(found, dense_laws[name])


# --- the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["tanh, none", "transformer", "three"])
def test_memory_is_that_of_the_arrays(layer):
    dynamics, shape = case(layer, "plain"), Shape(4, 130, 170)
    network = trajectory(dynamics, shape, [0]).network
    held = sum(states.nbytes for states in (*network.states, *network.cotangents))
    for one in (branch for branches in network.layers for branch in branches):
        held += one.p.nbytes + one.r.nbytes
        for matrix in (one.incoming, one.outgoing):
            held += matrix.left.nbytes + matrix.image.nbytes
            small = (matrix.alpha, matrix.xi, matrix.tau, matrix.cross, matrix.inner)
            held += sum(array.nbytes for array in small)
    assert cost.memory_bytes("implicit", Work.of(dynamics, shape, 1, 8)) == held


DECAYS = {torch.float64: (1e-6, 1e-8), torch.float32: (1e-2, 1e-4)}
"""Shares of the initial weights that are enough, and that are not."""


@pytest.mark.parametrize("precision", DECAYS)
def test_weights_that_have_all_but_decayed_are_refused(precision):
    enough, too_few = (
        problem(
            *[branch(UNITS["tanh"](), "rms")],
            rule=GradientDescent(decay=(1.0 - share) / 0.4, factors=(1.0, 0.1, 0.1)),
        )
        for share in DECAYS[precision]
    )
    found = trajectory(enough, SHAPE, [0], precision)
    bound = {torch.float64: 1e-6, torch.float32: 2e-3}[precision]
    assert disagreement(found.of_seed(0), replay(found.network, 0, 0)) < bound
    with pytest.raises(InputError, match=r"weight_decay: at state 1 weights keep .*; allowed"):
        trajectory(too_few, SHAPE, [0], precision)


def test_other_initial_laws_are_refused():
    with pytest.raises(InputError, match=r"initial_law: .* law uniform; allowed: gaussian"):
        trajectory(case("transformer", "plain", initial_law="uniform"), SHAPE, [0])


def test_float32_replays_to_its_precision():
    found = trajectory(case("transformer", "momentum, decay"), SHAPE, [0], torch.float32)
    assert 1e-9 < disagreement(found.of_seed(0), replay(found.network, 0, 0)) < 1e-3
