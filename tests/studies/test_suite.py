"""The job over a folder: what is run, what is skipped, what goes on, and three tables that say the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from policy_distill.config import DistillConfig, PolishConfig, RequestError, StudentConfig
from policy_distill.studies.scheduler import jobs
from policy_distill.studies.suite import COLUMNS, SuiteResult, find_teachers, run_suite
from policy_distill.support.files import locked, write_json
from tests.teachers import extractors
from tests.teachers.conftest import THREE, build

NAMES = ["dqn/Two-v1_1", "ppo/One-v1_1"]


@pytest.fixture
def agents(tmp_path) -> Path:
    """Two folders that hold a zip; what is in it does not matter here."""
    for name in NAMES:
        (tmp_path / "agents" / name).mkdir(parents=True)
        (tmp_path / "agents" / name / "agent.zip").write_bytes(b"")
    (tmp_path / "agents" / "README.md").write_text("no agent")
    return tmp_path / "agents"


class Job:
    """Stands in for ``distill``: remembers what was asked, and fails where it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.extractors: dict[str, str | None] = {}
        self.errors: dict[str, Exception] = {}
        self.estimate = 0.9
        self.returns = {"student": [9.0] * 20, "teacher": [10.0] * 20, "random": [0.0] * 20}

    def __call__(self, config: DistillConfig, *, display: object) -> None:
        name = Path(config.teacher).name
        self.asked.append(name)
        self.extractors[name] = config.extractor
        if name in self.errors:
            raise self.errors[name]
        assert config.output is not None
        Path(config.output).mkdir(parents=True, exist_ok=True)
        summary: dict[str, Any] = {
            "env": "One-v1",
            "teacher": {"params": 5000, "return_mean": 100.0},
            "student": {"hidden_sizes": [8, 8], "params": 50, "return_mean": 90.04},
            "compression": 100.0,
            "retention": {"estimate": self.estimate, "low": self.estimate - 0.1, "high": self.estimate + 0.1},
            "agreement": 0.95,
            "env_steps": 2000,
            "seconds": {"total": 12.4},
            "self_distillation": [],
        }
        write_json(Path(config.output) / "result.json", {**summary, "returns": self.returns})


@pytest.fixture
def job(monkeypatch) -> Job:
    made = Job()
    monkeypatch.setattr(jobs, "distill_or_resume", made)
    return made


def tables(folder: Path) -> tuple[list[str], list[dict[str, str]], dict[str, Any]]:
    with open(folder / "suite.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return (folder / "suite.md").read_text().splitlines(), rows, json.loads((folder / "suite.json").read_text())


def test_each_folder_with_a_zip_is_a_teacher_in_the_order_of_names(agents):
    (agents / "ppo" / "One-v1_1" / "best_model.zip").write_bytes(b"")
    assert find_teachers(agents) == [agents / name for name in NAMES]
    assert find_teachers(agents / NAMES[0]) == [agents / NAMES[0]]


def test_one_that_fails_before_it_has_a_folder_does_not_end_the_suite(agents, job, tmp_path):
    """error.txt was written into a folder that only a started run makes: the suite ended where it should have gone on."""
    job.errors = {"Two-v1_1": MemoryError("no room")}
    result = run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0)
    assert [(row["status"], row["reason"]) for row in result.rows] == [("failed", "MemoryError: no room"), ("done", None)]
    assert "Traceback" in (tmp_path / "out" / NAMES[0] / "error.txt").read_text()


def test_a_worker_s_failure_is_reported_with_its_cause(agents, job, tmp_path):
    """Its first line says only that a worker failed; the last line of the traceback says what happened."""
    message = "a worker process failed:\nTraceback (most recent call last):\n  File ...\nValueError: the wheel came off\n"
    job.errors = {"Two-v1_1": RuntimeError(message)}
    rows = run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0).rows
    assert rows[0]["reason"] == "RuntimeError: a worker process failed: ValueError: the wheel came off"


