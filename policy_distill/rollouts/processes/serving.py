"""The other side of ``remote``: what runs in a worker process."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import multiprocessing
import os
import pickle
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from policy_distill.config import EnvironmentCrash, Fault, RequestError
from policy_distill.environments import border
from policy_distill.rollouts.watchdog import Pulse, Watchdog
from policy_distill.support.parents import end_with
from policy_distill.support.ray_cluster import is_connected
from policy_distill.support.signals import leave_stops_to_parent

DEBUG = "POLICY_DISTILL_DEBUG"
"""Environment variable; if it is set, errors include the traceback of the worker process."""
ANSWERED, SILENT, END = b"+", b"-", b"."
"""First bytes of messages: a call whose result is sent, a call whose result is not sent, and the end."""
CLOSING_SECONDS = 2.0
"""Time that a process has to close its environments at the end."""


def start_context() -> Any:
    """How processes are started: forked, which takes no time, where that is sound."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" and not is_connected() else "spawn")


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
        """Close a stored object and remove it; a process that was made anew does not have what is no longer needed."""
        if name in self._kept:
            self._kept.pop(name).close()

    def close(self) -> None:
        """Close all stored objects."""
        for name in list(self._kept):
            self.release(name)


class Watched(NamedTuple):
    """What a process is watched with.

    Attributes:
        parent: see ``support.parents``.
        step_timeout: limit of a step or reset in seconds; infinity: none.
        pulse: receives heartbeats, and where the process is.
        traced: whether each step is stored in ``pulse``.
        dump: file descriptor for the interpreter's last words after a fatal signal; None: none are kept.
    """

    parent: tuple[int, bool]
    step_timeout: float
    pulse: Pulse
    traced: bool
    dump: int | None


def serve(connection: Connection, parents_end: Connection, make: Callable[..., Any], arguments: tuple[Any, ...], watched: Watched) -> None:
    """Run calls until the parent sends ``END`` or is gone.

    A thread receives calls while earlier ones run. Without it parent and process could deadlock: one blocked on sending a call that does
    not fit into the pipe, the other on sending a result that does not.

    A message is ``ANSWERED`` or ``SILENT``, then the pickled name of a method and its arguments. torch's tensor sharing passes file
    descriptors and would run out of them.
    """
    end_with(watched.parent)
    leave_stops_to_parent()
    parents_end.close()
    torch.set_num_threads(1)
    if watched.dump is not None:
        faulthandler.enable(watched.dump)
    if watched.traced:
        border.on_step = watched.pulse.at
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive_calls, args=(connection, calls), daemon=True).start()
    sending = threading.Lock()
    watched.pulse.beat()
    Watchdog(watched.step_timeout, watched.pulse, functools.partial(_hung, connection, sending)).start()
    resident: Any = None
    broken: tuple[bool, Any, str] | None = None
    try:
        resident = make(*arguments)
    except Exception as error:  # sent as the result of every call
        broken = _failure(error)
    with contextlib.suppress(BrokenPipeError):
        while (message := calls.get()) != END:
            method, method_arguments = pickle.loads(memoryview(message)[1:])
            try:
                result = broken or (False, getattr(resident, method)(*method_arguments), "")
            except Exception as error:  # raised again in the parent
                result = _failure(error)
            if message[:1] == SILENT and not result[0]:
                result = (False, None, "")
            with sending:
                connection.send_bytes(pickle.dumps(result))
    if hasattr(resident, "close"):
        with contextlib.suppress(Exception):  # an environment may fail even here, where its results are complete
            resident.close()


def _hung(connection: Connection, sending: threading.Lock, crash: EnvironmentCrash) -> None:
    """Send ``crash`` as the result of the hanging call, with the place in the environment's code, and end the process."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    trace = "" if frame is None else "".join(traceback.format_stack(frame))
    with sending:
        connection.send_bytes(pickle.dumps((True, crash, trace)))
        os._exit(1)


def _failure(error: Exception) -> tuple[bool, Exception, str]:
    """The message about a worker's exception: its form in the parent, where those of other libraries become one line; and its traceback."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, Fault | RequestError):
        return True, type(error)(str(error)), "" if isinstance(error, RequestError) else trace
    text = f"a worker process failed: {type(error).__name__}: {' '.join(str(error).split())}"
    return True, RuntimeError(f"{text}\n{trace}") if os.environ.get(DEBUG) else Fault(f"{text} (set {DEBUG}=1 to see where)"), trace


def _receive_calls(connection: Connection, calls: queue.SimpleQueue[bytes]) -> None:
    """Queue each message from the parent; when the parent is gone, let the process end, at once if a call runs on."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            calls.put(connection.recv_bytes())
    calls.put(END)
    time.sleep(CLOSING_SECONDS)
    os._exit(1)
