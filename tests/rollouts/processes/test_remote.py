"""A worker that an environment ended is made anew and its results are those of an undisturbed one; no worker outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import EnvironmentCrash, EnvironmentFault, Fault
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.rollouts.processes import Recovery, Remote, call_apart
from policy_distill.rollouts.transitions import Transitions
from policy_distill.rollouts.workers import Rollouts
from policy_distill.teachers import Teacher
from tests.faulty_worlds import FAULTS, Faulty
from tests.rollouts.test_collect import assert_equal
from tests.small_worlds import random_student

FAULTY = EnvironmentSpec("Faulty-v0")
SEEN, ACTED = gym.spaces.Box(-4.8, 4.8, (4,), np.float32), gym.spaces.Discrete(2)
VALIDATION = range(2_000_000, 2_000_012)
ENDS = ("raise", "exit", "segfault", "kill", "child")
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


def leaning() -> Teacher:
    """Pushes to the side that the pole leans to."""
    return Teacher.from_callable(lambda seen: (seen[:, 2] > 0).astype(np.int64), SEEN, ACTED)


def everything(
    recovery: Recovery | None = None, *, workers: int = 2, step_timeout: float | None = None
) -> tuple[list[Transitions], Any, Any]:
    """Two rounds, an evaluation before and after them, and rollouts of PPO."""
    student = random_student(SEEN, ACTED)
    with Rollouts(FAULTY, leaning(), num_envs=4, seed=0, workers=workers, step_timeout=step_timeout, recovery=recovery) as rollouts:
        first = rollouts.begin_evaluation(student, VALIDATION, num_envs=4)
        rows = [part for index in range(2) for part in rollouts.collect(30, student if index else None, 0.5, index)]
        envs = rollouts.for_ppo(4, 20, 5)
        envs.reset()
        polishing = []
        for _ in range(3):
            envs.rollout(student)
            polishing.append((envs.rewards.copy(), envs.actions.copy(), np.asarray(envs.observations).copy()))
        envs.close()
        episodes = [first.result(), rollouts.evaluate("teacher", VALIDATION, num_envs=4)]
    return rows, polishing, episodes


@pytest.fixture(scope="module")
def undisturbed() -> Any:
    return everything(workers=0)


def same(found: Any, expected: Any) -> None:
    for one, other in zip(found[0], expected[0], strict=True):
        assert_equal(one, other)
    for one, other in zip(found[1], expected[1], strict=True):
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    for one, other in zip(found[2], expected[2], strict=True):
        np.testing.assert_array_equal(one.returns, other.returns)


@needs_fork
@pytest.mark.parametrize("where", ["validation", "collect", "polish"])
@pytest.mark.parametrize("kind", ENDS)
def test_what_a_worker_did_is_repeated_by_a_new_one_bit_for_bit(kind, where, undisturbed, tmp_path, monkeypatch):
    lines: list[str] = []
    for name, value in {"FAULT": kind, "FAULT_IN": where, "FAULT_ONCE": str(tmp_path / "once")}.items():
        monkeypatch.setenv(name, value)
    same(everything(Recovery(2, lines.append)), undisturbed)
    assert (tmp_path / "once").exists()
    (line,) = lines
    assert line.endswith("a new worker process repeats what this one did since the job began (restart 1 of at most 2)")


@needs_fork
def test_a_worker_that_hangs_is_replaced(undisturbed, tmp_path, monkeypatch):
    lines: list[str] = []
    for name, value in {"FAULT": "hang", "FAULT_IN": "collect", "FAULT_ONCE": str(tmp_path / "once")}.items():
        monkeypatch.setenv(name, value)
    same(everything(Recovery(1, lines.append, tmp_path / "log"), step_timeout=1.0), undisturbed)
    assert len(lines) == 1
    assert "step 9: step has not returned for more than 1 s" in lines[0]
    assert "in hang" in (tmp_path / "log").read_text(), "where it hung"


HOW = {
    "raise": r"step raised ConnectionError: the simulator lost its connection; correct the environment",
    "exit": r"the process ended itself with exit code 3 in this step or soon after",
    "segfault": r"the process was ended by SIGSEGV in this step or soon after",
    "kill": r"the process was ended by SIGKILL, as the system does when memory runs out in this step or soon after",
}


@needs_fork
@pytest.mark.parametrize("kind", HOW)
def test_a_fault_that_happens_again_ends_the_work_with_environment_seed_and_step(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", kind)
    monkeypatch.setenv("FAULT_IN", "validation")
    lines: list[str] = []
    with (
        Rollouts(FAULTY, leaning(), num_envs=1, seed=0, workers=1, recovery=Recovery(2, lines.append, tmp_path / "log")) as rollouts,
        pytest.raises(EnvironmentCrash, match=rf"^Faulty-v0, seed 2000000, step 9: {HOW[kind]}") as caught,
    ):
        rollouts.evaluate("teacher", VALIDATION, num_envs=1)
    assert "\n" not in str(caught.value)
    assert len(lines) == (1 if kind == "raise" else 2), "the same line is not tried again"
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    if kind in ("raise", "segfault"):
        assert "faulty_worlds.py" in log, "the traceback"
        assert caught.value.__notes__ == [f"the worker's traceback is in {tmp_path / 'log'}"]


@needs_fork
def test_two_workers_that_end_in_the_same_way_are_both_replaced(undisturbed, tmp_path, monkeypatch):
    """Where each of them was is not known, so the two lines are equal."""
    lines: list[str] = []
    recovery = Recovery(2, lines.append)
    with Rollouts(FAULTY, leaning(), num_envs=4, seed=0, workers=2, recovery=recovery) as rollouts:
        waiting = rollouts.begin_evaluation("teacher", VALIDATION, num_envs=4)
        for site in rollouts._sites:
            site._process.kill()  # type: ignore[union-attr]
        np.testing.assert_array_equal(waiting.result().returns, undisturbed[2][1].returns)
    assert len(lines) == 2
    assert all("was ended by SIGKILL" in line for line in lines)


@needs_fork
@pytest.mark.parametrize("when", ["before they are made", "before the first reset", "before a rollout", "before they are closed"])
def test_a_worker_that_is_killed_at_any_moment_of_rollouts_of_ppo_is_replaced(when, undisturbed):
    lines: list[str] = []
    student = random_student(SEEN, ACTED)

    def kill(now: str) -> None:
        if now == when:
            process = rollouts._sites[1]._process  # type: ignore[union-attr]
            process.terminate()
            process.join()

    with Rollouts(FAULTY, leaning(), num_envs=4, seed=0, workers=2, recovery=Recovery(1, lines.append)) as rollouts:
        kill("before they are made")
        envs = rollouts.for_ppo(4, 20, 5)
        kill("before the first reset")
        envs.reset()
        for number in range(3):
            if number == 2:
                kill("before a rollout")
            envs.rollout(student)
            for found, expected in zip((envs.rewards, envs.actions, envs.observations), undisturbed[1][number], strict=True):
                np.testing.assert_array_equal(found, expected)
        kill("before they are closed")
        envs.close()
        np.testing.assert_array_equal(rollouts.evaluate("teacher", VALIDATION, num_envs=4).returns, undisturbed[2][1].returns)
    assert len(lines) == 1


@needs_fork
def test_after_the_limit_work_ends_and_other_workers_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", "exit")
    monkeypatch.setenv("FAULT_IN", "validation")
    with Rollouts(FAULTY, leaning(), num_envs=2, seed=0, workers=2) as rollouts:
        with pytest.raises(EnvironmentCrash, match="a worker process ended itself with exit code 3; in which step is not known"):
            rollouts.evaluate("teacher", VALIDATION[:1], num_envs=1)
        assert len(rollouts._sites[1].submit("evaluate", "teacher", [1, 2], 1, False).result().returns) == 2
        with pytest.raises(EnvironmentCrash):
            rollouts.evaluate("teacher", [1, 2], num_envs=1)


def test_values_that_are_wrong_are_not_tried_again(monkeypatch):
    lines: list[str] = []
    monkeypatch.setenv("FAULT", "NaN observation")
    monkeypatch.setenv("FAULT_IN", "validation")
    with (
        Rollouts(FAULTY, leaning(), num_envs=1, seed=0, workers=1, recovery=Recovery(2, lines.append)) as rollouts,
        pytest.raises(EnvironmentFault, match="seed 2000000, step 9: the observation's number 1 is nan"),
    ):
        rollouts.evaluate("teacher", VALIDATION, num_envs=1)
    assert not lines


class Resident:
    """What ``Remote`` holds here."""

    def __init__(self) -> None:
        self.sum = 0

    def add(self, number: int) -> int:
        self.sum += number
        return self.sum

    def end(self, marker: Path) -> int:
        if not marker.exists():
            marker.touch()
            os._exit(7)
        return self.sum

    def fail(self) -> None:
        raise ArithmeticError("seven is\nnot eight")

    def pid(self) -> int:
        return os.getpid()


def test_changes_are_repeated_until_they_are_forgotten(tmp_path):
    for forgotten, expected in ((False, 6), (True, 3)):
        marker = tmp_path / f"{forgotten}"
        remote = Remote(Resident, recovery=Recovery(1))
        assert remote.submit("add", 1, changes="a").result() == 1
        assert [remote.submit("add", 2, changes="b").result(), remote.submit("add", 100).result()] == [3, 103]
        if forgotten:
            remote.forget("a")
        waiting = [remote.submit("end", marker), remote.submit("add", 3, changes="b"), remote.submit("add", -2, changes="b")]
        assert [call.result() for call in waiting] == [expected - 3, expected, expected - 2] if not forgotten else [2, 5, 3]
        remote.close()


def test_the_same_call_of_several_processes_is_kept_once():
    """A job keeps the policy of each rollout of PPO, for all of its workers."""
    remotes = [Remote(Resident) for _ in range(2)]
    for number in (3, 4):
        for remote in remotes:
            remote.submit("add", number, changes="a").result()
    first, second = ([call.message for call in remote._changing] for remote in remotes)
    assert first[0] != first[1]
    assert all(one is other for one, other in zip(first, second, strict=True))
    for remote in remotes:
        remote.close()


def test_an_exception_is_one_line_that_names_the_log(tmp_path):
    remote = Remote(Resident, recovery=Recovery(2, log=tmp_path / "log"))
    with pytest.raises(Fault, match=r"^a worker process failed: ArithmeticError: seven is not eight") as caught:
        remote.submit("fail").result()
    assert caught.value.__notes__ == [f"the worker's traceback is in {tmp_path / 'log'}"]
    assert "in fail" in (tmp_path / "log").read_text()
    assert remote.submit("add", 4).result() == 4
    remote.close()


def test_a_log_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    remote = Remote(Resident, recovery=Recovery(2, log=tmp_path / "gone" / "log"))
    with pytest.raises(Fault, match="seven is not eight") as caught:
        remote.submit("fail").result()
    assert "could not be written" in caught.value.__notes__[0]
    remote.close()


def step_into(kind: str) -> None:
    from policy_distill.environments.specs import make

    env = make(FAULTY)
    env.reset(seed=3_000_001)
    for step in range(20):
        env.step(step % 2)


@needs_fork
@pytest.mark.parametrize("kind", ["exit", "segfault"])
def test_a_call_apart_survives_what_ends_a_process(kind, monkeypatch):
    monkeypatch.setenv("FAULT", kind)
    monkeypatch.setenv("FAULT_IN", "check")
    with pytest.raises(EnvironmentCrash, match=r"^Faulty-v0, seed 3000001, step 9: the process"):
        call_apart(None, step_into, kind)


# No orphans.

PARENT = """
import ctypes, signal, sys, threading, time
from policy_distill.rollouts.processes import Remote

