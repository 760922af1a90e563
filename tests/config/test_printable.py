from __future__ import annotations

import pytest

from policy_distill.config import RequestError
from policy_distill.config.printable import LONGEST, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ± text", "plain ± text"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("right \u202e to left", "right \\u202e to left"),
        ("name\udcff", "name\\udcff"),
        ("nul\x00", "nul\\x00"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_is_not_printable_is_shown_as_its_escape(text, shown):
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_one_line_is_one_line_of_bounded_length():
    assert one_line("a\n\tb\r c") == "a b c"
    line = one_line("x" * 10**6 + " the end")
    assert len(line) < LONGEST + 20
    assert line.endswith("the end")
    assert one_line("y" * LONGEST) == "y" * LONGEST


def test_a_request_error_quotes_files_without_their_control_characters():
    error = RequestError("the id '\x1b[31mred' is not\nknown")
    assert str(error) == "the id '\\x1b[31mred' is not known"
    assert str(RequestError(str(error))) == str(error)
