"""Which device the numbers are computed on."""

from __future__ import annotations

import torch

from resnet_limits.config import InputError


def choose(wanted: str) -> str:
    """Turn ``numerics.device`` into a torch device.

    Parameters
    ----------
    wanted : str
        ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If CUDA is asked for where there is none.
    """
    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise InputError(
            "numerics.device: cuda is asked for and no CUDA device is visible; allowed here: "
            "auto, cpu"
        )
    return "cpu"


def describe(device: str) -> str:
    """Name a device for the record: ``cpu``, or ``cuda (NAME)`` with the accelerator's name."""
    return f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else device


def dtype(precision: str) -> torch.dtype:
    """Turn ``numerics.precision`` into a torch dtype."""
    return {"float64": torch.float64, "float32": torch.float32}[precision]
