"""Whole runs whose students are polished, of every kind, with worker processes and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import CheckConfig, CollectConfig, DistillConfig, EvaluateConfig, PolishConfig, StudentConfig, TrainConfig
from policy_distill.environments.action_masks import MASK
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.pipeline.distill import DistillResult, distill
from policy_distill.teachers import Teacher
from tests.masked_worlds import make_drawn
from tests.small_worlds import Walk, beacon_best, before_best, walk_best


def walk_from_one() -> gym.Env:
    return gym.wrappers.TransformAction(Walk(), lambda action: action - 1, gym.spaces.Discrete(3, start=1))


def walk_far_away() -> gym.Env:
    space = gym.spaces.Box(1e6, 1e6 + 10, (2,), np.float64)
    return gym.wrappers.TransformObservation(Walk(), lambda seen: seen.astype(np.float64) + 1e6, space)


def draw_masked() -> gym.Env:
    return make_drawn("choices")


def first_allowed(observations: Any) -> np.ndarray:
    best: np.ndarray = observations[MASK].argmax(1)
    return best


KINDS: dict[str, tuple[str, Callable[[Any], np.ndarray], dict[str, Any]]] = {
    "from 1": (f"{__name__}:walk_from_one", lambda seen: walk_best(seen) + 1, {}),
    "far": (f"{__name__}:walk_far_away", walk_best, {}),
    "images": ("tests.small_worlds:Beacon", beacon_best, {}),
    "images of which the last two are seen": ("tests.small_worlds:Beacon", beacon_best, {"inputs": {"history": 2}}),
    "memory": ("tests.small_worlds:Walk", walk_best, {"memory": "gru", "memory_size": 12}),
    "memory behind a view": ("tests.small_worlds:Before", before_best, {"memory": "gru", "memory_size": 12, "inputs": [0]}),
    "masks": (f"{__name__}:draw_masked", first_allowed, {}),
}
"""The environment, its best actions, and what the student is."""


def polished(name: str, folder: Any, workers: int) -> DistillResult:
    entry, best, student = KINDS[name]
    gym.register("tests/Any-v0", entry_point=entry, max_episode_steps=12)
    wrappers = ("ActionMasks",) if name == "masks" else ()
    try:
        env = make(EnvironmentSpec("tests/Any-v0", wrappers=tuple((wrapper, {}) for wrapper in wrappers)))
        teacher = Teacher.from_callable(best, env.observation_space, env.action_space)
        config = DistillConfig(
            env="tests/Any-v0",
            output=str(folder),
            device="cpu",
            workers=workers,
            student=StudentConfig(hidden_sizes=(8,), **student),
            collect=CollectConfig(env_steps=200, rounds=1, num_envs=4),
            train=TrainConfig(gradient_steps=30, batch_size=32, sequence_length=8, members=1),
            polish=PolishConfig(
                below=100.0,
                env_steps=256,
                num_envs=4,
                num_steps=16,
                batch_size=32,
                epochs=1,
                snapshots=2,
                hopeless=0,
                critic_warmup=0,
            ),
            evaluate=EvaluateConfig(episodes=10, validation_episodes=4, finalist_episodes=2, finalists=1),
            check=CheckConfig(skip=True),
            wrapper=wrappers or None,
        )
        return distill(config, teacher=teacher)
    finally:
        del gym.registry["tests/Any-v0"]


@pytest.mark.parametrize("name", KINDS)
def test_students_of_every_kind_are_polished_and_workers_change_nothing(name, tmp_path):
    results = [polished(name, tmp_path / str(workers), workers) for workers in (0, 2)]
    looks = [result.summary["polish"]["records"] for result in results]
    assert [look["env_steps"] for look in looks[0]] == [128, 256]
    assert looks[0] == looks[1]
    states = [result.student.state_dict() for result in results]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
