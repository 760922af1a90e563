"""``policy-distill export_student``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_distill.commands.options.parser import Parser, add_environment_arguments, add_reading_arguments, protocol_of, reading_of
from policy_distill.config import DistillConfig, EnvironmentOptions, RequestError
from policy_distill.report.printing import DONE, finish
from policy_distill.support.progress import Display

if TYPE_CHECKING:
    from policy_distill.evaluation.exports import Export

HUB = "hub"
"""The format that is a repository for the Hugging Face Hub."""


def export_student(arguments: Sequence[str]) -> int:
    """Write a student in a format for deployment, check that the files act like the student, and certify quantised ones again."""
    from policy_distill.export.formats import FORMATS

    parser = Parser("export_student", export_student.__doc__)
    parser.add_argument("--student", type=str, required=True, help="folder of a run or of its student")
    parser.add_argument("--format", type=str, required=True, help=f"one of {', '.join((*FORMATS, HUB))}")
    parser.add_argument("--output", type=str | None, default=None, help="folder of the exported policy; default: exports/FORMAT in the run")
    parser.add_argument("--teacher", type=str | None, default=None, help="teacher for a certificate; default: the one recorded in the run")
    add_environment_arguments(parser)
    parser.add_argument("--episodes", type=int, default=100, help="number of episodes of the comparison with the student")
    parser.add_argument(
        "--certify",
        type=float | None,
        default=None,
        help="certify that the exported policy keeps this share of the teacher's return; default: 0.95 for quantised formats, else none",
    )
    parser.add_argument("--max_episodes", "--max-episodes", type=int, default=2000, help="maximum number of episodes of the certificate")
    parser.add_argument("--push", type=str | None, default=None, metavar="USER/NAME", help="upload the format hub to this repository")
    parser.add_argument("--private", type=bool, default=False, help="make the repository private, if it does not exist")
    parser.add_argument("--workers", type=int | None, default=None, help="number of processes; default: one per core")
    add_reading_arguments(parser, agent="the student, which needs none of these", teacher=True)
    parser.add_step_timeout()
    parser.add_display_arguments()
    options = parser.parse(arguments)
    if options.format not in (*FORMATS, HUB):
        raise RequestError(f"format is {options.format!r}; the formats are {', '.join((*FORMATS, HUB))}")
    if options.format != HUB and (options.push is not None or options.private):
        raise RequestError("push and private are for the Hugging Face Hub: give --format hub beside them, or leave them out")
    protocol = protocol_of(episodes=options.episodes, certify=options.certify, max_episodes=options.max_episodes)
    DistillConfig(workers=options.workers, step_timeout=options.step_timeout, evaluate=protocol)  # validates the options
    if recorded := reading_of(options).recorded():
        raise RequestError(f"a student needs no --{next(iter(recorded))}: leave it out; options of its teacher begin with --teacher_")
    from policy_distill.evaluation import exports

    export = functools.partial(
        exports.export_student,
        options.student,
        teacher=options.teacher,
        env=parser.config(options, EnvironmentOptions),
        certify_share=options.certify,
        max_episodes=options.max_episodes,
        episodes=options.episodes,
        workers=options.workers,
        trust=options.trust,
        teacher_reading=reading_of(options, "teacher_"),
        skip_check=options.check.skip,
        step_timeout=options.step_timeout,
        display=Display(quiet=options.json),
    )
    if options.format == HUB:
        return _to_hub(options, export)
    exported = export(options.format, output=options.output)
    finish(options.json, exported.summary(), exported.rows(), str(exported.folder))
    return DONE


def _to_hub(options: Any, export: Callable[[str], Export]) -> int:
    """Write the run's repository. It contains an export to ONNX, which is made first if the run has none and its packages are installed."""
    from policy_distill.export import hub, onnx

    run, notices = Path(options.student), []
    target = Path(options.output) if options.output is not None else run / "exports" / HUB
    hub.check(run, target)
    api = None if options.push is None else hub.api_for(options.push)
    if "onnx" not in hub.exports_of(run):
        try:
            onnx.require_packages()
        except RequestError as error:
            notices.append(f"without policy.onnx: {error}")
        else:
            export("onnx")
    files = hub.write_repository(run, target)
    summary: dict[str, Any] = {"path": str(target), "files": files, "notices": notices}
    rows = [("format", f"{HUB}: {', '.join(sorted({Path(name).parts[0] for name in files}))}"), *(("note", text) for text in notices)]
    if api is not None:
        summary["url"] = hub.push(api, target, options.push, private=options.private)
        rows.append(("uploaded to", summary["url"]))
    finish(options.json, summary, rows, str(target))
    return DONE
