"""Agents and environments that go together, and what is asked for where they do not."""

from __future__ import annotations

import importlib.util
import re
import shlex
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.commands.options.parser import Parser, add_environment_arguments
from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.environments.matching import check_fits, check_matches, wrappers_that_fit
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import choose_environment
from tests.small_worlds import PLACES

needs_cv2 = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs OpenCV")
needs_atari = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs the extra atari")
CAR = gym.spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32))


def image(shape: tuple[int, ...]) -> gym.spaces.Box:
    return gym.spaces.Box(0, 255, shape, np.uint8)


def test_check_matches_ignores_bounds_and_element_types_of_observations():
    spec = EnvironmentSpec("CartPole-v1")
    env = make(spec)
    check_matches(spec, env, gym.spaces.Box(-np.inf, np.inf, (4,), np.float64), gym.spaces.Discrete(2))


@pytest.mark.parametrize(
    ("gym_id", "observation_space", "action_space", "says"),
    [
        (
            "CartPole-v1",
            gym.spaces.Box(-1, 1, (5,)),
            gym.spaces.Discrete(2),
            "observations are 5 numbers, those of CartPole-v1 are 4 numbers",
        ),
        ("CartPole-v1", gym.spaces.Box(-1, 1, (5,)), gym.spaces.Discrete(2), "TimeFeatureWrapper"),
        ("CartPole-v1", gym.spaces.Discrete(4), gym.spaces.Discrete(2), "observations are one of 4 choices"),
        (
            "CartPole-v1",
            gym.spaces.Box(-1, 1, (4,)),
            gym.spaces.Discrete(3),
            "actions are one of 3 choices, those of CartPole-v1 are one of 2",
        ),
        ("CartPole-v1", gym.spaces.Box(-1, 1, (4,)), gym.spaces.Box(-1, 1, (1,)), "actions are 1 number in [-1, 1]"),
        ("Pendulum-v1", gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,)), "[-1, 1], those of Pendulum-v1 are 1 number in [-2, 2]"),
    ],
)
def test_check_matches_names_both_and_the_fix(gym_id, observation_space, action_space, says):
    spec = EnvironmentSpec(gym_id)
    with pytest.raises(RequestError) as refusal:
        check_matches(spec, make(spec), observation_space, action_space)
    assert says in str(refusal.value)
    assert "--env" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("length", "here", "wrappers"),
    [
        (5, (4,), [("TimeFeatureWrapper", {})]),
        (8, (4,), [("VecFrameStack", {"n_stack": 2})]),
        (12, (4,), [("VecFrameStack", {"n_stack": 3})]),
        (4, (2, 2), [("FlattenObservation", {})]),
        (2, (1,), [("TimeFeatureWrapper", {})]),  # two frames would fit too
        (4, (4,), []),
        (3, (4,), []),
        (7, (4,), []),
        (5, (2, 2), []),
    ],
)
def test_the_wrapper_that_would_fit_is_named(length, here, wrappers):
    assert wrappers_that_fit(gym.spaces.Box(-1, 1, (length,)), gym.spaces.Box(-1, 1, here)) == wrappers


GREY = ("GrayscaleObservation", {"keep_dim": True})


@pytest.mark.parametrize(
    ("mine", "here", "wrappers"),
    [
        ((12, 96, 96), (96, 96, 3), [("VecFrameStack", {"n_stack": 4})]),
        ((96, 96, 4), (96, 96, 3), [GREY, ("VecFrameStack", {"n_stack": 4})]),
        ((1, 96, 96), (96, 96, 3), [GREY]),
        ((3, 64, 64), (96, 96, 3), [("ResizeObservation", {"shape": [64, 64]})]),
        ((64, 48, 2), (96, 96, 3), [GREY, ("ResizeObservation", {"shape": [64, 48]}), ("VecFrameStack", {"n_stack": 2})]),
        ((4, 84, 84), (210, 160, 3), [GREY, ("ResizeObservation", {"shape": [84, 84]}), ("VecFrameStack", {"n_stack": 4})]),
        ((8, 36, 36), (4, 36, 36), [("VecFrameStack", {"n_stack": 2})]),
        ((4, 84, 84), (4, 36, 36), []),
        ((96, 96, 3), (96, 96, 3), []),
        ((3, 96, 96), (96, 96, 2), []),
    ],
)
def test_the_wrappers_that_would_fit_images_are_named(mine, here, wrappers):
    assert wrappers_that_fit(image(mine), image(here)) == wrappers


