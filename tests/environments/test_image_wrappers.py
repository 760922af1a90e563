"""Wrappers for images, step by step against Stable-Baselines3's own."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from policy_distill.config import RequestError
from policy_distill.environments.border import Border
from policy_distill.environments.known_wrappers import ATARI, STACK, TRANSPOSE, asked_name, wrap
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.support import trees

IMAGE = gym.spaces.Box(0, 255, (11, 12, 3), np.uint8)
SPACES: dict[str, gym.Space] = {
    "channels last": IMAGE,
    "channels first": gym.spaces.Box(0, 255, (2, 5, 6), np.uint8),
    "a vector": gym.spaces.Box(-1, 1, (4,), np.float32),
    "a table": gym.spaces.Box(-1, 1, (4, 2), np.float32),
    "no image": gym.spaces.Box(0, 1, (2, 5, 6), np.uint8),
    "a Dict": gym.spaces.Dict(OrderedDict(camera=IMAGE, near=gym.spaces.Box(0, 255, (4, 5, 1), np.uint8), arm=gym.spaces.Box(-1, 1, (3,)))),
}


class Film(gym.Env):
    """Shows what its space samples; episodes last four steps."""

    def __init__(self, space: gym.Space) -> None:
        self.observation_space, self.action_space = copy.deepcopy(space), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 4, False, {}


def assert_equal(mine: Any, theirs: Any) -> None:
    pairs = [(part, theirs[key]) for key, part in mine.items()] if isinstance(mine, dict) else [(mine, theirs)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other[0])


@pytest.mark.parametrize("name", SPACES)
def test_frames_are_stacked_and_turned_as_in_stable_baselines(name):
    space = SPACES[name]
    theirs: Any = VecFrameStack(DummyVecEnv([lambda: Film(space)]), 3)
    mine = wrap(Film(space), STACK, {"n_stack": 3})
    if name in ("channels last", "a Dict"):
        theirs, mine = VecTransposeImage(theirs), wrap(mine, TRANSPOSE, {})
    others = trees.leaf_spaces(theirs.observation_space)
    for key, one in trees.leaf_spaces(mine.observation_space).items():
        assert (one.shape, one.dtype) == (others[key].shape, others[key].dtype)
    theirs.seed(7)
    assert_equal(mine.reset(seed=7)[0], theirs.reset())
    for _ in range(11):
        seen, _, done, _ = theirs.step(np.zeros(1, np.int64))
        observation, _, terminated, _, _ = mine.step(0)
        if terminated:
            observation, _ = mine.reset()
        assert terminated == done[0]
        assert_equal(observation, seen)


@pytest.mark.parametrize(("order", "axis"), [("first", 0), ("last", 2)])
def test_the_axis_of_a_stack_may_be_named(order, axis):
    shape = wrap(Film(IMAGE), STACK, {"n_stack": 4, "channels_order": order}).observation_space.shape
    assert shape == tuple(size * (4 if number == axis else 1) for number, size in enumerate(IMAGE.shape))


@pytest.mark.parametrize(
    ("space", "name", "arguments", "match"),
    [
        (gym.spaces.Discrete(3), STACK, {"n_stack": 2}, "needs boxes"),
        (IMAGE, STACK, {"n_stack": 2, "channels_order": "middle"}, "must be first or last"),
        (IMAGE, STACK, {"n_stack": 10**9}, "between 1 and"),
        (IMAGE, STACK, {"n_stack": 2, "padding": [1.0]}, "padding of 1 numbers"),
        (SPACES["a vector"], TRANSPOSE, {}, "needs images"),
        (IMAGE, ATARI, {}, "needs a game of ale-py"),
    ],
)
def test_what_a_wrapper_cannot_do(space, name, arguments, match):
    with pytest.raises(RequestError, match=match):
        wrap(Film(space), name, arguments)


def atari_of_sb3(game: str) -> Any:
    return VecTransposeImage(VecFrameStack(DummyVecEnv([lambda: AtariWrapper(Monitor(gym.make(game)))]), 4))


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("game", ["BreakoutNoFrameskip-v4", "PongNoFrameskip-v4", "SeaquestNoFrameskip-v4"])
def test_a_whole_game_of_atari_is_what_stable_baselines_evaluates(game):
    """Frame by frame over the losses of lives; the return is that of Monitor, which counts unclipped rewards of whole games."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    mine = make(EnvironmentSpec(game, wrappers=((ATARI, {}), (STACK, {"n_stack": 4}), (TRANSPOSE, {}))))
    theirs = atari_of_sb3(game)
    assert mine.observation_space == theirs.observation_space
    actions, lives, games = np.random.default_rng(0), 0, 0
    theirs.seed(3)
    seen = theirs.reset()
    observation, _ = mine.reset(seed=3)
    total = 0.0
    for _ in range(3000):
        assert_equal(observation, seen)
        action = actions.integers(mine.action_space.n)  # type: ignore[attr-defined]
        seen, _, done, infos = theirs.step(np.array([action]))
        observation, reward, terminated, truncated, _ = mine.step(action)
        total += reward
        assert (terminated or truncated) == ("episode" in infos[0])
        lives += done[0] and not terminated
        if terminated or truncated:
            assert total == pytest.approx(infos[0]["episode"]["r"])
            games += 1
            total = 0.0
            observation, _ = mine.reset()
    assert games > 1
    assert lives > games or game.startswith("Pong")


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_games_of_atari_follow_their_seed():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    mine: Border = make(EnvironmentSpec("BreakoutNoFrameskip-v4", wrappers=((ATARI, {}),)))
    first = [mine.reset(seed=5)[0], *(mine.step(action % 4)[0] for action in range(30))]
    again = [mine.reset(seed=5)[0], *(mine.step(action % 4)[0] for action in range(30))]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("arguments", [{}, {"screen_size": [48, 36], "grayscale_newaxis": True}, {"screen_size": 42, "noop_max": 0}])
