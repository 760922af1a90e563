"""TensorBoard logging of a run."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, image, text

from policy_distill.support.untrusted import reason

_numbers = itertools.count()
"""Numbers of this process's files, for unique names."""


class Tracker:
    """Writer of a run's scalars, images, texts, settings and final results to TensorBoard; a context manager.

    Tags begin with the stage (``collect/ train/ eval/ time/``) and end with the unit, if any. The horizontal axis is the student's
    environment steps. Exceptions: gradient steps for ``train_steps/`` and ``self_distill_steps/`` (losses and learning rate within a round
    or generation), and the generation for ``self_distill/``.

    If the file cannot be written any more (the disk is full), the tracker says so once and writes nothing further: the run goes on.
    ``SummaryWriter`` of torch is not used because its thread would print the traceback of such an error, and hold locks while workers fork.

    Args:
        folder: the run's ``tensorboard/``.
        note: receives the line about a failure.
    """

    def __init__(self, folder: str | Path, note: Callable[[str], object] = lambda line: None) -> None:
        self._folder, self._note = Path(folder), note
        self._file: BufferedWriter | None = None
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._folder / name, "xb")  # noqa: SIM115 - closed by ``close``
        except OSError as error:
            self._give_up(error)
            return
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._note(f"nothing more is written for TensorBoard: {self._folder} cannot be written ({reason(error)})")
        if self._file is not None:
            try:
                self._file.raw.close()  # what is buffered cannot be written
            finally:
                self._file = None

    def scalars(self, stage: str, values: Mapping[str, float], env_steps: int) -> None:
        """Write ``stage/name`` for each finite value; ``env_steps`` is the position on the stage's axis."""
        found = [Summary.Value(tag=f"{stage}/{name}", simple_value=value) for name, value in values.items() if math.isfinite(value)]
        if found:
            self._write(Event(step=env_steps, summary=Summary(value=found)))

    def text(self, tag: str, markdown: str) -> None:
        """Write a Markdown text."""
        self._write(Event(summary=text(tag, markdown)))

    def picture(self, tag: str, pixels: np.ndarray, env_steps: int) -> None:
        """Write an image, uint8 ``[height, width, 3]``."""
        self._write(Event(step=env_steps, summary=image(tag, pixels, dataformats="HWC")))

    def film(self, tag: str, path: str | Path, env_steps: int) -> None:
        """Write an animated GIF, which TensorBoard plays as an image."""
        with Image.open(path) as gif:
            width, height = gif.size
        gif_image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=Path(path).read_bytes())
        self._write(Event(step=env_steps, summary=Summary(value=[Summary.Value(tag=tag, image=gif_image)])))

    def settings(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write a run's settings for TensorBoard's HPARAMS page, with the tags of its result scalars.

        ``SummaryWriter.add_hparams`` is not used because it would create a separate run named after the time.

        Args:
            config: nested settings; leaves become ``group.name``, None is left out, lists become text.
            metrics: tags written by ``scalars``, before or after.
        """
        for summary in hparams(flat(config), dict.fromkeys(metrics, 0.0)):
            self._write(Event(summary=summary))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

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
