"""Collecting from images and with memories: where the time of a step goes.

The student acts and the teacher labels, as in every round but the first. Each part is timed by itself on the same observations: the
environments with the recorded actions, the teacher's labels, the student's actions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from policy_distill.config import CollectConfig, StudentConfig
from policy_distill.environments.specs import EnvironmentSpec, data_dir, make
from policy_distill.environments.vector import GOES_ON
from policy_distill.pipeline.sizing import choose_architecture
from policy_distill.policies.policy import Stateful
from policy_distill.policies.student import Student
from policy_distill.rollouts.acting import Player, acting, labelling
from policy_distill.rollouts.collect import Collector
from policy_distill.studies.benchmark.interleave import interleave
from policy_distill.studies.benchmark.result import Result
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for

NUM_ENVS = CollectConfig.num_envs
PONG = EnvironmentSpec("PongNoFrameskip-v4", wrappers=(("AtariWrapper", {}), ("VecFrameStack", {"n_stack": 4}), ("VecTransposeImage", {})))


@dataclass(frozen=True)
class Kind:
    """A teacher and a student of one kind.

    Attributes:
        name: name in the table.
        packages: packages that it needs.
        steps: steps of each environment in a turn.
        load: the teacher and its environment.
        student: settings of the student.
    """

    name: str
    packages: tuple[str, ...]
    steps: int
    load: Callable[[], tuple[Teacher, EnvironmentSpec]]
    student: StudentConfig

    @property
    def missing(self) -> list[str]:
        """Those of the packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def shipped(agent: str, extractor: str | None = None) -> tuple[Teacher, EnvironmentSpec]:
    """A shipped agent and its environment."""
    teacher = Teacher.load(agent, extractor=extractor)
    return teacher, environment_for(teacher, None)[0]


def minatar() -> tuple[Teacher, EnvironmentSpec]:
    """The shipped agent of MinAtar's Breakout."""
    return shipped("ppo/MinAtar-Breakout-v1", f"{data_dir('agents') / 'minatar.py'}:MinAtarNetwork")


def pong() -> tuple[Teacher, EnvironmentSpec]:
    """An untrained NatureCNN on Pong's four frames of 84x84 pixels: it takes as long as a trained one."""
    from stable_baselines3 import PPO

    return Teacher.from_sb3(PPO("CnnPolicy", make(PONG), n_steps=2, batch_size=2, seed=0, device="cpu")), PONG


KINDS = (
    Kind("10x10 grid, MinAtar Breakout", ("minatar",), 100, minatar, StudentConfig(compression=50)),
    Kind("4x84x84 pixels, Pong", ("ale_py", "cv2"), 15, pong, StudentConfig(compression=25)),
    Kind("LSTM to GRU, CartPole", (), 300, lambda: shipped("ppo_lstm/CartPoleNoVel-v1"), StudentConfig(memory="gru")),
)


class Trace:
    """Steps of a student in N environments, recorded, so that each part of them can be timed alone.

    Args:
        teacher: labels.
        student: acts.
        spec: the environment.
        num_steps: T.
    """

    def __init__(self, teacher: Teacher, student: Student, spec: EnvironmentSpec, num_steps: int) -> None:
        self._envs = [make(spec) for _ in range(NUM_ENVS)]
        self._label, self._act = labelling(teacher, NUM_ENVS), acting(student, NUM_ENVS, student.action_space)
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        player, starts = Player(self._act, NUM_ENVS), np.arange(NUM_ENVS)
        observations = np.stack([env.reset(seed=slot)[0] for slot, env in enumerate(self._envs)])
        for _ in range(num_steps):
            actions, seen, began = player(observations, starts).copy(), observations.copy(), starts
            starts = np.full(NUM_ENVS, GOES_ON)
            for slot, env in enumerate(self._envs):
                observations[slot], _, terminated, truncated, _ = env.step(actions[slot])
                if terminated or truncated:
                    observations[slot], starts[slot] = env.reset(seed=slot)[0], slot
            self._rows.append((seen, began, actions))

    def environments(self) -> int:
        """Take the recorded actions from where the environments are: a reset before each turn would cost Atari more than its steps."""
        for _, _, actions in self._rows:
            for slot, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset(seed=slot)
        return len(self)

    def teacher(self) -> int:
        """Repeat the teacher's labels."""
        return self._repeat(self._label)

    def student(self) -> int:
        """Repeat the student's actions."""
        return self._repeat(self._act)

    def _repeat(self, policy: Stateful) -> int:
        player = Player(policy, NUM_ENVS)
        for observations, starts, _ in self._rows:
            player(observations, starts)
        return len(self)

    def __len__(self) -> int:
        return len(self._rows) * NUM_ENVS

    def close(self) -> None:
        for env in self._envs:
            env.close()


@torch.inference_mode()
def run(turns: int) -> Iterator[Result]:
    """CPU time of a step in one process, and the share of each part."""
    for kind in KINDS:
        if missing := kind.missing:
            yield Result("collect", kind.name, "", None, None, None, f"left out: {' and '.join(missing)} not installed")
        else:
            yield one_kind(kind, turns)


def one_kind(kind: Kind, turns: int) -> Result:
    """Collecting, and each part of it alone, in turn."""
    teacher, spec = kind.load()
    student = Student(choose_architecture(kind.student, teacher)).eval().requires_grad_(False)
    collector = Collector(spec, indices=range(NUM_ENVS), num_envs=NUM_ENVS, seed=0)
    trace = Trace(teacher, student, spec, kind.steps)
    parts: dict[str, Callable[[], int]] = {"environment": trace.environments, "teacher": trace.teacher, "student": trace.student}

    def collect() -> int:
        return len(collector.collect(kind.steps, teacher, student, 0.0))

    timings = interleave({"measured": collect, **parts}, turns=turns)
    collector.close()
    trace.close()
    spent: dict[str, Any] = {name: timing.cpu_seconds for name, timing in timings.items()}
    shares = {name: float(np.median(spent[name] / spent["measured"])) for name in parts}
    shares["rest"] = 1 - sum(shares.values())
    measured, limit = (float(np.median(spent[name])) * 1e6 for name in ("measured", "environment"))
    text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    note = (
        f"CPU time per step, {NUM_ENVS} environments in one process, {1e6 / measured:,.0f} steps/s; "
        f"teacher of {teacher.params:,} parameters, student of {student.params:,}; limit: the environment alone; {text}"
    )
    return Result("collect", kind.name, "", None, measured, limit, note, shares=shares)
