"""Masks as a part of observations: their spaces, the wrapper that adds them, and what they allow."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import RequestError
from policy_distill.environments import specs
from policy_distill.environments.action_masks import (
    MASK,
    OBSERVATION,
    ActionMasks,
    allows,
    draw_allowed,
    has_mask,
    mask_sizes,
    space_without_mask,
    with_mask,
    without_mask,
)
from policy_distill.environments.border import EnvironmentFault
from policy_distill.environments.single_machine import SingleMachine
from policy_distill.support.trees import leaf_spaces

SPACES = gym.spaces
BOX = SPACES.Box(-1, 1, (3,), np.float32)


class Holding(gym.ObservationWrapper):
    """A wrapper between the one that gives masks and the one that asks."""

    def observation(self, observation):
        return observation


class Parts(gym.ObservationWrapper):
    """Jobs and clock apart."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = SPACES.Dict({"jobs": SPACES.Box(0, 1, (15,), np.float32), "last": SPACES.Box(0, 1, (3,), np.float32)})

    def observation(self, observation):
        return {"jobs": observation[:15], "last": observation[15:]}


def test_the_mask_stands_beside_the_observation():
    env = ActionMasks(Holding(SingleMachine(3)))
    assert env.observation_space == SPACES.Dict({OBSERVATION: SingleMachine(3).observation_space, MASK: SPACES.MultiBinary(3)})
    first, _ = env.reset(seed=0)
    second = env.step(1)[0]
    assert first in env.observation_space
    assert second in env.observation_space
    assert (first[MASK].tolist(), second[MASK].tolist()) == ([1, 1, 1], [1, 0, 1])
    np.testing.assert_array_equal(without_mask(first), first[OBSERVATION])


def test_parts_of_the_observation_stay_apart():
    env = ActionMasks(Parts(SingleMachine(6)))
    observation, _ = env.reset(seed=0)
    assert list(leaf_spaces(env.observation_space)) == ["jobs", "last", "action_masks()"]
    assert list(without_mask(observation)) == ["jobs", "last"]
    with pytest.raises(RequestError, match=r"has a part 'action_masks\(\)' already"):
        with_mask(env.observation_space, env.action_space)


def test_a_part_that_is_called_after_a_mask_is_an_observation_like_any_other():
    """Agents of PPO that read the mask as a part of their Dict are common; an agent with masks may have such a part too."""
    space = gym.spaces.Dict({"observation": gym.spaces.Box(-1, 1, (3,)), "action_mask": gym.spaces.MultiBinary(4)})
    assert not has_mask(space)
    masked = with_mask(space, gym.spaces.Discrete(4))
    assert has_mask(masked)
    assert space_without_mask(masked) == space


def test_a_forbidden_action_is_refused_with_episode_and_step():
    env = specs.make(specs.EnvironmentSpec("SingleMachine-v0", wrappers=(("ActionMasks", {}),)))
    env.reset(seed=7)
    env.step(2)
    with pytest.raises(EnvironmentFault, match=r"seed 7, step 2: .*action 2 is forbidden by the mask \[1, 1, 0, 1, 1, 1\]"):
        env.step(2)


def test_an_environment_without_masks_is_refused():
    with pytest.raises(RequestError, match=r"^CartPole-v1 has no action_masks\(\), which an agent"):
        specs.make(specs.EnvironmentSpec("CartPole-v1", wrappers=(("ActionMasks", {}),)))


def test_a_mask_of_another_length_is_refused():
    env = SingleMachine(4)
    wrapped = ActionMasks(env)
    env.action_masks = lambda: np.ones(5)  # type: ignore[method-assign]
    wrapped = ActionMasks(env)
    with pytest.raises(ValueError, match=r"returned 5 entries, \(4,\) are expected for Discrete\(4\)"):
        wrapped.reset(seed=0)


@pytest.mark.parametrize(
    ("space", "mask", "allowed", "forbidden"),
    [
        (SPACES.Discrete(3), [0, 1, 0], 1, 2),
        (SPACES.Discrete(3, start=5), [0, 1, 0], 6, 5),
        (SPACES.Discrete(3), [0, 0, 0], 2, None),
        (SPACES.MultiDiscrete([2, 3]), [1, 0, 0, 0, 1], [0, 2], [0, 1]),
        (SPACES.MultiDiscrete([2, 3]), [0, 0, 0, 0, 1], [1, 2], [1, 0]),
        (SPACES.MultiBinary(2), [1, 0, 0, 1], [0, 1], [1, 1]),
    ],
)
def test_what_a_mask_allows(space, mask, allowed, forbidden):
    assert allows(space, np.array(mask), allowed)
    assert forbidden is None or not allows(space, np.array(mask), forbidden)


@pytest.mark.parametrize("space", [SPACES.Discrete(5, start=2), SPACES.MultiDiscrete([3, 2, 4]), SPACES.MultiBinary(4)], ids=str)
def test_random_actions_are_allowed_and_all_of_them_come(space):
    stream = np.random.default_rng(0)
    mask = stream.random(sum(mask_sizes(space))) < 0.6
    drawn = [draw_allowed(space, mask, stream) for _ in range(300)]
    assert all(action in space and allows(space, mask, action) for action in drawn)
    space.seed(0)
    possible = {np.asarray(action).tobytes() for action in (space.sample() for _ in range(3000)) if allows(space, mask, action)}
    assert {np.asarray(action).tobytes() for action in drawn} == possible


def test_continuous_actions_have_no_masks():
    with pytest.raises(RequestError, match="cannot be masked"):
        mask_sizes(BOX)
