"""A teacher's critic as plain torch modules, rebuilt from its weights.

Each module maps preprocessed observations (float32 ``[B, width]``, as the acting network reads them) and the acting network to values
``[B]`` of the deterministic action, in the units of the training rewards. The formulas are those of Stable-Baselines3's
``common/policies.py`` and of sb3-contrib's ``tqc/policies.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from policy_distill.support.trees import Tree
from policy_distill.teachers.algorithms import ALGORITHMS
from policy_distill.teachers.files.errors import NotPlainError
from policy_distill.teachers.networks.live import LivePolicy
from policy_distill.teachers.networks.rebuild import Layers, Reader, outputs_of


class StateValue(nn.Module):
    """V(s) of a2c, ppo and trpo."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, features: Tensor, network: nn.Module) -> Tensor:
        return self.body(features).squeeze(-1)


class ActionValue(nn.Module):
    """Q(s, a) of the network's action: the minimum over the critics (sac, td3, ddpg), or the mean of all quantiles (tqc)."""

    def __init__(self, critics: Iterable[nn.Module], *, quantiles: bool, extractor: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)
        self.quantiles = quantiles
        self.extractor = nn.Sequential(*extractor)

    def forward(self, features: Tensor, network: nn.Module) -> Tensor:
        return self.of(features, network(features).actions, network)

    def of(self, features: Tensor, actions: Tensor, network: nn.Module) -> Tensor:
        """Q(s, a) ``[B]`` for actions ``[B, action_dim]`` in the environment's units."""
        inputs = torch.cat([self.extractor(features), network.bounds.to_unit(actions)], dim=-1)  # type: ignore[operator, union-attr]
        values = torch.cat([critic(inputs) for critic in self.critics], dim=-1)  # [B, critics * quantiles]
        return values.mean(-1) if self.quantiles else values.amin(-1)


class GreedyValue(nn.Module):
    """The maximum Q-value of the acting network (dqn, qrdqn)."""

    def forward(self, features: Tensor, network: nn.Module) -> Tensor:
        return network(features).parameters["q_values"].amax(-1)


class LiveValue(nn.Module):
    """The critic of a copied Stable-Baselines3 policy, called directly; ``features`` are raw observations."""

    def forward(self, features: Tree, network: nn.Module) -> Tensor:
        assert isinstance(network, LivePolicy)
        if hasattr(network.policy, "predict_values"):
            return network.policy.predict_values(features).squeeze(-1)
        targets = network(features)
        if "q_values" in targets.parameters:
            return targets.parameters["q_values"].amax(-1)
        assert network.bounds is not None
        values = network.policy.critic(features, network.bounds.to_unit(targets.actions))
        return torch.cat(values, dim=-1).amin(-1) if isinstance(values, tuple) else values.flatten(1).mean(-1)


def rebuild_critic(
    state_dict: Mapping[str, Tensor],
    algo: str,
    network: nn.Module,
    policy_kwargs: Mapping[str, Any],
    width: int,
    source: str,
    extractor: Reader | None = None,
) -> nn.Module | None:
    """Build the critic of an agent.

    Args:
        state_dict: weights of the whole policy.
        algo: name of the algorithm.
        network: the rebuilt acting network.
        policy_kwargs: the user's settings, with classes as printed text.
        width: width of the observation as one flat vector.
        source: the file, for messages.
        extractor: builds the agent's features extractor if it is custom or reads images.

    Returns:
        The critic; None for an algorithm without one (ars), and if its weights are missing or inconsistent.
    """
    algorithm = ALGORITHMS[algo]
    layout = algorithm.layout
    if layout is None or not layout.has_critic:
        return None
    if layout.scores == "q_values":
        return GreedyValue()
    layers = Layers(state_dict, layout, policy_kwargs, source, extractor)
    critic: nn.Module
    try:
        if layout.value is not None:
            critic = StateValue(layers.network(layout.value))
        else:
            assert layout.action_values is not None
            numbered = (f"{layout.action_values.head}{index}" for index in count())
            critics = [layers.stack(name) for name in takewhile(layers.indices, numbered)]
            if not critics:
                return None
            quantiles = algorithm.averages_critics or outputs_of(critics[0]) > 1
            critic = ActionValue(critics, quantiles=quantiles, extractor=layers.features(*layout.action_values.features))
        with torch.no_grad():
            fits = critic(torch.zeros(1, width), network).shape == (1,)
    except (NotPlainError, RuntimeError):  # shapes do not match
        return None
    return critic if fits else None


def live_critic(network: LivePolicy) -> nn.Module | None:
    """The critic of a policy that is called directly; None if it has no known critic."""
    has_scores = any(hasattr(network.policy, name) for name in ("predict_values", "q_net", "quantile_net"))
    return LiveValue() if has_scores or (network.bounds is not None and hasattr(network.policy, "critic")) else None
