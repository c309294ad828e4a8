"""Data, losses and embedding rows."""

from __future__ import annotations

import collections
import importlib.util
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.autograd.functional import jacobian

from resnet_limits.config import LOSSES, Experiment, InputError, experiment_from_dict
from resnet_limits.problem import (
    Loss,
    Problem,
    embedding_rows,
    gram_root,
    limit_gram_root,
    make_problem,
)


def _experiment(data: dict[str, Any], loss: str = "squared_error", **other: Any) -> Experiment:
    return experiment_from_dict(
        {
            "experiment": "problem",
            "problem": {"data": data, "loss": loss},
            "sweep": {"shapes": [[2, 4, 8]]},
            **other,
        }
    )


def _gaussian(samples: int, inputs: int, targets: int, seed: int = 0, **other: Any) -> Problem:
    data = {
        "kind": "gaussian",
        "samples": samples,
        "inputs": inputs,
        "targets": targets,
        "seed": seed,
    }
    return make_problem(_experiment(data, **other))


_STDS: dict[str, Any] = {"model": {"init_std": {"embedding": 0.5, "unembedding": 2.0}}}


# --- kinds of data --------------------------------------------------------------------------------


def test_gaussian_data_are_standard_normal_and_named_by_their_seed() -> None:
    problem = _gaussian(4000, 3, 2, seed=5)
    assert problem.x.shape == (4000, 3)
    assert problem.y.shape == (4000, 2)
    both = np.concatenate([problem.x, problem.y], axis=1)
    np.testing.assert_allclose(np.cov(both.T), np.eye(5), atol=0.12)
    np.testing.assert_array_equal(problem.x, _gaussian(4000, 3, 2, seed=5).x)
    assert not np.array_equal(problem.x, _gaussian(4000, 3, 2, seed=6).x)


def test_data_do_not_depend_on_other_parts_of_the_experiment() -> None:
    base = _gaussian(3, 2, 2)
    other = _gaussian(3, 2, 2, seed=0, training={"steps": 2}, **_STDS)
    np.testing.assert_array_equal(base.x, other.x)
    np.testing.assert_array_equal(base.y, other.y)
    other_root = make_problem(
        _experiment({"kind": "gaussian", "samples": 3, "inputs": 2, "targets": 2}, seed=9)
    )
    np.testing.assert_array_equal(base.x, other_root.x)


def test_linear_teacher_has_the_norm_the_map_and_the_noise_it_names() -> None:
    data = {
        "kind": "linear_teacher",
        "samples": 5000,
        "inputs": 3,
        "targets": 2,
        "input_norm": 0.8,
        "noise": 0.05,
    }
    problem = make_problem(_experiment(data))
    np.testing.assert_allclose(np.linalg.norm(problem.x, axis=1), 0.8, rtol=1e-14)
    # Uniform on the sphere: second moments norm^2 / d.
    np.testing.assert_allclose(problem.x.T @ problem.x / 5000, 0.64 / 3 * np.eye(3), atol=0.02)
    A, *_ = np.linalg.lstsq(problem.x, problem.y, rcond=None)
    noise = problem.y - problem.x @ A
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    noiseless = make_problem(_experiment({**data, "noise": 0}))
    A_exact, *_ = np.linalg.lstsq(noiseless.x, noiseless.y, rcond=None)
    np.testing.assert_allclose(noiseless.x @ A_exact, noiseless.y, atol=1e-13)
    np.testing.assert_allclose(A, A_exact, atol=0.01)


def test_linear_teacher_map_is_standard_normal_over_seeds() -> None:
    entries = []
    for seed in range(200):
        data = {"kind": "linear_teacher", "samples": 3, "inputs": 3, "targets": 3, "noise": 0.0}
        problem = make_problem(_experiment({**data, "seed": seed}))
        entries.append(np.linalg.solve(problem.x, problem.y).ravel())
    values = np.concatenate(entries)
    assert abs(values.mean()) < 4 / math.sqrt(values.size)
    assert values.var() == pytest.approx(1.0, abs=4 * math.sqrt(2 / values.size))


