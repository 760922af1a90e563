"""In which environment an agent acts: what is asked for, what was saved, and what is said about the difference."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.commands.options.parser import Parser, add_environment_arguments
from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.config.environment import Wrapper
from policy_distill.environments.action_masks import with_mask
from policy_distill.environments.matching import check_fits
from policy_distill.environments.specs import EnvironmentSpec, resolve
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import choose_environment, environment_for
from tests.masked_worlds import Drawn

TIME: Wrapper = ("TimeFeatureWrapper", {})
STACK: Wrapper = ("VecFrameStack", {"n_stack": 2})
RESCALED: Wrapper = ("RescaleAction", {"min_action": -1.0, "max_action": 1.0})
DELAY: Wrapper = ("DelayedRewardWrapper", {"delay": 2})
PENDULUM = "Pendulum-v1"


def agent(length: int, *, bound: float = 2.0, saved: EnvironmentSpec | None = None) -> Teacher:
    """One that reads ``length`` numbers and pushes within ``bound``."""
    teacher = Teacher.from_callable(
        lambda observations: np.zeros((len(observations), 1), np.float32),
        gym.spaces.Box(-np.inf, np.inf, (length,)),
        gym.spaces.Box(-bound, bound, (1,)),
    )
    teacher.saved_env = saved
    return teacher


def chosen(teacher: Teacher, *arguments: str) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """What these options, as they are typed, choose; it must fit the agent."""
    parser = Parser("test")
    add_environment_arguments(parser)
    spec, notices = environment_for(teacher, parser.config(parser.parse(arguments), EnvironmentOptions))
    check_fits(spec, (teacher.observation_space, teacher.action_space))
    return spec, notices


def saved(*wrappers: tuple[str, Any], **kwargs: Any) -> EnvironmentSpec:
    return EnvironmentSpec(PENDULUM, kwargs, wrappers)


# Without --env: the saved one; each option replaces what was saved of its kind.


def test_nothing_asked_for_is_what_was_saved():
    spec = dataclasses.replace(saved(TIME, STACK, g=5.0), max_episode_steps=50)
    assert chosen(agent(8, saved=spec)) == (spec, ())


def test_an_argument_takes_the_place_of_the_saved_one():
    assert chosen(agent(3, saved=saved(g=5.0)), "--env-kwargs", "g:2")[0].kwargs == {"g": 2}
    assert chosen(agent(3, saved=saved(g=5.0)), "--env-kwargs", "{}")[0].kwargs == {"g": 5.0}


def test_wrappers_take_the_place_of_the_saved_ones_and_leave_the_stack():
    assert chosen(agent(6, saved=saved(DELAY, STACK)), "--wrapper", "none")[0].wrappers == (STACK,)
    assert chosen(agent(8, saved=saved(DELAY, STACK)), "--wrapper", "TimeFeatureWrapper")[0].wrappers == (TIME, STACK)
    assert chosen(agent(3, saved=saved(DELAY)), "--wrapper", "Monitor")[0].wrappers == ()
    asked = ["--wrapper", "TimeFeatureWrapper", "--wrapper", '{"VecFrameStack": {"n_stack": 3}}']
    assert chosen(agent(12, saved=saved(STACK)), *asked)[0].wrappers == (TIME, ("VecFrameStack", {"n_stack": 3}))


def test_a_stack_takes_the_place_of_the_saved_one():
    assert chosen(agent(9, saved=saved(STACK)), "--frame-stack", "3")[0].wrappers == (("VecFrameStack", {"n_stack": 3}),)
    assert chosen(agent(3, saved=saved(STACK)), "--frame-stack", "1")[0].wrappers == ()
    assert chosen(agent(6, saved=saved()), "--frame-stack", "2")[0].wrappers == (STACK,)
    filled = ("VecFrameStack", {"n_stack": 2, "padding": [1.0, 2.0, 3.0]})
    assert chosen(agent(6, saved=saved(filled)), "--frame-stack", "2")[0].wrappers == (filled,)


def test_what_an_entry_pads_belongs_to_the_environment():
    padded = EnvironmentSpec(PENDULUM, {}, (("PadObservation", {"size": 5}), TIME))
    assert chosen(agent(5, saved=padded), "--wrapper", "none")[0].wrappers == (("PadObservation", {"size": 5}),)


def test_an_episode_may_be_made_shorter():
    spec, _ = chosen(agent(3, saved=saved()), "--max-episode-steps", "30")
    assert spec.max_episode_steps == 30


@dataclasses.dataclass(frozen=True)
class Spaces:
    """A student, of which only the spaces are looked at."""

    observation_space: gym.Space
    action_space: gym.Space


def masked(observations: gym.Space) -> Spaces:
    return Spaces(with_mask(observations, ACTIONS), ACTIONS)


ACTIONS = gym.spaces.Discrete(3)
MASKS: Wrapper = ("ActionMasks", {})
TURNED: Wrapper = ("VecTransposeImage", {})
PICTURE = gym.spaces.Box(0, 255, (36, 40, 3), np.uint8)


@pytest.fixture
def masked_worlds():
    """Environments with masks that show a vector and an image, and their ids."""
    shown = {"tests/MaskedVector-v0": gym.spaces.Box(-1, 1, (3,)), "tests/MaskedPicture-v0": PICTURE}
    for name, space in shown.items():
        gym.register(name, functools.partial(Drawn, space, ACTIONS))  # type: ignore[arg-type]
    yield list(shown)
    for name in shown:
        del gym.registry[name]


@pytest.mark.parametrize("options", [{}, {"env": "tests/MaskedPicture-v0"}, {"wrapper": ("ActionMasks",)}], ids=str)
def test_a_student_of_masked_images_finds_its_environment_again(masked_worlds, options):
    """The order of its wrappers was not found again: images were looked for beside the mask, where they had another key."""
    _, name = masked_worlds
    student = masked(gym.spaces.Box(0, 255, (3, 36, 40), np.uint8))
    spec, notices = choose_environment(student, EnvironmentSpec(name, {}, (TURNED, MASKS)), EnvironmentOptions(**options))
    assert set(dict(spec.wrappers)) == {"VecTransposeImage", "ActionMasks"}
    assert notices == ()
    check_fits(spec, (student.observation_space, student.action_space))


@pytest.mark.parametrize("saved_stack", [(), (STACK,)])
def test_a_stack_stays_inside_the_masks(masked_worlds, saved_stack):
    name, _ = masked_worlds
    student = masked(gym.spaces.Box(-1, 1, (6,)))
    known = EnvironmentSpec(name, {}, (*saved_stack, MASKS))
    assert choose_environment(student, known, EnvironmentOptions(frame_stack=2))[0].wrappers == (STACK, MASKS)


def test_masks_inside_of_a_wrapper_stay_there(masked_worlds):
    name, _ = masked_worlds
    known = EnvironmentSpec(name, {}, (MASKS, ("FlattenObservation", {})))
    spec, _ = choose_environment(Spaces(gym.spaces.Box(-1, 1, (6,)), ACTIONS), known, EnvironmentOptions())
    assert spec.wrappers == known.wrappers


def test_a_wrapper_that_is_not_known_is_left_out_or_named_by_the_user():
    teacher = agent(4, saved=saved(("mine.Shaped", {"scale": 2}), TIME))
    with pytest.raises(RequestError) as refusal:
        chosen(teacher)
    ways = re.fullmatch(r".*: give (.*) if you trust it, or (.*) to leave it out", str(refusal.value))
    assert ways is not None
    assert chosen(teacher, *shlex.split(ways[2]))[0].wrappers == (TIME,)
    with pytest.raises(RequestError, match="the wrapper mine:Shaped cannot be imported"):  # it would be
        chosen(teacher, *shlex.split(ways[1]))


def test_clipped_rewards_are_said_to_be_what_is_counted():
    clipped = ("ClipReward", {"min_reward": -1.0, "max_reward": 1.0})
    spec, notices = chosen(agent(3, saved=saved(clipped)))
    assert spec.wrappers == (clipped,)
    assert notices == (
        "returns are sums of rewards after ClipReward; Stable-Baselines3's Monitor, inside the wrappers, counts those before",
    )


# With --env: what it names.


def test_the_environment_named_is_as_it_is_registered():
    teacher = agent(3, saved=saved(DELAY, g=5.0))
    spec, notices = chosen(teacher, "--env", PENDULUM)
    assert spec == resolve(PENDULUM)
    arguments, wrappers = notices
    assert """--env-kwargs '{"g": 5.0}' gives them""" in arguments
    assert """DelayedRewardWrapper (--wrapper '{"DelayedRewardWrapper": {"delay": 2}}')""" in wrappers
    asked = ["--env", PENDULUM, "--env-kwargs", "g:5.0", "--wrapper", '{"DelayedRewardWrapper": {"delay": 2}}']
    assert chosen(teacher, *asked) == (dataclasses.replace(spec, kwargs={"g": 5.0}, wrappers=(DELAY,)), ())


def test_another_value_in_an_entry_than_the_saved_one_is_said(tmp_path):
    (tmp_path / "env.yaml").write_text(f"id: {PENDULUM}\nkwargs: {{g: 2.0}}\n")
    named = ["--env", str(tmp_path / "env.yaml")]
    spec, notices = chosen(agent(3, saved=saved(g=5.0)), *named)
    assert spec.kwargs == {"g": 2.0}
    assert [notice.partition(";")[0] for notice in notices] == [
        "--env names the environment without the arguments that the agent was saved with"
    ]
    assert chosen(agent(3, saved=saved(g=2.0)), *named)[1] == ()
    assert chosen(agent(3, saved=saved(g=5.0)), *named, "--env-kwargs", "g:3.0")[1] == ()


def test_a_saved_limit_that_the_environment_named_does_not_have_is_said():
    """Returns of episodes of 50 and of 200 steps cannot be compared."""
    teacher = agent(3, saved=dataclasses.replace(saved(), max_episode_steps=50))
    spec, notices = chosen(teacher, "--env", PENDULUM)
    assert spec == resolve(PENDULUM)
    assert notices == (
        "--env names the environment without the limit of 50 steps that the agent was saved with; --max-episode-steps 50 sets it",
    )
    assert chosen(teacher, "--env", PENDULUM, "--max-episode-steps", "50")[1] == ()
    teacher.saved_env = dataclasses.replace(saved(), max_episode_steps=200)  # as it is registered
    assert chosen(teacher, "--env", PENDULUM)[1] == ()


def test_a_wrapper_without_which_the_spaces_do_not_fit_is_kept_and_said():
    teacher = agent(8, bound=1.0, saved=EnvironmentSpec("Gone-v0", {}, (RESCALED, DELAY, TIME, STACK)))
    spec, notices = chosen(teacher, "--env", PENDULUM)
    assert spec.wrappers == (RESCALED, TIME, STACK)
    kept, left = notices
    assert "which are kept: RescaleAction, TimeFeatureWrapper, VecFrameStack" in kept
    assert "--frame-stack 2)" in kept
    assert "DelayedRewardWrapper" in left


def test_an_environment_that_is_already_wrapped_is_not_wrapped_again():
    def rescaled() -> gym.Env:
        return gym.wrappers.RescaleAction(gym.make(PENDULUM), np.float32(-1), np.float32(1))

    gym.register("tests/Rescaled-v0", rescaled)  # type: ignore[arg-type]
    try:
        spec, notices = chosen(agent(3, bound=1.0, saved=saved(RESCALED)), "--env", "tests/Rescaled-v0")
    finally:
        del gym.registry["tests/Rescaled-v0"]
    assert spec.wrappers == ()
    assert len(notices) == 1


def test_a_wrapper_that_is_not_known_does_not_stop_an_environment_that_fits_without():
    spec, notices = chosen(agent(3, saved=saved(("mine.Shaped", {}))), "--env", PENDULUM)
    assert spec.wrappers == ()
    assert "(--wrapper mine.Shaped)" in notices[0]
    with pytest.raises(RequestError, match="give --wrapper mine:Shaped if you trust it"):
        chosen(agent(7, saved=saved(("mine.Shaped", {}))), "--env", PENDULUM)


def test_the_user_s_wrappers_stand_around_the_environment_named():
    teacher = agent(8, saved=saved(DELAY, STACK))
    spec, notices = chosen(teacher, "--env", PENDULUM, "--wrapper", "TimeFeatureWrapper")
    assert spec.wrappers == (TIME, STACK)  # the stack is needed
    assert len(notices) == 1
    assert chosen(teacher, "--env", PENDULUM, "--wrapper", "TimeFeatureWrapper", "--frame-stack", "2") == (spec, ())
    with pytest.raises(RequestError, match="8 numbers"):
        chosen(teacher, "--env", PENDULUM, "--wrapper", "none")


def test_wrappers_of_a_file_stay(tmp_path):
    (tmp_path / "env.yaml").write_text(f"id: {PENDULUM}\nwrappers: [TimeFeatureWrapper]\n")
    spec, notices = chosen(agent(8, saved=saved(TIME)), "--env", str(tmp_path / "env.yaml"), "--frame-stack", "2")
    assert (spec.wrappers, notices) == ((TIME, STACK), ())


def test_an_agent_that_does_not_tell_needs_an_environment():
    with pytest.raises(RequestError, match="give --env"):
        choose_environment(agent(3), None, EnvironmentOptions(frame_stack=2))


def test_an_id_that_stands_for_another_environment_is_said():
    spec, notices = choose_environment(agent(8), None, EnvironmentOptions(env="LunarLander-v2"))
    assert spec.id == "LunarLander-v3"
    assert any(notice.startswith("LunarLander-v2 is run as LunarLander-v3 here, which draws fresh wind") for notice in notices)
    assert choose_environment(agent(8), None, EnvironmentOptions(env="LunarLander-v3"))[1] == ()
