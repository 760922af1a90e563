"""Configurations: every field has a range, and what is outside is refused with its name, its value and the range."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from typing import Any

import pytest

from policy_distill.config import (
    CheckConfig,
    CollectConfig,
    DistillConfig,
    EnsembleConfig,
    EnvironmentOptions,
    EvaluateConfig,
    FeatureConfig,
    LossConfig,
    MemberConfig,
    PolishConfig,
    RelationConfig,
    RequestError,
    SelfDistillConfig,
    StudentConfig,
    TrainConfig,
    ValueConfig,
)
from policy_distill.config.environment import wrapper_options

SECTIONS = {
    "check": CheckConfig,
    "ensemble": EnsembleConfig,
    "student": StudentConfig,
    "loss": LossConfig,
    "loss.features": FeatureConfig,
    "loss.relations": RelationConfig,
    "collect": CollectConfig,
    "train": TrainConfig,
    "self_distill": SelfDistillConfig,
    "polish": PolishConfig,
    "value": ValueConfig,
    "evaluate": EvaluateConfig,
}
REFUSED: list[tuple[str, Any, str]] = [
    ("env_kwargs", {"render_mode": "human"}, "render_policy sets it"),
    ("env_kwargs", {"max_episode_steps": 3}, "give --max-episode-steps N"),
    ("wrapper", ("none", "TimeFeatureWrapper"), "none alone, or the names of wrappers"),
    ("frame_stack", 0, ">= 1 (1: no stack)"),
    ("max_episode_steps", 0, ">= 1"),
    ("step_timeout", -1.0, ">= 0 seconds"),
    ("step_timeout", math.inf, ">= 0 seconds"),
    ("ensemble.teachers", ("ppo", ""), "paths or names"),
    ("ensemble.weights", (1.0, 0.0), "> 0"),
    ("ensemble.weights", (1.0, math.inf), "> 0"),
    ("ensemble.weights", (1.0,), "left out when there are no ensemble.teachers"),
    ("ensemble.combine", "median", "mean, value"),
    ("student.inputs", "a", "indices and ranges"),
    ("student.memory", "lstm", "none, gru"),
    ("worker_restarts", -1, ">= 0"),
    ("student.memory_size", 0, ">= 1"),
    ("train.sequence_length", 0, ">= 1"),
    ("train.burn_in", -1, ">= 0"),
    ("student.hidden_sizes", (16, 0), "positive"),
    ("student.hidden_sizes", (-1,), "positive"),
    ("student.channels", (16, 0), "positive"),
    ("student.bits", 5, "one of 8, 4, 3, 2"),
    ("student.pruning", 1.0, "above 0 and below 1"),
    ("polish.sequence_length", 1, ">= 2"),
    ("student.compression", 0.0, "> 0"),
    ("student.compression", -2.0, "> 0"),
    ("student.compression", math.inf, "> 0"),
    ("student.compression", math.nan, "> 0"),
    ("student.activation", "gelu", "relu, tanh, elu, silu"),
    ("loss.kind", "mse", "auto, kl, nll, regression"),
    ("loss.divergence", "kl", "forward_kl, reverse_kl, jensen_shannon"),
    ("loss.near_bound", 0.0, "(0, 1]"),
    ("loss.beyond_bounds", -0.1, "[0, 1]"),
    ("loss.beyond_bounds", 1.1, "[0, 1]"),
    ("loss.near_bound", 1.1, "(0, 1]"),
    ("loss.jensen_shannon_beta", 0.0, "(0, 1)"),
    ("loss.jensen_shannon_beta", 1.0, "(0, 1)"),
    ("loss.regression", "l2", "squared, absolute, huber"),
    ("loss.temperature", 0.0, "> 0"),
    ("loss.temperature", math.inf, "> 0"),
    ("loss.temperature", math.nan, "> 0"),
    ("loss.temperature_end", 0.0, "> 0"),
    ("loss.temperature_end", math.inf, "> 0"),
    ("loss.hard_weight", -0.1, "[0, 1]"),
    ("loss.hard_weight", 1.1, "[0, 1]"),
    ("loss.q_gap_fraction", 0.0, "> 0"),
    ("loss.q_gap_fraction", math.inf, "> 0"),
    ("loss.q_logits", "softmax", "gap, z_score, raw"),
    ("loss.q_temperature", 0.0, "> 0"),
    ("loss.q_temperature", math.inf, "> 0"),
    ("loss.features.weight", -0.1, ">= 0"),
    ("loss.features.weight", math.inf, ">= 0"),
    ("loss.features.layers", {}, "at least one pair"),
    ("loss.features.distance", "l1", "mse, cosine"),
    ("loss.relations.weight", -0.1, ">= 0"),
    ("loss.relations.weight", math.inf, ">= 0"),
    ("loss.relations.layers", {}, "at least one pair"),
    ("loss.relations.kind", "area", "distance, angle, similarity"),
    ("collect.rounds", 0, ">= 1"),
    ("collect.rounds", 2001, "<= 2,000"),
    ("collect.num_envs", 0, ">= 1"),
    ("collect.env_steps", 127, "128"),
    ("collect.teacher_action_prob", -0.1, "[0, 1]"),
    ("collect.teacher_action_prob", 1.1, "[0, 1]"),
    ("collect.backend", "jax", "auto, gymnasium, vector, envpool"),
    ("collect.schedule", "cosine", "exponential, linear"),
    ("collect.enough", 0.0, "> 0"),
    ("collect.storage", "tape", "memory, disk"),
    ("collect.epsilon", -0.1, "[0, 1]"),
    ("collect.epsilon", 1.1, "[0, 1]"),
    ("collect.action_noise", -0.1, ">= 0"),
    ("collect.action_noise", math.inf, ">= 0"),
    ("collect.window", 0, ">= 1"),
    ("collect.extra_states", "", "left out"),
    ("collect.max_extra_states", 0, ">= 1"),
    ("train.gradient_steps", 0, ">= 1"),
    ("train.members", 0, ">= 1"),
    ("train.batch_size", 0, ">= 1"),
    ("train.optimizer", "sgd", "adam or muon"),
    ("train.learning_rate", 0.0, "> 0"),
    ("train.learning_rate", math.inf, "> 0"),
    ("train.learning_rate", math.nan, "> 0"),
    ("train.average_decay", -0.1, "[0, 1)"),
    ("train.average_decay", 1.0, "[0, 1)"),
    ("train.random_shift", -1, ">= 0 pixels"),
    ("train.holdout", -0.1, "[0, 0.5]"),
    ("train.holdout", 0.6, "[0, 0.5]"),
    ("self_distill.generations", -1, ">= 0"),
    ("self_distill.generations", 2001, "<= 2,000"),
    ("self_distill.teacher_weight", -0.1, "[0, 1]"),
    ("self_distill.teacher_weight", 1.1, "[0, 1]"),
    ("self_distill.gradient_steps", 0, ">= 1"),
    ("polish.below", -0.1, ">= 0"),
    ("polish.below", math.nan, ">= 0"),
    ("polish.further_episodes", -1, ">= 0"),
    ("polish.confidence", 0.4, "[0.5, 1)"),
    ("polish.confidence", 1.0, "[0.5, 1)"),
    ("polish.patience", 0, ">= 1"),
    ("polish.hopeless", -0.1, "[0, 1]"),
    ("polish.hopeless", 1.1, "[0, 1]"),
    ("polish.env_steps", 0, ">= 1"),
    ("polish.enough", 0.0, "> 0"),
    ("polish.enough", math.nan, "> 0"),
    ("polish.teacher_weight", -0.1, ">= 0"),
    ("polish.teacher_weight", math.inf, ">= 0"),
    ("polish.teacher_weight", math.nan, ">= 0"),
    ("polish.critic_warmup", -0.1, "[0, 1)"),
    ("polish.critic_warmup", 1.0, "[0, 1)"),
    ("polish.learning_rate", 0.0, "> 0"),
    ("polish.learning_rate", math.inf, "> 0"),
    ("polish.learning_rate", math.nan, "> 0"),
    ("polish.target_kl", 0.0, "> 0"),
    ("polish.target_kl", math.nan, "> 0"),
    ("polish.num_envs", 0, ">= 1"),
    ("polish.num_steps", 1, ">= 2"),
    ("polish.sequence_length", 1, ">= 2"),
    ("polish.epochs", 0, ">= 1"),
    ("polish.batch_size", 1, ">= 2"),
    ("polish.clip_range", 0.0, "> 0"),
    ("polish.clip_range", math.nan, "> 0"),
    ("polish.discount", -0.1, "[0, 1]"),
    ("polish.discount", 1.1, "[0, 1]"),
    ("polish.gae_lambda", -0.1, "[0, 1]"),
    ("polish.gae_lambda", 1.1, "[0, 1]"),
    ("polish.std_end", 0.0, "(0, 1]"),
    ("polish.std_end", 1.1, "(0, 1]"),
    ("polish.average_decay", -0.1, "[0, 1)"),
    ("polish.average_decay", 1.0, "[0, 1)"),
    ("polish.snapshots", 0, ">= 1"),
    ("polish.snapshots", 2001, "<= 2,000"),
    ("value.hidden_sizes", (8, 0), "positive widths"),
    ("value.gradient_steps", 0, ">= 1"),
    ("evaluate.episodes", 1, ">= 2"),
    ("evaluate.episodes", 100_001, "<= 100,000"),
    ("evaluate.validation_episodes", 0, ">= 1"),
    ("evaluate.finalists", 0, ">= 1"),
    ("evaluate.finalist_episodes", -1, ">= 0"),
    ("evaluate.confidence", 0.4, "[0.5, 1)"),
    ("evaluate.confidence", 1.0, "[0.5, 1)"),
    ("evaluate.certify", 0.0, "> 0"),
    ("evaluate.certify", math.inf, "> 0"),
    ("evaluate.max_episodes", 49, ">= 50"),
    ("evaluate.max_episodes", 1_000_001, "<= 1,000,000"),  # certificates about more are not read
    ("evaluate.num_envs", 0, ">= 1"),
    ("seed", -1, ">= 0"),
    ("workers", -1, ">= 0"),
]
ALLOWED: list[tuple[str, Any]] = [
    ("ensemble.teachers", ()),
    ("ensemble.teachers", ("ppo/LunarLander-v3",)),
    ("ensemble.combine", "value"),
    ("student.hidden_sizes", ()),
    ("student.hidden_sizes", (1,)),
    ("student.channels", ()),
    ("student.compression", 0.5),
    ("loss.temperature", 0.01),
    ("loss.temperature_end", 0.01),
    ("loss.jensen_shannon_beta", 0.9),
    ("loss.q_temperature", 0.01),
    ("loss.features.weight", 0.0),
    ("loss.features.layers", {"a": "output"}),
    ("loss.relations.weight", 0.0),
    ("loss.relations.layers", {"a": "output"}),
    ("loss.hard_weight", 1.0),
    ("loss.near_bound", 1.0),
    ("loss.beyond_bounds", 0.0),
    ("loss.beyond_bounds", 1.0),
    ("loss.q_gap_fraction", 2.0),
    ("collect.rounds", 1),
    ("collect.num_envs", 1),
    ("collect.env_steps", 128),
    ("collect.teacher_action_prob", 0.0),
    ("collect.teacher_action_prob", 1.0),
    ("collect.epsilon", 0.0),
    ("collect.epsilon", 1.0),
    ("collect.action_noise", 0.0),
    ("collect.window", 1),
    ("collect.max_extra_states", 1),
    ("train.members", 1),
    ("train.batch_size", 1),
    ("train.random_shift", 0),
    ("train.average_decay", 0.0),
    ("train.holdout", 0.0),
    ("train.holdout", 0.5),
    ("self_distill.generations", 0),
    ("self_distill.teacher_weight", 0.0),
    ("self_distill.teacher_weight", 1.0),
    ("self_distill.gradient_steps", 1),
    ("polish.below", 0.0),
    ("polish.below", 1e9),
    ("polish.further_episodes", 0),
    ("polish.patience", 1),
    ("polish.hopeless", 0.0),
    ("polish.hopeless", 1.0),
    ("polish.env_steps", 1),
    ("polish.teacher_weight", 0.0),
    ("polish.critic_warmup", 0.0),
    ("polish.num_envs", 1),
    ("polish.num_steps", 2),
    ("polish.epochs", 1),
    ("polish.batch_size", 2),
    ("polish.discount", 0.0),
    ("polish.discount", 1.0),
    ("polish.gae_lambda", 0.0),
    ("polish.gae_lambda", 1.0),
    ("polish.std_end", 1.0),
    ("polish.average_decay", 0.0),
    ("polish.snapshots", 1),
    ("value.hidden_sizes", ()),
    ("value.gradient_steps", 1),
    ("evaluate.episodes", 2),
    ("evaluate.validation_episodes", 1),
    ("evaluate.finalists", 1),
    ("evaluate.finalist_episodes", 0),
    ("evaluate.confidence", 0.5),
    ("evaluate.certify", 1.05),
    ("evaluate.max_episodes", 50),
    ("evaluate.max_episodes", 1_000_000),
    ("evaluate.num_envs", 1),
    ("seed", 0),
    ("workers", 0),
    ("frame_stack", 1),
    ("max_episode_steps", 1),
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


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("learning_rate", 0.0, "> 0"), ("temperature", -1.0, "> 0"), ("hard_weight", 1.5, "[0, 1]"), ("hard_weight", -0.1, "[0, 1]")],
)
def test_a_member_s_own_setting_is_refused_as_the_others(field, value, allowed):
    with pytest.raises(RequestError, match=rf"train\.vary: {field} is {value}; it must be (in )?{re.escape(allowed)}"):
        MemberConfig(**{field: value})


def test_settings_of_members_need_as_many_members():
    varied = (MemberConfig(), MemberConfig(temperature=2.0), MemberConfig(hard_weight=0.5))
    assert [TrainConfig(vary=varied, members=members).members_of(100) for members in (None, 3, 7)] == [3, 3, 7]

    with pytest.raises(RequestError, match=r"train\.vary is '3 settings'; it must be no more than train\.members = 2"):
        TrainConfig(vary=varied, members=2)


def test_students_with_convolutions_are_alone_by_default():
    assert [TrainConfig().members_of(100, has_convolutions=images) for images in (False, True)] == [4, 1]
    assert TrainConfig(members=3).members_of(100, has_convolutions=True) == 3


def test_every_numeric_or_named_field_is_among_the_refused():
    unchecked = {
        "teacher",
        "env",
        "algo",
        "normalization",
        "extractor",
        "output",
        "device",
        "train.vary",
        "engine",
    }  # any text; and what has tests of its own
    fields = {field.name: field.type for field in dataclasses.fields(DistillConfig)}
    for section, kind in SECTIONS.items():
        fields |= {f"{section}.{field.name}": field.type for field in dataclasses.fields(kind)}
    checked = {name for name, kind in fields.items() if kind != "bool"}
    assert checked - set(SECTIONS) - unchecked == {name for name, _, _ in REFUSED}


@pytest.mark.parametrize("request_", ["os.system('x')", "a b", {"A": {}, "B": {}}, {"A": 3}, "", "a::b"])
def test_a_wrapper_is_a_name_with_arguments(request_):
    with pytest.raises(RequestError, match="it must be a known name, module:Class, or"):
        EnvironmentOptions(wrapper=(request_,))


def test_wrappers_are_names_and_arguments():
    assert EnvironmentOptions().wrappers is None
    assert EnvironmentOptions(wrapper=("none",)).wrappers == ()
    asked = EnvironmentOptions(wrapper=("a.b:C", {"D": {"n": 1}}, {"E": None})).wrappers
    assert asked == (("a.b:C", {}), ("D", {"n": 1}), ("E", {}))
    assert DistillConfig(env="X-v0", wrapper=("D",), frame_stack=2).environment == EnvironmentOptions("X-v0", {}, ("D",), 2)


def test_wrappers_are_written_as_options_for_a_shell():
    asked = [("A", {}), ("m:B", {"text": "it's", "n": 1})]
    words = shlex.split(wrapper_options(asked))
    assert words[:3] == ["--wrapper", "A", "--wrapper"]
    assert json.loads(words[3]) == {"m:B": {"text": "it's", "n": 1}}
    assert wrapper_options([]) == "--wrapper none"


def test_the_job_s_options_for_the_environment_are_those_of_the_other_commands():
    shared = [field.name for field in dataclasses.fields(EnvironmentOptions)]
    kinds = {field.name: (field.type, field.default) for field in dataclasses.fields(DistillConfig)}
    assert {name: kinds[name] for name in shared} == {
        field.name: (field.type, field.default) for field in dataclasses.fields(EnvironmentOptions)
    }


def test_size_and_compression_exclude_each_other():
    with pytest.raises(RequestError, match=r"student\.compression is 10\.0.*hidden_sizes"):
        StudentConfig(hidden_sizes=(8,), compression=10.0)


def test_each_teacher_of_an_ensemble_has_one_weight():
    EnsembleConfig(teachers=("a",), weights=(1.0, 3.0))
    with pytest.raises(RequestError, match=r"ensemble\.weights is \(1\.0, 3\.0\); it must be 3 numbers"):
        EnsembleConfig(teachers=("a", "b"), weights=(1.0, 3.0))
    with pytest.raises(RequestError, match=r"ensemble\.weights is .*'value'"):
        EnsembleConfig(teachers=("a",), weights=(1.0, 3.0), combine="value")


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