def test_one_linear_teacher_sample_is_the_default() -> None:
    problem = make_problem(_experiment({"kind": "linear_teacher", "inputs": 3, "targets": 3}))
    assert problem.x.shape == (1, 3)
    # One sample spans one direction.
    assert problem.input_dims == 1
    np.testing.assert_allclose(np.abs(problem.inputs), 0.8, rtol=1e-14)


@pytest.mark.parametrize(("samples", "classes"), [(32, 10), (7, 10), (100, 3), (360, 2)])
def test_digits_are_balanced_standardised_images(samples: int, classes: int) -> None:
    experiment = _experiment(
        {"kind": "digits", "samples": samples, "classes": classes}, loss="cross_entropy"
    )
    problem = make_problem(experiment)
    assert problem.x.shape == (samples, 64)
    assert problem.y.shape == (samples, classes)
    assert set(problem.y.sum(axis=1)) == {1.0}
    per_class = problem.y.sum(axis=0)
    assert per_class.max() - per_class.min() <= 1 or samples == 360
    assert len(np.unique(problem.x, axis=0)) == samples


def test_all_digits_have_mean_zero_and_deviation_one() -> None:
    problem = make_problem(_experiment({"kind": "digits", "samples": 1797, "seed": 3}))
    images, labels = load_digits(return_X_y=True)
    constant = images.std(axis=0) == 0
    assert constant.any()
    np.testing.assert_allclose(problem.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(problem.x.std(axis=0), np.where(constant, 0.0, 1.0), atol=1e-12)
    np.testing.assert_array_equal(problem.y.sum(axis=0), np.bincount(labels))
    # Every target belongs to its image.
    by_image = {row.tobytes(): label for row, label in zip(images, labels, strict=True)}
    scale = np.where(constant, 1.0, images.std(axis=0))
    found = np.round(problem.x * scale + images.mean(axis=0)) + 0.0  # no negative zeros
    expected = [by_image[row.tobytes()] for row in found]
    np.testing.assert_array_equal(problem.y.argmax(axis=1), expected)


def test_fewer_digits_are_the_beginning_of_more_and_the_seed_changes_them() -> None:
    few, more, other = (
        make_problem(_experiment({"kind": "digits", "samples": n, "seed": seed}))
        for n, seed in ((20, 0), (50, 0), (20, 1))
    )
    np.testing.assert_array_equal(few.x, more.x[:20])
    assert not np.array_equal(few.x, other.x)


def test_too_many_digits_are_refused() -> None:
    with pytest.raises(InputError, match=r"samples: got 1797; allowed: 1 to 360"):
        make_problem(_experiment({"kind": "digits", "samples": 1797, "classes": 2}))


# --- data with tokens -----------------------------------------------------------------------------

_TASKS = {"kind": "in_context_regression", "samples": 500, "tokens": 6, "inputs": 3, "targets": 2}


def test_tasks_are_linear_maps_of_their_own() -> None:
    problem = make_problem(_experiment(_TASKS))
    x, y = problem.x[..., :3], problem.y
    maps = np.array([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(np.einsum("sti,sio->sto", x, maps), y, atol=1e-12)
    # 3000 entries of variance 1/3, and 9000 of variance 1; four standard errors.
    assert maps.var() == pytest.approx(1 / 3, abs=4 / 3 * math.sqrt(2 / 3000))
    assert abs(maps.mean()) < 4 / math.sqrt(3 * 3000)
    assert x.var() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 9000))
    # Independent tasks: their maps are uncorrelated.
    flat = maps.reshape(500, -1)
    assert np.abs(np.corrcoef(flat[:-1, 0], flat[1:, 0])[0, 1]) < 4 / math.sqrt(499)
    assert problem.tokens == 6
    assert (problem.input_dims, problem.output_dims, problem.rows) == (5, 2, 3000)


def test_the_query_hides_its_target_and_alone_counts() -> None:
    problem = make_problem(_experiment(_TASKS))
    np.testing.assert_array_equal(problem.x[:, :-1, 3:], problem.y[:, :-1])
    assert not problem.x[:, -1, 3:].any()
    assert problem.y[:, -1].all()
    assert problem.weight is not None
    np.testing.assert_array_equal(problem.weight, np.tile([0.0] * 5 + [1.0], (500, 1)))
    assert problem.row_weights is not None
    assert problem.row_weights.sum() == pytest.approx(1.0)
    f = torch.zeros(3000, 2, dtype=torch.float64)
    value = problem.loss.value(
        f, torch.from_numpy(problem.targets), torch.from_numpy(3000 * problem.row_weights)
    )
    assert float(value) == pytest.approx(0.5 * (problem.y[:, -1] ** 2).sum(1).mean())


def test_tasks_have_the_noise_that_they_name() -> None:
    noisy, plain = (make_problem(_experiment({**_TASKS, "noise": n})) for n in (0.3, 0.0))
    difference = noisy.y - plain.y
    assert difference.std() == pytest.approx(0.3, rel=4 / math.sqrt(2 * 6000))
    np.testing.assert_array_equal(noisy.x[..., :3], plain.x[..., :3])


def test_more_tasks_begin_with_fewer_and_the_seed_changes_them() -> None:
    few, more, other = (
        make_problem(_experiment({**_TASKS, "samples": n, "seed": seed}))
        for n, seed in ((4, 0), (9, 0), (4, 1))
    )
    np.testing.assert_array_equal(few.x, more.x[:4])
    np.testing.assert_array_equal(few.y, more.y[:4])
    assert not np.array_equal(few.x, other.x)


def _characters(**changes: Any) -> Problem:
    data = {"kind": "characters", "samples": 40, "tokens": 12, "alphabet": 9, **changes}
    return make_problem(_experiment(data, loss="cross_entropy"))


def test_characters_are_the_text_of_this(capfd: pytest.CaptureFixture[str]) -> None:
    problem = _characters()
    assert capfd.readouterr().out == ""
    done = subprocess.run(
        [sys.executable, "-c", "import this"], capture_output=True, text=True, check=True
    )
    text = done.stdout.removesuffix("\n").lower()
    frequent = "".join(letter for letter, _ in collections.Counter(text).most_common(8))
    known = "".join(letter if letter in frequent else "?" for letter in text)
    # Which class is which letter follows from the frequencies alone.
    letters = np.array([*sorted(frequent, key=lambda a: (-text.count(a), a)), "?"])
    for x, y in zip(problem.x.argmax(-1), problem.y.argmax(-1), strict=True):
        assert "".join(letters[x]) + letters[y[-1]] in known
        np.testing.assert_array_equal(x[1:], y[:-1])
    assert set(problem.x.sum(axis=-1).ravel()) == set(problem.y.sum(axis=-1).ravel()) == {1.0}
    assert problem.weight is None
    assert len({x.tobytes() for x in problem.x}) == 40


def test_pieces_of_the_text_are_chosen_by_the_seed() -> None:
    few, more, other = _characters(samples=9), _characters(), _characters(samples=9, seed=1)
    np.testing.assert_array_equal(few.x, more.x[:9])
    assert not np.array_equal(few.x, other.x)
    # All pieces that there are, the last of which ends with the last character but one.
    assert _characters(samples=844).x.shape == (844, 12, 9)


def test_a_python_without_the_text_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"the source of .* module this, .*; allowed: other data"):
        _characters()


