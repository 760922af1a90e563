"""Self-distillation: a student teaches the next one of its own architecture (born-again networks, Furlanello et al. 2018, 1805.04770).

Each generation is fitted from fresh weights to everything that was collected, its targets a mixture of the teacher's labels and of what
the generations before it say. As many members as in the rounds are fitted side by side, and the best of them is the generation. One that
earns less than the last on the validation seeds is refused, and the series ends there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from policy_distill.losses.objective import Objective
from policy_distill.pipeline.context import Kept, Run
from policy_distill.pipeline.imitation import new_trainer
from policy_distill.pipeline.records import reports_to, track_generation
from policy_distill.policies.actions import ActionTargets, Parameters
from policy_distill.policies.families import weighted_mean
from policy_distill.policies.student import Student
from policy_distill.support.figures import return_text
from policy_distill.support.trees import Tree, blocks, leaves, on_cpu
from policy_distill.training.dataset import Dataset

CHUNK, CHUNK_NUMBERS = 16_384, 2**26
"""Rows that a student is asked about at once, and numbers in these observations."""


@dataclass(frozen=True)
class Generation:
    """One student taught by a student.

    Attributes:
        generation: counted from 1; 0 is the student that the rounds left.
        gradient_steps: of this generation.
        train, held_out: each loss term's mean; the held-out one is against the same mixed targets.
        validation_return_mean, validation_retention: on all validation seeds.
        paired_difference: mean over the seeds of its return minus the last kept one's.
        validation_retention_standard_error: paired by seed; see ``Run.retention_standard_error``.
        kept: whether the difference is not below zero.
    """

    generation: int
    gradient_steps: int
    train: dict[str, float]
    held_out: dict[str, float]
    validation_return_mean: float
    validation_retention: float
    paired_difference: float
    kept: bool
    validation_retention_standard_error: float = float("nan")

    def figures(self) -> str:
        """One line for the display."""
        verdict = "kept" if self.kept else "refused"
        return (
            f"generation {self.generation}  return {return_text(self.validation_return_mean)}  retention {self.validation_retention:.3f}  "
            f"{self.paired_difference:+.2f} a pair against the last: {verdict}"
        )


@dataclass
class Lineage:
    """What self-distillation left: the student to go on with, and the record of each generation."""

    kept: Kept
    generations: list[Generation] = field(default_factory=list)

    def summary(self) -> list[dict[str, Any]]:
        """For result.json."""
        return [dataclasses.asdict(generation) for generation in self.generations]


def self_distill(run: Run, kept: Kept, dataset: Dataset) -> Lineage:
    """Let students teach students until one does worse, ``self_distill.generations`` at most."""
    config, job = run.job.config.self_distill, run.job
    num_members = job.config.train.members_of(job.architecture.params)
    lineage, forebears = Lineage(kept), [kept.student]
    steps = config.gradient_steps or job.config.train.gradient_steps
    if config.generations:
        run.display.start("self-distillation", config.generations * steps, "steps")
    for number in range(1, config.generations + 1):
        run.display.stage(f"generation {number}")
        mentors = forebears if config.ensemble else forebears[-1:]
        with run.watch.measure("train"):
            mixed = dataset.relabelled(functools.partial(mix_targets, job.objective, mentors, config.teacher_weight))
            trainer = new_trainer(job, mixed, steps, generation=number, members=num_members)
            report = reports_to(run.tracker, run.display, "self_distill_steps", f"generation {number}: training", run.gradient_steps)
            losses = trainer.run(mixed, steps, report)
            siblings = trainer.students(dataset)
        with run.watch.measure("evaluate"):
            best, played = run.choose(siblings, [episodes.returns for episodes in run.validate(siblings)])
        assert best is not None, "nobody has to keep a certain share"
        student, returns = siblings[best], played[best]
        with run.watch.measure("train"):
            held_out = trainer.validate(mixed, student)
        run.gradient_steps += steps
        difference = float((returns - lineage.kept.returns).mean())
        mean, share = float(returns.mean()), run.retention(returns)
        error = run.retention_standard_error(returns)
        lineage.generations.append(Generation(number, steps, losses, held_out, mean, share, difference, difference >= 0, error))
        run.display.note(lineage.generations[-1].figures())
        track_generation(run.tracker, number, losses, mean, share, difference)
        if difference < 0:
            break
        forebears.append(student)
        lineage.kept = Kept(student, returns, f"generation {number}")
    return lineage


@torch.no_grad()
def mix_targets(
    objective: Objective, mentors: Sequence[Student], teacher_weight: float, observations: Tree, targets: ActionTargets
) -> ActionTargets:
    """The teacher's targets mixed with the mean of its pupils', row by row.

    Distributions are mixed as probabilities, Gaussians by their first two moments, actions as they are executed; what a mixture cannot
    change (recorded layers) stays the teacher's.

    Args:
        objective: of the run; it turns Q-values into logits.
        mentors: students whose mean is mixed in.
        teacher_weight: share of the teacher, in [0, 1].
        observations: ``[B, ...]`` raw.
        targets: the teacher's labels of them.
    """
    device, family, parameters = targets.actions.device, objective.family, dict(targets.parameters)
    shares = [teacher_weight, *[(1 - teacher_weight) / len(mentors)] * len(mentors)]
    told = [_ask(mentor, on_cpu(observations), device) for mentor in mentors]
    if objective.kind == "regression":
        actions = weighted_mean([targets.actions, *map(mentors[0].family.mode, told)], shares)
        return ActionTargets(parameters, actions)
    mixed = family.mix([objective.distribution_of(parameters), *told], shares)
    parameters.pop("q_values", None)
    return ActionTargets({**parameters, **mixed}, family.mode(mixed))


def _ask(mentor: Student, observations: Tree, device: torch.device) -> Parameters:
    """The parameters of a student's distribution for all rows."""
    numbers = sum(leaf[0].numel() for leaf in leaves(observations))
    parts = [mentor.parameters_of(rows) for rows in blocks(observations, min(CHUNK, 1 + CHUNK_NUMBERS // numbers))]
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
