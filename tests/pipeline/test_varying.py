"""Which inputs are left out of the first layer, and what follows from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import DistillConfig, FeatureConfig, LossConfig, StudentConfig
from policy_distill.pipeline.prepare import Job, prepare
from policy_distill.pipeline.varying import MIN_ROWS, settled, varied_in, varying_inputs
from policy_distill.policies.actions import ActionTargets
from policy_distill.teachers import Teacher
from policy_distill.training.dataset import Dataset
from tests.small_worlds import BEFORE, before_teacher, labelled


def job_of(tmp_path: Path, teacher: Teacher | None = None, **changes: Any) -> Job:
    settings: dict[str, Any] = {"env": BEFORE.id, "output": str(tmp_path / "run"), "student": StudentConfig(hidden_sizes=(8,))}
    return prepare(DistillConfig(**{**settings, **changes}), teacher or before_teacher())


def dataset_of(observations: torch.Tensor) -> Dataset:
    count = len(observations)
    found = Dataset(count, holdout=0.1, device=torch.device("cpu"))
    targets = ActionTargets({}, torch.zeros(count, dtype=torch.int64))
    found.append(labelled(observations, targets, episodes=torch.arange(count) // 10))
    return found


def observations_of(varying: list[int], count: int = MIN_ROWS) -> torch.Tensor:
    found = torch.full((count, 8), 0.25)
    found[:, varying] = torch.rand(count, len(varying), generator=torch.Generator().manual_seed(0))
    return found


def test_those_that_differ_in_a_single_row_vary(tmp_path):
    rows = observations_of([1, 4])
    assert varying_inputs(job_of(tmp_path), dataset_of(rows)) == (1, 4)
    rows[1234, 6] += 1e-6
    assert varying_inputs(job_of(tmp_path), dataset_of(rows)) == (1, 4, 6)
    np.testing.assert_array_equal(np.flatnonzero(varied_in(dataset_of(rows), BEFORE_SPACE)), [1, 4, 6])


BEFORE_SPACE = gym.spaces.Box(-1, 1, (8,), np.float32)


def test_nothing_is_left_out_where_all_vary_none_does_or_rows_are_too_few(tmp_path):
    job = job_of(tmp_path)
    assert varying_inputs(job, dataset_of(observations_of(list(range(8))))) is None
    assert varying_inputs(job, dataset_of(observations_of([]))) is None
    assert varying_inputs(job, dataset_of(observations_of([1], MIN_ROWS - 1))) is None


def test_a_state_that_was_not_visited_yet_is_no_constant(tmp_path):
    space = gym.spaces.Discrete(8)
    job = job_of(tmp_path)
    job = dataclasses.replace(job, architecture=dataclasses.replace(job.architecture, observation_space=space))
    assert varying_inputs(job, dataset_of(torch.arange(MIN_ROWS) % 3)) is None


def test_what_varied_in_the_teacher_s_training_may_vary_again(tmp_path):
    teacher = before_teacher()
    job = job_of(tmp_path, teacher)
    known = dataclasses.replace(job)
    scale = torch.full((8,), 1e-4, dtype=torch.float64)
    scale[6] = 0.5

    class Normalized:
        """A teacher with statistics."""

        normalization = object()

    found = Normalized()
    found.scale = scale  # type: ignore[attr-defined]
    object.__setattr__(known, "teacher", found)
    assert varying_inputs(known, dataset_of(observations_of([1]))) == (1, 6)


def test_the_sizes_are_those_of_the_inputs_that_are_read(tmp_path):
    job = job_of(tmp_path, before_teacher(params=1000), student=StudentConfig(compression=5.0))
    # 200 parameters: 8 -> 9 -> 9 -> 2 has 81 + 90 + 20, 2 -> 11 -> 11 -> 2 has 33 + 132 + 24
    assert (job.architecture.hidden_sizes, job.architecture.params) == ((9, 9), 191)
    narrow = settled(job, (0, 1))
    assert (narrow.architecture.hidden_sizes, narrow.architecture.params) == ((11, 11), 189)
    assert narrow.architecture.observation_space == BEFORE_SPACE
    assert settled(job, None) is job
    assert settled(narrow, (0, 1)) is narrow


def test_hints_go_to_layers_of_the_settled_widths(tmp_path):
    teacher = Teacher.load("ppo/CartPole-v1")
    loss = LossConfig(features=FeatureConfig(weight=0.1))
    job = job_of(tmp_path, teacher, env="CartPole-v1", student=StudentConfig(compression=100.0), loss=loss)
    found = settled(job, (0, 2))
    assert job.projections == ((job.architecture.hidden_sizes[-1], 256),)
    assert found.projections == ((found.architecture.hidden_sizes[-1], 256),)
    assert found.architecture.hidden_sizes > job.architecture.hidden_sizes
