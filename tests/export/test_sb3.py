"""The student as a Stable-Baselines3 zip: same actions and distribution, from raw observations."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO

from policy_distill.export.sb3 import fold, save_ppo, to_ppo
from policy_distill.policies.architecture import ACTIVATIONS
from policy_distill.policies.observations import encode_observations, observation_width
from policy_distill.support.trees import to_tensors
from tests.small_worlds import random_observations, random_student

ACTED: list[gym.Space] = [
    gym.spaces.Discrete(4),
    gym.spaces.MultiDiscrete([2, 3]),
    gym.spaces.MultiBinary(3),
    gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32)),
    gym.spaces.Box(-2.0, 6.0, (2, 1)),
]
SEEN: list[gym.Space] = [
    gym.spaces.Box(-5.0, 5.0, (3,)),
    gym.spaces.Box(-5.0, 5.0, (2, 2), np.float64),
    gym.spaces.Discrete(6),
    gym.spaces.MultiDiscrete([2, 4]),
    gym.spaces.MultiBinary(3),
    gym.spaces.Dict({"b": gym.spaces.Box(-5.0, 5.0, (3,)), "a": gym.spaces.Discrete(3)}),
]


@pytest.mark.parametrize("action_space", ACTED, ids=str)
@pytest.mark.parametrize("observation_space", SEEN, ids=str)
def test_the_zip_acts_like_the_student(observation_space, action_space, tmp_path):
    student = random_student(observation_space, action_space, hidden_sizes=(8, 6))
    model = PPO.load(save_ppo(student, tmp_path / "student.zip"), device="cpu")
    observations = random_observations(observation_space, 100)
    theirs, _ = model.predict(observations, deterministic=True)
    mine = student.act(observations)
    assert theirs.shape == mine.shape
    assert len(np.unique(mine, axis=0)) > 1
    if isinstance(action_space, gym.spaces.Box):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_array_equal(theirs, mine)
    assert model.observation_space == observation_space
    assert model.action_space == action_space


@settings(max_examples=12)
@given(st.lists(st.integers(1, 8), max_size=3).map(tuple), st.sampled_from(sorted(ACTIVATIONS)), st.sampled_from(ACTED), st.integers(0, 99))
def test_outputs_are_the_student_s_for_every_architecture(hidden_sizes, activation, action_space, seed):
    student = random_student(SEEN[0], action_space, hidden_sizes=hidden_sizes, activation=activation, seed=seed)
    policy: Any = to_ppo(student).policy
    observations = torch.as_tensor(random_observations(SEEN[0], 20))
    with torch.no_grad():
        theirs = policy.action_net(policy.mlp_extractor.forward_actor(policy.extract_features(observations, policy.pi_features_extractor)))
    mine = student(observations)
    if isinstance(action_space, gym.spaces.Box):
        scale, offset = (torch.as_tensor(array).float() for array in student.family.box.affine())  # type: ignore[union-attr]
        mine = mine * scale + offset
    torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-3)


def test_no_zip_is_written_where_actions_do_not_start_at_0(tmp_path):
    # Stable-Baselines3 counts actions from 0, whatever the space says: such a zip would act wrongly without a word
    student = random_student(SEEN[0], gym.spaces.Discrete(3, start=5))
    with pytest.raises(ValueError, match="does not start at 0"):
        save_ppo(student, tmp_path / "student.zip")
    assert not list(tmp_path.iterdir())


def test_the_zip_s_value_network_is_the_same_each_time_and_the_caller_s_state_stays():
    student = random_student(SEEN[0], ACTED[3])
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = (to_ppo(student).policy.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("widths", [(7, 5), ()], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("observation_space", SEEN, ids=str)
def test_a_critic_on_normalised_observations_predicts_the_same_on_raw_ones(observation_space, activation, widths, tmp_path):
    student = random_student(observation_space, ACTED[3], activation=activation)
    torch.manual_seed(3)
    sizes = [observation_width(observation_space), *widths, 1]
    critic = [torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    for parameter in (parameter for layer in critic for parameter in layer.parameters()):
        torch.nn.init.normal_(parameter)
    observations = random_observations(observation_space, 50)
    hidden = (encode_observations(observation_space, to_tensors(observations)) - student.mean) / student.scale
    *inner, last = critic
    for layer in inner:
        hidden = getattr(torch, activation)(layer(hidden))
    model = PPO.load(save_ppo(student, tmp_path / "student.zip", critic=critic), device="cpu")
    policy: Any = model.policy
    seen, _ = policy.obs_to_tensor(observations)
    with torch.no_grad():
        values, expected = policy.predict_values(seen), last(hidden)
    assert expected.std() > 0.1
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
    # it acts as it does without one
    actions, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(actions, student.act(observations), rtol=1e-4, atol=1e-4)


def test_exporting_leaves_the_critic_as_it_was():
    student, critic = random_student(SEEN[0], ACTED[0]), [torch.nn.Linear(3, 1)]
    before = [tensor.clone() for tensor in critic[0].parameters()]
    policy: Any = to_ppo(student, critic).policy
    with torch.no_grad():
        policy.value_net.weight.zero_()
    assert all(torch.equal(*pair) for pair in zip(critic[0].parameters(), before, strict=True))


def test_the_standard_deviation_is_in_the_environment_s_units():
    # [-2, 6] and [0, 1] are 4 and 0.5 times as wide as [-1, 1]
    student = random_student(SEEN[0], ACTED[3])
    policy: Any = to_ppo(student).policy
    torch.testing.assert_close(policy.log_std.exp(), student.log_std.exp() * torch.tensor([4.0, 0.5]))


def test_folding_by_hand():
    # one linear layer, y = 3 (x - 1) / 2 + 5 in box units of [-2, 6]: 4 y + 2 = 6 x + 16
    student = random_student(gym.spaces.Box(-9.0, 9.0, (1,)), gym.spaces.Box(-2.0, 6.0, (1,)), hidden_sizes=())
    for tensor, value in ((student.linears[0].weight, 3.0), (student.linears[0].bias, 5.0), (student.mean, 1.0), (student.scale, 2.0)):
        tensor.fill_(value)
    weights, biases = fold(student)
    assert weights[0].tolist() == [[6.0]]
    assert biases[0].tolist() == [16.0]


def test_exporting_leaves_the_student_as_it_was(tmp_path):
    student = random_student(SEEN[0], ACTED[3])
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    save_ppo(student, tmp_path / "student.zip")
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["student.zip"]


def test_the_exported_agent_can_be_trained_on(tmp_path):
    env = gym.make("tests/Walk-v0")
    student = random_student(env.observation_space, env.action_space)
    model = PPO.load(save_ppo(student, tmp_path / "student.zip"), env=env, device="cpu", n_steps=32, batch_size=32, n_epochs=1)
    policy: Any = model.policy
    before = policy.action_net.weight.clone()
    model.learn(32)
    assert not torch.equal(before, policy.action_net.weight)
