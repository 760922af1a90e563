"""Signals that end a command: each raises an exception in the main thread, so that files and processes are closed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGTERM", "SIGHUP")
"""Signals besides SIGINT; not every system has them."""


class Stopped(KeyboardInterrupt):
    """The process was asked to end by a signal other than SIGINT; code that handles Ctrl-C handles it too.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def raising_stops() -> Iterator[None]:
    """Raise ``Stopped`` at SIGTERM and SIGHUP within the block, unless they are ignored (``nohup``) or handled already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for name in NAMES if (number := getattr(signal, name, None)) and signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def saying_how_to_go_on(note: str) -> Iterator[None]:
    """Give ``KeyboardInterrupt`` this note instead of those that it has."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.__notes__ = [note]
        raise


def leave_stops_to_parent() -> None:
    """What a worker process does with signals that end a command.

    SIGINT and SIGHUP, which a terminal sends to all its processes, are ignored: the parent ends its workers. SIGTERM ends this process at
    once, also if it is stuck in an environment.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in ("SIGINT", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a command that a signal ended, as shells report it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
