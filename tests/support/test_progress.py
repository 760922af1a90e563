"""What is shown: nothing when quiet, plain lines without a terminal, a bar in one."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from policy_distill.support.progress import Display
from policy_distill.support.terminal import Terminal


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def whole_show(display: Display) -> None:
    with display:
        display.note("hello")
        display.start("measuring", 2)
        display.stage("round 1")
        display.advance("return 1.0", 0)
        display.advance("return 2.0")


def test_quiet_shows_nothing(capsys):
    whole_show(Display(quiet=True))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_without_a_terminal_there_are_plain_lines_on_standard_error(capsys):
    whole_show(Display())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\nreturn 1.0\nreturn 2.0\n")


@pytest.mark.parametrize("message", ['pip install "policy-distill[box2d]"', "[/tmp] [red]", "mine:car:Env-v0", "word " * 60 + "end"])
def test_a_message_is_shown_as_it_is(message, capsys):
    """Brackets are not markup, names between colons are no pictures, and a long line stays one line."""
    Display().note(message)
    assert capsys.readouterr().err == message + "\n"


def in_a_terminal() -> tuple[Display, io.StringIO]:
    shown, display = io.StringIO(), Display()
    display.console = Terminal(file=shown, force_terminal=True, width=100, _environ={})
    return display, shown


def test_in_a_terminal_there_is_a_bar_with_the_figures():
    display, shown = in_a_terminal()
    whole_show(display)
    assert "round 1" in shown.getvalue()
    assert "1/2" in shown.getvalue()
    assert "return 2.0" in shown.getvalue()


def test_a_bar_moves_without_a_word_and_names_its_unit():
    display, shown = in_a_terminal()
    with display:
        display.start("round 1: training", 32, "gradient steps")
        display.move(8)
        display.move(16)
    assert "24/32 gradient steps" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    quiet = Display(quiet=True)
    quiet.move(8)  # there is no bar to move


def test_a_second_bar_takes_the_place_of_the_first():
    """The first one was forgotten but not stopped: it went on being drawn, and standard output stayed redirected, after the end."""
    display, shown = in_a_terminal()
    with display:
        display.start("measuring", 2)
        display.advance("return 1.0")
        display.start("polishing", 5)
        display.advance("return 2.0")
    assert "1/2" in shown.getvalue()
    assert "1/5" in shown.getvalue()
    assert shown.getvalue().count("\x1b[?25l") == shown.getvalue().count("\x1b[?25h") == 2
    display.advance("plain again")
    assert shown.getvalue().endswith("plain again\n")


def test_a_failure_takes_the_bar_away():
    display, shown = in_a_terminal()
    with contextlib.suppress(ZeroDivisionError), display:
        display.start("measuring", 2)
        raise ZeroDivisionError
    assert shown.getvalue().count("\x1b[?25l") == shown.getvalue().count("\x1b[?25h") == 1  # the cursor hidden once, and shown again
    display.advance("plain again")
    assert shown.getvalue().endswith("plain again\n")
