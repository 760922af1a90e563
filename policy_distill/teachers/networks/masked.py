"""The acting network of MaskablePPO: it reads the mask from the observation and never chooses a forbidden action."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from torch import Tensor, nn

from policy_distill.environments.action_masks import MASK, OBSERVATION, mask_sizes, with_mask, without_mask
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.families import Family


def under_masks(
    network: nn.Module, critic: nn.Module | None, statistics: Any, observation_space: gym.Space, action_space: gym.Space
) -> tuple[MaskedNetwork, MaskedCritic | None, Any, gym.Space]:
    """Network, critic, statistics and observation space of an agent, adapted to observations with a mask as their last part."""
    keyed = statistics if statistics is None or isinstance(statistics, dict) else {OBSERVATION: statistics}
    masked_critic = None if critic is None else MaskedCritic(critic)
    masked = MaskedNetwork(network, action_space, reads_dicts=isinstance(observation_space, gym.spaces.Dict))
    return masked, masked_critic, keyed, with_mask(observation_space, action_space)


class MaskedNetwork(nn.Module):
    """``network`` under an action mask: the last columns of the features, or a part of raw observations.

    Args:
        network: computes logits; it does not read the mask.
        action_space: determines the mask's length.
        reads_dicts: whether raw observations without their mask are Dicts, if only of one part.
    """

    def __init__(self, network: nn.Module, action_space: gym.Space, *, reads_dicts: bool) -> None:
        super().__init__()
        self.network = network
        self._reads_dicts = reads_dicts
        self.entries = sum(mask_sizes(action_space))
        self.family: Family = network.family  # type: ignore[assignment]
        self.reads_raw = getattr(network, "reads_raw", False)

    @property
    def acting_params(self) -> int:
        return self.network.acting_params  # type: ignore[return-value]

    def parts(self, features: Any) -> tuple[Any, Any]:
        """The network's inputs, and the mask ``[B, entries]``."""
        if self.reads_raw:
            rest = {key: part for key, part in features.items() if key != MASK} if self._reads_dicts else without_mask(features)
            return rest, features[MASK]
        return features[:, : -self.entries], features[:, -self.entries :]

    def forward(self, features: Any) -> ActionTargets:
        rest, mask = self.parts(features)
        targets = self.network(rest)
        logits = self.family.masked(targets.parameters["logits"], mask)
        parameters = {**targets.parameters, "logits": logits}
        return ActionTargets(parameters, self.family.mode(parameters))


class MaskedCritic(nn.Module):
    """The critic of a masked network; it does not read the mask."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, features: Any, network: MaskedNetwork) -> Tensor:
        rest, _ = network.parts(features)
        values: Tensor = self.critic(rest, network.network)
        return values
