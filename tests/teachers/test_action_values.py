"""What an action is worth beside the teacher's own, by the teacher's critic: against Stable-Baselines3's own critics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3

from policy_distill.teachers import Teacher
from policy_distill.teachers.action_values import q_gap, why_no_action_values

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32)


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_continuous_gaps_are_those_of_the_least_critic(algorithm):
    model = algorithm("MlpPolicy", "Pendulum-v1", buffer_size=10, seed=0, device="cpu")
    teacher = Teacher.from_sb3(model)
    actions = np.linspace(-2, 2, 7, dtype=np.float32)[:, None]
    seen = torch.from_numpy(OBSERVATIONS)

    def value(done: np.ndarray) -> torch.Tensor:
        return torch.cat(model.critic(seen, torch.from_numpy(done / 2)), dim=1).amin(1)  # Pendulum's bounds are +-2

    with torch.no_grad():
        expected = value(teacher.act(OBSERVATIONS)) - value(actions)
    torch.testing.assert_close(q_gap(teacher, seen, torch.from_numpy(actions)), expected)
    torch.testing.assert_close(q_gap(teacher, seen, torch.from_numpy(teacher.act(OBSERVATIONS))), torch.zeros(7))


def test_discrete_gaps_are_those_of_the_scores():
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, seed=0, device="cpu")
    seen = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (9, 4)).astype(np.float32))
    with torch.no_grad():
        scores = model.q_net(seen)
    for action in (0, 1):
        gaps = q_gap(Teacher.from_sb3(model), seen, torch.full((9,), action))
        torch.testing.assert_close(gaps, scores.amax(1) - scores[:, action])
    assert (gaps >= 0).all()


def test_a_state_s_value_says_nothing_about_an_action():
    teacher = Teacher.from_sb3(PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu"))
    reason = why_no_action_values(teacher)
    assert reason is not None
    assert "no critic that values single actions" in reason
    assert teacher.has_values
