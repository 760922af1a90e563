"""The report's tables, with every figure where a reader looks for it."""

from __future__ import annotations

import copy
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
    "chosen_round": 1,
    "rounds": [
        {**ROUND, "round": 0, "teacher_action_prob": 1.0, "validation_return_mean": 400.0, "validation_retention": 0.7907},
        {
            **ROUND, "round": 1, "teacher_action_prob": 0.5, "validation_return_mean": 500.0, "validation_retention": 1.0,
            "held_out": {"forward_kl_nats": 0.5}, "finalist_return_mean": 498.76,
        },
    ],
    "notices": ["trained on an old one", "another notice"],
    "seconds": {"collect": 10.4, "train": 20.4, "evaluate": 5.0, "total": 37.9},
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
        "environment steps": "200,000",
        "gradient steps": "40,000",
        "time": "38 s (collect 10 s, train 20 s, evaluate 5 s)",
    }
    lines = summary_table(SUMMARY).splitlines()
    assert lines[:3] == ["| | |", "|---|---|", "| environment | CartPole-v1 |"]
    assert len(lines) == 2 + 13


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
    assert table[2] == ["0", "1,000", "2,500", "1.00", "0.01235", "", "400.0", "0.791", ""]
    assert table[3] == ["1 **kept**", "1,000", "2,500", "0.50", "0.01235", "0.5", "500.0", "1.000", "498.8"]
    assert text.count("**kept**") == 1
