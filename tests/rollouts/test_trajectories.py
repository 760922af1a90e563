"""Whole episodes step by step are the episodes of ``evaluate``."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.rollouts import trajectories as module
from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.trajectories import check_ends, record
from tests import rude_worlds as rude
from tests.small_worlds import BANDIT, PUSH, WALK, WALK_LIMIT, bandit_teacher, push_teacher, walk_best, walk_teacher

SEEDS = list(range(100, 120))
"""More than a batch."""
WORLDS = [(BANDIT, bandit_teacher()), (PUSH, push_teacher()), (WALK, walk_teacher())]


@pytest.mark.parametrize(("spec", "teacher"), WORLDS, ids=lambda value: getattr(value, "id", ""))
@pytest.mark.parametrize("at_random", [False, True])
def test_returns_and_lengths_are_evaluate_s(spec, teacher, at_random):
    policy = None if at_random else teacher
    played, expected = record(policy, spec, SEEDS), evaluate(policy, spec, SEEDS, num_envs=3)
    assert [episode.seed for episode in played] == SEEDS
    np.testing.assert_allclose([episode.rewards.sum() for episode in played], expected.returns)
    assert [len(episode.rewards) for episode in played] == expected.lengths.tolist()
    assert all(episode.ended for episode in played)


def test_each_step_is_kept_with_what_was_seen_before_it():
    for episode in record(walk_teacher(), WALK, SEEDS):
        position, target = episode.observations[:, 0], episode.observations[:, 1]
        np.testing.assert_array_equal(episode.actions, walk_best(episode.observations))
        np.testing.assert_array_equal(position + episode.actions - 1, np.append(position[1:], episode.last_observation[0]))
        assert (position != target).all()
        assert episode.last_observation[0] == episode.last_observation[1]
        assert (episode.terminated, episode.truncated) == (True, False)


@pytest.mark.parametrize("at_random", [False, True])
def test_observations_that_need_too_much_memory_are_thinned_evenly(at_random):
    policy = None if at_random else walk_teacher()
    whole = record(policy, WALK, SEEDS)
    limit = sum(len(episode.observations) for episode in whole) // 3
    every_nth = next(n for n in (2, 4, 8) if sum(len(episode.observations[::n]) for episode in whole) <= limit)
    thinned = record(policy, WALK, SEEDS, max_bytes=limit * whole[0].observations[0].nbytes)
    for some, every in zip(thinned, whole, strict=True):
        np.testing.assert_array_equal(some.observations, every.observations[::every_nth])
        np.testing.assert_array_equal(some.actions, every.actions)
        np.testing.assert_array_equal(some.rewards, every.rewards)
    least = record(policy, WALK, SEEDS, max_bytes=0)
    assert [len(episode.observations) for episode in least] == [1] * len(SEEDS)  # the first of each episode is always kept


def test_how_an_episode_ended_is_kept():
    (away,) = record(type("Still", (), {"act": lambda self, seen: np.ones(len(seen), np.int64)})(), WALK, [3])
    assert (len(away.rewards), away.terminated, away.truncated) == (WALK_LIMIT, False, True)
    assert all(episode.truncated for episode in record(push_teacher(), PUSH, [3]))


def test_without_a_time_limit_each_who_plays_must_come_to_an_end(monkeypatch):
    monkeypatch.setattr(module, "LONG_EPISODE", 4)
    check_ends(WALK, {"the agent": walk_teacher(), "a random policy": None})  # it has one, which is longer
    played = len(record(push_teacher(), PUSH, [0])[0].rewards)
    assert played == 5
    with pytest.raises(RequestError, match="episode of the agent went on for 4 steps without an end; give --max-episode-steps 1000"):
        check_ends(PUSH, {"the agent": push_teacher()})
    with pytest.raises(RequestError, match="episode of a random policy"):
        check_ends(PUSH, {"a random policy": None})
    check_ends(dataclasses.replace(PUSH, max_episode_steps=100), {"a random policy": None})
    monkeypatch.setattr(module, "LONG_EPISODE", 5)
    check_ends(PUSH, {"the agent": push_teacher(), "a random policy": None})


def test_an_episode_is_cut_off_and_says_so():
    played = record(push_teacher(), PUSH, SEEDS, max_steps=2)
    assert all(len(episode.rewards) == 2 and not episode.ended for episode in played)
    assert all(episode.ended for episode in record(push_teacher(), PUSH, SEEDS, max_steps=5))


def test_nan_in_an_observation_stops_with_seed_and_step():
    with pytest.raises(EnvironmentFault, match=r"^tests/NanObservation-v0, seed 3, step 13: the observation's number 1 is nan"):
        record(None, rude.spec_of(rude.NanObservation), [3])


def test_observations_have_the_dtype_of_their_space_whatever_the_first_is():
    (episode,) = record(None, rude.spec_of(rude.FirstWhole), [3])
    assert episode.observations.dtype == episode.last_observation.dtype == np.float32
    assert (episode.observations[1:] != episode.observations[1:].round()).any()
