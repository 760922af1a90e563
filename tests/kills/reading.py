"""Reading of a run folder while a run writes into it: what is written together must be read together, and each file must be whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from policy_distill.pipeline.state_file import read_state
from policy_distill.policies.student import Student, read_together
from tests.kills.run import state_of


@dataclass
class Reads:
    """What was read of a run folder.

    Attributes:
        student, checkpoint, result: number of reads.
        students, checkpoints: hashes of the different ones that were read.
        wrong: for each read that was not whole or mixed, the reason.
    """

    student: int = 0
    checkpoint: int = 0
    result: int = 0
    students: set[str] = field(default_factory=set)
    checkpoints: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def look(self, run: Path) -> None:
        """Read all there is; files that are not there yet, or not any more, are left out."""
        folder = run / "student"
        if (folder / "student.json").exists():
            self._try(self._student, folder)
        if state_of(run).exists():
            self._try(self._checkpoint, state_of(run))
        if (run / "result.json").exists():
            self._try(self._result, run / "result.json")

    def _try(self, read: Callable[[Path], None], path: Path) -> None:
        try:
            read(path)
        except FileNotFoundError:  # removed between the two calls, by the next run or at the end
            pass
        except Exception as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                self.wrong.append(f"{path.name}: {error}")

    def _student(self, folder: Path) -> None:
        description, weights = read_together(folder)
        found = hashlib.sha256(weights).hexdigest()
        if description["weights_sha256"] != found:
            raise ValueError("the weights are not those of the description")
        Student.load(folder)
        self.student += 1
        self.students.add(found)

    def _checkpoint(self, path: Path) -> None:
        data, _ = read_state(path)
        self.checkpoint += 1
        self.checkpoints.add(json.dumps(data["state"]["stage"]) + str(data["state"]["seconds"]))

    def _result(self, path: Path) -> None:
        json.loads(path.read_text())
        self.result += 1
