"""Layers rebuilt from weights: batch renormalisation by hand, and settings of a damaged file."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policy_distill.teachers.algorithms import SAC
from policy_distill.teachers.files.errors import NotPlainError
from policy_distill.teachers.networks.rebuild import Layers


def renorm(name: str, width: int) -> dict[str, Tensor]:
    """2 (x - 1) / sqrt(4) + 3 = x + 2, if epsilon is 1."""
    values = {"ra_mean": 1.0, "ra_var": 3.0, "scale": 2.0, "bias": 3.0}
    return {f"{name}.{part}": torch.full((width,), value) for part, value in values.items()}


def linear(name: str, weight: float, width: int) -> dict[str, Tensor]:
    """``width`` inputs to one output, without a bias."""
    return {f"{name}.weight": torch.full((1, width), weight)}


def layers(*parts: dict[str, Tensor], epsilon: object = 1) -> Layers:
    weights = {key: value for part in parts for key, value in part.items()}
    return Layers(weights, SAC, {"batch_norm_eps": epsilon}, "agent.zip")


def test_every_normalisation_is_part_of_the_layer_behind_it():
    hidden = renorm("actor.latent_pi.0", 2), linear("actor.latent_pi.1", 0.5, 2), renorm("actor.latent_pi.3", 1)
    network = layers(*hidden, linear("actor.mu", 10, 1)).network(SAC.actor)
    # 0.5 (1 + 2) + 0.5 (5 + 2) = 5; 10 (5 + 2) = 70
    assert network(torch.tensor([[1.0, 5.0]])).tolist() == [[70.0]]


def test_a_normalisation_without_a_layer_behind_it_is_refused():
    ending = linear("actor.mu.0", 10, 1), renorm("actor.mu.1", 1)
    with pytest.raises(NotPlainError, match=r"ends the layers 'actor\.mu' with a normalisation"):
        layers(*ending).network(SAC.actor)


@pytest.mark.parametrize("epsilon", ["much", None, [1], -1, float("nan")])
def test_a_setting_that_is_no_number_is_refused(epsilon):
    with pytest.raises(NotPlainError, match=r"batch_norm_eps .* is no number >= 0"):
        layers(epsilon=epsilon)
