"""Custom features extractors, built from their source file and the weights in the zip; no code in the zip is executed."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from policy_distill.config import RequestError
from policy_distill.policies.observations import observation_width, parts_of
from policy_distill.teachers.networks.pixels import scaling
from policy_distill.teachers.networks.plain_layers import plain_layers


class CustomExtractor(nn.Module):
    """Reshapes vectors ``[B, width]`` to their space, as Stable-Baselines3 does, and applies ``module``: ``[B, features]``.

    Attributes:
        steps: names and layers of an equivalent sequence of layers; None if ``module`` is not a plain sequence.
    """

    def __init__(self, module: nn.Module, space: gym.Space, text: str) -> None:
        super().__init__()
        self.module = module
        self.space = space
        self.text = text
        self.steps: list[tuple[str, nn.Module]] | None = None
        if isinstance(space, gym.spaces.Box) and (plain := plain_layers(module, space.shape)):
            self.steps = [("shaped", nn.Unflatten(1, space.shape)), *((f"module.{name}", layer) for name, layer in plain)]

    def __deepcopy__(self, memo: dict[int, Any]) -> CustomExtractor:
        return CustomExtractor(copy.deepcopy(self.module, memo), self.space, self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the module's attributes; unpickling runs the user's file in a process that has not run it yet."""
        return _unpickled, (self.text, pickle.dumps(self.module), self.space)

    def forward(self, observations: Tensor) -> Tensor:
        return self.module(parts_of(self.space, observations))


@dataclass(frozen=True)
class ExtractorMaker:
    """Builds the extractors of one agent; actor and critic may have separate weights."""

    text: str
    """``file.py:Class``, as given by the user."""
    make: Callable[..., nn.Module]
    space: gym.Space
    kwargs: Mapping[str, Any]
    divide: nn.Module | None = None
    """Divides images by 255 before the extractor; None: no division."""

    def build(self, weights: Mapping[str, Tensor], prefix: str, source: str) -> nn.Module:
        """Build the extractor with the weights below ``prefix``; its inputs are flat vectors.

        Raises:
            RequestError: if the class cannot be instantiated, its weights do not fit, or it does not return ``[B, features]``.
        """
        own_weights = {key.removeprefix(f"{prefix}."): tensor for key, tensor in weights.items() if key.startswith(f"{prefix}.")}
        with _failure_in_one_line(f"{self.text} cannot be made with {_call(self.kwargs)}"), torch.random.fork_rng(devices=[]):
            module = self.make(self.space, **self.kwargs)
        if not isinstance(module, nn.Module):
            raise RequestError(f"{self.text} makes a {type(module).__name__}, which is not a torch.nn.Module; name a features extractor")
        with _failure_in_one_line(f"the weights in {source} are not those of {self.text}"):
            module.load_state_dict(own_weights)
        extractor = CustomExtractor(module.eval(), self.space, self.text).requires_grad_(False)
        with _failure_in_one_line(f"{self.text} does not read {self.space}"), torch.no_grad():
            features = extractor(torch.zeros(2, observation_width(self.space)))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
            returned = f"the shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise RequestError(f"{self.text} returns {returned} for 2 observations; (2, features) is expected")
        return extractor if self.divide is None else nn.Sequential(self.divide, extractor)


def extractor_maker(text: str, space: gym.Space, policy_kwargs: Mapping[str, Any], source: str) -> ExtractorMaker:
    """Load the class that ``text`` names. This runs the user's file.

    Args:
        text: ``file.py:Class``; it is instantiated as ``Class(observation_space, **features_extractor_kwargs)``.
        space: space of the observations.
        policy_kwargs: the agent's settings as plain data, with ``features_extractor_kwargs``.
        source: the zip, for messages.

    Raises:
        RequestError: if the file or the class is missing, or the arguments in the zip are not plain data.
    """
    arguments = _arguments(policy_kwargs.get("features_extractor_kwargs"), text, source)
    return ExtractorMaker(text, extractor_class(text), space, arguments, scaling(space, policy_kwargs))


def extractor_class(text: str) -> Callable[..., nn.Module]:
    """The class that ``text`` names, ``file.py:Class``. This runs the user's file.

    Raises:
        RequestError: if the file or the class is missing.
    """
    name, colon, attribute = text.rpartition(":")
    if not colon or not name or not attribute.isidentifier():
        raise RequestError(f"extractor is {text!r}; name the file and the class in it, as in networks.py:MyExtractor")
    path = file_of(text)
    if not path.is_file():
        raise RequestError(f"extractor names {path}, which does not exist; name the file that defines {attribute}")
    named = getattr(_run_file(path), attribute, None)
    if not callable(named):
        raise RequestError(f"{path} defines no class {attribute!r}; name the agent's features extractor in it")
    return named


def file_of(text: str) -> Path:
    """The file in ``file.py:Class``."""
    return Path(text.rpartition(":")[0]).expanduser()


def _unpickled(text: str, module: bytes, space: gym.Space) -> CustomExtractor:
    _run_file(file_of(text))
    return CustomExtractor(pickle.loads(module), space, text)


def _run_file(path: Path) -> Any:
    """Run the user's file as a module, once per process; it may import modules from its folder.

    The module's name contains a hash of path and contents. Pickle finds a class by this name, so two agents with the same file must share
    the module.
    """
    digest = hashlib.sha256(bytes(path.resolve()) + b"\0" + path.read_bytes()).hexdigest()
    name = f"policy_distill_extractor_{path.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise RequestError(f"{path} is not a Python file; name the .py file that defines the features extractor")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look classes up by their module's name
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with _failure_in_one_line(f"{path} cannot be run"):
            spec.loader.exec_module(module)
    except RequestError:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _arguments(saved: object, text: str, source: str) -> dict[str, Any]:
    """The agent's ``features_extractor_kwargs``, which the zip holds as JSON or as Python's ``repr``."""
    if isinstance(saved, str):
        try:
            saved = ast.literal_eval(saved)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            saved = str(saved)[:100]
    if saved is None:
        return {}
    if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
        raise RequestError(
            f"{source} holds arguments of its features extractor that are not plain values ({' '.join(str(saved).split())}); "
            f"make them defaults in {text}, and save the agent without features_extractor_kwargs"
        )
    return saved


def _call(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(["observation_space", *(f"{key}={value!r}" for key, value in kwargs.items())])


@contextmanager
def _failure_in_one_line(problem: str) -> Iterator[None]:
    """Turn any exception from the user's code into a ``RequestError`` of one line."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a script may call sys.exit
        raise RequestError(f"{problem} ({' '.join(f'{type(error).__name__}: {error}'.split())[:300]})") from error