class Stuck:
    def pid(self):
        import os
        return os.getpid()

    def stay(self, how):
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        if how == "C":
            ctypes.PyDLL(None).sleep(1000)
        while True:
            time.sleep(0.1)

def work(how):
    remotes = [Remote(Stuck) for _ in range(2)]
    print(*[remote.submit("pid").result() for remote in remotes], flush=True)
    for remote in remotes:
        remote.submit("stay", how)
    time.sleep(1000)

how, thread = sys.argv[1:]
if thread == "main":
    work(how)
threading.Thread(target=work, args=(how,)).start()
"""


def runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@needs_fork
@pytest.mark.parametrize(("how", "thread"), [("C", "main"), ("Python", "other")])
def test_workers_end_with_a_parent_that_is_killed(how, thread):
    command = [sys.executable, "-c", PARENT, how, thread]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(0.3)
        assert all(map(runs, workers))
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5
    while any(map(runs, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [pid for pid in workers if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@needs_fork
def test_closing_ends_a_worker_that_ignores_what_it_can():
    remote = Remote(Resident)
    pid = remote.submit("pid").result()
    remote.close()
    assert not runs(pid)
    hanging = Remote(_Hangs)
    pid = hanging.submit("pid").result()
    hanging.submit("hang")
    time.sleep(0.2)
    hanging.close()
    assert not runs(pid)


class _Hangs(Resident):
    def hang(self) -> None:
        FAULTS["hang"]()


class Closes(Faulty):
    """Says when it was closed."""

    def close(self) -> None:
        Path(os.environ["CLOSED"]).touch()
        super().close()


@needs_fork
@pytest.mark.parametrize("workers", [0, 1])
def test_environments_are_closed_with_their_workers(workers, tmp_path, monkeypatch):
    """Some have processes of their own."""
    monkeypatch.setenv("CLOSED", str(tmp_path / "closed"))
    monkeypatch.setitem(gym.registry, "Closes-v0", gym.envs.registration.EnvSpec("Closes-v0", f"{__name__}:Closes", max_episode_steps=50))
    with Rollouts(EnvironmentSpec("Closes-v0"), leaning(), num_envs=1, seed=0, workers=workers) as rollouts:
        rollouts.evaluate("teacher", [1], num_envs=1)
        assert not (tmp_path / "closed").exists()
    assert (tmp_path / "closed").exists()
