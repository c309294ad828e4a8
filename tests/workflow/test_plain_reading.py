"""Stores as they are read by those who have xarray and zarr, and not this package."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import xarray as xr
from trees import Tree

from resnet_limits import store
from resnet_limits.config import experiment_from_dict
from resnet_limits.stages.paths import Paths, cells

KINDS = ("problem", "dmft", "mean_ode", "wide", "finite", "errors")

READER = """
import hashlib, json, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "resnet_limits":
            raise ImportError("not here")

sys.meta_path.insert(0, Forbidden())
import xarray as xr

found = {}
for path, group in json.load(sys.stdin):
    dataset = xr.open_zarr(path, group=group)
    found[f"{path} {group}"] = {
        str(name): [
            list(variable.dims), str(variable.dtype), list(variable.shape),
            hashlib.sha256(variable.values.tobytes()).hexdigest(),
        ]
        for name, variable in dataset.variables.items()
    }
    assert dataset.attrs or group
    assert all("long_name" in dataset[name].attrs for name in dataset.data_vars)
assert "resnet_limits" not in sys.modules
json.dump(found, sys.stdout)
"""


def facts(dataset: xr.Dataset) -> dict[str, list[Any]]:
    return {
        str(name): [
            list(variable.dims),
            str(variable.dtype),
            list(variable.shape),
            hashlib.sha256(variable.values.tobytes()).hexdigest(),
        ]
        for name, variable in dataset.variables.items()
    }


def read_plainly(stores: list[tuple[str, str | None]], program: str = READER) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input=json.dumps(stores),
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def stores(
    finished_tree: Tree, tiny_values: Callable[..., dict[str, Any]]
) -> list[tuple[str, str | None]]:
    """Every store of a finished run, the groups of the error tables one by one."""
    experiment = experiment_from_dict(tiny_values())
    paths = Paths(finished_tree.path / "results", experiment.experiment)
    found: list[tuple[str, str | None]] = []
    for kind in KINDS:
        for cell in cells(kind, experiment):
            path = paths.store(kind, **cell)
            found += [(str(path), group or None) for group in store.groups(path) or [""]]
    return found


def test_plain_xarray_reads_the_same_values(stores: list[tuple[str, str | None]]) -> None:
    done = read_plainly(stores)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    own = {f"{path} {group}": facts(store.open_store(path, group)) for path, group in stores}
    assert found == own
    assert all(own.values())
    kinds = {path.partition("/results/tiny/")[2].partition("/")[0] for path, _ in stores}
    assert {kind.removesuffix(".zarr") for kind in kinds} == set(KINDS)
    assert sum(group is not None for _, group in stores) == 5


def test_the_package_is_out_of_reach_there() -> None:
    """The negative control."""
    done = read_plainly([], READER.replace("import xarray", "import resnet_limits, xarray"))
    assert done.returncode == 1
    assert "ImportError: not here" in done.stderr
