"""Groups of seeds and resamples within them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from resnet_limits.errors.intervals import RESAMPLES, Spread, resample, strata


def exists(*counts: int) -> np.ndarray:
    """Which seeds each shape has."""
    return np.arange(max(counts)) < np.array(counts)[:, None]


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ((4, 4, 4), [4]),
        ((1, 1), [1]),
        ((16, 8, 8), [8, 8]),
        ((256, 64, 16), [16, 48, 192]),
        # a group of one seed would never vary
        ((5, 4), [5]),
        ((16, 16, 1), [16]),
        ((9, 8, 4), [4, 5]),
    ],
)
def test_seeds_are_grouped_by_the_shapes_that_have_them(
    counts: tuple[int, ...], sizes: list[int]
) -> None:
    labels = strata(exists(*counts))
    assert sorted(np.bincount(labels)) == sorted(sizes)
    if len(sizes) > 1:
        # The fewest seeds are a group of their own.
        assert not set(labels[: min(counts)]) & set(labels[min(counts) :])


def test_every_resample_holds_as_many_seeds_of_every_shape_as_there_are() -> None:
    seeds = exists(64, 16, 4)
    groups = strata(seeds)
    draws = resample(groups, 3)
    counts = draws.weights @ seeds.T
    np.testing.assert_array_equal(counts, np.broadcast_to([64, 16, 4], counts.shape))

    # Each group alone: all other seeds once.
    assert sorted(draws.sizes) == [4, 12, 48]
    assert len(draws.weights) == 3 * RESAMPLES
    blocks = draws.weights.reshape(3, RESAMPLES, -1)
    moved = [set(np.flatnonzero((block != 1).any(axis=0)).tolist()) for block in blocks]
    assert list(map(len, moved)) == list(draws.sizes)
    assert set.union(*moved) == set(range(64))


def test_seeds_that_all_shapes_have_are_one_group_and_cost_no_more() -> None:
    assert resample(strata(exists(5, 5)), 0).weights.shape == (RESAMPLES, 5)
    assert resample(strata(exists(1, 1)), 0).weights.shape == (0, 1)


@pytest.mark.parametrize("seeds", [2, 5, 100])
def test_interval_of_a_mean_is_students(seeds: int) -> None:
    values = np.random.default_rng(0).normal(size=seeds)
    draws = resample(np.zeros(seeds, int), 0)
    spread = draws.spread(draws.weights @ values / seeds - values.mean())
    half = stats.t.ppf(0.975, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)
    assert float(spread.half_widths()) == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("seeds", [2, 4, 50])
def test_bias_of_the_log_of_a_mean_is_half_its_relative_variance(seeds: int) -> None:
    """The unbiased variance, of which few resampled seeds show too little."""
    values = 1 + 0.05 * np.random.default_rng(0).normal(size=seeds)
    draws = resample(np.zeros(seeds, int), 0)
    ratio = draws.weights @ values / seeds / values.mean()
    # What the mean of these resamples is off by is chance.
    chance = (ratio.mean() - 1) * seeds / (seeds - 1)
    expected = -0.5 * values.var(ddof=1) / seeds / values.mean() ** 2
    found = float(draws.spread(np.log(ratio)).bias) - chance
    assert found == pytest.approx(expected, rel=0.15)


def test_degrees_of_freedom_are_those_of_the_source_that_matters() -> None:
    def half(*variances: float) -> float:
        return float(
            Spread(np.zeros(()), np.array(variances), np.array([3.0, 399.0])).half_widths()
        )

    few, many = stats.t.ppf(0.975, [3, 399])
    assert half(1.0, 1e-9) == pytest.approx(few)
    assert half(1e-9, 1.0) == pytest.approx(many)
    assert many < half(0.5, 0.5) < few
    assert half(0.0, 0.0) == 0


def test_interval_of_a_mean_over_groups_is_that_of_its_standard_error() -> None:
    """Of a mean over 4 and one over 400 other seeds, added."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=404)
    groups = (np.arange(404) >= 4).astype(int)
    draws = resample(groups, 0)
    inside = groups == 0
    totals = draws.weights[:, inside] @ values[inside] / 4
    totals = totals + draws.weights[:, ~inside] @ values[~inside] / 400
    variances = [values[inside].var(ddof=1) / 4, values[~inside].var(ddof=1) / 400]
    degrees = sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 399)
    half = stats.t.ppf(0.975, degrees) * np.sqrt(sum(variances))
    assert float(draws.spread(totals).half_widths()) == pytest.approx(half, rel=0.15)
