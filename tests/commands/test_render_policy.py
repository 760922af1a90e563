"""``render_policy``: who is filmed, where the film goes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from policy_distill.commands.cli import main
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.export.sb3 import save_ppo
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.report import VIDEO
from tests.report.example import SUMMARY
from tests.small_worlds import WALK, walk_expert

CARTPOLE = EnvironmentSpec("CartPole-v1")


def always(action: int) -> Student:
    """Pushes to one side, and falls over at once."""
    env = gym.make(CARTPOLE.id)
    student = Student(Architecture(env.observation_space, env.action_space, ()))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
        student.linears[-1].bias[action] = 1.0
    return student.eval().requires_grad_(False)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder whose student was distilled from an agent in files."""
    teacher = save_ppo(always(1), tmp_path / "teacher.zip")
    folder = tmp_path / "run"
    always(0).save(folder / "student", extra={"environment": CARTPOLE.to_dict(), "teacher": {"path": str(teacher)}})
    (folder / "result.json").write_text(json.dumps(SUMMARY))
    return folder


def rendered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["render_policy", "--json", "--width", "60", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_is_filmed_beside_the_teacher_it_noted_and_its_report_shows_the_film(run, capsys):
    found = rendered(capsys, "--policy", str(run), "--seed", "5", "--frames_per_second", "50")
    assert found["output"] == str(run / VIDEO)
    assert set(found["returns"]) == {"teacher", "student"}
    assert found["returns"] == found["steps"]  # CartPole pays 1 a step
    assert found["pictures"] == max(found["steps"].values()) + 1
    with Image.open(run / VIDEO) as gif:
        assert gif.size == (60 + 4 + 60, 40 + 22)
        assert gif.n_frames == found["pictures"]  # type: ignore[attr-defined]
    assert "data:image/gif;base64," in (run / "report.html").read_text()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    (shown,) = events.Images("episode/side_by_side")
    assert shown.encoded_image_string == (run / VIDEO).read_bytes()
    assert (shown.width, shown.height, shown.step) == (124, 62, SUMMARY["env_steps"])


def test_a_student_alone_and_another_output(run, tmp_path, capsys):
    always(0).save(tmp_path / "alone", extra={"environment": CARTPOLE.to_dict()})
    found = rendered(capsys, "--policy", str(tmp_path / "alone"), "--output", str(tmp_path / "x.gif"), "--max_steps", "4")
    assert (found["steps"], found["pictures"]) == ({"student": 4}, 3)  # 50 a second, of which every third is shown
    named = rendered(
        capsys, "--policy", str(tmp_path / "alone"), "--teacher", str(tmp_path / "teacher.zip"), "--output", str(tmp_path / "x.gif")
    )
    assert set(named["steps"]) == {"teacher", "student"}


def test_a_film_is_the_same_where_a_hanging_environment_would_be_ended(run, capsys):
    arguments = ("--policy", str(run), "--seed", "5")
    free = rendered(capsys, *arguments)
    film = (run / VIDEO).read_bytes()
    assert rendered(capsys, *arguments, "--step_timeout", "60") == free
    assert (run / VIDEO).read_bytes() == film


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--width", "2"), "width is 2; it must be >= 16"),
        (("--width", "99999999"), "width is 99999999; it must be <= 4,096"),
        (("--max_steps", "0"), "max_steps is 0"),
        (("--seed=-1",), "seed is -1"),
        (("--step-timeout=-1",), "step_timeout is -1"),
        (("--output", "/nowhere/x.gif"), "the folder /nowhere of --output does not exist"),
        (("--output", "RUN"), "which is a folder: name a GIF file"),
        (("--env", WALK.id, "--policy", "WALKER"), "rgb_array is needed"),
        (("--policy", "ZIP"), "does not say which environment it acts in"),
    ],
)
def test_what_is_refused(arguments, words, run, tmp_path, capsys):
    walk_expert().save(tmp_path / "walker")
    places = {"WALKER": str(tmp_path / "walker"), "ZIP": str(tmp_path / "teacher.zip"), "RUN": str(run)}
    given = [places.get(argument, argument) for argument in arguments]
    policy = [] if "--policy" in given else ["--policy", str(run)]
    assert main(["render_policy", *policy, *given]) == 2
    assert words in capsys.readouterr().err
    assert not (run / VIDEO).exists()
