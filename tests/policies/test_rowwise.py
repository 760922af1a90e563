"""A row's answer has the same bits wherever it stands, whatever stands beside it, and however many rows there are, on several kernels."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from policy_distill.policies.reading_layers import Divide, SideBySide
from policy_distill.policies.rowwise import ONE_THREAD, Layers, one_by_one, product
from policy_distill.teachers.networks.rebuild import ACTIVATIONS
from tests.kernels import KERNELS, run_on

ROWS = 16
WIDTHS = [*range(1, 20), 24, 31, 32, 33, 64, 65, 96, 128, 255, 256, 300, 376, 400]


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def depends_on_more_than_its_row(make: Callable[[int], Callable[[np.ndarray], np.ndarray]], inputs: int) -> bool:
    """Whether what ``make(rows)`` answers about a row changes with its place, its neighbours, their number, or its address in memory."""
    rows = draws(ROWS, inputs)
    expected = make(ROWS)(rows.copy()).copy()
    order = np.random.default_rng(inputs).permutation(ROWS)
    among = np.concatenate([draws(7, inputs, seed=1), rows, draws(3, inputs, seed=2)])
    moved = np.empty(rows.size + 3, np.float32)[3:].reshape(rows.shape)
    moved[:] = rows
    alone = make(1)
    return not (
        np.array_equal(make(ROWS)(rows[order])[np.argsort(order)], expected)
        and np.array_equal(make(len(among))(among.copy())[7:23], expected)
        and np.array_equal(make(ROWS)(moved), expected)
        and all(np.array_equal(alone(rows[row : row + 1].copy())[0], expected[row]) for row in (0, 6, 15))
    )


def shaky_products() -> list[tuple[int, int]]:
    """Shapes of weights at which a product depends on more than its row."""
    found = []
    for inputs, outputs in itertools.product(WIDTHS, WIDTHS):
        weight, bias = torch.from_numpy(draws(outputs, inputs)).t(), torch.from_numpy(draws(outputs))
        if depends_on_more_than_its_row(lambda rows, weight=weight, bias=bias: product(weight, bias, rows), inputs):  # type: ignore[misc]
            found.append((inputs, outputs))
    return found


def shaky_activations() -> list[str]:
    """Activations whose elements depend on where they lie."""
    return [
        f"{name} {width}"
        for name in ACTIVATIONS
        for width in (*range(1, 10), 15, 16, 17, 31, 64, 67, 256)
        if depends_on_more_than_its_row(lambda rows, name=name: Layers(getattr(nn, name)(), rows), width)  # type: ignore[misc]
    ]


CONVOLUTIONS = ((4, 84, 84, 32, 8, 4), (3, 40, 36, 16, 8, 4), (32, 20, 20, 64, 4, 2), (4, 10, 10, 16, 3, 1), (6, 10, 10, 3, 3, 1),
                (2, 6, 6, 4, 3, 1), (1, 7, 5, 5, 3, 2), (64, 9, 9, 64, 3, 1))  # fmt: skip
"""Channels, height and width, outputs, kernel and stride."""


def convolving(channels: int, height: int, width: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Images ``[B, C * H * W]`` to ``[B, features]``."""
    layer = nn.Conv2d(channels, outputs, kernel, stride)
    layer.weight.data, layer.bias.data = torch.from_numpy(draws(*layer.weight.shape)), torch.from_numpy(draws(outputs))  # type: ignore[union-attr]
    return nn.Sequential(nn.Unflatten(1, (channels, height, width)), layer, nn.ReLU(), nn.Flatten())


def shaky_convolutions() -> list[tuple[int, ...]]:
    """Shapes of images and kernels at which a convolution depends on more than its row."""
    return [
        sizes
        for sizes in CONVOLUTIONS
        if depends_on_more_than_its_row(
            lambda rows, sizes=sizes: Layers(convolving(*sizes), rows),  # type: ignore[misc]
            int(np.prod(sizes[:3])),
        )
    ]


def report() -> str:
    """What is found with the kernels of this process, and a digest of what they compute."""
    torch.set_num_threads(1)
    weight = torch.from_numpy(draws(64, 96))
    products = product(weight.t(), None, ROWS)(draws(ROWS, 96)), (weight @ weight.t()).numpy()
    bits = [*products, np.tanh(draws(100, 100)), torch.tanh(weight).numpy()]
    digest = hashlib.sha256(b"".join(part.tobytes() for part in bits)).hexdigest()
    return json.dumps(
        {"products": shaky_products(), "activations": shaky_activations(), "convolutions": shaky_convolutions(), "digest": digest}
    )


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, object]]:
    return {
        kernel: json.loads(run_on(kernel, "-c", "from tests.policies.test_rowwise import report; print(report())")) for kernel in KERNELS
    }


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("what", ["products", "activations", "convolutions"])
def test_a_row_s_result_depends_on_that_row_alone(reports, kernel, what):
    assert reports[kernel][what] == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are those of x86 processors")
