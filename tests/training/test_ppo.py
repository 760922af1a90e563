"""The lean PPO beside Stable-Baselines3's own: the same rollouts, the same gradients, the same weights afterwards."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from policy_distill.config import LossConfig, PolishConfig
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import make
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import Box
from policy_distill.policies.families import Deterministic, family_of
from policy_distill.training import kickstart as kickstart_module
from policy_distill.training.ppo import LeanPPO, log_prob_and_score
from policy_distill.training.stack import StudentStack
from tests.small_worlds import (
    WORLDS,
    random_observations,
    random_student,
)

SPACES = {
    "Discrete": gym.spaces.Discrete(4),
    "Box": gym.spaces.Box(-1, 1, (3,)),
    "MultiDiscrete": gym.spaces.MultiDiscrete([2, 3]),
    "MultiBinary": gym.spaces.MultiBinary(3),
}
CONFIG = PolishConfig(env_steps=128, num_envs=4, num_steps=16, batch_size=24, epochs=3, learning_rate=3e-3)
"""Rollouts of 64 steps: minibatches of 24, 24 and 16."""
SEED = 5
"""Of both models."""


def in_box_units(env: gym.Env) -> gym.Env:
    """Actions in [-1, 1], as Gymnasium's own wrapper scales them, where they are continuous."""
    return gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0)) if isinstance(env.action_space, gym.spaces.Box) else env


def lean_model(name: str) -> LeanPPO:
    """As it begins."""
    spec, teacher = WORLDS[name]
    student = random_student(teacher.observation_space, teacher.action_space, activation="tanh")
    with own_random_state():
        return kickstart_module._build(student, teacher, spec, Objective(LossConfig(), teacher.family), CONFIG, SEED)


def sb3_model(name: str, lean: LeanPPO) -> PPO:
    """Stable-Baselines3's PPO with the same weights, on its own environments, and its own optimiser."""
    spec, _ = WORLDS[name]
    env = VecNormalize(DummyVecEnv([lambda: Monitor(in_box_units(make(spec)))] * CONFIG.num_envs), norm_obs=False, gamma=CONFIG.discount)
    same = ("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "policy_kwargs")
    with own_random_state():
        model = PPO("MlpPolicy", env, seed=SEED, device="cpu", **{key: getattr(lean, key) for key in same})
    model.set_logger(Logger(None, []))
    model.policy.load_state_dict(lean.policy.state_dict())
    return model


def collect(model: PPO, rollouts: int = 1) -> np.ndarray:
    """Take rollouts without an update between them, as after a reset; the actions of all of them, ``[T, N, components]``."""
    _, callback = model._setup_learn(10_000, None)
    taken = []
    for _ in range(rollouts):
        assert model.env is not None
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        taken.append(model.rollout_buffer.actions.copy())
    return np.concatenate(taken)


def repeat(sb3: PPO, actions: np.ndarray, rollouts: int) -> None:
    """Let Stable-Baselines3's PPO take rollouts in which these ``[T, N, components]`` are what it draws."""
    policy: Any = sb3.policy
    left = iter(torch.from_numpy(actions.astype(policy.action_space.dtype)))  # older buffers hold every action as float32

    def forward(observations: Tensor, deterministic: bool = False) -> Any:
        given = next(left).reshape(-1, *policy.action_space.shape)
        values, log_prob, _ = policy.evaluate_actions(observations, given.float())
        return given, values, log_prob

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "forward", forward)
        collect(sb3, rollouts)
    assert next(left, None) is None


