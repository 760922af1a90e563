"""Objects in separate processes, with one torch thread each."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from policy_distill.config import EnvironmentFault, Fault, RequestError
from policy_distill.rollouts.watchdog import Pulse, Watchdog
from policy_distill.support.pending import Pending
from policy_distill.support.signals import default_stops

Answer = TypeVar("Answer")

DEBUG = "POLICY_DISTILL_DEBUG"
"""Environment variable; if it is set, errors include the traceback of the worker process."""
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Host:
    """Holds named objects in a process; see ``Remote``."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def host(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        """Make an object and store it under a name, replacing an earlier one."""
        self._kept[name] = make(*arguments)

    def call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of a stored object."""
        return getattr(self._kept[name], method)(*arguments)

    def release(self, name: str) -> None:
        """Close a stored object and remove it."""
        self._kept.pop(name).close()


class Local:
    """An object in this process with the interface of ``Remote``; calls run immediately."""

    def __init__(self, resident: Any) -> None:
        self._resident = resident

    def submit(self, method: str, *arguments: Any) -> Pending[Any]:
        """Call a method."""
        return Pending.known(getattr(self._resident, method)(*arguments))

    def close(self) -> None:
        """Does nothing: there is no process to end."""


class Remote:
    """A process that holds an object and runs calls of its methods in order. At the end it calls the object's ``close``, if there is one.

    Args:
        make: makes the object in the process; unless processes are forked, it is pickled with its arguments.
        arguments: arguments of ``make``.
        step_timeout: seconds after which a step or a reset of an environment ends the process; None or 0: never. The pending call then
            raises ``EnvironmentFault``.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, step_timeout: float | None = None) -> None:
        self._connection, child_connection = CONTEXT.Pipe()
        self._step_timeout, self._pulse = step_timeout, Pulse() if step_timeout else None
        serve_arguments = (child_connection, self._connection, make, arguments, step_timeout, self._pulse)
        self._process = CONTEXT.Process(target=_serve, args=serve_arguments, daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        child_connection.close()
        self._sent = self._received = 0
        self._results: dict[int, tuple[bool, Any]] = {}

    def submit(self, method: str, *arguments: Any) -> Pending[Any]:
        """Call a method in the process. Results may be read in any order.

        Reading a result raises ``Fault`` and ``RequestError`` as raised in the process, and a ``RuntimeError`` of one line for other
        exceptions.
        """
        self._connection.send_bytes(pickle.dumps((method, arguments)))
        self._sent += 1
        return Pending(functools.partial(self._result, self._sent))

    def _result(self, call: int) -> Any:
        """Receive results, which come in the order of the calls, up to that of ``call``."""
        while call not in self._results:
            message = self._receive()
            self._received += 1
            self._results[self._received] = message
        failed, result = self._results.pop(call)
        if failed:
            raise result
        return result

    def _receive(self) -> tuple[bool, Any]:
        """Whether the next call failed, and its result or exception."""
        while self._pulse is not None and not self._connection.poll(0.5):
            if fault := self._pulse.stopped(self._step_timeout or 0.0):
                self._process.kill()
                return True, fault
        try:
            message: tuple[bool, Any] = pickle.loads(self._connection.recv_bytes())
        except EOFError:
            self._process.join(1)
            raise RuntimeError(f"a worker process died (exit code {self._process.exitcode}); was the memory enough?") from None
        return message

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):  # the process has died in the meantime
                self._connection.send_bytes(pickle.dumps(None))
        self._process.join(2)
        if self._process.is_alive():
            self._process.terminate()
        self._connection.close()


def call_apart(step_timeout: float | None, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """``function(*arguments)``, in a separate process if ``step_timeout`` is set, so that a hanging environment can be ended.

    Raises:
        EnvironmentFault: if a step or a reset took longer than ``step_timeout``.
    """
    if not step_timeout:
        return function(*arguments)
    remote = Remote(_Call, function, arguments, step_timeout=step_timeout)
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


def _serve(
    connection: Connection,
    parents_end: Connection,
    make: Callable[..., Any],
    arguments: tuple[Any, ...],
    step_timeout: float | None,
    pulse: Pulse | None,
) -> None:
    """Run calls until the parent sends None or is gone.

    A thread receives calls while earlier ones run. Without it parent and process could deadlock: one blocked on sending a call that does
    not fit into the pipe, the other on sending a result that does not.

    Messages are plain pickles between this program's own processes: torch's tensor sharing passes file descriptors and would run out of
    them.
    """
    parents_end.close()
    default_stops()
    torch.set_num_threads(1)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive_calls, args=(connection, calls), daemon=True).start()
    sending = threading.Lock()
    if step_timeout and pulse is not None:
        Watchdog(step_timeout, pulse, functools.partial(_end, connection, sending)).start()
    resident: Any = None
    broken: Exception | None = None
    try:
        resident = make(*arguments)
    except Exception as error:  # sent as the result of every call
        broken = to_raise(error)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while (message := pickle.loads(calls.get())) is not None:
            method, method_arguments = message
            try:
                result = (True, broken) if broken else (False, getattr(resident, method)(*method_arguments))
            except Exception as error:  # raised again in the parent
                result = (True, to_raise(error))
            with sending:
                connection.send_bytes(pickle.dumps(result))
    if hasattr(resident, "close"):
        resident.close()


def _end(connection: Connection, sending: threading.Lock, fault: EnvironmentFault) -> None:
    """Send ``fault`` as the result of the hanging call and end the process."""
    with sending:
        connection.send_bytes(pickle.dumps((True, fault)))
        os._exit(1)


def to_raise(error: Exception) -> Exception:
    """The exception that a worker's ``error`` becomes in the parent; exceptions of other libraries become one line."""
    if isinstance(error, Fault | RequestError):
        return type(error)(str(error))
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if os.environ.get(DEBUG):
        return RuntimeError(f"a worker process failed: {text}\n{''.join(traceback.format_exception(error))}")
    return RuntimeError(f"a worker process failed: {text} (set {DEBUG}=1 to see where)")


def _receive_calls(connection: Connection, calls: queue.SimpleQueue[bytes]) -> None:
    """Queue each message from the parent, and None when the parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            calls.put(connection.recv_bytes())
    calls.put(pickle.dumps(None))
