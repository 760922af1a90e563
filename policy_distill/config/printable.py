"""Escaping and shortening of text from files before it is printed: no control characters, no line breaks, no endless lines."""

from __future__ import annotations

LONGEST = 1000
"""Maximum number of characters of a message."""


def printable(text: str) -> str:
    """Write each character that is not printable as its escape: ``\\x1b`` for ESC, ``\\u202e`` for a change of direction.

    Escape sequences could clear the screen, move the cursor or change the window's title. Line breaks are kept. Lone surrogates, which
    represent bytes of a file name that are not UTF-8, become text that can be encoded.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii") for char in text)


def one_line(text: object, longest: int = LONGEST) -> str:
    """``text`` as one printable line; the middle is cut out if it is longer than ``longest`` characters."""
    words = str(text)[: 8 * longest] + (str(text)[-longest:] if len(str(text)) > 8 * longest else "")
    line = printable(" ".join(words.split()))
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]} ... {line[-half:]}"
