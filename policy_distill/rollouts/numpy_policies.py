"""Teachers and students as a few numpy operations, for the loops that step environments.

Between two steps of an environment the caches are cold, and a tensor operation costs several times what it does in a loop of its own;
numpy's are a third of that. Values agree with those of the torch modules to rounding. What is said about an observation depends on that
observation alone, bit for bit: networks are run by ``rowwise``, and whatever else acts is asked about one observation at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from policy_distill.environments.action_masks import MASK, has_mask
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.actions import LAYER, ActionTargets
from policy_distill.policies.encoders import Encoder, Images, Vectors
from policy_distill.policies.gru import RowwiseGru
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
"""The parameters and actions of ``ActionTargets`` as arrays; the next question may overwrite them."""
Label: TypeAlias = Callable[[np.ndarray], Labels]
WHOLE_BLOCKS = 64
"""Elements: a multiple of what torch's loops compute at once, on every processor."""


def labeller(teacher: Teacher, rows: int) -> Label:
    """``teacher.targets`` for batches of exactly ``rows`` raw observations, one forward pass a question.

    Networks that are not plain stacks of layers are asked as they are, about one observation at a time.

    Raises:
        ValueError: when asked, if the teacher is not on the CPU.
    """
    if teacher.anchor.device.type != "cpu":
        return _refuse_device
    if isinstance(teacher.network, Ensemble) and teacher.network.combine == "mean" and not teacher.recorded:
        return _mixture(teacher.network, rows)
    answer = head(teacher.network, rows, teacher.recorded) if all(_is_seen(teacher, name) for name in teacher.recorded) else None
    if answer is not None:
        encode = encoder(teacher, rows)
        return lambda observations: answer(encode(observations))
    return lambda observations: _label_one_by_one(teacher, observations)


def head(network: nn.Module, rows: int, recorded: Sequence[str] = ()) -> Label | None:
    """An acting network's labels of ``rows`` preprocessed observations ``[B, inputs]`` float32; None if it is no plain stack of layers.

    Args:
        network: of the teacher, or what follows its memory.
        rows: B, of every question.
        recorded: layers whose outputs are among the parameters.
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


def _is_seen(teacher: Teacher, name: str) -> bool:
    """Whether numpy computes this layer: not those inside an extractor of the agent's own that torch is asked about as a whole."""
    inside = [part for part, module in teacher.network.named_modules() if isinstance(module, CustomExtractor) and module.steps is None]
    return not name.startswith(tuple(f"{part}." for part in inside))


def actor(policy: Any, rows: int) -> Function:
    """``policy.act`` for batches of exactly ``rows`` raw observations.

    Anything but a teacher or a student is asked about one observation at a time: whether the answer of unknown code depends on
    what else is in the batch cannot be known.
    """
    if isinstance(policy, Teacher) and policy.anchor.device.type == "cpu":
        return _teacher_actor(policy, rows)
    if isinstance(policy, Student):
        view, act = policy.view, student_actor(policy, rows)
        return act if view is None else lambda observations: act(view.see(observations))
    return lambda observations: one_by_one(policy.act, observations)


def outputs_of(student: Student, rows: int) -> Function:
    """The student's logits or means in box units ``[B, outputs]`` for batches of exactly ``rows`` observations as it sees them.

    The next question may overwrite them.
    """
    read, layers = _features_of(student.encoder, rows), Layers(student.network, rows)
    if has_mask(student.observation_space):
        return lambda observations: student.family.masked(layers(read(observations)), observations[MASK])
    return lambda observations: layers(read(observations))


