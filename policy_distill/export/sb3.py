"""Export of a student to a Stable-Baselines3 PPO zip, which ``PPO.load`` opens without policy_distill."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_distill.environments.action_masks import has_mask
from policy_distill.export.runner import Seen
from policy_distill.policies.architecture import ACTIVATIONS, Architecture
from policy_distill.policies.observations import FAR_FROM_ZERO, observation_width
from policy_distill.policies.student import Student
from policy_distill.support.files import write_atomically
from policy_distill.support.images import channels_come_first, is_image
from policy_distill.support.trees import leaf_spaces, to_tensors
from policy_distill.teachers import Teacher

if TYPE_CHECKING:
    from stable_baselines3 import PPO


FILE = "student.zip"


def to_ppo(student: Student, critic: Sequence[torch.nn.Linear] | None = None) -> PPO:
    """A PPO agent that acts like ``student`` on raw observations.

    The normalisation is folded into the first layer and the scaling of continuous actions into the last, in float64.

    Args:
        student: the student.
        critic: the linear layers of a value network on normalised observations, with the student's activation between them. If None, the
            value network is newly initialised and linear: further training should begin with a warm-up of the critic.

    Raises:
        ValueError: if no PPO agent could act like this student; see ``why_not_exported``.
    """
    from stable_baselines3 import PPO

    if reason := why_not_exported(student):
        raise ValueError(reason)
    with torch.random.fork_rng(devices=[]):  # the same initial value network each time; the caller's random state is kept
        torch.manual_seed(0)
        model = PPO(
            "MultiInputPolicy" if isinstance(student.observation_space, gym.spaces.Dict) else "MlpPolicy",
            _SpacesOnly(student.observation_space, _bounded(student.action_space)),
            policy_kwargs={
                "net_arch": {"pi": list(student.architecture.hidden_sizes), "vf": [layer.out_features for layer in (critic or ())[:-1]]},
                "activation_fn": ACTIVATIONS[student.architecture.activation],
                # A student that reads bytes as a vector normalises them itself.
                **({"normalize_images": False} if is_image(student.observation_space) else {}),
            },
            device="cpu",
        )
    policy: Any = model.policy
    model.action_space = policy.action_space = student.action_space
    _copy_into([*policy.mlp_extractor.policy_net, policy.action_net], *fold(student))
    if critic:
        folded = _fold_normalization(critic, student)
        _copy_into([*policy.mlp_extractor.value_net, policy.value_net], *folded)
    with torch.no_grad():
        if student.family.box is not None:
            scale, _ = student.family.box.affine()
            policy.log_std.copy_(student.log_std + torch.from_numpy(scale).log())
    return model


def _bounded(space: gym.Space) -> gym.Space:
    """The space with finite bounds if it has infinite ones: only PPO's constructor refuses these, acting and loading do not."""
    if not isinstance(space, gym.spaces.Box) or space.is_bounded():
        return space
    return gym.spaces.Box(-1.0, 1.0, space.shape, space.dtype.type)


def why_not_ppo(architecture: Architecture) -> str | None:
    """Why no PPO agent can represent such a student; None if one can.

    Stable-Baselines3 counts discrete values from 0 wherever the space starts, and has a fixed set of distributions and of convolutions. A
    zip with other ones would need policy_distill.
    """
    if architecture.memory:
        return "Stable-Baselines3's PPO has no policy with a memory, and that of sb3-contrib has an LSTM (student.memory)"
    if has_mask(architecture.observation_space):
        return "Stable-Baselines3's PPO has no action masks"
    if architecture.channels:
        return "Stable-Baselines3 has no network with the student's convolutions (student.channels)"
    if architecture.view is not None and architecture.view.columns is None:
        return "Stable-Baselines3 has no policy with the student's history, noise or wrapper (student.inputs)"
    space = architecture.observation_space
    if isinstance(space, gym.spaces.Dict) and any(map(is_image, space.values())):
        return "Stable-Baselines3 reads each image of a Dict by convolutions, which the student does not"
    if is_image(space) and not channels_come_first(space):
        return f"Stable-Baselines3 turns images {space.shape} to channels first, and the student reads them as they are"
    spaces = (space, architecture.action_space)
    for space in (part for whole in spaces for part in leaf_spaces(whole).values()):
        if np.any(getattr(space, "start", 0)):
            return f"Stable-Baselines3 does not support {space}, which does not start at 0"
    family = architecture.family
    return None if family.in_sb3 else f"Stable-Baselines3 has no distribution like {type(family).__name__}"


