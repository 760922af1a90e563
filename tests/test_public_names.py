"""The names of the package itself, which are imported when they are first used."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import policy_distill


def test_each_public_name_is_there_under_the_name_that_type_checkers_see():
    tree = ast.parse(Path(policy_distill.__file__).read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(policy_distill.__all__)
    for name, module in seen.items():
        assert getattr(policy_distill, name) is getattr(__import__(str(module), fromlist=[name]), name)


def test_every_group_of_a_job_s_settings_is_public():
    waiting: list[Any] = [policy_distill.DistillConfig]
    groups: set[Any] = set()
    while waiting:
        kind = waiting.pop()
        groups.add(kind)
        parts = [part for hint in get_type_hints(kind).values() for part in (hint, *get_args(hint))]
        waiting += [part for part in parts if dataclasses.is_dataclass(part) and part not in groups]
    assert len(groups) > 10
    assert {kind.__name__ for kind in groups} <= set(policy_distill.__all__)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'policy_distill' has no attribute 'distil'"):
        _ = policy_distill.distil
