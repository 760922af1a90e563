"""Inputs that never vary: they are left out of the student's first layer, and its size is chosen without them."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import torch

from policy_distill.pipeline.prepare import Job, choose_architecture, settle_layers
from policy_distill.policies.observations import encode_observations, observation_width
from policy_distill.support.trees import leaf_spaces
from policy_distill.teachers import Teacher
from policy_distill.training.dataset import Dataset

MIN_ROWS = 4096
"""Fewer rows do not show that an input never varies."""
CONSTANT = 1e-3
"""A teacher's VecNormalize statistics say that an input never varied where their standard deviation is below this; an input that never
varied has ``sqrt(2 epsilon)`` or less after 10,000 steps, with ``epsilon`` 1e-8."""


def varying_inputs(job: Job, dataset: Dataset) -> tuple[int, ...] | None:
    """Components of what the student sees that vary; None if all of them may, or too few rows are there to tell.

    Only components of floating-point boxes can be constant: the one-hot code of a discrete observation that was not visited yet is not.
    Neither is one that varied while the teacher was trained, as far as its statistics say.
    """
    architecture = job.architecture
    if architecture.channels or job.config.student.same or len(dataset) < MIN_ROWS:
        return None
    varies = _varied(job.teacher, job) | ~_floating(architecture.seen_space) | varied_in(dataset, architecture.seen_space)
    return None if varies.all() or not varies.any() else tuple(np.flatnonzero(varies).tolist())


def varied_in(dataset: Dataset, space: gym.Space) -> np.ndarray:
    """Which components ``[width]`` of encoded observations differ between any two rows of the dataset."""
    first: torch.Tensor | None = None
    varied = torch.zeros(observation_width(space), dtype=torch.bool, device=dataset.device)
    for observations, _ in dataset.blocks():
        encoded = encode_observations(space, observations, torch.float64).to(dataset.device)
        first = encoded[0].clone() if first is None else first
        varied |= (encoded != first).any(0)
    return varied.cpu().numpy()


def settled(job: Job, columns: tuple[int, ...] | None) -> Job:
    """The job whose student reads these components alone; its sizes are those that the configuration gives for so many inputs."""
    if columns is None or job.architecture.columns == columns:
        return job
    before = job.architecture
    chosen = choose_architecture(job.config.student, job.teacher, before.view, columns)
    architecture = dataclasses.replace(chosen, action_units=before.action_units)
    _, projections = settle_layers(job.config.loss, job.teacher, architecture)
    return dataclasses.replace(job, architecture=architecture, projections=projections)


def _floating(space: gym.Space) -> np.ndarray:
    """Which components ``[width]`` of an encoded observation are floating-point numbers of a box."""
    parts = leaf_spaces(space).values()
    return np.concatenate(
        [np.full(observation_width(part), isinstance(part, gym.spaces.Box) and np.dtype(part.dtype).kind == "f") for part in parts]
    )


def _varied(teacher: Teacher, job: Job) -> np.ndarray:
    """Which components ``[width]`` of what the student sees varied in the teacher's training, as far as its statistics say."""
    view = job.architecture.view
    seen = range(observation_width(job.architecture.seen_space)) if view is None else view.columns
    if teacher.normalization is None or seen is None:
        return np.zeros(observation_width(job.architecture.seen_space), bool)
    found: np.ndarray = teacher.scale.cpu().numpy().ravel()[list(seen)] > CONSTANT
    return found
