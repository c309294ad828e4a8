"""The training problem in the one canonical form that limits and networks both solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_limits.config import Experiment
from resnet_limits.problem import Loss, Problem
from resnet_limits.units import Unit, make_unit

GROWTH_LIMIT = 1e6
"""A hidden state that has grown by this factor since the start is called diverged."""


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
    )


def _own(rate: float | None, common: float) -> float:
    """Give a learning rate of its own, or the common one where it is left out."""
    return common if rate is None else rate
