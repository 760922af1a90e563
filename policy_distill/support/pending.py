"""A result that is requested now and read later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")
Other = TypeVar("Other")


class Pending(Generic[Answer]):
    """A request to a worker. ``result`` waits for the answer once; later calls return the same object.

    Args:
        wait: waits for the answer and returns it; is called once.
    """

    def __init__(self, wait: Callable[[], Answer]) -> None:
        self._wait: Callable[[], Answer] | None = wait
        self._answer: Any = None

    @classmethod
    def known(cls, answer: Answer) -> Pending[Answer]:
        """A handle for an answer that exists already."""
        return cls(lambda: answer)

    @classmethod
    def together(cls, parts: Sequence[Pending[Answer]]) -> Pending[list[Answer]]:
        """The answers to several questions."""
        return Pending(lambda: [part.result() for part in parts])

    def result(self) -> Answer:
        """Wait for the answer; re-raises the exception of its computation."""
        if self._wait is not None:
            wait, self._wait = self._wait, None
            self._answer = wait()
        answer: Answer = self._answer
        return answer

    def then(self, function: Callable[[Answer], Other]) -> Pending[Other]:
        """A handle for ``function(answer)``, which is computed when it is read."""
        return Pending(lambda: function(self.result()))
