"""Exponents along families of shapes, from made-up errors whose law is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from synthetic import STEP, inside, table

from resnet_limits.config import Shape
from resnet_limits.errors import intervals
from resnet_limits.errors.families import Family, fit_families, fit_family, theory
from resnet_limits.kinds import DIVERGED
from resnet_limits.laws import LAWS, OBSERVABLES

Law = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

PARAMETERS = [10.0**k for k in range(3, 11)]


def family(depth: float, embed_dim: float, factor: float = 2.0) -> Family:
    members = []
    for P in PARAMETERS:
        L, D = round(4 * P**depth), round(factor * P**embed_dim)
        members.append((P, Shape(L, max(1, round(P / (L * D))), D)))
    return Family(tuple(members), depth, embed_dim)


HIDDEN = family(1 / 6, 1 / 3)
OUTPUT = family(1 / 4, 2 / 5, 1.5)


def few_and_many(parameters: int) -> int:
    return 24 if parameters < 3e5 else 8 if parameters < 3e8 else 4


def study(
    law: Law,
    members: Family = HIDDEN,
    *,
    seeds: Callable[[int], int] = few_and_many,
    draw: int = 0,
    freedom: int = 6,
    shared: bool = True,
) -> xr.Dataset:
    """Squared errors that follow a law; the shapes of a seed may share half of the scatter."""
    rng = np.random.default_rng(draw)
    shapes = [shape for _, shape in members.members]
    cells = np.array([(*shape, k) for shape in shapes for k in range(seeds(shape.parameters))])
    L, M, D, k = cells.T
    noise = np.ones(len(k))
    if freedom:
        common = rng.chisquare(freedom / 2, k.max() + 1 if shared else len(k))
        common = common[k] if shared else common
        noise = (common + rng.chisquare(freedom / 2, len(k))) / freedom
    return table(cells, np.sqrt(law(*(size.astype(float) for size in (L, M, D))) * noise))


def power(exponent: float) -> Law:
    return lambda L, M, D: (0.7 * (L * M * D) ** exponent) ** 2


# --- theory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "pair", "observable", "expected"),
    [
        (HIDDEN, "finite-dmft", "hidden", -1 / 6),
        (HIDDEN, "finite-mean_ode", "hidden", -1 / 6),
        (HIDDEN, "mean_ode-dmft", "hidden", -1 / 6),
        (HIDDEN, "finite-wide", "hidden", -1 / 6),
        (HIDDEN, "wide-mean_ode", "output", -1 / 6),
        # 1/L falls no faster than P^(-1/6) here, although D/(LM) and 1/sqrt(LM) do.
        (HIDDEN, "finite-mean_ode", "output", -1 / 6),
        (HIDDEN, "finite-wide", "output", -1 / 3),
        (OUTPUT, "finite-dmft", "output", -1 / 5),
        (OUTPUT, "finite-mean_ode", "output", -1 / 5),
        (OUTPUT, "mean_ode-dmft", "output", -1 / 5),
        (OUTPUT, "finite-dmft", "hidden", -1 / 10),
    ],
)
def test_theory_is_the_slowest_term(
    members: Family, pair: str, observable: str, expected: float
) -> None:
    terms = theory(members, LAWS[pair][observable])
    assert max(terms.values()) == pytest.approx(expected)


def test_every_term_falls_as_its_value_does() -> None:
    """Powers of P against the variables themselves, at sizes that need no rounding."""
    P = np.array([1e24, 1e30])
    for depth, embed_dim in ((1 / 6, 1 / 3), (1 / 4, 2 / 5)):
        L, D = P**depth, P**embed_dim
        M = P / (L * D)
        values = {"1/L": 1 / L, "sqrt(D/(LM))": np.sqrt(D / (L * M)), "1/sqrt(D)": D**-0.5}
        terms = theory(Family((), depth, embed_dim), LAWS["finite-dmft"]["hidden"])
        for name, value in values.items():
            assert terms[name] == pytest.approx(np.log(value[1] / value[0]) / np.log(1e6))


# --- exponents ------------------------------------------------------------------------------------


def test_a_power_without_noise_is_found_exactly() -> None:
    dataset = study(power(-0.21), freedom=0)
    found = fit_family(dataset, HIDDEN, "finite-dmft", "hidden", STEP)
    for fit, least, count in zip(found["fits"], (0, 1e4), (8, 7), strict=True):
        assert fit["least"] == least
        assert fit["shapes"] == count
        assert fit["exponent"] == pytest.approx(-0.21)
        assert fit["exponent_interval"] == pytest.approx([-0.21, -0.21])
        assert fit["amplitude"] == pytest.approx(0.7)
        assert fit["misfit"] == pytest.approx(0, abs=1e-6)
    for slope in found["slopes"]:
        assert slope["exponent"] == pytest.approx(-0.21)
    assert [point["nominal"] for point in found["points"]] == PARAMETERS
    for point, (_, shape) in zip(found["points"], HIDDEN.members, strict=True):
        assert point["parameters"] == shape.parameters
        assert point["error"] == pytest.approx(0.7 * shape.parameters**-0.21)
        assert point["seeds"] == few_and_many(shape.parameters)


def test_the_range_goes_by_nominal_parameters() -> None:
    """Rounding leaves the shape for 1e4 with fewer parameters, and it belongs to the range."""
    shape = dict(HIDDEN.members)[1e4]
    assert shape.parameters < 1e4
    found = fit_family(study(power(-0.2)), HIDDEN, "finite-dmft", "hidden", STEP)
    assert found["fits"][1]["parameters"][0] == shape.parameters


def test_shapes_are_averaged_as_squares_and_weighed_by_their_seeds() -> None:
    dataset = study(power(-0.2), draw=3)
    found = fit_family(dataset, HIDDEN, "finite-dmft", "hidden", STEP)
    groups = dataset["hidden_rms"].isel(step=0).groupby("parameters")
    rms = np.sqrt((groups.map(lambda x: x**2).groupby("parameters").mean()).values)
    errors = [point["error"] for point in found["points"]]
    np.testing.assert_allclose(errors, rms)
    assert found["fits"][0]["misfit"] == 0
    counts = np.array([point["seeds"] for point in found["points"]])
    P = np.array([point["parameters"] for point in found["points"]])
    slope = np.polyfit(np.log(P), np.log(rms), 1, w=np.sqrt(counts))[0]
    assert found["fits"][0]["exponent"] == pytest.approx(slope)


def test_where_the_law_is_not_exact_no_shape_outweighs_the_others() -> None:
    """A bend makes shapes of many seeds less exact than their seeds say."""
    dataset = study(lambda L, M, D: 1 / D + 50 / D**2, freedom=200)
    found = fit_family(dataset, HIDDEN, "finite-dmft", "hidden", STEP)["fits"][0]
    assert found["misfit"] > 0.05
    P = np.array([shape.parameters for _, shape in HIDDEN.members], float)
    D = np.array([shape.embed_dim for _, shape in HIDDEN.members], float)
    even = np.polyfit(np.log(P), 0.5 * np.log(1 / D + 50 / D**2), 1)[0]
    assert found["exponent"] == pytest.approx(even, abs=0.01)


def test_a_limit_stands_for_all_shapes_of_its_dimension() -> None:
    cells = np.array([(0, 0, shape.embed_dim, k) for _, shape in HIDDEN.members for k in range(4)])
    found = fit_family(
        table(cells, 3 * cells[:, 2] ** -0.5), HIDDEN, "mean_ode-dmft", "hidden", STEP
    )
    assert found["fits"][0]["exponent"] == pytest.approx(-1 / 6, abs=1e-3)
    assert [point["width"] for point in found["points"]] == [s.width for _, s in HIDDEN.members]


def test_shapes_of_other_families_do_not_enter() -> None:
    alone = fit_family(study(power(-0.2)), HIDDEN, "finite-dmft", "hidden", STEP)
    both = xr.concat([study(power(-0.2)), study(power(-0.9), OUTPUT)], "cell")
    assert fit_family(both, HIDDEN, "finite-dmft", "hidden", STEP) == alone


# --- intervals ------------------------------------------------------------------------------------


def test_intervals_cover_what_they_claim() -> None:
    """Of 60 studies at least 51 must cover; with 95 % each, fewer happen once in 10^3."""
    covered = {"all": 0, "large": 0, "point": 0, "slope": 0}
    for draw in range(60):
        found = fit_family(
            study(power(-1 / 6), draw=draw), HIDDEN, "finite-dmft", "hidden", STEP, draw
        )
        point = found["points"][-1]
        covered["all"] += inside(-1 / 6, found["fits"][0]["exponent_interval"])
        covered["large"] += inside(-1 / 6, found["fits"][1]["exponent_interval"])
        truth = 0.7 * point["parameters"] ** (-1 / 6)
        covered["point"] += inside(truth, point["error_interval"])
        covered["slope"] += inside(-1 / 6, found["slopes"][-3]["exponent_interval"])
    assert min(covered.values()) >= 51, covered


@pytest.mark.parametrize("exponent", [-0.13, -0.21])
def test_another_exponent_is_told_apart(exponent: float) -> None:
    """Negative control: the interval does not hold the exponent of theory."""
    found = fit_family(study(power(exponent)), HIDDEN, "finite-dmft", "hidden", STEP)
    assert found["theory"] == pytest.approx(-1 / 6)
    for fit in found["fits"]:
        assert inside(exponent, fit["exponent_interval"])
        assert not inside(-1 / 6, fit["exponent_interval"])


def test_taking_all_seeds_for_seeds_of_every_shape_would_be_too_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the widening: an error known from 3 seeds, in a study that has 48."""

    def covered() -> int:
        hits = 0
        for draw in range(60):
            dataset = study(power(-0.2), seeds=lambda P: 48 if P < 3e3 else 3, draw=draw)
            point = fit_family(dataset, HIDDEN, "finite-dmft", "hidden", STEP, draw)["points"][-1]
            hits += inside(0.7 * point["parameters"] ** -0.2, point["error_interval"])
        return hits

    assert covered() >= 51

    def normal(self: intervals.Spread) -> np.ndarray:
        """As if resamples of few seeds scattered like normal estimates of them."""
        drawn = self.variances * self.degrees / (self.degrees + 1)
        return 1.96 * np.sqrt(drawn.sum(axis=0))

    monkeypatch.setattr(intervals.Spread, "half_widths", normal)
    assert covered() < 51


