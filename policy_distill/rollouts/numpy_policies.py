"""Teachers and students as a few numpy operations, for the loops that step environments.

Between environment steps the caches are cold, and a torch operation costs several times as much as in a tight loop; a numpy operation
costs a third of that. Values agree with the torch modules to rounding. Each row's output depends on that row alone, bit for bit:
``rowwise`` runs the networks, and other policies are called on one observation at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from policy_distill.environments.action_masks import MASK
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.actions import LAYER, ActionTargets
from policy_distill.policies.encoders import Encoder, Images, Vectors
from policy_distill.policies.memories import RowwiseGru
from policy_distill.policies.observations import encode_observations, observation_width
from policy_distill.policies.rowwise import Function, Layers, one_by_one, product
from policy_distill.policies.student import Student
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from policy_distill.teachers.ensemble import Ensemble
from policy_distill.teachers.networks.acting import (
    ActionBounds,
    ConstantSpread,
    DeterministicNetwork,
    DiscreteNetwork,
    GaussianNetwork,
    LinearSpread,
    StateDependentSpread,
)
from policy_distill.teachers.networks.extractor import CustomExtractor
from policy_distill.teachers.networks.masked import MaskedNetwork

Labels: TypeAlias = tuple[dict[str, np.ndarray], np.ndarray]
"""The parameters and actions of ``ActionTargets`` as arrays; the next call may overwrite them."""
Label: TypeAlias = Callable[[np.ndarray], Labels]
WHOLE_BLOCKS = 64
"""Number of elements: a multiple of the vector width of torch's loops on every processor."""


def labeller(teacher: Teacher, rows: int) -> Label:
    """``teacher.targets`` for batches of exactly ``rows`` raw observations, one forward pass a call.

    Networks that are not plain stacks of layers run in torch, on one observation at a time.

    Raises:
        ValueError: when the result is called, if the teacher is not on the CPU.
    """
    if teacher.anchor.device.type != "cpu":
        return _refuse_device
    if isinstance(teacher.network, Ensemble) and teacher.network.combine == "mean" and not teacher.recorded:
        return _mixture(teacher.network, rows)
    label = head(teacher.network, rows, teacher.recorded) if all(_runs_in_numpy(teacher, name) for name in teacher.recorded) else None
    if label is not None:
        encode = encoder(teacher, rows)
        return lambda observations: label(encode(observations))
    return lambda observations: _label_one_by_one(teacher, observations)


def head(network: nn.Module, rows: int, recorded: Sequence[str] = ()) -> Label | None:
    """A function from preprocessed observations ``[rows, inputs]`` float32 to labels; None if ``network`` is not a plain stack of layers.

    Args:
        network: the teacher's acting network, or the part after its memory.
        rows: batch size of every call.
        recorded: layers whose outputs are added to the parameters.
    """
    names = {name: f"{LAYER}{name}" for name in recorded}
    match network:
        case DiscreteNetwork():
            return _discrete(network, rows, names)
        case MaskedNetwork(network=DiscreteNetwork()):
            return _masked(network, rows, names)
        case DeterministicNetwork():
            return _deterministic(network, rows, names)
        case GaussianNetwork():
            return _gaussian(network, rows, names)
    return None


def _runs_in_numpy(teacher: Teacher, name: str) -> bool:
    """Whether this layer runs in numpy. Layers inside a custom extractor that torch runs as a whole do not."""
    inside = [part for part, module in teacher.network.named_modules() if isinstance(module, CustomExtractor) and module.steps is None]
    return not name.startswith(tuple(f"{part}." for part in inside))


def actor(policy: Any, rows: int) -> Function:
    """``policy.act`` for batches of exactly ``rows`` raw observations.

    Policies other than teachers and students are called on one observation at a time: the output of unknown code for a row may depend
    on the rest of the batch.
    """
    if isinstance(policy, Teacher) and policy.anchor.device.type == "cpu":
        return _teacher_actor(policy, rows)
    if isinstance(policy, Student):
        view, act = policy.view, student_actor(policy, rows)
        return act if view is None else lambda observations: act(view.see(observations))
    return lambda observations: one_by_one(policy.act, observations)


