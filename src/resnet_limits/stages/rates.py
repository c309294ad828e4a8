"""Stage ``rates``: the laws fitted to the distances of all cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from resnet_limits.config import Experiment
from resnet_limits.errors.families import Family, fit_families
from resnet_limits.errors.rates import fit_rates
from resnet_limits.kept import saved_steps

EARLY_STEP = 5
"""Rates are fitted at this step, where it is kept, and at the last."""


def rates(experiment: Experiment, errors: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Fit exponents and amplitudes to the distances.

    Parameters
    ----------
    experiment : Experiment
        The validated experiment.
    errors : mapping of str to Dataset
        What `errors` returned, or the groups of its store.

    Returns
    -------
    dict
        JSON values: ``experiment``, ``steps``, for each pair, observable and step the fit of
        ``errors.rates.fit``, and for each family what ``errors.families.fit_family`` finds.
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
    return {
        "experiment": experiment.experiment,
        "steps": steps,
        "pairs": fit_rates(tables, steps, experiment.seed, experiment.numerics.limit_tolerance),
        "families": fit_families(tables, families, steps, experiment.seed),
    }
