"""Stable-Baselines3's PPO with the same updates in fewer operations (Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

A network of a few hundred parameters costs less than what surrounds it: distribution objects and their checks, autograd's bookkeeping,
an optimiser step for each of a dozen small tensors. The networks here are ``StudentStack``s of one member, and Stable-Baselines3's own
parameters are views into them. Tests compare what is made of a rollout, and the updates, with its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn

from policy_distill.policies.families import Bernoulli, Categorical, DiagGaussian, Family, MultiCategorical
from policy_distill.rollouts.ppo_rollouts import RolloutEnv
from policy_distill.training.stack import Activations, StudentStack


class LeanPolicy(ActorCriticPolicy):
    """An actor and a critic that share no layer; see ``attach``.

    Attributes:
        actor: one student; its outputs are logits or means in box units.
        critic: one network of one output, the value.
        family: of the actor's distribution.
    """

    actor: StudentStack
    critic: StudentStack
    family: Family

    @torch.no_grad()
    def attach(self, actor: StudentStack, critic: StudentStack) -> None:
        """Copy the weights into ``actor`` and ``critic``, and be a view of them from now on; they are what is trained."""
        self.actor, self.critic, self.family = actor, critic, actor.architecture.family
        self._rooms: dict[int, tuple[Activations, Activations]] = {}
        for stack, network, head in (
            (actor, self.mlp_extractor.policy_net, self.action_net),
            (critic, self.mlp_extractor.value_net, self.value_net),
        ):
            layers = [layer for layer in (*network, head) if isinstance(layer, nn.Linear)]
            for layer, weights in zip(layers, stack.weights, strict=True):
                weight, bias = weights[0, :-1], weights[0, -1]
                weight.copy_(layer.weight.T)
                bias.copy_(layer.bias)
                layer.weight.data, layer.bias.data = weight.T, bias
        if isinstance(self.family, DiagGaussian):
            actor.log_std.copy_(self.log_std)
            self.log_std.data = actor.log_std.data[0, 0]
        critic.flat.grad = critic.gradient
        self.train_actor(True)
        self.optimizer = torch.optim.Adam(
            [actor.flat, critic.flat], self.optimizer.param_groups[0]["lr"], fused=True, **self.optimizer_kwargs
        )

    def train_actor(self, on: bool) -> None:
        """Let the actor move or stand still; Adam does not count the steps in which it stands still."""
        self.actor.flat.grad = self.actor.gradient if on else None

    @property
    def trains_actor(self) -> bool:
        return self.actor.flat.grad is not None

    def inputs(self, observations: Tensor) -> Tensor:
        """Raw observations as both networks read them, ``[B, inputs + 1]``: one-hot where discrete, normalised, ones last."""
        encoded = preprocess_obs(observations, self.observation_space, normalize_images=False)
        assert isinstance(encoded, Tensor)
        normalized = (encoded.flatten(1) - self.actor.mean) / self.actor.scale
        return torch.cat([normalized, normalized.new_ones(len(normalized), 1)], dim=1)

    def rooms(self, batch_size: int) -> tuple[Activations, Activations]:
        """The actor's and the critic's buffers for a pass over this number of samples."""
        if batch_size not in self._rooms:
            self._rooms[batch_size] = self.actor.buffers(batch_size), self.critic.buffers(batch_size)
        return self._rooms[batch_size]

    def outputs(self, inputs: Tensor) -> Tensor:
        """The actor's logits or means ``[B, width]`` for what ``inputs`` returned; not differentiable."""
        return self.actor.forward(inputs.T[None], self.rooms(len(inputs))[0])[0].T.clone(memory_format=torch.contiguous_format)

    def expected(self, inputs: Tensor) -> np.ndarray:
        """The critic's values ``[B]`` for what ``inputs`` returned."""
        return self.critic.forward(inputs.T[None], self.rooms(len(inputs))[1])[0, 0].numpy().copy()


class Minibatch(NamedTuple):
    """Transitions of one rollout.

    Attributes:
        observations: raw.
        inputs: ``[B, inputs + 1]``, the same as the networks read them.
        actions: ``[B, components]``.
        log_probs: of the actions when they were taken, ``[B]`` as all that follows.
    """

    observations: Tensor
    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor


