"""pyproject.toml and constraints.txt say the same, and scripts/test_floors.py tests what they say."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("test_floors", ROOT / "scripts" / "test_floors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    return [requirement for text in texts if (requirement := Requirement(text)).name != PROJECT["name"]]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_tested_version_is_an_allowed_one(requirement):
    pinned = {normal(name): version for name, version in PINS.items()}
    assert requirement.specifier.contains(pinned[normal(requirement.name)])


def test_floors_are_the_lowest_versions_of_all_dependencies(script, tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project]\nname = "x"\ndependencies = ["torch>=2.10", "jsonargparse[signatures]>=4.49"]\n'
        '[project.optional-dependencies]\nmujoco = ["gymnasium[mujoco]>=1.1", "mujoco>=3.1,<4"]\ndev = ["x[mujoco]", "types-PyYAML"]\n'
    )
    assert script.floors(pyproject) == {"torch": "2.10", "jsonargparse": "4.49", "gymnasium": "1.1", "mujoco": "3.1"}


def test_a_dependency_has_one_floor(script):
    floors = script.floors(ROOT / "pyproject.toml")
    for requirement in requirements():
        lowest = [part.version for part in requirement.specifier if part.operator == ">="]
        assert lowest == [floors[requirement.name]]


def test_python_classifiers_begin_with_the_lowest_python():
    versions = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert f">={versions[0]}" == PROJECT["requires-python"]
