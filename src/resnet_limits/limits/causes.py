"""Which number of an experiment is the likely cause of a limit that diverges."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits.depth import Array
from resnet_limits.norms import Norm
from resnet_limits.rules import table

# A factor that is no further from one than this is not named as the cause of anything.
_ORDINARY = 3.0
# States by which it is seen how often a training rule adds a gradient.
_RULE_STEPS = 100


class _Factor(NamedTuple):
    """One number that states or gradient steps grow with.

    Attributes
    ----------
    size : float
        How many times it makes them larger.
    name : str
        What it is, with its value.
    remedy : str
        What to do about it.
    in_step : bool
        The size of a gradient step is proportional to it.
    wrong : str
        What is wrong with it.
    """

    size: float
    name: str
    remedy: str
    in_step: bool = True
    wrong: str = "which is too large"


class _Step(NamedTuple):
    """A training step of weights: their rate, the states it is made of, and what divides it."""

    rate: float
    state: float
    cotangent: float
    alpha: float
    scale: str

    @property
    def size(self) -> float:
        """How far it goes."""
        with np.errstate(all="ignore"):
            return float(np.float64(self.rate) * self.state * self.cotangent / self.alpha)


def _where(number: int, name: str, value: float, common: float) -> str:
    """Name a number of a branch: the model's where it is the same."""
    return f"model.{name}" if value == common else f"model.layer[{number}].{name}"


def _factor_of(norm: Norm, w: float) -> float:
    """Give by what a norm multiplies a state of size w."""
    return float(norm.factor(torch.tensor(min(w, 1e150) ** 2, dtype=torch.float64)))


def _grows(norm: Norm, w: float) -> bool:
    """Whether what a norm makes of a state of size w grows with it."""
    return 2.0 * _factor_of(norm, 2.0 * w) > 1.5 * _factor_of(norm, w)


def _gathered(dynamics: Dynamics, rate: float) -> float:
    """Give how often the training rule adds a gradient, in learning rates."""
    steps = min(dynamics.steps, _RULE_STEPS)
    if not rate or steps < 2 or dynamics.rule.is_additive(steps):
        return 1.0
    return max(1.0, float(table(dynamics.rule, rate, steps).gradients.max()) / rate)


def likely_cause(dynamics: Dynamics, limit_root: Array, step: int | None = None) -> str:
    """Say in one line which number makes states or gradient steps so large that they diverge.

    The weights of a unit start with size s_in and s_out and move by ``(eta_in/alpha) u dp`` and
    ``(eta_out/alpha) z g``, where u is as large as s_e times the inputs, or as the norm that its
    branch reads through makes it, and z as s_u times the gradient of the loss, which is the targets
    but for cross_entropy. The branch whose steps are largest counts. Before the first gradient
    step, or where steps are of size 0, no number is named that acts through steps alone.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    limit_root : ndarray, shape (r, r)
        ``diag(s_e, ..., s_u, ...)``.
    step : int, optional
        The step that has no bounded state; taken to be after the first where it is not known.
    """
    r_in = dynamics.inputs.shape[1]
    inputs, targets = _rms(dynamics.inputs), _rms(dynamics.targets)
    embedding, unembedding = float(limit_root[0, 0]), float(limit_root[r_in, r_in])
    kind, width = dynamics.loss.kind, dynamics.targets.shape[1]
    if kind == "cross_entropy":
        gradient = 1.0
    elif kind == "mean_squared_error":
        gradient = targets / math.sqrt(width)
    else:
        gradient = targets * math.sqrt(width)
    w = embedding * inputs * math.sqrt(r_in)
    z = unembedding * gradient * _factor_of(dynamics.final_norm, w)
    # One step for each branch, and that of the embeddings.
    steps = [
        _Step(
            max(branch.rate_in, branch.rate_out),
            w * _factor_of(branch.norm, w),
            z,
            branch.scale,
            _where(number, "residual_scale", branch.scale, dynamics.residual_scale),
        )
        for number, branch in enumerate(dynamics.layer)
    ]
    rate = max(dynamics.rate_embedding, dynamics.rate_unembedding)
    steps.append(_Step(rate, w, z, dynamics.residual_scale, "model.residual_scale"))
    largest = max(steps, key=lambda one: one.size)
    rate, seen, alpha = largest.rate, largest.state, largest.alpha
    gathered = _gathered(dynamics, rate)
    change = gathered * largest.size
    largest_alpha = max(steps[:-1], key=lambda one: one.alpha)
    # States that start at 0 move too, where embeddings are trained.
    moved = step != 0 and rate > 0 and z > 0
    factors = [
        _Factor(unembedding, f"model.init_std.unembedding {unembedding:.3g}", "lower it"),
        *(
            _Factor(
                std,
                f"{_where(number, f'init_std.{name}', std, common)} {std:.3g}",
                "lower it to about 1",
                in_step=False,
            )
            for number, branch in enumerate(dynamics.layer)
            for name, std, common in (
                ("input", branch.input_std, dynamics.layer[0].input_std),
                ("output", branch.output_std, dynamics.layer[0].output_std),
            )
        ),
        _Factor(
            largest_alpha.alpha,
            f"{largest_alpha.scale} {largest_alpha.alpha:.3g}",
            "lower it",
            in_step=False,
        ),
    ]
    if any(_grows(branch.norm, w) for branch in dynamics.layer):
        factors = [
            _Factor(inputs, f"inputs of size {inputs:.3g}", f"divide x by {inputs:.3g}"),
            _Factor(embedding, f"model.init_std.embedding {embedding:.3g}", "lower it to about 1"),
            *factors,
        ]
    if kind != "cross_entropy":
        factors.append(
            _Factor(targets, f"targets of size {targets:.3g}", f"divide y by {targets:.3g}")
        )
    if moved:
        factors += [
            _Factor(rate, f"a learning rate of {rate:.3g}", "lower training.learning_rate"),
            _Factor(
                # A small scale does harm through large steps alone.
                min(1.0 / max(alpha, 1e-300), change),
                f"{largest.scale} {alpha:.3g}",
                "raise it to about 1",
                wrong="which is too small, as steps are divided by it",
            ),
            _Factor(
                gathered,
                f"training.rule, by which a gradient counts {gathered:.3g} times",
                "lower its momentum or training.learning_rate",
            ),
        ]
    worst = max(factors, key=lambda factor: factor.size)
    if not moved:
        start = f"hidden states start at a size of {w:.3g}, their gradients at {z:.3g}"
        return start if worst.size <= _ORDINARY else f"{start}; {_blame(worst)}"
    if change <= 1 or not worst.in_step:
        if worst.size <= _ORDINARY:
            return "lower training.learning_rate"
        return _blame(worst)
    first = (
        f"a gradient step is of size {change:.2g} (learning rate {rate:.3g} x hidden states of "
        f"{seen:.3g} x gradients of {z:.3g} / residual scale {alpha:.3g})"
    )
    if worst.size <= _ORDINARY:
        return f"{first}; lower training.learning_rate"
    return f"{first}; {_blame(worst)}"


def _blame(factor: _Factor) -> str:
    return f"likely cause: {factor.name}, {factor.wrong}; {factor.remedy}"


def _rms(values: Array) -> float:
    """Root mean square, which does not overflow where the values do not."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.mean((values / largest) ** 2)))
