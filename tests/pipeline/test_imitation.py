"""Imitation: the normalisation, the seeds of a fresh student, how work is cut into rounds, who acts in them, and what is kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy_distill.config import CollectConfig, TrainConfig
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.imitation import choose_round, imitate, new_trainer, part_of
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.state import State
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.encoders import normalization_of
from policy_distill.policies.student import Student
from policy_distill.rollouts.collect import Exploration
from policy_distill.rollouts.episodes import evaluation_seeds, merge
from policy_distill.rollouts.transitions import Transitions
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.trainer import Trainer
from tests.small_worlds import BANDIT, bandit_teacher, generator, labelled, rows_of, walk_teacher
from tests.stand_ins import FIRST_SEED, STEPS, Recorder, Table, episodes, run_of


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
    job = run_of(folder, seed=seed)[1].job
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
    job = run_of(tmp_path, teacher=bandit_teacher(), env=BANDIT.id)[1].job
    dataset = Dataset(4, holdout=0.0, device=job.device)
    shown = torch.tensor([0, 0, 1, 2])
    dataset.append(labelled(shown, ActionTargets(job.teacher.targets(shown).parameters, shown)))
    student = new_trainer(job, dataset, 10).student()
    assert student.mean.tolist() == [0.5, 0.25, 0.25, 0.0]
    assert student.scale.tolist() == pytest.approx([(1 / 3) ** 0.5, 0.5, 0.5, 1.0])  # the last number was never shown


# The rounds. Rollouts are stood in for: what they collect is made up, and what each member earns is written down.


class Rounds(Table):
    """Rollouts that collect made-up transitions.

    Args:
        earned: returns on the validation seeds of each round's members, in the order in which they are trained.

    Attributes:
        actors: round and student of each call of ``collect``.
    """

    def __init__(self, *earned: Sequence[Sequence[float]]) -> None:
        super().__init__({"teacher": [10.0] * 9, "random": [0.0] * 9})
        self.waiting = iter([member for members in earned for member in members])
        self.actors: list[tuple[int, Student | None]] = []

    def begin_evaluation(self, policy: Any, seeds: Sequence[int], **options: Any) -> Any:
        if seeds[0] < FIRST_SEED:  # the final ones
            self.asked.append((policy, list(seeds), options))
            return self.in_turn(len(self.asked) - 1, dataclasses.replace(episodes(*[0.0] * len(seeds)), seeds=np.array(seeds)))
        if policy not in self.returns:
            self.returns[policy] = next(self.waiting)
        return super().begin_evaluation(policy, seeds, **options)

    def collect(
        self, steps: int, student: Student | None, probability: float, index: int, exploration: Exploration
    ) -> Iterator[Transitions]:
        self.actors.append((index, student))
        observations = torch.rand(4 * steps, 2, generator=generator(index)) * 10
        yield dataclasses.replace(labelled(observations, walk_teacher().targets(observations)), rewards=torch.full((4 * steps,), 0.5))


def rounds_of(folder: Path, rollouts: Rounds, *, members: int = 1, rounds: int = 3, enough: float = 9.0, **changes: Any) -> Any:
    collect = CollectConfig(env_steps=20 * rounds, rounds=rounds, num_envs=4, enough=enough, **changes)
    train = TrainConfig(gradient_steps=2 * rounds, batch_size=4, members=members)
    return run_of(folder, rollouts, first=2, further=4, finalists=3, collect=collect, train=train)


def through(state: State, services: Services) -> State:
    while state.stage == "imitation":
        state = imitate(state, services)
    return state


BY_MEMBER = [[1, 1], [5, 5], [3, 3]], [[4, 4], [2, 2], [9, 9]], [[9, 9], [1, 1], [1, 1]], [[1, 1], [2, 2], [3, 3]]


def test_the_member_that_did_best_in_the_round_before_acts(tmp_path):
    """In round 1 nobody was measured yet; from then on the last round but one is known."""
    rollouts = Rounds(*BY_MEMBER)
    state, services = rounds_of(tmp_path, rollouts, members=3, rounds=5)
    through(state, services)
    members = [state.students[first : first + 3] for first in range(0, 15, 3)]
    assert len({id(student) for student in state.students}) == 15
    expected = [None, members[0][0], members[1][1], members[2][2], members[3][0]]
    assert [index for index, _ in rollouts.actors] == [0, 1, 2, 3, 4]
    assert all(found is actor for (_, found), actor in zip(rollouts.actors, expected, strict=True))


def test_of_equal_members_the_first_acts(tmp_path):
    rollouts = Rounds([[1, 1], [5, 5], [5, 5]], [[0, 0]] * 3)
    state, services = rounds_of(tmp_path, rollouts, members=3)
    through(state, services)
    assert rollouts.actors[2][1] is state.students[3 + 1]


def test_the_best_member_is_what_a_round_records_and_counters_are_exact(tmp_path):
    state, services = rounds_of(tmp_path, Rounds(*BY_MEMBER), members=3, rounds=5)
    through(state, services)
    assert [record.validation_return_mean for record in state.records[:4]] == [5, 9, 9, 3]
    assert math.isnan(state.records[4].validation_return_mean)  # that is measured by the choice
    assert [record.env_steps for record in state.records] == [20, 40, 60, 80, 100]
    assert [record.gradient_steps for record in state.records] == [2, 4, 6, 8, 10]
    assert [record.teacher_action_prob for record in state.records] == [1, 0.5, 0.25, 0.125, 0.0625]
    assert (state.env_steps, state.gradient_steps, state.stage) == (100, 10, "choice")
    # teacher and random policy on 6 validation seeds and on the final ones, 4 rounds of 3 members on 2 seeds
    final = services.job.config.evaluate.episodes
    assert state.evaluation_env_steps == (2 * (6 + final) + 4 * 3 * 2) * STEPS
    assert isinstance(services.tracker, Recorder)
    assert services.tracker.seen["collect/reward_mean"] == (0.5, 100)
    assert services.tracker.seen["eval/validation_return_mean"] == (3.0, 80)


def test_the_choice_is_among_all_members_of_all_rounds(tmp_path):
    """Of a round's finalists the record tells the one that came furthest."""
    # Over the first two seeds 9, 8 and 7: three finalists play two more, then the two that are best over four play all six.
    earned = [[9, 9, 1, 1, 1, 1], [7, 7, 9, 9, 8, 8]], [[1] * 6, [8, 8, 6, 6, 9, 9]]
    state, services = rounds_of(tmp_path, Rounds(*earned), members=2, rounds=2)
    through(state, services)
    students = list(state.students)
    choose_round(state, services)
    assert (state.kept[-1].origin, state.kept[-1].returns.tolist()) == ("round 1, member 2", [7, 7, 9, 9, 8, 8])
    assert state.kept[-1].student is students[1]
    first, second = state.records
    assert (first.validation_return_mean, first.finalist_return_mean, first.finalist_episodes, first.kept) == (9, 8, 6, True)
    assert (second.validation_return_mean, second.finalist_episodes, second.kept) == (8, 6, False)
    assert second.finalist_return_mean == pytest.approx(46 / 6)
    assert (state.stage, len(state.kept), state.trainer, state.students, state.returns) == ("self_distillation", 1, None, [], [])


