"""``policy-distill run_suite``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from policy_distill.commands.options.parser import Parser
from policy_distill.config import DistillConfig, RequestError
from policy_distill.report.printing import DONE
from policy_distill.support.progress import Display
from policy_distill.support.signals import saying_how_to_go_on
from policy_distill.support.terminal import Terminal

JOBS = (
    "number of jobs at the same time; default: one for each core, and with --engine ray as many as the cluster has room for; 0: one "
    "after the other in this process"
)


def run_suite(arguments: Sequence[str]) -> int:
    """Distil every teacher in a folder with the same settings, and aggregate the retentions."""
    parser = Parser("run_suite", run_suite.__doc__)
    parser.add_argument("--teachers", type=str, required=True, help="folder that contains ALGO/ENV_RUN/ENV.zip")
    parser.add_class_arguments(DistillConfig, skip={"teacher", "output"})
    parser.add_argument("--output", type=str, default="runs/suite", help="folder of the tables and the runs")
    parser.add_argument("--jobs", type=int | None, default=None, help=JOBS)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    config = parser.config(options, DistillConfig)
    if config.normalization not in (None, "none"):
        raise RequestError("normalization applies to a single agent: leave it out of a suite, and distil that agent with distill_policy")
    from policy_distill.report import aggregate_rows
    from policy_distill.report.rows import times
    from policy_distill.studies import suite

    with saying_how_to_go_on("what is done is kept, and the same command goes on from there"):
        result = suite.run_suite(
            Path(options.teachers), config, output=Path(options.output), jobs=options.jobs, display=Display(quiet=options.json)
        )
    aggregates = result.aggregates()
    if options.json:
        print(json.dumps({"rows": result.rows, "aggregates": aggregates}, indent=2))
        return DONE
    table = Table(box=None, pad_edge=False)
    for title, justify in (("teacher", "left"), ("student", "left"), ("smaller", "right"), ("retention", "left"), ("s", "right")):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in result.rows:
        if row["status"] != "done":
            table.add_row(row["teacher"], row["status"], "", row["reason"], "")
            continue
        kept = suite.kept_text(row)
        table.add_row(row["teacher"], row["student"], times(row["compression"]), kept, f"{row['seconds']:.0f}")
    console = Terminal()
    console.print(table)
    if aggregates:
        console.print(f"\nteachers with {suite.WORTH_COMPRESSING:,} parameters or more:")
    for label, figure, over_episodes, *_ in aggregate_rows(aggregates):
        console.print(f"  {label}: {figure} {over_episodes}".rstrip())
    console.print(f"\n{result.folder}", soft_wrap=True)
    return DONE
