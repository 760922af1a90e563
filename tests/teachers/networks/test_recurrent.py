"""RecurrentPPO's networks rebuilt from their weights act as sb3-contrib's policies, over episodes that begin and end."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from policy_distill.policies.observations import encode_observations
from policy_distill.teachers.algorithms import RECURRENT
from policy_distill.teachers.files.errors import NotPlainError
from policy_distill.teachers.networks.recurrent import RecurrentNetwork, rebuild_recurrent

Spaces = gym.spaces
BOX = Spaces.Box(-1, 1, (5,), np.float32)
ACTIONS = {
    "discrete": Spaces.Discrete(4),
    "discrete_from_2": Spaces.Discrete(3, start=2),
    "box": Spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 5.0], np.float32)),
    "multi_discrete": Spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": Spaces.MultiBinary(6),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "two_lstms": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "one_lstm": {"enable_critic_lstm": False},
    "two_layers": {"n_lstm_layers": 2},
    "without_bias": {"lstm_kwargs": {"bias": False}},
    "dropout": {"n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.5}},
    "own_activation": {"activation_fn": nn.ELU, "net_arch": {"pi": [7, 6], "vf": [3]}},
    "no_layers": {"net_arch": []},
    "gsde": {"use_sde": True},
    "gsde_squashed": {"use_sde": True, "squash_output": True},
}


def policy_of(observations: gym.Space, actions: gym.Space, **settings):
    """A policy of sb3-contrib's with drawn weights, large enough to name different actions."""
    pytest.importorskip("sb3_contrib")
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    torch.manual_seed(0)
    policy = RecurrentActorCriticPolicy(
        observations, actions, lambda _: 1e-3, **{"net_arch": [8], "lstm_hidden_size": 12, "ortho_init": False, **settings}
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "log_std" not in name:
                parameter.normal_(0.0, 0.1 if parameter.ndim == 1 else 2.0 / parameter.shape[1] ** 0.5)
    return policy


def rebuilt(policy, **settings) -> RecurrentNetwork:
    kwargs = {key: str(value) if isinstance(value, type) else value for key, value in settings.items()}
    return rebuild_recurrent(policy.state_dict(), RECURRENT, policy.observation_space, policy.action_space, kwargs, "agent.zip").eval()


def compare(policy, network, steps: int = 40, rows: int = 5) -> np.ndarray:
    """Ask both about the same random episodes, which begin at different times; the actions ``[steps, rows, ...]``.

    Discrete actions are the same, continuous ones but for rounding.
    """
    generator = np.random.default_rng(0)
    policy.observation_space.seed(0)
    state, theirs = network.initial_state(rows), None
    acted = []
    for step in range(steps):
        observations = np.stack([policy.observation_space.sample() for _ in range(rows)])
        starts = generator.random(rows) < (1.0 if step == 0 else 0.15)
        expected, theirs = policy.predict(observations, theirs, starts, deterministic=True)
        with torch.no_grad():
            features = encode_observations(policy.observation_space, torch.from_numpy(observations))
            targets, state = network.step(features, state, torch.from_numpy(starts))
        ours = targets.actions.numpy().reshape(expected.shape)
        # sb3-contrib names a discrete action from 0 on.
        ours = ours - policy.action_space.start if isinstance(policy.action_space, Spaces.Discrete) else ours
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 if ours.dtype.kind == "f" else 0)
        acted.append(ours)
    return np.array(acted)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("settings", ["two_lstms", "two_layers"])
def test_every_action_space_is_acted_in_as_there(actions, settings):
    policy = policy_of(BOX, ACTIONS[actions], **SETTINGS[settings])
    acted = compare(policy, rebuilt(policy, **SETTINGS[settings]))
    assert len(np.unique(acted.reshape(-1, acted[0, 0].size), axis=0)) >= 3


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_form_of_the_network_is_rebuilt(settings):
    actions = ACTIONS["box"] if settings.startswith("gsde") else ACTIONS["discrete"]
    policy = policy_of(BOX, actions, **SETTINGS[settings])
    compare(policy, rebuilt(policy, **SETTINGS[settings]))


@pytest.mark.parametrize("space", [Spaces.Discrete(7), Spaces.MultiBinary(4), Spaces.Box(-1, 1, (2, 3))])
def test_every_flat_observation_is_read(space):
    policy = policy_of(space, ACTIONS["discrete"])
    compare(policy, rebuilt(policy))


def test_the_memory_matters_and_is_emptied_where_an_episode_begins():
    policy = policy_of(BOX, ACTIONS["discrete"])
    network = rebuilt(policy)
    observation = torch.full((1, 5), 0.3)
    went_on, begins = torch.tensor([False]), torch.tensor([True])
    state = network.initial_state(1)
    first, state = network.step(observation, state, begins)
    second, later = network.step(observation, state, went_on)
    again, _ = network.step(observation, later, begins)
    assert not torch.equal(first.parameters["logits"], second.parameters["logits"])
    assert torch.equal(first.parameters["logits"], again.parameters["logits"])


def test_a_step_leaves_the_state_that_it_was_given():
    network = rebuilt(policy_of(BOX, ACTIONS["discrete"]))
    state = network.initial_state(2)
    network.step(torch.ones(2, 5), state, torch.tensor([True, False]))
    assert not any(part.any() for part in state.values())


def test_parameters_are_those_that_act():
    policy = policy_of(BOX, ACTIONS["discrete"])
    acting = [policy.lstm_actor, policy.mlp_extractor.policy_net, policy.action_net]
    assert rebuilt(policy).acting_params == sum(parameter.numel() for module in acting for parameter in module.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lstm_actor.weight_hr_l0": torch.zeros(3, 12)}, "not a plain LSTM"),
        ({"lstm_actor.weight_ih_l0_reverse": torch.zeros(48, 5)}, "not a plain LSTM"),
        ({"lstm_actor.weight_ih_l0": torch.zeros(48, 9)}, "reads 9 numbers, its observations have 5"),
        ({"lstm_actor.weight_ih_l0": torch.zeros(47, 5)}, "not an LSTM"),
        ({"lstm_actor.weight_hh_l0": torch.zeros(48, 11)}, "not a plain LSTM"),
        ({"mlp_extractor.policy_net.0.weight": torch.zeros(8, 11)}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    policy = policy_of(BOX, ACTIONS["discrete"])
    with pytest.raises(NotPlainError, match=says):
        rebuild_recurrent({**policy.state_dict(), **change}, RECURRENT, BOX, ACTIONS["discrete"], {}, "agent.zip")
