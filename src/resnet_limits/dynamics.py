"""The training problem in the one canonical form that limits and networks both solve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from resnet_limits.config import MAX_DATA_VALUES, Experiment, InputError
from resnet_limits.kinds import branch_width
from resnet_limits.norms import Identity, Norm, make_norm
from resnet_limits.problem import Loss, Problem
from resnet_limits.randomness import permutation
from resnet_limits.rules import SCHEDULES, GradientDescent, Rule, make_rule, move
from resnet_limits.units import Unit, make_unit

GROWTH_LIMIT = 1e6
"""A hidden state that has grown to so many times its natural size is called diverged."""


@dataclass(frozen=True)
class Branch:
    """One residual branch of a layer.

    Attributes
    ----------
    unit : Unit
        The residual unit.
    norm : Norm
        What it reads the residual stream through.
    ratio : float
        Units of the branch over the width M.
    scale : float
        alpha_b.
    input_std, output_std : float
        s_in, s_out.
    rate_in, rate_out : float
        eta_in and eta_out.
    """

    unit: Unit
    norm: Norm = field(default_factory=Identity)
    ratio: float = 1.0
    scale: float = 1.0
    input_std: float = 1.0
    output_std: float = 1.0
    rate_in: float = 0.0
    rate_out: float = 0.0

    def width(self, width: int) -> int:
        """Give the number of units, M_b, for the width M."""
        return branch_width(self.ratio, width)


@dataclass(frozen=True)
class Dynamics:
    """A training problem in canonical form.

    Attributes
    ----------
    inputs : ndarray, shape (rows, r_in)
        Inputs, rotated to their span; a row is a sample, or a (sample, token) pair.
    targets : ndarray, shape (rows, d_out)
        Targets.
    loss : Loss
        The loss; its gradient is per row, see :meth:`cotangent`.
    layer : tuple of Branch
        The branches of one layer, in their order.
    steps : int
        Number of states K, the untrained one included.
    residual_scale : float
        alpha of the model, by which steps of the embeddings are divided.
    unembedding_std : float
        s_u.
    rate_embedding, rate_unembedding : float
        eta_e and eta_u (zero for frozen embeddings).
    final_norm : Norm
        The norm before the unembedding.
    rule : Rule
        How weights move with their gradients.
    weights : ndarray, shape (rows,), or None
        omega of every row, of sum 1; None for equal weights.
    batches : tuple of tuple of int, or None
        The rows that each update sees, those of whole samples, K - 1 times; None for all rows
        always.
    initial_law : str
        Law of the initial weights, a key of ``randomness.LAWS``.
    """

    inputs: NDArray[np.float64]
    targets: NDArray[np.float64]
    loss: Loss
    layer: tuple[Branch, ...]
    steps: int
    residual_scale: float = 1.0
    unembedding_std: float = 1.0
    rate_embedding: float = 0.0
    rate_unembedding: float = 0.0
    final_norm: Norm = field(default_factory=Identity)
    rule: Rule = field(default_factory=GradientDescent)
    weights: NDArray[np.float64] | None = None
    batches: tuple[tuple[int, ...], ...] | None = None
    initial_law: str = "gaussian"

    @classmethod
    def of_unit(
        cls,
        inputs: NDArray[np.float64],
        targets: NDArray[np.float64],
        loss: Loss,
        unit: Unit,
        steps: int,
        *,
        residual_scale: float = 1.0,
        input_std: float = 1.0,
        output_std: float = 1.0,
        rate_in: float = 0.0,
        rate_out: float = 0.0,
        rate_embedding: float = 0.0,
        **others: Any,
    ) -> Dynamics:
        """Give the problem whose layers have one branch without a norm.

        Parameters
        ----------
        inputs, targets, loss, steps
            As the attributes.
        unit, input_std, output_std, rate_in, rate_out
            Of the branch.
        residual_scale : float
            alpha, of the branch and of the model.
        rate_embedding : float
            eta_e and eta_u.
        **others
            Other attributes.
        """
        branch = Branch(
            unit,
            scale=residual_scale,
            input_std=input_std,
            output_std=output_std,
            rate_in=rate_in,
            rate_out=rate_out,
        )
        return cls(
            inputs,
            targets,
            loss,
            (branch,),
            steps,
            residual_scale=residual_scale,
            rate_embedding=rate_embedding,
            rate_unembedding=rate_embedding,
            **others,
        )

    def with_branches(self, **changes: Any) -> Dynamics:
        """Give a copy in which attributes of every branch are others."""
        return replace(self, layer=tuple(replace(branch, **changes) for branch in self.layer))

    @property
    def is_linear(self) -> bool:
        """Whether all expectations over units are of second moments."""
        return all(branch.unit.is_linear for branch in self.layer)

    def batch(self, step: int) -> NDArray[np.intp]:
        """Give the rows that the update after a state sees; all of them after the last state."""
        if self.batches is None or step >= len(self.batches):
            return np.arange(len(self.inputs))
        return np.asarray(self.batches[step], dtype=np.intp)

    def batch_size(self, step: int) -> int:
        """Give R of a state, the number of rows that its gradients are averages over."""
        return len(self.batch(step))

    def shares(self, step: int) -> NDArray[np.float64]:
        """Give by what a batch multiplies the cotangents that all rows would have; shape (rows,).

        As a batch has whole samples, backward states of a batch are those of all rows, times this.
        """
        chosen, rows = self.batch(step), len(self.inputs)
        found = np.zeros(rows)
        if self.weights is None:
            found[chosen] = 1.0
        else:
            found[chosen] = len(chosen) / (rows * self.weights[chosen].sum())
        return found

    def row_weights(self, step: int) -> NDArray[np.float64]:
        """Give R omega of every row at a state, zero outside the batch; shape (rows,)."""
        shares = self.shares(step)
        return shares if self.weights is None else shares * len(self.weights) * self.weights

    def value(self, output: Tensor, targets: Tensor) -> Tensor:
        """Give the loss over all rows, shape (...), for outputs ``(..., rows, d_out)``."""
        if self.weights is None:
            return self.loss.value(output, targets)
        weights = torch.from_numpy(len(self.weights) * self.weights).to(output)
        return self.loss.value(output, targets, weights)

    def cotangent(self, output: Tensor, targets: Tensor, step: int) -> Tensor:
        """Give ``R omega grad_f loss`` of every row at a state, the shape of `output`.

        Parameters
        ----------
        output : Tensor, shape (..., rows, d_out)
            Outputs of the state.
        targets : Tensor, shape (rows, d_out)
        step : int
            The state, which decides on the batch.
        """
        gradient = self.loss.gradient(output, targets)
        if self.weights is None and self.batches is None:
            return gradient
        weights = torch.from_numpy(self.row_weights(step)).to(output)
        return gradient * weights[:, None]


class Embeddings:
    """The embedding and the unembedding of networks or limits: what they do and how they learn.

    States are ``(batch, coordinates, rows)`` here.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    embedding, unembedding : Tensor, shapes (batch, coordinates, r_in or d_out)
        W_e, rotated as the inputs are, and W_u; changed in place where they are trained.
    weight : float
        Weight of a coordinate in dot products of states: 1 / D for a network, 1 for a limit.

    Attributes
    ----------
    embedding, unembedding : Tensor
        As given.
    """

    def __init__(
        self, dynamics: Dynamics, embedding: Tensor, unembedding: Tensor, weight: float
    ) -> None:
        self.dynamics, self.weight = dynamics, weight
        self.embedding, self.unembedding = embedding, unembedding
        self._inputs = torch.from_numpy(dynamics.inputs).to(embedding)
        rates = dynamics.rate_embedding, dynamics.rate_unembedding
        self._trained = [
            (rate, [matrix, *(torch.zeros_like(matrix) for _ in range(dynamics.rule.buffers))])
            for rate, matrix in zip(rates, (embedding, unembedding), strict=True)
        ]

    def first(self) -> Tensor:
        """Give ``h^0 = W_e x``."""
        return self.embedding @ self._inputs.mT

    def output(self, last: Tensor) -> Tensor:
        """Give f, shape (batch, rows, d_out), for ``h^L``."""
        read = self.dynamics.final_norm.forward(last, -2, self.weight)
        output = (self.unembedding.mT @ read).mT
        return output if self.weight == 1 else self.weight * output

    def pull_back(self, last: Tensor, cotangent: Tensor) -> Tensor:
        """Give ``b^L``, the shape of ``h^L``, for cotangents of f, shape (batch, rows, d_out)."""
        return self.dynamics.final_norm.pull_back(
            last, self.unembedding @ cotangent.mT, -2, self.weight
        )

    def learn(self, step: int, first: Tensor, last: Tensor, cotangent: Tensor) -> None:
        """Take the step after a state, if they are trained.

        Parameters
        ----------
        step : int
            The state.
        first : Tensor, shape (batch, coordinates, rows)
            ``b^0``.
        last : Tensor, shape (batch, coordinates, rows)
            ``h^L``, before the final norm.
        cotangent : Tensor, shape (batch, rows, d_out)
            Cotangents of f (:meth:`Dynamics.cotangent`).
        """
        dynamics = self.dynamics
        scale = 1.0 / (dynamics.residual_scale * dynamics.batch_size(step))

        def of_embedding() -> Tensor:
            return first @ self._inputs

        def of_unembedding() -> Tensor:
            return dynamics.final_norm.forward(last, -2, self.weight) @ cotangent

        gradients = of_embedding, of_unembedding
        for (rate, parts), gradient in zip(self._trained, gradients, strict=True):
            if rate:
                move(dynamics.rule.transition(step, rate), parts, scale * gradient())


def largest_size(dynamics: Dynamics, start: ArrayLike) -> NDArray[np.float64]:
    """Give the RMS of a hidden state above which networks and limits are called diverged.

    GROWTH_LIMIT times the natural size of the state, which is that of ``h^0`` before training, or
    what a unit of zero pre-activation or one step of the trained embeddings makes of it if that is
    larger. States that start at zero so have a size to be compared with as well.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    start : array_like, any shape
        RMS over rows and coordinates of ``h^0`` before training.

    Returns
    -------
    ndarray, the shape of `start`
    """
    x, y = (torch.from_numpy(values) for values in (dynamics.inputs, dynamics.targets))
    rows = len(x)
    residual = dynamics.loss.gradient(torch.zeros_like(y), y)
    cotangent = dynamics.unembedding_std * float(residual.square().sum(1).mean().sqrt())
    # Row by row, h^0 moves by (eta_e / alpha) (1/N) sum_i (x . x_i) b_i.
    overlap = float((x @ x.T / rows).square().sum(1).mean().sqrt()) * rows**0.5
    embedded = dynamics.rate_embedding / dynamics.residual_scale * overlap * cotangent
    written = 0.0
    for branch in dynamics.layer:
        c = branch.unit.out_vectors
        at_zero = branch.unit.forward(torch.zeros(1, branch.unit.in_vectors, rows).double())
        size = float(at_zero[:, :c].square().sum(1).mean().sqrt())
        written += branch.scale * branch.output_std * size
    natural = np.fmax(np.asarray(start, np.float64), np.fmax(embedded, written))
    return np.asarray(GROWTH_LIMIT * natural)


def make_dynamics(experiment: Experiment, problem: Problem) -> Dynamics:
    """Bring an experiment and its data into canonical form.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    problem : Problem
        Its data and loss.

    Raises
    ------
    InputError
        If a unit needs tokens that the data do not have, or batches do not fit the data.
    """
    model, training = experiment.model, experiment.training
    rate = training.learning_rate
    schedule = training.schedule.model_dump()
    factors = SCHEDULES[schedule.pop("kind")](training.steps - 1, **schedule)
    trained = training.train_embeddings
    return Dynamics(
        inputs=problem.inputs,
        targets=problem.targets,
        loss=problem.loss,
        layer=tuple(
            _branch(experiment, place, problem.tokens) for place in range(len(model.branches))
        ),
        steps=training.steps,
        residual_scale=model.residual_scale,
        unembedding_std=problem.unembedding_std,
        rate_embedding=_own(training.learning_rate_embedding, rate) if trained else 0.0,
        rate_unembedding=_own(training.learning_rate_unembedding, rate) if trained else 0.0,
        final_norm=make_norm(model.final_norm),
        rule=make_rule(**training.rule.model_dump(), factors=factors, decay=training.weight_decay),
        weights=problem.row_weights,
        batches=_batches(experiment, problem),
        initial_law=model.initial_law,
    )


def _branch(experiment: Experiment, place: int, tokens: int | None) -> Branch:
    """Give a branch with what its section leaves out."""
    model, training = experiment.model, experiment.training
    branch, rate = model.branches[place], training.learning_rate
    try:
        unit = make_unit(**branch.unit.model_dump(), tokens=tokens)
    except InputError as error:
        key = "model" if model.layer is None else f"model.layer.{place}"
        raise InputError(f"{key}.{error}") from None
    return Branch(
        unit=unit,
        norm=make_norm(branch.norm),
        ratio=branch.width_ratio,
        scale=_own(branch.residual_scale, model.residual_scale),
        input_std=_own(branch.init_std.input, model.init_std.input),
        output_std=_own(branch.init_std.output, model.init_std.output),
        rate_in=_own(training.learning_rate_in, rate),
        rate_out=_own(training.learning_rate_out, rate),
    )


def _batches(experiment: Experiment, problem: Problem) -> tuple[tuple[int, ...], ...] | None:
    """Give the rows of every update's batch.

    Raises
    ------
    InputError
        If a batch names a sample that is not there or not trained on, is larger than the data, or
        has no weight; or if all of them together are too large.
    """
    batches, updates = experiment.training.batches, experiment.training.steps - 1
    if batches is None:
        return None
    trained, tokens = problem.training_samples, problem.tokens or 1
    samples = len(problem.x)
    size = sum(map(len, batches)) if isinstance(batches, tuple) else updates * batches.size
    if size * tokens > MAX_DATA_VALUES:
        raise InputError(
            f"training.batches: {size * tokens} rows in all updates together; allowed: at most "
            f"{MAX_DATA_VALUES}"
        )
    if isinstance(batches, tuple):
        chosen = batches
        for number, batch in enumerate(chosen):
            if max(batch) >= samples:
                raise InputError(
                    f"training.batches.{number}: there is no sample {max(batch)}; allowed: 0 to "
                    f"{samples - 1}, the samples of the data"
                )
            if not_trained := set(batch).difference(trained.tolist()):
                raise InputError(
                    f"training.batches.{number}: sample {min(not_trained)} is a test sample; "
                    "allowed: samples that are trained on"
                )
    else:
        if batches.size > len(trained):
            raise InputError(
                f"training.batches.size: got {batches.size}; allowed: 1 to {len(trained)}, the "
                "number of samples that are trained on"
            )
        drawn = (
            trained[permutation(batches.seed, "batches", update, size=len(trained))[: batches.size]]
            for update in range(updates)
        )
        chosen = tuple(tuple(sorted(batch.tolist())) for batch in drawn)
    rows = tuple(
        tuple(tokens * sample + token for sample in batch for token in range(tokens))
        for batch in chosen
    )
    weights = problem.row_weights
    for number, batch in enumerate(rows):
        if weights is not None and not weights[list(batch)].sum() > 0:
            raise InputError(
                f"training.batches.{number}: the weights of its samples are all zero; allowed: "
                "batches with a sample that counts"
            )
    return rows


def _own(rate: float | None, common: float) -> float:
    """Give a number of its own, or the common one where it is left out."""
    return common if rate is None else rate
