"""Proximal policy optimisation of one small student (PPO; Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

Actor and critic share no layer. For networks of a few hundred parameters, distribution objects, autograd and an optimiser step for each
tensor cost more than the arithmetic: the gradients are written out, and each network is a ``StudentStack`` of one. There is no entropy
bonus, no clipping of values and no early end of an update. Tests compare every quantity with Stable-Baselines3's PPO.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import PolishConfig
from policy_distill.policies.observations import encode_observations
from policy_distill.rollouts.ppo_rollouts import Ended, RolloutEnv
from policy_distill.support import trees
from policy_distill.training.stack import Activations, StudentStack

VALUE_WEIGHT = 0.5
"""Weight of the squared error of the values beside the surrogate (c1 in eq. 9)."""
MAX_GRAD_NORM = 0.5
"""Gradients of actor and critic together are scaled down to this norm."""


class Batch(NamedTuple):
    """Transitions of one rollout.

    Attributes:
        observations: raw ``[B, ...]``.
        inputs: ``[B, inputs + 1]``, the same as the networks read them.
        actions: ``[B, components]``.
        log_probs: of the actions when they were taken, ``[B]``; advantages and returns, ``[B]`` too.
        labels: of a teacher with a memory, see ``ppo_rollouts.Steps``; empty without one.
    """

    observations: trees.Tree
    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    labels: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


class PPO:
    """PPO on an actor and a critic, which are trained in place.

    Args:
        actor: one student; its outputs are logits or means in box units.
        critic: one network of one output, the value; it reads the same normalised observations.
        config: discount, lambda, clip range, epochs, batch size, and the learning rate to begin with.
        seed: of the order of the transitions.
        penalty: (outputs ``[B, width]``, raw observations, labels as in ``Batch``) -> a further loss of the actor ``[B]``.

    Attributes:
        learning_rate: of Adam, in the next update.
        penalty_weight: at zero, ``penalty`` is not called.
        gradient_steps: so far.
    """

    def __init__(
        self,
        actor: StudentStack,
        critic: StudentStack,
        config: PolishConfig,
        *,
        seed: int,
        penalty: Callable[[Tensor, trees.Tree, dict[str, Tensor]], Tensor],
    ) -> None:
        self.actor, self.critic, self.penalty, self.config = actor, critic, penalty, config
        self.learning_rate, self.penalty_weight, self.gradient_steps = config.learning_rate, 0.0, 0
        self._orders = np.random.RandomState(seed)  # the generator that Stable-Baselines3 draws its orders from
        self._reward_scale = RewardScale(config.discount)
        self._rooms: dict[int, tuple[Activations, Activations]] = {}
        critic.flat.grad = critic.gradient
        self.train_actor(True)
        self._adam = torch.optim.Adam([actor.flat, critic.flat], eps=1e-5, fused=True)

    def train_actor(self, on: bool) -> None:
        """Let the actor move or stand still; Adam does not count the steps in which it stands still."""
        self.actor.flat.grad = self.actor.gradient if on else None

    @property
    def trains_actor(self) -> bool:
        return self.actor.flat.grad is not None

    @torch.no_grad()
    def transitions(self, environments: RolloutEnv, ended: Sequence[Ended]) -> tuple[Batch, float]:
        """What there is to learn from a rollout that ``actor`` has taken, environment after environment.

        Args:
            environments: hold the rollout.
            ended: the episodes that ended in it.

        Returns:
            The transitions, and the share of the returns' variance that the critic explains, <= 1; NaN where there is no variance.
        """
        num_steps, num_envs = environments.rewards.shape
        observations = trees.map_leaves(lambda part: torch.from_numpy(part[:-1]).flatten(0, 1), environments.observations)
        actions = torch.from_numpy(environments.actions.astype(np.float32)).flatten(0, 1)
        inputs, discount = self.inputs(observations), self.config.discount
        log_probs, *_ = self.actor.architecture.family.scored(self.outputs(inputs), self.actor.log_std[0, 0], actions)
        values = self.values(inputs).reshape(num_steps, num_envs)
        rewards = np.stack([self._reward_scale(*step) for step in zip(environments.rewards, environments.starts[1:], strict=True)])
        if truncated := [episode for episode in ended if episode.truncated]:
            # the episode would have gone on: what was still to come is part of the last reward
            last = trees.to_tensors(trees.stack([episode.observation for episode in truncated]))
            where = tuple(zip(*((episode.step, episode.index) for episode in truncated), strict=True))
            rewards[where] += discount * self.values(self.inputs(last))
        following = self.values(self.inputs(trees.to_tensors(trees.rows(environments.observations, -1))))
        advantages = generalized_advantages(
            rewards, np.concatenate([values, following[None]]), environments.starts[1:], discount, self.config.gae_lambda
        )
        returns = advantages + values
        variance = returns.var()
        explained = float(1 - (returns - values).var() / variance) if variance else float("nan")
        labels = {name: torch.from_numpy(values).flatten(0, 1) for name, values in environments.labels.items()}
        flat = (
            observations,
            inputs,
            actions,
            log_probs,
            torch.from_numpy(advantages).flatten(),
            torch.from_numpy(returns).flatten(),
            labels,
        )

        def by_environment(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (num_steps, num_envs)).transpose(0, 1).flatten(0, 1)

        return Batch(*(trees.map_leaves(by_environment, rows) for rows in flat)), explained

    @torch.no_grad()
    def update(self, batch: Batch) -> tuple[float, float]:
        """Train on these transitions (algorithm 1, and Adam: Kingma & Ba 2015).

        Returns:
            KL from the policy that took the actions to the new one, in nats, as the minibatches of the last epoch estimate it, and
            the mean penalty; zeros where the actor stands still.
        """
        self._adam.param_groups[0]["lr"] = self.learning_rate
        penalties: list[Tensor] = []
        for _ in range(self.config.epochs):
            log_ratios: list[Tensor] = []
            order = torch.from_numpy(self._orders.permutation(len(batch.returns)))
            for rows in order.split(self.config.batch_size):
                log_ratio, penalty = self.write_gradients(Batch(*(trees.rows(values, rows) for values in batch)))
                nn.utils.clip_grad_norm_([self.actor.flat, self.critic.flat], MAX_GRAD_NORM)
                self._adam.step()
                self.gradient_steps += 1
                log_ratios.append(log_ratio)
                penalties.append(penalty)
        return float(torch.stack(list(map(approximate_kl, log_ratios))).mean()), float(torch.stack(penalties).mean())

    @torch.no_grad()
    def write_gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Write the loss's gradients (eq. 9) into ``actor.gradient`` and ``critic.gradient``.

        Returns:
            The log-ratio of new and old probabilities ``[B]`` and the mean penalty; zeros where the actor stands still.
        """
        actor, critic, size = self.actor, self.critic, len(batch.returns)
        inputs, (acted, predicted) = batch.inputs.T[None].contiguous(), self._room(size)
        error = critic.forward(inputs, predicted)[0, 0] - batch.returns
        _backward(critic, inputs, predicted, (2 * VALUE_WEIGHT / size) * error[:, None])
        if not self.trains_actor:
            return torch.zeros_like(error), torch.zeros(())

        outputs = actor.forward(inputs, acted)[0].T.contiguous()
        log_prob, by_outputs, by_log_std = actor.architecture.family.scored(outputs, actor.log_std[0, 0], batch.actions)
        log_ratio = log_prob - batch.log_probs
        by_log_prob = surrogate_slope(log_ratio, normalized(batch.advantages), self.config.clip_range) / -size
        upstream = by_log_prob[:, None] * by_outputs
        penalty, actor.log_std.grad = torch.zeros(()), None
        if self.penalty_weight:
            leaf = outputs.clone().requires_grad_()
            with torch.enable_grad():
                penalty = self.penalty(leaf, batch.observations, batch.labels).mean()
                (self.penalty_weight * penalty).backward()
            assert leaf.grad is not None
            upstream += leaf.grad
        if by_log_std is not None:
            slope = (by_log_prob @ by_log_std).view_as(actor.log_std)
            actor.log_std.grad = slope if actor.log_std.grad is None else actor.log_std.grad + slope
        _backward(actor, inputs, acted, upstream)
        return log_ratio, penalty.detach()

    def inputs(self, observations: trees.Tree) -> Tensor:
        """Raw observations as both networks read them, ``[B, inputs + 1]``: one-hot where discrete, normalised, ones last."""
        encoded = encode_observations(self.actor.architecture.observation_space, observations, self.actor.mean.dtype)
        normalized = (encoded - self.actor.mean) / self.actor.scale
        return torch.cat([normalized, normalized.new_ones(len(normalized), 1)], dim=1)

    def outputs(self, inputs: Tensor) -> Tensor:
        """The actor's logits or means ``[B, width]`` for what ``inputs`` returned; not differentiable."""
        return self.actor.forward(inputs.T[None], self._room(len(inputs))[0])[0].T.clone(memory_format=torch.contiguous_format)

    def values(self, inputs: Tensor) -> np.ndarray:
        """The critic's values ``[B]`` for what ``inputs`` returned."""
        return self.critic.forward(inputs.T[None], self._room(len(inputs))[1])[0, 0].numpy().copy()

    def _room(self, size: int) -> tuple[Activations, Activations]:
        """The actor's and the critic's buffers for a pass over this number of samples."""
        if size not in self._rooms:
            self._rooms[size] = self.actor.buffers(size), self.critic.buffers(size)
        return self._rooms[size]


