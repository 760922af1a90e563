"""The layers of a custom features extractor whose ``forward`` is a plain sequence of layers.

Such layers run in numpy while environments are stepped (``policies.rowwise``), in a tenth of the time of calling the module on one
observation at a time.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from policy_distill.policies.reading_layers import Permute

FUNCTIONS = {F.relu: nn.ReLU, torch.relu: nn.ReLU, torch.tanh: nn.Tanh, F.elu: nn.ELU, F.gelu: nn.GELU, F.silu: nn.SiLU}
METHODS = {"relu": nn.ReLU, "tanh": nn.Tanh}
"""Functions and methods that are equivalent to a layer without weights, if called without further arguments."""


def plain_layers(module: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, nn.Module]] | None:
    """Names and layers of a sequence that is equivalent to ``module``; None if there is none.

    Args:
        module: in eval mode; its ``forward`` is traced with a placeholder.
        shape: shape of one observation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = fx.Tracer().trace(module)
        steps = _steps(graph, dict(module.named_modules()))
    except Exception:  # the user's code may do anything that a placeholder does not support, such as branching on values
        return None
    if steps is None:
        return None
    values = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, output = module(values), values
        for _, layer in steps:
            output = layer(output)
    return steps if torch.equal(expected, output) else None


def _steps(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[str, nn.Module]] | None:
    first, *nodes, last = graph.nodes
    steps: list[tuple[str, nn.Module]] = []
    before = first
    for node in nodes:
        layer = _layer(node, modules)
        if layer is None or node.all_input_nodes != [before]:
            return None
        steps.append((str(node.target) if node.op == "call_module" else node.name, layer))
        before = node
    return steps if last.all_input_nodes == [before] and steps else None


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    rest: tuple[Any, ...] = node.args[1:]
    match node.op, node.target:
        case "call_module", str(name):
            return modules[name]
        case "call_method", "permute":
            return Permute(*rest) if not node.kwargs and all(isinstance(dim, int) for dim in rest) else None
        case ("call_method", "flatten") | ("call_function", torch.flatten):
            start = rest[0] if rest else node.kwargs.get("start_dim", 0)
            return nn.Flatten() if start == 1 and len(rest) < 2 and "end_dim" not in node.kwargs else None
        case "call_method", "float":
            return nn.Identity()
        case "call_method", str(name) if name in METHODS and not rest:
            return METHODS[name]()
        case "call_function", function if function in FUNCTIONS and not rest and set(node.kwargs) <= {"inplace"}:
            return FUNCTIONS[function]()
    return None
