"""Engines and limits on a device apart from the host, without one: see ``accelerator.py``."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from accelerator import DEVICE, Accelerator
from resnet_limits import jit
from resnet_limits.config import Shape
from resnet_limits.dynamics import Branch, Dynamics
from resnet_limits.limits import depth, ensemble, fixed_point, models
from resnet_limits.limits.models import Arithmetic, Limits
from resnet_limits.networks import cost, implicit, workers
from resnet_limits.networks.dense import DenseNetwork
from resnet_limits.networks.implicit import ImplicitNetwork
from resnet_limits.networks.train import ENGINES, train
from resnet_limits.norms import RMS
from resnet_limits.problem import Loss
from resnet_limits.rules import GradientDescent
from resnet_limits.units import ACTIVATIONS, AttentionHead, Perceptron, Unit
from resnet_limits.work import Work

SHAPE = Shape(2, 6, 8)
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
LOSSES = ("squared_error", "cross_entropy")


class Gated(Unit):
    """Two in- and two out-vectors: everything that depends on their number is at work."""

    in_vectors, out_vectors = 2, 2

    def forward(self, p):
        a, b = p[..., :1, :], p[..., 1:, :]
        return torch.cat([a * torch.sigmoid(b), torch.tanh(b)], dim=-2)

    def backward(self, p, g, r):
        a, b = p[..., :1, :], p[..., 1:, :]
        s = torch.sigmoid(b)
        first, second = r[..., :1, :], r[..., 1:, :]
        tail = 1 - g[..., 1:, :] ** 2
        return torch.cat([first * s, first * a * s * (1 - s) + second * tail], dim=-2)


UNITS = {**{name: lambda name=name: Perceptron(name) for name in ACTIVATIONS}, "gated": Gated}

# float32 takes other ways than float64 in the engines and the solver, not in the units.
CASES = [*((unit, "float64") for unit in UNITS), ("tanh", "float32"), ("gated", "float32")]


def make(unit="tanh", *, rows=2, steps=3, rate=0.3, loss="squared_error", embedding=0.1):
    rng = np.random.default_rng(3)
    targets = rng.standard_normal((rows, 2))
    return Dynamics.of_unit(
        inputs=rng.standard_normal((rows, 2)),
        targets=targets if loss == "squared_error" else np.eye(2)[targets.argmax(axis=1)],
        loss=Loss(loss),
        unit=UNITS[unit](),
        residual_scale=1.0,
        input_std=1.0,
        output_std=1.0,
        rate_in=rate,
        rate_out=rate,
        rate_embedding=embedding,
        steps=steps,
    )


def table(seed):
    return np.random.default_rng(seed).standard_normal((SHAPE.embed_dim, 4))


def trained(dynamics, engine, device, dtype, shape=SHAPE):
    return train(
        dynamics,
        shape,
        [0, 1],
        lambda seed: np.random.default_rng(seed).standard_normal((shape.embed_dim, 4)),
        0,
        engine=engine,
        dtype=dtype,
        device=device,
        steps=range(dynamics.steps),
        layers=range(shape.depth + 1),
        saved_dtype=np.float64,
    )


@pytest.fixture
def accelerator(monkeypatch):
    """Enter it in the test, around what is to run there."""
    device = Accelerator()
    device.install(monkeypatch)
    monkeypatch.setitem(ensemble._CHUNK_ELEMENTS, DEVICE, ensemble._CHUNK_ELEMENTS["cuda"])
    return device


def agree(here, there, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for name in ("output", "loss", "hidden", "backward"):
        one, other = getattr(here, name), getattr(there, name)
        assert np.isfinite(one).all()
        scale = np.abs(one).max()
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(("unit", "precision"), CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_networks_are_those_of_the_host(accelerator, monkeypatch, engine, unit, precision):
    """Dense passes are recorded and replayed.

    Each unit's compiled code is that of torch by test_tiles.py: here one is compiled.
    """
    if unit not in ("tanh", "gated"):
        monkeypatch.setattr(jit, "enabled", lambda: False)
    dtype, dynamics = PRECISIONS[precision], make(unit)
    here = trained(dynamics, engine, "cpu", dtype)
    with accelerator:
        there = trained(dynamics, engine, DEVICE, dtype)
    assert accelerator.calls["baddbmm" if engine == "dense" else "bmm"]
    agree(here, there, dtype)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [1, 3])
def test_networks_with_other_rows_and_losses(accelerator, monkeypatch, engine, loss, rows):
    monkeypatch.setattr(jit, "enabled", lambda: False)
    dynamics = make(rows=rows, loss=loss, embedding=0.0)
    here = trained(dynamics, engine, "cpu", torch.float64)
    with accelerator:
        there = trained(dynamics, engine, DEVICE, torch.float64)
    agree(here, there, torch.float64)


@pytest.mark.parametrize("graphs", [True, False])
def test_passes_without_and_with_recordings(accelerator, graphs):
    dynamics = make()

    def outputs(device, **options):
        tables = np.stack([table(seed) for seed in (0, 1)])
        network = DenseNetwork(dynamics, SHAPE, (0, 1), tables, 0, device=device, **options)
        for _ in range(3):
            f = network.forward_pass()
            network.backward_pass(dynamics.loss.gradient(f, network.targets), update=True)
        return network.forward_pass().cpu().numpy()

    here = outputs("cpu", batched=True)
    with accelerator:
        there = outputs(DEVICE, graphs=graphs)
    np.testing.assert_allclose(there, here, atol=1e-12)


@pytest.mark.parametrize(("unit", "precision"), CASES)
def test_limits_are_those_of_the_host(accelerator, unit, precision):
    dtype, dynamics = PRECISIONS[precision], make(unit)
    kind = "cubature" if dynamics.is_linear else "sobol"
    points, replicates = (0, 1) if kind == "cubature" else (1 << 8, 2)
    plan = models.Plan(kind, points, replicates, 4, 0, precision, 1e-8)
    rng = np.random.default_rng(0)
    root = np.eye(4) + 0.1 * rng.standard_normal((4, 4))
    root = (root + root.T) / 2

    def solve(device):
        limits = Limits(dynamics, np.eye(4), Arithmetic(dtype, device))
        continuous = limits.trajectories.solve(root, depth.continuous, plan, "")
        # The limit's own error is of many more solutions, which are the same work on the device.
        more = (limits.dmft(plan).trajectory,) if unit == "linear" else ()
        return continuous, limits.wide(root, 3, plan).trajectory, *more

    here = solve("cpu")
    with accelerator:
        there = solve(DEVICE)
    assert accelerator.calls["bmm"]
    for one, other in zip(here, there, strict=True):
        agree(one, other, dtype)


def test_limits_of_transformers_with_momentum_and_batches_are_those_of_the_host(
    accelerator, monkeypatch
):
    rng = np.random.default_rng(0)
    rates = {"norm": RMS(), "rate_in": 0.3, "rate_out": 0.3}
    dynamics = Dynamics(
        rng.standard_normal((6, 2)),
        rng.standard_normal((6, 2)),
        Loss("squared_error"),
        (Branch(AttentionHead(2, True, 3), **rates), Branch(Perceptron("gelu"), **rates)),
        4,
        rate_embedding=0.1,
        rate_unembedding=0.2,
        final_norm=RMS(),
        rule=GradientDescent(momentum=0.5, decay=0.1),
        weights=np.array([0.0, 0.2, 0.1, 0.3, 0.3, 0.1]),
        batches=((0, 1, 2), (3, 4, 5), (0, 1, 2)),
    )
    plan = models.Plan("sobol", 1 << 9, 1, 2, 0, "float64", 1e-9)

    def solve(device):
        limits = Limits(dynamics, np.eye(4), Arithmetic(torch.float64, device))
        continuous = limits.trajectories.solve(np.eye(4), depth.continuous, plan, "")
        return continuous, limits.wide(np.eye(4), 2, plan).trajectory

    # A part of the units does the iteration.
    monkeypatch.setattr(fixed_point, "_PART_POINTS", 32)
    here = solve("cpu")
    with accelerator:
        there = solve(DEVICE)
    for one, other in zip(here, there, strict=True):
        assert one.passes > 1
        agree(one, other, torch.float64)


def test_the_pilot_and_iterations_on_all_units(accelerator, monkeypatch):
    """The pilot's choices are those of the host, also where plain iteration has to take over."""
    dynamics = make(steps=3)

    def outputs(device):
        limits = Limits(dynamics, np.eye(4), Arithmetic(torch.float64, device))
        plan, solution = limits.make_plan(3e-2, 0)
        return plan, solution.trajectory.output

    usual = fixed_point.MAX_PASSES, fixed_point.PICARD_ITERATIONS
    for passes, picard in (usual, (1, 2)):
        monkeypatch.setattr(fixed_point, "MAX_PASSES", passes)
        monkeypatch.setattr(fixed_point, "PICARD_ITERATIONS", picard)
        plan, here = outputs("cpu")
        with accelerator:
            same, there = outputs(DEVICE)
        assert plan == same
        np.testing.assert_allclose(there, here, atol=1e-5)
    assert accelerator.calls["_linalg_solve_ex"]


