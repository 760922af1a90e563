"""The first stage: rounds of collecting, labelling and fitting, after which the best round's student is kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from policy_distill.config import DistillConfig
from policy_distill.pipeline.context import Kept, Run, as_finalist, kept_enough
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.records import Round, reports_to, track_round, track_validation
from policy_distill.policies.student import Student
from policy_distill.rollouts.collect import Exploration, label_states
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds
from policy_distill.support.figures import return_text
from policy_distill.support.seeds import derived_seed
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks import stack_of
from policy_distill.training.trainer import Trainer


@dataclass(frozen=True)
class Imitation:
    """What the rounds left.

    Attributes:
        rounds: their records.
        chosen: index of the one that was kept.
        kept: its student.
        dataset: everything that was collected, and the extra states.
        teacher_parts, random_parts: what teacher and random policy earned on the final seeds, measured in shares while rounds trained.
    """

    rounds: list[Round]
    chosen: int
    kept: Kept
    dataset: Dataset
    teacher_parts: list[Episodes]
    random_parts: list[Episodes]


def imitate(run: Run) -> Imitation:
    """Train the student on its teacher's labels of states that are, round after round, more often the student's own.

    With several members, which differ in their first weights and in their batches alone, the one that did best in the last round that was
    measured acts, and each of them is a candidate in every round. The rounds end early where ``collect.enough`` says so.
    """
    job, watch, display, tracker = run.job, run.watch, run.display, run.tracker
    config = job.config
    folder = job.folder if config.collect.storage == "disk" else None
    capacity = _total_env_steps(config) + job.num_extra_states
    dataset = Dataset(capacity, holdout=config.train.holdout, device=job.device, folder=folder)
    final_seeds = evaluation_seeds("final", config.evaluate.episodes)
    box = job.teacher.family.box
    wide = box if box is not None and box.units is not None else None
    exploration = Exploration(config.collect.epsilon, config.collect.action_noise, wide)
    trainer: Trainer | None = None
    members: list[Student] = []
    candidates: list[Student] = []
    validations: list[Episodes] = []
    rounds: list[Round] = []
    first_rows: list[int] = []
    teacher_parts: list[Episodes] = []
    random_parts: list[Episodes] = []
    num_members = config.train.members_of(job.architecture.params)
    driver = 0
    shares: list[float] = []  # of each round that was measured: what its students together keep

    def note_validation(answers: list[Episodes]) -> int:
        """Record how the members of the last round did and return the best of them."""
        validations.extend(answers)
        shares.append(run.retention(np.mean([episodes.returns for episodes in answers], axis=0)))
        best = max(range(len(answers)), key=lambda member: answers[member].returns.mean())
        error = run.retention_standard_error(answers[best].returns)
        record = rounds[-1].validated(answers[best].returns, *run.validation_reference)
        rounds[-1] = record = dataclasses.replace(record, validation_retention_standard_error=error)
        display.note(record.figures())
        track_validation(tracker, record.env_steps, record.validation_return_mean, record.validation_retention, run.validation_reference)
        return best

    display.start("measuring the teacher", config.train.gradient_steps, "steps")
    for index in range(config.collect.rounds):
        last = index + 1 == config.collect.rounds or kept_enough(shares, config.collect.enough)
        display.stage(f"round {index + 1}: collecting")
        probability = config.collect.teacher_action_prob_in(index)
        first_rows.append(dataset.num_train)
        rewards = 0.0
        with watch.measure("collect"):
            actor = members[driver] if members else None
            for transitions in run.rollouts.collect(_round_steps(config, index), actor, probability, index, exploration):
                dataset.append(transitions)
                rewards += float(transitions.rewards.sum(dtype=torch.float64))
            if index == 0 and job.extra_states is not None:
                dataset.append(label_states(job.teacher, job.extra_states))
        if config.collect.window is not None:
            dataset.forget(first_rows[max(index + 1 - config.collect.window, 0)])
        # While this process trains, the workers measure: the last round's students, and a share of what teacher and random policy earn
        # on the final seeds, which does not depend on the student.
        share = [
            seed
            for part in range(index, config.collect.rounds if last else index + 1)
            for seed in final_seeds[part :: config.collect.rounds]
        ]
        with watch.measure("evaluate"):
            waiting = [run.begin_validation(member) for member in members] or [run.begin(who, run.seeds) for who in ("teacher", "random")]
            final_waiting = [run.begin(who, share) for who in ("teacher", "random") if share]
        display.stage(f"round {index + 1}: training")
        with watch.measure("train"):
            trainer = trainer or new_trainer(job, dataset, config.train.gradient_steps, members=num_members)
            gradient_steps = part_of(config.train.gradient_steps, config.collect.rounds, index)
            if last and index + 1 < config.collect.rounds:
                trainer.finish_in(gradient_steps)
            report = reports_to(tracker, display, "train_steps", f"round {index + 1}: training")
            losses = trainer.run(dataset, gradient_steps, report)
            trained = trainer.students(dataset)
            held_out = trainer.validate(dataset, trained[0])
        with watch.measure("evaluate"):
            answers = [answer() for answer in waiting]
            finals = [answer() for answer in final_waiting]
        teacher_parts += finals[:1]
        random_parts += finals[1:]
        if members:
            driver = note_validation(answers)
        else:
            run.teacher_returns, run.random_returns = answers[0].returns, answers[1].returns
            display.note(f"teacher {return_text(run.teacher_returns.mean())}, random policy {return_text(run.random_returns.mean())}")
        members = trained
        candidates += trained
        run.env_steps, run.gradient_steps = len(dataset) - job.num_extra_states, trainer.gradient_steps
        rounds.append(Round(index, run.env_steps, run.gradient_steps, probability, losses, held_out))
        reward_mean = rewards / (run.env_steps - (rounds[-2].env_steps if index else 0))
        track_round(tracker, rounds[-1], reward_mean, trainer.learning_rate, watch.seconds)
        if last:
            break

    display.stage("choosing a round")
    with watch.measure("evaluate"):
        note_validation(run.validate(members))
        best, full = run.choose(candidates, [episodes.returns for episodes in validations])
    assert best is not None, "nobody has to keep a certain share"
    # of a round's finalists the one that came furthest is recorded
    for number in sorted(full, key=lambda candidate: (len(full[candidate]), full[candidate].mean(), candidate)):
        index = number // num_members
        rounds[index] = as_finalist(rounds[index], full[number])
    chosen, member = divmod(best, num_members)
    origin = f"round {chosen + 1}" + (f", member {member + 1}" if num_members > 1 else "")
    return Imitation(rounds, chosen, Kept(candidates[best], full[best], origin), dataset, teacher_parts, random_parts)


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


def _round_steps(config: DistillConfig, index: int) -> int:
    """Steps that each environment takes in a round."""
    return part_of(config.collect.env_steps // config.collect.num_envs, config.collect.rounds, index)


def _total_env_steps(config: DistillConfig) -> int:
    return config.collect.env_steps // config.collect.num_envs * config.collect.num_envs
