"""Teachers that are not rebuilt from weights: a live policy with networks of its own, and any function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.policies.actions import (
    ActionTargets,
    Bernoulli,
    Box,
    Categorical,
    Deterministic,
    DiagGaussian,
    Family,
    MultiCategorical,
    family_of,
)
from policy_distill.support.trees import Tree, leaves, length, map_leaves
from policy_distill.teachers.networks.acting import ActionBounds, SwitchLogits, count

CONFIDENCE = 0.999
"""Share of the probability on the named action of a teacher that only names one: its log-probabilities stay finite, as a KL needs."""


class LivePolicy(nn.Module):
    """A copy of a Stable-Baselines3 policy that is called as it is: custom networks, whatever ``predict`` does."""

    reads_raw = True

    def __init__(self, policy: Any, action_space: gym.Space, family: Family) -> None:
        super().__init__()
        self.policy = _copy(policy)
        self.policy.set_training_mode(False)
        self.action_space = action_space
        self.bounds = ActionBounds(Box.from_space(action_space)) if isinstance(action_space, gym.spaces.Box) else None
        squashed = bool(getattr(policy, "squash_output", False))
        if isinstance(family, DiagGaussian):
            family = DiagGaussian(family.box, squashed=squashed) if self._has_distribution() else Deterministic(family.box)
        self.family: Family = family

    @property
    def acting_params(self) -> int:
        """Of the modules that act; value networks are left out where they are told apart."""
        for name in ("actor", "q_net", "quantile_net"):
            if hasattr(self.policy, name):
                return count(getattr(self.policy, name))
        spared = [name for name, _ in self.policy.named_parameters() if "value_net" in name or "vf_" in name or name == "log_std"]
        return sum(parameter.numel() for name, parameter in self.policy.named_parameters() if name not in spared)

    def forward(self, observations: Tree) -> ActionTargets:
        actions, _ = self.policy.predict(_on_cpu(observations), deterministic=True)
        named = torch.as_tensor(np.array(actions), device=leaves(observations)[0].device).reshape(length(observations), -1)
        if isinstance(self.family, DiagGaussian | Deterministic):
            return ActionTargets(self._gaussian(observations), named.float())
        if isinstance(self.family, Categorical):
            named = named.reshape(-1)
        return ActionTargets(self._scores(observations, named), named.long())

    def _has_distribution(self) -> bool:
        return hasattr(self.policy, "get_distribution") or hasattr(getattr(self.policy, "actor", None), "get_action_dist_params")

    def _distribution(self, observations: Tree) -> Any:
        if hasattr(self.policy, "get_distribution"):
            distribution = self.policy.get_distribution(observations)
            # sb3-contrib's maskable ones keep their parts under a name of their own.
            return distribution.distributions if hasattr(distribution, "distributions") else distribution.distribution
        actor = self.policy.actor
        mean, log_std, latent = actor.get_action_dist_params(observations)
        return actor.action_dist.proba_distribution(mean, log_std, **latent).distribution

    def _gaussian(self, observations: Tree) -> dict[str, Tensor]:
        if not isinstance(self.family, DiagGaussian) or self.bounds is None:
            return {}
        normal = self._distribution(observations)
        mean, log_std = normal.mean, normal.stddev.log()
        if self.family.squashed:
            return {"mean": mean, "log_std": log_std}
        return {"mean": self.bounds.to_box(mean), "log_std": log_std - self.bounds.scale.log()}

    def _scores(self, observations: Tree, named: Tensor) -> dict[str, Tensor]:
        if hasattr(self.policy, "quantile_net"):
            return {"q_values": self.policy.quantile_net(observations).mean(1)}
        if hasattr(self.policy, "q_net"):
            return {"q_values": self.policy.q_net(observations)}
        if not self._has_distribution():
            return {"logits": confident_logits(self.family, named)}
        distribution = self._distribution(observations)
        parts = distribution if isinstance(distribution, list) else [distribution]
        logits = torch.cat([part.logits for part in parts], dim=-1)
        two_scores = isinstance(self.family, Bernoulli) and logits.shape[1] == 2 * self.family.num_bits
        return {"logits": SwitchLogits()(logits) if two_scores else logits}


class CallableNetwork(nn.Module):
    """Any function from observations to actions, or to logits."""

    reads_raw = True

    def __init__(
        self, function: Callable[[Tree], Any], action_space: gym.Space, outputs: Literal["actions", "logits"], params: int
    ) -> None:
        super().__init__()
        self.function = function
        self.outputs = outputs
        self.acting_params = params
        family = family_of(action_space)
        self.bounds = ActionBounds(family.box) if isinstance(family, DiagGaussian) else None
        self.family: Family = Deterministic(family.box) if isinstance(family, DiagGaussian) else family

    def forward(self, observations: Tree) -> ActionTargets:
        answer = torch.as_tensor(np.array(self.function(_on_cpu(observations))), device=leaves(observations)[0].device)
        answer = answer.reshape(length(observations), -1)
        width = 1 if isinstance(self.family, Categorical) and self.outputs == "actions" else self._components()
        if answer.shape[1] != width:
            raise ValueError(f"the callable returned {answer.shape[1]} numbers an observation; {width} {self.outputs} are expected")
        if self.bounds is not None:
            return ActionTargets({}, self.bounds.clip(answer.float()))
        if self.outputs == "actions":
            named = answer.long().reshape(-1) if isinstance(self.family, Categorical) else answer.long()
            return ActionTargets({"logits": confident_logits(self.family, named)}, named)
        logits = {"logits": answer.float()}
        return ActionTargets(logits, self.family.mode(logits))  # type: ignore[union-attr]

    def _components(self) -> int:
        return len(self.family.nvec) if isinstance(self.family, MultiCategorical) and self.outputs == "actions" else self.family.width


def confident_logits(family: Family, named: Tensor) -> Tensor:
    """Log-probabilities ``[B, width]`` that put ``CONFIDENCE`` on the named action and spread the rest evenly.

    Raises:
        ValueError: if an action is outside the space.
    """
    columns: list[Tensor]
    sizes: tuple[int, ...]
    match family:
        case Bernoulli():
            if not bool(((named == 0) | (named == 1)).all()):
                raise ValueError("the callable named switches other than 0 and 1")
            return (2.0 * named.float() - 1.0) * float(np.log(CONFIDENCE / (1 - CONFIDENCE)))
        case Categorical():
            columns, sizes = [named - family.start], (family.num_actions,)
        case MultiCategorical():
            columns, sizes = list(named.unbind(-1)), family.nvec
        case _:
            raise ValueError("continuous actions have no logits")
    parts = []
    for column, size in zip(columns, sizes, strict=True):
        if not bool(((column >= 0) & (column < size)).all()):
            raise ValueError(f"an action is outside its space: {size} choices, named {int(column.min())} to {int(column.max())}")
        chosen = torch.nn.functional.one_hot(column, size).float()
        rest = (1 - CONFIDENCE) / max(size - 1, 1)
        parts.append((chosen * CONFIDENCE + (1 - chosen) * rest).log())
    return torch.cat(parts, dim=-1)


def _on_cpu(observations: Tree) -> Tree:
    return map_leaves(lambda part: part.cpu().numpy(), observations)


def _copy(policy: Any) -> Any:
    """Deep-copy a policy; gSDE keeps tensors with a history, which PyTorch refuses to copy, as values."""
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