@pytest.mark.parametrize(("rows", "precision"), [(1, "float64"), (4, "float32")])
@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        ("dense", Shape(4, 300, 300)), ("dense", Shape(1, 2000, 64)),
        ("implicit", Shape(4, 4000, 4000)), ("implicit", Shape(1, 60_000, 100)),
    ],
)  # fmt: skip
def test_memory_is_what_was_planned(accelerator, monkeypatch, engine, shape, rows, precision):
    """Never more but for what a few blocks of work take, which no shape makes larger."""
    monkeypatch.setattr(implicit, "_KEPT_ELEMENTS", 1 << 10)
    monkeypatch.setattr(implicit, "_CHUNK_ELEMENTS", 1 << 10)
    monkeypatch.setattr(workers, "_LONG_BLOCK", 1 << 8)
    monkeypatch.setattr(workers, "_GPU_BLOCKS", 4)
    dtype, dynamics = PRECISIONS[precision], make(rows=rows)
    with accelerator:
        trained(dynamics, engine, DEVICE, dtype, shape)
    planned = cost.memory_bytes(engine, Work.of(dynamics, shape, 2, dtype.itemsize))
    assert 0.5 * 2 * planned < accelerator.peak
    assert accelerator.peak < 1.1 * 2 * planned + (8 << 20)


