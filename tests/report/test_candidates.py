"""Every student on the way, and which of them was kept."""

from __future__ import annotations

from typing import Any

import pytest

from policy_distill.report.candidates import Candidate, candidates
from tests.report.example import POLISH, SUMMARY, changed, generation


def kept(summary: dict[str, Any]) -> list[tuple[str, int]]:
    return [(candidate.stage, candidate.number) for candidate in candidates(summary) if candidate.kept]


def test_rounds_have_their_intervals_where_the_run_recorded_them():
    assert candidates(SUMMARY) == [
        Candidate("round", 1, 0.7907, None, finalist=False, kept=False),
        Candidate("round", 2, 1.0, 1.96 * 0.05, finalist=True, kept=True),
    ]
    older = changed()
    for record in older["rounds"]:  # a result that was written before errors were recorded
        del record["validation_retention_standard_error"]
    assert [candidate.half_width for candidate in candidates(older)] == [None, None]


def test_the_last_stage_that_changed_the_student_made_the_kept_one():
    generations = [generation(1, True), generation(2, True), generation(3, False)]
    assert kept(changed(self_distillation=generations)) == [("generation", 2)]
    assert kept(changed(self_distillation=generations[2:])) == [("round", 2)]
    assert kept(changed(self_distillation=generations, polish=POLISH)) == [("polish", 2)]
    assert kept(changed(self_distillation=generations, polish=POLISH | {"chosen": None})) == [("generation", 2)]


def test_stages_follow_each_other():
    found = candidates(changed(self_distillation=[generation(1, True)], polish=POLISH))
    assert [(candidate.stage, candidate.number) for candidate in found] == [
        ("round", 1), ("round", 2), ("generation", 1), ("polish", 1), ("polish", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_figure_that_is_not_there_has_no_text(nothing):
    rounds = [{**SUMMARY["rounds"][0], "validation_retention": nothing}]
    (found,) = candidates(changed(rounds=rounds, chosen_round=0))
    assert (found.retention, found.text) == (None, "")
    assert [candidate.text for candidate in candidates(SUMMARY)] == ["0.791", "1.000 ± 0.098"]
