"""Teachers that are not rebuilt from weights: live policies with custom networks, and functions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.policies.actions import ActionTargets, Box, Parameters
from policy_distill.policies.families import Family, family_of
from policy_distill.policies.observations import parts_of
from policy_distill.support.trees import Tree, leaves, length, map_leaves, of_space
from policy_distill.teachers.networks.acting import ActionBounds, SwitchLogits, count, scores_both


class LivePolicy(nn.Module):
    """A copy of a Stable-Baselines3 policy with custom networks; its ``predict`` is called directly."""

    reads_raw = True

    def __init__(self, policy: Any, action_space: gym.Space, family: Family) -> None:
        super().__init__()
        self.policy = _copy(policy)
        self.policy.set_training_mode(False)
        self.action_space = action_space
        self.bounds = ActionBounds(Box.from_space(action_space)) if isinstance(action_space, gym.spaces.Box) else None
        self.squashed = bool(getattr(policy, "squash_output", False))
        self.family = family.of_agent(density=self._has_distribution(), squashed=self.squashed)

    @property
    def acting_params(self) -> int:
        """Number of parameters without those of value networks, as far as their names identify them."""
        for name in ("actor", "q_net", "quantile_net"):
            if hasattr(self.policy, name):
                return count(getattr(self.policy, name))
        excluded = [name for name, _ in self.policy.named_parameters() if "value_net" in name or "vf_" in name or name == "log_std"]
        return sum(parameter.numel() for name, parameter in self.policy.named_parameters() if name not in excluded)

    def forward(self, observations: Tree) -> ActionTargets:
        actions, _ = self.policy.predict(_on_cpu(observations), deterministic=True)
        predicted = torch.as_tensor(np.array(actions), device=leaves(observations)[0].device).reshape(length(observations), -1)
        if self.bounds is not None:
            return ActionTargets(self._gaussian(observations), predicted.float())
        predicted = predicted.reshape(-1, *self.family.action_shape).long()
        return ActionTargets(self._scores(observations, predicted), predicted)

    def _has_distribution(self) -> bool:
        return hasattr(self.policy, "get_distribution") or hasattr(getattr(self.policy, "actor", None), "get_action_dist_params")

    def _distribution(self, observations: Tree) -> Any:
        if hasattr(self.policy, "get_distribution"):
            distribution = self.policy.get_distribution(observations)
            # sb3-contrib's maskable distributions use another attribute.
            return distribution.distributions if hasattr(distribution, "distributions") else distribution.distribution
        actor = self.policy.actor
        mean, log_std, latent = actor.get_action_dist_params(observations)
        return actor.action_dist.proba_distribution(mean, log_std, **latent).distribution

    def _gaussian(self, observations: Tree) -> Parameters:
        if not self._has_distribution():
            return {}
        assert self.bounds is not None
        normal = self._distribution(observations)
        mean, log_std = normal.mean, normal.stddev.log()
        if self.squashed:
            return {"mean": mean, "log_std": log_std}
        return {"mean": self.bounds.to_box(mean), "log_std": log_std - self.bounds.scale.log()}

    def _scores(self, observations: Tree, actions: Tensor) -> Parameters:
        if hasattr(self.policy, "quantile_net"):
            return {"q_values": self.policy.quantile_net(observations).mean(1)}
        if hasattr(self.policy, "q_net"):
            return {"q_values": self.policy.q_net(observations)}
        if not self._has_distribution():
            return self.family.confident(actions)
        distribution = self._distribution(observations)
        parts = distribution if isinstance(distribution, list) else [distribution]
        logits = torch.cat([part.logits for part in parts], dim=-1)
        return {"logits": SwitchLogits()(logits) if scores_both(self.family, logits.shape[1]) else logits}


class CallableNetwork(nn.Module):
    """A function from observations to actions or logits."""

    reads_raw = True

    def __init__(
        self, function: Callable[[Tree], Any], action_space: gym.Space, outputs: Literal["actions", "logits"], params: int
    ) -> None:
        super().__init__()
        self.function = function
        self.outputs = outputs
        self.acting_params = params
        family = family_of(action_space)
        self.bounds = ActionBounds(family.box) if family.box is not None else None
        self.family = family.of_agent(density=False)

    def forward(self, observations: Tree) -> ActionTargets:
        output = torch.as_tensor(np.array(self.function(_on_cpu(observations))), device=leaves(observations)[0].device)
        output = output.reshape(length(observations), -1)
        width = math.prod(self.family.action_shape) if self.outputs == "actions" else self.family.width
        if output.shape[1] != width:
            raise ValueError(f"the callable returned {output.shape[1]} numbers an observation; {width} {self.outputs} are expected")
        if self.bounds is not None:
            return ActionTargets({}, self.bounds.clip(output.float()))
        if self.outputs == "actions":
            actions = output.long().reshape(-1, *self.family.action_shape)
            return ActionTargets(self.family.confident(actions), actions)
        parameters = {self.family.names[0]: output.float()}
        return ActionTargets(parameters, self.family.mode(parameters))


def raw_observations(space: gym.Space, observations: Tree, normalized: Tensor | None, keys: Collection[str]) -> Tree:
    """Inputs of a network that encodes observations itself: float32 for boxes, int64 for discrete spaces.

    Args:
        space: space of the observations.
        observations: raw ``[B, ...]``; boxes may be flattened.
        normalized: vectors ``[B, width]`` normalised by VecNormalize, or None.
        keys: keys of a Dict that VecNormalize normalises.
    """

    def plain(part: gym.Space, rows: Tensor) -> Tensor:
        return rows.float().reshape(len(rows), *part.shape) if isinstance(part, gym.spaces.Box) else rows.long()

    raw = map_leaves(plain, of_space(space, lambda part: part), observations)
    if normalized is None:
        return raw
    parts = parts_of(space, normalized)
    return {key: parts[key] if key in keys else raw[key] for key in raw} if isinstance(raw, dict) else parts


def _on_cpu(observations: Tree) -> Tree:
    return map_leaves(lambda part: part.cpu().numpy(), observations)


def _copy(policy: Any) -> Any:
    """Deep-copy a policy. gSDE holds tensors with an autograd graph, which PyTorch cannot deep-copy; they are detached."""
    memo: dict[int, Any] = {}
    for module in policy.modules():
        holders = [module, getattr(module, "action_dist", None)]
        holders += [getattr(holders[1], name, None) for name in ("distribution", "weights_dist")]
        for holder in holders:
            for value in getattr(holder, "__dict__", {}).values():
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
    duplicate = copy.deepcopy(policy, memo)
    duplicate.optimizer = None
    return duplicate
