"""report.md: its tables, with every figure where a reader looks for it."""

from __future__ import annotations

from typing import Any

from policy_distill.report.markdown import run_markdown
from policy_distill.report.rows import summary_table
from policy_distill.report.verdict import verdict
from tests.report.example import POLISH, SUMMARY, changed, generation


def test_the_written_report():
    text = run_markdown(SUMMARY)
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
    assert table[3] == ["2 **chosen**", "1,000", "2,500", "0.50", "0.01235", "0.5", "500.0", "1.000 ± 0.098", "498.8"]
    assert text.count("**chosen**") == 1
    assert "## Polish" not in lines
    assert "## Generations" not in lines
    assert f"**{verdict(SUMMARY).headline}**" in lines
    assert "On 1 of 4 seeds the student earned more than its teacher, on 1 as much, on 2 less." in lines


def test_the_section_on_generations():
    lines = run_markdown(changed(self_distillation=[generation(1, True), generation(2, False)])).splitlines()
    first = lines.index("## Generations") + 4
    assert lines[first : first + 3] == [
        "| 1 | 50 | 495.0 | 0.990 ± 0.039 | +1.25 | kept |",
        "| 2 | 50 | 495.0 | 0.990 ± 0.039 | +1.25 | rejected |",
        "",
    ]


def polish_section(**changes: Any) -> list[str]:
    lines = run_markdown(changed(polish=POLISH | changes)).splitlines()
    return lines[lines.index("## Polish") : lines.index("## Files")]


def test_the_section_on_polishing():
    lines = polish_section()
    assert lines[2] == "Initial student: round 3, with a validation retention of 0.877."
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in table} == {5}
    assert table[2:] == [
        ["30,720", "412.3", "450.0", "0.895 ± 0.020", ""],
        ["61,440 **chosen**", "", "490.0", "0.979", "488.8"],
    ]
    assert not [line for line in lines if "No polished student" in line]


def test_polishing_that_did_not_help_says_so():
    lines = polish_section(chosen=None)
    assert "No polished student had a higher return on all validation seeds than the initial one." in lines
    assert not [line for line in lines if "**chosen**" in line]


def test_texts_of_files_are_texts_and_no_markdown():
    hostile = "x\x1b[2J|y <script>alert(1)</script>\n# heading [a](javascript:b)"
    text = run_markdown(changed(env=hostile, notices=[hostile], kept=hostile))
    assert "\x1b" not in text
    assert "<script>" not in text
    assert "](" not in text
    assert "\n# heading" not in text
    assert "\\x1b[2J\\|y" in text
