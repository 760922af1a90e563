"""The trainer against independent oracles: torch's Adam and autograd, the formulas of the schedule and the average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from policy_distill import losses
from policy_distill.actions import ActionTargets, Box, Categorical, Deterministic, DiagGaussian, Family, family_of
from policy_distill.config import LossConfig, RequestError, TrainConfig
from policy_distill.dataset import Dataset
from policy_distill.students import Architecture, Student, StudentStack
from policy_distill.train import Objective, Trainer
from tests.small_worlds import generator, labelled, random_transitions

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
"""Views into one flat tensor are strided where there is more than one member; torch remarks on it once."""
SEEN = gym.spaces.Box(-np.inf, np.inf, (3,))
BOX = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
ACTED = [gym.spaces.Discrete(4), gym.spaces.Discrete(3, start=2), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3), BOX]


def dataset_of(action_space: gym.Space, rows: int = 200, *, holdout: float = 0.0) -> Dataset:
    dataset = Dataset(rows, holdout=holdout, device=CPU)
    made = random_transitions(action_space, rows)
    dataset.append(labelled(made.observations, made.targets, episodes=torch.arange(rows) // 10))
    return dataset


def trainer_of(
    action_space: gym.Space,
    config: TrainConfig,
    loss: LossConfig | None = None,
    *,
    seeds: tuple[int, ...] = (0,),
    family: Family | None = None,
) -> Trainer:
    architecture = Architecture(SEEN, action_space, (8,), "tanh")
    mean, scale = torch.tensor([0.5, -0.5, 0.0]), torch.tensor([1.0, 2.0, 0.5])
    stack = StudentStack(architecture, generators=[generator(seed) for seed in seeds], mean=mean, scale=scale)
    return Trainer(
        stack, Objective(loss or LossConfig(), family or family_of(action_space)), config, [generator(7 + seed) for seed in seeds]
    )


class Scaled(Objective):
    """The same loss in tiny units, so that Adam's epsilon counts."""

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        return 1e-8 * super().total(terms)


# Steps.


@pytest.mark.parametrize("objective", [Objective, Scaled])
@pytest.mark.parametrize("loss", ["kl", "regression"])
def test_training_is_torch_s_adam_on_the_same_batches(loss, objective):
    """An ordinary module, torch.distributions, torch.optim.Adam and LambdaLR, given the batches that the trainer drew."""
    config = TrainConfig(gradient_steps=30, batch_size=16, learning_rate=0.01, average_decay=0.0)
    space = ACTED[0] if loss == "kl" else BOX
    dataset, trainer = dataset_of(space), trainer_of(space, config, LossConfig(kind=loss, regression="squared"))
    trainer.objective.__class__ = objective
    oracle = trainer.stack.member(0).requires_grad_()
    adam = torch.optim.Adam(oracle.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5 * (1 + math.cos(math.pi * step / 30)))
    draws = generator(7)
    trainer.run(dataset, 30)
    for _ in range(30):
        observations, targets = dataset.sample(16, [draws])
        observations = observations[0]
        targets = ActionTargets({name: value[0] for name, value in targets.parameters.items()}, targets.actions[0])
        outputs = oracle(observations)
        if loss == "kl":
            teacher, student = (torch.distributions.Categorical(logits=logits) for logits in (targets.parameters["logits"], outputs))
            value = torch.distributions.kl_divergence(teacher, student).mean()
        else:
            value = losses.bounded_error((targets.actions - torch.tensor([2.0, 0.5])) / torch.tensor([4.0, 0.5]), outputs).square().mean()
        adam.zero_grad()
        (value * (1e-8 if objective is Scaled else 1.0)).backward()
        adam.step()
        schedule.step()
    for mine, theirs in zip(trainer.student().parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-5)


