"""Self-distillation: what a generation is taught by hand, which one is kept, and that fresh weights are trained on the same rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import LossConfig, SelfDistillConfig, TrainConfig
from policy_distill.losses.objective import Objective
from policy_distill.pipeline.context import Services
from policy_distill.pipeline.self_distillation import mix_targets, self_distill
from policy_distill.pipeline.state import Kept, State
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.families import DiagGaussian, family_of
from policy_distill.policies.student import Student
from policy_distill.training.dataset import Dataset
from tests.small_worlds import Walk, generator, labelled, random_student, random_transitions, rows_of, walk_best
from tests.stand_ins import Table, run_of

CPU = torch.device("cpu")
SEEN = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
PUSHED = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))


def constant(space: gym.Space, outputs: list[float], *, log_std: float = 0.0) -> Student:
    """A student that says the same everywhere."""
    student = Student(Architecture(SEEN, space, ()))
    with torch.no_grad():
        student.linears[0].weight.zero_()
        student.linears[0].bias.copy_(torch.tensor(outputs))
        student.log_std.fill_(log_std)
    return student.eval().requires_grad_(False)


def mixed(space: gym.Space, targets: ActionTargets, mentors: list[Student], weight: float, loss: LossConfig | None = None) -> ActionTargets:
    told = [mentor.parameters_of(torch.zeros(1, 3)) for mentor in mentors]
    return mix_targets(Objective(loss or LossConfig(), family_of(space)), mentors, weight, told, targets)


def test_probabilities_are_mixed_by_hand():
    # teacher (3/4, 1/4), student (1/2, 1/2), a quarter for the teacher: (9/16, 7/16)
    space = gym.spaces.Discrete(2)
    targets = ActionTargets({"logits": torch.tensor([[math.log(3), 0.0]])}, torch.tensor([0]))
    found = mixed(space, targets, [constant(space, [0.0, 0.0])], 0.25)
    torch.testing.assert_close(found.parameters["logits"].softmax(-1), torch.tensor([[9 / 16, 7 / 16]]))
    assert found.actions.tolist() == [0]
    # two pupils share what the teacher leaves: (1/4)(3/4) + (3/8)(1/2) + (3/8)(1/4) = 15/32
    found = mixed(space, targets, [constant(space, [0.0, 0.0]), constant(space, [0.0, math.log(3)])], 0.25)
    torch.testing.assert_close(found.parameters["logits"].softmax(-1), torch.tensor([[15 / 32, 17 / 32]]))
    assert found.actions.tolist() == [1]


def test_components_and_switches_are_mixed_each_for_itself():
    space: gym.Space = gym.spaces.MultiDiscrete([2, 2])
    targets = ActionTargets({"logits": torch.tensor([[math.log(3), 0.0, 0.0, 0.0]])}, torch.tensor([[0, 0]]))
    found = mixed(space, targets, [constant(space, [0.0, 0.0, 0.0, math.log(3)])], 0.5)
    pairs = found.parameters["logits"].unflatten(-1, (2, 2)).softmax(-1)
    torch.testing.assert_close(pairs, torch.tensor([[[5 / 8, 3 / 8], [3 / 8, 5 / 8]]]))
    assert found.actions.tolist() == [[0, 1]]
    space = gym.spaces.MultiBinary(1)
    targets = ActionTargets({"logits": torch.tensor([[math.log(3)]])}, torch.tensor([[1]]))
    found = mixed(space, targets, [constant(space, [0.0])], 0.5)
    torch.testing.assert_close(found.parameters["logits"].sigmoid(), torch.tensor([[5 / 8]]))


def test_q_values_become_logits_before_they_are_mixed():
    space = gym.spaces.Discrete(2)
    targets = ActionTargets({"q_values": torch.tensor([[2.0, 0.0]])}, torch.tensor([0]))
    found = mixed(space, targets, [constant(space, [0.0, 0.0])], 0.5, LossConfig(q_logits="raw", q_temperature=2.0))
    expected = 0.5 * torch.tensor([[1.0, 0.0]]).softmax(-1) + 0.25
    torch.testing.assert_close(found.parameters["logits"].softmax(-1), expected)
    assert "q_values" not in found.parameters


def test_actions_are_mixed_as_they_are_executed():
    # the student's (2, -3) in box units is beyond both bounds: 6 and 0; half of that and of (-2, 1)
    targets = ActionTargets({"layer:a": torch.ones(1, 5)}, torch.tensor([[-2.0, 1.0]]))
    objective = Objective(LossConfig(kind="regression"), DiagGaussian(Box.from_space(PUSHED)))
    mentor = constant(PUSHED, [2.0, -3.0])
    found = mix_targets(objective, [mentor], 0.5, [mentor.parameters_of(torch.zeros(1, 3))], targets)
    torch.testing.assert_close(found.actions, torch.tensor([[2.0, 0.5]]))
    assert torch.equal(found.parameters["layer:a"], torch.ones(1, 5))


def test_gaussians_are_mixed_by_their_moments():
    # half N(0, 1) and half N(1, 4): mean 1/2, variance (1 + 0 + 4 + 1) / 2 - 1/4 = 2.75
    space = gym.spaces.Box(-1, 1, (1,))
    targets = ActionTargets({"mean": torch.zeros(1, 1), "log_std": torch.zeros(1, 1)}, torch.zeros(1, 1))
    found = mixed(space, targets, [constant(space, [1.0], log_std=math.log(2))], 0.5, LossConfig(kind="kl"))
    torch.testing.assert_close(found.parameters["mean"], torch.tensor([[0.5]]))
    torch.testing.assert_close((2 * found.parameters["log_std"]).exp(), torch.tensor([[2.75]]))
    torch.testing.assert_close(found.actions, torch.tensor([[0.5]]))


@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3), PUSHED], ids=str)
def test_a_teacher_that_has_all_the_say_is_not_changed(space):
    made = random_transitions(space, 1)
    found = mixed(space, made.targets, [constant(space, [0.3] * family_of(space).width)], 1.0)
    torch.testing.assert_close(found.actions, made.targets.actions)
    if "logits" in made.targets.parameters:
        family = family_of(space)
        one, other = (family.mode(parameters) for parameters in (found.parameters, made.targets.parameters))
        assert torch.equal(one, other)


# The series.


def series(
    folder: Path, monkeypatch: pytest.MonkeyPatch, returns: Sequence[Sequence[float]], *, members: int = 1, **changes: Any
) -> tuple[State, Services]:
    """A run whose generations' members earn ``returns`` in turn; the first row is what the start earned."""
    settings: dict[str, Any] = {"generations": (len(returns) - 1) // members, "teacher_weight": 0.5, **changes}
    state, services = run_of(
        folder,
        Table({}),
        self_distill=SelfDistillConfig(**settings),
        train=TrainConfig(gradient_steps=12, batch_size=8, members=members),
    )
    state.teacher_returns, state.random_returns = np.full(4, 10.0), np.zeros(4)
    state.stage = "self_distillation"
    waiting = iter(returns[1:])

    class NextReturns(dict):
        def __missing__(self, policy: Student) -> Sequence[float]:
            self[policy] = next(waiting)
            return self[policy]

    monkeypatch.setattr(services.rollouts, "returns", NextReturns())
    observations = torch.rand(60, 2, generator=generator()) * 10
    actions = torch.from_numpy(walk_best(observations.numpy()))
    logits = torch.nn.functional.one_hot(actions, 3).float() * 7
    state.dataset = Dataset(60, holdout=0.2, device=CPU)
    state.dataset.append(labelled(observations, ActionTargets({"logits": logits}, actions), episodes=torch.arange(60) // 5))
    student = random_student(Walk.observation_space, gym.spaces.Discrete(3), hidden_sizes=(16, 16))
    state.kept.append(Kept(student, np.array(returns[0]), "round 3"))
    return state, services


def through(state: State, services: Services) -> State:
    """All generations."""
    while state.stage == "self_distillation":
        state = self_distill(state, services)
    return state


def test_generations_are_kept_until_one_earns_less(tmp_path, monkeypatch):
    # paired differences: +1, 0 and -0.25: the third is refused and the fourth never made
    rows = [[5, 5, 5, 5], [5, 6, 7, 6], [6, 6, 6, 6], [6, 6, 6, 5], [9, 9, 9, 9]]
    state, services = series(tmp_path, monkeypatch, rows)
    through(state, services)
    found = [(record.number, record.paired_difference, record.kept) for record in state.records_of("generation")]
    assert found == [(1, 1.0, True), (2, 0.0, True), (3, -0.25, False)]
    assert state.kept[-1].origin == "generation 2"
    assert state.kept[-1].returns.tolist() == [6, 6, 6, 6]
    assert [record.validation_retention for record in state.records_of("generation")] == [0.6, 0.6, 0.575]
    assert state.gradient_steps == 3 * 12
    assert "refused" in state.records_of("generation")[2].figures()
    assert "kept" in state.records_of("generation")[0].figures()
    assert services.tracker.seen["self_distill/paired_difference"] == (-0.25, 3)  # type: ignore[attr-defined]
    assert services.tracker.seen["self_distill_steps/learning_rate"] == (0.0, 36)  # type: ignore[attr-defined]
    assert [kept.origin for kept in state.kept] == ["round 3", "generation 1", "generation 2"]
    assert state.stage == "polish"


def test_the_best_member_is_the_generation(tmp_path, monkeypatch):
    # over the first two seeds 2, 6 and 7: the last two play on, and over all four they earn 6 and 4
    state, services = series(tmp_path, monkeypatch, [[5, 5, 5, 5], [2, 2, 9, 9], [6, 6, 6, 6], [7, 7, 1, 1]], members=3)
    through(state, services)
    assert [(record.validation_return_mean, record.kept) for record in state.records_of("generation")] == [(6.0, True)]
    weights = [student.linears[0].weight for student in services.rollouts.returns]  # type: ignore[attr-defined]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 3
    assert torch.equal(state.kept[-1].student.linears[0].weight, weights[1])


def test_a_first_generation_that_is_refused_leaves_the_start(tmp_path, monkeypatch):
    state, services = series(tmp_path, monkeypatch, [[5, 5, 5, 5], [4, 5, 5, 5], [9, 9, 9, 9]])
    through(state, services)
    assert [kept.origin for kept in state.kept] == ["round 3"]
    assert len(state.records_of("generation")) == 1
    assert state.gradient_steps == 12


def test_without_generations_nothing_is_done(tmp_path, monkeypatch):
    state, services = series(tmp_path, monkeypatch, [[5, 5, 5, 5]])
    through(state, services)
    assert [kept.origin for kept in state.kept] == ["round 3"]
    assert state.records == []
    assert state.gradient_steps == state.evaluation_env_steps == 0


def test_generations_have_weights_of_their_own_and_can_be_repeated(tmp_path, monkeypatch):
    students = []
    for _ in range(2):
        state, services = series(tmp_path, monkeypatch, [[1] * 4, [2] * 4, [3] * 4], gradient_steps=7)
        through(state, services)
        students.append(list(services.rollouts.returns))  # type: ignore[attr-defined]
        assert state.gradient_steps == 14
    (first, second), (first_again, second_again) = students
    assert torch.equal(first.linears[0].weight, first_again.linears[0].weight)
    assert torch.equal(second.linears[0].weight, second_again.linears[0].weight)
    assert not torch.equal(first.linears[0].weight, second.linears[0].weight)


@pytest.mark.parametrize("ensemble", [False, True])
def test_the_last_generation_teaches_or_all_of_them(ensemble, tmp_path, monkeypatch):
    state, services = series(tmp_path, monkeypatch, [[1] * 4, [2] * 4, [3] * 4], ensemble=ensemble)
    asked: list[tuple[int, float]] = []

    def spy(objective: Objective, mentors: list[Student], weight: float, *rows: Any) -> ActionTargets:
        asked.append((len(mentors), weight))
        return mix_targets(objective, mentors, weight, *rows)

    monkeypatch.setattr("policy_distill.pipeline.self_distillation.mix_targets", spy)
    through(state, services)
    mentors = 2 if ensemble else 1
    assert asked == [(1, 0.5), (1, 0.5), (mentors, 0.5), (mentors, 0.5)]  # each about the rows trained on and those held out


def test_a_pupil_of_a_bad_start_follows_the_teacher_as_far_as_it_has_a_say(tmp_path, monkeypatch):
    """With weight 1 the generation learns what the teacher says; with weight 0 what the start says, which is always the same action."""
    agreements = []
    for weight in (1.0, 0.0):
        state, services = series(tmp_path, monkeypatch, [[1] * 4, [2] * 4], teacher_weight=weight, gradient_steps=800)
        start = Student(Architecture(Walk.observation_space, gym.spaces.Discrete(3), (16, 16)))
        with torch.no_grad():
            start.linears[-1].weight.zero_()
            start.linears[-1].bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
        state.kept = [Kept(start.eval(), np.ones(4), "round 1")]
        through(state, services)
        observations, targets = rows_of(state.dataset)
        agreements.append(float((state.kept[-1].student(observations).argmax(-1) == targets.actions).float().mean()))
    assert agreements[0] > 0.9
    assert agreements[1] < 0.4
