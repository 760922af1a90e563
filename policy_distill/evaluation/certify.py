"""Certificates: a sequential test of whether a student keeps a share of its teacher's return, with all data needed to repeat it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.config import EvaluateConfig, RequestError
from policy_distill.config.stages import MAX_EPISODES
from policy_distill.environments.specs import EnvironmentSpec, check_registered, find_registered, make
from policy_distill.evaluation.rounding import kernels, rounding
from policy_distill.evaluation.statistics import Decision, Plan, decide, retention
from policy_distill.export.artefact import Artefact, files_of_artefact
from policy_distill.policies.policy import Policy
from policy_distill.policies.student import Student, read_together
from policy_distill.rollouts.episodes import Episodes, evaluation_seeds, merge
from policy_distill.rollouts.workers import Rollouts
from policy_distill.support.files import write_json
from policy_distill.support.progress import Display
from policy_distill.support.untrusted import read_json, refuse_damage, sha256
from policy_distill.teachers import Teacher
from policy_distill.teachers.files.folder import shipped_name

FORMAT = 1
"""Version of certificate.json's format."""
ROLES = ("student", "teacher", "random")
AGENT = {"path": str | None, "sha256": dict}
LAYOUT: dict[str, Any] = {
    "claim": str, "verdict": str, "share": float | int, "confidence": float | int, "max_episodes": int, "episodes": int,
    "environment": {"id": str}, "student": AGENT, "teacher": {**AGENT, "algo": str | None},
    "test": {"looks": list, "boundaries": list, "seen": list}, "versions": dict, "seeds": list, "returns": dict,
}  # fmt: skip
"""Keys that are read of a certificate, and their types."""


@dataclass(frozen=True)
class Certified:
    """A completed sequential test.

    Attributes:
        plan: the test's plan, fixed before the first episode.
        decision: its outcome.
        student, teacher, random: the episodes, on the same seeds.
    """

    plan: Plan
    decision: Decision
    student: Episodes
    teacher: Episodes
    random: Episodes

    @property
    def returns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.student.returns, self.teacher.returns, self.random.returns

    def summary(self) -> dict[str, Any]:
        """Verdict and figures, as result.json holds them."""
        decision = self.decision
        return {
            "verdict": decision.verdict,
            "reason": decision.reason,
            "share": self.plan.share,
            "confidence": self.plan.confidence,
            "max_episodes": self.plan.looks[-1],
            "episodes": decision.episodes,
            "low": decision.low,
            "high": decision.high,
        }


def play(rollouts: Rollouts, student: Policy, plan: Plan, *, num_envs: int = 16, display: Display | None = None) -> Certified:
    """Play the certificate's seeds with student, teacher and random policy, look by look, until the test decides.

    No policy was trained or selected on these seeds. The verdict does not depend on ``num_envs``: all episodes up to a look are played.

    Args:
        rollouts: the environments and the teacher.
        student: the policy under test.
        plan: the test's plan, fixed beforehand.
        num_envs: number of parallel episodes.
        display: shows the statistics of each look.
    """
    seeds = evaluation_seeds("certificate", plan.looks[-1])
    parts: dict[str, list[Episodes]] = {role: [] for role in ROLES}
    played = 0
    for look in plan.looks:
        policies: Sequence[Policy | str] = (student, "teacher", "random")
        evaluations = [rollouts.begin_evaluation(policy, seeds[played:look], num_envs=num_envs) for policy in policies]
        for role, evaluation in zip(ROLES, evaluations, strict=True):
            parts[role].append(evaluation.result())
        played = look
        episodes = [merge(parts[role]) for role in ROLES]
        decision = decide(*(part.returns for part in episodes), plan=plan)
        if display is not None:
            last = decision.looks[-1]
            figures = f"keeps {plan.share:g}: {last.keeps:.2f}  does not: {last.loses:.2f}  needed: {last.critical:.2f}"
            display.note(f"certify   {look:>5,} episodes  {figures}")
        if decision.final:
            break
    return Certified(plan, decision, *episodes)


def plan_of(config: EvaluateConfig) -> Plan | None:
    """The test's plan; None if ``evaluate.certify`` is not set."""
    return None if config.certify is None else Plan.of(config.certify, config.confidence, config.max_episodes)


def certificate(
    found: Certified, *, spec: EnvironmentSpec, student: Mapping[str, Any], teacher: Mapping[str, Any], stochastic: bool = False
) -> dict[str, Any]:
    """Contents of certificate.json: everything that is needed to repeat the test.

    Args:
        found: the test.
        spec: the environment.
        student, teacher: their files and hashes; see ``files_of_student`` and ``files_of_teacher``.
        stochastic: whether the student sampled its actions.
    """
    plan, decision = found.plan, found.decision
    return {
        "format": FORMAT,
        "claim": f"the student keeps at least {plan.share:g} of what its teacher adds over a uniformly random policy",
        **found.summary(),
        "retention": dataclasses.asdict(retention(*found.returns, confidence=plan.confidence)),
        "environment": spec.to_dict(),
        "student": {**student, "stochastic": stochastic},
        "teacher": dict(teacher),
        "test": {
            "spending": "Lan-DeMets, O'Brien-Fleming type, one-sided on each side",
            "looks": list(plan.looks),
            "boundaries": list(plan.boundaries),
            "seen": [dataclasses.asdict(look) for look in decision.looks],
        },
        "versions": versions(spec),
        "kernels": kernels(),
        "sources": environment_sources(spec),
        "seeds": found.student.seeds.tolist(),
        "returns": {role: values.tolist() for role, values in zip(ROLES, found.returns, strict=True)},
    }


