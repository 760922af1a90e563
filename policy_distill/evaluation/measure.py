"""Return of a policy, of a random policy and of a teacher on the same seeds."""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from policy_distill.config import EnvironmentOptions, Reading, RequestError
from policy_distill.environments.matching import check_fits
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation import teacher_check as check
from policy_distill.evaluation.action_units import suited
from policy_distill.evaluation.certify import Certified, certificate, files_of, play, write_certificate
from policy_distill.evaluation.probe import Probe, probe
from policy_distill.evaluation.statistics import Plan, Retention, retention
from policy_distill.export.artefact import Artefact, is_artefact
from policy_distill.policies.student import Student, read_description
from policy_distill.report import add_to_report, certificate_text, retention_text
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds
from policy_distill.rollouts.processes import RESTARTS, Recovery, call_apart
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.trajectories import check_ends
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.figures import spread_text
from policy_distill.support.files import writable_folder
from policy_distill.support.progress import Display
from policy_distill.support.threads import one_torch_thread
from policy_distill.teachers import Teacher
from policy_distill.teachers.environment import choose_environment, fill_stack

Evaluated: TypeAlias = Student | Artefact | Teacher
"""Policies that are loaded from files."""
AS_FOUND = Reading()
"""Default reading of an agent's files."""


@dataclass(frozen=True)
class Measurement:
    """Returns on the same seeds; ``teacher`` and ``retention`` are None without a teacher."""

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
    """Warnings that apply to the figures."""

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the printed table: name, figure."""
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
        """The figures as data."""

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
    """Evaluate ``policy`` on the final seeds; see ``policy_distill.rollouts.episodes.evaluate``.

    Args:
        env: the environment, for ``choose_environment``; an id is enough.
        reading, teacher_reading: how the files of policy and teacher are read.
        skip_check: report what would make a figure meaningless as a notice, instead of stopping.
        stochastic: the policy samples its actions; its teacher acts as usual.
        step_timeout: time limit of a step or a reset in seconds; None or 0: no limit.

    Raises:
        RequestError: if a file cannot be read, environment and policy do not fit together, or a figure would be meaningless.
    """
    acting, reference, spec, _, notices = _open(policy, teacher, env, reading, teacher_reading, skip_check, display, step_timeout)
    evaluated = drawing(acting) if stochastic else acting
    seeds = evaluation_seeds("final", episodes)
    teacher_agent = reference or (acting if isinstance(acting, Teacher) else None)
    with (
        one_torch_thread(),
        Rollouts(
            spec, teacher_agent, num_envs=max(num_envs, 1), seed=0, workers=workers, step_timeout=step_timeout, recovery=_recovery(display)
        ) as rollouts,
    ):
        of_policy = rollouts.evaluate(evaluated, seeds, num_envs=num_envs, with_agreement=reference is not None)
        random = rollouts.evaluate("random", seeds, num_envs=num_envs)
        of_teacher = rollouts.evaluate("teacher", seeds, num_envs=num_envs) if reference else None
    for agent, played in ((acting, of_policy), (reference, of_teacher)):
        if isinstance(agent, Teacher) and played is not None:
            notices += check.screen_returns(agent, played.returns, random.returns, skip=skip_check)
    kept = retention(of_policy.returns, of_teacher.returns, random.returns, confidence=confidence) if of_teacher else None
    return Measurement(policy, acting.params, spec, of_policy, random, of_teacher, kept, notices=tuple(dict.fromkeys(notices)))


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
        output: the file or its folder; None: the policy's folder.

    Raises:
        RequestError: if a file cannot be read or written, environment and policies do not fit together, or a figure would be meaningless.
    """
    acting, reference, spec, probed, notices = _open(policy, teacher, env, reading, teacher_reading, skip_check, display, step_timeout)
    assert reference is not None
    probed.require_repeatable()
    target = _certificate_path(policy, acting, output)
    writable_folder(target.parent)
    evaluated = drawing(acting) if stochastic else acting
    with (
        one_torch_thread(),
        Rollouts(
            spec, reference, num_envs=max(num_envs, 1), seed=0, workers=workers, step_timeout=step_timeout, recovery=_recovery(display)
        ) as rollouts,
    ):
        found = play(rollouts, evaluated, plan, num_envs=num_envs, display=display)
    for agent, played in ((acting, found.student), (reference, found.teacher)):
        if isinstance(agent, Teacher):
            notices += check.screen_returns(agent, played.returns, found.random.returns, skip=skip_check)
    policy_files, teacher_files = files_of(acting, policy), files_of(reference, teacher)
    write_certificate(target, certificate(found, spec=spec, student=policy_files, teacher=teacher_files, stochastic=stochastic))
    if output is None and (target.parent / "result.json").is_file():
        add_to_report(target.parent, certificate=found.summary())
    kept = retention(*found.returns, confidence=plan.confidence)
    distinct_notices = tuple(dict.fromkeys(notices))
    return Measurement(policy, acting.params, spec, found.student, found.random, found.teacher, kept, found, target, distinct_notices)


def _open(
    policy: str,
    teacher: str | None,
    env: EnvironmentOptions | str | None,
    reading: Reading,
    teacher_reading: Reading,
    skip_check: bool,
    display: Display | None,
    step_timeout: float | None,
) -> tuple[Evaluated, Teacher | None, EnvironmentSpec, Probe, tuple[str, ...]]:
    """Load policy and teacher, choose their environment, and check all three."""
    acting, saved = load_policy(policy, reading)
    reference = Teacher.load(teacher, **teacher_reading.arguments()) if teacher else None
    spec, notices = common_environment(policy, acting, saved, reference, env)
    probed, found = try_out(spec, acting, reference, skip=skip_check, step_timeout=step_timeout)
    notices += found
    if reference is not None:  # agreement is 5 % of the actions' size, not of bounds that are far wider
        reference, _ = suited(reference, spec, step_timeout)
    for notice in dict.fromkeys(notices):
        (display or Display(quiet=True)).note(f"note: {notice}")
    return acting, reference, spec, probed, notices


