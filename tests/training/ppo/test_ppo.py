"""PPO beside Stable-Baselines3's, which is the oracle: the same rollouts, the same gradients, the same weights afterwards."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as Oracle
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

from policy_distill.config import LossConfig, PolishConfig
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import make
from policy_distill.losses.objective import Objective
from policy_distill.policies.families import DiagGaussian
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.support import trees
from policy_distill.training.ppo import ppo as ppo_module
from policy_distill.training.ppo.kickstart import ppo_on
from policy_distill.training.ppo.ppo import (
    Batch,
    RewardScale,
    approximate_kl,
    generalized_advantages,
    normalized,
    surrogate_slope,
)
from policy_distill.training.ppo.vector_ppo import VectorPPO
from policy_distill.training.stacks.analytic import StudentStack
from tests.small_worlds import WORLDS, random_student

SPACES = {
    "Discrete": gym.spaces.Discrete(4),
    "Box": gym.spaces.Box(-1, 1, (3,)),
    "MultiDiscrete": gym.spaces.MultiDiscrete([2, 3]),
    "MultiBinary": gym.spaces.MultiBinary(3),
}
CONFIG = PolishConfig(env_steps=128, num_envs=4, num_steps=16, batch_size=24, epochs=3, learning_rate=2e-3)
"""Rollouts of 64 steps: minibatches of 24, 24 and 16."""
SEED = 5
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # the last one of an epoch is smaller


class Normalize(BaseFeaturesExtractor):
    """A student's normalisation of what Stable-Baselines3 has encoded."""

    def __init__(self, observation_space: gym.Space, mean: Tensor, scale: Tensor) -> None:
        super().__init__(observation_space, len(mean))
        self.mean, self.scale = mean, scale

    def forward(self, observations: Tensor) -> Tensor:
        return (observations.flatten(1).to(self.mean.dtype) - self.mean) / self.scale


def in_box_units(env: gym.Env) -> gym.Env:
    """Actions in [-1, 1], as Gymnasium's own wrapper scales them, where they are continuous."""
    return gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0)) if isinstance(env.action_space, gym.spaces.Box) else env


def layers_of(policy: Any) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """The linear layers of an oracle's actor and critic."""
    networks = ((policy.mlp_extractor.policy_net, policy.action_net), (policy.mlp_extractor.value_net, policy.value_net))
    actor, critic = ([layer for layer in (*network, head) if isinstance(layer, nn.Linear)] for network, head in networks)
    return actor, critic


def of_oracle(policy: Any, what: Any = lambda parameter: parameter) -> list[Tensor]:
    """Of each layer of actor and critic ``[inputs + 1, outputs]``, then of ``log_std``, if any: the parameter, or its gradient."""
    layers = [torch.cat([what(layer.weight).T, what(layer.bias)[None]]).detach() for part in layers_of(policy) for layer in part]
    return [*layers, what(policy.log_std).detach()] if hasattr(policy, "log_std") else layers


def of_ours(ppo: VectorPPO, what: str = "flat") -> list[Tensor]:
    """The same; ``what`` is flat or gradient."""
    found, rest = [], []
    for stack in (ppo.actor, ppo.critic):
        values = getattr(stack, what)[0]
        sizes = [weights[0].numel() for weights in stack.weights]
        *windows, spread = values.split([*sizes, len(values) - sum(sizes)])
        found += [window.view(weights.shape[1:]).clone() for window, weights in zip(windows, stack.weights, strict=True)]
        rest.append(spread.clone())
    return [*found, rest[0]] if len(rest[0]) else found


def new_ppo(name: str) -> VectorPPO:
    _, teacher = WORLDS[name]
    student = random_student(teacher.observation_space, teacher.action_space, activation="tanh")
    with own_random_state():
        ppo = ppo_on(student, teacher, Objective(LossConfig(), teacher.family), CONFIG, seed=SEED)
    assert isinstance(ppo, VectorPPO)
    return ppo


def environments_of(name: str) -> RolloutEnv:
    made = [functools.partial(make, WORLDS[name][0])] * CONFIG.num_envs
    environments = RolloutEnv(made, CONFIG.num_steps, seed=SEED)
    environments.reset()
    return environments


