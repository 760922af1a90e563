"""Objects in processes on the machines of a Ray cluster, with the interface of ``Remote``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from policy_distill.config import EngineConfig
from policy_distill.rollouts.processes.remote import Recovery, Remote
from policy_distill.support.pending import Pending
from policy_distill.support.ray_cluster import Actor


class Distant:
    """A ``Remote`` on another machine: a process of Ray passes calls on to one of its own, which can be ended if an environment hangs.

    That process is made anew after a crash as often as ``recovery`` allows one job; each distant process counts for itself.
    """

    def __init__(
        self,
        engine: EngineConfig,
        make: Callable[..., Any],
        *arguments: Any,
        step_timeout: float | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        self._recovery = recovery or Recovery()
        self._actor = Actor(engine, _Passing, make, arguments, step_timeout, self._recovery.limit)

    def submit(self, method: str, *arguments: Any, changes: str = "") -> Pending[Any]:
        """Call a method; see ``Remote.submit``."""
        return self._actor.submit("call", method, arguments, changes).then(self._noted)

    def _noted(self, answer: tuple[Any, list[str]]) -> Any:
        result, lines = answer
        for line in lines:
            self._recovery.note(line)
        return result

    def forget(self, changed: str) -> None:
        """See ``Remote.forget``."""
        self._actor.submit("forget", changed)

    def ask_to_end(self) -> None:
        """Does nothing: ``close`` does not wait."""

    def close(self) -> None:
        """End both processes."""
        self._actor.close()


class _Passing:
    """The other side: passes calls on, and returns each result with the lines about crashes before it."""

    def __init__(self, make: Callable[..., Any], arguments: tuple[Any, ...], step_timeout: float | None, restarts: int) -> None:
        self._lines: list[str] = []
        self._remote = Remote(make, *arguments, step_timeout=step_timeout, recovery=Recovery(restarts, self._lines.append))

    def call(self, method: str, arguments: tuple[Any, ...], changes: str) -> tuple[Any, list[str]]:
        result = self._remote.submit(method, *arguments, changes=changes).result()
        lines = list(self._lines)
        self._lines.clear()
        return result, lines

    def forget(self, changed: str) -> None:
        self._remote.forget(changed)
