"""What a student sees, worked out by hand."""

from __future__ import annotations

import json
import pickle
import sys
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError, parse_inputs
from policy_distill.environments.action_masks import MASK
from policy_distill.environments.frame_stacks import StackOf
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.encoders import channels_first
from policy_distill.policies.student import Student
from policy_distill.policies.views import View, ViewedEnv
from policy_distill.support import trees
from tests.small_worlds import Walk, random_observations

VECTOR = gym.spaces.Box(np.array([-1, -2, -3, -4], np.float32), np.array([1, 2, 3, 4], np.float32))
PARTS = gym.spaces.Dict(
    OrderedDict(
        target=gym.spaces.Discrete(3), position=gym.spaces.Box(0, 10, (2,), np.float32), goal=gym.spaces.Box(0, 1, (1,), np.float32)
    )
)


class Halved(gym.ObservationWrapper):
    """A transformation of the user's own."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[:2] / 2


HALVED = f"{__name__}:Halved"


def view(request: Any, space: gym.Space = VECTOR) -> Any:
    config = parse_inputs(request)
    assert config is not None
    return View(config, space)


def rows(count: int = 3) -> np.ndarray:
    return np.arange(4 * count, dtype=np.float32).reshape(count, 4)


def starts_of(*seeds: int) -> np.ndarray:
    return np.array(seeds, np.int64)


def test_kept_components_come_in_the_order_in_which_they_are_named():
    found = view([3, 0])
    np.testing.assert_array_equal(found.see(rows()), [[3, 0], [7, 4], [11, 8]])
    np.testing.assert_array_equal(found.space.high, [4, 1])
    assert (found.columns, found.has_state, found.hides) == ((3, 0), False, True)


def test_one_key_is_that_part_itself_and_several_are_a_dict():
    observations = {"target": np.array([2, 1]), "position": rows(2)[:, :2], "goal": rows(2)[:, 2:3]}
    one, two = view({"keys": ["position"]}, PARTS), view({"keys": ["goal", "target"]}, PARTS)
    np.testing.assert_array_equal(one.see(observations), [[0, 1], [4, 5]])
    assert list(two.see(observations)) == list(two.space) == ["goal", "target"]
    # encoded: target's three, position's two, goal
    assert (one.columns, two.columns) == ((3, 4), (5, 0, 1, 2))
    assert view({"keys": ["position"], "keep": [1]}, PARTS).columns == (4,)


def test_a_history_is_the_oldest_first_and_begins_with_the_first_observation_repeated():
    found = view({"keep": [0, 1], "history": 3})
    state = found.initial_state(2)
    shown = np.array([[1, 2, 9, 9], [3, 4, 9, 9]], np.float32)
    seen, state = found.step(shown, state, starts_of(7, 8))
    np.testing.assert_array_equal(seen, [[1, 2, 1, 2, 1, 2], [3, 4, 3, 4, 3, 4]])
    shown[:] = [[5, 6, 9, 9], [7, 8, 9, 9]]  # environments overwrite their observations
    seen, state = found.step(shown, state, None)
    np.testing.assert_array_equal(seen, [[1, 2, 1, 2, 5, 6], [3, 4, 3, 4, 7, 8]])
    seen, state = found.step(np.full((2, 4), 0, np.float32), state, starts_of(GOES_ON, 9))
    np.testing.assert_array_equal(seen, [[1, 2, 5, 6, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert found.space.shape == (6,)
    assert found.columns is None


@pytest.mark.parametrize(
    ("shape", "stacked"), [((5, 4, 1), (5, 4, 2)), ((1, 5, 4), (2, 5, 4)), ((7, 7, 9), (7, 7, 18)), ((9, 4, 4), (18, 4, 4))]
)
def test_images_are_stacked_by_their_channels(shape, stacked):
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    found = view({"history": 2}, space)
    first, second = (random_observations(space, 3, seed=seed) for seed in (0, 1))
    _, state = found.step(first, found.initial_state(3), starts_of(0, 1, 2))
    seen, _ = found.step(second, state, None)
    assert found.space.shape == stacked
    axis = 1 if channels_first(space) else 3
    assert shape[axis - 1] != stacked[axis - 1]
    np.testing.assert_array_equal(seen, np.concatenate([first, second], axis=axis))


def test_histories_of_images_whose_channels_the_encoder_would_take_for_pixels_are_refused():
    space = gym.spaces.Box(0, 255, (20, 30, 3), np.uint8)
    assert not channels_first(view({"history": 6}, space).space)
    with pytest.raises(RequestError, match=r"student\.inputs\.history 7 makes images of \(20, 30, 21\)"):
        view({"history": 7}, space)


def test_which_of_the_inputs_are_images_of_several_frames():
    image = gym.spaces.Box(0, 255, (14, 13, 4), np.uint8)
    space = gym.spaces.Dict(OrderedDict(a=image, b=gym.spaces.Box(0, 255, (4, 14, 13), np.uint8), speed=gym.spaces.Box(0, 1, (3,))))
    observed = {"a": StackOf(4, -1), "b": StackOf(2, 0)}
    assert view({"keys": ["a"]}, space).stacks(observed) == {"": StackOf(4, -1)}
    assert view({"keys": ["b", "speed"]}, space).stacks(observed) == {"b": StackOf(2, 0)}
    assert view({"keys": ["a", "b"], "history": 2}, space).stacks({}) == {"a": StackOf(2, -1), "b": StackOf(2, 0)}
    assert view({"keys": ["speed"], "history": 2}, space).stacks(observed) == {}
    assert view({"history": 3}, image).stacks({"": StackOf(4, -1)}) == {"": StackOf(3, -1)}
    assert view({"keys": ["speed"], "noise": 0.1}, space).stacks(observed) == {}


def test_a_history_of_numbers_is_one_of_choices():
    found = view({"history": 2}, gym.spaces.Discrete(5, start=1))
    _, state = found.step(np.array([3]), found.initial_state(1), starts_of(0))
    np.testing.assert_array_equal(found.step(np.array([5]), state, None)[0], [[3, 5]])
    assert found.space.contains(np.array([3, 5]))


def test_noise_has_its_standard_deviation_and_follows_from_the_episode_s_seed_alone():
    found = view({"keep": [0, 1], "noise": [0.5, 0.0]})
    state, count = found.initial_state(4000), 4000
    seen, _ = found.step(np.ones((count, 4), np.float32), state, np.arange(count))
    assert seen[:, 0].std() == pytest.approx(0.5, rel=0.05)
    assert seen[:, 0].mean() == pytest.approx(1.0, abs=0.05)
    assert (seen[:, 1] == 1).all()
    alone, _ = found.step(np.ones((1, 4), np.float32), found.initial_state(1), starts_of(1234))
    np.testing.assert_array_equal(alone[0], seen[1234])
    assert found.space.low.tolist() == [-np.inf, -np.inf]


def test_the_history_holds_the_noisy_observations_that_were_seen():
    found = view({"keep": [0], "history": 2, "noise": 1.0})
    first, state = found.step(rows(1), found.initial_state(1), starts_of(3))
    first = first.copy()
    second, _ = found.step(rows(1), state, None)
    assert first[0, 0] == first[0, 1] == second[0, 0] != second[0, 1]


def test_a_wrapper_is_the_first_step(monkeypatch):
    found = view({"wrapper": HALVED, "keep": [1]})
    np.testing.assert_array_equal(found.see(rows()), [[0.5], [2.5], [4.5]])
    assert found.columns is None
    assert found.hides


def test_masks_are_always_seen():
    space = gym.spaces.Dict(OrderedDict(observation=VECTOR, **{MASK: gym.spaces.MultiBinary(3)}))
    found, mask = view({"keep": [2], "history": 2}, space), np.array([[1, 0, 1]], np.int8)
    seen, _ = found.step({"observation": rows(1), MASK: mask}, found.initial_state(1), starts_of(0))
    np.testing.assert_array_equal(seen["observation"], [[2, 2]])
    np.testing.assert_array_equal(seen[MASK], mask)
    assert list(seen) == list(found.space) == ["observation", MASK]


@pytest.mark.parametrize(
    ("request_", "space", "message"),
    [
        ([4], VECTOR, "components 0 to 3"),
        ({"keys": ["a"]}, VECTOR, "not a Dict"),
        ({"keys": ["a"]}, PARTS, "it has the keys target, position, goal"),
        ([0], PARTS, "name one key"),
        ([0], gym.spaces.Discrete(3), "components of a vector"),
        ({"noise": 1}, gym.spaces.Box(0, 255, (2,), np.uint8), "floating-point"),
        ({"noise": [1, 2]}, VECTOR, "has 2 numbers, and the student sees 4"),
        ({"history": 2}, gym.spaces.MultiBinary(3), "Box and Discrete"),
        ({"wrapper": "nowhere:Class"}, VECTOR, "cannot be used"),
        ({"wrapper": "os:getcwd"}, VECTOR, "cannot be used"),
    ],
)
def test_what_does_not_suit_the_observations_is_refused(request_, space, message):
    with pytest.raises(RequestError, match=message):
        view(request_, space)


def test_a_view_travels_to_another_process():
    found = view({"keep": [1], "history": 2, "noise": 0.1})
    assert pickle.loads(pickle.dumps(found)) == found


# Students.


def student_of(request: Any, space: gym.Space = VECTOR, columns: tuple[int, ...] | None = None) -> Student:
    found = Student(Architecture(space, gym.spaces.Discrete(3), (8,), view=view(request, space), columns=columns))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return found.eval().requires_grad_(False)


def actions(student: Student, episode: np.ndarray, seed: int = 5) -> list[int]:
    state, taken = student.initial_state(1), []
    for step, observation in enumerate(episode):
        action, state = student.step(observation[None], state, starts_of(seed) if step == 0 else None)
        taken.append(int(action[0]))
    return taken


@pytest.mark.parametrize("request_", [[0, 2], {"keep": [0, 2], "history": 3}, {"keep": [0, 2], "history": 2, "noise": 0.3}])
def test_a_student_never_reads_what_is_hidden(request_):
    student, draws = student_of(request_), np.random.default_rng(0)
    episode = draws.normal(size=(60, 4)).astype(np.float32)
    others = episode.copy()
    others[:, [1, 3]] = draws.normal(size=(60, 2))
    expected = actions(student, episode)
    assert len(set(expected)) > 1
    assert actions(student, others) == expected
    others[:, 0] += 1.0
    assert actions(student, others) != expected


def test_a_student_that_remembers_is_not_asked_about_single_observations():
    with pytest.raises(ValueError, match=r"Student\.step"):
        student_of({"history": 2}).act(rows())
    assert len(student_of([0]).act(rows())) == 3


@pytest.mark.parametrize("request_", [[3, 1], {"keep": [0, 2], "history": 3, "noise": 0.25}, {"keep": [0, 1], "noise": [0.5, 1.0]}])
def test_a_view_is_saved_with_its_student(request_, tmp_path):
    student = student_of(request_)
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    assert loaded.view == student.view
    assert (loaded.observation_space, loaded.params) == (VECTOR, student.params)
    episode = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    assert actions(loaded, episode) == actions(student, episode)


def test_a_student_without_a_view_is_described_as_ever(tmp_path):
    Student(Architecture(VECTOR, gym.spaces.Discrete(3), (8,))).save(tmp_path)
    assert not {"inputs", "varying_inputs"} & set(json.loads((tmp_path / "student.json").read_text()))


def test_a_wrapper_is_imported_for_those_alone_who_trust_it(tmp_path, monkeypatch):
    student = student_of({"wrapper": HALVED})
    student.save(tmp_path)
    description = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "evil_wrapper.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    description["inputs"]["wrapper"] = "evil_wrapper:Class"
    (tmp_path / "student.json").write_text(json.dumps(description))
    with pytest.raises(RequestError, match="give --trust"):
        Student.load(tmp_path)
    assert "evil_wrapper" not in sys.modules
    student.save(tmp_path)
    np.testing.assert_array_equal(Student.load(tmp_path, trust=True).act(rows()), student.act(rows()))


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [1]}, {"inputs": {"keep": [9]}}, {"inputs": {"what": 1}}, {"inputs": {"history": 1000, "keep": [0]}},
        {"inputs": {"keep": [0]}},
        {"varying_inputs": [0, 7]}, {"varying_inputs": []}, {"varying_inputs": [1, 0]}, {"varying_inputs": "all"},
    ],
)  # fmt: skip
def test_damaged_descriptions_are_refused(change, tmp_path):
    student_of([1, 3]).save(tmp_path)
    path = tmp_path / "student.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RequestError):
        Student.load(tmp_path)


def test_inputs_that_never_vary_take_no_weights(tmp_path):
    """3 of the 4 components that it sees: (3 + 1) * 8 weights and biases, and 9 for each of three outputs."""
    student = student_of({"history": 2, "keep": [0, 1]}, columns=(0, 1, 3))
    assert student.params == 4 * 8 + 9 * 3
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    assert loaded.architecture.columns == (0, 1, 3)
    seen = torch.randn(20, 4)
    others = seen.clone()
    others[:, 2] += 1
    assert torch.equal(loaded(seen), loaded(others))
    assert torch.equal(loaded(seen), student(seen))


def test_an_environment_shows_what_the_view_does():
    found = view({"keep": [0], "history": 2}, Walk.observation_space)
    env = ViewedEnv(Walk(), found)
    observation, _ = env.reset(seed=3)
    start = observation[0]
    np.testing.assert_array_equal(observation, [start, start])
    observation, *_ = env.step(2)
    np.testing.assert_array_equal(observation, [start, min(start + 1, 10)])
    assert env.observation_space.contains(observation)


def test_the_noise_of_an_environment_differs_from_episode_to_episode_and_repeats_with_its_seed():
    env = ViewedEnv(Walk(), view({"noise": 1.0}, Walk.observation_space))
    shown = [trees.copied(env.reset(seed=seed)[0]) for seed in (3, 3)]
    np.testing.assert_array_equal(*shown)
    env.reset(seed=3)
    base = Walk()
    base.reset(seed=3)
    later = env.reset()[0] - base.reset()[0]
    assert not np.array_equal(later, shown[0] - base.reset(seed=3)[0])


def test_noise_that_the_observations_numbers_cannot_hold_is_refused():
    with pytest.raises(RequestError, match="too large for observations of float32"):
        view({"noise": 1e39})