def oracle_of(name: str, ppo: VectorPPO) -> Oracle:
    """Stable-Baselines3's PPO with the same normalisation and layers, on its own environments, as it begins."""
    env = VecNormalize(
        DummyVecEnv([lambda: Monitor(in_box_units(make(WORLDS[name][0])))] * CONFIG.num_envs), norm_obs=False, gamma=CONFIG.discount
    )
    with own_random_state():
        model = Oracle(
            "MlpPolicy", env, learning_rate=CONFIG.learning_rate, n_steps=CONFIG.num_steps, batch_size=CONFIG.batch_size,
            n_epochs=CONFIG.epochs, gamma=CONFIG.discount, gae_lambda=CONFIG.gae_lambda, clip_range=CONFIG.clip_range, seed=SEED,
            device="cpu", policy_kwargs={
                "net_arch": {"pi": list(ppo.actor.architecture.hidden_sizes), "vf": list(ppo.critic.architecture.hidden_sizes)},
                "activation_fn": nn.Tanh, "features_extractor_class": Normalize,
                "features_extractor_kwargs": {"mean": ppo.actor.mean, "scale": ppo.actor.scale},
            },
        )  # fmt: skip
    model.set_logger(Logger(None, []))
    return model


@torch.no_grad()
def take_weights(model: Oracle, ppo: VectorPPO) -> None:
    """Give the oracle our weights."""
    policy: Any = model.policy
    layers = [layer for part in layers_of(policy) for layer in part]
    *weights, log_std = of_ours(ppo) if hasattr(policy, "log_std") else [*of_ours(ppo), torch.zeros(0)]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.copy_(weight[:-1].T)
        layer.bias.copy_(weight[-1])
    if len(log_std):
        policy.log_std.copy_(log_std)


def repeat(model: Oracle, actions: np.ndarray) -> None:
    """Let the oracle take rollouts in which these ``[T, N, components]`` are what it draws, without an update."""
    policy: Any = model.policy
    left = iter(torch.from_numpy(actions.astype(policy.action_space.dtype)))  # older buffers hold every action as float32

    def forward(observations: Tensor, deterministic: bool = False) -> Any:
        given = next(left).reshape(-1, *policy.action_space.shape)
        values, log_prob, _ = policy.evaluate_actions(observations, given.float())
        return given, values, log_prob

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "forward", forward)
        patch.setattr(model, "train", lambda: None)
        model.learn(len(actions) * CONFIG.num_envs)
    assert next(left, None) is None


def batch_of(model: Oracle, ppo: VectorPPO) -> Batch:
    """The oracle's rollout."""
    buffer = model.rollout_buffer
    observations, actions, *rest = (
        torch.from_numpy(buffer.swap_and_flatten(getattr(buffer, key)))
        for key in ("observations", "actions", "log_probs", "advantages", "returns")
    )
    log_probs, advantages, returns = (rows.flatten() for rows in rest)
    return Batch(observations, ppo.inputs(observations), actions.to(ppo.actor.flat.dtype), log_probs, advantages, returns)


def penalty_of(log_std: Tensor | None) -> Any:
    """A loss that reads outputs, observations and, if there is one, the spread."""

    def penalty(outputs: Tensor, observations: Tensor, labels: Any = None) -> Tensor:
        distance = (outputs - 0.3).square() if log_std is None else (outputs - 0.3).square() * (-log_std).exp().reshape(-1)
        return distance.sum(-1) * (1 + observations.float().flatten(1).sum(-1).abs())

    return penalty


