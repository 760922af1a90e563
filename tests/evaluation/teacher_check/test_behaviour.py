"""How a teacher acts: figures that can be worked out by hand, and what they mean."""

from __future__ import annotations

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import LossConfig
from policy_distill.evaluation.teacher_check.behaviour import Behaviour, has_distribution, judge, observe
from policy_distill.losses.objective import resolve_kind
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.families import Categorical
from policy_distill.rollouts.trajectories import labels_of
from policy_distill.teachers import ObservationNormalization, Teacher
from policy_distill.teachers.networks.acting import ActionBounds, ConstantSpread, DiscreteNetwork, GaussianNetwork
from tests.small_worlds import Push, Walk, bandit_teacher, push_teacher, walk_teacher

SEEN = np.arange(8, dtype=np.float32).reshape(4, 2)
PLAIN = Behaviour(states=100, finite=True, constant=False)


def scorer(scores: list[float], *, name: str = "logits", normalization: ObservationNormalization | None = None) -> Teacher:
    """Says the same everywhere."""
    body = torch.nn.Linear(2, len(scores))
    with torch.no_grad():
        body.weight.zero_()
        body.bias.copy_(torch.tensor(scores))
    network = DiscreteNetwork(body, Categorical(len(scores)), scores=name)
    space = gym.spaces.Discrete(len(scores))
    return Teacher(network, Walk.observation_space, space, algo="test", normalization=normalization)


def seen_of(teacher: Teacher, observations: np.ndarray = SEEN) -> Behaviour:
    return observe(teacher, observations, labels_of(teacher, observations))


def topics(behaviour: Behaviour) -> dict[str, str]:
    return {finding.topic: finding.severity for finding in judge(behaviour)}


def test_entropy_is_a_share_of_the_greatest():
    """p = (1/2, 1/4, 1/4): 1.5 ln 2 of ln 3."""
    found = seen_of(scorer([math.log(2), 0.0, 0.0]))
    assert found.entropy == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert found.constant
    assert found.finite


def test_q_values_have_a_gap_and_no_entropy():
    found = seen_of(scorer([5.0, 4.75, 1.0], name="q_values"))
    assert (found.q_gap, found.q_size, found.entropy) == (0.25, 5.0, None)
    assert topics(found) == {"constant_action": "warn", "q_gap": "note"}


def test_what_stands_for_a_function_s_actions_is_no_distribution():
    assert not has_distribution(walk_teacher())
    assert not has_distribution(push_teacher())
    assert has_distribution(scorer([1.0, 2.0]))
    assert not has_distribution(scorer([1.0, 2.0], name="q_values"))
    assert seen_of(walk_teacher(), np.array([[1, 5], [5, 1]], np.float32)).entropy is None


def test_answers_that_are_no_numbers_stop():
    found = seen_of(scorer([math.nan, 0.0]))
    assert not found.finite
    assert topics(found)["not_finite"] == "stop"


def test_a_forbidden_action_is_a_number():
    """Masks are written as minus infinity."""
    assert seen_of(scorer([-math.inf, 0.0, 1.0])).finite


def test_one_state_says_nothing_about_constancy():
    assert not seen_of(scorer([1.0, 0.0]), SEEN[:1]).constant
    assert not seen_of(bandit_teacher(), np.array([0, 1, 2])).constant


def test_normalised_observations_are_measured_before_they_are_clipped():
    """(0, 2, 4, 6) - 3 is -3, -1, 1, 3: mean 0, mean square 5. (1, 3, 5, 7) / 2: mean 2, mean square 21 / 4."""
    statistics = ObservationNormalization(np.array([3.0, 0.0]), np.array([1.0, 4.0]), 1e-12, 2.4)
    found = seen_of(scorer([1.0, 0.0], normalization=statistics))
    assert found.normalized_center == pytest.approx((0 + 2) / 2)
    assert found.normalized_spread == pytest.approx((math.sqrt(5) + math.sqrt(21 / 4)) / 2)
    assert found.beyond_clip == 4 / 8  # -3, 3; 2.5 and 3.5


def test_components_that_are_constant_as_in_training_have_no_say():
    """Two of three components are masked; the third is (0, 2, 4, 6) against mean 3 and variance 5."""
    space = gym.spaces.Box(-9, 9, (3,), np.float32)
    statistics = ObservationNormalization(np.array([0.0, 1.0, 3.0]), np.array([1e-10, 1e-10, 5.0]), 1e-8, 10.0)
    body = torch.nn.Linear(3, 2)
    teacher = Teacher(
        DiscreteNetwork(body, Categorical(2), scores="logits"), space, gym.spaces.Discrete(2), algo="test", normalization=statistics
    )
    seen = np.array([[0, 1, 0], [0, 1, 2], [0, 1, 4], [0, 1, 6]], np.float32)
    found = seen_of(teacher, seen)
    assert (found.normalized_center, found.beyond_clip) == (pytest.approx(0.0), 0.0)
    assert found.normalized_spread == pytest.approx(1.0)
    elsewhere = seen_of(teacher, seen + np.array([0, 1, 0], np.float32))  # constant, at another value
    assert elsewhere.beyond_clip == pytest.approx(1 / 3)
    assert topics(elsewhere)["normalization_does_not_fit"] == "warn"
    only = seen_of(teacher, np.array([[0, 1, 3]] * 4, np.float32))
    assert only.normalized_spread == pytest.approx(0.0)  # varied in training


