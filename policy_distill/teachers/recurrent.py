"""A recurrent teacher, which labels the episodes of any acting policy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import RequestError
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.actions import ActionTargets
from policy_distill.support.trees import Tree, length, map_leaves
from policy_distill.teachers.ensemble import name_of
from policy_distill.teachers.networks.recurrent import RecurrentNetwork
from policy_distill.teachers.teacher import Teacher


class RecurrentTeacher(Teacher):
    """RecurrentPPO's agent, a ``policies.policy.StatefulTeacher``. Its state is the LSTM's state."""

    network: RecurrentNetwork
    network_kind = RecurrentNetwork

    def initial_state(self, num_envs: int) -> Any:
        return self.network.initial_state(num_envs)

    @torch.inference_mode()
    def label(self, observations: Tree, state: Any, starts: np.ndarray | None) -> tuple[ActionTargets, Any]:
        """The targets for one step, and the LSTM's state after it; see ``StatefulTeacher.label``."""
        begins = np.zeros(length(observations), bool) if starts is None else starts != GOES_ON
        features = self.encode(map_leaves(lambda part: torch.tensor(part, device=self.anchor.device), observations))
        return self.network.step(features, state, torch.from_numpy(begins).to(self.anchor.device))

    def step(self, observations: Tree, state: Any, starts: np.ndarray | None) -> tuple[np.ndarray, Any]:
        targets, state = self.label(observations, state, starts)
        actions = targets.actions.cpu().numpy()
        space = self.action_space
        if isinstance(space, gym.spaces.Box):
            actions = actions.reshape(-1, *space.shape).astype(space.dtype if space.dtype.kind == "f" else np.float32, copy=False)
        return actions, state

    def targets(self, observations: Tree) -> ActionTargets:
        raise RequestError(f"{name_of(self)} has a memory: its action depends on the episode so far, not on one observation")

    def why_no_values(self) -> str | None:
        return f"{name_of(self)} has a memory, and so has its critic: the value of a state depends on the episode so far"

    def describe(self) -> dict[str, Any]:
        lstm = self.network.lstm
        return {**super().describe(), "memory": f"LSTM, {lstm.num_layers} x {lstm.hidden_size} units"}

    def layers(self) -> dict[str, int]:
        return {}
