"""The benchmark of training: all sides learn the same thing, and every figure is there."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from policy_distill.config import FeatureConfig, LossConfig, RelationConfig
from policy_distill.policies import divergences as losses
from policy_distill.studies.benchmark import train
from policy_distill.studies.benchmark.interleave import Ratio, Timing
from policy_distill.studies.benchmark.result import table
from policy_distill.studies.benchmark.train import Task

TASKS = [Task(3, 4, True, (5, 6), 8), Task(3, 2, False, (5, 6), 8)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"STEPS": 6, "NAIVE_STEPS": 4, "ROWS": 100, "MATRIX": 16, "LOSS_STEPS": 3}.items():
        monkeypatch.setattr(train, name, value)


def test_the_arithmetic_by_hand():
    # weights 3 x 5 + 5 x 6 + 6 x 4 = 69; six operations for each of them and sample, four for the 15 of the first layer
    assert TASKS[0].flops == 8 * (6 * 69 - 2 * 15)


def test_both_sides_take_the_same_loss():
    draws = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(50, 4, generator=draws), torch.randn(50, 4, generator=draws)
    torch.testing.assert_close(TASKS[0].loss(outputs, labels), losses.forward_kl(labels, outputs).mean())
    # between bounds that nothing touches Huber's error is the plain one
    outputs, labels = torch.randn(50, 2, generator=draws), 0.9 * torch.rand(50, 2, generator=draws)
    torch.testing.assert_close(TASKS[1].loss(outputs, labels), losses.huber(losses.bounded_error(labels, outputs)).mean())


@pytest.mark.parametrize("task", TASKS)
def test_both_sides_train_students_of_one_size(task):
    assert sum(parameter.numel() for parameter in task.module().parameters()) == task.architecture.params
    observations, labels = task.rows()
    assert train.train_stack(task, observations, labels, members=2, steps=5)() == 5
    assert train.by_data_loader(task, observations, labels)() == 4
    assert train.by_index(task, observations, labels, students=2)() == 2
    assert train.multiply() == 20 * 16**3


def test_a_step_is_compared_with_both_loops():
    loader, index = train.one_student(TASKS[0], turns=2)
    assert loader.microseconds is not None
    assert loader.microseconds == index.microseconds
    assert loader.microseconds > 0
    assert loader.limit_microseconds is not None
    assert loader.limit_microseconds > 0
    assert loader.ratio is not None
    assert loader.ratio.median > 1
    assert "DataLoader" in loader.baseline
    assert "index" in index.baseline


def test_each_loss_is_compared_with_the_default_and_the_table_says_whether_it_is_within_the_bound(monkeypatch):
    seconds = {name: np.array([0.001, 0.001, 0.001]) for name in (*train.DISCRETE_LOSSES, *train.CONTINUOUS_LOSSES)}
    seconds["nll"] = np.array([0.014, 0.015, 0.016])
    seconds["reverse_kl"] = np.array([0.014, 0.0151, 0.016])
    monkeypatch.setattr(train, "interleave", lambda variants, turns: {name: Timing(seconds[name], seconds[name]) for name in variants})
    found = {result.case.removeprefix("loss: "): result for result in train.each_loss(turns=3)}
    assert found.keys() == seconds.keys()
    assert found["default"].times_default == Ratio(1.0, 1.0, 1.0)
    assert found["nll"].microseconds == pytest.approx(15_000)
    assert found["nll"].note == "15.0 times the default loss's step (14.5-15.5), within the bound of 15"
    assert found["reverse_kl"].note == "15.1 times the default loss's step (14.6-15.6), ABOVE the bound of 15"
    assert "ABOVE the bound" in table([found["reverse_kl"]])


@pytest.mark.parametrize("name", [*train.DISCRETE_LOSSES, *train.CONTINUOUS_LOSSES])
def test_every_loss_trains_in_the_benchmark(name):
    task = Task(2, 3, name in train.DISCRETE_LOSSES, (8, 8), 16)
    assert train.train_stack(task, *task.rows(), members=2, steps=3, loss={**train.DISCRETE_LOSSES, **train.CONTINUOUS_LOSSES}[name])() == 3


def test_every_kind_of_loss_has_its_row():
    """A loss that is added to the configuration is timed too."""
    losses = [*train.DISCRETE_LOSSES.values(), *train.CONTINUOUS_LOSSES.values()]
    for name, of in {
        "divergence": lambda loss: loss.divergence,
        "regression": lambda loss: loss.regression if loss.kind == "regression" else None,
    }.items():
        assert {of(loss) for loss in losses} - {None} == set(get_args(get_type_hints(LossConfig)[name]))
    assert {loss.kind for loss in losses} >= {"kl", "nll", "regression"}
    assert {loss.features.distance for loss in losses if loss.features.weight} == set(get_args(get_type_hints(FeatureConfig)["distance"]))
    assert {loss.relations.kind for loss in losses if loss.relations.weight} == set(get_args(get_type_hints(RelationConfig)["kind"]))
