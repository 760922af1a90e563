"""Does a certificate hold? Its files, its arithmetic and its episodes, again."""

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
from policy_distill.evaluation.certify import FORMAT, ROLES, environment_sources, files_of, versions
from policy_distill.evaluation.measure import AS_FOUND, agents_among, load_policy
from policy_distill.evaluation.probe import probe
from policy_distill.evaluation.rounding import kernels, rounding
from policy_distill.evaluation.statistics import Decision, Plan, decide, shows_positive_mean
from policy_distill.rollouts.episodes import evaluation_seeds
from policy_distill.rollouts.stochastic import Drawing
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.progress import Display
from policy_distill.support.threads import one_torch_thread
from policy_distill.support.untrusted import read_json, refuse_damage
from policy_distill.teachers import Teacher

AGENT = {"path": str | None, "sha256": dict}
MAX_EPISODES = 1_000_000
LAYOUT: dict[str, Any] = {
    "claim": str, "verdict": str, "share": float | int, "confidence": float | int, "max_episodes": int, "episodes": int,
    "environment": {"id": str}, "student": AGENT, "teacher": {**AGENT, "algo": str | None},
    "test": {"looks": list, "boundaries": list, "seen": list}, "versions": dict, "seeds": list, "returns": dict,
}  # fmt: skip
"""What is read of a certificate, and its types."""
SURE = 0.9999
"""Of a difference between means, on each side, before it is called one."""
NEGLIGIBLE = 1e-3
"""Share of what the teacher adds over a random policy: a certificate's own bound is not known more closely."""
Returns: TypeAlias = np.ndarray
"""``[3, E]``, in the order of ``ROLES``."""


@dataclass
class Verification:
    """What was found.

    Attributes:
        path: of the certificate.
        claim, verdict: what it says.
        objections: why it does not hold; empty where it does.
        notes: what a reader should know.
        replayed: episodes that were played again.
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
        """What a person reads: name, figure."""
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
        """The same as data; ``notices`` are the ``notes``, by the name that they have in the other commands."""
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
    """Hash the files again, compute the test again, play the episodes again.

    Args:
        path: of certificate.json.
        policy, teacher: where they lie now, if not where the certificate says; their hashes must be the same.
        env: the certificate's environment once more, where it is ``module:ID`` and the module may be imported.
        episodes: number of episodes to play, from the first; None: all of them, 0: none.
        num_envs: episodes side by side; the returns do not depend on it.
        workers: processes; None: one a core.
        reading, teacher_reading: how the files of student and teacher are read; what is left open is as the certificate says.
        skip_check: tell what would make a figure meaningless, and go on anyway.
        step_timeout: seconds that a step or a reset of the environment may take; None or 0: any.
        wrappers: ``module:Class`` of those in the certificate that may be imported.
        display: told what is being done.

    Raises:
        RequestError: if the certificate cannot be read, or an agent cannot be found.
    """
    data = read_certificate(path)
    found = Verification(str(path), data["claim"], data["verdict"])
    spec = EnvironmentSpec.from_dict(data["environment"])
    spec = dataclasses.replace(spec, wrappers=trusting(spec.wrappers, wrappers))
    if env is not None:
        if env != spec.id:
            raise RequestError(f"env is {env!r}, but {path} is about {spec.id!r}: leave it out")
        spec = named_again(spec, env) or spec
    changed = _other_versions(data, spec)
    if changed:
        found.notes.append(f"written with other versions: {', '.join(changed)}")
    if _rounds_differently(data):
        found.notes.append(f"written where numbers are rounded differently, on {_named(data.get('kernels'))}; here on {_named(kernels())}")
    _check_test(data, found)
    total = len(data["seeds"])
    count = total if episodes is None else min(episodes, total)
    names = {
        role: given or _place(data[role]["path"], Path(path).parent, role) for role, given in (("student", policy), ("teacher", teacher))
    }
    missing = [role for role, name in names.items() if name is None]
    if missing and count:
        option = "--policy" if missing[0] == "student" else "--teacher"
        raise RequestError(
            f"the {missing[0]} was no single file and cannot be loaded again: give {option}, or --episodes 0 to play nothing"
        )
    if missing:
        found.notes.append(f"the files of the {' and the '.join(missing)} were not looked at")
        return found
    acting, _ = load_policy(str(names["student"]), reading.over(_reading(data, "student", path)))
    recorded = {"algo": data["teacher"].get("algo"), **_reading(data, "teacher", path)}
    reference = Teacher.load(str(names["teacher"]), **teacher_reading.over(recorded).arguments())
    for role, agent in (("student", acting), ("teacher", reference)):
        _check_files(role, data[role]["sha256"], files_of(agent, str(names[role]))["sha256"], found)
    if not found.holds or not count:
        return found  # what plays would not be what was certified
    check_fits(spec, *((agent.observation_space, agent.action_space) for agent in (acting, reference)))
    probe(spec, step_timeout).require_repeatable()
    if other := _other_sources(data, spec):
        found.notes.append(f"the environment's code is not the one that was certified: {', '.join(other)} changed")
        changed += other
    for agent in agents_among(acting, reference):
        found.notes += check.screen_files(agent, skip=skip_check)
    player = Drawing(acting) if data["student"].get("stochastic") else acting
    seeds = data["seeds"][:count]
    if display is not None:
        display.note(f"playing {count} episodes again, three times: student, teacher, random policy")
    with (
        one_torch_thread(),
        Rollouts(spec, reference, num_envs=max(num_envs, 1), seed=0, workers=workers, step_timeout=step_timeout) as rollouts,
    ):

        def play(seeds: list[int]) -> Returns:
            found.replayed += len(seeds)
            return np.stack([rollouts.evaluate(who, seeds, num_envs=num_envs).returns for who in (player, "teacher", "random")])

        again = play(seeds)
        if _compare(data, again, changed, found) and count == total:
            _compare_verdicts(data, again, play, found)
    return found


def place_of(path: str) -> Path:
    """The file, where a folder that holds one may be named."""
    return Path(path, "certificate.json") if os.path.isdir(path) else Path(path)


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Contents of a certificate.

    Raises:
        RequestError: if it is not there, no certificate, or of another format.
    """
    data = read_json(path, "name a certificate.json")
    if "format" not in data or "claim" not in data:
        raise RequestError(f"{path} is no certificate: name a certificate.json that evaluate_policy --certify or distill_policy wrote")
    if data["format"] != FORMAT:
        with refuse_damage(path, "name a certificate.json"):
            raise RequestError(f"{path} is of format {data['format']}, this version reads {FORMAT}: install the one that wrote it")
    if lost := _misfit(data, LAYOUT):
        raise RequestError(f"{path} lacks {lost!r}, or holds something else there: it was cut or changed; write it again")
    for role in ("student", "teacher"):
        if not isinstance(data[role].get("reading"), dict | None):
            raise RequestError(f"{path}: how the {role} was read is not as it was written; write the certificate again")
    if not 1 <= data["max_episodes"] <= MAX_EPISODES or len(data["seeds"]) > MAX_EPISODES:
        raise RequestError(f"{path} is about more than {MAX_EPISODES:,} episodes, or none: such certificates are not written")
    return data


