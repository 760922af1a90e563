"""Artefacts: a student in a format for deployment, in a folder of its own, which acts like any other policy.

The folder holds the format's files, ``policy.json`` (format, hashes, how it was checked) and ``student/``, from which the files were
written. The structure of the network is always read from ``student/``; the files themselves are what is executed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments.action_masks import MASK
from policy_distill.environments.vector import GOES_ON
from policy_distill.export.folded import ALONE, MASK_NAME, fold_student
from policy_distill.export.formats import FORMATS
from policy_distill.export.runner import Seen, Visited
from policy_distill.policies.policy import State
from policy_distill.policies.student import Student
from policy_distill.policies.views import View
from policy_distill.support.files import write_json
from policy_distill.support.trees import Tree
from policy_distill.support.untrusted import read_json, refuse_damage, sha256

MANIFEST = "policy.json"
VERSION = 1
"""Version of policy.json's format."""
STUDENT = ("student/student.json", "student/student.safetensors")
"""Files that the others were written from; export_student lists them with the others."""
AGAIN = "export the student again"
MAX_BYTES = 512 << 20
"""Limit of one file for reading."""


class Artefact:
    """An exported policy; see ``policies.policy.Stateful``. It acts through its view of the environment's observations.

    Args:
        folder: an artefact's folder.
        trust: allows to run code from the files that was not written by this version, and the import of the view's wrapper.

    Attributes:
        folder: the folder.
        format: name of the format.
        student: the student that it was written from.
        params: number of the student's parameters.
        manifest: contents of policy.json.

    Raises:
        RequestError: if the folder holds no artefact, its files were changed, or code would be run without ``trust``.
    """

    def __init__(self, folder: str | Path, *, trust: bool = False) -> None:
        self.folder, self.trust = Path(folder), trust
        self.manifest = read_manifest(self.folder)
        self.format: str = self.manifest["policy_format"]
        self._format = FORMATS[self.format]
        check_files(self.folder, self.manifest)
        self.student = Student.load(self.folder / "student", trust=trust)
        self.params = self.student.params
        if self._format.is_code and not trust:
            self._compare_code()
        self.run = self._format.load(self.folder, self.student)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "trust": True}  # checked already

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def observation_space(self) -> gym.Space:
        return self.student.observation_space

    @property
    def action_space(self) -> gym.Space:
        return self.student.action_space

    @property
    def view(self) -> View | None:
        """The transformation of observations before the artefact's input; None if it reads the environment's observations."""
        return None if self._format.reads_everything else self.student.view

    def initial_state(self, num_envs: int) -> State:
        return None if self.view is None else self.view.initial_state(num_envs), self._memory(num_envs)

    def _memory(self, num_envs: int) -> np.ndarray:
        return np.zeros((num_envs, self.student.architecture.memory), np.float32)

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[np.ndarray, State]:
        view_state, memory = state
        if self.view is not None:
            observations, view_state = self.view.step(observations, view_state, starts)
        if starts is not None:
            memory = np.where((starts == GOES_ON)[:, None], memory, np.float32(0))
        actions, _, memory = self.run(by_name(observations), memory)
        return actions, (view_state, memory)

    def _compare_code(self) -> None:
        """Check that the files are those that this version writes.

        Raises:
            RequestError: if they are not.
        """
        names = self.manifest["files"]
        refused = f"{self.folder} holds code ({', '.join(self._format.files)}), and running it is only allowed with --trust"
        if not self._format.repeatable:
            raise RequestError(refused)
        with tempfile.TemporaryDirectory() as scratch, refuse_damage(self.folder / MANIFEST, AGAIN):
            self._format.write(self.student, Path(scratch), None, self.manifest["numbers"])
            same = all(sha256(Path(scratch, name), MAX_BYTES) == names[name] for name in self._format.files)
        if not same:
            raise RequestError(f"{refused}, since it is not what this version writes for {self.folder / 'student'}")


def write(student: Student, name: str, folder: Path, visited: Visited) -> dict[str, Any]:
    """Write a student's files in the format ``name`` into ``folder``, which exists.

    Returns:
        The manifest, which ``write_manifest`` writes once the artefact has been checked.

    Raises:
        RequestError: if the format cannot express the student, or an optional package is missing.
    """
    chosen, folded = FORMATS[name], fold_student(student)
    numbers = chosen.numbers(folded, visited)
    chosen.write(student, folder, visited, numbers)
    return {
        "format": VERSION,
        "policy_format": name,
        "files": {file: sha256(folder / file, MAX_BYTES) for file in chosen.files},
        "bytes": sum((folder / file).stat().st_size for file in chosen.files),
        "weight_bytes": chosen.weight_bytes(folder) if chosen.weight_bytes else folded.weight_bytes(chosen.bits),
        "multiply_adds": folded.multiply_adds,
        "numbers": numbers,
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write policy.json."""
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Contents of policy.json.

    Raises:
        RequestError: if it is missing, damaged, or of another version or an unknown format.
    """
    path = folder / MANIFEST
    data = read_json(path, AGAIN)
    if data.get("format") != VERSION:
        raise RequestError(f"{path} is of format {str(data.get('format'))[:20]}, this version reads {VERSION}: {AGAIN}")
    chosen = FORMATS.get(str(data.get("policy_format")))
    if chosen is None:
        raise RequestError(f"{path} names the unknown format {str(data.get('policy_format'))[:20]!r}: {AGAIN}")
    files = data.get("files")
    listed = isinstance(files, dict) and files.keys() in (set(chosen.files), {*chosen.files, *STUDENT})
    if not listed or not isinstance(data.get("numbers"), dict):
        raise RequestError(f"{path} does not list the files of the policy: {AGAIN}")
    return data


def is_artefact(folder: str | Path) -> bool:
    """Whether a folder holds an artefact."""
    return Path(folder, MANIFEST).is_file()


def files_of_artefact(artefact: Artefact) -> dict[str, Any]:
    """Identity of an artefact: its folder, and the hashes of its files and of its student's."""
    names = (*artefact.manifest["files"], *STUDENT)
    return {"path": str(artefact.folder), "sha256": {name: sha256(artefact.folder / name, MAX_BYTES) for name in names}}


def by_name(observations: Tree) -> Seen:
    """The parts of observations ``[B, ...]`` by the names of ``Folded.inputs``."""
    if not isinstance(observations, dict):
        return {ALONE: observations}
    return {MASK_NAME if key == MASK else key: leaf for key, leaf in observations.items()}


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """
    Raises:
        RequestError: if a file is missing or not the one that was checked.
    """
    for name, digest in manifest["files"].items():
        with refuse_damage(folder / name, AGAIN):
            found = sha256(folder / name, MAX_BYTES)
        if found != digest:
            raise RequestError(f"{folder / name} is not the file that was exported: it was changed; {AGAIN}")
