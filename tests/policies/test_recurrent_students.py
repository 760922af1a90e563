"""Students with a memory: their size, their state, their files, and that they act in environments as they are trained."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.environments.vector import GOES_ON
from policy_distill.pipeline.sizing import SMALLEST_MEMORY, recurrent_student_for
from policy_distill.policies.architecture import Architecture, image_student_for
from policy_distill.policies.student import Student
from policy_distill.rollouts.acting import acting
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.support import trees
from policy_distill.support.trees import Tree, map_leaves
from tests.small_worlds import ACTED, SEEN, random_observations, recurrent_student

IMAGE = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
BOTH = gym.spaces.Dict({"image": IMAGE, "direction": gym.spaces.Discrete(4)})
MASKED = gym.spaces.Dict({"observation": SEEN, "action_masks()": gym.spaces.MultiBinary(4)})
WORLDS = [(SEEN, ()), (gym.spaces.Discrete(6), ()), (MASKED, ()), (IMAGE, (3, 4)), (BOTH, (3, 4))]
STEPS, ENVS = 9, 5


def sequences(space: gym.Space) -> Tree:
    """Observations ``[STEPS, ENVS, ...]``; the action 2 is always allowed."""
    seen = map_leaves(lambda leaf: leaf.reshape(STEPS, ENVS, *leaf.shape[1:]), random_observations(space, STEPS * ENVS))
    if isinstance(space, gym.spaces.Dict) and "action_masks()" in space.spaces:
        seen["action_masks()"][..., 2] = 1
    return seen


def memory_of(state: Any) -> np.ndarray:
    """Of a student, whose view has a state too, or of its twin."""
    return np.asarray(state[1] if isinstance(state, tuple) else state)


def begin(*slots: int) -> np.ndarray:
    """Episodes begin in these environments."""
    starts = np.full(ENVS, GOES_ON)
    starts[list(slots)] = 7
    return starts


# Size.


def test_parameters_by_hand():
    # 3 inputs, 5 units: three gates of (3 + 1 + 5) * 5; then 5 -> 8 -> 4: 6 * 8 + 9 * 4
    architecture = Architecture(SEEN, ACTED[0], (8,), memory=5)
    assert architecture.params == 3 * 9 * 5 + 48 + 36
    for space, channels in WORLDS:
        student = Student(Architecture(space, ACTED[0], (8,), channels=channels, memory=5))
        assert student.params == sum(parameter.numel() for parameter in student.parameters())


@pytest.mark.parametrize("budget", [50, 500, 2_345, 70_000])
def test_the_memory_uses_the_budget_and_does_not_pass_it(budget):
    plain = Architecture(SEEN, ACTED[0], (), memory=1)
    chosen = recurrent_student_for(10, 10 * budget, plain)
    assert chosen.hidden_sizes == (chosen.memory,)
    assert chosen.params <= budget or chosen.memory == SMALLEST_MEMORY
    larger = Architecture(SEEN, ACTED[0], (chosen.memory + 1,), memory=chosen.memory + 1)
    assert larger.params > budget


def test_the_memory_of_images_grows_with_the_channels():
    chosen = image_student_for(10, 500_000, Architecture(IMAGE, ACTED[0], (), memory=1))
    assert chosen.memory == chosen.hidden_sizes[0]
    assert chosen.channels == (2 * chosen.channels[1], chosen.channels[1])
    assert chosen.params <= 50_000
    assert image_student_for(10, 500_000, Architecture(IMAGE, ACTED[0], ())).memory == 0


# State.


@pytest.mark.parametrize(("space", "channels"), WORLDS, ids=str)
def test_steps_are_what_unrolling_gives(space, channels):
    student, seen = recurrent_student(space, ACTED[0], channels=channels), sequences(space)
    with torch.inference_mode():
        expected, last = student.unroll(trees.to_tensors(seen))
    state, actions = student.initial_state(ENVS), []
    for step in range(STEPS):
        action, state = student.step(trees.rows(seen, step), state, begin(*range(ENVS)) if step == 0 else None)
        actions.append(action)
    np.testing.assert_array_equal(np.stack(actions), expected.argmax(-1))
    torch.testing.assert_close(state[1], last)
    assert len(np.unique(actions)) > 1


@pytest.mark.parametrize("action_space", [ACTED[0], ACTED[5]], ids=str)
@pytest.mark.parametrize(("space", "channels"), WORLDS, ids=str)
def test_in_environments_it_acts_as_its_module(space, channels, action_space):
    if space is MASKED and action_space is not ACTED[0]:
        return
    student, seen = recurrent_student(space, action_space, channels=channels), sequences(space)
    twin = acting(student, ENVS, action_space)
    own, theirs = student.initial_state(ENVS), twin.initial_state(ENVS)
    for step in range(STEPS):
        starts = (begin(*range(ENVS)), None, begin(1, 3), begin())[step % 4]
        expected, own = student.step(trees.rows(seen, step), own, starts)
        actions, theirs = twin.step(trees.rows(seen, step), theirs, starts)
        np.testing.assert_allclose(memory_of(theirs), memory_of(own), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-4)
        assert actions.dtype == expected.dtype
        assert actions.shape == expected.shape


def test_a_mask_forbids_actions():
    student, seen = recurrent_student(MASKED, ACTED[0]), sequences(MASKED)
    twin = acting(student, ENVS, ACTED[0])
    for policy in (student, twin):
        state = policy.initial_state(ENVS)
        for step in range(STEPS):
            row = trees.rows(seen, step)
            actions, state = policy.step(row, state, None)
            assert row["action_masks()"][np.arange(ENVS), actions].all()


def test_an_episode_s_start_resets_the_state_of_its_row_alone():
    student, seen = recurrent_student(SEEN, ACTED[0]), sequences(SEEN)
    for policy in (student, acting(student, ENVS, ACTED[0])):
        old = policy.step(seen[0], policy.initial_state(ENVS), begin(*range(ENVS)))[1]
        goes_on, fresh = policy.step(seen[1], old, None)[1], policy.step(seen[1], policy.initial_state(ENVS), None)[1]
        found = policy.step(seen[1], old, begin(1, 3))[1]
        for row in range(ENVS):
            expected = memory_of(fresh if row in (1, 3) else goes_on)
            np.testing.assert_array_equal(memory_of(found)[row], expected[row])
            assert not np.array_equal(memory_of(fresh)[row], memory_of(goes_on)[row])


def test_a_policy_does_not_depend_on_the_ones_beside_it():
    student, seen = recurrent_student(SEEN, ACTED[5]), sequences(SEEN)
    together, alone = acting(student, ENVS, ACTED[5]), acting(student, 1, ACTED[5])
    states = together.initial_state(ENVS), alone.initial_state(1)
    for step in range(STEPS):
        actions, all_states = together.step(seen[step], states[0], None)
        action, own = alone.step(seen[step, 2:3], states[1], None)
        np.testing.assert_array_equal(actions[2:3], action)
        states = all_states, own


def test_drawn_actions_follow_the_memory():
    """What is drawn in a step depends on the observation before it, the seed and the generator being the same."""
    student, seen = recurrent_student(SEEN, ACTED[5]), sequences(SEEN)
    policy, drawn = Drawing(student), []
    for first in (seen[0], 5 * seen[1], seen[0]):
        state = policy.initial_state(ENVS)
        _, state = policy.step(first, state, begin(*range(ENVS)))
        drawn.append(policy.step(seen[2], state, None)[0])
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])


def test_single_observations_are_not_answered():
    student = recurrent_student(SEEN, ACTED[0])
    for ask in (student.act, lambda seen: student(torch.from_numpy(seen))):
        with pytest.raises(TypeError, match="a memory"):
            ask(np.zeros((2, 3), np.float32))


def test_one_without_a_memory_steps_as_it_acts():
    student = Student(Architecture(SEEN, ACTED[0], (8,))).eval().requires_grad_(False)
    seen, state = sequences(SEEN), student.initial_state(ENVS)
    for step in range(3):
        actions, state = student.step(seen[step], state, begin(0))
        np.testing.assert_array_equal(actions, student.act(seen[step]))


# Files.


@pytest.mark.parametrize(("space", "channels"), WORLDS, ids=str)
def test_it_comes_back_from_its_files_bit_for_bit(space, channels, tmp_path):
    student = recurrent_student(space, ACTED[4], channels=channels) if space is not MASKED else recurrent_student(space, ACTED[0])
    again = Student.load(student.save(tmp_path))
    assert again.architecture == student.architecture
    assert json.loads((tmp_path / "student.json").read_text())["memory"] == {"kind": "gru", "size": 7}
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    "memory",
    [
        {"kind": "lstm", "size": 7},
        {"kind": "gru", "size": 6},
        {"kind": "gru", "size": 0},
        {"kind": "gru"},
        7,
        {"kind": "gru", "size": 10**15},
    ],
)
def test_a_damaged_memory_is_refused(memory, tmp_path):
    recurrent_student(SEEN, ACTED[0]).save(tmp_path)
    description = tmp_path / "student.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "memory": memory}))
    with pytest.raises(RequestError, match="write it again"):
        Student.load(tmp_path)
