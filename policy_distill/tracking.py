"""What a run writes while it goes on and when it is done: TensorBoard scalars and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from policy_distill.files import write_atomically


class Tracker:
    """TensorBoard scalars of one run; a context manager.

    Tags begin with the stage (``collect/ train/ eval/ time/``) and end with the unit where there is one. The horizontal axis is the
    number of environment steps that the student's training has taken.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def scalars(self, stage: str, values: Mapping[str, float], env_steps: int) -> None:
        """Write ``stage/name`` for each finite value."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{stage}/{name}", value, env_steps)
        self._writer.flush()

    def text(self, tag: str, markdown: str) -> None:
        """Write a text that TensorBoard shows as Markdown."""
        self._writer.add_text(tag, markdown)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_json(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write ``data`` as indented JSON, atomically; nan and infinities become null, which every reader accepts."""
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
