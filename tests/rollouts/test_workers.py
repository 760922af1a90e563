"""Worker processes: the results are those of none, and a failure in one is told."""

from __future__ import annotations

import multiprocessing

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.rollouts.processes import DEBUG, available_cores
from policy_distill.rollouts.transitions import Transitions
from policy_distill.rollouts.workers import Rollouts, split
from policy_distill.teachers import Teacher
from tests import rude_worlds as rude
from tests.masked_worlds import Drawn
from tests.rollouts.test_collect import assert_equal
from tests.small_worlds import BANDIT, PUSH, WALK, Bandit, Push, Walk, push_teacher, random_student, walk_teacher


@given(st.integers(0, 40), st.integers(1, 12))
def test_shares_are_contiguous_complete_and_even(count, parts):
    shares = split(range(count), parts)
    assert [index for share in shares for index in share] == list(range(count))
    lengths = [len(share) for share in shares]
    assert len(shares) == parts
    assert max(lengths) - min(lengths) <= 1


def test_rows_and_returns_do_not_depend_on_the_number_of_workers():
    student = random_student(Push.observation_space, Push().action_space, hidden_sizes=(32, 32))
    seeds = list(range(23))
    found = []
    for workers in (0, 1, 2, 3):
        with Rollouts(PUSH, push_teacher(), num_envs=5, seed=1, workers=workers) as rollouts:
            assert rollouts.num_workers == workers
            rows = [part for index in range(2) for part in rollouts.collect(20, student if index else None, 0.5, index)]
            episodes = [rollouts.evaluate(policy, seeds, num_envs=4, with_agreement=True) for policy in (student, "teacher")]
            random = rollouts.evaluate("random", seeds, num_envs=4)
        found.append((rows, [*episodes, random]))
    for rows, episodes in found[1:]:
        for one, other in zip(found[0][0], rows, strict=True):
            assert_equal(one, other)
        for mine, theirs in zip(found[0][1], episodes, strict=True):
            np.testing.assert_array_equal(mine.seeds, theirs.seeds)
            np.testing.assert_array_equal(mine.returns, theirs.returns)
            np.testing.assert_array_equal(mine.lengths, theirs.lengths)
            assert mine.agreement == theirs.agreement


@pytest.mark.parametrize("workers", [0, 2])
def test_a_round_comes_in_blocks_that_are_the_round(workers, monkeypatch):
    student = random_student(Push.observation_space, Push().action_space)

    def collected() -> list[Transitions]:
        with Rollouts(PUSH, push_teacher(), num_envs=4, seed=1, workers=workers) as rollouts:
            return list(rollouts.collect(20, student, 0.5, 1))

    (whole,) = collected()
    # an observation is 12 bytes, a step of all environments 48: seven steps and a bit
    monkeypatch.setattr("policy_distill.rollouts.workers.BLOCK_BYTES", 48 * 7 + 20)
    parts = collected()
    assert [len(part) for part in parts] == [28, 28, 24]
    assert torch.equal(whole.observations, torch.cat([part.observations for part in parts]))
    assert torch.equal(whole.by_teacher, torch.cat([part.by_teacher for part in parts]))
    assert torch.equal(whole.targets.actions, torch.cat([part.targets.actions for part in parts]))
    assert not whole.by_teacher.all()