def copy_rollout(source: PPO, target: PPO) -> None:
    """Give ``target`` what ``source`` has collected."""
    for name in ("observations", "actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
        setattr(target.rollout_buffer, name, getattr(source.rollout_buffer, name).copy())
    target.rollout_buffer.full = True


def penalty_of(log_std: Tensor | None) -> Any:
    """A loss that reads outputs, observations and, if there is one, the spread."""

    def penalty(outputs: Tensor, observations: Tensor) -> Tensor:
        distance = (outputs - 0.3).square() if log_std is None else (outputs - 0.3).square() * (-log_std).exp().reshape(-1)
        return distance.sum(-1) * (1 + observations.float().flatten(1).sum(-1).abs())

    return penalty


def hold(lean: LeanPPO, sb3: PPO, weight: float) -> None:
    """Give both the same penalty; Stable-Baselines3 has it in the place of minus the entropy."""
    policy: Any = sb3.policy
    gaussian = hasattr(policy, "log_std")
    lean.penalty, lean.penalty_weight = penalty_of(lean.policy.actor.log_std if gaussian else None), weight
    penalty, own = penalty_of(policy.log_std if gaussian else None), policy.evaluate_actions

    def evaluate_actions(observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, log_prob, _ = own(observations, actions)
        outputs = policy.action_net(policy.mlp_extractor.forward_actor(policy.extract_features(observations)))
        return values, log_prob, -penalty(outputs, observations)

    policy.evaluate_actions = evaluate_actions
    sb3.ent_coef = weight


def moved(model: PPO) -> None:
    """Change the policy, so that the ratios to the rollout's differ from 1 and some are clipped."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))


def in_float64(lean: LeanPPO, sb3: PPO) -> None:
    """Go on with doubles on both sides. Stable-Baselines3 shuffles the rollout before each epoch, without a seed: in float32 its gradients
    change in the last digits from run to run, and where terms cancel that is more than any bound on a wrong formula should let through."""
    for model in (lean, sb3):
        model.policy.double()
        for name in ("rewards", "returns", "values", "log_probs", "advantages"):
            setattr(model.rollout_buffer, name, getattr(model.rollout_buffer, name).astype(np.float64))
    policy: Any = sb3.policy
    own = policy.evaluate_actions
    policy.evaluate_actions = lambda observations, actions: own(observations, actions.double())
    policy.features_extractor.register_forward_hook(lambda module, inputs, output: output.double())
    torch.set_default_dtype(torch.float64)
    try:
        stacks = [
            StudentStack(stack.architecture, generators=[torch.Generator()], mean=stack.mean.double(), scale=stack.scale.double())
            for stack in (lean.policy.actor, lean.policy.critic)
        ]
    finally:
        torch.set_default_dtype(torch.float32)
    lean.policy.attach(*stacks)


def gradients_of_sb3(model: PPO) -> dict[str, Tensor]:
    """Of its ``train`` on the whole rollout as one minibatch, before clipping."""
    seen: dict[str, Tensor] = {}
    model.n_epochs, model.batch_size, model.max_grad_norm = 1, 10_000, 1e9

    def remember() -> None:
        seen.update({name: parameter.grad.clone() for name, parameter in model.policy.named_parameters() if parameter.grad is not None})

    model.policy.optimizer.step = remember  # type: ignore[method-assign, assignment]
    model.train()
    return seen


def lean_gradients(model: LeanPPO) -> dict[str, Tensor]:
    """Of ``write_gradients`` on the whole rollout, by Stable-Baselines3's names."""
    model.write_gradients(model._rollout(), CONFIG.clip_range)
    found = {}
    policy = model.policy
    flats = [(policy.actor.flat, policy.actor.gradient), (policy.critic.flat, policy.critic.gradient)]
    for name, parameter in policy.named_parameters():
        for flat, gradient in flats:
            offset = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
            if 0 <= offset < flat.numel():
                found[name] = gradient.as_strided(parameter.shape, parameter.stride(), offset).clone()
    return found


# Rollouts.


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_made_of_a_rollout_is_what_stable_baselines3_makes_of_it(name):
    """Episodes end in both ways, rewards are scaled by a running variance, and the value of a truncated state is added to its reward."""
    lean = lean_model(name)
    sb3 = sb3_model(name, lean)
    repeat(sb3, collect(lean, rollouts=2), rollouts=2)
    for key in ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        mine, theirs = getattr(lean.rollout_buffer, key), getattr(sb3.rollout_buffer, key)
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=key)
        assert key == "episode_starts" or theirs.std() > 0
    assert lean.num_timesteps == sb3.num_timesteps == 128
    mine, theirs = lean.ep_info_buffer, sb3.ep_info_buffer
    assert mine is not None and theirs is not None  # noqa: PT018
    assert [episode["l"] for episode in mine] == [episode["l"] for episode in theirs]
    assert [episode["r"] for episode in mine] == pytest.approx([episode["r"] for episode in theirs], abs=1e-5)
    assert len(mine) > 8


# Distributions.


def distribution(space: gym.Space, outputs: Tensor, log_std: Tensor) -> Any:
    made: Any = make_proba_distribution(space)
    return made.proba_distribution(outputs, log_std) if isinstance(space, gym.spaces.Box) else made.proba_distribution(outputs)


@pytest.mark.parametrize("name", SPACES)
def test_log_probabilities_and_scores_are_autograd_s(name):
    space = SPACES[name]
    family = family_of(space)
    draws = torch.Generator().manual_seed(0)
    outputs = (3 * torch.randn(50, family.width, generator=draws)).double().requires_grad_()
    log_std = torch.randn(family.width, generator=draws).double().requires_grad_()
    actions = torch.as_tensor(random_observations(space, 50))
    expected = distribution(space, outputs, log_std).log_prob(actions.double())
    weights = torch.randn(50, generator=draws).double()
    slopes = torch.autograd.grad(expected @ weights, [outputs, log_std], allow_unused=True)
    with torch.no_grad():
        found, by_outputs, by_log_std = log_prob_and_score(family, outputs, log_std, actions.double())
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(weights[:, None] * by_outputs, slopes[0])
    assert (by_log_std is None) == (name != "Box")
    if by_log_std is not None:
        torch.testing.assert_close(weights @ by_log_std, slopes[1])


def test_log_probabilities_by_hand():
    nothing = torch.zeros(0)
    # half a standard deviation of 2 from the mean
    found, by_mean, by_log_std = log_prob_and_score(
        family_of(gym.spaces.Box(-1, 1, (1,))), torch.tensor([[1.0]]), torch.tensor([math.log(2)]), torch.tensor([[2.0]])
    )
    assert found.item() == pytest.approx(-0.125 - math.log(2) - math.log(2 * math.pi) / 2)
    assert by_mean.item() == pytest.approx(0.25)  # (2 - 1) / 2**2
    assert by_log_std is not None
    assert by_log_std.item() == pytest.approx(-0.75)  # 0.5**2 - 1
    # probabilities 1/4 and 3/4
    found, score, _ = log_prob_and_score(
        family_of(gym.spaces.Discrete(2)), torch.tensor([[7.0, 7.0 + math.log(3)]]), nothing, torch.tensor([1.0])
    )
    assert found.item() == pytest.approx(math.log(0.75))
    assert score[0].tolist() == pytest.approx([-0.25, 0.25])
    # on with 3/4, and it is off; on with 1/2, and it is on
    found, score, _ = log_prob_and_score(
        family_of(gym.spaces.MultiBinary(2)), torch.tensor([[math.log(3), 0.0]]), nothing, torch.tensor([[0.0, 1.0]])
    )
    assert found.item() == pytest.approx(math.log(0.25) + math.log(0.5))
    assert score[0].tolist() == pytest.approx([-0.75, 0.5])


def test_what_has_no_density_is_refused():
    family: Any = Deterministic(Box((-1.0,), (1.0,)))
    with pytest.raises(ValueError, match="no density"):
        log_prob_and_score(family, torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1))