@pytest.mark.parametrize("kind", ["tasks", "characters", "file"])
def test_positions_are_appended_to_the_inputs(tmp_path: Path, kind: str) -> None:
    path = _save(tmp_path / "d.npz", np.ones((2, 3, 4)), np.ones((2, 3, 1)))
    data: dict[str, Any] = {
        "tasks": {**_TASKS, "samples": 5},
        "characters": {"kind": "characters", "samples": 40, "tokens": 12, "alphabet": 9},
        "file": {"kind": "file", "path": str(path)},
    }[kind]
    plain, placed = (
        make_problem(_experiment({**data, "positions": flag})) for flag in (False, True)
    )
    assert placed.tokens is not None
    inputs = plain.x.shape[-1]
    np.testing.assert_array_equal(placed.x[..., :inputs], plain.x)
    for sample in placed.x[..., inputs:]:
        np.testing.assert_array_equal(sample, np.eye(placed.tokens))
    np.testing.assert_array_equal(placed.y, plain.y)


def test_positions_need_tokens(tmp_path: Path) -> None:
    data = {"kind": "file", "path": str(_save(tmp_path / "d.npz", _X, _Y)), "positions": True}
    with pytest.raises(InputError, match=r"^problem\.data\.positions: true, but the data have no"):
        make_problem(_experiment(data))


