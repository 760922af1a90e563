"""Writing a file so that a reader, or a crash, never sees half of it; and tensors that lie in files."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from policy_distill.config import RequestError


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk and rename it into place."""
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


def mapped_tensor(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros that lie in a file in ``folder``: the system keeps as much of it in memory as there is room for.

    The file has no name, so that nobody has to remove it: its room is free again when the tensor is gone, or the process, however it ended.

    Raises:
        RequestError: if the disk has no room for it; to find that out when a row is written would end the process without a word.
    """
    size = math.prod(shape) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            raise RequestError(
                f"there is no room for {size / 1e6:,.0f} MB in {folder} ({error.strerror}): choose another folder with --output"
            ) from None
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(*shape)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
