"""Verification of a certificate: hashes of its files, its test, and its episodes played again."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from policy_distill.config import Reading, RequestError
from policy_distill.config.environment import Wrapper
from policy_distill.environments.known_wrappers import trusting
from policy_distill.environments.matching import check_fits
from policy_distill.environments.specs import EnvironmentSpec, named_again
from policy_distill.evaluation import teacher_check as check
from policy_distill.evaluation.certify import ROLES, environment_sources, files_of, read_certificate, versions
from policy_distill.evaluation.measure import AS_FOUND, agents_among, drawing, load_policy
from policy_distill.evaluation.probe import probe
from policy_distill.evaluation.rounding import kernels, rounding
from policy_distill.evaluation.statistics import Decision, Plan, decide, shows_positive_mean
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.rollouts.processes import RESTARTS, Recovery
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.progress import Display
from policy_distill.support.threads import one_torch_thread
from policy_distill.support.untrusted import refuse_damage
from policy_distill.teachers import Teacher

SURE = 0.9999
"""One-sided confidence at which two mean returns count as different."""
NEGLIGIBLE = 1e-3
"""Differences of means below this share of the teacher's advantage over a random policy are ignored."""
Returns: TypeAlias = np.ndarray
"""``[3, E]``, in the order of ``ROLES``."""


