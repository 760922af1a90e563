"""The acting network of RecurrentPPO: an LSTM between what reads the observations and what names the action."""

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
from policy_distill.teachers.networks.rebuild import ActingNetwork, Layers, Reader, activation_of, rebuild_network

(LSTM,) = RECURRENT.signs


class RecurrentNetwork(nn.Module):
    """A network with a memory. There is no ``forward``: what it answers depends on the episode so far.

    The formulas are those of sb3-contrib's ``common/recurrent/policies.py``.

    Args:
        features: what reads the preprocessed observations; an empty ``nn.Sequential`` where the LSTM reads them.
        lstm: the memory.
        head: from the LSTM's output to ``ActionTargets``.
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
        """``hidden`` and ``cell`` of ``rows`` episodes that begin, zeros ``[rows, layers, units]``."""
        shape = (rows, self.lstm.num_layers, self.lstm.hidden_size)
        weight = next(self.lstm.parameters())
        return {name: weight.new_zeros(shape) for name in ("hidden", "cell")}

    def step(self, features: Tensor, state: Mapping[str, Tensor], starts: Tensor) -> tuple[ActionTargets, dict[str, Tensor]]:
        """What to do in the present states, and the memory after them.

        Args:
            features: preprocessed observations ``[B, width]``.
            state: after the states before, ``[B, layers, units]`` each; it is not changed.
            starts: ``[B]`` bool, where an episode begins and the memory is empty.
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
    """Build the network that acts from the weights of RecurrentPPO's policy.

    Args:
        weights: of the whole policy; those of the critic are left out.
        layout: of the networks, ``RECURRENT``.
        observation_space: what the network reads, flattened.
        action_space: what it acts in.
        policy_kwargs: the user's settings, classes as printed text.
        source: the file, for messages.
        extractor: what makes the agent's features extractor, where it has one of its own or reads images.

    Raises:
        NotPlainError: if the LSTM is none that RecurrentPPO can act with, or its layers do not fit each other.
    """
    lstm = _lstm({key.removeprefix(LSTM): value for key, value in weights.items() if key.startswith(LSTM)}, source)
    layers = Layers(weights, activation_of(policy_kwargs, layout, source), source, extractor)
    features = nn.Sequential(*layers.features(*ON_POLICY.actor.features))
    with torch.no_grad():
        width = features(torch.zeros(1, observation_width(observation_space))).shape[-1]
    if width != lstm.input_size:
        raise NotPlainError(f"{source}: its memory reads {lstm.input_size} numbers, its observations have {width}; it is damaged")
    hidden = gym.spaces.Box(-np.inf, np.inf, (lstm.hidden_size,))
    return RecurrentNetwork(features, lstm, rebuild_network(weights, layout, hidden, action_space, policy_kwargs, source))


def _lstm(weights: Mapping[str, Tensor], source: str) -> nn.LSTM:
    """The LSTM with these weights: layers one above the other, with or without biases."""
    num_layers = len([key for key in weights if re.fullmatch(r"weight_ih_l\d+", key)])
    if "weight_ih_l0" not in weights or weights["weight_ih_l0"].ndim != 2 or len(weights["weight_ih_l0"]) % 4:
        raise NotPlainError(f"{source}: its memory is no LSTM of Stable-Baselines3; --trust cannot load it either")
    rows, inputs = weights["weight_ih_l0"].shape
    with torch.random.fork_rng(devices=[]):
        lstm = nn.LSTM(inputs, rows // 4, num_layers, bias="bias_ih_l0" in weights)
    expected = {key: value.shape for key, value in lstm.state_dict().items()}
    if expected != {key: value.shape for key, value in weights.items()}:
        raise NotPlainError(
            f"{source}: its memory of {', '.join(f'{key} {tuple(value.shape)}' for key, value in sorted(weights.items())[:4])} is no plain "
            "LSTM (projections and both directions do not act in RecurrentPPO either); train it without lstm_kwargs"
        )
    lstm.load_state_dict({key: value.detach().float() for key, value in weights.items()})
    return lstm.eval()
