"""The benchmark of stacks: figures are a student's, not a stack's."""

from __future__ import annotations

import numpy as np
import pytest

from policy_distill.studies.benchmark import stack, train
from policy_distill.studies.benchmark.interleave import Timing
from policy_distill.studies.benchmark.train import Task

TASK = Task(3, 4, True, (5, 6), 8)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"NAIVE_STEPS": 4, "ROWS": 100, "MATRIX": 16}.items():
        monkeypatch.setattr(train, name, value)
    for name, value in {"STEPS": 6, "FEWEST": 2}.items():
        monkeypatch.setattr(stack, name, value)


def test_seconds_are_divided_among_the_members(monkeypatch):
    """A step of the stack of 4 takes 8 s, one of four modules 40 s, one of a stack of one 6 s."""
    told = {"stack": 8.0, "modules": 40.0, "alone": 6.0, "flop": 1e-3}

    def timed(variants, *, turns):
        return {name: Timing(np.full(turns, told[name]), np.full(turns, told[name])) for name in variants}

    monkeypatch.setattr(stack, "interleave", timed)
    modules, alone = stack.one_stack(TASK, 4, turns=3)
    assert modules.microseconds == alone.microseconds == 2e6
    assert modules.ratio is not None
    assert alone.ratio is not None
    assert (modules.ratio.median, alone.ratio.median) == (5.0, 3.0)
    assert modules.limit_microseconds == pytest.approx(TASK.flops * 1e3)


def test_a_stack_of_one_is_compared_with_a_plain_module_alone():
    (result,) = stack.one_stack(TASK, 1, turns=1)
    assert result.ratio is not None
    assert "one after the other" not in result.baseline
    assert len(stack.one_stack(TASK, 3, turns=1)) == 2
