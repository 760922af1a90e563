"""What an agent's files alone tell."""

from __future__ import annotations

import numpy as np

from policy_distill.evaluation.teacher_check.files import judge_files, normalization_missing, record_of
from policy_distill.export.sb3 import save_ppo
from policy_distill.teachers import ObservationNormalization, Teacher
from policy_distill.teachers.files.training_record import TrainingRecord
from tests.small_worlds import Walk, bandit_teacher, walk_expert, walk_teacher

INSIDE = TrainingRecord(None, True)


def test_an_agent_from_memory_remembers_nothing(tmp_path):
    assert record_of(bandit_teacher()) == TrainingRecord(None, None)
    assert record_of(Teacher.load(save_ppo(walk_expert(), tmp_path / "agent.zip"))).returns is None


def test_statistics_are_missing_only_where_nothing_explains_it():
    bare = walk_teacher()
    assert normalization_missing(bare, INSIDE)
    assert not normalization_missing(bare, TrainingRecord(None, None))
    assert not normalization_missing(bare, TrainingRecord(None, False))
    explained: list[dict] = [
        {"normalization_source": "config.yml"},  # it says that there is none
        {"normalization": ObservationNormalization(np.zeros(2), np.ones(2), 1e-8, 10.0)},
        {"normalization_source": "vecnormalize.pkl"},  # it says that rewards alone were normalised
        {"normalization_source": "none"},  # the user says so
    ]
    for change in explained:
        teacher = Teacher(bare.network, Walk.observation_space, bare.action_space, algo="test", **change)
        assert not normalization_missing(teacher, INSIDE)


def test_missing_statistics_are_a_warning_and_not_yet_a_stop():
    (finding,) = judge_files(walk_teacher(), INSIDE)
    assert (finding.severity, finding.topic) == ("warn", "normalization_not_found")
    assert judge_files(walk_teacher(), TrainingRecord(None, None)) == []
