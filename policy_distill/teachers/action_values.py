"""Q-values of actions by a teacher's critic, compared with the teacher's action in the same state."""

from __future__ import annotations

import torch
from torch import Tensor

from policy_distill.support.trees import Tree
from policy_distill.teachers.algorithms import algorithms_with
from policy_distill.teachers.networks.critics import ActionValue
from policy_distill.teachers.teacher import Teacher


def why_no_action_values(teacher: Teacher) -> str | None:
    """Why ``q_gap`` does not support the teacher; None if it does."""
    if getattr(teacher.network, "scores", None) == "q_values":
        return None
    if not isinstance(teacher.critic, ActionValue):
        known = algorithms_with(lambda layout: layout.values_actions)
        return f"the teacher has no critic that values single actions: {known} have"
    return teacher.why_no_values()


@torch.inference_mode()
def q_gap(teacher: Teacher, observations: Tree, actions: Tensor) -> Tensor:
    """``Q(s, a_teacher) - Q(s, a)``, discounted as in training, in the environment's rewards (or training's, if their scale is unknown).

    Args:
        teacher: a teacher for which ``why_no_action_values`` is None.
        observations: raw, ``[B, ...]``.
        actions: as ``env.step`` takes them, ``[B]`` integers or ``[B, action_dim]`` floats.

    Returns:
        float32 ``[B]``; ``>= 0`` for discrete actions. Negative if the critic prefers ``a`` to the actor's action.
    """
    targets = teacher.targets(observations)
    if "q_values" in targets.parameters:
        q_values = targets.parameters["q_values"]
        chosen = teacher.family.raw(actions)
        gap = q_values.amax(-1) - q_values.gather(-1, chosen).squeeze(-1)
    else:
        critic, features = teacher.critic, teacher.encode(observations)
        assert isinstance(critic, ActionValue)
        of_teacher, of_other = (
            critic.of(features, part.float().reshape(len(features), -1), teacher.network) for part in (targets.actions, actions)
        )
        gap = of_teacher - of_other
    return (teacher.reward_scale or 1.0) * gap