@dataclass
class Verification:
    """Outcome of a verification.

    Attributes:
        path: the certificate's path.
        claim, verdict: the certificate's.
        objections: reasons why it does not hold; empty if it holds.
        notes: limitations of this verification.
        replayed: number of episodes that were played again.
    """

    path: str
    claim: str
    verdict: str
    objections: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    replayed: int = 0

    @property
    def holds(self) -> bool:
        return not self.objections

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the printed table: name, figure."""
        return [
            ("certificate", self.path),
            ("claim", self.claim),
            ("verdict", self.verdict),
            ("episodes played again", f"{self.replayed}"),
            *(("note", note) for note in self.notes),
            *(("objection", objection) for objection in self.objections),
            ("holds", "yes" if self.holds else "no"),
        ]

    def summary(self) -> dict[str, Any]:
        """The outcome as data; ``notices`` equals ``notes``, under the key of the other commands."""
        return {
            "certificate": self.path, "claim": self.claim, "verdict": self.verdict, "holds": self.holds, "objections": self.objections,
            "notes": self.notes, "notices": self.notes, "replayed": self.replayed,
        }  # fmt: skip


def verify(
    path: str | Path,
    *,
    policy: str | None = None,
    teacher: str | None = None,
    env: str | None = None,
    episodes: int | None = None,
    num_envs: int = 16,
    workers: int | None = None,
    reading: Reading = AS_FOUND,
    teacher_reading: Reading = AS_FOUND,
    skip_check: bool = False,
    step_timeout: float | None = None,
    wrappers: Sequence[Wrapper] = (),
    display: Display | None = None,
) -> Verification:
    """Hash the files, compute the test and play the episodes again.

    Args:
        path: path of certificate.json.
        policy, teacher: their present paths, if they were moved; their hashes must be the same.
        env: the certificate's environment ``module:ID``, given again if the module may be imported.
        episodes: number of episodes to play, from the first; None: all of them, 0: none.
        num_envs: number of parallel episodes; the returns do not depend on it.
        workers: number of processes; None: one for each core.
        reading, teacher_reading: how the files of student and teacher are read; the certificate gives the defaults.
        skip_check: report what would make a figure meaningless as a note, instead of stopping.
        step_timeout: time limit of a step or a reset in seconds; None or 0: no limit.
        wrappers: ``module:Class`` of the certificate's wrappers that may be imported.
        display: shows progress.

    Raises:
        RequestError: if the certificate cannot be read, or an agent cannot be found.
    """
    data = read_certificate(path)
    found = Verification(str(path), data["claim"], data["verdict"])
    spec = _environment(data, path, env, wrappers)
    changed = _check_here(data, spec, found)
    _check_test(data, found)
    count = len(data["seeds"]) if episodes is None else min(episodes, len(data["seeds"]))
    names = _names_of_agents(data, path, policy, teacher, needed=count > 0)
    if missing := [role for role, name in names.items() if name is None]:
        found.notes.append(f"the files of the {' and the '.join(missing)} were not checked")
        return found
    acting, _ = load_policy(str(names["student"]), reading.over(_reading(data, "student", path)))
    recorded = {"algo": data["teacher"].get("algo"), **_reading(data, "teacher", path)}
    reference = Teacher.load(str(names["teacher"]), **teacher_reading.over(recorded).arguments())
    for role, agent in (("student", acting), ("teacher", reference)):
        _check_files(role, data[role]["sha256"], files_of(agent, str(names[role]))["sha256"], found)
    if not found.holds or not count:
        return found  # changed files: these are not the certified policies
    check_fits(spec, *((agent.observation_space, agent.action_space) for agent in (acting, reference)))
    probe(spec, step_timeout).require_repeatable()
    if other := _other_sources(data, spec):
        found.notes.append(f"the environment's code is not the one that was certified: {', '.join(other)} changed")
        changed += other
    for agent in agents_among(acting, reference):
        found.notes += check.screen_files(agent, skip=skip_check)
    display = display or Display(quiet=True)
    display.note(f"playing {count} episodes again, three times: student, teacher, random policy")
    recovery = Recovery(RESTARTS, lambda line: display.note(f"note: {line}"))
    with (
        one_torch_thread(),
        Rollouts(
            spec, reference, num_envs=max(num_envs, 1), seed=0, workers=workers, step_timeout=step_timeout, recovery=recovery
        ) as rollouts,
    ):
        _play_again(data, drawing(acting) if data["student"].get("stochastic") else acting, rollouts, count, num_envs, changed, found)
    return found


def _environment(data: dict[str, Any], path: str | Path, env: str | None, wrappers: Sequence[Wrapper]) -> EnvironmentSpec:
    """The certificate's environment; what may be imported is what the user names.

    Raises:
        RequestError: if ``env`` is another one.
    """
    spec = EnvironmentSpec.from_dict(data["environment"])
    spec = dataclasses.replace(spec, wrappers=trusting(spec.wrappers, wrappers))
    if env is None:
        return spec
    if env != spec.id:
        raise RequestError(f"env is {env!r}, but {path} is about {spec.id!r}: leave it out")
    return named_again(spec, env) or spec


def _check_here(data: dict[str, Any], spec: EnvironmentSpec, found: Verification) -> list[str]:
    """Note what differs between this machine and the certificate's; return the versions that do."""
    changed = _other_versions(data, spec)
    if changed:
        found.notes.append(f"written with other versions: {', '.join(changed)}")
    if _rounds_differently(data):
        recorded_kernels, own_kernels = _kernels_text(data.get("kernels")), _kernels_text(kernels())
        found.notes.append(f"written where numbers are rounded differently, on {recorded_kernels}; here on {own_kernels}")
    return changed


def _names_of_agents(
    data: dict[str, Any], path: str | Path, policy: str | None, teacher: str | None, *, needed: bool
) -> dict[str, str | None]:
    """Paths or names of student and teacher; None of one that was no single file.

    Raises:
        RequestError: if one is ``needed`` and cannot be found.
    """
    given, folder = {"student": policy, "teacher": teacher}, Path(path).parent
    names = {role: name or _path_of(data[role]["path"], folder, role) for role, name in given.items()}
    missing = [role for role, name in names.items() if name is None]
    if missing and needed:
        option = "--policy" if missing[0] == "student" else "--teacher"
        raise RequestError(
            f"the {missing[0]} was no single file and cannot be loaded again: give {option}, or --episodes 0 to play nothing"
        )
    return names


def _play_again(
    data: dict[str, Any], student: Policy, rollouts: Rollouts, count: int, num_envs: int, changed: list[str], found: Verification
) -> None:
    """Play the first ``count`` episodes, and compare their returns and, where ``changed`` versions may explain others, the verdict."""

    def play(seeds: list[int]) -> Returns:
        found.replayed += len(seeds)
        return np.stack([rollouts.evaluate(policy, seeds, num_envs=num_envs).returns for policy in (student, "teacher", "random")])

    returns = play(data["seeds"][:count])
    if _compare(data, returns, changed, found) and count == len(data["seeds"]):
        _compare_verdicts(data, returns, play, found)


