"""Students: an optional view of the observations, an encoder with normalisation, an optional memory, and a small head."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from policy_distill.config import RequestError, TrainingFault
from policy_distill.environments.action_masks import MASK
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.actions import Parameters, Units
from policy_distill.policies.architecture import (
    ACTIVATIONS,
    Architecture,
)
from policy_distill.policies.encoders import (
    Vectors,
)
from policy_distill.policies.fast_forward import lay_out, run
from policy_distill.policies.memories import Gru, read_memory
from policy_distill.policies.observations import space_from_dict, space_to_dict
from policy_distill.policies.policy import State
from policy_distill.policies.quantization import BITS
from policy_distill.policies.views import View, read_columns, read_view
from policy_distill.support.files import storing, sync_folder, write_atomically
from policy_distill.support.trees import Tree, check_shapes, flattened, length, map_leaves, to_arrays, to_tensors
from policy_distill.support.untrusted import read_bytes, read_json, reason, refuse_damage

FORMAT = 1
"""Format version of student.json and student.safetensors."""
MAX_BYTES, MAX_HEADER_BYTES, MAX_LAYERS = 128 << 20, 1 << 20, 100
"""Limits for reading: bytes of student.safetensors, bytes of its header, and number of hidden layers."""
WEIGHTS, NEXT_WEIGHTS = "student.safetensors", "student.next.safetensors"
"""The weights, and their name until student.json, which holds their hash, is written. Two files cannot be renamed at once: after a crash
between the two renames, the description's weights are the next ones."""
READS, SECONDS_BETWEEN_READS = 20, 0.025
"""Attempts to read a description and weights that belong together, while another process may be writing them."""


