"""The written-out gradients against autograd through ``Objective``: slopes and values, for every loss that has them."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policy_distill.config import FeatureConfig, LossConfig, RelationConfig
from policy_distill.losses.analytic_gradients import Gradient, gradient_of, written_out
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.families import Bernoulli, Categorical, Deterministic, DiagGaussian, Family, MultiCategorical
from tests.small_worlds import generator

STEPS, MEMBERS, BATCH = 3, 2, 7
PROGRESS = [0.25, 0.5, 1.0]
BOX = Box.from_space(gym.spaces.Box(np.array([-2, 0, -np.inf], np.float32), np.array([6, 1, np.inf], np.float32)))
CHOOSING: list[Family] = [Categorical(4), Categorical(3, start=2), MultiCategorical((2, 3)), MultiCategorical((3, 3)), Bernoulli(3)]
SOFT: list[dict[str, Any]] = [
    {},
    {"temperature": 2.5},
    {"temperature": 0.5, "temperature_end": 4.0},
    {"hard_weight": 0.3},
    {"hard_weight": 0.3, "temperature": 3.0},
    {"hard_weight": 1.0},
]


def targets_of(family: Family, dtype: torch.dtype, *, scores: str = "logits") -> ActionTargets:
    draws = generator(1)
    shape = (STEPS, MEMBERS, BATCH)
    if isinstance(family, (DiagGaussian, Deterministic)):
        boxed = (2 * torch.rand(*shape, BOX.dim, generator=draws, dtype=dtype) - 1) * 1.5  # a third lies on a bound
        spread = torch.randn(*shape, BOX.dim, generator=draws, dtype=dtype)
        parameters = {"mean": boxed, "log_std": spread} if isinstance(family, DiagGaussian) else {}
        return ActionTargets(parameters, BOX.to_environment(boxed))
    values = 3 * torch.randn(*shape, family.width, generator=draws, dtype=dtype)
    return ActionTargets({scores: values}, family.mode({"logits": values}))


def loaded(objective: Objective, targets: ActionTargets, like: Tensor, progress: list[float]) -> Gradient:
    gradient = gradient_of(objective, like, torch.zeros(like.shape[1], 1, objective.family.width, dtype=like.dtype))
    gradient.load(targets, progress)
    return gradient


def write(gradient: Gradient, step: int, outputs: Tensor, slope: Tensor) -> None:
    """The gradient at these outputs."""
    gradient.outputs[step].copy_(outputs)
    gradient.write(step, slope)
    slope /= gradient.divisor


def check(objective: Objective, targets: ActionTargets, outputs: Tensor, rtol: float) -> None:
    """Slope and values against autograd through ``terms`` and ``total``, step by step."""
    assert written_out(objective)
    log_std = torch.linspace(-1, 1, MEMBERS * objective.family.width, dtype=outputs.dtype).view(MEMBERS, 1, -1).requires_grad_()
    gradient = gradient_of(objective, outputs, log_std)
    halved = ActionTargets({name: value / 2 for name, value in targets.parameters.items()}, targets.actions)
    gradient.load(halved, PROGRESS)  # what was loaded before must not stay
    write(gradient, 0, outputs[0], torch.empty_like(outputs[0]))
    gradient.values()
    gradient.load(targets, PROGRESS)
    expected: dict[str, Tensor] = {}
    for step, progress in enumerate(PROGRESS):
        slope = torch.full_like(outputs[step], torch.nan)
        write(gradient, step, outputs[step], slope)
        leaf = outputs[step].transpose(1, 2).clone().requires_grad_()
        now = ActionTargets({name: value[step] for name, value in targets.parameters.items()}, targets.actions[step])
        found_spread, log_std.grad = log_std.grad, None
        if found_spread is not None:
            found_spread = found_spread / gradient.divisor
        terms = objective.terms(leaf, log_std, now, progress=progress)
        objective.total(terms, progress=progress).mean(-1).sum().backward()
        assert leaf.grad is not None
        assert (found_spread is None) == (log_std.grad is None)
        if log_std.grad is not None:
            torch.testing.assert_close(found_spread, log_std.grad, rtol=rtol, atol=10 * rtol)
        with torch.no_grad():
            log_std.grad = None
            log_std.add_(0.1)  # it changes from step to step
        torch.testing.assert_close(slope, leaf.grad.transpose(1, 2), rtol=rtol, atol=rtol / BATCH)
        for name, value in terms.items():
            expected[name] = expected.get(name, torch.zeros(())) + value.detach().mean()
    found = gradient.values()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=0.0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("loss", SOFT, ids=str)
@pytest.mark.parametrize("family", CHOOSING, ids=str)
def test_choices(family, loss, dtype, rtol):
    outputs = 2 * torch.randn(STEPS, MEMBERS, family.width, BATCH, generator=generator(2), dtype=dtype)
    check(Objective(LossConfig(**loss), family), targets_of(family, dtype), outputs, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("regression", ["squared", "absolute", "huber"])
@pytest.mark.parametrize("family", [Deterministic(BOX), DiagGaussian(BOX)], ids=["deterministic", "gaussian"])
@pytest.mark.parametrize("scale", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("near_bound", [0.4, 1.0])
def test_regressions(family, regression, dtype, rtol, scale, near_bound):
    targets = targets_of(family, dtype)
    noise = scale * torch.randn(STEPS, MEMBERS, BOX.dim, BATCH, generator=generator(2), dtype=dtype)
    config = LossConfig(regression=regression, kind="regression", near_bound=near_bound)
    check(Objective(config, family), targets, BOX.to_box(targets.actions).mT + noise, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("loss", SOFT[:3], ids=str)
@pytest.mark.parametrize("beyond_bounds", [0.0, 0.3, 1.0])
def test_gaussians(beyond_bounds, loss, dtype, rtol):
    family = DiagGaussian(BOX)
    outputs = torch.randn(STEPS, MEMBERS, BOX.dim, BATCH, generator=generator(2), dtype=dtype)
    check(Objective(LossConfig(kind="kl", beyond_bounds=beyond_bounds, **loss), family), targets_of(family, dtype), outputs, rtol)


@pytest.mark.parametrize("q_logits", ["gap", "z_score", "raw"])
def test_q_values(q_logits):
    objective = Objective(LossConfig(q_logits=q_logits, q_temperature=0.7 if q_logits != "gap" else None, temperature=1.5), Categorical(4))
    objective.q_gap = 0.4
    outputs = torch.randn(STEPS, MEMBERS, 4, BATCH, generator=generator(2), dtype=torch.float64)
    check(objective, targets_of(objective.family, torch.float64, scores="q_values"), outputs, 1e-12)


def test_what_the_teacher_forbids_is_learnt_and_counts_nothing():
    targets = targets_of(Categorical(4), torch.float64)
    targets.parameters["logits"][..., 1] = -torch.inf
    outputs = torch.randn(STEPS, MEMBERS, 4, BATCH, generator=generator(2), dtype=torch.float64)
    check(Objective(LossConfig(), Categorical(4)), targets, outputs, 1e-12)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.5, 5))
def test_two_choices_by_hand(teacher, student, temperature):
    # (1 - alpha) * T * (q - p) with p, q = sigmoid(difference of the logits / T); alpha = 0, one sample
    objective = Objective(LossConfig(temperature=temperature), Categorical(2))
    logits = torch.tensor([[[[0.0, teacher]]]], dtype=torch.float64)
    gradient = loaded(objective, ActionTargets({"logits": logits}, logits.argmax(-1)), logits.mT, [1.0])
    slope = torch.zeros(1, 2, 1, dtype=torch.float64)
    write(gradient, 0, torch.tensor([[[0.0], [student]]], dtype=torch.float64), slope)
    p, q = (1 / (1 + math.exp(-difference / temperature)) for difference in (teacher, student))
    assert slope.flatten().tolist() == pytest.approx([temperature * (p - q), temperature * (q - p)], abs=1e-12)
    value = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(gradient.values()["forward_kl_nats"]) == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_the_targets_are_left_as_they_were():
    for family in (Categorical(4), Bernoulli(3), Deterministic(BOX), DiagGaussian(BOX)):
        targets = targets_of(family, torch.float32)
        before = [targets.actions.clone(), *(value.clone() for value in targets.parameters.values())]
        outputs = torch.randn(STEPS, MEMBERS, family.width, BATCH)
        gradient = loaded(Objective(LossConfig(temperature=2.0), family), targets, outputs, PROGRESS)
        write(gradient, 0, outputs[0], torch.empty_like(outputs[0]))
        gradient.values()
        assert all(map(torch.equal, before, [targets.actions, *targets.parameters.values()]))


@pytest.mark.parametrize(
    ("family", "loss", "expected"),
    [
        (Categorical(4), LossConfig(), True),
        (Categorical(4), LossConfig(divergence="reverse_kl"), False),
        (Categorical(4), LossConfig(divergence="jensen_shannon"), False),
        (Categorical(4), LossConfig(standardize_logits=True), False),
        (Categorical(4), LossConfig(kind="nll"), False),
        (Categorical(4), LossConfig(features=FeatureConfig(weight=1.0)), True),
        (Categorical(4), LossConfig(relations=RelationConfig(weight=1.0)), True),
        (DiagGaussian(BOX), LossConfig(), True),
        (DiagGaussian(BOX), LossConfig(kind="regression", divergence="reverse_kl"), True),  # a regression does not read it
        (DiagGaussian(BOX), LossConfig(kind="kl", divergence="reverse_kl"), False),
    ],
)
def test_which_losses_are_written_out(family, loss, expected):
    assert written_out(Objective(loss, family)) is expected
