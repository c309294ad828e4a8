"""Stage ``problem``: the data of an experiment as a dataset."""

from __future__ import annotations

import logging

import xarray as xr

from resnet_limits.config import Experiment
from resnet_limits.problem import make_problem

logger = logging.getLogger(__name__)


def problem(experiment: Experiment) -> xr.Dataset:
    """Make the data that every network and limit of the experiment learns.

    Returns
    -------
    Dataset
        ``x (sample, [token,] input)``, ``y (sample, [token,] target)``, where rows do not count
        alike ``weight (sample, [token])``, and where inputs span less than their space
        ``input_rotation (input, rank)``.

    Raises
    ------
    InputError
        If the data can't be read or don't fit the loss.
    """
    made = make_problem(experiment)
    token = () if made.tokens is None else ("token",)
    dataset = xr.Dataset(
        {
            "x": (("sample", *token, "input"), made.x),
            "y": (("sample", *token, "target"), made.y),
        }
    )
    if made.weight is not None:
        dataset["weight"] = (("sample", *token), made.weight)
    if made.input_rotation is not None:
        dataset["input_rotation"] = (("input", "rank"), made.input_rotation)
    logger.info(
        "problem: %d samples%s, %d inputs of rank %d, %d targets",
        len(made.x),
        "" if made.tokens is None else f" of {made.tokens} tokens",
        made.x.shape[-1],
        made.input_dims,
        made.output_dims,
    )
    return dataset
