"""The best shape by a known law: closed forms, and exhaustive search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from resnet_limits.kinds import SIZES, Shape
from resnet_limits.laws import POWERS, in_quadrature
from resnet_limits.optimum import (
    ANY,
    MAX_BUDGET,
    Bounds,
    best_shape,
    best_sizes,
    least_parameters,
    ranges,
    shallowest,
    smallest_budget,
    spread,
)

HIDDEN = {"1/L": 0.1, "sqrt(D/(LM))": 0.82, "1/sqrt(D)": 2.15}
OUTPUT = {"1/L": 0.04, "D/(LM)": 0.05, "1/sqrt(LM)": 0.27, "1/sqrt(D)": 0.34}
LAWS = {
    "hidden": HIDDEN,
    "depth matters": {"1/L": 5.0, "sqrt(D/(LM))": 0.3, "1/sqrt(D)": 1.0},
    "output": OUTPUT,
    "noise alone": {"1/L": 0.0, "sqrt(D/(LM))": 0.6, "1/sqrt(D)": 0.0},
}
BOUNDS = {
    "any": ANY,
    "shallow": Bounds(most=ANY.most._replace(depth=5)),
    "measured": Bounds(Shape(2, 3, 4), Shape(9, 12, 20)),
    "wide": Bounds(least=Shape(1, 4, 1)),
}


def all_shapes(budget: int, bounds: Bounds) -> np.ndarray:
    """Every shape within the bounds with so few parameters, by plain loops."""
    tops = [min(most, budget) for most in bounds.most]
    found = [
        (L, M, D)
        for L in range(bounds.least.depth, tops[0] + 1)
        for M in range(bounds.least.width, min(tops[1], budget // L) + 1)
        for D in range(bounds.least.embed_dim, min(tops[2], budget // (L * M)) + 1)
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def check_closed_form() -> None:
    """D^3 = A_D^2 P / (2 (A_W^2 + A_L^2/P)) at M = 1, and without A_L at a fixed depth."""
    a_l, a_w, a_d = HIDDEN.values()
    for P in (1e3, 1e6, 1e12):
        best = best_sizes(HIDDEN, P)
        D = (a_d**2 * P / (2 * (a_w**2 + a_l**2 / P))) ** (1 / 3)
        assert best == pytest.approx(
            (P / D, 1, D, math.sqrt((a_l * D / P) ** 2 + a_w**2 * D**2 / P + a_d**2 / D)), rel=1e-9
        )
        D = (a_d**2 * P / (2 * a_w**2)) ** (1 / 3)
        assert best_sizes(HIDDEN, P, BOUNDS["shallow"])[:3] == pytest.approx((5, P / D / 5, D))


def test_two_powers_have_their_closed_form() -> None:
    check_closed_form()


@pytest.mark.parametrize(
    ("term", "powers"),
    [
        ("sqrt(D/(LM))", (-1.0, -1.0, 1.0)),
        ("sqrt(D/(LM))", (-0.5, -0.5, 0.0)),
        ("1/sqrt(D)", (0.0, 0.0, -1.0)),
        ("1/sqrt(D)", (0.0, 0.0, -0.49)),
    ],
)
def test_a_wrong_exponent_is_found_out(
    monkeypatch: pytest.MonkeyPatch, term: str, powers: tuple[float, float, float]
) -> None:
    monkeypatch.setitem(POWERS, term, powers)
    with pytest.raises(AssertionError):
        check_closed_form()


def test_exponents_of_the_budget_are_those_of_theory() -> None:
    for law, error, size in ((HIDDEN, -1 / 6, 1 / 3), (OUTPUT, -1 / 5, 2 / 5)):
        one, two = best_sizes(law, 1e16), best_sizes(law, 1e18)
        assert math.log(two.error / one.error) / math.log(100) == pytest.approx(error, abs=2e-3)
        assert math.log(two.embed_dim / one.embed_dim) / math.log(100) == pytest.approx(
            size, abs=5e-3
        )


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("law", LAWS)
def test_no_real_sizes_are_better(law: str, bounds: str) -> None:
    amplitudes, allowed, P = LAWS[law], BOUNDS[bounds], 3000.0
    best = best_sizes(amplitudes, P, allowed)
    sizes = [
        np.geomspace(low, min(high, P), 60)
        for low, high in zip(allowed.least, allowed.most, strict=True)
    ]
    grid = np.stack(np.meshgrid(*sizes, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[grid.prod(axis=1) <= P * (1 + 1e-12)]
    errors = in_quadrature(amplitudes, grid)
    assert best.error <= errors.min() * (1 + 1e-9)
    # The grid is as fine as that.
    assert best.error >= errors.min() * 0.9
    assert math.prod(best[:3]) <= P * (1 + 1e-9)
    for value, low, high in zip(best[:3], allowed.least, allowed.most, strict=True):
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


@pytest.mark.parametrize("budget", [24, 97, 500, 2310])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("law", LAWS)
def test_no_shape_is_better(law: str, bounds: str, budget: int) -> None:
    amplitudes, allowed = LAWS[law], BOUNDS[bounds]
    shape, error = best_shape(amplitudes, budget, allowed)
    errors = in_quadrature(amplitudes, all_shapes(budget, allowed))
    assert shape.parameters <= budget
    assert all(map(lambda low, size, high: low <= size <= high, allowed.least, shape, allowed.most))
    assert error == pytest.approx(float(in_quadrature(amplitudes, np.array(shape))))
    assert error == pytest.approx(errors.min())


def test_no_neighbour_of_a_large_shape_is_better() -> None:
    for law, budget in itertools.product((HIDDEN, OUTPUT), (10**9, 10**14)):
        shape, error = best_shape(law, budget)
        for D in {round(shape.embed_dim * f) for f in np.linspace(0.8, 1.25, 200)}:
            near = np.array([(budget // D // M, M, D) for M in (1, 2, 3)])
            assert in_quadrature(law, near).min() >= error * (1 - 1e-9)


@pytest.mark.parametrize("bounds", ["any", "shallow", "wide"])
def test_the_smallest_budget_is_the_smallest(bounds: str) -> None:
    shapes = all_shapes(800, BOUNDS[bounds])
    for law, wanted in ((HIDDEN, 0.9), (OUTPUT, 0.15), (LAWS["depth matters"], 1.2)):
        errors = in_quadrature(law, shapes)
        least = shapes[errors <= wanted].prod(axis=1).min()
        assert smallest_budget(law, wanted, BOUNDS[bounds]) == least
        real = least_parameters(law, wanted, BOUNDS[bounds])
        assert real is not None
        assert real <= least
        assert best_sizes(law, real, BOUNDS[bounds]).error == pytest.approx(wanted)
    assert smallest_budget(HIDDEN, 100.0) == 1
    assert smallest_budget(HIDDEN, 1e-9) is None
    assert least_parameters(HIDDEN, 1e-9) is None


@pytest.mark.parametrize("bounds", ["any", "shallow", "wide"])
@pytest.mark.parametrize("law", ["hidden", "depth matters", "output"])
def test_ranges_hold_what_is_nearly_as_good(law: str, bounds: str) -> None:
    amplitudes, allowed, P = LAWS[law], BOUNDS[bounds], 5000.0
    best = best_sizes(amplitudes, P, allowed)
    for part in (0.01, 0.05, 0.2):
        found = ranges(amplitudes, P, (1 + part) * best.error, allowed)
        for name, (low, high) in found.items():
            assert low <= getattr(best, name) * (1 + 1e-9)
            assert high >= getattr(best, name) * (1 - 1e-9)
            for end, outer in ((low, low / 1.02), (high, high * 1.02)):
                inside = best_sizes(amplitudes, P, allowed.holding(name, end)).error
                assert inside <= (1 + part) * best.error * (1 + 1e-6)
                place = SIZES.index(name)
                if outer < allowed.least[place] or outer > allowed.most[place]:
                    continue
                fixed = allowed.holding(name, outer)
                if fixed.smallest <= P:
                    assert best_sizes(amplitudes, P, fixed).error > (1 + part) * best.error


def test_the_shallowest_shape_is_within_the_error() -> None:
    for law, part in itertools.product((HIDDEN, LAWS["depth matters"]), (0.01, 0.05)):
        best, error = best_shape(law, 2000)
        shape, found = shallowest(law, 2000, (1 + part) * error)
        assert found <= (1 + part) * error
        assert shape.depth < best.depth
        errors = in_quadrature(law, (every := all_shapes(2000, ANY)))
        assert every[errors <= (1 + part) * error][:, 0].min() == shape.depth


def test_uncertainties_are_those_of_the_closed_form() -> None:
    a_w, a_d = 0.8, 2.0
    law, known = {"sqrt(D/(LM))": a_w, "1/sqrt(D)": a_d}, {"sqrt(D/(LM))": 0.016, "1/sqrt(D)": 0.02}
    *_, D, error = spread(law, known, lambda varied: best_sizes(varied, 1e9), 1.0)
    # D ~ (A_D/A_W)^(2/3), error ~ A_D^(2/3) A_W^(1/3).
    for (low, high), powers in ((D, (-2 / 3, 2 / 3)), (error, (1 / 3, 2 / 3))):
        expected = math.hypot(powers[0] * 0.02, powers[1] * 0.01)
        assert 0.5 * math.log(high / low) == pytest.approx(expected, rel=1e-3)
    # Another budget changes nothing, an amplitude that is known exactly adds nothing.
    (only,) = spread(law, {"1/sqrt(D)": 0.02}, lambda varied: [best_sizes(varied, 1e6).error], 1.0)
    assert 0.5 * math.log(only[1] / only[0]) == pytest.approx(2 / 3 * 0.01, rel=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no shape within the bounds"):
        best_shape(HIDDEN, 3, BOUNDS["wide"])
    with pytest.raises(ValueError, match="no shape within the bounds"):
        best_sizes(HIDDEN, 3, BOUNDS["wide"])
    assert best_shape(HIDDEN, MAX_BUDGET)[0].parameters <= MAX_BUDGET
