"""Reading a Stable-Baselines3 zip as plain data, without unpickling: agents are untrusted files."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from policy_distill.config import RequestError
from policy_distill.support.untrusted import MAX_JSON_BYTES, open_regular, open_zip, parse_json_object, read_member, refuse_damage
from policy_distill.teachers.files.not_agents import what_the_file_is, what_the_zip_is
from policy_distill.teachers.files.saved_spaces import rebuild_space
from policy_distill.teachers.files.weights import MAX_WEIGHT_BYTES, read_weights

AGAIN = "copy or download it again"
COMPILED = "_orig_mod."
"""What ``torch.compile`` writes before the name of each weight of a policy."""


@dataclass(frozen=True)
class Archive:
    """Contents of an agent's zip, without optimisers and replay buffers."""

    path: str
    data: Mapping[str, Any]
    """The member ``data``: scalars unchanged, everything else as the dict of strings that SB3 writes beside its pickle."""
    state_dict: Mapping[str, Tensor]
    """The whole policy's weights, on the CPU."""
    observation_space: gym.Space
    action_space: gym.Space
    sb3_version: str | None
    """None in agents older than 1.0."""
    system_info: str | None
    """Versions of Python, PyTorch, ... at training time; None in agents older than 1.3."""
    num_timesteps: int
    """Number of training steps."""

    @property
    def policy_kwargs(self) -> Mapping[str, Any]:
        """Arguments that were passed to the policy, classes as their printed name; empty for defaults."""
        kwargs = self.data.get("policy_kwargs")
        return kwargs if isinstance(kwargs, dict) else {}

    @property
    def policy_module(self) -> str | None:
        """The module that defines the policy's class (``stable_baselines3.sac.policies``); None if unknown."""
        policy_class = self.data.get("policy_class")
        module = policy_class.get("__module__") if isinstance(policy_class, dict) else None
        return module if isinstance(module, str) else None

    @property
    def activation(self) -> str | None:
        """Name of the activation's class in ``torch.nn``; None for the default."""
        return class_name(self.policy_kwargs.get("activation_fn"))


def class_name(text: object) -> str | None:
    """Last part of the name in ``<class 'torch.nn.modules.activation.ReLU'>``; None if ``text`` is not a printed class."""
    match = re.fullmatch(r"<class '(?:[\w<>]+\.)*(\w+)'>", str(text))
    return match.group(1) if match else None


def read_archive(path: str | Path) -> Archive:
    """Read an agent saved by Stable-Baselines3 (1.0 to today) or sb3-contrib.

    Raises:
        RequestError: if the file is missing, damaged, not an agent, or has unsupported spaces.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise RequestError(f"{path} is a folder; name the agent's .zip in it")
    if not os.path.isfile(path):
        raise RequestError(f"{path} does not exist; name a .zip saved by Stable-Baselines3 or an agent's folder")
    members = _read_members(path)
    data = parse_data(members.pop("data"), path)
    spaces = {}
    for role in ("observation", "action"):
        text = data.get(f"{role}_space")
        if not isinstance(text, dict):
            raise RequestError(f"{path}: the file names no {role} space; save the agent again with Stable-Baselines3 1.0 or newer")
        spaces[role] = rebuild_space(_without_pickle(text), role=role, source=str(path))
    steps = data.get("num_timesteps")
    return Archive(
        path=str(path),
        data={key: _without_pickle(value) for key, value in data.items()},
        state_dict=_read_weights(members.pop("policy.pth"), path),
        observation_space=spaces["observation"],
        action_space=spaces["action"],
        sb3_version=_text(members.get("_stable_baselines3_version")),
        system_info=_text(members.get("system_info.txt")),
        num_timesteps=steps if isinstance(steps, int) else 0,
    )


def read_data(path: str | Path, *, with_pickles: bool = False) -> dict[str, Any]:
    """Read the member ``data`` alone, without its pickles or with them as base64 text.

    Raises:
        RequestError: if the file is not an agent.
    """
    data = parse_data(_read_members(Path(path), only=("data",))["data"], Path(path))
    return data if with_pickles else {key: _without_pickle(value) for key, value in data.items()}


LIMITS = {"data": MAX_JSON_BYTES, "policy.pth": MAX_WEIGHT_BYTES, "_stable_baselines3_version": 1 << 16, "system_info.txt": 1 << 16}
"""The members that are read, and their maximum sizes in bytes."""


def _read_members(path: Path, only: Collection[str] = tuple(LIMITS)) -> dict[str, bytes]:
    members = {}
    with refuse_damage(path, AGAIN), open_regular(path) as file:
        try:
            with open_zip(file) as archive:
                _check_contents(archive, path)
                for name in set(only) & set(archive.namelist()):
                    with refuse_damage(f"{path} is damaged: its member {name!r}", AGAIN):
                        members[name] = read_member(archive, name, LIMITS[name])
        except zipfile.BadZipFile as error:
            raise RequestError(what_the_file_is(path)) from error
    return members


def _check_contents(archive: zipfile.ZipFile, path: Path) -> None:
    missing = [name for name in ("data", "policy.pth") if name not in archive.namelist()]
    if missing and min((info.header_offset for info in archive.infolist()), default=0) > 0:
        # The file is truncated, and zipfile found the directory of the inner zip with the weights.
        raise RequestError(f"{path} is a truncated zip; {AGAIN}")
    if missing and (problem := what_the_zip_is(path, archive)):
        raise RequestError(problem)
    if missing:
        raise RequestError(f"{path} is a zip but no Stable-Baselines3 agent: it holds no {missing[0]!r}; name a file saved by agent.save()")


def parse_data(content: bytes, path: Path) -> dict[str, Any]:
    """The member ``data``, with its pickles as base64 text.

    Raises:
        RequestError: if it is not a JSON object.
    """
    with refuse_damage(f"{path}: its member 'data' is no JSON object and", "save the agent again with Stable-Baselines3 1.0 or newer"):
        return parse_json_object(content)


def _without_pickle(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != ":serialized:"} if isinstance(value, dict) else value


def _read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    """The weights; refuses anything but ordinary, finite tensors."""
    with refuse_damage(f"{path}: its weights (policy.pth)", "they are no plain tensors; save the agent again, do not trust the file"):
        weights = read_weights(content)
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RequestError(f"{path}: the weight {key!r} holds NaN or infinity: training diverged; take an earlier checkpoint")
    return {key.removeprefix(COMPILED): tensor for key, tensor in weights.items()}


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", errors="replace").strip()