def test_one_that_cannot_be_done_says_why(agents, job, tmp_path):
    job.errors = {"One-v1_1": RequestError("needs a | b")}
    result = run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0)
    assert (result.rows[1]["status"], result.rows[1]["reason"]) == ("not supported", "needs a | b")
    markdown, rows, data = tables(tmp_path / "out")
    assert f"| {NAMES[1]} | not supported: needs a \\| b | | | | | | | |" in markdown
    assert rows[1]["reason"] == data["rows"][1]["reason"] == "needs a | b"


def test_what_is_done_with_the_same_settings_is_skipped(agents, job, tmp_path):
    job.errors = {"One-v1_1": RuntimeError("for once")}
    run_suite(agents, DistillConfig(seed=1), output=tmp_path / "out", jobs=0)
    job.errors, job.asked = {}, []
    rows = run_suite(agents, DistillConfig(seed=1), output=tmp_path / "out", jobs=0).rows
    assert job.asked == ["One-v1_1"]  # what failed is tried again
    assert [row["status"] for row in rows] == ["done", "done"]
    assert rows[0]["retention"] == 0.9


@pytest.mark.parametrize(
    "other",
    [
        DistillConfig(seed=2),
        DistillConfig(seed=1, student=StudentConfig(compression=50)),
        DistillConfig(seed=1, polish=PolishConfig(below=0.5)),
    ],
)
def test_other_settings_are_run_again(other, agents, job, tmp_path):
    run_suite(agents, DistillConfig(seed=1), output=tmp_path / "out", jobs=0)
    job.estimate, job.asked = 0.5, []
    rows = run_suite(agents, other, output=tmp_path / "out", jobs=0).rows
    assert len(job.asked) == 2
    assert {row["retention"] for row in rows} == {0.5}


def test_an_extractor_is_for_the_agents_that_need_it_and_changes_no_other_job(agents, job, tmp_path):
    """The first suite cannot read Own-v1; the second, with its extractor, repeats nothing else, and the third nothing at all."""
    source = tmp_path / "networks.py"
    source.write_text(Path(extractors.__file__).read_text())
    extractor = f"{source}:Layers"
    (agents / "ppo" / "Own-v1_1").mkdir()
    model = build("PPO", action_space=THREE, policy_kwargs={"features_extractor_class": extractors.Layers})
    model.save(agents / "ppo" / "Own-v1_1" / "Own-v1.zip")
    job.errors = {"Own-v1_1": RequestError("name its extractor")}
    run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0)
    job.errors = {}
    for asked in (["Own-v1_1"], []):
        job.asked = []
        rows = run_suite(agents, DistillConfig(extractor=extractor), output=tmp_path / "out", jobs=0).rows
        assert job.asked == asked
        assert [row["status"] for row in rows] == ["done"] * 3
    assert job.extractors == {"Two-v1_1": None, "One-v1_1": None, "Own-v1_1": extractor}
    source.write_text(source.read_text() + "# changed\n")
    run_suite(agents, DistillConfig(extractor=extractor), output=tmp_path / "out", jobs=0)
    assert job.asked == ["Own-v1_1"]
    for name, reason in (("Tenth", "none of the agents reads"), ("Missing", "defines no class")):
        with pytest.raises(RequestError, match=reason):
            run_suite(agents, DistillConfig(extractor=f"{source}:{name}"), output=tmp_path / "other", jobs=0)
    assert not (tmp_path / "other").exists()


def test_the_three_tables_say_the_same(agents, job, tmp_path):
    result = run_suite(agents, DistillConfig(seed=3), output=tmp_path / "out", jobs=0)
    markdown, rows, data = tables(tmp_path / "out")
    assert data["rows"] == result.rows
    assert data["aggregates"] == json.loads(json.dumps(result.aggregates()))
    assert data["aggregates"]["interquartile_mean"]["estimate"] == pytest.approx(0.9)
    assert data["config"]["seed"] == 3
    written = [{key: "" if value is None else str(value) for key, value in row.items()} for row in result.rows]
    assert rows == written
    assert tuple(rows[0]) == COLUMNS
    assert markdown[2:4] == [f"| {name} | One-v1 | 5,000 | [8, 8] | 100.0x | 100.0 | 90.0 | 0.900 [0.800, 1.000] | 12 |" for name in NAMES]
    assert markdown[5].startswith("Retention over teachers with 4,000 parameters or more")
    assert [line.split(" | ")[:2] for line in markdown[-4:-1]] == [
        ["| interquartile mean", "0.900"], ["| geometric mean", "0.900"], ["| optimality gap", "0.100"],
    ]  # fmt: skip
    assert len({line.count("|") for line in markdown[7:]}) == 1
    assert len({line.count("|") for line in markdown[:4]}) == 1


