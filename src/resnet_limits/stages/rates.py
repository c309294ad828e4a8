"""Stage ``rates``: the laws fitted to the distances of all cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from resnet_limits.config import Experiment
from resnet_limits.errors.families import Family, fit_families
from resnet_limits.errors.rates import fit_rates
from resnet_limits.errors.verdicts import claims
from resnet_limits.kept import saved_steps

EARLY_STEP = 5
"""Rates are fitted at this step, where it is kept, and at the last."""


def rates(
    experiment: Experiment, errors: Mapping[str, xr.Dataset], prediction: Mapping[str, Any]
) -> dict[str, Any]:
    """Fit exponents and amplitudes to the distances, and judge what theory claims of them.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    errors : mapping of str to Dataset
        What `errors` returned, or the groups of its store.
    prediction : mapping
        What `prediction` returned, or its JSON.

    Returns
    -------
    dict
        JSON values: ``experiment``, ``steps``, for each pair, observable and step the fit of
        ``errors.rates.fit``, for each family what ``errors.families.fit_family`` finds, and
        ``claims``, what ``errors.verdicts.claims`` says of each exponent and amplitude.
    """
    kept = saved_steps(experiment)
    steps = sorted({EARLY_STEP, kept[-1]}) if EARLY_STEP in kept else [kept[-1]]
    tables = {pair: errors[pair] for pair in experiment.pairs}
    configured = experiment.sweep.families or {}
    families = {
        name: Family(
            tuple(members),
            configured[name].depth.exponent,
            configured[name].embed_dim.exponent,
        )
        for name, members in experiment.families.items()
    }
    seed, tolerance = experiment.seed, experiment.numerics.limit_tolerance
    fitted = {
        "experiment": experiment.experiment,
        "steps": steps,
        "pairs": fit_rates(tables, steps, seed, tolerance),
        "families": fit_families(tables, families, steps, seed),
    }
    return {**fitted, "claims": claims(tables, fitted, prediction, seed, tolerance)}
