"""``policy-distill run_ablation``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from policy_distill.commands.options.parser import TRUST, Parser
from policy_distill.config import EngineConfig
from policy_distill.report.printing import DONE, plain
from policy_distill.support.progress import Display
from policy_distill.support.signals import saying_how_to_go_on

JOBS = (
    "number of runs at the same time; default: one for each core, with --engine ray as many as the cluster has room for; 0: in this process"
)


def run_ablation(arguments: Sequence[str]) -> int:
    """Compare the default settings with alternatives over agents and seeds, and write a Markdown page."""
    parser = Parser("run_ablation", run_ablation.__doc__)
    parser.add_argument(
        "--study", type=str, default="docs/ablation.yaml", help="YAML file of the study: base settings, agents, groups, seeds"
    )
    parser.add_argument("--output", type=str, default="runs/ablation", help="folder of the runs; completed runs are not repeated")
    parser.add_argument("--page", type=str, default="docs/ablation.md", help="Markdown page to write")
    parser.add_argument("--jobs", type=int | None, default=None, help=JOBS)
    parser.add_argument(
        "--extractor",
        type=str | None,
        default=None,
        metavar="FILE.py:CLASS",
        help="features extractor of agents with one of this name",
    )
    parser.add_argument("--trust", type=bool, default=False, help=TRUST)
    parser.add_class_arguments(EngineConfig, "engine")
    parser.add_display_arguments()
    options = parser.parse(arguments)
    from policy_distill.studies import ablation
    from policy_distill.support.files import write_atomically

    study = ablation.Study.load(Path(options.study))
    engine = parser.instantiate(options).engine
    with saying_how_to_go_on("what is done is kept, and the same command goes on from there"):
        kept = ablation.run_study(
            study, Path(options.output), engine=engine, jobs=options.jobs, note=Display(quiet=options.json).note,
            extractor=options.extractor, trust=options.trust,
        )  # fmt: skip
    command = f"policy-distill run_ablation --study {options.study} --output {options.output} --page {options.page}"
    command += f" --extractor {options.extractor}" if options.extractor else ""
    command += " --trust" if options.trust else ""
    page, text = Path(options.page), ablation.markdown(study, kept, command)
    write_atomically(page, lambda target: target.write_text(text, encoding="utf-8"))
    if options.json:
        print(json.dumps({"/".join(map(str, key)): plain(found.retention) for key, found in kept.items()}, indent=2))
    else:
        print(page)
    return DONE
