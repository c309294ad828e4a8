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
    pairs = [
        *zip(one[:2], other[:2], strict=True),
        *zip(one.states + one.cotangents, other.states + other.cotangents, strict=True),
        *zip(*(itertools.chain(*each.gradients) for each in (one, other)), strict=True),
    ]
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


TWO = make("gated", "a wider one after it", "rms", "rms")
MISTAKES = {
    "branches in another order": TWO,
    "branches in parallel": TWO,
    "cotangent from before the branch": TWO,
    "rows of all samples": make(batches=BATCHES),
    "coupled decay": make(rule=GradientDescent(momentum=0.8, decay=0.3)),
}


@pytest.mark.parametrize("twin", reference.TWINS)
def test_mistakes_are_seen(twin):
    """Each mistake is far above what the table allows."""
    _, found = follow(MISTAKES[twin], kept=0)
    assert gap(found, by_autograd(MISTAKES[twin])) < 1e-10
    wrong = by_autograd(MISTAKES[twin], twin)
    assert gap(found, wrong) > 1e-3
    assert np.abs(found.output - wrong.output).max() > 1e-4


@pytest.mark.parametrize("store", STORES)
def test_a_matrix_whose_rate_is_zero_stays(store):
    """It does not decay either; what is read of it is what was drawn."""
    dynamics = make(rule=GradientDescent(momentum=0.5, decay=0.4), rate_in=0.0, rate_out=0.5)
    network, found = follow(dynamics, **STORES[store])
    assert gap(found, by_autograd(dynamics)) < 1e-10
    fresh = dense.DenseNetwork(dynamics, SHAPE, [0], table()[None], 0)
    at, before = (each.branches[0].at for each in (network, fresh))
    assert torch.equal(at.incoming, before.incoming)
    assert store == "factors" or (at.outgoing - before.outgoing).abs().max() > 0.1


# Each unit is compiled anew for each way of keeping steps, which takes long; tanh, both ways, is in
# test_networks.py.
@pytest.mark.parametrize(
    ("unit", "stack", "rule", "store"),
    [
        *(("gated", "one branch", rule, "in place") for rule in ("plain", "all three")),
        *(("gelu", "a wider one after it", rule, "factors") for rule in ("all three", "batches")),
    ],
)
def test_shared_and_serial_work_is_the_same(monkeypatch, unit, stack, rule, store):
    dynamics = make(unit, stack, "rms", **RULES[rule])
    monkeypatch.setattr(products, "_SHARED_FROM", SETS["shared"]["shared_from"])
    monkeypatch.setattr(cost, "PIECE", 40)
    _, shared = follow(dynamics, **STORES[store])
    assert gap(shared, by_autograd(dynamics)) < 1e-10


def test_seeds_side_by_side_are_seeds_alone():
    dynamics = make("gated", "a wider one after it", "rms", "rms", **RULES["all three"])

    def run(seeds):
        options = {"steps": range(STEPS), "layers": range(4), "saved_dtype": np.float64}
        return train(dynamics, SHAPE, seeds, table, 0, **options)

    together, alone = run([0, 1, 2]), run([2])
    np.testing.assert_allclose(together.hidden[2], alone.hidden[0], atol=1e-12)
    assert np.abs(together.output[0] - together.output[2])[1:].max() > 1e-3


def test_each_branch_has_streams_of_its_own():
    dynamics = make("gelu", "a wider one after it")
    one, two = dense.DenseNetwork(dynamics, SHAPE, [0], table()[None], 0).branches
    single = dense.DenseNetwork(make("gelu"), SHAPE, [0], table()[None], 0).branches[0]
    torch.testing.assert_close(one.at.incoming, single.at.incoming, rtol=0, atol=0)
    first, second = one.at.incoming / 1.1, two.at.incoming[:, :, : SHAPE.width] / 0.7
    assert (first - second).abs().min() > 0


