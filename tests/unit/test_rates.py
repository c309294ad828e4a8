"""Fits to made-up errors whose law is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from synthetic import STEP, inside, table

from resnet_limits.cells import make_study
from resnet_limits.config import PAIRS
from resnet_limits.errors import intervals, likelihood
from resnet_limits.errors.rates import fit, fit_rates
from resnet_limits.kinds import DIVERGED, NOT_RUN, SIZES
from resnet_limits.laws import LAWS, OBSERVABLES, POWERS, variable_values

Law = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

GRID = [10, 20, 40, 80]
DRAWS = 60
FINE = [10, 16, 25, 40, 63, 100]
A, B, C = 0.5, 0.8, 1.5


def hidden_law(L: np.ndarray, M: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Squared distance to the DMFT limit."""
    return (A / L) ** 2 + B**2 * D / (L * M) + C**2 / D


def noise_law(L: np.ndarray, M: np.ndarray, D: np.ndarray) -> np.ndarray:
    return B**2 * D / (L * M)


def study(
    law: Law,
    depth: Sequence[int] = GRID,
    width: Sequence[int] = GRID,
    embed_dim: Sequence[int] = GRID,
    *,
    seeds: int = 4,
    draw: int = 0,
    scatter: float = 0.1,
    freedom: int = 16,
) -> xr.Dataset:
    """Errors that follow a law for their squares.

    Each seed has a common factor of its own, whose size depends on D (its embedding rows), and
    every cell has the scatter of a mean of ``freedom`` squares.
    """
    rng = np.random.default_rng(draw)
    cells = np.array(list(itertools.product(depth, width, embed_dim, range(seeds))))
    L, M, D, k = cells.T
    common = scatter * rng.normal(size=(2, seeds))
    factor = np.exp(common[0, k] + 0.1 * common[1, k] * np.log(np.maximum(D, 1)))
    noise = rng.chisquare(freedom, len(k)) / freedom if scatter else 1.0
    with np.errstate(divide="ignore"):
        squares = law(*(size.astype(float) for size in (L, M, D)))
    return table(cells, np.sqrt(squares * factor * noise))


def wide_ode(power: float = 1.0, **options: Any) -> xr.Dataset:
    return study(lambda L, M, D: (A / L**power) ** 2, width=[0], **options)


def ode_dmft(**options: Any) -> xr.Dataset:
    return study(lambda L, M, D: C**2 / D, depth=[0], width=[0], **options)


# --- exact laws -----------------------------------------------------------------------------------


def test_laws_of_one_term_without_noise_are_exact() -> None:
    for dataset, pair, exponent, amplitude in (
        (study(noise_law, scatter=0), "finite-wide", 0.5, B),
        (wide_ode(scatter=0), "wide-mean_ode", 1.0, A),
        (ode_dmft(scatter=0), "mean_ode-dmft", 0.5, C),
    ):
        found = fit(dataset, pair, "hidden", STEP)
        assert found["exponent"] == pytest.approx(exponent)
        assert found["theory"] == exponent
        assert found["amplitude"] == pytest.approx(amplitude)
        assert found["amplitude_at_theory"] == pytest.approx(amplitude)
        assert found["residual"] < 1e-9
        assert found["exponent_interval"] == pytest.approx([exponent, exponent])


def test_individual_exponents_without_noise_are_exact() -> None:
    dataset = study(lambda L, M, D: L**-0.6 * M**-1.2 * D**0.8, scatter=0)
    found = fit(dataset, "finite-wide", "hidden", STEP)["individual"]
    expected = {"depth": (-0.3, -0.5), "width": (-0.6, -0.5), "embed_dim": (0.4, 0.5)}
    for name, (exponent, theory) in expected.items():
        assert found[name]["exponent"] == pytest.approx(exponent)
        assert found[name]["theory"] == theory
    between = fit(wide_ode(scatter=0), "wide-mean_ode", "hidden", STEP)["individual"]
    assert between["depth"]["exponent"] == pytest.approx(-1)
    assert between["embed_dim"]["exponent"] == pytest.approx(0)
    assert between["embed_dim"]["theory"] == 0
    assert between["width"] is None


AMPLITUDES = {"1/L": 0.7, "D/(LM)": 0.2, "sqrt(D/(LM))": 0.9, "1/sqrt(LM)": 0.4, "1/sqrt(D)": 1.3}
JOINT = [
    (pair, observable)
    for pair, laws in LAWS.items()
    for observable in laws
    if laws[observable].terms
]


