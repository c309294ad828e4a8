"""The laws of the error: the terms it is made of, their powers of the sizes, and their exponents.

The distance of a network from the DMFT limit has several causes (docs/concepts/scaling.md).
Each is a *term*, a product of powers of depth L, width M and embedding dimension D. A pair
of networks or limits isolates some of the terms; where there are several, they add as
root-sum-square:
they are a bias (1/L, D/(LM)) and centred noise of independent origin (sqrt(D/(LM)), 1/sqrt(LM),
1/sqrt(D)), whose mean squares add.

Fits, the best shape for a budget, tables and figures all read the laws here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_limits.kinds import SIZES

Array = NDArray[np.float64]

POWERS: dict[str, tuple[float, float, float]] = {
    "1/L": (-1.0, 0.0, 0.0),
    "1/D": (0.0, 0.0, -1.0),
    "1/sqrt(D)": (0.0, 0.0, -0.5),
    "D/(LM)": (-1.0, -1.0, 1.0),
    "sqrt(D/(LM))": (-0.5, -0.5, 0.5),
    "1/sqrt(LM)": (-0.5, -0.5, 0.0),
}
"""Powers of L, M and D in each variable of a law."""

BIASES = frozenset({"1/L", "D/(LM)"})
"""The terms that are a bias, the same in every network; the others are noise."""

OBSERVABLES = ("hidden", "hidden_max_mean_abs", "output")
"""What distances are measured of; both hidden ones follow one law."""
PREDICTED = ("hidden", "output")
"""Those whose amplitudes are predicted."""

BUDGET_EXPONENTS = {"hidden": -1 / 6, "output": -1 / 5}
"""Exponents in P = L M D of the distance of the best shapes from the DMFT limit."""


@dataclass(frozen=True)
class Law:
    """What theory says of one distance.

    Attributes
    ----------
    variable : str or None
        The single variable of a power law; None if the law has several terms only.
    theory : float or None
        Its exponent.
    terms : tuple of str
        Variables that enter linearly and add as root-sum-square.
    depends : tuple of str
        The sizes the distance depends on.
    budget : float or None
        Exponent in P = L M D of the best shapes.
    """

    variable: str | None
    theory: float | None
    terms: tuple[str, ...]
    depends: tuple[str, ...]
    budget: float | None = None

    @property
    def name(self) -> str:
        """The variable, or the sum of the terms."""
        return self.variable or " + ".join(self.terms)

    @property
    def is_bias(self) -> bool:
        """Whether a bias alone makes the whole distance."""
        return not self.terms and self.variable in BIASES and self.theory == 1.0

    @property
    def model(self) -> str:
        """The law as a formula."""
        if not self.terms:
            return "A x^b"
        squares = " + ".join(f"(A_{k} {name})^2" for k, name in enumerate(self.terms, start=1))
        return f"error^2 = {squares}"


LAWS: dict[str, dict[str, Law]] = {
    "finite-wide": {
        "hidden": Law("D/(LM)", 0.5, (), SIZES),
        "output": Law("D/(LM)", 1.0, ("D/(LM)", "1/sqrt(LM)"), SIZES),
    },
    "wide-mean_ode": dict.fromkeys(
        ("hidden", "output"), Law("1/L", 1.0, (), ("depth", "embed_dim"))
    ),
    "mean_ode-dmft": dict.fromkeys(("hidden", "output"), Law("1/D", 0.5, (), ("embed_dim",))),
    "finite-mean_ode": {
        "hidden": Law(None, None, ("1/L", "sqrt(D/(LM))"), SIZES),
        "output": Law(None, None, ("1/L", "D/(LM)", "1/sqrt(LM)"), SIZES),
    },
    "finite-dmft": {
        "hidden": Law(
            *(None, None, ("1/L", "sqrt(D/(LM))", "1/sqrt(D)"), SIZES, BUDGET_EXPONENTS["hidden"])
        ),
        "output": Law(
            *(None, None, ("1/L", "D/(LM)", "1/sqrt(LM)", "1/sqrt(D)"), SIZES),
            BUDGET_EXPONENTS["output"],
        ),
    },
}
"""Law of each pair for ``hidden`` (both metrics) and ``output``."""

ALONE: dict[str, tuple[str, float]] = {
    "1/L": ("wide-mean_ode", 1.0),
    "sqrt(D/(LM))": ("finite-wide", 0.5),
    "1/sqrt(D)": ("mean_ode-dmft", 0.5),
}
"""The pair that shows a term alone, and the term's exponent in the variable of its law.

A term is measured more precisely alone than as a small part of a sum.
"""


def law_of(pair: str, observable: str) -> Law:
    """Look up the law of a pair for one of the `OBSERVABLES`."""
    return LAWS[pair]["output" if observable == "output" else "hidden"]


def terms_of(pair: str, observable: str) -> tuple[str, ...]:
    """Name the terms of which the distance of a pair is made, where it has one alone too."""
    alone = tuple(term for term, (own, _) in ALONE.items() if own == pair)
    return law_of(pair, observable).terms or alone


def variable_values(name: str, sizes: NDArray[Any]) -> Array:
    """Evaluate a variable such as ``D/(LM)``.

    Parameters
    ----------
    name : str
        A key of `POWERS`.
    sizes : ndarray, shape (..., 3)
        Depth, width, embedding dimension. A size of zero stands for infinite: it takes no part
        where its power is zero, and makes the value zero where that is negative.

    Returns
    -------
    ndarray, shape (...)
    """
    values = np.ones(sizes.shape[:-1])
    for axis, power in enumerate(POWERS[name]):
        if power:
            size = sizes[..., axis].astype(float)
            if power < 0:
                size = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
            values = values * size ** abs(power)
    return values


def in_quadrature(amplitudes: Mapping[str, float | Array], sizes: NDArray[Any]) -> Array:
    """Evaluate a sum of terms.

    Parameters
    ----------
    amplitudes : mapping of str to float or ndarray
        Amplitude of each term, a key of `POWERS`; several of each if sizes broadcast with them.
    sizes : ndarray, shape (..., 3)
        As for `variable_values`.

    Returns
    -------
    ndarray, shape (...)
        The error: the root of the sum of the terms' squares.
    """
    parts = [a * variable_values(name, sizes) for name, a in amplitudes.items()]
    error: Array = np.sqrt(np.square(parts).sum(axis=0))
    return error
