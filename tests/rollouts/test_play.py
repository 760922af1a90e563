"""The loop over whole episodes: what a recorder is told, and policies that have a state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.play import Ended, Recorder, play
from policy_distill.rollouts.trajectories import record
from policy_distill.rollouts.workers import Rollouts
from tests.small_worlds import WALK, WALK_LIMIT, walk_teacher
from tests.stateful import Counter, CountingTeacher

SEEDS = list(range(30))


class Listener(Recorder):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def opened(self, envs):
        self.told.append(("opened", len(envs)))

    def began(self, slot, episode):
        self.told.append(("began", slot, episode))

    def acted(self, observations, answers, running):
        assert observations.shape == (2, 2)
        assert [len(answer) for answer in answers] == [2] * len(answers)
        self.told.append(("acted", *running))

    def stepped(self, rewards, running):
        self.told.append(("stepped", *(rewards[slot] for slot in running)))

    def ended(self, end: Ended):
        self.told.append(("ended", end.slot, end.episode, end.episode_return, end.length, end.terminated, end.truncated))


def test_a_recorder_is_reported_of_each_step_before_and_after_it_and_of_both_ends():
    """Distances of 1, 2 and 1, side by side: the third episode begins where the first one ended."""
    lengths = evaluate(walk_teacher(), WALK, range(200)).lengths
    one, three = np.flatnonzero(lengths == 1)[:2].tolist()
    two = int(np.flatnonzero(lengths == 2)[0])
    listener = Listener()
    play([walk_teacher()], WALK, [one, two, three], listener, num_envs=2)
    assert listener.told == [
        ("opened", 2), ("began", 0, 0), ("began", 1, 1),
        ("acted", 0, 1), ("stepped", -1.0, -1.0), ("ended", 0, 0, -1.0, 1, True, False), ("began", 0, 2),
        ("acted", 0, 1), ("stepped", -1.0, -1.0), ("ended", 0, 2, -1.0, 1, True, False), ("ended", 1, 1, -2.0, 2, True, False),
    ]  # fmt: skip


def test_an_episode_that_is_cut_off_has_neither_end():
    listener = Listener()
    seeds = np.flatnonzero(evaluate(walk_teacher(), WALK, SEEDS).lengths > 1)[:2].tolist()
    play([walk_teacher()], WALK, seeds, listener, max_steps=1)
    assert [told[3:] for told in listener.told if told[0] == "ended"] == [(-1.0, 1, False, False)] * 2


def test_environments_that_were_made_here_are_closed_and_others_are_not(monkeypatch):
    closed = []
    monkeypatch.setattr("policy_distill.environments.border.Border.close", lambda self: closed.append(self))
    play([None], WALK, SEEDS[:2], Recorder())
    assert len(closed) == 2
    play([None], WALK, SEEDS[:2], Recorder(), envs=[])
    assert len(closed) == 2


def test_no_seeds_are_no_episodes():
    play([None], WALK, [], Recorder())
    assert len(evaluate(walk_teacher(), WALK, [], reference=walk_teacher()).returns) == 0


# Policies with a state.


@pytest.mark.parametrize("num_envs", [1, 4, 16, 64])
def test_a_policy_with_a_state_acts_by_the_step_of_its_own_episode(num_envs):
    for episode in record(Counter(), WALK, SEEDS):
        np.testing.assert_array_equal(episode.actions, np.arange(len(episode.actions)) % 3)
    found, alone = (evaluate(Counter(), WALK, SEEDS, num_envs=count) for count in (num_envs, 1))
    assert found.lengths.tolist() == [len(episode.rewards) for episode in record(Counter(), WALK, SEEDS)]
    np.testing.assert_array_equal(found.returns, alone.returns)
    assert len(set(found.lengths.tolist())) > 1
    assert found.lengths.max() == WALK_LIMIT


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_policy_with_a_state_earns_the_same_in_workers_and_agrees_with_itself(workers):
    teacher: Any = CountingTeacher()
    with Rollouts(WALK, teacher, num_envs=4, seed=0, workers=workers) as rollouts:
        found = rollouts.evaluate(Counter(), SEEDS, num_envs=5)
        np.testing.assert_array_equal(rollouts.evaluate("teacher", SEEDS, num_envs=3).returns, found.returns)
        (rows,) = rollouts.collect(20, Counter(), 0.5, 0)  # type: ignore[arg-type]
    assert torch.equal(rows.targets.actions[:4], torch.zeros(4).long())
    np.testing.assert_array_equal(found.returns, evaluate(Counter(), WALK, SEEDS).returns)
    assert evaluate(Counter(), WALK, SEEDS, reference=Counter()).agreement == 1.0
