"""The dense engine against autograd, between its sets of products, and over batches."""

import functools
import tracemalloc

import numpy as np
import pytest
import torch

import reference
from resnet_limits import randomness
from resnet_limits.config import InputError, Shape
from resnet_limits.dynamics import Dynamics
from resnet_limits.kinds import DIVERGED, OK
from resnet_limits.networks import cost, dense, products
from resnet_limits.networks import train as training
from resnet_limits.networks.train import (
    MemoryRefusedError,
    choose_engine,
    train,
)
from resnet_limits.problem import Loss
from resnet_limits.units import ACTIVATIONS, Perceptron
from resnet_limits.work import Branch, Work

SHAPE = Shape(5, 7, 11)


def make(activation="tanh", samples=3, steps=4, **changes):
    rng = np.random.default_rng(8)
    values = {
        "inputs": rng.standard_normal((samples, 2)),
        "targets": rng.standard_normal((samples, 2)),
        "loss": Loss("squared_error"),
        "unit": Perceptron(activation),
        "residual_scale": 1.0,
        "input_std": 1.0,
        "output_std": 1.0,
        "rate_in": 0.5,
        "rate_out": 0.5,
        "rate_embedding": 0.0,
        "steps": steps,
    }
    return Dynamics.of_unit(**(values | changes))


def table(embed_dim):
    return lambda seed: np.random.default_rng(seed).standard_normal((embed_dim, 4))


def run(dynamics, shape=SHAPE, seeds=(0,), **options):
    options = {
        "steps": range(dynamics.steps),
        "layers": range(shape.depth + 1),
        "saved_dtype": np.float64,
    } | options
    return train(dynamics, shape, list(seeds), table(shape.embed_dim), 0, **options)


def drawn(dynamics, shape, seed):
    """The dense engine's draws: I and O of each branch and layer, (D, M_b x vectors)."""
    L, M, D = shape

    def draw(role, layer, branch, vectors, std):
        name = (layer, branch) if branch else (layer,)
        generator = randomness.generator(0, role, seed, *shape, *name)
        width = dynamics.layer[branch].width(M)
        return generator.standard_normal((width * vectors, D)).T * std * np.sqrt(D)

    ins, outs = [], []
    for number, branch in enumerate(dynamics.layer):
        a, c = branch.unit.in_vectors, branch.unit.out_vectors
        ins.append([draw("block_in", n, number, a, branch.input_std) for n in range(L)])
        outs.append([draw("block_out", n, number, c, branch.output_std) for n in range(L)])
    return ins, outs


