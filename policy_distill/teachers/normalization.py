"""VecNormalize statistics, read from their pickle without executing it."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from policy_distill.config import RequestError

MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class ObservationNormalization:
    """``clip((observation - mean) / sqrt(var + epsilon), -clip, clip)``, what the agent saw in training."""

    mean: np.ndarray
    """float64, of the observation's shape."""
    var: np.ndarray
    epsilon: float
    clip: float

    def __post_init__(self) -> None:
        if self.mean.shape != self.var.shape or not (np.isfinite(self.mean).all() and np.isfinite(self.var).all()):
            raise RequestError("the observation statistics are not finite or their shapes differ; save VecNormalize again")
        if not (math.isfinite(self.epsilon) and self.clip > 0 and (self.var + self.epsilon > 0).all()):
            raise RequestError("the observation statistics have a variance, epsilon or clip that is not positive; save VecNormalize again")


def read_normalization(path: str | Path) -> ObservationNormalization | None:
    """Read ``vecnormalize.pkl`` as saved by ``VecNormalize.save``, of any Stable-Baselines3 version.

    Every class and function that the pickle names becomes an inert record of its arguments; arrays are then made of the recorded bytes.

    Returns:
        None if the file says that observations are not normalised (``norm_obs=False``).

    Raises:
        RequestError: if the file is missing, damaged, no VecNormalize, or one of Dict observations.
    """
    path = Path(path)
    state = _read_state(path)
    if not state["norm_obs"]:
        return None
    statistics = state.get("obs_rms")
    if isinstance(statistics, dict) or (isinstance(statistics, _Inert) and statistics.name == "collections.OrderedDict"):
        raise RequestError(f"{path} normalises Dict observations, which are not supported: agents on one flat vector are")
    with _damage_in_one_line(path):
        fields = statistics.state  # type: ignore[union-attr]
        return ObservationNormalization(
            mean=_array(fields["mean"]),
            var=_array(fields["var"]),
            epsilon=float(_array(state["epsilon"])),
            clip=float(_array(state["clip_obs"])),
        )


def read_reward_scale(path: str | Path) -> float:
    """Read from ``vecnormalize.pkl`` what rewards were divided by in training: ``sqrt(ret_rms.var + epsilon)``.

    Returns:
        ``> 0``; 1 if the file says that rewards are not normalised (``norm_reward=False``).

    Raises:
        RequestError: if the file is missing, damaged, no VecNormalize, or its variance is not finite and positive.
    """
    path = Path(path)
    state = _read_state(path)
    if state.get("norm_reward") is False:
        return 1.0
    with _damage_in_one_line(path):
        return reward_scale_of(float(_array(state["ret_rms"].state["var"])), float(_array(state["epsilon"])))


def reward_scale_of(variance: float, epsilon: float) -> float:
    """What VecNormalize divides rewards by, ``sqrt(variance + epsilon)``.

    Raises:
        RequestError: if it is not finite and positive.
    """
    if not (math.isfinite(variance + epsilon) and variance + epsilon > 0):
        raise RequestError("the reward statistics have a variance that is not finite and positive; save VecNormalize again")
    return math.sqrt(variance + epsilon)


def _read_state(path: Path) -> dict[str, Any]:
    """The attributes of the saved VecNormalize, as plain values and inert records."""
    if not path.is_file():
        raise RequestError(f"{path} does not exist; name the vecnormalize.pkl that was saved with the agent")
    if path.stat().st_size > MAX_BYTES:
        raise RequestError(f"{path} is larger than the {MAX_BYTES} bytes that are read; statistics of vector observations are much smaller")
    content = path.read_bytes()
    try:
        saved = _InertUnpickler(content).load()
    except Exception as error:  # a hostile pickle may raise anything, and none of it is ours
        raise RequestError(_damaged(path)) from error
    state = saved.state if isinstance(saved, _Inert) else None
    if not isinstance(state, dict) or not isinstance(state.get("norm_obs"), bool):
        raise RequestError(_damaged(path))
    return state


def _damaged(path: Path) -> str:
    return f"{path} is no readable VecNormalize pickle; save it again with VecNormalize.save, do not trust the file"


@contextmanager
def _damage_in_one_line(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong with what it holds."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise RequestError(_damaged(path)) from error


class _Inert:
    """Stands for whatever a pickle wanted to call: keeps the arguments and the state, does nothing."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    args: tuple[Any, ...]
    state: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    add = append


class _InertUnpickler(pickle._Unpickler):
    """The unpickler written in Python (the one in C reserves whatever size a pickle claims), with inert classes for every name."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._size = len(content)

    def find_class(self, module: str, name: str) -> type[_Inert]:
        return type("Inert", (_Inert,), {"name": f"{module}.{name}"})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes are not read")

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        if size > self._size:
            raise pickle.UnpicklingError("truncated")
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _array(value: object) -> np.ndarray:
    """Make the float64 array or number that was recorded.

    Raises:
        ValueError: if bytes, dtype and shape do not agree, so that no claimed size is ever reserved.
    """
    if isinstance(value, (bool, int, float)):
        return np.array(value, np.float64)
    if not isinstance(value, _Inert):
        raise ValueError("no array")
    function = value.name.rpartition(".")[2]
    order: Any = "C"
    shape: Any = ()
    if function == "scalar":
        dtype, content = value.args
    elif function == "_frombuffer":
        content, dtype, shape, order = value.args
    else:
        _, shape, dtype, fortran, content = value.state
        order = "F" if fortran else "C"
    raw = _bytes(content)
    plain = _dtype(dtype)
    if len(raw) != math.prod(shape) * plain.itemsize:
        raise ValueError("an array's bytes do not fit its shape")
    return np.frombuffer(raw, plain).reshape(shape, order=order).astype(np.float64)


def _dtype(value: object) -> np.dtype:
    if isinstance(value, _Inert) and value.name == "numpy.dtype":
        code, byte_order = value.args[0], value.state[1] if value.state else "="
        if code in ("f2", "f4", "f8", "i4", "i8", "u4", "u8") and byte_order in ("<", ">", "="):
            return np.dtype(f"{byte_order}{code}")
    raise ValueError("no numeric dtype")


def _bytes(value: object) -> bytes:
    if isinstance(value, _Inert) and value.name == "_codecs.encode":  # how pickle protocols 0 to 2 write bytes
        text, encoding = value.args
        if isinstance(text, str) and encoding == "latin1":
            return text.encode("latin1")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise ValueError("no bytes")
