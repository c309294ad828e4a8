"""Named streams: the same name gives the same numbers, another name independent ones."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resnet_limits.randomness import LAWS, draw, generator, law_rows, normal_rows, permutation

_NAMES = st.lists(st.one_of(st.integers(-(10**6), 10**6), st.text(max_size=6)), max_size=4)


def test_same_name_gives_the_same_stream() -> None:
    first = generator(3, "block_in", 0, 4, 8, 16, 2).normal(size=50)
    again = generator(3, "block_in", 0, 4, 8, 16, 2).normal(size=50)
    np.testing.assert_array_equal(first, again)


def test_numpy_integers_name_the_same_stream() -> None:
    np.testing.assert_array_equal(
        generator(np.int64(3), "a", np.int32(7)).integers(1 << 60, size=4),
        generator(3, "a", 7).integers(1 << 60, size=4),
    )


def test_a_fraction_is_no_name() -> None:
    with pytest.raises(TypeError):
        generator(0, "a", 1.5)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3), _NAMES, st.integers(0, 3), _NAMES)
def test_other_names_give_other_streams(
    root: int, name: list[str | int], other_root: int, other: list[str | int]
) -> None:
    equal = (
        generator(root, *name).integers(1 << 63, size=2)
        == generator(other_root, *other).integers(1 << 63, size=2)
    ).all()
    assert equal == ((root, name) == (other_root, other))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("1",), (1,)),
        ((1, 2), (12,)),
        (("a",), ("a", "")),
        ((1,), (-1,)),
    ],
)
def test_similar_names_are_told_apart(
    name: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert not np.array_equal(
        normal_rows(0, *name, rows=2, columns=2), normal_rows(0, *other, rows=2, columns=2)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 6), st.integers(0, 300), st.integers(0, 300))
def test_rows_are_a_prefix_of_any_longer_table(
    seed: int, columns: int, rows: int, more: int
) -> None:
    short = normal_rows(0, "embedding", seed, rows=rows, columns=columns)
    long = normal_rows(0, "embedding", seed, rows=rows + more, columns=columns)
    assert short.shape == (rows, columns)
    assert short.dtype == np.float64
    np.testing.assert_array_equal(short, long[:rows])


def test_prefix_holds_across_the_blocks_of_a_large_table() -> None:
    long = normal_rows(0, "big", rows=200_003, columns=3)
    np.testing.assert_array_equal(long[:90_001], normal_rows(0, "big", rows=90_001, columns=3))
    assert len(np.unique(long)) == long.size


def test_entries_are_independent_standard_normal() -> None:
    table = normal_rows(1, "law", rows=100_000, columns=2)
    assert stats.kstest(table.ravel(), "norm").pvalue > 1e-3
    assert abs(stats.pearsonr(table[:, 0], table[:, 1]).statistic) < 4 / np.sqrt(len(table))
    lagged = stats.pearsonr(table[:-1, 0], table[1:, 0]).statistic
    assert abs(lagged) < 4 / np.sqrt(len(table))
    # The same test sees a wrong variance, so that it could have failed.
    assert stats.kstest(1.03 * table.ravel(), "norm").pvalue < 1e-3


def test_extreme_words_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet_limits import randomness

    class Extremes:
        def random_raw(self, size: int) -> np.ndarray:
            return np.array([0, 2**64 - 1] * size, dtype=np.uint64)[:size]

    monkeypatch.setattr(randomness, "_bit_generator", lambda *_: Extremes())
    low, high = randomness.normal_rows(0, rows=1, columns=2).ravel()
    assert low == -high
    assert 8 < high < 9


def test_permutation_has_every_number_once_and_is_uniform() -> None:
    counts = np.zeros((4, 4))
    for seed in range(2000):
        order = permutation(seed, "p", size=4)
        assert sorted(order) == [0, 1, 2, 3]
        counts[order, np.arange(4)] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_streams_do_not_depend_on_the_process() -> None:
    program = (
        "from resnet_limits.randomness import generator, normal_rows;"
        "print(generator(5, 'a', 1).integers(1 << 62), normal_rows(5, 'b', rows=1, columns=1))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    here = f"{generator(5, 'a', 1).integers(1 << 62)} {normal_rows(5, 'b', rows=1, columns=1)}\n"
    assert outputs == {here}


def test_the_first_numbers_never_change() -> None:
    # Results of other days are found again by their names: another stream would make them wrong.
    expected = [-0.6523886302343757, -1.3469490096464365, 0.8780379970215293]
    np.testing.assert_allclose(
        normal_rows(0, "embedding", 0, rows=1, columns=3)[0], expected, rtol=1e-14
    )


@pytest.mark.parametrize("law", LAWS)
def test_rows_of_every_law_nest_and_have_its_moments(law: str) -> None:
    table = law_rows(law, 0, "embedding", 3, rows=4000, columns=5)
    np.testing.assert_array_equal(
        table[:100], law_rows(law, 0, "embedding", 3, rows=100, columns=5)
    )
    assert abs(table.mean()) < 0.03
    assert abs(table.var() - 1) < 0.03
    fourth = {"gaussian": 3.0, "uniform": 1.8, "rademacher": 1.0}
    assert abs((table**4).mean() - fourth[law]) < 0.15
    # All come from the same words.
    assert ((table > 0) == (normal_rows(0, "embedding", 3, rows=4000, columns=5) > 0)).all()


@pytest.mark.parametrize("law", LAWS)
def test_a_stream_gives_the_same_numbers_in_pieces(law: str) -> None:
    whole = draw(generator(0, "block_in"), law, (1000,))
    stream = generator(0, "block_in")
    pieces = [draw(stream, law, (size,)) for size in (1, 300, 699)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
