"""The acting network of RecurrentPPO: an LSTM between the features extractor and the action head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.families import Family
from policy_distill.policies.observations import observation_width
from policy_distill.teachers.algorithms import ON_POLICY, RECURRENT, Layout
from policy_distill.teachers.files.errors import NotPlainError
from policy_distill.teachers.networks.acting import count
from policy_distill.teachers.networks.rebuild import ActingNetwork, Layers, Reader, rebuild_network

(LSTM,) = RECURRENT.signs


class RecurrentNetwork(nn.Module):
    """A recurrent network. It has no ``forward``, because its output depends on the episode so far.

    The formulas are those of sb3-contrib's ``common/recurrent/policies.py``.

    Args:
        features: the features extractor on preprocessed observations; an empty ``nn.Sequential`` if the LSTM reads them directly.
        lstm: the memory.
        head: maps the LSTM's output to ``ActionTargets``.
    """

    def __init__(self, features: nn.Module, lstm: nn.LSTM, head: ActingNetwork) -> None:
        super().__init__()
        self.features = features
        self.lstm = lstm
        self.head = head
        self.family: Family = head.family

    @property
    def acting_params(self) -> int:
        return count(self.features) + count(self.lstm) + self.head.acting_params

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """The initial ``hidden`` and ``cell`` states of ``rows`` episodes: zeros ``[rows, layers, units]``."""
        shape = (rows, self.lstm.num_layers, self.lstm.hidden_size)
        weight = next(self.lstm.parameters())
        return {name: weight.new_zeros(shape) for name in ("hidden", "cell")}

    def step(self, features: Tensor, state: Mapping[str, Tensor], starts: Tensor) -> tuple[ActionTargets, dict[str, Tensor]]:
        """The targets for one step, and the recurrent state after it.

        Args:
            features: preprocessed observations ``[B, width]``.
            state: recurrent state before the step, ``[B, layers, units]`` each; it is not changed.
            starts: ``[B]`` bool, True where an episode begins and the state is reset to zeros.
        """
        kept = (~starts).to(features.dtype)[:, None, None]
        hidden, cell = ((kept * state[name]).transpose(0, 1).contiguous() for name in ("hidden", "cell"))
        output, (hidden, cell) = self.lstm(self.features(features)[None], (hidden, cell))
        return self.head(output[0]), {"hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)}


def rebuild_recurrent(
    weights: Mapping[str, Tensor],
    layout: Layout,
    observation_space: gym.Space,
    action_space: gym.Space,
    policy_kwargs: Mapping[str, Any],
    source: str,
    extractor: Reader | None = None,
) -> RecurrentNetwork:
    """Build the acting network from the weights of RecurrentPPO's policy.

    Args:
        weights: weights of the whole policy; those of the critic are ignored.
        layout: layout of the networks, ``RECURRENT``.
        observation_space: space of the observations, which the network reads flattened.
        action_space: space of the actions.
        policy_kwargs: the user's settings, with classes as printed text.
        source: the file, for messages.
        extractor: builds the agent's features extractor if it is custom or reads images.

    Raises:
        NotPlainError: if RecurrentPPO does not support the LSTM, or its layers are inconsistent.
    """
    lstm = _lstm({key.removeprefix(LSTM): value for key, value in weights.items() if key.startswith(LSTM)}, source)
    layers = Layers(weights, layout, policy_kwargs, source, extractor)
    features = nn.Sequential(*layers.features(*ON_POLICY.actor.features))
    with torch.no_grad():
        width = features(torch.zeros(1, observation_width(observation_space))).shape[-1]
    if width != lstm.input_size:
        raise NotPlainError(f"{source}: its memory reads {lstm.input_size} numbers, its observations have {width}; it is damaged")
    hidden = gym.spaces.Box(-np.inf, np.inf, (lstm.hidden_size,))
    return RecurrentNetwork(features, lstm, rebuild_network(weights, layout, hidden, action_space, policy_kwargs, source))


def _lstm(weights: Mapping[str, Tensor], source: str) -> nn.LSTM:
    """The LSTM with these weights: stacked layers, with or without biases."""
    num_layers = len([key for key in weights if re.fullmatch(r"weight_ih_l\d+", key)])
    if "weight_ih_l0" not in weights or weights["weight_ih_l0"].ndim != 2 or len(weights["weight_ih_l0"]) % 4:
        raise NotPlainError(f"{source}: its memory is not an LSTM of Stable-Baselines3; --trust cannot load it either")
    rows, inputs = weights["weight_ih_l0"].shape
    with torch.random.fork_rng(devices=[]):
        lstm = nn.LSTM(inputs, rows // 4, num_layers, bias="bias_ih_l0" in weights)
    expected = {key: value.shape for key, value in lstm.state_dict().items()}
    if expected != {key: value.shape for key, value in weights.items()}:
        raise NotPlainError(
            f"{source}: its memory of {', '.join(f'{key} {tuple(value.shape)}' for key, value in sorted(weights.items())[:4])} is not "
            "a plain LSTM (projections and both directions do not act in RecurrentPPO either); train it without lstm_kwargs"
        )
    lstm.load_state_dict({key: value.detach().float() for key, value in weights.items()})
    return lstm.eval()
