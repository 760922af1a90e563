"""Policies that remember: what they do follows from the step of the episode, which no observation shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.policy import State
from tests.small_worlds import RECALL_CUES, Recall, Walk


class Counter:
    """Counts the steps since the episode's start and acts by it: 0 in the first, then 1, 2, 0, 1, ..."""

    def initial_state(self, num_envs: int) -> np.ndarray:
        return np.full(num_envs, -1000)  # what has no start is seen

    def step(self, observations: Any, state: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        state = state + 1 if starts is None else np.where(starts == GOES_ON, state + 1, 0)
        assert (state >= 0).all()
        assert len(observations) == len(state)
        return state % 3, state


class CountingTeacher(Counter):
    """Labels with what ``Counter`` does in the walk."""

    observation_space = Walk.observation_space
    needs_float64 = False

    def label(self, observations: Any, state: np.ndarray, starts: np.ndarray | None) -> tuple[ActionTargets, np.ndarray]:
        actions, state = self.step(observations, state, starts)
        return ActionTargets({}, torch.from_numpy(actions)), state


class RecallTeacher:
    """Labels with the best actions in ``Recall``: it knows what was shown at the episode's start."""

    observation_space = Recall.observation_space
    needs_float64 = False

    def initial_state(self, num_envs: int) -> np.ndarray:
        return np.zeros(num_envs, np.int64)

    def step(self, observations: Any, state: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        state = np.where(observations < RECALL_CUES, observations, state)
        return state, state

    def label(self, observations: Any, state: np.ndarray, starts: np.ndarray | None) -> tuple[ActionTargets, State]:
        actions, state = self.step(observations, state, starts)
        logits = np.log(np.eye(RECALL_CUES, dtype=np.float32)[actions] + 1e-3)
        return ActionTargets({"logits": torch.from_numpy(logits)}, torch.from_numpy(actions)), state
