"""TensorBoard logging of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Tracker:
    """Writer of a run's scalars, images, texts, settings and final results to TensorBoard; a context manager.

    Tags begin with the stage (``collect/ train/ eval/ time/``) and end with the unit, if any. The horizontal axis is the student's
    environment steps. Exceptions: gradient steps for ``train_steps/`` and ``self_distill_steps/`` (losses and learning rate within a round
    or generation), and the generation for ``self_distill/``.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def scalars(self, stage: str, values: Mapping[str, float], env_steps: int) -> None:
        """Write ``stage/name`` for each finite value; ``env_steps`` is the position on the stage's axis."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{stage}/{name}", value, env_steps)
        self._writer.flush()

    def text(self, tag: str, markdown: str) -> None:
        """Write a Markdown text."""
        self._writer.add_text(tag, markdown)

    def picture(self, tag: str, pixels: np.ndarray, env_steps: int) -> None:
        """Write an image, uint8 ``[height, width, 3]``."""
        self._writer.add_image(tag, pixels, env_steps, dataformats="HWC")

    def film(self, tag: str, path: str | Path, env_steps: int) -> None:
        """Write an animated GIF, which TensorBoard plays as an image."""
        with Image.open(path) as gif:
            width, height = gif.size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=Path(path).read_bytes())
        self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), env_steps)

    def settings(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write a run's settings for TensorBoard's HPARAMS page, with the tags of its result scalars.

        ``SummaryWriter.add_hparams`` is not used because it would create a separate run named after the time.

        Args:
            config: nested settings; leaves become ``group.name``, None is left out, lists become text.
            metrics: tags written by ``scalars``, before or after.
        """
        experiment, start, end = hparams(flat(config), dict.fromkeys(metrics, 0.0))
        writer = self._writer._get_file_writer()
        for summary in (experiment, start, end):
            writer.add_summary(summary)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """``{"a": {"b": [1, 2]}}`` -> ``{"a.b": "[1, 2]"}``, without None values."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{name}"] = value
        elif value is not None:
            found[f"{prefix}{name}"] = json.dumps(value)
    return found
