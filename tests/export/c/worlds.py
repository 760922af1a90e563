"""Students of every kind as C: their files, and states to decide in."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from policy_distill.export import c
from policy_distill.export.artefact import by_name
from policy_distill.export.folded import Folded, fold_student
from policy_distill.export.runner import Visited
from tests.export.kinds import observations_of, student_of

COUNT = 200
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


def visited_of(name: str, seed: int = 0) -> Visited:
    """Drawn states of a student; its recurrent states are steps of fixed point."""
    student = student_of(name)
    states = np.random.default_rng(seed).integers(-32767, 32768, (COUNT, student.architecture.memory)) / 2**15
    return Visited(by_name(observations_of(student.observation_space, COUNT, seed)), states.astype(np.float32))


@functools.cache
def numbers_of(name: str) -> c.Numbers:
    return c.measure(folded_of(name), visited_of(name))


@functools.cache
def folded_of(name: str) -> Folded:
    return fold_student(student_of(name))


def written(name: str, folder: Path, bits: int | None) -> Path:
    c.write(folded_of(name), folder, numbers_of(name), bits=bits)
    return folder


def compiled(folder: Path, compiler: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([compiler, *WARNINGS, *arguments], cwd=folder, capture_output=True, text=True, check=False)
