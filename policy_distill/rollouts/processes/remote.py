"""Objects in separate processes, as their parent sees them: calls, results, and what is done after a crash."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from policy_distill.config import EnvironmentCrash
from policy_distill.rollouts.processes.serving import ANSWERED, CLOSING_SECONDS, END, SILENT, Watched, serve, start_context
from policy_distill.rollouts.watchdog import Pulse
from policy_distill.support.files import open_own
from policy_distill.support.parents import parent
from policy_distill.support.pending import Pending

Answer = TypeVar("Answer")

RESTARTS = 2
"""Default number of worker processes that a job makes anew after a crash."""


class Local:
    """An object in this process with the interface of ``Remote``; calls run immediately."""

    def __init__(self, resident: Any) -> None:
        self._resident = resident

    def submit(self, method: str, *arguments: Any, changes: str = "") -> Pending[Any]:
        """Call a method."""
        return Pending.known(getattr(self._resident, method)(*arguments))

    def forget(self, changed: str) -> None:
        """Does nothing: calls are not repeated here."""

    def ask_to_end(self) -> None:
        """Does nothing: there is no process to end."""

    def close(self) -> None:
        """Call the object's ``close``, if there is one."""
        if hasattr(self._resident, "close"):
            with contextlib.suppress(Exception):  # an environment may fail even here, where its results are complete
                self._resident.close()


class Recovery:
    """What is done when environments of a job end their processes, shared by all of them.

    Args:
        limit: number of processes that are made anew in total.
        note: receives a line for each of them.
        log: file to which tracebacks of worker processes are appended; None: they are not kept.
    """

    def __init__(self, limit: int = 0, note: Callable[[str], object] = lambda line: None, log: Path | None = None) -> None:
        self.limit, self.note, self._log = limit, note, log
        self._count = 0

    def allows(self, crash: Exception, before: str) -> bool:
        """Whether a process is made anew after ``crash``. It is not if its line is that of the crash ``before``: it would happen again."""
        line = str(crash)
        if not isinstance(crash, EnvironmentCrash) or line == before or self._count == self.limit:
            return False
        self._count += 1
        count = f"restart {self._count} of at most {self.limit}"
        self.note(f"{line}; a new worker process repeats what this one did since the job began ({count})")
        return True

    def keep(self, trace: str, error: Exception) -> None:
        """Append a process's traceback to the log, and add a note to ``error`` that names the log."""
        if self._log is None or not trace:
            return
        try:
            with open_own(self._log, "a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}\n{trace}\n")
            error.add_note(f"the worker's traceback is in {self._log}")
        except OSError as why:  # the error itself matters more
            error.add_note(f"the worker's traceback could not be written to {self._log} ({why.strerror})")


class _Sent(NamedTuple):
    """A call whose answer has not come. A repeated call of a new process has no number, and its result is not sent."""

    number: int | None
    message: bytes
    changes: str


