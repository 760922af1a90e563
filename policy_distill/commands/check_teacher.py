"""``policy-distill check_teacher``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from policy_distill.commands.parser import Parser, add_zoo_folder, zoo_path
from policy_distill.commands.printing import DONE, finish, text_of
from policy_distill.config import DistillConfig, EvaluateConfig
from policy_distill.progress import Display


def check_teacher(arguments: Sequence[str]) -> int:
    """Say what an agent is, and whether its return here is what its folder claims."""
    parser = Parser("check_teacher", check_teacher.__doc__)
    parser.add_argument("--teacher", type=str, default="", help="RL Zoo folder, SB3 zip or shipped agent")
    parser.add_argument("--env", type=str | None, default=None, help="Gymnasium id or entry of envs/; default: the agent's own")
    parser.add_argument("--algo", type=str | None, default=None, help="of a bare zip that does not tell")
    parser.add_argument("--episodes", type=int, default=20, help="0 only reads the files")
    parser.add_argument("--workers", type=int | None, default=None, help="processes; default: one a core")
    parser.add_argument("--trust", type=bool, default=False, help="let SB3 unpickle a custom policy; runs code from the file")
    add_zoo_folder(parser)
    parser.add_display_arguments()
    options = parser.parse(arguments)
    if options.episodes:
        DistillConfig(workers=options.workers, evaluate=EvaluateConfig(episodes=options.episodes))  # checks them
    from policy_distill import check
    from policy_distill.environments import check_fits
    from policy_distill.job import environment_for, one_torch_thread
    from policy_distill.teachers import Teacher

    teacher = Teacher.load(zoo_path(options.teacher, options.folder, options.algo, options.env), algo=options.algo, trust=options.trust)
    rows = [(name.replace("_", " "), text_of(value)) for name, value in teacher.describe().items()]
    summary: dict[str, Any] = {"facts": teacher.describe()}
    if options.episodes:
        spec, notices = environment_for(teacher, options.env)
        check_fits(spec, (teacher.observation_space, teacher.action_space))
        for notice in notices:
            Display(quiet=options.json).note(f"note: {notice}")
        with one_torch_thread():
            found = check.check_teacher(teacher, spec, episodes=options.episodes, workers=options.workers)
        returns = found.episodes.returns
        rows += [
            ("environment here", spec.id),
            ("return here", f"{returns.mean():.1f} ± {returns.std(ddof=1):.1f} over {len(returns)} episodes"),
            ("random policy's return", f"{found.random_episodes.returns.mean():.1f} ± {found.random_episodes.returns.std(ddof=1):.1f}"),
        ]
        if found.claim:
            rows.append(("claimed return", f"{found.claim.mean:.1f} ± {found.claim.std:.1f} ({found.claim.source})"))
        rows.append(("verdict", found.verdict))
        summary |= {
            "env": spec.id,
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std(ddof=1)),
            "random_return_mean": float(found.random_episodes.returns.mean()),
            "claim": dataclasses.asdict(found.claim) if found.claim else None,
            "verdict": found.verdict,
            "notices": list(notices),
        }
    finish(options.json, summary, rows)
    return DONE
