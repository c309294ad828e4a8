"""Intervals hold the truth as often as they say, also where half of the cells are below resolution.

In the studies errors have common causes, and limits an error that is known from eight scramblings.
The whole table, of 300 studies each, is made by ``benchmarks/interval_coverage.py``. Here are so
few that less than 95 per cent by less than three binomial standard deviations is no fault; they are
the same studies every time.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from resnet_limits.cells import make_study

ROOT = Path(__file__).parents[2]
DRAWS = 120
FEWEST = int(stats.binom.ppf(1e-3, DRAWS, 0.95))
"""With 95 per cent each, fewer than these cover once in a thousand times; 88 per cent."""


@pytest.fixture(scope="module")
def program() -> Any:
    spec = importlib.util.spec_from_file_location(
        "coverage_of_fits", ROOT / "benchmarks/interval_coverage.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("power", 3),
        ("scattered power", 4),
        ("depth power", 4),
        ("nested power", 16),
        ("terms", 4),
        ("output terms", 3),
        ("family", 3),
    ],
)
def test_intervals_cover_what_they_claim(program: Any, name: str, seeds: int) -> None:
    coverage, below, _ = program.hits(program.SETTINGS[name], seeds, 0.5, DRAWS)
    assert 0.4 < below < 0.6
    assert min(coverage.values()) >= FEWEST / DRAWS, coverage


def test_leaving_out_what_is_below_resolution_does_not_cover(program: Any) -> None:
    """Negative control: the rule of before, a cut at ten standard errors."""
    setting = program.SETTINGS["scattered power"]
    coverage, _, _ = program.hits(setting, 4, 0.5, DRAWS, old=True)
    assert min(coverage.values()) < FEWEST / DRAWS, coverage


def test_a_fit_that_raises_an_exception_does_not_cover(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = program.SETTINGS["depth power"]
    whole, _, _ = program.hits(setting, 4, 0.5, 10)
    fit = program.fit

    def failing(dataset: Any, pair: str, observable: str, step: int, draw: int) -> Any:
        if draw < 5:
            raise np.linalg.LinAlgError("SVD did not converge")
        return fit(dataset, pair, observable, step, draw)

    monkeypatch.setattr(program, "fit", failing)
    with pytest.warns(UserWarning, match="5 of 10 fits failed"):
        coverage, _, _ = program.hits(setting, 4, 0.5, 10)
    assert coverage["exponent"] <= 0.5 < whole["exponent"]


def test_another_root_gives_other_studies(program: Any) -> None:
    setting = program.SETTINGS["depth power"]
    one, two, again = (program.study(setting, 3, 0.5, 0, root) for root in (0, 1, 0))
    assert one.identical(again)
    assert not np.allclose(one["hidden_rms"], two["hidden_rms"])


def test_made_up_errors_follow_their_law(program: Any) -> None:
    """In the mean over many seeds, with and without the limits' error."""
    setting = program.SETTINGS["terms"]
    truth = sum(
        (a * program.variable_values(name, setting.shapes)) ** 2
        for name, a in setting.amplitudes.items()
    )
    order = np.lexsort(setting.shapes.T[::-1])
    for below in (0.0, 0.5):
        found = make_study(program.study(setting, 400, below, 0), "hidden", program.STEP)
        ratio = (found.mean_squares - found.mean_noise) / truth[order]
        assert np.median(ratio) == pytest.approx(1, abs=0.1)
