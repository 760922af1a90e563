"""policy.onnx in 8 bits: close to the student on the states that it was calibrated on and on others like them."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.export import onnx as onnx_format
from policy_distill.export import onnx_int8
from policy_distill.export.folded import fold_student
from policy_distill.policies import quantization
from tests.export.alike import decisions_of, in_batches, rows_for, tied
from tests.export.kinds import ARCHITECTURES, student_of
from tests.small_worlds import random_student

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def exported(student, folder):
    folded, (_, visited) = fold_student(student), rows_for(student, 1500, seed=1)
    onnx_int8.write(folded, folder, visited)
    return onnx_int8.load(folder, folded)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_stay_within_a_twentieth_of_their_spread(name, tmp_path):
    student = student_of(name)
    runner = exported(student, tmp_path)
    observations, rows = rows_for(student, 300)
    found, expected = runner(rows.seen, rows.states), decisions_of(student, observations, rows.states)
    free, rule = np.abs(expected[1]) < 1e6, fold_student(student).rule
    np.testing.assert_array_equal(found[1][~free], expected[1][~free])  # forbidden actions
    spread = expected[1][free].std()
    assert 0 < np.sqrt(np.mean((found[1] - expected[1])[free] ** 2)) < 0.05 * spread
    np.testing.assert_allclose(found[2], expected[2], atol=0.1)
    if rule.kind == "box":
        assert np.abs(found[0] - expected[0]).mean() < 0.05 * np.std(expected[0])
    else:
        clear = ~tied(rule, expected[1], 0.2 * spread)
        assert clear.mean() > 0.4
        np.testing.assert_array_equal(found[0][clear], expected[0][clear])
    for whole, part in zip(found, in_batches(runner, rows, 7), strict=True):
        np.testing.assert_array_equal(whole, part)


def test_weights_take_a_quarter_of_the_bytes(tmp_path):
    # 17 inputs, 256x256 units, 6 actions: 71,424 weights of 1 byte; biases and scales of 518 outputs
    student = random_student(gym.spaces.Box(-5, 5, (17,)), gym.spaces.Box(-1, 1, (6,)), hidden_sizes=(256, 256))
    exported(student, tmp_path)
    size = (tmp_path / "policy.onnx").stat().st_size
    assert 71_424 + 518 * 8 < size < 0.28 * 4 * (71_424 + 518)


def test_weights_that_were_trained_in_8_bits_are_not_rounded_again(tmp_path):
    # without a hidden layer only the weights are rounded, and here they are already
    student = random_student(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Box(-1, 1, (2,)), hidden_sizes=())
    student.linears[0].weight.copy_(quantization.rounded(student.linears[0].weight, 8))
    observations, rows = rows_for(student, 50)
    found, expected = exported(student, tmp_path)(rows.seen, rows.states), decisions_of(student, observations, rows.states)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)
    # and with one, its weights are those of the student, too
    student = random_student(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Box(-1, 1, (2,)), hidden_sizes=(8,))
    exact = [layer.weight.copy_(quantization.rounded(layer.weight, 8)).numpy() for layer in student.linears]
    exported(student, tmp_path)
    model = onnx.load(tmp_path / "policy.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for weight in exact:
        stored = [
            (constants[codes].astype(np.float32) - (128 if zero else 0)) * constants[scale][:, None]
            for node in model.graph.node
            if node.op_type == "DequantizeLinear"
            for codes, scale, *zero in [node.input]
            if codes in constants and constants[codes].shape == weight.shape
        ]
        np.testing.assert_array_equal(stored, [weight])


def test_what_comes_from_observations_is_not_rounded(tmp_path):
    # ten times the range of the calibration: rounded to 8 bits in the old range, such an input would be cut off
    student = random_student(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Box(-1, 1, (2,)), hidden_sizes=())
    runner = exported(student, tmp_path)
    _, rows = rows_for(student, 50)
    far = {"observation": 10 * rows.seen["observation"]}
    expected = decisions_of(student, far["observation"], rows.states)[1]
    np.testing.assert_allclose(runner(far, rows.states)[1], expected, atol=0.01 * np.abs(expected).max())


def test_inputs_outputs_and_metadata_are_those_of_the_float_format(tmp_path):
    student = student_of("masked_bits")
    exported(student, tmp_path)
    quantized = onnx.load(tmp_path / "policy.onnx")
    onnx_format.write(fold_student(student), tmp_path)
    plain = onnx.load(tmp_path / "policy.onnx")
    assert (quantized.graph.input, quantized.graph.output) == (plain.graph.input, plain.graph.output)
    assert [entry.key for entry in quantized.metadata_props] == ["observation", "action", "outputs", "state"]
    assert quantized.metadata_props == plain.metadata_props
    assert json.loads(plain.metadata_props[-1].value)["units"] == 4
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 for tensor in quantized.graph.initializer)


@pytest.mark.parametrize("count", [None, 0])
def test_without_states_nothing_is_calibrated(count, tmp_path):
    student = student_of("vector")
    visited = None if count is None else rows_for(student, 1)[1].rows(slice(0))
    with pytest.raises(ValueError, match="there are none"):
        onnx_int8.write(fold_student(student), tmp_path, visited)
    assert not list(tmp_path.iterdir())
