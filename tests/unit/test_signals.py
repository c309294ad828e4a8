"""Signals that ask to stop."""

from __future__ import annotations

import os
import signal

import pytest

from resnet_limits.signals import Stopped, stop_signals


def ask(name: str = "SIGTERM") -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_at_once_and_handlers_come_back(name):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match=name), stop_signals():
        ask(name)
        raise AssertionError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_code_that_goes_on_after_errors_does_not_go_on_after_a_signal():
    with pytest.raises(Stopped), stop_signals():
        try:
            ask()
        except Exception:
            raise AssertionError from None


def test_what_is_held_is_finished_first():
    done = []
    with pytest.raises(Stopped, match="SIGTERM"), stop_signals() as signals:
        with signals.held():
            with signals.held():
                ask()
            ask("SIGINT")
            done.append("finished")
        done.append("never")
    assert done == ["finished"]


def test_an_error_after_a_signal_is_the_signals():
    with pytest.raises(Stopped) as stopped, stop_signals() as signals, signals.held():
        ask()
        raise ValueError("in the middle")
    assert isinstance(stopped.value.__context__, ValueError)


def test_a_signal_that_a_library_has_swallowed_is_found_by_the_next_check():
    done = []
    with pytest.raises(Stopped), stop_signals() as signals:
        try:
            ask()
        except BaseException:
            done.append("swallowed")
        signals.check()
        done.append("never")
    assert done == ["swallowed"]


def test_a_second_signal_does_not_interrupt_the_cleaning_up():
    cleaned = []
    with pytest.raises(Stopped), stop_signals():
        try:
            ask()
        finally:
            ask()
            cleaned.append(True)
    assert cleaned == [True]
