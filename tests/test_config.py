"""Configurations: every field has a range, and what is outside is refused with its name, its value and the range."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from policy_distill.config import CollectConfig, DistillConfig, EvaluateConfig, LossConfig, RequestError, StudentConfig, TrainConfig

SECTIONS = {
    "student": StudentConfig,
    "loss": LossConfig,
    "collect": CollectConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
REFUSED: list[tuple[str, Any, str]] = [
    ("student.hidden_sizes", (16, 0), "positive"),
    ("student.hidden_sizes", (-1,), "positive"),
    ("student.compression", 0.0, "> 0"),
    ("student.compression", -2.0, "> 0"),
    ("student.compression", math.inf, "> 0"),
    ("student.compression", math.nan, "> 0"),
    ("student.activation", "gelu", "relu, tanh, elu, silu"),
    ("loss.kind", "mse", "auto, kl, regression"),
    ("loss.regression", "l2", "squared, absolute, huber"),
    ("loss.temperature", 0.0, "> 0"),
    ("loss.temperature", math.inf, "> 0"),
    ("loss.temperature", math.nan, "> 0"),
    ("loss.hard_weight", -0.1, "[0, 1]"),
    ("loss.hard_weight", 1.1, "[0, 1]"),
    ("loss.q_gap_fraction", 0.0, "> 0"),
    ("loss.q_gap_fraction", math.inf, "> 0"),
    ("collect.rounds", 0, ">= 1"),
    ("collect.num_envs", 0, ">= 1"),
    ("collect.env_steps", 159, "160"),
    ("collect.teacher_action_prob", -0.1, "[0, 1]"),
    ("collect.teacher_action_prob", 1.1, "[0, 1]"),
    ("train.gradient_steps", 0, ">= 1"),
    ("train.batch_size", 0, ">= 1"),
    ("train.learning_rate", 0.0, "> 0"),
    ("train.learning_rate", math.inf, "> 0"),
    ("train.learning_rate", math.nan, "> 0"),
    ("train.average_decay", -0.1, "[0, 1)"),
    ("train.average_decay", 1.0, "[0, 1)"),
    ("train.holdout", -0.1, "[0, 0.5]"),
    ("train.holdout", 0.6, "[0, 0.5]"),
    ("evaluate.episodes", 1, ">= 2"),
    ("evaluate.validation_episodes", 0, ">= 1"),
    ("evaluate.finalists", 0, ">= 1"),
    ("evaluate.finalist_episodes", -1, ">= 0"),
    ("evaluate.confidence", 0.4, "[0.5, 1)"),
    ("evaluate.confidence", 1.0, "[0.5, 1)"),
    ("evaluate.num_envs", 0, ">= 1"),
    ("seed", -1, ">= 0"),
    ("workers", -1, ">= 0"),
]
ALLOWED: list[tuple[str, Any]] = [
    ("student.hidden_sizes", ()),
    ("student.hidden_sizes", (1,)),
    ("student.compression", 0.5),
    ("loss.temperature", 0.01),
    ("loss.hard_weight", 1.0),
    ("loss.q_gap_fraction", 2.0),
    ("collect.rounds", 1),
    ("collect.num_envs", 1),
    ("collect.env_steps", 160),
    ("collect.teacher_action_prob", 0.0),
    ("collect.teacher_action_prob", 1.0),
    ("train.batch_size", 1),
    ("train.average_decay", 0.0),
    ("train.holdout", 0.0),
    ("train.holdout", 0.5),
    ("evaluate.episodes", 2),
    ("evaluate.validation_episodes", 1),
    ("evaluate.finalists", 1),
    ("evaluate.finalist_episodes", 0),
    ("evaluate.confidence", 0.5),
    ("evaluate.num_envs", 1),
    ("seed", 0),
    ("workers", 0),
]


def build(name: str, value: Any) -> Any:
    section, _, field = name.rpartition(".")
    return SECTIONS[section](**{field: value}) if section else DistillConfig(**{field: value})


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_a_value_out_of_range_is_refused_by_name_value_and_range(name, value, allowed):
    with pytest.raises(RequestError) as caught:
        build(name, value)
    message = str(caught.value)
    assert name in message
    assert repr(value) in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), ALLOWED)
def test_the_ends_of_each_range_belong_to_it(name, value):
    assert getattr(build(name, value), name.rpartition(".")[2]) == value


def test_every_numeric_or_named_field_is_among_the_refused():
    unchecked = {"teacher", "env", "algo", "output", "device", "trust"}  # any text or truth value may be asked for
    fields = {field.name for field in dataclasses.fields(DistillConfig)} - set(SECTIONS) - unchecked
    fields |= {f"{section}.{field.name}" for section, kind in SECTIONS.items() for field in dataclasses.fields(kind)}
    assert fields == {name for name, _, _ in REFUSED}


def test_size_and_compression_exclude_each_other():
    with pytest.raises(RequestError, match=r"student\.compression is 10\.0.*hidden_sizes"):
        StudentConfig(hidden_sizes=(8,), compression=10.0)


def test_every_round_must_have_a_gradient_step():
    collect = CollectConfig(rounds=5, num_envs=1, env_steps=100)
    DistillConfig(collect=collect, train=TrainConfig(gradient_steps=5))
    with pytest.raises(RequestError, match=r"train\.gradient_steps is 4; it must be .*collect\.rounds = 5"):
        DistillConfig(collect=collect, train=TrainConfig(gradient_steps=4))


def test_a_seed_that_torch_cannot_take_is_refused():
    DistillConfig(seed=2**63 - 1)
    with pytest.raises(RequestError, match="seed is 9223372036854775808"):
        DistillConfig(seed=2**63)


def test_configurations_cannot_be_changed():
    for config in (DistillConfig(), *(kind() for kind in SECTIONS.values())):
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)


def test_configurations_of_equal_values_are_equal_and_do_not_share_sections():
    assert DistillConfig() == DistillConfig()
    assert dataclasses.replace(DistillConfig(), seed=1) != DistillConfig()


def test_a_wrong_request_is_a_value_error():
    assert issubclass(RequestError, ValueError)
