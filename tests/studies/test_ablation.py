"""The ablation: which runs a study has, that what was done is not done again, and the page's figures by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from policy_distill.config import DistillConfig, EngineConfig, RequestError
from policy_distill.studies.ablation import DEFAULT, Found, Study, interval, jobs_of, markdown, run_study, with_settings
from policy_distill.studies.scheduler import jobs
from policy_distill.studies.scheduler.jobs import Outcome
from policy_distill.support.files import write_json
from tests.teachers import extractors
from tests.teachers.conftest import THREE, build

BASE = {"evaluate.episodes": 5}
AGENTS = {"one": {"teacher": "a"}, "two": {"teacher": "b"}}
GROUPS: dict[str, dict[str, Any]] = {
    "Heat": {"variants": {"T = 2": {"loss.temperature": 2.0}}, "learned": "It does\nnot help."},
    "Labels": {"agents": ["two"], "variants": {"some": {"loss.hard_weight": 0.3}, "all": {"loss.hard_weight": 1.0}}},
}
STUDY = Study("Heat and labels", "What they do.", BASE, AGENTS, GROUPS, (0, 1))


def test_a_study_has_every_variant_on_its_agents_and_the_default_once():
    runs = STUDY.runs()
    assert len(runs) == 2 * 2 + 2 * 2 + 2 * 2  # the default and Heat on both agents, two labels on one; two seeds each
    assert runs["Heat", "T = 2", "one", 1] == {**BASE, "teacher": "a", "seed": 1, "loss.temperature": 2.0}
    assert runs[DEFAULT, DEFAULT, "two", 0] == {**BASE, "teacher": "b", "seed": 0}
    assert ("Labels", "all", "one", 0) not in runs


@pytest.mark.parametrize("name", ["ablation", "hard_cases"])
def test_the_project_s_own_studies_name_settings_that_exist(name):
    study = Study.load(Path(__file__).parents[2] / "docs" / f"{name}.yaml")
    assert len(study.seeds) >= 5
    assert len(study.agents) >= 4
    for settings in study.runs().values():
        with_settings(DistillConfig(), settings)
    assert all(set(group.get("agents", study.agents)) <= set(study.agents) for group in study.groups.values())


@pytest.mark.parametrize("text", ["agents: {}", "[1]", "{"])
def test_a_study_that_cannot_be_read_is_refused(text, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(
        RequestError, match=r"study.yaml (must have exactly the keys agents, base, groups, introduction, seeds, title|cannot be read)"
    ):
        Study.load(tmp_path / "study.yaml")
    with pytest.raises(RequestError, match="cannot be read"):
        Study.load(tmp_path / "none.yaml")


def test_a_study_is_what_its_file_says(tmp_path):
    page = {"title": "Heat and labels", "introduction": "What\n they do."}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**page, "base": BASE, "agents": AGENTS, "groups": GROUPS, "seeds": [0, 1]}))
    assert Study.load(tmp_path / "study.yaml") == STUDY


def test_settings_reach_nested_fields_and_unknown_ones_are_refused():
    config = with_settings(DistillConfig(), {"loss.features.weight": 0.5, "student.hidden_sizes": [3, 4], "seed": 7})
    assert (config.loss.features.weight, config.student.hidden_sizes, config.seed) == (0.5, (3, 4), 7)
    for name in ("loss.heat", "heat", "seed.deep"):
        with pytest.raises(RequestError, match=f"no setting '{name}'"):
            with_settings(DistillConfig(), {name: 1})
    with pytest.raises(RequestError, match=r"loss\.temperature is -1"):
        with_settings(DistillConfig(), {"loss.temperature": -1})


def test_a_run_is_done_once_and_again_when_its_settings_change(tmp_path, monkeypatch):
    asked: list[DistillConfig] = []

    def distill(config: DistillConfig, **_: object) -> None:
        asked.append(config)
        Path(str(config.output)).mkdir(parents=True, exist_ok=True)
        kept = [{"kept": True}, {"kept": False}]
        write_json(Path(str(config.output)) / "result.json", {"retention": {"estimate": 0.75}, "self_distillation": kept})

    monkeypatch.setattr(jobs, "distill_or_resume", distill)

    def run(base: dict[str, Any]) -> list[Found]:
        study = Study("", "", base, {"one": {"teacher": "a"}}, {"Heat": GROUPS["Heat"]}, (3,))
        return list(run_study(study, tmp_path, engine=EngineConfig(), jobs=0, note=lambda line: None).values())

    assert [run(BASE) for _ in range(2)] == [[Found(0.75, (True, False))] * 2] * 2
    assert [(config.seed, config.loss.temperature) for config in asked] == [(3, 1.0), (3, 2.0)]
    run({"evaluate.episodes": 6})
    assert [config.evaluate.episodes for config in asked] == [5, 5, 6, 6]


def test_a_run_that_fails_says_why_and_has_no_figure(tmp_path):
    study, lines = Study("", "", {}, {"one": {"teacher": "no/such-agent"}}, {}, (0,)), list[str]()
    (found,) = run_study(study, tmp_path, engine=EngineConfig(), jobs=0, note=lines.append).values()
    assert math.isnan(found.retention)
    assert lines[0].startswith("[1/1] default, default, one, 0: no/such-agent is neither")


def test_a_study_with_an_unknown_setting_is_refused_before_any_run(tmp_path):
    with pytest.raises(RequestError, match=r"no setting 'loss\.heat'"):
        jobs_of(Study("", "", {"loss.heat": 1}, AGENTS, {}, (0,)), tmp_path)


def test_an_undefined_retention_is_not_a_number():
    assert math.isnan(Found.of(Outcome("done", summary={"retention": {"estimate": None}, "self_distillation": []})).retention)


def test_the_interval_resamples_each_agent_s_seeds():
    mean, low, high = interval([np.array([0.0, 0.2]), np.array([0.5, 0.5])])
    assert mean == pytest.approx(0.3)
    # the second never varies; the first's resampled means are 0, 0.1 and 0.2
    assert (low, high) == (pytest.approx(0.25), pytest.approx(0.35))


def test_the_page_s_rows_by_hand():
    kept = {
        (DEFAULT, DEFAULT, "one", 0): 0.9, (DEFAULT, DEFAULT, "one", 1): 0.7, (DEFAULT, DEFAULT, "two", 0): 1.0,
        (DEFAULT, DEFAULT, "two", 1): 1.0, ("Heat", "T = 2", "one", 0): 1.0, ("Heat", "T = 2", "one", 1): 0.8,
        ("Heat", "T = 2", "two", 0): 0.9, ("Heat", "T = 2", "two", 1): math.nan,
    }  # fmt: skip
    page = markdown(STUDY, {key: Found(retention) for key, retention in kept.items()}, "the command")
    assert page.startswith("# Heat and labels\n\nWhat they do.\n")
    assert "the command" in page
    assert "| one | `teacher` a | 0.900 | 0.700 | 0.800 |" in page
    assert "| default | 0.800 ± 0.141 | 1.000 ± 0.000 | |" in page
    # differences +0.1, +0.1 and -0.1 on the one seed that ended: mean 0
    assert "| T = 2 | 0.900 ± 0.141 | 0.900 ± 0.000 (1 seeds) | +0.000 [+0.000, +0.000] |" in page
    assert "It does not help." in page
    assert "| some |  | |" in page  # not run at all
    assert "generation" not in page


def test_the_page_says_how_many_generations_were_kept():
    series = {("one", 0): (True, True), ("one", 1): (True, False), ("two", 0): (False,), ("two", 1): ()}
    outcomes = {("Heat", "T = 2", *where): Found(0.5, gates) for where, gates in series.items()}
    page = markdown(STUDY, outcomes, "the command")
    assert "| generations kept (1st, 2nd, ...) | one | two |" in page
    assert "| T = 2 | 2 of 2, 1 of 2 | 0 of 1 |" in page


@pytest.mark.parametrize(
    "settings",
    [
        {"trust": True}, {"env": "my_module:Env-v0"}, {"extractor": "networks.py:Mine"}, {"wrapper": ["my_module:Shaped"]},
        {"wrapper": [{"my_module.Shaped": {"by": 2}}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_study_that_would_run_code_is_refused(settings, tmp_path):
    page = {"title": "t", "introduction": "i", "base": BASE, "groups": {}, "seeds": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**page, "agents": {"one": {"teacher": "a", **settings}}}))
    with pytest.raises(RequestError, match=r"study.yaml cannot be read .*a study does not allow"):
        Study.load(tmp_path / "study.yaml")


def test_how_agents_are_read_is_typed_and_reaches_those_that_need_it(tmp_path):
    """A study's file cannot name code; the command line can, for the agents with an extractor of this name."""
    own, plain = tmp_path / "own.zip", tmp_path / "plain.zip"
    build("PPO", action_space=THREE, policy_kwargs={"features_extractor_class": extractors.Layers}).save(own)
    build("PPO", action_space=THREE).save(plain)
    study = Study("t", "i", {}, {"own": {"teacher": str(own)}, "plain": {"teacher": str(plain)}}, {}, (0, 1))
    extractor = f"{extractors.__file__}:Layers"
    found = jobs_of(study, tmp_path / "out", extractor=extractor, trust=True)
    given = {(agent, seed): (job.config.extractor, job.config.trust) for (_, _, agent, seed), job in found.items()}
    assert given == {(agent, seed): (extractor if agent == "own" else None, True) for agent in ("own", "plain") for seed in (0, 1)}
    without = jobs_of(study, tmp_path / "out")
    assert {key for key, job in found.items() if job.settings != without[key].settings} == {key for key in found if key[2] == "own"}
