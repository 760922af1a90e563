"""The trainer against independent oracles: torch's Adam and autograd, the formulas of the schedule and the average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from policy_distill.config import (
    FeatureConfig,
    LossConfig,
    MemberConfig,
    RelationConfig,
    RequestError,
    TrainConfig,
    TrainingFault,
)
from policy_distill.losses.objective import Objective
from policy_distill.policies import divergences as losses
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.families import DiagGaussian, Family, family_of
from policy_distill.policies.student import Student
from policy_distill.training.batches import CHUNK_STEPS
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.trainer import Trainer, TrainingReport
from tests.small_worlds import generator, labelled, random_transitions, rows_of

CPU = torch.device("cpu")
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

    def total(self, terms: Mapping[str, Tensor], *, progress: float = 1.0) -> Tensor:
        return 1e-8 * super().total(terms, progress=progress)


# Steps.


@pytest.mark.parametrize("objective", [Objective, Scaled])
@pytest.mark.parametrize("loss", ["kl", "regression"])
def test_training_is_torch_s_adam_on_the_same_batches(loss, objective, monkeypatch):
    """An ordinary module, torch.distributions, torch.optim.Adam and LambdaLR, given the batches that the trainer drew."""
    config = TrainConfig(gradient_steps=30, batch_size=16, learning_rate=0.01, average_decay=0.0)
    space = ACTED[0] if loss == "kl" else BOX
    dataset, trainer = dataset_of(space), trainer_of(space, config, LossConfig(kind=loss, regression="squared"))
    trainer.objective.__class__ = objective
    if objective is Scaled:  # the written-out gradients know the usual units alone
        monkeypatch.setattr("policy_distill.losses.analytic_gradients.written_out", lambda objective: False)
    oracle = trainer.stack.member(0).requires_grad_()
    adam = torch.optim.Adam(oracle.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5 * (1 + math.cos(math.pi * step / 30)))
    draws = generator(7)
    trainer.run(dataset, 30)
    for _ in range(30):
        observations, targets = dataset.take(dataset.draw(1, 16, [draws])[0])
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


def test_what_is_left_of_the_schedules_can_pass_in_fewer_steps():
    config = TrainConfig(gradient_steps=40, batch_size=4, learning_rate=0.01)
    dataset, trainer = dataset_of(ACTED[0]), trainer_of(ACTED[0], config)
    trainer.run(dataset, 20)
    trainer.finish_in(10)
    found = [(trainer.progress, trainer.learning_rate)]
    for _ in range(2):
        trainer.run(dataset, 5)
        found.append((trainer.progress, trainer.learning_rate))
    # from the middle of the cosine to its end: 0.01 / 2 * (1 + cos(pi * (1/2, 3/4, 1)))
    assert [progress for progress, _ in found] == [0.5, 0.75, 1.0]
    assert [rate for _, rate in found] == pytest.approx([0.005, 0.005 * (1 - math.sqrt(0.5)), 0.0], abs=1e-12)
    trainer.finish_in(0)
    assert trainer.learning_rate == 0.0


def test_the_first_step_is_the_learning_rate_against_the_gradient_s_sign():
    # Adam with m = g and v = g^2 after unbiasing: w - lr * g / |g|
    trainer = trainer_of(ACTED[0], TrainConfig(gradient_steps=1000, batch_size=32, learning_rate=0.01))
    before = trainer.stack.flat.clone()
    trainer.run(dataset_of(ACTED[0]), 1)
    gradient = trainer.stack.gradient
    large = gradient.abs() > 32 * 1e-4  # the gradient's sum over the batch
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


@pytest.mark.parametrize("kind", ["kl", "nll"])
def test_exactly_as_many_steps_are_taken_as_were_asked_for(kind, monkeypatch):
    loss = LossConfig(kind=kind)
    dataset, trainer = dataset_of(ACTED[0]), trainer_of(ACTED[0], TrainConfig(gradient_steps=100, batch_size=8), loss)
    drawn = 0
    draw = dataset.draw

    def spy(num_steps: int, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        nonlocal drawn
        drawn += num_steps
        assert (batch_size, len(generators)) == (8, 1)
        return draw(num_steps, batch_size, generators)

    monkeypatch.setattr(dataset, "draw", spy)
    trainer.run(dataset, CHUNK_STEPS + 13)
    trainer.run(dataset, 4)
    assert trainer.gradient_steps == drawn == CHUNK_STEPS + 17
    generator_now, as_if = trainer.generators[0], generator(7)
    for _ in range(drawn):
        draw(1, 8, [as_if])
        if kind == "nll":
            torch.rand(8, 4, generator=as_if)
    assert torch.equal(generator_now.get_state(), as_if.get_state())


@pytest.mark.parametrize("loss", [{"kind": "kl"}, {"kind": "nll"}, {"temperature": 0.5, "temperature_end": 3.0}], ids=str)
def test_many_short_runs_are_one_long_one(loss):
    config = TrainConfig(gradient_steps=60, batch_size=8)
    dataset = dataset_of(ACTED[0])
    one, several = (trainer_of(ACTED[0], config, LossConfig(**loss)) for _ in range(2))
    one.run(dataset, 60)
    for steps in (1, 9, 50):
        several.run(dataset, steps)
    assert torch.equal(one.stack.flat, several.stack.flat)
    assert torch.equal(one.averaged, several.averaged)


def test_the_reported_losses_are_means_over_the_steps():
    dataset, trainer, again = dataset_of(ACTED[0]), *(trainer_of(ACTED[0], TrainConfig(gradient_steps=10, batch_size=8)) for _ in range(2))
    singles = [again.run(dataset, 1)["forward_kl_nats"] for _ in range(10)]
    assert trainer.run(dataset, 10) == {"forward_kl_nats": pytest.approx(np.mean(singles), rel=1e-5)}


def test_how_training_goes_is_reported_on_the_way_and_changes_nothing():
    config = TrainConfig(gradient_steps=80 * CHUNK_STEPS, batch_size=4)
    dataset, trainer, silent, again = dataset_of(ACTED[0]), *(trainer_of(ACTED[0], config) for _ in range(3))
    told: list[TrainingReport] = []
    whole = [trainer.run(dataset, 40 * CHUNK_STEPS, told.append) for _ in range(2)]
    assert [silent.run(dataset, 40 * CHUNK_STEPS) for _ in range(2)] == whole
    assert torch.equal(trainer.stack.flat, silent.stack.flat)
    # twenty in each run, every second chunk
    assert [report.gradient_steps for report in told] == [2 * CHUNK_STEPS * (number + 1) for number in range(40)]
    assert {report.num_steps for report in told} == {2 * CHUNK_STEPS}
    for report in told:
        assert again.run(dataset, 2 * CHUNK_STEPS) == {"forward_kl_nats": pytest.approx(report.losses["forward_kl_nats"], rel=1e-5)}
        assert report.learning_rate == again.learning_rate
    for first, losses_of_run in zip((0, 20), whole, strict=True):
        mean = np.mean([report.losses["forward_kl_nats"] for report in told[first : first + 20]])
        assert losses_of_run == {"forward_kl_nats": pytest.approx(mean, rel=1e-6)}


def test_a_run_of_few_chunks_reports_after_each_and_at_its_end():
    trainer = trainer_of(ACTED[0], TrainConfig(gradient_steps=1000, batch_size=4))
    told: list[TrainingReport] = []
    trainer.run(dataset_of(ACTED[0]), CHUNK_STEPS + 5, told.append)
    assert [(report.gradient_steps, report.num_steps) for report in told] == [(CHUNK_STEPS, CHUNK_STEPS), (CHUNK_STEPS + 5, 5)]


@pytest.mark.parametrize("space", ACTED, ids=str)
@pytest.mark.parametrize("kind", ["auto", "kl"])
def test_every_family_is_learnt(space, kind):
    config = TrainConfig(gradient_steps=400, batch_size=64, learning_rate=0.02)
    dataset, trainer = dataset_of(space, 60, holdout=0.2), trainer_of(space, config, LossConfig(kind=kind))
    first = trainer.run(dataset, 1)
    trainer.run(dataset, 398)
    last = trainer.run(dataset, 1)
    assert all(last[name] < 0.5 * first[name] for name in first), (first, last)


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


VARIED = (
    MemberConfig(),
    MemberConfig(learning_rate=0.03),
    MemberConfig(temperature=3.0, learning_rate=0.001),
    MemberConfig(hard_weight=0.75, temperature=0.5),
)


@pytest.mark.parametrize(
    "loss",
    [LossConfig(), LossConfig(temperature=2.0, temperature_end=1.0, hard_weight=0.25), LossConfig(divergence="reverse_kl")],
    ids=["kl", "softened", "autograd"],
)
@pytest.mark.parametrize("space", ACTED[:4], ids=str)
def test_a_member_with_settings_of_its_own_is_its_solo_run(space, loss):
    config = TrainConfig(gradient_steps=30, batch_size=4)
    dataset = dataset_of(space, 1)
    seeds = tuple(range(1, 6))  # the fifth has the first one's settings
    together = trainer_of(space, dataclasses.replace(config, vary=VARIED), loss, seeds=seeds)
    together.run(dataset, 30)
    begun = trainer_of(space, config, loss, seeds=seeds).stack.flat
    for index, seed in enumerate(seeds):
        own = VARIED[index % len(VARIED)]
        rate = own.learning_rate or config.learning_rate
        told = {name: getattr(own, name) for name in ("temperature", "hard_weight") if getattr(own, name) is not None}
        alone = trainer_of(space, dataclasses.replace(config, learning_rate=rate), dataclasses.replace(loss, **told), seeds=(seed,))
        alone.run(dataset, 30)
        assert (alone.stack.flat[0] - begun[index]).abs().max() > 5 * rate
        torch.testing.assert_close(together.stack.flat[index], alone.stack.flat[0], rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(together.averaged[index], alone.averaged[0], rtol=1e-3, atol=2e-5)


def test_gaussian_members_with_temperatures_of_their_own():
    config = TrainConfig(gradient_steps=30, batch_size=4)
    dataset = dataset_of(BOX, 1)
    together = trainer_of(BOX, dataclasses.replace(config, vary=VARIED[:3]), LossConfig(kind="kl"), seeds=(1, 2, 3))
    together.run(dataset, 30)
    alone = trainer_of(BOX, dataclasses.replace(config, learning_rate=0.001), LossConfig(kind="kl", temperature=3.0), seeds=(3,))
    alone.run(dataset, 30)
    torch.testing.assert_close(together.stack.flat[2], alone.stack.flat[0], rtol=1e-3, atol=2e-5)


def test_a_member_s_own_loss_must_suit_the_teacher():
    with pytest.raises(RequestError, match="hard labels go with the divergence of discrete actions alone"):
        trainer_of(BOX, TrainConfig(vary=(MemberConfig(hard_weight=0.5),)), LossConfig(kind="kl"))


def test_validation_is_of_the_member_s_own_loss():
    dataset = dataset_of(ACTED[0], 200, holdout=0.2)
    trainer = trainer_of(ACTED[0], TrainConfig(gradient_steps=50, vary=VARIED), seeds=(0, 1, 2, 3))
    trainer.run(dataset, 5)
    student = trainer.student(2)
    held_out = dataset.held_out(10_000)
    assert held_out is not None
    expected = losses.forward_kl(held_out[1].parameters["logits"], student(held_out[0]), temperature=3.0).mean()
    assert trainer.validate(dataset, student, 2) == {"forward_kl_nats": pytest.approx(float(expected), rel=1e-5)}
    assert trainer.validate(dataset, student, 3).keys() == {"forward_kl_nats", "hard_cross_entropy_nats"}


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("space", ACTED, ids=str)
@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(temperature=2.0), LossConfig(kind="nll")], ids=["plain", "softened", "autograd"])
def test_training_on_a_gpu_is_training_on_the_cpu(space, loss):
    """A dataset of one row makes every batch the same; drawn actions differ between devices, so that nll is compared in its loss."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU: there is nothing to compare the CPU with")
    vary = VARIED[:3] if loss.kind == "auto" else ()
    config = TrainConfig(gradient_steps=40, batch_size=8, vary=vary)
    found = []
    for device in (CPU, torch.device("cuda")):
        dataset = Dataset(4, holdout=0.0, device=device)
        made = random_transitions(space, 1)
        dataset.append(labelled(made.observations, made.targets, episodes=torch.zeros(1, dtype=torch.int64)))
        stack = StudentStack(
            Architecture(SEEN, space, (16, 16), "tanh"),
            generators=[generator(seed) for seed in range(3)],
            mean=torch.zeros(3, device=device),
            scale=torch.ones(3, device=device),
        )
        draws = [torch.Generator(device).manual_seed(seed) for seed in range(3)]
        trainer = Trainer(stack, Objective(loss, family_of(space)), config, draws)
        metrics = trainer.run(dataset, 40)
        found.append((stack.flat.cpu(), trainer.averaged.cpu(), metrics))
    (flat, averaged, metrics), (other, other_averaged, other_metrics) = found
    if loss.kind == "auto":
        torch.testing.assert_close(flat, other, rtol=2e-3, atol=2e-4)
        torch.testing.assert_close(averaged, other_averaged, rtol=2e-3, atol=2e-4)
    assert metrics.keys() == other_metrics.keys()
    for name, value in metrics.items():
        assert other_metrics[name] == pytest.approx(value, rel=1e-2 if loss.kind == "auto" else 0.3, abs=1e-3)


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
    trainer = trainer_of(BOX, TrainConfig(), LossConfig(kind="regression"))
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