def outputs_of(student: Student, rows: int) -> Function:
    """Maps ``rows`` inputs of the student to logits, or means in box units, ``[B, outputs]``; the next call may overwrite them."""
    read, layers = _features_of(student.encoder, rows), Layers(student.network, rows)
    if student.architecture.is_masked:
        return lambda observations: student.family.masked(layers(read(observations)), observations[MASK])
    return lambda observations: layers(read(observations))


class RecurrentOutputs:
    """The outputs ``[B, outputs]`` of a student with a memory, in ``rows`` environments, as a ``policies.policy.Stateful``.

    Its state is ``[rows, units]``.
    """

    def __init__(self, student: Student, rows: int) -> None:
        assert student.memory is not None
        self._features, self._memory = _features_of(student.encoder, rows), RowwiseGru(student.memory, rows)
        self._layers, self._family, self._is_masked = Layers(student.network, rows), student.family, student.architecture.is_masked

    def initial_state(self, num_envs: int) -> np.ndarray:
        return np.zeros((num_envs, self._memory.units), np.float32)

    def step(self, observations: trees.Tree, state: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if starts is not None:
            state = np.where((starts == GOES_ON)[:, None], state, np.float32(0))
        state = self._memory(self._features(observations), state)
        output = self._layers(state)
        return self._family.masked(output, observations[MASK]) if self._is_masked else output, state


class RecurrentActor(RecurrentOutputs):
    """A student with a memory, acting in ``rows`` environments."""

    def __init__(self, student: Student, rows: int) -> None:
        super().__init__(student, rows)
        self._choose = student.family.chooser(student.action_space.shape or ())

    def step(self, observations: trees.Tree, state: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        output, state = super().step(observations, state, starts)
        return self._choose(output), state


def _features_of(encoder: Encoder, rows: int) -> Callable[[trees.Tree], np.ndarray]:
    """A function from ``rows`` inputs of the student to features ``[B, features]``; the next call may overwrite them."""
    match encoder:
        case Vectors(space=space):
            mean, scale = encoder.mean.numpy(), encoder.scale.numpy()
            encoded, vectors = np.empty((rows, len(mean)), np.float32), vectors_of(space, rows)
            columns = None if encoder.columns is None else list(encoder.columns)

            def normalize(observations: trees.Tree) -> np.ndarray:
                vector = vectors(observations)
                np.subtract(vector if columns is None else vector[:, columns], mean, out=encoded, casting="same_kind")
                return np.divide(encoded, scale, out=encoded)

            return normalize
        case Images(channels_first=channels_first):
            layers = Layers(encoder.plain(), rows)

            def convolve(images: np.ndarray) -> np.ndarray:
                arranged = images if channels_first else images.transpose(0, 3, 1, 2)
                return layers(arranged.astype(np.float32)).transpose(0, 2, 3, 1).reshape(rows, -1)

            return convolve
    parts = [(key, _features_of(part, rows)) for key, part in zip(encoder.keys, encoder.parts, strict=True)]  # type: ignore[arg-type]
    return lambda observations: np.concatenate([read(observations[key]) for key, read in parts], axis=1)


def vectors_of(space: gym.Space, rows: int) -> Callable[[trees.Tree], np.ndarray]:
    """``encode_observations`` for ``rows`` raw observations: ``[B, width]``, which the next call may overwrite.

    A Box keeps its dtype. A Dict is float32 if that represents all parts exactly, else float64.
    """
    if isinstance(space, gym.spaces.Box):
        return lambda observations: observations.reshape(rows, -1)
    if not isinstance(space, gym.spaces.Dict):
        return lambda observations: encode_observations(space, torch.from_numpy(observations)).numpy()
    parts = [(key, vectors_of(part, rows), observation_width(part)) for key, part in space.items()]
    exact = any(isinstance(part, gym.spaces.Box) and not np.can_cast(part.dtype, np.float32) for part in space.values())
    joined = np.empty((rows, sum(width for _, _, width in parts)), np.float64 if exact else np.float32)
    ends = np.cumsum([width for _, _, width in parts])
    places = [joined[:, end - width : end] for end, (_, _, width) in zip(ends, parts, strict=True)]

    def join(observations: trees.Tree) -> np.ndarray:
        for (key, vectors, _), place in zip(parts, places, strict=True):
            place[:] = vectors(observations[key])
        return joined

    return join


def _refuse_device(observations: np.ndarray) -> Labels:
    raise ValueError("the teacher is not on the CPU, where environments are stepped: move it there")


@torch.inference_mode()
def _label_one_by_one(teacher: Teacher, observations: trees.Tree) -> Labels:
    targets = [teacher.targets(trees.map_leaves(torch.tensor, part)) for part in trees.blocks(observations, 1)]
    parameters = {name: torch.cat([row.parameters[name] for row in targets]).numpy() for name in targets[0].parameters}
    return parameters, torch.cat([row.actions for row in targets]).numpy()


def _teacher_actor(teacher: Teacher, rows: int) -> Function:
    label, executed = labeller(teacher, rows), executable(teacher.action_space, rows)
    return lambda observations: executed(label(observations)[1])


def executable(space: gym.Space, rows: int) -> Function:
    """A function from the actions of ``rows`` ``Labels`` to actions that ``env.step`` accepts."""
    if not isinstance(space, gym.spaces.Box):
        return lambda actions: actions
    shape, dtype = (rows, *space.shape), space.dtype if space.dtype.kind == "f" else np.dtype(np.float32)
    return lambda actions: actions.reshape(shape).astype(dtype, copy=False)


def student_actor(student: Student, rows: int) -> Function:
    """A function from exactly ``rows`` inputs of the student to its actions."""
    outputs, choose = outputs_of(student, rows), student.family.chooser(student.action_space.shape or ())
    return lambda observations: choose(outputs(observations))


def encoder(teacher: Teacher, rows: int) -> Function:
    """A function from raw observations to ``[B, inputs]`` float32, normalised in float64 and rounded once, as VecNormalize does."""
    normalization = teacher.normalization
    vectors = vectors_of(teacher.observation_space, rows)
    if normalization is None:
        return lambda observations: vectors(observations).astype(np.float32)
    mean, scale, clip = teacher.mean.numpy().ravel(), teacher.scale.numpy().ravel(), normalization.clip
    exact = np.empty((rows, teacher.obs_dim), np.float64)

    def encode(observations: trees.Tree) -> np.ndarray:
        np.subtract(vectors(observations), mean, out=exact)
        np.divide(exact, scale, out=exact)
        return exact.clip(-clip, clip, out=exact).astype(np.float32)

    padding = normalization.padding
    if padding is None:
        return encode

    def encode_frames(observations: np.ndarray) -> np.ndarray:
        """Sets the padding frames before an episode's first frame to exactly zero."""
        frames = observations.reshape(rows, normalization.frames, -1)
        encoded = encode(observations)
        encoded.reshape(frames.shape)[(frames == padding.astype(frames.dtype)).all(-1)] = 0.0
        return encoded

    return encode_frames


def _discrete(network: DiscreteNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    choose = network.family.chooser(())
    body = Layers(network.body, rows, name="body", recorded=recorded)
    name, quantiles = network.scores, network.num_quantiles

    def label(features: np.ndarray) -> Labels:
        scores = body(features)
        if quantiles > 1:
            scores = scores.reshape(rows, quantiles, -1).mean(1)
        return {name: scores, **body.seen}, choose(scores)

    return label


def _masked(network: MaskedNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    inner: Any = network.network
    choose = network.family.chooser(())
    body = Layers(inner.body, rows, name="network.body", recorded=recorded)

    def label(features: np.ndarray) -> Labels:
        rest, mask = network.parts(features)
        logits = network.family.masked(body(np.ascontiguousarray(rest)), mask)
        return {"logits": logits, **body.seen}, choose(logits)

    return label


def _deterministic(network: DeterministicNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    finish = _to_environment(network.bounds, squashed=network.squashed)
    body = Layers(network.body, rows, name="body", recorded=recorded)

    def label(features: np.ndarray) -> Labels:
        actions = finish(body(features))
        return {**body.seen}, actions

    return label


def _gaussian(network: GaussianNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    spread = _spread(network, rows)
    latent, last = (Layers(part, rows, name=name, recorded=recorded) for name, part in (("latent", network.latent), ("mean", network.mean)))
    bounds, finish = network.bounds, _to_environment(network.bounds, squashed=network.squashed)
    scale, offset = bounds.scale.numpy(), bounds.offset.numpy()

    def label(features: np.ndarray) -> Labels:
        hidden = latent(features)
        mean = last(hidden)
        actions = finish(mean)
        if not network.squashed:
            mean = (mean - offset) / scale
        return {"mean": mean, "log_std": spread(hidden, features), **latent.seen, **last.seen}, actions

    return label


def _spread(network: GaussianNetwork, rows: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function from the last hidden layer and the features to log standard deviations, in box units where the family uses them."""
    shift = np.zeros(1, np.float32) if network.squashed else network.bounds.log_scale.numpy()
    match network.spread:
        case ConstantSpread(log_std=log_std):
            constant = np.broadcast_to(log_std.detach().numpy() - shift, (rows, network.family.width))
            return lambda hidden, features: constant
        case LinearSpread(head=head):
            layers = Layers(head, rows)
            return lambda hidden, features: layers(hidden).clip(-20.0, 2.0) - shift
        case StateDependentSpread(variance=variance, features=network_of_features):
            multiply = product(variance, None, rows)
            latent = None if network_of_features is None else Layers(network_of_features, rows)

            def log_std_of(hidden: np.ndarray, features: np.ndarray) -> np.ndarray:
                basis = hidden if latent is None else latent(features)
                return 0.5 * np.log(multiply(np.square(basis)) + np.float32(1e-6)) - shift

            return log_std_of
    raise TypeError(f"{type(network.spread).__name__} is not a known standard deviation head")


def _mixture(network: Ensemble, rows: int) -> Label:
    """The members run one after the other; torch mixes their outputs.

    torch computes full vector blocks and the remaining elements by different code. The batch is padded to full blocks, so that a row's
    result does not depend on its position.
    """
    labellers = [labeller(member, rows) for member in network.members]  # type: ignore[arg-type]
    padding = np.zeros(-rows % WHOLE_BLOCKS, np.int64)
    padded = np.concatenate([np.arange(rows), padding])

    @torch.inference_mode()
    def label(observations: np.ndarray) -> Labels:
        targets = []
        for member_label in labellers:
            parameters, actions = member_label(observations)
            tensors = {name: torch.from_numpy(values[padded]) for name, values in parameters.items()}
            targets.append(ActionTargets(tensors, torch.from_numpy(actions[padded])))
        mixed = network.mixed(targets)
        return {name: values[:rows].numpy() for name, values in mixed.parameters.items()}, mixed.actions[:rows].numpy()

    return label


def _to_environment(bounds: ActionBounds, *, squashed: bool) -> Function:
    low, high = bounds.low.numpy(), bounds.high.numpy()
    if not squashed:
        return lambda raw: raw.clip(low, high)
    span, half = high - low, np.float32(0.5)
    return lambda raw: low + half * (np.tanh(raw) + 1.0) * span
