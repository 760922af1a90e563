"""The commands. ``policy-distill COMMAND`` and ``python scripts/COMMAND.py`` are the same.

Modules are imported inside functions: that takes seconds, in which Ctrl-C ends the command in one line too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
COMMANDS = (
    "distill_policy", "train_teacher", "evaluate_policy", "compare_policies", "export_student", "verify_certificate", "check_teacher",
    "render_policy", "run_suite", "run_ablation", "benchmark", "simulate_statistics",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 the request was wrong, 130, 143 or 129 ended by a signal."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # before the command began
        print("policy-distill: interrupted", file=sys.stderr)
        return INTERRUPTED


def command(name: str) -> Callable[[Sequence[str]], int]:
    """The function of a command."""
    import importlib

    function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(f"policy_distill.commands.{name}"), name)
    return function


def _run(arguments: list[str]) -> int:
    import errno
    import traceback

    from policy_distill.commands.options.parser import nearest
    from policy_distill.config import Fault, RequestError
    from policy_distill.config.printable import one_line, printable
    from policy_distill.support.signals import exit_code, raising_stops

    if not arguments or arguments[0] in ("-h", "--help"):
        _print_commands()
        return DONE if arguments else WRONG_REQUEST
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise RequestError(f"no command {name!r}{nearest(name, COMMANDS)}; the commands are {', '.join(COMMANDS)}")
        run = command(name)
        with raising_stops():
            return run(rest)
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
        # for a failing disk a traceback would not help
        if not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)):
            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        _say(f"{name} failed: {one_line(error) or type(error).__name__}", error)
        return FAILED


def _say(line: str, error: BaseException) -> None:
    """Print the line to standard error, with the error's notes: how to go on."""
    from policy_distill.config.printable import printable

    notes = map(printable, getattr(error, "__notes__", ()))  # as they are: one may hold a command to paste, with spaces in a path
    print("; ".join([f"policy-distill: {line}", *notes]), file=sys.stderr)


def _print_commands() -> None:
    print("usage: policy-distill COMMAND [options]\n")
    for name in COMMANDS:
        print(f"  {name:<20} {(command(name).__doc__ or '').splitlines()[0]}")
    print("\npolicy-distill COMMAND --help shows a command's options.")
