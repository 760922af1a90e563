"""``policy-distill train_teacher``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from policy_distill.commands.options.parser import Parser
from policy_distill.report.printing import DONE, finish, plain
from policy_distill.support.figures import spread_text
from policy_distill.support.progress import Display


def train_teacher(arguments: Sequence[str]) -> int:
    """Train a teacher with Stable-Baselines3 from the recipes in agents/ALGO.yml."""
    from policy_distill.studies.train_teacher.recipes import TrainTeacherConfig, train_teacher

    parser = Parser("train_teacher", "Train a teacher with Stable-Baselines3 from the recipes in agents/ALGO.yml.")
    parser.add_class_arguments(TrainTeacherConfig)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    trained = train_teacher(parser.config(options, TrainTeacherConfig), Display(quiet=options.json).note)
    rows = [
        ("agent", str(trained.path)),
        ("return", f"{spread_text(trained.mean, trained.std)} over {trained.episodes} episodes"),
        ("environment steps", f"{trained.steps:,}"),
    ]
    finish(options.json, {name: plain(value) for name, value in dataclasses.asdict(trained).items()}, rows, str(trained.path))
    return DONE
