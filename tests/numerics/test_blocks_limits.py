"""Limits of layers of several branches, with norms, linear rules, batches and weights of rows."""

import json
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from own_parts import Saturating, TwoVelocities
from plain_descent import SGD, dealt, descend

from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.limits import depth, fixed_point, quadrature
from resnet_limits.limits.causes import likely_cause
from resnet_limits.limits.models import Limits, Plan, standard_error
from resnet_limits.norms import RMS, Identity
from resnet_limits.problem import Loss
from resnet_limits.rules import GradientDescent
from resnet_limits.units import AttentionHead, Convolution, GatedPerceptron, Perceptron

LAYERS, STEPS, TOKENS = 4, 4, 3
ROOT = np.diag([1.1, 0.9, 0.8, 1.2])


class PlainTwoVelocities:
    def __init__(self):
        self.v = {}

    def __call__(self, name, k, w, g, rate):
        if rate == 0:
            return w
        eta = rate / (1 + k)
        first, second = self.v.get(name, (0.0, 0.0))
        self.v[name] = 0.8 * first + g, 0.3 * first + 0.5 * second + 0.5 * g
        return w - 0.1 * eta * w - 0.5 * eta * first + 0.2 * eta * second - eta * g


UNITS = {
    "linear": lambda: Perceptron("linear"),
    "tanh": lambda: Perceptron("tanh"),
    "relu": lambda: Perceptron("relu"),
    "gelu": lambda: Perceptron("gelu"),
    "gated": GatedPerceptron,
    "attention": lambda: AttentionHead(2, True, TOKENS),
    "all tokens": lambda: AttentionHead(1, False, TOKENS),
    "convolution": lambda: Convolution((-1, 0, 2), "silu", TOKENS),
}
NORMS = {
    "none": (Identity, "none"),
    "rms": (RMS, "rms"),
    "toy": (Saturating, lambda h: h / (1 + h.square().sum(0))),
}
OPTIONS = {
    "sgd": {},
    "momentum": {"momentum": 0.7},
    "nesterov": {"momentum": 0.6, "nesterov": True, "factors": (1.0, 0.4, 0.7)},
    "decay": {"decay": 0.3, "factors": (0.5, 1.0, 0.0)},
}
RULES = {name: (partial(GradientDescent, **o), partial(SGD, **o)) for name, o in OPTIONS.items()}
RULES["toy"] = TwoVelocities, PlainTwoVelocities
SETTINGS = ("plain", "weights", "batches", "embeddings", "all")


def problem(units, norms, rule, setting, seed=0):
    """Dynamics, and what the plain loops need beside them."""
    rng = np.random.default_rng(seed)
    rows = 3 * TOKENS
    everything = setting == "all"
    layer = tuple(
        Branch(
            UNITS[unit](),
            NORMS[norm][0](),
            scale=1.0 + 0.3 * number,
            input_std=0.9,
            output_std=1.1 - 0.2 * number,
            rate_in=0.4,
            rate_out=0.3,
        )
        for number, (unit, norm) in enumerate(zip(units, norms, strict=True))
    )
    samples = np.arange(rows).reshape(3, TOKENS)
    chosen = ([0, 1], [2], [2, 0])
    weights = rng.uniform(0, 1, rows) * (rng.uniform(size=rows) > 0.2)
    final = "rms" if everything or setting == "embeddings" else "none"
    dynamics = Dynamics(
        inputs=rng.standard_normal((rows, 2)),
        targets=rng.standard_normal((rows, 2)),
        loss=Loss("mean_squared_error" if setting == "plain" else "squared_error"),
        layer=layer,
        steps=STEPS,
        residual_scale=1.2,
        rule=RULES[rule][0](),
        final_norm=NORMS[final][0](),
        weights=weights / weights.sum() if everything or setting == "weights" else None,
        batches=tuple(tuple(samples[c].ravel().tolist()) for c in chosen)
        if everything or setting == "batches"
        else None,
        rate_embedding=0.2 if final == "rms" else 0.0,
        rate_unembedding=0.15 if final == "rms" else 0.0,
    )
    return dynamics, {
        "norms": [NORMS[norm][1] for norm in norms],
        "rule": RULES[rule][1](),
        "final_norm": final,
    }


