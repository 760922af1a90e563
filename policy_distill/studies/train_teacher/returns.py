"""Returns of a Stable-Baselines3 model while it is trained, with whatever its ``predict`` takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from policy_distill.environments import specs as environments
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.support import trees


def evaluate_model(model: Any, spec: EnvironmentSpec, seeds: Sequence[int], statistics: Any = None) -> np.ndarray:
    """Returns ``[len(seeds)]`` of a Stable-Baselines3 model's deterministic policy, one episode a seed.

    Args:
        model: anything with ``predict``; its memory is empty where an episode begins, and it is shown the actions that are allowed.
        spec: the environment.
        seeds: of the episodes.
        statistics: the ``VecNormalize`` that the model was trained behind, if any.
    """
    takes = inspect.signature(model.predict).parameters
    returns = np.zeros(len(seeds))
    waiting = list(reversed(range(len(seeds))))
    envs = [environments.make(spec) for _ in range(min(16, len(seeds)))]
    episodes = [waiting.pop() for _ in envs]
    observations = [env.reset(seed=seeds[episode])[0] for env, episode in zip(envs, episodes, strict=True)]
    state, starts = None, np.ones(len(envs), bool)
    while envs:
        batch = trees.stack(observations)
        given: dict[str, Any] = {"state": state, "episode_start": starts} if "episode_start" in takes else {}
        if "action_masks" in takes:
            given["action_masks"] = np.stack([env.get_wrapper_attr("action_masks")() for env in envs])
        actions, state = model.predict(batch if statistics is None else statistics.normalize_obs(batch), deterministic=True, **given)
        starts = np.zeros(len(envs), bool)
        over = []
        for slot, env in enumerate(envs):
            observations[slot], reward, terminated, truncated, _ = env.step(actions[slot])
            returns[episodes[slot]] += float(reward)
            if (terminated or truncated) and waiting:
                episodes[slot], starts[slot] = waiting.pop(), True
                observations[slot], _ = env.reset(seed=seeds[episodes[slot]])
            elif terminated or truncated:
                over.append(slot)
        for slot in reversed(over):
            envs.pop(slot).close()
            del episodes[slot], observations[slot]
        if over:
            starts = np.delete(starts, over)
            state = None if state is None else tuple(np.delete(part, over, axis=1) for part in state)
    return returns