def _backward(stack: StudentStack, inputs: Tensor, activations: Activations, upstream: Tensor) -> None:
    """Gradients of one network of which the loss reads the output ``[B, width]`` alone."""
    activations.slopes[-1][0].copy_(upstream.T)
    stack.backward(inputs, activations)


class RewardScale:
    """Divides rewards by the standard deviation of their discounted sums so far, and clips them to [-10, 10].

    This is the reward scaling of Engstrom et al. 2020 (https://arxiv.org/abs/2005.12729), computed as ``VecNormalize`` does.

    Args:
        discount: of the sums.
    """

    def __init__(self, discount: float) -> None:
        self._discount = discount
        self._sums = np.zeros(1)
        self._count, self._mean, self._variance = 1e-4, np.float64(0), np.float64(1)

    def __call__(self, rewards: np.ndarray, over: np.ndarray) -> np.ndarray:
        """The rewards of one step ``[N]``, scaled, in float32; ``over`` tells which episodes end with it."""
        rewards = rewards.astype(np.float32)
        self._sums = self._sums * self._discount + rewards
        size, distance = len(rewards), self._sums.mean() - self._mean
        count = self._count + size
        squares = self._variance * self._count + self._sums.var() * size + np.square(distance) * self._count * size / count
        self._mean, self._variance, self._count = self._mean + distance * size / count, squares / count, count
        self._sums[over] = 0
        return np.clip(rewards / np.sqrt(self._variance + 1e-8), -10.0, 10.0).astype(np.float32)


