"""The commands. ``policy-distill COMMAND`` and ``python scripts/COMMAND.py`` are the same."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Sequence

from policy_distill.commands.benchmark import benchmark
from policy_distill.commands.check_teacher import check_teacher
from policy_distill.commands.compare_policies import compare_policies
from policy_distill.commands.distill_policy import distill_policy
from policy_distill.commands.evaluate_policy import evaluate_policy
from policy_distill.commands.export_student import export_student
from policy_distill.commands.options.parser import nearest
from policy_distill.commands.render_policy import render_policy
from policy_distill.commands.run_ablation import run_ablation
from policy_distill.commands.run_suite import run_suite
from policy_distill.commands.simulate_statistics import simulate_statistics
from policy_distill.commands.train_teacher import train_teacher
from policy_distill.commands.verify_certificate import verify_certificate
from policy_distill.config import Fault, RequestError
from policy_distill.config.printable import one_line, printable
from policy_distill.report.printing import DONE
from policy_distill.support.signals import exit_code, raising_stops

FAILED, WRONG_REQUEST = 1, 2
FAILING_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of the operating system for which a traceback would not help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 the request was wrong, 130, 143 or 129 ended by a signal."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_commands()
        return DONE if arguments else WRONG_REQUEST
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise RequestError(f"no command {name!r}{nearest(name, COMMANDS)}; the commands are {', '.join(COMMANDS)}")
        with raising_stops():
            return COMMANDS[name](rest)
    except RequestError as error:
        _say(str(error), error)
        return WRONG_REQUEST
    except Fault as error:  # a known kind of failure, for which a traceback would not help
        _say(f"{name} failed: {one_line(str(error))}", error)
        return FAILED
    except KeyboardInterrupt as stop:
        _say(" by ".join(["interrupted", *map(str, stop.args)]), stop)
        return exit_code(stop)
    except Exception as error:  # a bug: the traceback, then one line
        if not (isinstance(error, OSError) and error.errno in FAILING_DISK):
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        _say(f"{name} failed: {one_line(error) or type(error).__name__}", error)
        return FAILED


def _say(line: str, error: BaseException) -> None:
    """Print the line to standard error, with the error's notes: how to go on."""
    notes = map(printable, getattr(error, "__notes__", ()))  # as they are: one may hold a command to paste, with spaces in a path
    print("; ".join([f"policy-distill: {line}", *notes]), file=sys.stderr)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "distill_policy": distill_policy,
    "train_teacher": train_teacher,
    "evaluate_policy": evaluate_policy,
    "compare_policies": compare_policies,
    "export_student": export_student,
    "verify_certificate": verify_certificate,
    "check_teacher": check_teacher,
    "render_policy": render_policy,
    "run_suite": run_suite,
    "run_ablation": run_ablation,
    "benchmark": benchmark,
    "simulate_statistics": simulate_statistics,
}


def _print_commands() -> None:
    print("usage: policy-distill COMMAND [options]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<20} {(command.__doc__ or '').splitlines()[0]}")
    print("\npolicy-distill COMMAND --help shows a command's options.")
