"""What is learned: data, loss, and the table of embedding rows that couples all sizes.

Sizes are written as in the stores: samples N, tokens, inputs d_in, targets d_out; "rows" are the
samples, or with tokens the (sample, token) pairs, token fastest. ``r_in`` is the number of
independent inputs and ``r = r_in + d_out`` the reduced dimension
(docs/concepts/limits.md).
"""

from __future__ import annotations

import ast
import codecs
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_limits import datafile
from resnet_limits.config import (
    LOSSES,
    MAX_DATA_VALUES,
    CharactersData,
    DigitsData,
    Experiment,
    GaussianData,
    InContextRegressionData,
    InputError,
    LinearTeacherData,
)
from resnet_limits.randomness import law_rows, normal_rows, permutation

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]

_ROW_BLOCK = 256


# --- loss -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """A loss per row, averaged over the rows.

    Attributes
    ----------
    kind : str
        ``squared_error``: 1/2 sum_o (f_o - y_o)^2; ``mean_squared_error``: the same divided by
        d_out; ``cross_entropy``: -sum_o y_o log softmax(f)_o with one-hot y.

    Raises
    ------
    InputError
        If the kind is unknown.
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise InputError(
                f"problem.loss: unknown loss {self.kind!r}; allowed: {', '.join(LOSSES)}"
            )

    def value(self, f: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Average the loss over the rows.

        Parameters
        ----------
        f : Tensor, shape (..., rows, d_out)
            Outputs.
        y : Tensor, shape (rows, d_out)
            Targets.
        weights : Tensor, shape (rows,), optional
            Weights of the rows, of mean 1; equal ones by default.

        Returns
        -------
        Tensor, shape (...)
        """
        if self.kind == "cross_entropy":
            each = -(y * f.log_softmax(dim=-1)).sum(-1)
        else:
            each = self._weight(y) * 0.5 * (f - y).square().sum(-1)
        return (each if weights is None else each * weights).mean(-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Give the gradient of every row's own loss with respect to its output.

        It is not divided by the number of rows (``grad_f loss_i`` in docs/concepts/scaling.md).

        Parameters
        ----------
        f, y
            As for `value`.

        Returns
        -------
        Tensor, shape (..., rows, d_out)
        """
        if self.kind == "cross_entropy":
            return f.softmax(dim=-1) - y
        return self._weight(y) * (f - y)

    def _weight(self, y: Tensor) -> float:
        return 1.0 / y.shape[-1] if self.kind == "mean_squared_error" else 1.0


# --- problem --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Problem:
    """Data and loss, with what the networks and the limits need to know of them.

    Attributes
    ----------
    x : ndarray, shape (samples, [tokens,] d_in)
        Inputs.
    y : ndarray, shape (samples, [tokens,] d_out)
        Targets.
    loss : Loss
        The loss.
    input_rotation : ndarray, shape (d_in, r_in), or None
        Orthonormal basis of the span of the inputs, where that is not the whole space.
    embedding_std, unembedding_std : float
        s_e and s_u.
    weight : ndarray, shape (samples, [tokens]), or None
        Weights of the samples or tokens in the loss, of any sum; None for equal ones.
    initial_law : str
        Law of the embedding rows, a key of ``randomness.LAWS``.
    is_test : ndarray of bool, shape (samples,), or None
        Samples that are not trained on: they have no weight in the loss. None if there are none.
    """

    x: Array
    y: Array
    loss: Loss
    input_rotation: Array | None
    embedding_std: float
    unembedding_std: float
    weight: Array | None = None
    initial_law: str = "gaussian"
    is_test: NDArray[np.bool_] | None = None

    @property
    def row_weights(self) -> Array | None:
        """Weights of the rows in the loss, omega, of sum 1; None for equal ones."""
        weight = self.weight
        if self.is_test is not None:
            weight = np.ones(self.x.shape[:-1]) if weight is None else weight.copy()
            weight[self.is_test] = 0.0
        return None if weight is None else weight.ravel() / weight.sum()

    @property
    def training_samples(self) -> NDArray[np.intp]:
        """Numbers of the samples that are trained on."""
        if self.is_test is None:
            return np.arange(len(self.x))
        return np.flatnonzero(~self.is_test)

    @property
    def tokens(self) -> int | None:
        """Number of tokens per sample; None where the data have no tokens."""
        return self.x.shape[1] if self.x.ndim == 3 else None

    @cached_property
    def inputs(self) -> Array:
        """Inputs by row, in the rotated coordinates where there are any, shape (rows, r_in)."""
        flat = self.x.reshape(-1, self.x.shape[-1])
        return flat if self.input_rotation is None else flat @ self.input_rotation

    @property
    def targets(self) -> Array:
        """Targets by row, shape (rows, d_out)."""
        return self.y.reshape(-1, self.y.shape[-1])

    def by_sample(self, array: NDArray[Any]) -> NDArray[Any]:
        """Split the rows of an array, its last axis but one, into samples and tokens."""
        if self.tokens is None:
            return array
        return array.reshape(*array.shape[:-2], -1, self.tokens, array.shape[-1])

    @property
    def rows(self) -> int:
        """Number of rows: samples, or samples times tokens."""
        return math.prod(self.x.shape[:-1])

    @property
    def input_dims(self) -> int:
        """Number of independent inputs, r_in."""
        rotation = self.input_rotation
        return self.x.shape[-1] if rotation is None else rotation.shape[1]

    @property
    def output_dims(self) -> int:
        """Number of targets, d_out."""
        return self.y.shape[-1]

    @property
    def embedding_dims(self) -> int:
        """Reduced dimension, r = r_in + d_out: columns of the embedding and unembedding."""
        return self.input_dims + self.output_dims


def make_problem(experiment: Experiment) -> Problem:
    """Draw or read the data of an experiment.

    They depend on the section ``problem`` alone, not on the experiment's root seed.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.

    Returns
    -------
    Problem
        With `input_rotation` set only where the inputs span less than the whole input space.

    Raises
    ------
    InputError
        If a data file is missing, unreadable, too large, holds values that are not finite, arrays
        that do not fit together, or targets that are not one-hot for cross_entropy; if positions
        are asked for where there are no tokens; or if there are fewer images than samples.
    """
    data = experiment.problem.data
    weight: Array | None = None
    is_test: NDArray[np.bool_] | None = None
    if isinstance(data, GaussianData):
        x, y = _gaussian(data)
    elif isinstance(data, LinearTeacherData):
        x, y = _linear_teacher(data)
    elif isinstance(data, DigitsData):
        x, y = _digits(data)
    elif isinstance(data, InContextRegressionData):
        x, y, weight = _in_context_regression(data)
    elif isinstance(data, CharactersData):
        x, y = _characters(data)
    else:
        x, y, weight, is_test = datafile.read(data.path)
    if test_samples := getattr(data, "test_samples", 0):
        is_test = np.arange(len(x)) >= len(x) - test_samples
    if experiment.problem.loss == "cross_entropy":
        _check_one_hot(y)
    if getattr(data, "positions", False):
        x = _with_positions(x)
    made: dict[str, NDArray[Any]] = {"x": x, "y": y}
    if weight is not None:
        made["weight"] = weight
    if is_test is not None:
        made["is_test"] = is_test
    if (rotation := _input_rotation(x.reshape(-1, x.shape[-1]))) is not None:
        made["input_rotation"] = rotation
    return problem_from(experiment, made)


def problem_from(experiment: Experiment, data: Mapping[Any, ArrayLike]) -> Problem:
    """Put the data that were made before together with the loss and the scales of an experiment.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    data : mapping of str to array
        ``x``, ``y`` and, where they are there, ``weight``, ``is_test`` and ``input_rotation``:
        variables of the problem's store.

    Returns
    -------
    Problem
        Bit for bit what `make_problem` gives, if the data are what it made.
    """
    arrays = {name: np.asarray(data[name], dtype=np.float64) for name in ("x", "y")}
    weight, rotation = (
        np.asarray(data[name], dtype=np.float64) if name in data else None
        for name in ("weight", "input_rotation")
    )
    return Problem(
        **arrays,
        loss=Loss(experiment.problem.loss),
        input_rotation=rotation,
        embedding_std=experiment.model.init_std.embedding,
        unembedding_std=experiment.model.init_std.unembedding,
        weight=weight,
        initial_law=experiment.model.initial_law,
        is_test=np.asarray(data["is_test"]).astype(bool) if "is_test" in data else None,
    )


def _input_rotation(x: Array) -> Array | None:
    """Find an orthonormal basis (d_in, rank) of the span of x (rows, d_in), if it is not all."""
    _, scales, directions = np.linalg.svd(x, full_matrices=False)
    cutoff = scales[0] * max(x.shape) * np.finfo(np.float64).eps
    # Inputs that are all zero span nothing, yet arrays without a direction would help nobody.
    rank = max(1, int((scales > cutoff).sum()))
    if rank == x.shape[1]:
        return None
    basis = directions[:rank].T
    # Singular vectors are found up to their sign.
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(rank)]
    return np.ascontiguousarray(basis * np.where(largest < 0, -1.0, 1.0))


