"""Before the work: what a folder claims, and whether the return here fits it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from policy_distill.check import Checkup, Claim, check_teacher, find_claim
from policy_distill.evaluate import Episodes
from policy_distill.export.sb3 import save_ppo
from policy_distill.teachers import Teacher
from tests.small_worlds import WALK, walk_expert

CHANCE = "no better than a random policy here: wrong environment, missing normalisation, or untrained"


def card(folder: Path, mean: float, std: float, episodes: int) -> None:
    (folder / "card.json").write_text(json.dumps({"algo": "ppo", "return_mean": mean, "return_std": std, "episodes": episodes}))


def evaluations(path: Path, *results: tuple[float, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, timesteps=np.arange(len(results)), results=np.array(results), ep_lengths=np.ones((len(results), 2)))


def test_a_folder_without_figures_claims_nothing(tmp_path):
    assert find_claim(tmp_path / "agent.zip") is None


def test_a_card_is_believed_first(tmp_path):
    card(tmp_path, 282.1, 21.5, 100)
    evaluations(tmp_path / "evaluations.npz", (1.0, 3.0))
    assert find_claim(tmp_path / "agent.zip") == Claim(282.1, 21.5, 100, "card.json")


@pytest.mark.parametrize("place", ["evaluations.npz", "agent/evaluations.npz"])
def test_the_last_evaluation_is_the_agent_s(place, tmp_path):
    evaluations(tmp_path / place, (7.0, 9.0), (1.0, 5.0))
    # mean 3, standard deviation 2
    assert find_claim(tmp_path / "agent.zip") == Claim(3.0, 2.0, 2, "evaluations.npz")


def test_the_best_evaluation_is_the_best_model_s(tmp_path):
    evaluations(tmp_path / "evaluations.npz", (1.0, 2.0), (7.0, 9.0), (1.0, 5.0))
    assert find_claim(tmp_path / "best_model.zip") == Claim(8.0, 1.0, 2, "evaluations.npz")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "evaluations.npz", results=np.array([[1.0], None], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        find_claim(tmp_path / "agent.zip")


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
        (14.3, "below what card.json says by 4.3, which is more than noise"),
        (5.7, "above what card.json says by 4.3, which is more than noise"),
    ],
)
def test_a_claim_is_compared_within_three_standard_errors(claimed, verdict):
    assert checkup((9.0, 11.0), (0.0, 0.0), Claim(claimed, 4.0, 16, "card.json")).verdict == verdict


def test_chance_is_told_before_the_claim():
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