def test_the_learning_rate_falls_along_half_a_cosine_to_zero():
    config = TrainConfig(gradient_steps=40, batch_size=4, learning_rate=0.01)
    dataset, trainer = dataset_of(ACTED[0]), trainer_of(ACTED[0], config)
    rates = [trainer.learning_rate]
    for _ in range(4):
        trainer.run(dataset, 10)
        rates.append(trainer.learning_rate)
    # 0.01 / 2 * (1 + cos(pi * (0, 1/4, 1/2, 3/4, 1)))
    root = math.sqrt(0.5)
    assert rates == pytest.approx([0.01, 0.005 * (1 + root), 0.005, 0.005 * (1 - root), 0.0], abs=1e-12)
    before = trainer.stack.flat.clone()
    trainer.run(dataset, 3)
    assert trainer.learning_rate == 0.0
    assert torch.equal(trainer.stack.flat, before)


def test_the_first_step_is_the_learning_rate_against_the_gradient_s_sign():
    # Adam with m = g and v = g^2 after unbiasing: w - lr * g / |g|
    trainer = trainer_of(ACTED[0], TrainConfig(gradient_steps=1000, batch_size=32, learning_rate=0.01))
    before = trainer.stack.flat.clone()
    trainer.run(dataset_of(ACTED[0]), 1)
    gradient = trainer.stack.gradient
    large = gradient.abs() > 1e-4
    assert large.float().mean() > 0.8
    torch.testing.assert_close((trainer.stack.flat - before)[large], -0.01 * gradient.sign()[large], rtol=1e-2, atol=0)


