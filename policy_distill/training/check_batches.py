"""Checks of the batches that a request asks for."""

from __future__ import annotations

from policy_distill.config import DistillConfig, RequestError
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.encoders import image_sizes, may_be_image
from policy_distill.support.trees import leaf_spaces


def check_shifts(config: DistillConfig, architecture: Architecture) -> None:
    """Whether there are images that can be shifted.

    Raises:
        RequestError: if the student reads no images, if they are too small, or if it has a memory, whose sequences are not shifted.
    """
    if not config.train.random_shift:
        return
    if not architecture.channels:
        raise RequestError("train.random_shift shifts images, and the student has no convolutions: leave it out")
    if architecture.memory:
        raise RequestError("train.random_shift shifts single observations, and the student has a memory: leave it out")
    side = min(min(image_sizes(part)[1:]) for part in leaf_spaces(architecture.seen_space).values() if may_be_image(part))
    if config.train.random_shift >= side:
        raise RequestError(
            f"train.random_shift is {config.train.random_shift}, and an image has a side of {side} pixels: choose a smaller one"
        )


def check_sequences(config: DistillConfig) -> None:
    """What a student with a memory is trained on.

    Raises:
        RequestError: if there are no sequences of the length that is asked for, or something reads single observations.
    """
    length, batch = config.train.sequence_length, config.train.batch_size_of(single_images=False)
    if batch % length:
        raise RequestError(
            f"train.batch_size is {batch}, and a student with a memory is trained on sequences of {length} steps: choose a multiple of "
            "train.sequence_length"
        )
    if config.value.hidden_sizes is not None:
        raise RequestError("value.hidden_sizes asks for a network on single observations, and the student has a memory: leave it out")
    if config.collect.extra_states is not None:
        raise RequestError(
            "collect.extra_states are single observations, and a student with a memory needs what came before them: leave it out"
        )
