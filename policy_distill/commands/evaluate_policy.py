"""``policy-distill evaluate_policy``."""

from __future__ import annotations

from collections.abc import Sequence

from policy_distill.commands.parser import Parser
from policy_distill.commands.printing import DONE, finish
from policy_distill.config import DistillConfig, EvaluateConfig
from policy_distill.progress import Display


def evaluate_policy(arguments: Sequence[str]) -> int:
    """Measure the return of a student, an SB3 zip or an RL Zoo folder, beside a random policy's and, if named, its teacher's."""
    parser = Parser("evaluate_policy", evaluate_policy.__doc__)
    parser.add_argument("--policy", type=str, required=True, help="student folder, run folder, SB3 zip, RL Zoo folder or shipped agent")
    parser.add_argument("--teacher", type=str | None, default=None, help="measured on the same seeds; gives the retention")
    parser.add_argument("--env", type=str | None, default=None, help="Gymnasium id or entry of envs/; default: the policy's own")
    parser.add_argument("--episodes", type=int, default=100, help="one seed each")
    parser.add_argument("--num_envs", type=int, default=16, help="episodes side by side; the returns do not depend on it")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the retention's interval")
    parser.add_argument("--workers", type=int | None, default=None, help="processes; default: one a core")
    parser.add_argument("--trust", type=bool, default=False, help="let SB3 unpickle a custom policy; runs code from the file")
    parser.add_display_arguments()
    options = parser.parse(arguments)
    protocol = EvaluateConfig(episodes=options.episodes, num_envs=options.num_envs, confidence=options.confidence)
    DistillConfig(workers=options.workers, evaluate=protocol)  # checks them
    from policy_distill.measure import measure

    report = measure(
        options.policy,
        teacher=options.teacher,
        env=options.env,
        episodes=options.episodes,
        num_envs=options.num_envs,
        confidence=options.confidence,
        workers=options.workers,
        trust=options.trust,
        display=Display(quiet=options.json),
    )
    finish(options.json, report.summary(), report.rows())
    return DONE