@pytest.mark.parametrize(("on_host", "several"), [(True, True), (False, False)])
def test_the_host_draws_with_all_its_threads(on_host, several):
    """Not what the device is asked to do, which one thread asks for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shared = workers.Workers(torch.device(DEVICE))
    finally:
        torch.set_num_threads(threads)
    both = threading.Barrier(2, timeout=30)

    def meet(_job):
        if several:
            both.wait()
        return threading.current_thread().name

    names = shared.run(meet, [0, 1], 1 << 20, on_host=on_host)
    assert (len(set(names)) == 2) == several


# --- negative controls ----------------------------------------------------------------------------


class Forgetful(Perceptron):
    """A unit with a constant that stays on the host."""

    def forward(self, p):
        return super().forward(p) * torch.ones(p.shape[-1], dtype=p.dtype)


class Peeking(Perceptron):
    """A unit that reads a number back."""

    def forward(self, p):
        return super().forward(p) * (1.0 if float(p.sum()) > 0 else -1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_tensor_that_stays_on_the_host_is_found(accelerator, monkeypatch, engine):
    monkeypatch.setitem(UNITS, "bad", lambda: Forgetful("tanh"))
    with accelerator, pytest.raises(RuntimeError, match="on the same device"):
        trained(make("bad"), engine, DEVICE, torch.float64)


def test_reading_back_in_a_recording_is_found(accelerator, monkeypatch):
    monkeypatch.setitem(UNITS, "bad", lambda: Peeking("tanh"))
    with accelerator, pytest.raises(RuntimeError, match="while a graph is recorded"):
        trained(make("bad"), "dense", DEVICE, torch.float64)


def test_work_that_is_not_the_same_when_done_twice_is_found(accelerator, monkeypatch):
    forward = DenseNetwork._all_forward

    def twice(self):
        forward(self)
        self.inputs += 0.01

    monkeypatch.setattr(DenseNetwork, "_all_forward", twice)
    here = trained(make(), "dense", "cpu", torch.float64)
    with accelerator:
        there = trained(make(), "dense", DEVICE, torch.float64)
    assert np.abs(there.output - here.output).max() > 1e-3


def test_states_read_on_the_host_without_a_copy_are_found(accelerator):
    with accelerator:
        network = ImplicitNetwork(make(), SHAPE, [0], table(0)[None], 0, device=DEVICE)
        with pytest.raises(RuntimeError, match="not supported"):
            network.hidden.numpy()


def test_memory_beyond_the_plan_is_found(accelerator, monkeypatch):
    forward = DenseNetwork._all_forward

    def hoarding(self):
        self.hoard = [*getattr(self, "hoard", []), self.branches[0].at.incoming * 2]
        forward(self)

    monkeypatch.setattr(DenseNetwork, "_all_forward", hoarding)
    dynamics, shape = make(), Shape(4, 300, 300)
    with accelerator:
        trained(dynamics, "dense", DEVICE, torch.float64, shape)
    planned = cost.memory_bytes("dense", Work.of(dynamics, shape, 2, 8))
    assert accelerator.peak > 1.3 * 2 * planned
