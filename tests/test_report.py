"""The report's tables, with every figure where a reader looks for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from policy_distill.report import retention_text, summary_rows, summary_table, write_report

ROUND = {
    "env_steps": 1000, "gradient_steps": 2500, "train": {"forward_kl_nats": 0.012345, "other": 1.0}, "held_out": {},
    "validation_return_standard_error": 1.0, "finalist_return_mean": None,
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "env": "CartPole-v1",
    "teacher": {"algo": "ppo", "params": 67586, "return_mean": 500.0, "return_std": 0.0},
    "student": {"hidden_sizes": [8, 8], "params": 130, "return_mean": 490.04, "return_std": 12.36},
    "random": {"return_mean": 22.0, "return_std": 11.0},
    "compression": 519.892,
    "retention": {"estimate": 0.98123, "low": 0.9666, "high": 0.9931, "confidence": 0.95, "episodes": 100},
    "agreement": 0.9567,
    "env_steps": 200_000,
    "gradient_steps": 40_000,
    "kept": "round 2",
    "chosen_round": 1,
    "rounds": [
        {**ROUND, "round": 0, "teacher_action_prob": 1.0, "validation_return_mean": 400.0, "validation_retention": 0.7907},
        {
            **ROUND, "round": 1, "teacher_action_prob": 0.5, "validation_return_mean": 500.0, "validation_retention": 1.0,
            "held_out": {"forward_kl_nats": 0.5}, "finalist_return_mean": 498.76,
        },
    ],
    "polish": None,
    "notices": ["trained on an old one", "another notice"],
    "seconds": {"collect": 10.4, "train": 20.4, "polish": 0.0, "evaluate": 5.0, "total": 37.9},
}  # fmt: skip
UNDEFINED = "undefined: teacher and random policy cannot be told apart"


def changed(**values: Any) -> dict[str, Any]:
    return copy.deepcopy(SUMMARY) | values


def test_retention_has_its_interval():
    assert retention_text(SUMMARY["retention"]) == "0.981 [0.967, 0.993]"


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


def test_the_written_report(tmp_path):
    text = write_report(tmp_path / "report.md", SUMMARY).read_text()
    lines = text.splitlines()
    assert lines[0] == "# ppo on CartPole-v1, distilled"
    assert "- note: trained on an old one" in lines
    assert "- note: another notice" in lines
    assert summary_table(SUMMARY) in text
    assert "The loss is `forward_kl_nats`." in lines
    header = next(index for index, line in enumerate(lines) if line.startswith("| round |"))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[header : header + 4]]
    assert {len(row) for row in table} == {9}
    assert table[2] == ["1", "1,000", "2,500", "1.00", "0.01235", "", "400.0", "0.791", ""]
    assert table[3] == ["2 **chosen**", "1,000", "2,500", "0.50", "0.01235", "0.5", "500.0", "1.000", "498.8"]
    assert text.count("**chosen**") == 1
    assert "## Polish" not in lines


POLISH: dict[str, Any] = {
    "start": "round 3", "start_retention": 0.87654,
    "chosen": 1,
    "records": [
        {
            "env_steps": 30_720, "metrics": {"train_return_mean": 412.34, "std": 0.5}, "validation_return_mean": 450.04,
            "validation_retention": 0.8954, "finalist_return_mean": None,
        },
        {
            "env_steps": 61_440, "metrics": {}, "validation_return_mean": 490.0, "validation_retention": 0.979,
            "finalist_return_mean": 488.76,
        },
    ],
}  # fmt: skip


def polish_section(tmp_path: Path, **changes: Any) -> list[str]:
    lines = write_report(tmp_path / "report.md", changed(polish=POLISH | changes)).read_text().splitlines()
    return lines[lines.index("## Polish") : lines.index("## Files")]


def test_the_section_on_polishing(tmp_path):
    lines = polish_section(tmp_path)
    assert lines[2] == "It began with round 3, which kept 0.877 of the return on the validation seeds."
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in table} == {5}
    assert table[2:] == [
        ["30,720", "412.3", "450.0", "0.895", ""],
        ["61,440 **chosen**", "", "490.0", "0.979", "488.8"],
    ]
    assert not [line for line in lines if "No polished student" in line]


def test_polishing_that_did_not_help_says_so(tmp_path):
    lines = polish_section(tmp_path, chosen=None)
    assert "No polished student beat that one on all validation seeds." in lines
    assert not [line for line in lines if "**chosen**" in line]


def test_the_time_of_polishing_is_told_where_there_was_any():
    seconds = SUMMARY["seconds"] | {"polish": 7.6, "total": 45.5}
    assert dict(summary_rows(changed(seconds=seconds)))["time"] == "46 s (collect 10 s, train 20 s, polish 8 s, evaluate 5 s)"
