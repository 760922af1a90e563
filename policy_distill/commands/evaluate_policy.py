"""``policy-distill evaluate_policy``."""

from __future__ import annotations

from collections.abc import Sequence

from policy_distill.commands.options.parser import Parser, add_environment_arguments, add_reading_arguments, protocol_of, reading_of
from policy_distill.config import DistillConfig, EnvironmentOptions, RequestError
from policy_distill.report.printing import DONE, finish
from policy_distill.support.progress import Display


def evaluate_policy(arguments: Sequence[str]) -> int:
    """Measure the return of a student, an SB3 zip or an RL Zoo folder, next to a random policy's and optionally its teacher's."""
    parser = Parser("evaluate_policy", evaluate_policy.__doc__)
    parser.add_argument("--policy", type=str, required=True, help="student folder, run folder, SB3 zip, RL Zoo folder or shipped agent")
    parser.add_argument("--teacher", type=str | None, default=None, help="teacher to measure on the same seeds, for the retention")
    add_environment_arguments(parser)
    parser.add_argument("--episodes", type=int, default=100, help="number of episodes, one seed each")
    parser.add_argument("--num_envs", type=int, default=16, help="number of parallel episodes; the returns do not depend on it")
    parser.add_argument("--confidence", type=float, default=0.95, help="confidence level of the retention's interval and the certificate")
    parser.add_argument("--certify", type=float | None, default=None, help="test whether this share of the teacher's return is kept")
    parser.add_argument("--max_episodes", "--max-episodes", type=int, default=2000, help="maximum number of episodes of a certificate")
    parser.add_argument(
        "--output", type=str | None, default=None, help="folder of certificate.json; default: the student's or run's folder"
    )
    parser.add_argument("--stochastic", type=bool, default=False, help="sample the policy's actions instead of taking the mode")
    parser.add_argument("--workers", type=int | None, default=None, help="number of processes; default: one per core")
    add_reading_arguments(parser, agent="the policy, if it is an SB3 agent", teacher=True)
    parser.add_step_timeout()
    parser.add_display_arguments()
    options = parser.parse(arguments)
    protocol = protocol_of(
        episodes=options.episodes,
        num_envs=options.num_envs,
        confidence=options.confidence,
        certify=options.certify,
        max_episodes=options.max_episodes,
    )
    DistillConfig(workers=options.workers, step_timeout=options.step_timeout, evaluate=protocol)  # validates the options
    from policy_distill.evaluation.certify import plan_of
    from policy_distill.evaluation.measure import certify, measure

    common = {name: getattr(options, name) for name in ("num_envs", "workers", "stochastic", "step_timeout")}
    common["env"] = parser.config(options, EnvironmentOptions)
    common |= {"reading": reading_of(options), "teacher_reading": reading_of(options, "teacher_"), "skip_check": options.check.skip}
    display = Display(quiet=options.json)
    plan = plan_of(protocol)
    if plan is None:
        if options.output is not None:
            raise RequestError("output is for the certificate: give --certify 0.95 beside it, or leave it out")
        report = measure(
            options.policy, teacher=options.teacher, episodes=options.episodes, confidence=options.confidence, display=display, **common
        )
        finish(options.json, report.summary(), report.rows())
        return DONE
    if options.teacher is None:
        raise RequestError("a certificate compares the student with its teacher: give --teacher")
    report = certify(options.policy, teacher=options.teacher, plan=plan, output=options.output, display=display, **common)
    finish(options.json, report.summary(), report.rows(), str(report.certificate_path))
    return DONE
