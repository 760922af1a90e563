"""An environment that does not answer is noticed, and so is a watchdog that cannot run."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from policy_distill.config import EnvironmentFault
from policy_distill.environments.specs import make
from policy_distill.rollouts import watchdog as module
from policy_distill.rollouts.processes import Remote, call_apart, serving
from policy_distill.rollouts.watchdog import Pulse, Watchdog, at_work
from tests import rude_worlds as rude
from tests.small_worlds import WALK


def test_a_pulse_that_stands_still_is_reported_with_what_was_seen_last(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    pulse = Pulse()
    pulse.beat("tests/Walk-v0, seed 3, step 5")
    now += 2.0 + module.BLOCKED_SECONDS
    assert pulse.stopped(2.0) is None
    now += 0.1
    fault = pulse.stopped(2.0)
    assert isinstance(fault, EnvironmentFault)
    assert str(fault).startswith("tests/Walk-v0, seed 3, step 5 or soon after: no answer for more than 2 s, and the interpreter is blocked")
    pulse.beat()
    assert pulse.stopped(2.0) is None


def test_a_process_whose_interpreter_is_blocked_is_killed(monkeypatch):
    monkeypatch.setattr(module, "BLOCKED_SECONDS", 0.2)
    monkeypatch.setattr(serving, "Watchdog", lambda *_: SimpleNamespace(start=lambda: None))  # one that never beats
    remote = Remote(lambda: time, step_timeout=0.1)
    with pytest.raises(EnvironmentFault, match="no answer for more than"):
        remote.submit("sleep", 30).result()
    remote._process.join(5)
    assert not remote._process.is_alive()
    remote.close()


def test_who_is_at_work_is_seen_from_its_step():
    seen = []

    class Looks(rude.Polite):
        def step(self, action):
            seen.append(at_work())
            return super().step(action)

    env = module.Border(Looks(), "looks")
    env.reset(seed=4)
    env.step(1)
    assert seen == [env]
    assert at_work() is None


def test_a_step_that_returns_in_time_is_left_in_peace():
    hangs: list[EnvironmentFault] = []
    Watchdog(0.2, Pulse(), hangs.append).start()
    env = make(WALK)
    began = time.monotonic()
    while time.monotonic() - began < 0.6:
        env.reset(seed=3)
        env.step(1)
    time.sleep(0.5)  # nothing is at work
    assert hangs == []


def test_without_a_limit_a_call_is_made_here():
    assert call_apart(None, time.monotonic) == pytest.approx(time.monotonic(), abs=5)
    assert call_apart(0.0, lambda value: value, 3) == 3
    assert call_apart(5.0, max, 3, 8) == 8
