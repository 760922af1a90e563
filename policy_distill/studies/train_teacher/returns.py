"""Returns of a Stable-Baselines3 model while it is trained, with whatever its ``predict`` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policy_distill.environments.action_masks import MASK, without_mask
from policy_distill.environments.border import own_random_state
from policy_distill.environments.known_wrappers import MASKS
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.policy import Memoryless, State
from policy_distill.rollouts.episodes import Returns
from policy_distill.rollouts.play import play
from policy_distill.support.trees import Tree, length


@own_random_state()
def evaluate_model(model: Any, spec: EnvironmentSpec, seeds: Sequence[int], statistics: Any = None) -> np.ndarray:
    """Returns ``[len(seeds)]`` of a Stable-Baselines3 model's deterministic policy, one episode a seed.

    Training does not depend on it: each episode seeds the global generators, which are restored at the end.

    Args:
        model: anything with ``predict``; it is shown the actions that are allowed, and remembers the episode, where it takes that.
        spec: the environment.
        seeds: of the episodes.
        statistics: the ``VecNormalize`` that the model was trained behind, if any.
    """

    def seen(observations: Tree) -> Tree:
        return observations if statistics is None else statistics.normalize_obs(observations)

    def act(observations: Tree) -> np.ndarray:
        actions: np.ndarray = model.predict(seen(observations), deterministic=True)[0]
        return actions

    def act_masked(observations: Tree) -> np.ndarray:
        mask = observations[MASK]
        actions: np.ndarray = model.predict(seen(without_mask(observations)), deterministic=True, action_masks=mask)[0]
        return actions

    recorder = Returns(len(seeds))
    if "action_masks" in inspect.signature(model.predict).parameters:
        play([Memoryless(act_masked)], replace(spec, wrappers=(*spec.wrappers, (MASKS, {}))), seeds, recorder)
    elif hasattr(getattr(model, "policy", None), "lstm_actor"):
        play([_Remembering(model, seen)], spec, seeds, recorder)
    else:
        play([Memoryless(act)], spec, seeds, recorder)
    return recorder.returns


class _Remembering:
    """A model with a memory as a policy with a state."""

    def __init__(self, model: Any, seen: Callable[[Tree], Tree]) -> None:
        self._model, self._seen = model, seen

    def initial_state(self, num_envs: int) -> State:
        return None

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        begins = np.zeros(length(observations), bool) if starts is None else starts != GOES_ON
        return self._model.predict(self._seen(observations), state, begins, deterministic=True)
