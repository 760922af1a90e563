"""How an agent's files are read is said by the same options in every command, of the policy and of its teacher apart."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.commands.cli import main
from policy_distill.config import Reading, RequestError
from policy_distill.export.sb3 import save_ppo
from tests.small_worlds import WALK, Walk, walk_expert
from tests.teachers.conftest import TinyEnv


def test_what_was_left_open_is_as_it_was_recorded():
    said = Reading(algo="ppo", trust=True)
    assert said.recorded() == {"algo": "ppo"}
    assert said.over({"algo": "a2c", "normalization": "none", "other": 1}) == Reading("ppo", "none", None, True)
    assert said.over({"algo": 3, "normalization": None}) == said  # a file may hold anything
    assert Reading().recorded() == {}


def test_a_file_does_not_say_which_code_is_run():
    with pytest.raises(RequestError, match=r"features extractor mine\.py:Net, which is code: name it again"):
        Reading().over({"extractor": "mine.py:Net"})
    assert Reading(extractor="my.py:Net").over({"extractor": "theirs.py:Net"}).extractor == "my.py:Net"


def agent_and_statistics(folder: Path, space=Walk.observation_space) -> tuple[Path, Path]:
    """The best walker, and statistics that turn its world around: with them it walks away."""
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    wrapper = VecNormalize(DummyVecEnv([lambda: TinyEnv(space, gym.spaces.Discrete(3))]))
    assert not isinstance(wrapper.obs_rms, dict)
    wrapper.obs_rms.mean, wrapper.obs_rms.var = np.full(space.shape, 1e3), np.full(space.shape, 1.0)
    (folder / "elsewhere").mkdir()
    wrapper.save(str(folder / "elsewhere" / "statistics.pkl"))
    return save_ppo(walk_expert(), folder / "agent.zip"), folder / "elsewhere" / "statistics.pkl"


def measured(capsys, *arguments: str) -> dict:
    assert main(["evaluate_policy", *arguments, "--env", WALK.id, "--episodes", "6", "--workers", "0", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_statistics_that_are_named_are_used_for_the_one_they_are_named_for(tmp_path, capsys):
    agent, statistics = agent_and_statistics(tmp_path)
    plain = measured(capsys, "--policy", str(agent), "--teacher", str(agent))
    assert plain["policy"]["returns"] == plain["teacher"]["returns"]
    of_policy = measured(capsys, "--policy", str(agent), "--teacher", str(agent), "--normalization", str(statistics))
    of_teacher = measured(capsys, "--policy", str(agent), "--teacher", str(agent), "--teacher_normalization", str(statistics))
    assert of_policy["teacher"]["returns"] == of_teacher["policy"]["returns"] == plain["policy"]["returns"]
    assert of_policy["policy"]["returns"] == of_teacher["teacher"]["returns"] != plain["policy"]["returns"]
    assert any("statistics.pkl" in notice for notice in of_policy["notices"])
    (tmp_path / "vec_normalize.pkl").write_bytes(statistics.read_bytes())
    found = measured(capsys, "--policy", str(agent))
    assert found["policy"]["returns"] == of_policy["policy"]["returns"]
    assert measured(capsys, "--policy", str(agent), "--normalization", "none")["policy"]["returns"] == plain["policy"]["returns"]


@pytest.mark.parametrize("option", ["--algo", "--normalization", "--extractor"])
def test_what_is_said_of_a_student_is_refused(option, tmp_path, capsys):
    walk_expert().save(tmp_path / "student", extra={"environment": WALK.to_dict()})
    assert main(["evaluate_policy", "--policy", str(tmp_path / "student"), option, "x"]) == 2
    name = option.removeprefix("--")
    assert f"is a student, which needs no --{name}; the option for its teacher is --teacher_{name}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["distill_policy", "evaluate_policy", "compare_policies", "render_policy", "check_teacher"])
def test_a_wrong_algorithm_is_reported_in_every_command(command, tmp_path, capsys):
    agent = save_ppo(walk_expert(), tmp_path / "agent.zip")
    option = "--policy" if command in ("evaluate_policy", "compare_policies", "render_policy") else "--teacher"
    assert main([command, option, str(agent), "--env", WALK.id, "--algo", "sac"]) == 2
    assert "algo is 'sac', but" in capsys.readouterr().err


def test_one_agent_s_statistics_are_no_suite_s(tmp_path, capsys):
    (tmp_path / "agents").mkdir()
    assert main(["run_suite", "--teachers", str(tmp_path / "agents"), "--normalization", "a.pkl"]) == 2
    assert "normalization applies to a single agent" in capsys.readouterr().err
