"""policy.pt2: the student's actions, outputs and states, for every kind of student, from a program of torch alone."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from policy_distill.config import RequestError
from policy_distill.export import pt2
from policy_distill.export.folded import fold_student
from tests.export.alike import assert_alike, decisions_of, in_batches, rows_for
from tests.export.kinds import ARCHITECTURES, student_of

ROOT = str(Path(__file__).parents[2])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_decides_like_the_student(name, tmp_path):
    student = student_of(name)
    folded = fold_student(student)
    torch.manual_seed(5)
    expected_draw = torch.rand(3)
    torch.manual_seed(5)
    pt2.write(folded, tmp_path)
    assert torch.equal(torch.rand(3), expected_draw)  # the caller's random state is kept
    runner = pt2.load(tmp_path, folded)
    observations, rows = rows_for(student, 200)
    expected = decisions_of(student, observations, rows.states)
    found = runner(rows.seen, rows.states)
    assert_alike(student, found, expected)
    for whole, part in zip(found, in_batches(runner, rows, 7), strict=True):  # rows are independent, bit for bit
        np.testing.assert_array_equal(whole, part)
    # one call for all rows
    module = torch.export.load(str(tmp_path / "policy.pt2")).module()
    inputs = [*rows.seen.values(), *([rows.states] if student.memory else [])]
    actions, outputs, *after = (tensor.detach().numpy() for tensor in module(*map(torch.from_numpy, inputs)))
    assert_alike(student, (actions, outputs, after[0] if after else rows.states), expected)


def test_a_part_that_is_not_read_is_still_an_input(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "unread", dataclasses.replace(ARCHITECTURES["some_parts"], columns=(1, 5)))
    student = student_of("unread")
    pt2.write(fold_student(student), tmp_path)
    runner = pt2.load(tmp_path, fold_student(student))
    observations, rows = rows_for(student, 100)
    assert_alike(student, runner(rows.seen, rows.states), decisions_of(student, observations, rows.states))


def test_the_file_runs_without_this_package_and_names_no_path_of_the_writer(tmp_path):
    pt2.write(fold_student(student_of("vector")), tmp_path)
    code = (
        "import sys, torch; sys.modules['policy_distill'] = None; "
        "print(torch.export.load('policy.pt2').module()(torch.zeros(3, 4))[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([3])"
    with zipfile.ZipFile(tmp_path / "policy.pt2") as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    assert b"pt2.py" not in content
    # the same bytes from another process, by which a file that was written here is known
    again = "from tests.export.test_pt2 import *; import pathlib; pt2.write(fold_student(student_of('vector')), pathlib.Path('.'))"
    before = (tmp_path / "policy.pt2").read_bytes()
    subprocess.run([sys.executable, "-c", again], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": ROOT, "PYTHONHASHSEED": "7"})
    assert (tmp_path / "policy.pt2").read_bytes() == before
    assert str(tmp_path.parent).encode() not in content


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "policy.pt2").write_bytes(b"no archive")
    with pytest.raises(RequestError, match=r"policy\.pt2 cannot be read .*: export the student again"):
        pt2.load(tmp_path, fold_student(student_of("vector")))
