"""Plain C99: policy.h and policy.c, an example and a self-test; see docs/microcontrollers.md.

Each file is a function of the student and of ``Numbers``, byte for byte on every machine.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from policy_distill.export.c import programs, source
from policy_distill.export.c.arrays import bytes_of_arrays
from policy_distill.export.c.compiled import Compiled, find_compiler
from policy_distill.export.c.fixed import FixedNetwork
from policy_distill.export.c.fixed_source import FixedSource
from policy_distill.export.c.floating import FloatNetwork
from policy_distill.export.c.floating_source import FloatSource
from policy_distill.export.c.interface import interface_of
from policy_distill.export.folded import Folded
from policy_distill.export.runner import Visited
from policy_distill.support.files import write_atomically

__all__ = ["FILES", "Compiled", "Numbers", "check", "find_compiler", "load", "measure", "reference", "table_bytes", "texts", "write"]

Numbers: TypeAlias = dict[str, Any]
"""What the files depend on besides the student, as data for JSON.

``ranges``: largest absolute values inside the network (``fixed.RANGES``). ``seen`` and ``states``: the recorded states of the self-test, as
nested lists.
"""
FILES = ("policy.h", "policy.c", "example.c", "self_test.c")
RECORDED, RECORDED_VALUES = 256, 20_000
"""Largest numbers of recorded states, and of values in them (one state is always recorded)."""
CALIBRATION_WORK = 2_000_000_000
"""Multiplications for the measurement of ranges, which limits the number of visited states that are taken; 100 at least."""


def check(folded: Folded, bits: int | None) -> None:
    """
    Raises:
        RequestError: if the policy cannot be written as C, or not in fixed point with as many bits.
    """
    interface_of(folded)
    if bits is not None:
        FixedNetwork(folded, bits, defaultdict(float, features=0.0))  # what the smallest ranges do not allow, none do


def measure(folded: Folded, visited: Visited) -> Numbers:
    """The numbers that the files depend on, from states that the student visits."""
    ranges: dict[str, float] = {}

    def keep(name: str, values: np.ndarray) -> None:
        ranges[name] = max(ranges.get(name, 0.0), float(np.abs(values).max(initial=0.0)))

    network = FloatNetwork(folded, folds=False, keep=keep)
    sample = visited.rows(_spread(len(visited), max(CALIBRATION_WORK // max(folded.multiply_adds, 1), 100)))
    for start in range(0, len(sample), 256):
        block = sample.rows(slice(start, start + 256))
        network(block.seen, block.states)
    width = sum(int(np.prod(leaf.shape[1:])) for leaf in visited.seen.values())
    recorded = visited.rows(_spread(len(visited), min(RECORDED, max(RECORDED_VALUES // max(width, 1), 1))))
    seen = {name: leaf.tolist() for name, leaf in recorded.seen.items()}
    return {"ranges": ranges, "seen": seen, "states": recorded.states.tolist()}


def reference(folded: Folded, numbers: Numbers, bits: int | None) -> FloatNetwork | FixedNetwork:
    """The arithmetic of policy.c in numpy: a ``Runner``.

    Raises:
        RequestError: if the network cannot be computed in fixed point.
    """
    return FloatNetwork(folded) if bits is None else FixedNetwork(folded, bits, numbers["ranges"])


def texts(folded: Folded, numbers: Numbers, *, bits: int | None = None) -> dict[str, str]:
    """The files' contents by name; see ``write``."""
    network = reference(folded, numbers, bits)
    text = FixedSource(network) if isinstance(network, FixedNetwork) else FloatSource(network)
    interface, recorded = interface_of(folded), _recorded(folded, numbers)
    head, body = source.header(interface, folded.rule, text), source.code(network.folded, interface, text)
    return {
        "policy.h": head,
        "policy.c": body,
        "example.c": programs.example(folded, interface, recorded),
        "self_test.c": programs.self_test(folded, interface, text, recorded, network),
    }


def write(folded: Folded, folder: Path, numbers: Numbers, *, bits: int | None = None) -> None:
    """Write ``FILES`` into ``folder``; the same arguments give the same files.

    Args:
        folded: the policy.
        folder: it exists.
        numbers: of ``measure``.
        bits: bits of a weight, 8, 4, 3 or 2, in fixed point; None: float32.

    Raises:
        RequestError: if the network cannot be computed in fixed point.
    """
    for name, content in texts(folded, numbers, bits=bits).items():
        write_atomically(folder / name, lambda target, content=content: target.write_text(content))  # type: ignore[misc]


def table_bytes(folder: Path) -> int:
    """Bytes of weights, scales and other constants in the policy.c in ``folder``, which its program stores; without its code."""
    return bytes_of_arrays((folder / "policy.c").read_text())


def load(folder: Path, folded: Folded) -> Compiled:
    """A ``Runner`` of the policy.c in ``folder``, compiled.

    Raises:
        RequestError: if there is no C compiler, or the file does not compile.
    """
    return Compiled(folder, folded)


def _recorded(folded: Folded, numbers: Numbers) -> Visited:
    seen = {part.name: np.array(numbers["seen"][part.name], part.dtype).reshape(-1, *part.shape) for part in folded.inputs}
    count, units = len(next(iter(seen.values()))), 0 if folded.memory is None else folded.memory.units
    return Visited(seen, np.array(numbers["states"], np.float32).reshape(count, units))


def _spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
