"""Imports point down: each module knows only what lies below it, and one corner alone knows stable-baselines3."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "policy_distill"
TIERS = [
    {"scripts"},
    {"cli"},
    {"commands"},
    {"verify"},
    {"suite", "measure", "render", "ablation", "benchmark"},
    {"distill", "search"},
    {"summary"},
    {"imitation", "generations", "polish"},
    {"run", "rounds", "action_units"},
    {"job", "check", "report", "certify", "known_returns", "completed"},
    {"workers"},
    {
        "collect",
        "evaluate",
        "trajectories",
        "disagreements",
        "train",
        "values",
        "export",
        "kickstart",
        "checkpoint",
        "tracking",
        "progress",
        "ppo",
        "stepping",
        "acting",
        "sampling",
        "probe",
    },
    {"batches", "backends", "environment_choice"},
    {
        "teachers",
        "students",
        "environments",
        "fitting",
        "known_wrappers",
        "wrappers",
        "zoo_wrappers",
        "dataset",
        "objective",
        "stack",
        "gradients",
        "autograd_gradients",
    },
    {
        "actions",
        "losses",
        "mixtures",
        "relations",
        "statistics",
        "spaces",
        "files",
        "layers",
        "rowwise",
        "rounding",
        "processes",
        "seeds",
        "border",
        "quiet",
        "watchdog",
    },
    {"untrusted", "terminal"},
    {"config"},
    {"printable", "figures"},
]
KNOWS_SB3 = tuple(f"policy_distill.{name}" for name in ("teachers", "export.sb3", "kickstart", "ppo", "stepping", "benchmark"))


def modules() -> dict[str, Path]:
    """Dotted name -> file, scripts among them."""
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "_data" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, inside functions and under TYPE_CHECKING too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names


def ours(name: str) -> set[str]:
    return {other for other in imported(MODULES[name]) if other.split(".")[0] == "policy_distill"}


def part(name: str) -> str:
    """``policy_distill.teachers.archive`` -> ``teachers``."""
    pieces = name.split(".")
    return pieces[0] if pieces[0] != "policy_distill" or len(pieces) == 1 else pieces[1]


def tier(name: str) -> int:
    levels = [level for level, parts in enumerate(TIERS) if part(name) in parts]
    assert levels, f"{name} is in no tier: give it its place in TIERS"
    return levels[0]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "policy_distill"])
def test_imports_point_down(name):
    wrong = {other for other in ours(name) if other != "policy_distill" and tier(other) < tier(name)}
    assert not wrong, f"{name} imports {sorted(wrong)} from above"


def test_no_module_imports_itself_by_a_detour():
    graph = {name: {other for other in ours(name) if other in MODULES and other != name} for name in MODULES}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    for name in graph:  # a package's own __init__ gathers what lies inside
        graph[name] -= {package for package in packages if name.startswith(f"{package}.")}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_parts_of_the_package_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        graph.setdefault(part(name), set()).update(part(other) for other in ours(name) if part(other) != part(name))
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(KNOWS_SB3)])
def test_stable_baselines3_is_known_to_one_corner_alone(name):
    assert not {other for other in imported(MODULES[name]) if other.split(".")[0] in ("stable_baselines3", "sb3_contrib")}


def test_nothing_outside_the_scripts_is_a_second_program():
    for name, path in MODULES.items():
        if not name.startswith("scripts."):
            assert "__main__" not in path.read_text() or path.name == "__main__.py", name
