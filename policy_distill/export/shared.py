"""Operations in numpy that formats share: encoding of observations, masks, and discrete actions."""

from __future__ import annotations

import numpy as np

from policy_distill.export.folded import MASK_NAME, ActionRule, Input
from policy_distill.export.runner import Seen
from policy_distill.policies.families.choices import FORBIDDEN


def encoded(part: Input, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Vectors ``[B, width]`` of raw values ``[B, ...]``: flattened, discrete values one-hot."""
    flat = values.reshape(len(values), -1)
    if not part.sizes:
        return flat.astype(dtype)
    component, value = one_hot_columns(part)
    return (flat[:, component] == value).astype(dtype)


def one_hot_columns(part: Input) -> tuple[np.ndarray, np.ndarray]:
    """For each column of a one-hot vector: which component of the raw input it stands for, and which value of it."""
    component = np.repeat(np.arange(len(part.sizes)), part.sizes)
    return component, np.concatenate([start + np.arange(size) for start, size in zip(part.starts, part.sizes, strict=True)])


def masked(rule: ActionRule, outputs: np.ndarray, seen: Seen) -> np.ndarray:
    """Outputs with the logits of forbidden actions replaced; see ``ActionRule``."""
    if not rule.masked:
        return outputs
    allowed = seen[MASK_NAME].reshape(len(outputs), -1) != 0
    lowest = np.float32(FORBIDDEN)
    if rule.kind == "argmax":
        return np.where(allowed, outputs, lowest)
    off, on = allowed[:, 0::2], allowed[:, 1::2]  # logit 0 where neither is allowed
    return np.where(on, np.where(off, outputs, -lowest), np.where(off, lowest, np.float32(0)))


def choose(rule: ActionRule, outputs: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Actions ``[B, *shape]`` from outputs ``[B, width]``, which are ``scaled`` to the action space for a box; see ``ActionRule``."""
    if rule.kind == "box":
        actions = scaled.clip(rule.low, rule.high)
    elif rule.kind == "bits":
        actions = outputs > 0
    else:
        components = np.split(outputs, np.cumsum(rule.sizes)[:-1], axis=1)
        actions = np.stack([component.argmax(1) + start for component, start in zip(components, rule.starts, strict=True)], axis=1)
    return actions.reshape(len(outputs), *rule.shape).astype(rule.dtype, copy=False)
