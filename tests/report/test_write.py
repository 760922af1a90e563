"""Both reports come from result.json, as often as they are wanted."""

from __future__ import annotations

import json

import pytest

from policy_distill.config import RequestError
from policy_distill.report import add_to_report, write_report
from policy_distill.report.markdown import run_markdown
from tests.report.example import SUMMARY, changed


def test_both_are_written_and_written_again(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(SUMMARY))
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    assert (tmp_path / "report.md").read_text() == run_markdown(SUMMARY)
    first = page.read_text()
    assert write_report(tmp_path).read_text() == first
    (tmp_path / "result.json").write_text(json.dumps(changed(env="Other-v0")))
    assert "ppo on Other-v0, distilled" in write_report(tmp_path).read_text()


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"contains no result\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_found_later_is_noted_and_shown(tmp_path):
    with pytest.raises(RequestError, match=r"contains no result\.json"):
        add_to_report(tmp_path, certificate=None)
    (tmp_path / "result.json").write_text(json.dumps(SUMMARY))
    found = {"verdict": "refuted", "reason": "it keeps less", "confidence": 0.95, "episodes": 75}
    page = add_to_report(tmp_path, certificate=found)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept.pop("certificate") == found
    assert kept == {name: value for name, value in json.loads(json.dumps(SUMMARY)).items() if name != "certificate"}
    assert "refuted: it keeps less" in page.read_text() + (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "[" * 10**5,
        json.dumps({**SUMMARY, "rounds": 3}),
        json.dumps({**SUMMARY, "rounds": SUMMARY["rounds"] * 1001}),
        json.dumps({**SUMMARY, "retention": {"estimate": "x"}}),
    ],
)
def test_a_damaged_result_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RequestError, match=r"result\.json cannot be read .*: .*run the job again"):
        write_report(tmp_path)


def test_texts_of_files_are_shown_on_the_page_and_are_no_html(tmp_path):
    hostile = '<script>alert(1)</script>\x1b[2J\udcff"'
    (tmp_path / "result.json").write_text(json.dumps({**SUMMARY, "env": hostile, "notices": [hostile], "version": hostile}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page
    (tmp_path / "report.md").read_text(encoding="utf-8")