# Hints and relations.


def hinted_dataset(rows: int = 60) -> Dataset:
    """Transitions of a teacher one layer of which was recorded: four numbers that are a fixed function of the observation."""
    made = random_transitions(ACTED[0], rows)
    layer = made.observations @ torch.randn(3, 4, generator=generator(5))
    dataset = Dataset(rows, holdout=0.0, device=CPU)
    dataset.append(labelled(made.observations, ActionTargets({**made.targets.parameters, "layer:body.1": layer}, made.targets.actions)))
    return dataset


def hinted_trainer(loss: LossConfig, **changes: Any) -> Trainer:
    config = TrainConfig(gradient_steps=400, batch_size=32, learning_rate=0.01, average_decay=0.0)
    trainer = trainer_of(ACTED[0], dataclasses.replace(config, **changes), loss)
    stack = StudentStack(
        trainer.stack.architecture, generators=[generator()], mean=trainer.student().mean, scale=trainer.student().scale,
        projections=[(8, 4)] if loss.features.weight else [],
    )  # fmt: skip
    return Trainer(stack, trainer.objective, trainer.config, [generator(7)])


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_a_hint_is_learnt_through_its_projection_which_stays_behind(distance):
    hints = FeatureConfig(weight=1.0, layers={"body.1": "hidden.0"}, distance=distance)
    dataset, trainer = hinted_dataset(), hinted_trainer(LossConfig(features=hints))
    first = trainer.run(dataset, 1)
    trainer.run(dataset, 398)
    last = trainer.run(dataset, 1)
    name = f"feature_{distance}_body.1"
    assert last[name] < 0.2 * first[name], (first, last)
    assert last["forward_kl_nats"] < 0.5 * first["forward_kl_nats"]
    assert sum(parameter.numel() for parameter in trainer.student().parameters()) == trainer.stack.architecture.params


