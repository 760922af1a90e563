"""``policy-distill benchmark``: which options belong to which stage, and what it prints."""

from __future__ import annotations

import json

import pytest

from policy_distill.commands.cli import main


def test_sizes_are_those_that_are_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("policy_distill.studies.benchmark.scale.STEPS", 3)
    assert main(["benchmark", "scale", "--sizes", "[300, 500]", "--turns", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["transitions"], one["storage"]) for one in found["results"]] == [
        (300, "memory"), (300, "disk"), (500, "memory"), (500, "disk")
    ]  # fmt: skip
    assert found["machine"]["cores"] >= 1


def test_a_stage_about_more_than_speed_prints_its_own_table(capsys, monkeypatch):
    monkeypatch.setattr("policy_distill.studies.benchmark.scale.STEPS", 3)
    assert main(["benchmark", "scale", "--sizes", "[300]", "--turns", "1"]) == 0
    printed = capsys.readouterr().out
    assert "transitions  storage" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--sizes", "[300]"], "the stage train has no sizes: leave --sizes out, or time scale"),
        (["scale", "--sizes", "[0]"], "sizes has 0; each must be >= 1"),
        (["scale", "--turns", "0"], "turns is 0; it must be >= 1"),
        (["scale", "--teachers", "agents"], "the stage scale uses no agents"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