def generalized_advantages(rewards: np.ndarray, values: np.ndarray, over: np.ndarray, discount: float, gae_lambda: float) -> np.ndarray:
    """Advantages of actions (GAE; Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16), in the units of ``rewards``.

    Args:
        rewards: ``[T, N]`` float32.
        values: ``[T + 1, N]``, of each observation and of the one after the last step.
        over: ``[T, N]`` bool, whether the episode ended with this step: the next value and advantage belong to another one.
        discount: gamma.
        gae_lambda: 0 trusts the values alone, 1 the rewards alone.

    Returns:
        ``[T, N]``.
    """
    advantages, following = np.empty_like(rewards), np.zeros_like(rewards[0])
    goes_on = 1 - over.astype(np.float32)
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + discount * values[step + 1] * goes_on[step] - values[step]
        following = advantages[step] = delta + discount * gae_lambda * goes_on[step] * following
    return advantages


def normalized(advantages: Tensor) -> Tensor:
    """Advantages ``[B]`` of mean 0 and standard deviation 1; one alone, which has no spread, as it is."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8) if len(advantages) > 1 else advantages


def surrogate_slope(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Derivative of the clipped surrogate ``min(ratio A, clip(ratio) A)`` (eq. 7) by the log-probability, ``[B]``.

    Zero where the clipped term is lower: it does not depend on the policy there.
    """
    ratio = log_ratio.exp()
    surrogate, clipped = advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.where(surrogate <= clipped, surrogate, 0)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(old || new) in nats, ``>= 0``, estimated from actions of the old policy (http://joschu.net/blog/kl-approx.html, k3)."""
    return (log_ratio.expm1() - log_ratio).mean()


# Action families.