def _path_of(recorded: str | None, folder: Path, role: str) -> str | None:
    """Path of an agent, which is recorded relative to the certificate's folder, or the name of a shipped agent."""
    if recorded is None:
        return None
    path = folder / recorded
    if os.path.exists(path):
        return str(path)
    if role == "student":
        raise RequestError(f"the student is no longer at {path}: give its path with --policy")
    return recorded


def _reading(data: dict[str, Any], role: str, path: str | Path) -> dict[str, Any]:
    """How an agent's files were read; the path of its statistics is recorded relative to the certificate's folder."""
    recorded = dict(data[role].get("reading") or {})
    statistics = recorded.get("normalization")
    if isinstance(statistics, str) and os.path.isfile(file := Path(path).parent / statistics):
        recorded["normalization"] = str(file)
    return recorded


def _plan(data: dict[str, Any]) -> Plan:
    return Plan.of(data["share"], data["confidence"], data["max_episodes"])


def _objection_to_test(data: dict[str, Any]) -> str | None:
    """Why boundaries, verdict or statistics do not follow from the certificate's returns; None if they do."""
    returns = [np.array(data["returns"].get(role, ()), np.float64) for role in ROLES]
    if any(len(values) != len(data["seeds"]) for values in returns):
        return "there is not one return of each policy for each seed"
    plan = _plan(data)
    decision = decide(*returns, plan=plan)
    if list(plan.looks) != data["test"]["looks"] or not np.allclose(plan.boundaries, data["test"]["boundaries"], rtol=1e-9):
        return "the looks or boundaries are not those that share, confidence and max_episodes give"
    if (decision.verdict, decision.episodes) != (data["verdict"], data["episodes"]) or len(data["seeds"]) != decision.episodes:
        return f"the returns give: {decision.verdict} after {decision.episodes} episodes"
    if not decision.final:
        return f"the test was left after {decision.episodes} episodes, before it was decided"
    return None if _same_statistics(decision, data["test"]["seen"]) else "the statistics are not those of the returns"


def _check_test(data: dict[str, Any], found: Verification) -> None:
    """Check the seeds, and compute boundaries, verdict and statistics from the certificate's returns."""
    if data["seeds"] != evaluation_seeds("certificate", len(data["seeds"])):
        found.objections.append("the seeds are not those of certificates: they may have been chosen")
    try:
        with refuse_damage("its numbers", "they were changed"):
            objection = _objection_to_test(data)
    except RequestError as error:  # some values are not numbers
        objection = f"the test cannot be computed: {error}"
    if objection:
        found.objections.append(objection)


def _same_statistics(decision: Decision, seen: list[dict[str, Any]]) -> bool:
    """Whether the statistics agree to nine digits; infinities are null in JSON."""
    if len(seen) != len(decision.looks):
        return False
    names = ("episodes", "critical", "keeps", "loses", "gap", "no_gap")
    for look, recorded in zip(decision.looks, seen, strict=True):
        for name in names:
            computed, written = getattr(look, name), recorded[name]
            if written is None:
                written = computed if not math.isfinite(computed) else math.nan
            if computed != written and not math.isclose(computed, written, rel_tol=1e-9, abs_tol=1e-9):
                return False
    return True


def _check_files(role: str, recorded: dict[str, str], now: dict[str, str], found: Verification) -> None:
    if sorted(recorded.values()) == sorted(now.values()):
        return
    changed = [name for name, digest in now.items() if recorded.get(name) != digest] or sorted(recorded)
    differ = "differ" if len(changed) > 1 else "differs"
    found.objections.append(f"the {role} is not the one that was certified: {', '.join(changed)} {differ}")