def test_few_seeds_at_one_end_widen_the_interval() -> None:
    def width(seeds: Callable[[int], int]) -> float:
        widths = []
        for draw in range(8):
            dataset = study(power(-0.2), seeds=seeds, draw=draw)
            found = fit_family(dataset, HIDDEN, "finite-dmft", "hidden", STEP, draw)
            low, high = found["fits"][0]["exponent_interval"]
            widths.append(high - low)
        return float(np.mean(widths))

    many, some, few = (width(lambda P, n=n: 48 if P < 3e5 else n) for n in (48, 12, 3))
    assert many < some < few


def test_one_seed_at_one_end_takes_its_scatter_from_the_residuals() -> None:
    """What such shapes share of their scatter no residual shows."""
    hits = 0
    for draw in range(60):
        dataset = study(power(-0.2), seeds=lambda P: 16 if P < 3e5 else 1, draw=draw, shared=False)
        found = fit_family(dataset, HIDDEN, "finite-dmft", "hidden", STEP, draw)
        hits += inside(-0.2, found["fits"][0]["exponent_interval"])
        assert found["points"][-1]["error_interval"] is None
        assert found["slopes"][-1]["exponent_interval"] is None
        assert "scatter of shapes about the law" in found["interval_method"]
    assert hits >= 51


