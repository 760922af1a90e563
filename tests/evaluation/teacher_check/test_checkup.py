"""The whole examination: what is measured, compared and found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.evaluation.teacher_check import Checkup, Claim, check_teacher
from policy_distill.export.sb3 import save_ppo
from policy_distill.rollouts.episodes import Episodes
from policy_distill.teachers import Teacher
from tests.evaluation.teacher_check.test_versions import UPHILL
from tests.small_worlds import BANDIT, PUSH, WALK, Push, Walk, bandit_teacher, walk_best, walk_expert, walk_teacher

CHANCE = "no better than a random policy here: wrong environment, missing normalisation, or untrained"


def card(folder: Path, mean: float, std: float, episodes: int) -> None:
    (folder / "card.json").write_text(json.dumps({"algo": "ppo", "return_mean": mean, "return_std": std, "episodes": episodes}))


def checkup(own: tuple[float, ...], random: tuple[float, ...], claim: Claim | None = None) -> Checkup:
    def episodes(returns: tuple[float, ...]) -> Episodes:
        return Episodes(np.arange(len(returns)), np.array(returns), np.ones(len(returns), np.int64))

    return Checkup({}, episodes(own), episodes(random), claim)


@pytest.mark.parametrize(
    ("own", "random", "beats"),
    [
        # two returns a and a + 2 have a standard error of 1
        ((1.0, 3.0), (0.0, 0.0), False),  # 2 above, which is not more than 2 * 1
        ((1.01, 3.01), (0.0, 0.0), True),
        ((2.0, 4.0), (0.0, 2.0), False),  # 2 above, where 2 * sqrt(2) = 2.83 is noise
        ((2.9, 4.9), (0.0, 2.0), True),
        ((-5.0, -3.0), (0.0, 0.0), False),  # worse
        ((1.0, 1.0), (1.0, 1.0), False),
    ],
)
def test_chance_is_beaten_by_more_than_two_standard_errors(own, random, beats):
    without = "better than a random policy; its folder claims no return to compare with"
    assert checkup(own, random).verdict == (without if beats else CHANCE)


@pytest.mark.parametrize(
    ("claimed", "verdict"),
    [
        # here 10 with a standard error of 1, claimed with 4 / sqrt(16) = 1: noise reaches to 3 * sqrt(2) = 4.24
        (14.2, "agrees with card.json within noise"),
        (5.8, "agrees with card.json within noise"),
        (14.3, "below what card.json says by 4.30, which is more than noise"),
        (5.7, "above what card.json says by 4.30, which is more than noise"),
    ],
)
def test_a_claim_is_compared_within_three_standard_errors(claimed, verdict):
    assert checkup((9.0, 11.0), (0.0, 0.0), Claim(claimed, 4.0, 16, "card.json")).verdict == verdict


def test_chance_is_reported_before_the_claim():
    assert checkup((1.0, 3.0), (1.0, 3.0), Claim(2.0, 1.0, 9, "card.json")).verdict == CHANCE


def test_equal_figures_without_noise_agree():
    assert checkup((500.0, 500.0), (20.0, 20.0), Claim(500.0, 0.0, 100, "card.json")).verdict.startswith("agrees")


@pytest.mark.parametrize(("claimed", "word"), [(-4.0, "agrees with"), (0.0, "below what")])
def test_an_agent_is_measured_and_compared_with_its_card(claimed, word, tmp_path):
    """Two different places of eleven are (11 + 1) / 3 = 4 apart on average, with a mean square of 11 * 12 / 6 = 22."""
    teacher = Teacher.load(save_ppo(walk_expert(), tmp_path / "agent.zip"))
    card(tmp_path, claimed, math.sqrt(22 - 16), 100)
    found = check_teacher(teacher, WALK, episodes=30, workers=0)
    assert found.verdict.startswith(word)
    assert found.facts["params"] == 1251
    assert found.claim == Claim(claimed, math.sqrt(6), 100, "card.json")
    np.testing.assert_array_equal(found.episodes.seeds, found.random_episodes.seeds)
    assert len(found.episodes.returns) == 30


def test_a_function_has_no_folder_that_could_claim(tmp_path):
    teacher = Teacher.from_callable(walk_expert().act, walk_expert().observation_space, walk_expert().action_space)
    assert check_teacher(teacher, WALK, episodes=10, workers=0).claim is None


def topics(found: Checkup) -> dict[str, str]:
    return {finding.topic: finding.severity for finding in found.findings}


def test_an_agent_below_its_card_is_reported_worst_first(tmp_path):
    teacher = Teacher.load(save_ppo(walk_expert(), tmp_path / "agent.zip"))
    card(tmp_path, 0.0, 1.0, 100)
    found = check_teacher(teacher, WALK, episodes=30, workers=0)
    assert topics(found)["return_below_claim"] == "warn"
    ranks = [["stop", "warn", "note"].index(finding.severity) for finding in found.findings]
    assert ranks == sorted(ranks)
    assert found.summary()["findings"][0]["topic"] == found.findings[0].topic


def test_a_good_agent_has_nothing_against_it(tmp_path):
    found = check_teacher(walk_teacher(), WALK, episodes=20, workers=0)
    assert found.findings == ()
    assert found.drawn is None  # a function has no distribution
    assert found.behaviour is not None
    assert found.behaviour.states == found.episodes.lengths[:16].sum()


def test_an_agent_that_is_better_when_it_draws_its_actions_is_reported():
    """It prefers standing still by a hair; the way to the target comes next."""

    def logits(seen: np.ndarray) -> np.ndarray:
        scores = np.full((len(seen), 3), -9.0)
        scores[np.arange(len(seen)), walk_best(seen)] = 0.0
        scores[:, 1] = 0.1
        return scores

    teacher = Teacher.from_callable(logits, Walk.observation_space, gym.spaces.Discrete(3), outputs="logits")
    found = check_teacher(teacher, WALK, episodes=20, workers=0)
    assert {"best_action_worse": "warn", "no_better_than_random": "stop", "constant_action": "warn"}.items() <= topics(found).items()
    assert found.drawn is not None
    assert found.drawn.returns.mean() > found.episodes.returns.mean() == -12  # it never moves, and the limit is 12 steps


def test_an_agent_that_answers_with_nan_is_not_let_to_act():
    teacher = Teacher.from_callable(lambda seen: np.full((len(seen), 2), np.nan), Push.observation_space, Push().action_space)
    found = check_teacher(teacher, PUSH, episodes=6, workers=0)
    assert topics(found) == {"not_finite": "stop"}
    assert len(found.episodes.returns) == 0
    assert found.verdict == "not measured: its actions are not finite"


def test_a_bandit_is_asked_about(tmp_path):
    found = check_teacher(bandit_teacher(), BANDIT, episodes=20, workers=0)
    assert topics(found) == {"one_step_episodes": "warn"}


def test_an_agent_in_the_wrong_version_gets_the_name_of_the_right_one(tmp_path):
    teacher = Teacher.load(save_ppo(walk_expert(), tmp_path / "agent.zip"))
    card(tmp_path, -4.0, math.sqrt(6), 100)
    found = check_teacher(teacher, UPHILL, episodes=30, workers=0)
    assert {"return_below_claim": "warn", "other_version_fits_better": "warn"}.items() <= topics(found).items()
    assert "other_version_fits_better" not in topics(check_teacher(teacher, WALK, episodes=30, workers=0))
