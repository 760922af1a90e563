"""A thread that detects environments that hang. It adds no cost to a step."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import Any

from policy_distill.config import EnvironmentCrash
from policy_distill.environments.border import Border

STEP_TIMEOUT = 60.0
"""Default limit in seconds for a step or a reset in commands that run many jobs: one hanging job must not block the others."""
BLOCKED_SECONDS = 10.0
"""Seconds beyond the limit after which a silent watchdog is considered blocked: C code holds the interpreter lock."""


class Pulse:
    """A watchdog's heartbeat and the last environment it saw running, in memory shared with the parent process."""

    def __init__(self) -> None:
        self._time = RawArray("d", [math.inf])  # until the process has started, which takes seconds unless it is forked
        self._where = RawArray("c", 256)

    def beat(self, where: str = "") -> None:
        self._time[0] = time.monotonic()
        if where:
            self.at(where)

    def at(self, where: str) -> None:
        """Store the environment, seed and step that are about to run."""
        self._where.value = where.encode()[:255]

    @property
    def where(self) -> str:
        """Environment, seed and step as they were stored last; empty if none were."""
        return self._where.value.decode(errors="ignore")

    def stopped(self, seconds: float) -> EnvironmentCrash | None:
        """The exception to raise if there was no heartbeat for ``seconds + BLOCKED_SECONDS``; otherwise None."""
        if time.monotonic() - self._time[0] <= seconds + BLOCKED_SECONDS:
            return None
        where = f"{self.where} or soon after" if self.where else "an environment, in which step is not known"
        return EnvironmentCrash(f"{where}: no answer for more than {seconds:g} s, and the interpreter is blocked; {FIX}")


FIX = "correct the environment, or give it longer with --step_timeout"


class Watchdog(threading.Thread):
    """Calls ``on_hang`` once, if the main thread stays in the same ``step`` or ``reset`` of a ``Border`` for more than ``seconds``.

    Args:
        seconds: limit for one step or reset; infinity: none, and the thread only stores where the main thread is.
        pulse: receives heartbeats at short intervals.
        on_hang: receives the exception to raise.
    """

    def __init__(self, seconds: float, pulse: Pulse, on_hang: Callable[[EnvironmentCrash], object]) -> None:
        super().__init__(daemon=True)
        self._seconds, self._pulse, self._on_hang = seconds, pulse, on_hang

    def run(self) -> None:
        seen: tuple[int, int, int] | None = None
        since = time.monotonic()
        while True:
            time.sleep(min(self._seconds / 10, 0.5))
            border = at_work()
            self._pulse.beat(border.where() if border else "")
            now = None if border is None else (id(border), border.episodes, border.steps)
            if now is None or now != seen:
                seen, since = now, time.monotonic()
            elif border is not None and time.monotonic() - since > self._seconds:
                what = "step" if border.steps else "reset"
                self._on_hang(EnvironmentCrash(f"{border.where()}: {what} has not returned for more than {self._seconds:g} s; {FIX}"))
                return


def at_work() -> Border | None:
    """The environment whose ``step`` or ``reset`` the main thread is in; None if it is elsewhere."""
    frame: Any = sys._current_frames().get(threading.main_thread().ident or 0)
    while isinstance(frame, FrameType):  # a frame that the main thread leaves meanwhile may be followed by anything
        if frame.f_code in (Border.step.__code__, Border.reset.__code__):
            border = frame.f_locals.get("self")
            return border if isinstance(border, Border) else None
        frame = frame.f_back
    return None
