"""What the exit code and the last line of a command depend on."""

from __future__ import annotations

import logging
import sys

from resnet_limits.signals import STOPPED, Stopped

DONE, FAILED, BAD_INPUT = 0, 1, 2

LOG = logging.getLogger("resnet_limits")


class CommandError(Exception):
    """Something failed that was no fault of the input. The message is one line."""


class Session:
    """State of the command that runs.

    Attributes
    ----------
    verbose : bool
        Whether failures show where they come from.
    saved : bool
        Whether a result has been written.
    """

    verbose = False
    saved = False


def complain(message: object) -> None:
    """Write one line to the error stream."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)


def stopped(signal_name: Stopped) -> int:
    """Say that a signal ended the command; give the exit code."""
    saved = " after the result was saved" if Session.saved else "; nothing was saved"
    complain(f"stopped by {signal_name}{saved}: run the same command again")
    return STOPPED if Session.saved else FAILED
