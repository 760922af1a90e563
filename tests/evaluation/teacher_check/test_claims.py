"""What the files around an agent say that it earns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from policy_distill.evaluation.teacher_check.claims import Claim, find_claim, training_claim
from policy_distill.teachers.files.training_record import TrainingRecord


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
    with pytest.raises(ValueError, match="not numeric"):
        find_claim(tmp_path / "agent.zip")


def test_the_hub_s_results_are_read(tmp_path):
    text = '{"mean_reward": 478.5, "std_reward": 12.25, "is_deterministic": true, "n_eval_episodes": 10}'
    (tmp_path / "results.json").write_text(text)
    assert find_claim(tmp_path / "agent.zip") == Claim(478.5, 12.25, 10, "results.json")


def test_the_zoo_s_model_card_is_read(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nmodel-index:\n- name: PPO\n  results:\n  - metrics:\n    - type: mean_reward\n      value: -78.80 +/- 21.71\n---\n# PPO\n"
    )
    assert find_claim(tmp_path / "agent.zip") == Claim(-78.8, 21.71, 1, "README.md")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "[1, 2]"),
        ("results.json", '{"accuracy": 1}'),
        ("results.json", "{"),
        ("results.json", '{"mean_reward": NaN, "std_reward": 1}'),
        ("README.md", "# A project\nvalue: 3 +/- 1"),
        ("README.md", "mean_reward: unknown"),
    ],
)
def test_files_of_these_names_that_say_something_else_claim_nothing(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert find_claim(tmp_path / "agent.zip") is None


def test_training_claims_the_mean_of_its_last_episodes():
    assert training_claim(TrainingRecord(np.array([1.0, 5.0]), None)) == Claim(3.0, 2.0, 2, "the zip's last training episodes")
    assert training_claim(TrainingRecord(None, True)) is None


def test_the_error_of_a_mean_falls_with_the_root_of_the_episodes():
    assert Claim(0.0, 6.0, 9, "").error == 2.0
