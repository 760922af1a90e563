"""``check_teacher``: findings as rows and as data; the exit code says whether the command worked, not whether the agent is good."""

from __future__ import annotations

import json

import pytest

from policy_distill.commands.cli import main
from policy_distill.export.sb3 import save_ppo
from tests.small_worlds import WALK, random_student, walk_expert


def test_findings_are_data_and_the_command_itself_worked(tmp_path, capsys):
    """This student walks at random, and mostly away."""
    agent = save_ppo(random_student(walk_expert().observation_space, walk_expert().action_space, seed=1), tmp_path / "ppo.zip")
    assert main(["check_teacher", "--teacher", str(agent), "--env", WALK.id, "--episodes", "20", "--workers", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["findings"][0]["severity"] == "stop"
    assert said["findings"][0]["topic"] == "no_better_than_random"
    assert set(said["findings"][0]) == {"severity", "topic", "what", "fix", "mend"}
    assert said["behaviour"]["states"] > 0
    assert said["drawn_return_mean"] is not None
    assert {"return_mean", "return_std", "random_return_mean", "claim", "verdict", "notices", "env", "facts"} < set(said)


def test_findings_are_rows(tmp_path, capsys):
    agent = save_ppo(random_student(walk_expert().observation_space, walk_expert().action_space, seed=1), tmp_path / "ppo.zip")
    assert main(["check_teacher", "--teacher", str(agent), "--env", WALK.id, "--episodes", "20", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "\nSTOP " in printed
    assert "return of sampled actions" in printed


@pytest.mark.parametrize("as_json", [False, True])
def test_the_files_alone_are_judged_where_nothing_is_played(as_json, tmp_path, capsys):
    agent = save_ppo(walk_expert(), tmp_path / "ppo.zip")
    assert main(["check_teacher", "--teacher", str(agent), "--episodes", "0", *(["--json"] if as_json else [])]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["findings"] == [] if as_json else "STOP" not in printed


@pytest.mark.parametrize(("option", "line"), [("--workers", "workers is -4"), ("--step_timeout", "step_timeout is -4.0")])
def test_wrong_options_are_refused_also_where_only_the_files_are_read(capsys, option, line):
    assert main(["check_teacher", "--teacher", "ppo/CartPole-v1", "--episodes", "0", option, "-4"]) == 2
    assert line in capsys.readouterr().err
