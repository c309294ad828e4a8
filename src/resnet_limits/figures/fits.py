"""Fitted laws as they stand in rates.json: looked up, evaluated, put into words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Fit = Mapping[str, Any]


def _inverse(size: np.ndarray) -> np.ndarray:
    """Take 1/size, where size 0 stands for infinite."""
    size = np.asarray(size, dtype=float)
    return np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)


_TERMS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "1/L": lambda L, M, D: _inverse(L),
    "1/D": lambda L, M, D: _inverse(D),
    "1/sqrt(D)": lambda L, M, D: np.sqrt(_inverse(D)),
    "D/(LM)": lambda L, M, D: D * _inverse(L * M),
    "sqrt(D/(LM))": lambda L, M, D: np.sqrt(D * _inverse(L * M)),
    "1/sqrt(LM)": lambda L, M, D: np.sqrt(_inverse(L * M)),
}


def entry(rates: Mapping[str, Any], pair: str, quantity: str, step: int | None) -> Fit:
    """Look up what rates.json says of one distance; empty if it says nothing."""
    quantities = (rates.get("pairs") or {}).get(pair) or {}
    return (quantities.get(quantity) or {}).get(str(step)) or {}


def fit_of(
    rates: Mapping[str, Any], pair: str, quantity: str, step: int | None
) -> tuple[Fit | None, str]:
    """Look up one fit.

    Returns
    -------
    fit : mapping or None
        None if there is no fit.
    reason : str
        Why there is none, or no exponent; empty if all is there.
    """
    fit = entry(rates, pair, quantity, step)
    if fit.get("exponent") is None and not fit.get("terms"):
        return None, str(fit.get("reason") or "No fit was made.")
    return fit, str(fit.get("reason") or "")


def law(
    fit: Fit, depth: np.ndarray | float, width: np.ndarray | float, embed_dim: np.ndarray | float
) -> np.ndarray | None:
    """Evaluate a fitted law at any sizes.

    Parameters
    ----------
    fit : mapping
        An entry of rates.json: one power of one variable, or several terms that add as squares
        (and a floor, which holds the place of terms that are the same for all shapes).
    depth, width, embed_dim : array or float
        L, M, D, broadcast against each other; 0 stands for infinite.

    Returns
    -------
    ndarray or None
        The error by the law; None if the fit has a term of an unknown name.
    """
    L, M, D = np.broadcast_arrays(*(np.asarray(x, float) for x in (depth, width, embed_dim)))
    terms = fit.get("terms")
    if not terms:
        variable = _TERMS.get(str(fit.get("variable")))
        if variable is None or fit.get("exponent") is None or fit.get("amplitude") is None:
            return None
        return fit["amplitude"] * variable(L, M, D) ** fit["exponent"]
    if any(name not in _TERMS or term.get("amplitude") is None for name, term in terms.items()):
        return None
    parts = [term["amplitude"] * _TERMS[name](L, M, D) for name, term in terms.items()]
    if fit.get("floor"):
        parts.append(np.full(L.shape, fit["floor"]["amplitude"]))
    return np.sqrt((np.stack(parts) ** 2).sum(axis=0))
