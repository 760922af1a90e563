"""Subprocesses with other matrix kernels than this one's: rounding must be seen where it differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NEWER_THAN_SSE = "X86_V3 AVX2 FMA3"
_NEWER_THAN_AVX2 = "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
KERNELS = {
    "sse": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": f"{_NEWER_THAN_SSE} {_NEWER_THAN_AVX2}",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "avx2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": _NEWER_THAN_AVX2,
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "avx512": {"OPENBLAS_CORETYPE": "SkylakeX", "ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}
"""Settings of numpy (its OpenBLAS and its own loops) and torch (its own loops, MKL and oneDNN). A processor without AVX-512, or one that is
no x86, takes for some of them the best that it has: then fewer kernels differ."""


def run_on(kernel: str, *arguments: str) -> str:
    """What a Python process with these kernels prints, for ``python ARGUMENTS``."""
    environment = {**os.environ, **KERNELS[kernel], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout
