"""What imitation starts from: the normalisation, the seeds of a fresh student, and how work is cut into rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policy_distill.pipeline.imitation import new_trainer, part_of
from policy_distill.pipeline.prepare import Job
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.encoders import normalization_of
from policy_distill.training.dataset import Dataset
from policy_distill.training.stack import StudentStack
from policy_distill.training.trainer import Trainer
from tests.small_worlds import BANDIT, bandit_teacher, generator, labelled, rows_of
from tests.stand_ins import run_of


def test_the_normalisation_by_hand():
    mean, scale = normalization_of([torch.tensor([[1.0, -4.0], [3.0, 0.0], [5.0, 4.0]])])
    # squares of the deviations: 4 + 0 + 4 = 8 and 16 + 0 + 16 = 32; over two degrees of freedom
    assert mean.tolist() == [3.0, 0.0]
    assert scale.tolist() == [2.0, 4.0]
    assert mean.dtype == scale.dtype == torch.float32


@pytest.mark.parametrize("lengths", [(100,), (1, 99), (40, 1, 59), (1,) * 100])
def test_the_normalisation_is_that_of_all_blocks_together(lengths):
    observations = torch.tensor([5.0, -300.0, 7.0]) + torch.tensor([1e-3, 20.0, 0.0]) * torch.randn(100, 3, generator=generator())
    mean, scale = normalization_of(observations.split(lengths))
    torch.testing.assert_close(mean[:2], observations.double().mean(0).float()[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(scale[:2], observations.double().std(0).float()[:2], rtol=1e-6, atol=0)
    assert (mean[2], scale[2]) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, 7.0, -1e6])
def test_a_component_that_never_varies_is_left_as_it_is(value):
    observations = torch.tensor([[value, 1.0], [value, 3.0]])
    mean, scale = normalization_of([observations])
    assert (mean[0], scale[0]) == (0.0, 1.0)
    assert (mean[1], scale[1]) != (0.0, 1.0)


def test_what_varies_by_rounding_alone_does_not_vary():
    observations = torch.tensor([[1e4], [1e4 + 1e-3]])  # the next float32
    assert observations[0] != observations[1]
    assert normalization_of([observations])[1] == 1.0
    assert normalization_of([observations - 1e4])[1] < 1e-3  # around zero the same step is all there is


@pytest.mark.parametrize(("total", "parts"), [(602, 4), (10, 10), (7, 3), (3, 1)])
def test_parts_are_nearly_equal_and_add_up(total, parts):
    found = [part_of(total, parts, index) for index in range(parts)]
    assert sum(found) == total
    assert max(found) - min(found) <= 1


def test_parts_by_hand():
    assert [part_of(602, 4, index) for index in range(4)] == [150, 151, 150, 151]


def job_and_data(folder: Path, *, seed: int = 5) -> tuple[Job, Dataset]:
    job = run_of(folder, seed=seed).job
    observations = 3 + 2 * torch.randn(50, 2, generator=generator())
    dataset = Dataset(50, holdout=0.0, device=job.device)
    dataset.append(labelled(observations, job.teacher.targets(observations)))
    return job, dataset


def drawn(trainer: Trainer, dataset: Dataset) -> list[int]:
    observations, _ = dataset.take(dataset.draw(1, 20, trainer.generators)[0])
    return observations.flatten().tolist()


def test_the_first_student_is_drawn_from_the_run_s_seed(tmp_path):
    job, dataset = job_and_data(tmp_path)
    trainer = new_trainer(job, dataset, 100)
    mean, scale = normalization_of([rows_of(dataset)[0]])
    own = StudentStack(job.architecture, generators=[generator(5)], mean=mean, scale=scale)
    assert torch.equal(trainer.stack.flat, own.flat)
    assert torch.equal(trainer.student().mean, mean)
    assert torch.equal(trainer.student().scale, scale)
    assert [found.initial_seed() for found in trainer.generators] == [5]


def test_the_same_generation_is_the_same_and_others_are_not(tmp_path):
    job, dataset = job_and_data(tmp_path)
    weights, batches = [], []
    for generation in (0, 1, 2, 0, 1):
        trainer = new_trainer(job, dataset, 100, generation=generation)
        weights.append(trainer.stack.flat.clone())
        batches.append(drawn(trainer, dataset))
    for found in (weights, batches):
        one, two, three, again, second = (torch.as_tensor(value) for value in found)
        assert torch.equal(one, again)
        assert torch.equal(two, second)
        assert not torch.equal(one, two)
        assert not torch.equal(one, three)
        assert not torch.equal(two, three)


def test_another_seed_is_another_student_in_every_generation(tmp_path):
    for generation in (0, 1):
        one, other = (new_trainer(*job_and_data(tmp_path, seed=seed), 100, generation=generation) for seed in (5, 6))
        assert not torch.equal(one.stack.flat, other.stack.flat)


def test_the_learning_rate_falls_over_the_steps_that_are_asked_for(tmp_path):
    job, dataset = job_and_data(tmp_path)
    trainer = new_trainer(job, dataset, 8)
    start = job.config.train.learning_rate
    assert trainer.learning_rate == start
    trainer.run(dataset, 4)
    assert trainer.learning_rate == pytest.approx(start / 2)  # in the middle of half a cosine
    trainer.run(dataset, 4)
    assert trainer.learning_rate == 0.0


def test_what_is_discrete_is_normalised_as_the_network_reads_it(tmp_path):
    job = run_of(tmp_path, teacher=bandit_teacher(), env=BANDIT.id).job
    dataset = Dataset(4, holdout=0.0, device=job.device)
    shown = torch.tensor([0, 0, 1, 2])
    dataset.append(labelled(shown, ActionTargets(job.teacher.targets(shown).parameters, shown)))
    student = new_trainer(job, dataset, 10).student()
    assert student.mean.tolist() == [0.5, 0.25, 0.25, 0.0]
    assert student.scale.tolist() == pytest.approx([(1 / 3) ** 0.5, 0.5, 0.5, 1.0])  # the last number was never shown