def _misfit(data: dict[str, Any], layout: dict[str, Any]) -> str | None:
    """Dotted name of the first entry of ``layout`` that ``data`` lacks or has as another type; None if all are there."""
    for name, kind in layout.items():
        if name not in data or not isinstance(data[name], dict if isinstance(kind, dict) else kind):
            return name
        if kind is int and isinstance(data[name], bool):
            return name
        if name == "sha256" and not all(isinstance(digest, str) for digest in data[name].values()):
            return name
        if isinstance(kind, dict) and (inner := _misfit(data[name], kind)):
            return f"{name}.{inner}"
    return None


def _place(recorded: str | None, folder: Path, role: str) -> str | None:
    """Where an agent lies: as seen from the certificate's folder, or the name of one that ships with the project."""
    if recorded is None:
        return None
    beside = folder / recorded
    if os.path.exists(beside):
        return str(beside)
    if role == "student":
        raise RequestError(f"the student is no longer at {beside}: say where it is with --policy")
    return recorded


def _reading(data: dict[str, Any], role: str, path: str | Path) -> dict[str, Any]:
    """How an agent's files were read, the place of its statistics as seen from the certificate's folder."""
    recorded = dict(data[role].get("reading") or {})
    statistics = recorded.get("normalization")
    if isinstance(statistics, str) and os.path.isfile(beside := Path(path).parent / statistics):
        recorded["normalization"] = str(beside)
    return recorded


def _plan(data: dict[str, Any]) -> Plan:
    return Plan.of(data["share"], data["confidence"], data["max_episodes"])


def _objection_to_test(data: dict[str, Any]) -> str | None:
    """Why boundaries, verdict or statistics are not those of the returns that the certificate holds; None if they are."""
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
    """Seeds, boundaries and statistics, from the returns that the certificate holds."""
    if data["seeds"] != evaluation_seeds("certificate", len(data["seeds"])):
        found.objections.append("the seeds are not those of certificates: they may have been chosen")
    try:
        with refuse_damage("its numbers", "they were changed"):
            objection = _objection_to_test(data)
    except RequestError as error:  # numbers that are none
        objection = f"the test cannot be computed: {error}"
    if objection:
        found.objections.append(objection)


