"""The training problem in the one canonical form that limits and networks both solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from resnet_limits.config import Experiment
from resnet_limits.problem import Loss, Problem
from resnet_limits.units import Unit, make_unit

GROWTH_LIMIT = 1e6
"""A hidden state that has grown to so many times its natural size is called diverged."""


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
        The loss; its gradient is per row, whoever uses it takes the average over rows.
    unit : Unit
        The residual unit.
    residual_scale, input_std, output_std : float
        alpha, s_in, s_out.
    unembedding_std : float
        s_u.
    rate_in, rate_out, rate_embedding : float
        eta_in, eta_out and eta_e = eta_u (zero for frozen embeddings).
    steps : int
        Number of states K, the untrained one included.
    """

    inputs: NDArray[np.float64]
    targets: NDArray[np.float64]
    loss: Loss
    unit: Unit
    residual_scale: float
    input_std: float
    output_std: float
    rate_in: float
    rate_out: float
    rate_embedding: float
    steps: int
    unembedding_std: float = 1.0


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
    rows, alpha = len(x), dynamics.residual_scale
    residual = dynamics.loss.gradient(torch.zeros_like(y), y)
    cotangent = dynamics.unembedding_std * float(residual.square().sum(1).mean().sqrt())
    # Row by row, h^0 moves by (eta_e / alpha) (1/N) sum_i (x . x_i) b_i.
    overlap = float((x @ x.T / rows).square().sum(1).mean().sqrt()) * rows**0.5
    embedded = dynamics.rate_embedding / alpha * overlap * cotangent
    at_zero = dynamics.unit.forward(torch.zeros(1, dynamics.unit.in_vectors, rows).double())
    written = alpha * dynamics.output_std * float(at_zero.square().sum(1).mean().sqrt())
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
    """
    model, training = experiment.model, experiment.training
    rate = training.learning_rate
    return Dynamics(
        inputs=problem.inputs,
        targets=problem.targets,
        loss=problem.loss,
        unit=make_unit(**model.unit.model_dump()),
        residual_scale=model.residual_scale,
        input_std=model.init_std.input,
        output_std=model.init_std.output,
        rate_in=_own(training.learning_rate_in, rate),
        rate_out=_own(training.learning_rate_out, rate),
        rate_embedding=rate if training.train_embeddings else 0.0,
        steps=training.steps,
        unembedding_std=problem.unembedding_std,
    )


def _own(rate: float | None, common: float) -> float:
    """Give a learning rate of its own, or the common one where it is left out."""
    return common if rate is None else rate
