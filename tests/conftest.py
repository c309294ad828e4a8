"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from resnet_limits.openmp import wait_asleep

if TYPE_CHECKING:
    import xarray as xr

    from resnet_limits.config import Experiment

# The tests' arrays are small, and several processes run tests side by side: one thread each. Set
# before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What several threads do together is tested too. Those that wait for others would spin, on cores
# that the other process needs: ten times the time of the work itself.
wait_asleep()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Hold torch to one thread: the first loop that numba shares gives it numba's number."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


_TINY: dict[str, Any] = {
    "experiment": "tiny",
    "seed": 0,
    "problem": {
        "data": {"kind": "gaussian", "samples": 2, "inputs": 2, "targets": 2, "seed": 0},
        "loss": "squared_error",
    },
    "model": {
        "unit": {"kind": "perceptron", "activation": "tanh"},
        "residual_scale": 1.0,
        "init_std": {"input": 1.0, "output": 1.0, "embedding": 1.0, "unembedding": 1.0},
    },
    "training": {"steps": 3, "learning_rate": 0.5, "train_embeddings": False},
    "sweep": {
        "grid": {"depth": [2, 4], "width": [8], "embed_dim": [4, 16]},
        "seeds": 2,
        "engine": "auto",
        "pairs": [
            "finite-wide",
            "wide-mean_ode",
            "mean_ode-dmft",
            "finite-mean_ode",
            "finite-dmft",
        ],
    },
    "numerics": {"precision": "float64", "device": "cpu", "limit_tolerance": 1.0e-2},
    "save": {"depth_points": 3, "steps": "all", "dtype": "float32"},
}


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        # Another kind has other keys, so it takes the whole place.
        keep = isinstance(old, dict) and isinstance(change, dict) and "kind" not in change
        merged[key] = _merged(old, change) if keep else change
    return merged


@pytest.fixture(scope="session")
def tiny_values() -> Callable[..., dict[str, Any]]:
    """Build the values of a small experiment file, with nested keys replaced.

    ``tiny_values(training={"steps": 5})`` changes that key and keeps its neighbours.
    """

    def build(**overrides: Any) -> dict[str, Any]:
        return _merged(_TINY, overrides)

    return build


@pytest.fixture(scope="session")
def tiny_experiment(tiny_values: Callable[..., dict[str, Any]]) -> Callable[..., Experiment]:
    """Build a small validated experiment; overrides as for ``tiny_values``."""
    from resnet_limits.config import experiment_from_dict

    def build(**overrides: Any) -> Experiment:
        return experiment_from_dict(tiny_values(**overrides), where="tiny")

    return build


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., xr.Dataset]:
    """Build random datasets that are what a kind of store must hold."""
    import numpy as np
    import xarray as xr

    from resnet_limits.store import SCHEMAS

    sizes = {
        "seed": 2, "step": 3, "node": 4, "depth_point": 3, "sample": 2, "token": 2, "target": 2,
        "input": 3, "rank": 2, "coordinate": 5, "embedding_direction": 4, "replicate": 2,
        "cell": 6,
    }  # fmt: skip
    attrs = {
        "quadrature_points": 8,
        "quadrature_kind": "sobol",
        "depth": 2,
        "width": 8,
        "embed_dim": 5,
        "engine": "dense",
        "engine_reason": "small",
    }

    def build(kind: str, *, tokens: bool = False, seed: int = 0, **other: int) -> xr.Dataset:
        rng = np.random.default_rng(seed)
        length = {**sizes, **other}
        schema = SCHEMAS[kind]
        variables: dict[str, Any] = {}
        for name, wanted in schema.all.items():
            if name == "input_rotation":
                continue
            dims = tuple(d.removesuffix("?") for d in wanted.dims if tokens or d != "token?")
            shape = tuple(length[d] for d in dims)
            if wanted.dtype in {"int", "int8"}:
                values = np.arange(shape[0]) if dims == (name,) else np.zeros(shape)
                variables[name] = (dims, values.astype("int8" if wanted.dtype == "int8" else "i8"))
            else:
                dtype = "float32" if wanted.dtype == "float" else "float64"
                variables[name] = (dims, rng.normal(size=shape).astype(dtype))
        if "diverged_step" in variables:
            variables["diverged_step"] = (("seed",), np.full(length["seed"], -1))
        dataset = xr.Dataset(variables).set_coords(list(schema.coords))
        dataset.attrs = {name: attrs[name] for name in schema.attrs}
        return dataset

    return build


@pytest.fixture
def content(make_dataset: Callable[..., xr.Dataset]) -> Callable[..., Any]:
    """Build what a stage returns for a kind: a dataset, or one per pair."""
    from resnet_limits.config import PAIRS
    from resnet_limits.store import SCHEMAS

    def build(kind: str, **options: Any) -> xr.Dataset | dict[str, xr.Dataset]:
        dataset = make_dataset(kind, **options)
        return dict.fromkeys(PAIRS[:2], dataset) if SCHEMAS[kind].grouped else dataset

    return build
