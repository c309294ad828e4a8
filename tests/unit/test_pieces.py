"""Kept states beyond memory: in a file without a name, and in the store as they were."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from resnet_limits import store
from resnet_limits.config import Shape
from resnet_limits.kinds import DIVERGED, OK
from resnet_limits.networks import cost
from resnet_limits.networks.train import train
from resnet_limits.stages import estimates, networks
from resnet_limits.store import packing
from resnet_limits.store.scratch import ScratchArray
from resnet_limits.work import MemoryRefusedError, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from resnet_limits.config import Experiment

    Make = Callable[..., Experiment]

SHAPE = Shape(4, 8, 16)
TOKENS = {"kind": "in_context_regression", "samples": 3, "tokens": 4, "inputs": 2}
CASES: dict[str, dict[str, Any]] = {
    "dense": {"sweep": {"engine": "dense"}},
    "implicit": {"sweep": {"engine": "implicit"}},
    "few steps and layers": {"save": {"steps": [2], "depth_points": 2}},
    "double": {"save": {"dtype": "float64"}},
    "tokens": {"problem": {"data": TOKENS}},
    "diverged": {"training": {"steps": 6, "learning_rate": 300.0}},
}


def files(path: Path) -> dict[str, bytes]:
    """Names and contents of a store."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def written(experiment: Experiment, path: Path, *, in_pieces: bool) -> dict[str, bytes]:
    """Train and write one shape, with kept states in memory or in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        if in_pieces:
            patch.setattr(cost, "KEPT_BYTES", 0)
        dataset = networks.finite(experiment, SHAPE, beside=path)
    assert (dataset["hidden"].chunks is not None) == in_pieces
    assert (dataset["backward"].chunks is not None) == in_pieces
    return files(store.write(dataset, path, "finite"))


@pytest.fixture
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files and batches so small that there are many of both."""
    monkeypatch.setattr(packing, "CHUNK_BYTES", 2**8)
    monkeypatch.setattr(packing, "SHARD_BYTES", 2**10)
    monkeypatch.setattr(cost, "BATCH_BYTES", 1)


@pytest.mark.usefixtures("many_pieces")
@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip"])
@pytest.mark.parametrize("case", CASES)
def test_stores_written_in_pieces_are_the_same_byte_for_byte(
    case: str, name: str, tmp_path: Path, tiny_experiment: Make
) -> None:
    experiment = tiny_experiment(**CASES[case])
    held = written(experiment, tmp_path / "held" / name, in_pieces=False)
    pieces = written(experiment, tmp_path / "pieces" / name, in_pieces=True)
    assert pieces == held
    assert [file.name for file in (tmp_path / "pieces").iterdir()] == [name]
    if name == "a.zarr":
        assert sum(file.startswith("hidden/c") for file in held) > 2 or "few" in case


def test_small_stores_are_the_same_too(tmp_path: Path, tiny_experiment: Make) -> None:
    # In memory their files are put together without zarr.
    experiment = tiny_experiment()
    held = written(experiment, tmp_path / "held.zarr", in_pieces=False)
    assert written(experiment, tmp_path / "pieces.zarr", in_pieces=True) == held


