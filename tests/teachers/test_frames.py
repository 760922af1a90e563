"""Frame stacks and normalisation, in each order, against Stable-Baselines3 itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.rollouts.episodes import evaluate
from policy_distill.rollouts.numpy_policies import actor, encoder
from policy_distill.rollouts.play import SIDE_BY_SIDE
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for, fill_stack
from tests.small_worlds import PUSH

STACKED = EnvironmentOptions(PUSH.id, frame_stack=3)


def plain(*, monitored: bool = True) -> Any:
    return DummyVecEnv([lambda: Monitor(make(PUSH)) if monitored else make(PUSH)])


def settled(env: VecNormalize) -> VecNormalize:
    """Statistics that change what is seen, from now on fixed; a mean that float32 does not hold, a bound that clips."""
    env.reset()
    for _ in range(60):
        env.step(np.array([env.action_space.sample()]))
    assert not isinstance(env.obs_rms, dict)
    env.obs_rms.mean = env.obs_rms.mean + 1 / 3
    env.training, env.norm_reward = False, False
    return env


def inside(*, monitored: bool = True) -> tuple[Any, VecNormalize]:
    normalized = settled(VecNormalize(plain(monitored=monitored), clip_obs=1.5))
    return VecFrameStack(normalized, 3), normalized


def outside() -> tuple[Any, VecNormalize]:
    normalized = settled(VecNormalize(VecFrameStack(plain(), 3), clip_obs=1.5))
    return normalized, normalized


def watched() -> tuple[Any, VecNormalize]:
    stacked, normalized = inside(monitored=False)
    return VecMonitor(stacked), normalized


def rewards_alone() -> tuple[Any, VecNormalize]:
    env = VecNormalize(VecFrameStack(plain(), 3), norm_obs=False)
    env.training, env.norm_reward = False, False
    return env, env


ORDERS = pytest.mark.parametrize("order", [inside, outside, watched, rewards_alone])


def agent(env: Any) -> PPO:
    """Weights that make the action depend on every number."""
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=3, device="cpu")
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            parameter.mul_(30.0 if name == "action_net.weight" else 3.0)
    return model


def saved(model: PPO, statistics: VecNormalize, folder: Path) -> Teacher:
    model.save(folder / "agent.zip")
    statistics.save(str(folder / "vecnormalize.pkl"))
    return Teacher.load(folder / "agent.zip")


@ORDERS
def test_actions_are_those_of_stable_baselines_step_by_step(order, tmp_path):
    env, statistics = order()
    model = agent(env)
    teacher = saved(model, statistics, tmp_path)
    live = Teacher.from_sb3(model)
    spec, _ = environment_for(teacher, STACKED)
    assert environment_for(live, STACKED)[0] == spec
    act, mine, compared = actor(teacher, SIDE_BY_SIDE), make(spec), 0
    for seed in range(3):
        env.seed(seed)
        theirs, (observation, _) = env.reset(), mine.reset(seed=seed)
        for _ in range(5):
            batch = np.repeat(observation[None], SIDE_BY_SIDE, axis=0)
            expected, _ = model.predict(theirs, deterministic=True)
            for encoded in (teacher.encode(torch.from_numpy(batch)).numpy(), encoder(teacher, SIDE_BY_SIDE)(batch)):
                np.testing.assert_array_equal(encoded[0], theirs[0])
            for actions in (teacher.act(batch), act(batch), live.act(batch)):
                np.testing.assert_allclose(actions[0], expected[0], rtol=1e-5, atol=1e-6)
            theirs, _, done, _ = env.step(expected)
            observation, _, terminated, truncated, _ = mine.step(expected[0])
            compared += 1
            assert bool(done[0]) == (terminated or truncated)
            if done[0]:
                break
    assert compared > 5


@ORDERS
def test_returns_are_those_of_stable_baselines(order, tmp_path):
    env, statistics = order()
    model = agent(env)
    teacher = saved(model, statistics, tmp_path)
    spec, _ = environment_for(teacher, STACKED)
    own = evaluate(teacher, spec, range(8), num_envs=3)
    for seed, expected in zip(own.seeds, own.returns, strict=True):
        env.seed(int(seed))
        returns, _ = evaluate_policy(model, env, n_eval_episodes=1, return_episode_rewards=True)
        assert isinstance(returns, list)
        assert returns[0] == pytest.approx(expected, rel=1e-5)


def test_a_zero_that_was_observed_is_no_padding(tmp_path):
    """The mean stands before the first frame; a frame of zeros that the environment returned is normalised as any other."""
    env, statistics = inside()
    teacher = saved(agent(env), statistics, tmp_path)
    statistics_of_frame = teacher.normalization
    assert statistics_of_frame is not None
    assert statistics_of_frame.frames == 3
    encoded = teacher.encode(torch.zeros(1, teacher.obs_dim))
    assert (encoded != 0).all()
    padding = torch.from_numpy(np.tile(statistics_of_frame.padding, 3)).float()[None]  # type: ignore[arg-type]
    assert (teacher.encode(padding) == 0).all()
    assert ((padding.double() - teacher.mean) != 0).any(), "rounding alone would not give zero"


def test_a_stack_that_is_not_asked_for_is_asked_for(tmp_path):
    env, statistics = inside()
    teacher = saved(agent(env), statistics, tmp_path)
    with pytest.raises(RequestError, match="give --frame-stack 3, else the vecnormalize"):
        environment_for(teacher, PUSH.id)
    spec, notices = environment_for(teacher, STACKED)
    assert any("zero after normalisation" in notice for notice in notices)
    assert fill_stack(spec, teacher)[0] == spec, "filling twice changes nothing"
    assert EnvironmentSpec.from_dict(spec.to_dict()) == spec


def test_agents_with_other_statistics_do_not_share_a_stack(tmp_path):
    teachers: list[Teacher] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        env, statistics = inside()
        assert not isinstance(statistics.obs_rms, dict)
        statistics.obs_rms.mean = statistics.obs_rms.mean + (name == "two")
        teachers.append(saved(agent(env), statistics, tmp_path / name))
    spec, _ = environment_for(teachers[0], STACKED)
    with pytest.raises(RequestError, match="different statistics"):
        fill_stack(spec, teachers[1])
    with pytest.raises(RequestError, match="different statistics"):
        environment_for(Teacher.ensemble(teachers), STACKED)


def test_an_agent_of_the_zoo_stacks_outside_of_the_normalisation(tmp_path):
    """config.yml says frame_stack and normalize; the shape of the statistics says which came first."""
    for name, order in (("inside", inside), ("outside", outside)):
        env, statistics = order()
        run = tmp_path / name / "ppo" / "Push-v0_1"
        (run / "Push-v0").mkdir(parents=True)
        agent(env).save(run / "Push-v0.zip")
        statistics.save(str(run / "Push-v0" / "vecnormalize.pkl"))
        (run / "Push-v0" / "config.yml").write_text("normalize: true\nframe_stack: 3\n")
        (run / "Push-v0" / "args.yml").write_text(f"env: {PUSH.id}\n")
        spec, notices = environment_for(Teacher.load(run), None)
        ((stack, kwargs),) = spec.wrappers
        assert (stack, kwargs["n_stack"]) == ("VecFrameStack", 3)
        assert ("padding" in kwargs) == (name == "inside")
        assert bool(notices) == (name == "inside")


def test_the_frames_of_a_float64_environment_are_padded_exactly():
    env = gym.make("Acrobot-v1")
    assert env.observation_space.dtype == np.float32  # if this changes, drop the cast below
    space = gym.spaces.Box(-1, 1, (4,), np.float64)
    from policy_distill.teachers.files.normalization import ObservationNormalization

    statistics = ObservationNormalization(np.array([1 / 3, 0.1]), np.ones(2), 1e-8, 10.0).for_shape(space.shape)
    assert statistics is not None
    assert statistics.is_padding(torch.tensor([[1 / 3, 0.1, 0.2, 0.1]], dtype=torch.float64)).tolist() == [[True, True, False, False]]
    assert statistics.is_padding(torch.tensor([[1 / 3, 0.1, 0.2, 0.1]])).tolist() == [[True, True, False, False]]
