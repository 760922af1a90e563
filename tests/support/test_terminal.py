from __future__ import annotations

import io

from rich.table import Table

from policy_distill.report.printing import finish
from policy_distill.support.progress import Display
from policy_distill.support.terminal import Terminal

HOSTILE = "agent\x1b[2J\x1b]0;owned\x07 [red]"
SHOWN = "agent\\x1b[2J\\x1b]0;owned\\x07 [red]"


def test_texts_and_cells_cannot_steer_the_terminal():
    for colours in (True, False):
        shown = io.StringIO()
        terminal = Terminal(file=shown, width=200, force_terminal=colours, color_system=None, _environ={})
        table = Table(HOSTILE)
        table.add_row(HOSTILE)
        terminal.print(HOSTILE)
        terminal.print(table)
        assert shown.getvalue().count(SHOWN) == 3
        assert "\x1b]" not in shown.getvalue()
        assert "\x1b[2J" not in shown.getvalue()


def test_a_job_s_notes_and_its_closing_table_are_printed_so(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    Display().note(f"note: {HOSTILE}")
    finish(False, {}, [("policy", HOSTILE)], HOSTILE)
    captured = capsys.readouterr()
    assert captured.err == f"note: {SHOWN}\n"
    assert captured.out.count(SHOWN) == 2
    assert "\x1b]" not in captured.out
