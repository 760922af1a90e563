"""Checks of the whole request before any work: files exist, spaces fit, the run folder can be written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from policy_distill.config import CollectConfig, DistillConfig, LossConfig, Reading, RequestError
from policy_distill.environments.action_masks import has_mask
from policy_distill.environments.frame_stacks import StackOf, frame_stacks
from policy_distill.environments.matching import check_fits
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.environments.vector import Backend, choose_backend
from policy_distill.evaluation.action_units import suited
from policy_distill.evaluation.disagreements import read_worst_states
from policy_distill.evaluation.probe import probe
from policy_distill.export.sb3 import why_not_ppo
from policy_distill.losses.objective import OUTPUT, Objective
from policy_distill.pipeline.sizing import choose_architecture
from policy_distill.policies.actions import Box
from policy_distill.policies.architecture import Architecture, layer_names
from policy_distill.policies.views import View
from policy_distill.support.files import writable_folder, write_atomically
from policy_distill.support.ray_cluster import room
from policy_distill.support.trees import Tree, length
from policy_distill.teachers import RecurrentTeacher, Teacher
from policy_distill.teachers.environment import environment_for
from policy_distill.teachers.reading import extractors_of
from policy_distill.training.check_batches import check_sequences, check_shifts


@dataclass(frozen=True)
class Job:
    """A checked request."""

    config: DistillConfig
    teacher: Teacher
    spec: EnvironmentSpec
    architecture: Architecture
    objective: Objective
    projections: tuple[tuple[int, int], ...]
    """Widths of student's and teacher's layer of each hinted pair."""
    device: torch.device
    folder: Path
    notices: tuple[str, ...]
    backend: Backend = "gymnasium"
    """Steps the environments while transitions are collected."""
    extra_states: Tree | None = None
    """Raw observations ``[B, ...]`` added to the first round's data."""
    stacks: Mapping[str, Mapping[str, StackOf]] = field(default_factory=dict)
    """Stacks of frames, which the dataset stores frame by frame; see ``Dataset``."""

    @property
    def num_extra_states(self) -> int:
        return 0 if self.extra_states is None else length(self.extra_states)

    @property
    def num_members(self) -> int:
        """Number of students that are trained together."""
        return self.config.train.members_of(self.architecture.params, has_convolutions=bool(self.architecture.channels))

    @property
    def gradient_steps(self) -> int:
        """Total gradient steps of all rounds."""
        return self.config.train.gradient_steps_of(small_images=self.architecture.reads_small_images)

    @property
    def finalist_episodes(self) -> int:
        """Number of further validation episodes of the last two finalists."""
        return self.config.evaluate.finalist_episodes_of(small_images=self.architecture.reads_small_images)


def prepare(config: DistillConfig, teacher: Teacher | None = None) -> Job:
    """Check the whole request before any work is done.

    Raises:
        RequestError: in one line, the fault and its fix.
    """
    teacher = with_ensemble(config, teacher)
    spec, notices = environment_for(teacher, config.environment)
    check_fits(spec, (teacher.observation_space, teacher.action_space))
    probed = probe(spec, config.step_timeout)
    if config.evaluate.certify is not None:
        probed.require_repeatable()
    notices += probed.notices
    backend = choose_backend(spec, config.collect.backend)
    view = None if config.student.view is None else View(config.student.view, teacher.observation_space)
    if view is not None and config.polish.teacher_weight:
        raise RequestError(
            "polish.teacher_weight needs the teacher's labels while polishing, which only has what the student sees: leave it out"
        )
    try:
        architecture = choose_architecture(config.student, teacher, view)
    except ValueError as error:
        raise RequestError(str(error)) from None
    loss, projections = settle_layers(config.loss, teacher, architecture)
    objective = Objective(loss, teacher.family)
    hinted = [
        *(loss.features.layers or () if loss.features.weight else ()),
        *(loss.relations.layers or () if loss.relations.weight else ()),
    ]
    teacher = teacher.recording(name for name in hinted if name != OUTPUT)
    if teacher.params and architecture.params >= teacher.params:
        notices += (
            f"the student's {architecture.params:,} parameters are no fewer than the teacher's {teacher.params:,}: "
            "nothing is gained in size; choose smaller student.hidden_sizes",
        )
    elif (allowed := teacher.params / (config.student.compression or 1)) and architecture.params > allowed:
        notices += (
            f"student.compression {config.student.compression:g} allows {int(allowed):,} parameters, and the smallest student that is "
            f"chosen has {architecture.params:,}; student.hidden_sizes chooses any",
        )
    if reason := why_not_ppo(architecture):
        notices += (f"no student.zip is written: {reason}",)
    if config.value.hidden_sizes is not None:
        check_values(teacher, architecture)
    check_shifts(config, architecture)
    if architecture.memory:
        check_sequences(config)
    extra_states, extra_notices = read_extra_states(config.collect, teacher, spec, view)
    notices += extra_notices
    stacks = frame_stacks(spec)
    by_part = {"observations": stacks} if view is None else {"observations": view.stacks(stacks), "raw": stacks}
    device = choose_device(config.device)
    if config.engine.kind == "ray":
        room(config.engine)
    folder = writable_folder(Path(config.output or f"runs/{teacher.algo}-{spec.id.replace('/', '-')}-{config.seed}"))
    notices = (*teacher.notes, *notices)
    return Job(config, teacher, spec, architecture, objective, projections, device, folder, notices, backend, extra_states, by_part)