def quadrature(terms: Sequence[str]) -> Law:
    def law(L: np.ndarray, M: np.ndarray, D: np.ndarray) -> np.ndarray:
        sizes = np.stack([L, M, D], axis=-1)
        return sum((AMPLITUDES[name] * variable_values(name, sizes)) ** 2 for name in terms)

    return law


@pytest.mark.parametrize(("pair", "observable"), JOINT)
def test_joint_laws_without_noise_are_exact(pair: str, observable: str) -> None:
    terms = LAWS[pair][observable].terms
    found = fit(study(quadrature(terms), scatter=0), pair, observable, STEP)
    assert list(found["terms"]) == list(terms)
    for name in terms:
        assert found["terms"][name]["amplitude"] == pytest.approx(AMPLITUDES[name], rel=1e-4)
        assert found["terms"][name]["detected"]
    assert "^2" in found["model"]


@settings(max_examples=15, deadline=None)
@given(
    amplitudes=st.lists(
        st.one_of(st.just(0.0), st.floats(0.05, 5.0)), min_size=3, max_size=3
    ).filter(any)
)
def test_amplitudes_that_are_zero_come_out_as_zero(amplitudes: list[float]) -> None:
    terms = ("1/L", "sqrt(D/(LM))", "1/sqrt(D)")

    def law(L: np.ndarray, M: np.ndarray, D: np.ndarray) -> np.ndarray:
        sizes = np.stack([L, M, D], axis=-1)
        parts = [
            a * variable_values(name, sizes) for a, name in zip(amplitudes, terms, strict=True)
        ]
        return np.square(parts).sum(axis=0)

    dataset = study(law, scatter=0, seeds=2)
    found = fit(dataset, "finite-dmft", "hidden", STEP)["terms"]
    sizes = np.stack([dataset[name].values for name in SIZES], axis=1)
    largest = dataset["hidden_rms"].values.ravel()
    for name, amplitude in zip(terms, amplitudes, strict=True):
        # Compared where the term matters most: a share that no shape shows cannot be found.
        weight = np.max(variable_values(name, sizes) / largest)
        assert abs(found[name]["amplitude"] - amplitude) * weight < 2e-3


