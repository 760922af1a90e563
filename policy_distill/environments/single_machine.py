"""A small environment with action masks and a known optimum: jobs on one machine."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class SingleMachine(gym.Env):
    """Choose the order of jobs on one machine. Each job is done once; finished ones are forbidden by ``action_masks``.

    Observation: duration, weight and whether it is finished, of each job. Reward: minus the weight of the chosen job times the time at
    which it is finished. The return is best in the order of falling weight / duration (Smith 1956, "Various optimizers for single-stage
    production"), see ``best_return``.

    Args:
        num_jobs: their durations and weights are drawn from 0.1 to 1 in each episode.
    """

    def __init__(self, num_jobs: int = 6, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.num_jobs = num_jobs
        low, high = np.repeat([0.1, 0.1, 0.0], num_jobs), np.ones(3 * num_jobs)
        self.observation_space = gym.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.action_space = gym.spaces.Discrete(num_jobs)
        self._jobs = np.zeros((2, num_jobs))
        self._finished = np.zeros(num_jobs, bool)
        self._time = 0.0

    def action_masks(self) -> np.ndarray:
        """``[num_jobs]`` bool: the jobs that may be chosen."""
        return ~self._finished

    def best_return(self) -> float:
        """What the best order earns from the present state on."""
        durations, weights = self._jobs[:, ~self._finished]
        order = np.argsort(-weights / durations)
        return float(-(weights[order] * (self._time + np.cumsum(durations[order]))).sum())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._jobs = self.np_random.uniform(0.1, 1.0, (2, self.num_jobs))
        self._finished[:] = False
        self._time = 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._finished[action]:
            raise ValueError(f"job {action} is finished")
        duration, weight = self._jobs[:, action]
        self._time += duration
        self._finished[action] = True
        return self._observation(), float(-weight * self._time), bool(self._finished.all()), False, {}

    def _observation(self) -> np.ndarray:
        return np.concatenate([*self._jobs, self._finished]).astype(np.float32)
