"""Atomic writing of files, and tensors backed by files."""

from __future__ import annotations

import glob
import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from policy_distill.config import RequestError
from policy_distill.support.untrusted import reason


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write to a temporary file beside ``path`` with ``write``, flush it to the disk and rename it to ``path``."""
    target = Path(path)
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
        temporary.unlink(missing_ok=True)
        raise
    return target


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