def test_joint_fit_is_the_minimum_that_scipy_finds() -> None:
    dataset = study(hidden_law, seeds=3, freedom=4)
    found = fit(dataset, "finite-dmft", "hidden", STEP)
    shapes = dataset.assign_coords(
        shape=(
            "cell",
            (dataset["depth"] * 1000000 + dataset["width"] * 1000 + dataset["embed_dim"]).data,
        )
    )
    mean = (shapes["hidden_rms"].isel(step=0) ** 2).groupby("shape").mean()
    codes = mean["shape"].values
    sizes = np.stack([codes // 1000000, codes // 1000 % 1000, codes % 1000], axis=1)
    X = np.stack([variable_values(name, sizes) ** 2 for name in found["terms"]], axis=1)

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.log(X @ np.exp(2 * logs)) - np.log(mean.values)

    reference = optimize.least_squares(residuals, np.zeros(3), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    amplitudes = [term["amplitude"] for term in found["terms"].values()]
    assert np.sum(residuals(np.log(np.maximum(amplitudes, 1e-9))) ** 2) == pytest.approx(
        2 * reference.cost, rel=1e-6
    )
    assert found["residual"] == pytest.approx(np.sqrt(2 * reference.cost / len(X)) / 2, rel=1e-6)


def test_per_shape_error_is_the_rms_over_seeds() -> None:
    dataset = study(noise_law, embed_dim=[16], width=[8], seeds=3, freedom=2)
    found = fit(dataset, "finite-wide", "hidden", STEP)
    values = dataset["hidden_rms"].values.reshape(len(GRID), 3)
    x = np.log(16 / (8 * np.array(GRID)))
    slope, constant = np.polyfit(x, 0.5 * np.log((values**2).mean(axis=1)), 1)
    assert found["exponent"] == pytest.approx(slope)
    assert found["amplitude"] == pytest.approx(np.exp(constant))


# --- intervals ------------------------------------------------------------------------------------


def test_intervals_shrink_with_seeds_and_are_not_vast() -> None:
    widths = []
    for seeds in (3, 8, 20):
        low, high = fit(study(noise_law, seeds=seeds), "finite-wide", "hidden", STEP)[
            "exponent_interval"
        ]
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
    assert widths[1] < 0.1


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_wrong_power_is_rejected(seeds: int) -> None:
    """Negative control: (D/(LM))^0.35 in place of the square root, and L^-0.7 in place of 1/L."""
    found = fit(
        study(lambda L, M, D: B**2 * (D / (L * M)) ** 0.7, seeds=seeds),
        "finite-wide", "hidden", STEP,
    )  # fmt: skip
    assert inside(0.35, found["exponent_interval"])
    assert not inside(found["theory"], found["exponent_interval"])
    found = fit(wide_ode(0.7, seeds=seeds), "wide-mean_ode", "hidden", STEP)
    assert not inside(found["theory"], found["exponent_interval"])


def test_a_wrong_dependence_on_one_size_is_rejected() -> None:
    dataset = study(lambda L, M, D: 1 / (L * M))
    found = fit(dataset, "finite-wide", "hidden", STEP)["individual"]
    assert not inside(0.5, found["embed_dim"]["exponent_interval"])
    assert inside(-0.5, found["depth"]["exponent_interval"])


def test_a_term_that_is_not_there_is_not_detected() -> None:
    found = fit(
        study(lambda L, M, D: hidden_law(L, M, D) - (A / L) ** 2), "finite-dmft", "hidden", STEP
    )
    depth = found["terms"]["1/L"]
    assert depth["detected"] is False
    assert "not detected" in depth["reason"]
    assert depth["amplitude_interval"][0] == 0
    assert depth["amplitude_interval"][1] > 0
    assert found["terms"]["sqrt(D/(LM))"]["detected"]


def test_one_seed_falls_back_to_residuals_and_says_so() -> None:
    for draw in range(3):
        found = fit(study(noise_law, seeds=1, draw=draw), "finite-wide", "hidden", STEP)
        assert "single seed" in found["interval_method"]
        low, high = found["exponent_interval"]
        assert 0 < high - low < 0.2
    joint = fit(study(hidden_law, seeds=1), "finite-dmft", "hidden", STEP)
    assert inside(C, joint["terms"]["1/sqrt(D)"]["amplitude_interval"])
    several = fit(study(noise_law, seeds=4), "finite-wide", "hidden", STEP)
    assert several["interval_method"].startswith("bootstrap over whole seeds, 500")


def test_resampling_takes_whole_seeds() -> None:
    """A factor that a seed has in all shapes moves the amplitude, and not the exponent."""
    dataset = study(noise_law, scatter=0)
    factor = np.exp(np.array([-0.3, -0.1, 0.1, 0.3]))[dataset["seed"].values]
    dataset["hidden_rms"] *= xr.DataArray(factor, dims="cell")
    found = fit(dataset, "finite-wide", "hidden", STEP)
    assert found["exponent_interval"] == pytest.approx([0.5, 0.5])
    low, high = found["amplitude_at_theory_interval"]
    assert high / low > 1.5


def test_fits_are_repeatable_and_depend_on_the_root_seed() -> None:
    dataset = study(noise_law)
    first, again, other = (
        fit(dataset, "finite-wide", "hidden", STEP, root_seed) for root_seed in (0, 0, 1)
    )
    assert first == again
    assert first["exponent"] == other["exponent"]
    assert first["exponent_interval"] != other["exponent_interval"]


def test_the_order_of_cells_does_not_matter() -> None:
    dataset = study(hidden_law)
    shuffled = dataset.isel(cell=np.random.default_rng(0).permutation(dataset.sizes["cell"]))
    assert fit(dataset, "finite-dmft", "hidden", STEP) == fit(
        shuffled, "finite-dmft", "hidden", STEP
    )


# --- cells that are left out ----------------------------------------------------------------------


def counts(total: int, **others: int) -> dict[str, int]:
    left = {"diverged": 0, "below_resolution": 0, "missing": 0, **others}
    return {"total": total, "used": total - left["diverged"] - left["missing"], **left}


def test_diverged_cells_never_enter() -> None:
    dataset = study(noise_law)
    expected = fit(dataset.isel(cell=dataset["seed"] < 3), "finite-wide", "hidden", STEP)
    bad = np.flatnonzero(dataset["seed"] == 3)
    dataset["status"].values[bad] = DIVERGED
    # Half of them have numbers at this step still, and very large ones.
    dataset["hidden_rms"].values[bad[::2]] = np.nan
    dataset["hidden_rms"].values[bad[1::2]] = 1e6
    found = fit(dataset, "finite-wide", "hidden", STEP)
    assert found["cells"] == counts(256, diverged=64)
    assert found["seeds"] == 3
    for name in ("exponent", "exponent_interval", "amplitude", "individual"):
        assert found[name] == expected[name]


def test_cells_that_were_not_run_are_missing() -> None:
    dataset = study(noise_law)
    dataset["status"].values[:5] = NOT_RUN
    dataset["hidden_rms"].values[:7] = np.nan
    # Cells that are not in the table were not asked for: shapes may have fewer seeds than others.
    found = fit(dataset.isel(cell=slice(0, -3)), "finite-wide", "hidden", STEP)
    assert found["cells"] == counts(253, missing=7)
    assert found["exponent"] == pytest.approx(0.5, abs=0.05)


def noisy(share: float = 3.0) -> xr.Dataset:
    """Errors of which a quarter lies below a noise that is larger than they are."""
    dataset = study(noise_law)
    small = np.flatnonzero(dataset["depth"] == 80)
    truth = dataset["hidden_rms"].values[small]
    stderr = np.full_like(truth, share * np.sqrt(np.mean(truth**2)))
    dataset["hidden_rms_stderr"].values[small] = stderr
    dataset["hidden_rms"].values[small] = np.sqrt(truth**2 + stderr**2)
    return dataset


def test_cells_below_resolution_enter_with_their_noise() -> None:
    dataset = noisy()
    found = fit(dataset, "finite-wide", "hidden", STEP, limit_tolerance=1e-3)
    assert found["cells"] == counts(256, below_resolution=64)
    assert found["shapes"] == 64
    for size in ("exponent_interval", "amplitude_interval"):
        assert inside(B if "amplitude" in size else 0.5, found[size])
    assert found["noise"] == pytest.approx(1, abs=0.2)
    assert found["warning"].startswith("64 of 256 cells are below resolution")
    # Negative control: the same errors taken for exact.
    dataset["hidden_rms_stderr"].values[:] = 0
    exact = fit(dataset, "finite-wide", "hidden", STEP)
    assert exact["cells"] == counts(256)
    assert exact["warning"] is None
    assert not inside(0.5, exact["exponent_interval"])


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_noise_of_another_size_than_expected_is_found(factor: float) -> None:
    """All cells share one error of the limits, whose square may be half or twice its mean."""
    dataset = noisy()
    dataset["hidden_rms_stderr"] *= factor**-0.5
    found = fit(dataset, "finite-wide", "hidden", STEP)
    assert found["noise"] == pytest.approx(factor, rel=0.2)
    assert inside(0.5, found["exponent_interval"])


def test_the_tolerance_that_would_resolve_all_cells_is_named() -> None:
    dataset = study(noise_law, scatter=0)
    smallest = dataset["hidden_rms"].values.min()
    dataset["hidden_rms_stderr"].values[:] = smallest / 2
    dataset["hidden_rms"].values[:] = np.sqrt(
        dataset["hidden_rms"].values ** 2 + (smallest / 2) ** 2
    )
    found = fit(dataset, "finite-wide", "hidden", STEP, limit_tolerance=1e-2)
    # The standard error must be five times smaller.
    assert found["limit_tolerance_needed"] == pytest.approx(2e-3)
    assert "a limit_tolerance of 0.002 would resolve them" in found["warning"]
    dataset["hidden_rms_stderr"].values[:] /= 5.01
    after = fit(dataset, "finite-wide", "hidden", STEP, limit_tolerance=2e-3)
    assert after["limit_tolerance_needed"] is None
    assert after["warning"] is None


def test_where_too_little_stands_out_there_is_a_reason() -> None:
    dataset = study(noise_law, embed_dim=[10], width=[10])
    values = dataset["hidden_rms"].values
    noise = np.where(dataset["depth"].values > 20, 3 * values.max(), 0.0)[:, None]
    dataset["hidden_rms_stderr"].values[:] = noise
    dataset["hidden_rms"].values[:] = np.sqrt(values**2 + noise**2)
    found = fit(dataset, "finite-wide", "hidden", STEP, limit_tolerance=1e-3)
    assert found["exponent"] is None
    assert found["reason"] == (
        "too few values of D/(LM) stand out from the limits' standard error: 2 of the 3 needed"
    )
    assert "or a smaller one" in found["warning"]
    assert found["amplitude_at_theory"] == pytest.approx(B, rel=0.2)
    dataset["hidden_rms_stderr"].values[:] = 10 * values.max()
    nothing = fit(dataset, "finite-wide", "output", STEP) | fit(
        dataset, "finite-wide", "hidden", STEP
    )
    assert nothing["reason"] == "no shape stands out from the limits' standard error"


def test_a_bias_that_the_limits_error_is_along_is_found() -> None:
    """The product of both counts, in all shapes alike: to take it for noise bends the power."""
    dataset = wide_ode(scatter=0)
    bias = dataset["hidden_rms"].values
    stderr = np.full_like(bias, 0.3 * bias.min())
    dataset["hidden_rms_stderr"].values[:] = stderr
    dataset["hidden_rms"].values[:] = np.sqrt(bias**2 + stderr**2 - bias * stderr)
    found = fit(dataset, "wide-mean_ode", "hidden", STEP)
    assert found["exponent"] == pytest.approx(1.0, abs=1e-3)
    plain = np.polyfit(np.log(dataset["depth"]), np.log(dataset["hidden_rms"].values[:, 0]), 1)[0]
    assert abs(plain + 1) > 0.03


@pytest.mark.parametrize(("square", "cosine"), [(0.4, 0.9), (3.0, -0.9)])
def test_the_product_has_the_size_of_the_limits_actual_error(
    monkeypatch: pytest.MonkeyPatch, square: float, cosine: float
) -> None:
    """Its square is c sigma^2: a product of rho sigma B alone would need a cosine of -1.6."""
    # Near a cosine of one the product is found slowly.
    monkeypatch.setattr(likelihood, "_ROUNDS", 40)
    dataset = wide_ode(scatter=0)
    bias = dataset["hidden_rms"].values
    stderr = np.full_like(bias, 0.3 * bias.min())
    dataset["hidden_rms_stderr"].values[:] = stderr
    product = 2 * cosine * np.sqrt(square) * bias * stderr
    dataset["hidden_rms"].values[:] = np.sqrt(bias**2 + square * stderr**2 - product)
    found = fit(dataset, "wide-mean_ode", "hidden", STEP)
    assert found["exponent"] == pytest.approx(1.0, abs=1e-3)
    assert found["noise"] == pytest.approx(square, rel=1e-3)


def near_the_standard_error(draw: int) -> xr.Dataset:
    """A bias 1/L that falls through the standard error; both in a plane, at some angle."""
    rng = np.random.default_rng([5, draw])
    sigma, seeds = 1 / 90, 4
    error = sigma * rng.normal(size=2)
    bias = rng.normal(size=2)
    bias /= np.sqrt((bias**2).mean())
    cells = np.array([(2**n, 0, 8, k) for n in range(2, 9) for k in range(seeds)])
    size = (1 + 0.02 * rng.normal(size=len(cells))) / cells[:, 0]
    distance = np.sqrt(((size[:, None] * bias - error) ** 2).mean(axis=1))
    dataset = table(cells, distance)
    dataset["hidden_rms_stderr"].values[:] = sigma
    return dataset


def test_a_bias_as_small_as_the_limits_error_is_fitted() -> None:
    """The two may cancel, so that next to nothing is left of the law in one shape."""
    hits = 0
    for draw in range(DRAWS):
        found = fit(near_the_standard_error(draw), "wide-mean_ode", "hidden", STEP)
        assert found["exponent"] is not None or found["reason"]
        hits += found["exponent"] is not None and inside(1.0, found["exponent_interval"])
    assert hits >= 0.85 * DRAWS


def test_errors_of_which_no_number_holds_the_square_are_missing() -> None:
    dataset = study(noise_law)
    dataset["hidden_rms"].values[:2, 0] = 1e200, np.inf
    found = fit(dataset, "finite-wide", "hidden", STEP)
    assert found["cells"] == counts(256, missing=2)
    assert found["exponent"] == pytest.approx(0.5, abs=0.05)


def test_a_law_that_cannot_be_fitted_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_objective", lambda *_: np.inf)
    for law, pair in ((noise_law, "finite-wide"), (hidden_law, "finite-dmft")):
        for observable in ("hidden", "output"):
            found = fit(study(law, FINE, FINE, FINE), pair, observable, STEP)
            assert found["exponent"] is None
            assert found["individual"] == dict.fromkeys(SIZES)
            assert "no parameters give a finite distance" in found["reason"]
            if "fixed_budget" in found:
                assert found["fixed_budget"]["exponent"] is None


@pytest.mark.parametrize("observable", ["hidden", "hidden_max_mean_abs"])
def test_noise_adds_to_the_square_of_a_mean_absolute_value_as_it_does(observable: str) -> None:
    """Of Gaussian d and e, the mean absolute value is that of their sum."""
    rng = np.random.default_rng(0)
    cells = np.array([(n, 8, 8, k) for n in (8, 16, 32, 64) for k in range(50)])
    size = cells[:, 0] ** -0.5
    sigma = size.min()
    sums = size[:, None] * rng.normal(size=(len(cells), 2000)) + sigma * rng.normal(size=2000)
    dataset = table(cells, np.sqrt((sums**2).mean(axis=1)))
    dataset["hidden_max_mean_abs"].values[:, 0] = np.abs(sums).mean(axis=1)
    dataset["hidden_rms_stderr"].values[:] = sigma
    found = make_study(dataset, observable, STEP)
    share = 1.0 if observable == "hidden" else 2 / np.pi
    left = found.mean_squares - found.mean_noise
    np.testing.assert_allclose(left, share / found.sizes[:, 0], rtol=0.05)


def test_resolution_is_ten_standard_errors_of_the_cell() -> None:
    dataset = study(noise_law, scatter=0)
    for ratio, below in ((10.1, 0), (9.9, 1)):
        dataset["hidden_rms_stderr"].values[3] = dataset["hidden_rms"].values[3] / ratio
        found = fit(dataset, "finite-wide", "hidden", STEP)
        assert found["cells"] == counts(256, below_resolution=below)


def test_a_small_error_by_chance_is_not_below_resolution() -> None:
    """A cell's standard error is held against the RMS of its shape."""
    dataset = study(noise_law, scatter=0)
    dataset["hidden_rms_stderr"].values[:4] = dataset["hidden_rms"].values[:4] / 20
    dataset["hidden_rms"].values[0] /= 4
    assert fit(dataset, "finite-wide", "hidden", STEP)["cells"] == counts(256)


def test_distances_of_rounding_are_no_measurement() -> None:
    dataset = study(lambda L, M, D: 1e-32 * D / (L * M))
    found = fit(dataset, "finite-wide", "hidden", STEP)
    assert found["cells"] == counts(256, below_resolution=256) | {"used": 0}
    assert found["exponent"] is None


# --- few values -----------------------------------------------------------------------------------


def test_too_few_values_give_a_reason_and_the_amplitude() -> None:
    for depths in ([8], [8, 16]):
        found = fit(wide_ode(depth=depths), "wide-mean_ode", "hidden", STEP)
        assert found["exponent"] is None
        assert found["exponent_interval"] is None
        assert found["reason"] == f"too few distinct values of 1/L: {len(depths)} of the 3 needed"
        assert found["amplitude_at_theory"] == pytest.approx(A, rel=0.2)
        assert found["individual"]["depth"] is None
    assert fit(wide_ode(depth=[4, 8, 16]), "wide-mean_ode", "hidden", STEP)["exponent"] is not None


def test_sizes_that_vary_together_have_no_individual_exponents() -> None:
    dataset = study(noise_law)
    diagonal = dataset.isel(cell=(dataset["depth"] == dataset["width"]).values)
    found = fit(diagonal, "finite-wide", "hidden", STEP)
    assert found["individual"] == dict.fromkeys(SIZES)
    assert found["exponent"] == pytest.approx(0.5, abs=0.05)


def test_one_depth_leaves_a_floor_in_place_of_its_term() -> None:
    dataset = study(hidden_law, depth=[2], width=FINE, embed_dim=FINE, seeds=6, scatter=0.03)
    found = fit(dataset, "finite-dmft", "hidden", STEP)
    assert list(found["terms"]) == ["sqrt(D/(LM))", "1/sqrt(D)"]
    assert "floor" in found["left_out"]["1/L"]
    assert inside(A / 2, found["floor"]["amplitude_interval"])
    assert inside(B, found["terms"]["sqrt(D/(LM))"]["amplitude_interval"])
    assert inside(C, found["terms"]["1/sqrt(D)"]["amplitude_interval"])


def test_a_floor_in_place_of_a_bias_is_one() -> None:
    """The limits' error is along it or not, as it was along 1/L."""
    dataset = study(
        lambda L, M, D: 0.09 + 0 * D / (L * M), depth=[2], width=FINE, embed_dim=FINE, scatter=0
    )
    # Errors of the limits differ between shapes, so that a floor cannot take their place.
    floor, sigma = 0.3, 0.1 * np.sqrt(dataset["embed_dim"].values[:, None] / 100.0)
    noise = 0.01 * (dataset["embed_dim"] / dataset["width"]).values[:, None]
    dataset["hidden_rms_stderr"].values[:] = sigma
    dataset["hidden_rms"].values[:] = np.sqrt(floor**2 + noise + sigma**2 - sigma * floor)
    found = fit(dataset, "finite-mean_ode", "hidden", STEP)
    assert found["floor"]["amplitude"] == pytest.approx(floor, rel=0.01)
    assert found["noise"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"depth": [4], "width": [8], "embed_dim": [16]}, "only one value"),
        ({"depth": [4], "width": [8], "embed_dim": [16, 32]}, "too few"),
        ({"depth": [4, 8, 16, 32, 64], "width": [8], "embed_dim": [16]}, None),
    ],
)
def test_joint_fits_of_few_shapes(sizes: dict[str, list[int]], reason: str | None) -> None:
    found = fit(study(hidden_law, **sizes), "finite-dmft", "hidden", STEP)  # type: ignore[arg-type]
    if reason is None:
        assert set(found["terms"]) == {"1/L", "sqrt(D/(LM))"}
    else:
        assert found["terms"] is None
        assert reason in found["reason"]