def _same_statistics(decision: Decision, seen: list[dict[str, Any]]) -> bool:
    """To nine digits; infinities are null in JSON."""
    if len(seen) != len(decision.looks):
        return False
    names = ("episodes", "critical", "keeps", "loses", "gap", "no_gap")
    for look, recorded in zip(decision.looks, seen, strict=True):
        for name in names:
            ours, theirs = getattr(look, name), recorded[name]
            if theirs is None:
                theirs = ours if not math.isfinite(ours) else math.nan
            if ours != theirs and not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9):
                return False
    return True


def _check_files(role: str, recorded: dict[str, str], now: dict[str, str], found: Verification) -> None:
    if sorted(recorded.values()) == sorted(now.values()):
        return
    changed = [name for name, digest in now.items() if recorded.get(name) != digest]
    found.objections.append(f"the {role} is not the one that was certified: {', '.join(changed or sorted(recorded))} differs")


def _other_versions(data: dict[str, Any], spec: EnvironmentSpec) -> list[str]:
    """What was of another version when the certificate was written, in words."""
    here = versions(spec)
    return [
        f"{name} {data['versions'].get(name, 'none')} (here {here.get(name, 'none')})"
        for name in dict.fromkeys([*data["versions"], *here])
        if data["versions"].get(name) != here.get(name)
    ]


def _other_sources(data: dict[str, Any], spec: EnvironmentSpec) -> list[str]:
    """Modules of the environment whose code was another when the certificate was written; older certificates do not say."""
    recorded, here = data.get("sources"), environment_sources(spec)
    if not isinstance(recorded, dict):
        return []
    return sorted(name for name in {*recorded, *here} if recorded.get(name) != here.get(name))


def _rounds_differently(data: dict[str, Any]) -> bool:
    """Whether the certificate says so; older ones do not say."""
    return data["versions"].get("rounding", rounding()) != rounding()


def _named(kernels: Any) -> str:
    return ", ".join(f"{value}" for value in kernels.values()) if isinstance(kernels, dict) else "kernels that it does not name"


def _compare(data: dict[str, Any], again: Returns, changed: list[str], found: Verification) -> bool:
    """Returns must be equal to the last bit on the same versions; where some ``changed``, their means must agree, see ``_differs``.

    Returns:
        Whether some differ as they may.
    """
    count = again.shape[1]
    recorded = np.array([data["returns"][role][:count] for role in ROLES], np.float64)
    differing = dict(zip(ROLES, (again != recorded).sum(1).tolist(), strict=True))
    if not any(differing.values()):
        return False
    text = ", ".join(f"{number} of the {role}'s" for role, number in differing.items() if number)
    text += f" {count} returns differ, by up to {float(np.abs(again - recorded).max()):.3g}"
    if not changed:
        found.objections.append(f"{text}, on the same versions")
        return False
    found.notes.append(f"{text}, which the versions may explain: compared are the means and the verdict")
    unit = abs(float(recorded[1].mean() - recorded[2].mean()))
    for role, now, then in zip(ROLES, again, recorded, strict=True):
        if _differs(now, then, unit):
            means = f"{now.mean():.6g} here, {then.mean():.6g} in the certificate"
            found.objections.append(f"the {role}'s mean return over {count} episodes is {means}: chance and rounding do not explain that")
    return True


def _differs(now: np.ndarray, then: np.ndarray, unit: float) -> bool:
    """Whether returns ``[E]`` of the same policy on the same seeds have another mean than rounding and chance explain.

    Where a last bit grows to another episode, the differences are those of two draws: their mean is 0 up to what a paired t-test at
    ``SURE`` allows. Where it does not, they are tiny, but may all point the same way: means closer than ``NEGLIGIBLE`` of what the
    teacher adds over chance, ``unit``, are the same.
    """
    difference = now - then
    if abs(float(difference.mean())) <= NEGLIGIBLE * unit:
        return False
    return shows_positive_mean(difference, SURE) or shows_positive_mean(-difference, SURE)


def _compare_verdicts(data: dict[str, Any], again: Returns, play: Callable[[list[int]], Returns], found: Verification) -> None:
    """The test from the returns here must come to the certificate's verdict; where they leave it open, it is played on to its next looks.

    A certificate that leaves its question open claims nothing that could be wrong: what is found here is noted.
    """
    plan = _plan(data)
    decision = decide(*again, plan=plan)
    for look in plan.looks:
        if not decision.final and look > again.shape[1]:
            again = np.concatenate([again, play(evaluation_seeds("certificate", look)[again.shape[1] :])], axis=1)
            decision = decide(*again, plan=plan)
    if decision.verdict != data["verdict"]:
        said = found.notes if data["verdict"] == "undecided" else found.objections
        said.append(f"the returns here give: {decision.verdict} after {decision.episodes} episodes")
    elif decision.episodes != data["episodes"]:
        found.notes.append(f"the returns here give the same verdict after {decision.episodes} episodes")
