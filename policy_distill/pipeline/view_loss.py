"""The loss due to hidden inputs: two wide networks trained on the same data, one with the student's inputs and one with all inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from policy_distill.config import FeatureConfig, RelationConfig, TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.state import State
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.report.rows import view_text
from policy_distill.support.seeds import derived_seed
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks import stack_of
from policy_distill.training.trainer import Trainer

WIDE, GRADIENT_STEPS = (64, 64), 4_000
"""Hidden layers and gradient steps of both networks, which have more capacity than a small student."""


def compare_views(state: State, services: Services) -> State:
    """Measure the loss due to the student's view, if it hides information."""
    job, state.stage = services.job, "evaluation"
    if job.architecture.view is None or not job.architecture.view.hides or not state.dataset.num_held_out:
        return state
    services.display.stage("measuring the loss of a student that sees everything")
    with state.timed("train"):
        state.view_loss = view_loss(job, state.dataset, state.kept[-1].student)
    losses = state.view_loss
    services.tracker.scalars("view", {name: losses[name] for name in ("seen", "everything")}, state.env_steps)
    services.display.note(f"lowest held-out loss: {view_text(losses)}")
    return state


def view_loss(job: Job, dataset: Dataset, student: Student) -> dict[str, Any]:
    """Held-out losses of a wide network with the student's view and of one with all inputs, after the same training.

    The student was trained for longer. If its own loss is lower than that of the network with its view, it is the better estimate.

    Returns:
        ``loss``, its name and unit; ``seen`` and ``everything``, its means over held-out rows; ``hidden_sizes`` and ``gradient_steps`` of
        both networks.
    """
    steps = min(GRADIENT_STEPS, job.gradient_steps)
    viewed = dataclasses.replace(job.architecture, hidden_sizes=WIDE, memory=WIDE[0] if job.architecture.memory else 0)
    full = dataclasses.replace(viewed, view=None, columns=None)
    of_view, own = _held_out(job, viewed, dataset, steps, student)
    (of_everything,) = _held_out(job, full, dataset.seeing_everything(), steps)
    name = next(iter(of_view))
    seen = min(of_view[name], own[name])
    return {"loss": name, "seen": seen, "everything": of_everything[name], "hidden_sizes": list(WIDE), "gradient_steps": steps}


def _held_out(job: Job, architecture: Architecture, dataset: Dataset, steps: int, *others: Student) -> list[dict[str, float]]:
    """Mean of each term of the action loss over held-out rows, for a network of this architecture and for other students."""
    encoder = architecture.new_encoder()
    dtype = torch.float64 if job.teacher.needs_float64 else torch.float32
    encoder.normalize(lambda: (observations for observations, _ in dataset.blocks()), dtype)
    seed = derived_seed(job.config.seed, 11)
    stack = stack_of(architecture, encoder.to(job.device), generators=[torch.Generator().manual_seed(seed)])
    loss = dataclasses.replace(job.objective.config, features=FeatureConfig(), relations=RelationConfig())
    config: TrainConfig = dataclasses.replace(job.config.train, gradient_steps=steps, vary=(), members=1)
    objective = Objective(loss, job.objective.family)
    trainer = Trainer(stack, objective, config, [torch.Generator(job.device).manual_seed(seed)])
    trainer.run(dataset, steps)
    (student,) = trainer.students(dataset)
    return [trainer.validate(dataset, each) for each in (student, *others)]
