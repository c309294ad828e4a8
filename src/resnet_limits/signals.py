"""The signals that ask a program to stop: of a terminal, of a cluster before it ends a job."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 75
"""Exit code of what stopped early and has saved what was finished: run it again."""


# Not an Exception: code that goes on after an error must not go on after this.
class Stopped(BaseException):
    """A signal asked the program to stop; the message is the signal's name."""


class StopSignals:
    """What has been asked so far.

    Only the first signal raises at once: a second one would interrupt the cleaning up. What it
    raises can be lost, where a library in C has called Python and ignores its exceptions; `check`
    finds it again.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._holds = 0

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        is_first = self._name is None
        self._name = self._name or signal.Signals(number).name
        if is_first:
            self.check()

    def check(self) -> None:
        """Stop here if a signal came.

        Raises
        ------
        Stopped
            If so, and nothing is held.
        """
        if self._name is not None and not self._holds:
            raise Stopped(self._name)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Finish what is short and would be lost half done; stop after it if asked meanwhile.

        Raises
        ------
        Stopped
            At the end, if a signal came.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        self.check()


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Turn SIGINT and SIGTERM into an exception that cleans up on its way out.

    Outside of the main thread, which alone may catch signals, nothing is changed.

    Raises
    ------
    Stopped
        Wherever the program is when the first signal comes, as soon as Python is back in control;
        also in place of an error that came after a signal.
    """
    asked = StopSignals()
    names = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {name: signal.signal(name, asked._receive) for name in names}
    except ValueError:
        before = {}
    try:
        yield asked
    except Exception:
        asked.check()
        raise
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
