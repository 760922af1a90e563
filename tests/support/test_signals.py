"""Signals that end a command are exceptions while it runs."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from policy_distill.support.signals import Stopped, exit_code, leave_stops_to_parent, raising_stops

SIGNALS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def unhandled():
    """The handlers of a new process, and afterwards those of this one."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_exception_like_ctrl_c(number):
    with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name) as stop, raising_stops():
        signal.raise_signal(number)
    assert isinstance(stop.value, Stopped)
    assert exit_code(stop.value) == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_exit_code_of_ctrl_c():
    assert exit_code(KeyboardInterrupt()) == 130


def test_ignored_and_handled_signals_stay_so():
    """``nohup`` ignores SIGHUP."""
    heard: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with raising_stops():
        for number in SIGNALS:
            os.kill(os.getpid(), number)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_in_another_thread_nothing_is_handled():
    found: list[object] = []

    def look() -> None:
        with raising_stops():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_a_worker_ignores_signals_of_the_terminal_and_ends_at_once_on_its_parent_s():
    before = signal.getsignal(signal.SIGINT)
    try:
        with raising_stops():
            leave_stops_to_parent()
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)} == {signal.SIG_IGN}
    finally:
        signal.signal(signal.SIGINT, before)