def test_positions_of_too_many_tokens_are_refused(tmp_path: Path) -> None:
    x = np.ones((1, 4000, 1))
    data = {"kind": "file", "path": str(_save(tmp_path / "d.npz", x, x)), "positions": True}
    with pytest.raises(InputError, match=r"16004000 numbers with positions; allowed: at most"):
        make_problem(_experiment(data))


# --- files ----------------------------------------------------------------------------------------

_X = np.arange(12.0).reshape(4, 3) ** 2
_Y = np.eye(2)[[0, 1, 1, 0]]


def _file(path: Path, loss: str = "squared_error") -> Problem:
    return make_problem(_experiment({"kind": "file", "path": str(path)}, loss=loss))


def _save(path: Path, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> Path:
    import xarray as xr

    if path.suffix == ".npz":
        np.savez(path, x=x, y=y, **({} if weight is None else {"weight": weight}))
        return path
    dims = ("sample", "token") if x.ndim == 3 else ("sample",)
    dataset = xr.Dataset({"x": ((*dims, "input"), x), "y": ((*dims, "target"), y)})
    if weight is not None:
        dataset["weight"] = (("sample", "token")[: weight.ndim], weight)
    if path.suffix == ".nc":
        dataset.to_netcdf(path, engine="scipy")
    else:
        folder = path.with_suffix("") if path.suffix == ".zip" else path
        dataset.to_zarr(folder, zarr_format=3, consolidated=False)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for file in sorted(folder.rglob("*")):
                    archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("name", ["d.npz", "d.zarr", "d.zarr.zip", "d.nc"])
def test_every_file_type_gives_the_same_problem(tmp_path: Path, name: str) -> None:
    problem = _file(_save(tmp_path / name, _X, _Y), loss="cross_entropy")
    np.testing.assert_array_equal(problem.x, _X)
    np.testing.assert_array_equal(problem.y, _Y)
    assert problem.tokens is None
    assert problem.rows == 4


def test_relative_paths_start_from_the_experiment_file(tmp_path: Path) -> None:
    from resnet_limits.config import load_experiment

    (tmp_path / "sub").mkdir()
    _save(tmp_path / "d.npz", _X, _Y)
    file = tmp_path / "sub" / "e.yaml"
    file.write_text(
        "experiment: e\nproblem: {data: {kind: file, path: ../d.npz}}\nsweep: {shapes: [[1, 1, 1]]}"
    )
    np.testing.assert_array_equal(make_problem(load_experiment(file)).x, _X)


@pytest.mark.parametrize("name", ["d.npz", "d.zarr"])
def test_tokens_become_rows_with_the_token_fastest(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 2))
    problem = _file(_save(tmp_path / name, x, y))
    assert (problem.tokens, problem.rows) == (3, 6)
    np.testing.assert_array_equal(problem.inputs[4], x[1, 1])
    np.testing.assert_array_equal(problem.targets[4], y[1, 1])


@pytest.mark.parametrize("name", ["d.npz", "d.zarr", "d.zarr.zip", "d.nc"])
@pytest.mark.parametrize("dtype", [np.float64, np.int16])
def test_weights_are_read_from_every_file_type(tmp_path: Path, name: str, dtype: type) -> None:
    weight = np.array([0, 2, 3, 5], dtype)
    problem = _file(_save(tmp_path / name, _X, _Y, weight))
    assert problem.weight is not None
    np.testing.assert_array_equal(problem.weight, weight)
    np.testing.assert_allclose(problem.row_weights, weight / 10, rtol=1e-15)


