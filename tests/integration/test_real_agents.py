"""Agents that strangers trained earn here what was measured with Stable-Baselines3 itself. Slow; skipped where they are not at hand."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from policy_distill.evaluation.teacher_check import check_teacher
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import environment_for

FOLDER = Path(os.environ.get("POLICY_DISTILL_TEACHERS", Path(__file__).resolve().parents[3] / "shared" / "teachers"))


def measured() -> list[dict[str, str]]:
    table = FOLDER / "measured.csv"
    if not table.is_file():
        return []
    with table.open() as file:
        return [row for row in csv.DictReader(file) if row["mean"]]


@pytest.mark.slow
@pytest.mark.parametrize("zip_name", sorted({row["zip"] for row in measured()}) or [pytest.param("", marks=pytest.mark.skip("no agents"))])
def test_the_return_is_what_was_measured(zip_name):
    teacher = Teacher.load(FOLDER / zip_name)
    spec, _ = environment_for(teacher, None)
    row = next(row for row in measured() if row["zip"] == zip_name and row["modern_env"] == spec.id)
    found = check_teacher(teacher, spec, episodes=40)
    mean, std, episodes = float(row["mean"]), float(row["std"]), float(row["episodes"])
    noise = np.hypot(std / np.sqrt(episodes), found.episodes.returns.std() / np.sqrt(40))
    assert abs(found.episodes.returns.mean() - mean) <= 4 * noise + 1e-6 * abs(mean)
    assert found.random_episodes.returns.mean() < mean