@pytest.mark.parametrize("case", ["diverged", "dense"])
def test_the_comparison_would_see_what_is_lost(
    case: str, tmp_path: Path, tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: steps after divergence that are not NaN, and a block in another's place."""
    experiment = tiny_experiment(**CASES[case])
    held = written(experiment, tmp_path / "held.zarr", in_pieces=False)
    put = ScratchArray.__setitem__

    def careless(array: ScratchArray, place: tuple[int, int], block: Any) -> None:
        put(array, place if case == "diverged" else (place[0], max(place[1], 1)), block)
        array._written[:] = True

    monkeypatch.setattr(ScratchArray, "__setitem__", careless)
    found = written(experiment, tmp_path / "pieces.zarr", in_pieces=True)
    different = {name for name in held if held[name] != found[name]}
    assert different == {"hidden/c.0.0.0.0.0", "backward/c.0.0.0.0.0"}


def test_what_diverged_is_nan_from_then_on(
    tmp_path: Path, tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "KEPT_BYTES", 0)
    experiment = tiny_experiment(**CASES["diverged"])
    dataset = networks.finite(experiment, SHAPE, beside=tmp_path / "a.zarr")
    assert (dataset["status"] == DIVERGED).all()
    for seed, first in enumerate(dataset["diverged_step"].values):
        assert 0 < first < 6
        values = dataset["hidden"][seed].values
        assert np.isfinite(values[:first]).all()
        assert np.isnan(values[first:]).all()


# --- memory ---------------------------------------------------------------------------------------


def wide(tiny_experiment: Make) -> Experiment:
    """Many kept states of small networks: 84 MB in all, 0.7 MB of a step."""
    data = {"kind": "gaussian", "samples": 16, "inputs": 2, "targets": 2, "seed": 0}
    return tiny_experiment(
        problem={"data": data},
        training={"steps": 128, "learning_rate": 0.01},
        sweep={"engine": "dense"},
        save={"depth_points": "all", "dtype": "float64"},
    )


def test_memory_is_that_of_pieces(
    tmp_path: Path, tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_BYTES", 2**18)
    monkeypatch.setattr(packing, "SHARD_BYTES", 2**20)
    experiment = wide(tiny_experiment)
    shape = Shape(4, 8, 256)
    peaks = {}
    for limit in (0, cost.KEPT_BYTES):
        monkeypatch.setattr(cost, "KEPT_BYTES", limit)
        path = tmp_path / f"{limit}.zarr"
        # What is imported and compiled at first is not the networks'.
        store.write(networks.finite(experiment, SHAPE, beside=path), path, "finite")
        tracemalloc.start()
        dataset = networks.finite(experiment, shape, beside=path)
        store.write(dataset, path, "finite")
        peaks[limit] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    saved = 2 * dataset["hidden"].nbytes
    assert saved > 80e6
    assert peaks[0] < 0.15 * saved
    # Control: the same way, with all of them in memory.
    assert peaks[cost.KEPT_BYTES] > saved


def trained(experiment: Experiment, limit: int | None, elsewhere: Any) -> Any:
    """Train a shape under a limit of memory."""
    from resnet_limits.dynamics import make_dynamics
    from resnet_limits.problem import embedding_rows, make_problem

    problem = make_problem(experiment)
    return train(
        make_dynamics(experiment, problem),
        SHAPE,
        [0, 1],
        lambda seed: embedding_rows(problem, 0, seed, SHAPE.embed_dim),
        0,
        steps=range(experiment.training.steps),
        layers=range(5),
        memory_limit=limit,
        elsewhere=elsewhere,
    )


def test_only_what_has_no_room_in_pieces_is_refused(
    tmp_path: Path, tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_WRITTEN", 0)
    experiment = tiny_experiment(training={"steps": 200, "learning_rate": 0.01})
    work = replace(
        estimates.work("finite", experiment, **SHAPE._asdict()), saved=2 * 2 * 200 * 5 * 2 * 16 * 4
    )
    whole = cost.peak_bytes("dense", work)
    least = cost.peak_bytes("dense", work, in_pieces=True)
    assert least < whole
    elsewhere = partial(ScratchArray, tmp_path)
    wanted = trained(experiment, whole, elsewhere)
    assert isinstance(wanted.hidden, np.ndarray)
    found = trained(experiment, whole - 1, elsewhere)
    assert isinstance(found.hidden, ScratchArray)
    for name in ("output", "loss", "hidden", "backward", "status", "diverged_step", "overflowed"):
        np.testing.assert_array_equal(getattr(found, name)[:], getattr(wanted, name))
    assert (found.status == OK).all()
    assert isinstance(trained(experiment, least, elsewhere).hidden, ScratchArray)
    with pytest.raises(MemoryRefusedError, match="GiB at a time until they are written, and"):
        trained(experiment, least - 1, elsewhere)
    with pytest.raises(MemoryRefusedError, match="GiB until they are written, and"):
        trained(experiment, whole - 1, None)


def test_a_job_asks_for_memory_by_what_it_will_hold(tiny_experiment: Make) -> None:
    def megabytes(steps: int) -> int:
        experiment = tiny_experiment(
            training={"steps": steps, "learning_rate": 0.01}, sweep={"engine": "implicit"}
        )
        return estimates.megabytes("finite", experiment, depth=64, width=8, embed_dim=64)

    work = Work(Shape(64, 1024, 4096), 16, 2, 8)
    most = replace(work, saved=cost.KEPT_BYTES)
    more = replace(work, saved=cost.KEPT_BYTES + 1)
    assert [cost.in_pieces(each) for each in (work, most, more)] == [False, False, True]
    assert cost.held_bytes("dense", most) == 2 * cost.KEPT_BYTES
    assert cost._WRITTEN == 4 * packing.SHARD_BYTES
    step = cost.held_bytes("dense", more, in_pieces=True)
    # However many steps are kept, and no less than one of them in both ways with its copies.
    assert cost.held_bytes("dense", replace(more, saved=2**50), in_pieces=True) == step
    assert step > 2 * cost.batch("dense", work) * 65 * 16 * 4096 * (8 + 4)
    assert megabytes(4) < megabytes(40)


def test_a_large_study_asks_for_the_memory_of_pieces(
    tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = wide(tiny_experiment)
    cell = {"depth": 64, "width": 8, "embed_dim": 4096}
    pieces = estimates.megabytes("finite", experiment, **cell)
    monkeypatch.setattr(cost, "KEPT_BYTES", 2**60)
    held = estimates.megabytes("finite", experiment, **cell)
    saved = estimates.work("finite", experiment, **cell).saved
    assert saved > 4 * 2**30
    assert pieces < 0.25 * saved / 2**20
    assert held > 2 * saved / 2**20


# --- nothing is left ------------------------------------------------------------------------------

KILLED = """
    import itertools, os, signal, sys
    from pathlib import Path

    from resnet_limits.config import Shape, experiment_from_dict
    from resnet_limits.networks import cost
    from resnet_limits.stages import networks
    from resnet_limits.store.scratch import ScratchArray

    put, count = ScratchArray.__setitem__, itertools.count(1)

    def deadly(array, place, block):
        put(array, place, block)
        if next(count) == 5:
            there = os.fstat(array._file.fileno())
            print(there.st_nlink, there.st_blocks > 0, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    ScratchArray.__setitem__ = deadly
    cost.KEPT_BYTES = 0
    experiment = experiment_from_dict({values!r}, where="killed")
    networks.finite(experiment, Shape(4, 8, 16), beside=Path({path!r}))
"""


def test_a_kill_leaves_nothing(tmp_path: Path, tiny_values: Callable[..., Any]) -> None:
    script = textwrap.dedent(KILLED).format(values=tiny_values(), path=str(tmp_path / "a.zarr"))
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    # It was there and had no name.
    assert ended.stdout.split() == ["0", "True"]
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_an_error_and_leaves_nothing(
    tmp_path: Path, tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "KEPT_BYTES", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            networks.finite(tiny_experiment(), SHAPE, beside=tmp_path / "a.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# --- the array ------------------------------------------------------------------------------------


def test_pieces_are_those_of_an_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wanted = np.full((3, 4, 5, 6), np.nan, np.float32)
    array = ScratchArray(tmp_path / "not" / "there", wanted.shape, np.float32)
    for place in itertools.product(range(3), range(4)):
        if place != (1, 2):
            # Blocks of other precisions and orders in memory.
            wanted[place] = block = rng.normal(size=(6, 5)).T
            array[place] = block
    assert os.listdir(tmp_path) == []
    assert (array.ndim, array.nbytes) == (4, wanted.nbytes)
    for key in ((slice(1, 3), slice(0, 3, 2)), (slice(None), 2, ..., slice(1, 4)), (1, 2, 3, 4)):
        np.testing.assert_array_equal(array[key], wanted[key])
    other = array.reshape(3, 4, 5, -1, 2)
    del array
    np.testing.assert_array_equal(other[:, 1:], wanted.reshape(3, 4, 5, 3, 2)[:, 1:])
    dims = ("seed", "step", "depth_point", "sample", "coordinate")
    np.testing.assert_array_equal(other.lazily(dims).compute(), wanted.reshape(3, 4, 5, 3, 2))
    with pytest.raises(ValueError, match=r"a block of shape \(5, 6\): must be \(5, 3, 2\)"):
        other[0, 0] = wanted[0, 0]
    with pytest.raises(ValueError, match="must begin with"):
        other.reshape(4, 3, 5, 6)