def test_a_gaussian_s_mean_beyond_a_bound_counts_as_clipped_and_its_reaction_is_measured_in_the_box():
    teacher = gaussian_teacher()
    actions = torch.tensor([[-2.0, 0.0], [6.0, 1.0]])
    targets = ActionTargets({"mean": torch.tensor([[-1.5, 0.2], [2.0, 0.99]]), "log_std": torch.zeros(2, 2)}, actions)
    found = observe(teacher, np.zeros((2, 3), np.float32), targets)
    assert found.clipped == 0.5
    assert found.reaction == 1.0  # from one bound to the other: -1 and 1 in box units


@pytest.mark.parametrize(
    ("squashed", "compares"), [(False, "beyond the bound, which no action depends on, count a fifth"), (True, "no error beyond a bound")]
)
def test_what_the_default_loss_makes_of_clipped_actions_is_said(squashed, compares):
    targets = ActionTargets({"mean": torch.full((2, 2), 9.0), "log_std": torch.zeros(2, 2)}, torch.tensor([[6.0, 1.0], [6.0, 1.0]]))
    teacher = gaussian_teacher(squashed=squashed)
    assert resolve_kind(LossConfig(), teacher.family) == ("regression" if squashed else "kl")
    (finding,) = [one for one in judge(observe(teacher, np.zeros((2, 3), np.float32), targets)) if one.topic == "clipped_actions"]
    assert compares in finding.fix


@pytest.mark.parametrize(("log_std", "reaction"), [(0.0, 0.01), (1.0, 0.01), (math.log(0.02), 0.5)])
def test_bounds_far_wider_than_the_actions_are_not_the_scale(log_std, reaction):
    """Means of -0.01 and 0.01 are 0.01 of half the range, and half a standard deviation of 0.02."""
    actions = torch.tensor([[1.96, 0.5], [2.04, 0.5]])
    mean = torch.tensor([[-0.01, 0.0], [0.01, 0.0]])
    targets = ActionTargets({"mean": mean, "log_std": torch.full((2, 2), log_std)}, actions)
    assert observe(gaussian_teacher(), np.zeros((2, 3), np.float32), targets).reaction == pytest.approx(reaction, rel=1e-4)


def gaussian_teacher(*, squashed: bool = False) -> Teacher:
    bounds = ActionBounds(Box.from_space(Push().action_space))  # type: ignore[arg-type]
    network = GaussianNetwork(
        torch.nn.Identity(), torch.nn.Linear(3, 2), ConstantSpread(torch.zeros(2)), bounds, squashed=squashed, spread_acts=False
    )
    return Teacher(network, Push.observation_space, Push().action_space, algo="test")


@pytest.mark.parametrize(
    ("change", "topic", "severity"),
    [
        ({"finite": False}, "not_finite", "stop"),
        ({"constant": True}, "constant_action", "warn"),
        ({"entropy": 0.96}, "near_uniform", "warn"),
        ({"entropy": 0.94}, None, None),  # PPO of the RL Zoo on LunarLander, a good agent, has 0.90
        ({"entropy": 0.03}, None, None),
        ({"entropy": 0.01}, "near_deterministic", "note"),
        ({"clipped": 0.49}, None, None),
        ({"clipped": 0.51}, "clipped_actions", "note"),
        ({"beyond_clip": 0.0, "normalized_center": 1.9, "normalized_spread": 2.2}, None, None),  # the most that was seen where all was well
        ({"beyond_clip": 0.02, "normalized_center": 0.0, "normalized_spread": 1.0}, "normalization_does_not_fit", "warn"),
        ({"beyond_clip": 0.0, "normalized_center": 3.1, "normalized_spread": 3.5}, "normalization_does_not_fit", "warn"),
        ({"beyond_clip": 0.0, "normalized_center": 0.0, "normalized_spread": 0.09}, "normalization_does_not_fit", "warn"),
        ({"beyond_clip": 0.0, "normalized_center": 0.0, "normalized_spread": 4.1}, "normalization_does_not_fit", "warn"),
    ],
)
def test_figures_are_judged(change, topic, severity):
    assert topics(dataclasses.replace(PLAIN, **change)) == ({} if topic is None else {topic: severity})


def test_the_temperature_that_q_values_imply_is_a_tenth_of_their_gap():
    (finding,) = judge(dataclasses.replace(PLAIN, q_gap=0.25, q_size=100.0))
    assert "0.25 apart" in finding.what
    assert "temperature of 0.025" in finding.fix