def hold(ppo: VectorPPO, model: Oracle, weight: float) -> None:
    """Give both the same penalty; Stable-Baselines3 has it in the place of minus the entropy."""
    policy: Any = model.policy
    gaussian = hasattr(policy, "log_std")
    ppo.penalty, ppo.penalty_weight = penalty_of(ppo.actor.log_std if gaussian else None), weight
    penalty, own = penalty_of(policy.log_std if gaussian else None), policy.evaluate_actions

    def evaluate_actions(observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, log_prob, _ = own(observations, actions)
        outputs = policy.action_net(policy.mlp_extractor.forward_actor(policy.extract_features(observations)))
        return values, log_prob, -penalty(outputs, observations)

    policy.evaluate_actions = evaluate_actions
    model.ent_coef = weight


def in_float64(ppo: VectorPPO) -> VectorPPO:
    """Its weights in a new PPO that computes with doubles."""
    torch.set_default_dtype(torch.float64)
    try:
        actor, critic = (
            StudentStack(stack.architecture, generators=[torch.Generator()], mean=stack.mean.double(), scale=stack.scale.double())
            for stack in (ppo.actor, ppo.critic)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    actor.flat.copy_(ppo.actor.flat)
    critic.flat.copy_(ppo.critic.flat)
    return VectorPPO(actor, critic, CONFIG, seed=SEED, penalty=lambda outputs, observations, labels: outputs.sum(-1))


@pytest.fixture(params=WORLDS)
def pair(request) -> Any:
    """Both with the same rollout, of which the policy has moved away, so that some ratios are clipped.

    In float64: the oracle's minibatches come in another order than our whole batch, and in float32 sums of terms that cancel differ by more
    than a bound on a wrong formula should let through.
    """
    ppo, environments = new_ppo(request.param), environments_of(request.param)
    environments.rollout(ppo.actor.member(0))
    model: Any = oracle_of(request.param, ppo)
    take_weights(model, ppo)
    repeat(model, environments.actions)
    draws = torch.Generator().manual_seed(1)
    for stack in (ppo.actor, ppo.critic):
        stack.flat.add_(0.1 * torch.randn(stack.flat.shape, generator=draws))
    ppo = in_float64(ppo)
    model.policy.double()
    extractor = model.policy.features_extractor
    extractor.mean, extractor.scale = ppo.actor.mean, ppo.actor.scale
    take_weights(model, ppo)
    for name in ("rewards", "returns", "values", "log_probs", "advantages"):
        setattr(model.rollout_buffer, name, getattr(model.rollout_buffer, name).astype(np.float64))
    own = model.policy.evaluate_actions
    model.policy.evaluate_actions = lambda observations, actions: own(observations, actions.double())
    return SimpleNamespace(ppo=ppo, model=model, batch=batch_of(model, ppo))


# Rollouts.


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_made_of_a_rollout_is_what_stable_baselines3_makes_of_it(name):
    """Episodes end in both ways, rewards are scaled by a running variance, and the value of a truncated state is added to its reward."""
    ppo, environments = new_ppo(name), environments_of(name)
    model = oracle_of(name, ppo)
    take_weights(model, ppo)
    actions, returns = [], []
    for _ in range(2):
        ended = environments.rollout(ppo.actor.member(0))
        batch, explained = ppo.transitions(environments, ended)
        actions.append(environments.actions.copy())
        returns += [episode.episode_return for episode in ended]
    repeat(model, np.concatenate(actions))
    expected = batch_of(model, ppo)
    for key, mine, theirs in zip(Batch._fields[:-1], batch[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(mine.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-5, msg=key)
        assert theirs.double().std() > 0
    buffer = model.rollout_buffer
    assert explained == pytest.approx(1 - np.var(buffer.returns - buffer.values) / np.var(buffer.returns), abs=1e-4)
    assert model.ep_info_buffer is not None
    assert returns[-100:] == pytest.approx([episode["r"] for episode in model.ep_info_buffer], abs=1e-5)
    assert len(returns) > 8


@pytest.mark.parametrize("name", WORLDS)
def test_the_value_network_begins_as_stable_baselines3_s_with_this_seed(name):
    ppo = new_ppo(name)
    assert ppo.critic.architecture.hidden_sizes == (64, 64)
    _, critic = layers_of(oracle_of(name, ppo).policy)
    for layer, weights in zip(critic, ppo.critic.weights, strict=True):
        assert torch.equal(weights[0], torch.cat([layer.weight.T, layer.bias[None]]))


def test_an_explained_variance_of_returns_that_are_all_alike_is_not_defined():
    ppo, environments = new_ppo("Discrete"), environments_of("Discrete")
    environments.rollout(ppo.actor.member(0))
    environments.rewards[:] = 0
    ppo.critic.flat.zero_()
    _, explained = ppo.transitions(environments, [])
    assert math.isnan(explained)


class Scripted(gym.Env):
    """Earns what is written down, in episodes of seven steps."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, rewards: np.ndarray) -> None:
        self.rewards, self.steps = rewards, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(1, np.float32), float(self.rewards[self.steps - 1]), self.steps % 7 == 0, False, {}


def test_rewards_are_scaled_as_vec_normalize_scales_them():
    rewards = np.random.default_rng(0).normal(1, 3, (40, 3)) * np.linspace(0.1, 30, 40)[:, None]
    rewards[10, 1] = 1000  # is clipped
    env = VecNormalize(DummyVecEnv([functools.partial(Scripted, column) for column in rewards.T]), norm_obs=False, gamma=0.9)
    env.reset()
    scale = RewardScale(0.9)
    largest = 0.0
    for step, row in enumerate(rewards):
        _, expected, over, _ = env.step(np.zeros(3, int))
        found = scale(row, over)
        assert over.all() == (step % 7 == 6)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
        largest = max(largest, float(found.max()))
    assert largest < 10
    quiet = RewardScale(0.9)
    scaled = [float(quiet(np.array([reward]), np.array([False]))[0]) for reward in [*[0.0] * 300, 1.0]]
    assert scaled[-1] == 10  # 1 / sqrt(1 / 300) = 17


def test_advantages_are_those_of_stable_baselines3():
    draws = np.random.default_rng(0)
    rewards, values = draws.normal(size=(9, 4)).astype(np.float32), draws.normal(size=(10, 4)).astype(np.float32)
    over = draws.random((9, 4)) < 0.3
    over[-1] = [True, False, True, False]
    buffer = RolloutBuffer(9, Scripted.observation_space, Scripted.action_space, "cpu", gae_lambda=0.8, gamma=0.7, n_envs=4)
    buffer.rewards, buffer.values = rewards, values[:-1]
    buffer.episode_starts = np.concatenate([np.ones((1, 4)), over[:-1]]).astype(np.float32)
    buffer.compute_returns_and_advantage(torch.from_numpy(values[-1]), over[-1])
    np.testing.assert_array_equal(generalized_advantages(rewards, values, over, 0.7, 0.8), buffer.advantages)


def test_advantages_by_hand():
    rewards, values = np.array([[1], [2], [4]], np.float32), np.array([[10], [20], [30], [40]], np.float32)
    over = np.array([[False], [True], [False]])
    # from the end: 4 + 0.5 * 40 - 30 = -6; 2 - 20 = -18 where the episode ends; 1 + 0.5 * 20 - 10 + 0.5 * 0.2 * -18 = -0.8
    assert generalized_advantages(rewards, values, over, 0.5, 0.2).ravel().tolist() == pytest.approx([-0.8, -18, -6])


# The surrogate.


def test_the_surrogate_s_slope_is_autograd_s():
    log_ratio = torch.linspace(-1, 1, 41, dtype=torch.float64).repeat(2).requires_grad_()
    advantages = torch.cat([torch.full((41,), 2.0), torch.full((41,), -3.0)]).double()
    ratio = log_ratio.exp()
    torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum().backward()
    found = surrogate_slope(log_ratio.detach(), advantages, 0.2)
    torch.testing.assert_close(found, log_ratio.grad)
    assert 0.2 < (found == 0).double().mean() < 0.8


def test_normalised_advantages_by_hand():
    # mean 2, standard deviation sqrt((1 + 0 + 1) / 2) = 1
    assert normalized(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1, 0, 1])
    assert normalized(torch.tensor([7.0])).tolist() == [7]


def test_the_kl_is_estimated_without_bias():
    old, new = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 1.2)
    actions = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    found = approximate_kl(new.log_prob(actions) - old.log_prob(actions))
    assert found.item() == pytest.approx(torch.distributions.kl_divergence(old, new).item(), rel=0.02)
    assert approximate_kl(torch.tensor([math.log(2), 0.0])).item() == pytest.approx((1 - math.log(2)) / 2)


# Updates.


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradients_are_those_of_stable_baselines3(pair, weight):
    """Of the whole rollout as one minibatch, before they are clipped."""
    hold(pair.ppo, pair.model, weight)
    expected: list[Tensor] = []
    model = pair.model
    model.n_epochs, model.batch_size, model.max_grad_norm = 1, len(pair.batch.returns), 1e9
    model.policy.optimizer.step = lambda: expected.extend(of_oracle(model.policy, lambda parameter: parameter.grad))
    model.train()
    log_ratio, _ = pair.ppo.write_gradients(pair.batch)
    for mine, theirs in zip(of_ours(pair.ppo, "gradient"), expected, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=1e-12)
        assert theirs.any()
    assert 0.1 < ((log_ratio.exp() - 1).abs() > CONFIG.clip_range).float().mean() < 0.9  # both branches are taken


def test_gradients_of_one_transition_alone(pair):
    pair.ppo.write_gradients(Batch(*(trees.rows(values, slice(1)) for values in pair.batch)))
    assert pair.ppo.actor.gradient.isfinite().all()


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("max_grad_norm", [0.5, 1e9])
def test_an_update_leads_to_the_weights_of_stable_baselines3(pair, weight, max_grad_norm, monkeypatch):
    """Three epochs of three minibatches in the same order, the last of them smaller; what is told of them is the same too."""
    hold(pair.ppo, pair.model, weight)
    before = of_ours(pair.ppo)
    pair.model.max_grad_norm = max_grad_norm
    monkeypatch.setattr(ppo_module, "MAX_GRAD_NORM", max_grad_norm)
    with own_random_state():
        np.random.seed(SEED)  # noqa: NPY002
        pair.model.train()
    kl, penalty = pair.ppo.update(pair.batch)
    for mine, theirs, start in zip(of_ours(pair.ppo), of_oracle(pair.model.policy), before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
        assert not torch.equal(mine, start)
    logged = pair.model.logger.name_to_value
    assert kl == pytest.approx(logged["train/approx_kl"], rel=1e-6)
    assert penalty == (pytest.approx(logged["train/entropy_loss"], rel=1e-6) if weight else 0)
    assert pair.ppo.gradient_steps == 9


def test_the_learning_rate_can_change_between_updates(pair):
    start = of_ours(pair.ppo)
    pair.ppo.learning_rate = 0.0
    pair.ppo.update(pair.batch)
    assert all(torch.equal(mine, before) for mine, before in zip(of_ours(pair.ppo), start, strict=True))


def test_the_penalty_is_asked_only_where_it_has_weight(pair):
    asked: list[int] = []

    def penalty(outputs: Tensor, observations: Tensor, labels: Any = None) -> Tensor:
        asked.append(len(observations))
        return outputs.sum(-1)

    pair.ppo.penalty = penalty
    pair.ppo.update(pair.batch)
    assert asked == []
    pair.ppo.penalty_weight = 1.0
    pair.ppo.update(pair.batch)
    assert sorted(asked) == [16] * 3 + [24] * 6


def test_an_actor_that_stands_still_is_not_moved_and_adam_begins_with_it_later(pair):
    """In its first step Adam moves each weight by the learning rate, whatever the critic's step is."""
    ppo, one = pair.ppo, CONFIG.learning_rate
    actor, critic = ppo.actor.flat.clone(), ppo.critic.flat.clone()
    ppo.train_actor(False)
    assert ppo.update(pair.batch) == (0, 0)
    assert torch.equal(ppo.actor.flat, actor)
    assert not torch.equal(ppo.critic.flat, critic)
    ppo.train_actor(True)
    ppo.config = replace(CONFIG, epochs=1, batch_size=64)
    ppo.update(pair.batch)
    moved = (ppo.actor.flat - actor).abs()[ppo.actor.gradient.abs() > 1e-3]
    torch.testing.assert_close(moved, torch.full_like(moved, one), rtol=0.02, atol=0)
    assert len(moved) > 10


def test_gaussians_alone_have_a_spread(pair):
    assert bool(pair.ppo.actor.log_std.numel()) == isinstance(pair.ppo.actor.architecture.family, DiagGaussian)