def with_ensemble(config: DistillConfig, teacher: Teacher | None) -> Teacher:
    """The job's teacher: an agent, or the ensemble of several, in which those that need ``config.extractor`` read through it.

    Args:
        config: names the agents.
        teacher: stands in for the first of them; None: it is loaded.

    Raises:
        RequestError: if an agent cannot be read, or they do not go together.
    """
    if teacher is None and not config.teacher:
        raise RequestError("no teacher was named: give --teacher FOLDER_OR_ZIP, or the name of an agent that ships with the project")
    further = config.ensemble.teachers
    own, *others = extractors_of((config.teacher, *further), config.extractor) if further else [config.extractor]
    if teacher is None:
        teacher = Teacher.load(config.teacher, **Reading(config.algo, config.normalization, own, config.trust).arguments())
    if not further:
        return teacher
    members = [Teacher.load(name, extractor=extractor, trust=config.trust) for name, extractor in zip(further, others, strict=True)]
    return Teacher.ensemble([teacher, *members], weights=config.ensemble.weights, combine=config.ensemble.combine)


def check_values(teacher: Teacher, architecture: Architecture) -> None:
    """Raise ``RequestError`` if no value network for student.zip can learn from this teacher."""
    if reason := teacher.why_no_values():
        raise RequestError(f"value.hidden_sizes asks for a network that learns the teacher's values: {reason}")
    if architecture.channels:
        raise RequestError("value.hidden_sizes asks for a network on vectors, and the student reads images: leave it out")
    if has_mask(teacher.observation_space):
        raise RequestError("value.hidden_sizes is for student.zip, and none is written of students under action masks: leave it out")


def settle_layers(config: LossConfig, teacher: Teacher, architecture: Architecture) -> tuple[LossConfig, tuple[tuple[int, int], ...]]:
    """The loss with default layers filled in, and the widths of each hinted pair of layers, student's first.

    Raises:
        RequestError: if a layer does not exist, or the logits of forbidden actions would count.
    """
    if config.standardize_logits and has_mask(teacher.observation_space):
        raise RequestError(
            "loss.standardize_logits takes the mean over all actions, and a forbidden action's logit says nothing: set it to false"
        )
    student_widths = dict(zip(layer_names(len(architecture.hidden_sizes)), architecture.widths[1:], strict=True))
    settled = {}
    for name in ("features", "relations"):
        section = getattr(config, name)
        if not section.weight:
            continue
        layers = section.layers
        if isinstance(teacher, RecurrentTeacher) and set(layers or {""}) != {OUTPUT}:
            raise RequestError(
                f"loss.{name} compares layers, and those of a teacher with a memory are not recorded: "
                f"compare its output (--loss.{name}.layers.output output), or set the weight to 0"
            )
        if layers is None:
            hidden = teacher.last_hidden_layer()
            if hidden is None or len(student_widths) < 2:
                role = "teacher" if hidden is None else "student"
                raise RequestError(
                    f"loss.{name}.layers was left out, but the {role} has no single last hidden layer: "
                    "name the layers, or set the weight to 0"
                )
            layers = {hidden: list(student_widths)[-2]}
        for layer in layers.values():
            if layer not in student_widths:
                names = ", ".join(student_widths)
                raise RequestError(f"loss.{name}.layers names {layer!r}, which the student does not have; it has {names}")
        if has_mask(teacher.observation_space) and OUTPUT in {*layers, *layers.values()}:
            raise RequestError(
                f"loss.{name}.layers names output, where a forbidden action's logit says nothing: name hidden layers of both networks"
            )
        settled[name] = dataclasses.replace(section, layers=layers)
    loss = dataclasses.replace(config, **settled)
    if not loss.features.weight:
        return loss, ()
    pairs = loss.features.layers or {}
    known = teacher.recording(name for name in pairs if name != OUTPUT).layers()  # refuses unknown layers
    teacher_widths = {**known, OUTPUT: teacher.family.width}
    return loss, tuple((student_widths[student], teacher_widths[layer]) for layer, student in pairs.items())