class LeanPPO(PPO):
    """PPO on a ``LeanPolicy`` without entropy bonus, clipping of values or early stopping of an update.

    Attributes:
        penalty: (outputs ``[B, width]``, raw observations) -> a further loss of the actor ``[B]``.
        penalty_weight: at zero, ``penalty`` is not called.
    """

    policy: LeanPolicy
    _last_obs: np.ndarray
    penalty: Callable[[Tensor, Tensor], Tensor]
    penalty_weight = 0.0

    @torch.no_grad()
    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        """Fill the buffer as ``PPO`` does; what acting does not need, values and log-probabilities, is computed at once afterwards.

        Args:
            env: a ``VecNormalize`` around a ``RolloutEnv``.
            callback: is asked before each rollout.
            rollout_buffer: is filled.
            n_rollout_steps: as many as a rollout of the environments has.

        Returns:
            False if the callback ended it.
        """
        policy, buffer = self.policy, rollout_buffer
        log_std = policy.actor.log_std[0, 0]
        buffer.reset()
        callback.on_rollout_start()
        if not callback.on_step():
            return False
        assert isinstance(env, VecNormalize)
        assert isinstance(env.venv, RolloutEnv)
        steps = env.venv
        ended = steps.rollout(policy.actor.member(0))
        self.num_timesteps += n_rollout_steps * env.num_envs
        buffer.observations[:] = steps.observations[:-1].reshape(buffer.observations.shape)
        buffer.episode_starts[:] = steps.starts[:-1]
        buffer.actions[:] = steps.actions.reshape(buffer.actions.shape)
        for rewards, scaled, dones in zip(steps.rewards, buffer.rewards, steps.starts[1:], strict=True):
            scaled[:] = _scaled(env, rewards.astype(np.float32), dones)
        self._last_obs, self._last_episode_starts = steps.observations[-1].copy(), steps.starts[-1].copy()
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend({"r": episode.episode_return, "l": episode.length} for episode in ended)
        buffer.pos, buffer.full = n_rollout_steps, True

        inputs = policy.inputs(torch.from_numpy(buffer.observations.reshape(-1, *buffer.obs_shape)))
        taken = torch.from_numpy(buffer.actions.reshape(-1, buffer.action_dim))
        log_probs, *_ = log_prob_and_score(policy.family, policy.outputs(inputs), log_std, taken)
        buffer.log_probs[:] = log_probs.numpy().reshape(buffer.log_probs.shape)
        buffer.values[:] = policy.expected(inputs).reshape(buffer.values.shape)
        if truncated := [episode for episode in ended if episode.truncated]:
            # the episode would have gone on: what was still to come is part of the last reward
            last = torch.from_numpy(np.stack([episode.observation for episode in truncated]))
            where = tuple(zip(*((episode.step, episode.index) for episode in truncated), strict=True))
            buffer.rewards[where] += self.gamma * policy.expected(policy.inputs(last))
        last_values = torch.from_numpy(policy.expected(policy.inputs(torch.from_numpy(self._last_obs))))
        buffer.compute_returns_and_advantage(last_values=last_values, dones=self._last_episode_starts)
        callback.on_rollout_end()
        return True

    @torch.no_grad()
    def train(self) -> None:
        """Update on the rollout; log the KL to the policy that it was taken with, the explained variance and the penalty."""
        optimizer = self.policy.optimizer
        self._update_learning_rate(optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        rollout = self._rollout()
        penalties: list[Tensor] = []
        for _ in range(self.n_epochs):
            log_ratios: list[Tensor] = []
            order = torch.from_numpy(np.random.permutation(len(rollout.returns)))  # noqa: NPY002  (seeded as all of the model)
            for rows in zip(*(values[order].split(self.batch_size) for values in rollout), strict=True):
                log_ratio, penalty = self.write_gradients(Minibatch(*rows), clip_range)
                nn.utils.clip_grad_norm_([self.policy.actor.flat, self.policy.critic.flat], self.max_grad_norm)
                optimizer.step()
                log_ratios.append(log_ratio)
                penalties.append(penalty)
            self._n_updates += 1
        # http://joschu.net/blog/kl-approx.html, in the last epoch
        approximate_kl = torch.stack([(ratio.expm1() - ratio).mean() for ratio in log_ratios]).mean()
        self.logger.record("train/approx_kl", float(approximate_kl))
        self.logger.record("train/penalty", float(torch.stack(penalties).mean()))
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))

    def _rollout(self) -> Minibatch:
        """All that was collected, environment after environment."""
        buffer = self.rollout_buffer
        arrays = (buffer.observations, buffer.actions.astype(np.float32), buffer.log_probs, buffer.advantages, buffer.returns)
        observations, actions, *rest = (torch.from_numpy(buffer.swap_and_flatten(array)) for array in arrays)
        return Minibatch(observations, self.policy.inputs(observations), actions, *(values.flatten() for values in rest))

    @torch.no_grad()
    def write_gradients(self, minibatch: Minibatch, clip_range: float) -> tuple[Tensor, Tensor]:
        """Write the loss's gradients into ``policy.actor.gradient`` and ``policy.critic.gradient``.

        Returns:
            The log-ratio of new and old probabilities ``[B]`` and the mean penalty; zeros where the actor stands still.
        """
        actor, critic, size = self.policy.actor, self.policy.critic, len(minibatch.returns)
        inputs, (acted, predicted) = minibatch.inputs.T[None].contiguous(), self.policy.rooms(size)
        error = critic.forward(inputs, predicted)[0, 0] - minibatch.returns
        _backward(critic, inputs, predicted, (2 * self.vf_coef / size) * error[:, None])
        if not self.policy.trains_actor:
            return torch.zeros_like(error), torch.zeros(())

        outputs, family = actor.forward(inputs, acted)[0].T.contiguous(), self.policy.family
        log_prob, by_outputs, by_log_std = log_prob_and_score(family, outputs, actor.log_std[0, 0], minibatch.actions)
        advantages = minibatch.advantages
        if size > 1:  # one alone has no spread
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_prob - minibatch.log_probs
        ratio = log_ratio.exp()
        surrogate = advantages * ratio
        clipped = advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
        # the derivative of -min(surrogate, clipped) / B by the log-probability: none where the clipped one is lower
        by_log_prob = torch.where(surrogate <= clipped, surrogate, 0) / -size
        upstream = by_log_prob[:, None] * by_outputs
        penalty, actor.log_std.grad = torch.zeros(()), None
        if self.penalty_weight:
            leaf = outputs.clone().requires_grad_()
            with torch.enable_grad():
                penalty = self.penalty(leaf, minibatch.observations).mean()
                (self.penalty_weight * penalty).backward()
            assert leaf.grad is not None
            upstream += leaf.grad
        if by_log_std is not None:
            slope = (by_log_prob @ by_log_std).view_as(actor.log_std)
            actor.log_std.grad = slope if actor.log_std.grad is None else actor.log_std.grad + slope
        _backward(actor, inputs, acted, upstream)
        return log_ratio, penalty.detach()


