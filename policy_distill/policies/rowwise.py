"""Networks as numpy operations whose result for a row depends on that row alone.

A matrix product rounds a row differently at another place in the batch, beside other numbers of rows, and on other processors. Over an
episode of a chaotic environment the last bit grows to a different return. Here each row is multiplied by a call of its own, always of the
same shape, so that the number of environments, of processes and the place of an environment among them cannot show. With 16 rows and
layers of 64 units that takes a quarter longer than one product, with 256 units 1.6 times as long: 0.04 and 1 us more for each row.

All operations between the products are either rounded correctly (sums, products, quotients, comparisons) or numpy's own functions, which
compute each element in the same way wherever it lies. torch's may not: they treat the last elements of an array differently.
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
"""OpenBLAS multiplies a vector and a matrix of fewer numbers than this with one thread (``interface/gemv.c``). With more it divides the
work by the number of threads, on which the rounding then depends, and waking them takes longer than the product."""
ONE_THREAD_OF_MATRICES = 65536 * 4
"""The same for two matrices: rows times inner size times columns (``interface/gemm.c``)."""


class Layers:
    """Fully connected layers, convolutions and activations on preallocated arrays.

    Args:
        network: of ``nn.Linear``, ``nn.Conv2d`` and modules without weights, which may be nested; anything else is asked about one row at
            a time.
        rows: B, of every call.
        name: of ``network`` within a larger one.
        recorded: layers whose outputs are kept: their names within the larger network, and what they are called in ``seen``.

    Attributes:
        seen: what the recorded layers returned in the last call, ``[B, width]`` each.
    """

    def __init__(self, network: nn.Module, rows: int, *, name: str = "", recorded: Mapping[str, str] | None = None) -> None:
        self.seen: dict[str, np.ndarray] = {}
        self._steps: list[tuple[Function, str | None]] = []
        for inner, module in _inside(network, name):
            step = self._parts(module, rows, inner, recorded) if isinstance(module, SideBySide) else _step(module, rows)
            self._steps.append((step, (recorded or {}).get(inner)))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """``[B, inputs]`` float32, which stay as they are, to ``[B, outputs]``, which the next call overwrites."""
        for step, name in self._steps:
            values = step(values)
            if name is not None:
                self.seen[name] = values.copy()  # an activation overwrites it
        return values

    def _parts(self, module: SideBySide, rows: int, name: str, recorded: Mapping[str, str] | None) -> Function:
        """Each network on its own columns."""
        named = enumerate(module.networks)
        networks = [Layers(network, rows, name=f"{name}.networks.{index}", recorded=recorded) for index, network in named]
        ends = np.cumsum(module.widths)[:-1]

        def ask(values: np.ndarray) -> np.ndarray:
            features = [network(part) for network, part in zip(networks, np.split(values, ends, axis=1), strict=True)]
            for network in networks:
                self.seen |= network.seen
            return np.concatenate(features, axis=1)

        return ask


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
    """Name and module of what is applied one after the other.

    Nested ``nn.Sequential`` are opened, and modules that list their ``steps`` so.
    """
    if isinstance(network, nn.Sequential):
        for key, part in network._modules.items():  # named_children leaves out a module that was there before
            assert part is not None
            yield from _inside(part, f"{name}.{key}" if name else key)
    elif isinstance(steps := getattr(network, "steps", None), list):
        yield from ((f"{name}.{inner}", module) for inner, module in steps)
    else:
        yield name, network


def product(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> Function:
    """From ``[rows, inputs]`` to ``[rows, outputs]``, in an array that the next call overwrites.

    Args:
        weight: ``[inputs, outputs]``.
        bias: ``[outputs]``.
        rows: of every call.
    """
    matrix, (inputs, outputs) = weight.detach().numpy(), weight.shape
    shift = None if bias is None else bias.detach().numpy()
    result = np.empty((rows, outputs), np.float32)
    width = max((ONE_THREAD - 1) // inputs // 4 * 4, 1)  # kernels take four outputs at once
    # OpenBLAS is faster with the inputs side by side where they are many, with the outputs side by side otherwise.
    arrange = np.asfortranarray if inputs > 2 * outputs or outputs > width else np.ascontiguousarray
    parts = [(arrange(matrix[:, start : start + width]), result[:, None, start : start + width]) for start in range(0, outputs, width)]

    def multiply(values: np.ndarray) -> np.ndarray:
        vectors = values[:, None, :]  # numpy multiplies a stack of matrices one by one
        for part, place in parts:
            np.matmul(vectors, part, out=place)
        return result if shift is None else np.add(result, shift, out=result)

    return multiply


def convolution(module: nn.Conv2d, rows: int) -> Function:
    """From ``[rows, channels, height, width]``, in memory of any order, to a view of an array that the next call overwrites.

    The pixels under each place of the kernel are copied side by side, and each row's places are multiplied by products of their own,
    always of the same shapes.
    """
    kernel, stride = module.kernel_size, module.stride
    matrix = np.ascontiguousarray(module.weight.detach().permute(2, 3, 1, 0).reshape(-1, module.out_channels).numpy())
    shift = None if module.bias is None else module.bias.detach().numpy()
    step = max(ONE_THREAD_OF_MATRICES // matrix.size, 1)
    room: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def places(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Room for what lies under each place ``[height, width, *kernel, channels]``, and for the results ``[rows, places, outputs]``."""
        height, width = ((size - one) // by + 1 for size, one, by in zip(shape[1:], kernel, stride, strict=True))
        seen = np.empty((height, width, *kernel, shape[0]), np.float32)
        return seen, np.empty((rows, height * width, module.out_channels), np.float32)

    def convolve(values: np.ndarray) -> np.ndarray:
        shape = values.shape[1:]
        if shape not in room:
            room[shape] = places(shape)
        seen, result = room[shape]
        pixels = values.transpose(0, 2, 3, 1)
        row, down, right, channel = pixels.strides
        strides = (row, down * stride[0], right * stride[1], down, right, channel)
        windows = np.lib.stride_tricks.as_strided(pixels, (rows, *seen.shape), strides, writeable=False)
        flat = seen.reshape(len(result[0]), -1)
        for window, place in zip(windows, result, strict=True):
            seen[...] = window
            for first in range(0, len(flat), step):
                np.matmul(flat[first : first + step], matrix, out=place[first : first + step])
        if shift is not None:
            np.add(result, shift, out=result)
        return result.reshape(rows, *seen.shape[:2], -1).transpose(0, 3, 1, 2)

    return convolve


def _activation(module: nn.Module) -> Function:
    """In place where numpy has it: what it is applied to is a product's own array."""
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


def one_by_one(ask: Callable[[Tree], np.ndarray], values: Tree) -> np.ndarray:
    """What ``ask`` answers about each row ``[1, ...]`` of ``values`` ``[B, ...]`` alone.

    Each row is copied into memory that begins at a multiple of 64 bytes, as torch allocates it: kernels may round differently elsewhere.
    """
    return np.concatenate([ask(map_leaves(lambda leaf: torch.tensor(leaf).numpy(), part)) for part in blocks(values, 1)])
