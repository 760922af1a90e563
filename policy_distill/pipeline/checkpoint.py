"""Checkpoints: the state of a run on the disk between two advances, from which the run continues with the same student, bit for bit.

``checkpoint/`` in the run folder holds ``rows`` (the dataset, to which each checkpoint appends the new rows), ``state.safetensors`` (all
else: arrays, JSON in its metadata, and their hash) and ``config.yaml`` (the settings as they were given). The state is replaced by a rename
after the rows are on the disk, so a crash leaves the previous checkpoint whole. All files are plain data.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from policy_distill.config import RequestError
from policy_distill.evaluation.certify import Certified, files_of_teacher, plan_of
from policy_distill.evaluation.return_cache import SOURCES, hash_of_weights
from policy_distill.evaluation.rounding import rounding
from policy_distill.evaluation.statistics import decide
from policy_distill.pipeline.imitation import trainer_with
from policy_distill.pipeline.polish import training_of
from policy_distill.pipeline.prepare import Job
from policy_distill.pipeline.records import Candidate
from policy_distill.pipeline.state import FOLDER, Kept, Polishing, Stage, State
from policy_distill.pipeline.state_file import as_json, differences, read_state, write_state
from policy_distill.pipeline.summary import VERSION, versions
from policy_distill.pipeline.varying import settled
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.student import Student
from policy_distill.rollouts.episodes import Episodes
from policy_distill.support.files import remove_unfinished, write_atomically
from policy_distill.support.untrusted import refuse_damage
from policy_distill.training.trainer import Trainer
from policy_distill.training.value_network import DistilledValues

FORMAT = 1
"""Version of the format of state.safetensors."""
STATE, CONFIG = "state.safetensors", "config.yaml"
FREE = ("output", "workers", "worker_restarts", "step_timeout", "engine", "teacher")
"""Settings that may differ when a run is resumed: the student does not depend on them. Of the teacher, files and weights are compared."""
PLAIN = (
    "stage", "seeds", "num_first", "env_steps", "gradient_steps", "evaluation_env_steps", "reused_episodes", "seconds", "first_rows",
    "notices", "view_loss",
)  # fmt: skip
"""Fields of a state that are JSON."""
AGAIN = "remove the folder checkpoint to begin the run again"


def folder_of(run: Path) -> Path:
    """The folder of a run's checkpoint."""
    return run / FOLDER


def exists(run: Path) -> bool:
    """Whether a run can be resumed."""
    return (folder_of(run) / STATE).is_file()


def remove(run: Path) -> None:
    """Remove a run's checkpoint; a removal that is interrupted leaves nothing that can be resumed."""
    (folder_of(run) / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder_of(run), ignore_errors=True)


class CannotResume(RequestError):
    """A checkpoint is damaged, or was written by other code or for another request."""


class Checkpoint:
    """The checkpoint of a run.

    Args:
        job: the run's request, with the notices of its beginning.
        identity: ``identity(job)``.
    """

    def __init__(self, job: Job, identity: Mapping[str, Any]) -> None:
        self._folder = folder_of(job.folder)
        self._head = {"identity": identity, "notices": job.notices}
        self._folder.mkdir(exist_ok=True)
        remove_unfinished(self._folder / STATE)
        text = yaml.safe_dump(as_json(dataclasses.asdict(job.config)), sort_keys=False)
        write_atomically(self._folder / CONFIG, lambda target: target.write_text(text))

    def write(self, state: State) -> None:
        """Write the run's state; an earlier checkpoint is replaced once this one is on the disk."""
        arrays: dict[str, np.ndarray] = {}
        described = _described(state, self._folder, arrays)  # it adds the arrays
        write_state(self._folder / STATE, {**self._head, "state": described}, arrays)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        notices: the job's notices at the beginning of the run.
        changed: for each version that differs from the one that wrote it, a line.
    """

    notices: tuple[str, ...]
    changed: list[str]
    _state: Mapping[str, Any]
    _arrays: Mapping[str, np.ndarray]

    def state(self, job: Job) -> State:
        """The run's state.

        Raises:
            CannotResume: if its files are damaged.
        """
        with refuse_damage(folder_of(job.folder), AGAIN, CannotResume):
            return _restored(self._state, job, self._arrays)


def read(run: Path, now: Mapping[str, Any]) -> Saved:
    """The checkpoint in a run folder.

    Args:
        run: the run folder.
        now: ``identity`` of the job that is to continue it.

    Raises:
        CannotResume: if there is none, it is damaged, or it was written by other code or for another request.
    """
    path = folder_of(run) / STATE
    with refuse_damage(path, AGAIN, CannotResume):
        data, arrays = read_state(path)
        changed = _compare(data["identity"], as_json(now))
        return Saved(tuple(data["notices"]), changed, data["state"], arrays)


def identity(job: Job) -> dict[str, Any]:
    """What a run must agree on with its checkpoint, and the versions that may change its bits."""
    return {
        "format": FORMAT,
        "code": {"version": VERSION, "sources": SOURCES["policy_distill"]},
        "config": {name: value for name, value in dataclasses.asdict(job.config).items() if name not in FREE},
        "teacher": files_of_teacher(job.teacher, None)["sha256"],
        "weights": hash_of_weights(job.teacher),
        "environment": job.spec.to_dict(),
        "device": job.device.type,
        "versions": {**versions(), "rounding": rounding()},
    }


def _compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The versions that differ.

    Raises:
        CannotResume: if anything else differs; it names the difference.
    """
    if saved["format"] != now["format"]:
        raise CannotResume(f"the checkpoint is of format {saved['format']}, this version reads {now['format']}: {AGAIN}")
    if saved["code"] != now["code"]:
        was, is_now = (f"policy-distill {code['version']} (sources {code['sources'][:8]})" for code in (saved["code"], now["code"]))
        raise CannotResume(f"the checkpoint was written by {was}, this is {is_now}: resume it with that code, or {AGAIN}")
    for name, what in (
        ("config", ""),
        ("teacher", "the teacher's file "),
        ("weights", "the hash of the teacher's "),
        ("environment", "the environment's "),
        ("device", "the "),
    ):
        if found := differences(saved[name], now[name], name if name in ("weights", "device") else ""):
            listed = "; ".join(f"{what}{key} is {new!r}, it was {old!r}" for key, old, new in found[:3])
            raise CannotResume(f"the run cannot be resumed with another request: {listed}: give what was given at first, or {AGAIN}")
    return [f"{key} is {new}, it was {old}" for key, old, new in differences(saved["versions"], now["versions"])]


