"""The one kind of refusal that ``--trust`` can resolve."""

from __future__ import annotations

from policy_distill.config import RequestError


class NotPlainError(RequestError):
    """The agent cannot be rebuilt from plain data, but Stable-Baselines3 may load it, which runs code from the file."""
