"""The closing table, with every figure where a reader looks for it."""

from __future__ import annotations

import pytest

from policy_distill.report.rows import known, retention_text, seed_tally, summary_rows, summary_table, tally_text
from tests.report.example import SUMMARY, changed

UNDEFINED = "undefined: teacher and random policy cannot be told apart"


def test_retention_has_its_interval():
    assert retention_text(SUMMARY["retention"]) == "0.981 [0.967, 0.993]"


def test_extra_states_have_a_row_where_there_are_any():
    assert dict(summary_rows(changed(extra_states=1234)))["extra states"] == "1,234, of an earlier comparison"
    assert "extra states" not in dict(summary_rows(changed(extra_states=0)))


@pytest.mark.parametrize("estimate", [None, float("nan")])
def test_undefined_retention_says_why(estimate):
    kept = {"estimate": estimate, "low": estimate, "high": estimate, "confidence": 0.95, "episodes": 30}
    assert retention_text(kept) == UNDEFINED
    assert f"| retention [95% interval] | {UNDEFINED} |" in summary_table(changed(retention=kept))


def test_the_closing_table():
    assert dict(summary_rows(SUMMARY)) == {
        "environment": "CartPole-v1",
        "teacher": "ppo, 67,586 parameters",
        "student": "[8, 8], 130 parameters",
        "compression": "519.9x",
        "teacher's return": "500.0 ± 0.0",
        "student's return": "490.0 ± 12.4",
        "random policy's return": "22.0 ± 11.0",
        "retention [95% interval]": "0.981 [0.967, 0.993]",
        "paired episodes": "100",
        "agreement": "95.7% of the student's states",
        "student's origin": "round 2",
        "environment steps": "200,000",
        "gradient steps": "40,000",
        "time": "38 s (collect 10 s, train 20 s, evaluate 5 s)",
    }
    lines = summary_table(SUMMARY).splitlines()
    assert lines[:3] == ["| | |", "|---|---|", "| environment | CartPole-v1 |"]
    assert len(lines) == 2 + 14


def test_what_is_not_known_is_called_unknown():
    rows = dict(summary_rows(changed(compression=None, agreement=None)))
    assert rows["compression"] == rows["agreement"] == "unknown"
    assert dict(summary_rows(changed(agreement=0.0)))["agreement"].startswith("0.0%")
    assert [known(value) for value in (None, float("nan"), float("inf"), 0.0)] == [False, False, False, True]


def test_the_time_of_polishing_is_reported_where_there_was_any():
    seconds = SUMMARY["seconds"] | {"polish": 7.6, "total": 45.5}
    assert dict(summary_rows(changed(seconds=seconds)))["time"] == "46 s (collect 10 s, train 20 s, polish 8 s, evaluate 5 s)"


def test_seeds_are_counted_by_who_earned_more():
    returns = {"student": [1.0, 2.0, 3.0 + 1e-9, 5.0, -4.0], "teacher": [2.0, 1.0, 3.0, 4.0, -4.0]}
    assert seed_tally(returns) == (2, 2, 1)
    assert tally_text(returns) == "On 2 of 5 seeds the student earned more than its teacher, on 2 as much, on 1 less."