def test_terms_that_are_proportional_are_not_told_apart() -> None:
    cells = np.array([(n, 8, 8 * n * n, k) for n in (2, 4, 8, 16, 32) for k in range(3)])
    L, M, D, _ = cells.T.astype(float)
    # D/(LM) = L here, and 1/sqrt(D) is 1/L up to a factor.
    found = fit(table(cells, np.sqrt(hidden_law(L, M, D))), "finite-dmft", "hidden", STEP)
    assert found["terms"] is None
    assert "apart" in found["reason"]


def test_nothing_to_fit() -> None:
    dataset = study(hidden_law)
    dataset["status"].values[:] = DIVERGED
    for pair, observable in itertools.product(PAIRS, OBSERVABLES):
        found = fit(dataset, pair, observable, STEP)
        assert found["exponent"] is None
        assert found["reason"]
        assert found["cells"] == counts(256, diverged=256)
    absent = fit(study(hidden_law), "finite-dmft", "hidden", STEP + 1)
    assert absent["cells"] == counts(256, missing=256)
    assert absent["fixed_budget"]["exponent"] is None


# --- fixed budget ---------------------------------------------------------------------------------


WIDE_GRID = [6, 10, 16, 25, 40, 63, 100, 160, 250, 400]


@pytest.mark.parametrize(
    ("observable", "law"),
    [
        ("hidden", hidden_law),
        ("output", lambda L, M, D: (0.5 * D / (L * M)) ** 2 + (0.3 / L) ** 2 + C**2 / D),
    ],
)
def test_best_shapes_fall_as_theory_says(observable: str, law: Law) -> None:
    dataset = study(law, WIDE_GRID, WIDE_GRID, WIDE_GRID, seeds=3)
    found = fit(dataset, "finite-dmft", observable, STEP)["fixed_budget"]
    assert inside(found["theory"], found["exponent_interval"])
    assert found["exponent_interval"][1] - found["exponent_interval"][0] < 0.1
    assert found["exponent"] == pytest.approx(found["theory"], abs=0.02)
    assert len(found["points"]) == found["bins"]["used"] >= 6
    parameters = [point["parameters"] for point in found["points"]]
    assert parameters == sorted(parameters)
    for point in found["points"]:
        assert point["parameters"] == point["depth"] * point["width"] * point["embed_dim"]
        assert WIDE_GRID[0] < point["embed_dim"] < WIDE_GRID[-1]
        assert inside(point["error"], point["error_interval"])
        low, high = point["error_interval"]
        assert high > 1.01 * low
    for point in found["edges"]:
        assert point["edge"] in ("smallest D", "largest D")


