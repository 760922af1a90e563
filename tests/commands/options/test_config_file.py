"""A file given with --config sets options; it neither imports, nor calls, nor trusts."""

from __future__ import annotations

import sys

import pytest

from policy_distill.commands.options.parser import Parser
from policy_distill.config import DistillConfig, RequestError
from policy_distill.studies.train_teacher.recipes import TrainTeacherConfig

CANARY = "config_file_canary"


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that must not be imported."""
    (tmp_path / f"{CANARY}.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert CANARY not in sys.modules, "the file's module was imported"


def parse(folder, text, *arguments, kind=DistillConfig):
    path = folder / "config.yaml"
    path.write_text(text)
    parser = Parser("distill_policy")
    parser.add_class_arguments(kind)
    return parser.config(parser.parse(["--config", str(path), *arguments]), kind)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"loss: {{class_path: {CANARY}.Thing}}", "class_path"),
        (f"train: {{vary: [{{class_path: {CANARY}.Thing}}]}}", "class_path"),
        (f"loss: {CANARY}.Thing", "loss is .* must be a mapping of settings"),
        (f"student: {{hidden_sizes: [8]}}\nensemble: {CANARY}.Thing", "ensemble is .* must be a mapping of settings"),
        (f"train: {{vary: [{CANARY}.Thing]}}", "vary is .* must be a mapping of settings"),
        ("loss: other.yaml", "must be a mapping of settings"),
        ("config: other.yaml", "names another config file"),
        ("- 1", "contains no settings"),
        ("seed: !!python/object/apply:os.getpid []", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("x" * 40_000, "larger than"),
        ("seed: " + "9" * 5000, "cannot be read"),
        ("hyperparams: &a [*a]", "a recursive alias"),
        ("loss: {temperature: null}", "invalid value"),
        ("\n".join(["b0: &b0 [1]", *(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]" for i in range(1, 30))]), "too many aliases"),
    ],
)
def test_what_is_no_plain_setting_is_refused(text, says, canary):
    with pytest.raises(RequestError, match=says) as caught:
        parse(canary, text)
    assert str(caught.value).isprintable()


def test_free_settings_are_data_too(canary):
    """jsonargparse imported and called what a class_path in them named."""
    text = f"algo: ppo\nenv: CartPole-v1\nhyperparams: {{policy_kwargs: {{class_path: {CANARY}.Thing}}}}"
    with pytest.raises(RequestError, match="class_path"):
        parse(canary, text, kind=TrainTeacherConfig)


def test_a_run_s_own_file_is_read(canary):
    text = "seed: 3\nloss: {temperature: 2.0}\ntrain: {vary: [{learning_rate: 0.003}, {temperature: 2}]}\nensemble: {teachers: [a]}"
    config = parse(canary, text)
    assert (config.seed, config.loss.temperature, len(config.train.vary)) == (3, 2.0, 2)


def test_trust_is_what_stands_on_the_command_line(canary):
    with pytest.raises(RequestError, match=r"the config file sets trust: true.* give --trust"):
        parse(canary, "trust: true")
    assert parse(canary, "trust: true", "--trust").trust
    assert not parse(canary, "trust: true", "--trust", "false").trust
    assert not parse(canary, "trust: false").trust


def test_a_module_is_imported_for_what_was_typed_alone(canary):
    with pytest.raises(
        RequestError, match=rf"names the environment {CANARY}:Env-v0, and importing {CANARY} runs its code: give --env {CANARY}:Env-v0"
    ):
        parse(canary, f"env: {CANARY}:Env-v0")
    assert parse(canary, f"env: {CANARY}:Env-v0", "--env", f"{CANARY}:Env-v0").env == f"{CANARY}:Env-v0"
    assert parse(canary, f"env: {CANARY}:Env-v0", "--env=CartPole-v1").env == "CartPole-v1"
    assert parse(canary, "env: CartPole-v1").env == "CartPole-v1"


@pytest.mark.parametrize("form", [["--config", "FILE"], ["--config=FILE"]])
def test_what_is_typed_counts_wherever_it_stands(form, canary):
    """A file after them would replace what was typed by a module, and the option's name would seem to allow it."""
    path = canary / "config.yaml"
    path.write_text(f"env: {CANARY}:Env-v0\ntrust: true\nwrapper: ['{CANARY}:Thing']\nextractor: mine.py:Mine\nseed: 3\n")
    parser = Parser("distill_policy")
    parser.add_class_arguments(DistillConfig)
    typed = ["--env", "CartPole-v1", "--trust", "false", "--wrapper", "none", "--extractor", "null"]
    config = parser.config(parser.parse([*typed, *(part.replace("FILE", str(path)) for part in form)]), DistillConfig)
    assert (config.env, config.trust, config.wrapper, config.extractor, config.seed) == ("CartPole-v1", False, ("none",), None, 3)
