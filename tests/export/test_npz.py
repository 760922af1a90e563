"""The plain form of a student, executed in numpy: the same outputs, actions and states as the student's."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policy_distill.config import RequestError
from policy_distill.environments.action_masks import with_mask
from policy_distill.export import npz
from policy_distill.export.artefact import by_name
from policy_distill.export.folded import MASK_NAME, fold_student
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.support.trees import map_leaves, to_tensors
from tests.export.kinds import ARCHITECTURES, observations_of, student_of

COUNT = 200


def reference(student, observations, memory):
    """Actions, outputs and state of the torch student for independent rows."""
    with torch.inference_mode():
        seen = to_tensors(observations)
        if student.memory is None:
            outputs, after = student(seen), torch.zeros(COUNT, 0)
        else:
            sequence, after = student.unroll(map_leaves(lambda leaf: leaf[None], seen), torch.from_numpy(memory))
            outputs = sequence[0]
        return student.for_environment(student.family.mode(student.distribution(outputs))), outputs.numpy(), after.numpy()


@pytest.mark.parametrize("folded_in", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_as_arrays_decides_alike(name, folded_in, tmp_path):
    student = student_of(name)
    folded = fold_student(student)
    assert folded.params == student.params
    if folded_in:
        if not folded.normalization_folds:
            with pytest.raises(ValueError, match="does not fold"):
                folded.with_folded_normalization()
            return
        folded = folded.with_folded_normalization()
    npz.write(folded, tmp_path)
    runner = npz.load(tmp_path, folded)
    observations = observations_of(student.observation_space, COUNT)
    memory = np.random.default_rng(0).normal(size=(COUNT, student.architecture.memory)).astype(np.float32)
    actions, outputs, after = runner(by_name(observations), memory)
    expected_actions, expected_outputs, expected_after = reference(student, observations, memory)
    assert len(np.unique(actions, axis=0)) > 1
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(after, expected_after, rtol=1e-4, atol=2e-5)
    assert actions.dtype == folded.rule.dtype
    assert actions.shape == expected_actions.shape
    if folded.rule.kind == "box":
        np.testing.assert_allclose(actions, expected_actions, rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_array_equal(actions, expected_actions)


def test_multiply_adds_are_counted_by_hand():
    # 4 * 8 + 8 * 6 + 6 * 3
    assert fold_student(student_of("vector")).multiply_adds == 98
    # GRU: 3 * 5 * (4 + 5); head: 5 * 6 + 6 * 3
    assert fold_student(student_of("memory")).multiply_adds == 135 + 48
    # 14x16 pixels: kernel 4, stride 2 -> 6x7, 3 channels to 4; then kernel 3, stride 1 -> 4x5, 4 to 3; head: 60 * 8 + 8 * 3
    assert fold_student(student_of("image")).multiply_adds == 6 * 7 * 4 * 3 * 16 + 4 * 5 * 3 * 4 * 9 + 504


def test_arrays_of_another_student_are_refused(tmp_path):
    # layers of 8 and 6 units where 8 and 7 are expected
    npz.write(fold_student(student_of("vector")), tmp_path)
    with pytest.raises(RequestError, match=r"policy\.npz cannot be read .*layers\.1\.weight"):
        npz.load(tmp_path, fold_student(Student(dataclasses.replace(ARCHITECTURES["vector"], hidden_sizes=(8, 7)))))
    (tmp_path / npz.FILE).write_bytes(b"no zip")
    with pytest.raises(RequestError, match=r"policy\.npz cannot be read"):
        npz.load(tmp_path, fold_student(student_of("vector")))


def test_a_part_with_the_name_of_the_mask_is_refused():
    seen = spaces.Dict(OrderedDict([(MASK_NAME, spaces.Box(-1.0, 1.0, (2,)))]))
    with pytest.raises(RequestError, match="has a part 'action_mask', which is the name of the mask in an export"):
        fold_student(Student(Architecture(with_mask(seen, spaces.Discrete(3)), spaces.Discrete(3), ())))