def test_intervals_of_best_shapes_hold_the_law_as_often_as_they_say() -> None:
    held, wrong = [], []
    for draw in range(12):
        dataset = study(hidden_law, WIDE_GRID, WIDE_GRID, WIDE_GRID, seeds=6, draw=draw)
        found = fit(dataset, "finite-dmft", "hidden", STEP)["fixed_budget"]
        for point in found["points"] + found["edges"]:
            sizes = (point["depth"], point["width"], point["embed_dim"])
            true = math.sqrt(hidden_law(*map(float, sizes)))
            held.append(inside(true, point["error_interval"]))
            wrong.append(inside(1.5 * true, point["error_interval"]))
    # The best of several is chosen by its error, which makes it a little too small.
    assert np.mean(held) > 0.75
    # Negative control: intervals that hold anything would hold this too.
    assert np.mean(wrong) < 0.2


def test_errors_that_fall_faster_are_rejected() -> None:
    """Negative control: all terms squared, so that the best shapes fall as P^(-1/3)."""
    dataset = study(
        lambda L, M, D: hidden_law(L, M, D) ** 2, WIDE_GRID, WIDE_GRID, WIDE_GRID, seeds=3
    )
    found = fit(dataset, "finite-dmft", "hidden", STEP)["fixed_budget"]
    assert found["exponent"] == pytest.approx(-1 / 3, abs=0.04)
    assert not inside(found["theory"], found["exponent_interval"])


