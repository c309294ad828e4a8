"""Fits of laws to mean squares that carry a known noise.

A limit is known up to the error of its quadrature, and so is a distance from it. Of a difference d
from the true limit and an error e of the limit, the mean square is |d|^2 + |e|^2 - 2 d.e. The
expectation of |e|^2 is the square of the standard error, sigma^2. Nothing is cut: with q the mean
over seeds of the squares of a shape, the fit is least squares of

    log q - log(law^2 + c sigma^2 - 2 rho sqrt(c) sigma bias)

over shapes, as if q were the law and the noise times a log-normal scatter. A shape far above its
standard error enters as its log does, and one far below with no weight on the law.

All limits of a study were solved with the same quadrature points, so that e is nearly the same for
all of its cells and is drawn once: its square is c sigma^2 with one unknown c. Outputs vary in few
directions, so that c may be far from 1. It is fitted along, with what is known of it as one more
observation: log c is 0 with a standard deviation of 1, much as for the square of an error in two
directions; and c is at most 4, so that a law that does not hold cannot hide in the noise.

The product d.e vanishes in the mean over networks where d is noise of their own, and its scatter is
part of that over seeds. A bias (1/L, D/(LM)) lies in one direction, at some angle to e that all
cells share: rho is its cosine, unknown, with mean 0 and standard deviation 1/2. As |e| is
sqrt(c) sigma, the product is rho sqrt(c) sigma bias, and the model is a square of a distance: never
negative. rho is fitted along too, but in rounds: the bias in the product is held at what the round
before found while law, c and rho move, and is renewed between rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, nnls

from resnet_limits.cells import Study
from resnet_limits.errors.intervals import Draws, Spread

Array = NDArray[np.float64]

NOISE_SPREAD = 1.0
"""Standard deviation of log c."""

LARGEST_NOISE = 4.0
"""Largest c."""

ALIGNMENT_SPREAD = 0.5
"""Standard deviation of rho."""

MISFIT, LIMITS, KNOWN = "misfit", "limits", "known beforehand"
"""Sources of variance beside seeds: shapes about the law, the limits' error, and parameters that
something is known of."""

_SMALL_SHARE = 1e-3
"""Where noise is a smaller share of all mean squares, c makes no difference and is taken for 1; and
rho for 0 where it is a thousand times smaller, as the root counts there."""

_COLLINEAR = 1e-6
_MAX_ITERATIONS = 200
_ROUNDS = 3
_LEAST_VARIANCE = 1e-12

Model = Callable[[Array], tuple[Array, Array]]
"""From parameters (n,) to values (rows,) and their derivatives (rows, n)."""


class UnfittableError(ArithmeticError):
    """A law that cannot be fitted to these errors; says why."""


@dataclass(frozen=True)
class Fitted:
    """A fit, linear in what was measured near where it ended.

    Attributes
    ----------
    values : ndarray, shape (n,)
        Parameters.
    response : ndarray, shape (n, shapes)
        What a change of the log squared error of each shape would change in them.
    noise : float
        c, the square of the limits' error relative to what is expected.
    residuals : ndarray, shape (shapes,)
        Log squared error less the fit's.
    spread : Spread
        Of the parameters: by seeds, by the limits' error, and by misfit.
    """

    values: Array
    response: Array
    noise: float
    residuals: Array
    spread: Spread

    @property
    def residual(self) -> float:
        """RMS of log error less the fit's."""
        return float(0.5 * np.sqrt(np.mean(self.residuals**2)))

    def interval(self, column: int, lowest: float = -np.inf) -> list[float] | None:
        """Interval of one parameter, not below some value; None if nothing shows its scatter."""
        half = self.spread.half_widths()[column]
        if not np.isfinite(half):
            return None
        # The mean of few squares has a log that is too low; resampling shows by how much.
        estimate = self.values[column]
        centre = estimate - self.spread.bias[column]
        return [max(lowest, min(centre - half, estimate)), max(centre + half, estimate)]


