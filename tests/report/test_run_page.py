"""report.html: each figure where a reader looks for it, and nothing where there is nothing to say."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from policy_distill.report.run_page import VIDEO, run_page
from policy_distill.report.verdict import verdict
from tests.report.example import DISAGREEMENTS, POLISH, SUMMARY, UNDEFINED, changed, generation
from tests.report.test_page import Outline, cells, check_alone

NOWHERE = Path("/nowhere")


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def section(text: str, title: str) -> str:
    return text.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def page_of(folder: Path = NOWHERE, **values: Any) -> str:
    text = run_page(changed(**values), folder)
    Outline(text)
    check_alone(text)
    return text


def test_the_page_of_an_ordinary_run():
    text = page_of()
    assert headings(text) == ["Notes", "Return", "Selection of the student", "Losses", "Time", "All results", "Reproduce"]
    assert "<h1>ppo on CartPole-v1, distilled</h1>" in text
    found = verdict(SUMMARY)
    assert f"<p>{found.headline}</p>" in text
    assert "--level:var(--kept)" in text
    assert text.count("<svg") == 3 + len(SUMMARY["rounds"][0]["train"])
    assert "<dd>0.981<span>95% interval 0.967 to 0.993</span>" in text
    assert "<li>another notice</li>" in text


def test_no_two_elements_share_an_id():
    ids = re.findall(r'\bid="([^"]+)"', page_of(self_distillation=[generation(1, True)], polish=POLISH))
    assert len(ids) == len(set(ids)) > 0


def test_the_rounds():
    text = section(page_of(), "Selection of the student")
    assert cells(text)[1:] == [
        ["1", "1,000", "2,500", "1.00", "400.0", "0.791", ""],
        ["2", "1,000", "2,500", "0.50", "500.0", "1.000 ± 0.098", "498.8"],
    ]
    assert re.findall(r'<tr class="on"><td class="n">(\d+)', text) == ["2"]


def test_generations_and_polishing_have_tables_of_their_own():
    text = section(page_of(self_distillation=[generation(1, True), generation(2, False)], polish=POLISH), "Selection of the student")
    rows = cells(text)
    assert ["1", "50", "495.0", "0.990 ± 0.039", "+1.25", "kept"] in rows
    assert ["2", "50", "495.0", "0.990 ± 0.039", "+1.25", "rejected"] in rows
    assert rows[-2:] == [["30,720", "412.3", "450.0", "0.895 ± 0.020", ""], ["61,440", "", "490.0", "0.979", "488.8"]]
    assert "Polishing started from round 3, with a retention of 0.877 on all validation seeds.</p>" in text
    refused = section(page_of(polish=POLISH | {"chosen": None}), "Selection of the student")
    assert "No polished student had a higher return there." in refused


def test_the_returns_of_each():
    rows = cells(section(page_of(), "Return"))
    assert rows[1:] == [
        ["teacher", "500.0", "500.0", "500.0", "500.0 ± 0.0"],
        ["student", "9.00", "490.0", "501.0", "490.0 ± 12.4"],
        ["random policy", "9.00", "22.0", "35.0", "22.0 ± 11.0"],
    ]


def test_time_that_no_stage_took_is_named():
    assert cells(section(page_of(), "Time")) == [
        ["collect", "10.4 s", "27%"], ["train", "20.4 s", "54%"], ["evaluate", "5.0 s", "13%"], ["loading and writing", "2.1 s", "6%"],
    ]  # fmt: skip


def test_how_to_run_it_again():
    text = html.unescape(section(page_of(), "Reproduce"))
    assert "policy-distill distill_policy --config 'runs/my run/config.yaml' --output 'runs/my run-again'" in text
    assert "policy-distill evaluate_policy --policy 'runs/my run' --episodes 100 --teacher agents/one.zip" in text
    assert cells(text) == [["python", "3.11.7"], ["torch", "2.13.0"]]
    live = SUMMARY["config"] | {"teacher": ""}  # a model in memory cannot be named
    assert "--teacher" not in section(page_of(config=live), "Reproduce")


def test_a_result_that_is_older_than_these_keys_is_still_a_page():
    older = {key: value for key, value in changed().items() if key not in ("config", "versions", "validation")}
    text = run_page(older, NOWHERE)
    assert "Seed 7." in section(text, "Reproduce")


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_an_undefined_retention(nothing):
    rounds = [{**record, "validation_retention": nothing, "validation_retention_standard_error": nothing} for record in SUMMARY["rounds"]]
    text = page_of(retention=UNDEFINED, rounds=rounds, agreement=None, compression=None)
    assert "Selection of the student" not in headings(text)
    assert "cannot be told apart" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_a_student_without_hidden_layers():
    assert "one linear layer" in page_of(student=SUMMARY["student"] | {"hidden_sizes": []})


def test_text_from_outside_is_not_markup():
    text = page_of(notices=["<script>alert(1)</script>"], env="<b>")
    assert "&lt;script&gt;" in text
    assert "<b>, distilled" not in text


def test_only_files_that_are_there_are_named(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "result.json").touch()
    text = page_of(tmp_path)
    assert re.findall(r'href="([^"#]+)"', section(text, "Files")) == ["student/", "result.json"]


def test_the_film_is_on_the_page_itself(tmp_path):
    (tmp_path / VIDEO).write_bytes(b"GIF89a")
    assert 'src="data:image/gif;base64,R0lGODlh"' in section(page_of(tmp_path), "Side by side")


def test_where_they_part():
    text = section(page_of(disagreements=DISAGREEMENTS), "Disagreements")
    assert "In 217 of 5,000 states" in text
    rows = cells(text)
    assert rows[1] == ["11", "500.0", "480.0", "3", "17"]  # the other episode lost nothing
    assert rows[3] == ["11", "3", "0.125", "1", "0.5, -1"]
    assert len(rows) == 4


EXPORTS = {
    "c-int8": {
        "weight_bytes": 1234, "microseconds": 0.5123, "parity": {"equal_actions": 0.9987},
        "student_retention": {"estimate": 0.999, "low": 0.99, "high": 1.001}, "certificate": None,
    }
}  # fmt: skip


def test_the_exports():
    rows = cells(section(page_of(exports=EXPORTS), "Exports"))
    assert rows[1] == ["c-int8", "1,234", "0.51", "99.87%", "0.999 [0.990, 1.001]", ""]
    assert "Exports" not in headings(page_of())


def test_the_certificate():
    certificate = {"verdict": "certified", "reason": "it keeps 0.95", "share": 0.95, "confidence": 0.9, "episodes": 252, "low": None}
    rows = cells(section(page_of(certificate=certificate), "Certificate"))
    assert rows == [["verdict", "certified"], ["reason", "it keeps 0.95"], ["share", "0.95"], ["confidence", "0.9"], ["episodes", "252"]]
    assert "Certificate" not in headings(page_of(certificate=None))