def _backward(stack: StudentStack, inputs: Tensor, activations: Activations, upstream: Tensor) -> None:
    """Gradients of one network of which the loss reads the output ``[B, width]`` alone."""
    activations.slopes[-1][0].copy_(upstream.T)
    stack.backward(inputs, activations)


def _scaled(env: VecNormalize, rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """The rewards ``[N]`` of a step as ``env`` would scale them, whose running variance they enter."""
    env._update_reward(rewards)
    scaled = env.normalize_reward(rewards)
    env.returns[dones] = 0
    return scaled


def log_prob_and_score(family: Family, outputs: Tensor, log_std: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The log-probability of each row's action, in nats, and its derivatives (the score).

    Args:
        family: of the policy; discrete actions are counted from 0.
        outputs: logits or means ``[B, width]``.
        log_std: ``[width]``, read for Gaussians alone.
        actions: ``[B]``, ``[B, 1]`` or ``[B, components]`` of any number type.

    Returns:
        The log-probability ``[B]``, its derivative by the outputs ``[B, width]``, and by ``log_std`` ``[B, width]``; None without one.

    Raises:
        ValueError: for a family without a density.
    """
    match family:
        case DiagGaussian(box=box):
            inverse = (-log_std).exp()
            distance = (actions.view_as(outputs) - outputs) * inverse
            squared = distance.square()
            log_prob = squared.sum(-1) / -2 - (log_std.sum() + box.dim * math.log(2 * math.pi) / 2)
            return log_prob, distance * inverse, squared - 1
        case Categorical():
            return *_choice(outputs, actions.view(-1, 1)), None
        case MultiCategorical(nvec=nvec):
            log_probs, scores = zip(*map(_choice, outputs.split(nvec, -1), actions.split(1, -1)), strict=True)
            return torch.stack(log_probs).sum(0), torch.cat(scores, -1), None
        case Bernoulli():
            return (actions * outputs - nn.functional.softplus(outputs)).sum(-1), actions - outputs.sigmoid(), None
    raise ValueError(f"{family} has no density to draw from")


def _choice(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability ``[B]`` of ``chosen`` ``[B, 1]``; its derivative by the logits ``[B, n]`` is what was chosen less what was likely."""
    log_probs, chosen = logits.log_softmax(-1), chosen.long()
    return log_probs.gather(-1, chosen)[:, 0], (-log_probs.exp()).scatter_add(-1, chosen, torch.ones_like(log_probs[:, :1]))
