"""The benchmark of collecting from images and with memories: every part is timed on the same steps."""

from __future__ import annotations

import dataclasses
import json

import pytest

from policy_distill.pipeline.sizing import choose_architecture
from policy_distill.policies.student import Student
from policy_distill.report.printing import plain
from policy_distill.studies.benchmark import collect_kinds
from policy_distill.studies.benchmark.collect_kinds import KINDS, NUM_ENVS, Trace
from policy_distill.studies.benchmark.result import table


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_part_of_a_step_has_its_share(kind):
    for package in kind.packages:
        pytest.importorskip(package)
    result = collect_kinds.one_kind(dataclasses.replace(kind, steps=4), turns=1)
    assert result.shares is not None
    assert list(result.shares) == ["environment", "teacher", "student", "rest"]
    assert sum(result.shares.values()) == pytest.approx(1)
    assert all(share > 0 for name, share in result.shares.items() if name != "rest")
    assert result.share_of_limit == pytest.approx(result.shares["environment"])
    assert json.loads(json.dumps(plain(result.to_dict())))["shares"] == pytest.approx(dict(result.shares))


def test_the_parts_repeat_the_recorded_steps():
    teacher, spec = KINDS[-1].load()
    trace = Trace(teacher, Student(choose_architecture(KINDS[-1].student, teacher)), spec, 60)
    assert trace.environments() == trace.teacher() == trace.student() == len(trace) == 60 * NUM_ENVS
    starts = [row[1] for row in trace._rows]
    assert (starts[0] == range(NUM_ENVS)).all()
    assert sum((began >= 0).sum() for began in starts[1:]) > 0  # poles fell, and episodes began anew
    trace.close()


def test_a_kind_whose_package_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr(collect_kinds, "KINDS", [dataclasses.replace(KINDS[0], packages=("no_such_package",))])
    (result,) = collect_kinds.run(1)
    assert (result.microseconds, result.share_of_limit) == (None, None)
    assert "left out: no_such_package not installed" in table([result])
