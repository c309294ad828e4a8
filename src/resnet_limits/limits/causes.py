"""Which number of an experiment is the likely cause of a limit that diverges."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from resnet_limits.dynamics import Dynamics
from resnet_limits.limits.depth import Array

# A factor that is no further from one than this is not named as the cause of anything.
_ORDINARY = 3.0
_TOO_LARGE = "model.residual_scale {:.3g}, which is too large"


class _Factor(NamedTuple):
    """One factor of the size of a gradient step: how much it contributes, and what it is."""

    size: float
    name: str
    remedy: str


def likely_cause(dynamics: Dynamics, limit_root: Array, step: int | None = None) -> str:
    """Say in one line how large the first gradient step is, and which factor makes it so large.

    The weights of a unit start with size s_in and s_out and move by ``(eta_in/alpha) w dp`` and
    ``(eta_out/alpha) z g``, where w is as large as s_e times the inputs and z as s_u times the
    gradient of the loss, which is the targets but for cross_entropy. At step 0 nothing has moved
    yet: what is too large then is what states start from, and no learning rate is named.

    Parameters
    ----------
    dynamics : Dynamics
        The training problem.
    limit_root : ndarray, shape (r, r)
        ``diag(s_e, ..., s_u, ...)``.
    step : int, optional
        The step at which there is no solution.
    """
    r_in = dynamics.inputs.shape[1]
    inputs, targets = (
        float(np.sqrt(np.mean(values**2))) for values in (dynamics.inputs, dynamics.targets)
    )
    embedding, unembedding = float(limit_root[0, 0]), float(limit_root[r_in, r_in])
    alpha, kind = dynamics.residual_scale, dynamics.loss.kind
    width = dynamics.targets.shape[1]
    if kind == "cross_entropy":
        gradient = 1.0
    elif kind == "mean_squared_error":
        gradient = targets / math.sqrt(width)
    else:
        gradient = targets * math.sqrt(width)
    w = embedding * inputs * math.sqrt(r_in)
    z = unembedding * gradient
    s_in, s_out = dynamics.input_std, dynamics.output_std
    rate = max(dynamics.rate_in, dynamics.rate_out, dynamics.rate_embedding)
    with np.errstate(all="ignore"):
        change = np.float64(rate) * w * z / alpha
    factors = [
        _Factor(inputs, f"inputs of size {inputs:.3g}", f"divide x by {inputs:.3g}"),
        _Factor(
            1.0 if kind == "cross_entropy" else targets,
            f"targets of size {targets:.3g}",
            f"divide y by {targets:.3g}",
        ),
        _Factor(embedding, f"model.init_std.embedding {embedding:.3g}", "lower it to about 1"),
        _Factor(unembedding, f"model.init_std.unembedding {unembedding:.3g}", "lower it"),
        _Factor(s_in, f"model.init_std.input {s_in:.3g}", "lower it to about 1"),
        _Factor(s_out, f"model.init_std.output {s_out:.3g}", "lower it to about 1"),
    ]
    if step == 0:
        first = f"hidden states start at a size of {w:.3g}, their gradients at {z:.3g}"
        factors.append(_Factor(alpha, _TOO_LARGE.format(alpha), "lower it"))
        worst = max(factors, key=lambda factor: factor.size)
        if worst.size <= _ORDINARY:
            return first
        return f"{first}; likely cause: {worst.name}; {worst.remedy}"
    factors += [
        _Factor(rate, f"a learning rate of {rate:.3g}", "lower training.learning_rate"),
        _small_or_large_scale(alpha),
    ]
    first = (
        f"a gradient step is of size {change:.2g} (learning rate {rate:.3g} x hidden states of "
        f"{w:.3g} x gradients of {z:.3g} / residual scale {alpha:.3g})"
    )
    worst = max(factors, key=lambda factor: factor.size)
    if worst.size <= _ORDINARY:
        return f"{first}; lower training.learning_rate"
    return f"{first}; likely cause: {worst.name}; {worst.remedy}"


def _small_or_large_scale(alpha: float) -> _Factor:
    if alpha < 1:
        small = f"model.residual_scale {alpha:.3g}, which is too small, as steps are divided by it"
        return _Factor(1.0 / max(alpha, 1e-300), small, "raise it to about 1")
    return _Factor(alpha, _TOO_LARGE.format(alpha), "lower it")
