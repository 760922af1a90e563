"""Networks in numpy whose result for a row depends on that row alone.

The rounding of a row in a matrix product depends on its position, the batch size and the processor. In a chaotic environment a difference
in the last bit leads to a different return. Here each row is multiplied by a separate call of constant shape, so that results do not depend
on the number of environments and processes, nor on an environment's position. With 16 rows and layers of 64 units that takes a quarter
longer than one product, with 256 units 1.6 times as long: 0.04 and 1 us more for each row.

All operations between the products are either rounded correctly (sums, products, quotients, comparisons) or numpy functions, which compute
each element in the same way at every position. torch may compute the last elements of an array by different code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from policy_distill.policies.reading_layers import Divide, Permute, SideBySide
from policy_distill.support.trees import Tree, blocks, map_leaves

Function: TypeAlias = Callable[[np.ndarray], np.ndarray]

ONE_THREAD = 2304 * 4
"""OpenBLAS multiplies a vector and a matrix with fewer elements than this in one thread (``interface/gemv.c``). Above it the rounding
depends on the number of threads, and waking them takes longer than the product."""
ONE_THREAD_OF_MATRICES = 65536 * 4
"""The same limit for two matrices: rows times inner size times columns (``interface/gemm.c``)."""

SHARING = (nn.Flatten, nn.Unflatten, nn.Identity, Permute)
"""Modules whose results may share memory with their inputs."""
OVERWRITING = (nn.Tanh, nn.ReLU, nn.Hardtanh)
"""Activations that are computed in place; see ``_activation``."""


class Layers:
    """Fully connected layers, convolutions and activations on preallocated arrays.

    Args:
        network: ``nn.Linear``, ``nn.Conv2d`` and modules without weights, which may be nested; other modules run on one row at a time.
        rows: batch size of every call.
        name: name of ``network`` within a larger network.
        recorded: layers whose outputs are recorded: their names within the larger network, and their names in ``seen``.

    Attributes:
        seen: outputs of the recorded layers in the last call, ``[B, width]`` each.
    """

    def __init__(self, network: nn.Module, rows: int, *, name: str = "", recorded: Mapping[str, str] | None = None) -> None:
        self.seen: dict[str, np.ndarray] = {}
        self._steps: list[tuple[Function, str | None]] = []
        modules = list(_inside(network, name))
        first = next((module for _, module in modules if not isinstance(module, SHARING)), None)
        if isinstance(first, OVERWRITING):
            self._steps.append((np.copy, None))  # else it would overwrite the caller's array
        for inner, module in modules:
            step = self._parts(module, rows, inner, recorded) if isinstance(module, SideBySide) else _step(module, rows)
            self._steps.append((step, (recorded or {}).get(inner)))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Outputs ``[B, outputs]``, which the next call overwrites, from ``[B, inputs]`` float32, which are not changed."""
        for step, name in self._steps:
            values = step(values)
            if name is not None:
                self.seen[name] = values.copy()  # the next activation overwrites it
        return values

    def _parts(self, module: SideBySide, rows: int, name: str, recorded: Mapping[str, str] | None) -> Function:
        """Each network applied to its columns."""
        indexed = enumerate(module.networks)
        networks = [Layers(network, rows, name=f"{name}.networks.{index}", recorded=recorded) for index, network in indexed]
        ends = np.cumsum(module.widths)[:-1]

        def apply(values: np.ndarray) -> np.ndarray:
            features = [network(part) for network, part in zip(networks, np.split(values, ends, axis=1), strict=True)]
            for network in networks:
                self.seen |= network.seen
            return np.concatenate(features, axis=1)

        return apply


def _step(module: nn.Module, rows: int) -> Function:
    match module:
        case nn.Linear():
            return product(module.weight.t(), module.bias, rows)
        case nn.Conv2d(padding=(0, 0), dilation=(1, 1), groups=1):
            return convolution(module, rows)
        case nn.Flatten(start_dim=1, end_dim=-1):
            return lambda values: values.reshape(rows, -1)
        case nn.Unflatten(dim=1, unflattened_size=shape):
            return lambda values: values.reshape(rows, *shape)
        case Permute(dims=dims):
            return lambda values: values.transpose(dims)
        case nn.Identity():
            return lambda values: values
        case Divide(divisor=divisor):
            numbers = divisor.numpy()
            return lambda values: np.divide(values, numbers)
    return _activation(module)


