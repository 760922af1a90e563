"""How options are spelled."""

from __future__ import annotations

import pytest

from policy_distill.commands.options.parser import Parser, add_environment_arguments, protocol_of, spelled_out, zoo_path
from policy_distill.config import DistillConfig, EnvironmentOptions, RequestError


def read(*arguments: str) -> EnvironmentOptions:
    """By both kinds of commands, which must agree."""
    shared, job = Parser("test"), Parser("job")
    add_environment_arguments(shared)
    job.add_class_arguments(DistillConfig)
    options = shared.config(shared.parse(arguments), EnvironmentOptions)
    assert job.config(job.parse(arguments), DistillConfig).environment == options
    return options


@pytest.mark.parametrize(
    ("arguments", "kwargs"),
    [
        (["--env-kwargs", "g:-5", "wind:True", "name:east", "bounds:[1, 2]"], {"g": -5, "wind": True, "name": "east", "bounds": [1, 2]}),
        (["--env_kwargs", "name:'1'"], {"name": "1"}),
        (["--env_kwargs", '{"a": 1, "b": {"c": [true]}}'], {"a": 1, "b": {"c": [True]}}),
        (['--env-kwargs={"a": 1}'], {"a": 1}),
        (["--env_kwargs=a:1"], {"a": 1}),
        (["--env_kwargs", "path:a:b"], {"path": "a:b"}),
        (["--env_kwargs", "code:__import__('os')"], {"code": "__import__('os')"}),  # a text: nothing is evaluated
    ],
)  # fmt: skip
def test_arguments_of_the_environment(arguments, kwargs):
    assert read(*arguments).env_kwargs == kwargs


@pytest.mark.parametrize(
    ("arguments", "wrappers"),
    [
        ([], None),
        (["--wrapper", "none"], ()),
        (["--wrapper", "A", "--wrapper=m:B"], (("A", {}), ("m:B", {}))),
        (["--wrapper", "A", "m:B"], (("A", {}), ("m:B", {}))),
        (["--wrapper", '{"A": {"n": 1, "name": "1"}}', "--env", "X-v0"], (("A", {"n": 1, "name": "1"}),)),
        (["--wrapper", '[A, {B: {n: [1.5]}}]'], (("A", {}), ("B", {"n": [1.5]}))),
    ],
)  # fmt: skip
def test_wrappers(arguments, wrappers):
    assert read(*arguments).wrappers == wrappers


def test_hyphens_are_underscores_in_names_alone():
    assert spelled_out(["--frame-stack", "a-b", "--max-episode-steps=c-d"]) == ["--frame_stack", "a-b", "--max_episode_steps=c-d"]
    assert read("--frame-stack", "4", "--max-episode-steps", "7") == EnvironmentOptions(frame_stack=4, max_episode_steps=7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env_kwargs", "nonsense"], "env_kwargs is 'nonsense'; it must be '{\"NAME\": VALUE}' or NAME:VALUE"),
        (["--env_kwargs"], "env_kwargs is ''; it must be '{\"NAME\": VALUE}' or NAME:VALUE"),
        (["--wrapper"], "wrapper is empty"),
        (["--wrapper", "{a"], "cannot be read as YAML"),
        (["--wrapper", '{"A": 3}'], "wrapper is "),
        (["--frame-stack", "two"], "frame_stack"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(arguments, says):
    with pytest.raises(RequestError) as refusal:
        read(*arguments)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_holds_what_a_run_writes(tmp_path):
    (tmp_path / "c.yaml").write_text("wrapper: [A, {B: {n: 2}}]\nenv_kwargs: {a: 1}\nframe_stack: null\n")
    asked = EnvironmentOptions(env_kwargs={"a": 1}, wrapper=("A", {"B": {"n": 2}}))
    assert read("--config", str(tmp_path / "c.yaml")) == asked
    assert read("--config", str(tmp_path / "c.yaml"), "--wrapper", "C").wrappers == (("C", {}),)
    (tmp_path / "c.yaml").write_text("wrapper: A\n")
    with pytest.raises(RequestError, match="wrapper is 'A'; in a file it must be a list"):
        read("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--student.compression", "nan"], "student.compression is 'nan'; it must be float, or left out"),
        (["--student.hidden_sizes", "[1.5]"], "student.hidden_sizes is '[1.5]'; it must be a list of int, or left out"),
        (["--student.bits", "5"], "student.bits is '5'; it must be one of [8, 4, 3, 2], or left out"),
        (["--loss.features.layers", "{"], "loss.features.layers is '{'; it must be {\"NAME\": VALUE}, or left out"),
        (["--train.vary", "{}"], "train.vary is '{}'; it must be a list"),
        (["--train.vary", "[1]"], "train.vary holds '1'; each item must be a mapping of settings"),
        (["--student", "nope"], "student is 'nope'; it must be a YAML file of the settings student.NAME"),
        (["--config", "nope.yaml"], "nope.yaml: --config names a YAML file"),
    ],
)
def test_values_of_a_wrong_type_are_refused_without_the_parser_s_own_words(arguments, says):
    job = Parser("job")
    job.add_class_arguments(DistillConfig)
    with pytest.raises(RequestError) as refusal:
        job.config(job.parse(arguments), DistillConfig)
    assert says in str(refusal.value)
    assert not any(words in str(refusal.value) for words in ("Parser key", "<class", "Subtypes", "class_path"))


def test_refusals_name_options_as_the_command_does():
    with pytest.raises(RequestError, match=r"^max_episodes is 40; it must be >= 50"):
        protocol_of(max_episodes=40)


def test_a_folder_of_agents_is_not_ignored_beside_a_teacher():
    with pytest.raises(RequestError, match="folder is 'agents', which goes with --algo and --env"):
        zoo_path("agent.zip", "agents", "ppo", "CartPole-v1")
