"""Verdicts on made-up studies: right theories agree, wrong ones do not, few seeds decide none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from synthetic import STEP, inside, table

from resnet_limits.cells import make_study
from resnet_limits.config import PAIRS
from resnet_limits.errors import judging
from resnet_limits.errors.intervals import resample, strata
from resnet_limits.errors.likelihood import KNOWN, fit_power
from resnet_limits.errors.rates import fit_rates
from resnet_limits.errors.verdicts import claims
from resnet_limits.fitted import claim_counts, claim_rows
from resnet_limits.laws import in_quadrature, law_of, variable_values

HIDDEN = {"1/L": 0.5, "sqrt(D/(LM))": 0.8, "1/sqrt(D)": 1.5}
OUTPUT = {"1/L": 0.3, "D/(LM)": 0.3, "1/sqrt(LM)": 0.4, "1/sqrt(D)": 0.6}
SCALE = 1.5
SIZES = [8, 32, 128, 512]
ALONE = {"finite-wide": "sqrt(D/(LM))", "wide-mean_ode": "1/L", "mean_ode-dmft": "1/sqrt(D)"}

Wrong = Callable[[str, str, np.ndarray], np.ndarray]


def right(pair: str, observable: str, sizes: np.ndarray) -> np.ndarray:
    """The error by theory, with a next order that is none of the law's."""
    amplitudes = HIDDEN if observable == "hidden" else OUTPUT
    terms = law_of(pair, observable).terms or (ALONE[pair],)
    error = in_quadrature({term: amplitudes[term] for term in terms}, sizes)
    relative = {
        term: (value * variable_values(term, sizes) / SCALE) ** 2 for term, value in HIDDEN.items()
    }
    return error * (1 - 0.6 * relative["1/sqrt(D)"] + 0.5 * relative["sqrt(D/(LM))"])


def study(
    law: Wrong = right, seeds: int = 16, draw: int = 0, freedom: int = 30
) -> dict[str, xr.Dataset]:
    """Errors of all pairs; a seed's embedding is shared by all of its cells."""
    rng = np.random.default_rng([draw, seeds])
    found = {}
    for pair in PAIRS:
        depth = [0] if pair == "mean_ode-dmft" else SIZES
        width = SIZES if "finite" in pair else [0]
        cells = np.array(list(itertools.product(depth, width, SIZES, range(seeds))))
        both = []
        for observable in ("hidden", "output"):
            embedding = rng.chisquare(freedom, (len(SIZES), seeds)) / freedom
            shared = embedding[np.searchsorted(SIZES, cells[:, 2]), cells[:, 3]]
            own = rng.chisquare(freedom, len(cells)) / freedom
            both.append(law(pair, observable, cells[:, :3]) * np.sqrt(shared * own))
        dataset = table(cells, both[0])
        found[pair] = dataset.assign(output_rms=(("cell", "step"), both[1][:, None]))
    return found


