"""PPO on students with convolutions, a memory, masks, float64 inputs and a family of one's own, beside losses written with autograd."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from torch import Tensor

from policy_distill.config import LossConfig, PolishConfig
from policy_distill.environments.action_masks import MASK, ActionMasks, allows
from policy_distill.environments.border import own_random_state
from policy_distill.losses.objective import Objective
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.families import FAMILIES
from policy_distill.policies.student import Student
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from policy_distill.training.ppo.autograd_ppo import AutogradPPO, RecurrentPPO
from policy_distill.training.ppo.kickstart import Kickstart, ppo_on
from policy_distill.training.ppo.ppo import PPO, RewardScale, generalized_advantages, normalized
from policy_distill.training.ppo.vector_ppo import VectorPPO
from tests.integration.test_own_kinds import Ordinal
from tests.masked_worlds import LENGTH, Drawn
from tests.small_worlds import Bandit, Beacon

CONFIG = PolishConfig(env_steps=4096, num_envs=4, num_steps=15, batch_size=24, epochs=2, learning_rate=1e-2, sequence_length=6)


class Lit(gym.Env):
    """One step: name the quarter of the image that is lit, counted from ``start``."""

    def __init__(self, start: int = 0) -> None:
        self.observation_space: gym.Space = gym.spaces.Box(0, 255, (6, 6, 1), np.uint8)
        self.action_space, self.start = gym.spaces.Discrete(4, start=start), start

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.lit = int(self.np_random.integers(4))
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        return self._look(), float(action == self.lit + self.start), True, False, {}

    def _look(self) -> Any:
        image = np.zeros((2, 3, 2, 3, 1), np.uint8)
        image[self.lit // 2, :, self.lit % 2] = 200
        return image.reshape(6, 6, 1)


class LitFromOne(Lit):
    """Shown is the number itself; numbers and actions count from 1."""

    def __init__(self) -> None:
        super().__init__(start=1)
        self.observation_space = gym.spaces.Discrete(4, start=1)

    def _look(self) -> Any:
        return self.lit + 1


class LitInParts(Lit):
    """The image shows the upper or the lower half, a number which side."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Dict({"image": self.observation_space, "side": gym.spaces.Box(-1, 1, (1,))})

    def _look(self) -> Any:
        image = np.zeros((2, 18), np.uint8)
        image[self.lit // 2] = 200
        return {"image": image.reshape(6, 6, 1), "side": np.array([2 * (self.lit % 2) - 1], np.float32)}


class LitFarAway(Lit):
    """Shown is the number beside a clock, both far from 0: in float32 all of them are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, np.inf, (2,), np.float64)

    def _look(self) -> Any:
        return np.array([1e9 + self.lit, 1e9 - self.lit])


class Later(gym.Env):
    """Three steps: a bit is shown, then nothing, and in the last step it must be named."""

    observation_space: gym.Space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.bit, self.steps = int(self.np_random.integers(2)), 0
        return self._look(self.bit), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._look(2), float(self.steps == 3 and action == self.bit), self.steps == 3, False, {}

    def _look(self, shown: int) -> Any:
        return shown


class LaterOnImages(Later):
    observation_space = gym.spaces.Box(0, 255, (6, 6, 1), np.uint8)

    def _look(self, shown: int) -> Any:
        image = np.zeros((6, 3, 2, 1), np.uint8)
        if shown < 2:
            image[:, :, shown] = 255
        return image.reshape(6, 6, 1)


def masked(action_space: gym.Space) -> gym.Env:
    """The first of the choices that a mask allows earns 1 at each step."""
    return ActionMasks(Drawn(gym.spaces.Box(-1, 1, (1,)), action_space))


World: TypeAlias = tuple[Callable[[], gym.Env], dict[str, Any], float, int]
WORLDS: dict[str, World] = {
    "image": (Lit, {"channels": (4, 4)}, 1, 8_000),
    "image in a Dict": (LitInParts, {"channels": (4, 4)}, 1, 8_000),
    "from 1": (LitFromOne, {}, 1, 4_000),
    "far away": (LitFarAway, {}, 1, 4_000),
    "memory": (Later, {"memory": 8}, 1, 12_000),
    "memory of images": (LaterOnImages, {"memory": 8, "channels": (3, 2)}, 1, 12_000),
    "masked choices": (functools.partial(masked, gym.spaces.Discrete(4)), {}, LENGTH, 20_000),
    "masked dials": (functools.partial(masked, gym.spaces.MultiDiscrete([3, 2])), {}, LENGTH, 20_000),
    "masked switches": (functools.partial(masked, gym.spaces.MultiBinary(3)), {}, LENGTH, 20_000),
    "masked memory": (functools.partial(masked, gym.spaces.Discrete(3)), {"memory": 8}, LENGTH, 20_000),
    "ordinal": (Bandit, {}, 1, 8_000),
}
"""Each with the student's kind, the best return, and the steps in which polishing reaches it."""
WALK: dict[str, World] = {"walk on an image": (Beacon, {"channels": (4, 4)}, -3, 0)}
QUANTIZED: dict[str, World] = {
    "image in 4 bits": (Lit, {"channels": (4, 4), "bits": 4}, 1, 0),
    "memory in 4 bits": (Later, {"memory": 8, "bits": 4}, 1, 0),
}
KINDS = {**WORLDS, **WALK, **QUANTIZED}


@pytest.fixture(autouse=True)
def families(request, monkeypatch) -> None:
    """Under "ordinal" actions are levels in an order, of a family of which only ``draw`` and ``log_prob`` are known."""
    name = getattr(getattr(request.node, "callspec", None), "params", {}).get("name")
    if name == "ordinal":
        monkeypatch.setitem(FAMILIES, gym.spaces.Discrete, Ordinal.of_space)


def spoiled(name: str) -> Student:
    """A student with drawn weights for the spaces of a world, normalised by what it shows."""
    make, kind, _, _ = KINDS[name]
    env = make()
    student = Student(Architecture(env.observation_space, env.action_space, (12,), "tanh", **kind))
    shown = [env.reset(seed=seed)[0] for seed in range(40)]
    seen = trees.to_tensors(trees.map_leaves(lambda leaf: np.asarray(leaf), trees.stack(shown)))
    dtype = torch.float64 if name == "far away" else torch.float32
    student.encoder.normalize(lambda: [seen], dtype)
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / max(parameter[0].numel(), 1) ** 0.5)
        if student.architecture.is_masked:  # for the choices that earn least
            student.linears[-1].bias.copy_(torch.arange(1.0, 1 + student.family.width))
    return student.eval().requires_grad_(False)


