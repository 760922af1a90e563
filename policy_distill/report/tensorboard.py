"""What a run writes while it goes on and when it is done: TensorBoard and JSON."""

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
    """What TensorBoard shows of one run: scalars, pictures, texts, and the settings beside the final figures; a context manager.

    Tags begin with the stage (``collect/ train/ eval/ time/``) and end with the unit where there is one. The horizontal axis is the
    number of environment steps that the student's training has taken; that of ``train_steps/`` and ``self_distill_steps/``, the losses
    and the learning rate within a round or a generation, is the number of gradient steps, and ``self_distill/`` counts generations.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def scalars(self, stage: str, values: Mapping[str, float], env_steps: int) -> None:
        """Write ``stage/name`` for each finite value; ``env_steps`` is where it lies on the stage's axis."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{stage}/{name}", value, env_steps)
        self._writer.flush()

    def text(self, tag: str, markdown: str) -> None:
        """Write a text that TensorBoard shows as Markdown."""
        self._writer.add_text(tag, markdown)

    def picture(self, tag: str, pixels: np.ndarray, env_steps: int) -> None:
        """Write a picture, uint8 ``[height, width, 3]``."""
        self._writer.add_image(tag, pixels, env_steps, dataformats="HWC")

    def film(self, tag: str, path: str | Path, env_steps: int) -> None:
        """Write an animated GIF, which TensorBoard plays beside the pictures."""
        with Image.open(path) as gif:
            width, height = gif.size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=Path(path).read_bytes())
        self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), env_steps)

    def settings(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write a run's settings for TensorBoard's HPARAMS page, with the tags of the scalars that it shows beside them.

        ``SummaryWriter.add_hparams`` would write them as a run of its own, named after the time.

        Args:
            config: nested; its leaves become ``group.name``. What was left out (None) is left out, lists become text.
            metrics: tags that were or will be written by ``scalars``.
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
    """``{"a": {"b": [1, 2]}}`` -> ``{"a.b": "[1, 2]"}``, without what is None."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{name}"] = value
        elif value is not None:
            found[f"{prefix}{name}"] = json.dumps(value)
    return found
