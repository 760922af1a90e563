"""The return of anything that acts, beside a random policy's and its teacher's on the same seeds."""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_distill.config import EnvironmentOptions, Reading, RequestError
from policy_distill.environments.matching import check_fits
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation import teacher_check as check
from policy_distill.evaluation.action_units import suited
from policy_distill.evaluation.certify import Certified, certificate, files_of, play, write_certificate
from policy_distill.evaluation.probe import Probe, probe
from policy_distill.evaluation.statistics import Plan, Retention, retention
from policy_distill.policies.student import Student, read_description
from policy_distill.report import add_to_report, certificate_text, retention_text
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds
from policy_distill.rollouts.processes import call_apart
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.trajectories import check_ends
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.figures import spread_text
from policy_distill.support.files import writable_folder
from policy_distill.support.progress import Display
from policy_distill.support.threads import one_torch_thread
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import choose_environment, fill_stack

AS_FOUND = Reading()
"""An agent's files as they are, with nothing said about them."""


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
    notices: tuple[str, ...] = ()
    """What a reader of the figures must know."""

    def rows(self) -> list[tuple[str, str]]:
        """What a person reads: name, figure."""
        rows = [
            ("policy", f"{self.policy}, {self.params:,} parameters"),
            ("environment", self.spec.text()),
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
        rows += [("episodes", f"{len(self.episodes.returns)}"), ("mean length", f"{self.episodes.lengths.mean():.0f} steps")]
        return [*rows, *(("note", notice) for notice in self.notices)]

    def summary(self) -> dict[str, Any]:
        """The same as data."""

        def figures(episodes: Episodes) -> dict[str, Any]:
            returns = episodes.returns
            return {"return_mean": returns.mean(), "return_std": returns.std(ddof=1), "returns": returns}

        summary = {
            "env": self.spec.id,
            "environment": self.spec.to_dict(),
            "policy": {"path": self.policy, "params": self.params, **figures(self.episodes)},
            "random": figures(self.random),
            "agreement": self.episodes.agreement,
            "seeds": self.episodes.seeds,
            "notices": list(self.notices),
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
    env: EnvironmentOptions | str | None = None,
    episodes: int = 100,
    num_envs: int = 16,
    confidence: float = 0.95,
    workers: int | None = None,
    reading: Reading = AS_FOUND,
    teacher_reading: Reading = AS_FOUND,
    skip_check: bool = False,
    stochastic: bool = False,
    step_timeout: float | None = None,
    display: Display | None = None,
) -> Measurement:
    """Run ``policy`` on the final seeds; see ``policy_distill.rollouts.episodes.evaluate``.

    Args:
        env: where it is measured, as ``choose_environment`` understands it; an id alone will do.
        reading, teacher_reading: how the files of policy and teacher are read.
        skip_check: tell what would make the figure meaningless, and go on anyway.
        stochastic: the policy draws its actions from its own distribution; its teacher acts as always.
        step_timeout: seconds that a step or a reset of the environment may take; None or 0: any.

    Raises:
        RequestError: if a file cannot be read, environment and policy do not fit together, or a figure would be meaningless.
    """
    acting, reference, spec, _, notices = _open(policy, teacher, env, reading, teacher_reading, skip_check, display, step_timeout)
    player = Drawing(acting) if stochastic else acting
    seeds = evaluation_seeds("final", episodes)
    asked = reference or (acting if isinstance(acting, Teacher) else None)
    with (
        one_torch_thread(),
        Rollouts(spec, asked, num_envs=max(num_envs, 1), seed=0, workers=workers, step_timeout=step_timeout) as rollouts,
    ):
        own = rollouts.evaluate(player, seeds, num_envs=num_envs, with_agreement=reference is not None)
        random = rollouts.evaluate("random", seeds, num_envs=num_envs)
        of_teacher = rollouts.evaluate("teacher", seeds, num_envs=num_envs) if reference else None
    for agent, episodes_of in ((acting, own), (reference, of_teacher)):
        if isinstance(agent, Teacher) and episodes_of is not None:
            notices += check.screen_returns(agent, episodes_of.returns, random.returns, skip=skip_check)
    kept = retention(own.returns, of_teacher.returns, random.returns, confidence=confidence) if of_teacher else None
    return Measurement(policy, acting.params, spec, own, random, of_teacher, kept, notices=tuple(dict.fromkeys(notices)))


def certify(
    policy: str,
    *,
    teacher: str,
    plan: Plan,
    env: EnvironmentOptions | str | None = None,
    output: str | None = None,
    num_envs: int = 16,
    workers: int | None = None,
    reading: Reading = AS_FOUND,
    teacher_reading: Reading = AS_FOUND,
    skip_check: bool = False,
    stochastic: bool = False,
    step_timeout: float | None = None,
    display: Display | None = None,
) -> Measurement:
    """Test whether ``policy`` keeps ``plan.share`` of its teacher's return, on the certificate's seeds, and write certificate.json.

    Args:
        output: the file, or the folder that it is written into; None: the policy's own folder.

    Raises:
        RequestError: if a file cannot be read or written, environment and policies do not fit together, or a figure would be meaningless.
    """
    acting, reference, spec, probed, notices = _open(policy, teacher, env, reading, teacher_reading, skip_check, display, step_timeout)
    assert reference is not None
    probed.require_repeatable()
    target = _certificate_path(policy, acting, output)
    writable_folder(target.parent)
    player = Drawing(acting) if stochastic else acting
    with (
        one_torch_thread(),
        Rollouts(spec, reference, num_envs=max(num_envs, 1), seed=0, workers=workers, step_timeout=step_timeout) as rollouts,
    ):
        found = play(rollouts, player, plan, num_envs=num_envs, display=display)
    for agent, episodes_of in ((acting, found.student), (reference, found.teacher)):
        if isinstance(agent, Teacher):
            notices += check.screen_returns(agent, episodes_of.returns, found.random.returns, skip=skip_check)
    own, of_teacher = files_of(acting, policy), files_of(reference, teacher)
    write_certificate(target, certificate(found, spec=spec, student=own, teacher=of_teacher, stochastic=stochastic))
    if output is None and (target.parent / "result.json").is_file():
        add_to_report(target.parent, certificate=found.summary())
    kept = retention(*found.returns, confidence=plan.confidence)
    told = tuple(dict.fromkeys(notices))
    return Measurement(policy, acting.params, spec, found.student, found.random, found.teacher, kept, found, target, told)


def _open(
    policy: str,
    teacher: str | None,
    env: EnvironmentOptions | str | None,
    reading: Reading,
    teacher_reading: Reading,
    skip_check: bool,
    display: Display | None,
    step_timeout: float | None,
) -> tuple[Student | Teacher, Teacher | None, EnvironmentSpec, Probe, tuple[str, ...]]:
    """Load policy and teacher, settle the environment in which both act, try it, and screen both there."""
    acting, saved = load_policy(policy, reading)
    reference = Teacher.load(teacher, **teacher_reading.arguments()) if teacher else None
    spec, notices = common_environment(policy, acting, saved, reference, env)
    probed, found = try_out(spec, acting, reference, skip=skip_check, step_timeout=step_timeout)
    notices += found
    if reference is not None:  # what counts as agreement is 5 % of the actions' size, not of bounds that are far wider
        reference, _ = suited(reference, spec, step_timeout)
    for notice in dict.fromkeys(notices):
        (display or Display(quiet=True)).note(f"note: {notice}")
    return acting, reference, spec, probed, notices


def try_out(
    spec: EnvironmentSpec,
    acting: Student | Teacher,
    reference: Teacher | None = None,
    *,
    skip: bool = False,
    step_timeout: float | None = None,
) -> tuple[Probe, tuple[str, ...]]:
    """Try the environment and who acts there before anything is measured.

    Returns:
        What was found of the environment, and what must be said beside the figures.

    Raises:
        RequestError: for what makes a figure meaningless; with ``skip``, for an environment that cannot be run alone.
    """
    agents = agents_among(acting, reference)
    notices: tuple[str, ...] = ()
    for agent in agents:
        notices += check.screen_files(agent, spec, skip=skip)
    probed = probe(spec, step_timeout)
    notices += probed.notices
    with one_torch_thread():
        if isinstance(acting, Student) and not skip:  # agents are looked at below
            call_apart(step_timeout, check_ends, spec, {"the student": acting, "a random policy": None})
        for agent in agents:
            notices += call_apart(step_timeout, functools.partial(check.screen_states, skip=skip), agent, spec)
    return probed, notices


def common_environment(
    policy: str,
    acting: Student | Teacher,
    saved: EnvironmentSpec | None,
    reference: Teacher | None = None,
    env: EnvironmentOptions | str | None = None,
) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The environment in which ``acting`` and its teacher act, and notices; that of the policy where both know one.

    Raises:
        RequestError: if neither knows one and the user names none, or one of them does not fit.
    """
    options = env if isinstance(env, EnvironmentOptions) else EnvironmentOptions(env)
    if saved is None and reference is not None:
        saved = reference.saved_env
    if saved is None and options.env is None:
        raise RequestError(f"{policy} does not say which environment it acts in: give --env, for example --env CartPole-v1")
    spec, notices = choose_environment(acting, saved, options)
    if reference is not None:
        spec, filled = fill_stack(spec, reference)
        notices = tuple(dict.fromkeys((*notices, *filled)))
    check_fits(spec, *((agent.observation_space, agent.action_space) for agent in (acting, reference) if agent is not None))
    return spec, notices


def agents_among(*policies: Student | Teacher | None) -> list[Teacher]:
    """Those that were read from other people's files, whose files have to be screened."""
    return [policy for policy in policies if isinstance(policy, Teacher)]


def _certificate_path(policy: str, acting: Student | Teacher, output: str | None) -> Path:
    """Where a certificate belongs: into the run's folder, or that of a student alone."""
    if output is not None:
        return Path(output) if output.endswith(".json") else Path(output, "certificate.json")
    if not isinstance(acting, Student):
        raise RequestError(f"{policy} is not a student's folder, into which a certificate could be written: give --output")
    folder = Path(policy)
    in_a_run = folder.name == "student" and (folder.parent / "result.json").is_file()
    return (folder.parent if in_a_run else folder) / "certificate.json"


def load_policy(path: str, reading: Reading = AS_FOUND) -> tuple[Student | Teacher, EnvironmentSpec | None]:
    """Open a student's folder, a run's folder, an SB3 zip, a Zoo folder or a shipped agent, with the environment that its files tell.

    Raises:
        RequestError: if it cannot be read, or ``reading`` says of a student what can be said of agents alone.
    """
    for folder in (Path(path), Path(path) / "student"):
        if os.path.isfile(folder / "student.json"):
            if said := reading.recorded():
                name = next(iter(said))
                raise RequestError(f"{path} is a student, which needs no --{name}; what is said about its teacher is --teacher_{name}")
            return Student.load(folder, trust=reading.trust), _saved_environment(folder)
    agent = Teacher.load(path, **reading.arguments())
    beside = Path(path).parent / "student"
    if agent.saved_env is None and os.path.isfile(beside / "student.json"):
        return agent, _saved_environment(beside)
    return agent, agent.saved_env


def _saved_environment(folder: Path) -> EnvironmentSpec | None:
    saved = read_description(folder).get("environment")
    return EnvironmentSpec.from_dict(saved) if saved else None


def teacher_of(policy: str, named: str | None, reading: Reading = AS_FOUND) -> Teacher | None:
    """The teacher that the user ``named``, else the one that a run noted beside its student, read as it was then; None if there is none."""
    if named is None:
        noted = _noted_teacher(policy)
        if noted.get("path") is None:
            return None
        named, reading = noted["path"], reading.over(noted.get("reading") or {})
    return Teacher.load(named, **reading.arguments())


def _noted_teacher(path: str) -> dict[str, Any]:
    """What a run noted of its teacher, if ``path`` is a run's or a student's folder."""
    for folder in (Path(path), Path(path) / "student"):
        if os.path.isfile(folder / "student.json"):
            return read_description(folder).get("teacher") or {}
    return {}


def _mean_and_std(episodes: Episodes) -> str:
    return spread_text(episodes.returns.mean(), episodes.returns.std(ddof=1))
