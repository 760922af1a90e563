"""A digest that is the same in each process, and another where other kernels round."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from policy_distill.evaluation import rounding as module
from policy_distill.evaluation.rounding import kernels, processor, rounding
from tests.kernels import KERNELS, run_on

PRINT = "from policy_distill.evaluation.rounding import rounding; print(rounding())"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are those of x86 processors")
def test_it_is_another_on_other_kernels_and_the_same_in_each_process():
    found = {kernel: run_on(kernel, "-c", PRINT).strip() for kernel in KERNELS}
    assert found["sse"] != found["avx2"]
    assert run_on("avx2", "-c", "import torch; torch.set_num_threads(2); " + PRINT).strip() == found["avx2"]


def test_a_last_bit_changes_it(monkeypatch):
    here = rounding()
    monkeypatch.setattr(np, "tanh", lambda values, function=np.tanh: np.nextafter(function(values), np.float32(9)).astype(values.dtype))
    module.rounding.cache_clear()
    try:
        assert rounding() != here
    finally:
        module.rounding.cache_clear()


def test_the_kernels_are_named():
    found = kernels()
    assert found.keys() == {"processor", "numpy", "numpy_instructions", "torch_instructions"}
    assert found["processor"] == processor()
    assert all(found.values())
