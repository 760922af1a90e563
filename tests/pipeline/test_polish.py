"""When training goes on by reward, what is kept of it, and what is written down. PPO itself is stood in for."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from policy_distill.config import PolishConfig
from policy_distill.pipeline import polish as polish_module
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.polish import polish
from policy_distill.pipeline.state import Kept, State
from policy_distill.policies.families import Categorical, Family
from policy_distill.policies.student import Student
from policy_distill.training.ppo.kickstart import Snapshot
from tests.small_worlds import labelled, walk_expert, walk_teacher
from tests.stand_ins import FIRST_SEED, STEPS, Recorder, Table, run_of

TEACHER, RANDOM = [8.0, 6.0, 9.0, 9.0], [0.0, -2.0, -1.0, -1.0]
"""On the validation seeds: 8 and -1 on average, 7 and -1 over the first two."""


class Kickstart:
    """Stands in for PPO: hands out the students that it was given, after 100, 200, ... steps, and says how it was called."""

    def __init__(self, students: Sequence[Student], between: Callable[[], None] = lambda: None) -> None:
        self.students, self.between = students, between
        self.arguments: tuple[Any, ...] = ()
        self.environments: list[Any] = []
        self.seed = -1
        self.calls = self.given = 0

    def __call__(self, *arguments: Any, seed: int) -> Kickstart:
        self.arguments, self.seed = arguments, seed
        self.calls += 1
        return self

    def begin(self, environments: Any) -> None:
        self.environments.append(environments)

    def next_snapshot(self, environments: Any) -> Snapshot:
        assert environments is self.environments[-1]
        if self.given:
            self.between()
        critic = nn.Linear(2, 1)
        nn.init.constant_(critic.weight, self.given)
        self.given += 1
        student, metrics = self.students[self.given - 1], {"train_return_mean": 0.5 * (self.given - 1)}
        return Snapshot(100 * self.given, 30 * self.given, student, [critic], metrics)

    @property
    def over(self) -> bool:
        return self.given == len(self.students)


def polished(folder: Path, monkeypatch: pytest.MonkeyPatch, start: list[float], *candidates: list[float], **changes: Any) -> Any:
    """The run, what it began with, what stood in for PPO and what came of it; of each student the returns on the validation seeds."""
    students = [walk_expert() for _ in candidates]
    table = Table(dict(zip(students, candidates, strict=True)))
    ppo = Kickstart(students)
    monkeypatch.setattr(polish_module, "Kickstart", ppo)
    state, services = started(run_of(folder, table, **changes))
    kept = Kept(walk_expert(), np.array(start), "round 2")
    return state, kept, ppo, through(state, services, kept)


def started(run: tuple[State, Services]) -> tuple[State, Services]:
    """As imitation leaves it."""
    state, _ = run
    state.teacher_returns, state.random_returns, state.env_steps, state.gradient_steps = np.array(TEACHER), np.array(RANDOM), 1000, 70
    seen = torch.zeros(1, 2)
    state.dataset.append(labelled(seen, walk_teacher().targets(seen)))
    return run


def through(state: State, services: Services, kept: Kept) -> SimpleNamespace | None:
    """What the stage made of ``kept``; None if it let it be."""
    state.stage, state.kept = "polish", [kept]
    while state.stage == "polish":
        polish(state, services)
    assert state.stage == "value"
    assert state.polishing is None
    records = state.records_of("polish")
    if not records:
        assert state.kept[-1].student is kept.student
        return None
    chosen = next((index for index, look in enumerate(records) if look.kept), None)
    start = state.retention(state.kept[0].returns)
    return SimpleNamespace(records=records, kept=state.kept[-1], chosen=chosen, critic=state.critic, start=start)


# Whether.


SHOWN = [
    # above 3/4 of what the teacher adds, seed by seed; Student's t of four values at 95 %: 2.353
    ([1, 2, 3, 2], True),  # mean 2, standard deviation 0.82: t = 4.90
    ([-1, 5, 0, 4], False),  # mean 2, standard deviation 2.94: t = 1.36
    ([-3, -3, 10, 12], False),  # t = 0.96, although it keeps more than all of the return
    ([1, 1, 1, 1], True),
    ([0, 0, 0, 0], False),
    ([-1, -2, -3, -2], False),
]
"""What a student earns above three quarters of the way from random policy to teacher, and whether that shows that it keeps as much."""


@pytest.mark.parametrize(("above", "shown"), SHOWN)
@pytest.mark.parametrize("first", [[], [-50.0, -50.0], [50.0, 50.0]])
def test_a_student_is_left_alone_where_the_further_seeds_show_that_it_keeps_enough(first, above, shown, tmp_path, monkeypatch):
    """The first seeds, by which it was picked, do not count; without further ones, all do."""
    student = walk_expert()
    ppo = Kickstart([student])
    monkeypatch.setattr(polish_module, "Kickstart", ppo)
    table = Table({student: [0.0] * 6})
    lengths: dict[str, Any] = {"first": 2, "further": 4} if first else {"first": 4, "further": 0}
    config = PolishConfig(below=0.75, confidence=0.95, further_episodes=0)
    run, services = started(run_of(tmp_path, table, polish=config, **lengths))
    run.teacher_returns, run.random_returns = np.array([9.0, 9.0][: len(first)] + TEACHER), np.array([0.0, 0.0][: len(first)] + RANDOM)
    # 3/4 of 8 and 1/4 of 0, ...
    returns = np.array(first + (np.array([6.0, 4.0, 6.5, 6.5]) + above).tolist())
    assert (through(run, services, Kept(walk_expert(), returns, "round 2")) is None) == shown
    assert ppo.calls == (not shown)
    if shown:
        assert (run.env_steps, run.evaluation_env_steps, table.asked, services.tracker.seen) == (1000, 0, [], {})  # type: ignore[attr-defined]


@pytest.mark.parametrize(("confidence", "shown"), [(0.9, False), (0.8, True)])
def test_how_sure_it_must_be(confidence, shown, tmp_path, monkeypatch):
    # t = 1.36; Student's t of four values at 90 %: 1.638, at 80 %: 0.978
    returns = [5.0, 9.0, 6.5, 10.5]  # 3/4 of the way, and -1, 5, 0, 4
    changes = {"polish": PolishConfig(below=0.75, confidence=confidence, further_episodes=0), "first": 4, "further": 0}
    *_, found = polished(tmp_path, monkeypatch, returns, [0.0] * 4, **changes)
    assert (found is None) == shown


def undecided(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chose: list[float], others: list[float], allowed: int, finalist: int = 0
) -> Any:
    """A student with these contrasts with 3/4 of the return, 8, on the episodes that chose it and on others."""
    student, ppo = walk_expert(), Kickstart([polished_student := walk_expert()])
    monkeypatch.setattr(polish_module, "Kickstart", ppo)
    of_teacher, of_random = [8.0] * 24, [0.0] * 24
    table = Table(
        {"teacher": of_teacher, "random": of_random, student: [6 + each for each in chose + others], polished_student: [-9.0] * 4}
    )
    polish = PolishConfig(below=0.75, confidence=0.95, further_episodes=allowed)
    run, services = run_of(folder, table, first=4, further=0, polish=polish)
    started((run, services))
    monkeypatch.setattr(type(services.job), "finalist_episodes", finalist)
    run.teacher_returns, run.random_returns = np.array(of_teacher[:4]), np.array(of_random[:4])
    return run, ppo, table, through(run, services, Kept(student, np.array([6 + each for each in chose]), "round 2"))


UNSURE = [-1.0, 5.0, 0.0, 4.0]
"""It takes 14 such episodes to show a mean above zero, with a power of 80 %."""


def test_a_student_that_is_likely_to_show_it_plays_other_episodes_first(tmp_path, monkeypatch):
    run, ppo, table, found = undecided(tmp_path, monkeypatch, UNSURE, [1.0, 2.0] * 7, 14)
    assert found is None
    assert ppo.calls == 0
    assert [seeds for _, seeds, _ in table.asked] == [list(range(FIRST_SEED + 4, FIRST_SEED + 18))] * 3
    assert len(run.teacher_returns) == len(run.random_returns) == len(run.seeds) == 18


def test_what_other_episodes_do_not_show_is_polished_and_its_start_is_all_that_was_played(tmp_path, monkeypatch):
    _, ppo, _, found = undecided(tmp_path, monkeypatch, UNSURE, [-1.0] * 14, 14)
    assert ppo.calls == 1
    assert len(found.kept.returns) == 18  # nothing beat it


def test_no_episode_is_played_where_as_many_as_are_allowed_are_not_likely_to_show_it(tmp_path, monkeypatch):
    _, ppo, table, _ = undecided(tmp_path, monkeypatch, UNSURE, [], 13)
    assert ppo.calls == 1
    assert len(table.asked) == 1  # about the polished student


@pytest.mark.parametrize(("others", "left_alone"), [([1.0, 2.0] * 3, True), ([1.0, -2.0] * 3, False)])
def test_the_episodes_that_chose_a_student_do_not_show_that_it_keeps_enough(others, left_alone, tmp_path, monkeypatch):
    """They would, by far; but the best of many candidates is overestimated by them. As many others as a finalist plays decide."""
    _, ppo, table, found = undecided(tmp_path, monkeypatch, [8.0, 8.0, 8.0, 9.0], others, 200, finalist=6)
    assert (found is None) == left_alone
    assert ppo.calls == (not left_alone)
    assert [len(seeds) for _, seeds, _ in table.asked[:3]] == [6, 6, 6]


def test_nothing_is_polished_where_retention_is_undefined(tmp_path, monkeypatch):
    ppo = Kickstart([])
    monkeypatch.setattr(polish_module, "Kickstart", ppo)
    run, services = started(run_of(tmp_path, polish=PolishConfig(below=1e9)))
    run.random_returns = run.teacher_returns
    assert through(run, services, Kept(walk_expert(), np.zeros(4), "round 2")) is None
    assert ppo.calls == 0


@pytest.mark.parametrize("start", [-1.0, -5.0])
def test_zero_turns_polishing_off_even_for_a_student_that_is_worse_than_chance(start, tmp_path, monkeypatch):
    """0 promises never; a negative retention is less than 0."""
    _, _, ppo, found = polished(tmp_path, monkeypatch, [start] * 4, [9.0] * 4, polish=PolishConfig(below=0.0))
    assert found is None
    assert ppo.calls == 0


def test_a_family_without_a_density_is_not_polished_and_that_is_said(tmp_path, monkeypatch, capsys):
    run, services = started(run_of(tmp_path))
    services.display.quiet = False
    ppo = Kickstart([])
    monkeypatch.setattr(polish_module, "Kickstart", ppo)
    monkeypatch.setattr(Categorical, "draw", Family.draw)
    monkeypatch.setattr(Categorical, "log_prob", Family.log_prob)
    assert through(run, services, Kept(walk_expert(), np.zeros(4), "round 2")) is None
    assert ppo.calls == 0
    assert "not polished: Categorical has no draw and log_prob" in capsys.readouterr().err


# What is kept.


def test_the_best_over_all_seeds_is_kept_with_its_own_critic(tmp_path, monkeypatch):
    # over the first seeds 6, 5.5, 4 and 5; of the two finalists the second keeps more over all: 3.5 and 5
    _, _, ppo, found = polished(tmp_path, monkeypatch, [2.0] * 4, [6, 6, 1, 1], [5, 6, 5, 4], [4, 4, 9, 9], [5, 5, 4, 4])
    assert found.chosen == 1
    assert found.kept.student is ppo.students[1]
    assert found.kept.returns.tolist() == [5, 6, 5, 4]
    assert found.kept.origin == "polish, 200 steps"
    assert found.critic[0].weight.tolist() == [[1.0, 1.0]]
    assert found.start == pytest.approx((2 + 1) / (8 + 1))
    assert [record.finalist_return_mean for record in found.records] == [3.5, 5.0, None, None]
    assert [record.validation_return_mean for record in found.records] == [6, 5.5, 4, 5]
    assert [record.validation_retention for record in found.records] == [(mean + 1) / 8 for mean in (6, 5.5, 4, 5)]
    assert [record.env_steps for record in found.records] == [100, 200, 300, 400]
    assert [record.train["train_return_mean"] for record in found.records] == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("best", [[6.0, 6.0, -2.0, -2.0], [2.0, 2.0, 2.0, 2.0]])
def test_the_start_is_kept_where_nothing_beats_it_on_all_seeds(best, tmp_path, monkeypatch):
    run, kept, _, found = polished(tmp_path, monkeypatch, [2.0] * 4, [0.0] * 4, best)
    assert found.kept is kept
    assert found.chosen is found.critic is None
    assert [record.finalist_return_mean for record in found.records] == [None, 2.0]  # the first kept less than the start at once
    assert run.env_steps == 1200  # the steps were taken all the same


@pytest.mark.parametrize(("others", "kept"), [([3.0, 3.0, 3.0], True), ([2.0, 2.0, 2.0], False)])
def test_episodes_that_chose_neither_compare_the_best_look_with_its_start(others, kept, tmp_path, monkeypatch):
    """The best of several looks is overestimated by the episodes that chose it, as its start was."""
    student = walk_expert()
    table = Table({student: [6.0] * 4 + others})
    ppo = Kickstart([student])
    monkeypatch.setattr(polish_module, "Kickstart", ppo)
    run, services = started(run_of(tmp_path, table))
    run.teacher_returns, run.random_returns = np.append(TEACHER, [9.0] * 3), np.append(RANDOM, [0.0] * 3)
    run.seeds = [*run.seeds, *range(FIRST_SEED + 4, FIRST_SEED + 7)]
    found = through(run, services, Kept(walk_expert(), np.array([2.0] * 4 + [2.5] * 3), "round 2"))
    assert found is not None
    assert (found.kept.student is student) == kept
    assert table.asked[-1][1] == [FIRST_SEED + 4, FIRST_SEED + 5, FIRST_SEED + 6]
    assert found.records[0].finalist_episodes == 7
    assert found.records[0].finalist_return_mean == pytest.approx((24 + sum(others)) / 7)


def test_looks_that_all_keep_less_than_the_start_play_no_further_episodes(tmp_path, monkeypatch):
    run, kept, _, found = polished(tmp_path, monkeypatch, [2.0] * 4, [1.0] * 4, [0.0] * 4)
    assert found.kept is kept
    assert [record.finalist_episodes for record in found.records] == [None, None]
    assert run.evaluation_env_steps == (2 + 2) * STEPS


# How it is called, and what is written down.


def test_ppo_gets_the_kept_student_and_the_run_s_own_settings(tmp_path, monkeypatch):
    student = walk_expert()
    table = Table({student: [3.0] * 4})
    run, services = started(run_of(tmp_path, table))
    ppo, kept, job = Kickstart([student]), Kept(walk_expert(), np.full(4, 2.0), "round 2"), services.job
    monkeypatch.setattr(polish_module, "Kickstart", ppo)
    through(run, services, kept)
    assert ppo.calls == 1
    (made,) = table.environments
    for given, own in zip(ppo.arguments, (kept.student, job.teacher, job.objective, job.config.polish), strict=True):
        assert given is own
    assert ppo.environments == [made]
    assert made.arguments == (job.config.polish.num_envs, job.config.polish.num_steps, ppo.seed)


@pytest.mark.parametrize("fails", [False, True])
def test_its_environments_are_closed_at_its_end_and_after_a_failure_nothing_is_asked_of_workers(fails, tmp_path, monkeypatch):
    """They may be busy or gone, and end with the job."""

    def maybe_fail() -> None:
        assert not table.environments[0].closed
        if fails:
            raise ZeroDivisionError

    students = [walk_expert(), walk_expert()]
    monkeypatch.setattr(polish_module, "Kickstart", Kickstart(students, maybe_fail))
    table = Table({student: [3.0] * 4 for student in students})
    state, services = started(run_of(tmp_path, table))
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        through(state, services, Kept(walk_expert(), np.full(4, 2.0), "round 2"))
    assert [made.closed for made in table.environments] == [not fails]


def test_its_seed_follows_from_the_run_s_and_is_another(tmp_path, monkeypatch):
    seeds = [polished(tmp_path, monkeypatch, [2.0] * 4, [3.0] * 4, seed=seed)[2].seed for seed in (5, 5, 6)]
    assert seeds[0] == seeds[1]
    assert len({*seeds, 5, 6}) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)  # numpy takes no other


def test_steps_are_counted_apart_and_the_curves_go_on_where_imitation_ended(tmp_path, monkeypatch):
    students = [walk_expert() for _ in range(2)]
    run, services = started(run_of(tmp_path, Table(dict(zip(students, [[3, 5, 0, 0], [1.0] * 4], strict=True)))))
    monkeypatch.setattr(polish_module, "Kickstart", Kickstart(students))
    found = through(run, services, Kept(walk_expert(), np.full(4, 2.0), "round 2"))
    assert found is not None
    assert (run.env_steps, run.gradient_steps, found.records[-1].env_steps) == (1200, 70 + 60, 200)
    assert run.evaluation_env_steps == (2 + 2 + 2) * STEPS  # the second kept less than the start on the first two seeds
    assert isinstance(services.tracker, Recorder)
    # the last point written of each curve is the second student's
    assert services.tracker.seen == {
        "polish/train_return_mean": (0.5, 1200),
        "eval/validation_return_mean": (1.0, 1200),
        "eval/validation_retention": (0.25, 1200),
        "eval/validation_return_mean_teacher": (7.0, 1200),
        "eval/validation_return_mean_random": (-1.0, 1200),
    }


def test_a_student_is_measured_while_ppo_goes_on(tmp_path, monkeypatch):
    students = [walk_expert() for _ in range(3)]
    table = Table({student: [3.0] * 4 for student in students})
    (run, services), progress = started(run_of(tmp_path, table)), []
    monkeypatch.setattr(polish_module, "Kickstart", Kickstart(students, lambda: progress.append((len(table.asked), table.answered))))
    found = through(run, services, Kept(walk_expert(), np.full(4, 2.0), "round 2"))
    assert progress == [(1, 0), (2, 1)]  # questions, answers
    assert found is not None
    assert len(found.records) == 3


def test_the_time_of_polishing_and_that_of_the_final_choice_are_told_apart(tmp_path, monkeypatch):
    run, _, _, _ = polished(tmp_path, monkeypatch, [2.0] * 4, [3.0] * 4)
    assert run.seconds["polish"] > 0
    assert run.seconds["evaluate"] > 0
    assert run.seconds["train"] == 0


def test_what_is_recorded(tmp_path, monkeypatch):
    *_, found = polished(tmp_path, monkeypatch, [2.0] * 4, [3.0, 5.0, 4.0, 4.0])
    assert [look.summary() for look in found.records] == [
        {
            "env_steps": 100, "metrics": {"train_return_mean": 0.0}, "validation_return_mean": 4.0,
            "validation_retention": 0.625, "finalist_return_mean": 4.0, "finalist_episodes": 4,
            # contrasts at 0.625: 3 - 5 - 0 = -2 and 5 - 3.75 + 0.75 = 2; their mean's error is 2, and the gap 8
            "validation_retention_standard_error": pytest.approx(0.25),
        }
    ]  # fmt: skip


def test_the_student_that_it_began_with_is_not_touched(tmp_path, monkeypatch):
    before = copy.deepcopy(walk_expert().state_dict())
    _, kept, _, found = polished(tmp_path, monkeypatch, [2.0] * 4, [3.0] * 4)
    assert found.kept is not kept
    assert (kept.origin, kept.returns.tolist()) == ("round 2", [2.0] * 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.student.state_dict().items())


def test_three_looks_in_a_row_that_keep_enough_end_the_stage(tmp_path, monkeypatch):
    good, bad = [9.0] * 4, [3.0] * 4
    # the verdict on a look is known when the next one is taken: looks 3 to 5 are good, look 6 is the last
    run, _, ppo, found = polished(tmp_path, monkeypatch, [2.0] * 4, good, bad, good, good, good, bad, good, polish=PolishConfig(enough=0.9))
    assert [record.env_steps for record in found.records] == [100, 200, 300, 400, 500, 600]
    assert run.env_steps == 1600  # the stages before took 1000
    assert found.kept.student is not ppo.students[1]
    *_, found = polished(tmp_path, monkeypatch, [2.0] * 4, good, bad, good, good, good, bad, good, polish=PolishConfig(enough=5.0))
    assert len(found.records) == 7


def test_hopeless_looks_again_and_again_end_the_stage(tmp_path, monkeypatch):
    # nine tenths of what the start keeps are 0.9 * 2 + 0.1 * -1 = 1.7 on average on these episodes
    hopeless, worse, better = [-2.0] * 4, [1.75] * 4, [3.0] * 4
    looks = [hopeless, hopeless, worse, hopeless, hopeless, hopeless, better, better]
    # three in a row are known when the seventh look is taken
    _, kept, ppo, found = polished(tmp_path, monkeypatch, [2.0] * 4, *looks, polish=PolishConfig(patience=3))
    assert [record.env_steps for record in found.records] == [100, 200, 300, 400, 500, 600, 700]
    assert found.kept.student is ppo.students[6]
    _, kept, _, found = polished(tmp_path, monkeypatch, [2.0] * 4, *[hopeless] * 5, polish=PolishConfig(patience=1))
    assert len(found.records) == 2
    assert found.kept is kept
    for never in (PolishConfig(patience=6), PolishConfig(hopeless=0)):
        *_, found = polished(tmp_path, monkeypatch, [2.0] * 4, *[hopeless] * 5, polish=never)
        assert len(found.records) == 5


def test_means_of_episodes_that_differ_much_do_not_end_the_stage(tmp_path, monkeypatch):
    # the same mean as ``hopeless`` above, once from episodes that all lose, once from episodes that may as well be won
    for spread, looks in ((0.5, 4), (8.0, 5)):
        hopeless = [-2.0 - spread, -2.0 + spread] * 2
        *_, found = polished(tmp_path, monkeypatch, [2.0] * 4, *[hopeless] * 5, polish=PolishConfig(patience=3))
        assert len(found.records) == looks


@pytest.mark.parametrize(
    ("start", "look"),
    [
        ([1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 3.0, 3.0]),  # as good as the start on the two episodes that each look plays
        ([5.0, 5.0, 1.0, 1.0], [2.5, 2.5, 1.0, 1.0]),  # on these the start is overestimated: it keeps a fifth on others
    ],
)
def test_hopeless_is_meant_on_the_same_episodes_and_on_others(start, look, tmp_path, monkeypatch):
    *_, found = polished(tmp_path, monkeypatch, start, *[look] * 5, polish=PolishConfig(patience=3))
    assert len(found.records) == 5


def test_polishing_that_takes_long_is_announced(tmp_path, monkeypatch, capsys):
    student = walk_expert()
    monkeypatch.setattr(polish_module, "Kickstart", Kickstart([student]))
    config = PolishConfig(env_steps=100, num_envs=4, num_steps=8, epochs=5)  # 4 rollouts, 128 steps
    state, services = started(run_of(tmp_path, Table({student: [0.0] * 4}), polish=config))
    services.display.quiet = False
    trained = 70 * services.job.config.train.batch_size_of(single_images=False) * services.job.num_members
    state.seconds |= {"collect": 1000.0, "train": float(trained)}  # a second for each step and each sample of a member
    assert polish_module.expected_seconds(state, services.job) == pytest.approx(128 + 2 * 5 * 128)
    through(state, services, Kept(walk_expert(), np.zeros(4), "round 2"))
    assert "this may take about 23 minutes; fewer polish.epochs are faster, and --polish.below 0 leaves it out" in capsys.readouterr().err