# --- data -----------------------------------------------------------------------------------------


def _gaussian(data: GaussianData) -> tuple[Array, Array]:
    x = normal_rows(data.seed, "data", "x", rows=data.samples, columns=data.inputs)
    y = normal_rows(data.seed, "data", "y", rows=data.samples, columns=data.targets)
    return x, y


def _linear_teacher(data: LinearTeacherData) -> tuple[Array, Array]:
    """Draw y = A x + noise n with x of fixed norm."""
    samples = data.samples + data.test_samples
    x = normal_rows(data.seed, "data", "x", rows=samples, columns=data.inputs)
    x *= data.input_norm / np.linalg.norm(x, axis=1, keepdims=True)
    A = normal_rows(data.seed, "data", "teacher", rows=data.targets, columns=data.inputs)
    noise = normal_rows(data.seed, "data", "noise", rows=samples, columns=data.targets)
    return x, x @ A.T + data.noise * noise


def _digits(data: DigitsData) -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    bunch = load_digits(n_class=data.classes)
    images, labels = np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target)
    if data.samples + data.test_samples > len(labels):
        tests = f" and {data.test_samples} test samples" if data.test_samples else ""
        raise InputError(
            f"problem.data.samples: got {data.samples}{tests}; "
            f"allowed: 1 to {len(labels)}, the number of images of {data.classes} classes"
        )
    deviation = images.std(axis=0)
    x = np.where(deviation > 0, images - images.mean(axis=0), 0.0)
    x /= np.where(deviation > 0, deviation, 1.0)
    chosen = _balanced_choice(labels, data)
    return x[chosen], np.eye(data.classes)[labels[chosen]]


