"""Atomic writing of files, and tensors backed by files."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import mmap
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from policy_distill.config import RequestError, StorageFault
from policy_distill.support.untrusted import reason

try:
    import fcntl
except ImportError:  # without POSIX locks (Windows) nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK, PATIENCE = ".lock", 1.0
"""Name of the file that locks a folder, and seconds of waiting for it: a process whose parent was killed may be about to end."""
_held: set[Path] = set()
_changing_held = threading.Lock()
"""Folders that this process has locked, which POSIX locks do not exclude, and the lock of that set: runs may be threads of one process."""


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write to a temporary file beside ``path`` with ``write``, flush it to the disk and rename it to ``path``.

    A crash or a power failure leaves the whole old or the whole new file.

    Raises:
        StorageFault: if the file cannot be written; an earlier file is unchanged.
    """
    target = Path(path)
    with storing(target):
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):  # the folder may be gone, or the disk read-only by now
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    return target


def open_own(path: Path, mode: str, **settings: Any) -> IO[Any]:
    """``open`` for a file of a run folder that is changed in place.

    Raises:
        OSError: if it is a symbolic link. A folder from a stranger could hold one to another file of the user.
    """
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666), **settings)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, without which a rename may be undone by a power failure."""
    if os.name == "nt":  # folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while ``path`` is written into a ``StorageFault``."""
    try:
        yield
    except OSError as error:
        fix = "make room, or give another folder with --output; files that were written before are unchanged"
        if not path.parent.is_dir():
            fix = f"the folder {path.parent} does not exist any more"
        raise StorageFault(f"{path} cannot be written ({reason(error)}): {fix}") from error


def make_folder(path: Path) -> Path:
    """Make a folder inside an existing one, unless it exists.

    Raises:
        StorageFault: if it cannot be made. A run's folder that was removed is not made again, since its other files are gone.
    """
    with storing(path):
        path.mkdir(exist_ok=True)
    return path


def remove_unfinished(path: Path) -> None:
    """Remove the temporary files of ``write_atomically`` for ``path``, which a killed process leaves; no process may be writing it."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*"):
        temporary.unlink()


def mapped_tensor(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros backed by a memory-mapped file in ``folder``.

    The file is anonymous: its space is freed when the tensor is deleted or the process ends, even by a crash.

    Raises:
        RequestError: if the disk has no room for it; see ``mapped_file``.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.frombuffer(mapped_file(file, folder, math.prod(shape) * dtype.itemsize), dtype=dtype).view(*shape)


def mapped_file(file: IO[bytes], folder: Path, size: int) -> mmap.mmap:
    """An open file of ``folder`` as memory of ``size`` bytes, zeros where nothing was written.

    Raises:
        RequestError: if the disk has no room for it. Without this check, writing would kill the process without a message.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise RequestError(
            f"there is no room for {size / 1e6:,.0f} MB in {folder} ({error.strerror}): choose another folder with --output"
        ) from None
    return mmap.mmap(file.fileno(), size)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write ``data`` atomically as indented JSON; NaN and infinity become null, which every JSON reader accepts."""
    text = json.dumps(_finite(data), indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda target: target.write_text(text))


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` that takes its place at the end of the block, unless the block fails.

    Paths relative to the folder stay valid. An earlier folder is removed once the new one has its name.
    """
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    before = folder.with_name(f"{folder.name}.before")
    try:
        folder.chmod(0o755)
        yield folder
        if target.exists():
            target.rename(before)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if before.exists():
            before.rename(target)
        raise
    shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def new_folders_above(path: Path) -> Iterator[None]:
    """Remove the folders above ``path`` that the block makes, if it fails and leaves them empty."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for parent in missing:  # the innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def writable_folder(path: Path) -> Path:
    """Make the folder if necessary, and check that files can be written into it.

    Raises:
        RequestError: if they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise RequestError(f"the output folder {path} cannot be written ({reason(error)}): choose another with --output") from None
    return path


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
    with _changing_held:
        if place in _held:
            raise _in_use(folder, f"another run of this process ({os.getpid()})")
        _held.add(place)
    try:
        with _open_locked(folder) as file:
            try:
                file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
                file.flush()
                yield
            finally:
                with contextlib.suppress(OSError):
                    (folder / LOCK).unlink()
    finally:
        _held.discard(place)


def _open_locked(folder: Path) -> IO[str]:
    """The folder's lock file, locked and empty."""
    path, until = folder / LOCK, time.monotonic() + PATIENCE
    while True:
        try:
            file = open_own(path, "a+")
        except OSError as error:
            raise RequestError(f"{path} cannot be opened ({reason(error)}): choose another folder with --output") from None
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
        except OSError as error:
            file.close()
            raise RequestError(f"{path} cannot be locked ({reason(error)}): choose another folder with --output") from None
        file.close()  # its holder removed it between the two calls


def _in_use(folder: Path, holder: str) -> RequestError:
    return RequestError(f"{folder} is in use by {holder}: wait for it, or choose another folder with --output")
