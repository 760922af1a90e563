"""The training record in an agent's zip: returns of the last training episodes, and whether VecNormalize was used.

Stable-Baselines3 saves both as pickles inside the member ``data``. They are read like ``vecnormalize.pkl``: nothing is executed.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import RequestError
from policy_distill.teachers.files.archive import read_data
from policy_distill.teachers.files.inert import Inert, load_inert, plain_array

MAX_PICKLE_BYTES = 1 << 20
"""Maximum size of either pickle; a hundred episodes take some kilobytes."""


@dataclass(frozen=True)
class TrainingRecord:
    """The training record in a zip.

    Attributes:
        returns: ``[E]``, returns of the last training episodes (at most 100), with exploration; None if not saved.
        inside_vec_normalize: whether VecNormalize was used, for observations or rewards; None if unknown, as for off-policy agents.
        returns_are_raw: whether ``returns`` are certainly of raw rewards: VecNormalize was not used, or Monitor recorded them, which is
            inside it and rounds to six decimals. VecMonitor does not round and may have recorded normalised rewards.
    """

    returns: np.ndarray | None
    inside_vec_normalize: bool | None
    returns_are_raw: bool = True


def read_training_record(zip_path: str | Path) -> TrainingRecord:
    """Read the record; missing or damaged parts count as unknown, since acting does not need them."""
    try:
        data = read_data(zip_path, with_pickles=True)
    except RequestError:
        return TrainingRecord(None, None)
    returns, inside = _returns(data), _inside_vec_normalize(data)
    rounded = returns is None or bool((returns == returns.round(6)).all())
    return TrainingRecord(returns, inside, rounded or inside is False)


def _returns(data: dict[str, Any]) -> np.ndarray | None:
    """Returns in ``ep_info_buffer``, a deque of records of Monitor or VecMonitor: ``{"r": return, "l": length, ...}``."""
    buffer = _load(data.get("ep_info_buffer"))
    if not isinstance(buffer, Inert) or buffer.name != "collections.deque":
        return None
    try:
        episodes = buffer.items or list(buffer.args[0])  # protocols below 2 pass them as an argument
        returns = np.array([float(plain_array(episode["r"])) for episode in episodes[-100:]])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return returns if len(returns) and np.isfinite(returns).all() else None


def _inside_vec_normalize(data: dict[str, Any]) -> bool | None:
    """On-policy agents keep the first observation as it was before VecNormalize, if there was one; off-policy agents keep one always."""
    if "gae_lambda" not in data or "_last_original_obs" not in data or data.get("_last_obs") is None:
        return None
    return data["_last_original_obs"] is not None


def _load(saved: object) -> Any:
    """What a pickle in ``data`` holds, as plain values and inert records; None if it cannot be read."""
    text = saved.get(":serialized:") if isinstance(saved, dict) else None
    if not isinstance(text, str) or len(text) > MAX_PICKLE_BYTES:
        return None
    try:
        return load_inert(base64.b64decode(text))
    except Exception:  # a hostile pickle may raise any exception; unreadable parts count as unknown
        return None
