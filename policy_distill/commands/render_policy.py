"""``policy-distill render_policy``."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy_distill.commands.options.parser import Parser, add_environment_arguments, add_reading_arguments, reading_of
from policy_distill.config import EnvironmentOptions, RequestError
from policy_distill.report.printing import DONE, finish
from policy_distill.support.figures import return_text
from policy_distill.support.progress import Display

WIDEST = 4096
"""Largest ``--width``: all pictures of the film are in memory."""


def render_policy(arguments: Sequence[str]) -> int:
    """Render a policy and its teacher side by side on one seed as an animated GIF, which a run's report.html and TensorBoard then show."""
    parser = Parser("render_policy", render_policy.__doc__)
    parser.add_argument("--policy", type=str, required=True, help="student folder, run folder, SB3 zip, RL Zoo folder or shipped agent")
    parser.add_argument(
        "--teacher", type=str | None, default=None, help="teacher, shown on the left; default: the teacher recorded in the run"
    )
    add_environment_arguments(parser)
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the episode; default: the first evaluation seed")
    parser.add_argument("--max_steps", type=int, default=1000, help="maximum number of steps to render")
    parser.add_argument("--width", type=int, default=320, help="width of each image in pixels")
    parser.add_argument("--frames_per_second", type=float, default=20.0, help="maximum frame rate")
    parser.add_argument(
        "--output", type=str | None, default=None, help="GIF file; default: episode.gif in the run's folder, else in the current folder"
    )
    add_reading_arguments(parser, agent="the policy, if it is an SB3 agent", teacher=True)
    parser.add_step_timeout()
    parser.add_display_arguments()
    options = parser.parse(arguments)
    for name, least in (("seed", 0), ("max_steps", 1), ("width", 16), ("frames_per_second", 0.1), ("step_timeout", 0)):
        if (value := getattr(options, name)) is not None and value < least:
            raise RequestError(f"{name} is {value}; it must be >= {least}")
    if options.width > WIDEST:
        raise RequestError(f"width is {options.width}; it must be <= {WIDEST:,}")
    from policy_distill.evaluation import teacher_check as check
    from policy_distill.evaluation.measure import agents_among, common_environment, load_policy, teacher_of
    from policy_distill.evaluation.render import film, side_by_side, write_gif
    from policy_distill.report import VIDEO, write_report
    from policy_distill.report.tensorboard import Tracker
    from policy_distill.report.write import read_result
    from policy_distill.rollouts.processes import call_apart
    from policy_distill.support.threads import one_torch_thread

    run = Path(options.policy) if os.path.isfile(Path(options.policy) / "result.json") else None
    output = Path(options.output) if options.output else (run or Path()) / VIDEO
    if output.is_dir():
        raise RequestError(f"output is {options.output!r}, which is a folder: name a GIF file")
    if not output.parent.is_dir():
        raise RequestError(f"the folder {output.parent} of --output does not exist: make it first")
    acting, saved = load_policy(options.policy, reading_of(options))
    teacher = teacher_of(options.policy, options.teacher, reading_of(options, "teacher_"))
    spec, notices = common_environment(options.policy, acting, saved, teacher, parser.config(options, EnvironmentOptions))
    for agent in agents_among(acting, teacher):
        notices += check.screen_files(agent, skip=options.check.skip)
    display = Display(quiet=options.json)
    for notice in dict.fromkeys(notices):
        display.note(f"note: {notice}")
    actors: list[tuple[str, Any]] = [("teacher", teacher)] if teacher else []
    with one_torch_thread():
        take = functools.partial(film, spec=spec, seed=options.seed, max_steps=options.max_steps)
        films = [call_apart(options.step_timeout, take, name, actor) for name, actor in [*actors, ("student", acting)]]
    pictures, seconds = side_by_side(films, width=options.width, frames_per_second=options.frames_per_second)
    write_gif(output, pictures, seconds)
    if run is not None and output == run / VIDEO:
        write_report(run)  # includes the new GIF
        with Tracker(run / "tensorboard") as tracker:
            tracker.film("episode/side_by_side", output, read_result(run)["env_steps"])
    summary = {
        "output": str(output),
        "seed": options.seed,
        "notices": list(dict.fromkeys(notices)),
        "pictures": len(pictures),
        "returns": {one.name: float(one.rewards.sum()) for one in films},
        "steps": {one.name: len(one.rewards) for one in films},
    }
    rows = [(f"{one.name}'s return", f"{return_text(one.rewards.sum())} in {len(one.rewards)} steps") for one in films]
    finish(options.json, summary, [*rows, ("pictures", f"{len(pictures)}, {output.stat().st_size / 1e6:.1f} MB")], str(output))
    return DONE
