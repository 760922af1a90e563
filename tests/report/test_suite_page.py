"""suite.html: the aggregate, each teacher with its report, and why some were not distilled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policy_distill.config import RequestError
from policy_distill.report import write_suite_report
from tests.report.test_page import Outline, cells, check_alone
from tests.report.test_run_page import headings, section


def row(teacher: str, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": teacher, "status": "done", "env": "One-v1", "params": 5000, "student": "[8, 8]", "student_params": 50,
        "compression": 100.0, "teacher_return": 100.0, "student_return": 90.04, "retention": 0.9, "low": 0.8, "high": 1.0,
        "agreement": 0.95, "env_steps": 2000, "seconds": 90.0, "reason": None, **changes,
    }  # fmt: skip


def failed(teacher: str, reason: str) -> dict[str, Any]:
    return {**dict.fromkeys(row("x")), "teacher": teacher, "status": "failed", "reason": reason}


AGGREGATES = {
    "interquartile_mean": {"estimate": 0.9321, "over_episodes": [0.9123, 0.9567], "over_teachers": [0.7, 1.1]},
    "geometric_mean": {"estimate": 0.94, "over_episodes": [0.93, 0.95], "over_teachers": None},
    "optimality_gap": {"estimate": 0.06, "over_episodes": None, "over_teachers": None},
}


def page_of(folder: Path, *rows: dict[str, Any], aggregates: dict[str, Any] = AGGREGATES) -> str:
    suite: dict[str, Any] = {"rows": rows, "aggregates": aggregates, "worth_compressing": 4000, "config": {}}
    (folder / "suite.json").write_text(json.dumps(suite))
    path = write_suite_report(folder)
    assert path == folder / "suite.html"
    Outline(path.read_text())
    check_alone(path.read_text())
    return path.read_text()


def test_the_page_of_a_suite(tmp_path):
    (tmp_path / "ppo/One").mkdir(parents=True)
    (tmp_path / "ppo/One/report.html").touch()
    rows = [
        row("ppo/One"), row("dqn/Two", low=0.97, retention=0.98, high=0.99), row("a2c/Three", low=0.3, retention=0.5, high=0.7),
        failed("sac/Four", "ValueError: a <b> | c"),
    ]  # fmt: skip
    text = page_of(tmp_path, *rows)
    assert "<h1>3 of 4 teachers distilled</h1>" in text
    assert headings(text) == ["Aggregates", "Teachers", "Not distilled"]
    assert text.count("<svg") == 2
    assert "<dd>0.932<span>interquartile mean, teachers of 4,000 parameters or more; 95% interval 0.912 to 0.957</span>" in text
    for words in ("Kept 95%</dt><dd>1 of 3", "Open at 95%</dt><dd>1 of 3", "Below 95%</dt><dd>1 of 3", "Time</dt><dd>4.5 min"):
        assert words in text
    together = cells(section(text, "Aggregates"))
    assert together[:4] == [
        ["figure", "estimate", "other episodes", "other teachers too"],
        ["interquartile mean", "0.932", "[0.912, 0.957]", "[0.700, 1.100]"],
        ["geometric mean", "0.940", "[0.930, 0.950]", ""],
        ["optimality gap", "0.060", "", ""],
    ]
    assert [row[0] for row in together[4:]] == ["interquartile mean", "geometric mean", "optimality gap"]  # what they are
    table = section(text, "Teachers")
    assert cells(table)[1] == ["ppo/One", "0.900 [0.800, 1.000]", "100.0x", "[8, 8]", "5,000", "100.0", "90.0", "90", "One-v1"]
    assert table.count("<a ") == 1
    assert '<a href="./ppo/One/report.html">ppo/One</a>' in table
    assert cells(section(text, "Not distilled"))[1] == ["sac/Four", "failed", "ValueError: a &lt;b&gt; | c"]


def test_what_is_undefined_is_in_the_table_and_in_no_plot(tmp_path):
    text = page_of(tmp_path, row("a", retention=None, low=None, high=None, compression=None, params=None), aggregates={})
    assert headings(text) == ["Teachers"]
    assert cells(section(text, "Teachers"))[1][:5] == ["a", "undefined", "unknown", "[8, 8]", "unknown"]
    assert "of 0" in text


def test_teachers_that_are_small_have_plots_and_no_aggregates(tmp_path):
    text = page_of(tmp_path, row("a", params=30), aggregates={})
    assert headings(text) == ["Aggregates", "Teachers"]
    assert "unknown<span>interquartile mean" in text
    assert "other teachers" not in text


def test_teachers_of_unknown_size_are_in_the_profile_alone(tmp_path):
    assert page_of(tmp_path, row("a", compression=None)).count("<svg") == 1


def test_a_suite_in_which_nothing_worked(tmp_path):
    text = page_of(tmp_path, failed("a", "no"), aggregates={})
    assert headings(text) == ["Not distilled"]


def test_a_folder_without_a_suite_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"contains no suite\.json"):
        write_suite_report(tmp_path)


def test_a_folder_s_name_is_no_scheme(tmp_path):
    """A browser would run what follows javascript:."""
    name = "javascript:alert(1)"
    (tmp_path / name).mkdir()
    (tmp_path / name / "report.html").write_text("")
    text = page_of(tmp_path, row(name))
    assert f'href="./{name}/report.html"' in text
    assert f'href="{name}' not in text
