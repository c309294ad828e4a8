"""Stage ``rates``: the laws fitted to the distances of all cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from resnet_limits.config import Experiment
from resnet_limits.errors.families import Family, fit_families
from resnet_limits.errors.rates import fit_rates

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
    last = experiment.saved_steps[-1]
    steps = sorted({EARLY_STEP, last}) if EARLY_STEP in experiment.saved_steps else [last]
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
        "pairs": fit_rates(tables, steps, experiment.seed),
        "families": fit_families(tables, families, steps, experiment.seed),
    }
