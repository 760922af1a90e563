"""The benchmark of training: all sides learn the same thing, and every figure is there."""

from __future__ import annotations

import pytest
import torch

from policy_distill import losses
from policy_distill.benchmark import train
from policy_distill.benchmark.train import Task

TASKS = [Task(3, 4, True, (5, 6), 8), Task(3, 2, False, (5, 6), 8)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"STEPS": 6, "NAIVE_STEPS": 4, "ROWS": 100, "MATRIX": 16}.items():
        monkeypatch.setattr(train, name, value)


def test_the_arithmetic_by_hand():
    # weights 3 x 5 + 5 x 6 + 6 x 4 = 69; six operations for each of them and sample, four for the 15 of the first layer
    assert TASKS[0].flops == 8 * (6 * 69 - 2 * 15)


def test_both_sides_take_the_same_loss():
    draws = torch.Generator().manual_seed(0)
    outputs, said = torch.randn(50, 4, generator=draws), torch.randn(50, 4, generator=draws)
    torch.testing.assert_close(TASKS[0].loss(outputs, said), losses.forward_kl(said, outputs).mean())
    # between bounds that nothing touches Huber's error is the plain one
    outputs, said = torch.randn(50, 2, generator=draws), 0.9 * torch.rand(50, 2, generator=draws)
    torch.testing.assert_close(TASKS[1].loss(outputs, said), losses.huber(losses.bounded_error(said, outputs)).mean())


@pytest.mark.parametrize("task", TASKS)
def test_both_sides_train_students_of_one_size(task):
    assert sum(parameter.numel() for parameter in task.module().parameters()) == task.architecture.params
    observations, said = task.rows()
    assert train.ours(task, observations, said, members=2, steps=5)() == 5
    assert train.by_data_loader(task, observations, said)() == 4
    assert train.by_index(task, observations, said, students=2)() == 2
    assert train.multiply() == 20 * 16**3


def test_a_step_is_compared_with_both_loops():
    loader, index = train.one_student(TASKS[0], turns=2)
    assert loader.microseconds == index.microseconds > 0
    assert loader.limit_microseconds is not None
    assert loader.limit_microseconds > 0
    assert loader.ratio is not None
    assert loader.ratio.median > 1
    assert "DataLoader" in loader.baseline
    assert "index" in index.baseline