def fit_power(
    study: Study,
    draws: Draws,
    columns: Array,
    offset: Array | None = None,
    precision: Array | None = None,
    *,
    bias: bool = False,
    prior: Array | None = None,
) -> Fitted:
    """Fit log error = columns b + constant + offset.

    Parameters
    ----------
    columns : ndarray, shape (shapes, n)
    offset : ndarray, shape (shapes,), optional
    precision : ndarray, shape (shapes,), optional
        Weights of shapes; all the same by default.
    bias : bool
        Whether the error is a bias, and not noise.
    prior : ndarray, shape (n,), optional
        Standard deviations of b about zero, as far as it is known beforehand: one more observation
        of each; infinite, as by default, where nothing is known.

    Returns
    -------
    Fitted
        With parameters (b, constant).

    Raises
    ------
    UnfittableError
        If no parameters give a finite distance between law and errors.
    """
    X = np.column_stack([columns, np.ones(len(study.sizes))])
    known = np.zeros(len(X)) if offset is None else offset
    noise = study.mean_noise
    q = study.mean_squares
    # Where noise is all there is, half of it: any start will do.
    law = np.maximum(q - noise, 0.5 * np.minimum(q, noise))
    logs = 0.5 * np.log(np.where(law > 0, law, q))
    start = np.asarray(np.linalg.lstsq(X, logs - known, rcond=None)[0], dtype=np.float64)

    def squares(parameters: Array) -> tuple[Array, Array]:
        exponent = np.clip(2 * (X @ parameters + known), -600.0, 600.0)
        law = np.exp(exponent)
        return law, 2 * law[:, None] * X

    def biased(parameters: Array) -> Array:
        return squares(parameters)[0] * bias

    lower = np.full(len(start), -np.inf)
    known_before = None if prior is None else np.append(prior, np.inf)
    return _fit(study, draws, (squares, biased), [start], lower, precision, known_before)


def fit_terms(study: Study, draws: Draws, X: Array, bias: NDArray[np.bool_]) -> Fitted:
    """Fit error^2 = X A over A >= 0.

    Parameters
    ----------
    X : ndarray, shape (shapes, terms)
        Squared variables.
    bias : ndarray of bool, shape (terms,)
        Which of them are biases, and not noise.

    Returns
    -------
    Fitted
        With parameters A, the squared amplitudes. The spread is that of a fit without bounds:
        where a term is not seen, its estimate hardly varies, and yet it may be there.

    Raises
    ------
    UnfittableError
        If no parameters give a finite distance between law and errors.
    """
    # In units in which every term alone would explain the errors on average.
    q = study.mean_squares
    unit = np.exp(np.mean(np.log(q)[:, None] - np.log(X), axis=0))
    scaled = X * unit
    terms = X.shape[1]
    even = np.full(terms, 1.0 / terms)
    relative: Array = nnls(scaled / q[:, None], np.maximum(1.0 - study.mean_noise / q, 0.0))[0]

    def squares(parameters: Array) -> tuple[Array, Array]:
        return scaled @ parameters, scaled

    def biased(parameters: Array) -> Array:
        return scaled @ (parameters * bias)

    # A start needs a positive model for every shape; a little of every term sees to that.
    starts: list[Array] = [relative + 1e-3 * even, even]
    fitted = _fit(study, draws, (squares, biased), starts, np.zeros(terms), None)
    spread = Spread(
        fitted.spread.bias * unit,
        fitted.spread.variances * unit**2,
        fitted.spread.degrees,
        fitted.spread.sources,
    )
    return Fitted(
        fitted.values * unit,
        fitted.response * unit[:, None],
        fitted.noise,
        fitted.residuals,
        spread,
    )


def collinear(columns: Array) -> bool:
    """Whether some combination of columns (rows, n) vanishes, up to rounding."""
    scaled = columns / np.linalg.norm(columns, axis=0)
    singular = np.linalg.svd(scaled, compute_uv=False)
    return bool(singular[-1] < _COLLINEAR * singular[0])


# --- least squares --------------------------------------------------------------------------------


