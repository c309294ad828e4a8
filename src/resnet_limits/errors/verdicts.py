"""Verdicts: every exponent and amplitude that theory claims, held against what was measured.

A claim is about large sizes. It is judged on the shapes whose distance from the limit is predicted
to be a small part of the limit's states, with the next order of the law fitted along; it agrees,
disagrees or is undecided by rules alone (docs/concepts/verdicts.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from resnet_limits.cells import Study, make_study
from resnet_limits.errors.intervals import resample, strata
from resnet_limits.errors.judging import WIDTHS, Claim, Estimate, Open, decide
from resnet_limits.errors.likelihood import Fitted, UnfittableError, collinear, fit_power
from resnet_limits.errors.rates import distinct, json_values
from resnet_limits.errors.resolution import outstanding
from resnet_limits.kinds import SIZES
from resnet_limits.laws import ALONE, PREDICTED, Law, in_quadrature, law_of, variable_values

Array = NDArray[np.float64]

LARGEST_DISTANCE = 1 / 3
"""Shapes are large where the distance from the DMFT limit that is predicted for the hidden state is
at most this share of the limit's RMS, so that the next order is about a ninth of an error."""

_MIN_VALUES = 3
_MOST_SLOPES = 5
_NOTHING = 1e-9


# --- what is predicted ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Predicted:
    """The amplitudes of one step.

    Attributes
    ----------
    amplitudes : dict
        ``[observable][term]`` is the amplitude and its uncertainty, or None where there is none.
    scale : float
        RMS of the hidden states of the limit; NaN where it is not there.
    """

    amplitudes: Mapping[str, Mapping[str, tuple[float, float] | None]]
    scale: float

    @classmethod
    def at(cls, prediction: Mapping[str, Any], step: int) -> _Predicted:
        """Take one step of a prediction.json."""
        place = list(prediction["step"]).index(step)
        found: dict[str, dict[str, tuple[float, float] | None]] = {}
        for name in PREDICTED:
            found[name] = {}
            for term, values in prediction[name].items():
                value = values["amplitude"][place]
                error = values["uncertainty"][place]
                found[name][term] = None if value is None else (value, error or 0.0)
        scale = prediction["scale"]["hidden"][place]
        return cls(found, math.nan if scale is None else scale)

    def of(self, observable: str, terms: Sequence[str]) -> dict[str, tuple[float, float]] | str:
        """Give the amplitudes of some terms, or say which are missing."""
        found = {term: self.amplitudes[observable].get(term) for term in terms}
        missing = [term for term, value in found.items() if value is None]
        if missing:
            return f"no amplitude of {', '.join(missing)} is predicted"
        return {term: value for term, value in found.items() if value is not None}

    def relative(self, sizes: NDArray[Any]) -> dict[str, Array] | str:
        """Give the squares of the hidden terms over that of the limit's states, by term.

        Parameters
        ----------
        sizes : ndarray of int, shape (shapes, 3)
            0 for what is infinite.
        """
        found = self.of("hidden", tuple(ALONE))
        if isinstance(found, str):
            return found
        if not self.scale > 0:
            return "the limit's hidden states vanish"
        return {
            term: (value * variable_values(term, sizes) / self.scale) ** 2
            for term, (value, _) in found.items()
        }


