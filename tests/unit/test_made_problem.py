"""The problem as its store holds it, in the stages behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from resnet_limits import store
from resnet_limits.config import Shape
from resnet_limits.problem import make_problem, problem_from
from resnet_limits.stages import errors, limits, networks
from resnet_limits.stages.problem import problem

if TYPE_CHECKING:
    import xarray as xr

    from resnet_limits.config import Experiment

Make = Callable[..., "Experiment"]

DATA: dict[str, dict[str, Any]] = {
    "gaussian": {"data": {"kind": "gaussian", "samples": 3, "inputs": 2, "targets": 2, "seed": 0}},
    "rotated": {"data": {"kind": "gaussian", "samples": 2, "inputs": 5, "targets": 1, "seed": 0}},
    "digits": {"data": {"kind": "digits", "samples": 6, "classes": 2}, "loss": "cross_entropy"},
    "file": {"data": {"kind": "file", "path": "tokens.npz", "positions": True}},
    "tasks": {"data": {"kind": "in_context_regression", "samples": 3, "tokens": 4, "inputs": 2}},
}


@pytest.mark.parametrize("name", DATA)
def test_a_problem_from_its_store_is_the_same_bit_for_bit(
    name: str, tmp_path: Path, tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(
        "tokens.npz",
        x=rng.normal(size=(2, 3, 4)),
        y=rng.normal(size=(2, 3, 1)),
        weight=rng.uniform(size=(2, 3)),
    )
    experiment = tiny_experiment(problem=DATA[name])
    path = store.write(problem(experiment), tmp_path / "problem.zarr", "problem")
    found, made = problem_from(experiment, store.open_store(path)), make_problem(experiment)
    assert np.array_equal(found.x, made.x)
    assert np.array_equal(found.y, made.y)
    assert (found.input_rotation is None) == (made.input_rotation is None)
    if made.input_rotation is not None:
        assert np.array_equal(found.input_rotation, made.input_rotation)
    assert (found.weight is None) == (made.weight is None) == (name not in ("file", "tasks"))
    if made.weight is not None:
        assert np.array_equal(found.weight, made.weight)
    assert found.loss == made.loss
    assert (found.tokens, found.embedding_dims) == (made.tokens, made.embedding_dims)


def test_stages_do_not_make_again_what_was_made(
    tiny_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment(sweep={"grid": {"depth": [2], "width": [8], "embed_dim": [4]}})
    made = make_problem(experiment)
    wanted = networks.finite(experiment, Shape(2, 8, 4))
    for stage in (networks, limits, errors):
        monkeypatch.delattr(stage, "make_problem")
    found = networks.finite(experiment, Shape(2, 8, 4), made=made)
    assert np.array_equal(found["output"], wanted["output"])
    dmft = limits.dmft(experiment, made)
    opened: dict[str, xr.Dataset] = {
        "dmft": dmft,
        "finite": found,
        "mean_ode": limits.mean_ode(experiment, 4, dmft, made=made),
        "wide": limits.wide(experiment, 2, 4, dmft, made=made),
    }
    assert set(errors.errors(experiment, lambda kind, _: opened[kind], made)) == set(
        experiment.pairs
    )
    with pytest.raises(NameError, match="make_problem"):
        networks.finite(experiment, Shape(2, 8, 4))