def test_the_kernels_differ(reports):
    assert len({report["digest"] for report in reports.values()}) > 1


def test_one_product_of_all_rows_would_fail():
    """On the kernel of processors with AVX2, the very first bits differ."""
    code = (
        "import torch, tests.policies.test_rowwise as t\n"
        "t.product, t.WIDTHS = lambda weight, bias, rows: lambda values: values @ weight.numpy() + bias.numpy(), [3, 6, 8, 17, 64]\n"
        "print(len(t.shaky_products()))"
    )
    assert int(run_on("avx2", "-c", code)) > 10


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 8), (8, 3), (96, 96), (256, 256), (400, 300), (17, 1), (1, 17), (ONE_THREAD + 5, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_right(inputs, outputs, bias):
    """In one piece and in several, whichever way the weights lie."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    values = draws(5, inputs)
    found = product(linear.weight.t(), linear.bias, 5)(values)
    np.testing.assert_allclose(found, linear(torch.from_numpy(values)).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
def test_convolutions_are_right(sizes):
    """Whichever way the images lie in memory; what they are asked about stays as it is."""
    network, images = convolving(*sizes), draws(5, *sizes[:3])
    with torch.inference_mode():
        expected = network(torch.from_numpy(images).flatten(1)).numpy()
    before, layers = images.copy(), Layers(network, 5)
    np.testing.assert_allclose(layers(images.reshape(5, -1)), expected, rtol=1e-3, atol=1e-4)
    turned = images.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(Layers(network[1:], 5)(turned), layers(images.reshape(5, -1)))
    np.testing.assert_array_equal(images, before)


def test_a_convolution_with_padding_is_left_to_torch():
    network, images = nn.Conv2d(2, 3, 3, padding=1), draws(4, 2, 6, 6)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(Layers(network, 4)(images), expected, rtol=1e-4, atol=1e-5)


def test_networks_side_by_side():
    network = SideBySide((2, 3, 4), [nn.Linear(2, 5), nn.Sequential(), nn.Sequential(nn.Linear(4, 2), nn.Tanh())])
    values = draws(6, 9)
    layers = Layers(nn.Sequential(Divide(torch.full((9,), 3.0)), network), 6, name="body", recorded={"body.1.networks.2.0": "inner"})
    with torch.inference_mode():
        expected = network(torch.from_numpy(values) / 3).numpy()
    np.testing.assert_allclose(layers(values), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.tanh(layers.seen["inner"]), expected[:, 8:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torch_s_and_do_not_overflow(name):
    values = np.concatenate([draws(4, 50), np.linspace(-200, 200, 50, dtype=np.float32)[None]])
    network = nn.Sequential(nn.Linear(50, 50), nn.Sequential(getattr(nn, name)(), nn.Linear(50, 3, bias=False)))
    with torch.inference_mode():
        expected = network(torch.from_numpy(values)).numpy()
    before = values.copy()
    np.testing.assert_allclose(Layers(network, 5)(values), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(values, before)


def test_one_module_may_be_used_twice():
    tanh = nn.Tanh()
    network, values = nn.Sequential(nn.Linear(3, 4), tanh, nn.Linear(4, 2), tanh), draws(5, 3)
    np.testing.assert_allclose(Layers(network, 5)(values), network(torch.from_numpy(values)).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_recorded_layers_keep_what_they_returned():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    layers = Layers(network, 5, name="body", recorded={"body.0": "first", "body.1": "second"})
    layers(draws(5, 3))
    assert layers.seen.keys() == {"first", "second"}
    np.testing.assert_array_equal(np.tanh(layers.seen["first"]), layers.seen["second"])


def test_one_by_one_asks_about_each_row_at_a_boundary_of_64_bytes():
    seen = []

    def ask(row: np.ndarray) -> np.ndarray:
        seen.append((row.shape, row.ctypes.data % 64))
        return 2 * row

    values = draws(5, 3)
    np.testing.assert_array_equal(one_by_one(ask, values), 2 * values)
    assert seen == [((1, 3), 0)] * 5


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Tanh(), nn.Linear(3, 2)],
        [nn.Flatten(), nn.ReLU(), nn.Linear(3, 2)],
        [nn.Identity(), nn.Hardtanh()],
        [SideBySide([1, 2], [nn.ReLU(), nn.Tanh()])],
    ],
)
def test_a_network_that_begins_with_an_activation_leaves_its_input_unchanged(layers: list[nn.Module]) -> None:
    """The input may be the environment's observation, which is stored after the network has read it."""
    network = nn.Sequential(*layers)
    values = np.array([[-2.0, 0.5, 3.0]], np.float32)
    outputs = Layers(network, 1)(values)
    np.testing.assert_array_equal(values, [[-2.0, 0.5, 3.0]])
    with torch.no_grad():
        np.testing.assert_allclose(outputs, network(torch.from_numpy(values)).numpy(), rtol=1e-5)
