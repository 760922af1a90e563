"""Jobs on one machine: rewards worked out by hand, and the best order against all orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from policy_distill.environments import specs
from policy_distill.environments.single_machine import SingleMachine


def test_an_episode_by_hand():
    """Durations 1, 0.5 and weights 0.2, 0.4: job 1 first costs 0.4 * 0.5, then job 0 costs 0.2 * 1.5."""
    env = SingleMachine(2)
    env.reset(seed=0)
    env._jobs = np.array([[1.0, 0.5], [0.2, 0.4]])
    assert env.best_return() == pytest.approx(-0.5)
    observation, reward, terminated, truncated, _ = env.step(1)
    assert (reward, terminated, truncated) == (pytest.approx(-0.2), False, False)
    np.testing.assert_array_equal(observation, np.array([1, 0.5, 0.2, 0.4, 0, 1], np.float32))
    np.testing.assert_array_equal(env.action_masks(), [True, False])
    assert env.best_return() == pytest.approx(-0.3)
    with pytest.raises(ValueError, match="job 1 is finished"):
        env.step(1)
    _, reward, terminated, _, _ = env.step(0)
    assert (reward, terminated) == (pytest.approx(-0.3), True)


def test_no_order_earns_more_than_the_best():
    env = SingleMachine(4)
    returns = []
    for order in itertools.permutations(range(4)):
        env.reset(seed=5)
        best = env.best_return()
        returns.append(sum(env.step(job)[1] for job in order))
    assert max(returns) == pytest.approx(best)
    assert min(returns) < best - 0.1


def test_it_is_an_environment_like_any_other():
    env = specs.make(specs.resolve("SingleMachine-v0"))
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    other, _ = env.reset(seed=4)
    assert env.observation_space.contains(first)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(env.get_wrapper_attr("action_masks")(), np.ones(6, bool))