def _inside(network: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules in order of application; nested ``nn.Sequential`` and modules with a list ``steps`` are flattened."""
    if isinstance(network, nn.Sequential):
        for key, part in network._modules.items():  # named_children skips repeated modules
            assert part is not None
            yield from _inside(part, f"{name}.{key}" if name else key)
    elif isinstance(steps := getattr(network, "steps", None), list):
        yield from ((f"{name}.{inner}", module) for inner, module in steps)
    else:
        yield name, network


def product(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> Function:
    """An affine map from ``[rows, inputs]`` to ``[rows, outputs]``, in an array that the next call overwrites.

    Args:
        weight: ``[inputs, outputs]``.
        bias: ``[outputs]``, or None.
        rows: batch size of every call.
    """
    matrix, (inputs, outputs) = weight.detach().numpy(), weight.shape
    shift = None if bias is None else bias.detach().numpy()
    result = np.empty((rows, outputs), np.float32)
    width = max((ONE_THREAD - 1) // inputs // 4 * 4, 1)  # kernels compute four outputs at once
    # OpenBLAS is faster with contiguous inputs if there are many of them, else with contiguous outputs.
    arrange = np.asfortranarray if inputs > 2 * outputs or outputs > width else np.ascontiguousarray
    parts = [(arrange(matrix[:, start : start + width]), result[:, None, start : start + width]) for start in range(0, outputs, width)]

    def multiply(values: np.ndarray) -> np.ndarray:
        vectors = values[:, None, :]  # numpy multiplies a stack of matrices one by one
        for part, out in parts:
            np.matmul(vectors, part, out=out)
        return result if shift is None else np.add(result, shift, out=result)

    return multiply


def convolution(module: nn.Conv2d, rows: int) -> Function:
    """A convolution of ``[rows, channels, height, width]``, in any memory order; the next call overwrites the result.

    The pixels under each kernel position are copied into a matrix (im2col), which is multiplied for each row separately, by products of
    constant shapes.
    """
    kernel, stride = module.kernel_size, module.stride
    matrix = np.ascontiguousarray(module.weight.detach().permute(2, 3, 1, 0).reshape(-1, module.out_channels).numpy())
    shift = None if module.bias is None else module.bias.detach().numpy()
    step = max(ONE_THREAD_OF_MATRICES // matrix.size, 1)
    buffers: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def allocate(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Buffers for the patches of one row ``[height, width, *kernel, channels]`` and for the results ``[rows, positions, outputs]``."""
        height, width = ((size - one) // by + 1 for size, one, by in zip(shape[1:], kernel, stride, strict=True))
        patches = np.empty((height, width, *kernel, shape[0]), np.float32)
        return patches, np.empty((rows, height * width, module.out_channels), np.float32)

    def convolve(values: np.ndarray) -> np.ndarray:
        shape = values.shape[1:]
        if shape not in buffers:
            buffers[shape] = allocate(shape)
        patches, result = buffers[shape]
        pixels = values.transpose(0, 2, 3, 1)
        row, down, right, channel = pixels.strides
        strides = (row, down * stride[0], right * stride[1], down, right, channel)
        windows = np.lib.stride_tricks.as_strided(pixels, (rows, *patches.shape), strides, writeable=False)
        flat = patches.reshape(len(result[0]), -1)
        for window, out in zip(windows, result, strict=True):
            patches[...] = window
            for first in range(0, len(flat), step):
                np.matmul(flat[first : first + step], matrix, out=out[first : first + step])
        if shift is not None:
            np.add(result, shift, out=result)
        return result.reshape(rows, *patches.shape[:2], -1).transpose(0, 3, 1, 2)

    return convolve


def _activation(module: nn.Module) -> Function:
    """The activation in numpy, in place where possible: its input is a buffer of the previous layer."""
    match module:
        case nn.Tanh():
            return lambda values: np.tanh(values, out=values)
        case nn.ReLU():
            return lambda values: np.maximum(values, np.float32(0), out=values)
        case nn.Hardtanh(min_val=low, max_val=high):
            return lambda values: np.clip(values, low, high, out=values)
        case nn.ELU(alpha=alpha):
            return lambda values: np.maximum(values, 0) + np.float32(alpha) * np.expm1(np.minimum(values, 0))
        case nn.SiLU():
            half = np.float32(0.5)  # x * sigmoid(x) without an exponential that overflows
            return lambda values: half * values * (1 + np.tanh(half * values))
    return lambda values: one_by_one(lambda row: module(torch.from_numpy(row)).numpy(), values)


def one_by_one(function: Callable[[Tree], np.ndarray], values: Tree) -> np.ndarray:
    """The results of ``function`` for each row ``[1, ...]`` of ``values`` ``[B, ...]``, concatenated.

    Each row is copied into memory that torch aligns to 64 bytes: kernels may round differently on other alignments.
    """
    return np.concatenate([function(map_leaves(lambda leaf: torch.tensor(leaf).numpy(), part)) for part in blocks(values, 1)])
