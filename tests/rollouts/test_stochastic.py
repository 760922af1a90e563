"""Drawn actions: the policy's own distribution, the same in an episode whoever plays beside it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.export.sb3 import save_ppo
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.workers import Rollouts
from policy_distill.teachers import Teacher
from tests.small_worlds import PUSH, WALK, Push, Walk, push_teacher, random_student, walk_expert

SEEDS = range(3_000_000, 3_000_012)


def coin() -> Student:
    """Left and right are alike, and standing still is out of the question."""
    student = Student(Architecture(gym.spaces.Box(0, 10, (2,), np.float32), gym.spaces.Discrete(3), ()))
    with torch.no_grad():
        student.linears[0].weight.zero_()
        student.linears[0].bias.copy_(torch.tensor([0.0, -50.0, 0.0]))
    return student.eval().requires_grad_(False)


def drawn_by(policy: Drawing, seen: np.ndarray, steps: int, seed: int = 0) -> np.ndarray:
    """Actions ``[steps, B, ...]`` in B episodes with the seeds ``seed``, ``seed + 1``, ..."""
    state, starts = policy.initial_state(len(seen)), np.arange(seed, seed + len(seen))
    found = []
    for step in range(steps):
        actions, state = policy.step(seen, state, None if step else starts)
        found.append(actions)
    return np.stack(found)


def test_actions_are_drawn_from_the_distribution():
    drawn = drawn_by(Drawing(coin()), np.zeros((16, 2), np.float32), 250).ravel()
    counts = np.bincount(drawn, minlength=3) / 4000
    assert counts[1] == 0
    assert counts[0] == pytest.approx(0.5, abs=0.03)  # standard error 0.008


def test_the_returns_depend_on_the_seeds_alone():
    policy = Drawing(random_student(gym.spaces.Box(0, 10, (2,), np.float32), gym.spaces.Discrete(3)))
    alone = evaluate(policy, WALK, SEEDS, num_envs=1)
    np.testing.assert_array_equal(evaluate(policy, WALK, SEEDS, num_envs=7).returns, alone.returns)
    np.testing.assert_array_equal(evaluate(policy, WALK, list(SEEDS)[::-1], num_envs=7).returns[::-1], alone.returns)
    with Rollouts(WALK, None, num_envs=4, seed=0, workers=2) as rollouts:
        np.testing.assert_array_equal(rollouts.evaluate(policy, SEEDS, num_envs=4).returns, alone.returns)
    assert alone.returns.std() > 0


def test_drawing_is_not_acting_greedily():
    student = coin()
    assert not np.array_equal(evaluate(Drawing(student), WALK, SEEDS).returns, evaluate(student, WALK, SEEDS).returns)


def test_continuous_actions_are_drawn_within_their_bounds():
    space = Push().action_space
    student = random_student(Push.observation_space, space)
    actions = drawn_by(Drawing(student), np.tile(np.array([[0.1, -0.2, 0.3]], np.float32), (16, 1)), 50).reshape(-1, 2)
    assert actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)
    assert actions.std(axis=0).min() > 0.01
    assert len(evaluate(Drawing(student), PUSH, SEEDS).returns) == 12


def test_continuous_actions_in_a_box_of_whole_numbers_are_not_cut_to_them():
    """As in Stable-Baselines3, and as the mode."""
    space = gym.spaces.Box(0, 10, (2,), np.int64)
    student = random_student(Push.observation_space, space)
    drawn = drawn_by(Drawing(student), np.zeros((4, 3), np.float32), 10)
    assert drawn.dtype == np.float32
    assert (drawn != drawn.round()).any()


def test_a_teacher_draws_too(tmp_path):
    teacher = Teacher.load(save_ppo(walk_expert(), tmp_path / "ppo.zip"))
    seeds = list(range(60))  # 12 episodes of four steps may well pass without a stray step
    drawn, greedy = evaluate(Drawing(teacher), WALK, seeds).returns, evaluate(teacher, WALK, seeds).returns
    assert drawn.mean() < greedy.mean()  # logits of 5 and 2: it strays in one step of twenty


def test_a_policy_without_a_distribution_is_refused():
    with pytest.raises(RequestError, match="no distribution to sample from: leave --stochastic out"):
        Drawing(push_teacher())


def test_drawn_actions_follow_the_distribution():
    """Logits log(1, 2, 7): shares of 0.1, 0.2 and 0.7, which 6000 draws meet within 0.02."""
    logits = np.log(np.array([1.0, 2.0, 7.0]))
    teacher = Teacher.from_callable(
        lambda seen: np.tile(logits, (len(seen), 1)), Walk.observation_space, gym.spaces.Discrete(3), outputs="logits"
    )
    actions = drawn_by(Drawing(teacher), np.zeros((20, 2), np.float32), 300)
    np.testing.assert_allclose(np.bincount(actions.ravel()) / 6000, [0.1, 0.2, 0.7], atol=0.02)
    assert len({episode.tobytes() for episode in actions.T}) == 20
    np.testing.assert_array_equal(drawn_by(Drawing(teacher), np.zeros((1, 2), np.float32), 300, seed=7)[:, 0], actions[:, 7])
