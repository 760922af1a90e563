"""``policy-distill compare_policies``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from policy_distill.commands.options.parser import Parser, add_environment_arguments, add_reading_arguments, protocol_of, reading_of
from policy_distill.config import DistillConfig, EnvironmentOptions, RequestError
from policy_distill.report.printing import DONE, finish, mean_and_std, plain
from policy_distill.support.figures import return_text
from policy_distill.support.progress import Display
from policy_distill.support.terminal import Terminal

if TYPE_CHECKING:
    from policy_distill.evaluation.disagreements import Disagreements


def compare_policies(arguments: Sequence[str]) -> int:
    """Show where a student disagrees with its teacher: the states with different actions, their cost, and the episodes that lost return."""
    parser = Parser("compare_policies", compare_policies.__doc__)
    parser.add_argument("--policy", type=str, required=True, help="student folder, run folder, SB3 zip, RL Zoo folder or shipped agent")
    parser.add_argument("--teacher", type=str | None, default=None, help="default: the teacher recorded in the student's files")
    add_environment_arguments(parser)
    parser.add_argument("--episodes", type=int, default=20, help="number of episodes, one seed each, played by both")
    parser.add_argument("--worst", type=int, default=10, help="number of episodes and of states to show")
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help=".npz of all disagreements, for distill_policy --collect.extra_states; default: disagreements.npz in the run's folder",
    )
    add_reading_arguments(parser, agent="the policy, if it is an SB3 agent", teacher=True)
    parser.add_step_timeout()
    parser.add_display_arguments()
    options = parser.parse(arguments)
    DistillConfig(step_timeout=options.step_timeout, evaluate=protocol_of(episodes=options.episodes))  # validates the options
    if options.worst < 0:
        raise RequestError(f"worst is {options.worst}; it must be >= 0")
    from policy_distill.evaluation import disagreements
    from policy_distill.evaluation.action_units import suited
    from policy_distill.evaluation.measure import common_environment, load_policy, teacher_of, try_out
    from policy_distill.report import add_to_report
    from policy_distill.rollouts.episodes import evaluation_seeds
    from policy_distill.rollouts.processes import call_apart
    from policy_distill.support.files import writable_folder
    from policy_distill.support.threads import one_torch_thread

    student, saved = load_policy(options.policy, reading_of(options))
    teacher = teacher_of(options.policy, options.teacher, reading_of(options, "teacher_"))
    if teacher is None:
        raise RequestError(f"{options.policy} does not name the teacher that it was distilled from: give --teacher FOLDER_OR_ZIP")
    spec, notices = common_environment(options.policy, student, saved, teacher, parser.config(options, EnvironmentOptions))
    notices += try_out(spec, student, teacher, skip=options.check.skip, step_timeout=options.step_timeout)[1]
    for notice in dict.fromkeys(notices):
        Display(quiet=options.json).note(f"note: {notice}")
    run = Path(options.policy)
    in_run = (run / "student" / "student.json").is_file()
    output = Path(options.output) if options.output else run / "disagreements.npz" if in_run else None
    if output is not None:
        writable_folder(output.parent)
        if output.is_dir():
            raise RequestError(f"output is {output}, which is a folder: name a file, such as {output / 'disagreements.npz'}")
    with one_torch_thread():
        teacher, _ = suited(teacher, spec, options.step_timeout)
        seeds = evaluation_seeds("comparison", options.episodes)
        found = call_apart(options.step_timeout, disagreements.find, student, teacher, spec, seeds)
    if output is not None:
        found.save(output)
        if found.with_observation < len(found.costs):
            notices = (*notices, f"{output.name} has the observations of the {found.with_observation:,} costliest states alone")
    summary = plain(summarize(found, options.worst)) | {
        "env": spec.id,
        "environment": spec.to_dict(),
        "file": str(output) if output else None,
        "notices": list(dict.fromkeys(notices)),
    }
    if options.output is None and (run / "result.json").is_file():
        add_to_report(run, disagreements=summary)
    if not options.json:
        show(found, options.worst)
    noted = [("note", notice) for notice in summary["notices"]]
    finish(options.json, summary, [] if options.json else [*rows(found), *noted], str(output) if output else None)
    return DONE


def summarize(found: Disagreements, worst: int) -> dict[str, Any]:
    """The comparison as data: every episode, and the costliest states."""
    names = ("episode_seeds", "student_returns", "teacher_returns", "student_lengths", "teacher_lengths", "first_steps", "parting_steps")
    from policy_distill.support import trees

    columns = {name.removeprefix("episode_").removesuffix("s"): getattr(found, name) for name in names}
    states = {"seed": found.seeds, "step": found.steps, "cost": found.costs, "teacher_action": found.teacher_actions,
              "student_action": found.student_actions}  # fmt: skip
    return {
        "agreement": found.agreement,
        "states": found.states,
        "disagreements": len(found.costs),
        "cost_kind": found.cost_kind,
        "student_return_mean": found.student_returns.mean(),
        "teacher_return_mean": found.teacher_returns.mean(),
        "episodes": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
        "worst": [
            {**{name: values[row] for name, values in states.items()}, "observation": trees.rows(found.observations, row)}
            for row in range(min(worst, found.with_observation))
        ],
    }


def rows(found: Disagreements) -> list[tuple[str, str]]:
    """Summary rows of the comparison."""
    from policy_distill.evaluation.disagreements import COSTS

    fell = found.worst_episodes()
    return [
        ("student's return", mean_and_std(found.student_returns)),
        ("teacher's return", mean_and_std(found.teacher_returns)),
        ("episodes with losses", f"{len(fell)} of {len(found.losses)}"),
        ("agreement", f"{found.agreement:.1%} of {found.states:,} states that the student visited"),
        ("cost", f"{found.cost_kind}: {COSTS[found.cost_kind]}"),
    ]


def show(found: Disagreements, worst: int) -> None:
    """Print the episodes with the largest losses and the costliest states, within 80 columns."""
    console = Terminal()
    episodes = _table("seed", "teacher", "student", "lost", "steps", "first differs", "reward differs")
    for index in found.worst_episodes()[:worst]:
        figures = (found.teacher_returns[index], found.student_returns[index], found.losses[index])
        steps = (found.first_steps[index], found.parting_steps[index])
        texts = [return_text(figure) for figure in figures] + [f"{found.student_lengths[index]}"] + [_step(step) for step in steps]
        episodes.add_row(str(found.episode_seeds[index]), *texts)
    states = _table("seed", "step", "cost", "teacher", "student")
    for row in range(min(worst, len(found.costs))):
        does = [_action(actions[row]) for actions in (found.teacher_actions, found.student_actions)]
        states.add_row(str(found.seeds[row]), str(found.steps[row]), f"{found.costs[row]:.3g}", *does)
    for title, table in (("Episodes with the largest losses", episodes), ("Costliest states", states)):
        if table.row_count:
            console.print(title, style="bold")
            console.print(table)
            console.print()


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _step(step: int) -> str:
    return "never" if step < 0 else str(step)


def _action(action: np.ndarray, width: int = 24) -> str:
    """``2``, or ``0.12 -1.00`` cut to ``width`` characters."""
    numbers = np.atleast_1d(action).ravel()
    text = " ".join(f"{number:.2f}" if np.issubdtype(numbers.dtype, np.floating) else str(number) for number in numbers)
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
