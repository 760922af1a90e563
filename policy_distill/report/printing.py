"""Printing of a command's result: a short table and a folder, or JSON and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from policy_distill.support.figures import return_text, spread_text
from policy_distill.support.terminal import Terminal

DONE = 0
"""Exit code of a command that succeeded."""


def finish(as_json: bool, summary: Any, rows: Sequence[tuple[str, str]], folder: str | None = None) -> None:
    """Print the table ``rows`` and the folder, or ``summary`` as JSON alone."""
    if as_json:
        print(json.dumps(plain(summary), indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console = Terminal()
    console.print(table)
    if folder:
        console.print(f"\n{folder}", soft_wrap=True)


def plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case np.ndarray():
            return plain(value.tolist())
        case np.generic():
            return plain(value.item())
        case float():
            return value if np.isfinite(value) else None
        case str() | int() | bool() | None:
            return value
    return str(value)


def text_of(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def mean_and_std(returns: np.ndarray) -> str:
    """``281.8 ± 21.5``; the mean alone for a single episode."""
    if not len(returns):
        return "not measured"
    return spread_text(returns.mean(), returns.std(ddof=1)) if len(returns) > 1 else return_text(returns.mean())