# --- one distance at one step ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """The errors of one distance at one step, and the part of them that claims are judged on."""

    study: Study
    inside: NDArray[np.bool_]
    columns: Array
    prior: Array
    root_seed: int

    @property
    def part(self) -> Study:
        return self.study.rows(np.flatnonzero(self.inside))

    @property
    def seeds(self) -> int:
        """Number of seeds of the shape that has fewest."""
        return int(self.part.counts.min())

    def range(self) -> dict[str, Any]:
        """Say which shapes are judged."""
        sizes = self.part.sizes
        spans = {
            name: [int(column.min()), int(column.max())]
            for name, column in zip(SIZES, sizes.T, strict=True)
            if len(column) and column.max() > 0
        }
        return {
            "rule": "predicted hidden distance from the DMFT limit at most "
            f"{LARGEST_DISTANCE:.2g} of the limit's RMS",
            "shapes": len(sizes),
            "of": len(self.study.sizes),
            **spans,
        }

    def fitted(self, logs: Array | None, offset: Array, *, bias: bool) -> Fitted:
        """Fit log E = exponent x logs + offset, with the next order, in what is judged."""
        part, inside = self.part, self.inside
        columns, prior = self.columns[inside], self.prior
        if logs is not None:
            columns, prior = np.column_stack([logs[inside], columns]), np.append(np.inf, prior)
        free = np.column_stack([columns[:, np.isinf(prior)], np.ones(len(columns))])
        if len(columns) < free.shape[1] or collinear(free):
            raise UnfittableError("too few sizes to tell the law from its next order")
        draws = resample(strata(part.exists), self.root_seed)
        return fit_power(part, draws, columns, offset[inside], bias=bias, prior=prior)

    def slopes(self, logs: Array, *, bias: bool) -> list[dict[str, Any]]:
        """Give the slope of log E in log x over pieces of all shapes, from large to small."""
        seen = np.flatnonzero(outstanding(self.study))
        values = np.unique(np.round(logs[seen], 9))
        count = min(_MOST_SLOPES, len(values) - 1)
        # Neighbouring pieces share an end, so that two values are enough for one.
        ends = values[np.round(np.linspace(0, len(values) - 1, count + 1)).astype(int)]
        found = []
        for low, high in pairwise(ends):
            chosen = seen[(logs[seen] >= low - 1e-8) & (logs[seen] <= high + 1e-8)]
            part = self.study.rows(chosen)
            draws = resample(strata(part.exists), self.root_seed)
            try:
                line = fit_power(part, draws, logs[chosen][:, None], bias=bias)
            except UnfittableError:
                continue
            found.append(
                {
                    "from": math.exp(low),
                    "to": math.exp(high),
                    "exponent": float(line.values[0]),
                    "interval": line.interval(0),
                }
            )
        return found


def _measured(
    dataset: xr.Dataset, where: Mapping[str, Any], predicted: _Predicted, root_seed: int
) -> _Measured | str:
    """Gather the errors of a distance, and decide which shapes are large; or say why not."""
    law = law_of(where["pair"], where["observable"])
    study = make_study(dataset, where["observable"], where["step"])
    if not study.seeds:
        return "no cell is left to fit"
    relative = predicted.relative(study.sizes)
    if isinstance(relative, str):
        return f"it is not known which shapes are large: {relative}"
    inside = (sum(relative.values()) <= LARGEST_DISTANCE**2) & outstanding(study)
    # The next order: its size relative to an error is told from the terms of the hidden distance,
    # and its factor is unknown and of order one. A bias may nearly vanish by itself, which what
    # changes it need not do: there the factor may be anything.
    loose = np.inf if law.is_bias else 1.0
    parts = {
        "1/sqrt(D)": (relative["1/sqrt(D)"], loose),
        "sqrt(D/(LM))": (relative["sqrt(D/(LM))"], 1.0),
    }
    if "depth" in law.depends:
        layers = variable_values("1/L", study.sizes)
        parts |= {"1/L": (layers, loose), "1/L^2": (layers**2, 1.0)}
    parts = {term: part for term, part in parts.items() if part[0][inside].any()}
    matrix = np.empty((len(study.sizes), 0))
    if parts:
        matrix = np.stack([part for part, _ in parts.values()], axis=1)
    prior = np.array([known for _, known in parts.values()])
    return _Measured(study, inside, matrix, prior, root_seed)


# --- claims ---------------------------------------------------------------------------------------


