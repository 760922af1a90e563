"""Child processes that end when their parent does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
"""``prctl(2)``: the signal that the kernel sends to this process when the thread that made it ends."""
SECONDS_BETWEEN_LOOKS = 0.5


def parent() -> tuple[int, bool]:
    """What a child needs for ``end_with``: this process, and whether this thread lives as long as the process."""
    return os.getpid(), threading.current_thread() is threading.main_thread()


def end_with(parent: tuple[int, bool]) -> None:
    """End this process when its parent does, however it ends; call it first in a child.

    On Linux the kernel kills this process, also while it is stuck in C code. The kernel's parent is the thread that made the child, so this
    is used only if that was the parent's main thread. Otherwise, and on other systems, a thread looks for the parent; it cannot run while C
    code holds the interpreter lock.

    Args:
        parent: the result of ``parent()`` in the process and thread that made this one.
    """
    process, by_main_thread = parent
    if sys.platform == "linux" and by_main_thread:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != process:  # it ended before the call
            os._exit(1)
    elif os.name == "posix":
        threading.Thread(target=_end_after, args=(process,), daemon=True).start()


def _end_after(process: int) -> None:
    while os.getppid() == process:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