def by_autograd(dynamics, shape, seed, twin=None):
    """The dense engine's draws, trained by autograd."""
    return reference.train(
        dynamics, shape, table(shape.embed_dim)(seed), *drawn(dynamics, shape, seed), twin
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_is_gradient_descent_in_the_stated_scaling(activation, engine):
    # The compiled code of each activation is its torch code by test_tiles.py.
    engine(batched=activation != "tanh")
    dynamics = make(
        activation,
        residual_scale=0.7,
        input_std=1.2,
        output_std=0.8,
        rate_in=0.3,
        rate_out=0.6,
        rate_embedding=0.2,
    )
    trained = run(dynamics)
    plain = by_autograd(dynamics, SHAPE, 0)
    np.testing.assert_allclose(trained.output[0], plain.output, atol=1e-11)
    np.testing.assert_allclose(trained.hidden[0], plain.hidden, atol=1e-10)
    np.testing.assert_allclose(trained.backward[0], plain.backward, atol=1e-10)
    assert np.abs(plain.output[-1] - plain.output[0]).max() > 0.01


def test_a_wrong_rate_is_seen():
    right = run(make()).output
    wrong = run(make(rate_out=0.5 * 3)).output
    assert np.abs(right[:, 0] - wrong[:, 0]).max() < 1e-15
    assert np.abs(right[:, 1] - wrong[:, 1]).max() > 1e-3


@pytest.fixture
def engine(monkeypatch):
    """Set options of the dense engine behind the door of `train`."""

    def options(shared_from=None, **values):
        made = functools.partial(dense.DenseNetwork, **values)
        monkeypatch.setitem(training.ENGINES, "dense", made)
        if shared_from is not None:
            monkeypatch.setattr(products, "_SHARED_FROM", shared_from)

    return options


SETS = {
    "serial": {"shared_from": 1 << 60},
    "shared": {"shared_from": 0},
    "batched": {"batched": True},
}


def gap(one, other, name):
    return np.abs(getattr(one, name) - getattr(other, name)).max()


# Each pair of a precision, a set and a way of keeping steps; float64 has all.
WAYS = {
    torch.float64: [(name, kept) for name in ("serial", "shared") for kept in (0, 3)],
    torch.float32: [("serial", 3), ("shared", 0)],
}


@pytest.mark.parametrize("samples", [1, 2, 5, 10, 13])
@pytest.mark.parametrize("shape", [SHAPE, Shape(3, 130, 600), Shape(2, 1, 3), Shape(2, 40, 512)])
@pytest.mark.parametrize("precision", WAYS)
def test_all_sets_of_products_agree(engine, samples, shape, precision):
    dynamics = make(samples=samples)
    engine(**SETS["batched"])
    batched = run(dynamics, shape, (0, 1), dtype=precision)
    tolerance = 1e-11 if precision == torch.float64 else 3e-4
    for name, kept in WAYS[precision]:
        engine(kept=kept, **SETS[name])
        other = run(dynamics, shape, (0, 1), dtype=precision)
        for state in ("output", "hidden", "backward"):
            assert gap(other, batched, state) < tolerance * np.abs(batched.hidden).max()


@pytest.mark.parametrize("kept", [0, 6, 100])
@pytest.mark.parametrize("name", ["serial", "shared"])
def test_steps_in_place_and_as_factors_are_steps(engine, kept, name):
    """Six steps: in place, as factors that just fit, as factors with room to spare."""
    dynamics = make(steps=7, rate_in=0.3, rate_out=0.6, rate_embedding=0.2)
    engine(kept=kept, **SETS[name])
    trained = run(dynamics)
    plain = by_autograd(dynamics, SHAPE, 0)
    np.testing.assert_allclose(trained.output[0], plain.output, atol=1e-11)
    np.testing.assert_allclose(trained.hidden[0], plain.hidden, atol=1e-10)
    np.testing.assert_allclose(trained.backward[0], plain.backward, atol=1e-10)


@pytest.mark.parametrize("kept", [0, 4])
@pytest.mark.parametrize("name", ["serial", "shared"])
def test_steps_that_get_lost_are_seen(engine, monkeypatch, kept, name):
    engine(kept=kept, **SETS[name])
    dynamics = make(steps=5)
    right = run(dynamics)
    for product in ("read_back", "write_back"):
        whole = getattr(products.Compiled, product)

        def lose(self, layer, learn, whole=whole):
            whole(self, layer, False)

        monkeypatch.setattr(products.Compiled, product, lose)
    whole_pass = products.Compiled.backward
    monkeypatch.setattr(
        products.Compiled, "backward", lambda self, layers, learn: whole_pass(self, layers, False)
    )
    monkeypatch.setattr(dense._Branch, "learn", lambda branch, step: None)
    wrong = run(dynamics)
    assert np.abs(right.output - wrong.output)[:, 0].max() == 0.0
    assert np.abs(right.output - wrong.output)[:, 1:].max() > 1e-3


def test_a_step_without_room_is_refused(engine):
    engine(kept=2, **SETS["serial"])
    with pytest.raises(ValueError, match="no room for another gradient step"):
        run(make(samples=1, steps=4))


def work(shape, samples, steps=15, **values):
    return Work(shape, samples, steps, 1, **values)


def test_factors_are_kept_where_a_whole_training_of_them_is_small():
    # 14 steps of 10 samples, 2 D + 2 M numbers each, against 2 M D weights.
    assert cost.kept_steps(work(Shape(9, 351, 351), 10)) == 14
    assert cost.kept_steps(work(Shape(9, 349, 349), 10)) == 0
    assert cost.kept_steps(work(Shape(9, 36, 36), 1)) == 14
    assert cost.kept_steps(work(Shape(9, 34, 34), 1)) == 0
    # Of three vectors a unit, 2 D + 3 M numbers against 3 M D.
    assert cost.kept_steps(work(Shape(9, 292, 292), 10, branches=(Branch(1, 2),))) == 14
    assert cost.kept_steps(work(Shape(9, 291, 291), 10, branches=(Branch(1, 2),))) == 0
    # A layer of two branches, one of them of twice the width, is that of their widths together.
    two = (Branch(ratio=2.0), Branch())
    assert cost.kept_steps(work(Shape(9, 292, 292), 10, branches=two)) == 14
    assert cost.kept_steps(work(Shape(9, 291, 291), 10, branches=two)) == 0
    # Steps that do more than add are dearer in place.
    assert cost.kept_steps(work(Shape(9, 141, 141), 10, additive=False, buffers=1)) == 14
    assert cost.kept_steps(work(Shape(9, 139, 139), 10, additive=False, buffers=1)) == 0
    # A training that takes no step.
    assert cost.kept_steps(work(Shape(9, 560, 560), 10, steps=1)) == 0


@pytest.mark.parametrize("samples", [1, 10])
@pytest.mark.parametrize("kept", [0, 14, None])
def test_memory_is_that_of_the_arrays(monkeypatch, samples, kept):
    shape, dynamics = Shape(4, 300, 300), make(samples=samples, steps=15)
    if kept is not None:
        monkeypatch.setattr(cost, "kept_steps", lambda _: kept)
    # What is imported and compiled at first is not the network's.
    dense.DenseNetwork(dynamics, shape, [0], table(300)(0)[None], 0)
    tracemalloc.start()
    network = dense.DenseNetwork(dynamics, shape, [0], table(300)(0)[None], 0)
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    at = network.branches[0].at
    # States are seen several times: before and after each layer.
    held = network.hidden.nbytes + network.backward.nbytes
    seen = {"h", "next_h", "b", "next_b", "base_b", "u"}
    held += sum(array.nbytes for name, array in vars(at).items() if name not in seen)
    said = cost.memory_bytes("dense", Work.of(dynamics, shape, 1, 8))
    assert said == held
    # Beside it, scratch arrays for one layer.
    assert held <= allocated < 1.2 * held
    factors = sum(factor.nbytes for factor in (at.past_u, at.past_dp, at.past_b, at.past_g))
    # By default factors of ten samples would be too large, and of one sample are not.
    assert (factors > 0) == (samples == 1 if kept is None else kept > 0)


@pytest.mark.parametrize("kept", [0, 4])
@pytest.mark.parametrize("name", SETS)
def test_one_batch_of_eight_seeds_is_eight_runs_of_one(engine, name, kept):
    engine(kept=kept, **SETS[name])
    dynamics, shape = make(steps=5), Shape(8, 16, 32)
    together = run(dynamics, shape, range(8))
    for seed in range(8):
        alone = run(dynamics, shape, [seed])
        for state in ("output", "loss", "hidden", "backward"):
            np.testing.assert_allclose(
                getattr(together, state)[seed], getattr(alone, state)[0], atol=1e-10
            )
    assert np.abs(together.output[0] - together.output[1]).max() > 1e-3


def test_draws_are_bit_identical_whatever_the_batch():
    weights = [
        dense._block_weights("block_in", 0, seeds, SHAPE, 7, 2.0, torch.float64)
        for seeds in (range(8), [5], [7, 5])
    ]
    assert torch.equal(weights[0][:, 5], weights[1][:, 0])
    assert torch.equal(weights[0][:, 5], weights[2][:, 1])
    assert not torch.equal(weights[0][:, 5], weights[0][:, 6])
    other_role = dense._block_weights("block_out", 0, [5], SHAPE, 7, 2.0, torch.float64)
    assert not torch.equal(weights[1], other_role)


def test_small_batches_give_the_same_training(monkeypatch):
    whole = run(make(), seeds=range(5))
    monkeypatch.setattr("resnet_limits.networks.cost.BATCH_BYTES", 2 * 2 * 5 * 7 * 11 * 8)
    parts = run(make(), seeds=range(5))
    np.testing.assert_allclose(parts.hidden, whole.hidden, atol=1e-12)
    assert parts.status.shape == (5,)


def test_only_the_steps_and_layers_asked_for_are_kept():
    whole = run(make(), seeds=range(2))
    part = run(make(), seeds=range(2), steps=[1, 3], layers=[0, 5])
    np.testing.assert_array_equal(part.hidden, whole.hidden[:, [1, 3]][:, :, [0, 5]])
    np.testing.assert_array_equal(part.backward, whole.backward[:, [1, 3]][:, :, [0, 5]])
    np.testing.assert_array_equal(part.loss, whole.loss[:, [1, 3]])


def test_divergence_is_named_and_harms_no_other_seed():
    # Seed 0 starts from a huge embedding and diverges under a rate that others bear.
    dynamics = make("linear", steps=6, rate_in=0.2, rate_out=0.2)

    def embedding(seed):
        return table(SHAPE.embed_dim)(seed) * (40.0 if seed == 0 else 1.0)

    options = {"steps": range(6), "layers": [5], "saved_dtype": np.float64}
    trained = train(dynamics, SHAPE, [0, 1], embedding, 0, **options)
    alone = train(dynamics, SHAPE, [1], embedding, 0, **options)
    assert trained.status.tolist() == [DIVERGED, OK]
    first = trained.diverged_step[0]
    assert first > 0
    assert np.isfinite(trained.output[0, :first]).all()
    for name in ("output", "loss", "hidden", "backward"):
        assert np.isnan(getattr(trained, name)[0, first:]).all()
        assert np.isfinite(getattr(trained, name)[1]).all()
    np.testing.assert_allclose(trained.hidden[1], alone.hidden[0], atol=1e-12)
    assert trained.diverged_step[1] == -1


@pytest.mark.parametrize(
    ("name", "kept"), [("serial", 11), ("shared", 0), ("batched", 0), ("batched", 11)]
)
def test_a_non_finite_state_is_divergence(engine, name, kept):
    engine(kept=kept, **SETS[name])
    trained = run(make(steps=12, rate_in=1e30, rate_out=1e30), dtype=torch.float32)
    assert trained.status.tolist() == [DIVERGED]
    assert np.isnan(trained.output[0, trained.diverged_step[0] :]).all()


def test_memory_is_refused_with_a_clear_line():
    with pytest.raises(MemoryRefusedError, match="L=5 M=7 D=11: the dense engine needs"):
        run(make(), memory_limit=1000)


def test_unknown_engine_lists_the_allowed():
    with pytest.raises(InputError, match="engine 'magic' is not available; allowed: auto, dense"):
        choose_engine("magic", make(), SHAPE, 1, torch.float64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_cuda_agrees_with_the_cpu(engine, precision, graphs):
    shape, dynamics = Shape(8, 64, 96), make(rate_embedding=0.1)
    cpu = run(dynamics, shape, (0, 1), dtype=precision)
    engine(graphs=graphs)
    gpu = run(dynamics, shape, (0, 1), dtype=precision, device="cuda")
    tolerance = 1e-10 if precision == torch.float64 else 1e-3
    np.testing.assert_allclose(gpu.hidden, cpu.hidden, atol=tolerance)
    np.testing.assert_allclose(gpu.output, cpu.output, atol=tolerance)