def claims(
    errors: Mapping[str, xr.Dataset],
    rates: Mapping[str, Any],
    prediction: Mapping[str, Any],
    root_seed: int,
    limit_tolerance: float | None = None,
) -> list[Claim]:
    """Judge every exponent and amplitude of a study.

    Parameters
    ----------
    errors : mapping of str to Dataset
        The groups of an errors store, those of the study's pairs.
    rates : mapping
        ``steps``, and the fits under ``pairs`` and ``families``, of exponents in P.
    prediction : mapping
        The contents of prediction.json.
    root_seed : int
        Root of the bootstrap's random stream.
    limit_tolerance : float, optional
        The tolerance that the limits were solved to, to say which would decide.

    Returns
    -------
    list of dict
        JSON values: ``claim``, ``where`` (``pair``, ``observable``, ``step``), ``theory`` (an
        exponent, or None), ``predicted`` (an amplitude, or what the predicted law has over the
        shapes that are judged) and its ``predicted_uncertainty``, ``measured``, ``interval`` (95 %,
        with the uncertainty of the prediction and of the next order), ``chance`` of a larger
        distance were the claim true, ``width``, the largest half-width that lets it agree,
        ``range``, the shapes that are judged and by which rule, ``slopes``, the local exponents of
        all shapes from small to large values of the variable, ``verdict`` and ``why``.
    """
    found: list[Open] = []
    for step in rates["steps"]:
        predicted = _Predicted.at(prediction, step)
        for pair, dataset in errors.items():
            for observable in PREDICTED:
                where = {"pair": pair, "observable": observable, "step": step}
                found += _of_distance(dataset.load(), where, predicted, root_seed)
                found += _of_budget(rates, where, predicted)
                found += _of_families(rates, where, predicted)
    return [json_values(one) for one in decide(found, limit_tolerance)]


def _claim(words: str, where: Mapping[str, Any], **values: Any) -> Claim:
    return {
        "claim": words,
        "where": dict(where),
        "theory": None,
        "predicted": None,
        "predicted_uncertainty": None,
        "measured": None,
        "interval": None,
        "chance": None,
        "width": None,
        "range": None,
        "slopes": [],
        **values,
    }


def _of_distance(
    dataset: xr.Dataset, where: Mapping[str, Any], predicted: _Predicted, root_seed: int
) -> Iterator[Open]:
    """Claim the exponent and the amplitude of one distance at one step."""
    pair, observable = where["pair"], where["observable"]
    law = law_of(pair, observable)
    key = "sweep.seeds" if pair.startswith("finite") else "sweep.limit_seeds"
    measured = _measured(dataset, where, predicted, root_seed)
    sums = bool(law.terms)
    terms = law.terms or tuple(term for term, (alone, _) in ALONE.items() if alone == pair)
    name = " + ".join(terms) if sums else str(law.variable)
    exponent = Open(
        _claim(
            f"exponent of the sum {name}" if sums else f"exponent of {name}",
            where,
            theory=1.0 if sums else law.theory,
        ),
        "exponent",
        reference=1.0 if sums else law.theory,
        key=key,
    )
    amplitude = Open(
        _claim(f"amplitude of the sum {name}" if sums else f"amplitude of {terms[0]}", where),
        "amplitude",
        key=key,
    )
    amplitudes = predicted.of(observable, terms)
    for one in (exponent, amplitude):
        if isinstance(amplitudes, str):
            one.reason = amplitudes
        elif isinstance(measured, str):
            one.reason = measured
        else:
            one.claim["range"] = measured.range()
    if not isinstance(amplitudes, str) and not isinstance(measured, str):
        _measure(law, measured, amplitudes, exponent, amplitude)
    yield exponent
    yield amplitude


def _measure(
    law: Law,
    measured: _Measured,
    amplitudes: Mapping[str, tuple[float, float]],
    exponent: Open,
    amplitude: Open,
) -> None:
    """Fit the exponent and the amplitude of a distance."""
    sizes, inside = measured.study.sizes, measured.inside
    values = {term: value for term, (value, _) in amplitudes.items()}
    size = in_quadrature(values, sizes)
    if not (size > _NOTHING).all():
        exponent.reason = amplitude.reason = "the predicted error vanishes at this step"
        return
    # The predicted error is a power of the variable where there is one, and the sum where not.
    power = 1.0 if law.terms else law.theory or 1.0
    logs = np.log(size) / power
    if not law.terms:
        logs = np.log(variable_values(str(law.variable), sizes))
    exponent.claim["slopes"] = measured.slopes(logs, bias=law.is_bias)
    count = distinct(logs[inside]) if inside.any() else 0
    if not inside.any():
        exponent.reason = amplitude.reason = "no shape is large enough"
        return
    if count < _MIN_VALUES:
        exponent.reason = (
            f"too few values of the variable are large enough: {count} of the {_MIN_VALUES} needed"
        )
    else:
        try:
            free = measured.fitted(logs, np.zeros(len(sizes)), bias=law.is_bias)
            exponent.estimate = Estimate.of(free, 0, measured.seeds)
        except UnfittableError as why:
            exponent.reason = str(why)
    # Uncertainties of amplitudes, as they enter the log of the sum.
    share = {term: (values[term] * variable_values(term, sizes)) ** 2 / size**2 for term in values}
    uncertainty = math.sqrt(
        sum(
            (float(share[term][inside].mean()) * error / value) ** 2
            for term, (value, error) in amplitudes.items()
            if value > 0
        )
    )
    scale = 1.0 if law.terms else next(iter(values.values()))
    amplitude.claim |= {"predicted": scale, "predicted_uncertainty": scale * uncertainty}
    try:
        held = measured.fitted(None, np.log(size), bias=law.is_bias)
    except UnfittableError as why:
        amplitude.reason = str(why)
        return
    amplitude.reference = math.log(scale)
    shifted = Estimate.of(held, held.values.size - 1, measured.seeds, uncertainty)
    amplitude.estimate = Estimate(
        shifted.value + math.log(scale),
        shifted.centre + math.log(scale),
        shifted.parts,
        shifted.degrees,
        shifted.seeds,
    )


