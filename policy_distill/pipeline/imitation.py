"""The first stage: rounds of collecting, labelling and fitting, after which the best round's student is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from policy_distill.pipeline.context import Services, kept_enough
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.records import Candidate, reports_to, track_round, track_validation
from policy_distill.pipeline.state import Kept, State
from policy_distill.pipeline.varying import settled, varied_in, varying_inputs
from policy_distill.policies.observations import observation_width
from policy_distill.policies.student import Student
from policy_distill.rollouts.collect import Exploration, label_states
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.rollouts.transitions import Transitions
from policy_distill.support.figures import return_text
from policy_distill.support.seeds import derived_seed
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks import stack_of
from policy_distill.training.trainer import Trainer


def imitate(state: State, services: Services) -> State:
    """One round: train the students on their teacher's labels of states that are, round after round, more often the student's own.

    With several members, which differ in their first weights and in their batches alone, the one that did best in the last round that was
    measured acts, and each of them is a candidate in every round. The rounds end early where ``collect.enough`` says so. While this
    process trains, the workers measure: the last round's students, and a share of what teacher and random policy earn on the final seeds,
    which does not depend on the student.
    """
    job, display, index = services.job, services.display, len(state.records)
    rounds, enough = job.config.collect.rounds, job.config.collect.enough
    last = index + 1 == rounds or kept_enough(_shares(state, job.num_members), enough)
    if services.collected_rounds == 0:
        display.start("measuring the teacher", job.config.train.gradient_steps - state.gradient_steps, "steps")
    display.stage(f"round {index + 1}: collecting")
    collected = state.env_steps
    with state.measure("collect"):
        rewards = _collect(state, services, index)
    state.env_steps = len(state.dataset) - job.num_extra_states
    if index == 0:
        job = _leave_out_constants(state, services)
    final_seeds = evaluation_seeds("final", job.config.evaluate.episodes)
    share = [seed for part in range(index, rounds if last else index + 1) for seed in final_seeds[part::rounds]]
    members = state.students[len(state.returns) :]
    with state.measure("evaluate"):
        waiting = [services.begin_validation(state, member) for member in members]
        waiting = waiting or [services.begin(state, who, state.seeds) for who in ("teacher", "random")]
        finals = [services.begin(state, who, share) for who in ("teacher", "random") if share]
    display.stage(f"round {index + 1}: training")
    with state.measure("train"):
        if state.trainer is None:
            state.trainer = new_trainer(job, state.dataset, job.config.train.gradient_steps, members=job.num_members)
        trainer, steps = state.trainer, part_of(job.config.train.gradient_steps, rounds, index)
        if last and index + 1 < rounds:
            trainer.finish_in(steps)
        losses = trainer.run(state.dataset, steps, reports_to(services.tracker, display, "train_steps", f"round {index + 1}: training"))
        trained = trainer.students(state.dataset)
        held_out = trainer.validate(state.dataset, trained[0])
    with state.measure("evaluate"):
        answers = [pending.result().returns for pending in waiting]
        for parts, pending in zip((state.teacher_parts, state.random_parts), finals, strict=False):
            parts.append(pending.result())
    if members:
        _note_validation(state, services, answers)
    else:
        state.teacher_returns, state.random_returns = answers
        display.note(f"teacher {return_text(answers[0].mean())}, random policy {return_text(answers[1].mean())}")
    state.students += trained
    state.gradient_steps = trainer.gradient_steps
    probability = job.config.collect.teacher_action_prob_in(index)
    record = Candidate("round", index + 1, state.env_steps, state.gradient_steps, losses, held_out, teacher_action_prob=probability)
    state.records.append(record)
    track_round(services.tracker, record, rewards / (state.env_steps - collected), trainer.learning_rate, state.seconds)
    if last:
        state.stage = "choice"
    return state


def choose_round(state: State, services: Services) -> State:
    """Keep the best of all rounds' students."""
    services.display.stage("choosing a round")
    num_members = services.job.num_members
    with state.measure("evaluate"):
        _note_validation(state, services, services.validate(state, state.students[len(state.returns) :]))
        best, full = services.choose(state, state.students, state.returns)
    assert best is not None, "nobody has to keep a certain share"
    # of a round's finalists the one that came furthest is recorded
    for number in sorted(full, key=lambda candidate: (len(full[candidate]), full[candidate].mean(), candidate)):
        index = number // num_members
        state.records[index] = state.records[index].as_finalist(full[number])
    chosen, member = divmod(best, num_members)
    state.records[chosen] = dataclasses.replace(state.records[chosen], kept=True)
    origin = f"round {chosen + 1}" + (f", member {member + 1}" if num_members > 1 else "")
    state.kept.append(Kept(state.students[best], full[best], origin))
    state.trainer, state.students, state.returns = None, [], []
    if state.reused_episodes:
        what = f"{state.reused_episodes} episodes of teacher and random policy are known from earlier jobs"
        services.display.note(f"{what}; --evaluate.reuse_returns false plays them again")
    state.stage = "self_distillation"
    _note_late_variation(state, services)
    return state


