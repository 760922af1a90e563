"""``policy-distill train_teacher``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policy_distill.commands.options.parser import Parser
from policy_distill.commands.options.resuming import is_finished, with_saved_settings
from policy_distill.report.printing import DONE, finish, plain
from policy_distill.support.figures import spread_text
from policy_distill.support.progress import Display
from policy_distill.support.untrusted import read_json


def train_teacher(arguments: Sequence[str]) -> int:
    """Train a teacher with Stable-Baselines3 from the recipes in agents/ALGO.yml."""
    from policy_distill.studies.train_teacher.recipes import TrainTeacherConfig
    from policy_distill.studies.train_teacher.training import train_teacher

    parser = Parser("train_teacher", "Train a teacher with Stable-Baselines3 from the recipes in agents/ALGO.yml.")
    parser.add_class_arguments(TrainTeacherConfig)
    parser.add_argument(
        "--resume", type=str | None, default=None, metavar="RUN", help="continue the interrupted training in this run folder"
    )
    parser.add_display_arguments()
    options = parser.parse(with_saved_settings(arguments))
    if options.resume and is_finished(Path(options.resume)):
        found = read_json(Path(options.resume, "result.json"), "name the run folder of a training")
        print(f"policy-distill: {options.resume} is finished, and is not run again", file=sys.stderr)
        return _print(found, options.json)
    config = parser.config(options, TrainTeacherConfig)
    if options.resume:
        config = dataclasses.replace(config, run_folder=options.resume)
    trained = train_teacher(config, Display(quiet=options.json).note, resume=options.resume is not None)
    return _print({name: plain(value) for name, value in dataclasses.asdict(trained).items()}, options.json)


def _print(trained: Mapping[str, Any], as_json: bool) -> int:
    rows = [
        ("agent", trained["path"]),
        ("return", f"{spread_text(trained['mean'], trained['std'])} over {trained['episodes']} episodes"),
        ("environment steps", f"{trained['steps']:,}"),
    ]
    finish(as_json, trained, rows, trained["path"])
    return DONE