def _balanced_choice(labels: NDArray[Any], data: DigitsData) -> NDArray[np.intp]:
    """Choose images in rounds of one from each class that has any left."""
    round_of = np.empty(len(labels), dtype=np.intp)
    place_in_round = np.empty(len(labels), dtype=np.intp)
    order = permutation(data.seed, "data", "class_order", size=data.classes)
    for place, label in enumerate(order):
        members = np.flatnonzero(labels == label)
        name = ("data", "images", int(label))
        round_of[members] = permutation(data.seed, *name, size=len(members))
        place_in_round[members] = place
    return np.lexsort((place_in_round, round_of))[: data.samples + data.test_samples]


def _in_context_regression(data: InContextRegressionData) -> tuple[Array, Array, Array]:
    """Draw tasks y = A x + noise n, and give pairs (x, y) with the last y hidden."""
    samples, tokens, inputs, targets = data.samples, data.tokens, data.inputs, data.targets
    x, noise = (
        normal_rows(data.seed, "data", name, rows=samples * tokens, columns=columns)
        for name, columns in (("x", inputs), ("noise", targets))
    )
    A = normal_rows(data.seed, "data", "task", rows=samples * targets, columns=inputs)
    x = x.reshape(samples, tokens, inputs)
    y = np.einsum("sti,soi->sto", x, A.reshape(samples, targets, inputs)) / math.sqrt(inputs)
    y += data.noise * noise.reshape(samples, tokens, targets)
    shown, weight = y.copy(), np.zeros((samples, tokens))
    shown[:, -1], weight[:, -1] = 0.0, 1.0
    return np.concatenate([x, shown], axis=2), y, weight


def _text() -> str:
    """Read the text of the module ``this`` without running it, which would print it."""
    found = importlib.util.find_spec("this")
    source = getattr(found and found.loader, "get_source", lambda _: None)("this")
    if source is None:
        raise InputError(
            "problem.data.kind: characters takes its text from the source of Python's standard "
            "module this, which this Python lacks; allowed: other data"
        )
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(value=ast.Constant(value=str(coded))):
                return codecs.decode(coded, "rot13").lower()
    raise InputError("problem.data.kind: the module this holds no text; allowed: other data")


def _characters(data: CharactersData) -> tuple[Array, Array]:
    """Choose pieces of the text, and give every character and the one behind it as one-hot."""
    text = _text()
    # Of two that are as frequent the one that comes first in the alphabet.
    frequent = sorted(set(text), key=lambda letter: (-text.count(letter), letter))
    number = {letter: k for k, letter in enumerate(frequent[: data.alphabet - 1])}
    codes = np.array([number.get(letter, data.alphabet - 1) for letter in text])
    places = permutation(data.seed, "data", "pieces", size=len(text) - data.tokens)
    pieces = places[: data.samples, None] + np.arange(data.tokens)
    classes = np.eye(data.alphabet)
    return classes[codes[pieces]], classes[codes[pieces + 1]]