def read_extra_states(
    config: CollectConfig, teacher: Teacher, spec: EnvironmentSpec, view: View | None = None
) -> tuple[Tree | None, tuple[str, ...]]:
    """States of ``collect.extra_states``, a file of an earlier comparison, and notices about them; None without such a file.

    Raises:
        RequestError: if the file cannot be read or its states are not the teacher's observations.
    """
    if config.extra_states is None:
        return None, ()
    if view is not None and view.config.history > 1:
        raise RequestError("collect.extra_states are single observations, and the student sees a history: leave one of the two out")
    if isinstance(teacher, RecurrentTeacher):
        raise RequestError(
            "collect.extra_states are single states, and what a teacher with a memory does in them depends on their episode: leave it out"
        )
    states, environment = read_worst_states(config.extra_states, teacher.observation_space, config.max_extra_states)
    notices = [f"{length(states):,} states of {config.extra_states} join the first round's data; they are no environment steps"]
    if environment != spec.id:
        notices.append(f"these states were found in {environment}, not in {spec.id}")
    return states, tuple(notices)


def choose_device(name: str) -> torch.device:
    """The device of training; ``auto`` is CUDA if available, else the CPU.

    Raises:
        RequestError: if the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"device is {name!r}; it must be auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError("device is 'cuda', but torch finds no CUDA device here: use --device cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device is {name!r}; it must be auto, cpu or cuda")
    return device


def complete_config(job: Job) -> dict[str, Any]:
    """The configuration as data, with the job's choices filled in: run folder, student's sizes and activation."""
    data = dataclasses.asdict(dataclasses.replace(job.config, output=str(job.folder)))
    sizes = {
        "hidden_sizes": list(job.architecture.hidden_sizes),
        "channels": list(job.architecture.channels) or None,
        "memory_size": job.architecture.memory or None,
    }
    settled = {**sizes, "compression": None, "same": False}
    data["student"] = {**data["student"], **settled, "activation": job.architecture.activation}
    return data


def write_config(job: Job) -> None:
    """Write the whole configuration to config.yaml; ``--config config.yaml`` repeats the run."""
    text = yaml.safe_dump(complete_config(job), sort_keys=False)
    write_atomically(job.folder / "config.yaml", lambda target: target.write_text(text))


def settle_action_units(job: Job) -> tuple[Job, int]:
    """The job with action units that suit the teacher's actions, and the environment steps this took; see ``suited``."""
    teacher, env_steps = suited(job.teacher, job.spec, job.config.step_timeout)
    if teacher is job.teacher:
        return job, env_steps
    assert teacher.family.box is not None
    units = teacher.family.box.units
    assert units is not None
    natural = Box.from_space(job.teacher.action_space).affine()[0]  # type: ignore[arg-type]
    wide = [index for index, (chosen, of_bounds) in enumerate(zip(units[0], natural, strict=True)) if chosen != of_bounds]
    notice = (
        f"the bounds of the action's components {wide} are far wider than the teacher's actions: "
        "errors, agreement and noise are measured in units of these actions"
    )
    settled = dataclasses.replace(
        job,
        teacher=teacher,
        architecture=dataclasses.replace(job.architecture, action_units=units),
        objective=Objective(job.objective.config, teacher.family),
        notices=(*job.notices, notice),
    )
    return settled, env_steps
