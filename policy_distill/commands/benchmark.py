"""``policy-distill benchmark``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from policy_distill.commands.options.parser import Parser
from policy_distill.config import RequestError
from policy_distill.report.printing import DONE, plain

STAGES = ("collect", "train", "stack", "scale", "evaluate", "infer", "job", "engines")
AGENT_STAGES = ("collect", "evaluate", "infer", "job")
"""Stages that are timed with real agents, which ``--teachers`` selects."""


def benchmark(arguments: Sequence[str]) -> int:
    """Time one stage against common implementations and against the machine's limits."""
    parser = Parser("benchmark", benchmark.__doc__)
    parser.add_argument("stage", type=Literal[STAGES], help=", ".join(STAGES))
    parser.add_argument("--turns", type=int, default=5, help="number of interleaved runs of each variant; results are medians")
    parser.add_argument(
        "--teachers", type=str | None, default=None,
        help="RL Zoo folder of the agents to time; SB3 unpickles them, which runs code from the files; default: the shipped agents",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", type=list[int] | None, default=None,
        help="stage scale: dataset sizes in transitions; 10,000,000 need a minute and 0.6 GB both in memory and on disk (TMPDIR)",
    )  # fmt: skip
    parser.add_argument(
        "--device", type=str, default="cpu", help="stage train: cuda times the steps of students that read images or have a memory there"
    )
    parser.add_display_arguments()
    options = parser.parse(arguments)
    if options.turns < 1:
        raise RequestError(f"turns is {options.turns}; it must be >= 1")
    if options.teachers is not None and options.stage not in AGENT_STAGES:
        raise RequestError(f"the stage {options.stage} uses no agents: leave --teachers out, or time {', '.join(AGENT_STAGES)}")
    if options.sizes is not None and options.stage != "scale":
        raise RequestError(f"the stage {options.stage} has no sizes: leave --sizes out, or time scale")
    if options.device != "cpu" and options.stage != "train":
        raise RequestError(f"the stage {options.stage} runs on the CPU: leave --device out, or time train")
    from policy_distill.pipeline.prepare import choose_device
    from policy_distill.studies.benchmark.result import describe_machine, machine, table
    from policy_distill.support.threads import one_torch_thread

    stage = importlib.import_module(f"policy_distill.studies.benchmark.{options.stage}")
    chosen: dict[str, Any] = {"teachers": Path(options.teachers)} if options.teachers is not None else {}
    if options.sizes is not None:
        chosen["sizes"] = options.sizes
    if options.stage == "train":
        chosen["device"] = choose_device(options.device).type
    facts = machine()
    with one_torch_thread():
        results = stage.run(options.turns, **chosen)
    if options.json:
        print(json.dumps(plain({"machine": facts, "results": [result.to_dict() for result in results]}), indent=2))
    else:
        show = getattr(stage, "table", table)  # the stage scale has a table of its own
        print(describe_machine(facts), show(results), sep="\n\n")
    return DONE
