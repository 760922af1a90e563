"""Text from files on its way to a terminal or a page: no control characters, no line breaks, no endless lines."""

from __future__ import annotations

LONGEST = 1000
"""Characters of a message; what a file holds may be longer than a screen."""


def printable(text: str) -> str:
    """Write each character that is not printable as its escape: ``\\x1b`` for ESC, ``\\u202e`` for a change of direction.

    Escape sequences could clear the screen, move the cursor or change the window's title. Line breaks stay. Lone surrogates, which stand
    for bytes of a file's name that are no UTF-8, become text that can be encoded.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii") for char in text)


def one_line(text: object, longest: int = LONGEST) -> str:
    """``text`` in one printable line; what is longer than ``longest`` characters loses its middle."""
    words = str(text)[: 8 * longest] + (str(text)[-longest:] if len(str(text)) > 8 * longest else "")
    line = printable(" ".join(words.split()))
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]} ... {line[-half:]}"
