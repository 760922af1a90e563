"""A few runs that are killed and resumed; scripts/kill_and_resume.py does more of them."""

from __future__ import annotations

import random
import shutil
import sys

import pytest

from tests.kills.run import differences, killed, reference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have threads")


@pytest.mark.parametrize("kind", ["discrete, memory", "continuous, disk, values"])
def test_a_run_that_is_killed_and_resumed_is_the_same_run(kind, tmp_path):
    whole = reference(kind, tmp_path)
    assert len(whole.gaps) >= 4 + 5  # rounds and further stages
    found = killed(kind, whole, tmp_path / "run", random.Random(1), 3)
    assert (found.error, found.differences) == (None, [])
    assert found.stages  # on a busy machine a run may end before all of the kills
    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    for name in ("result.json", "student/student.safetensors"):
        (other / name).write_bytes((other / name).read_bytes().replace(b"0", b"1"))
    (other / "certificate.json").unlink()
    assert {"student/student.safetensors", "returns", "certificate.json"} <= set(differences(whole.folder, other))
