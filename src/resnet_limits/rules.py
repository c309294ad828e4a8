"""Linear training rules: how a weight moves with its gradients.

A rule that is linear in the gradients keeps a weight and some buffers, ``X = (W, V_1, .., V_m)``,
and takes them through ``X <- T_k X + g_k G_k`` with G_k the gradient of step k, so that

    W_k = rho_k W_0 - sum_(j<k) C_kj G_j.

Who keeps weights takes the steps (:meth:`Rule.transition`); who keeps weights as their initial
values and the gradients' factors needs the tables rho and C alone (:func:`table`). A new rule is
one class here (docs/concepts/training-rules.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resnet_limits.config import InputError

Array = NDArray[np.float64]


class Transition(NamedTuple):
    """One step of a weight and its buffers, ``X <- matrix X + gradient G``.

    Attributes
    ----------
    matrix : ndarray, shape (1 + m, 1 + m)
        T_k; the weight comes first.
    gradient : ndarray, shape (1 + m,)
        g_k.
    """

    matrix: Array
    gradient: Array


class Table(NamedTuple):
    """Weights as a function of their initial values and of the gradients.

    Attributes
    ----------
    initial : ndarray, shape (K,)
        rho_k.
    gradients : ndarray, shape (K, K - 1)
        C_kj; zero from j = k on.
    """

    initial: Array
    gradients: Array


class Rule(ABC):
    """A linear training rule.

    Attributes
    ----------
    buffers : int
        m, the numbers that are kept beside each weight.
    """

    buffers = 0

    @abstractmethod
    def transition(self, step: int, rate: float) -> Transition:
        """Give the step after state `step` of a weight with a learning rate.

        A weight whose rate is zero must stay as it is.
        """

    def is_additive(self, steps: int) -> bool:
        """Whether each update of a training of so many states is ``W <- W + g_k G`` alone."""
        return not self.buffers and all(
            np.array_equal(self.transition(k, 1.0).matrix, [[1.0]]) for k in range(steps - 1)
        )


class GradientDescent(Rule):
    """Gradient descent with momentum, decoupled decay and a schedule.

    ``V <- momentum V + G`` (V starts at 0), then ``W <- (1 - eta_k decay) W - eta_k V``, or with
    `nesterov` ``G + momentum V`` in place of V; ``eta_k`` is the rate times the schedule's factor.

    Parameters
    ----------
    momentum, decay : float
        mu and lambda.
    nesterov : bool
        Whether the step looks ahead.
    factors : sequence of float
        The schedule, one number an update; 1 from its end on.
    """

    def __init__(
        self,
        momentum: float = 0.0,
        nesterov: bool = False,
        decay: float = 0.0,
        factors: Sequence[float] = (),
    ) -> None:
        self.momentum, self.nesterov, self.decay = momentum, nesterov, decay
        self.factors = tuple(factors)
        self.buffers = int(momentum != 0)

    def transition(self, step: int, rate: float) -> Transition:
        """Give the step after state `step` of a weight with a learning rate."""
        eta = rate * (self.factors[step] if step < len(self.factors) else 1.0)
        kept = 1.0 - eta * self.decay
        if not self.buffers:
            return Transition(np.array([[kept]]), np.array([-eta]))
        mu = self.momentum
        ahead = mu if self.nesterov else 1.0
        fresh = 1.0 + mu if self.nesterov else 1.0
        return Transition(
            np.array([[kept, -eta * ahead * mu], [0.0, mu]]), np.array([-eta * fresh, 1.0])
        )


def move(transition: Transition, parts: Sequence[Tensor], gradient: Tensor) -> None:
    """Take a weight and its buffers through one step, in place.

    Parameters
    ----------
    transition : Transition
        The step.
    parts : sequence of Tensor, 1 + m of one shape
        The weight and its buffers.
    gradient : Tensor
        G, of the same shape.
    """
    matrix = transition.matrix.tolist()
    old = list(parts)
    for i, part in enumerate(parts):
        if any(row[i] for row in matrix[i + 1 :]):
            # What comes later still needs it.
            old[i] = part.clone()
        if matrix[i][i] != 1.0:
            part.mul_(matrix[i][i])
        for j, other in enumerate(old):
            if j != i and matrix[i][j]:
                part.add_(other, alpha=matrix[i][j])
        part.add_(gradient, alpha=float(transition.gradient[i]))


def table(rule: Rule, rate: float, steps: int) -> Table:
    """Give the weights of all states as sums over the initial ones and the gradients.

    Parameters
    ----------
    rule : Rule
        The rule.
    rate : float
        The weights' learning rate.
    steps : int
        Number of states K.
    """
    size = 1 + rule.buffers
    initial, gradients = np.zeros((steps, size)), np.zeros((steps, steps - 1, size))
    initial[0, 0] = 1.0
    for k in range(steps - 1):
        matrix, gradient = rule.transition(k, rate)
        initial[k + 1] = matrix @ initial[k]
        gradients[k + 1] = gradients[k] @ matrix.T
        gradients[k + 1, k] = gradient
    return Table(initial[:, 0], -gradients[:, :, 0])


def _constant(_updates: int, **_options: object) -> list[float]:
    return []


def _cosine(updates: int) -> list[float]:
    return [0.5 * (1.0 + math.cos(math.pi * k / updates)) for k in range(updates)]


def _linear(updates: int, warmup: int = 0, final: float = 0.0) -> list[float]:
    """Rise over `warmup` updates to 1, then fall along a line that ends at `final`."""
    rise = [(k + 1) / (warmup + 1) for k in range(min(warmup, updates))]
    fall = updates - len(rise)
    return rise + [1.0 + (final - 1.0) * k / max(1, fall - 1) for k in range(fall)]


def _table(updates: int, factors: Sequence[float] = ()) -> list[float]:
    if len(factors) != updates:
        raise InputError(
            f"training.schedule.factors: {len(factors)} numbers; allowed: {updates}, one for each "
            "update, of which there is one less than training.steps"
        )
    return list(factors)


SCHEDULES: dict[str, Callable[..., list[float]]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "table": _table,
}
"""Factors of the learning rates by the schedule's name: ``(updates, **options) -> factors``."""

RULES: dict[str, Callable[..., Rule]] = {"sgd": GradientDescent}
"""Rules by their names: ``(decay=, factors=, **options) -> Rule``."""


def make_rule(kind: str, factors: Sequence[float], decay: float, **options: object) -> Rule:
    """Build the rule that an experiment names.

    Parameters
    ----------
    kind : str
        A key of :data:`RULES`.
    factors : sequence of float
        The schedule's factors.
    decay : float
        Decoupled weight decay.
    **options
        The other keys of ``training.rule``.

    Raises
    ------
    InputError
        If there is no rule of that name.
    """
    if kind not in RULES:
        raise InputError(
            f"training.rule.kind: rule {kind!r} is not available; allowed: {', '.join(RULES)}"
        )
    return RULES[kind](decay=decay, factors=factors, **options)
