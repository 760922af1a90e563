"""Certificates of real agents' students: good ones are certified, broken ones refuted, however many episodes run side by side. Slow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from policy_distill.commands.cli import main
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.statistics import retention
from policy_distill.policies.student import Student, read_description
from policy_distill.rollouts.episodes import evaluate, evaluation_seeds
from policy_distill.teachers import Teacher

FOLDER = Path(os.environ.get("POLICY_DISTILL_TEACHERS", Path(__file__).resolve().parents[3] / "shared" / "teachers"))
QUICK = {"CartPole": "ppo/CartPole-v1_1", "Acrobot": "a2c/Acrobot-v1_1"}
"""Agents of strangers whose episodes are short."""
BROKEN = 0.9
"""Retention below which a student counts as broken."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def student_of(teacher: str, output: Path) -> Path:
    """A student a tenth of its teacher's size, from a job that is short and long enough for easy agents."""
    options = {"collect.env_steps": 60_000, "collect.rounds": 5, "train.gradient_steps": 10_000, "polish.below": 0}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["distill_policy", "--teacher", teacher, "--output", str(output), "--json", *words]) == 0
    return output / "student"


def certificate_of(student: Path, teacher: str, output: Path, *options: str) -> dict[str, Any]:
    arguments = ["--policy", str(student), "--teacher", teacher, "--certify", "0.95", "--output", str(output), "--json", *options]
    assert main(["evaluate_policy", *arguments]) == 0
    found: dict[str, Any] = json.loads((output / "certificate.json").read_text())
    return found


def break_by_noise(folder: Path, teacher: Teacher, output: Path) -> float:
    """Add ever more noise to a student's weights until it keeps less than ``BROKEN``, and return what it keeps.

    Judged on 60 validation seeds, which are not those of certificates. Noise is in units of each tensor's standard deviation.
    """
    spec = EnvironmentSpec.from_dict(read_description(folder)["environment"])
    seeds = evaluation_seeds("validation", 60)
    of_teacher, of_random = (evaluate(who, spec, seeds).returns for who in (teacher, None))
    for level in range(12):
        student, draws = Student.load(folder), torch.Generator().manual_seed(level)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05 * 1.5**level * parameter.std(correction=0) * torch.randn(parameter.shape, generator=draws))
        kept = retention(evaluate(student, spec, seeds).returns, of_teacher, of_random).estimate
        if kept < BROKEN:
            student.save(output, extra={"environment": spec.to_dict()})
            return kept
    raise AssertionError("no noise broke the student")


@pytest.mark.parametrize("name", QUICK)
def test_a_good_student_is_certified_and_the_same_with_noise_on_its_weights_refuted(name, tmp_path):
    teacher = str(FOLDER / QUICK[name])
    if not Path(teacher).is_dir():
        pytest.skip("no agents")
    student = student_of(teacher, tmp_path / "run")
    good = certificate_of(student, teacher, tmp_path / "good")
    kept = break_by_noise(student, Teacher.load(teacher), tmp_path / "broken")
    broken = certificate_of(tmp_path / "broken", teacher, tmp_path / "refuted")
    print(f"{name}: {good['verdict']} after {good['episodes']}; keeps {kept:.3f}: {broken['verdict']} after {broken['episodes']} episodes")
    assert (good["verdict"], broken["verdict"]) == ("certified", "refuted")
    assert broken["retention"]["high"] < 0.95 < good["retention"]["low"]
    assert main(["verify_certificate", "--certificate", str(tmp_path / "refuted"), "--json"]) == 0


@pytest.mark.parametrize("teacher", ["ppo/CartPole-v1", "ppo/LunarLander-v3"])
def test_a_certificate_is_the_same_again_and_however_many_episodes_run_side_by_side(teacher, tmp_path):
    """Seeds, returns, looks and verdict, to the last bit."""
    student = student_of(teacher, tmp_path / "run")
    runs = {"first": 16, "again": 16, "one": 1, "four": 4, "many": 32}
    found = {name: certificate_of(student, teacher, tmp_path / name, "--num_envs", str(count)) for name, count in runs.items()}
    first = found["first"]
    print(f"{teacher}: {first['verdict']} after {first['episodes']} episodes, retention {first['retention']['estimate']:.4f}")
    for name, data in found.items():
        assert len(data["seeds"]) == data["episodes"] >= 50
        for key in first.keys() - {"student", "teacher"}:  # whose places are relative to the file's own
            assert data[key] == first[key], (name, key)
        assert data["student"]["sha256"] == first["student"]["sha256"]
    assert len(set(first["returns"]["random"])) > 10  # returns that could differ