def test_an_undefined_retention_is_called_so_and_left_out_of_the_mean(agents, job, tmp_path):
    job.estimate = float("nan")
    result = run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0)
    markdown, rows, data = tables(tmp_path / "out")
    assert result.rows[0]["retention"] is None
    assert result.aggregates() == data["aggregates"] == {}
    assert rows[0]["retention"] == ""
    assert "| undefined |" in markdown[2]
    assert not [line for line in markdown if "interquartile" in line]


def test_aggregates_are_over_teachers_worth_compressing():
    pairs = [(3999, 0.0), (3999, 0.1), (4000, 0.2), (5000, 1.0), (6000, 0.9), (7000, 0.8), (8000, None)]
    rows = [{"teacher": "nowhere", "params": params, "retention": kept} for params, kept in pairs]
    found = SuiteResult(rows, Path()).aggregates()
    # of 0.2, 0.8, 0.9 and 1.0 the middle half; 0.8, 0.2, 0.1 and 0 are missing
    assert found["interquartile_mean"]["estimate"] == pytest.approx(0.85)
    assert found["optimality_gap"]["estimate"] == pytest.approx(1.1 / 4)
    assert SuiteResult(rows[:2], Path()).aggregates() == {}
    assert SuiteResult([{"params": None, "retention": None}], Path()).aggregates() == {}


def test_intervals_are_read_from_the_runs(agents, job, tmp_path):
    result = run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0)
    markdown, _, data = tables(tmp_path / "out")
    assert data["aggregates"] == json.loads(json.dumps(result.aggregates()))
    assert data["aggregates"]["optimality_gap"]["over_episodes"] == pytest.approx([0.1, 0.1])
    assert "| probability of improvement | 0.000 | [0.000, 0.000] | [0.000, 0.000] |" in markdown[-1]
    (tmp_path / "out" / NAMES[0] / "result.json").unlink()
    assert result.aggregates()["geometric_mean"]["over_teachers"] is None


def test_a_suite_has_a_page_with_its_reasons(agents, job, tmp_path):
    job.errors = {"One-v1_1": RequestError("needs a | b")}
    run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0)
    page = (tmp_path / "out" / "suite.html").read_text()
    assert "1 of 2 teachers distilled" in page
    assert "needs a | b" in page


@pytest.mark.parametrize(("given", "used"), [(None, 60.0), (0.0, 0.0), (7.0, 7.0)])
def test_a_step_may_take_a_minute_unless_the_user_says_otherwise(given, used, agents, job, tmp_path, monkeypatch):
    timeouts = []

    def remember(config: DistillConfig, **options: Any) -> None:
        timeouts.append(config.step_timeout)
        job(config, **options)

    monkeypatch.setattr(jobs, "distill_or_resume", remember)
    run_suite(agents, DistillConfig(step_timeout=given), output=tmp_path / "out", jobs=0)
    assert timeouts == [used] * len(NAMES)


def test_a_second_suite_in_the_folder_is_refused_and_the_tables_are_left(agents, job, tmp_path):
    run_suite(agents, DistillConfig(), output=tmp_path / "out", jobs=0)
    before = (tmp_path / "out" / "suite.csv").read_bytes()
    with locked(tmp_path / "out"), pytest.raises(RequestError, match="is in use by"):
        run_suite(agents, DistillConfig(seed=1), output=tmp_path / "out", jobs=0)
    assert (tmp_path / "out" / "suite.csv").read_bytes() == before
    assert len(job.asked) == len(NAMES)