def _leave_out_constants(state: State, services: Services) -> Job:
    """Settle which inputs the student's first layer reads, from the first round's rows; return the job with the sizes that follow."""
    state.columns = varying_inputs(services.job, state.dataset)
    services.job = job = settled(services.job, state.columns)
    if state.columns is not None:
        inputs = observation_width(job.architecture.seen_space)
        sizes = f"{list(job.architecture.hidden_sizes)}, {job.architecture.params:,} parameters"
        notice = (
            f"{inputs - len(state.columns)} of {inputs} inputs do not vary in the first round's {len(state.dataset):,} rows "
            f"and are left out of the first layer: {sizes}"
        )
        state.notices.append(notice)
        services.display.note(f"note: {notice}")
    return job


def _note_late_variation(state: State, services: Services) -> None:
    """Say which inputs were left out and varied in a later round."""
    if state.columns is None:
        return
    varied = np.flatnonzero(varied_in(state.dataset, services.job.architecture.seen_space))
    if late := sorted(set(varied.tolist()) - set(state.columns)):
        notice = f"the inputs {late} varied in later rounds for the first time: the student does not read them; collect more in each round"
        state.notices.append(notice)
        services.display.note(f"note: {notice}")


def actor_of(state: State, index: int, num_members: int) -> Student | None:
    """Who acts beside the teacher in round ``index``: of the last round's students the member that did best in the round before that one.

    The last round's own students are measured while round ``index`` trains; in round 0 the teacher acts alone.
    """
    if index == 0:
        return None
    measured = _rounds(state.returns, num_members)[: index - 1]
    return _rounds(state.students, num_members)[index - 1][_best(measured[-1]) if measured else 0]


def _collect(state: State, services: Services, index: int) -> float:
    """Add a round's transitions to the dataset and return the sum of their rewards.

    Episodes go on from one round to the next. Rollouts that are new to the run bring their environments to where they must stand by
    collecting the rounds before once more: who acted in them follows from the state.
    """
    job, dataset = services.job, state.dataset
    for earlier in range(services.collected_rounds, index):
        for _ in _transitions(state, services, earlier):
            pass
    services.collected_rounds = index + 1
    state.first_rows.append(dataset.num_train)
    rewards = 0.0
    for transitions in _transitions(state, services, index):
        dataset.append(transitions)
        rewards += float(transitions.rewards.sum(dtype=torch.float64))
    if index == 0 and job.extra_states is not None:
        dataset.append(label_states(job.teacher, job.extra_states, job.architecture.view))
    if job.config.collect.window is not None:
        dataset.forget(state.first_rows[max(index + 1 - job.config.collect.window, 0)])
    return rewards


def _transitions(state: State, services: Services, index: int) -> Iterator[Transitions]:
    """Collect round ``index``."""
    job, config = services.job, services.job.config.collect
    box = job.teacher.family.box
    exploration = Exploration(config.epsilon, config.action_noise, box if box is not None and box.units is not None else None)
    steps = part_of(config.env_steps // config.num_envs, config.rounds, index)
    actor = actor_of(state, index, job.num_members)
    return services.rollouts.collect(steps, actor, config.teacher_action_prob_in(index), index, exploration)


def _note_validation(state: State, services: Services, answers: list[np.ndarray]) -> None:
    """Record how the members of the last round did."""
    state.returns += answers
    state.records[-1] = record = state.validated(state.records[-1], answers[_best(answers)])
    services.display.note(record.figures())
    track_validation(services.tracker, record, record.env_steps, state.reference)


def _rounds(of_students: Sequence[Any], num_members: int) -> list[Sequence[Any]]:
    """What there is of each student, round by round."""
    return [of_students[first : first + num_members] for first in range(0, len(of_students), num_members)]


def _best(returns: Sequence[np.ndarray]) -> int:
    """The first member of those whose mean return is the highest."""
    return max(range(len(returns)), key=lambda member: returns[member].mean())


def _shares(state: State, num_members: int) -> list[float]:
    """Of each round that was measured: the retention of its students together."""
    return [state.retention(np.mean(returns, axis=0)) for returns in _rounds(state.returns, num_members)]


def new_trainer(job: Job, dataset: Dataset, gradient_steps: int, *, generation: int = 0, members: int = 1) -> Trainer:
    """Fresh students, normalised by the observations that there are.

    Args:
        job: the request.
        dataset: what was collected so far.
        gradient_steps: over which the learning rate falls.
        generation: of self-distillation; each starts from weights of its own.
        members: students in the stack, each with weights and batches of its own; the first is what a stack of one holds.
    """
    dtype = torch.float64 if job.teacher.needs_float64 else torch.float32
    encoder = job.architecture.new_encoder()
    encoder.normalize(lambda: (observations for observations, _ in dataset.blocks()), dtype)
    seeds = [_seed(job.config.seed, generation, member) for member in range(members)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    stack = stack_of(job.architecture, encoder.to(job.device), generators=generators, projections=job.projections)
    config = dataclasses.replace(job.config.train, gradient_steps=gradient_steps)
    return Trainer(stack, job.objective, config, [torch.Generator(job.device).manual_seed(seed) for seed in seeds])


def _seed(run_seed: int, generation: int, member: int) -> int:
    """Of a student's weights and batches; the first one's is the run's own."""
    if generation == member == 0:
        return run_seed
    return derived_seed(run_seed, 3, generation, member)


def part_of(total: int, parts: int, index: int) -> int:
    """Part ``index`` of ``total`` cut into nearly equal parts."""
    return total * (index + 1) // parts - total * index // parts
