"""Objects that live in processes of their own, with one torch thread each."""

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

Answer = TypeVar("Answer")

DEBUG = "POLICY_DISTILL_DEBUG"
"""Environment variable: set, the traceback of a worker process is shown."""
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Host:
    """Keeps objects by name for as long as they are needed; see ``Remote``."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def host(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        """Make an object and keep it under a name, in place of an earlier one."""
        self._kept[name] = make(*arguments)

    def call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of a kept object."""
        return getattr(self._kept[name], method)(*arguments)

    def release(self, name: str) -> None:
        """Close a kept object, and keep it no longer."""
        self._kept.pop(name).close()


class Local:
    """An object of this process behind the interface of ``Remote``: it answers at once."""

    def __init__(self, resident: Any) -> None:
        self._resident = resident

    def ask(self, method: str, *arguments: Any) -> Pending[Any]:
        """Call a method."""
        return Pending.known(getattr(self._resident, method)(*arguments))

    def close(self) -> None:
        """There is no process to end."""


class Remote:
    """A process that makes an object and answers calls of its methods, one after the other; in the end it calls ``close``, if there is one.

    Args:
        make: what makes the object there; where processes are not forked it and its arguments are pickled.
        arguments: of ``make``.
        step_timeout: seconds after which a step or a reset of an environment ends the process; None or 0: never. The call that was
            waited for then raises ``EnvironmentFault``.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, step_timeout: float | None = None) -> None:
        self._connection, theirs = CONTEXT.Pipe()
        self._step_timeout, self._pulse = step_timeout, Pulse() if step_timeout else None
        target = (theirs, self._connection, make, arguments, step_timeout, self._pulse)
        self._process = CONTEXT.Process(target=_serve, args=target, daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        self._asked = self._received = 0
        self._answers: dict[int, tuple[bool, Any]] = {}

    def ask(self, method: str, *arguments: Any) -> Pending[Any]:
        """Call a method there. Answers may be read in any order.

        Reading the answer raises ``Fault`` and ``RequestError`` as they were raised there, and a ``RuntimeError`` of one line if the call
        failed otherwise.
        """
        self._connection.send_bytes(pickle.dumps((method, arguments)))
        self._asked += 1
        return Pending(functools.partial(self._answer, self._asked))

    def _answer(self, question: int) -> Any:
        """Receive answers, which come in the order of the questions, up to that of ``question``."""
        while question not in self._answers:
            answer = self._receive()
            self._received += 1
            self._answers[self._received] = answer
        failed, answer = self._answers.pop(question)
        if failed:
            raise answer
        return answer

    def _receive(self) -> tuple[bool, Any]:
        """Whether the next call failed, and its result or what to raise."""
        while self._pulse is not None and not self._connection.poll(0.5):
            if fault := self._pulse.stopped(self._step_timeout or 0.0):
                self._process.kill()
                return True, fault
        try:
            answer: tuple[bool, Any] = pickle.loads(self._connection.recv_bytes())
        except EOFError:
            self._process.join(1)
            raise RuntimeError(f"a worker process died (exit code {self._process.exitcode}); was the memory enough?") from None
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):  # it died meanwhile
                self._connection.send_bytes(pickle.dumps(None))
        self._process.join(2)
        if self._process.is_alive():
            self._process.terminate()
        self._connection.close()


def call_apart(step_timeout: float | None, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """``function(*arguments)``, in a process of its own where a hanging environment is to be ended.

    Raises:
        EnvironmentFault: if a step or a reset took longer than ``step_timeout``.
    """
    if not step_timeout:
        return function(*arguments)
    remote = Remote(_Call, function, arguments, step_timeout=step_timeout)
    try:
        answer: Answer = remote.ask("answer").result()
        return answer
    finally:
        remote.close()


class _Call:
    """A call that waits to be made."""

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
    """Answer calls until told to stop or the parent is gone.

    A thread takes the questions in while earlier ones are worked on. Without it parent and process could wait for each other for ever: the
    one with a question that does not fit into the pipe, the other with an answer that does not.

    Messages are plain pickles between this program's own processes: torch's sharing of tensors would hand over file descriptors and
    run out of them.
    """
    parents_end.close()
    torch.set_num_threads(1)
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_take_in, args=(connection, questions), daemon=True).start()
    sending = threading.Lock()
    if step_timeout and pulse is not None:
        Watchdog(step_timeout, pulse, functools.partial(_end, connection, sending)).start()
    resident: Any = None
    broken: Exception | None = None
    try:
        resident = make(*arguments)
    except Exception as error:  # told in the answer to the first question
        broken = to_raise(error)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while (message := pickle.loads(questions.get())) is not None:
            method, called_with = message
            try:
                answer = (True, broken) if broken else (False, getattr(resident, method)(*called_with))
            except Exception as error:  # passed on to the process that asked
                answer = (True, to_raise(error))
            with sending:
                connection.send_bytes(pickle.dumps(answer))
    if hasattr(resident, "close"):
        resident.close()


def _end(connection: Connection, sending: threading.Lock, fault: EnvironmentFault) -> None:
    """Answer with ``fault`` in place of the main thread, which hangs, and end the process."""
    with sending:
        connection.send_bytes(pickle.dumps((True, fault)))
        os._exit(1)


def to_raise(error: Exception) -> Exception:
    """What a worker's ``error`` becomes in the process that asked; of any other class than ours, one line."""
    if isinstance(error, Fault | RequestError):
        return type(error)(str(error))
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if os.environ.get(DEBUG):
        return RuntimeError(f"a worker process failed: {text}\n{''.join(traceback.format_exception(error))}")
    return RuntimeError(f"a worker process failed: {text} (set {DEBUG}=1 to see where)")


def _take_in(connection: Connection, questions: queue.SimpleQueue[bytes]) -> None:
    """Pass on what comes, and the end when the parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            questions.put(connection.recv_bytes())
    questions.put(pickle.dumps(None))