def _described(state: State, folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """``state`` as JSON; its arrays are added to ``arrays``. New rows of the dataset are written into ``folder``."""

    def put(name: str, values: Mapping[str, Tensor | np.ndarray]) -> None:
        for key, value in values.items():
            array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            arrays[f"{name}/{key}"] = np.ascontiguousarray(array)

    def episodes(name: str, part: Episodes | None) -> dict[str, Any] | None:
        if part is None:
            return None
        put(name, {"seeds": part.seeds, "returns": part.returns, "lengths": part.lengths})
        return {"agreement": part.agreement}

    def layers(name: str, network: Sequence[nn.Linear] | None) -> int | None:
        for index, layer in enumerate(network or ()):
            put(f"{name}/{index}", {"weight": layer.weight, "bias": layer.bias})
        return None if network is None else len(network)

    def stacked(name: str, students: Sequence[Student]) -> None:
        of_all = [student.state_dict() for student in students]
        put(name, {key: torch.stack([tensors[key] for tensors in of_all]) for key in (of_all[0] if of_all else ())})

    put("returns", {"teacher": state.teacher_returns, "random": state.random_returns})
    put("returns", {str(index): returns for index, returns in enumerate(state.returns)})
    stacked("students", state.students)
    stacked("kept", [kept.student for kept in state.kept])
    for index, kept in enumerate(state.kept):
        put(f"kept/{index}", {"returns": kept.returns})
    polishing = state.polishing
    if polishing is not None:
        put("polishing/training", polishing.training.state_dict())
        put("polishing/returns", {str(index): returns for index, returns in enumerate(polishing.returns)})
        stacked("polishing/students", polishing.students)
    if state.trainer is not None:
        put("trainer", state.trainer.state_dict())
        put("encoder", state.trainer.stack.member(0).encoder.state_dict())
    certified = state.certified
    return {
        **{name: getattr(state, name) for name in PLAIN},
        "columns": None if state.columns is None else list(state.columns),
        "dataset": state.dataset.save(folder),
        "records": [dataclasses.asdict(record) for record in state.records],
        "trainer": state.trainer is not None,
        "students": len(state.students),
        "returns": len(state.returns),
        "kept": [kept.origin for kept in state.kept],
        "teacher_parts": [episodes(f"teacher_parts/{index}", part) for index, part in enumerate(state.teacher_parts)],
        "random_parts": [episodes(f"random_parts/{index}", part) for index, part in enumerate(state.random_parts)],
        "student_episodes": episodes("student_episodes", state.student_episodes),
        "polishing": None if polishing is None else {
            "records": [dataclasses.asdict(record) for record in polishing.records],
            "critics": [layers(f"polishing/critics/{index}", critic) for index, critic in enumerate(polishing.critics)],
        },
        "critic": layers("critic", state.critic),
        "values": None if state.values is None else [layers("values", state.values.layers), state.values.explained_variance],
        "certified": None if certified is None else [
            episodes(f"certified/{role}", getattr(certified, role)) for role in ("student", "teacher", "random")
        ],
    }  # fmt: skip


def _restored(data: Mapping[str, Any], job: Job, arrays: Mapping[str, np.ndarray]) -> State:
    """The state that ``_described`` described."""

    def get(name: str) -> dict[str, Tensor]:
        prefix = f"{name}/"
        return {key.removeprefix(prefix): torch.from_numpy(value.copy()) for key, value in arrays.items() if key.startswith(prefix)}

    def episodes(name: str, part: Mapping[str, Any] | None) -> Episodes | None:
        return None if part is None else Episodes(**{key: value.numpy() for key, value in get(name).items()}, agreement=part["agreement"])

    def all_episodes(name: str) -> list[Episodes]:
        found = (episodes(f"{name}/{index}", part) for index, part in enumerate(data[name]))
        return [part for part in found if part is not None]

    def layers(name: str, count: int | None) -> list[nn.Linear] | None:
        return None if count is None else [_linear(get(f"{name}/{index}")) for index in range(count)]

    columns = None if data["columns"] is None else tuple(data["columns"])
    job, state = settled(job, columns), State.begin(job)
    for name in PLAIN:
        if (begun := getattr(state, name)) is not None and type(data[name]) is not type(begun):
            raise ValueError(f"{name} is a {type(data[name]).__name__}")
        setattr(state, name, data[name])
    if state.stage not in get_args(Stage):
        raise ValueError("it names no stage")
    state.columns = columns
    state.dataset.load(folder_of(job.folder), data["dataset"])
    returns = {name: value.numpy() for name, value in get("returns").items()}
    state.teacher_returns, state.random_returns = returns["teacher"], returns["random"]
    state.returns = [returns[str(index)] for index in range(data["returns"])]
    state.records = [Candidate(**record) for record in data["records"]]
    state.students = _students(job.architecture, get("students"), data["students"])
    kept = _students(job.architecture, {key: value for key, value in get("kept").items() if "/" not in key}, len(data["kept"]))
    state.kept = [
        Kept(student, arrays[f"kept/{index}/returns"].copy(), origin)
        for index, (student, origin) in enumerate(zip(kept, data["kept"], strict=True))
    ]
    if data["trainer"]:
        state.trainer = _trainer(job, get("trainer"), get("encoder"))
    state.teacher_parts, state.random_parts = all_episodes("teacher_parts"), all_episodes("random_parts")
    state.student_episodes = episodes("student_episodes", data["student_episodes"])
    state.critic = layers("critic", data["critic"])
    if (polishing := data["polishing"]) is not None:
        training = training_of(job, state.kept[-1])
        training.load_state_dict(get("polishing/training"))
        records = [Candidate(**record) for record in polishing["records"]]
        critics = [layers(f"polishing/critics/{index}", count) or [] for index, count in enumerate(polishing["critics"])]
        found = get("polishing/returns")
        students = _students(job.architecture, get("polishing/students"), len(records))
        state.polishing = Polishing(training, students, critics, [found[str(index)].numpy() for index in range(len(found))], records)
    if data["values"] is not None:
        count, explained_variance = data["values"]
        state.values = DistilledValues(layers("values", count) or [], explained_variance)
    if data["certified"] is not None:
        roles = zip(("student", "teacher", "random"), data["certified"], strict=True)
        student, teacher, random = [part for role, described in roles if (part := episodes(f"certified/{role}", described))]
        plan = plan_of(job.config.evaluate)
        assert plan is not None, "the config is the same"
        state.certified = Certified(plan, decide(student.returns, teacher.returns, random.returns, plan=plan), student, teacher, random)
    return state


def _students(architecture: Architecture, tensors: Mapping[str, Tensor], count: int) -> list[Student]:
    """Students whose tensors are stacked in ``tensors``."""
    if any(len(values) != count for values in tensors.values()) or (count and not tensors):
        raise ValueError(f"it does not hold {count} students")
    students = [Student(architecture) for _ in range(count)]
    for index, student in enumerate(students):
        student.load_state_dict({name: values[index] for name, values in tensors.items()})
        student.eval().requires_grad_(False)
    return students


def _trainer(job: Job, saved: Mapping[str, Tensor], of_encoder: Mapping[str, Tensor]) -> Trainer:
    """The trainer of the rounds."""
    encoder = job.architecture.new_encoder()
    encoder.load_state_dict(of_encoder)
    trainer = trainer_with(encoder, job, job.gradient_steps, members=job.num_members)
    trainer.load_state_dict(saved)
    return trainer


def _linear(tensors: Mapping[str, Tensor]) -> nn.Linear:
    outputs, inputs = tensors["weight"].shape
    if tensors["bias"].shape != (outputs,):  # an empty weight may have any shape
        raise ValueError("a bias does not fit its weight")
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    layer.load_state_dict(tensors)
    return layer
