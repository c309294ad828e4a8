"""Blocks of the errors stage have the same bits wherever Dask computes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from test_distances import Results

from resnet_limits import store
from resnet_limits.config import Experiment, InputError
from resnet_limits.stages import errors as stage
from resnet_limits.stages import scheduling


@pytest.fixture
def opened(
    tiny_experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Experiment, Callable[[str, dict[str, int]], xr.Dataset]]:
    """An experiment and its stores on disk, in chunks that are so small that all are lazy."""
    monkeypatch.setattr(store.packing, "CHUNK_BYTES", 512)
    monkeypatch.setattr(store.packing, "SHARD_BYTES", 1024)
    experiment = tiny_experiment()
    results = Results(experiment)
    written: dict[Any, Path] = {}

    def open_store(kind: str, cell: dict[str, int]) -> xr.Dataset:
        key = (kind, *cell.values())
        if key not in written:
            made = results(kind, cell).load()
            written[key] = store.write(made, tmp_path / f"{len(written)}.zarr")
        found = store.load(written[key], stage.READ[kind])
        assert found["hidden" if kind == "finite" else "hidden_coef"].chunks is not None
        return found

    return experiment, open_store


@pytest.fixture
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


def test_workers_give_the_bits_of_threads(opened: Any, client: Any) -> None:
    experiment, open_store = opened
    before = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
    by_workers = stage.errors(experiment, open_store)
    after = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
    assert after > before
    with scheduling.threads(2):
        by_threads = stage.errors(experiment, open_store)
    assert (
        client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter) == after
    )
    for pair, table in by_threads.items():
        for name, variable in table.variables.items():
            np.testing.assert_array_equal(variable.values, by_workers[pair][name].values)
    # What is compared are bits: the next number is another one.
    off = np.nextafter(by_threads["finite-dmft"]["hidden_rms"].values, np.inf)
    assert not np.array_equal(off, by_workers["finite-dmft"]["hidden_rms"].values)


def test_threads_are_as_many_as_the_job_has() -> None:
    with scheduling.threads(3):
        assert dask.config.get("scheduler") == "threads"
        assert dask.config.get("num_workers") == 3
    assert dask.config.get("scheduler", None) is None


def test_jobs_of_a_cluster_without_the_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    asked = scheduling.slurm_jobs(2, memory_mb=1000, minutes=10)
    with pytest.raises(InputError, match=r"errors_workers: .*; allowed: .*\[cluster\]"), asked:
        pass
