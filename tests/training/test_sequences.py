"""Sequences of episodes: what is drawn, what gives a gradient, and that a student with a memory learns what one without cannot."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from policy_distill.config import LossConfig, TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.families import family_of
from policy_distill.policies.student import Student
from policy_distill.rollouts.collect import Collector
from policy_distill.rollouts.episodes import evaluate
from policy_distill.training.dataset import Dataset
from policy_distill.training.sequences import SequenceBatches, all_outputs, sampled_outputs
from policy_distill.training.stacks import stack_of
from policy_distill.training.stacks.recurrent import RecurrentStack, Sequences
from policy_distill.training.trainer import Trainer
from tests.small_worlds import RECALL, RECALL_CUES, Recall, generator, labelled, recurrent_student
from tests.stateful import RecallTeacher

CPU = torch.device("cpu")
LENGTHS = [1, 3, 8, 9, 30, 57]
"""Of episodes; sequences are 8 steps long."""
LENGTH, BURN_IN, BATCH = 8, 5, 32
SPACE = gym.spaces.Box(-1000, 1000, (2,))
ACTIONS = gym.spaces.Discrete(3)


def rows_of_episodes(lengths: list[int] = LENGTHS, first: int = 0) -> Any:
    """Episodes that were collected side by side, step after step; an observation is its episode and its step, an action their sum."""
    order = sorted((step, first + episode) for episode, length in enumerate(lengths) for step in range(length))
    seen = torch.tensor([[episode, step] for step, episode in order], dtype=torch.float32)
    actions = seen.sum(1).long() % 3
    targets = ActionTargets({"logits": torch.nn.functional.one_hot(actions, 3).float()}, actions)
    return labelled(seen, targets, episodes=seen[:, 0].long())


def dataset_of(*parts: Any, holdout: float = 0.0, **options: Any) -> Dataset:
    dataset = Dataset(400, holdout=holdout, device=CPU, sequences=True, **options)
    for part in parts or (rows_of_episodes(),):
        dataset.append(part)
    return dataset


def stack(members: int = 2, seeds: int = 0, units: int = 4) -> RecurrentStack:
    architecture = Architecture(SPACE, ACTIONS, (5,), "tanh", memory=units)
    made = stack_of(architecture, architecture.new_encoder(), generators=[generator(seeds + member) for member in range(members)])
    assert isinstance(made, RecurrentStack)
    return made


def batches(dataset: Dataset, members: int = 2, **options: int) -> SequenceBatches:
    lengths = {"sequence_length": LENGTH, "burn_in": BURN_IN, **options}
    config = TrainConfig(batch_size=BATCH, sequence_length=lengths["sequence_length"], burn_in=lengths["burn_in"])
    return SequenceBatches(
        dataset, stack(members), Objective(LossConfig(), family_of(ACTIONS)), config, [generator(m) for m in range(members)], 32
    )


def samples(inputs: Sequences) -> Tensor:
    """The observations ``[K, B, 2]`` of which an answer is asked for."""
    flat = inputs.window.flatten(1, 2)
    return torch.stack([own[read] for own, read in zip(flat, inputs.read, strict=True)])


# What is drawn.


@pytest.mark.parametrize("burn_in", [0, BURN_IN])
def test_sequences_hold_consecutive_rows_of_one_episode(burn_in):
    drawn, _ = batches(dataset_of(), burn_in=burn_in).draw(20)
    whole = 0
    for inputs in drawn:
        for member in range(2):
            for sequence in range(BATCH // LENGTH):
                count = int(inputs.num_before[member, sequence])
                before, window = inputs.before[member, :count, sequence], inputs.window[member, :, sequence]
                read = inputs.read[member].view(LENGTH, -1)[:, sequence] // (BATCH // LENGTH)
                window = window[: int(read.max()) + 1]
                episode, steps = torch.cat([before, window]).unbind(1)
                assert (episode == episode[0]).all()
                assert torch.equal(steps, steps[0] + torch.arange(len(steps)))
                assert count == min(burn_in, int(window[0, 1]))
                times = torch.bincount(read)
                assert int(times.max() - times.min()) <= 1  # of a short part each row several times
                whole += len(window) == LENGTH
    assert whole > 50


def test_short_episodes_are_not_cut():
    drawn, _ = batches(dataset_of(rows_of_episodes([6, 8, 4]))).draw(10)
    for inputs in drawn:
        assert int(inputs.num_before.max()) == 0
        assert (inputs.window[:, 0, :, 1] == 0).all()


def test_the_burn_in_is_no_longer_than_the_longest_episode():
    for inputs in batches(dataset_of(), burn_in=500).draw(10)[0]:
        assert inputs.before.shape[1] == max(LENGTHS) - 1
        assert torch.equal(inputs.num_before, inputs.window[:, 0, :, 1].long())  # all earlier steps of the episode


def test_the_targets_are_those_of_the_samples():
    drawn, targets = batches(dataset_of(), members=3).draw(7)
    for step, inputs in enumerate(drawn):
        expected = samples(inputs).sum(-1).long() % 3
        assert torch.equal(targets.parameters["logits"][step].argmax(-1), expected)


def test_every_row_is_as_likely_as_any_other():
    dataset = dataset_of()
    counts = torch.zeros(len(LENGTHS), max(LENGTHS))
    source = batches(dataset)
    for _ in range(60):
        for inputs in source.draw(source.chunk_steps)[0]:
            episode, step = samples(inputs).flatten(0, 1).long().unbind(1)
            counts.index_put_((episode, step), torch.ones(len(step)), accumulate=True)
    seen = torch.cat([counts[episode, :length] for episode, length in enumerate(LENGTHS)])
    assert float(counts.sum()) == float(seen.sum())
    # of the rows of one sequence all are drawn at once: the variance is that of LENGTH times fewer draws
    expected = float(seen.mean())
    assert float(((seen - expected) / (LENGTH * expected) ** 0.5).abs().max()) < 4.5
    of_short = counts[LENGTHS.index(3), :3]  # 8 samples of 3 rows: no row is always among those that are there three times
    assert float(of_short.max() - of_short.min()) < 0.1 * expected


def test_episodes_go_on_from_one_block_to_the_next():
    whole = rows_of_episodes()
    parts = [whole.where(torch.arange(len(whole)) // 40 == part) for part in range(3)]
    for ours, theirs in zip(batches(dataset_of(*parts)).draw(5)[0], batches(dataset_of()).draw(5)[0], strict=True):
        assert torch.equal(samples(ours), samples(theirs))
        assert torch.equal(ours.before, theirs.before)


def test_forgotten_rows_are_no_samples():
    """Of the second block nothing is forgotten; the episode that goes on in it has its burn-in in the first."""
    first, second = rows_of_episodes([40]), rows_of_episodes([60, 9])
    second = second.where((second.episodes == 1) | (second.observations[:, 1] >= 40))
    dataset = dataset_of(first, second)
    dataset.forget(40)
    burnt = 0
    for inputs in batches(dataset).draw(20)[0]:
        found = samples(inputs).flatten(0, 1)
        assert ((found[:, 0] == 1) | (found[:, 1] >= 40)).all()
        early = (inputs.window[:, 0, :, 1] == 40) & (inputs.window[:, 0, :, 0] == 0)
        assert (inputs.num_before[early] == BURN_IN).all()
        burnt += int(early.sum())
    assert burnt


def test_draws_of_several_steps_are_those_of_as_many_calls(tmp_path):
    at_once = batches(dataset_of()).draw(4)[0]
    source = batches(dataset_of(folder=tmp_path))  # on disk the rows are the same
    for inputs in at_once:
        assert torch.equal(samples(inputs), samples(source.draw(1)[0][0]))


# Gradients.


def inputs_of(members: int, burn_in: int = BURN_IN) -> Sequences:
    draws = generator(9)
    count = BATCH // LENGTH
    return Sequences(
        torch.randn(members, burn_in, count, 2, generator=draws),
        torch.randint(burn_in + 1, (members, count), generator=draws),
        torch.randn(members, LENGTH, count, 2, generator=draws),
        torch.randint(LENGTH * count, (members, BATCH), generator=draws),
    )


def test_a_member_is_its_row_and_answers_as_its_student():
    made, inputs = stack(), inputs_of(2)
    assert made.flat.shape == (2, made.architecture.params)
    outputs = made.forward(inputs, made.buffers(BATCH))
    for member in range(2):
        student = made.member(member)
        for sequence in range(BATCH // LENGTH):
            count = int(inputs.num_before[member, sequence])
            seen = torch.cat([inputs.before[member, :count, sequence], inputs.window[member, :, sequence]])
            expected = student.unroll(seen[:, None])[0][count:, 0]
            of_sequence = inputs.read[member] % (BATCH // LENGTH) == sequence
            steps = inputs.read[member][of_sequence] // (BATCH // LENGTH)
            torch.testing.assert_close(outputs[member].T[of_sequence], expected[steps], rtol=1e-4, atol=1e-5)
    assert torch.equal(stack(1, seeds=1).flat[0], made.flat[1])  # member k begins as it would alone


def test_the_gradient_is_the_numeric_one_with_the_state_after_the_burn_in_held_fixed():
    made, inputs = stack(1), inputs_of(1, burn_in=0)
    activations, slope = made.buffers(BATCH), torch.randn(1, 3, BATCH, generator=generator(1))
    made.forward(inputs, activations)
    activations.slopes[-1].copy_(slope)
    made.backward(inputs, activations)
    gradient, flat = made.gradient.clone(), made.flat.clone()
    direction, ends = torch.randn(flat.shape, generator=generator(2)), []
    for step in (1e-2, -1e-2):
        made.flat.copy_(flat + step * direction)
        ends.append(float((made.forward(inputs, activations).double() * slope).sum()))
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float((gradient * direction).sum()), rel=0.02)


def test_the_burn_in_gives_a_state_and_no_gradient():
    made, inputs = stack(1), inputs_of(1)
    inputs.before.requires_grad_()
    inputs.window.requires_grad_()
    activations = made.buffers(BATCH)
    outputs = made.forward(inputs, activations).clone()
    activations.slopes[-1].copy_(torch.ones(1, 3, BATCH))
    made.backward(inputs, activations)
    assert inputs.before.grad is None
    assert inputs.window.grad is not None
    assert float(inputs.window.grad.abs().sum()) > 0
    without = dataclasses.replace(inputs, num_before=torch.zeros_like(inputs.num_before))
    assert not torch.equal(made.forward(without, activations), outputs)
    unread = dataclasses.replace(inputs, before=inputs.before.detach().clone())
    for sequence, count in enumerate(inputs.num_before[0].tolist()):
        unread.before[0, count:, sequence] = 99.0  # what fills up a short burn-in is not read
    assert torch.equal(made.forward(unread, activations), outputs)


# Answers of a trained student.


def test_answers_are_those_along_whole_episodes():
    dataset, student = dataset_of(rows_of_episodes(), rows_of_episodes([5] * 20, first=6), holdout=0.3), recurrent_student(SPACE, ACTIONS)
    assert dataset.num_held_out
    told = all_outputs(student, dataset)
    for held_out in (False, True):
        places, numbers = dataset.held_out_episodes() if held_out else dataset.training_episodes()
        seen = dataset.take_rows(places)
        for episode in numbers.unique():
            own = seen[numbers == episode]
            assert torch.equal(own[:, 1], torch.arange(len(own)).float())
            torch.testing.assert_close(told[places[numbers == episode]], student.unroll(own[:, None])[0][:, 0], rtol=1e-4, atol=1e-5)
        found = sampled_outputs(student, dataset, 1000, held_out=held_out)
        assert found is not None
        assert len(found[0]) == len(places)
        assert sorted(found[0][:, 0].tolist()) == pytest.approx(sorted(told[places, 0].tolist()), rel=1e-4, abs=1e-5)
        assert torch.equal(found[1].actions.sort()[0], dataset.take_targets(places).actions.sort()[0])
    few = sampled_outputs(student, dataset, 30)
    assert few is not None
    assert 0 < len(few[0]) < 80
    assert sampled_outputs(student, dataset_of(), 10, held_out=True) is None


# Recall: what was shown at the episode's start must be named at its end.


def recalling(memory: int, seed: int = 0) -> tuple[Student, float]:
    """A student of two rounds, in the second of which it acts beside a teacher that remembers; and its mean return."""
    architecture = Architecture(Recall.observation_space, Recall().action_space, (8,), memory=memory)
    dataset = Dataset(2000, holdout=0.1, device=CPU, sequences=memory > 0)
    collector, teacher = Collector(RECALL, indices=range(4), num_envs=4, seed=seed), RecallTeacher()
    config = TrainConfig(gradient_steps=240, batch_size=64, sequence_length=8, burn_in=4, average_decay=0.99)
    trainer = Trainer(
        stack_of(architecture, architecture.new_encoder(), generators=[generator(seed)]),
        Objective(LossConfig(), family_of(architecture.action_space)),
        config,
        [generator(seed + 1)],
    )
    student: Student | None = None
    for index in range(2):
        dataset.append(collector.collect(250, teacher, student, 0.5**index, round_index=index))  # type: ignore[arg-type]
        trainer.run(dataset, 120)
        (student,) = trainer.students(dataset)
    assert student is not None
    held_out = trainer.validate(dataset, student)["forward_kl_nats"]
    assert held_out < 0.1 if memory else held_out > 0.5
    return student, float(evaluate(student, RECALL, range(100)).returns.mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_memory_reaches_the_best_return(seed):
    student, earned = recalling(8, seed)
    assert earned == 1.0
    one_by_one = evaluate(student, RECALL, range(30), num_envs=1)
    np.testing.assert_array_equal(one_by_one.returns, evaluate(student, RECALL, range(30), num_envs=7).returns)


def test_without_a_memory_it_is_a_guess():
    assert recalling(0)[1] < 1.6 / RECALL_CUES
