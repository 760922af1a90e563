"""What the stages share: the choice among candidates, retention on the validation seeds, counters and the clock."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from policy_distill.evaluation.return_cache import KnownReturns
from policy_distill.pipeline import context as run_module
from policy_distill.pipeline.context import Run, Stopwatch, halving
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluation_seeds
from tests.small_worlds import walk_expert
from tests.stand_ins import STEPS, Table, run_of


def candidates(*returns: list[float]) -> tuple[list[Student], Table]:
    """Students, and what each earns on the validation seeds."""
    students = [walk_expert() for _ in returns]
    return students, Table(dict(zip(students, returns, strict=True)))


def chosen(run: Run, students: list[Student], table: Table, at_least: float | None = None) -> tuple[int | None, dict[int, list[float]]]:
    first = [np.array(table.returns[student][: run.num_first]) for student in students]
    best, full = run.choose(students, first, at_least)
    return best, {index: values.tolist() for index, values in full.items()}


def test_the_best_over_all_seeds_is_chosen_among_the_best_over_the_first(tmp_path):
    students, table = candidates([9, 9, 9, 0, 0, 0], [8, 8, 8, 7, 7, 7], [7, 7, 9, 9, 9, 9], [8, 8, 7, 5, 5, 6])
    run = run_of(tmp_path, table, finalists=3, further=4)
    # over the first two seeds 9, 8, 7, 8: the third student is no finalist; over four 6.75, 7.75 and 7: the first drops out
    assert chosen(run, students, table) == (1, {0: [9, 9, 9, 0], 3: [8, 8, 7, 5, 5, 6], 1: [8, 8, 8, 7, 7, 7]})


@pytest.mark.parametrize(
    ("finalists", "episodes", "expected"),
    [
        (1, 50, [(1, 50)]),
        (2, 50, [(2, 50)]),
        (3, 50, [(3, 25), (2, 50)]),
        (4, 50, [(4, 25), (2, 50)]),
        (12, 50, [(12, 6), (6, 12), (3, 25), (2, 50)]),
        (16, 6, [(8, 1), (4, 3), (2, 6)]),
        (4, 0, []),
    ],
)
def test_half_of_them_play_twice_as_much(finalists, episodes, expected):
    assert halving(finalists, episodes) == expected


def test_the_one_to_keep_played_all_seeds_even_if_another_looked_better_on_fewer(tmp_path):
    students, table = candidates([5, 5, 5, 9, 0, 0], [5, 5, 6, 6, 0, 0], [5, 5, 6, 6, 1, 1])
    best, full = chosen(run_of(tmp_path, table, finalists=3, further=4), students, table)
    assert best == 2
    assert {index: len(values) for index, values in full.items()} == {0: 6, 1: 4, 2: 6}


def test_who_keeps_too_little_drops_out_as_soon_as_it_shows(tmp_path):
    # the teacher earns 10 and a random policy 0; first seeds, then one further, then two more
    students, table = candidates([7, 7, 9, 9, 9], [8, 8, 1, 9, 9], [8, 8, 8, 8, 8], [8, 8, 8, 8, 5])
    run = run_of(tmp_path, table, finalists=4, further=3)
    run.teacher_returns, run.random_returns = np.full(5, 10.0), np.zeros(5)
    assert chosen(run, students, table, 0.8) == (2, {3: [8, 8, 8, 8, 5], 2: [8, 8, 8, 8, 8], 1: [8, 8, 1]})
    assert chosen(run_of(tmp_path, table, finalists=4, further=3), students[3:], table)[0] == 0
    run = run_of(tmp_path, Table(table.returns), finalists=4, further=3)
    run.teacher_returns, run.random_returns = np.full(5, 10.0), np.zeros(5)
    assert chosen(run, students[3:], table, 0.8) == (None, {0: [8, 8, 8, 8, 5]})


@pytest.mark.parametrize(("finalists", "expected"), [(1, [3]), (2, [3, 1]), (3, [3, 1, 2]), (9, [3, 1, 2, 0])])
def test_finalists_are_the_best_and_of_equals_the_later(finalists, expected, tmp_path):
    students, table = candidates([1, 1, 0, 0], [5, 5, 0, 0], [3, 3, 0, 0], [4, 6, 0, 0])
    best, full = chosen(run_of(tmp_path, table, finalists=finalists), students, table)
    assert list(full) == expected
    assert best == 3  # 2.5, as the second student


def test_only_finalists_play_further_seeds_and_only_those(tmp_path):
    students, table = candidates([1, 1, 1, 1], [3, 3, 3, 3], [2, 2, 2, 2])
    run = run_of(tmp_path, table)
    chosen(run, students, table)
    further = evaluation_seeds("validation", 4)[2:]
    assert [(students.index(policy), seeds) for policy, seeds, _ in table.asked] == [(1, further), (2, further)]
    assert run.evaluation_env_steps == 2 * 2 * STEPS


def test_the_first_seeds_decide_where_there_are_no_further_ones(tmp_path):
    students, table = candidates([-3, -3], [-1, -2], [-2, -1])
    run = run_of(tmp_path, table, further=0)
    assert chosen(run, students, table) == (2, {2: [-2, -1], 1: [-1, -2]})
    assert table.asked == []
    assert run.evaluation_env_steps == 0


def test_retention_is_of_the_means_over_as_many_seeds_as_were_played(tmp_path):
    run = run_of(tmp_path)
    run.teacher_returns, run.random_returns = np.array([6.0, 8.0, 100.0, 100.0]), np.array([-2.0, 0.0, 20.0, 22.0])
    assert run.retention(np.array([2.0, 4.0])) == 0.5  # (3 + 1) / (7 + 1)
    # (16.75 - 10) / (53.5 - 10)
    assert run.retention(np.array([2.0, 4.0, 30.0, 31.0])) == pytest.approx(6.75 / 43.5)
    assert run.retention(np.array([-5.0, -5.0])) == -0.5


def test_retention_is_undefined_where_teacher_and_random_policy_earn_the_same(tmp_path):
    run = run_of(tmp_path)
    run.teacher_returns, run.random_returns = np.array([1.0, 3.0]), np.array([3.0, 1.0])
    assert math.isnan(run.retention(np.array([2.0, 2.0])))


def test_a_run_starts_with_nothing_counted(tmp_path):
    run = run_of(tmp_path, first=3, further=4)
    assert (run.env_steps, run.gradient_steps, run.evaluation_env_steps) == (0, 0, 0)
    assert (run.seeds, run.num_first) == (evaluation_seeds("validation", 7), 3)


def test_steps_of_measuring_are_counted_when_the_answer_is_there(tmp_path):
    student = walk_expert()
    run = run_of(tmp_path, Table({student: [1, 2, 3, 4], "teacher": [5, 6, 7, 8]}))
    validation, teacher = run.begin_validation(student), run.begin("teacher", run.seeds, with_agreement=True)
    assert run.evaluation_env_steps == 0
    assert validation().returns.tolist() == [1, 2]
    assert run.evaluation_env_steps == 2 * STEPS
    assert teacher().returns.tolist() == [5, 6, 7, 8]
    assert run.evaluation_env_steps == 6 * STEPS
    assert run.env_steps == 0
    asked = [(policy, len(seeds), options) for policy, seeds, options in run.rollouts.asked]  # type: ignore[attr-defined]
    assert asked == [
        (student, 2, {"num_envs": 5, "with_agreement": False}),
        ("teacher", 4, {"num_envs": 5, "with_agreement": True}),
    ]


def test_episodes_that_are_known_are_neither_played_nor_counted(tmp_path):
    run = run_of(tmp_path, Table({"teacher": [5, 6, 7, 8], "random": [1, 2, 3, 4]}))
    run.known = {"teacher": KnownReturns(tmp_path / "teacher.npz")}
    later, first = run.seeds[2:], run.seeds[:2]
    assert run.begin("teacher", later)().returns.tolist() == [7, 8]
    assert run.begin("teacher", run.seeds)().returns.tolist() == [5, 6, 7, 8]
    assert run.begin("teacher", first)().returns.tolist() == [5, 6]
    assert run.begin("random", first)().returns.tolist() == [1, 2]
    asked = [(policy, seeds) for policy, seeds, _ in run.rollouts.asked]  # type: ignore[attr-defined]
    assert asked == [("teacher", later), ("teacher", first), ("random", first)]
    assert run.evaluation_env_steps == (2 + 2 + 2) * STEPS
    assert run.reused_episodes == 2 + 2


def test_agreement_is_asked_of_every_episode_and_a_student_is_never_known(tmp_path):
    student = walk_expert()
    run = run_of(tmp_path, Table({student: [1, 2, 3, 4], "teacher": [5, 6, 7, 8]}))
    run.known = {"teacher": KnownReturns(tmp_path / "teacher.npz")}
    for _ in range(2):
        run.begin("teacher", run.seeds, with_agreement=True)()
        run.begin(student, run.seeds)()
    assert len(run.rollouts.asked) == 4  # type: ignore[attr-defined]
    assert run.reused_episodes == 0
    assert len(run.known["teacher"].read(run.seeds).seeds) == 0


def test_the_stopwatch_adds_up_each_stage(monkeypatch):
    times = iter([100.0, 101.0, 103.0, 104.0, 108.0, 109.0, 109.5, 120.0])
    monkeypatch.setattr(run_module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    watch = Stopwatch()
    for stage in ("collect", "polish", "collect"):
        with watch.measure(stage):
            pass
    # 101 to 103, 104 to 108, 109 to 109.5; since 100
    assert watch.read() == {"collect": 2.5, "train": 0.0, "polish": 4.0, "evaluate": 0.0, "total": 20.0}


def test_the_standard_error_of_a_retention_is_paired_by_seed(tmp_path):
    run = run_of(tmp_path)
    run.teacher_returns, run.random_returns = np.array([4.0, 6.0, 8.0, 99.0]), np.array([0.0, 2.0, 4.0, 99.0])
    # half of what the teacher adds on each seed: however much the seeds differ, there is nothing to be unsure about
    assert run.retention(np.array([2.0, 4.0, 6.0])) == 0.5
    assert run.retention_standard_error(np.array([2.0, 4.0, 6.0])) == 0.0
    # contrast at 0.5: -1, 0, 1; standard deviation 1; of the mean of three over a gap of 4
    assert run.retention_standard_error(np.array([1.0, 4.0, 7.0])) == pytest.approx(1 / math.sqrt(3) / 4)


def test_one_episode_or_a_teacher_like_chance_has_no_standard_error(tmp_path):
    run = run_of(tmp_path)
    run.teacher_returns, run.random_returns = np.array([4.0, 4.0]), np.array([0.0, 9.0])
    assert math.isnan(run.retention_standard_error(np.array([2.0])))
    assert math.isnan(run.retention_standard_error(np.array([2.0, 2.0])))
