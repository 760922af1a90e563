"""The return of anything that acts, beside a random policy's and its teacher's on the same seeds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.action_units import suited
from policy_distill.certify import Certified, certificate, files_of, play, write_certificate
from policy_distill.config import RequestError
from policy_distill.environments import EnvironmentSpec, check_fits, resolve
from policy_distill.evaluate import Episodes, evaluation_seeds
from policy_distill.job import environment_for, one_torch_thread, writable_folder
from policy_distill.progress import Display
from policy_distill.report import add_to_report, certificate_text, retention_text
from policy_distill.sampling import Drawing
from policy_distill.statistics import Plan, Retention, retention
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
    certified: Certified | None = None
    certificate_path: Path | None = None

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
        if self.certified is not None:
            rows.append(("certificate", certificate_text(self.certified.summary())))
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
        if self.certified is not None:
            summary["certificate"] = {**self.certified.summary(), "path": str(self.certificate_path)}
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
    stochastic: bool = False,
    display: Display | None = None,
) -> Measurement:
    """Run ``policy`` on the final seeds; see ``policy_distill.evaluate.evaluate``.

    Args:
        stochastic: the policy draws its actions from its own distribution; its teacher acts as always.

    Raises:
        RequestError: if a file cannot be read or environment and policy do not fit together.
    """
    acting, reference, spec = _open(policy, teacher, env, trust, display)
    player = Drawing(acting) if stochastic else acting
    seeds = evaluation_seeds("final", episodes)
    asked = reference or (acting if isinstance(acting, Teacher) else None)
    with one_torch_thread(), Rollouts(spec, asked, num_envs=max(num_envs, 1), seed=0, workers=workers) as rollouts:
        own = rollouts.evaluate(player, seeds, num_envs=num_envs, with_agreement=reference is not None)
        random = rollouts.evaluate("random", seeds, num_envs=num_envs)
        of_teacher = rollouts.evaluate("teacher", seeds, num_envs=num_envs) if reference else None
    kept = retention(own.returns, of_teacher.returns, random.returns, confidence=confidence) if of_teacher else None
    return Measurement(policy, acting.params, spec, own, random, of_teacher, kept)


def certify(
    policy: str,
    *,
    teacher: str,
    plan: Plan,
    env: str | None = None,
    output: str | None = None,
    num_envs: int = 16,
    workers: int | None = None,
    trust: bool = False,
    stochastic: bool = False,
    display: Display | None = None,
) -> Measurement:
    """Test whether ``policy`` keeps ``plan.share`` of its teacher's return, on the certificate's seeds, and write certificate.json.

    Args:
        output: the file, or the folder that it is written into; None: the policy's own folder.

    Raises:
        RequestError: if a file cannot be read or written, or environment and policies do not fit together.
    """
    acting, reference, spec = _open(policy, teacher, env, trust, display)
    assert reference is not None
    target = _certificate_path(policy, acting, output)
    writable_folder(target.parent)
    player = Drawing(acting) if stochastic else acting
    with one_torch_thread(), Rollouts(spec, reference, num_envs=max(num_envs, 1), seed=0, workers=workers) as rollouts:
        found = play(rollouts, player, plan, num_envs=num_envs, display=display)
    own, of_teacher = files_of(acting, policy), files_of(reference, teacher)
    write_certificate(target, certificate(found, spec=spec, student=own, teacher=of_teacher, stochastic=stochastic))
    if output is None and (target.parent / "result.json").is_file():
        add_to_report(target.parent, certificate=found.summary())
    kept = retention(*found.returns, confidence=plan.confidence)
    return Measurement(policy, acting.params, spec, found.student, found.random, found.teacher, kept, found, target)


def _open(
    policy: str, teacher: str | None, env: str | None, trust: bool, display: Display | None
) -> tuple[Student | Teacher, Teacher | None, EnvironmentSpec]:
    """Load policy and teacher and settle the environment in which both act."""
    acting, spec, notices = load_policy(policy, env, trust=trust)
    reference = Teacher.load(teacher, trust=trust) if teacher else None
    if spec is None and reference is not None:
        spec, notices = environment_for(reference, env)
    for notice in notices:
        (display or Display(quiet=True)).note(f"note: {notice}")
    if spec is None:
        raise RequestError(f"{policy} does not say which environment it acts in: give --env, for example --env CartPole-v1")
    check_fits(spec, *((agent.observation_space, agent.action_space) for agent in (acting, reference) if agent is not None))
    if reference is not None:  # what counts as agreement is 5 % of the actions' size, not of bounds that are far wider
        reference, _ = suited(reference, spec)
    return acting, reference, spec


def _certificate_path(policy: str, acting: Student | Teacher, output: str | None) -> Path:
    """Where a certificate belongs: into the run's folder, or that of a student alone."""
    if output is not None:
        return Path(output) if output.endswith(".json") else Path(output, "certificate.json")
    if not isinstance(acting, Student):
        raise RequestError(f"{policy} is not a student's folder, into which a certificate could be written: give --output")
    folder = Path(policy)
    in_a_run = folder.name == "student" and (folder.parent / "result.json").is_file()
    return (folder.parent if in_a_run else folder) / "certificate.json"


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