def test_the_average_is_the_moving_one_with_its_warm_up():
    decay = 0.9
    config = TrainConfig(gradient_steps=200, batch_size=8, average_decay=decay)
    dataset, trainer = dataset_of(ACTED[0]), trainer_of(ACTED[0], config)
    average = trainer.stack.flat.double().clone()
    for step in range(1, 121):
        trainer.run(dataset, 1)
        # decay_t = min(0.9, (1 + t) / (10 + t)), which is 2/11 at t = 1 and reaches 0.9 at t = 80
        current = min(decay, (1 + step) / (10 + step))
        average = current * average + (1 - current) * trainer.stack.flat.double()
    torch.testing.assert_close(trainer.averaged.double(), average, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(trainer.averaged, trainer.stack.flat, atol=1e-4)
    weight = trainer.student().linears[0].weight
    torch.testing.assert_close(weight, trainer.averaged[0, : weight.numel()].view(3, 8).T)


def test_without_averaging_the_student_has_the_last_weights():
    trainer = trainer_of(ACTED[0], TrainConfig(gradient_steps=20, batch_size=8, average_decay=0.0))
    trainer.run(dataset_of(ACTED[0]), 20)
    weight = trainer.student().linears[0].weight
    assert torch.equal(weight, trainer.stack.flat[0, : weight.numel()].view(3, 8).T)


def test_exactly_as_many_steps_are_taken_as_were_asked_for(monkeypatch):
    dataset, trainer = dataset_of(ACTED[0]), trainer_of(ACTED[0], TrainConfig(gradient_steps=100, batch_size=8))
    calls: list[tuple[int, int]] = []
    sample = dataset.sample

    def spy(batch_size: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, ActionTargets]:
        calls.append((len(generators), batch_size))
        return sample(batch_size, generators)

    monkeypatch.setattr(dataset, "sample", spy)
    trainer.run(dataset, 13)
    trainer.run(dataset, 4)
    assert trainer.gradient_steps == 17
    assert calls == [(1, 8)] * 17


def test_many_short_runs_are_one_long_one():
    config = TrainConfig(gradient_steps=30, batch_size=8)
    dataset = dataset_of(ACTED[0])
    one, several = trainer_of(ACTED[0], config), trainer_of(ACTED[0], config)
    one.run(dataset, 30)
    for steps in (1, 9, 20):
        several.run(dataset, steps)
    assert torch.equal(one.stack.flat, several.stack.flat)
    assert torch.equal(one.averaged, several.averaged)


def test_the_reported_losses_are_means_over_the_steps():
    dataset, trainer, again = dataset_of(ACTED[0]), *(trainer_of(ACTED[0], TrainConfig(gradient_steps=10, batch_size=8)) for _ in range(2))
    singles = [again.run(dataset, 1)["forward_kl_nats"] for _ in range(10)]
    assert trainer.run(dataset, 10) == {"forward_kl_nats": pytest.approx(np.mean(singles), rel=1e-5)}


@pytest.mark.parametrize("space", ACTED, ids=str)
@pytest.mark.parametrize("kind", ["auto", "kl"])
def test_every_family_is_learnt(space, kind):
    config = TrainConfig(gradient_steps=400, batch_size=64, learning_rate=0.02)
    dataset, trainer = dataset_of(space, 60, holdout=0.2), trainer_of(space, config, LossConfig(kind=kind))
    first = trainer.run(dataset, 1)
    trainer.run(dataset, 398)
    last = trainer.run(dataset, 1)
    assert all(last[name] < 0.5 * first[name] for name in first), (first, last)


@pytest.mark.parametrize("regression", ["squared", "absolute", "huber"])
def test_each_regression_is_the_one_named(regression):
    targets = ActionTargets({}, torch.tensor([[[6.0, 0.5]]]))  # (1, 0) in box units
    objective = Objective(LossConfig(regression=regression), Deterministic(Box((-2.0, 0.0), (6.0, 1.0))))
    terms = objective.terms(torch.tensor([[[0.5, 0.05]]]), torch.zeros(1, 1, 2), targets)
    # errors -0.5 and 0.05: squares 0.25, 0.0025; absolute; huber 0.45, 0.0125
    expected = {"squared": 0.12625, "absolute": 0.275, "huber": 0.23125}[regression]
    assert terms["action_error"].shape == (1, 1)
    assert objective.total(terms).item() == pytest.approx(expected)


# The total.


def test_alpha_and_temperature_weigh_the_total_by_hand():
    # T = 2, alpha = 0.25: teacher (ln 9, 0), student (ln 4, 0): KL at T = 2 is 3/4 ln(9/8) + 1/4 ln(3/4); CE = -ln(4/5)
    targets = ActionTargets({"logits": torch.tensor([[[math.log(9), 0.0]]])}, torch.tensor([[0]]))
    objective = Objective(LossConfig(temperature=2.0, hard_weight=0.25), Categorical(2))
    terms = objective.terms(torch.tensor([[[math.log(4), 0.0]]]), torch.zeros(1, 1, 0), targets)
    kl = 0.75 * math.log(9 / 8) + 0.25 * math.log(3 / 4)
    assert {name: value.item() for name, value in terms.items()} == {
        "forward_kl_nats": pytest.approx(kl, abs=1e-6),
        "hard_cross_entropy_nats": pytest.approx(math.log(5 / 4), abs=1e-6),
    }
    assert objective.total(terms).item() == pytest.approx(0.25 * math.log(5 / 4) + 0.75 * 4 * kl, abs=1e-6)


def test_without_alpha_the_total_is_the_squared_temperature_times_the_kl():
    objective = Objective(LossConfig(temperature=3.0), Categorical(4))
    terms = {"forward_kl_nats": torch.tensor([[0.5]])}
    assert objective.total(terms).item() == 4.5


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_terms_are_one_value_per_sample_and_the_kl_is_zero_for_the_teacher_itself(space):
    family = family_of(space)
    config = LossConfig(kind="kl", temperature=2.0, hard_weight=0.0 if isinstance(family, DiagGaussian) else 0.5)
    targets = random_transitions(space, 12).targets
    stacked = ActionTargets(
        {name: value.unflatten(0, (2, 6)) for name, value in targets.parameters.items()}, targets.actions.unflatten(0, (2, 6))
    )
    outputs = stacked.parameters["mean" if isinstance(family, DiagGaussian) else "logits"]
    objective = Objective(config, family)
    terms = objective.terms(outputs, stacked.parameters.get("log_std", torch.zeros(2, 1, 0)), stacked)
    assert all(value.shape == (2, 6) for value in terms.values())
    torch.testing.assert_close(terms["forward_kl_nats"], torch.zeros(2, 6), atol=1e-5, rtol=0)


def test_hard_labels_of_components_and_switches_are_summed():
    several = Objective(LossConfig(hard_weight=1.0), family_of(ACTED[2]))
    # components of 2 and 3 equally likely choices: ln 2 + ln 3
    terms = several.terms(
        torch.zeros(1, 1, 5), torch.zeros(1, 1, 0), ActionTargets({"logits": torch.zeros(1, 1, 5)}, torch.tensor([[[1, 2]]]))
    )
    assert terms["hard_cross_entropy_nats"].item() == pytest.approx(math.log(6), abs=1e-6)
    # switches with logit ln 3: on costs -ln(3/4), off -ln(1/4)
    switches = Objective(LossConfig(hard_weight=1.0), family_of(ACTED[3]))
    outputs = torch.full((1, 1, 3), math.log(3))
    terms = switches.terms(outputs, torch.zeros(1, 1, 0), ActionTargets({"logits": outputs}, torch.tensor([[[1, 0, 1]]])))
    assert terms["hard_cross_entropy_nats"].item() == pytest.approx(2 * math.log(4 / 3) + math.log(4), abs=1e-6)


def test_hard_labels_are_counted_from_the_start_of_the_space():
    objective = Objective(LossConfig(hard_weight=1.0), Categorical(3, start=5))
    logits = torch.tensor([[[0.0, 0.0, 50.0]]])
    terms = objective.terms(logits, torch.zeros(1, 1, 0), ActionTargets({"logits": logits}, torch.tensor([[7]])))
    assert terms["hard_cross_entropy_nats"].item() == pytest.approx(0.0, abs=1e-6)


def test_q_values_are_scaled_by_their_own_gaps():
    # gaps 2, 4, 6: median 4; fraction 0.5: a difference of 2 is one nat
    q_values = torch.tensor([[[10.0, 12.0], [0.0, 4.0], [6.0, 0.0]]])
    targets = ActionTargets({"q_values": q_values}, q_values.argmax(-1))
    objective = Objective(LossConfig(q_gap_fraction=0.5), Categorical(2))
    objective.calibrate(ActionTargets({"q_values": q_values[0]}, targets.actions[0]))
    assert objective.q_gap == 2.0
    same = torch.tensor([[[-1.0, 0.0], [-2.0, 0.0], [0.0, -3.0]]])
    torch.testing.assert_close(objective.terms(same, torch.zeros(1, 1, 0), targets)["forward_kl_nats"], torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("config", "family", "message"),
    [
        (LossConfig(kind="regression"), Categorical(2), "loss.kind is 'regression'.*discrete: use 'kl'"),
        (LossConfig(kind="kl"), Deterministic(Box((-1.0,), (1.0,))), "loss.kind is 'kl'.*use 'regression'"),
        (LossConfig(kind="kl"), DiagGaussian(Box((-1.0,), (1.0,)), squashed=True), "loss.kind is 'kl'.*use 'regression'"),
        (LossConfig(hard_weight=0.5), Deterministic(Box((-1.0,), (1.0,))), "loss.hard_weight is 0.5.*set it to 0"),
        (LossConfig(kind="kl", hard_weight=0.5), DiagGaussian(Box((-1.0,), (1.0,))), "loss.hard_weight is 0.5.*set it to 0"),
    ],
)
def test_a_loss_that_does_not_suit_the_teacher_is_refused(config, family, message):
    with pytest.raises(RequestError, match=message):
        Objective(config, family)


# Stacks.


def test_members_of_a_stack_learn_as_alone_on_the_same_batches():
    """A dataset of one row makes every batch the same, whoever draws it."""
    config = TrainConfig(gradient_steps=20, batch_size=4)
    dataset = dataset_of(BOX, 1)
    together = trainer_of(BOX, config, LossConfig(kind="kl"), seeds=(1, 2, 3))
    together.run(dataset, 20)
    for index, seed in enumerate((1, 2, 3)):
        alone = trainer_of(BOX, config, LossConfig(kind="kl"), seeds=(seed,))
        alone.run(dataset, 20)
        torch.testing.assert_close(together.stack.flat[index], alone.stack.flat[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.averaged[index], alone.averaged[0], rtol=1e-4, atol=1e-5)


def test_member_k_of_a_stack_is_its_solo_run():
    config = TrainConfig(gradient_steps=20, batch_size=4)
    dataset = dataset_of(ACTED[0])
    together, alone = trainer_of(ACTED[0], config, seeds=(1, 2)), trainer_of(ACTED[0], config, seeds=(1,))
    together.run(dataset, 20)
    alone.run(dataset, 20)
    torch.testing.assert_close(together.stack.flat[0], alone.stack.flat[0], rtol=1e-4, atol=1e-5)


# After training.


def test_validation_reads_held_out_rows_alone():
    dataset, trainer = dataset_of(ACTED[0], 200, holdout=0.2), trainer_of(ACTED[0], TrainConfig(gradient_steps=50))
    trainer.run(dataset, 5)
    student = trainer.student()
    held_out = dataset.held_out(10_000)
    assert held_out is not None
    expected = losses.forward_kl(held_out[1].parameters["logits"], student(held_out[0])).mean()
    assert trainer.validate(dataset, student) == {"forward_kl_nats": pytest.approx(float(expected), rel=1e-5)}
    assert trainer.validate(dataset_of(ACTED[0], 20), student) == {}


def test_the_fitted_standard_deviation_is_the_forward_kl_s_minimum():
    # E[teacher's variance + squared difference] for a student whose mean is 0: 0.3^2 + 0.4^2 = 0.5^2 in box units
    box = Box.from_space(BOX)
    mean = torch.tensor([[0.4, -0.4]]).expand(50, -1)
    parameters = {"mean": mean, "log_std": torch.full((50, 2), math.log(0.3))}
    dataset = Dataset(50, holdout=0.0, device=CPU)
    dataset.append(labelled(torch.zeros(50, 3), ActionTargets(parameters, box.to_environment(mean))))
    trainer = trainer_of(BOX, TrainConfig())
    student = Student(Architecture(SEEN, BOX, ()))
    torch.nn.init.zeros_(student.linears[0].weight)
    torch.nn.init.zeros_(student.linears[0].bias)
    trainer.fit_log_std(student, dataset)
    torch.testing.assert_close(student.log_std, torch.full((2,), math.log(0.5)), rtol=1e-4, atol=1e-4)
    # it is a minimum: a step to either side costs more
    costs = [
        losses.gaussian_forward_kl(mean, parameters["log_std"], torch.zeros(50, 2), (student.log_std + step).expand(50, -1)).mean()
        for step in (-0.05, 0.0, 0.05)
    ]
    assert costs[1] < min(costs[0], costs[2])


def test_a_squashed_teacher_s_variance_is_not_added():
    squashed = DiagGaussian(Box.from_space(BOX), squashed=True)
    parameters = {"mean": torch.zeros(50, 2), "log_std": torch.zeros(50, 2)}
    dataset = Dataset(50, holdout=0.0, device=CPU)
    dataset.append(labelled(torch.zeros(50, 3), ActionTargets(parameters, torch.tensor([[4.0, 0.5]]).expand(50, -1))))
    trainer = trainer_of(BOX, TrainConfig(), family=squashed)
    student = Student(Architecture(SEEN, BOX, ()))
    torch.nn.init.zeros_(student.linears[0].weight)
    torch.nn.init.zeros_(student.linears[0].bias)
    trainer.fit_log_std(student, dataset)
    # differences 0.5 and 0, the latter floored at a variance of 1e-6
    torch.testing.assert_close(student.log_std, torch.tensor([math.log(0.5), math.log(1e-3)]), rtol=1e-4, atol=1e-4)


def test_the_standard_deviation_that_a_kl_trained_is_left_alone():
    trainer = trainer_of(BOX, TrainConfig(), LossConfig(kind="kl"))
    student = trainer.student()
    trainer.fit_log_std(student, dataset_of(BOX))
    assert (student.log_std == -1).all()