def test_weights_of_tokens_go_by_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 2)), rng.uniform(size=(2, 3))
    problem = _file(_save(tmp_path / "d.npz", x, y, weight))
    assert problem.row_weights is not None
    assert problem.row_weights[4] == pytest.approx(weight[1, 1] / weight.sum())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.array([1.0, -1, 1, 1]), r"weight holds 1 negative values, the first at \[1\]; allowed"),
        (np.array([1.0, np.nan, 1, 1]), r"weight holds 1 values that are NaN"),
        (np.array([1.0, np.inf, 1, 1]), r"weight holds 1 values that are NaN or infinite"),
        (np.zeros(4), r"weight is zero everywhere; allowed: at least one above 0"),
        (np.ones(3), r"weight has shape \(3,\); allowed: .* here \(4,\)"),
        (np.ones((4, 3)), r"weight has shape \(4, 3\); allowed: \(samples, \[tokens\]\)"),
        (np.ones((4, 1, 1)), r"weight has shape \(4, 1, 1\)"),
        (np.array(["a", "b", "c", "d"]), r"weight has values of type .*; allowed: real numbers"),
    ],
)  # fmt: skip
def test_unsound_weights_are_one_clear_line(
    tmp_path: Path, weight: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _file(_save(tmp_path / "d.npz", _X, _Y, weight))
    assert "\n" not in str(caught.value)
    _file(_save(tmp_path / "d.npz", _X, _Y, np.ones(4)))  # the negative control


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, np.bool_])
def test_other_number_types_become_float64(tmp_path: Path, dtype: type) -> None:
    problem = _file(_save(tmp_path / "d.npz", _X.astype(dtype), _Y.astype(dtype)))
    assert problem.x.dtype == problem.y.dtype == np.float64


def _with_nan(array: np.ndarray, value: float) -> np.ndarray:
    copy = array.copy()
    copy[1, 1] = value
    return copy


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (_with_nan(_X, np.nan), _Y, r"x holds 1 values .* NaN .* \[1, 1\]; allowed: finite"),
        (_X, _with_nan(_Y, -np.inf), r"y holds 1 values .* infinite"),
        (_X[:3], _Y, r"x \(3, 3\) and y \(4, 2\) do not fit"),
        (_X, _Y[:3], r"x \(4, 3\) and y \(3, 2\) do not fit"),
        (_X.reshape(2, 2, 3), _Y.reshape(4, 1, 2), r"do not fit"),
        (_X[:, :0], _Y, r"x has shape \(4, 0\); allowed: \(samples, \[tokens,\] inputs\)"),
        (_X.astype("U3"), _Y, r"x has values of type .*; allowed: real numbers"),
        (_X.astype(complex), _Y, r"x has values of type complex128"),
    ],
)  # fmt: skip
def test_unsound_arrays_are_one_clear_line(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str
) -> None:
    path = _save(tmp_path / "d.npz", x, y)
    with pytest.raises(InputError, match=message) as caught:
        _file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["d.zarr", "d.nc"])
def test_nan_is_seen_in_every_file_type(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="x holds 1 values"):
        _file(_save(tmp_path / name, _with_nan(_X, np.nan), _Y))


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1, 2)])
def test_arrays_of_other_dimension_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"y has shape"):
        _file(_save(tmp_path / "d.npz", _X, np.ones(shape)))


@pytest.mark.parametrize("name", ["d.npz", "d.zarr", "d.zarr.zip", "d.nc"])
def test_missing_and_unreadable_files_are_one_clear_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match=r"problem\.data\.path: .*no such file") as caught:
        _file(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"PK\x03\x04 nothing of the kind" * 10)
    with pytest.raises(InputError, match="cannot be read") as caught:
        _file(path)
    assert "\n" not in str(caught.value)


def test_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    rng = np.random.default_rng(0)
    np.savez_compressed(path, x=rng.normal(size=(50, 30)), y=rng.normal(size=(50, 2)))
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        _file(path)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=_X, z=_Y)
    with pytest.raises(InputError, match="no array y; allowed: arrays x and y"):
        _file(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([{}, {}], dtype=object), y=_Y, allow_pickle=True)
    with pytest.raises(InputError, match="x has values of type object"):
        _file(path)


def test_absurd_sizes_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros((30_000_000, 1), dtype=np.uint64), y=_Y)
    with pytest.raises(InputError, match=r"x holds .* allowed: at most 10000000"):
        _file(path)


