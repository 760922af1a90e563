"""RecurrentPPO agents, from their files and live: they act as in sb3-contrib over whole episodes, however many are played side by side."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.policy import StatefulTeacher
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.workers import Rollouts
from policy_distill.teachers import RecurrentTeacher, Teacher
from tests.small_worlds import random_observations
from tests.teachers.conftest import TinyEnv

sb3_contrib = pytest.importorskip("sb3_contrib")
BLIND = EnvironmentSpec("CartPole-v1", wrappers=(("MaskVelocityWrapper", {}),))
PARTS = gym.spaces.Dict({"far": gym.spaces.Box(-5, 5, (4,), np.float32), "near": gym.spaces.Discrete(3)})


def tiny(observations: gym.Space, actions: gym.Space) -> gym.Env:
    """An environment of these spaces."""
    return TinyEnv(observations, actions)


def model_of(env: gym.Env, *, use_sde: bool = False, **settings: Any) -> Any:
    """An untrained agent whose weights are large enough to name different actions."""
    policy = "MultiInputLstmPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpLstmPolicy"
    kwargs = {"net_arch": [8], "lstm_hidden_size": 12, **settings}
    model = sb3_contrib.RecurrentPPO(policy, env, n_steps=8, batch_size=8, seed=0, device="cpu", use_sde=use_sde, policy_kwargs=kwargs)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "log_std" not in name:
                parameter.normal_(0.0, 0.1 if parameter.ndim == 1 else 2.0 / parameter.shape[1] ** 0.5)
    return model


@pytest.fixture(scope="module")
def blind() -> Any:
    """An untrained agent for CartPole without velocities."""
    return model_of(make(BLIND))


def lengths_of(model: Any, seeds: range) -> list[int]:
    """Of its episodes, in sb3-contrib's own loop."""
    lengths = []
    for seed in seeds:
        env = make(BLIND)
        observation, _ = env.reset(seed=seed)
        state, length, over = None, 0, False
        while not over:
            action, state = model.predict(observation, state, np.array([length == 0]), deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            length, over = length + 1, terminated or truncated
        lengths.append(length)
    return lengths


@pytest.mark.parametrize("num_envs", [1, 5, 16])
def test_episodes_are_those_of_sb3_contrib_however_many_are_played(blind, tmp_path, num_envs):
    blind.save(tmp_path / "agent.zip")
    teacher = Teacher.load(tmp_path / "agent.zip")
    assert isinstance(teacher, RecurrentTeacher)
    assert isinstance(teacher, StatefulTeacher)
    assert teacher.algo == "ppo_lstm"
    expected = lengths_of(blind, range(12))
    assert len(set(expected)) > 2
    assert evaluate(teacher, BLIND, range(12), num_envs=num_envs).lengths.tolist() == expected


@pytest.mark.parametrize("actions", [gym.spaces.Discrete(4), gym.spaces.Box(-2, 1, (2,), np.float32), gym.spaces.MultiBinary(3)], ids=str)
def test_a_dict_is_read_as_by_its_policy(actions):
    model = model_of(tiny(PARTS, actions))
    teacher = Teacher.from_sb3(model)
    assert isinstance(teacher, RecurrentTeacher)
    state, theirs = teacher.initial_state(1), None
    PARTS.seed(0)
    for step in range(30):
        observation = PARTS.sample()
        seen = {key: np.asarray(value)[None] for key, value in observation.items()}
        starts = np.array([7 if step % 11 == 0 else GOES_ON])
        expected, theirs = model.predict(observation, theirs, np.array([step % 11 == 0]), deterministic=True)
        action, state = teacher.step(seen, state, starts)
        np.testing.assert_allclose(action[0], expected, atol=1e-5)


def along(teacher: RecurrentTeacher, observations: np.ndarray) -> list[torch.Tensor]:
    """Logits of one episode's observations ``[T, ...]``."""
    state, logits = teacher.initial_state(1), []
    for step, observation in enumerate(observations):
        targets, state = teacher.label(observation[None], state, np.array([0 if step == 0 else GOES_ON]))
        logits.append(targets.parameters["logits"])
    return logits


def test_labels_along_an_episode_do_not_depend_on_who_acts_or_on_the_workers(blind):
    """An untrained student acts half of the time; the labels are those of the teacher that saw each episode from its beginning."""
    teacher = Teacher.from_sb3(blind)
    assert isinstance(teacher, RecurrentTeacher)
    student = Student(Architecture(teacher.observation_space, teacher.action_space, (4,)))
    found = []
    for workers in (0, 2):
        with Rollouts(BLIND, teacher, num_envs=4, seed=0, workers=workers) as rollouts:
            parts = [part for index in range(2) for part in rollouts.collect(30, student, 0.5, index)]
        found.append(parts)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.targets.parameters["logits"], other.targets.parameters["logits"])
    episodes = torch.cat([part.episodes for part in found[0]])
    observations = torch.cat([part.observations for part in found[0]])
    logits = torch.cat([part.targets.parameters["logits"] for part in found[0]])
    for episode in episodes.unique()[:6]:
        rows = episodes == episode
        torch.testing.assert_close(torch.cat(along(teacher, observations[rows].numpy())), logits[rows])


def test_its_memory_is_among_its_facts(blind):
    facts = Teacher.from_sb3(blind).describe()
    assert facts["memory"] == "LSTM, 1 x 12 units"
    assert facts["layers"] == [12, 8, 2]  # behind the memory


def test_one_observation_alone_is_no_question(blind):
    with pytest.raises(RequestError, match="has a memory: its action depends on the episode so far"):
        Teacher.from_sb3(blind).act(np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("run", ["CartPole-v1_1", "CartPoleNoVel-v1_1"])
def test_agents_of_the_zoo_earn_what_they_earned_there(run, real_teachers):
    path = real_teachers.parent / "wild" / "zoo-ppo_lstm-cartpole" / run
    if not path.is_dir():
        pytest.skip("the agent is not here")
    spec = BLIND if "NoVel" in run else EnvironmentSpec("CartPole-v1")
    assert evaluate(Teacher.load(path), spec, range(4)).returns.tolist() == [500.0] * 4


def test_an_agent_that_reads_images_says_what_its_policy_says(tmp_path):
    """NatureCNN before the LSTM, over two episodes."""
    image = gym.spaces.Box(0, 255, (2, 36, 40), np.uint8)
    model = sb3_contrib.RecurrentPPO(
        "CnnLstmPolicy", TinyEnv(image, gym.spaces.Discrete(3)), device="cpu", n_steps=8, policy_kwargs={"lstm_hidden_size": 8}
    )
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(2)
    model.save(tmp_path / "agent.zip")
    teacher = Teacher.load(tmp_path / "agent.zip")
    assert isinstance(teacher, RecurrentTeacher)
    mine, theirs = teacher.initial_state(1), (torch.zeros(1, 1, 8),) * 2
    for step, observation in enumerate(random_observations(image, 10)):
        starts = step % 5 == 0
        with torch.no_grad():
            expected, theirs = model.policy.get_distribution(torch.tensor(observation[None]), theirs, torch.tensor([float(starts)]))
        told, mine = teacher.label(observation[None], mine, np.array([0 if starts else GOES_ON]))
        found = torch.as_tensor(np.asarray(told.parameters["logits"])).log_softmax(1)
        torch.testing.assert_close(found, expected.distribution.logits, rtol=0, atol=1e-5)
