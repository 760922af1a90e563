"""Overhead of the engines: of a job of a study, and of what a worker sends to its job."""

from __future__ import annotations

import importlib.util
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import DistillConfig, EngineConfig
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.rollouts.workers import Rollouts
from policy_distill.studies.benchmark.result import WIDTH
from policy_distill.studies.scheduler.jobs import StudyJob
from policy_distill.studies.scheduler.schedule import run_jobs

TEACHER = "ppo/LunarLander-v3"
MEGABYTES = 8
"""Size of a block of transitions."""
CALLS = 20
"""Calls of a worker in one turn."""


@dataclass(frozen=True)
class Overhead:
    """Overhead of one engine.

    Attributes:
        what: a job, an empty call of a worker, or a megabyte that a worker sends.
        engine: ``local`` or ``ray``.
        seconds: wall time, the median over the turns.
        own_cpu_seconds: CPU time of the process that asks, the median over the turns. It limits how many machines it can keep busy.
        note: how it was measured.
    """

    what: str
    engine: str
    seconds: float
    own_cpu_seconds: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(turns: int) -> list[Overhead]:
    """Local processes, and a Ray cluster if Ray is installed: this machine's, else a new one on it."""
    engines = [EngineConfig()]
    if importlib.util.find_spec("ray"):
        engines.append(EngineConfig("ray"))
    return [overhead for engine in engines for overhead in (job(engine, turns), *messages(engine, turns))]


def job(engine: EngineConfig, turns: int) -> Overhead:
    """A job that is refused once its process is there and its teacher is read; the first one, which starts the server, is left out."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(turns + 1):
            config = DistillConfig(TEACHER, env="NoSuch-v0", output=str(Path(folder, str(number))))
            asked = [StudyJob.of(str(number), config)]
            seconds.append(_timed(partial(list, run_jobs(asked, engine, at_a_time=1))))
    return _overhead("a job", engine, seconds[1:], "from the list of jobs to the outcome, the reading of the agent's files among it")


def messages(engine: EngineConfig, turns: int) -> list[Overhead]:
    """Empty calls, and blocks of transitions."""
    with Rollouts(EnvironmentSpec("CartPole-v1"), None, num_envs=1, seed=0, workers=1, engine=engine) as rollouts:
        rollouts.ask_each(nothing)

        def calls() -> None:
            for _ in range(CALLS):
                rollouts.ask_each(nothing)

        empty = [tuple(part / CALLS for part in _timed(calls)) for _ in range(turns)]
        full = [tuple(part / MEGABYTES for part in _timed(partial(rollouts.ask_each, block))) for _ in range(turns)]
    return [
        _overhead("a call of a worker", engine, empty, "there and back, one worker"),
        _overhead("a megabyte from a worker", engine, full, f"a block of {MEGABYTES} MB, one worker"),
    ]


def nothing() -> None:
    pass


def block() -> np.ndarray:
    return np.ones(MEGABYTES * 1_000_000, np.uint8)


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of this process."""
    wall, own = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - own


def _overhead(what: str, engine: EngineConfig, seconds: Sequence[tuple[float, ...]], note: str) -> Overhead:
    wall, own = np.median(np.array(seconds), axis=0)
    return Overhead(what, engine.kind, float(wall), float(own), note)


def table(results: Sequence[Overhead]) -> str:
    """The results as text of at most ``WIDTH`` columns, with a legend."""
    head = f"{'':<28}{'engine':<8}{'wall':>12}{'own CPU':>12}"
    rows = [f"{one.what:<28}{one.engine:<8}{one.seconds * 1e3:>9.2f} ms{one.own_cpu_seconds * 1e3:>9.2f} ms" for one in results]
    notes = dict.fromkeys(f"{one.what}: {one.note}" for one in results)
    return "\n".join([head, *rows, "", *textwrap.wrap(f"{'; '.join(notes)}; own CPU: of the process that asks", WIDTH)])
