"""How this machine rounds: numpy, torch and the C library choose their kernels by the processor, which affects the last bits."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import re
from pathlib import Path

import numpy as np
import torch

from policy_distill.policies.rowwise import product

SHAPES = ((4, 64), (17, 64), (64, 64), (64, 6), (96, 130), (256, 3))
"""Shapes of matrix products that use different kernels."""


@functools.cache
def rounding() -> str:
    """A digest of the results of a few fixed computations; machines with the same digest give the same actions bit for bit.

    The computations are those of acting and stepping: products as in ``rowwise``, elementary functions of numpy and torch, a torch layer,
    functions of the C library. The names of the kernels are not enough: one name may round differently in another version, and two names
    may denote the same code.
    """
    draws = np.random.default_rng(0)
    found: list[np.ndarray] = []
    for inputs, outputs in SHAPES:
        weight, values = (draws.uniform(-1, 1, shape).astype(np.float32) for shape in ((outputs, inputs), (3, inputs)))
        found.append(product(torch.from_numpy(weight).t(), None, 3)(values))
        found.append(torch.nn.functional.linear(torch.from_numpy(values[:1]), torch.from_numpy(weight)).numpy())
    for dtype in (np.float32, np.float64):
        positive = draws.uniform(0.01, 4, 200).astype(dtype)
        found += [function(positive) for function in (np.tanh, np.exp, np.expm1, np.log, np.sin, np.cos)]
        found += [getattr(torch, name)(torch.from_numpy(positive)).numpy() for name in ("tanh", "exp", "log", "sigmoid")]
    numbers = draws.uniform(0.01, 4, 200).tolist()
    functions = (math.sin, math.cos, math.tan, math.exp, math.log, math.atan, math.tanh)
    found += [np.array([function(number) for number in numbers]) for function in functions]
    found.append(np.array([math.pow(number, 0.3) for number in numbers]))
    return hashlib.sha256(b"".join(part.tobytes() for part in found)).hexdigest()[:16]


def processor() -> str:
    """The processor's name."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()


def kernels() -> dict[str, str]:
    """Names of processor and kernels, for information only; comparisons use ``rounding``."""
    built = np.show_config(mode="dicts")
    blas = built.get("Build Dependencies", {}).get("blas", {})
    core = os.environ.get("OPENBLAS_CORETYPE")
    return {
        "processor": processor(),
        "numpy": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip() + (f", as on {core}" if core else ""),
        "numpy_instructions": ", ".join(built.get("SIMD Extensions", {}).get("found", ())) or "baseline",
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
    }