def test_all_that_keeps_best_shapes_from_counting_is_said() -> None:
    dataset = study(hidden_law, WIDE_GRID, WIDE_GRID, WIDE_GRID, seeds=2)
    dataset["hidden_rms_stderr"].values[:] = dataset["hidden_rms"].values.max()
    reason = fit(dataset, "finite-dmft", "hidden", STEP)["fixed_budget"]["reason"]
    assert "lies between the smallest and the largest D" in reason
    assert (
        "in 0 of these it stands out from the limits' standard error; 3 such bins are needed"
        in reason
    )


def test_best_shapes_at_the_edge_do_not_count() -> None:
    # Only noise: the smallest D is best everywhere, as far as was measured.
    found = fit(study(noise_law), "finite-dmft", "hidden", STEP)["fixed_budget"]
    assert found["exponent"] is None
    assert found["points"] == []
    assert {point["edge"] for point in found["edges"]} == {"smallest D"}
    at_edges = [point["error"] for point in found["edges"]]
    assert len(at_edges) >= 3
    assert all(np.isfinite(at_edges))
    assert all(point["error_interval"] for point in found["edges"])
    assert "between" in found["reason"]
    few = fit(
        study(hidden_law, depth=[4, 8], width=[8], embed_dim=[8]), "finite-dmft", "hidden", STEP
    )
    assert "bins" in few["fixed_budget"]["reason"]


