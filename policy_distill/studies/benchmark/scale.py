"""Memory and time against the size of the dataset: each dataset in its own process, in memory and on disk."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import resource
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policy_distill.config import LossConfig, RequestError, TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.encoders import normalization_of
from policy_distill.rollouts.processes import Remote
from policy_distill.rollouts.transitions import Transitions
from policy_distill.studies.benchmark.result import WIDTH
from policy_distill.studies.benchmark.train import Task
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.trainer import Trainer

SIZES = (100_000, 1_000_000)
STORAGES = ("memory", "disk")
TASK = Task(8, 4, True, (64, 64), 256)
"""A task with LunarLander's observation size and number of actions."""
STEPS = 300
"""Gradient steps per turn."""
APPENDED = 65_536
"""Rows per append."""
EPISODE = 200
"""Rows per episode; some episodes are held out."""
FEW = 1_000
"""Rows of the warm-up dataset."""
STATUS = Path("/proc/self/status")
LOOK_SECONDS = 0.002
"""Interval between two memory samples."""


@dataclass(frozen=True)
class Scale:
    """Memory and time of a dataset of one size.

    Attributes:
        transitions: size of the dataset.
        storage: ``memory`` or ``disk``.
        array_bytes: computed size of observations, logits and actions.
        anonymous_bytes: peak growth of the process's anonymous memory while the dataset is filled, its normalisation computed and the first
            steps made. Includes file-backed pages if the system does not distinguish them.
        file_bytes: peak growth of file-backed pages, which the system can reclaim; None if the system does not distinguish them.
        fill_seconds: time of appending all transitions, without generating them.
        step_cpu_microseconds, step_wall_microseconds: time of a gradient step, the median over the turns.
    """

    transitions: int
    storage: str
    array_bytes: int
    anonymous_bytes: int
    file_bytes: int | None
    fill_seconds: float
    step_cpu_microseconds: float
    step_wall_microseconds: float

    def to_dict(self) -> dict[str, Any]:
        return {"stage": "scale", **dataclasses.asdict(self)}


def run(turns: int, sizes: Sequence[int] = SIZES) -> list[Scale]:
    """Fill one dataset after the other, then take gradient steps on all of them in interleaved turns.

    Args:
        turns: R, of ``STEPS`` steps each; every second turn has the reverse order.
        sizes: numbers of transitions; all datasets exist at the same time.

    Raises:
        RequestError: for a size of less than one transition.
    """
    if wrong := [size for size in sizes if size < 1]:
        raise RequestError(f"sizes has {wrong[0]}; each must be >= 1")
    cases = list(itertools.product(sizes, STORAGES))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        subjects, measured = [], []
        for rows, storage in cases:
            subjects.append(Remote(Subject, rows, Path(folder) if storage == "disk" else None))
            stack.callback(subjects[-1].close)
            measured.append(_ask(subjects[-1], "measure"))
        seconds: list[list[tuple[float, float]]] = [[] for _ in subjects]
        for turn in range(turns):
            pairs = list(zip(subjects, seconds, strict=True))
            for subject, spent in pairs if turn % 2 == 0 else reversed(pairs):
                spent.append(_ask(subject, "step"))
    medians = 1e6 * np.median(seconds, axis=1)
    return [Scale(*case, *figures, *map(float, microseconds)) for case, figures, microseconds in zip(cases, measured, medians, strict=True)]


def table(results: Sequence[Scale]) -> str:
    """The results as text of at most ``WIDTH`` columns, with a legend."""
    lines = [
        f"{'transitions':>12}  {'storage':<8}{'arrays':>9}{'own':>9}{'file':>9}{'fill':>9}{'step CPU':>11}{'wall':>9}",
        f"{'':>12}  {'':<8}{'MB':>9}{'MB':>9}{'MB':>9}{'s':>9}{'us':>11}{'us':>9}",
    ]
    for one in results:
        arrays, own = (f"{count / 1e6:.1f}" for count in (one.array_bytes, one.anonymous_bytes))
        file = "" if one.file_bytes is None else f"{one.file_bytes / 1e6:.1f}"
        lines.append(
            f"{one.transitions:>12,}  {one.storage:<8}{arrays:>9}{own:>9}{file:>9}{one.fill_seconds:>9.2f}"
            f"{one.step_cpu_microseconds:>11.0f}{one.step_wall_microseconds:>9.0f}"
        )
    about = f"arrays: size of the data; own, file: peak growth of the process's memory; step: {TASK.name}, {STEPS} steps per turn"
    return "\n".join([*lines, "", *textwrap.wrap(about, WIDTH)])


