"""The names of the package itself, which are imported when they are first used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import policy_distill


def test_each_public_name_is_there_under_the_name_that_type_checkers_see():
    tree = ast.parse(Path(policy_distill.__file__).read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(policy_distill.__all__)
    for name, module in seen.items():
        assert getattr(policy_distill, name) is getattr(__import__(str(module), fromlist=[name]), name)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'policy_distill' has no attribute 'distil'"):
        _ = policy_distill.distil