def _other_versions(data: dict[str, Any], spec: EnvironmentSpec) -> list[str]:
    """Descriptions of the versions that differ from those recorded in the certificate."""
    here = versions(spec)
    return [
        f"{name} {data['versions'].get(name, 'none')} (here {here.get(name, 'none')})"
        for name in dict.fromkeys([*data["versions"], *here])
        if data["versions"].get(name) != here.get(name)
    ]


def _other_sources(data: dict[str, Any], spec: EnvironmentSpec) -> list[str]:
    """Modules of the environment whose code changed since the certificate was written; older certificates do not record it."""
    recorded, here = data.get("sources"), environment_sources(spec)
    if not isinstance(recorded, dict):
        return []
    return sorted(name for name in {*recorded, *here} if recorded.get(name) != here.get(name))


def _rounds_differently(data: dict[str, Any]) -> bool:
    """Whether the recorded rounding differs from this machine's; older certificates do not record it."""
    return data["versions"].get("rounding", rounding()) != rounding()


def _kernels_text(kernels: Any) -> str:
    return ", ".join(f"{value}" for value in kernels.values()) if isinstance(kernels, dict) else "unrecorded kernels"


def _compare(data: dict[str, Any], returns: Returns, changed: list[str], found: Verification) -> bool:
    """Compare replayed returns with the recorded ones: bit for bit on the same versions, by their means if some ``changed``.

    Returns:
        True if some returns differ and changed versions may explain it; the verdict must then be compared too.
    """
    count = returns.shape[1]
    recorded = np.array([data["returns"][role][:count] for role in ROLES], np.float64)
    differing = dict(zip(ROLES, (returns != recorded).sum(1).tolist(), strict=True))
    if not any(differing.values()):
        return False
    text = ", ".join(f"{number} of the {role}'s" for role, number in differing.items() if number)
    text += f" {count} returns differ, by up to {float(np.abs(returns - recorded).max()):.3g}"
    if not changed:
        found.objections.append(f"{text}, on the same versions")
        return False
    found.notes.append(f"{text}, which the versions may explain: compared are the means and the verdict")
    unit = abs(float(recorded[1].mean() - recorded[2].mean()))
    for role, now, then in zip(ROLES, returns, recorded, strict=True):
        if _differs(now, then, unit):
            means = f"{now.mean():.6g} here, {then.mean():.6g} in the certificate"
            found.objections.append(f"the {role}'s mean return over {count} episodes is {means}: chance and rounding do not explain that")
    return True


def _differs(now: np.ndarray, then: np.ndarray, unit: float) -> bool:
    """Whether the mean returns ``[E]`` of one policy on the same seeds differ by more than rounding and chance explain.

    If rounding changes the course of an episode, its two returns are like independent samples: their mean difference is tested for 0 by a
    paired t-test at ``SURE``. If it does not, the differences are tiny but may share a sign: differences of means below ``NEGLIGIBLE``
    times ``unit``, the teacher's advantage over a random policy, are ignored.
    """
    difference = now - then
    if abs(float(difference.mean())) <= NEGLIGIBLE * unit:
        return False
    return shows_positive_mean(difference, SURE) or shows_positive_mean(-difference, SURE)


def _compare_verdicts(data: dict[str, Any], returns: Returns, play: Callable[[list[int]], Returns], found: Verification) -> None:
    """Compare the test's verdict on the replayed returns with the certificate's; an open test continues to its next looks.

    An undecided certificate makes no claim that could be wrong, so another verdict is only a note.
    """
    plan = _plan(data)
    decision = decide(*returns, plan=plan)
    for look in plan.looks:
        if not decision.final and look > returns.shape[1]:
            returns = np.concatenate([returns, play(evaluation_seeds("certificate", look)[returns.shape[1] :])], axis=1)
            decision = decide(*returns, plan=plan)
    if decision.verdict != data["verdict"]:
        target = found.notes if data["verdict"] == "undecided" else found.objections
        target.append(f"the returns here give: {decision.verdict} after {decision.episodes} episodes")
    elif decision.episodes != data["episodes"]:
        found.notes.append(f"the returns here give the same verdict after {decision.episodes} episodes")