# --- all together ---------------------------------------------------------------------------------


def test_every_fit_is_json_and_complete() -> None:
    datasets = {
        "finite-wide": study(noise_law),
        "wide-mean_ode": wide_ode(),
        "mean_ode-dmft": ode_dmft(),
        "finite-mean_ode": study(lambda L, M, D: (A / L) ** 2 + noise_law(L, M, D)),
        "finite-dmft": study(hidden_law),
    }
    datasets["finite-wide"]["output_rms"].values[0] = np.inf
    found = fit_rates(datasets, [STEP, STEP + 9], root_seed=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == list(PAIRS)
    for pair, observables in found.items():
        assert list(observables) == list(OBSERVABLES)
        for observable, steps in observables.items():
            assert list(steps) == [str(STEP), str(STEP + 9)]
            first, second = steps.values()
            assert {"variable", "model", "exponent", "theory", "cells", "individual"} <= set(first)
            assert second["cells"]["used"] == 0
            law = LAWS[pair]["output" if observable == "output" else "hidden"]
            assert (first["exponent"] is None) == (law.variable is None)
            assert bool(first.get("terms")) == bool(law.terms)
            assert ("fixed_budget" in first) == (pair == "finite-dmft")


def test_lazy_tables_are_read() -> None:
    dataset = study(noise_law)
    lazy = fit_rates({"finite-wide": dataset.chunk()}, [STEP], 0)
    assert lazy == fit_rates({"finite-wide": dataset}, [STEP], 0)


def test_thousands_of_cells_are_fitted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = study(hidden_law)
    whole = fit(dataset, "finite-dmft", "hidden", STEP)
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 64 * 7)
    parts = fit(dataset, "finite-dmft", "hidden", STEP)
    for name, term in whole["terms"].items():
        np.testing.assert_allclose(
            parts["terms"][name]["amplitude_interval"], term["amplitude_interval"], rtol=1e-3
        )
    np.testing.assert_allclose(
        parts["fixed_budget"]["exponent_interval"], whole["fixed_budget"]["exponent_interval"]
    )


def test_variables_are_what_their_names_say() -> None:
    L, M, D = 3.0, 5.0, 7.0
    expected = {
        "1/L": 1 / L,
        "1/D": 1 / D,
        "1/sqrt(D)": D**-0.5,
        "D/(LM)": D / (L * M),
        "sqrt(D/(LM))": (D / (L * M)) ** 0.5,
        "1/sqrt(LM)": (L * M) ** -0.5,
    }
    assert set(expected) == set(POWERS)
    for name, value in expected.items():
        assert variable_values(name, np.array([L, M, D])) == pytest.approx(value)
