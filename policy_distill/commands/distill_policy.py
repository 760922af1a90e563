"""``policy-distill distill_policy``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from policy_distill.commands.options.parser import Parser, add_zoo_folder, with_zoo_teacher
from policy_distill.commands.options.resuming import SETTINGS, is_finished, with_saved_settings
from policy_distill.config import DistillConfig
from policy_distill.report.printing import DONE, finish
from policy_distill.support.progress import Display


def distill_policy(arguments: Sequence[str]) -> int:
    """Distil a teacher into a small student and measure what it kept."""
    parser = Parser("distill_policy", distill_policy.__doc__)
    parser.add_class_arguments(DistillConfig)
    add_zoo_folder(parser)
    parser.add_argument("--resume", type=str | None, default=None, metavar="RUN", help="continue the interrupted run in this folder")
    parser.add_display_arguments()
    options = parser.parse(with_saved_settings(arguments))
    if options.resume and is_finished(Path(options.resume)):
        others = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")} - {"--resume", "--json"}
        return _print_finished(Path(options.resume), options.json, ignored=sorted(others))
    config = with_zoo_teacher(parser.config(options, DistillConfig), options.folder)
    if options.resume:
        config = dataclasses.replace(config, output=options.resume)
    from policy_distill.pipeline.distill import distill
    from policy_distill.report import summary_rows

    result = distill(config, display=Display(quiet=options.json), resume=options.resume is not None)
    finish(options.json, result.summary, summary_rows(result.summary), str(result.folder))
    return DONE


def _print_finished(run: Path, as_json: bool, *, ignored: Sequence[str]) -> int:
    from policy_distill.pipeline import checkpoint
    from policy_distill.report import summary_rows
    from policy_distill.report.write import read_result
    from policy_distill.support.files import locked

    summary = read_result(run)
    if checkpoint.folder_of(run).exists():  # the process was killed while it removed the checkpoint
        with locked(run):
            checkpoint.remove(run)
    other = f"; {' and '.join(ignored)} had no effect: its settings are in {run / SETTINGS}" if ignored else ""
    print(f"policy-distill: {run} is finished, and is not run again{other}", file=sys.stderr)
    finish(as_json, summary, summary_rows(summary), str(run))
    return DONE