def _with_positions(x: Array) -> Array:
    """Append the one-hot position of its token to every input."""
    if x.ndim < 3:
        raise InputError(
            "problem.data.positions: true, but the data have no tokens; allowed: data with tokens, "
            "or positions false"
        )
    samples, tokens, inputs = x.shape
    if x.size + samples * tokens**2 > MAX_DATA_VALUES:
        raise InputError(
            f"problem.data.positions: inputs are {samples * tokens * (inputs + tokens)} numbers "
            f"with positions; allowed: at most {MAX_DATA_VALUES}"
        )
    return np.concatenate([x, np.broadcast_to(np.eye(tokens), (samples, tokens, tokens))], axis=2)


def _check_one_hot(y: Array) -> None:
    rows = y.reshape(-1, y.shape[-1])
    wrong = ~(((rows == 0) | (rows == 1)).all(axis=1) & (rows.sum(axis=1) == 1))
    if wrong.any():
        raise InputError(
            f"problem.data: row {int(np.argmax(wrong))} of y is not one-hot, which the loss "
            "cross_entropy needs; allowed: one 1 in every row and 0 elsewhere"
        )


# --- embedding ------------------------------------------------------------------------------------


def embedding_rows(problem: Problem, root_seed: int, seed: int, embed_dim: int) -> Array:
    """Draw the initial embedding rows, Phi = [W_e Q, W_u] with Q the input rotation.

    Row d depends on the root seed, the seed and d alone: the rows for one D are the first D of any
    larger table, bit for bit.

    Parameters
    ----------
    problem : Problem
        Gives the numbers of inputs and targets, s_e and s_u, and the law.
    root_seed : int
        The experiment's ``seed``.
    seed : int
        The seed of this network.
    embed_dim : int
        D.

    Returns
    -------
    ndarray, shape (D, r)
        Column by column: the r_in directions of the inputs, then the targets.
    """
    law, rows, d_in = problem.initial_law, embed_dim, problem.x.shape[-1]
    W_e = law_rows(law, root_seed, "embedding", seed, rows=rows, columns=d_in)
    W_u = law_rows(law, root_seed, "unembedding", seed, rows=rows, columns=problem.output_dims)
    if problem.input_rotation is not None:
        W_e = _rotate_rows(W_e, problem.input_rotation)
    return np.concatenate([problem.embedding_std * W_e, problem.unembedding_std * W_u], axis=1)


def _rotate_rows(table: Array, rotation: Array) -> Array:
    """Multiply every row by a matrix, in the same order of operations however many rows there are.

    A matrix product would round differently for other numbers of rows or threads.
    """
    product = np.zeros((table.shape[0], rotation.shape[1]))
    for start in range(0, table.shape[0], _ROW_BLOCK):
        block = slice(start, start + _ROW_BLOCK)
        for column, coefficients in enumerate(rotation):
            product[block] += table[block, column, None] * coefficients
    return product


def gram_root(problem: Problem, rows: Array) -> Array:
    """Give the symmetric root R of the Gram matrix G = Phi^T Phi / D.

    Parameters
    ----------
    problem : Problem
        Gives the reduced dimension r.
    rows : ndarray, shape (D, r)
        Phi, as from `embedding_rows`; D may be less than r.

    Returns
    -------
    ndarray, shape (r, r)
        Symmetric, positive semi-definite, R R = G.

    Raises
    ------
    ValueError
        If the rows are not of length r.
    """
    if rows.ndim != 2 or rows.shape[1] != problem.embedding_dims:
        raise ValueError(f"rows of shape {rows.shape}: need (D, {problem.embedding_dims})")
    # From the singular values of Phi: eigenvalues of G that should be zero would be rounding
    # errors, and their roots a hundred million times larger.
    triangle = np.linalg.qr(rows / math.sqrt(rows.shape[0]), mode="r")
    _, scales, directions = np.linalg.svd(triangle, full_matrices=False)
    root = (directions.T * scales) @ directions
    return 0.5 * (root + root.T)


def limit_gram_root(problem: Problem) -> Array:
    """Give the root of the Gram matrix's expectation, diag(s_e, ..., s_u, ...).

    Returns
    -------
    ndarray, shape (r, r)
    """
    return np.diag(
        np.concatenate(
            [
                np.full(problem.input_dims, problem.embedding_std),
                np.full(problem.output_dims, problem.unembedding_std),
            ]
        )
    )
