"""Stage ``problem``: the data of an experiment as a dataset."""

from __future__ import annotations

import logging

import numpy as np
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
        alike ``weight (sample, [token])``, where some samples are not trained on ``is_test
        (sample)``, and where inputs span less than their space
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
    if made.is_test is not None:
        dataset = dataset.assign_coords(is_test=("sample", made.is_test.astype(np.int8)))
    if made.input_rotation is not None:
        dataset["input_rotation"] = (("input", "rank"), made.input_rotation)
    logger.info(
        "problem: %d samples%s%s, %d inputs of rank %d, %d targets",
        len(made.training_samples),
        "" if made.is_test is None else f" and {made.is_test.sum()} test samples",
        "" if made.tokens is None else f" of {made.tokens} tokens",
        made.x.shape[-1],
        made.input_dims,
        made.output_dims,
    )
    return dataset