def test_a_hint_reaches_the_hidden_layer_and_without_weight_nothing_changes():
    plain, weightless = LossConfig(), LossConfig(features=FeatureConfig(weight=0.0, layers={"body.1": "hidden.0"}))
    hinted = LossConfig(features=FeatureConfig(weight=5.0, layers={"body.1": "hidden.0"}))
    students = []
    for loss in (plain, weightless, hinted):
        trainer = hinted_trainer(loss)
        trainer.run(hinted_dataset(), 5)
        students.append(trainer.student().linears[0].weight)
    assert torch.equal(students[0], students[1])
    assert not torch.allclose(students[0], students[2], atol=1e-3)


@pytest.mark.parametrize("kind", ["distance", "angle", "similarity"])
def test_a_relation_is_learnt(kind):
    relations = RelationConfig(weight=1.0, kind=kind, layers={"body.1": "hidden.0"})
    dataset, trainer = hinted_dataset(), hinted_trainer(LossConfig(relations=relations))
    first = trainer.run(dataset, 10)
    trainer.run(dataset, 380)
    last = trainer.run(dataset, 10)
    assert last[f"relation_{kind}_body.1"] < 0.5 * first[f"relation_{kind}_body.1"], (first, last)


def test_the_gradient_of_hints_and_relations_is_autograd_s():
    """The written-out backward pass against one that autograd makes of the same stack as an ordinary module."""
    hints = FeatureConfig(weight=0.7, layers={"body.1": "hidden.0"})
    relations = RelationConfig(weight=0.3, layers={"body.1": "hidden.0", "output": "output"})
    dataset, trainer = hinted_dataset(), hinted_trainer(LossConfig(features=hints, relations=relations), batch_size=16)
    oracle = trainer.stack.member(0).requires_grad_()
    weight, bias = (leaf.detach().clone().requires_grad_() for leaf in trainer.stack.projections[0])
    trainer.run(dataset, 1)
    observations, targets = dataset.take(dataset.draw(1, 16, [generator(7)])[0])
    hidden = oracle.network[:2]((observations - oracle.mean) / oracle.scale)
    outputs = oracle.network[2](hidden)
    terms = trainer.objective.terms(
        outputs, torch.zeros(1, 1, 0), targets, layers={"hidden.0": hidden, "output": outputs}, projections=[(weight, bias)]
    )
    trainer.objective.total(terms).mean().backward()
    pieces: list[Any] = [piece for layer in oracle.linears for piece in (layer.weight.grad.T.reshape(-1), layer.bias.grad)]  # type: ignore[union-attr]
    expected = torch.cat([*pieces, weight.grad.flatten(), bias.grad.flatten()])  # type: ignore[union-attr]
    torch.testing.assert_close(trainer.stack.gradient[0] / 16, expected, rtol=1e-4, atol=1e-6)  # the sum over the batch


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_a_relation_beside_any_divergence_moves_the_hidden_layer_alone_and_keeps_the_term(divergence):
    relations = RelationConfig(weight=1.0, kind="similarity", layers={"body.1": "hidden.0"})
    gradients = []
    for loss in (LossConfig(divergence=divergence), LossConfig(divergence=divergence, relations=relations)):
        trainer = hinted_trainer(loss)
        found = trainer.run(hinted_dataset(), 1)
        divisor = 32 if divergence == "forward_kl" else 1  # the written-out gradient is the sum over the batch
        gradients.append((trainer.stack.gradient[0].clone() / divisor, found))
    (plain, alone), (related, both) = gradients
    assert both[f"{divergence}_nats"] == pytest.approx(alone[f"{divergence}_nats"], rel=1e-6)
    hidden = 4 * 8  # weights and biases of the first layer; the output layer's gradient does not see the relation
    assert not torch.allclose(plain[:hidden], related[:hidden], atol=1e-4)
    torch.testing.assert_close(plain[hidden:], related[hidden:])