class Student(nn.Module):
    """A student policy. Continuous outputs are means in box units; with ``log_std`` they define a Gaussian.

    A student without a memory computes any batch (``act``, ``forward``). One with a memory computes single steps (``step``) or whole
    sequences (``unroll``).

    Attributes:
        encoder: maps observations to features; see ``encoders``.
        memory: maps features to the recurrent state that the head reads; None without a memory.
        network: the head, fully connected layers to logits or means.
        log_std: ``[action_dim]`` in box units for continuous actions, else empty.
    """

    log_std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.family = architecture.family
        widths, activation = architecture.widths, ACTIVATIONS[architecture.activation]
        self.encoder = architecture.new_encoder()
        self.memory = Gru(architecture.features, architecture.memory) if architecture.memory else None
        layers: list[nn.Module] = []
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            if index:
                layers.append(activation())
            layers.append(lay_out(nn.Linear(width_in, width_out)))
        self.network = nn.Sequential(*layers)
        self.register_buffer("log_std", torch.zeros(self.family.spread))

    @property
    def observation_space(self) -> gym.Space:
        """Space of the environment's observations, before the view."""
        return self.architecture.observation_space

    @property
    def view(self) -> View | None:
        return self.architecture.view

    @property
    def action_space(self) -> gym.Space:
        return self.architecture.action_space

    @property
    def params(self) -> int:
        return self.architecture.params

    @property
    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.network if isinstance(layer, nn.Linear)]

    @property
    def mean(self) -> Tensor:
        """Mean of the vector encoder's normalisation."""
        return self.vectors.mean

    @property
    def scale(self) -> Tensor:
        """Scale of the vector encoder's normalisation."""
        return self.vectors.scale

    @property
    def vectors(self) -> Vectors:
        """The encoder of a student that reads only vectors."""
        assert isinstance(self.encoder, Vectors), "the encoder reads images"
        return self.encoder

    def behind(self, architecture: Architecture) -> Student:
        """The same weights behind another view of the same output space; the student itself if the views are equal."""
        if architecture.view == self.view:
            return self
        student = copy.copy(self)
        student.architecture = architecture
        return student

    def forward(self, seen: Tree) -> Tensor:
        """Logits or means ``[B, outputs]`` from the view's output ``[B, ...]`` (raw observations without a view).

        Logits of actions that a mask forbids are ``FORBIDDEN``.

        Raises:
            TypeError: if the student has a memory; see ``step`` and ``unroll``.
        """
        if self.architecture.memory:
            raise TypeError("a student with a memory cannot compute single observations: use step or unroll")
        return self._masked(run(self.network, self.encoder.forward(seen)), seen)

    def _masked(self, output: Tensor, seen: Tree) -> Tensor:
        return self.family.masked(output, seen[MASK]) if self.architecture.is_masked else output

    def parameters_of(self, seen: Tree) -> Parameters:
        """The parameters of the action distribution, from the view's output ``[B, ...]``; for students without a memory."""
        return self.distribution(self(seen))

    def distribution(self, output: Tensor) -> Parameters:
        """The parameters of the action distribution with these logits or means ``[..., outputs]``."""
        return self.family.parameters_of(output, self.log_std.expand(*output.shape[:-1], -1))

    @torch.inference_mode()
    def act(self, observations: Tree, *, generator: torch.Generator | None = None) -> np.ndarray:
        """Actions that ``env.step`` accepts, from raw observations ``[B, ...]``: the mode, or samples if a generator is given.

        Raises:
            ValueError: if the view has a history or noise; use ``step``. If images do not have the shape of their space.
        """
        check_shapes(self.architecture.observation_space, observations)
        parameters = self.parameters_of(to_tensors(observations if self.view is None else self.view.see(to_arrays(observations))))
        return self.for_environment(self.family.mode(parameters) if generator is None else self.family.sample(parameters, generator))

    def for_environment(self, actions: Tensor) -> np.ndarray:
        """Actions ``[B, ...]`` of the family in the shape that ``env.step`` accepts."""
        array: np.ndarray = actions.numpy()
        return array.reshape(len(array), *self.action_space.shape) if isinstance(self.action_space, gym.spaces.Box) else array

    def unroll(self, seen: Tree, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs for sequences, of a student with a memory.

        Args:
            seen: the view's output, ``[T, B, ...]``: T steps of each of B sequences.
            memory: recurrent state ``[B, units]`` before the first step; None: the initial state.

        Returns:
            Logits or means ``[T, B, outputs]``, and the recurrent state after the last step.
        """
        assert self.memory is not None, "the student has no memory"
        lead = length(seen), length(map_leaves(lambda leaf: leaf[0], seen))
        features = self.encoder.forward(flattened(seen)).unflatten(0, lead)
        states = self.memory.forward(features, features.new_zeros(lead[1], self.architecture.memory) if memory is None else memory)
        return self._masked(run(self.network, states), seen), states[-1]

    def initial_state(self, num_envs: int) -> State:
        """The initial state for N environments: the view's state and the recurrent state ``[N, units]``."""
        return None if self.view is None else self.view.initial_state(num_envs), torch.zeros(num_envs, self.architecture.memory)

    @torch.inference_mode()
    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        """Actions for N environments, and the state for the next step; see ``policies.policy.Stateful.step``."""
        parameters, state = self.parameters_after(observations, state, starts)
        return self.for_environment(self.family.mode(parameters)), state

    def parameters_after(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[Parameters, State]:
        """The parameters of the action distribution for one step of N environments, and the state after it; see ``step``."""
        view_state, memory = state
        if self.view is not None:
            observations, view_state = self.view.step(to_arrays(observations), view_state, starts)
        seen = to_tensors(observations)
        if self.memory is None:
            return self.parameters_of(seen), (view_state, memory)
        if starts is not None:
            memory = torch.where(torch.from_numpy(starts == GOES_ON)[:, None], memory, 0.0)
        output, memory = self.unroll(map_leaves(lambda leaf: leaf[None], seen), memory)
        return self.distribution(output[0]), (view_state, memory)

    def not_finite(self) -> str | None:
        """Name of the first tensor that holds NaN or infinity; None if all are finite."""
        wrong = (name for name, tensor in self.state_dict().items() if not torch.isfinite(tensor).all())
        return next(map(self.architecture.written, wrong), None)

    def save(self, folder: str | Path, *, extra: dict[str, Any] | None = None) -> Path:
        """Write ``student.safetensors`` and ``student.json`` into ``folder``; ``extra`` is added to the JSON.

        At every moment ``load`` reads either the whole earlier or the whole new student, also after a crash.

        Raises:
            TrainingFault: if the student holds NaN or infinity; nothing is written.
            StorageFault: if the files cannot be written; an earlier student is unchanged.
        """
        path = Path(folder)
        if wrong := self.not_finite():
            raise TrainingFault(f"the student's {wrong} holds NaN or infinity, and it is not saved: train it with a lower learning rate")
        tensors = {self.architecture.written(name): tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        content = save(tensors)
        description = {
            "format": FORMAT,
            "hidden_sizes": list(self.architecture.hidden_sizes),
            "activation": self.architecture.activation,
            "params": self.params,
            **({"encoder": self.architecture.convolutions_to_dict()} if self.architecture.channels else {}),
            **({"memory": {"kind": "gru", "size": self.architecture.memory}} if self.architecture.memory else {}),
            **({} if self.view is None else {"inputs": self.view.to_dict()}),
            **({} if self.architecture.bits is None else {"bits": self.architecture.bits}),
            **({} if self.architecture.columns is None else {"varying_inputs": list(self.architecture.columns)}),
            "observation_space": space_to_dict(self.observation_space),
            "action_space": space_to_dict(self.action_space),
            **({} if self.architecture.action_units is None else {"action_units": self.architecture.action_units}),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            **(extra or {}),
        }
        with storing(path):
            path.mkdir(parents=True, exist_ok=True)
        following = write_atomically(path / NEXT_WEIGHTS, lambda target: target.write_bytes(content))
        write_atomically(path / "student.json", lambda target: target.write_text(json.dumps(description, indent=2) + "\n"))
        with storing(path / WEIGHTS):
            following.replace(path / WEIGHTS)
            sync_folder(path)
        return path

    @classmethod
    def load(cls, folder: str | Path, *, trust: bool = False) -> Student:
        """Load a student that ``save`` wrote.

        Args:
            folder: the student's folder.
            trust: allows the import of the view's wrapper, which runs its module.

        Raises:
            RequestError: if the folder holds no student, the files do not match, or a wrapper would be imported without ``trust``.
        """
        path = Path(folder)
        description, content = read_together(path)
        with refuse_damage(path, "it holds no readable student; write it again"):
            if description.get("format") != FORMAT:
                raise RequestError(
                    f"{path} is of format {description.get('format')}, this version reads {FORMAT}: install the one that wrote it"
                )
            action_space, observed = (space_from_dict(description[name]) for name in ("action_space", "observation_space"))
            view = read_view(description.get("inputs"), observed, path, trust)
            encoder = description.get("encoder", {"channels": ()})
            architecture = Architecture(
                observed,
                action_space,
                tuple(description["hidden_sizes"]),
                description["activation"],
                _read_units(description.get("action_units"), action_space),
                tuple(encoder["channels"]),
                read_memory(description.get("memory")),
                view,
                read_columns(description.get("varying_inputs"), observed if view is None else view.space),
                _read_bits(description.get("bits")),
                tuple(encoder.get("strides", ())),
            )
            weights = _tensors(content)
            _check_weights(architecture, weights)
            student = cls(architecture)
            student.load_state_dict({name: weights[architecture.written(name)] for name in student.state_dict()})
        return student.eval().requires_grad_(False)


def _read_units(saved: Any, space: gym.Space) -> Units | None:
    """``action_units`` of student.json, ``[2, action_dim]``.

    Raises:
        ValueError: if they do not match ``space``, or are not finite as float32 with positive scales.
    """
    if saved is None:
        return None
    units = np.array(saved, np.float32)
    if not isinstance(space, gym.spaces.Box) or units.shape != (2, math.prod(space.shape)):
        raise ValueError(f"action_units of shape {units.shape} are not those of {space}")
    if not (np.isfinite(units).all() and (units[0] > 0).all()):
        raise ValueError("action_units must be finite, and their scales positive")
    return tuple(map(float, saved[0])), tuple(map(float, saved[1]))


def _read_bits(saved: Any) -> int | None:
    if saved is not None and saved not in BITS:
        raise ValueError(f"bits are {saved}")
    return saved


def read_description(folder: str | Path) -> dict[str, Any]:
    """The contents of ``student.json``.

    Raises:
        RequestError: if it is missing or not JSON, or its entries for environment and teacher are malformed.
    """
    path = Path(folder) / "student.json"
    if not os.path.lexists(path):
        raise RequestError(f"{folder} holds no student.json: name the folder that a student was saved in")
    description = read_json(path, "write the student again")
    environment, teacher = description.get("environment"), description.get("teacher")
    fields = teacher if isinstance(teacher, dict) else {}
    are_objects = isinstance(environment, dict | None) and isinstance(teacher, dict | None)
    are_texts = all(isinstance(fields.get(name), str | None) for name in ("path", "name"))
    if not are_objects or not are_texts or not isinstance(fields.get("reading"), dict | None):
        raise RequestError(f"{path}: the entry environment or teacher is malformed: write the student again")
    return description


def read_together(folder: str | Path) -> tuple[dict[str, Any], bytes]:
    """The description of a saved student, and the contents of the weights that it was saved with.

    Raises:
        RequestError: if a file is missing or damaged, or no weights have the hash that the description names. Students of earlier versions
            name none.
    """
    path = Path(folder)
    for _ in range(READS):
        description = read_description(path)
        named = description.get("weights_sha256")
        for name in (WEIGHTS, NEXT_WEIGHTS) if (path / NEXT_WEIGHTS).exists() else (WEIGHTS,):
            try:
                content = read_bytes(path / name, MAX_BYTES)
            except FileNotFoundError:
                content = None
            except (OSError, ValueError) as error:
                raise RequestError(f"{path / name} cannot be read ({reason(error)}): write the student again") from error
            if content is not None and named in (None, hashlib.sha256(content).hexdigest()):
                return description, content
        time.sleep(SECONDS_BETWEEN_READS)
    raise RequestError(
        f"{path} holds no {WEIGHTS} with the hash that student.json names (weights_sha256): the files are of two students; write the "
        "student again, or remove the entry if you changed the weights on purpose"
    )


def _tensors(content: bytes) -> dict[str, Tensor]:
    if int.from_bytes(content[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError("the header of student.safetensors is too long")
    return load(content)


def _check_weights(architecture: Architecture, weights: dict[str, Tensor]) -> None:
    """Check shapes before anything of these sizes is allocated.

    Raises:
        ValueError: if the weights do not match the architecture, or are not finite.
    """
    for name, sizes in (("hidden_sizes", architecture.hidden_sizes), ("channels", architecture.channels)):
        if len(sizes) > MAX_LAYERS or any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError(f"{name} are {sizes}")
    strides = architecture.strides
    if strides and (len(strides) != len(architecture.channels) or any(stride not in (1, 2) for stride in strides)):
        raise ValueError(f"strides are {strides}: 1 or 2 for each of the channels")
    expected = architecture.shapes()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if shapes != expected:
        wrong = next(name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name))
        raise ValueError(f"the tensor {wrong} is {shapes.get(wrong, 'missing')}, it must be {expected.get(wrong, 'left out')}")
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the tensor {name} holds NaN or infinity")
