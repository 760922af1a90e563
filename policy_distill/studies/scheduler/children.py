"""Function calls in processes of their own: memory is freed, and a crash costs the call alone."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from policy_distill.support.parents import end_with

Answer = TypeVar("Answer")

CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
"""Not ``fork``: the parent may have threads, of Ray or of a progress bar. The server imports the package once for all children."""
PRELOADED = ["__main__", "policy_distill.pipeline.distill"]
GRACE_SECONDS = 30.0
"""Time in which a child may end by itself after SIGTERM."""


class ChildDied(RuntimeError):
    """A child ended without an answer. The message is one line."""


class Child(Generic[Answer]):
    """``function(*arguments)`` in a process of its own, which may have children itself. It ends when its parent does.

    Args:
        function: a function of a module; it is pickled with its arguments, and so is its answer.
        arguments: its arguments.
    """

    def __init__(self, function: Callable[..., Answer], *arguments: Any) -> None:
        if sys.platform == "linux":
            CONTEXT.set_forkserver_preload(PRELOADED)
        self._connection, there = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_answer, args=(there, dict(os.environ), function, arguments))
        self._process.start()
        there.close()

    def result(self) -> Answer:
        """Wait for the answer.

        Raises:
            ChildDied: if the process ended without one.
        """
        wait([self])
        try:
            answer: Answer = self._connection.recv() if self._connection.poll() else self._died()
        except EOFError:
            self._died()
        self._process.join()
        self._connection.close()
        return answer

    def _died(self) -> Any:
        self._process.join()
        raise ChildDied(f"its process died (exit code {self._process.exitcode}); was the memory enough?") from None

    def end(self) -> None:
        """End the process: SIGTERM, and SIGKILL if that does not suffice."""
        self._process.terminate()
        self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()


def wait(children: Sequence[Child[Any]]) -> list[Child[Any]]:
    """Wait until at least one of the children has an answer or is dead; those that are, in the given order."""
    signals = {signal: child for child in children for signal in (child._connection, child._process.sentinel)}
    ended = {signals[signal] for signal in connection.wait(list(signals))}
    return [child for child in children if child in ended]


def _answer(there: Any, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The child. The server that it was forked from has the environment variables of another time."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if sys.platform == "linux":  # also if C code holds the interpreter lock; the server ends with the parent
        end_with((os.getppid(), True))
    os.environ.clear()
    os.environ.update(environment)
    try:
        there.send(function(*arguments))
    except KeyboardInterrupt:  # the parent reports it
        sys.exit(130)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
