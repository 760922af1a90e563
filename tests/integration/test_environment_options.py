"""A job in an environment of the user's making, and every command that plays its student again."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml

from policy_distill.commands.cli import main
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.export.sb3 import save_ppo
from tests.small_worlds import WALK, random_student, walk_expert

SMALL = [
    *("--device", "cpu", "--workers", "0", "--student.hidden_sizes", "[8]", "--collect.env_steps", "400", "--collect.rounds", "2"),
    *("--collect.num_envs", "4", "--train.gradient_steps", "400", "--train.batch_size", "32", "--evaluate.episodes", "60"),
    *("--evaluate.validation_episodes", "3", "--polish.below", "0"),
]
SCALED = '{"scaling_of_mine:Scaled": {"by": 4}}'


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    """An expert's zip, and the folder of a job in which rewards count four times."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "scaling_of_mine.py").write_text(
        "import gymnasium as gym\n\n\nclass Scaled(gym.RewardWrapper):\n    def __init__(self, env, by=1):\n        super().__init__(env)\n"
        "        self.by = by\n\n    def reward(self, reward):\n        return self.by * reward\n"
    )
    sys.path.insert(0, str(folder))
    expert = save_ppo(walk_expert(), folder / "agent.zip")
    run = folder / "run"
    options = ["--env", WALK.id, "--wrapper", SCALED, "--max-episode-steps", "20", "--evaluate.certify", "0.5"]
    assert main(["distill_policy", "--teacher", str(expert), "--output", str(run), *options, *SMALL, "--json"]) == 0
    yield expert, run
    sys.path.remove(str(folder))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_run_says_where_it_was_made(paths):
    _, run = paths
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["wrapper"] == [{"scaling_of_mine:Scaled": {"by": 4}}]
    assert config["max_episode_steps"] == 20
    files = {name: json.loads((run / name).read_text()) for name in ("result.json", "certificate.json", "student/student.json")}
    for written in files.values():
        assert written["environment"]["wrappers"] == [["scaling_of_mine:Scaled", {"by": 4}]]
        assert written["environment"]["max_episode_steps"] == 20


def test_the_file_that_a_run_leaves_runs_it_again(paths, tmp_path, capsys):
    """A wrapper of the user's own is code, so that it is named again."""
    _, run = paths
    again = ["distill_policy", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")]
    asked = re.fullmatch(r".*names wrappers by module:Class, and importing them runs their code: give (.*)", refused(capsys, *again))
    assert asked is not None
    printed(capsys, *again, *shlex.split(asked[1]))
    one, other = ((folder / "student" / "student.safetensors").read_bytes() for folder in (run, tmp_path / "again"))
    assert one == other


def test_a_student_s_wrapper_is_asked_for_before_it_is_imported(paths, capsys):
    expert, run = paths
    evaluate = ["evaluate_policy", "--policy", str(run), "--teacher", str(expert), "--episodes", "6", "--workers", "0"]
    ways = re.fullmatch(r".*: give (.*) if you trust it, or (.*) to leave it out", refused(capsys, *evaluate))
    assert ways is not None
    with_it, without = (printed(capsys, *evaluate, *shlex.split(way)) for way in ways.groups())
    for who in ("policy", "teacher", "random"):
        np.testing.assert_allclose(with_it[who]["returns"], 4 * np.array(without[who]["returns"]))
    assert with_it["policy"]["returns"] == json.loads((run / "result.json").read_text())["returns"]["student"][:6]
    in_processes = printed(capsys, *evaluate[:-1], "1", *shlex.split(ways[1]))
    assert in_processes["policy"]["returns"] == with_it["policy"]["returns"]
    compared = printed(capsys, "compare_policies", "--policy", str(run), "--episodes", "3", "--wrapper", SCALED)
    assert compared["environment"]["wrappers"] == with_it["environment"]["wrappers"] == [["scaling_of_mine:Scaled", {"by": 4}]]


def test_a_certificate_s_wrapper_is_asked_for_before_it_is_imported(paths, capsys):
    _, run = paths
    verify = ["verify_certificate", "--certificate", str(run), "--episodes", "5", "--workers", "0"]
    assert "nothing that a file names is imported" in refused(capsys, *verify)
    assert printed(capsys, *verify, "--wrapper", "scaling_of_mine:Scaled")["holds"] is True


def test_check_teacher_takes_them_too(paths, capsys):
    expert, _ = paths
    options = ["check_teacher", "--teacher", str(expert), "--env", WALK.id, "--episodes", "6", "--workers", "0"]
    plain, scaled = printed(capsys, *options), printed(capsys, *options, "--wrapper", SCALED)
    assert scaled["return_mean"] == pytest.approx(4 * plain["return_mean"])
    shorter = printed(capsys, *options, "--max-episode-steps", "1")
    assert "each of 6 episodes ended after one step" in json.dumps(shorter["findings"])


class Endless(gym.Env):
    """Nothing ends it."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, start: float) -> None:
        self.start = start

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.full(2, self.start, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.full(2, self.start, np.float32), 1.0, False, False, {}


def test_an_environment_without_an_end_needs_a_limit(tmp_path, capsys):
    gym.register("tests/WithoutEnd-v0", Endless)  # type: ignore[arg-type]
    try:
        policy = save_ppo(random_student(Endless.observation_space, Endless.action_space), tmp_path / "agent.zip")
        evaluate = ["evaluate_policy", "--policy", str(policy), "--env", "tests/WithoutEnd-v0", "--episodes", "2", "--workers", "0"]
        missing = refused(capsys, *evaluate)
        assert "cannot be made without its argument 'start': give --env-kwargs '{\"start\": \"...\"}'" in missing
        evaluate += ["--env-kwargs", "start:0.5"]
        assert "has no time limit, and an episode of the agent went on for 10,000 steps" in refused(capsys, *evaluate)
        assert printed(capsys, *evaluate, "--max-episode-steps", "7")["random"]["returns"] == [7, 7]
        for command in ("distill_policy", "check_teacher"):
            options = [command, "--teacher", str(policy), *evaluate[3:5], *evaluate[7:], "--max-episode-steps", "7"]
            assert "no time limit" not in refused(capsys, *options) if command == "distill_policy" else printed(capsys, *options)
    finally:
        del gym.registry["tests/WithoutEnd-v0"]


def test_arguments_that_an_environment_does_not_take_are_named(paths, capsys):
    expert, _ = paths
    line = refused(capsys, "evaluate_policy", "--policy", str(expert), "--env", WALK.id, "--env_kwargs", "nonsense:1", "--workers", "0")
    assert "does not take the arguments {'nonsense': 1} (see --env-kwargs)" in line


def test_a_spec_of_a_file_never_imports(paths):
    with pytest.raises(Exception, match="nothing that a file names is imported"):
        make(EnvironmentSpec.from_dict({"id": WALK.id, "wrappers": [["scaling_of_mine:Scaled", {"by": 4}]]}))
