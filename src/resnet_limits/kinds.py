"""The kinds of result: the sizes that each depends on, and how a trained network can end.

What stages, stores, distances and figures all speak of, and each would else define again. Nothing
here imports anything, so that the workflow can plan with it.
"""

from __future__ import annotations

from enum import IntEnum

SIZES = ("depth", "width", "embed_dim")
"""The sizes of a network, L, M and D, in the order in which they are written."""

SYMBOLS = dict(zip(SIZES, "LMD", strict=True))
"""The letter of each size."""

CELL_KEYS: dict[str, tuple[str, ...]] = {
    "problem": (),
    "dmft": (),
    "mean_ode": ("embed_dim",),
    "wide": ("depth", "embed_dim"),
    "finite": SIZES,
    "errors": (),
    "rates": (),
}
"""The sizes that name one result of each kind, in the order in which they are written."""

KINDS = tuple(CELL_KEYS)


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
