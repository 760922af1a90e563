"""What README.md shows works as it is written."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from policy_distill.commands import cli
from policy_distill.commands.options.parser import Parser
from policy_distill.config import DistillConfig

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMAND = re.compile(r"(?:policy-distill |scripts/)(\w+)(?:\.py)?((?: .*)?)$")


def blocks(text: str, language: str) -> list[str]:
    """Contents of the code blocks of ``language``."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def shown_commands() -> list[str]:
    """Each line of a code block that calls a command of ours, without what comes before it."""
    lines = "\n".join(blocks(README, "") + blocks(README, "sh") + blocks(README, "bash")).replace("\\\n", " ").splitlines()
    return [found[0] for line in lines if (found := COMMAND.search(line))]


class Understood(BaseException):
    """The parser has read the whole line."""


@pytest.mark.parametrize("line", shown_commands())
def test_a_shown_command_is_understood(line, monkeypatch, tmp_path):
    parse = Parser.parse

    def only_parse(self: Any, arguments: Sequence[str]) -> NoReturn:
        parse(self, arguments)
        raise Understood

    monkeypatch.setattr(Parser, "parse", only_parse)
    monkeypatch.chdir(tmp_path)
    command, *arguments = shlex.split(line.removeprefix("policy-distill ").removeprefix("scripts/"), comments=True)
    for name, value in itertools.pairwise(arguments):
        if name == "--config":
            Path(value).write_text("{}")
    if "--help" in arguments:
        arguments.remove("--help")
    with pytest.raises(Understood):
        cli.command(command.removesuffix(".py"))(arguments)


def shown_options() -> list[str]:
    """Each piece of code that begins with an option and gives it a value; further spellings in brackets come without one."""
    return [code for code in re.findall(r"`(--[^`]+)`", README) if " " in code]


@pytest.mark.parametrize("options", shown_options())
def test_a_shown_option_is_understood(options, monkeypatch):
    parse = Parser.parse

    def only_parse(self: Any, arguments: Sequence[str]) -> NoReturn:
        self.config(parse(self, arguments), DistillConfig)
        raise Understood

    monkeypatch.setattr(Parser, "parse", only_parse)
    pairs = [part for part in shlex.split(options) if part not in ("--config", "config.yaml", "file.yaml")]
    with pytest.raises(Understood):
        cli.command("distill_policy")(pairs)


def test_there_are_commands_to_read():
    assert {line.split()[0] for line in shown_commands()} == {"policy-distill", "scripts/distill_policy.py"}
    assert len(shown_commands()) >= 6


def test_the_example_in_python_runs_and_prints_what_it_says(tmp_path):
    """``print(...)  # retention 1.00`` prints these words, and numbers a tenth away at most."""
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    (code,) = blocks(next(text for text in section if text.startswith("From Python")), "python")
    promised = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert len(promised) >= 2
    (tmp_path / "example.py").write_text(code)
    # One thread: with more, PPO on a busy machine is many times slower.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    number = re.compile(r"-?\d+(?:\.\d+)?")
    printed = done.stdout.splitlines()
    assert [number.sub("N", line) for line in printed] == [number.sub("N", line) for line in promised]
    for line, wanted in zip(printed, promised, strict=True):
        assert [float(value) for value in number.findall(line)] == pytest.approx(
            [float(value) for value in number.findall(wanted)], rel=0.1
        )
    assert (tmp_path / "runs" / "python" / "student.zip").is_file()
