"""Whole runs, tiny ones, whose teacher is several agents."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3 import PPO

from policy_distill.commands.cli import main
from policy_distill.config import CheckConfig, EnsembleConfig
from policy_distill.export.sb3 import save_ppo
from policy_distill.pipeline.distill import distill
from policy_distill.pipeline.prepare import with_ensemble
from policy_distill.rollouts.episodes import evaluate, evaluation_seeds
from tests.integration.test_distill import assert_same_student, tiny
from tests.small_worlds import WALK, Walk, random_student, walk_expert, walk_teacher
from tests.teachers import extractors

SMALL = [
    *("--env", WALK.id, "--device", "cpu", "--workers", "0", "--student.hidden_sizes", "[16,16]", "--collect.env_steps", "1200"),
    *("--collect.rounds", "4", "--collect.num_envs", "4", "--train.gradient_steps", "600", "--train.batch_size", "64"),
    *("--evaluate.episodes", "20", "--evaluate.validation_episodes", "5", "--polish.below", "0"),
]


@pytest.fixture(scope="module")
def zips(tmp_path_factory) -> tuple[str, str]:
    """An agent that walks to the target, and one that does not."""
    folder = tmp_path_factory.mktemp("agents")
    novice = random_student(Walk.observation_space, gym.spaces.Discrete(3))
    return str(save_ppo(walk_expert(), folder / "expert.zip")), str(save_ppo(novice, folder / "novice.zip"))


def test_two_zips_teach_together_from_the_command_line(zips, tmp_path, capsys):
    expert, novice = zips
    together = ["--teacher", novice, "--ensemble.teachers", json.dumps([expert]), "--ensemble.weights", "[1, 3]"]
    assert main(["distill_policy", *SMALL, *together, "--output", str(tmp_path / "one"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    teacher = result["teacher"]
    assert (teacher["algo"], teacher["path"], teacher["members"]) == ("ensemble", None, [novice, expert])
    assert teacher["params"] == 123 + 1251  # 2 -> 8 -> 8 -> 3 and 2 -> 32 -> 32 -> 3
    assert result["compression"] == pytest.approx((123 + 1251) / 371)
    # The expert is so sure that three quarters of the word decide: together they walk as it does alone.
    alone = evaluate(walk_teacher(), WALK, evaluation_seeds("final", 20))
    assert result["returns"]["teacher"] == alone.returns.tolist()
    assert result["retention"]["estimate"] > 0.9
    assert "# ensemble on tests/Walk-v0, distilled" in (tmp_path / "one" / "report.md").read_text()

    written = str(tmp_path / "one" / "config.yaml")
    assert main(["distill_policy", "--config", written, "--output", str(tmp_path / "again"), "--json"]) == 0
    assert_same_student(tmp_path / "one", tmp_path / "again")


def test_the_most_promising_of_two_zips_teaches_in_worker_processes(zips, tmp_path):
    def run(folder: Path, workers: int) -> None:
        config = tiny(folder, teacher=zips[0], ensemble=EnsembleConfig(teachers=(zips[1],), combine="value"), workers=workers)
        train = dataclasses.replace(config.train, gradient_steps=40)
        distill(dataclasses.replace(config, train=train, check=CheckConfig(skip=True)))  # together these two are no better than chance

    run(tmp_path / "here", 0)
    run(tmp_path / "there", 2)
    assert_same_student(tmp_path / "here", tmp_path / "there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ensemble.weights", "[1, 2]"], "ensemble.weights is (1.0, 2.0); it must be left out when there are no ensemble.teachers"),
        (["--ensemble.teachers", '["nowhere.zip"]'], "nowhere.zip does not exist"),
        (["--ensemble.combine", "median"], "median"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused_in_one_line(arguments, message, zips, tmp_path, capsys):
    assert main(["distill_policy", *SMALL, "--teacher", zips[0], "--output", str(tmp_path / "run"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_agents_of_an_ensemble_read_through_an_extractor_if_it_is_theirs(zips, tmp_path):
    """Only the agent named first got it, and one without an extractor of its own beside it was refused."""
    own = tmp_path / "own.zip"
    PPO("MlpPolicy", Walk(), policy_kwargs={"features_extractor_class": extractors.Layers}, device="cpu").save(own)
    extractor = f"{extractors.__file__}:Layers"
    for first, further in ((zips[0], str(own)), (str(own), zips[0])):
        config = tiny(tmp_path / "run", teacher=first, ensemble=EnsembleConfig(teachers=(further,)), extractor=extractor)
        members = with_ensemble(config, None).members
        assert [member.reading.extractor for member in members] == [extractor if path == str(own) else None for path in (first, further)]