# --- what is left out -----------------------------------------------------------------------------


def test_cells_are_counted_and_those_without_an_error_left_out() -> None:
    dataset = study(power(-0.2))
    largest = dataset["parameters"] == dataset["parameters"].max()
    dataset["status"].values[largest] = DIVERGED
    found = fit_family(dataset, HIDDEN, "finite-dmft", "hidden", STEP)
    assert found["cells"]["total"] == dataset.sizes["cell"]
    assert found["cells"]["diverged"] == 4
    assert len(found["points"]) == len(HIDDEN.members) - 1
    assert found["fits"][0]["parameters"][1] < float(dataset["parameters"].max())


@pytest.mark.parametrize("broken", ["diverged", "no step", "two shapes"])
def test_too_little_gives_a_reason(broken: str) -> None:
    dataset, members = study(power(-0.2)), HIDDEN
    if broken == "diverged":
        dataset["status"].values[:] = DIVERGED
    if broken == "two shapes":
        members = Family(HIDDEN.members[:2], 1 / 6, 1 / 3)
    step = STEP + 1 if broken == "no step" else STEP
    found = fit_family(dataset, members, "finite-dmft", "hidden", step)
    for fit in found["fits"]:
        assert fit["exponent"] is None
        assert "of the 3 needed" in fit["reason"]


def test_everything_is_json_and_complete() -> None:
    errors = {"finite-dmft": study(power(-0.2)), "finite-mean_ode": study(power(-0.2))}
    errors["finite-dmft"]["output_rms"].values[0] = np.inf
    lazy = {pair: dataset.chunk() for pair, dataset in errors.items()}
    families = {"hidden": HIDDEN, "output": OUTPUT}
    found: dict[str, Any] = fit_families(lazy, families, [STEP, STEP + 1], 0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == ["hidden", "output"]
    assert found["hidden"]["embed_dim"] == 1 / 3
    for family_found in found.values():
        assert list(family_found["pairs"]) == list(errors)
        for observables in family_found["pairs"].values():
            assert list(observables) == list(OBSERVABLES)
            assert all(list(steps) == [str(STEP), str(STEP + 1)] for steps in observables.values())