def try_out(
    spec: EnvironmentSpec,
    acting: Evaluated,
    reference: Teacher | None = None,
    *,
    skip: bool = False,
    step_timeout: float | None = None,
) -> tuple[Probe, tuple[str, ...]]:
    """Check the environment and the policies before anything is measured.

    Returns:
        Properties of the environment, and notices that belong to the figures.

    Raises:
        RequestError: if a figure would be meaningless; with ``skip``, only if the environment cannot be run.
    """
    agents = agents_among(acting, reference)
    notices: tuple[str, ...] = ()
    for agent in agents:
        notices += check.screen_files(agent, skip=skip)
    probed = probe(spec, step_timeout)
    notices += probed.notices
    with one_torch_thread():
        if isinstance(acting, Student | Artefact) and not skip:  # agents are checked below
            call_apart(step_timeout, check_ends, spec, {"the student": acting, "a random policy": None})
        for agent in agents:
            notices += call_apart(step_timeout, functools.partial(check.screen_states, skip=skip), agent, spec)
    return probed, notices


def common_environment(
    policy: str,
    acting: Evaluated,
    saved: EnvironmentSpec | None,
    reference: Teacher | None = None,
    env: EnvironmentOptions | str | None = None,
) -> tuple[EnvironmentSpec, tuple[str, ...]]:
    """The environment of ``acting`` and its teacher, and notices; if both files name one, the policy's is used.

    Raises:
        RequestError: if neither the files nor the user name one, or a policy's spaces do not fit it.
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


def drawing(policy: Evaluated) -> Drawing:
    """The policy with sampled actions.

    Raises:
        RequestError: if it is an artefact, which has no generator.
    """
    if isinstance(policy, Artefact):
        raise RequestError(f"{policy.folder} is an exported policy, which only takes its deterministic action: leave --stochastic out")
    return Drawing(policy)


def agents_among(*policies: Evaluated | None) -> list[Teacher]:
    """The agents among ``policies``: their files come from outside and have to be screened."""
    return [policy for policy in policies if isinstance(policy, Teacher)]


def _recovery(display: Display | None) -> Recovery:
    return Recovery(RESTARTS, lambda line: (display or Display(quiet=True)).note(f"note: {line}"))


def _certificate_path(policy: str, acting: Evaluated, output: str | None) -> Path:
    """Path of a certificate: ``output``, else within the run's folder, or the student's if it belongs to no run."""
    if output is not None:
        return Path(output) if output.endswith(".json") else Path(output, "certificate.json")
    if isinstance(acting, Artefact):
        return acting.folder / "certificate.json"
    if not isinstance(acting, Student):
        raise RequestError(f"{policy} is not a student's folder, into which a certificate could be written: give --output")
    folder = Path(policy)
    in_a_run = folder.name == "student" and (folder.parent / "result.json").is_file()
    return (folder.parent if in_a_run else folder) / "certificate.json"


def load_policy(path: str, reading: Reading = AS_FOUND) -> tuple[Evaluated, EnvironmentSpec | None]:
    """Open a student, a run, an artefact, an SB3 zip, a Zoo folder or a shipped agent, with the environment that its files name.

    Raises:
        RequestError: if it cannot be read, or if ``reading`` holds options of agents and it is a student.
    """
    for folder in (Path(path), Path(path) / "student"):
        if os.path.isfile(folder / "student.json"):
            if options := reading.recorded():
                name = next(iter(options))
                raise RequestError(f"{path} is a student, which needs no --{name}; the option for its teacher is --teacher_{name}")
            if is_artefact(path):
                return Artefact(path, trust=reading.trust), _saved_environment(folder)
            return Student.load(folder, trust=reading.trust), _saved_environment(folder)
    agent = Teacher.load(path, **reading.arguments())
    sibling = Path(path).parent / "student"
    if agent.saved_env is None and os.path.isfile(sibling / "student.json"):
        return agent, _saved_environment(sibling)
    return agent, agent.saved_env


def _saved_environment(folder: Path) -> EnvironmentSpec | None:
    saved = read_description(folder).get("environment")
    return EnvironmentSpec.from_dict(saved) if saved else None


def teacher_of(policy: str, named: str | None, reading: Reading = AS_FOUND) -> Teacher | None:
    """The teacher of ``named_teacher``, loaded; None if there is none."""
    found = named_teacher(policy, named, reading)
    return None if found is None else Teacher.load(found[0], **found[1].arguments())


def named_teacher(policy: str, named: str | None, reading: Reading = AS_FOUND) -> tuple[str, Reading] | None:
    """Name and reading of the teacher that the user ``named``, else of the one recorded with the student; None if there is none."""
    if named is not None:
        return named, reading
    recorded = _recorded_teacher(policy)
    path = recorded.get("path")
    if path is not None and not os.path.exists(path):  # on another machine, where a shipped agent has its name
        path = recorded.get("name") or path
    return None if path is None else (path, reading.over(recorded.get("reading") or {}))


def _recorded_teacher(path: str) -> dict[str, Any]:
    """A run's record of its teacher, if ``path`` is a run's or a student's folder, else empty."""
    for folder in (Path(path), Path(path) / "student"):
        if os.path.isfile(folder / "student.json"):
            return read_description(folder).get("teacher") or {}
    return {}


def _mean_and_std(episodes: Episodes) -> str:
    return spread_text(episodes.returns.mean(), episodes.returns.std(ddof=1))