class Subject:
    """A dataset of synthetic transitions and a student trained on it, in the measured process.

    Args:
        rows: size of the dataset.
        folder: folder of its files; None: in memory.
    """

    def __init__(self, rows: int, folder: Path | None) -> None:
        self._rows, self._folder = rows, folder
        self._fill(FEW, folder)  # lazily loaded libraries must not count as the dataset's memory

    def measure(self) -> tuple[int, int, int | None, float]:
        """Fill the dataset and make the first steps; return ``Scale``'s values from ``array_bytes`` to ``fill_seconds``."""
        with memory_growth() as growth:
            seconds = self._fill(self._rows, self._folder)
        observations, targets = self._dataset.take(torch.zeros(1, dtype=torch.int64))
        row_bytes = sum(tensor.nbytes for tensor in (observations, targets.actions, *targets.parameters.values()))
        return self._rows * row_bytes, growth["anonymous"], growth.get("file"), seconds

    def step(self) -> tuple[float, float]:
        """Take ``STEPS`` gradient steps; return CPU and wall seconds per step."""
        began, spent = time.perf_counter(), time.process_time()
        self._trainer.run(self._dataset, STEPS)
        return (time.process_time() - spent) / STEPS, (time.perf_counter() - began) / STEPS

    def _fill(self, rows: int, folder: Path | None) -> float:
        """Fill a dataset, compute its normalisation and make the first steps; return the seconds of filling."""
        seconds = 0.0
        self._dataset = Dataset(rows, holdout=TrainConfig().holdout, device=torch.device("cpu"), folder=folder)
        for first in range(0, rows, APPENDED):
            made = transitions(first, min(APPENDED, rows - first))
            began = time.perf_counter()
            self._dataset.append(made)
            seconds += time.perf_counter() - began
        mean, scale = normalization_of(observations for observations, _ in self._dataset.blocks())
        stack = StudentStack(TASK.architecture, generators=[torch.Generator().manual_seed(0)], mean=mean, scale=scale)
        config = TrainConfig(gradient_steps=1_000_000, batch_size=TASK.batch_size, learning_rate=1e-3)
        objective = Objective(LossConfig(), TASK.architecture.family)
        self._trainer = Trainer(stack, objective, config, [torch.Generator().manual_seed(0)])
        self.step()
        return seconds


def transitions(first: int, count: int) -> Transitions:
    """Synthetic rows ``first`` to ``first + count``, in episodes of ``EPISODE`` rows."""
    draws = torch.Generator().manual_seed(first)
    observations = torch.randn(count, TASK.inputs, generator=draws)
    logits = observations @ torch.randn(TASK.inputs, TASK.outputs, generator=torch.Generator().manual_seed(0))
    no = torch.zeros(count, dtype=torch.bool)
    episodes = torch.arange(first, first + count) // EPISODE
    return Transitions(observations, ActionTargets({"logits": logits}, logits.argmax(-1)), torch.zeros(count), no, no, episodes, no)


@contextmanager
def memory_growth() -> Iterator[dict[str, int]]:
    """Peak growth of this process's memory in the context, in bytes: ``anonymous`` and ``file``, filled in at the end.

    Linux records no peak of either, so a thread samples every ``LOOK_SECONDS``. On other systems ``anonymous`` is the growth of their
    common peak, and ``file`` is left out.
    """
    growth: dict[str, int] = {}
    _give_back_free_memory()
    start = _resident()
    peak = dict(start)
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            for name, value in _resident().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield growth
    finally:
        done.set()
        watcher.join()
        growth.update({name: peak[name] - before for name, before in start.items()})


def _give_back_free_memory() -> None:
    """Return the C library's free memory to the system, because reusing it later would not show as growth."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> dict[str, int]:
    """Resident memory of this process in bytes; its peak if the system does not distinguish kinds of memory."""
    if not STATUS.is_file():
        unit = 1 if sys.platform == "darwin" else 1024
        return {"anonymous": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {
        "anonymous": 1024 * int(fields["RssAnon"].split()[0]),
        "file": 1024 * sum(int(fields[name].split()[0]) for name in ("RssFile", "RssShmem")),
    }


def _ask(subject: Remote, method: str) -> Any:
    return subject.submit(method).result()
