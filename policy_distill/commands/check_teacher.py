"""``policy-distill check_teacher``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from policy_distill.commands.options.parser import (
    Parser,
    add_environment_arguments,
    add_reading_arguments,
    add_zoo_folder,
    protocol_of,
    reading_of,
    zoo_path,
)
from policy_distill.config import DistillConfig, EnvironmentOptions
from policy_distill.report.printing import DONE, finish, mean_and_std, text_of
from policy_distill.support.progress import Display


def check_teacher(arguments: Sequence[str]) -> int:
    """Describe an agent, compare its return with its folder's claim, and report problems for distillation."""
    parser = Parser("check_teacher", check_teacher.__doc__)
    parser.add_argument("--teacher", type=str, default="", help="RL Zoo folder, SB3 zip or shipped agent")
    add_environment_arguments(parser)
    parser.add_argument("--episodes", type=int, default=20, help="number of episodes; 0: only read the files")
    parser.add_argument("--workers", type=int | None, default=None, help="number of processes; default: one per core")
    add_reading_arguments(parser)
    add_zoo_folder(parser)
    parser.add_step_timeout()
    parser.add_display_arguments()
    options = parser.parse(arguments)
    protocol = protocol_of(**({"episodes": options.episodes} if options.episodes else {}))
    DistillConfig(workers=options.workers, step_timeout=options.step_timeout, evaluate=protocol)  # validates the options
    from policy_distill.environments.matching import check_fits
    from policy_distill.evaluation import teacher_check as check
    from policy_distill.evaluation.probe import probe
    from policy_distill.support.threads import one_torch_thread
    from policy_distill.teachers import Teacher
    from policy_distill.teachers.environment import environment_for

    environment = parser.config(options, EnvironmentOptions)
    place = zoo_path(options.teacher, options.folder, options.algo, options.env)
    if place != options.teacher:  # --env named the agent
        environment = dataclasses.replace(environment, env=None)
    teacher = Teacher.load(place, **reading_of(options).arguments())
    rows = [(name.replace("_", " "), text_of(value)) for name, value in teacher.describe().items()]
    summary: dict[str, Any] = {"facts": teacher.describe()}
    if not options.episodes:
        findings = tuple(check.judge_files(teacher))
        summary["findings"] = [finding.summary() for finding in findings]
    else:
        spec, notices = environment_for(teacher, environment)
        check_fits(spec, (teacher.observation_space, teacher.action_space))
        notices += probe(spec, options.step_timeout).notices
        for notice in notices:
            Display(quiet=options.json).note(f"note: {notice}")
        check.screen_files(teacher, skip=options.check.skip)
        with one_torch_thread():
            found = check.check_teacher(
                teacher, spec, episodes=options.episodes, workers=options.workers, step_timeout=options.step_timeout
            )
        findings, own, random = found.findings, found.episodes.returns, found.random_episodes.returns
        rows += [
            ("environment here", spec.text()),
            ("return here", f"{mean_and_std(own)} over {len(own)} episodes"),
            ("random policy's return", mean_and_std(random)),
        ]
        if found.drawn:
            rows.append(("return of sampled actions", mean_and_std(found.drawn.returns)))
        if found.claim:
            rows.append(("claimed return", found.claim.text()))
        if found.trained:
            rows.append(("return in training", found.trained.text()))
        rows.append(("verdict", found.verdict))
        summary |= {
            "env": spec.id,
            "environment": spec.to_dict(),
            "return_mean": float(own.mean()) if len(own) else None,
            "return_std": float(own.std(ddof=1)) if len(own) > 1 else None,
            "random_return_mean": float(random.mean()),
            "claim": dataclasses.asdict(found.claim) if found.claim else None,
            "verdict": found.verdict,
            "notices": list(notices),
            **found.summary(),
        }
    rows += [(finding.severity.upper(), finding.line()) for finding in findings]
    finish(options.json, summary, rows)
    return DONE
