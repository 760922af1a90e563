"""What stands in for the slow parts of a run: a tracker that remembers, and rollouts that know beforehand what everyone earns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import DistillConfig, EvaluateConfig, StudentConfig
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.prepare import prepare
from policy_distill.pipeline.records import Candidate
from policy_distill.pipeline.state import State
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds
from policy_distill.support.pending import Pending
from policy_distill.support.progress import Display
from policy_distill.teachers import Teacher
from tests.small_worlds import WALK, walk_teacher

STEPS = 3
"""Environment steps of every episode."""
FIRST_SEED = evaluation_seeds("validation", 1)[0]


class Recorder:
    """A Tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, int]] = {}
        self.texts: dict[str, str] = {}
        self.pictures: dict[str, np.ndarray] = {}
        self.hparams: tuple[Mapping[str, Any], list[str]] = {}, []

    def scalars(self, stage: str, values: Mapping[str, float], env_steps: int) -> None:
        self.seen |= {f"{stage}/{name}": (value, env_steps) for name, value in values.items()}

    def text(self, tag: str, markdown: str) -> None:
        self.texts[tag] = markdown

    def picture(self, tag: str, pixels: np.ndarray, env_steps: int) -> None:
        self.pictures[tag] = pixels

    def settings(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        self.hparams = config, list(metrics)


class Environments:
    """Stands in for ``RolloutEnv``: remembers how it was made, and whether it was closed."""

    def __init__(self, *arguments: int) -> None:
        self.arguments, self.closed = arguments, False

    def close(self) -> None:
        self.closed = True


class Table:
    """Rollouts whose answers are written down.

    Attributes:
        returns: of each policy (a student, or a name), one for each validation seed.
        asked: policy, seeds and options of each question so far.
        answered: how many of them were waited for.
        environments: that were made for PPO.
    """

    def __init__(self, returns: Mapping[Any, Sequence[float]]) -> None:
        self.returns = dict(returns)
        self.environments: list[Environments] = []
        self.asked: list[tuple[Any, list[int], dict[str, Any]]] = []
        self.answered = 0

    def for_ppo(self, num_envs: int, num_steps: int, seed: int) -> Environments:
        self.environments.append(Environments(num_envs, num_steps, seed))
        return self.environments[-1]

    def begin_evaluation(self, policy: Any, seeds: Sequence[int], **options: Any) -> Pending[Episodes]:
        self.asked.append((policy, list(seeds), options))
        found = episodes(*(self.returns[policy][seed - FIRST_SEED] for seed in seeds), first=seeds[0])
        return self.in_turn(len(self.asked) - 1, found)

    def in_turn(self, number: int, found: Episodes) -> Pending[Episodes]:
        """The answer to question ``number``."""

        def answer() -> Episodes:
            assert self.answered == number, "answers are asked for in the order of the questions"
            self.answered += 1
            return found

        return Pending(answer)


def episodes(*returns: float, first: int = 7, agreement: float | None = None) -> Episodes:
    """Three steps each."""
    return Episodes(np.arange(first, first + len(returns)), np.array(returns), np.full(len(returns), STEPS), agreement)


def record(index: int, mean: float = 0.0, finalist: float | None = None) -> Candidate:
    """Of a round, counted from 0."""
    losses = {"forward_kl_nats": 0.25, "other": 9.0}
    return Candidate(
        "round", index + 1, 1000 * (index + 1), 10 * (index + 1), losses, teacher_action_prob=0.5**index, validation_return_mean=mean,
        validation_return_standard_error=1.0, validation_retention=0.5, finalist_return_mean=finalist,
    )  # fmt: skip


def run_of(
    folder: Path, table: Table | None = None, *, teacher: Teacher | None = None, first: int = 2, further: int = 2, finalists: int = 2,
    **changes: Any,
) -> tuple[State, Services]:  # fmt: skip
    """A run on Walk whose rollouts are ``table``; of each candidate ``first`` episodes are played, of the finalists ``further`` more."""
    evaluate = EvaluateConfig(validation_episodes=first, finalist_episodes=further, finalists=finalists, num_envs=5)
    settings: dict[str, Any] = {"env": WALK.id, "student": StudentConfig(hidden_sizes=(16, 16)), "seed": 5, **changes}
    job = prepare(DistillConfig(output=str(folder), device="cpu", evaluate=evaluate, **settings), teacher or walk_teacher())
    return State.begin(job), Services(job, table or Table({}), Recorder(), Display(quiet=True))  # type: ignore[arg-type]
