"""Students: their size, their normalisation and their files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from policy_distill.config import RequestError, TrainingFault
from policy_distill.policies.architecture import (
    ACTIVATIONS,
    HEAD,
    LARGE_HEAD,
    SMALLEST_UNIT,
    SMALLEST_WIDTH,
    STRIDED_HEAD,
    Architecture,
    count_parameters,
    hidden_sizes_for,
    image_student_for,
)
from policy_distill.policies.encoders import usual_convolutions
from policy_distill.policies.student import Student, read_together
from policy_distill.rollouts.processes import Remote
from policy_distill.support import trees
from tests.small_worlds import ACTED, SEEN, generator, image_student, random_observations, random_student

sizes = st.lists(st.integers(1, 6), max_size=3).map(tuple)


# Size.


def test_parameters_by_hand():
    # 3 -> 8 -> 8 -> 4: 4 * 8 + 9 * 8 + 9 * 4 = 140; linear: 4 * 4 = 16
    assert count_parameters((3, 8, 8, 4)) == 140
    assert Architecture(SEEN, ACTED[0], (8, 8)).params == 140
    assert Architecture(SEEN, ACTED[0], ()).params == 16


@given(sizes, st.sampled_from(ACTED))
def test_the_count_is_that_of_the_network(hidden_sizes, action_space):
    student = Student(Architecture(SEEN, action_space, hidden_sizes))
    assert student.params == sum(parameter.numel() for parameter in student.parameters())


@given(st.floats(1, 300), st.integers(200, 100_000), st.integers(1, 60), st.integers(1, 20))
def test_the_widths_use_the_budget_and_do_not_pass_it(compression, teacher_params, inputs, outputs):
    width, other = hidden_sizes_for(compression, teacher_params, inputs, outputs)
    assert width == other >= SMALLEST_WIDTH
    budget = teacher_params / compression
    assert count_parameters((inputs, width, width, outputs)) <= budget or width == SMALLEST_WIDTH
    assert count_parameters((inputs, width + 1, width + 1, outputs)) > budget


# Acting.


def test_observations_are_normalised_without_clipping():
    student = random_student(SEEN, ACTED[0])
    raw = 100 * torch.randn(5, 3, generator=generator())
    expected = student.network((raw - student.mean) / student.scale)
    torch.testing.assert_close(student(raw), expected)
    student.mean.zero_()
    student.scale.fill_(1.0)
    assert not torch.allclose(student(raw), expected)


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_actions_are_in_the_action_space_and_are_the_mode(space):
    student = random_student(SEEN, space)
    observations = 2 * random_observations(SEEN, 50)
    actions = student.act(observations)
    assert all(space.contains(action if isinstance(action, np.ndarray) else int(action)) for action in actions)
    mode = student.family.mode(student.parameters_of(torch.as_tensor(observations)))
    np.testing.assert_array_equal(actions.reshape(mode.shape), mode.numpy())


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_a_generator_makes_the_actions_draws(space):
    student = random_student(SEEN, space)
    observations = random_observations(SEEN, 200)
    drawn, again, other = (student.act(observations, generator=generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(drawn, again)
    assert (drawn != other).any()
    assert drawn.shape == student.act(observations).shape


def test_continuous_outputs_come_with_the_student_s_standard_deviation():
    student = random_student(SEEN, ACTED[4])
    parameters = student.parameters_of(torch.zeros(5, 3))
    assert parameters["mean"].shape == parameters["log_std"].shape == (5, 2)
    assert torch.equal(parameters["log_std"][3], student.log_std)
    assert student.log_std.shape == (2,)
    assert random_student(SEEN, ACTED[0]).log_std.shape == (0,)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_lies_between_the_layers(name):
    student = Student(Architecture(SEEN, ACTED[0], (4, 4), name))
    kinds = [type(layer) for layer in student.network]
    assert kinds == [torch.nn.Linear, ACTIVATIONS[name]] * 2 + [torch.nn.Linear]


# Files.


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_a_student_comes_back_from_its_files_bit_for_bit(space, tmp_path):
    student = random_student(gym.spaces.Box(-np.inf, np.inf, (3,)), space, hidden_sizes=(5, 7), activation="tanh")
    again = Student.load(student.save(tmp_path / "deep" / "student"))
    assert again.architecture == student.architecture
    assert again.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_description_says_what_the_student_is(tmp_path):
    random_student(SEEN, ACTED[1], hidden_sizes=(5,)).save(tmp_path, extra={"environment": {"id": "X-v0"}})
    described = json.loads((tmp_path / "student.json").read_text())
    assert described["hidden_sizes"] == [5]
    assert described["params"] == 4 * 5 + 6 * 3
    assert described["action_space"] == {"type": "Discrete", "n": 3, "start": 2}
    assert described["environment"] == {"id": "X-v0"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


def test_a_folder_without_a_student_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"holds no student\.json: name the folder"):
        Student.load(tmp_path)


@pytest.mark.parametrize("damage", ["no json", "other widths", "no weights", "half the weights", "no key", "unknown activation"])
def test_a_damaged_student_is_refused_in_one_line(damage, tmp_path):
    random_student(SEEN, ACTED[0]).save(tmp_path)
    description, weights = tmp_path / "student.json", tmp_path / "student.safetensors"
    data = json.loads(description.read_text())
    match damage:
        case "no json":
            description.write_text("{")
        case "other widths":
            description.write_text(json.dumps({**data, "hidden_sizes": [9]}))
        case "no key":
            description.write_text(json.dumps({"format": 1}))
        case "unknown activation":
            description.write_text(json.dumps({**data, "activation": "gelu"}))
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(RequestError, match="again") as caught:
        Student.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["network.0.weight", "mean", "log_std"])
def test_a_student_with_numbers_that_are_not_finite_is_neither_saved_nor_read(value, name, tmp_path, monkeypatch):
    student = random_student(SEEN, ACTED[-1])
    {student.architecture.written(key): tensor for key, tensor in student.state_dict().items()}[name].fill_(value)
    with pytest.raises(TrainingFault, match=rf"the student's {name} holds NaN or infinity, and it is not saved"):
        student.save(tmp_path)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Student, "not_finite", lambda self: None)
        student.save(tmp_path)
    with pytest.raises(RequestError, match=rf"the tensor {name} holds NaN or infinity\): it holds no readable student; write it again"):
        Student.load(tmp_path)


# Two files that are one student.


def saved(folder: Path, seed: int) -> Student:
    """Save a student whose number is in both files."""
    student = random_student(SEEN, ACTED[0], seed=seed)
    student.mean.fill_(seed)
    student.save(folder, extra={"number": seed})
    return student


class Rewriter:
    """Saves one student after the other in the same folder."""

    def write(self, folder: Path, first: int, count: int) -> None:
        for seed in range(first, first + count):
            saved(folder, seed)


def test_students_that_are_read_while_others_are_written_are_never_mixed(tmp_path):
    saved(tmp_path, 0)
    writer, numbers = Remote(Rewriter), {0}
    writing = writer.submit("write", tmp_path, 1, 60)
    while 60 not in numbers:
        description, weights = read_together(tmp_path)
        assert load(weights)["mean"].unique().tolist() == [description["number"]]
        numbers.add(description["number"])
    writing.result()
    writer.close()
    assert len(numbers) > 10, "students were written between the reads"


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("writes", range(1, 8))
def test_a_crash_at_any_moment_leaves_the_earlier_or_the_new_student(writes, earlier, tmp_path, monkeypatch):
    if earlier:
        saved(tmp_path, 1)
    done = []

    class Crash(BaseException):
        """What a SIGKILL does: nothing is cleaned up."""

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            done.append(function)
            if len(done) == writes:
                raise Crash
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        saved(tmp_path, 2)
    assert (len(done) < 8) == (writes < 8)
    try:
        description, weights = read_together(tmp_path)
    except RequestError:
        assert not earlier
        assert writes <= 5, "before the description is there"
        return
    assert description["number"] == load(weights)["mean"][0] == Student.load(tmp_path).mean[0]
    assert description["number"] in ({1, 2} if earlier else {2})
    saved(tmp_path, 3)
    assert Student.load(tmp_path).mean[0] == 3


def test_a_student_of_an_earlier_version_names_no_hash_and_is_read(tmp_path):
    student = saved(tmp_path, 4)
    data = json.loads((tmp_path / "student.json").read_text())
    assert len(data.pop("weights_sha256")) == 64
    (tmp_path / "student.json").write_text(json.dumps(data))
    assert torch.equal(Student.load(tmp_path).linears[0].weight, student.linears[0].weight)


def test_files_of_two_students_are_refused(tmp_path):
    saved(tmp_path / "a", 1)
    saved(tmp_path / "b", 2)
    (tmp_path / "a" / "student.json").replace(tmp_path / "b" / "student.json")
    with pytest.raises(RequestError, match=r"the files are of two students; write the student again"):
        Student.load(tmp_path / "b")


# Images.

IMAGE = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
BOTH = gym.spaces.Dict({"image": IMAGE, "direction": gym.spaces.Discrete(4)})


def test_parameters_of_images_by_hand():
    # 3 -> 3 channels of 3x3: 28 * 3; -> 4: 28 * 4; 3 * 3 pixels * 4 -> 8 -> 4: 37 * 8 + 9 * 4
    architecture = Architecture(IMAGE, ACTED[0], (8,), channels=(3, 4))
    assert architecture.params == 84 + 112 + 296 + 36
    assert architecture.params == sum(parameter.numel() for parameter in Student(architecture).parameters())


@given(st.floats(1, 300), st.integers(3_000, 2_000_000), st.sampled_from([(7, 7, 3), (10, 10, 4), (4, 84, 84), (96, 96, 3)]))
def test_the_channels_use_the_budget_and_do_not_pass_it(compression, teacher_params, shape):
    linear = Architecture(gym.spaces.Box(0, 255, shape, np.uint8), ACTED[0], ())
    chosen = image_student_for(compression, teacher_params, linear)
    unit = min(chosen.channels)
    assert unit >= SMALLEST_UNIT
    assert (chosen.channels, chosen.strides) == usual_convolutions([linear.observation_space], unit)
    (width,) = chosen.hidden_sizes
    budget = teacher_params / compression
    head = STRIDED_HEAD if chosen.strides else LARGE_HEAD if len(chosen.channels) == 3 else HEAD
    assert width >= (SMALLEST_WIDTH if unit == SMALLEST_UNIT else head * unit)
    assert chosen.params <= budget or (unit, width) == (SMALLEST_UNIT, SMALLEST_WIDTH)
    assert dataclasses.replace(chosen, hidden_sizes=(width + 1,)).params > budget
    more = tuple(channels // unit * (unit + 1) for channels in chosen.channels)
    assert dataclasses.replace(chosen, channels=more, hidden_sizes=(head * (unit + 1),)).params > budget


@pytest.mark.parametrize("space", [IMAGE, BOTH], ids=["image", "Dict"])
def test_a_student_of_images_comes_back_from_its_files_bit_for_bit(space, tmp_path):
    student = image_student(space, ACTED[4])
    again = Student.load(student.save(tmp_path))
    assert again.architecture == student.architecture
    assert json.loads((tmp_path / "student.json").read_text())["encoder"] == {"channels": [3, 4]}
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in again.state_dict().items())
    space.seed(3)
    seen = trees.stack([trees.map_leaves(np.asarray, space.sample()) for _ in range(20)])
    np.testing.assert_array_equal(again.act(seen), student.act(seen))
    assert len(np.unique(student.act(seen), axis=0)) > 10


@pytest.mark.parametrize("strides", [(1, 2), (2, 1)])
def test_strides_come_back_from_the_files(strides, tmp_path):
    student = image_student(IMAGE, ACTED[0], strides=strides)
    again = Student.load(student.save(tmp_path))
    assert again.architecture == student.architecture
    assert json.loads((tmp_path / "student.json").read_text())["encoder"] == {"channels": [3, 4], "strides": list(strides)}
    seen = random_observations(IMAGE, 20)
    np.testing.assert_array_equal(again.act(seen), student.act(seen))


def test_files_of_vectors_are_what_they_have_always_been(tmp_path):
    random_student(SEEN, ACTED[0], hidden_sizes=(5,)).save(tmp_path)
    assert "encoder" not in json.loads((tmp_path / "student.json").read_text())
    tensors = load((tmp_path / "student.safetensors").read_bytes())
    assert set(tensors) == {"mean", "scale", "log_std", "network.0.weight", "network.0.bias", "network.2.weight", "network.2.bias"}


@pytest.mark.parametrize(
    "encoder",
    [
        *({"channels": channels} for channels in ([3, 5], [3, "x"], [3, 0], [10**15] * 3)),
        *({"channels": [3, 4], "strides": strides} for strides in ([1], [1, 1, 1], [0, 1], [1, "x"], [[1], 1], 1, [1, 3], [2, 2])),
        {},
        [],
    ],
    ids=str,
)
def test_a_damaged_encoder_is_refused(encoder, tmp_path):
    image_student(IMAGE, ACTED[0]).save(tmp_path)
    description = tmp_path / "student.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "encoder": encoder}))
    with pytest.raises(RequestError, match="write it again"):
        Student.load(tmp_path)
