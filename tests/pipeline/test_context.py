"""What the stages work with: the choice among candidates, and counters of what is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policy_distill.evaluation.return_cache import KnownReturns
from policy_distill.pipeline.context import Services, halving, kept_enough
from policy_distill.pipeline.state import State
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import evaluation_seeds
from tests.small_worlds import walk_expert
from tests.stand_ins import STEPS, Table, run_of

Run = tuple[State, Services]


def earning(run: Run, teacher: list[float], random: list[float]) -> Run:
    """The run with what teacher and random policy earn on the validation seeds."""
    run[0].teacher_returns, run[0].random_returns = np.array(teacher), np.array(random)
    return run


def candidates(*returns: list[float]) -> tuple[list[Student], Table]:
    """Students, and what each earns on the validation seeds."""
    students = [walk_expert() for _ in returns]
    return students, Table(dict(zip(students, returns, strict=True)))


def chosen(run: Run, students: list[Student], table: Table, start: list[float] | None = None) -> tuple[int | None, dict[int, list[float]]]:
    state, services = run
    first = [np.array(table.returns[student][: state.num_first]) for student in students]
    best, full = services.choose(state, students, first, None if start is None else np.array(start))
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


def test_a_student_is_dropped_as_soon_as_it_is_shown_to_be_worse_than_the_start(tmp_path):
    """The second has a lower mean on the first seeds, which shows nothing; on all seeds it is the best."""
    students, table = candidates([7, 7, 9, 9, 9], [5, 9, 9, 9, 9], [8, 8, 8, 8, 8])
    start = [8.0] * 5
    run = earning(run_of(tmp_path, table, finalists=3, further=3), [1.0] * 5, [0.0] * 5)
    assert chosen(run, students, table, start) == (1, {1: [5, 9, 9, 9, 9], 2: [8, 8, 8, 8, 8]})


def test_no_student_is_chosen_where_all_are_shown_to_be_worse_than_the_start(tmp_path):
    students, table = candidates([8, 8, 5, 5, 5])  # the differences have a mean of 1.8 and a standard deviation of 1.64: t = 2.45
    run = earning(run_of(tmp_path, table, finalists=4, further=3), [1.0] * 5, [0.0] * 5)
    assert chosen(run, students, table, [8.0] * 5) == (None, {0: [8, 8, 5, 5, 5]})
    assert chosen(run_of(tmp_path, table, finalists=4, further=3), students, table)[0] == 0


def test_a_student_that_keeps_a_little_less_where_the_start_does_not_fail_stays(tmp_path):
    students, table = candidates([9.8, 9.8, 9.8, 9.8], [9.0, 9.0, 9.0, 9.0])
    start = [10.0, 10.0, 0.0, 10.0]
    run = earning(run_of(tmp_path, table, finalists=2, further=2), [10.0] * 4, [0.0] * 4)
    assert chosen(run, students, table, start) == (0, {0: [9.8, 9.8, 9.8, 9.8]})  # 0.2 is less than a twentieth of 10, 1 is more


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
    assert run[0].evaluation_env_steps == 2 * 2 * STEPS


def test_the_first_seeds_decide_where_there_are_no_further_ones(tmp_path):
    students, table = candidates([-3, -3], [-1, -2], [-2, -1])
    run = run_of(tmp_path, table, further=0)
    assert chosen(run, students, table) == (2, {2: [-2, -1], 1: [-1, -2]})
    assert table.asked == []
    assert run[0].evaluation_env_steps == 0


def test_a_run_starts_with_nothing_counted(tmp_path):
    state, _ = run_of(tmp_path, first=3, further=4)
    assert (state.env_steps, state.gradient_steps, state.evaluation_env_steps) == (0, 0, 0)
    assert (state.seeds, state.num_first) == (evaluation_seeds("validation", 7), 3)


def test_steps_of_measuring_are_counted_when_the_answer_is_there(tmp_path):
    student = walk_expert()
    state, services = run_of(tmp_path, Table({student: [1, 2, 3, 4], "teacher": [5, 6, 7, 8]}))
    validation, teacher = services.begin_validation(state, student), services.begin(state, "teacher", state.seeds, with_agreement=True)
    assert state.evaluation_env_steps == 0
    assert validation.result().returns.tolist() == [1, 2]
    assert state.evaluation_env_steps == 2 * STEPS
    assert teacher.result().returns.tolist() == [5, 6, 7, 8]
    assert state.evaluation_env_steps == 6 * STEPS
    assert state.env_steps == 0
    asked = [(policy, len(seeds), options) for policy, seeds, options in services.rollouts.asked]  # type: ignore[attr-defined]
    assert asked == [
        (student, 2, {"num_envs": 5, "with_agreement": False}),
        ("teacher", 4, {"num_envs": 5, "with_agreement": True}),
    ]


def test_episodes_that_are_known_are_neither_played_nor_counted(tmp_path):
    state, services = run_of(tmp_path, Table({"teacher": [5, 6, 7, 8], "random": [1, 2, 3, 4]}))
    services.known = {"teacher": KnownReturns(tmp_path / "teacher.npz")}
    later, first = state.seeds[2:], state.seeds[:2]
    assert services.begin(state, "teacher", later).result().returns.tolist() == [7, 8]
    services.cache_returns()
    assert services.begin(state, "teacher", state.seeds).result().returns.tolist() == [5, 6, 7, 8]
    services.cache_returns()
    assert services.begin(state, "teacher", first).result().returns.tolist() == [5, 6]
    assert services.begin(state, "random", first).result().returns.tolist() == [1, 2]
    asked = [(policy, seeds) for policy, seeds, _ in services.rollouts.asked]  # type: ignore[attr-defined]
    assert asked == [("teacher", later), ("teacher", first), ("random", first)]
    assert state.evaluation_env_steps == (2 + 2 + 2) * STEPS
    assert state.reused_episodes == 2 + 2


def test_episodes_are_cached_after_the_advance_that_played_them(tmp_path):
    """A run that is resumed after an interruption in between does not find its own episodes there."""
    state, services = run_of(tmp_path, Table({"teacher": [5, 6, 7, 8]}))
    services.known = {"teacher": KnownReturns(tmp_path / "teacher.npz")}
    services.begin(state, "teacher", state.seeds).result()
    assert len(services.known["teacher"].read(state.seeds).seeds) == 0
    services.cache_returns()
    services.cache_returns()
    assert services.known["teacher"].read(state.seeds).returns.tolist() == [5, 6, 7, 8]
    assert services.played == []


def test_agreement_is_asked_of_every_episode_and_a_student_is_never_known(tmp_path):
    student = walk_expert()
    state, services = run_of(tmp_path, Table({student: [1, 2, 3, 4], "teacher": [5, 6, 7, 8]}))
    services.known = {"teacher": KnownReturns(tmp_path / "teacher.npz")}
    for _ in range(2):
        services.begin(state, "teacher", state.seeds, with_agreement=True).result()
        services.begin(state, student, state.seeds).result()
    assert len(services.rollouts.asked) == 4  # type: ignore[attr-defined]
    assert state.reused_episodes == 0
    assert len(services.known["teacher"].read(state.seeds).seeds) == 0


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([], False),
        ([0.9, 0.9], False),
        ([0.9, 0.9, 0.9], True),
        ([0.1, 0.9, 0.95, 1.0], True),
        ([0.9, 0.9, 0.9, 0.89], False),
        ([0.9, 0.1, 0.9, 0.9], False),
        ([0.9, 0.9, math.nan], False),
    ],
)
def test_three_passes_in_a_row_and_the_last_three_alone_are_enough(shares, expected):
    assert kept_enough(shares, 0.9) == expected
