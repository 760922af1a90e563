"""Draws in numpy while environments are stepped: they have the distribution's probabilities."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

from policy_distill.policies.actions import Box
from policy_distill.policies.families import Deterministic, family_of


def many(space: gym.Space, outputs: list[float], std: float = 1.0, count: int = 20_000) -> np.ndarray:
    family = family_of(space)
    noise = family.noise(np.random.default_rng(0), count)
    assert noise.dtype == np.float32
    return family.drawn(np.tile(np.array(outputs, np.float32), (count, 1)), np.full(len(outputs), std, np.float32), noise)


def test_choices_are_drawn_from_the_softmax():
    actions = many(gym.spaces.Discrete(3), [math.log(1), math.log(3), math.log(6)])
    np.testing.assert_allclose(np.bincount(actions[:, 0]) / len(actions), [0.1, 0.3, 0.6], atol=0.015)


def test_several_choices_are_drawn_apart():
    first, second = many(gym.spaces.MultiDiscrete([2, 3]), [0.0, math.log(4), math.log(2), 0.0, 0.0]).T
    np.testing.assert_allclose(np.bincount(first) / len(first), [0.2, 0.8], atol=0.015)
    np.testing.assert_allclose(np.bincount(second) / len(second), [0.5, 0.25, 0.25], atol=0.015)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_switches_are_on_with_the_sigmoid_s_probability():
    assert many(gym.spaces.MultiBinary(2), [math.log(3), 0.0]).mean(0) == pytest.approx([0.75, 0.5], abs=0.015)


def test_continuous_actions_are_normal_around_the_mean():
    actions = many(gym.spaces.Box(-1, 1, (2,)), [0.5, -1.0], 2.0)
    assert actions.dtype == np.float32
    for component, mean in zip(actions.T, (0.5, -1.0), strict=True):
        assert stats.kstest(component, "norm", (mean, 2.0)).pvalue > 0.01


def test_what_has_no_density_is_refused():
    family: Any = Deterministic(Box((-1.0,), (1.0,)))
    with pytest.raises(ValueError, match="no density"):
        family.noise(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="no density"):
        family.drawn(np.zeros((1, 1)), np.ones(1), np.zeros((1, 1)))
