"""Disk cache of the returns of teacher and random policy, so that no job plays their episodes again.

A file holds the returns of one policy in one environment by seed. Its name is a hash of everything else that an episode depends on:

- the environment: its ``EnvironmentSpec``, and its entry in Gymnasium's registry;
- the teacher: its files, its algorithm, its network in memory (the files may have been replaced since they were read), and its recorded
  layers, for which torch replaces numpy and rounds differently;
- the code: the sources of this package and of Gymnasium, the versions that a certificate names, the processor, and the system with its C
  library. If any of it changes, no old entry is found.

Episodes that cannot be identified this way are always played:

- those of live models, callables, ensembles, and agents that run their own code (``--trust``);
- those in environments that ``REPEATABLE`` does not match: a user's code may change under the same id, and a simulator may carry state
  from one episode to the next;
- those in environments registered with wrappers, or with strings among the arguments, which may name a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.certify import files_of_teacher, versions
from policy_distill.evaluation.rounding import processor
from policy_distill.rollouts.episodes import Episodes, merge
from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import read_npz, refuse_damage
from policy_distill.teachers import Teacher
from policy_distill.teachers.networks.acting import DeterministicNetwork, DiscreteNetwork, GaussianNetwork

REPEATABLE = re.compile(r"gymnasium\.envs\.(classic_control|mujoco|box2d\.(lunar_lander|bipedal_walker))[.:]")
"""Entry points of environments whose episodes do not depend on earlier ones (BipedalWalker needs ``wrappers.FreshWorld``)."""

MAX_BYTES = 64 << 20
NO_EPISODES = Episodes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


class KnownReturns:
    """A file with the returns and lengths of one policy's episodes in one environment.

    Several processes may read and write it, because each write replaces the whole file. Of two simultaneous writes one is lost, and its
    episodes are played again. A missing or damaged file counts as empty; if the folder cannot be written, nothing is cached.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, seeds: Sequence[int]) -> Episodes:
        """The cached episodes among ``seeds``, in this order."""
        known = self._load()
        index = {int(seed): number for number, seed in enumerate(known.seeds)}
        return _select(known, [index[seed] for seed in seeds if seed in index])

    def add(self, episodes: Episodes) -> None:
        """Add ``episodes`` to the file."""
        known = self._load()
        new = _select(episodes, np.flatnonzero(~np.isin(episodes.seeds, known.seeds)))
        both = merge([known, new])
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda file: np.savez(file, seeds=both.seeds, returns=both.returns, lengths=both.lengths))

    def _load(self) -> Episodes:
        try:
            with refuse_damage(self.path, "its episodes are played again"):
                data = read_npz(self.path, ("seeds", "returns", "lengths"), MAX_BYTES)
            found = Episodes(data["seeds"], data["returns"], data["lengths"])
        except RequestError:
            return NO_EPISODES
        arrays, expected = ((part.seeds, part.returns, part.lengths) for part in (found, NO_EPISODES))
        alike = all(one.dtype == other.dtype and one.shape == found.seeds.shape for one, other in zip(arrays, expected, strict=True))
        return found if alike and found.seeds.ndim == 1 else NO_EPISODES


def known_returns(teacher: Teacher, spec: EnvironmentSpec) -> dict[str, KnownReturns]:
    """The caches of "teacher" and "random" in an environment, without policies that cannot be identified."""
    environment, base = _environment(spec), folder()
    if environment is None or base is None:
        return {}
    common = {**environment, "sources": SOURCES, "versions": {**versions(spec), "processor": processor(), "system": platform.platform()}}
    policies = {"teacher": _teacher(teacher), "random": {}}
    return {role: KnownReturns(base / f"{_digest({**common, role: data})}.npz") for role, data in policies.items() if data is not None}


def folder() -> Path | None:
    """The cache's folder: below ``$XDG_CACHE_HOME`` if that is an absolute path, else below ``~/.cache``; None without a home.

    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = named if os.path.isabs(named) else os.path.expanduser("~/.cache")
    return Path(base, "policy-distill", "returns") if os.path.isabs(base) else None


def _environment(spec: EnvironmentSpec) -> dict[str, Any] | None:
    """Identity of an environment as data; None if data do not identify it."""
    registered = gym.registry.get(spec.id.rpartition(":")[2])
    if registered is None or registered.nondeterministic or registered.additional_wrappers:
        return None
    if any(":" in name for name, _ in spec.wrappers):  # a user's code, which may change
        return None
    if not REPEATABLE.match(str(registered.entry_point)):
        return None
    try:
        arguments = json.dumps([*spec.kwargs.values(), *registered.kwargs.values()])
        found = {"environment": json.dumps(spec.to_dict(), sort_keys=True), "registered": registered.to_json()}
    except (TypeError, ValueError):  # an object or a function among the arguments
        return None
    return None if '"' in arguments else found


def _teacher(teacher: Teacher) -> dict[str, Any] | None:
    """Identity of a teacher as data; None if it was not read from files as data."""
    network = teacher.network
    if teacher.path is None or type(network) not in (DiscreteNetwork, DeterministicNetwork, GaussianNetwork):
        return None
    if teacher.reading.extractor is not None:  # code, which may import more than its own file
        return None
    try:
        files = files_of_teacher(teacher, None)
    except (RequestError, OSError):  # the files were removed
        return None
    weights = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.cpu().numpy().tobytes())
    return {
        "algo": files["algo"],
        "files": sorted(files["sha256"].values()),
        "network": str(network),
        "weights": weights.hexdigest(),
        "recorded": teacher.recorded,
    }


def _sources(package: Path) -> str:
    """Hash of a package's sources, and of the models that its simulators read."""
    contents = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.suffix in (".py", ".xml")}
    return _digest({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in contents.items()})


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _select(episodes: Episodes, indices: Sequence[int] | np.ndarray) -> Episodes:
    chosen = np.asarray(indices, np.int64)
    return Episodes(episodes.seeds[chosen], episodes.returns[chosen], episodes.lengths[chosen])


SOURCES = {
    name: _sources(folder)
    for name, folder in {"policy_distill": Path(__file__).parents[1], "gymnasium": Path(str(gym.__file__)).parent}.items()
}
"""Hashes of the sources that run, taken at import: a file may be edited during a long suite."""
