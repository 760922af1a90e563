"""Imports point down: one order between folders and one inside each folder; a few folders alone know stable-baselines3."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "policy_distill"
ORDERS: dict[str, tuple[str, ...]] = {
    "policy_distill": (
        "commands",
        "studies",
        "pipeline",
        "evaluation",
        "training",
        "rollouts",
        "export",
        "report",
        "losses",
        "teachers",
        "policies",
        "environments",
        "support",
        "config",
    ),
    "policy_distill.commands": (
        "cli",
        "compare_policies",
        "verify_certificate",
        "evaluate_policy",
        "export_student",
        "render_policy",
        "run_suite",
        "simulate_statistics",
        "distill_policy",
        "run_ablation",
        "check_teacher",
        "train_teacher",
        "benchmark",
        "options",
    ),
    "policy_distill.commands.options": (
        "parser",
        "resuming",
        "config_file",
    ),
    "policy_distill.config": (
        "code",
        "loss",
        "reading",
        "environment",
        "engine",
        "inputs",
        "stages",
        "checks",
        "printable",
    ),
    "policy_distill.environments": (
        "vector",
        "matching",
        "frame_stacks",
        "specs",
        "known_wrappers",
        "quiet",
        "border",
        "registration",
        "action_masks",
        "zoo_wrappers",
        "image_wrappers",
        "wrappers",
        "single_machine",
    ),
    "policy_distill.evaluation": (
        "verify",
        "machines",
        "exports",
        "measure",
        "parity",
        "return_cache",
        "teacher_check",
        "certify",
        "action_units",
        "disagreements",
        "render",
        "statistics",
        "probe",
        "rounding",
    ),
    "policy_distill.evaluation.statistics": (
        "simulation",
        "sequential",
        "suites",
        "intervals",
        "aggregates",
        "means",
    ),
    "policy_distill.evaluation.teacher_check": (
        "preflight",
        "checkup",
        "screen",
        "files",
        "look",
        "versions",
        "returns",
        "behaviour",
        "claims",
        "findings",
    ),
    "policy_distill.export": (
        "hub",
        "artefact",
        "formats",
        "c",
        "sb3",
        "onnx_int8",
        "onnx",
        "onnx_graph",
        "pt2",
        "npz",
        "shared",
        "folded",
        "runner",
    ),
    "policy_distill.export.c": (
        "compiled",
        "programs",
        "source",
        "fixed_source",
        "floating_source",
        "fixed",
        "floating",
        "codes",
        "arrays",
        "interface",
    ),
    "policy_distill.losses": (
        "analytic_gradients",
        "autograd_gradients",
        "objective",
        "relations",
    ),
    "policy_distill.pipeline": (
        "distill",
        "checkpoint",
        "summary",
        "self_distillation",
        "polish",
        "imitation",
        "view_loss",
        "context",
        "state",
        "varying",
        "prepare",
        "sizing",
        "records",
        "state_file",
    ),
    "policy_distill.policies": (
        "student",
        "architecture",
        "views",
        "encoders",
        "quantization",
        "families",
        "divergences",
        "memories",
        "rowwise",
        "reading_layers",
        "fast_forward",
        "actions",
        "observations",
        "policy",
    ),
    "policy_distill.policies.families": (
        "categorical",
        "multi_categorical",
        "bernoulli",
        "choices",
        "gaussian",
        "deterministic",
        "continuous",
        "family",
        "q_values",
    ),
    "policy_distill.report": (
        "printing",
        "write",
        "run_page",
        "suite_page",
        "markdown",
        "plots",
        "verdict",
        "candidates",
        "page",
        "tensorboard",
        "rows",
        "drawing",
    ),
    "policy_distill.rollouts": (
        "workers",
        "trajectories",
        "ppo_rollouts",
        "collect",
        "stream",
        "episodes",
        "play",
        "acting",
        "processes",
        "stochastic",
        "numpy_policies",
        "transitions",
        "random_policy",
        "watchdog",
    ),
    "policy_distill.rollouts.processes": (
        "distant",
        "remote",
        "serving",
    ),
    "policy_distill.studies": (
        "suite",
        "ablation",
        "train_teacher",
        "benchmark",
        "scheduler",
    ),
    "policy_distill.studies.scheduler": (
        "schedule",
        "on_ray",
        "jobs",
        "parcels",
        "children",
    ),
    "policy_distill.studies.benchmark": (
        "engines",
        "stack",
        "scale",
        "train",
        "train_kinds",
        "job",
        "infer",
        "evaluate",
        "collect",
        "collect_kinds",
        "result",
        "agents",
        "interleave",
        "limits",
    ),
    "policy_distill.studies.train_teacher": (
        "training",
        "checkpoint",
        "model_state",
        "replay_file",
        "recipes",
        "returns",
        "publish",
    ),
    "policy_distill.support": (
        "ray_cluster",
        "files",
        "signals",
        "parents",
        "progress",
        "figures",
        "seeds",
        "untrusted",
        "sampling",
        "threads",
        "terminal",
        "trees",
        "images",
        "pending",
    ),
    "policy_distill.teachers": (
        "action_values",
        "environment",
        "recurrent",
        "teacher",
        "reading",
        "ensemble",
        "networks",
        "files",
        "algorithms",
    ),
    "policy_distill.teachers.files": (
        "folder",
        "statistics_files",
        "training_record",
        "archive",
        "normalization",
        "weights",
        "saved_spaces",
        "trusted",
        "saved_config",
        "not_agents",
        "inert",
        "errors",
    ),
    "policy_distill.teachers.networks": (
        "critics",
        "live",
        "masked",
        "recurrent",
        "rebuild",
        "recording",
        "acting",
        "counting",
        "extractor",
        "pixels",
        "plain_layers",
    ),
    "policy_distill.training": (
        "value_network",
        "trainer",
        "optimizers",
        "ppo",
        "sequences",
        "batches",
        "stacks",
        "dataset",
        "frames",
        "row_file",
        "check_batches",
    ),
    "policy_distill.training.stacks": (
        "interface",
        "recurrent",
        "autograd",
        "analytic",
        "flat",
    ),
    "policy_distill.training.ppo": (
        "kickstart",
        "vector_ppo",
        "autograd_ppo",
        "ppo",
    ),
}
"""Folder -> what lies in it, from top to bottom: each may import what stands after it."""
KNOWS_SB3 = tuple(
    f"policy_distill.{name}"
    for name in (
        "teachers",
        "environments.image_wrappers",
        "export.sb3",
        "studies.benchmark",
        "studies.train_teacher",
    )
)
MOST_ENTRIES = 15


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


def wrong_direction(importer: str, other: str) -> str | None:
    """Why ``importer`` may not import ``other``, two dotted names of the package; None if it may."""
    mine, theirs = importer.split("."), other.split(".")
    depth = next((i for i, (one, two) in enumerate(zip(mine, theirs, strict=False)) if one != two), min(len(mine), len(theirs)))
    if depth == len(mine):  # a package's own __init__ gathers what lies inside
        return None
    folder = ".".join(mine[:depth])
    if depth == len(theirs):
        return f"{importer} imports the package {folder} that it lies in"
    order = ORDERS[folder]
    if order.index(mine[depth]) < order.index(theirs[depth]):
        return None
    return f"in {folder}, {mine[depth]} stands below {theirs[depth]}"


@pytest.mark.parametrize(
    "folder", sorted({str(path.parent.relative_to(ROOT)).replace("/", ".") for path in MODULES.values()} - {"scripts"})
)
def test_the_order_names_what_is_in_the_folder(folder):
    inside = {name.split(".")[len(folder.split("."))] for name in MODULES if name.startswith(f"{folder}.")}
    assert set(ORDERS.get(folder, ())) == inside


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("scripts.") and name != "policy_distill"])
def test_imports_point_down(name):
    wrong = [
        wrong_direction(name, other)
        for other in imported(MODULES[name])
        if other.split(".")[0] == "policy_distill" and other != "policy_distill"
    ]
    assert not [reason for reason in wrong if reason]
    assert not {other for other in imported(MODULES[name]) if other.split(".")[0] == "scripts"}


def test_a_script_knows_the_command_line_alone():
    for name in MODULES:
        if name.startswith("scripts."):
            assert {other for other in imported(MODULES[name]) if other.startswith("policy_distill")} <= {"policy_distill.commands.cli"}, (
                name
            )


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(KNOWS_SB3)])
def test_stable_baselines3_is_known_to_few(name):
    assert not {other for other in imported(MODULES[name]) if other.split(".")[0] in ("stable_baselines3", "sb3_contrib")}


def starts_a_command(path: Path) -> bool:
    """Whether a script is a command's: there is one for each."""
    return path.is_file() and path.parent.name == "scripts" and f'main(["{path.stem}"' in path.read_text()


def test_no_folder_is_crowded_and_no_module_is_long():
    for folder in {path.parent for path in MODULES.values()}:
        entries = [path for path in folder.iterdir() if path.name not in ("__pycache__", "_data") and not starts_a_command(path)]
        assert len(entries) <= MOST_ENTRIES, folder
    for name, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= 400, name


def test_nothing_outside_the_scripts_is_a_second_program():
    for name, path in MODULES.items():
        if not name.startswith("scripts."):
            assert '__name__ == "__main__"' not in path.read_text() or path.name == "__main__.py", name
