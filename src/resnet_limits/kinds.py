"""The kinds of result: the sizes that each depends on, and how a trained network can end.

What stages, stores, distances and figures all speak of, and each would else define again. Nothing
here imports anything of the package, so that the workflow can plan with it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Shape(NamedTuple):
    """Sizes of one finite network: depth L, hidden width M and embedding dimension D."""

    depth: int
    width: int
    embed_dim: int

    @property
    def parameters(self) -> int:
        """P = L M D, the parameter count up to the unit's constant factor."""
        return self.depth * self.width * self.embed_dim


SIZES = Shape._fields
"""The sizes of a network, L, M and D, in the order in which they are written."""

SYMBOLS = dict(zip(SIZES, "LMD", strict=True))
"""The letter of each size."""

CELL_KEYS: dict[str, tuple[str, ...]] = {
    "problem": (),
    "dmft": (),
    "mean_ode": ("embed_dim",),
    "wide": ("depth", "embed_dim"),
    "finite": SIZES,
    "prediction": (),
    "errors": (),
    "rates": (),
}
"""The sizes that name one result of each kind, in the order in which they are written."""

KINDS = tuple(CELL_KEYS)

JSON_KINDS = ("prediction", "rates")
"""The kinds whose results are JSON files; those of the others are Zarr stores."""

COMPUTED = ("dmft", "mean_ode", "wide", "finite")
"""Limits and networks: what takes nearly all of the time, and may be computed on a GPU."""


class Status(IntEnum):
    """How a network or a limit ended, as stores record it (int8)."""

    OK = 0
    DIVERGED = 1
    NOT_RUN = 2


OK, DIVERGED, NOT_RUN = Status

STATUS = tuple(status.name.lower() for status in Status)
"""Meanings of the values of ``status``, in their order."""

STATUS_ATTRS: dict[str, object] = {
    "flag_values": [int(status) for status in Status],
    "flag_meanings": " ".join(STATUS),
}
"""Attributes by which a variable ``status`` explains itself (CF conventions)."""


def branch_width(ratio: float, width: int) -> int:
    """Give the units M_b of a branch that has so many times as many as the width M."""
    return max(1, round(ratio * width))
