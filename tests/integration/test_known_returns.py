"""Jobs that know what teacher and random policy earned: they find the same, and play less."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_distill.commands.cli import main
from policy_distill.config import (
    CheckConfig,
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PolishConfig,
    StudentConfig,
    TrainConfig,
)
from policy_distill.evaluation.return_cache import folder, known_returns
from policy_distill.evaluation.verify import verify
from policy_distill.pipeline.distill import DistillResult, distill
from policy_distill.rollouts.episodes import evaluate, evaluation_seeds
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.progress import Display
from policy_distill.teachers import Teacher
from tests.evaluation.test_return_cache import CARTPOLE, agent, episodes


@pytest.fixture
def zip_path(tmp_path) -> str:
    return agent(tmp_path / "agents" / "ppo.zip")


def tiny(output: Path, teacher: str, **changes: Any) -> DistillConfig:
    """A job of seconds; ``changes`` are of ``evaluate``."""
    return DistillConfig(
        teacher=teacher,
        env="CartPole-v1",
        output=str(output),
        device="cpu",
        workers=0,
        check=CheckConfig(skip=True),
        student=StudentConfig(hidden_sizes=(8,)),
        collect=CollectConfig(env_steps=200, rounds=3, num_envs=4),
        train=TrainConfig(gradient_steps=30, batch_size=32, members=1),
        polish=PolishConfig(below=0),
        evaluate=EvaluateConfig(**{"episodes": 11, "validation_episodes": 3, "finalist_episodes": 4, "finalists": 2, **changes}),
    )


class Notes(Display):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


def figures(result: DistillResult) -> dict[str, Any]:
    """What must be the same however much was known: all but settings, time, and what it took to measure."""
    saved = json.loads((result.folder / "result.json").read_text())
    return {name: value for name, value in saved.items() if name not in ("config", "seconds", "evaluation_env_steps", "reused_episodes")}


def counted(result: DistillResult) -> tuple[int, int]:
    return result.summary["evaluation_env_steps"], result.summary["reused_episodes"]


def files() -> list[Path]:
    return sorted(Path(str(folder())).glob("*.npz"))


def test_a_second_job_finds_the_same_and_plays_the_student_alone(zip_path, tmp_path):
    cold = distill(tiny(tmp_path / "cold", zip_path))
    display = Notes()
    warm = distill(tiny(tmp_path / "warm", zip_path), display=display)
    assert figures(cold) == figures(warm)
    assert len(np.unique(cold.teacher_episodes.returns)) > 3
    # 11 final and 3 + 4 validation seeds, of teacher and random policy
    seeds = evaluation_seeds("final", 11) + evaluation_seeds("validation", 7)
    played = sum(evaluate(who, CARTPOLE, seeds).env_steps for who in (Teacher.load(zip_path), None))
    assert (counted(cold)[0] - counted(warm)[0], counted(cold)[1], counted(warm)[1]) == (played, 0, 36)
    assert [note for note in display.told if "earlier jobs" in note] == [
        "36 episodes of teacher and random policy are known from earlier jobs; --evaluate.reuse_returns false plays them again"
    ]
    assert len(files()) == 2


def test_where_some_seeds_are_known_only_the_others_are_played(zip_path, tmp_path, monkeypatch):
    few = {"episodes": 5, "validation_episodes": 2, "finalist_episodes": 1}
    first = distill(tiny(tmp_path / "few", zip_path, **few))
    asked: list[tuple[str, int]] = []
    begin = Rollouts.begin_evaluation

    def spy(self: Rollouts, policy: Any, seeds: Sequence[int], **options: Any) -> Any:
        asked.extend((policy, seed) for seed in seeds if isinstance(policy, str))
        return begin(self, policy, seeds, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Rollouts, "begin_evaluation", spy)
        partly = distill(dataclasses.replace(tiny(tmp_path / "partly", zip_path), workers=2))
    unknown = evaluation_seeds("final", 11)[5:] + evaluation_seeds("validation", 7)[3:]
    assert sorted(asked) == sorted((who, seed) for who in ("teacher", "random") for seed in unknown)
    assert counted(first)[1] == 0
    assert counted(partly)[1] == 2 * (5 + 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert figures(partly) == figures(distill(tiny(tmp_path / "cold", zip_path)))


def test_another_teacher_of_the_task_finds_the_random_policy_s_returns(zip_path, tmp_path):
    distill(tiny(tmp_path / "one", zip_path))
    other = distill(tiny(tmp_path / "other", agent(tmp_path / "other.zip", seed=2)))
    assert counted(other)[1] == 18


def test_it_can_be_turned_off(zip_path, tmp_path, capsys):
    off = distill(tiny(tmp_path / "off", zip_path, reuse_returns=False))
    assert files() == []
    distill(tiny(tmp_path / "on", zip_path))
    command = ["distill_policy", "--config", str(tmp_path / "on" / "config.yaml"), "--evaluate.reuse_returns", "false", "--json"]
    assert main([*command, "--output", str(tmp_path / "again")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["reused_episodes"] == 0
    assert again["evaluation_env_steps"] == counted(off)[0]
    assert again["returns"] == off.summary["returns"]


def test_a_job_in_a_folder_that_cannot_be_written_keeps_nothing_and_goes_on(zip_path, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    results = [distill(tiny(tmp_path / name, zip_path)) for name in ("one", "other")]
    assert [counted(result)[1] for result in results] == [0, 0]
    assert figures(results[0]) == figures(results[1])


def test_a_certificate_stands_on_episodes_that_were_played(zip_path, tmp_path):
    """Whatever the files say of its seeds, they are not asked; nor are its episodes kept."""
    seeds, final = evaluation_seeds("certificate", 50), evaluation_seeds("final", 11)
    stores = known_returns(Teacher.load(zip_path), CARTPOLE)
    for store in stores.values():
        store.add(episodes(seeds[:40], [-7.0] * 40))
    result = distill(tiny(tmp_path / "run", zip_path, certify=0.5, max_episodes=50))
    path = result.folder / "certificate.json"
    returns = json.loads(path.read_text())["returns"]
    assert returns["teacher"] == evaluate(Teacher.load(zip_path), CARTPOLE, seeds).returns.tolist()
    assert returns["random"] == evaluate(None, CARTPOLE, seeds).returns.tolist()
    assert verify(path, teacher=zip_path, workers=0).objections == []
    assert counted(result)[1] == 0
    for who, store in stores.items():
        assert store.read(final).returns.tolist() == result.summary["returns"][who]  # the files are those that the job reads and writes
        assert store.read(seeds).returns.tolist() == [-7.0] * 40
