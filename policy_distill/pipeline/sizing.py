"""The student's architecture: from what the user says, or from the teacher's size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import gymnasium as gym
from torch import nn

from policy_distill.config import RequestError, StudentConfig
from policy_distill.policies.architecture import ACTIVATIONS, Architecture, hidden_sizes_for, image_student_for
from policy_distill.policies.encoders import convolutions, images_in, may_be_image, usual_convolutions
from policy_distill.policies.views import View
from policy_distill.support.trees import leaf_spaces
from policy_distill.teachers import RecurrentTeacher, Teacher
from policy_distill.teachers.networks.recording import convolves

USUAL_UNIT = 16
"""Channels of an image student's first convolution if the user gives only the sizes of the head."""
USUAL_MEMORY, SMALLEST_MEMORY = 32, 4
"""Units of a memory if the user gives only the sizes of the head, and the smallest number that is chosen."""


def choose_architecture(
    config: StudentConfig, teacher: Teacher, view: View | None = None, columns: tuple[int, ...] | None = None
) -> Architecture:
    """The student's architecture: its encoder and the widths of its head.

    Args:
        config: what the user says.
        teacher: of whose parameters the student has a share.
        view: what the student sees; None: everything.
        columns: components of that vector that its first layer reads; None: all of them.

    Raises:
        RequestError: if the given sizes contradict each other or do not determine the student's size.
    """
    linear = Architecture(teacher.observation_space, teacher.action_space, (), view=view, columns=columns)
    linear = dataclasses.replace(linear, bits=config.bits, pruning=config.pruning)
    sizes, channels = config.hidden_sizes, config.channels
    strides: tuple[int, ...] = ()
    images = images_in(linear.seen_space, convolved=convolves(teacher.network))
    has_convolutions = bool(images if channels is None else channels) and not config.same
    linear = dataclasses.replace(linear, activation=choose_activation(config.activation, teacher, has_convolutions=has_convolutions))
    if config.memory != "none":
        linear = dataclasses.replace(linear, memory=config.memory_size or USUAL_MEMORY)
        if config.memory_size and sizes is None:
            sizes = (config.memory_size,)
    if channels is None and images and not config.same:
        if sizes is None and teacher.params:
            return image_student_for(config.compression or 10.0, teacher.params, linear)
        channels, strides = usual_convolutions(images, USUAL_UNIT)
    if channels:
        if sizes is None:
            reason = "student.channels are given" if config.channels else "the teacher's parameters cannot be counted"
            raise RequestError(f"{reason}, so the sizes of other layers do not follow from them: give student.hidden_sizes")
        if not any(map(may_be_image, leaf_spaces(linear.seen_space).values())):
            raise RequestError(f"student.channels are for images, and {linear.seen_space} holds none: leave them out")
        return dataclasses.replace(linear, channels=tuple(channels), strides=strides, hidden_sizes=tuple(sizes))
    if config.same and isinstance(teacher, RecurrentTeacher):
        raise RequestError("student.same asks for the teacher's architecture, which has a memory: give student.hidden_sizes")
    if config.same:
        return _same(teacher, linear)
    if sizes is None:
        if not teacher.params:
            raise RequestError("the teacher's parameters cannot be counted, so compression means nothing: give student.hidden_sizes")
        if linear.memory:
            return recurrent_student_for(config.compression or 10.0, teacher.params, linear)
        sizes = hidden_sizes_for(config.compression or 10.0, teacher.params, linear.widths[0], linear.widths[-1])
        if teacher.params <= linear.params:
            sizes = ()  # a linear teacher needs no more than a linear student
    return dataclasses.replace(linear, hidden_sizes=tuple(sizes))


def recurrent_student_for(compression: float, teacher_params: int, architecture: Architecture) -> Architecture:
    """The largest student with a memory that has ``teacher_params / compression`` parameters at most, ``SMALLEST_MEMORY`` units at least.

    The head has one hidden layer, as wide as the memory.
    """

    def of(units: int) -> Architecture:
        return dataclasses.replace(architecture, memory=units, hidden_sizes=(units,))

    units = SMALLEST_MEMORY
    while of(units + 1).params <= teacher_params / compression:
        units += 1
    return of(units)


def _same(teacher: Teacher, linear: Architecture) -> Architecture:
    """The teacher's own architecture.

    Raises:
        RequestError: if it is not known, or students cannot have it.
    """
    layers = teacher.describe()["layers"]
    if not layers:
        raise RequestError("student.same asks for the teacher's architecture, which is not known: give student.hidden_sizes")
    found = [module for module in teacher.network.modules() if isinstance(module, nn.Conv2d)]
    architecture = dataclasses.replace(linear, hidden_sizes=tuple(layers[1:-1]), channels=tuple(layer.out_channels for layer in found))
    if found and not _are_ours(found, architecture):
        raise RequestError(
            "student.same asks for the teacher's architecture, and no student has its convolutions: "
            "give student.channels and student.hidden_sizes"
        )
    return architecture


def _are_ours(layers: Sequence[nn.Conv2d], architecture: Architecture) -> bool:
    """Whether these convolutions are those that a student of ``architecture`` reads its one image with."""
    if isinstance(architecture.seen_space, gym.spaces.Dict):
        return False
    ours = convolutions(architecture.seen_space, architecture.channels)
    sizes = [(layer.in_channels, layer.kernel_size, layer.stride) for layer in layers]
    return sizes == [(layer.inputs, (layer.kernel,) * 2, (layer.stride,) * 2) for layer in ours]


def choose_activation(name: str, teacher: Teacher, *, has_convolutions: bool) -> str:
    """The student's activation; ``auto`` is silu with convolutions, else the teacher's (docs/defaults.md)."""
    if name != "auto":
        return name
    if has_convolutions:
        return "silu"
    of_teacher = str(teacher.describe()["activation"]).lower()
    return of_teacher if of_teacher in ACTIVATIONS else "relu"