# Updates.


@pytest.fixture(params=WORLDS)
def pair(request) -> Any:
    """Both models with the same rollout, of which the policy has moved away; in float64."""
    lean = lean_model(request.param)
    sb3 = sb3_model(request.param, lean)
    with torch.random.fork_rng(devices=[]):
        collect(lean)
    copy_rollout(lean, sb3)
    for model in (lean, sb3):
        moved(model)
    in_float64(lean, sb3)
    return SimpleNamespace(lean=lean, sb3=sb3)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradients_are_those_of_stable_baselines3(pair, weight):
    hold(pair.lean, pair.sb3, weight)
    expected, found = gradients_of_sb3(pair.sb3), lean_gradients(pair.lean)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0, atol=1e-12)
        assert gradient.any()
    log_ratio, _ = pair.lean.write_gradients(pair.lean._rollout(), CONFIG.clip_range)
    assert 0.1 < ((log_ratio.exp() - 1).abs() > CONFIG.clip_range).float().mean() < 0.9  # both branches are taken


def test_gradients_of_one_transition_alone(pair):
    """Its advantage is not normalised: one number has no spread."""
    rollout = pair.lean._rollout()
    one = type(rollout)(*(values[:1] for values in rollout))
    pair.lean.write_gradients(one, 10.0)
    assert pair.lean.policy.actor.gradient.isfinite().all()
    assert pair.lean.policy.actor.gradient.any()


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("max_grad_norm", [0.5, 1e9])
def test_an_update_leads_to_the_weights_of_stable_baselines3(pair, weight, max_grad_norm):
    """Three epochs of three minibatches, the last of them smaller; Adam's first steps divide small gradients by small numbers."""
    hold(pair.lean, pair.sb3, weight)
    before = {name: value.clone() for name, value in pair.lean.policy.state_dict().items()}
    for model in (pair.lean, pair.sb3):
        model.max_grad_norm, model.lr_schedule = max_grad_norm, lambda _: 2e-3
        with own_random_state():
            np.random.seed(7)  # noqa: NPY002
            model.train()
    theirs, mine = pair.sb3.policy.state_dict(), pair.lean.policy.state_dict()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-8, atol=1e-8)
        assert "features_extractor" in name or not torch.equal(value, before[name])
    logged, expected = pair.lean.logger.name_to_value, pair.sb3.logger.name_to_value
    for name in ("approx_kl", "explained_variance"):
        assert logged[f"train/{name}"] == pytest.approx(expected[f"train/{name}"], rel=1e-3, abs=1e-5)
    if weight:
        assert logged["train/penalty"] == pytest.approx(expected["train/entropy_loss"], rel=1e-3)
    assert pair.lean._n_updates == pair.sb3._n_updates == 3