def prediction(
    factor: float = 1.0, uncertainty: float = 0.005, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A prediction.json with right amplitudes times a factor."""

    def terms(amplitudes: dict[str, float]) -> dict[str, Any]:
        return {
            name: {
                "amplitude": [None if name in without else factor * value] * (STEP + 1),
                "uncertainty": [None if name in without else uncertainty * value] * (STEP + 1),
            }
            for name, value in amplitudes.items()
        }

    return {
        "step": list(range(STEP + 1)),
        "hidden": terms(HIDDEN),
        "output": terms(OUTPUT),
        "scale": {"hidden": [SCALE] * (STEP + 1)},
    }


def judged(errors: dict[str, xr.Dataset], predicted: dict[str, Any] | None = None) -> Any:
    rates = {"steps": [STEP], "pairs": fit_rates(errors, [STEP], 0), "families": {}}
    return claims(errors, rates, predicted or prediction(), 0, 1e-3)


def verdict(found: list[dict[str, Any]], pair: str, observable: str, words: str) -> dict[str, Any]:
    (claim,) = (
        claim
        for claim in found
        if claim["where"] == {"pair": pair, "observable": observable, "step": STEP}
        and claim["claim"].startswith(words)
    )
    return claim


def names(found: list[dict[str, Any]], which: str) -> list[tuple[str, str, str]]:
    return [
        (claim["where"]["pair"], claim["where"]["observable"], claim["claim"])
        for claim in found
        if claim["verdict"] == which
    ]


@pytest.fixture(scope="module")
def found() -> Any:
    return judged(study())


# --- right ----------------------------------------------------------------------------------------


def test_each_exponent_and_each_amplitude_has_a_verdict(found: Any) -> None:
    # Two for every distance, and the exponents in P of the best shapes, hidden and output.
    assert len(found) == 2 * 2 * len(PAIRS) + 2
    for claim in found:
        assert claim["verdict"] in ("agrees", "disagrees", "undecided")
        assert claim["why"]
        assert (claim["theory"] is None) == claim["claim"].startswith("amplitude")
    assert not names(found, "disagrees")
    assert len(names(found, "agrees")) >= 15


def test_right_theories_disagree_in_no_more_studies_than_the_level() -> None:
    wrong = [names(judged(study(draw=draw, seeds=6)), "disagrees") for draw in range(1, 13)]
    assert sum(map(bool, wrong)) <= 1


def test_what_agrees_holds_its_own_rule(found: Any) -> None:
    for claim in found:
        if claim["verdict"] != "agrees":
            continue
        low, high = claim["interval"]
        if claim["claim"].startswith("amplitude"):
            assert low <= claim["predicted"] <= high
            assert np.log(high / low) / 2 <= claim["width"] + 1e-9
            assert claim["predicted_uncertainty"] > 0
        elif "in P" not in claim["claim"]:
            assert low <= claim["theory"] <= high
            assert (high - low) / 2 <= claim["width"] + 1e-9


def test_claims_of_sums_are_judged_on_the_sum(found: Any) -> None:
    claim = verdict(found, "finite-wide", "output", "exponent")
    assert claim["claim"] == "exponent of the sum D/(LM) + 1/sqrt(LM)"
    assert claim["theory"] == 1.0
    assert claim["verdict"] == "agrees"
    # The negative control: as a power of D/(LM) alone the same errors have another exponent.
    alone = fit_rates(study(), [STEP], 0)["finite-wide"]["output"][str(STEP)]
    assert not inside(1.0, alone["exponent_interval"])


def test_claims_are_judged_where_sizes_are_large_and_slopes_show_the_rest(found: Any) -> None:
    claim = verdict(found, "finite-wide", "hidden", "exponent")
    assert 3 <= claim["range"]["shapes"] < claim["range"]["of"] == len(SIZES) ** 3
    assert claim["range"]["embed_dim"] == [32, 512]
    slopes = claim["slopes"]
    assert 2 <= len(slopes) <= 5
    assert slopes[0]["from"] < slopes[-1]["from"]
    # Small networks drift away from the law; large ones do not.
    assert slopes[-1]["exponent"] > 0.7
    assert abs(slopes[0]["exponent"] - 0.5) < 0.05
    between = verdict(found, "mean_ode-dmft", "hidden", "exponent")
    assert between["range"]["of"] == len(SIZES)
    assert "depth" not in between["range"]


def test_claims_stand_in_words(found: Any) -> None:
    rates = {"claims": found}
    rows = claim_rows(rates)
    assert len(rows) == len(found)
    assert rows[0][-2] == found[0]["verdict"]
    assert claim_counts(rates).startswith(f"{len(found)} claims: ")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((15, 0, 29), "44 claims: 15 agree, 0 disagree, 29 are undecided"),
        ((1, 1, 1), "3 claims: 1 agrees, 1 disagrees, 1 is undecided"),
        ((0, 0, 1), "1 claim: 0 agree, 0 disagree, 1 is undecided"),
        ((0, 0, 0), "0 claims: 0 agree, 0 disagree, 0 are undecided"),
    ],
)
def test_verdicts_are_counted_in_a_sentence(numbers: tuple[int, ...], said: str) -> None:
    verdicts = zip(numbers, ("agrees", "disagrees", "undecided"), strict=True)
    claims = [{"verdict": name} for count, name in verdicts for _ in range(count)]
    assert claim_counts({"claims": claims}) == said


# --- wrong ----------------------------------------------------------------------------------------


def test_a_wrong_exponent_disagrees() -> None:
    def wrong(pair: str, observable: str, sizes: np.ndarray) -> np.ndarray:
        error = right(pair, observable, sizes)
        if (pair, observable) != ("finite-wide", "hidden"):
            return error
        return error * variable_values("D/(LM)", sizes) ** -0.1

    assert names(judged(study(wrong)), "disagrees") == [
        ("finite-wide", "hidden", "exponent of D/(LM)"),
        ("finite-wide", "hidden", "amplitude of sqrt(D/(LM))"),
    ]


@pytest.mark.parametrize(("factor", "seeds", "freedom"), [(1.2, 16, 30), (1.05, 48, 300)])
def test_a_wrong_amplitude_disagrees(factor: float, seeds: int, freedom: int) -> None:
    errors = study(seeds=seeds, freedom=freedom)
    assert not names(judged(errors), "disagrees")
    found = judged(errors, prediction(factor))
    claim = verdict(found, "finite-wide", "hidden", "amplitude")
    assert claim["verdict"] == "disagrees"
    assert "Holm" in claim["why"]
    # What does not depend on the amplitude stays.
    assert verdict(found, "finite-wide", "hidden", "exponent")["verdict"] == "agrees"


def test_networks_of_fan_in_initialisation_disagree() -> None:
    def fan_in(pair: str, observable: str, sizes: np.ndarray) -> np.ndarray:
        """Networks that do not come nearer to the limit."""
        error = right(pair, observable, sizes)
        return np.hypot(error, 0.5) if "finite" in pair else error

    found = names(judged(study(fan_in)), "disagrees")
    assert len(found) >= 3
    assert all("finite" in pair for pair, _, _ in found)


def test_an_uncertain_prediction_refutes_nothing() -> None:
    errors = study()
    wrong = judged(errors, prediction(1.2))
    assert verdict(wrong, "finite-wide", "hidden", "amplitude")["verdict"] == "disagrees"
    vague = verdict(judged(errors, prediction(1.2, 0.2)), "finite-wide", "hidden", "amplitude")
    assert vague["verdict"] == "undecided"
    assert "a prediction of smaller uncertainty" in vague["why"]


# --- undecided ------------------------------------------------------------------------------------


def test_few_seeds_decide_nothing() -> None:
    found = judged(study(seeds=3, freedom=2))
    claim = verdict(found, "mean_ode-dmft", "hidden", "amplitude")
    assert claim["verdict"] == "undecided"
    assert "is wider than +-10%" in claim["why"]


def test_what_would_decide_is_found_from_the_parts_of_the_interval() -> None:
    def estimate(**parts: float) -> judging.Estimate:
        named = {name.replace("_", " "): value for name, value in parts.items()}
        return judging.Estimate(0.0, 0.0, named, 3.0, 4)

    said = estimate(seeds=0.02).would_decide(0.1, "sweep.seeds", 1e-3)
    # t of n - 1 degrees times the root of 0.02 * 4 / n falls to 0.1 at n = 34; in steps of 5 %.
    assert said == "about 35 seeds (sweep.seeds) would decide"
    said = estimate(seeds=0.001, limits=0.01).would_decide(0.1, "sweep.seeds", 1e-3)
    assert said == "a limit_tolerance of 4e-04 would decide"
    assert "larger" in estimate(known_beforehand=0.01).would_decide(0.1, "sweep.seeds", 1e-3)
    assert "prediction" in estimate(prediction=0.01).would_decide(0.1, "sweep.seeds", 1e-3)


def test_one_seed_decides_nothing() -> None:
    claim = verdict(judged(study(seeds=1)), "mean_ode-dmft", "hidden", "amplitude")
    assert claim["verdict"] == "undecided"


def test_what_is_not_predicted_is_undecided() -> None:
    found = judged(study(), prediction(without=("D/(LM)",)))
    claim = verdict(found, "finite-wide", "output", "amplitude")
    assert (claim["verdict"], claim["why"]) == (
        "undecided",
        "no amplitude of D/(LM) is predicted",
    )
    assert verdict(found, "finite-wide", "hidden", "amplitude")["verdict"] == "agrees"
    # Without the hidden amplitudes nobody knows which shapes are large.
    blind = judged(study(), prediction(without=("1/sqrt(D)",)))
    assert "which shapes are large" in verdict(blind, "finite-wide", "hidden", "exponent")["why"]


def test_small_shapes_alone_are_undecided() -> None:
    small = {
        pair: dataset.isel(cell=np.flatnonzero(dataset["embed_dim"].values == 8))
        for pair, dataset in study().items()
    }
    for claim in judged(small):
        assert claim["verdict"] == "undecided"


def test_exponents_in_parameters_wait_until_the_predicted_law_has_them() -> None:
    predicted = prediction()
    near = verdict(judged(study(), predicted), "finite-dmft", "output", "exponent in P")
    assert near["theory"] == pytest.approx(-0.2)
    assert abs(near["predicted"] - near["theory"]) <= near["width"]
    assert "larger P" not in near["why"]
    predicted["output"]["1/L"]["amplitude"] = [20.0] * (STEP + 1)
    far = verdict(judged(study(), predicted), "finite-dmft", "output", "exponent in P")
    assert abs(far["predicted"] - far["theory"]) > far["width"]
    assert far["verdict"] == "undecided"
    assert "larger P" in far["why"]


# --- parts ----------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert judging.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert judging.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert judging.holm([]) == []


def test_what_is_known_of_a_column_is_one_more_observation() -> None:
    part = make_study(study(seeds=8)["finite-wide"], "hidden", STEP)
    draws = resample(strata(part.exists), 0)
    x = np.log(variable_values("D/(LM)", part.sizes))
    y = variable_values("D/(LM)", part.sizes) / 64
    columns = np.column_stack([x, y])
    free = fit_power(part, draws, columns)
    loose = fit_power(part, draws, columns, prior=np.array([np.inf, 1e6]))
    pinned = fit_power(part, draws, columns, prior=np.array([np.inf, 1e-9]))
    without = fit_power(part, draws, x[:, None])
    assert loose.values == pytest.approx(free.values, rel=1e-4)
    assert pinned.values[[0, 2]] == pytest.approx(without.values, rel=1e-6)
    assert pinned.values[1] == pytest.approx(0.0, abs=1e-9)
    assert loose.interval(0) == pytest.approx(free.interval(0), rel=1e-3)


def test_a_prior_adds_what_it_leaves_open() -> None:
    part = make_study(study(seeds=8)["mean_ode-dmft"], "hidden", STEP)
    draws = resample(strata(part.exists), 0)
    column = variable_values("1/D", part.sizes)[:, None]
    found = [
        fit_power(part, draws, column, prior=np.array([prior])).spread for prior in (1e-6, 1.0)
    ]
    variances = [spread.variances[spread.sources.index(KNOWN), 1] for spread in found]
    assert 0 < 1e6 * variances[0] < variances[1]
