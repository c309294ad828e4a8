"""The figures of one experiment, from its stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from resnet_limits.config import Experiment
from resnet_limits.figures import tables
from resnet_limits.figures.against_parameters import error_vs_parameters
from resnet_limits.figures.against_shape import error_vs_shape
from resnet_limits.figures.cells import Errors
from resnet_limits.figures.distances import distance_over_depth, distance_over_steps
from resnet_limits.figures.frontier import frontier
from resnet_limits.figures.picture import Picture
from resnet_limits.figures.style import sheet
from resnet_limits.figures.terms import three_terms
from resnet_limits.stages.figures import views
from resnet_limits.stages.figures.networks import OpenStore
from resnet_limits.stages.paths import FIGURES

__all__ = ["figure", "sheet"]

# Figures of distances, of fits, and of single networks are drawn from different results.
_OF_ERRORS: dict[str, Callable[..., Picture]] = {
    "distance_over_depth": distance_over_depth,
    "distance_over_steps": distance_over_steps,
    "three_terms": three_terms,
    "error_vs_shape": error_vs_shape,
    "error_vs_parameters": error_vs_parameters,
}
_OF_STORES: dict[str, Callable[[Experiment, OpenStore], Picture]] = {
    "trajectories": views.trajectories,
    "histograms": views.histograms,
    "kernels": views.kernels,
    "loss_curves": views.loss_curves,
    "accuracy": views.accuracy,
}


def figure(
    name: str,
    experiment: Experiment,
    open_store: OpenStore,
    errors: Errors,
    rates: Mapping[str, Any],
    prediction: Mapping[str, Any] | None = None,
) -> Picture:
    """Draw one figure.

    Parameters
    ----------
    name : str
        One of `FIGURES`.
    experiment : Experiment
        The validated experiment.
    open_store : callable
        From a kind and its cell to a lazy dataset, such as ``open_store("mean_ode",
        {"embed_dim": 64})``. Only what is drawn is loaded.
    errors : mapping of str to Dataset
        The errors store, by pair.
    rates : mapping
        The contents of rates.json.
    prediction : mapping or None
        The contents of prediction.json; None where there is none, as the figures then say.

    Returns
    -------
    Picture
        To be written with its ``save``. Where the experiment has no data for it, it says so in
        words.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name in _OF_ERRORS:
        return _OF_ERRORS[name](errors, rates, prediction)
    if name in _OF_STORES:
        return _OF_STORES[name](experiment, open_store)
    match name:
        case "frontier":
            return frontier(rates, prediction)
        case "rates_table":
            return tables.rates_table(rates)
        case "verdicts":
            return tables.verdicts(rates)
    raise ValueError(f"figure {name!r}: must be one of {', '.join(FIGURES)}")
