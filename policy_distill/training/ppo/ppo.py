"""Proximal policy optimisation of one small student (PPO; Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

Actor and critic share no layer; each is a stack of one, so that Adam takes one step for all of its parameters. ``vector_ppo`` and
``autograd_ppo`` evaluate and differentiate them. There is no entropy bonus, no value clipping and no early stopping of an update. Tests
compare every quantity with Stable-Baselines3's PPO.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import PolishConfig
from policy_distill.rollouts.ppo_rollouts import Ended, RolloutEnv
from policy_distill.support import trees
from policy_distill.training.stacks import Stack

Networks = TypeVar("Networks", bound=Stack)

VALUE_WEIGHT = 0.5
"""Weight of the squared value error in the loss (c1 in eq. 9)."""
MAX_GRAD_NORM = 0.5
"""Maximum norm of the joint gradient of actor and critic."""


class Batch(NamedTuple):
    """Transitions of one rollout.

    Attributes:
        observations: raw ``[B, ...]``.
        inputs: ``[B, ...]``, what the networks read besides raw observations, see ``Evaluated``.
        actions: ``[B, components]`` raw actions.
        log_probs: ``[B]`` log-probabilities of the actions under the policy that took them.
        advantages, returns: ``[B]``.
        labels: labels of a teacher with a memory, see ``ppo_rollouts.Steps``; empty without one.
    """

    observations: trees.Tree
    inputs: trees.Tree
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    labels: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


class Evaluated(NamedTuple):
    """Both networks on a rollout of T steps in N environments.

    Attributes:
        inputs: ``[T * N, ...]``, for ``Batch``.
        outputs: the actor's logits or means ``[T * N, width]``.
        values: the critic's, ``[T + 1, N]``.
        last_values: those of the last observations of truncated episodes.
    """

    inputs: trees.Tree
    outputs: Tensor
    values: np.ndarray
    last_values: np.ndarray


class PPO(ABC, Generic[Networks]):
    """PPO on an actor and a critic, which are trained in place.

    Args:
        actor: one student; its outputs are logits or means in box units.
        critic: one network with one output, the value; it has the same normalisation.
        config: discount, lambda, clip range, epochs, batch size, and the initial learning rate.
        seed: seed of the order of the transitions.
        penalty: function of outputs ``[B, width]``, raw observations and labels (see ``Batch``) that returns an additional loss of the
            actor, ``[B]``.

    Attributes:
        learning_rate: Adam's learning rate in the next update.
        penalty_weight: weight of ``penalty``; at zero it is not called.
        gradient_steps: number of gradient steps so far.
        draws: generator of the penalty's random numbers.
    """

    def __init__(
        self,
        actor: Networks,
        critic: Networks,
        config: PolishConfig,
        *,
        seed: int,
        penalty: Callable[[Tensor, trees.Tree, dict[str, Tensor]], Tensor],
    ) -> None:
        self.actor, self.critic, self.penalty, self.config = actor, critic, penalty, config
        self.learning_rate, self.penalty_weight, self.gradient_steps = config.learning_rate, 0.0, 0
        self.draws = torch.Generator().manual_seed(seed)
        self._orders = np.random.RandomState(seed)  # the same generator as in Stable-Baselines3
        self._reward_scale = RewardScale(config.discount)
        self._rooms: dict[int, tuple[Any, Any]] = {}
        critic.flat.grad = critic.gradient
        self.train_actor(True)
        self._adam = torch.optim.Adam([actor.flat, critic.flat], eps=1e-5, fused=True)

    def state_dict(self) -> dict[str, Tensor]:
        """All that later updates depend on, besides the arguments: weights, Adam's moments, generators, reward scale and settings."""
        settings = [self.learning_rate, self.penalty_weight, self.gradient_steps, self.trains_actor]
        orders = self._orders.get_state(legacy=False)["state"]
        moments = {
            f"{name}.{key}": value for name, weights in self._weights.items() for key, value in self._adam.state.get(weights, {}).items()
        }
        return {
            **{name: weights.detach() for name, weights in self._weights.items()},
            **moments,
            "draws": self.draws.get_state(),
            "orders": torch.tensor([*orders["key"].tolist(), orders["pos"]]),
            **self._reward_scale.state_dict(),
            "settings": torch.tensor(settings, dtype=torch.float64),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from the state of a PPO with the same arguments."""
        for name, weights in self._weights.items():
            weights.copy_(saved[name])
            moments = {key.removeprefix(f"{name}."): value.clone() for key, value in saved.items() if key.startswith(f"{name}.")}
            if moments:
                self._adam.state[weights] = moments
        self.draws.set_state(saved["draws"].clone())
        *key, position = saved["orders"].tolist()
        self._orders.set_state(("MT19937", np.array(key, np.uint32), position, 0, 0.0))
        self._reward_scale.load_state_dict(saved)
        self.learning_rate, self.penalty_weight, steps, trains_actor = saved["settings"].tolist()
        self.gradient_steps = int(steps)
        self.train_actor(bool(trains_actor))

    @property
    def _weights(self) -> dict[str, Tensor]:
        return {"actor": self.actor.flat, "critic": self.critic.flat}

    def train_actor(self, on: bool) -> None:
        """Switch the actor's training on or off; Adam does not count the steps while it is off."""
        self.actor.flat.grad = self.actor.gradient if on else None

    @property
    def trains_actor(self) -> bool:
        return self.actor.flat.grad is not None

    @torch.no_grad()
    def transitions(self, environments: RolloutEnv, ended: Sequence[Ended]) -> tuple[Batch, float]:
        """Transitions of a rollout that ``actor`` has taken, ordered by environment.

        Args:
            environments: hold the rollout.
            ended: the episodes that ended in it.

        Returns:
            The transitions, and the critic's explained variance of the returns, ``<= 1``; NaN if the returns have no variance.
        """
        num_steps, num_envs = environments.rewards.shape
        observations = trees.map_leaves(lambda part: torch.from_numpy(part[:-1]).flatten(0, 1), environments.observations)
        actions = torch.from_numpy(environments.actions.astype(np.float32)).flatten(0, 1)
        discount, truncated = self.config.discount, [episode for episode in ended if episode.truncated]
        inputs, outputs, values, last_values = self._evaluate(environments, observations, truncated)
        log_probs, *_ = self.actor.architecture.family.scored(outputs, self.actor.log_std[0, 0], actions)
        rewards = np.stack([self._reward_scale(*step) for step in zip(environments.rewards, environments.starts[1:], strict=True)])
        if truncated:  # Bootstrap at truncation: the value of the last observation is added to the last reward.
            where = tuple(zip(*((episode.step, episode.index) for episode in truncated), strict=True))
            rewards[where] += discount * last_values
        advantages = generalized_advantages(rewards, values, environments.starts[1:], discount, self.config.gae_lambda)
        values = values[:-1]
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
        """Train on these transitions (algorithm 1, with Adam: Kingma & Ba 2015).

        Returns:
            KL(old policy || new policy) in nats, estimated on the last epoch's minibatches, and the mean penalty; zeros if the actor is
            not trained.
        """
        self._adam.param_groups[0]["lr"] = self.learning_rate
        penalties: list[Tensor] = []
        for _ in range(self.config.epochs):
            log_ratios: list[Tensor] = []
            for rows in self._minibatches(batch):
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
            The log-ratio of new and old probabilities ``[B]`` and the mean penalty; zeros if the actor is not trained.
        """
        actor, critic, size = self.actor, self.critic, len(batch.returns)
        (acting, judging), (acted, predicted) = self._arrange(batch), self._room(size)
        error = critic.forward(judging, predicted)[0, 0] - batch.returns
        _backward(critic, judging, predicted, (2 * VALUE_WEIGHT / size) * error[:, None])
        if not self.trains_actor:
            return torch.zeros_like(error), torch.zeros(())

        outputs = actor.forward(acting, acted)[0].T.contiguous()
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
        _backward(actor, acting, acted, upstream)
        return log_ratio, penalty.detach()

    def _minibatches(self, batch: Batch) -> Iterator[Tensor]:
        """The rows of each gradient step of an epoch."""
        order = torch.from_numpy(self._orders.permutation(len(batch.returns)))
        yield from order.split(self.config.batch_size)

    @abstractmethod
    def _evaluate(self, environments: RolloutEnv, observations: trees.Tree, truncated: Sequence[Ended]) -> Evaluated:
        """Both networks on a rollout; ``observations`` are those of all steps, ``[T * N, ...]``."""

    @abstractmethod
    def _arrange(self, batch: Batch) -> tuple[Any, Any]:
        """The actor's and the critic's inputs for ``Stack.forward``."""

    def _room(self, size: int) -> tuple[Any, Any]:
        """The actor's and the critic's buffers for a pass over ``size`` samples."""
        if size not in self._rooms:
            self._rooms[size] = self.actor.buffers(size), self.critic.buffers(size)
        return self._rooms[size]


def _backward(stack: Stack, inputs: Any, activations: Any, upstream: Tensor) -> None:
    """Write one network's gradients, given the loss's gradient with respect to its output, ``upstream`` ``[B, width]``."""
    activations.slopes[-1][0].copy_(upstream.T)
    stack.backward(inputs, activations)


class RewardScale:
    """Divides rewards by the standard deviation of their discounted sums so far, and clips them to [-10, 10].

    This is the reward scaling of Engstrom et al. 2020 (https://arxiv.org/abs/2005.12729), computed as in ``VecNormalize``.

    Args:
        discount: discount of the sums.
    """

    def __init__(self, discount: float) -> None:
        self._discount = discount
        self._sums = np.zeros(1)
        self._count, self._mean, self._variance = 1e-4, np.float64(0), np.float64(1)

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics so far."""
        moments = torch.tensor([self._count, self._mean, self._variance], dtype=torch.float64)
        return {"reward_sums": torch.tensor(self._sums, dtype=torch.float64), "reward_moments": moments}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from these statistics."""
        self._sums = saved["reward_sums"].numpy().copy()
        self._count, mean, variance = saved["reward_moments"].tolist()
        self._mean, self._variance = np.float64(mean), np.float64(variance)  # a Python float would keep float32 rewards from being float64

    def __call__(self, rewards: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Scaled float32 rewards of one step ``[N]``; ``over`` marks the episodes that end with it."""
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
        values: ``[T + 1, N]``, values of each step's observation and of the one after the last step.
        over: ``[T, N]`` bool, whether the episode ended with this step; the next value and advantage then belong to another episode.
        discount: gamma.
        gae_lambda: lambda; 0: one-step TD errors, 1: discounted returns minus values.

    Returns:
        ``[T, N]``.
    """
    advantages, following = np.empty_like(rewards), np.zeros_like(rewards[0])
    continues = 1 - over.astype(np.float32)
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + discount * values[step + 1] * continues[step] - values[step]
        following = advantages[step] = delta + discount * gae_lambda * continues[step] * following
    return advantages


def normalized(advantages: Tensor) -> Tensor:
    """Advantages ``[B]`` with mean 0 and standard deviation 1; unchanged if B is 1."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8) if len(advantages) > 1 else advantages


def surrogate_slope(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Derivative of the clipped surrogate ``min(ratio A, clip(ratio) A)`` (eq. 7) with respect to the log-probability, ``[B]``.

    It is zero where the clipped term is smaller, since that does not depend on the policy.
    """
    ratio = log_ratio.exp()
    surrogate, clipped = advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.where(surrogate <= clipped, surrogate, 0)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(old || new) in nats, ``>= 0``, estimated from actions of the old policy (http://joschu.net/blog/kl-approx.html, k3)."""
    return (log_ratio.expm1() - log_ratio).mean()
