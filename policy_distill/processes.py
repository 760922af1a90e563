"""Objects that live in processes of their own, with one torch thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from policy_distill.config import RequestError

CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Remote:
    """A process that makes an object and answers calls of its methods, one after the other; in the end it calls ``close``, if there is one.

    Args:
        make: what makes the object there; where processes are not forked it and its arguments are pickled.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._connection, theirs = CONTEXT.Pipe()
        target = (theirs, self._connection, make, arguments)
        self._process = CONTEXT.Process(target=_serve, args=target, daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    def send(self, method: str, arguments: tuple[Any, ...] = ()) -> None:
        """Put a call; its answer is the next that ``receive`` has not returned yet."""
        self._connection.send_bytes(pickle.dumps((method, arguments)))

    def receive(self) -> tuple[bool, Any]:
        """Return whether the call failed, and its result, or the traceback or the ``RequestError`` that it ended in."""
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


def answers_of(remotes: Sequence[Remote]) -> list[Any]:
    """Wait for one answer of each.

    Raises:
        RequestError: if a call raised it.
        RuntimeError: with the traceback, if a call failed; every answer was received, so that none is taken for that to a later question.
    """
    received = [remote.receive() for remote in remotes]
    for failed, answer in received:
        if failed and isinstance(answer, RequestError):
            raise answer
        if failed:
            raise RuntimeError(f"a worker process failed:\n{answer}")
    return [answer for _, answer in received]


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(connection: Connection, parents_end: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Answer calls until told to stop or the parent is gone.

    A thread takes the questions in while earlier ones are worked on. Without it parent and process could wait for each other for ever: the
    one with a question that does not fit into the pipe, the other with an answer that does not.

    Messages are plain pickles between this program's own processes: torch's sharing of tensors would hand over file descriptors and
    run out of them.
    """
    parents_end.close()
    torch.set_num_threads(1)
    resident = make(*arguments)
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_take_in, args=(connection, questions), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while (message := pickle.loads(questions.get())) is not None:
            method, called_with = message
            try:
                answer = (False, getattr(resident, method)(*called_with))
            except RequestError as error:
                answer = (True, error)
            except Exception:  # passed on to the process that asked
                answer = (True, traceback.format_exc())
            connection.send_bytes(pickle.dumps(answer))
    if hasattr(resident, "close"):
        resident.close()


def _take_in(connection: Connection, questions: queue.SimpleQueue[bytes]) -> None:
    """Pass on what comes, and the end when the parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            questions.put(connection.recv_bytes())
    questions.put(pickle.dumps(None))