def _fit(
    study: Study,
    draws: Draws,
    law: tuple[Model, Callable[[Array], Array]],
    starts: list[Array],
    lower: Array,
    precision: Array | None,
    prior: Array | None = None,
) -> Fitted:
    """Fit a law and the noise beside it, and find the spread of its parameters.

    Parameters
    ----------
    law : pair of callables
        From parameters (n,) to law^2 (shapes,) with its derivatives, and to the part of it that is
        the square of a bias.
    starts : list of ndarray, shape (n,)
        The best of the descents from them is taken.
    lower : ndarray, shape (n,)
        Lower bounds of the parameters.
    precision : ndarray, shape (shapes,), or None
    prior : ndarray, shape (n,), optional
        Standard deviations of parameters about zero.
    """
    squares, biased = law
    q, noise, count = study.mean_squares, study.mean_noise, len(lower)
    weights = np.ones(len(q)) if precision is None else precision
    degrees = len(q) - count
    product = np.zeros_like(q)
    held = np.flatnonzero(np.isfinite(np.full(count, np.inf) if prior is None else prior))
    # What is known beforehand of some parameters, of log c and of rho.
    known = np.array([NOISE_SPREAD, ALIGNMENT_SPREAD])
    if prior is not None:
        known = np.append(prior[held], known)

    def model(parameters: Array) -> tuple[Array, Array]:
        c, rho = parameters[count:]
        values, derivatives = squares(parameters[:count])
        root = np.sqrt(c)
        total = values + c * noise - rho * root * product
        positive = np.where(total > 0, total, 1.0)
        by_noise = noise - 0.5 * rho / root * product
        slopes = np.column_stack([derivatives, by_noise, -root * product]) / positive[:, None]
        logs = np.where(total > 0, np.log(positive), -np.inf)
        # The last observations are what is known beforehand, of c and rho at the end.
        observed = np.zeros((len(known), count + 2))
        observed[np.arange(len(held)), held] = 1.0
        observed[-2, count], observed[-1, count + 1] = 1.0 / c, 1.0
        logs = np.concatenate([logs, parameters[held], [np.log(c), rho]])
        return logs, np.vstack([slopes, observed])

    bounds = np.append(lower, [1e-3, -1.0]), np.append(np.full(count, np.inf), [LARGEST_NOISE, 1.0])
    target = np.append(np.log(q), np.zeros(len(known)))
    fixed = 1e6 * weights.sum()
    w = np.append(weights, np.full(len(known), fixed))
    ends = [_descend(np.append(start, [1.0, 0.0]), model, target, w, bounds) for start in starts]
    parameters = min(ends, key=lambda end: _objective(model(end)[0], target, w))
    for _ in range(_ROUNDS):
        # Held while the parameters move, as its root has no slope where there is no bias.
        product = 2 * np.sqrt(biased(parameters[:count]) * noise)
        if not np.isfinite(model(parameters)[0]).all():
            # Bias and error of a limit may cancel in one shape; without a product nothing does.
            parameters[-1] = 0.0
        uncertain = np.ones(len(known), bool)
        uncertain[-2:] = [(part > _SMALL_SHARE * q).any() for part in (noise, product)]
        if not uncertain.any():
            break
        # What is known beforehand is held against the scatter of shapes about the law.
        residuals = (target - model(parameters)[0])[: len(q)]
        variance = max((weights * residuals**2).sum() / max(degrees, 1), _LEAST_VARIANCE)
        w = np.append(weights, np.where(uncertain, variance / known**2, fixed))
        parameters = _descend(parameters, model, target, w, bounds)
    logs, jacobian = model(parameters)
    residuals = (target - logs)[: len(q)]
    # In log c in place of c.
    jacobian[:, count] *= parameters[count]
    normal = jacobian.T @ (w[:, None] * jacobian)
    scale = np.sqrt(np.maximum(np.diag(normal), np.finfo(float).tiny))
    inverse = np.linalg.pinv(normal / np.outer(scale, scale), hermitian=True)
    inverse /= np.outer(scale, scale)
    whole = inverse @ (w[:, None] * jacobian).T
    response = whole[:, : len(q)]
    spread = _spread(study, draws, jacobian[: len(q)], response, weights, residuals, degrees)
    by_known = whole[:count, len(q) :] ** 2 * (known**2 * uncertain)
    if uncertain[-2:].any():
        spread = spread.plus(by_known[:, -2:].sum(axis=1), np.inf, LIMITS)
    if len(held):
        spread = spread.plus(by_known[:, :-2].sum(axis=1), np.inf, KNOWN)
    return Fitted(
        parameters[:count],
        response[:count],
        float(parameters[count]) if uncertain[-2] else 1.0,
        residuals,
        spread,
    )


