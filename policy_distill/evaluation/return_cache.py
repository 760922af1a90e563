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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError, StorageFault
from policy_distill.environments.specs import EnvironmentSpec, find_registered
from policy_distill.evaluation.certify import files_of_teacher, versions
from policy_distill.evaluation.rounding import processor
from policy_distill.rollouts.episodes import Episodes, merge
from policy_distill.support.files import write_atomically
from policy_distill.support.untrusted import read_npz, refuse_damage
from policy_distill.teachers import Teacher
from policy_distill.teachers.networks.acting import DeterministicNetwork, DiscreteNetwork, GaussianNetwork

try:
    import fcntl
except ImportError:  # no such locks (Windows): of two simultaneous writes one is lost, and its episodes are played again
    fcntl = None  # type: ignore[assignment]

REPEATABLE = re.compile(r"gymnasium\.envs\.(classic_control|mujoco|box2d\.(lunar_lander|bipedal_walker))[.:]")
"""Entry points of environments whose episodes do not depend on earlier ones (BipedalWalker needs ``wrappers.FreshWorld``)."""

MAX_BYTES = 64 << 20
LOCK_SECONDS = 5.0
"""Time to wait for another writer; a cache that cannot be locked in this time is not written."""
NO_EPISODES = Episodes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


class KnownReturns:
    """A file with the returns and lengths of one policy's episodes in one environment.

    Several processes may read and write it: writers wait for each other, and each write replaces the whole file. A missing file counts as
    empty, and so does one that is damaged (its hash is wrong, or it holds what no episode can give); if the folder cannot be written,
    nothing is cached. The hash finds damage, not forgery: anyone who can write the file can compute it.

    Args:
        path: the file; its name is part of the hash.
        note: receives a line about a damaged file.
    """

    def __init__(self, path: Path, note: Callable[[str], object] = lambda line: None) -> None:
        self.path, self._note = path, note

    def read(self, seeds: Sequence[int]) -> Episodes:
        """The cached episodes among ``seeds``, in this order."""
        known = self._load()
        index = {int(seed): number for number, seed in enumerate(known.seeds)}
        return _select(known, [index[seed] for seed in seeds if seed in index])

    def add(self, episodes: Episodes) -> None:
        """Add ``episodes`` to the file."""
        with contextlib.suppress(OSError, StorageFault):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.parent / ".lock"):
                known = self._load()
                new = _select(episodes, np.flatnonzero(~np.isin(episodes.seeds, known.seeds)))
                both = merge([known, new])
                digest = self._hash(both)
                write_atomically(
                    self.path, lambda file: np.savez(file, seeds=both.seeds, returns=both.returns, lengths=both.lengths, sha256=digest)
                )

    def _load(self) -> Episodes:
        if not self.path.exists():
            return NO_EPISODES
        try:
            with refuse_damage(self.path, "its episodes are played again"):
                data = read_npz(self.path, ("seeds", "returns", "lengths", "sha256"), MAX_BYTES)
                found = Episodes(data["seeds"], data["returns"], data["lengths"])
                _check(found)
                if not np.array_equal(data["sha256"], self._hash(found)):
                    raise ValueError("its contents do not have the hash that was written with them")
        except RequestError as error:
            self._note(f"the cache of known returns {error}")
            with contextlib.suppress(OSError):  # said once, and not by every later job
                self.path.unlink()
            return NO_EPISODES
        return found

    def _hash(self, episodes: Episodes) -> np.ndarray:
        """SHA-256 over the name and the contents, 32 bytes."""
        digest = hashlib.sha256(self.path.name.encode())
        for part in (episodes.seeds, episodes.returns, episodes.lengths):
            digest.update(part.tobytes())
        return np.frombuffer(digest.digest(), np.uint8)


def _check(episodes: Episodes) -> None:
    """Raise ``ValueError`` unless these can be the returns of episodes, one for each seed."""
    for part, like in zip(
        (episodes.seeds, episodes.returns, episodes.lengths), (NO_EPISODES.seeds, NO_EPISODES.returns, NO_EPISODES.lengths), strict=True
    ):
        if part.dtype != like.dtype or part.shape != episodes.seeds.shape or part.ndim != 1:
            raise ValueError(f"an array of {part.dtype} with the shape {part.shape}")
    if not np.isfinite(episodes.returns).all():
        raise ValueError("a return is NaN or infinite")
    if len(np.unique(episodes.seeds)) < len(episodes.seeds):
        raise ValueError("a seed stands in it twice")
    if len(episodes.seeds) and (episodes.seeds.min() < 0 or episodes.lengths.min() < 1):
        raise ValueError("a seed is negative, or an episode has no steps")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder of caches; the operating system releases it when a process ends.

    Raises:
        OSError: if another process holds it for longer than ``LOCK_SECONDS``.
    """
    with open(path, "a") as file:
        until = time.monotonic() + LOCK_SECONDS
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
        yield


def known_returns(teacher: Teacher, spec: EnvironmentSpec, note: Callable[[str], object] = lambda line: None) -> dict[str, KnownReturns]:
    """The caches of "teacher" and "random" in an environment, without policies that cannot be identified; see ``KnownReturns``."""
    environment, base = _environment(spec), folder()
    if environment is None or base is None:
        return {}
    common = {**environment, "sources": SOURCES, "versions": {**versions(spec), "processor": processor(), "system": platform.platform()}}
    policies = {"teacher": _teacher(teacher), "random": {}}
    paths = {role: base / f"{_digest({**common, role: data})}.npz" for role, data in policies.items() if data is not None}
    return {role: KnownReturns(path, note) for role, path in paths.items()}


def folder() -> Path | None:
    """The cache's folder: below ``$XDG_CACHE_HOME`` if that is an absolute path, else below ``~/.cache``; None without a home.

    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = named if os.path.isabs(named) else os.path.expanduser("~/.cache")
    return Path(base, "policy-distill", "returns") if os.path.isabs(base) else None


def _environment(spec: EnvironmentSpec) -> dict[str, Any] | None:
    """Identity of an environment as data; None if data do not identify it."""
    registered = find_registered(spec.id)
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
    return {
        "algo": files["algo"],
        "files": sorted(files["sha256"].values()),
        "network": str(network),
        "weights": hash_of_weights(teacher),
        "recorded": teacher.recorded,
    }


def hash_of_weights(teacher: Teacher) -> str:
    """SHA-256 of the teacher's tensors in memory, in hexadecimal; a callable has none."""
    weights = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.cpu().numpy().tobytes())
    return weights.hexdigest()


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
