"""Terminal output that is safe for text from files."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from policy_distill.config.printable import printable


class Terminal(Console):
    """rich's console without markup; control characters in texts and table cells are shown as escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)
