"""The loss of a student: its terms and weights by hand, for every family and every option; what does not suit a teacher is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence

from policy_distill.config import FeatureConfig, LossConfig, RelationConfig, RequestError
from policy_distill.losses.objective import Objective
from policy_distill.policies import divergences as losses
from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.families import Bernoulli, Categorical, Choices, Deterministic, DiagGaussian, Family, family_of
from tests.small_worlds import generator, random_transitions

BOX = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
ACTED = [gym.spaces.Discrete(4), gym.spaces.Discrete(3, start=2), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3), BOX]
NONE = torch.zeros(1, 1, 0)


def choices_of(family: Family, logits: torch.Tensor) -> list[torch.Tensor]:
    """The logits of each independent choice."""
    assert isinstance(family, Choices)
    return family.parts(logits)


NAMED = Deterministic(Box((-1.0,), (1.0,)))


@pytest.mark.parametrize("regression", ["squared", "absolute", "huber"])
def test_each_regression_is_the_one_named(regression):
    targets = ActionTargets({}, torch.tensor([[[6.0, 0.5]]]))  # (1, 0) in box units
    objective = Objective(LossConfig(regression=regression), Deterministic(Box((-2.0, 0.0), (6.0, 1.0))))
    terms = objective.terms(torch.tensor([[[0.5, 0.05]]]), torch.zeros(1, 1, 2), targets)
    # errors -0.5 and 0.05: squares 0.25, 0.0025; absolute; huber 0.45, 0.0125
    expected = {"squared": 0.12625, "absolute": 0.275, "huber": 0.23125}[regression]
    assert terms["action_error"].shape == (1, 1)
    assert objective.total(terms).item() == pytest.approx(expected)


def test_past_an_action_near_its_bound_nothing_is_asked():
    targets = ActionTargets({}, torch.tensor([[[5.0, 0.5]]]))  # (0.75, 0) in box units
    family, outputs = Deterministic(Box((-2.0, 0.0), (6.0, 1.0))), torch.tensor([[[1.75, 0.5]]])
    errors = {}
    for near_bound in (0.75, 0.8):
        objective = Objective(LossConfig(regression="squared", near_bound=near_bound), family)
        errors[near_bound] = objective.terms(outputs, torch.zeros(1, 1, 2), targets)["action_error"].item()
    assert errors == {0.75: 0.125, 0.8: 0.625}  # (0 + 1/4) / 2 and (1 + 1/4) / 2


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


def test_the_schedule_of_the_temperature_and_the_weight_that_follows_it_by_hand():
    # from 3 to 1: 2 in the middle; (1 - 0.25) * T^2
    config = LossConfig(temperature=3.0, temperature_end=1.0, hard_weight=0.25)
    objective = Objective(config, Categorical(2))
    assert [objective.temperature(progress) for progress in (0.0, 0.5, 1.0)] == [3.0, 2.0, 1.0]
    assert [objective.soft_weight(progress) for progress in (0.0, 0.5, 1.0)] == [6.75, 3.0, 0.75]
    steps = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    assert objective.temperature(steps).tolist() == [[[3.0]], [[2.0]], [[1.0]]]  # type: ignore[union-attr]
    members = objective.for_members([config, dataclasses.replace(config, temperature=5.0, hard_weight=0.0)], torch.device("cpu"))
    assert members.temperature(steps).tolist() == [[[3.0], [5.0]], [[2.0], [3.0]], [[1.0], [1.0]]]  # type: ignore[union-attr]
    assert members.soft_weight(steps)[1].tolist() == [[3.0], [9.0]]  # type: ignore[index]
    assert Objective(LossConfig(), NAMED).soft_weight(0.5) == 1.0  # a regression has no temperature


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


# Every divergence and every way from Q-values to logits.


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("space", ACTED, ids=str)
def test_each_divergence_of_each_family_is_torch_s(space, divergence):
    family = family_of(space)
    objective = Objective(LossConfig(kind="kl", divergence=divergence, temperature=2.0, beyond_bounds=1.0), family)
    targets = random_transitions(space, 6).targets
    outputs = torch.randn(1, 6, family.width, generator=generator(3))
    log_std = torch.full((1, 1, family.width), -0.3)
    stacked = ActionTargets({name: value[None] for name, value in targets.parameters.items()}, targets.actions[None])
    found = objective.terms(outputs, log_std, stacked)[f"{divergence}_nats"]
    pair: list[Any]
    if isinstance(family, DiagGaussian):
        pair = [
            Normal(targets.parameters["mean"], targets.parameters["log_std"].exp() * math.sqrt(2)),
            Normal(outputs[0], log_std[0].exp() * math.sqrt(2)),
        ]
    elif isinstance(family, Bernoulli):
        pair = [TorchBernoulli(logits=targets.parameters["logits"] / 2), TorchBernoulli(logits=outputs[0] / 2)]
    else:
        parts = [choices_of(family, logits / 2) for logits in (targets.parameters["logits"], outputs[0])]
        pair = [[TorchCategorical(logits=logits) for logits in part] for part in parts]
    if divergence == "reverse_kl":
        pair.reverse()
    if isinstance(pair[0], list):
        expected = sum(kl_divergence(one, other) for one, other in zip(*pair, strict=True))
    else:
        expected = kl_divergence(*pair).sum(-1)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "student", "clipped"),
    [
        (0.5, 0.2, 0.3),  # both within the bounds
        (3.0, 1.5, 0.0),  # both above
        (3.0, 0.4, 0.6),  # the teacher above: the bound is what the student should reach
        (0.4, 3.0, 2.6),  # the student above: its mean comes back within the bounds
        (-3.0, 1.5, 2.5),  # on different sides
    ],
)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_means_that_are_clipped_to_the_same_action_count_less(divergence, teacher, student, clipped):
    family = DiagGaussian(Box.from_space(BOX))
    zeros, first = torch.zeros(1, 1, 2), torch.tensor([1.0, 0.0])
    targets = ActionTargets({"mean": teacher * first.view(1, 1, 2), "log_std": zeros}, zeros)
    for weight in (0.0, 0.2, 1.0):
        config = LossConfig(kind="kl", divergence=divergence, beyond_bounds=weight)
        found = Objective(config, family).terms(student * first.view(1, 1, 2), zeros, targets)[f"{divergence}_nats"]
        # the KL of Gaussians of standard deviation 1 is half the squared difference of their means
        assert found.item() == pytest.approx((weight * (teacher - student) ** 2 + (1 - weight) * clipped**2) / 2, abs=1e-6)


def test_the_share_of_the_mixture_reaches_the_divergence():
    logits, outputs = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    targets = ActionTargets({"logits": logits}, torch.tensor([[0]]))
    values = [
        Objective(LossConfig(divergence="jensen_shannon", jensen_shannon_beta=beta), Categorical(2)).terms(outputs, NONE, targets)
        for beta in (0.2, 0.7)
    ]
    for beta, value in zip((0.2, 0.7), values, strict=True):
        torch.testing.assert_close(value["jensen_shannon_nats"], losses.jensen_shannon(logits, outputs, beta=beta))
    assert values[0]["jensen_shannon_nats"] != values[1]["jensen_shannon_nats"]


def test_the_temperature_moves_along_a_line_and_its_square_weighs_the_total():
    objective = Objective(LossConfig(temperature=4.0, temperature_end=2.0), Categorical(2))
    assert [objective.temperature(progress) for progress in (0.0, 0.5, 1.0)] == [4.0, 3.0, 2.0]
    terms = {"forward_kl_nats": torch.tensor([[0.5]])}
    assert [objective.total(terms, progress=progress).item() for progress in (0.0, 0.5, 1.0)] == [8.0, 4.5, 2.0]
    targets = ActionTargets({"logits": torch.tensor([[[3.0, 0.0]]])}, torch.tensor([[0]]))
    found = objective.terms(torch.zeros(1, 1, 2), NONE, targets, progress=0.5)["forward_kl_nats"]
    torch.testing.assert_close(found, losses.forward_kl(targets.parameters["logits"], torch.zeros(1, 1, 2), temperature=3.0))


def test_standardised_logits_compare_shapes_alone():
    teacher = torch.tensor([[[1.0, 2.0, 6.0]]])
    targets = ActionTargets({"logits": teacher}, torch.tensor([[2]]))
    objective = Objective(LossConfig(standardize_logits=True), Categorical(3))
    same_shape = 0.1 * teacher + 5
    assert objective.terms(same_shape, NONE, targets)["forward_kl_nats"].item() == pytest.approx(0.0, abs=1e-6)
    assert Objective(LossConfig(), Categorical(3)).terms(same_shape, NONE, targets)["forward_kl_nats"].item() > 0.1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LossConfig(q_logits="raw"), [300.0, 100.0]),  # / 0.01
        (LossConfig(q_logits="raw", q_temperature=2.0), [1.5, 0.5]),
        (LossConfig(q_logits="z_score"), [2.0, -2.0]),  # (1, -1) / 0.5
        (LossConfig(q_logits="z_score", q_temperature=4.0), [0.25, -0.25]),
        (LossConfig(q_gap_fraction=0.25), [0.0, -4.0]),  # the gap is 2: half a unit of Q is a nat
    ],
)
def test_each_way_from_q_values_to_logits_by_hand(config, expected):
    objective, q_values = Objective(config, Categorical(2)), torch.tensor([[3.0, 1.0]])
    objective.calibrate(ActionTargets({"q_values": q_values}, torch.tensor([0])))
    torch.testing.assert_close(objective.distribution_of({"q_values": q_values})["logits"], torch.tensor([expected]), rtol=1e-4, atol=1e-4)


def test_calibration_looks_at_a_limited_number_of_rows_evenly_over_all_of_them(monkeypatch):
    for name in ("CALIBRATION_ROWS", "LAYER_ROWS"):
        monkeypatch.setattr(f"policy_distill.losses.objective.{name}", 3)
    objective = Objective(LossConfig(q_gap_fraction=1.0, features=FeatureConfig(weight=1.0, layers={"a": "hidden.0"})), Categorical(2))
    numbers = torch.arange(101.0)[:, None]  # the first, the middle and the last are seen: 0, 50 and 100
    q_values = torch.cat([numbers, torch.zeros_like(numbers)], dim=1)
    objective.calibrate(ActionTargets({"q_values": q_values, "layer:a": numbers}, torch.zeros(101)))
    assert objective.q_gap == 50.0
    assert objective._layer_variance["a"] == 2500.0  # (50^2 + 0 + 50^2) / 2


def test_a_temperature_of_q_values_takes_no_square():
    objective = Objective(LossConfig(q_logits="raw", q_temperature=10.0), Categorical(2))
    assert objective.total({"forward_kl_nats": torch.tensor([[0.5]])}).item() == 0.5


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_the_mean_likelihood_of_drawn_actions_is_the_cross_entropy(space):
    """E[-log q(a)] over a ~ p is H(p) + KL(p || q), up to the noise of 40,000 draws."""
    family = family_of(space)
    targets = random_transitions(space, 1).targets
    many = ActionTargets({name: value[None].expand(1, 40_000, -1) for name, value in targets.parameters.items()}, targets.actions)
    outputs = torch.randn(1, 1, family.width, generator=generator(3)).expand(1, 40_000, -1)
    log_std = torch.full((1, 1, family.width), -0.2)
    draws = torch.rand(1, 40_000, family.width, generator=generator(4)).clamp(1e-7, 1 - 1e-7)
    objective = Objective(LossConfig(kind="nll"), family)
    found = objective.terms(outputs, log_std, many, draws=draws)
    assert set(found) == {"negative_log_likelihood_nats"}
    if isinstance(family, DiagGaussian):
        spread = targets.parameters["log_std"]
        entropy = Normal(targets.parameters["mean"], spread.exp()).entropy().sum()
        divergence = losses.gaussian_forward_kl(targets.parameters["mean"], spread, outputs[0, :1], log_std[0])
    else:
        parts = [TorchCategorical(logits=logits) for logits in choices_of(family, targets.parameters["logits"])]
        entropy = sum(part.entropy().sum() for part in parts)
        students = [TorchCategorical(logits=logits) for logits in choices_of(family, outputs[0, :1])]
        divergence = sum(kl_divergence(*pair).sum() for pair in zip(parts, students, strict=True))  # type: ignore[assignment]
    assert found["negative_log_likelihood_nats"].mean().item() == pytest.approx(float(entropy + divergence), abs=0.05)


# Hints and relations.


def test_hints_and_relations_by_hand_and_with_their_weights():
    # teacher's layer (2, 0); projection of hidden (1, 3) by (1, 0 / 0, 1) + (0, -1) is (1, 2): ((2-1)^2 + (0-2)^2) / 2 = 2.5
    targets = ActionTargets({"logits": torch.zeros(1, 1, 2), "layer:body.1": torch.tensor([[[2.0, 0.0]]])}, torch.tensor([[0]]))
    layers = {"hidden.0": torch.tensor([[[1.0, 3.0]]]), "output": torch.zeros(1, 1, 2)}
    projection = (torch.eye(2)[None], torch.tensor([[[0.0, -1.0]]]))
    config = LossConfig(
        features=FeatureConfig(weight=2.0, layers={"body.1": "hidden.0"}),
        relations=RelationConfig(weight=0.5, kind="similarity", layers={"body.1": "hidden.0", "output": "output"}),
    )
    objective = Objective(config, Categorical(2))
    terms = objective.terms(layers["output"], NONE, targets, layers=layers, projections=[projection])
    assert set(terms) == {"forward_kl_nats", "feature_mse_body.1", "relation_similarity_body.1", "relation_similarity_output"}
    assert terms["feature_mse_body.1"].item() == 2.5
    terms["relation_similarity_body.1"] = torch.tensor([[3.0]])
    assert objective.total(terms).item() == pytest.approx(2 * 2.5 + 0.5 * 3.0)


def test_a_hint_s_error_is_counted_in_the_layer_s_variance():
    # columns (0, 4) and (0, 0): variances 8 and 0, mean 4
    objective = Objective(LossConfig(features=FeatureConfig(weight=1.0, layers={"a": "hidden.0"})), Categorical(2))
    layer = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    targets = ActionTargets({"logits": torch.zeros(2, 2), "layer:a": layer}, torch.zeros(2, dtype=torch.int64))
    objective.calibrate(targets)
    stacked = ActionTargets({name: value[None] for name, value in targets.parameters.items()}, targets.actions[None])
    hidden = torch.zeros(1, 2, 2)
    found = objective.terms(hidden, NONE, stacked, layers={"hidden.0": hidden}, projections=[(torch.eye(2)[None], torch.zeros(1, 1, 2))])
    torch.testing.assert_close(found["feature_mse_a"], torch.tensor([[0.0, 16 / 2 / 4]]))


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        (Categorical(3), {"logits": torch.ones(2, 3)}),
        (Categorical(3), {"q_values": torch.ones(2, 3)}),
        (DiagGaussian(Box((-1.0,) * 3, (1.0,) * 3)), {"log_std": torch.zeros(2, 3), "mean": torch.eye(2, 3)}),
        (Deterministic(Box((-1.0,) * 3, (1.0,) * 3)), {}),
    ],
)
def test_the_teacher_s_output_is_a_layer_too(family, parameters):
    """The distance of the layer to itself is zero; a teacher without parameters puts its actions out."""
    layers = {"output": "output"}
    objective = Objective(LossConfig(features=FeatureConfig(weight=1.0, layers=layers)), family)
    targets = ActionTargets(parameters, torch.arange(6.0).view(2, 3))
    output = next((value for name, value in parameters.items() if name != "log_std"), targets.actions)
    terms = objective.layer_terms({"output": output[None]}, targets, [(torch.eye(3)[None], torch.zeros(1, 1, 3))])
    assert terms["feature_mse_output"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("config", "family", "expected"),
    [
        (LossConfig(), NAMED, set()),
        (LossConfig(), Categorical(2), {"logits", "q_values"}),
        (LossConfig(), DiagGaussian(Box((-1.0,), (1.0,))), {"mean", "log_std", "q_values"}),
        (LossConfig(relations=RelationConfig(weight=1.0, layers={"output": "output"})), NAMED, {"q_values"}),
        (LossConfig(features=FeatureConfig(weight=1.0, layers={"a": "output"})), NAMED, {"layer:a"}),
        (LossConfig(features=FeatureConfig(weight=0.0, layers={"a": "output"})), NAMED, set()),
    ],
)  # fmt: skip
def test_what_is_read_of_the_targets(config, family, expected):
    assert Objective(config, family).reads == expected


@pytest.mark.parametrize(
    ("config", "family", "message"),
    [
        (LossConfig(kind="nll"), Deterministic(Box((-1.0,), (1.0,))), "loss.kind is 'nll'.*use 'regression'"),
        (LossConfig(kind="nll", hard_weight=0.5), Categorical(2), "loss.hard_weight is 0.5.*set it to 0"),
        (
            LossConfig(kind="kl", divergence="jensen_shannon"),
            DiagGaussian(Box((-1.0,), (1.0,))),
            "use 'forward_kl' or 'reverse_kl'",
        ),
        (LossConfig(standardize_logits=True), Bernoulli(3), "loss.standardize_logits is true.*set it to false"),
    ],
)
def test_more_that_does_not_suit_the_teacher_is_refused(config: LossConfig, family: Any, message: str):
    with pytest.raises(RequestError, match=message):
        Objective(config, family)