def _spread(
    study: Study,
    draws: Draws,
    jacobian: Array,
    response: Array,
    weights: Array,
    residuals: Array,
    degrees: int,
) -> Spread:
    """Find the spread by seeds, and by what shapes scatter about the law beyond that.

    Each resample is fitted by one Newton step from the fit to all seeds. A law that does not hold
    exactly over the range of shapes leaves residuals that seeds do not explain; it misplaces
    parameters in every seed alike, as far as such residuals would if they were by chance.
    """
    rows, count = len(draws.weights), len(response) - 2
    changes, left = np.empty((rows, len(response))), np.empty((rows, 1))
    for block, logs in draws.changes(study):
        changes[block] = logs @ response.T
        rest = logs - changes[block] @ jacobian.T
        left[block, 0] = (weights * rest**2).sum(axis=1)
    spread = draws.spread(changes[:, :count])
    if degrees < 1:
        # Nothing is left over to show a misfit by; without seeds nothing shows any scatter.
        if rows:
            return spread
        return spread.plus(np.full(count, np.inf), 1.0, MISFIT)
    sizes = np.array(draws.sizes, float)
    expected = (
        (left.reshape(len(sizes), -1).mean(axis=1) * sizes / (sizes - 1)).sum() if rows else 0
    )
    excess = max(0.0, float((weights * residuals**2).sum() - expected)) / degrees
    misfit = excess * (response[:count] ** 2 / weights).sum(axis=1)
    return spread.plus(misfit, float(degrees), MISFIT)


def _objective(logs: Array, target: Array, weights: Array) -> float:
    """Give the sum of weights (target - logs)^2; infinite where the model is not positive."""
    if not np.isfinite(logs).all():
        return np.inf
    return float((weights * (target - logs) ** 2).sum())


def _descend(
    start: Array,
    model: Model,
    target: Array,
    weights: Array,
    bounds: tuple[Array, Array],
) -> Array:
    """Minimise the sum of weights (target - logs)^2 by Gauss-Newton steps within bounds.

    Each step is a least-squares problem within the bounds, whose solution is a direction of
    descent for the step length.
    """
    root = np.sqrt(weights)
    parameters = np.clip(start, *bounds)
    logs, jacobian = model(parameters)
    before = _objective(logs, target, weights)
    if not np.isfinite(before):
        raise UnfittableError("no parameters give a finite distance between law and errors")
    for _ in range(_MAX_ITERATIONS):
        direction = _step(root[:, None] * jacobian, root * (target - logs), parameters, bounds)
        length = 1.0
        for _ in range(20):
            trial = np.clip(parameters + length * direction, *bounds)
            found, slopes = model(trial)
            after = _objective(found, target, weights)
            if after <= before:
                break
            length *= 0.5
        else:
            break
        parameters, logs, jacobian = trial, found, slopes
        done = before - after <= 1e-13 * before
        before = after
        if done:
            break
    return parameters


def _step(jacobian: Array, right: Array, parameters: Array, bounds: tuple[Array, Array]) -> Array:
    """Solve for the change of the parameters, in units in which all columns have one length."""
    unit = np.linalg.norm(jacobian, axis=0)
    unit = np.where(unit > 0, unit, 1.0)
    step, *_ = np.linalg.lstsq(jacobian / unit, right, rcond=1e-10)
    low, high = ((bound - parameters) * unit for bound in bounds)
    if ((step < low) | (step > high)).any():
        # The orthogonal factor shortens the problem to as many rows as there are columns.
        Q, R = np.linalg.qr(jacobian / unit)
        tiny = 1e-12 * np.maximum(1.0, np.abs(low))
        step = lsq_linear(R, Q.T @ right, (low - tiny, high + 1e-12), method="bvls").x
    change: Array = step / unit
    return change
