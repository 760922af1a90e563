"""Progress of a job in the terminal: a bar with key figures; plain lines if the output is not a terminal."""

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
        """Print one line."""
        if not self.quiet:
            self.console.print(message)

    def start(self, description: str, total: int, unit: str = "") -> None:
        """Start a bar of ``total`` units, in place of the previous one."""
        self.stop()
        if self.quiet or not self.console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(description, total=total)

    def advance(self, figures: str, amount: int = 1) -> None:
        """Print the figures of a finished part and advance the bar."""
        self.note(figures)
        self.move(amount)

    def move(self, amount: int) -> None:
        """Advance the bar without printing."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount)

    def stage(self, description: str) -> None:
        """Set the bar's description."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=description)

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
