"""Gradients by autograd: written where the stack reads them, and those of autograd through the whole loss at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policy_distill.config import FeatureConfig, LossConfig, RelationConfig
from policy_distill.losses.autograd_gradients import AutogradGradient, LayerGradient
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.families import Categorical
from tests.small_worlds import generator

STEPS, MEMBERS, BATCH, ACTIONS = 2, 2, 6, 3


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def targets() -> ActionTargets:
    logits = normal(STEPS, MEMBERS, BATCH, ACTIONS, seed=1)
    return ActionTargets({"logits": logits, "layer:body": normal(STEPS, MEMBERS, BATCH, 5, seed=2)}, logits.argmax(-1))


def test_the_slope_is_that_of_the_mean_and_the_values_are_sums_over_the_steps():
    objective = Objective(LossConfig(divergence="reverse_kl", temperature=2.0, temperature_end=0.5), Categorical(ACTIONS))
    outputs = normal(STEPS, MEMBERS, ACTIONS, BATCH, seed=3)
    gradient = AutogradGradient(objective, outputs, torch.zeros(MEMBERS, 1, 0), ())
    for _ in range(2):  # what was loaded before must not stay
        gradient.load(targets(), [0.0, 0.5])
        total = 0.0
        for step, progress in enumerate((0.0, 0.5)):
            gradient.outputs[step].copy_(outputs[step])
            slope = torch.full_like(outputs[step], torch.nan)
            with torch.inference_mode():  # as the trainer does
                gradient.write(step, slope)
            leaf = outputs[step].mT.clone().requires_grad_()
            now = ActionTargets({"logits": targets().parameters["logits"][step]}, targets().actions[step])
            terms = objective.terms(leaf, torch.zeros(MEMBERS, 1, 0), now, progress=progress)
            objective.total(terms, progress=progress).mean(-1).sum().backward()
            assert leaf.grad is not None
            torch.testing.assert_close(slope, leaf.grad.mT)
            total += float(terms["reverse_kl_nats"].detach().mean())
        assert {name: float(value) for name, value in gradient.values().items()} == {"reverse_kl_nats": pytest.approx(total)}


def test_members_draw_from_their_own_generators_and_only_for_drawn_actions():
    outputs = normal(1, MEMBERS, ACTIONS, BATCH, seed=3)
    one = ActionTargets({"logits": targets().parameters["logits"][:1]}, targets().actions[:1])
    for loss, draws in ((LossConfig(kind="nll"), True), (LossConfig(divergence="reverse_kl"), False)):
        generators = [generator(4), generator(5)]
        objective = Objective(loss, Categorical(ACTIONS))
        gradient = AutogradGradient(objective, outputs, torch.zeros(MEMBERS, 1, 0), generators)
        gradient.load(one, [0.0])
        gradient.outputs[0].copy_(outputs[0])
        gradient.write(0, torch.empty_like(outputs[0]))
        for used, seed in zip(generators, (4, 5), strict=True):
            expected = generator(seed)
            if draws:
                torch.rand(BATCH, ACTIONS, generator=expected)
            assert torch.equal(used.get_state(), expected.get_state())


def test_hints_and_relations_reach_the_layers_they_read_times_the_divisor():
    config = LossConfig(
        features=FeatureConfig(weight=0.7, layers={"body": "hidden.0"}),
        relations=RelationConfig(weight=0.3, kind="similarity", layers={"body": "hidden.0", "output": "output"}),
    )
    objective = Objective(config, Categorical(ACTIONS))
    layers = {name: normal(MEMBERS, BATCH, width, seed=6) for name, width in (("hidden.0", 4), ("hidden.1", 4), ("output", ACTIONS))}
    mine, theirs = ((normal(MEMBERS, 4, 5, seed=7).requires_grad_(), normal(MEMBERS, 1, 5, seed=8).requires_grad_()) for _ in range(2))
    gradient = LayerGradient(objective, [mine], divisor=10.0)
    gradient.load(targets())
    with torch.inference_mode():
        found = gradient.write(1, layers)
    leaves = {name: layer.clone().requires_grad_() for name, layer in layers.items()}
    now = ActionTargets({name: value[1] for name, value in targets().parameters.items()}, targets().actions[1])
    terms = objective.layer_terms(leaves, now, [theirs])
    related = terms["relation_similarity_body"] + terms["relation_similarity_output"]
    (0.7 * terms["feature_mse_body"] + 0.3 * related).mean(-1).sum().backward()
    assert found.keys() == {"hidden.0", "output"}  # nothing reads hidden.1
    for name, slope in found.items():
        torch.testing.assert_close(slope, 10 * leaves[name].grad.mT)  # type: ignore[union-attr]
    for leaf, other in zip(mine, theirs, strict=True):
        assert leaf.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(leaf.grad, 10 * other.grad)
    assert {name: float(value) for name, value in gradient.values().items()} == {
        name: pytest.approx(float(value.detach().mean())) for name, value in terms.items()
    }
