"""Environments that no package registers."""

from __future__ import annotations

import logging

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import RequestError
from policy_distill.environments import specs
from policy_distill.environments.registration import extra_of, register_known


@pytest.mark.parametrize(
    ("name", "channels", "actions"),
    [("MinAtar/Breakout-v1", 4, 3), ("MinAtar-SpaceInvaders-v1", 6, 4), ("MinAtar/SpaceInvaders-v0", 6, 6), ("MinAtar-Freeway-v1", 7, 3)],
)
def test_minatar_is_made_by_its_ids(name, channels, actions, caplog):
    pytest.importorskip("minatar")
    with caplog.at_level(logging.WARNING):
        env = specs.make(specs.resolve(name))
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (10, 10, channels), bool)  # type: ignore[arg-type]
    assert env.action_space == gym.spaces.Discrete(actions)
    assert not caplog.records


def test_an_episode_of_minatar_does_not_depend_on_the_one_before():
    """It repeats the last action now and then; in an episode's first step that was one of the episode before."""
    pytest.importorskip("minatar")
    env = specs.make(specs.resolve("MinAtar/Breakout-v1"))
    seen = []
    for before in (1, 2):
        for seed in range(60):
            env.reset(seed=0)
            for _ in range(3):
                env.step(before)
            env.reset(seed=seed)
            seen.append(env.step(0)[0])
    np.testing.assert_array_equal(seen[:60], seen[60:])


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    def missing(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'minatar'")

    monkeypatch.setattr(gym, "make", missing)
    with pytest.raises(
        RequestError, match=r'MinAtar/Asterix-v1 needs a package that is not installed: pip install "policy-distill\[minatar\]"'
    ):
        specs.make(specs.resolve("MinAtar/Asterix-v1"))


def test_other_ids_are_left_alone():
    register_known("MinAtar/Pong-v1")
    assert "MinAtar/Pong-v1" not in gym.registry
    assert extra_of("gymnasium.envs.box2d.lunar_lander:LunarLander") == "box2d"
    assert extra_of("gymnasium.envs.classic_control:CartPoleEnv") is None


def test_the_goal_environment_of_stable_baselines3_is_known():
    env = specs.make(specs.resolve("BitFlippingEnv-v0"))
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert list(env.observation_space) == ["achieved_goal", "desired_goal", "observation"]
