"""Stored data do not depend on the order of jobs, on other cells, or on the number of threads."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_limits import provenance, store
from resnet_limits.config import Shape
from resnet_limits.stages import limits, networks
from resnet_limits.stages.paths import Paths, cells
from resnet_limits.stages.publish import publish


def compute(experiment, root, order):
    """Compute all networks and limits in the given order, as jobs would; return data digests."""
    paths = Paths(root, experiment.experiment)
    stages = {
        "dmft": lambda: limits.dmft(experiment),
        "mean_ode": lambda embed_dim: limits.mean_ode(
            experiment, embed_dim, limits.dmft(experiment)
        ),
        "wide": lambda depth, embed_dim: limits.wide(
            experiment, depth, embed_dim, limits.dmft(experiment)
        ),
        "finite": lambda **shape: networks.finite(experiment, Shape(**shape)),
    }
    jobs = [(kind, cell) for kind in stages for cell in cells(kind, experiment)]
    digests = {}
    for index in order(len(jobs)):
        kind, cell = jobs[index]
        path = publish(
            stages[kind](**cell),
            paths.store(kind, **cell),
            kind=kind,
            experiment=experiment,
            key=provenance.stage_key(kind, experiment, **cell),
            device="cpu",
            seeds=experiment.seeds,
            started=time.monotonic(),
        )
        digests[Path(path).relative_to(root)] = store.data_digest(path)
    return digests


def test_two_orders_of_jobs_give_the_same_bytes(tiny_experiment, tmp_path):
    experiment = tiny_experiment()
    forwards = compute(experiment, tmp_path / "one", range)
    shuffled = compute(
        experiment, tmp_path / "two", lambda n: np.random.default_rng(0).permutation(n)
    )
    assert len(forwards) > 8
    assert forwards == shuffled
    other = compute(tiny_experiment(seed=1), tmp_path / "three", range)
    assert all(forwards[name] != other[name] for name in forwards)


def test_other_sweep_values_change_nothing(tiny_experiment):
    small, large = (
        tiny_experiment(sweep={"grid": {"depth": [2], "width": widths, "embed_dim": [16]}})
        for widths in ([8], [4, 8, 512])
    )
    shape = Shape(2, 8, 16)
    assert networks.finite(small, shape).identical(networks.finite(large, shape))


@pytest.mark.parametrize("shared_from", [0, 1 << 60])
def test_threads_change_nothing(tiny_experiment, monkeypatch, shared_from):
    monkeypatch.setattr("resnet_limits.networks.products._SHARED_FROM", shared_from)
    experiment = tiny_experiment()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(networks.finite(experiment, Shape(4, 40, 60)))
    finally:
        torch.set_num_threads(before)
    assert results[0].identical(results[1])
