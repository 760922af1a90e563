"""Calls in processes of their own: answers, deaths, and the end of the parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policy_distill.studies.scheduler.children import Child, ChildDied, wait


def product(one: int, other: int) -> int:
    return one * other


def environment(name: str) -> str | None:
    return os.environ.get(name)


def grandchild() -> bool:
    """Children may have children."""
    process = multiprocessing.get_context("fork").Process(target=product, args=(1, 2))
    process.start()
    process.join()
    return process.exitcode == 0


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def sleep(seconds: float, mark: Path | None = None) -> None:
    if mark is not None:
        mark.write_text(str(os.getpid()))
    time.sleep(seconds)


def large() -> bytes:
    return bytes(3_000_000)


def test_a_child_answers_and_may_have_children():
    assert Child(product, 6, 7).result() == 42
    assert Child(grandchild).result()
    assert len(Child(large).result()) == 3_000_000


def test_a_child_has_the_environment_variables_of_its_start(monkeypatch):
    """The server that children are forked from keeps those of the first child."""
    for value in ("1", "2"):
        monkeypatch.setenv("POLICY_DISTILL_TEST", value)
        assert Child(environment, "POLICY_DISTILL_TEST").result() == value


def test_a_child_that_dies_costs_no_other():
    dead, alive = Child(die, signal.SIGSEGV), Child(product, 2, 3)
    with pytest.raises(ChildDied, match=rf"exit code -{signal.SIGSEGV.value}\)"):
        dead.result()
    assert alive.result() == 6


def test_the_first_to_end_is_found_first():
    slow, fast = Child(sleep, 60.0), Child(product, 1, 1)
    assert wait([slow, fast]) == [fast]
    slow.end()
    with pytest.raises(ChildDied, match=rf"exit code -{signal.SIGTERM.value}\)"):
        slow.result()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number, tmp_path):
    mark = tmp_path / "started"
    program = (
        "from pathlib import Path\nfrom policy_distill.studies.scheduler.children import Child\n"
        "from tests.studies.scheduler.test_children import sleep\n"
        f"if __name__ == '__main__':\n    Child(sleep, 120.0, Path({str(mark)!r})).result()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    while not mark.exists() or not mark.read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait()
    child = int(mark.read_text())
    for _ in range(200):
        if not is_running(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the child outlived its parent")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
