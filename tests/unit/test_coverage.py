"""Intervals hold the truth as often as they say, also where half of the cells are below resolution.

Of 300 studies, whose errors have common causes and whose limits have an error that is known from
eight scramblings, 92 to 98 per cent must cover; with 95 per cent each, 60 such tests see more or
fewer once. The whole table is made by ``benchmarks/interval_coverage.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_limits.cells import make_study

ROOT = Path(__file__).parents[2]
DRAWS = 300


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
        ("output terms", 16),
        ("family", 3),
        ("budget", 4),
    ],
)
def test_intervals_cover_what_they_claim(program: Any, name: str, seeds: int) -> None:
    coverage, below, _ = program.hits(program.SETTINGS[name], seeds, 0.5, DRAWS)
    assert 0.4 < below < 0.6
    low, high = program.BAND
    assert low <= min(coverage.values()) <= max(coverage.values()) <= high, coverage


def test_leaving_out_what_is_below_resolution_does_not_cover(program: Any) -> None:
    """Negative control: the rule of before, a cut at ten standard errors."""
    setting = program.SETTINGS["scattered power"]
    coverage, _, _ = program.hits(setting, 4, 0.5, DRAWS, old=True)
    assert min(coverage.values()) < program.BAND[0], coverage


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
