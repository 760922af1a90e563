"""Self-distillation: a student teaches the next one of its own architecture (born-again networks, Furlanello et al. 2018, 1805.04770).

Each generation is fitted from fresh weights to the whole dataset. Its targets mix the teacher's labels with the outputs of earlier
generations. As many members as in the rounds are fitted together, and the best of them is the generation. A generation with a lower mean
return than the last on the validation seeds is refused and ends the series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from policy_distill.losses.objective import Objective
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.imitation import new_trainer
from policy_distill.pipeline.records import Candidate, reports_to, track_generation
from policy_distill.pipeline.state import Kept, State
from policy_distill.policies.actions import ActionTargets, Parameters
from policy_distill.policies.families import weighted_mean
from policy_distill.policies.student import Student
from policy_distill.support.trees import Tree, blocks, leaves, on_cpu
from policy_distill.training.dataset import Dataset
from policy_distill.training.sequences import CHUNK, CHUNK_NUMBERS, all_outputs


def self_distill(state: State, services: Services) -> State:
    """Train one generation; the series ends after ``self_distill.generations``, or with the first that is refused."""
    job, display, number = services.job, services.display, len(state.records_of("generation")) + 1
    config = job.config.self_distill
    if number > config.generations:
        state.stage = "polish"
        return state
    steps = config.gradient_steps or job.gradient_steps
    if number == 1:
        display.start("self-distillation", config.generations * steps, "steps")
    display.stage(f"generation {number}")
    mentors = [kept.student for kept in (state.kept if config.ensemble else state.kept[-1:])]
    with state.timed("train"):
        job.objective.calibrate(state.dataset.training_targets())
        ask = [asked(mentor, state.dataset) for mentor in mentors]
        mixed = state.dataset.relabelled(
            lambda rows, observations, targets: mix_targets(
                job.objective, mentors, config.teacher_weight, [mentor(rows, observations) for mentor in ask], targets
            )
        )
        trainer = new_trainer(job, mixed, steps, generation=number, members=job.num_members)
        report = reports_to(services.tracker, display, "self_distill_steps", f"generation {number}: training", state.gradient_steps)
        losses = trainer.run(mixed, steps, report)
        siblings = trainer.students(state.dataset)
    with state.timed("evaluate"):
        best, played = services.choose(state, siblings, services.validate(state, siblings))
    assert best is not None, "without a start no candidate drops out"
    student, returns = siblings[best], played[best]
    with state.timed("train"):
        held_out = trainer.validate(mixed, student)
    state.gradient_steps += steps
    difference = float((returns - state.kept[-1].returns).mean())
    record = Candidate("generation", number, state.env_steps, steps, losses, held_out, paired_difference=difference, kept=difference >= 0)
    state.records.append(record := state.validated(record, returns))
    display.note(record.figures())
    track_generation(services.tracker, record)
    if record.kept:
        state.kept.append(Kept(student, returns, f"generation {number}"))
    else:
        state.stage = "polish"
    return state


@torch.no_grad()
def mix_targets(
    objective: Objective, mentors: Sequence[Student], teacher_weight: float, answers: Sequence[Parameters], targets: ActionTargets
) -> ActionTargets:
    """The teacher's targets mixed with the students' mean, row by row.

    Distributions are mixed as probabilities, Gaussians by their first two moments, deterministic policies by their executed actions.
    Recorded layers stay the teacher's.

    Args:
        objective: the run's objective; it turns Q-values into logits.
        mentors: the students.
        teacher_weight: weight of the teacher, in [0, 1].
        answers: parameters ``[B, ...]`` of each mentor's distribution.
        targets: the teacher's labels of the same observations.
    """
    family, parameters = objective.family, dict(targets.parameters)
    weights = [teacher_weight, *[(1 - teacher_weight) / len(mentors)] * len(mentors)]
    mentor_parameters = [{name: value.to(targets.actions.device) for name, value in answer.items()} for answer in answers]
    if objective.kind == "regression":
        actions = weighted_mean([targets.actions, *map(mentors[0].family.mode, mentor_parameters)], weights)
        return ActionTargets(parameters, actions)
    mixed = family.mix([objective.distribution_of(parameters), *mentor_parameters], weights)
    parameters.pop("q_values", None)
    return ActionTargets({**parameters, **mixed}, family.mode(mixed))


@torch.no_grad()
def asked(mentor: Student, dataset: Dataset) -> Callable[[slice, Tree], Parameters]:
    """From rows of the dataset and their observations to the parameters of a student's distribution, on the CPU.

    One with a memory goes through all episodes beforehand.
    """
    if mentor.architecture.memory:
        outputs = all_outputs(mentor, dataset)
        return lambda rows, _: mentor.distribution(outputs[rows])

    def ask(_: slice, observations: Tree) -> Parameters:
        seen = on_cpu(observations)
        numbers = sum(leaf[0].numel() for leaf in leaves(seen))
        parts = [mentor.parameters_of(rows) for rows in blocks(seen, min(CHUNK, 1 + CHUNK_NUMBERS // numbers))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return ask
