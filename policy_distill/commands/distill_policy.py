"""``policy-distill distill_policy``."""

from __future__ import annotations

from collections.abc import Sequence

from policy_distill.commands.options.parser import Parser, add_zoo_folder, with_zoo_teacher
from policy_distill.config import DistillConfig
from policy_distill.report.printing import DONE, finish
from policy_distill.support.progress import Display


def distill_policy(arguments: Sequence[str]) -> int:
    """Distil a teacher into a small student and measure what it kept."""
    parser = Parser("distill_policy", distill_policy.__doc__)
    parser.add_class_arguments(DistillConfig)
    add_zoo_folder(parser)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    config = with_zoo_teacher(parser.config(options, DistillConfig), options.folder)
    from policy_distill.pipeline.distill import distill
    from policy_distill.report import summary_rows

    result = distill(config, display=Display(quiet=options.json))
    finish(options.json, result.summary, summary_rows(result.summary), str(result.folder))
    return DONE