@pytest.mark.parametrize("law", ["uniform", "rademacher"])
def test_other_initial_laws(law):
    dynamics = make("tanh", "a wider one after it", initial_law=law)
    shape = Shape(2, 300, 40)
    network = dense.DenseNetwork(dynamics, shape, [0], np.ones((1, 40, 4)), 0)
    scales = ((1.1, 0.9), (0.7, 1.2))
    for branch, of in zip(network.branches, scales, strict=True):
        for weights, scale in zip((branch.at.incoming, branch.at.outgoing), of, strict=True):
            numbers = weights.numpy().ravel() / (scale * np.sqrt(40))
            assert abs(numbers.mean()) < 0.03
            assert abs(numbers.var() - 1) < 0.03
            assert np.abs(numbers).max() == pytest.approx(
                3**0.5 if law == "uniform" else 1, rel=1e-3
            )
    assert network.forward_pass().isfinite().all()
    gaussian = dense.DenseNetwork(make(), shape, [0], np.ones((1, 40, 4)), 0).branches[0]
    assert gaussian.at.incoming.abs().max() > 3 * 1.1 * np.sqrt(40)


def test_auto_takes_an_engine_that_has_the_law():
    shape = Shape(10, 3000, 3000)
    for law, engine in (("gaussian", "implicit"), ("uniform", "dense")):
        choice = choose_engine("auto", make(initial_law=law), shape, 1, torch.float64)
        assert choice.engine == engine
    assert "no other engine" in choice.reason
    with pytest.raises(InputError, match=r"model.initial_law: .* uniform; allowed: gaussian"):
        choose_engine("implicit", make(initial_law="uniform"), shape, 1, torch.float64)


@pytest.mark.parametrize("broken", ["states", "cotangents"])
def test_divergence_between_branches_is_seen(monkeypatch, broken):
    """Of one seed, at the second state, in what the second branch reads."""

    class Broken(dense.DenseNetwork):
        def _break(self, name):
            if name == broken and self.step == 1:
                getattr(self, name)[1][2, 0, 0, 0] = np.nan if name == "cotangents" else 1e9

        def forward_pass(self):
            found = super().forward_pass()
            self._break("states")
            return found

        def backward_pass(self, cotangent, *, update):
            at = self.step
            super().backward_pass(cotangent, update=update)
            self.step = at
            self._break("cotangents")
            self.step = at + update

    monkeypatch.setitem(training.ENGINES, "dense", Broken)
    dynamics = make("gelu", "a wider one after it")
    options = {"steps": range(STEPS), "layers": range(4)}
    trained = train(dynamics, SHAPE, [0, 1], table, 0, **options)
    assert trained.status.tolist() == [DIVERGED, OK]
    assert trained.diverged_step.tolist() == [1, -1]
    assert np.isnan(trained.hidden[0, 1:]).all()
    assert np.isfinite(trained.hidden[1]).all()


@pytest.mark.parametrize("store", STORES)
def test_a_training_that_diverges_has_its_status(monkeypatch, store):
    monkeypatch.setitem(
        training.ENGINES, "dense", functools.partial(dense.DenseNetwork, **STORES[store])
    )
    dynamics = make("gated", "a wider one after it", "none", "rms", rate_in=1e30, rate_out=1e30)
    trained = train(dynamics, SHAPE, [0], table, 0, steps=range(STEPS), layers=[3])
    assert trained.status.tolist() == [DIVERGED]
    assert trained.diverged_step.tolist() == [1]


@pytest.mark.parametrize("store", ["factors", "in place"])
@pytest.mark.parametrize("rule", ["plain", "momentum", "decay"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("unit", ["gated", "causal attention"])
def test_memory_is_that_of_the_arrays(monkeypatch, store, rule, norm, unit):
    kept = STORES[store]["kept"]
    monkeypatch.setattr(cost, "kept_steps", lambda _: kept)
    dynamics = make(unit, "a wider one after it", norm, **RULES[rule])
    network = dense.DenseNetwork(dynamics, SHAPE, [0], table()[None], 0)
    assert network.kept == kept
    arrays = [*network.states, *network.cotangents]
    for branch in network.branches:
        arrays += [*vars(branch.at).values(), branch.beside]
        arrays += [part for _, parts in branch.trained for part in parts]
    owners = {array.untyped_storage().data_ptr(): array.untyped_storage() for array in arrays}
    held = sum(storage.nbytes() for storage in owners.values())
    # What units keep beside g is planned for all devices; compiled passes compute it again.
    beside = 0
    for branch in network.branches:
        assert branch.passes is not None
        assert branch.beside.numel() == 0
        units = branch.at.g.shape[3] // branch.unit.out_vectors
        beside += 8 * SHAPE.depth * units * branch.unit.kept_vectors * len(dynamics.inputs)
    assert cost.memory_bytes("dense", Work.of(dynamics, SHAPE, 1, 8)) == held + beside