@pytest.mark.parametrize(
    ("passes", "rounds"),
    [
        ([1, 1, 1, 1, 1, 1], 5),  # three are known when the fifth begins
        ([1, 1, 0, 1, 1, 1, 1], 8),
        ([0, 1, 1, 0, 1, 1, 0, 1, 1], 9),
    ],
)
def test_rounds_end_after_three_passes_in_a_row(passes, rounds, tmp_path):
    """What counts is what a round's members keep together: 0.9 here, of a better and a worse one, or 0.5."""
    rollouts = Rounds(*([[10, 10], [8, 8]] if good else [[10, 10], [0, 0]] for good in passes), *[[[0, 0]] * 2] * 9)
    state, services = rounds_of(tmp_path, rollouts, members=2, rounds=9, enough=0.9)
    through(state, services)
    assert len(state.records) == rounds
    seeds = merge(state.teacher_parts).seeds.tolist()
    assert seeds == merge(state.random_parts).seeds.tolist() == evaluation_seeds("final", services.job.config.evaluate.episodes)
    trained = services.tracker.seen["train/learning_rate"]
    assert trained == (pytest.approx(0, abs=1e-9), 20 * rounds)


def test_a_window_forgets_the_rounds_before_it(tmp_path):
    state, services = rounds_of(tmp_path, Rounds(*[[[1, 1]]] * 4), rounds=4, window=2)
    through(state, services)
    assert state.first_rows == [0, 20, 40, 60]
    assert (state.dataset.num_drawn_from, len(state.dataset)) == (40, 80)


def test_new_rollouts_collect_the_earlier_rounds_again_and_what_they_give_is_not_kept(tmp_path):
    state, services = rounds_of(tmp_path, Rounds([[1, 1], [5, 5]], [[5, 5], [1, 1]]), members=2, rounds=3)
    imitate(state, services)
    imitate(state, services)
    students, rows = list(state.students), len(state.dataset)
    fresh = Rounds([[5, 5], [1, 1]])
    imitate(state, dataclasses.replace(services, rollouts=fresh, collected_rounds=0))
    assert [(index, actor) for index, actor in fresh.actors] == [(0, None), (1, students[0]), (2, students[3])]
    assert len(state.dataset) == rows + 20
    assert [record.env_steps for record in state.records] == [20, 40, 60]
