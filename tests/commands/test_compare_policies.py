"""``compare_policies``: a table of 80 columns, JSON, and states in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from policy_distill.commands.cli import main
from policy_distill.evaluation.disagreements import Disagreements
from policy_distill.export.sb3 import save_ppo
from policy_distill.policies.student import Student
from tests.report.example import SUMMARY
from tests.small_worlds import WALK, random_student, walk_expert


@pytest.fixture(scope="module")
def expert(tmp_path_factory) -> str:
    return str(save_ppo(walk_expert(), tmp_path_factory.mktemp("agents") / "ppo.zip"))


@pytest.fixture
def run(tmp_path, expert) -> Path:
    """A run's folder with a student that goes astray."""
    student: Student = random_student(walk_expert().observation_space, walk_expert().action_space)
    student.save(tmp_path / "run" / "student", extra={"environment": WALK.to_dict(), "teacher": {"path": expert}})
    return tmp_path / "run"


def test_a_run_s_folder_is_enough_and_receives_the_states(run, capsys):
    (run / "result.json").write_text(json.dumps(SUMMARY))
    assert main(["compare_policies", "--policy", str(run), "--episodes", "8", "--worst", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(run / "disagreements.npz")
    assert json.loads((run / "result.json").read_text())["disagreements"] == said
    assert "action differs from its teacher" in (run / "report.html").read_text()
    found = Disagreements.load(run / "disagreements.npz")
    assert found.environment == said["env"] == WALK.id
    assert said["agreement"] == found.agreement < 1
    assert said["states"] == found.states
    assert said["disagreements"] == len(found.costs)
    assert len(said["worst"]) == 3
    assert said["worst"][0]["observation"] == found.observations[0].tolist()
    assert said["worst"][0]["cost"] == found.costs[0]
    assert [row["seed"] for row in said["episodes"]] == list(range(4_000_000, 4_000_008))
    assert [row["student_return"] for row in said["episodes"]] == found.student_returns.tolist()
    assert {"first_step", "parting_step", "teacher_return", "teacher_length", "student_length"} < set(said["episodes"][0])


def test_the_tables_fit_a_terminal_of_80_columns(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare_policies", "--policy", str(run), "--episodes", "8", "--worst", "2"]) == 0
    printed = capsys.readouterr().out
    lines = [line.rstrip() for line in printed.splitlines() if "disagreements.npz" not in line]
    assert max(map(len, lines)) <= 80
    seeds = [line.split()[0] for line in lines if line.lstrip().startswith("40000")]
    assert len(seeds) == 4  # two episodes, two states
    assert "reward differs" in printed
    assert "Costliest states" in printed


def test_a_student_alone_needs_its_teacher_named_and_writes_only_where_it_is_reported(run, expert, tmp_path, capsys):
    random_student(walk_expert().observation_space, walk_expert().action_space).save(tmp_path / "alone")
    assert main(["compare_policies", "--policy", str(tmp_path / "alone"), "--env", WALK.id]) == 2
    assert "does not name the teacher that it was distilled from: give --teacher" in capsys.readouterr().err
    before = sorted(tmp_path.rglob("*.npz"))
    arguments = [
        "compare_policies",
        "--policy",
        str(tmp_path / "alone"),
        "--teacher",
        expert,
        "--env",
        WALK.id,
        "--episodes",
        "4",
        "--json",
    ]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["file"] is None
    assert sorted(tmp_path.rglob("*.npz")) == before
    assert main([*arguments, "--output", str(tmp_path / "new" / "states.npz")]) == 0
    with np.load(tmp_path / "new" / "states.npz", allow_pickle=False) as arrays:
        assert arrays["observations"].shape[1:] == (2,)


def test_an_agent_has_nothing_against_itself(expert, capsys):
    assert main(["compare_policies", "--policy", expert, "--teacher", expert, "--env", WALK.id, "--episodes", "4"]) == 0
    printed = capsys.readouterr().out
    assert "100.0%" in printed
    assert "Costliest" not in printed


@pytest.mark.parametrize(("option", "value"), [("--episodes", "1"), ("--worst", "-1")])
def test_wrong_numbers_are_refused(option, value, run, capsys):
    assert main(["compare_policies", "--policy", str(run), option, value]) == 2
    assert value in capsys.readouterr().err


@pytest.mark.parametrize(("place", "says"), [("file/states.npz", "cannot be written"), ("folder", "name a file, such as")])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(place, says, run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("policy_distill.evaluation.disagreements.find", lambda *_: pytest.fail("episodes were played"))
    assert main(["compare_policies", "--policy", str(run), "--output", str(tmp_path / place)]) == 2
    assert says in capsys.readouterr().err