def solved_and_plain(dynamics, plain, points=192, **twin):
    limits = Limits(dynamics, ROOT)
    plan = Plan("sobol", points, 1, LAYERS, 0)
    solution = limits.wide(ROOT, LAYERS, plan).trajectory
    return solution, descend(dynamics, ROOT, dealt(limits, plan, LAYERS), **plain, **twin)


def table():
    """Layers of one and of two branches, every unit with every rule."""
    found = []
    for (i, unit), (j, rule) in product(enumerate(UNITS), enumerate(RULES)):
        units, norms = (unit,), (list(NORMS)[(i + 2 * j) % 3],)
        if (i + j) % 2:
            units += (list(UNITS)[(3 * i + j + 1) % len(UNITS)],)
            norms += (list(NORMS)[(i + j) % 3],)
        found.append((units, norms, rule, SETTINGS[(i + j) % 5]))
    return found


def test_the_table_has_every_pair():
    found = table()
    assert len(found) >= 40
    seen = {
        pair
        for units, norms, rule, setting in found
        for unit, norm in zip(units, norms, strict=True)
        for pair in combinations(
            (("unit", unit), ("norm", norm), ("rule", rule), ("setting", setting)), 2
        )
    }
    axes = {"unit": UNITS, "norm": NORMS, "rule": RULES, "setting": SETTINGS}
    for one, other in combinations(axes, 2):
        assert {((one, a), (other, b)) for a in axes[one] for b in axes[other]} <= seen


@pytest.mark.parametrize(("units", "norms", "rule", "setting"), table())
def test_finite_depth_is_plain_descent(units, norms, rule, setting):
    solution, expected = solved_and_plain(*problem(units, norms, rule, setting))
    assert np.abs(expected[-1] - expected[0]).max() > 0.01
    np.testing.assert_allclose(solution.output[0], expected, atol=1e-9)


TRANSFORMER = ("attention", "gelu"), ("rms", "rms"), "momentum", "all"


@pytest.mark.parametrize("way", ["part", "given up"])
def test_a_part_of_the_units_corrected_by_all_gives_the_same(monkeypatch, way):
    """Each branch has a defect of its own."""
    monkeypatch.setattr(fixed_point, "_PART_POINTS", 16)
    if way == "given up":
        monkeypatch.setattr(fixed_point, "MAX_PASSES", 1)
    solution, expected = solved_and_plain(*problem(*TRANSFORMER), points=768)
    assert solution.passes > 1
    np.testing.assert_allclose(solution.output[0], expected, atol=1e-9)


@pytest.mark.parametrize("twin", ["order", "parallel", "before"])
def test_broken_twins_are_told_apart(twin):
    dynamics, plain = problem(("attention", "gelu"), ("rms", "rms"), "sgd", "plain")
    solution, broken = solved_and_plain(dynamics, plain, twin=twin)
    assert np.abs(solution.output[0] - broken).max() > 5e-4


FACTS = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(
    ("name", "unit", "error"),
    [("gated", GatedPerceptron(), 2e-4), ("momentum", Perceptron("tanh"), 5e-5)],
)
def test_facts(name, unit, error):
    """Solutions of independent code, with what each outputs' standard error is."""
    fact = json.loads((FACTS / f"{name}.json").read_text())
    steps, (r_in, d_out) = fact["states"], (fact["d_in"], fact["d_out"])
    factors = ()
    if fact["schedule"] == "cosine":
        factors = 0.5 * (1 + np.cos(np.pi * np.arange(steps - 1) / (steps - 1)))
    rule = GradientDescent(fact["momentum"], fact["nesterov"], fact["decay"], factors)
    dynamics = Dynamics.of_unit(
        np.array(fact["x"]),
        np.array(fact["y"]),
        Loss(fact["loss"]),
        unit,
        steps,
        rate_in=fact["eta_in"],
        rate_out=fact["eta_out"],
        rule=rule,
    )

    def score(dynamics):
        limits = Limits(dynamics, np.diag([fact["s_e"]] * r_in + [fact["s_u"]] * d_out))
        output = limits.make_plan(error, 0)[1].trajectory.output
        # Nothing is more accurate than the digits of a fact.
        combined = np.hypot(standard_error(output), np.array(fact["stderr"]) + 1e-8)
        return np.abs((output.mean(axis=0) - fact["output"]) / combined).max()

    assert score(dynamics) < 4
    # Without momentum or decay, or at a slightly other rate, they are not the same.
    changed = dynamics.with_branches(rate_in=1.02 * fact["eta_in"])
    if name == "momentum":
        changed = replace(dynamics, rule=GradientDescent(0.9, False, 0.0, factors))
    assert score(changed) > 8