def teacher_of(student: Student) -> Teacher:
    space = student.action_space
    return Teacher.from_callable(
        lambda seen: np.array([space.sample() for _ in range(trees.length(seen))]), student.observation_space, space
    )


def environments_of(name: str, config: PolishConfig = CONFIG, *, limit: int = 1000) -> contextlib.closing[RolloutEnv]:
    """``limit`` steps end an episode."""
    make = KINDS[name][0]
    environments = RolloutEnv([lambda: gym.wrappers.TimeLimit(make(), limit)] * config.num_envs, config.num_steps, seed=3)
    environments.reset()
    return contextlib.closing(environments)


def ppo_of(name: str, config: PolishConfig = CONFIG) -> PPO[Any]:
    student = spoiled(name)
    teacher = teacher_of(student)
    with own_random_state():
        return ppo_on(student, teacher, Objective(LossConfig(), teacher.family), config, seed=5)


def average_return(name: str, student: Student) -> float:
    """Of the deterministic student."""
    env, returns = KINDS[name][0](), []
    for seed in range(1000, 1040):
        observation, _ = env.reset(seed=seed)
        state, total, over = student.initial_state(1), 0.0, False
        while not over:
            seen = trees.map_leaves(lambda leaf: np.asarray(leaf)[None], observation)
            actions, state = student.step(seen, state, None)
            observation, reward, terminated, truncated, _ = env.step(actions[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


# Where it starts.


@pytest.mark.parametrize("name", WORLDS)
def test_ppo_starts_as_the_student_with_the_critic_of_its_kind(name):
    student, ppo = spoiled(name), ppo_of(name)
    architecture = student.architecture
    assert type(ppo) is (RecurrentPPO if architecture.memory else AutogradPPO if architecture.channels else VectorPPO)
    mine = ppo.actor.member(0).state_dict()
    assert mine.keys() == student.state_dict().keys()
    assert all(torch.equal(tensor, mine[key]) for key, tensor in student.state_dict().items())
    critic = ppo.critic.member(0)
    assert critic.architecture.channels == tuple(16 for _ in architecture.channels)
    assert critic.architecture.memory == (64 if architecture.memory else 0)
    for key, buffer in student.encoder.named_buffers():
        torch.testing.assert_close(dict(critic.encoder.named_buffers())[key], buffer, rtol=0, atol=0)


# The oracle.


def unrolled(
    student: Student, seen: trees.Tree, starts: Tensor, state: Tensor, stored: Sequence[Tensor] | None = None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A student along T steps of N environments, step by step.

    Args:
        student: the student.
        seen: ``[T, N, ...]``.
        starts: ``[T, N]``, where episodes begin.
        state: ``[N, units]`` before the first step.
        stored: states before each step, from which sequences begin in every sixth step; None: all is one sequence.

    Returns:
        Logits or means ``[T, N, width]``, of which masks are not yet known, and the states before and after each step.
    """
    outputs, before, after = [], [], []
    for step, start in enumerate(starts):
        hidden = student.encoder(trees.rows(seen, step))
        if (memory := student.memory) is not None:
            state = state if stored is None or step % 6 else stored[step]
            state = torch.where(start[:, None], torch.zeros_like(state), state)
            before.append(state)
            (reset, update, new), inner = memory.inputs(hidden).chunk(3, -1), memory.recurrent(state).chunk(3, -1)
            z = torch.sigmoid(update + inner[1])
            state = hidden = (1 - z) * torch.tanh(new + torch.sigmoid(reset + inner[0]) * inner[2]) + z * state
        outputs.append(student.network(hidden))
        after.append(state)
    return torch.stack(outputs), before, after


def log_prob(student: Student, outputs: Tensor, seen: trees.Tree, actions: Tensor) -> Tensor:
    """Of raw actions ``[B, components]``, under the masks in ``seen`` by sb3-contrib's distributions."""
    space = student.action_space
    if isinstance(student.family, Ordinal):
        return student.family.log_prob({"score": outputs}, actions.long())
    if not student.architecture.is_masked:
        return torch.distributions.Categorical(logits=outputs).log_prob(actions[:, 0])
    if isinstance(space, gym.spaces.MultiBinary):
        outputs = torch.stack([torch.zeros_like(outputs), outputs], dim=-1).flatten(1)  # off and on
    distribution: Any = make_masked_proba_distribution(space)
    distribution.proba_distribution(outputs)
    distribution.apply_masking(seen[MASK].numpy())
    found: Tensor = distribution.log_prob(actions[:, 0] if isinstance(space, gym.spaces.Discrete) else actions)
    return found


def by_environment(rows: Tensor) -> Tensor:
    return rows.transpose(0, 1).flatten(0, 1)


class Oracle:
    """PPO's networks with autograd and states of their own; each call of ``unroll`` is about the next rollout."""

    def __init__(self, ppo: PPO[Any], num_envs: int) -> None:
        self.ppo = ppo
        self.states = [torch.zeros(num_envs, stack.architecture.memory) for stack in (ppo.actor, ppo.critic)]

    def unroll(self, environments: RolloutEnv, stored: Sequence[Any] = (None, None)) -> SimpleNamespace:
        starts, seen = torch.from_numpy(environments.starts), trees.to_tensors(environments.observations)
        networks = [stack.member(0).requires_grad_(True) for stack in (self.ppo.actor, self.ppo.critic)]
        states = zip(self.states, stored, strict=True)
        actor, critic = (unrolled(one, seen, starts, *state) for one, state in zip(networks, states, strict=True))
        if networks[0].memory is not None:
            self.states = [actor[1][-1].detach(), critic[1][-1].detach()]
        rows = trees.map_leaves(lambda leaf: by_environment(leaf[:-1]), seen)
        actions = by_environment(torch.from_numpy(environments.actions.astype(np.float32)))
        return SimpleNamespace(
            networks=networks, log_probs=log_prob(networks[0], by_environment(actor[0][:-1]), rows, actions),
            values=critic[0][..., 0], before=(actor[1], critic[1]), after=critic[2],
        )  # fmt: skip


# Rollouts.


@pytest.mark.parametrize("name", KINDS)
def test_probabilities_values_and_advantages_of_two_rollouts(name):
    """Between them the weights change; a memory goes on with the state that it had before. Episodes are cut off after two steps."""
    ppo = ppo_of(name)
    oracle, scale, cut = Oracle(ppo, CONFIG.num_envs), RewardScale(CONFIG.discount), 0
    with environments_of(name, limit=2) as environments:
        for _ in range(2):
            ended = environments.rollout(ppo.actor.member(0))
            batch, _ = ppo.transitions(environments, ended)
            with torch.no_grad():
                expected = oracle.unroll(environments)
                torch.testing.assert_close(batch.log_probs, expected.log_probs, rtol=1e-4, atol=1e-4)
                rewards = np.stack([scale(*step) for step in zip(environments.rewards, environments.starts[1:], strict=True)])
                critic = expected.networks[1]
                for episode in ended:
                    if episode.truncated:
                        cut += 1
                        last = trees.map_leaves(lambda leaf: np.asarray(leaf)[None, None], episode.observation)
                        state = expected.after[episode.step][episode.index][None]
                        value, *_ = unrolled(critic, trees.to_tensors(last), torch.tensor([[False]]), state)
                        rewards[episode.step, episode.index] += CONFIG.discount * float(value)
            values = expected.values.numpy()
            advantages = generalized_advantages(rewards, values, environments.starts[1:], CONFIG.discount, CONFIG.gae_lambda)
            torch.testing.assert_close(batch.advantages, by_environment(torch.from_numpy(advantages)), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(batch.returns, by_environment(torch.from_numpy(advantages + values[:-1])), rtol=1e-3, atol=1e-4)
            assert batch.log_probs.std() > 0.01
            ppo.update(batch)
    assert cut > 8 or name in {"image", "image in a Dict", "from 1", "far away", "ordinal", "image in 4 bits"}  # episodes of one step


# Updates.


@pytest.mark.parametrize("name", [*WORLDS, *WALK])
def test_gradients_are_autograd_s(name):
    """Of the whole rollout, of which the policy has moved away, so that some ratios are clipped; states are those from before."""
    ppo = ppo_of(name)
    with environments_of(name, limit=9) as environments:
        batch, _ = ppo.transitions(environments, environments.rollout(ppo.actor.member(0)))
    with torch.no_grad():
        stored = Oracle(ppo, CONFIG.num_envs).unroll(environments).before
    draws = torch.Generator().manual_seed(1)
    for stack in (ppo.actor, ppo.critic):
        stack.flat.add_(0.3 * torch.randn(stack.flat.shape, generator=draws))
    expected = Oracle(ppo, CONFIG.num_envs).unroll(environments, stored)
    ratio, advantages = (expected.log_probs - batch.log_probs).exp(), normalized(batch.advantages)
    clipped = ratio.clamp(1 - CONFIG.clip_range, 1 + CONFIG.clip_range)
    assert 0.02 < (clipped != ratio).float().mean() < 0.98
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    loss = loss + 0.5 * (by_environment(expected.values[:-1]) - batch.returns).square().mean()
    loss.backward()
    ppo.write_gradients(batch)
    for stack, network in zip((ppo.actor, ppo.critic), expected.networks, strict=True):
        found = dict(stack.member(0, stack.gradient).named_parameters())
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None
            scale = max(1e-2, float(parameter.grad.abs().max()))
            torch.testing.assert_close(found[key] / scale, parameter.grad / scale, rtol=0, atol=2e-4, msg=key)
            assert parameter.grad.any()


@pytest.mark.parametrize("name", ["memory", "masked memory"])
def test_minibatches_are_whole_sequences_each_once(name):
    ppo: Any = ppo_of(name)
    with environments_of(name, limit=9) as environments:
        batch, _ = ppo.transitions(environments, environments.rollout(ppo.actor.member(0)))
    orders = []
    for _ in range(2):
        rows = list(ppo._minibatches(batch))
        assert sorted(torch.cat(rows).tolist()) == list(range(60))
        assert all(18 <= len(part) <= 29 for part in rows[:-1])  # 24, give or take a sequence
        for part in rows:
            begins = batch.inputs["begins"][part]
            assert begins[0]
            assert all(
                bool(begin) or int(row) == int(before) + 1 for begin, row, before in zip(begins[1:], part[1:], part[:-1], strict=True)
            )
        orders.append(torch.cat(rows).tolist())
    assert orders[0] != orders[1]
    starts, within = environments.starts[:-1].T, np.arange(15) % CONFIG.sequence_length == 0
    np.testing.assert_array_equal(batch.inputs["begins"].reshape(4, 15), starts | within)


def test_a_component_of_which_nothing_is_allowed_moves_no_weight():
    """All of its choices are then equally likely, whatever the network says."""
    ppo = ppo_of("masked dials")
    with environments_of("masked dials") as environments:
        batch, _ = ppo.transitions(environments, environments.rollout(ppo.actor.member(0)))
    for closed in (False, True):
        seen = {**batch.observations, MASK: torch.ones_like(batch.observations[MASK])}
        seen[MASK][:, 3:5] = 0 if closed else 1
        assert isinstance(ppo, VectorPPO)
        ppo.write_gradients(batch._replace(inputs=ppo.inputs(seen), log_probs=batch.log_probs + 0.1))
        last = ppo.actor.member(0, ppo.actor.gradient).linears[-1]
        assert last.weight[3:5].any() == (not closed)
        assert last.weight[:3].any()


# What is learnt.


def polished(name: str, student: Student) -> Student:
    config = replace(
        CONFIG, num_envs=8, num_steps=64, batch_size=128, epochs=6, snapshots=1, critic_warmup=0.1, average_decay=0.5, discount=0.5,
        env_steps=KINDS[name][3],
    )  # fmt: skip
    teacher = teacher_of(student)
    training = Kickstart(student, teacher, Objective(LossConfig(), teacher.family), config, seed=1)
    with environments_of(name, config) as environments:
        training.begin(environments)
        snapshot = training.next_snapshot(environments)
    assert training.over
    assert bool(snapshot.critic) == isinstance(ppo_of(name), VectorPPO)
    return snapshot.student


@pytest.mark.parametrize("name", WORLDS)
def test_the_best_return_is_reached_from_a_spoiled_student(name):
    student, best = spoiled(name), WORLDS[name][2]
    assert average_return(name, student) < 0.8 * best
    assert average_return(name, polished(name, student)) > 0.99 * best


@pytest.mark.parametrize("name", [name for name in WORLDS if name.startswith("masked")])
def test_no_forbidden_action_is_drawn(name):
    """Of a student whose logits favour what the masks forbid."""
    student = spoiled(name)
    student.linears[-1].weight.mul_(100)
    ppo_actions, forbidden, config = 0, 0, replace(CONFIG, num_steps=200)
    with environments_of(name, config) as environments:
        environments.rollout(student)
        masks = environments.observations[MASK][:-1].reshape(-1, environments.observations[MASK].shape[-1])
        for mask, raw in zip(masks, environments.actions.reshape(len(masks), -1), strict=True):
            action = raw[0] if isinstance(student.action_space, gym.spaces.Discrete) else raw
            forbidden += not allows(student.action_space, mask, action)
            ppo_actions += 1
    assert (forbidden, ppo_actions) == (0, 800)


@pytest.mark.parametrize("name", ["image", "memory", "masked memory", "image in 4 bits"])
def test_a_training_in_parts_is_the_same_training(name):
    student, config = spoiled(name), replace(CONFIG, env_steps=320, snapshots=3, critic_warmup=0.2)

    def snapshots(*, apart: bool) -> list[Student]:
        found: list[Student] = []
        training: Kickstart | None = None
        with contextlib.ExitStack() as opened:
            while training is None or not training.over:
                if training is None or apart:
                    before, teacher = training, teacher_of(student)
                    training = Kickstart(student, teacher, Objective(LossConfig(), teacher.family), config, seed=1)
                    if before is not None:
                        training.load_state_dict({key: tensor.clone() for key, tensor in before.state_dict().items()})
                    environments = opened.enter_context(environments_of(name, config))
                    training.begin(environments)
                found.append(training.next_snapshot(environments).student)
        return found

    whole, parts = snapshots(apart=False), snapshots(apart=True)
    assert len(whole) == len(parts) == 3
    for one, other in zip(whole, parts, strict=True):
        expected = other.state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in one.state_dict().items())
