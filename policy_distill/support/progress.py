"""What a person sees in the terminal while a job runs: a bar with the figures that matter; plain lines where there is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from policy_distill.support.terminal import Terminal


class Display:
    """Messages and one progress bar on standard error; a context manager.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Terminal(file=sys.stderr, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def note(self, message: str) -> None:
        """Say one line."""
        if not self.quiet:
            self.console.print(message)

    def start(self, description: str, total: int, unit: str = "") -> None:
        """Begin a bar of ``total`` parts, each a ``unit``; one that is still there goes."""
        self.stop()
        if self.quiet or not self.console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(description, total=total)

    def advance(self, figures: str, amount: int = 1) -> None:
        """Say the figures of what was done, and move the bar beneath them on."""
        self.note(figures)
        self.move(amount)

    def move(self, amount: int) -> None:
        """Move the bar on, without a word."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount)

    def stage(self, description: str) -> None:
        """Name what is being done now."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=description)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