class Remote:
    """A process that holds an object and runs calls of its methods in order. At the end it calls the object's ``close``, if there is one.

    If an environment raises, hangs or ends the process, ``recovery`` may allow a new one. It repeats the calls that changed the object,
    then those without an answer. Episodes and collected rows follow from their seeds, so the results are those of an undisturbed process.
    The new process stores environment, seed and step before each step, so that a second end names them exactly.

    Args:
        make: makes the object in the process; unless processes are forked, it is pickled with its arguments.
        arguments: arguments of ``make``.
        step_timeout: seconds after which a step or a reset of an environment ends the process; None or 0: never. The pending call then
            raises ``EnvironmentCrash``.
        recovery: what is done after a crash; None: the call raises ``EnvironmentCrash``.
        traced: whether the first process stores each step too.
    """

    _last = b""
    """The last message to any process."""

    def __init__(
        self,
        make: Callable[..., Any],
        *arguments: Any,
        step_timeout: float | None = None,
        recovery: Recovery | None = None,
        traced: bool = False,
    ) -> None:
        self._made_by, self._step_timeout, self._recovery, self._traced = (make, arguments), step_timeout, recovery or Recovery(), traced
        self._number = 0
        self._sent: deque[_Sent] = deque()
        self._changing: list[_Sent] = []
        self._last_crash = ""
        self._results: dict[int, tuple[bool, Any]] = {}
        self._start()

    def _start(self) -> None:
        context = start_context()
        self._connection, child_connection = context.Pipe()
        self._pulse = Pulse()
        forks = context.get_start_method() == "fork"
        self._dump = tempfile.TemporaryFile() if forks else None  # noqa: SIM115 - closed with the process
        descriptor = None if self._dump is None else self._dump.fileno()
        watched = Watched(parent(), self._step_timeout or math.inf, self._pulse, self._traced, descriptor)
        self._process = context.Process(target=serve, args=(child_connection, self._connection, *self._made_by, watched), daemon=True)
        self._process.start()
        child_connection.close()

    def submit(self, method: str, *arguments: Any, changes: str = "") -> Pending[Any]:
        """Call a method in the process. Results may be read in any order.

        Reading a result raises ``Fault`` and ``RequestError`` as raised in the process, and a ``Fault`` of one line for other exceptions.

        Args:
            method: its name.
            arguments: its arguments; they are pickled, and those of a call that changes the object are kept.
            changes: a name for the part of the object that the call changes, for ``forget``; a new process repeats the call.
        """
        self._number += 1
        message, last = pickle.dumps((method, arguments)), Remote._last
        if message == last:  # the blocks of a round are the same call, and so are those of all processes: they share the memory
            message = last
        Remote._last = message
        self._send(_Sent(self._number, message, changes))
        return Pending(functools.partial(self._result, self._number))

    def forget(self, changed: str) -> None:
        """Do not repeat calls that changed this part of the object any more."""
        self._changing = [call for call in self._changing if call.changes != changed]

    def _send(self, call: _Sent) -> None:
        self._sent.append(call)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the process has ended, which the next result shows
            self._connection.send_bytes((SILENT if call.number is None else ANSWERED) + call.message)

    def _result(self, number: int) -> Any:
        """Receive results, which come in the order of the calls, up to that of call ``number``."""
        while number not in self._results:
            failed, value, trace = self._receive()
            if failed:
                self._recovery.keep(trace, value)
                if self._recovery.allows(value, self._last_crash):
                    self._last_crash = str(value)
                    self._restart()
                    continue
            call = self._sent.popleft()
            if call.number is None:
                if failed:
                    raise value
                continue
            self._results[call.number] = failed, value
            if call.changes and not failed:
                self._changing.append(call._replace(number=None))
        failed, value = self._results.pop(number)
        if failed:
            raise value
        return value

    def _restart(self) -> None:
        """Replace the process, and send it the calls that bring the object to where it was, and those that wait for an answer."""
        waiting = [call for call in self._sent if call.number is not None]
        self._end()
        self._traced = True
        self._sent.clear()
        self._start()
        for call in [*self._changing, *waiting]:
            self._send(call)

    def _receive(self) -> tuple[bool, Any, str]:
        """Whether the next call failed, its result or exception, and its traceback."""
        try:
            while not self._connection.poll(0.5):
                if self._step_timeout and (crash := self._pulse.stopped(self._step_timeout)):
                    self._process.kill()
                    return True, crash, ""
                if self._process.exitcode is not None and not self._connection.poll(0):  # a process of its own keeps the pipe open
                    raise EOFError
            message: tuple[bool, Any, str] = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            self._process.join(1)
            return True, EnvironmentCrash(self._how_it_ended()), self._dumped()
        return message

    def _how_it_ended(self) -> str:
        code = self._process.exitcode
        if code is None:
            how = "closed its connection"
        elif code < 0:
            memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            how = f"was ended by {signal.Signals(-code).name}{memory}"
        else:
            how = f"ended itself with exit code {code}"
        where = self._pulse.where
        if not where:
            return f"a worker process {how}; in which step is not known"
        return f"{where}: the process {how} in this step or soon after" if self._traced else f"{where} or later: the process {how}"

    def _dumped(self) -> str:
        """What the interpreter wrote about a fatal signal."""
        if self._dump is None:
            return ""
        self._dump.seek(0)
        return self._dump.read(1 << 16).decode(errors="backslashreplace")

    def ask_to_end(self) -> None:
        """Let the process end after its calls; ``close`` waits for it."""
        with contextlib.suppress(OSError):  # it has ended already
            self._connection.send_bytes(END)

    def close(self) -> None:
        """End the process: it may close its environments if it is not busy, and is killed otherwise."""
        self.ask_to_end()
        self._process.join(CLOSING_SECONDS)
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()
        if self._dump is not None:
            self._dump.close()


def call_apart(step_timeout: float | None, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """``function(*arguments)``, in a separate process that an environment may end or, if ``step_timeout`` is set, hang in.

    Where processes cannot be forked they start slowly, and none is used without ``step_timeout``.

    Raises:
        EnvironmentCrash: if a step or a reset took longer than ``step_timeout``, or the process ended.
    """
    forks = start_context().get_start_method() == "fork"
    if not step_timeout and (not forks or multiprocessing.current_process().daemon):  # a daemon may have no children
        return function(*arguments)
    remote = Remote(_Call, function, arguments, step_timeout=step_timeout, traced=True)
    try:
        answer: Answer = remote.submit("answer").result()
        return answer
    finally:
        remote.close()


class _Call:
    """A deferred call."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments

    def answer(self) -> Any:
        return self._function(*self._arguments)


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
