"""policy.onnx in onnxruntime: the student's actions, outputs and states, for every kind of student."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import RequestError
from policy_distill.export import onnx as onnx_format
from policy_distill.export.folded import fold_student
from tests.export.alike import assert_alike, decisions_of, in_batches, rows_for
from tests.export.kinds import ARCHITECTURES, student_of
from tests.small_worlds import random_student

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
COUNT = 300


def exported(student, folder):
    folded = fold_student(student)
    onnx_format.write(folded, folder)
    return onnx_format.load(folder, folded)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_decides_like_the_student(name, tmp_path):
    student = student_of(name)
    runner = exported(student, tmp_path)
    observations, rows = rows_for(student, COUNT)
    found = runner(rows.seen, rows.states)
    assert_alike(student, found, decisions_of(student, observations, rows.states))
    # a row's decision does not depend on the others, bit for bit
    for whole, part in zip(found, in_batches(runner, rows, 7), strict=True):
        np.testing.assert_array_equal(whole, part)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batches_of_any_size_decide_alike(name, tmp_path):
    student = student_of(name)
    exported(student, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5, COUNT):
        observations, rows = rows_for(student, count)
        fed = [*rows.seen.values(), *([rows.states] if student.memory else [])]
        names = [value.name for value in session.get_inputs()]
        assert names[: len(rows.seen)] == list(rows.seen)
        actions, outputs, *after = session.run(None, dict(zip(names, fed, strict=True)))
        expected = decisions_of(student, observations, rows.states)
        if count == COUNT:
            assert_alike(student, (actions, outputs, after[0] if after else rows.states), expected)
        else:
            np.testing.assert_allclose(outputs, expected[1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["vector", "parts", "image_in_parts", "masked_bits", "units"])
def test_the_reference_implementation_of_onnx_agrees(name, tmp_path):
    # onnxruntime and this test would share a misreading of the operators; ONNX's own evaluator does not
    from onnx.reference import ReferenceEvaluator

    student = student_of(name)
    exported(student, tmp_path)
    evaluator = ReferenceEvaluator(onnx.load(tmp_path / "policy.onnx"))
    observations, rows = rows_for(student, 20)
    fed = [*rows.seen.values(), *([rows.states] if student.memory else [])]
    found: Any = evaluator.run(None, dict(zip(evaluator.input_names, fed, strict=True)))
    actions, outputs, *after = found
    assert_alike(student, (actions, outputs, after[0] if after else rows.states), decisions_of(student, observations, rows.states))


def test_the_metadata_say_what_goes_in_and_comes_out(tmp_path):
    student = student_of("units")
    exported(student, tmp_path)
    model = onnx.load(tmp_path / "policy.onnx")
    assert [value.name for value in model.graph.input] == ["observation"]
    assert [value.name for value in model.graph.output] == ["action", "outputs"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    found = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert found["observation"] == {"observation": {"shape": [4], "dtype": "float32"}}
    assert found["action"] == {
        "name": "action", "kind": "box", "shape": [2, 1], "dtype": "float32", "low": ["-inf", "-inf"], "high": ["inf", "inf"]
    }  # fmt: skip
    np.testing.assert_allclose(found["outputs"]["log_std"], student.log_std)
    assert (found["outputs"]["scale"], found["outputs"]["offset"]) == ([0.5, 3.0], [1.0, -2.0])
    exported(student_of("memory"), tmp_path)
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert found["state"] == {"input": "state", "output": "next_state", "units": 5, "initial": 0}
    assert found["action"]["starts"] == [2]


def test_parts_of_the_observation_may_have_any_name(tmp_path, monkeypatch):
    # keys of a Dict that are names of outputs, of the state or of inner values elsewhere
    keys = ("state", "action", "outputs", "next_state", "v0", "c0", "a b/c")
    space = gym.spaces.Dict({key: gym.spaces.Box(-1, 1, (2,)) for key in keys})
    monkeypatch.setitem(ARCHITECTURES, "named", dataclasses.replace(ARCHITECTURES["memory"], observation_space=space))
    student = student_of("named")
    runner = exported(student, tmp_path)
    observations, rows = rows_for(student, COUNT)
    assert_alike(student, runner(rows.seen, rows.states), decisions_of(student, observations, rows.states))
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert found["state"]["input"] == "state_"


def test_a_part_that_is_not_read_is_still_an_input(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "unread", dataclasses.replace(ARCHITECTURES["some_parts"], columns=(1, 5)))
    student = student_of("unread")
    runner = exported(student, tmp_path)
    observations, rows = rows_for(student, 100)
    assert_alike(student, runner(rows.seen, rows.states), decisions_of(student, observations, rows.states))


def test_a_small_policy_is_a_small_file(tmp_path):
    # 64x64 units: 4,610 numbers of 4 bytes, and less than 800 bytes beside them
    student = random_student(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Discrete(2), hidden_sizes=(64, 64))
    exported(student, tmp_path)
    assert 4 * 4610 < (tmp_path / "policy.onnx").stat().st_size < 4 * 4610 + 800


def test_another_student_s_policy_is_refused(tmp_path):
    exported(student_of("vector"), tmp_path)
    for other, what in (("tanh", "output"), ("parts", "input"), ("memory", "input")):
        with pytest.raises(RequestError, match=rf"policy\.onnx cannot be read .*its {what}s are"):
            onnx_format.load(tmp_path, fold_student(student_of(other)))


def test_a_damaged_file_is_refused(tmp_path):
    folded = fold_student(student_of("vector"))
    for content in (b"", b"no model", (exported(student_of("vector"), tmp_path), (tmp_path / "policy.onnx").read_bytes()[:-40])[1]):
        (tmp_path / "policy.onnx").write_bytes(content)
        with pytest.raises(RequestError, match=r"policy\.onnx cannot be read .*: export the student again"):
            onnx_format.load(tmp_path, folded)


@pytest.mark.parametrize("foreign", ["Loop", "Mine", "external"])
def test_a_model_with_anything_else_is_refused(foreign, tmp_path):
    exported(student_of("vector"), tmp_path)
    model = onnx.load(tmp_path / "policy.onnx")
    if foreign == "external":
        tensor = model.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")
    else:
        domain = "" if foreign == "Loop" else "evil.example"
        model.graph.node.append(onnx.helper.make_node(foreign, ["observation"], ["extra"], domain=domain))
    (tmp_path / "policy.onnx").write_bytes(model.SerializeToString())
    message = {"Loop": "it holds Loop", "Mine": "it holds evil.example", "external": "its weights are in another file"}[foreign]
    with pytest.raises(RequestError, match=message):
        onnx_format.load(tmp_path, fold_student(student_of("vector")))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_command(package, tmp_path, monkeypatch):
    folded = fold_student(student_of("vector"))
    onnx_format.write(folded, tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    for call in (onnx_format.write, onnx_format.load):
        with pytest.raises(RequestError, match=rf"need {package}: pip install 'policy-distill\[export\]'"):
            call(*((folded, tmp_path) if call is onnx_format.write else (tmp_path, folded)))
