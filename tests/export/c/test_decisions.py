"""The C computes what the student computes in float32, and what its own integers say in fixed point, bit for bit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from policy_distill.export import c, npz
from policy_distill.export.c import fixed
from policy_distill.export.c.fixed import FixedNetwork
from policy_distill.export.c.floating import FloatNetwork
from policy_distill.export.folded import Dense, Folded, Normalization
from policy_distill.export.runner import Visited
from policy_distill.policies.quantization import rounded
from tests.export.c.worlds import COUNT, folded_of, needs_compiler, numbers_of, visited_of, written
from tests.export.kinds import ARCHITECTURES

FORBIDDEN = 1e7
"""Logits beyond this are those of a mask."""


@needs_compiler
@pytest.mark.parametrize("bits", [None, 8, 4, 3, 2])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_c_computes_its_reference_bit_for_bit(name, bits, tmp_path):
    folded, visited = folded_of(name), visited_of(name, seed=1)
    runner, reference = c.load(written(name, tmp_path, bits), folded), c.reference(folded, numbers_of(name), bits)
    for one, other in zip(runner(visited.seen, visited.states), reference(visited.seen, visited.states), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_computes_what_the_student_does(name):
    # npz.NumpyRunner is compared with the student itself in tests/export/test_npz.py
    folded, visited = folded_of(name), visited_of(name, seed=1)
    actions, outputs, states = FloatNetwork(folded)(visited.seen, visited.states)
    same_actions, same_outputs, same_states = npz.NumpyRunner(folded)(visited.seen, visited.states)
    np.testing.assert_allclose(outputs, same_outputs, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(states, same_states, rtol=1e-4, atol=2e-5)
    assert (actions.shape, actions.dtype) == (same_actions.shape, same_actions.dtype)
    if folded.rule.kind == "box":
        np.testing.assert_allclose(actions, same_actions, rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_array_equal(actions, same_actions)


def with_rounded_weights(folded: Folded, bits: int) -> Folded:
    """The same network in floating point, its weights rounded as an export rounds them."""

    def of(weight: np.ndarray) -> np.ndarray:
        flat = torch.from_numpy(np.ascontiguousarray(weight.reshape(len(weight), -1)))
        return rounded(flat, bits).numpy().reshape(weight.shape)

    inputs = tuple(
        dataclasses.replace(part, convolutions=tuple(dataclasses.replace(layer, weight=of(layer.weight)) for layer in part.convolutions))
        for part in folded.inputs
    )
    gru = folded.memory
    memory = gru and dataclasses.replace(gru, inputs=of(gru.inputs), recurrent=of(gru.recurrent))
    return dataclasses.replace(
        folded, inputs=inputs, memory=memory, layers=tuple(Dense(of(layer.weight), layer.bias) for layer in folded.layers)
    )


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fixed_point_loses_next_to_nothing_beside_the_weights_rounding(name, bits):
    folded, visited = with_rounded_weights(folded_of(name), bits), visited_of(name)
    numbers = c.measure(folded, visited)
    _, outputs, states = FixedNetwork(folded, bits, numbers["ranges"])(visited.seen, visited.states)
    _, exact, exact_states = FloatNetwork(folded, folds=False)(visited.seen, visited.states)
    allowed = np.abs(exact) < FORBIDDEN
    np.testing.assert_array_equal(outputs[~allowed], exact[~allowed])
    assert np.abs(outputs - exact)[allowed].max() <= 0.004 * max(1.0, np.abs(exact)[allowed].max())
    np.testing.assert_allclose(states, exact_states, atol=0.002)


@needs_compiler
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", ["vector", "tanh", "elu", "silu", "memory", "far"])
def test_inputs_beyond_the_calibrated_range_are_limited_alike(name, bits, tmp_path):
    folded = folded_of(name)
    (part,) = folded.inputs
    draws = np.random.default_rng(2)
    extreme = (draws.normal(size=(COUNT, *part.shape)) * 10.0 ** draws.uniform(-3, 30, (COUNT, *part.shape))).astype(np.float32)
    extreme[:3] = np.array([np.inf, -np.inf, np.nan], np.float32).reshape(3, *[1] * len(part.shape))
    seen = {part.name: extreme.astype(part.dtype)}
    states = visited_of(name).states
    runner, reference = c.load(written(name, tmp_path, bits), folded), c.reference(folded, numbers_of(name), bits)
    for one, other in zip(runner(seen, states), reference(seen, states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("name", ["vector", "image", "image_in_parts", "memory", "masks"])
def test_no_sum_leaves_its_31_bits_whatever_the_input(name, bits):
    network = FixedNetwork(folded_of(name), bits, numbers_of(name)["ranges"])
    layers = [*network.layers, *network.gates, *(layer for layers in network.convolutions for layer in layers)]
    assert layers
    for layer in layers:
        largest = 32767 if layer.codes.shape[1] < 500 else network.limit
        sums = np.abs(layer.codes).sum(1) * largest
        assert sums.max() < 2**31
        scaled = (sums * layer.multipliers >> layer.shift) + np.abs(layer.biases) * layer.step
        assert scaled.max() < 2**30
        assert layer.multipliers.max() < 2**16
        assert np.abs(layer.biases).max() < (2**11 if network.narrow else 2**15)
        if network.narrow:  # a scale has 4 bits
            assert set(layer.multipliers.tolist()) <= {layer.unit * multiple for multiple in range(17)}
        assert layer.point > layer.fraction or not layer.limit


def test_a_wide_layer_limits_its_inputs_until_its_sums_fit():
    # 20,000 inputs, whose codes of 8 bits are all 127: 20000 * 127 * 845 < 2**31 <= 20000 * 127 * 846
    folded, count = folded_of("vector"), 20_000
    part = dataclasses.replace(folded.inputs[0], shape=(count,))
    normalization = Normalization(columns=np.arange(count), mean=np.zeros(count, np.float32), scale=np.ones(count, np.float32))
    layer = Dense(np.full((2, count), 0.5, np.float32), np.zeros(2, np.float32))
    wide = dataclasses.replace(folded, inputs=(part,), normalizations=(normalization,), layers=(layer,))
    network = FixedNetwork(wide, 8, {"features": 1.0})
    assert network.limit == 845
    seen = {part.name: np.full((1, count), 1e9, np.float32)}
    _, outputs, _ = network(seen, np.zeros((1, 0), np.float32))
    step = 2.0**-network.features
    np.testing.assert_allclose(outputs, 0.5 * count * 845 * step, rtol=1e-3)


@needs_compiler
def test_a_student_that_was_trained_through_the_rounding_keeps_its_weights_exactly(tmp_path):
    trained = with_rounded_weights(folded_of("tanh"), 8)
    numbers = c.measure(trained, visited_of("tanh"))
    for folded, narrow in ((trained, False), (folded_of("tanh"), True)):
        network = FixedNetwork(folded, 8, numbers["ranges"])
        assert network.narrow == narrow
        for layer, exact in zip(network.layers, folded.layers, strict=True):
            scales = np.abs(exact.weight).max(1) / np.abs(layer.codes).max(1)
            error = np.abs(layer.codes * scales[:, None] - exact.weight).max()
            assert (error <= 1e-6) != narrow
    c.write(trained, tmp_path, numbers, bits=8)
    runner, reference, visited = c.load(tmp_path, trained), c.reference(trained, numbers, 8), visited_of("tanh", seed=1)
    for one, other in zip(runner(visited.seen, visited.states), reference(visited.seen, visited.states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bits", [None, 8, 4, 2])
@pytest.mark.parametrize("name", ["vector", "memory", "image_in_parts"])
def test_a_weight_of_zero_stays_zero(name, bits):
    def zeroed(weight: np.ndarray) -> np.ndarray:
        return np.where(np.abs(weight) < np.median(np.abs(weight)), np.float32(0), weight)

    plain = folded_of(name)
    folded = dataclasses.replace(plain, layers=tuple(Dense(zeroed(layer.weight), layer.bias) for layer in plain.layers))
    network = c.reference(folded, numbers_of(name), bits)
    weights = (
        [layer.codes for layer in network.layers]
        if isinstance(network, FixedNetwork)
        else [layer.weight for layer in network.folded.layers]
    )
    for weight, layer in zip(weights, folded.layers, strict=True):
        assert not weight[layer.weight == 0].any()
        assert (layer.weight == 0).sum() == layer.weight.size // 2
    assert folded.nonzero_params == plain.params - sum(layer.weight.size // 2 for layer in plain.layers)


def test_the_curves_of_fixed_point_are_close_everywhere():
    for point in (4, 10, 15, 20):  # steps of 2**-point
        values = np.arange(-9 << point, 9 << point, max((18 << point) // 100_000, 1))
        exact = values / 2**point
        assert np.abs(fixed.tanh(values, point) - 2**15 * np.tanh(exact)).max() <= 6
        assert np.abs(fixed.sigmoid(values, point) - 2**16 / (1 + np.exp(-exact))).max() <= 6
        below = np.abs(values)
        assert np.abs(fixed.vanishing(below, point) + 2**15 * np.expm1(-np.abs(exact))).max() <= 6
    assert fixed.tanh(np.zeros(1, np.int64), 12)[0] == fixed.vanishing(np.zeros(1, np.int64), 12)[0] == 0


@needs_compiler
def test_one_decision_with_little_overhead_is_the_same(tmp_path):
    for name, bits in (("vector", None), ("tanh", 8), ("parts", None), ("discrete", 8)):
        folder = tmp_path / name
        folder.mkdir()
        runner, visited = c.load(written(name, folder, bits), folded_of(name)), visited_of(name)
        actions, _, _ = runner(visited.seen, visited.states)
        for row in range(20):
            parts = [leaf[row] for leaf in visited.seen.values()]
            np.testing.assert_array_equal(runner.act(*parts), actions[row])
            np.testing.assert_array_equal(runner.act(*(part.astype(np.float64) for part in parts)), actions[row])


@needs_compiler
def test_rows_do_not_influence_each_other(tmp_path):
    runner, visited = c.load(written("image_memory", tmp_path, None), folded_of("image_memory")), visited_of("image_memory")
    together = runner(visited.seen, visited.states)
    for row in (0, 7):
        one: Visited = visited.rows(slice(row, row + 1))
        for mine, all_rows in zip(runner(one.seen, one.states), together, strict=True):
            np.testing.assert_array_equal(mine[0], all_rows[row])


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("name", ["tanh", "parts", "image", "memory"])
def test_the_files_follow_from_the_student_and_plain_numbers(name, bits):
    numbers = json.loads(json.dumps(numbers_of(name)))
    assert c.texts(folded_of(name), numbers, bits=bits) == c.texts(folded_of(name), numbers_of(name), bits=bits)
