"""Groups of seeds and resamples within them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from resnet_limits.errors import samples
from resnet_limits.errors.samples import RESAMPLES, resample


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
    labels = samples._strata(exists(*counts))
    assert sorted(np.bincount(labels)) == sorted(sizes)
    if len(sizes) > 1:
        # The fewest seeds are a group of their own.
        assert not set(labels[: min(counts)]) & set(labels[min(counts) :])


def test_every_resample_holds_as_many_seeds_of_every_shape_as_there_are() -> None:
    seeds = exists(64, 16, 4)
    draws = resample(samples._strata(seeds), 3)
    counts = draws.weights @ seeds.T
    np.testing.assert_array_equal(counts, np.broadcast_to([64, 16, 4], counts.shape))
    assert (draws.weights[0] == 1).all()
    # After the common resamples, each group alone: all other seeds once.
    assert len(draws.weights) == 1 + 4 * RESAMPLES
    blocks = draws.weights[1:].reshape(4, RESAMPLES, -1)
    moved = [set(np.flatnonzero((block != 1).any(axis=0)).tolist()) for block in blocks]
    assert moved[0] == set(range(64))
    assert sorted(map(len, moved[1:])) == [4, 12, 48]
    assert set.union(*moved[1:]) == moved[0]


def test_seeds_that_all_shapes_have_are_one_group_and_cost_no_more() -> None:
    draws = resample(samples._strata(exists(5, 5)), 0)
    assert draws.weights.shape == (1 + RESAMPLES, 5)


@pytest.mark.parametrize("seeds", [2, 5, 100])
def test_widening_of_one_group_is_students(seeds: int) -> None:
    expected = stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975) * np.sqrt(seeds / (seeds - 1))
    assert samples._widening(np.array([2.0]), [seeds]) == pytest.approx(expected)


def test_widening_is_that_of_the_group_that_matters() -> None:
    def one(seeds: int) -> float:
        return samples._widening(np.ones(1), [seeds])

    assert samples._widening(np.array([1.0, 1e-9]), [4, 400]) == pytest.approx(one(4))
    assert samples._widening(np.array([1e-9, 1.0]), [4, 400]) == pytest.approx(one(400))
    both = samples._widening(np.array([1.0, 1.0]), [4, 400])
    assert one(400) < both < one(4)
    assert samples._widening(np.zeros(2), [4, 400]) == 1


def test_interval_of_a_mean_over_groups_is_that_of_its_standard_error() -> None:
    """Of a mean over 4 and one over 400 other seeds, added."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=404)
    strata = (np.arange(404) >= 4).astype(int)
    draws = resample(strata, 0)
    inside = strata == 0
    totals = draws.weights[:, inside] @ values[inside] / 4
    totals = totals + draws.weights[:, ~inside] @ values[~inside] / 400
    variances = [values[inside].var(ddof=1) / 4, values[~inside].var(ddof=1) / 400]
    degrees = sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 399)
    half = stats.t.ppf(0.975, degrees) * np.sqrt(sum(variances))
    found = draws.interval(totals)
    assert found is not None
    assert (found[1] - found[0]) / 2 == pytest.approx(half, rel=0.15)
