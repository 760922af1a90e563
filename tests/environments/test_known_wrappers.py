"""Wrappers by name, and what each of them does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.environments.known_wrappers import (
    LOST,
    WITHOUT_EFFECT,
    WRAPPERS,
    asked_name,
    check_wrappers,
    effective,
    saved_name,
    trusting,
    wrap,
)
from policy_distill.environments.quiet import quiet_known_warnings
from policy_distill.environments.specs import EnvironmentSpec, make, resolve, time_limit
from policy_distill.environments.wrappers import TimeFeatureWrapper
from tests.small_worlds import PUSH


class Spy(gym.Env):
    """Observes its step, keeps the actions that reach it, and pays 1, 2, 3, ..."""

    observation_space: Any = gym.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.actions: list[float] = []
        return self._look(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(float(action[0]))
        self.steps += 1
        return self._look(), float(self.steps), False, self.steps == 7, {}

    def _look(self) -> np.ndarray:
        return np.array([self.steps + 1, -self.steps - 1], np.float32)


class Named(gym.Env):
    """Observes a dictionary."""

    observation_space = gym.spaces.Dict({"here": gym.spaces.Box(-9, 9, (2,)), "there": gym.spaces.Box(-9, 9, (3,))})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"here": np.full(2, 2.0, np.float32), "there": np.full(3, 3.0, np.float32)}, {}


def action(value: float) -> np.ndarray:
    return np.array([value], np.float32)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("sb3_contrib.common.wrappers.TimeFeatureWrapper", "TimeFeatureWrapper"),
        ("utils.wrappers.TimeFeatureWrapper", "TimeFeatureWrapper"),
        ("gymnasium.wrappers.time_limit.TimeLimit", "TimeLimit"),
        ("stable_baselines3.common.monitor.Monitor", "Monitor"),
        ("gymnasium.wrappers.NormalizeReward", "NormalizeReward"),
        ("PadObservation", "PadObservation"),
        ("mine.wrappers.TimeFeatureWrapper", "mine.wrappers.TimeFeatureWrapper"),  # another class of the same name
        ("gymnasium.wrappers.Unheard", "gymnasium.wrappers.Unheard"),
        ("mine:Shaped", "mine.Shaped"),  # nothing that a file names is imported
        ("gymnasium.wrappers:RescaleAction", "RescaleAction"),
    ],
)
def test_the_name_that_a_file_tells(name, short):
    assert saved_name(name) == short
    assert ":" not in saved_name(name)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("TimeFeatureWrapper", "TimeFeatureWrapper"),
        ("sb3_contrib.common.wrappers.TimeFeatureWrapper", "TimeFeatureWrapper"),
        ("mine:Shaped", "mine:Shaped"),
        ("mine.wrappers.Shaped", "mine.wrappers:Shaped"),
        ("Monitor", "Monitor"),
    ],
)
def test_the_name_that_a_user_gives(name, asked):
    assert asked_name(name) == asked


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("TimeFeatureWraper", "did you mean TimeFeatureWrapper?"),
        ("Qqq", "known: ActionMasks, "),
        ("NormalizeObservation", "its running statistics are not among the agent's files"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(name, says):
    with pytest.raises(RequestError, match="name your own as module:Class") as refusal:
        asked_name(name)
    assert says in str(refusal.value)


def test_no_name_is_known_twice():
    groups = [set(WRAPPERS), set(WITHOUT_EFFECT), set(LOST)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert effective([("Monitor", {}), ("TimeLimit", {"max_episode_steps": 3})]) == (("TimeLimit", {"max_episode_steps": 3}),)


def test_what_cannot_be_made_says_how_to_go_on():
    saved = [("mine.Shaped", {"scale": 2}), ("TimeFeatureWrapper", {}), ("VecFrameStack", {"n_stack": 2})]
    with pytest.raises(RequestError) as refusal:
        check_wrappers(saved)
    assert """give --wrapper '{"mine:Shaped": {"scale": 2}}' --wrapper TimeFeatureWrapper if you trust it""" in str(refusal.value)
    assert "or --wrapper TimeFeatureWrapper to leave it out" in str(refusal.value)
    with pytest.raises(RequestError, match=r"cannot be made: its running statistics .*; --wrapper none leaves it out"):
        check_wrappers([("NormalizeReward", {})])


def test_a_class_of_the_user_s_is_imported_and_one_of_a_file_is_not(tmp_path, monkeypatch):
    (tmp_path / "own_wrappers_here.py").write_text(
        "import gymnasium as gym\nclass Shaped(gym.RewardWrapper):\n    def __init__(self, env, scale=10):\n"
        "        super().__init__(env)\n        self.scale = scale\n    def reward(self, reward):\n        return self.scale * reward\n"
        "number = 3\ndef broken(env):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = EnvironmentSpec(PUSH.id, wrappers=(("own_wrappers_here:Shaped", {"scale": 3}),))
    from_file = EnvironmentSpec.from_dict(spec.to_dict())
    with pytest.raises(RequestError, match="nothing that a file names is imported"):
        make(from_file)
    assert "own_wrappers_here" not in sys.modules
    named = EnvironmentOptions(wrapper=("own_wrappers_here:Shaped",)).wrappers or ()
    assert trusting(from_file.wrappers, named) == spec.wrappers
    assert trusting(from_file.wrappers, [("another:Shaped", {})]) == from_file.wrappers
    env, plain = make(spec), make(PUSH)
    rewards = []
    for one in (env, plain):
        one.reset(seed=0)
        rewards.append(float(one.step(np.array([0.5, 0.5], np.float32))[1]))
    assert rewards[0] == pytest.approx(3 * rewards[1])
    for name, says in (("own_wrappers_here:number", "is no class"), ("own_wrappers_here:broken", "makes no Gymnasium environment"),
                       ("own_wrappers_here:absent", "cannot be imported"), ("no_such_module:X", "PYTHONPATH")):  # fmt: skip
        with pytest.raises(RequestError, match=says):
            wrap(Spy(), name, {})


def test_history_is_the_zoo_s():
    env = wrap(Spy(), "HistoryWrapper", {"horizon": 2})
    assert env.observation_space.shape == (6,)
    assert env.reset()[0].tolist() == [0, 0, 1, -1, 0, 0]
    first = env.step(action(0.5))[0]
    assert first.tolist() == [1, -1, 2, -2, 0, 0.5]
    assert env.step(action(-1))[0].tolist() == [2, -2, 3, -3, 0.5, -1]
    assert first.tolist() == [1, -1, 2, -2, 0, 0.5]  # kept rows must not change under the caller
    assert first.dtype == np.float32
    assert env.reset()[0].tolist() == [0, 0, 1, -1, 0, 0]


def test_delayed_rewards_are_paid_in_the_end():
    env = wrap(Spy(), "DelayedRewardWrapper", {"delay": 3})
    for _ in range(2):
        env.reset()
        assert [env.step(action(0))[1] for _ in range(7)] == [0, 0, 6, 0, 0, 15, 7]
    env.reset()
    env.step(action(0))
    env.reset()  # what is owed is forgotten
    assert [env.step(action(0))[1] for _ in range(3)] == [0, 0, 6]


def test_smoothing_is_a_moving_average_from_zero():
    spy = Spy()
    env = wrap(spy, "ActionSmoothingWrapper", {"smoothing_coef": 0.5})
    for _ in range(2):
        env.reset()
        for value in (1, 1, 0):
            env.step(action(value))
        assert spy.actions == [0.5, 0.75, 0.375]


def test_noise_depends_on_the_seed_and_stays_within_bounds():
    spy = Spy()
    env = wrap(spy, "ActionNoiseWrapper", {"noise_std": 0.5})
    played = []
    for seed in (1, 2, 1):
        env.reset(seed=seed)
        while not env.step(action(0.5))[3]:
            pass
        played.append(list(spy.actions))
    assert played[0] == played[2] != played[1]
    assert np.std(played[0]) > 0.1
    assert np.abs(played).max() == 1


def test_skipped_frames_add_their_rewards_up():
    env = wrap(Spy(), "FrameSkip", {"skip": 3})
    env.reset()
    answers = [env.step(action(0)) for _ in range(3)]
    assert [answer[1] for answer in answers] == [6, 15, 7]
    assert [answer[3] for answer in answers] == [False, False, True]


@pytest.mark.parametrize(("gym_id", "hidden"), [("CartPole-v1", [1, 3]), ("Pendulum-v1", [2])])
def test_velocities_are_masked(gym_id, hidden):
    env = make(EnvironmentSpec(gym_id, wrappers=(("MaskVelocityWrapper", {}),)))
    observation, _ = env.reset(seed=0)
    assert np.flatnonzero(observation == 0).tolist() == hidden
    with pytest.raises(RequestError, match="does not know which of Acrobot"):
        make(EnvironmentSpec("Acrobot-v1", wrappers=(("MaskVelocityWrapper", {}),)))


def test_gymnasium_s_own_take_what_a_file_can_say():
    spy = Spy()
    with quiet_known_warnings():
        env = wrap(spy, "RescaleAction", {"min_action": [0.0], "max_action": [10.0]})
    env.reset()
    env.step(action(7.5))
    assert spy.actions == [0.5]
    env = wrap(Spy(), "FrameStack", {"num_stack": 3})
    assert env.reset()[0].tolist() == [[1, -1]] * 3
    assert wrap(Spy(), "DtypeObservation", {"dtype": "int32"}).reset()[0].dtype == np.int32
    assert wrap(Spy(), "ReshapeObservation", {"shape": [2, 1]}).reset()[0].tolist() == [[1], [-1]]
    seen = wrap(Named(), "FilterObservation", {"filter_keys": ["here"]})
    assert wrap(seen, "FlattenObservation", {}).reset()[0].tolist() == [2, 2]
    assert wrap(Spy(), "Monitor", {}).reset()[0].tolist() == [1, -1]
    with pytest.raises(RequestError, match="TimeLimit does not take this environment without arguments"):
        wrap(Spy(), "TimeLimit", {})


class Picture(Spy):
    observation_space: Any = gym.spaces.Box(0, 255, (8, 8), np.uint8)


BILLION = 10**9


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("HistoryWrapper", {"horizon": BILLION}, "cannot make 1000000000 times 3 numbers"),
        ("FrameStack", {"num_stack": BILLION}, "cannot make 1000000000 times 2 numbers"),
        ("FrameStackObservation", {"stack_size": BILLION}, "cannot make 1000000000 times 2 numbers"),
        ("DiscretizeAction", {"bins": BILLION}, "cannot make 1000000000 times 1 numbers"),
        ("DiscretizeAction", {"bins": [BILLION]}, "cannot make 1000000000 times 1 numbers"),
        ("ResizeObservation", {"shape": BILLION}, "cannot make 1000000000 times 1000000000 numbers"),
        ("ResizeObservation", {"shape": [BILLION, 1]}, "cannot make 1000000000 times 1 numbers"),
        ("HistoryWrapper", {"horizon": 0}, "cannot make 0 times"),
        ("FrameSkip", {"skip": 0}, "has the skip 0; it must be a whole number >= 1"),
        ("FrameSkip", {"skip": 2.5}, r"has the skip 2\.5; it must be"),
        ("DelayedRewardWrapper", {"delay": 0}, "has the delay 0; it must be"),
        ("TimeFeatureWrapper", {"max_steps": "all"}, "has the max_steps 'all'; it must be"),
        ("ActionNoiseWrapper", {"noise_std": -1}, "has the noise_std -1; it must be a number >= 0"),
        ("ActionSmoothingWrapper", {"smoothing_coef": "half"}, "has the smoothing_coef 'half'; it must be a number"),
        ("StickyAction", {"repeat_action_probability": 2}, "does not take the arguments .*probability"),
    ],
)
def test_arguments_that_no_wrapper_can_take_are_refused_where_it_is_made(name, arguments, says):
    """They came to light in the first step, as a fault of the environment, or took all memory: a file may ask for them."""
    with pytest.raises(RequestError, match=f"the wrapper {name.replace('FrameStackObservation', 'FrameStack')}.*{says}"):
        wrap(Picture() if name == "ResizeObservation" else Spy(), name, arguments)


def test_an_image_is_resized_to_a_usual_size():
    pytest.importorskip("cv2")
    assert wrap(Picture(), "ResizeObservation", {"shape": 4}).observation_space.shape == (4, 4)


def test_actions_are_divided_into_a_usual_number_of_bins():
    assert wrap(Spy(), "DiscretizeAction", {"bins": 5}).action_space.n == 5  # type: ignore[attr-defined]
    assert wrap(Spy(), "DiscretizeAction", {"bins": [5], "multidiscrete": True}).action_space.nvec.tolist() == [5]  # type: ignore[attr-defined]


def test_a_time_limit_among_the_wrappers_is_known():
    limited = EnvironmentSpec("CartPole-v1", wrappers=(("TimeLimit", {"max_episode_steps": 7}),))
    assert time_limit(limited) == 7
    env = make(EnvironmentSpec("Pendulum-v1", wrappers=(("TimeLimit", {"max_episode_steps": 4}), ("TimeFeatureWrapper", {}))))
    env.reset(seed=0)
    steps = [env.step(np.zeros(1, np.float32)) for _ in range(4)]
    assert [step[3] for step in steps] == [False, False, False, True]
    assert steps[-1][0][-1] == 0


def test_a_class_that_a_file_names_is_not_imported(tmp_path: Path):
    """Its name has no colon any more, which stands for what the user typed."""
    (tmp_path / "env.yaml").write_text("id: CartPole-v1\nwrappers: [gymnasium.wrappers.FlattenObservation, Monitor, mine:Shaped]\n")
    assert [name for name, _ in resolve(str(tmp_path / "env.yaml")).wrappers] == ["FlattenObservation", "mine.Shaped"]


class Goals(gym.Env):
    """What goal-conditioned environments observe."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {"goal": gym.spaces.Box(-9, 9, (3,)), "observation": gym.spaces.Box(-9, 9, (2,), np.float32)}
        )
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self._look(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        return self._look(), 0.0, False, False, {}

    def _look(self) -> dict[str, np.ndarray]:
        return {"goal": np.full(3, 3.0, np.float32), "observation": np.full(2, 2.0, np.float32)}


@pytest.mark.parametrize("test_mode", [False, True])
def test_the_time_is_appended_to_a_dict_as_sb3_contrib_appends_it(test_mode):
    theirs_of = pytest.importorskip("sb3_contrib.common.wrappers").TimeFeatureWrapper
    inner: Any = Goals()
    ours, theirs = (kind(env, max_steps=4, test_mode=test_mode) for kind, env in ((TimeFeatureWrapper, inner), (theirs_of, Goals())))
    assert ours.observation_space == theirs.observation_space
    assert inner.observation_space.spaces["observation"].shape == (2,), "what is inside stays what it was"
    for mine, other in zip([ours.reset()[0], ours.step(0)[0]], [theirs.reset()[0], theirs.step(0)[0]], strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key])
            assert mine[key].dtype == np.float32
    assert ours.observation_space.contains(ours.step(1)[0])
