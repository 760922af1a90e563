"""A Stable-Baselines3 zip as plain data. Nothing in it is unpickled: an agent from a stranger is read, not run."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from policy_distill.config import RequestError
from policy_distill.teachers.not_agents import what_the_file_is, what_the_zip_is
from policy_distill.teachers.saved_spaces import rebuild_space

MAX_DATA_BYTES = 64 << 20
MAX_WEIGHT_BYTES = 2 << 30
COMPILED = "_orig_mod."
"""What ``torch.compile`` writes before the name of each weight of a policy."""


@dataclass(frozen=True)
class Archive:
    """What an agent's zip says, without its optimisers and replay buffers."""

    path: str
    data: Mapping[str, Any]
    """The member ``data``: scalars as they are, everything else as the dict of plain text that SB3 writes beside its pickle."""
    state_dict: Mapping[str, Tensor]
    """The whole policy's weights, on the CPU."""
    observation_space: gym.Space
    action_space: gym.Space
    sb3_version: str | None
    """None in agents older than 1.0."""
    system_info: str | None
    """Versions of Python, PyTorch, ... at training time; None in agents older than 1.3."""
    num_timesteps: int
    """How long the agent was trained."""

    @property
    def policy_kwargs(self) -> Mapping[str, Any]:
        """What the user passed to the policy, classes as their printed name; empty where defaults were used."""
        kwargs = self.data.get("policy_kwargs")
        return kwargs if isinstance(kwargs, dict) else {}

    @property
    def policy_module(self) -> str | None:
        """The module that defines the policy's class (``stable_baselines3.sac.policies``); None if the file does not tell."""
        policy_class = self.data.get("policy_class")
        module = policy_class.get("__module__") if isinstance(policy_class, dict) else None
        return module if isinstance(module, str) else None

    @property
    def activation(self) -> str | None:
        """Name of the activation's class in ``torch.nn``, where the user chose one."""
        return class_name(self.policy_kwargs.get("activation_fn"))


def class_name(text: object) -> str | None:
    """Last name of a class printed as ``<class 'torch.nn.modules.activation.ReLU'>``; None if ``text`` is None or no class."""
    match = re.fullmatch(r"<class '(?:[\w<>]+\.)*(\w+)'>", str(text))
    return match.group(1) if match else None


def read_archive(path: str | Path) -> Archive:
    """Read an agent saved by Stable-Baselines3 (1.0 to today) or sb3-contrib.

    Raises:
        RequestError: in one line, if the file is missing, damaged, no agent, or one with spaces that are not supported.
    """
    path = Path(path)
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name the agent's .zip in it")
    if not path.is_file():
        raise RequestError(f"{path} does not exist; name a .zip saved by Stable-Baselines3 or an agent's folder")
    try:
        with zipfile.ZipFile(path) as file:
            members = _read_members(file, path)
    except zipfile.BadZipFile as error:
        raise RequestError(what_the_file_is(path)) from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error
    data = _parse_data(members["data"], path)
    spaces: dict[str, gym.Space] = {}
    for role in ("observation", "action"):
        text = data.get(f"{role}_space")
        if not isinstance(text, dict):
            raise RequestError(f"{path}: the file names no {role} space; save the agent again with Stable-Baselines3 1.0 or newer")
        spaces[role] = rebuild_space(text, role=role, source=str(path))
    steps = data.get("num_timesteps")
    return Archive(
        path=str(path),
        data=data,
        state_dict=_read_weights(members["policy.pth"], path),
        observation_space=spaces["observation"],
        action_space=spaces["action"],
        sb3_version=_text(members.get("_stable_baselines3_version")),
        system_info=_text(members.get("system_info.txt")),
        num_timesteps=steps if isinstance(steps, int) else 0,
    )


def read_data(path: str | Path) -> dict[str, Any]:
    """Read the member ``data`` alone, without its pickles.

    Raises:
        RequestError: if the file is no agent.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            return _parse_data(_read_members(file, path, only=("data",))["data"], path)
    except (OSError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path} cannot be read as an agent's zip; copy or download it again") from error


def _read_members(file: zipfile.ZipFile, path: Path, only: Container[str] | None = None) -> dict[str, bytes]:
    """Read the few members that describe the policy; the sizes are checked before anything is unpacked."""
    sizes = {info.filename: info.file_size for info in file.infolist()}
    missing = [name for name in ("data", "policy.pth") if name not in sizes]
    if missing and min((info.header_offset for info in file.infolist()), default=0) > 0:
        # The end was cut off, and what was found is the zip inside the zip: the weights' own.
        raise RequestError(f"{path} is a truncated zip; copy or download it again")
    if missing and (problem := what_the_zip_is(path, file)):
        raise RequestError(problem)
    if missing:
        raise RequestError(f"{path} is a zip but no Stable-Baselines3 agent: it holds no {missing[0]!r}; name a file saved by agent.save()")
    limits = {"data": MAX_DATA_BYTES, "policy.pth": MAX_WEIGHT_BYTES, "_stable_baselines3_version": 1 << 16, "system_info.txt": 1 << 16}
    members = {}
    for name, limit in limits.items():
        if name not in sizes or (only is not None and name not in only):
            continue
        if sizes[name] > limit:
            raise RequestError(f"{path}: the member {name!r} unpacks to {sizes[name]} bytes, more than the {limit} that are read")
        try:
            members[name] = file.read(name)
        except (EOFError, OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise RequestError(f"{path} is damaged: its member {name!r} cannot be unpacked; copy or download it again") from error
    return members


def _parse_data(content: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: its member 'data' is no JSON; save the agent again with Stable-Baselines3 1.0 or newer") from error
    if not isinstance(data, dict):
        raise RequestError(f"{path}: its member 'data' is no JSON object; save the agent again with Stable-Baselines3 1.0 or newer")
    return {key: _without_pickle(value) for key, value in data.items()}


def _without_pickle(value: object) -> object:
    return {key: item for key, item in value.items() if key != ":serialized:"} if isinstance(value, dict) else value


def _read_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    """Load the weights with PyTorch's restricted reader and check that they are ordinary, finite tensors."""
    damaged = f"{path}: its weights (policy.pth) cannot be read as plain tensors; save the agent again, do not trust the file"
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):  # PyTorch's own format is a zip once more, and may be compressed
            with zipfile.ZipFile(io.BytesIO(content)) as inner:
                if sum(info.file_size for info in inner.infolist()) > MAX_WEIGHT_BYTES:
                    raise RequestError(f"{path}: its weights unpack to more than the {MAX_WEIGHT_BYTES} bytes that are read")
        with warnings.catch_warnings():  # about pickles in a format that PyTorch never writes, which are then refused
            warnings.simplefilter("ignore", UserWarning)
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except RequestError:
        raise
    except (
        RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError,
        KeyError, IndexError, AttributeError, TypeError, ValueError, AssertionError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        raise RequestError(damaged) from error
    if not isinstance(weights, dict) or not all(isinstance(key, str) and isinstance(item, Tensor) for key, item in weights.items()):
        raise RequestError(damaged)
    for key, tensor in weights.items():
        # A stride of zero lets a small file claim a tensor larger than memory.
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise RequestError(damaged)
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise RequestError(damaged)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RequestError(f"{path}: the weight {key!r} holds NaN or infinity: training diverged; take an earlier checkpoint")
    return {key.removeprefix(COMPILED): tensor for key, tensor in weights.items()}


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", errors="replace").strip()
