"""The return of anything that acts, beside a random policy's and its teacher's on the same seeds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from policy_distill.environments import EnvironmentSpec, check_fits, resolve
from policy_distill.evaluate import Episodes, evaluation_seeds
from policy_distill.job import environment_for, one_torch_thread
from policy_distill.progress import Display
from policy_distill.report import retention_text
from policy_distill.statistics import Retention, retention
from policy_distill.students import Student, read_description
from policy_distill.teachers import Teacher
from policy_distill.workers import Rollouts


@dataclass(frozen=True)
class Measurement:
    """Returns on the same seeds; teacher and retention only where a teacher was named."""

    policy: str
    params: int
    spec: EnvironmentSpec
    episodes: Episodes
    random: Episodes
    teacher: Episodes | None
    retention: Retention | None

    def rows(self) -> list[tuple[str, str]]:
        """What a person reads: name, figure."""
        rows = [
            ("policy", f"{self.policy}, {self.params:,} parameters"),
            ("environment", self.spec.id),
            ("return", _mean_and_std(self.episodes)),
            ("random policy's return", _mean_and_std(self.random)),
        ]
        if self.teacher is not None and self.retention is not None:
            rows.append(("teacher's return", _mean_and_std(self.teacher)))
            name = f"retention [{self.retention.confidence:.0%} interval]"
            rows.append((name, retention_text(dataclasses.asdict(self.retention))))
        if self.episodes.agreement is not None:
            rows.append(("agreement", f"{self.episodes.agreement:.1%} of the policy's states"))
        return [*rows, ("episodes", f"{len(self.episodes.returns)}"), ("mean length", f"{self.episodes.lengths.mean():.0f} steps")]

    def summary(self) -> dict[str, Any]:
        """The same as data."""

        def figures(episodes: Episodes) -> dict[str, Any]:
            returns = episodes.returns
            return {"return_mean": returns.mean(), "return_std": returns.std(ddof=1), "returns": returns}

        summary = {
            "env": self.spec.id,
            "policy": {"path": self.policy, "params": self.params, **figures(self.episodes)},
            "random": figures(self.random),
            "agreement": self.episodes.agreement,
            "seeds": self.episodes.seeds,
        }
        if self.teacher is not None and self.retention is not None:
            summary |= {"teacher": figures(self.teacher), "retention": dataclasses.asdict(self.retention)}
        return summary


def measure(
    policy: str,
    *,
    teacher: str | None = None,
    env: str | None = None,
    episodes: int = 100,
    num_envs: int = 16,
    confidence: float = 0.95,
    workers: int | None = None,
    trust: bool = False,
    display: Display | None = None,
) -> Measurement:
    """Run ``policy`` on the final seeds; see ``policy_distill.evaluate.evaluate``.

    Raises:
        RequestError: if a file cannot be read or environment and policy do not fit together.
    """
    acting, spec, notices = load_policy(policy, env, trust=trust)
    reference = Teacher.load(teacher, trust=trust) if teacher else None
    if spec is None and reference is not None:
        spec, notices = environment_for(reference, env)
    for notice in notices:
        (display or Display(quiet=True)).note(f"note: {notice}")
    if spec is None:
        raise RequestError(f"{policy} does not say which environment it acts in: give --env, for example --env CartPole-v1")
    check_fits(spec, *((agent.observation_space, agent.action_space) for agent in (acting, reference) if agent is not None))
    seeds = evaluation_seeds("final", episodes)
    asked = reference or (acting if isinstance(acting, Teacher) else None)
    with one_torch_thread(), Rollouts(spec, asked, num_envs=max(num_envs, 1), seed=0, workers=workers) as rollouts:
        own = rollouts.evaluate(acting, seeds, num_envs=num_envs, with_agreement=reference is not None)
        random = rollouts.evaluate("random", seeds, num_envs=num_envs)
        of_teacher = rollouts.evaluate("teacher", seeds, num_envs=num_envs) if reference else None
    kept = retention(own.returns, of_teacher.returns, random.returns, confidence=confidence) if of_teacher else None
    return Measurement(policy, acting.params, spec, own, random, of_teacher, kept)


def load_policy(path: str, env: str | None, *, trust: bool = False) -> tuple[Student | Teacher, EnvironmentSpec | None, tuple[str, ...]]:
    """Open a student's folder, a run's folder, an SB3 zip, a Zoo folder or a shipped agent; say where it acts, if known, with notices."""
    for folder in (Path(path), Path(path) / "student"):
        if (folder / "student.json").is_file():
            saved = read_description(folder).get("environment")
            spec = resolve(env) if env else EnvironmentSpec.from_dict(saved) if saved else None
            return Student.load(folder), spec, ()
    agent = Teacher.load(path, trust=trust)
    beside = Path(path).parent / "student"
    if env is None and agent.saved_env is None and (beside / "student.json").is_file():
        return agent, EnvironmentSpec.from_dict(read_description(beside)["environment"]), ()
    if env is None and agent.saved_env is None:
        return agent, None, ()
    return agent, *environment_for(agent, env)


def noted_teacher(path: str) -> str | None:
    """The teacher that a run noted beside its student, if ``path`` is a run's or a student's folder and the teacher came from files."""
    for folder in (Path(path), Path(path) / "student"):
        if (folder / "student.json").is_file():
            return (read_description(folder).get("teacher") or {}).get("path")
    return None


def _mean_and_std(episodes: Episodes) -> str:
    return f"{episodes.returns.mean():.1f} ± {episodes.returns.std(ddof=1):.1f}"
