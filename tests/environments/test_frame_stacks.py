"""Which observations are stacks is said by the wrappers, and frames of one observation are those of the next."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.environments import frame_stacks as module
from policy_distill.environments.border import Border
from policy_distill.environments.frame_stacks import StackOf, frame_stacks, stacks_of
from policy_distill.environments.known_wrappers import wrap
from policy_distill.environments.specs import EnvironmentSpec, make
from tests.small_worlds import BEACON


class Rooms(gym.Env):
    """Two images and a vector of random numbers."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Dict(
        OrderedDict(
            last=gym.spaces.Box(0, 255, (12, 13, 3), np.uint8),
            first=gym.spaces.Box(0, 255, (2, 12, 13), np.uint8),
            vector=gym.spaces.Box(-1, 1, (5,)),
        )
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


class Changing(gym.ObservationWrapper):
    def observation(self, observation: Any) -> Any:
        return observation


def assert_shifts(env: gym.Env, found: Any) -> None:
    """All frames but the newest of an observation are all but the oldest of the one before."""
    before, _ = env.reset(seed=0)
    for _ in range(3):
        after, *_ = env.step(0)
        for key, stack in found.items():
            old, new = (np.split(seen[key] if key else seen, stack.count, stack.axis) for seen in (before, after))
            np.testing.assert_array_equal(np.stack(old[1:]), np.stack(new[:-1]))
            assert not np.array_equal(old[-1], new[-1])
        before = after


@pytest.mark.parametrize("turned", [False, True])
def test_images_of_a_dict_are_stacked_along_their_channels_also_after_they_are_turned(turned):
    env = wrap(Rooms(), "VecFrameStack", {"n_stack": 3})
    if turned:
        env = wrap(env, "VecTransposeImage", {})
    found = stacks_of(Border(gym.wrappers.TimeLimit(env, 10), "Rooms"))
    assert found == {"last": StackOf(3, 0 if turned else -1), "first": StackOf(3, 0)}
    assert_shifts(env, found)


def test_stacks_of_gymnasium_have_an_axis_of_their_own():
    spec = EnvironmentSpec(BEACON.id, wrappers=(("FrameStackObservation", {"stack_size": 4}),))
    found = frame_stacks(spec)
    assert found == {"": StackOf(4, 0)}
    env = make(spec)
    first, _ = env.reset(seed=0)
    second, *_ = env.step(0)
    np.testing.assert_array_equal(first[1:], second[:-1])
    assert frame_stacks(EnvironmentSpec(BEACON.id, wrappers=(("FrameStack", {"num_stack": 2}),))) == {"": StackOf(2, 0)}


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_axis_is_the_one_that_the_wrapper_was_given(order):
    spec = EnvironmentSpec(BEACON.id, wrappers=(("VecFrameStack", {"n_stack": 3, "channels_order": order}),))
    assert frame_stacks(spec) == {"": StackOf(3, 0 if order == "first" else -1)}


@pytest.mark.parametrize("env", [
    Rooms(),
    Changing(wrap(Rooms(), "VecFrameStack", {"n_stack": 3})),
    wrap(Rooms(), "VecFrameStack", {"n_stack": 1}),
    wrap(gym.make("CartPole-v1"), "VecFrameStack", {"n_stack": 4}),
])  # fmt: skip
def test_whatever_else_may_have_made_of_an_observation_it_is_no_stack(env):
    assert stacks_of(env) == {}


def test_an_environment_without_such_a_wrapper_is_not_made(monkeypatch):
    monkeypatch.setattr(module, "make", lambda _: pytest.fail("it was made"))
    assert frame_stacks(EnvironmentSpec("CartPole-v1", wrappers=(("ClipAction", {}),))) == {}
