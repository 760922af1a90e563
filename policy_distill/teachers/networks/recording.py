"""Intermediate outputs of an acting network's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

SILENT = {"spread", "bounds", "critic"}
"""Parts of a network that do not compute the action."""


def layers_inside(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules without children, in the order of their definition."""
    parts = {name: module for name, module in network.named_modules() if not any(module.children())}
    return tuple(name for name in parts if name and SILENT.isdisjoint(name.split(".")))


def convolves(network: nn.Module) -> bool | None:
    """Whether ``network`` has convolutions; None if its layers are unknown."""
    if next(network.parameters(), None) is None:
        return None
    return any(isinstance(module, nn.Conv1d | nn.Conv2d) for module in network.modules())


@contextmanager
def record_layers(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of the named modules of ``network`` within the context."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[name] = output

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
