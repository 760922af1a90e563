"""Scores: derivatives of log-probabilities that are written out for PPO, against autograd on Stable-Baselines3's distributions."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.distributions import make_proba_distribution
from torch import Tensor

from policy_distill.policies.actions import Box
from policy_distill.policies.families import Deterministic, family_of
from tests.small_worlds import random_observations

BOX = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
ACTED = [gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3), BOX]


def distribution(space: gym.Space, outputs: Tensor, log_std: Tensor) -> Any:
    made: Any = make_proba_distribution(space)
    return made.proba_distribution(outputs, log_std) if isinstance(space, gym.spaces.Box) else made.proba_distribution(outputs)


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_log_probabilities_and_scores_are_autograd_s(space):
    family = family_of(space)
    draws = torch.Generator().manual_seed(0)
    outputs = (3 * torch.randn(50, family.width, generator=draws)).double().requires_grad_()
    log_std = torch.randn(family.width, generator=draws).double().requires_grad_()
    actions = torch.as_tensor(random_observations(space, 50))
    expected = distribution(space, outputs, log_std).log_prob(actions.double())
    weights = torch.randn(50, generator=draws).double()
    slopes = torch.autograd.grad(expected @ weights, [outputs, log_std], allow_unused=True)
    with torch.no_grad():
        found, by_outputs, by_log_std = family.scored(outputs, log_std, actions.double())
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(weights[:, None] * by_outputs, slopes[0])
    assert (by_log_std is None) == (not isinstance(space, gym.spaces.Box))
    if by_log_std is not None:
        torch.testing.assert_close(weights @ by_log_std, slopes[1])


def test_log_probabilities_by_hand():
    nothing = torch.zeros(0)
    # half a standard deviation of 2 from the mean
    found, by_mean, by_log_std = family_of(gym.spaces.Box(-1, 1, (1,))).scored(
        torch.tensor([[1.0]]), torch.tensor([math.log(2)]), torch.tensor([[2.0]])
    )
    assert found.item() == pytest.approx(-0.125 - math.log(2) - math.log(2 * math.pi) / 2)
    assert by_mean.item() == pytest.approx(0.25)  # (2 - 1) / 2**2
    assert by_log_std is not None
    assert by_log_std.item() == pytest.approx(-0.75)  # 0.5**2 - 1
    # probabilities 1/4 and 3/4
    found, score, _ = family_of(gym.spaces.Discrete(2)).scored(torch.tensor([[7.0, 7.0 + math.log(3)]]), nothing, torch.tensor([1.0]))
    assert found.item() == pytest.approx(math.log(0.75))
    assert score[0].tolist() == pytest.approx([-0.25, 0.25])
    # on with 3/4, and it is off; on with 1/2, and it is on
    found, score, _ = family_of(gym.spaces.MultiBinary(2)).scored(torch.tensor([[math.log(3), 0.0]]), nothing, torch.tensor([[0.0, 1.0]]))
    assert found.item() == pytest.approx(math.log(0.25) + math.log(0.5))
    assert score[0].tolist() == pytest.approx([-0.75, 0.5])


def test_what_has_no_density_is_refused():
    family: Any = Deterministic(Box((-1.0,), (1.0,)))
    with pytest.raises(ValueError, match="no density"):
        family.scored(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1))