@pytest.mark.parametrize(
    "y",
    [
        np.array([[0.5, 0.5], [1, 0], [1, 0], [0, 1]]),
        np.array([[1.0, 1], [1, 0], [1, 0], [0, 1]]),
        np.array([[0.0, 0], [1, 0], [1, 0], [0, 1]]),
    ],
)
def test_cross_entropy_needs_one_hot_rows(tmp_path: Path, y: np.ndarray) -> None:
    path = _save(tmp_path / "d.npz", _X, y)
    with pytest.raises(InputError, match="row 0 of y is not one-hot"):
        _file(path, loss="cross_entropy")
    _file(path)  # any other loss takes them


# --- rotation of the inputs -----------------------------------------------------------------------


def test_inputs_of_full_rank_are_left_alone() -> None:
    problem = _gaussian(5, 3, 2)
    assert problem.input_rotation is None
    assert (problem.input_dims, problem.output_dims, problem.embedding_dims) == (3, 2, 5)
    np.testing.assert_array_equal(problem.inputs, problem.x)


def test_rotation_preserves_every_product() -> None:
    problem = _gaussian(3, 8, 2)
    Q = problem.input_rotation
    assert Q is not None
    assert Q.shape == (8, 3)
    assert problem.embedding_dims == 5
    np.testing.assert_allclose(Q.T @ Q, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(
        problem.inputs @ problem.inputs.T, problem.x @ problem.x.T, atol=1e-13
    )
    np.testing.assert_allclose(problem.inputs @ Q.T, problem.x, atol=1e-13)
    # W_e x is the same, whichever coordinates it is computed in.
    rows = embedding_rows(problem, 0, 1, 6)
    unrotated = embedding_rows(_gaussian(20, 8, 2), 0, 1, 6)
    np.testing.assert_allclose(
        rows[:, :3] @ problem.inputs.T, unrotated[:, :8] @ problem.x.T, atol=1e-13
    )
    np.testing.assert_array_equal(rows[:, 3:], unrotated[:, 8:])


def test_repeated_and_zero_inputs_have_their_numerical_rank(tmp_path: Path) -> None:
    x = np.outer([1.0, 2.0, -3.0], [0.1, 0.7, 0.3])
    y = np.ones((3, 1))
    assert _file(_save(tmp_path / "one.npz", x, y)).input_dims == 1
    zero = _file(_save(tmp_path / "zero.npz", np.zeros((3, 3)), y))
    assert zero.input_dims == 1
    np.testing.assert_array_equal(zero.inputs, np.zeros((3, 1)))


# --- losses ---------------------------------------------------------------------------------------


def _outputs(loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    f = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    y = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    return f, torch.eye(3, dtype=torch.float64)[[0, 2, 1, 1, 0]] if loss == "cross_entropy" else y


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_is_that_of_each_rows_own_loss(kind: str) -> None:
    loss = Loss(kind)
    f, y = _outputs(kind)
    expected = jacobian(lambda outputs: loss.value(outputs, y), f) * len(f)
    torch.testing.assert_close(loss.gradient(f, y), expected, rtol=1e-13, atol=1e-14)


def test_values_are_those_of_the_definitions() -> None:
    f, y = _outputs("squared_error")
    one_hot = _outputs("cross_entropy")[1]
    squared = 0.5 * ((f - y) ** 2).sum(1).mean()
    torch.testing.assert_close(Loss("squared_error").value(f, y), squared)
    torch.testing.assert_close(Loss("mean_squared_error").value(f, y), squared / 3)
    torch.testing.assert_close(
        Loss("cross_entropy").value(f, one_hot), torch.nn.functional.cross_entropy(f, one_hot)
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_take_leading_dimensions(kind: str) -> None:
    loss = Loss(kind)
    f, y = _outputs(kind)
    batch = torch.stack([f, 2 * f, -f]).reshape(3, 1, 5, 3)
    assert loss.value(batch, y).shape == (3, 1)
    assert loss.gradient(batch, y).shape == batch.shape
    torch.testing.assert_close(loss.value(batch, y)[2, 0], loss.value(-f, y))
    torch.testing.assert_close(loss.gradient(batch, y)[2, 0], loss.gradient(-f, y))


def test_cross_entropy_stays_finite_at_large_outputs() -> None:
    f = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    y = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert float(Loss("cross_entropy").value(f, y)) == pytest.approx(2e4)
    assert torch.isfinite(Loss("cross_entropy").gradient(f, y)).all()


def test_unknown_loss_is_an_input_error() -> None:
    with pytest.raises(InputError, match="squared_error, mean_squared_error, cross_entropy"):
        Loss("hinge")


# --- embedding ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(0, 700), st.booleans(), st.integers(0, 9999))
def test_embedding_rows_nest_bit_for_bit(
    embed_dim: int, more: int, rotated: bool, seed: int
) -> None:
    problem = _gaussian(3 if rotated else 9, 7, 2, **_STDS)
    assert (problem.input_rotation is not None) == rotated
    short = embedding_rows(problem, 4, seed, embed_dim)
    long = embedding_rows(problem, 4, seed, embed_dim + more)
    assert short.shape == (embed_dim, problem.embedding_dims)
    np.testing.assert_array_equal(short, long[:embed_dim])


def test_embedding_rows_know_root_seed_seed_and_stds_only() -> None:
    few, many = _gaussian(3, 2, 2, seed=0), _gaussian(9, 2, 2, seed=1)
    rows = embedding_rows(few, 0, 1, 10)
    np.testing.assert_array_equal(rows, embedding_rows(many, 0, 1, 10))
    assert not np.array_equal(rows, embedding_rows(few, 0, 2, 10))
    assert not np.array_equal(rows, embedding_rows(few, 1, 1, 10))
    scaled = embedding_rows(_gaussian(3, 2, 2, **_STDS), 0, 1, 10)
    np.testing.assert_array_equal(scaled, rows * [0.5, 0.5, 2.0, 2.0])


def test_torch_threads_and_seeds_change_nothing() -> None:
    problem = _gaussian(3, 40, 2)
    torch.manual_seed(1)
    first = embedding_rows(problem, 0, 0, 300)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002  the global state is what must not matter
    np.testing.assert_array_equal(first, embedding_rows(problem, 0, 0, 300))


def test_gram_of_many_rows_tends_to_its_expectation() -> None:
    problem = _gaussian(3, 6, 2, **_STDS)
    limit = limit_gram_root(problem)
    np.testing.assert_array_equal(limit, np.diag([0.5, 0.5, 0.5, 2.0, 2.0]))
    scale = np.sqrt(np.outer(np.diag(limit), np.diag(limit)))
    distances = []
    for embed_dim in (1_000, 100_000):
        root = gram_root(problem, embedding_rows(problem, 0, 0, embed_dim))
        distances.append(np.sqrt(np.mean(((root - limit) / scale) ** 2)))
        assert distances[-1] < 3 / math.sqrt(embed_dim)
    assert distances[1] < 0.3 * distances[0]


@pytest.mark.parametrize("embed_dim", [1, 2, 4, 5, 6, 300])
def test_gram_root_is_the_symmetric_root(embed_dim: int) -> None:
    problem = _gaussian(9, 3, 2, **_STDS)
    rows = embedding_rows(problem, 0, 0, embed_dim)
    G = rows.T @ rows / embed_dim
    R = gram_root(problem, rows)
    np.testing.assert_array_equal(R, R.T)
    np.testing.assert_allclose(R @ R, G, atol=1e-13)
    scales = np.linalg.eigvalsh(R)
    assert scales.min() > -1e-14
    # Where D < r, what should be zero is zero to rounding and not to the root of rounding.
    assert (scales > 1e-12).sum() == min(embed_dim, 5)


def test_gram_root_refuses_rows_of_another_problem() -> None:
    with pytest.raises(ValueError, match=r"need \(D, 5\)"):
        gram_root(_gaussian(9, 3, 2), np.ones((4, 6)))


def test_fixtures_make_problems(tiny_experiment: Callable[..., Experiment]) -> None:
    problem = make_problem(tiny_experiment(problem={"loss": "mean_squared_error"}))
    assert problem.loss == Loss("mean_squared_error")
    assert problem.embedding_dims == 4