def test_the_penalty_is_asked_only_where_it_has_weight(pair):
    asked: list[int] = []

    def penalty(outputs: Tensor, observations: Tensor) -> Tensor:
        asked.append(len(observations))
        return outputs.sum(-1)

    pair.lean.penalty = penalty
    pair.lean.train()
    assert asked == []
    pair.lean.penalty_weight = 1.0
    pair.lean.train()
    assert sorted(asked) == [16] * 3 + [24] * 6


def test_an_actor_that_stands_still_is_not_moved_and_adam_begins_with_it_later(pair):
    lean = pair.lean
    actor, critic = lean.policy.actor.flat.clone(), lean.policy.critic.flat.clone()
    lean.policy.train_actor(False)
    lean.train()
    assert torch.equal(lean.policy.actor.flat, actor)
    assert not torch.equal(lean.policy.critic.flat, critic)
    assert lean.logger.name_to_value["train/approx_kl"] == 0
    assert lean.policy.actor.flat not in lean.policy.optimizer.state
    lean.policy.train_actor(True)
    lean.train()
    steps = [int(lean.policy.optimizer.state[flat]["step"]) for flat in (lean.policy.actor.flat, lean.policy.critic.flat)]
    assert steps == [9, 18]
    assert not torch.equal(lean.policy.actor.flat, actor)


def test_the_policy_is_a_view_of_its_networks(pair):
    policy = pair.lean.policy
    own = sum(parameter.numel() for parameter in policy.parameters())
    spare = len(policy.critic.log_std.flatten())  # the value has no spread, but a network of continuous outputs keeps room for one
    assert own == policy.actor.flat.numel() + policy.critic.flat.numel() - spare
    with torch.no_grad():
        policy.actor.flat.zero_()
        policy.critic.flat.fill_(2.0)
    named = dict(policy.named_parameters())
    assert all((value == 2).all() if "value" in name else not value.any() for name, value in named.items())
    assert not policy.critic.gradient[:, policy.critic.flat.numel() - spare :].any()
