"""The formats of exported policies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.export import c, npz, onnx, onnx_int8, pt2, sb3
from policy_distill.export.folded import Folded, fold_student
from policy_distill.export.runner import Runner, Visited
from policy_distill.policies.student import Student

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A format of exported policies.

    Attributes:
        write: writes its files into a folder and returns their names. Arguments: the student, the folder, states that the student visits
            (None where ``numbers`` are from an earlier export), and ``numbers``.
        load: a ``Runner`` of the files in a folder, whose structure follows from the student.
        numbers: what the files depend on besides the student, as JSON-able data.
        bits: bits of a weight; None: float32.
        is_code: whether loading runs code from the files. They are then compared with newly written ones, unless ``trust`` is given.
        repeatable: whether the same student and numbers give the same files, byte for byte.
        reads_everything: whether its input is the environment's observation, not what the student sees of it.
        weight_bytes: bytes of the weights in the files of a folder; None: see ``Folded.weight_bytes``.
    """

    write: Callable[[Student, Path, Visited | None, Numbers], list[str]]
    load: Callable[[Path, Student], Runner]
    numbers: Callable[[Folded, Visited], Numbers] = lambda folded, visited: {}
    bits: int | None = None
    is_code: bool = False
    repeatable: bool = False
    reads_everything: bool = False
    weight_bytes: Callable[[Path], int] | None = None


def _of_folded(module: Any, **properties: Any) -> Format:
    """A format whose module writes and loads the student's plain form."""

    def write(student: Student, folder: Path, visited: Visited | None, numbers: Numbers) -> list[str]:
        names: list[str] = module.write(fold_student(student), folder, visited)
        return names

    return Format(write, lambda folder, student: module.load(folder, fold_student(student)), **properties)


def _of_c(bits: int | None) -> Format:
    def write(student: Student, folder: Path, visited: Visited | None, numbers: Numbers) -> list[str]:
        c.find_compiler()
        return c.write(fold_student(student), folder, numbers, bits=bits)

    load = functools.partial(lambda folder, student: c.load(folder, fold_student(student)))
    return Format(write, load, numbers=c.measure, bits=bits, is_code=True, repeatable=True, weight_bytes=c.table_bytes)


def _write_sb3(student: Student, folder: Path, visited: Visited | None, numbers: Numbers) -> list[str]:
    if reason := sb3.why_not_exported(student):
        raise RequestError(f"the student cannot be written as a Stable-Baselines3 zip: {reason}")
    return [sb3.save_ppo(student, folder / sb3.FILE).name]


FORMATS: dict[str, Format] = {
    "sb3": Format(_write_sb3, sb3.load, reads_everything=True),
    "onnx": _of_folded(onnx),
    "onnx-int8": _of_folded(onnx_int8, bits=8),
    "c": _of_c(None),
    "c-int8": _of_c(8),
    "c-int4": _of_c(4),
    "c-int3": _of_c(3),
    "c-int2": _of_c(2),
    "pt2": _of_folded(pt2, is_code=True, repeatable=True),
    "npz": _of_folded(npz),
}
"""The formats by the names of ``export_student --format``."""
