"""What stops a figure, or is told beside it, in every command and from Python: masks, missing statistics, observations that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.teacher_check import judge_files, screen_files, screen_returns, screen_states
from policy_distill.export.sb3 import save_ppo
from policy_distill.teachers import ObservationNormalization, Teacher
from policy_distill.teachers.environment import environment_for
from tests.small_worlds import WALK, walk_expert, walk_teacher

DECK, UNMASKED = EnvironmentSpec("tests/Deck-v0"), EnvironmentSpec("tests/UnmaskedDeck-v0")


class UnmaskedDeck(gym.Env):
    """Play each of three cards once; a card that was played ends the episode."""

    observation_space = gym.spaces.Box(0, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.played = np.zeros(3, bool)
        return self.played.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.played[action]:
            return self.played.astype(np.float32), -5.0, True, False, {}
        self.played[action] = True
        return self.played.astype(np.float32), 1.0, bool(self.played.all()), False, {}


class Deck(UnmaskedDeck):
    """The same, and says which cards are left."""

    def action_masks(self) -> np.ndarray:
        return ~self.played


gym.register(DECK.id, entry_point="tests.evaluation.teacher_check.test_screen:Deck")
gym.register(UNMASKED.id, entry_point="tests.evaluation.teacher_check.test_screen:UnmaskedDeck")


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Path:
    """An untrained MaskablePPO agent."""
    path = tmp_path_factory.mktemp("masked") / "agent.zip"
    pytest.importorskip("sb3_contrib").MaskablePPO("MlpPolicy", Deck(), seed=0, device="cpu").save(path)
    return path


def test_masks_of_the_environment_are_given_to_the_agent(masked):
    spec, _ = environment_for(Teacher.load(masked), DECK.id)
    assert [name for name, _ in spec.wrappers] == ["ActionMasks"]


def test_a_member_of_an_ensemble_is_screened_too():
    member = walk_teacher()
    member.network.register_parameter("spoilt", torch.nn.Parameter(torch.tensor([np.nan])))
    assert [finding.topic for finding in judge_files(Teacher.ensemble([walk_teacher(), member]))] == ["not_finite"]
    with pytest.raises(RequestError, match=r"NaN or infinity.*to go on anyway: --check.skip true"):
        screen_files(member)
    assert "NaN or infinity" in screen_files(member, skip=True)[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate_policy", "--policy", "AGENT", "--episodes", "4"],
        ["evaluate_policy", "--policy", "AGENT", "--teacher", "AGENT", "--episodes", "4"],
        ["compare_policies", "--policy", "AGENT", "--teacher", "AGENT", "--episodes", "4"],
        ["check_teacher", "--teacher", "AGENT", "--episodes", "4"],
        ["render_policy", "--policy", "AGENT"],
        ["distill_policy", "--teacher", "AGENT"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_stops_where_masks_are_missing(arguments, masked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [str(masked) if word == "AGENT" else word for word in arguments]
    assert main([*arguments, "--env", UNMASKED.id]) == 2
    said = capsys.readouterr()
    assert "UnmaskedDeck-v0 has no action_masks()" in said.err
    assert "--algo ppo lets it act without masks" in said.err
    assert said.err.count("\n") == 1 + said.err.count("note:")


def test_the_files_alone_may_be_looked_at(masked):
    assert main(["check_teacher", "--teacher", str(masked), "--env", UNMASKED.id, "--episodes", "0"]) == 0


def test_statistics_of_another_place_are_reported_and_stop_nothing():
    """The mean is 100 standard deviations away."""
    bare = walk_teacher()
    far = ObservationNormalization(np.full(2, 1e3), np.full(2, 100.0), 1e-8, 10.0)
    teacher = Teacher(bare.network, bare.observation_space, bare.action_space, algo="test", normalization=far)
    (told,) = screen_states(teacher, WALK)
    assert "do not fit the normalisation statistics" in told
    assert screen_states(walk_teacher(), WALK) == ()


def test_an_agent_of_little_worth_is_measured_all_the_same():
    still = Teacher.from_callable(lambda seen: np.full(len(seen), 1), walk_teacher().observation_space, gym.spaces.Discrete(3))
    assert screen_states(still, WALK) == ()


def test_answers_that_are_no_numbers_stop():
    from tests.small_worlds import PUSH, Push

    teacher = Teacher.from_callable(lambda seen: np.full((len(seen), 2), np.nan), Push.observation_space, Push().action_space)
    with pytest.raises(RequestError, match="NaN or infinity"):
        screen_states(teacher, PUSH)


def trained_inside_vec_normalize(path: Path) -> Teacher:
    """Read without the statistics; training earned about -5 an episode, as Monitor counted it."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = VecNormalize(DummyVecEnv([lambda: Monitor(gym.make(WALK.id))]))
    PPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu").learn(64).save(path)
    return Teacher.load(path)


def test_missing_statistics_stop_where_the_return_is_far_below_training(tmp_path):
    teacher = trained_inside_vec_normalize(tmp_path / "agent.zip")
    assert any("trained inside a VecNormalize" in line for line in screen_files(teacher))
    poor, worse = np.linspace(-151, -149, 20), np.linspace(-202, -198, 20)
    with pytest.raises(RequestError, match="through a VecNormalize that is missing here"):
        screen_returns(teacher, poor, worse)
    assert "through a VecNormalize that is missing here" in screen_returns(teacher, poor, worse, skip=True)[0]
    assert screen_returns(teacher, np.zeros(20), worse) == ()
    told = Teacher.load(tmp_path / "agent.zip", normalization="none")
    assert screen_files(told) == ()  # the user says that there are none
    assert "missing here" not in " ".join(screen_returns(told, poor, worse))


def test_our_own_export_needs_no_word(tmp_path):
    assert screen_files(Teacher.load(save_ppo(walk_expert(), tmp_path / "agent.zip"))) == ()