@pytest.mark.parametrize(
    ("mine", "here", "wrappers"),
    [
        ((84, 84, 4), (210, 160, 3), [("AtariWrapper", {}), ("VecFrameStack", {"n_stack": 4})]),
        ((1, 84, 84), (210, 160, 3), [("AtariWrapper", {})]),
        ((4, 84, 84), (84, 84, 1), [("VecFrameStack", {"n_stack": 4})]),
        ((3, 210, 160), (210, 160, 3), []),
    ],
)
def test_agents_of_atari_games_are_asked_for_the_wrapper_that_stable_baselines3_trains_them_in(mine, here, wrappers):
    assert wrappers_that_fit(image(mine), image(here), atari=True) == wrappers


POSITION = gym.spaces.Box(0, 10, (1,), np.float32)


def test_agents_that_read_a_dict_are_compared_key_by_key():
    env, three = make(PLACES), gym.spaces.Discrete(3)
    check_matches(PLACES, env, gym.spaces.Dict({"position": POSITION, "target": gym.spaces.Discrete(11)}), three)  # in another order
    others: list[dict[str, Any]] = [{"position": POSITION}, {"position": POSITION, "target": gym.spaces.Discrete(10)}]
    for parts in others:
        with pytest.raises(RequestError, match=r"observations are a Dict \(position: 1 number.*, those of .* a Dict \(target: one of 11"):
            check_matches(PLACES, env, gym.spaces.Dict(parts), three)


def test_the_wrapper_that_would_fit_a_dict_appends_to_its_observation():
    here = gym.spaces.Dict({"goal": POSITION, "observation": gym.spaces.Box(-1, 1, (3,))})
    longer = gym.spaces.Dict({"goal": POSITION, "observation": gym.spaces.Box(-1, 1, (4,))})
    assert wrappers_that_fit(longer, here) == [("TimeFeatureWrapper", {})]
    assert wrappers_that_fit(gym.spaces.Dict({**longer.spaces, "goal": gym.spaces.Discrete(2)}), here) == []
    assert wrappers_that_fit(gym.spaces.Dict({**here.spaces, "observation": gym.spaces.Box(-1, 1, (6,))}), here) == []


@pytest.mark.parametrize(
    ("gym_id", "seen", "acted"),
    [
        ("CartPole-v1", gym.spaces.Box(-1, 1, (5,)), gym.spaces.Discrete(2)),
        ("CartPole-v1", gym.spaces.Box(-1, 1, (8,)), gym.spaces.Discrete(2)),
        ("Blackjack-v1", gym.spaces.Box(0, 1, (45,)), gym.spaces.Discrete(2)),
        ("Pendulum-v1", gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,))),
        pytest.param("CarRacing-v3", image((2, 64, 48)), CAR, marks=needs_cv2),
        pytest.param("PongNoFrameskip-v4", image((84, 84, 4)), gym.spaces.Discrete(6), marks=[needs_atari, needs_cv2]),
    ],
)
def test_the_option_that_a_refusal_asks_for_makes_the_agent_fit(gym_id, seen, acted):
    spec = EnvironmentSpec(gym_id)
    with pytest.raises(RequestError) as refusal:
        check_matches(spec, make(spec), seen, acted)
    asked = re.search(r"or give (.+) if it was trained with", str(refusal.value))
    assert asked is not None
    parser = Parser("test")
    add_environment_arguments(parser)
    options = parser.config(parser.parse(["--env", gym_id, *shlex.split(asked[1])]), EnvironmentOptions)
    teacher = Teacher.from_callable(lambda observations: np.zeros(len(observations)), seen, acted)
    check_fits(choose_environment(teacher, None, options)[0], (seen, acted))


def test_an_option_that_is_asked_for_keeps_the_wrappers_that_are_there():
    spec = EnvironmentSpec("Pendulum-v1", wrappers=(("mine:Shaped", {}), ("VecFrameStack", {"n_stack": 2})))
    with pytest.raises(RequestError, match=r"or give --wrapper mine:Shaped --wrapper '{\"RescaleAction\": "):
        check_matches(spec, make(EnvironmentSpec("Pendulum-v1")), gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,)))
