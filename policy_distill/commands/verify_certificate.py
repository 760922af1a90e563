"""``policy-distill verify_certificate``."""

from __future__ import annotations

from collections.abc import Sequence

from policy_distill.commands.options.parser import Parser, add_reading_arguments, reading_of
from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.report.printing import DONE, finish
from policy_distill.support.progress import Display

DOES_NOT_HOLD = 1
"""Exit code if the certificate does not hold."""


def verify_certificate(arguments: Sequence[str]) -> int:
    """Verify a certificate: hash its files, recompute its test and replay its episodes; exit code 1 if it does not hold."""
    parser = Parser("verify_certificate", verify_certificate.__doc__)
    parser.add_argument("--certificate", type=str, required=True, help="certificate.json, or the folder that holds it")
    parser.add_argument("--policy", type=str | None, default=None, help="student's current path; default: the path in the certificate")
    parser.add_argument("--teacher", type=str | None, default=None, help="teacher's current path; default: the path in the certificate")
    parser.add_argument(
        "--env", type=str | None, default=None, help="the certificate's environment, if it is module:ID; imports the module"
    )
    parser.add_argument("--episodes", type=int | None, default=None, help="number of episodes to replay; default: all; 0: none")
    parser.add_argument("--num_envs", type=int, default=16, help="number of parallel episodes; the returns do not depend on it")
    parser.add_argument("--workers", type=int | None, default=None, help="number of processes; default: one per core")
    parser.add_step_timeout()
    parser.add_argument(
        "--wrapper", type=tuple[str, ...], default=(), help="module:Class of a wrapper in the certificate, to allow its import"
    )
    add_reading_arguments(parser, agent="the policy, if it is an SB3 agent", teacher=True)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    for name, least in (("episodes", 0), ("num_envs", 1), ("workers", 0), ("step_timeout", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise RequestError(f"{name} is {value}; it must be >= {least}")
    from policy_distill.evaluation.certify import place_of
    from policy_distill.evaluation.verify import verify

    found = verify(
        place_of(options.certificate),
        policy=options.policy,
        teacher=options.teacher,
        env=options.env,
        episodes=options.episodes,
        num_envs=options.num_envs,
        workers=options.workers,
        step_timeout=options.step_timeout,
        wrappers=EnvironmentOptions(wrapper=tuple(options.wrapper)).wrappers or (),
        reading=reading_of(options),
        teacher_reading=reading_of(options, "teacher_"),
        skip_check=options.check.skip,
        display=Display(quiet=options.json),
    )
    finish(options.json, found.summary(), found.rows())
    return DONE if found.holds else DOES_NOT_HOLD
