"""The return of anything that acts, and a retention that is the job's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import (
    CollectConfig,
    DistillConfig,
    EvaluateConfig,
    PolishConfig,
    RequestError,
    StudentConfig,
    TrainConfig,
)
from policy_distill.evaluation.measure import Measurement, certify, measure
from policy_distill.evaluation.statistics import Plan
from policy_distill.evaluation.verify import verify
from policy_distill.export.sb3 import save_ppo
from policy_distill.pipeline.distill import DistillResult, distill
from policy_distill.support.progress import Display
from tests import rude_worlds as rude
from tests.small_worlds import WALK, random_student, walk_expert

EPISODES = 12


@pytest.fixture(scope="module")
def expert(tmp_path_factory) -> str:
    return str(save_ppo(walk_expert(), tmp_path_factory.mktemp("agents") / "ppo.zip"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, expert) -> DistillResult:
    """A student that kept a part only."""
    config = DistillConfig(
        teacher=expert,
        env=WALK.id,
        output=str(tmp_path_factory.mktemp("runs") / "walk"),
        device="cpu",
        workers=0,
        student=StudentConfig(hidden_sizes=(4,)),
        collect=CollectConfig(env_steps=120, rounds=2, num_envs=4),
        train=TrainConfig(gradient_steps=60, batch_size=32, learning_rate=0.003, average_decay=0.9),
        polish=PolishConfig(below=0.0),
        evaluate=EvaluateConfig(episodes=EPISODES, validation_episodes=2, confidence=0.9, num_envs=4),
    )
    result = distill(config)
    assert 0.05 < result.retention.estimate < 0.999
    return result


def measured(policy: object, **options: object) -> Measurement:
    return measure(str(policy), episodes=EPISODES, workers=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["", "student", "student.zip"])
def test_a_run_its_student_and_its_zip_are_measured_alike(place, run):
    found = measured(run.folder / place)
    assert found.spec == WALK
    assert found.params == 27  # 2 -> 4 -> 3: 12 + 15
    np.testing.assert_array_equal(found.episodes.returns, run.student_episodes.returns)
    np.testing.assert_array_equal(found.random.returns, run.random_episodes.returns)
    assert found.teacher is found.retention is found.episodes.agreement is None


def test_retention_is_the_job_s_own_on_the_same_seeds(run, expert):
    found = measured(run.folder, teacher=expert, confidence=0.9, num_envs=5)
    assert found.retention == run.retention
    assert found.teacher is not None
    np.testing.assert_array_equal(found.teacher.returns, run.teacher_episodes.returns)
    assert found.episodes.agreement == pytest.approx(run.student_episodes.agreement)


def test_the_rows_and_the_data_have_the_same_figures(run, expert):
    found = measured(run.folder, teacher=expert, confidence=0.9)
    rows, data = dict(found.rows()), found.summary()
    returns = run.student_episodes.returns
    assert rows["return"] == f"{returns.mean():.2f} ± {returns.std(ddof=1):.2f}"
    assert rows["policy"] == f"{run.folder}, 27 parameters"
    assert rows["retention [90% interval]"].startswith(f"{run.retention.estimate:.3f} [")
    assert rows["episodes"] == "12"
    assert rows["mean length"] == f"{run.student_episodes.lengths.mean():.0f} steps"
    assert data["retention"] == dataclasses.asdict(run.retention)
    assert data["policy"]["return_std"] == returns.std(ddof=1)
    assert data["teacher"]["return_mean"] == run.teacher_episodes.returns.mean()
    alone = measured(run.folder)
    assert {"teacher", "retention"}.isdisjoint(alone.summary())
    assert not {name for name, _ in alone.rows() if "teacher" in name or "retention" in name or "agreement" in name}


def test_a_bare_zip_needs_an_environment(expert, tmp_path):
    copy = tmp_path / "ppo.zip"
    copy.write_bytes(Path(expert).read_bytes())
    with pytest.raises(RequestError, match=r"ppo\.zip does not say which environment it acts in: give --env"):
        measured(copy)
    found = measured(copy, env=WALK.id)
    assert found.params == 1251
    # the expert walks straight: its return is minus the number of its steps, and never below minus the longest way
    assert found.episodes.returns.tolist() == (-found.episodes.lengths).tolist()
    assert found.episodes.returns.min() >= -10


def test_a_student_that_does_not_know_its_environment_is_measured_in_its_teacher_s(expert, tmp_path):
    walk_expert().save(tmp_path / "student")
    with pytest.raises(RequestError, match="give --env"):
        measured(tmp_path, teacher=expert)  # nor does the teacher
    assert measured(tmp_path, env=WALK.id, teacher=expert).retention is not None


def test_spaces_that_do_not_fit_are_refused(run):
    with pytest.raises(RequestError, match=r"observations are 2 numbers, those of CartPole-v1 are 4 numbers"):
        measured(run.folder, env="CartPole-v1")
    with pytest.raises(RequestError, match=r"agent's observations are 4 numbers, those of tests/Walk-v0 are 2 numbers"):
        measured(run.folder, teacher="ppo/CartPole-v1")


def test_an_agent_that_ships_with_the_project_is_measured():
    found = measure("ppo/CartPole-v1", episodes=2, num_envs=2, workers=0)
    assert found.params == 67_586  # 4 -> 256 -> 256 -> 2: 1280 + 65792 + 514
    assert found.spec.id == "CartPole-v1"
    assert found.episodes.returns.mean() > 10 * found.random.returns.mean()


def test_an_agent_s_outdated_environment_is_reported(tmp_path, capsys):
    """The notice was dropped where the policy itself, not its teacher, was the old agent."""
    folder = tmp_path / "ppo" / "LunarLander-v2_1"
    (folder / "LunarLander-v2").mkdir(parents=True)
    (folder / "LunarLander-v2" / "config.yml").write_text("normalize: false\n")
    save_ppo(random_student(gym.spaces.Box(-1, 1, (8,), np.float32), gym.spaces.Discrete(4)), folder / "LunarLander-v2.zip")
    found = measure(str(folder), episodes=2, num_envs=2, workers=0, display=Display())
    assert found.spec.id == "LunarLander-v3"
    assert capsys.readouterr().err.startswith("note: trained on LunarLander-v2; run here on LunarLander-v3")


# Certificates.

PLAN = Plan.of(0.9, max_episodes=200)


def test_a_certificate_lies_in_the_run_s_folder(run, expert):
    for place in ("", "student"):
        (run.folder / "certificate.json").unlink(missing_ok=True)
        found = certify(str(run.folder / place), teacher=expert, plan=PLAN, workers=0)
        assert found.certificate_path == run.folder / "certificate.json"
        data = json.loads((run.folder / "certificate.json").read_text())
        assert data["student"]["path"] == "student"
        assert found.certified is not None
        assert data["verdict"] == found.certified.decision.verdict == "refuted"
    (run.folder / "certificate.json").unlink()


def test_a_student_outside_a_run_keeps_its_certificate_itself(expert, tmp_path):
    walk_expert().save(tmp_path / "student", extra={"environment": WALK.to_dict()})
    found = certify(str(tmp_path / "student"), teacher=expert, plan=PLAN, workers=0)
    assert found.certificate_path == tmp_path / "student" / "certificate.json"
    assert found.certified is not None
    assert found.certified.decision.verdict == "certified"
    rows, data = dict(found.rows()), found.summary()
    assert rows["certificate"].startswith("certified: the student keeps at least 0.9")
    assert data["certificate"]["verdict"] == "certified"
    assert data["seeds"][0] == 5_000_000


def test_a_zip_s_certificate_needs_a_place(expert, tmp_path):
    with pytest.raises(RequestError, match="give --output"):
        certify(expert, teacher=expert, env=WALK.id, plan=PLAN, workers=0)
    for output, path in ((tmp_path / "a", tmp_path / "a" / "certificate.json"), (tmp_path / "b.json", tmp_path / "b.json")):
        assert certify(expert, teacher=expert, env=WALK.id, plan=PLAN, workers=0, output=str(output)).certificate_path == path
        assert path.is_file()


def test_drawn_actions_are_measured_and_certified(expert, tmp_path):
    walk_expert().save(tmp_path, extra={"environment": WALK.to_dict()})
    greedy, drawn = (measured(tmp_path, stochastic=stochastic, num_envs=4).episodes.returns for stochastic in (False, True))
    assert drawn.mean() < greedy.mean()
    np.testing.assert_array_equal(measured(tmp_path, stochastic=True, num_envs=1).episodes.returns, drawn)
    found = certify(str(tmp_path), teacher=expert, plan=PLAN, workers=0, stochastic=True)
    assert found.certificate_path is not None
    assert json.loads(found.certificate_path.read_text())["student"]["stochastic"] is True
    again = verify(found.certificate_path, workers=0, episodes=10)
    assert again.holds, again.objections


def test_a_job_certifies_what_it_made(expert, tmp_path):
    config = DistillConfig(
        teacher=expert,
        env=WALK.id,
        output=str(tmp_path / "run"),
        device="cpu",
        workers=0,
        student=StudentConfig(hidden_sizes=(4,)),
        collect=CollectConfig(env_steps=120, rounds=2, num_envs=4),
        train=TrainConfig(gradient_steps=60, batch_size=32),
        polish=PolishConfig(below=0.0),
        evaluate=EvaluateConfig(episodes=EPISODES, validation_episodes=2, num_envs=4, certify=0.9, max_episodes=120),
    )
    result = distill(config)
    written = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert result.summary["certificate"]["verdict"] == written["verdict"]
    assert written["max_episodes"] == 120
    found = verify(tmp_path / "run" / "certificate.json", workers=0)
    assert found.holds, found.objections
    played = 3 * written["episodes"] * 2  # two steps at the very least, of three policies
    assert result.summary["evaluation_env_steps"] > played
    assert f"| certificate | {written['verdict']}: " in (tmp_path / "run" / "report.md").read_text()


def test_an_environment_that_ignores_its_seed_is_reported_and_not_certified(tmp_path, capsys):
    student = random_student(rude.Polite.observation_space, rude.Polite.action_space)
    zips = [str(save_ppo(student, tmp_path / f"{name}.zip")) for name in ("ppo", "ppo_other")]
    name = "tests/DrawsGloballyInSteps-v0"
    found = measured(zips[0], env=name, display=Display())
    assert "does not follow its seed" in capsys.readouterr().err
    assert any(title == "note" and "cannot be repeated" in text for title, text in found.rows())
    assert found.summary()["notices"] == list(found.notices)
    with pytest.raises(RequestError, match="does not follow its seed"):
        certify(zips[0], teacher=zips[1], plan=Plan.of(0.5, 0.9, 100), env=name, output=str(tmp_path), workers=0)
    assert not (tmp_path / "certificate.json").exists()
