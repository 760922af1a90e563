"""Constant inputs: the student's first layer leaves them out, and the student's size is chosen without them."""

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
"""Minimum number of rows to decide that an input is constant."""
CONSTANT = 1e-3
"""An input was constant in the teacher's training if its standard deviation in the VecNormalize statistics is at most this. That of a
constant input is at most ``sqrt(2 epsilon)`` after 10,000 steps, with ``epsilon`` 1e-8."""


def varying_inputs(job: Job, dataset: Dataset) -> tuple[int, ...] | None:
    """Components of the student's inputs that vary; None if all may vary, or there are too few rows to decide.

    Only components of floating-point boxes can count as constant: a one-hot component may belong to a value that was not visited yet.
    Components that varied in the teacher's training, according to its statistics, count as varying.
    """
    architecture = job.architecture
    if architecture.channels or job.config.student.same or len(dataset) < MIN_ROWS:
        return None
    varies = _varied(job.teacher, job) | ~_floating(architecture.seen_space) | varied_in(dataset, architecture.seen_space)
    return None if varies.all() or not varies.any() else tuple(np.flatnonzero(varies).tolist())


def varied_in(dataset: Dataset, space: gym.Space) -> np.ndarray:
    """Mask ``[width]`` of the components of encoded observations that differ between any two rows of the dataset."""
    first: torch.Tensor | None = None
    varied = torch.zeros(observation_width(space), dtype=torch.bool, device=dataset.device)
    for observations, _ in dataset.blocks():
        encoded = encode_observations(space, observations, torch.float64).to(dataset.device)
        first = encoded[0].clone() if first is None else first
        varied |= (encoded != first).any(0)
    return varied.cpu().numpy()


def settled(job: Job, columns: tuple[int, ...] | None) -> Job:
    """The job with a student that reads only these components; its layer sizes are chosen for this number of inputs."""
    if columns is None or job.architecture.columns == columns:
        return job
    before = job.architecture
    chosen = choose_architecture(job.config.student, job.teacher, before.view, columns)
    architecture = dataclasses.replace(chosen, action_units=before.action_units)
    _, projections = settle_layers(job.config.loss, job.teacher, architecture)
    return dataclasses.replace(job, architecture=architecture, projections=projections)


def _floating(space: gym.Space) -> np.ndarray:
    """Mask ``[width]`` of the components of an encoded observation that come from floating-point boxes."""
    parts = leaf_spaces(space).values()
    return np.concatenate(
        [np.full(observation_width(part), isinstance(part, gym.spaces.Box) and np.dtype(part.dtype).kind == "f") for part in parts]
    )


def _varied(teacher: Teacher, job: Job) -> np.ndarray:
    """Mask ``[width]`` of the student's inputs that varied in the teacher's training, according to its statistics."""
    view = job.architecture.view
    columns = range(observation_width(job.architecture.seen_space)) if view is None else view.columns
    if teacher.normalization is None or columns is None:
        return np.zeros(observation_width(job.architecture.seen_space), bool)
    varied: np.ndarray = teacher.scale.cpu().numpy().ravel()[list(columns)] > CONSTANT
    return varied
