"""What the student sees of the environment's observations, where that is not all of them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from policy_distill.config.checks import RequestError, require
from policy_distill.config.printable import one_line

InputsRequest: TypeAlias = dict | list | str
"""The student's inputs as a user writes them: ``{"keep": [0, 1], "history": 4}``; a list or a text stands for ``keep`` alone."""
SECTION = "student.inputs"
MAX_INDICES = 1 << 20
"""Of a space's components, more are not read; a few lines of ranges in a file could name billions."""


@dataclass(frozen=True)
class InputsConfig:
    """Steps from an observation of the environment to what the student sees, applied in the order of these fields."""

    wrapper: str | None = None
    """``module:Class`` of a gymnasium.ObservationWrapper, whose ``observation(observation)`` is applied for the student only. It must
    remember nothing."""
    keys: tuple[str, ...] | None = None
    """Keys of a Dict that the student sees. One key alone gives that part itself, no Dict."""
    keep: tuple[int, ...] | None = None
    """Indices of a vector that the student sees, in this order."""
    history: int = 1
    """Number of the episode's last observations that the student sees side by side, the oldest first. Before the episode has that many,
    its first observation is repeated."""
    noise: float | tuple[float, ...] = 0.0
    """Standard deviation of Gaussian noise on each component, in the observation's own units: one number, or one for each component of a
    single observation. An episode's noise follows from its seed alone. The history holds noisy observations."""

    def __post_init__(self) -> None:
        named = self.wrapper is None or re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", self.wrapper)
        require(bool(named), f"{SECTION}.wrapper", self.wrapper, "module:Class")
        require(self.keys is None or len(self.keys) > 0, f"{SECTION}.keys", self.keys, "names of a Dict's parts")
        require(self.keep is None or len(self.keep) > 0, f"{SECTION}.keep", self.keep, "one index at least")
        for name in ("keys", "keep"):
            given = getattr(self, name) or ()
            require(len(set(given)) == len(given), f"{SECTION}.{name}", given, "without repetition")
        require(1 <= self.history <= 1000, f"{SECTION}.history", self.history, "from 1 (only the present observation) to 1000")
        spread = self.noise if isinstance(self.noise, tuple) else (self.noise,)
        fine = len(spread) > 0 and all(sigma >= 0 and math.isfinite(sigma) for sigma in spread)
        require(fine, f"{SECTION}.noise", self.noise, ">= 0, one number or one for each component")

    @property
    def is_noisy(self) -> bool:
        return bool(any(self.noise) if isinstance(self.noise, tuple) else self.noise)

    @property
    def shows_everything(self) -> bool:
        """Whether the student sees what the environment returns."""
        return self == InputsConfig() or (self == dataclasses.replace(InputsConfig(), noise=self.noise) and not self.is_noisy)

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults, as JSON-able data; the inverse of ``parse_inputs``."""
        default = InputsConfig()
        changed = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def parse_inputs(request: InputsRequest | None) -> InputsConfig | None:
    """The settings that a user wrote; None if the student sees everything.

    Raises:
        RequestError: if they are malformed.
    """
    if request is None:
        return None
    data: Mapping[str, Any] = request if isinstance(request, Mapping) else {"keep": request}
    known = [field.name for field in dataclasses.fields(InputsConfig)]
    if unknown := [key for key in data if key not in known]:
        raise RequestError(f"{SECTION} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    given = {name: value for name, value in data.items() if value is not None}
    for name, kinds, form in (("wrapper", str, "module:Class"), ("history", int, "a whole number")):
        require(name not in given or type(given[name]) is kinds, f"{SECTION}.{name}", given.get(name), form)
    if "keys" in given:
        keys = [given["keys"]] if isinstance(given["keys"], str) else given["keys"]
        proper = isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys)
        require(proper, f"{SECTION}.keys", given["keys"], 'names of a Dict\'s parts, such as ["observation"]')
        given["keys"] = tuple(keys)
    if "keep" in given:
        given["keep"] = _indices(given["keep"])
    if "noise" in given:
        noise = given["noise"]
        values = noise if isinstance(noise, list | tuple) else [noise]
        require(all(type(value) in (int, float) for value in values), f"{SECTION}.noise", noise, "a number, or one for each component")
        given["noise"] = tuple(map(float, noise)) if isinstance(noise, list | tuple) else float(noise)
    found = InputsConfig(**given)
    return None if found.shows_everything else found


def _indices(request: Any) -> tuple[int, ...]:
    """Indices from a list of numbers and ranges (``"4:6"`` is 4 and 5), or from the same as one text."""
    form = "indices and ranges, such as [0, 1, '4:6']"
    items = re.split(r"[,\s]+", request.strip("[] \t")) if isinstance(request, str) else request
    require(isinstance(items, list | tuple) and len(items) > 0, f"{SECTION}.keep", request, form)
    found: list[int] = []
    for item in items:
        text = str(item).strip("'\"") if type(item) in (int, str) else ""
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text)
        require(match is not None, f"{SECTION}.keep", request, form)
        assert match is not None
        first = int(match[1])
        last = first + 1 if match[2] is None else int(match[2])
        require(first < last <= first + MAX_INDICES, f"{SECTION}.keep", request, f"{form}; a range ends after it begins")
        found += range(first, last)
        require(len(found) <= MAX_INDICES, f"{SECTION}.keep", one_line(request, 80), f"{form}; {MAX_INDICES:,} indices at most")
    return tuple(found)