def why_not_exported(student: Student) -> str | None:
    """Why no PPO agent would act like this student; None if one would.

    PPO's first layer reads raw observations in float32, which is too coarse for observations far from zero.
    """
    if reason := why_not_ppo(student.architecture):
        return reason
    distance = float((student.mean.double().abs() / student.scale.double()).max())
    if distance > FAR_FROM_ZERO:
        return (
            f"Stable-Baselines3 reads observations in float32, which is too coarse for these: they lie {distance:,.0f} standard deviations "
            f"from zero (up to {FAR_FROM_ZERO:,.0f} are exported)"
        )
    return None


def fold(student: Student) -> tuple[list[Tensor], list[Tensor]]:
    """Weights ``[out, in]`` and biases ``[out]`` of all layers, from raw observations to logits or actions in environment units."""
    weights, biases = _fold_normalization(student.linears, student)
    if student.family.box is not None:
        action_scale, offset = (torch.from_numpy(array) for array in student.family.box.affine())
        weights[-1] = weights[-1] * action_scale[:, None]
        biases[-1] = biases[-1] * action_scale + offset
    return [weight.float() for weight in weights], [bias.float() for bias in biases]


def _fold_normalization(layers: Sequence[torch.nn.Linear], student: Student) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of ``layers`` in float64, the first of which now reads raw observations: zeros for what is not seen."""
    weights = [layer.weight.detach().double() for layer in layers]
    biases = [layer.bias.detach().double() for layer in layers]
    weights[0] = weights[0] / student.scale.double()
    biases[0] = biases[0] - weights[0] @ student.mean.double()
    view, columns = student.view, student.architecture.columns
    for place, inputs in ((columns, student.architecture.seen_space), (None if view is None else view.columns, student.observation_space)):
        if place is not None:
            whole = weights[0].new_zeros(len(weights[0]), observation_width(inputs))
            whole[:, list(place)] = weights[0]
            weights[0] = whole
    return weights, biases


@torch.no_grad()
def _copy_into(modules: Sequence[Any], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """Copy weights and biases into the linear layers among ``modules``."""
    layers = [module for module in modules if isinstance(module, torch.nn.Linear)]
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def save_ppo(student: Student, path: str | Path, *, critic: Sequence[torch.nn.Linear] | None = None) -> Path:
    """Write ``student`` as a zip for ``PPO.load``; see ``to_ppo``."""
    content = io.BytesIO()  # an error of the disk would be wrapped differently by each library that writes a part of the zip
    to_ppo(student, critic).save(content)
    return write_atomically(path, lambda target: target.write_bytes(content.getvalue()))


def load(folder: Path, student: Student) -> Sb3Runner:
    """The policy of ``student.zip``, read without running anything in it."""
    return Sb3Runner(Teacher.load(str(folder / FILE)), student)


class Sb3Runner:
    """A ``Runner`` of the zip as ``Teacher`` reads it, which acts as Stable-Baselines3's ``predict`` does."""

    def __init__(self, agent: Teacher, student: Student) -> None:
        self._agent, self._student = agent, student

    @torch.inference_mode()
    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        space = self._student.observation_space
        observations = {key: seen[key] for key in space.spaces} if isinstance(space, gym.spaces.Dict) else next(iter(seen.values()))
        targets = self._agent.targets(to_tensors(observations))
        outputs = targets.parameters[self._agent.family.names[0]]
        theirs, ours = self._agent.family.box, self._student.family.box
        if theirs is not None and ours is not None:  # in the student's units
            (scale, offset), (own_scale, own_offset) = theirs.affine(), ours.affine()
            outputs = (outputs * torch.from_numpy(scale) + torch.from_numpy(offset - own_offset)) / torch.from_numpy(own_scale)
        actions = targets.actions.numpy()
        shape = self._student.action_space.shape or ()
        return actions.reshape(len(actions), *shape), outputs.float().numpy(), state


class _SpacesOnly(gym.Env[Any, Any]):
    """An environment that only has spaces, as PPO's constructor needs; it is never stepped."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