def test_sampled_targets_lead_where_the_divergence_leads():
    dataset = dataset_of(ACTED[0], 60)
    trainer = trainer_of(ACTED[0], TrainConfig(gradient_steps=1500, batch_size=64, learning_rate=0.02), LossConfig(kind="nll"))
    trainer.run(dataset, 1500)
    observations, targets = rows_of(dataset)
    outputs = trainer.student()(observations)
    assert losses.forward_kl(targets.parameters["logits"], outputs).mean() < 0.1


def test_training_that_diverges_stops_and_names_loss_and_setting():
    trainer = trainer_of(
        BOX, TrainConfig(gradient_steps=40, batch_size=16, learning_rate=1e30), LossConfig(kind="regression", regression="squared")
    )
    with pytest.raises(
        TrainingFault,
        match=r"diverged: the loss action_error became (nan|inf) in gradient steps 0 to \d+; lower train\.learning_rate .*1e\+30",
    ):
        trainer.run(dataset_of(BOX), 40)


def test_weights_that_are_no_numbers_stop_it_too():
    trainer = trainer_of(BOX, TrainConfig(gradient_steps=4, batch_size=16))
    trainer.averaged[0, 0] = math.inf
    with pytest.raises(TrainingFault, match="weights became NaN or infinite"):
        trainer.run(dataset_of(BOX), 2)