def test_the_parts_of_a_dict_count_for_the_size_of_a_block(monkeypatch):
    """They once counted as eight bytes together, and a round of a Dict with images was one block."""
    images = gym.spaces.Dict({"image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), "speed": gym.spaces.Box(-1, 1, (2,), np.float32)})
    gym.register("tests/Pictures-v0", lambda: Drawn(images, gym.spaces.Discrete(3)))  # type: ignore[arg-type]
    teacher = Teacher.from_callable(lambda seen: np.zeros(len(seen["speed"]), np.int64), images, gym.spaces.Discrete(3))
    monkeypatch.setattr("policy_distill.rollouts.workers.BLOCK_BYTES", 2 * 5 * (8 * 8 * 3 + 2 * 4))
    try:
        with Rollouts(EnvironmentSpec("tests/Pictures-v0"), teacher, num_envs=2, seed=0, workers=0) as rollouts:
            assert [len(block) for block in rollouts.collect(12, None, 1.0, 0)] == [10, 10, 4]
    finally:
        del gym.registry["tests/Pictures-v0"]


def test_answers_may_be_read_in_any_order():
    with Rollouts(WALK, walk_teacher(), num_envs=2, seed=0, workers=2) as rollouts:
        waiting = [rollouts.begin_evaluation(policy, [1, 2, 3], num_envs=2) for policy in ("teacher", "random", "teacher")]
        again, random, first = (answer.result() for answer in reversed(waiting))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert random.returns.mean() < first.returns.mean()


@pytest.mark.timeout(60)
def test_questions_and_answers_larger_than_a_pipe_do_not_wait_for_each_other():
    """A second question of 500 kB is put while the first one's answer of 300 kB waits to be read: once this hung."""
    student = random_student(Bandit.observation_space, gym.spaces.Discrete(4), hidden_sizes=(300, 300))
    seeds = list(range(12_000))
    with Rollouts(BANDIT, None, num_envs=1, seed=0, workers=1) as rollouts:
        waiting = [rollouts.begin_evaluation(student, seeds, num_envs=16) for _ in range(2)]
        returns = [answer.result().returns for answer in waiting]
    assert all(len(found) == len(seeds) for found in returns)
    np.testing.assert_array_equal(returns[0], returns[1])


def test_there_are_no_more_workers_than_environments_and_by_default_one_a_core():
    with Rollouts(WALK, walk_teacher(), num_envs=2, seed=0, workers=5) as rollouts:
        assert rollouts.num_workers == 2
        assert rollouts.backend == "2 environments in 2 worker processes"
    with Rollouts(WALK, walk_teacher(), num_envs=4, seed=0, workers=0) as rollouts:
        assert rollouts.backend == "4 environments in this process"
    with Rollouts(WALK, walk_teacher(), num_envs=64, seed=0) as rollouts:
        assert rollouts.num_workers == min(available_cores(), 64)


def test_fewer_episodes_than_workers_are_no_trouble():
    with Rollouts(WALK, walk_teacher(), num_envs=3, seed=0, workers=3) as rollouts:
        assert len(rollouts.evaluate("teacher", [4], num_envs=16).returns) == 1


def failing_teacher() -> Teacher:
    def refuse(observations: np.ndarray) -> np.ndarray:
        raise ArithmeticError("seven is not eight")

    return Teacher.from_callable(refuse, Walk.observation_space, gym.spaces.Discrete(3))


def test_a_failure_in_a_worker_is_raised_here_with_its_message():
    with Rollouts(WALK, failing_teacher(), num_envs=2, seed=0, workers=2) as rollouts:
        with pytest.raises(RuntimeError, match=r"(?s)a worker process failed.*seven is not eight"):
            list(rollouts.collect(2, None, 1.0, 0))
        assert len(rollouts.evaluate("random", [0, 1], num_envs=2).returns) == 2


def test_a_worker_that_dies_is_reported():
    with Rollouts(WALK, walk_teacher(), num_envs=1, seed=0, workers=1) as rollouts:
        process = rollouts._sites[0]._process  # type: ignore[union-attr]
        process.kill()
        process.join()
        with pytest.raises((RuntimeError, BrokenPipeError)):
            rollouts.evaluate("teacher", [0, 1], num_envs=1)


def test_workers_end_with_their_rollouts():
    rollouts = Rollouts(WALK, walk_teacher(), num_envs=2, seed=0, workers=2)
    processes = [site._process for site in rollouts._sites]  # type: ignore[union-attr]
    assert all(process.is_alive() for process in processes)
    rollouts.close()
    for process in processes:
        process.join(5)
    assert not any(process.is_alive() for process in processes)
    rollouts.close()


def test_the_teacher_here_is_not_touched_by_what_workers_do():
    teacher = push_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with Rollouts(PUSH, teacher, num_envs=2, seed=0, workers=2) as rollouts:
        list(rollouts.collect(5, None, 1.0, 0))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_an_environment_that_cannot_be_made_is_reported():
    with (
        Rollouts(EnvironmentSpec("tests/Walk-v0", kwargs={"colour": 1}), walk_teacher(), num_envs=1, seed=0, workers=1) as rollouts,
        pytest.raises(RequestError, match="colour"),
    ):
        rollouts.evaluate("random", [0], num_envs=1)


# Environments that are not written by the book.


def rude_returns(kind: type[rude.Polite], workers: int, step_timeout: float | None = None) -> np.ndarray:
    with Rollouts(rude.spec_of(kind), None, num_envs=4, seed=0, workers=workers, step_timeout=step_timeout) as rollouts:
        return rollouts.evaluate("random", range(48), num_envs=4).returns


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_no_two_workers_play_the_same_episodes_of_an_environment_that_ignores_its_seed(workers):
    assert len(np.unique(rude_returns(rude.DrawsGloballyInSteps, workers))) == 48


@pytest.mark.parametrize("kind", [rude.BreaksLate, rude.NanReward])
def test_a_fault_is_the_same_line_here_and_in_a_worker(kind):
    lines = []
    for workers in (0, 1):
        with pytest.raises(EnvironmentFault, match=rf"^tests/{kind.__name__}-v0, seed \d+, step 13: ") as caught:
            rude_returns(kind, workers)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_environment_that_hangs_ends_the_work_with_a_line_and_leaves_no_process(workers):
    before = set(multiprocessing.active_children())
    with pytest.raises(
        EnvironmentFault, match=r"tests/Hangs-v0, seed \d+, step 15: step has not returned for more than 0\.5 s.*--step_timeout"
    ):
        rude_returns(rude.Hangs, workers, step_timeout=0.5)
    assert set(multiprocessing.active_children()) <= before


def test_a_step_timeout_changes_no_return():
    np.testing.assert_array_equal(rude_returns(rude.Polite, 0), rude_returns(rude.Polite, 2, step_timeout=30.0))


def test_a_traceback_of_a_worker_is_shown_on_request_alone(monkeypatch):
    for debug in ("", "1"):
        monkeypatch.setenv(DEBUG, debug)
        with (
            Rollouts(WALK, failing_teacher(), num_envs=2, seed=0, workers=1) as rollouts,
            pytest.raises(RuntimeError, match="ArithmeticError: seven is not eight") as caught,
        ):
            list(rollouts.collect(2, None, 1.0, 0))
        assert ("Traceback" in str(caught.value)) == bool(debug)