def blamed(norms=("none", "none"), rule="sgd", inputs=1.0, **of_second):
    dynamics, _ = problem(("tanh", "gelu"), norms, rule, "plain")
    dynamics = dynamics.with_branches(input_std=1.0, output_std=1.0, scale=1.2)
    first, second = dynamics.layer
    dynamics = replace(
        dynamics, layer=(first, replace(second, **of_second)), inputs=inputs * dynamics.inputs
    )
    return likely_cause(dynamics, ROOT, 2)


def test_a_divergence_is_blamed_on_the_branch_or_the_rule_that_is_out_of_order():
    assert "model.layer[1].init_std.output 1e+03, which is too large" in blamed(output_std=1e3)
    assert "model.layer[1].residual_scale 1e-09, which is too small" in blamed(scale=1e-9)
    assert "model.layer[1].residual_scale 1e+05, which is too large" in blamed(scale=1e5)
    assert "a learning rate of 1e+04, which" in blamed(rate_in=1e4)
    assert "cause: inputs of size" in blamed(inputs=1e3)
    # What all branches read through a norm has no size.
    assert "cause" not in blamed(("rms", "rms"), inputs=1e3)
    slow = GradientDescent(momentum=0.99)
    many = replace(problem(("tanh",), ("none",), "sgd", "plain")[0], rule=slow, steps=60)
    assert "training.rule, by which a gradient counts 44.7 times" in likely_cause(many, ROOT, 2)


def turned(cubature):
    """The cubature of other directions, as exact for second moments."""

    def other(in_vectors, out_vectors, dimension):
        sample = cubature(in_vectors, out_vectors, dimension)
        both = torch.cat([sample.in_vectors, sample.out_vectors], dim=2)
        size = both.shape[2] * dimension
        rng = np.random.default_rng(size)
        rotation = np.linalg.qr(rng.standard_normal((size, size)))[0]
        both = (both.flatten(2) @ torch.tensor(rotation)).view(both.shape)
        return replace(
            sample, in_vectors=both[:, :, :in_vectors], out_vectors=both[:, :, in_vectors:]
        )

    return other


@pytest.mark.parametrize(("unit", "exact"), [("linear", True), ("tanh", False)])
def test_second_moments_are_enough_for_linear_units_with_norms(monkeypatch, unit, exact):
    """A norm is a factor that all units share, so that what they see is linear in their weights."""
    dynamics, _ = problem((unit, "linear"), ("rms", "toy"), "toy", "all")
    limits, plan = Limits(dynamics, ROOT), Plan("cubature", 0, 1, 4, 0)
    one = limits.trajectories.solve(ROOT, depth.continuous, plan, "").output
    monkeypatch.setattr(quadrature, "cubature", turned(quadrature.cubature))
    other = Limits(dynamics, ROOT).trajectories.solve(ROOT, depth.continuous, plan, "").output
    assert dynamics.is_linear == exact
    assert np.abs(one[0, -1] - one[0, 0]).max() > 0.1
    assert (np.abs(other - one).max() < 1e-9) == exact


def test_a_transformer_layer_tends_to_the_mean_ode_as_one_over_the_depth():
    """The branches of a layer are one map; alternating layers would not be smooth in depth."""
    dynamics, _ = problem(("attention", "gelu"), ("rms", "rms"), "sgd", "plain")
    limits, plan = Limits(dynamics, ROOT), Plan("sobol", 256, 1, 8, 0)

    def solved(grid):
        return limits.trajectories.solve(ROOT, grid, plan, "", shared=True)

    limit, depths = solved(depth.continuous), np.array([8, 16, 32, 64, 128])
    ends = [solved(partial(depth.layered, int(layers))) for layers in depths]
    for states in (lambda t: t.output[0, -1], lambda t: t.hidden[0, -1, -1]):
        gaps = [np.sqrt(np.mean((states(end) - states(limit)) ** 2)) for end in ends]
        local = np.diff(np.log(gaps)) / np.diff(np.log(depths))
        assert gaps[0] > 1e-3
        np.testing.assert_allclose(local[1:], -1, atol=0.05)
