"""Fits to made-up errors whose law is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from synthetic import STEP, inside, table

from resnet_limits.config import PAIRS
from resnet_limits.errors import samples
from resnet_limits.errors.rates import fit, fit_rates
from resnet_limits.errors.samples import OBSERVABLES
from resnet_limits.kinds import DIVERGED, NOT_RUN, SIZES
from resnet_limits.laws import LAWS, POWERS, variable_values

Law = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

GRID = [10, 20, 40, 80]
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


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_what_they_claim(seeds: int) -> None:
    """Of 40 studies at least 32 must cover; with 95 % each, fewer happen once in 10^4."""
    covered: dict[str, int] = {}
    truth = {"1/L": A, "sqrt(D/(LM))": B, "1/sqrt(D)": C}
    for draw in range(40):
        noise = fit(study(noise_law, seeds=seeds, draw=draw), "finite-wide", "hidden", STEP, draw)
        hits = {
            "exponent": inside(0.5, noise["exponent_interval"]),
            "amplitude": inside(B, noise["amplitude_interval"]),
            "amplitude at theory": inside(B, noise["amplitude_at_theory_interval"]),
            "width": inside(-0.5, noise["individual"]["width"]["exponent_interval"]),
        }
        joint = fit(study(hidden_law, seeds=seeds, draw=draw), "finite-dmft", "hidden", STEP, draw)
        hits |= {
            name: inside(value, joint["terms"][name]["amplitude_interval"])
            for name, value in truth.items()
        }
        for name, hit in hits.items():
            covered[name] = covered.get(name, 0) + hit
    assert min(covered.values()) >= 32, covered


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
    return {"total": total, "used": total - sum(left.values()), **left}


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


def test_cells_below_resolution_are_counted_and_left_out() -> None:
    dataset = study(noise_law)
    # An error a ninth of the law's, with a standard error of the same size: not a measurement.
    small = np.flatnonzero((dataset["depth"] == 80) & (dataset["width"] == 80))
    stderr = dataset["hidden_rms"].values[small] / 9
    dataset["hidden_rms_stderr"].values[small] = stderr.max()
    dataset["hidden_rms"].values[small] /= 9
    found = fit(dataset, "finite-wide", "hidden", STEP)
    assert found["cells"] == counts(256, below_resolution=16)
    assert found["shapes"] == 60
    assert inside(0.5, found["exponent_interval"])
    dataset["hidden_rms_stderr"].values[small] = 0
    with_them = fit(dataset, "finite-wide", "hidden", STEP)
    assert with_them["cells"] == counts(256)
    assert not inside(0.5, with_them["exponent_interval"])


def test_resolution_is_ten_standard_errors_of_the_cell() -> None:
    dataset = study(noise_law, scatter=0)
    for ratio, below in ((10.1, 0), (9.9, 1)):
        dataset["hidden_rms_stderr"].values[3] = dataset["hidden_rms"].values[3] / ratio
        found = fit(dataset, "finite-wide", "hidden", STEP)
        assert found["cells"] == counts(256, below_resolution=below)


def test_a_small_error_by_chance_is_not_left_out() -> None:
    """Or else the mean over the seeds of a shape would be too large."""
    dataset = study(noise_law, scatter=0)
    dataset["hidden_rms_stderr"].values[:4] = dataset["hidden_rms"].values[:4] / 20
    dataset["hidden_rms"].values[0] /= 4
    assert fit(dataset, "finite-wide", "hidden", STEP)["cells"] == counts(256)


def test_distances_of_rounding_are_no_measurement() -> None:
    dataset = study(lambda L, M, D: 1e-32 * D / (L * M))
    found = fit(dataset, "finite-wide", "hidden", STEP)
    assert found["cells"] == counts(256, below_resolution=256)
    assert found["exponent"] is None


# --- few values -----------------------------------------------------------------------------------


def test_too_few_values_give_a_reason_and_the_amplitude() -> None:
    for depths in ([8], [8, 16]):
        found = fit(wide_ode(depth=depths), "wide-mean_ode", "hidden", STEP)
        assert found["exponent"] is None
        assert found["exponent_interval"] is None
        assert found["reason"] == f"needs 3 distinct values of 1/L, has {len(depths)}"
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


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"depth": [4], "width": [8], "embed_dim": [16]}, "one value only"),
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


def test_errors_that_fall_faster_are_rejected() -> None:
    """Negative control: all terms squared, so that the best shapes fall as P^(-1/3)."""
    dataset = study(
        lambda L, M, D: hidden_law(L, M, D) ** 2, WIDE_GRID, WIDE_GRID, WIDE_GRID, seeds=3
    )
    found = fit(dataset, "finite-dmft", "hidden", STEP)["fixed_budget"]
    assert found["exponent"] == pytest.approx(-1 / 3, abs=0.04)
    assert not inside(found["theory"], found["exponent_interval"])


def test_best_shapes_at_the_edge_do_not_count() -> None:
    # Only noise: the smallest D is best everywhere, as far as was measured.
    found = fit(study(noise_law), "finite-dmft", "hidden", STEP)["fixed_budget"]
    assert found["exponent"] is None
    assert found["points"] == []
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
    monkeypatch.setattr(samples, "_BLOCK_ELEMENTS", 64 * 7)
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