def test_gymnasiums_preprocessing_of_atari_is_known_by_name(arguments):
    """Lists are what YAML has for its tuples."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    spec = EnvironmentSpec(
        "ALE/Pong-v5", {"frameskip": 1}, wrappers=(("AtariPreprocessing", arguments), ("FrameStackObservation", {"stack_size": 2}))
    )
    own: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    game = gym.wrappers.AtariPreprocessing(gym.make("ALE/Pong-v5", frameskip=1), **own)
    theirs = gym.wrappers.FrameStackObservation(game, 2)
    mine = make(spec)
    assert mine.observation_space == theirs.observation_space
    np.testing.assert_array_equal(mine.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for action in [2, 3] * 10:
        np.testing.assert_array_equal(mine.step(action)[0], theirs.step(action)[0])


def test_gymnasiums_preprocessing_of_atari_is_refused_where_the_game_skips_frames_itself():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    with pytest.raises(RequestError, match=r"the wrapper AtariPreprocessing skips frames itself .*--env_kwargs '{\"frameskip\": 1}'"):
        make(EnvironmentSpec("ALE/Pong-v5", wrappers=(("AtariPreprocessing", {}),)))
    with pytest.raises(RequestError, match="cannot make 1000000000 times 1000000000"):
        make(EnvironmentSpec("ALE/Pong-v5", {"frameskip": 1}, wrappers=(("AtariPreprocessing", {"screen_size": 1_000_000_000}),)))


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_the_parts_of_atari_wrapper_are_known_by_name():
    """One after the other they are AtariWrapper, but for the loss of lives and clipped rewards."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    parts: tuple[Any, ...] = (("NoopResetEnv", {"noop_max": 30}), ("MaxAndSkipEnv", {"skip": 4}), ("FireResetEnv", {}), ("WarpFrame", {}))
    mine = make(EnvironmentSpec("PongNoFrameskip-v4", wrappers=parts))
    theirs = AtariWrapper(gym.make("PongNoFrameskip-v4"), terminal_on_life_loss=False, clip_reward=False)
    assert mine.observation_space == theirs.observation_space
    np.testing.assert_array_equal(mine.reset(seed=2)[0], theirs.reset(seed=2)[0])
    for action in [2, 3, 3] * 60:
        one, other = mine.step(action), theirs.step(action)
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:4] == other[1:4]
    assert mine.step(0)[0].dtype == np.uint8


@pytest.mark.parametrize(("name", "says"), [("ClipRewardEnv", "not clipped"), ("EpisodicLifeEnv", "whole games")])
def test_wrappers_that_would_change_what_a_return_is_are_refused_with_a_reason(name, says):
    with pytest.raises(
        RequestError, match=rf"the wrapper {name}, which the agent was saved with, cannot be made: .*{says}.*--wrapper none leaves it"
    ):
        wrap(gym.make("CartPole-v1"), name, {})
    with pytest.raises(RequestError, match=f"the wrapper {name} cannot be made: .*{says}"):
        asked_name(name)