# --- exponents in P -------------------------------------------------------------------------------


def _in_parameters(
    words: str,
    where: Mapping[str, Any],
    predicted: _Predicted,
    theory: float,
    fit: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    seeds: int,
) -> Open:
    """Claim an exponent in P of the errors of some shapes."""
    law = law_of(where["pair"], where["observable"])
    one = Open(_claim(words, where, theory=theory), "exponent in P")
    if fit.get("exponent") is None or not fit.get("exponent_interval"):
        one.reason = str(fit.get("reason") or "no fit was made")
        return one
    one.estimate = Estimate.of_interval(fit["exponent"], fit["exponent_interval"], seeds)
    terms = law.terms or tuple(term for term, (pair, _) in ALONE.items() if pair == where["pair"])
    amplitudes = predicted.of(where["observable"], terms)
    if isinstance(amplitudes, str):
        one.reason = amplitudes
        return one
    sizes = np.array([[point[name] for name in SIZES] for point in points])
    logs = np.log(in_quadrature({term: value for term, (value, _) in amplitudes.items()}, sizes))
    parameters = np.log([float(point["parameters"]) for point in points])
    slope = float(np.polyfit(parameters, logs, 1)[0])
    one.claim["predicted"] = slope
    one.claim["range"] = {
        "rule": "predicted exponent over these shapes at most "
        f"{WIDTHS['exponent in P']:.2g} from theory",
        "shapes": len(points),
        "of": len(points),
        "parameters": [min(p["parameters"] for p in points), max(p["parameters"] for p in points)],
    }
    if abs(slope - theory) > WIDTHS["exponent in P"]:
        one.reason = (
            f"the predicted law itself has the exponent {slope:.3f} over these P; "
            "the claim is about larger P"
        )
        return one
    one.reference = slope
    return one


def _of_budget(
    rates: Mapping[str, Any], where: Mapping[str, Any], predicted: _Predicted
) -> Iterator[Open]:
    fits = rates["pairs"][where["pair"]][where["observable"]][str(where["step"])]
    budget = fits.get("fixed_budget")
    if budget:
        yield _in_parameters(
            *("exponent in P of the best shapes", where, predicted, budget["theory"]),
            *(budget, budget.get("points") or [], fits["seeds"]),
        )


def _of_families(
    rates: Mapping[str, Any], where: Mapping[str, Any], predicted: _Predicted
) -> Iterator[Open]:
    for name, family in (rates.get("families") or {}).items():
        found = family["pairs"][where["pair"]][where["observable"]][str(where["step"])]
        fits = [fit for fit in found["fits"] if fit.get("exponent") is not None]
        fit = fits[-1] if fits else found["fits"][-1]
        points = [point for point in found["points"] if point["nominal"] >= fit["least"]]
        seeds = min((point["seeds"] for point in points), default=1)
        one = _in_parameters(
            *(f"exponent in P of the family {name}", where, predicted, found["theory"]),
            *(fit, points, seeds),
        )
        one.claim["slopes"] = [
            {
                "from": slope["parameters"][0],
                "to": slope["parameters"][1],
                "exponent": slope["exponent"],
                "interval": slope["exponent_interval"],
            }
            for slope in found["slopes"]
        ]
        yield one
