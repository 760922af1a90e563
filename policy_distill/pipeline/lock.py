"""A lock on a run folder: one process writes into it at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from policy_distill.config import RequestError

try:
    import fcntl
except ImportError:  # without POSIX locks (Windows) nothing is locked
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
PATIENCE = 1.0
"""Seconds of waiting for a lock: a process whose parent was killed may be about to end."""
_held: set[Path] = set()
"""Folders that this process has locked: POSIX locks do not exclude their own process."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock.

    The operating system releases it when the process ends, however it ends. A record lock is used, because worker processes inherit the
    other kind (``flock``) and would keep it after the death of their parent.

    Raises:
        RequestError: if a run holds it; it names the process.
    """
    place = folder.resolve()
    if fcntl is None:
        yield
        return
    if place in _held:
        raise _in_use(folder, f"another run of this process ({os.getpid()})")
    file = _open_locked(folder)
    _held.add(place)
    try:
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
    finally:
        _held.discard(place)
        with contextlib.suppress(OSError):
            (folder / NAME).unlink()
        file.close()


def _open_locked(folder: Path) -> TextIO:
    """The folder's lock file, locked and empty."""
    path, until = folder / NAME, time.monotonic() + PATIENCE
    while True:
        file = open(path, "a+")  # noqa: SIM115 - it stays open as long as the lock is held
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                file.truncate(0)
                return file
        except (BlockingIOError, PermissionError):  # which one depends on the system
            if time.monotonic() < until:
                file.close()
                time.sleep(0.05)
                continue
            file.seek(0)
            holder = file.read(200) or "another process"
            file.close()
            raise _in_use(folder, holder) from None
        file.close()  # its holder removed it between the two calls


def _in_use(folder: Path, holder: str) -> RequestError:
    return RequestError(f"{folder} is in use by {holder}: wait for it, or choose another folder with --output")
