"""``policy-distill export_student``."""

from __future__ import annotations

from collections.abc import Sequence

from policy_distill.commands.options.parser import Parser, add_environment_arguments, add_reading_arguments, reading_of
from policy_distill.config import DistillConfig, EnvironmentOptions, EvaluateConfig, RequestError
from policy_distill.report.printing import DONE, finish
from policy_distill.support.progress import Display


def export_student(arguments: Sequence[str]) -> int:
    """Write a student in a format for deployment, check that the files act like the student, and certify quantised ones again."""
    from policy_distill.export.artefact import FORMATS

    parser = Parser("export_student", export_student.__doc__)
    parser.add_argument("--student", type=str, required=True, help="folder of a run or of its student")
    parser.add_argument("--format", type=str, required=True, help=f"one of {', '.join(FORMATS)}")
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
    parser.add_argument("--workers", type=int | None, default=None, help="number of processes; default: one per core")
    add_reading_arguments(parser, agent="the student, which needs none of these", teacher=True)
    parser.add_step_timeout()
    parser.add_display_arguments()
    options = parser.parse(arguments)
    if options.format not in FORMATS:
        raise RequestError(f"format is {options.format!r}; the formats are {', '.join(FORMATS)}")
    protocol = EvaluateConfig(episodes=options.episodes, certify=options.certify, max_episodes=options.max_episodes)
    DistillConfig(workers=options.workers, step_timeout=options.step_timeout, evaluate=protocol)  # validates the options
    if recorded := reading_of(options).recorded():
        raise RequestError(f"a student needs no --{next(iter(recorded))}: leave it out; options of its teacher begin with --teacher_")
    from policy_distill.evaluation.exports import export_student as export

    exported = export(
        options.student,
        options.format,
        output=options.output,
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
    finish(options.json, exported.summary(), exported.rows(), str(exported.folder))
    return DONE