class RecurrentActor:
    """A student with a memory as it acts in ``rows`` environments; see ``policies.policy.Stateful``. Its state is ``[rows, units]``."""

    def __init__(self, student: Student, rows: int) -> None:
        assert student.memory is not None
        self._features, self._memory = _features_of(student.encoder, rows), RowwiseGru(student.memory, rows)
        self._layers, self._family, self._has_mask = Layers(student.network, rows), student.family, has_mask(student.observation_space)
        self._choose = student.family.chooser(student.action_space.shape or ())

    def initial_state(self, num_envs: int) -> np.ndarray:
        return np.zeros((num_envs, self._memory.units), np.float32)

    def step(self, observations: trees.Tree, state: np.ndarray, starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if starts is not None:
            state = np.where((starts == GOES_ON)[:, None], state, np.float32(0))
        state = self._memory(self._features(observations), state)
        output = self._layers(state)
        if self._has_mask:
            output = self._family.masked(output, observations[MASK])
        return self._choose(output), state


def _features_of(encoder: Encoder, rows: int) -> Callable[[trees.Tree], np.ndarray]:
    """Features ``[B, features]`` of ``rows`` observations as the student sees them; the next call may overwrite them."""
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
    """``encode_observations`` of ``rows`` raw observations, boxes in their own dtype: ``[B, width]``, a Dict in float32 if it holds all.

    What it answers may be overwritten by the next question.
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
    told = [teacher.targets(trees.map_leaves(torch.tensor, part)) for part in trees.blocks(observations, 1)]
    parameters = {name: torch.cat([targets.parameters[name] for targets in told]).numpy() for name in told[0].parameters}
    return parameters, torch.cat([targets.actions for targets in told]).numpy()


def _teacher_actor(teacher: Teacher, rows: int) -> Function:
    label, executed = labeller(teacher, rows), executable(teacher.action_space, rows)
    return lambda observations: executed(label(observations)[1])


def executable(space: gym.Space, rows: int) -> Function:
    """From the actions of ``rows`` ``Labels`` to those that ``env.step`` takes."""
    if not isinstance(space, gym.spaces.Box):
        return lambda actions: actions
    shape, dtype = (rows, *space.shape), space.dtype if space.dtype.kind == "f" else np.dtype(np.float32)
    return lambda actions: actions.reshape(shape).astype(dtype, copy=False)


def student_actor(student: Student, rows: int) -> Function:
    """The student's actions for batches of exactly ``rows`` observations as it sees them."""
    outputs, choose = outputs_of(student, rows), student.family.chooser(student.action_space.shape or ())
    return lambda observations: choose(outputs(observations))


def encoder(teacher: Teacher, rows: int) -> Function:
    """Raw observations as ``[B, inputs]`` float32, normalised in float64 and rounded once, as VecNormalize does."""
    known = teacher.normalization
    vectors = vectors_of(teacher.observation_space, rows)
    if known is None:
        return lambda observations: vectors(observations).astype(np.float32)
    mean, scale, clip = teacher.mean.numpy().ravel(), teacher.scale.numpy().ravel(), known.clip
    exact = np.empty((rows, teacher.obs_dim), np.float64)

    def encode(observations: trees.Tree) -> np.ndarray:
        np.subtract(vectors(observations), mean, out=exact)
        np.divide(exact, scale, out=exact)
        return exact.clip(-clip, clip, out=exact).astype(np.float32)

    padding = known.padding
    if padding is None:
        return encode

    def encode_frames(observations: np.ndarray) -> np.ndarray:
        """The frames before an episode's first are exactly zero."""
        frames = observations.reshape(rows, known.frames, -1)
        encoded = encode(observations)
        encoded.reshape(frames.shape)[(frames == padding.astype(frames.dtype)).all(-1)] = 0.0
        return encoded

    return encode_frames


def _discrete(network: DiscreteNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    choose = network.family.chooser(())
    body = Layers(network.body, rows, name="body", recorded=recorded)
    name, quantiles = network.scores, network.num_quantiles

    def ask(features: np.ndarray) -> Labels:
        scores = body(features)
        if quantiles > 1:
            scores = scores.reshape(rows, quantiles, -1).mean(1)
        return {name: scores, **body.seen}, choose(scores)

    return ask


def _masked(network: MaskedNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    inner: Any = network.network
    choose = network.family.chooser(())
    body = Layers(inner.body, rows, name="network.body", recorded=recorded)

    def ask(features: np.ndarray) -> Labels:
        rest, mask = network.parts(features)
        logits = network.family.masked(body(np.ascontiguousarray(rest)), mask)
        return {"logits": logits, **body.seen}, choose(logits)

    return ask


def _deterministic(network: DeterministicNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    finish = _to_environment(network.bounds, squashed=network.squashed)
    body = Layers(network.body, rows, name="body", recorded=recorded)

    def ask(features: np.ndarray) -> Labels:
        actions = finish(body(features))
        return {**body.seen}, actions

    return ask


def _gaussian(network: GaussianNetwork, rows: int, recorded: Mapping[str, str]) -> Label:
    spread = _spread(network, rows)
    latent, last = (Layers(part, rows, name=name, recorded=recorded) for name, part in (("latent", network.latent), ("mean", network.mean)))
    bounds, finish = network.bounds, _to_environment(network.bounds, squashed=network.squashed)
    scale, offset = bounds.scale.numpy(), bounds.offset.numpy()

    def ask(features: np.ndarray) -> Labels:
        hidden = latent(features)
        mean = last(hidden)
        actions = finish(mean)
        if not network.squashed:
            mean = (mean - offset) / scale
        return {"mean": mean, "log_std": spread(hidden, features), **latent.seen, **last.seen}, actions

    return ask


def _spread(network: GaussianNetwork, rows: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The log standard deviation of the last hidden layer and the features, in box units where the family's is."""
    shift = np.zeros(1, np.float32) if network.squashed else network.bounds.log_scale.numpy()
    match network.spread:
        case ConstantSpread(log_std=log_std):
            constant = np.broadcast_to(log_std.detach().numpy() - shift, (rows, network.family.width))
            return lambda hidden, features: constant
        case LinearSpread(head=head):
            layers = Layers(head, rows)
            return lambda hidden, features: layers(hidden).clip(-20.0, 2.0) - shift
        case StateDependentSpread(variance=variance, features=own):
            multiply, latent = product(variance, None, rows), None if own is None else Layers(own, rows)

            def log_std_of(hidden: np.ndarray, features: np.ndarray) -> np.ndarray:
                seen = hidden if latent is None else latent(features)
                return 0.5 * np.log(multiply(np.square(seen)) + np.float32(1e-6)) - shift

            return log_std_of
    raise TypeError(f"{type(network.spread).__name__} is no spread")


def _mixture(network: Ensemble, rows: int) -> Label:
    """The members one after the other, and what they say mixed by torch.

    torch computes whole blocks of elements in one way and what is left over in another: without a rest, a row's place cannot matter.
    """
    labels = [labeller(member, rows) for member in network.members]  # type: ignore[arg-type]
    filling = np.zeros(-rows % WHOLE_BLOCKS, np.int64)
    chosen = np.concatenate([np.arange(rows), filling])

    @torch.inference_mode()
    def ask(observations: np.ndarray) -> Labels:
        told = []
        for label in labels:
            parameters, actions = label(observations)
            filled = {name: torch.from_numpy(values[chosen]) for name, values in parameters.items()}
            told.append(ActionTargets(filled, torch.from_numpy(actions[chosen])))
        mixed = network.mixed(told)
        return {name: values[:rows].numpy() for name, values in mixed.parameters.items()}, mixed.actions[:rows].numpy()

    return ask


def _to_environment(bounds: ActionBounds, *, squashed: bool) -> Function:
    low, high = bounds.low.numpy(), bounds.high.numpy()
    if not squashed:
        return lambda raw: raw.clip(low, high)
    span, half = high - low, np.float32(0.5)
    return lambda raw: low + half * (np.tanh(raw) + 1.0) * span