def write_certificate(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write the certificate, with the agents' paths relative to its folder, so that the whole folder can be moved."""
    folder = Path(path).parent
    agents = {}
    for role in ("student", "teacher"):
        reading = dict(data[role].get("reading", {}))
        if "normalization" in reading:
            reading["normalization"] = _relative(reading["normalization"], folder)
        agents[role] = {**data[role], "path": _relative(data[role]["path"], folder), **({"reading": reading} if reading else {})}
    return write_json(path, {**data, **agents})


def place_of(path: str) -> Path:
    """Path of the certificate's file, from the path of the file or of its folder."""
    return Path(path, "certificate.json") if os.path.isdir(path) else Path(path)


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Contents of a certificate.

    Raises:
        RequestError: if the file is missing, is not a certificate, or has another format.
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
    """Dotted name of the first key of ``layout`` that is missing in ``data`` or has another type; None if there is none."""
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


def files_of_student(folder: str | Path) -> dict[str, Any]:
    """Identity of a student: its folder, and the hashes of its weights and its description."""
    _, weights = read_together(folder)
    hashes = {"student.safetensors": hashlib.sha256(weights).hexdigest(), "student.json": sha256(Path(folder) / "student.json")}
    return {"path": str(folder), "sha256": hashes}


def files_of_teacher(teacher: Teacher, name: str | None) -> dict[str, Any]:
    """Identity of a teacher: its name or path, and the hashes of its zip, its statistics and its extractor's source.

    An agent that ships with the project is recorded by its name, by which it is found on every machine.

    Args:
        teacher: the agent; an ensemble has the files of all its members, a live model has none.
        name: name or path that the user gave; None if it cannot be loaded by name.
    """
    alone = len(teacher.members) == 1
    again = (shipped_name(teacher.path) or name) if alone and teacher.path else None
    # Members in different folders may have the same file name.
    hashes = {path.name if alone else str(path): sha256(path) for path in teacher.files}
    reading = teacher.reading.recorded()
    return {"path": again, "algo": teacher.algo, **({"reading": reading} if reading else {}), "sha256": hashes}


def files_of(policy: Student | Artefact | Teacher, path: str) -> dict[str, Any]:
    """Identity of a policy that ``measure.load_policy`` opened."""
    if isinstance(policy, Artefact):
        return files_of_artefact(policy)
    if isinstance(policy, Teacher):
        return files_of_teacher(policy, path)
    folder = Path(path)
    return files_of_student(folder if (folder / "student.json").is_file() else folder / "student")


def versions(spec: EnvironmentSpec) -> dict[str, str]:
    """Versions of everything that a return depends on, including the machine and its rounding."""
    found = {
        "policy-distill": importlib.metadata.version("policy-distill"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "gymnasium": gym.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "rounding": rounding(),
    }
    for name in _simulators(spec):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _simulators(spec: EnvironmentSpec) -> list[str]:
    """Names of the distributions, in lower case, that an environment's id is made from, besides Gymnasium and this package."""
    with contextlib.suppress(RequestError):  # without the environment only a certificate's figures can be verified
        check_registered(spec)
    registered = find_registered(spec.id)
    entry_point = registered.entry_point if registered else None
    module = entry_point.partition(":")[0] if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    inside = re.match(r"gymnasium\.envs\.(box2d|mujoco)\.", module)
    names = {name for name in (spec.extra, inside[1] if inside else None) if name}
    if (package := module.partition(".")[0]) not in ("", "gymnasium", "policy_distill"):
        names |= {name.lower() for name in _distributions().get(package, ())}
    return sorted(names)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Distributions by the packages that they install; reading them takes half a second."""
    return importlib.metadata.packages_distributions()


def environment_sources(spec: EnvironmentSpec) -> dict[str, str]:
    """Hashes of the files that define the environment and its wrappers, by module; ``unknown`` if there is no file.

    Modules of Gymnasium and of this package are left out: their versions identify them.
    """
    found = {}
    env: gym.Env = make(spec)
    try:
        layer = env
        while True:
            kind = type(layer)
            if kind.__module__.partition(".")[0] not in ("gymnasium", "policy_distill"):
                try:
                    file = inspect.getsourcefile(kind)
                except TypeError:  # it was not defined in a file
                    file = None
                found[kind.__module__] = sha256(Path(file)) if file and os.path.isfile(file) else "unknown"
            if not isinstance(layer, gym.Wrapper):
                return found
            layer = layer.env
    finally:
        env.close()


def _relative(place: str | None, folder: Path) -> str | None:
    """A path relative to ``folder``; the name of a shipped agent is returned unchanged."""
    return os.path.relpath(place, folder) if place and Path(place).exists() else place
