"""The best shape for a budget, against an exhaustive search."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from resnet_limits.config import InputError
from resnet_limits.errors import shape as shapes
from resnet_limits.errors.shape import MAX_BUDGET, PAIR, fitted_law
from resnet_limits.kinds import SIZES, Shape
from resnet_limits.laws import POWERS, variable_values
from resnet_limits.optimum import ANY, Bounds

HIDDEN = {"1/L": 0.5, "sqrt(D/(LM))": 0.8, "1/sqrt(D)": 1.5}
OUTPUT = {"1/L": 0.3, "D/(LM)": 0.15, "1/sqrt(LM)": 0.3, "1/sqrt(D)": 0.9}


def rates(amplitudes: dict[str, float], observable: str = "hidden", width: int = 1) -> dict:
    fit = {
        "terms": {name: {"amplitude": a, "detected": a > 0} for name, a in amplitudes.items()},
        "sizes": {"depth": [2, 100], "width": [width, 50], "embed_dim": [4, 64]},
    }
    return {"pairs": {PAIR: {observable: {"5": fit, "14": fit}}}}


def best_shape(
    content: dict[str, Any], budget: Any, observable: str = "hidden", step: str | int = "last"
) -> dict[str, Any]:
    return shapes.best_shape(fitted_law(content, observable, step), budget)


def law(amplitudes: dict[str, float], L: int, M: int, D: int) -> float:
    sizes = np.array([[L, M, D]])
    return math.sqrt(
        sum((a * variable_values(name, sizes)[0]) ** 2 for name, a in amplitudes.items())
    )


def exhaustive(amplitudes: dict[str, float], budget: int, width: int) -> float:
    shapes = np.array(
        [
            (budget // (D * M), M, D)
            for D in range(1, budget // width + 1)
            for M in range(width, budget // D + 1)
        ]
    )
    squares = [(a * variable_values(name, shapes)) ** 2 for name, a in amplitudes.items()]
    return math.sqrt(np.min(np.sum(squares, axis=0)))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("budget", [5, 97, 1000, 4321])
@pytest.mark.parametrize(
    ("observable", "amplitudes"),
    [
        ("hidden", HIDDEN),
        ("hidden", {"1/L": 20.0, "sqrt(D/(LM))": 0.1, "1/sqrt(D)": 0.3}),
        ("hidden", {"1/L": 0.5, "sqrt(D/(LM))": 0.05, "1/sqrt(D)": 5.0}),
        ("output", OUTPUT),
    ],
)
def test_no_shape_is_better(
    observable: str, amplitudes: dict[str, float], budget: int, width: int
) -> None:
    best = best_shape(rates(amplitudes, observable, width), budget, observable)
    shape = best["depth"], best["width"], best["embed_dim"]
    assert best["parameters"] == math.prod(shape) <= budget
    assert best["width"] >= width
    assert best["predicted_error"] == pytest.approx(law(amplitudes, *shape))
    assert best["predicted_error"] == pytest.approx(exhaustive(amplitudes, budget, width))
    assert math.hypot(*best["terms"].values()) == pytest.approx(best["predicted_error"])


@pytest.mark.parametrize(("observable", "amplitudes"), [("hidden", HIDDEN), ("output", OUTPUT)])
def test_large_budgets_follow_the_theory(observable: str, amplitudes: dict[str, float]) -> None:
    found = [
        best_shape(rates(amplitudes, observable), budget, observable)
        for budget in (1e9, 1e12, 1e15, MAX_BUDGET)
    ]
    for one, two in itertools.pairwise(found):
        growth = math.log(two["parameters"] / one["parameters"])
        rate = math.log(two["predicted_error"] / one["predicted_error"]) / growth
        share = math.log(two["embed_dim"] / one["embed_dim"]) / growth
        # Hidden: P^(-1/6) and D ~ P^(1/3). Output: P^(-1/5) and D ~ P^(2/5).
        error_power, size_power = (-1 / 6, 1 / 3) if observable == "hidden" else (-1 / 5, 2 / 5)
        assert rate == pytest.approx(error_power, abs=0.005)
        assert share == pytest.approx(size_power, abs=0.01)
        assert two["parameters"] <= MAX_BUDGET


def test_neighbours_of_a_large_shape_are_not_better() -> None:
    best = best_shape(rates(HIDDEN, width=8), 1e10)
    for factor in (0.9, 0.99, 1.01, 1.1):
        D = round(best["embed_dim"] * factor)
        L = int(1e10 / (8 * D))
        assert law(HIDDEN, L, 8, D) >= best["predicted_error"] * (1 - 1e-9)


def test_a_shallower_shape_that_loses_little() -> None:
    best = best_shape(rates(HIDDEN), 1e8)
    shallower = best["shallower"]
    shape = [shallower[name] for name in ("depth", "width", "embed_dim")]
    assert math.prod(shape) <= 1e8
    assert shallower["depth"] < best["depth"] / 100
    assert shallower["predicted_error"] == pytest.approx(law(HIDDEN, *shape))
    assert shallower["predicted_error"] <= 1.01 * best["predicted_error"]
    shape[0] //= 2
    assert law(HIDDEN, *shape) > 1.01 * best["predicted_error"]


def test_without_a_depth_term_depth_and_width_are_alike() -> None:
    amplitudes = {**HIDDEN, "1/L": 0.0}
    best = best_shape(rates(amplitudes), 1e9)
    assert 0.9 < best["depth"] / best["width"] < 1.1
    assert best["shallower"] is None
    assert "1/L is left out: not detected" in best["note"]
    assert best["predicted_error"] == pytest.approx(
        best_shape(rates(HIDDEN), 1e9)["predicted_error"], rel=1e-3
    )


def test_a_term_the_sum_hides_is_taken_from_its_own_pair() -> None:
    hidden = rates({**HIDDEN, "1/L": 0.0})
    hidden["pairs"]["wide-mean_ode"] = {
        "hidden": {"14": {"amplitude_at_theory": 0.5, "theory": 1.0}}
    }
    best = best_shape(hidden, 1e4)
    assert "1/L as measured by wide-mean_ode" in best["note"]
    assert best["predicted_error"] == best_shape(rates(HIDDEN), 1e4)["predicted_error"]
    # A power law in D/(LM) with another exponent does not measure that term.
    output = rates({**OUTPUT, "D/(LM)": 0.0}, "output")
    output["pairs"]["finite-wide"] = {"output": {"14": {"amplitude_at_theory": 0.5, "theory": 1.0}}}
    assert "D/(LM) is left out" in best_shape(output, 1e4, "output")["note"]


def test_a_term_that_was_not_detected_is_kept_and_said() -> None:
    unsure = rates(HIDDEN)
    terms = unsure["pairs"][PAIR]["hidden"]["14"]["terms"]
    terms["1/L"]["detected"] = False
    best = best_shape(unsure, 1e4)
    assert "1/L is kept, though not detected" in best["note"]
    assert best["predicted_error"] == best_shape(rates(HIDDEN), 1e4)["predicted_error"]
    assert "detected" not in best_shape(rates(HIDDEN), 1e4)["note"]
    for term in terms.values():
        term["detected"] = False
    with pytest.raises(InputError, match=r"no term is detected.*at least one term detected"):
        best_shape(unsure, 1e4)
    # A pair that shows a term alone detects it.
    unsure["pairs"]["mean_ode-dmft"] = {
        "hidden": {"14": {"amplitude_at_theory": 1.5, "theory": 0.5}}
    }
    assert "1/sqrt(D) as measured by mean_ode-dmft" in best_shape(unsure, 1e4)["note"]


def test_extrapolation_is_said() -> None:
    note = best_shape(rates(HIDDEN, width=8), 1e9)["note"]
    assert "D = " in note
    assert "outside the measured 4 to 64" in note
    assert "within the measured ranges" in best_shape(rates(HIDDEN, width=8), 3000)["note"]
    unknown = rates(HIDDEN)
    for fit in unknown["pairs"][PAIR]["hidden"].values():
        fit.pop("sizes", None)
    assert "not known" in best_shape(unknown, 3000)["note"]


def test_steps_by_number_and_last() -> None:
    both = rates(HIDDEN)
    both["pairs"][PAIR]["hidden"]["5"] = rates({**HIDDEN, "1/L": 5.0})["pairs"][PAIR]["hidden"]["5"]
    last = best_shape(both, 1e3)
    assert last == best_shape(both, 1e3, step="14") == best_shape(both, 1e3, step=14)
    assert best_shape(both, 1e3, step="5")["predicted_error"] > last["predicted_error"]


@pytest.mark.parametrize("budget", [0, 0.5, -3, math.nan, math.inf, 1e19, "many", None, True])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(InputError, match=r"budget.*allowed") as caught:
        best_shape(rates(HIDDEN), budget)
    assert "\n" not in str(caught.value)


def test_a_budget_below_the_smallest_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"budget: 7 parameters.*allowed: 8"):
        best_shape(rates(HIDDEN, width=8), 7)


def without_terms(reason: str) -> dict[str, Any]:
    return {"pairs": {PAIR: {"hidden": {"14": {"terms": None, "reason": reason}}}}}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, "no fits of the pair"),
        ({"pairs": None}, "no fits of the pair"),
        ({"pairs": {"finite-wide": {}}}, "no fits of the pair"),
        ({"pairs": {PAIR: {"output": {"14": {}}}}}, "no fit of 'hidden'.*output"),
        (without_terms("no cell is left to fit"), "no cell is left to fit"),
        ({"pairs": {PAIR: {"hidden": {"14": {"terms": {"1/L": None}}}}}}, "no term is detected"),
        (rates(dict.fromkeys(HIDDEN, 0.0)), "no term is detected"),
    ],
)
def test_rates_without_a_fit_are_refused(content: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        best_shape(content, 1e6)
    assert "\n" not in str(caught.value)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(InputError, match="at step 7; allowed: last, 5, 14"):
        best_shape(rates(HIDDEN), 1e6, step="7")


# --- by a prediction ------------------------------------------------------------------------------


def prediction(amplitudes: dict[str, float | None], observable: str = "hidden") -> dict[str, Any]:
    """Give amplitudes at two steps, half as large at the first, known to one per cent."""
    rows = {
        name: {
            "amplitude": [None if a is None else a / 2, a],
            "uncertainty": [None if a is None else a / 200, None if a is None else a / 100],
        }
        for name, a in amplitudes.items()
    }
    other = {"hidden": "output", "output": "hidden"}[observable]
    notes = {"D/(LM)": "it would take about 9 minutes"}
    return {"step": [0, 1], observable: rows, other: {}, "notes": notes}


def test_a_prediction_gives_the_same_shape_as_a_fit_of_its_amplitudes() -> None:
    for observable, amplitudes in (("hidden", HIDDEN), ("output", OUTPUT)):
        known = shapes.predicted_law(prediction(amplitudes, observable), observable)
        found = shapes.best_shape(known, 54321)
        fitted = best_shape(rates(amplitudes, observable), 54321, observable)
        for name in ("depth", "width", "embed_dim", "predicted_error", "terms", "shallower"):
            assert found[name] == fitted[name]
        assert fitted["interval"] is None
        for low, high in found["interval"].values():
            assert low <= high
        low, high = found["interval"]["predicted_error"]
        assert low < found["predicted_error"] < high
        # An error is a mean of its terms, so that it is known better than to 1.96 per cent.
        assert 0.01 < high / low - 1 < 0.0392
        assert "outside" not in found["note"]


def test_steps_of_a_prediction() -> None:
    known = prediction(HIDDEN)
    assert shapes.predicted_law(known) == shapes.predicted_law(known, step=1)
    first = shapes.predicted_law(known, step="0")
    assert first.amplitudes == {name: a / 2 for name, a in HIDDEN.items()}
    with pytest.raises(InputError, match="has no step 2; allowed: last, 0, 1"):
        shapes.predicted_law(known, step="2")
    with pytest.raises(InputError, match="has no 'hidden_max_mean_abs'; allowed: hidden, out"):
        shapes.predicted_law(known, "hidden_max_mean_abs")


def test_what_is_not_predicted_is_named() -> None:
    known = shapes.predicted_law(prediction({**OUTPUT, "D/(LM)": None}, "output"), "output")
    assert "D/(LM)" not in known.amplitudes
    assert "D/(LM) is left out: not predicted" in shapes.best_shape(known, 1e4)["note"]
    without_width = {**OUTPUT, "D/(LM)": None, "1/sqrt(LM)": None}
    match = r"output lacks D/\(LM\) \(it would take about 9 minutes\), 1/sqrt\(LM\); allowed"
    with pytest.raises(InputError, match=match):
        shapes.predicted_law(prediction(without_width, "output"), "output")
    with pytest.raises(InputError, match=r"hidden lacks 1/sqrt\(D\)"):
        shapes.predicted_law(prediction({**HIDDEN, "1/sqrt(D)": None}))


def test_shapes_stay_in_what_was_measured_and_below_the_largest_depth() -> None:
    known = shapes.predicted_law(prediction(HIDDEN))
    measured = shapes.measured_bounds(rates(HIDDEN, width=8))
    assert measured == Bounds(Shape(2, 8, 4), Shape(100, 50, 64))
    found = shapes.best_shape(known, 1e9, measured)
    assert [found[name] for name in SIZES] == [100, 50, 64]
    shallow = Bounds(most=ANY.most._replace(depth=6))
    found = shapes.best_shape(known, 1e6, shallow)
    assert found["depth"] == 6
    assert found["predicted_error"] == pytest.approx(law(HIDDEN, *(found[n] for n in SIZES)))
    assert "prefers depth" not in found["note"]
    with pytest.raises(InputError, match="too few for the smallest sizes allowed; allowed: 64 to"):
        shapes.best_shape(known, 50, measured)
    with pytest.raises(InputError, match="L: no size is at least 2 and at most 1"):
        shapes.best_shape(known, 50, measured.within(Bounds(most=ANY.most._replace(depth=1))))
    unknown = rates(HIDDEN)
    unknown["pairs"][PAIR]["hidden"]["14"].pop("sizes")
    with pytest.raises(InputError, match="does not say which sizes were measured"):
        shapes.measured_bounds(unknown)


def test_an_error_takes_the_fewest_parameters() -> None:
    known = shapes.predicted_law(prediction(HIDDEN))
    found = shapes.smallest_shape(known, 0.3)
    assert found["predicted_error"] <= 0.3
    fewer = shapes.best_shape(known, found["parameters"] - 1, tell_ranges=False)
    assert fewer["predicted_error"] > 0.3
    # P ~ error^-6: the amplitudes' one per cent is some per cent of P.
    low, high = found["interval"]["parameters"]
    assert low < found["parameters"] < high
    expected = 2 * 1.96 * 6 * 0.01 * math.hypot(1 / 3, 2 / 3)
    assert math.log(high / low) == pytest.approx(expected, rel=0.02)
    assert shapes.smallest_shape(fitted_law(rates(HIDDEN)), 0.3)["interval"] is None
    for bad in (0, -1.0, math.nan, None):
        with pytest.raises(InputError, match=r"error: .*allowed: a positive number"):
            shapes.smallest_shape(known, bad)
    with pytest.raises(InputError, match=r"reaches it; allowed: more than 0\.00"):
        shapes.smallest_shape(known, 1e-4)
    with pytest.raises(InputError, match=r"reaches it; allowed: more than 0\.2"):
        shapes.smallest_shape(known, 0.1, shapes.measured_bounds(rates(HIDDEN)))


def test_what_a_shape_wastes() -> None:
    known = shapes.predicted_law(prediction(HIDDEN))
    shape = Shape(8, 16, 128)
    found = shapes.waste(known, shape)
    best = shapes.best_shape(known, shape.parameters)
    assert found["predicted_error"] == pytest.approx(law(HIDDEN, *shape))
    assert found["waste"] == pytest.approx(law(HIDDEN, *shape) / best["predicted_error"])
    assert found["waste"] > 1.1
    assert found["best"]["depth"] == best["depth"]
    enough = shapes.best_shape(known, found["would_do"])
    assert enough["predicted_error"] <= found["predicted_error"]
    assert found["would_do"] < shape.parameters
    itself = shapes.waste(known, Shape(*(best[name] for name in SIZES)))
    assert itself["waste"] == pytest.approx(1.0)


def test_all_variables_are_known() -> None:
    assert set(HIDDEN) | set(OUTPUT) <= set(POWERS)
