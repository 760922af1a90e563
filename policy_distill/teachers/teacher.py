"""Teachers: frozen agents that map raw observations to ``ActionTargets``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.config import Reading, RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.policies.actions import LAYER, ActionTargets
from policy_distill.policies.families import Family
from policy_distill.policies.observations import encode_observations, observation_width
from policy_distill.support.trees import Tree, check_shapes, leaf_spaces, map_leaves, to_tensors, zeros
from policy_distill.teachers.algorithms import ALGORITHMS, algorithms_with
from policy_distill.teachers.ensemble import Ensemble, HighestValue, name_of
from policy_distill.teachers.files.folder import find_agent
from policy_distill.teachers.files.normalization import ObservationNormalization, Statistics, required
from policy_distill.teachers.networks.extractor import file_of
from policy_distill.teachers.networks.live import CallableNetwork, raw_observations
from policy_distill.teachers.networks.masked import under_masks
from policy_distill.teachers.networks.recording import layers_inside, record_layers
from policy_distill.teachers.reading import (
    around,
    check_observation_space,
    inside,
    model_facts,
    networks_of_files,
    networks_of_model,
    normalization_notes,
)


class Teacher(nn.Module):
    """A trained agent, frozen: always in eval mode, without gradients.

    Attributes:
        algo: ``ppo``, ``sac``, ...; ``callable`` for a function, ``ensemble`` for several agents.
        path: path of the zip, or None.
        observation_space: space of the raw observations; for ppo_mask it includes an action mask.
        action_space: space of the actions for ``env.step``.
        family: family of the distributions in ``targets``.
        params: number of parameters of the acting network, the reference for compression; it includes those of the standard deviation
            where the actor holds them (sac, tqc). 0 if unknown.
        obs_dim: width of the observation as one flat vector.
        normalization: statistics that the agent was trained with, or None.
        normalization_source: source of the normalisation: a file, ``none`` (set by the user), ``VecNormalize`` (live), or None.
        statistics: the file that the statistics were read from, or None.
        reading: the user's options for reading its files.
        saved_env: the environment named in the run's folder (its id may no longer exist), or None.
        notes: remarks for the user on how the agent was read.
        critic: computes ``values`` in the units of the training rewards; None without a critic.
        reward_scale: the divisor of rewards in training; None if unknown.
    """

    mean: Tensor
    scale: Tensor
    clip: Tensor
    anchor: Tensor
    network_kind = nn.Module  # subclasses represent agents with another kind of network

    def __init__(
        self,
        network: nn.Module,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        algo: str,
        path: str | None = None,
        normalization: Statistics | None = None,
        saved_env: EnvironmentSpec | None = None,
        notes: tuple[str, ...] = (),
        facts: Mapping[str, Any] | None = None,
        critic: nn.Module | None = None,
        reward_scale: float | None = 1.0,
        normalization_source: str | None = None,
        statistics: Path | None = None,
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        if algo in ALGORITHMS and ALGORITHMS[algo].masks:
            network, critic, normalization, observation_space = under_masks(network, critic, normalization, observation_space, action_space)
        source = path or f"the {algo} agent"
        check_observation_space(observation_space, source)
        statistics_used = None if normalization is None else required(normalization, observation_space, source, statistics)
        self.network = network
        self.critic = critic
        self.reward_scale = reward_scale
        self.observation_space = observation_space
        self.action_space = action_space
        self.algo = algo
        self.path = path
        self.normalization: ObservationNormalization | None = statistics_used
        self._normalized_keys = tuple(normalization) if isinstance(normalization, dict) else ()
        self.normalization_source = normalization_source
        self.statistics = statistics
        self.reading = reading or Reading()
        self.saved_env = saved_env
        self.notes = notes
        self.facts = dict(facts or {})
        self.recorded: tuple[str, ...] = ()
        self.obs_dim = observation_width(observation_space)
        # An empty buffer whose device is that of the weights; reading it is faster than searching all modules.
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        if statistics_used is not None:
            self.register_buffer("mean", torch.from_numpy(statistics_used.mean.flatten()))
            self.register_buffer("scale", torch.from_numpy(np.sqrt(statistics_used.var + statistics_used.epsilon).ravel()))
            self.register_buffer("clip", torch.as_tensor(statistics_used.clip, dtype=torch.float64), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def family(self) -> Family:
        return self.network.family  # type: ignore[return-value]

    @property
    def needs_float64(self) -> bool:
        """Whether observations must not be rounded to float32, because they lie far from zero relative to their deviation."""
        far = any(one.normalization is not None and one.normalization.is_far_from_zero for one in self.members)
        return far and any(part.dtype != np.float32 for part in leaf_spaces(self.observation_space).values())

    @property
    def params(self) -> int:
        return int(self.network.acting_params)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a teacher is frozen."""
        return super().train(False)

    def targets(self, observations: Tree) -> ActionTargets:
        """Label raw observations in one forward pass.

        Args:
            observations: ``[B, ...]`` as the environment returns them, by key for a Dict, or boxes flattened to ``[B, obs_dim]``. float64
                observations are normalised before rounding.

        Returns:
            ``parameters`` of the family, and the ``actions`` of Stable-Baselines3's ``predict(deterministic=True)``: int64 ``[B]`` or
            ``[B, components]``, or float32 ``[B, action_dim]``.
        """
        encoded = self.encode(observations)
        if not self.recorded:
            return self.network.forward(encoded)
        with record_layers(self.network, self.recorded) as seen:
            targets = self.network(encoded)
        return ActionTargets({**targets.parameters, **{f"{LAYER}{name}": seen[name] for name in self.recorded}}, targets.actions)

    def values(self, observations: Tree) -> Tensor:
        """The critic's estimate of the discounted return after the deterministic action, in the environment's rewards.

        The discount is that of the agent's training. The critics of sac and tqc include the entropy bonus.

        Args:
            observations: ``[B, ...]`` as for ``targets``.

        Returns:
            float32 ``[B]``.

        Raises:
            RequestError: if the agent has no usable critic; see ``has_values``.
        """
        if reason := self.why_no_values():
            raise RequestError(reason)
        assert self.critic is not None
        assert self.reward_scale is not None
        return self.reward_scale * self.critic(self.encode(observations), self.network)

    @property
    def has_values(self) -> bool:
        return self.why_no_values() is None

    def why_no_values(self) -> str | None:
        """Why ``values`` is not available, and how to fix it; None if it is available."""
        if self.critic is None:
            supported = f"{algorithms_with(lambda layout: layout.has_critic)}, or an ensemble combined by value"
            return f"{name_of(self)} has no critic that can be read, so its values are not known: name one of {supported}"
        if self.reward_scale is None:
            return f"{name_of(self)} was trained on normalised rewards whose scale is missing: put vecnormalize.pkl where its config.yml is"
        return None

    def encode(self, observations: Tree) -> Tree:
        """The networks' inputs, from raw observations."""
        space, normalized = self.observation_space, None
        if isinstance(space, gym.spaces.Box) and len(observations) and (numbers := observations[0].numel()) != self.obs_dim:
            raise ValueError(f"an observation has {numbers} numbers; this {self.algo} teacher reads {self.obs_dim}")
        if isinstance(self.network, Ensemble):
            return observations  # each member normalises them itself
        if self.normalization is not None:
            # VecNormalize computes in float64 and rounds once.
            normalized = (encode_observations(space, observations, torch.float64) - self.mean) / self.scale
            if self.normalization.frames > 1:
                normalized = normalized.masked_fill(self.normalization.is_padding(observations), 0.0)
            normalized = normalized.clamp(-self.clip, self.clip).float()
        if not getattr(self.network, "reads_raw", False):
            return encode_observations(space, observations) if normalized is None else normalized
        return raw_observations(space, observations, normalized, self._normalized_keys)

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The agents of an ensemble; the agent itself if it is not an ensemble."""
        return tuple(self.network.members) if isinstance(self.network, Ensemble) else (self,)  # type: ignore[arg-type]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that determine its actions: zips, statistics and extractors' sources; empty for agents from memory."""
        files: list[Path] = []
        for member in self.members:
            source = member.reading.extractor and file_of(member.reading.extractor)
            files += [Path(path) for path in (member.path, member.statistics, source) if path is not None]
        return tuple(files)

    def layers(self) -> dict[str, int]:
        """Name and width of each layer that can be recorded, in the order in which they are computed."""
        probe = map_leaves(lambda part: part.to(self.anchor.device), to_tensors(zeros(self.observation_space, 2)))
        with torch.inference_mode(), record_layers(self.network, layers_inside(self.network)) as seen:
            self.targets(probe)
        return {name: output.shape[1] for name, output in seen.items() if output.ndim == 2}

    def last_hidden_layer(self) -> str | None:
        """Name of the last activation before the output; None if there is none, and for ensembles."""
        if isinstance(self.network, Ensemble):
            return None
        modules = dict(self.network.named_modules())
        hidden = [name for name in self.layers() if type(modules[name]).__module__ == "torch.nn.modules.activation"]
        return hidden[-1] if hidden else None

    def recording(self, names: Iterable[str]) -> Teacher:
        """The same teacher with the outputs of these layers added to ``targets`` as ``layer:NAME``; weights are shared.

        Raises:
            RequestError: if there is no such layer.
        """
        wanted, known = tuple(dict.fromkeys(names)), self.layers()
        if missing := [name for name in wanted if name not in known]:
            listed = ", ".join(f"{layer} ({width})" for layer, width in known.items()) or "none"
            raise RequestError(f"the teacher has no layer {missing[0]!r}; its layers and their widths: {listed}")
        teacher = copy.copy(self)
        teacher.recorded = wanted
        return teacher

    @torch.inference_mode()
    def act(self, observations: Tree) -> np.ndarray:
        """Deterministic actions ``[B, ...]`` for ``env.step``, from raw observations ``[B, ...]``; ``ValueError`` if images are turned."""
        check_shapes(self.observation_space, observations)
        actions = self.targets(map_leaves(lambda part: torch.tensor(part, device=self.anchor.device), observations)).actions.cpu().numpy()
        if isinstance(self.action_space, gym.spaces.Box):
            actions = actions.reshape(len(actions), *self.action_space.shape)
            return actions.astype(self.action_space.dtype, copy=False) if self.action_space.dtype.kind == "f" else actions
        return actions

    def describe(self) -> dict[str, Any]:
        """Facts about the agent, its training and how it was read, as plain data."""
        rebuilt = not getattr(self.network, "reads_raw", False)
        modules = [module for name, module in self.network.named_modules() if rebuilt and not name.startswith("spread")]
        linear = [module for module in modules if isinstance(module, nn.Linear)]
        activations = [type(module).__name__ for module in modules if type(module).__module__ == "torch.nn.modules.activation"]
        env = self.saved_env
        return {
            "algorithm": self.algo,
            "path": self.path,
            "environment": env.id if env else None,
            "environment_kwargs": dict(env.kwargs) if env else {},
            "wrappers": [name for name, _ in env.wrappers] if env else [],
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
            "family": type(self.family).__name__,
            "layers": [linear[0].in_features, *(module.out_features for module in linear)] if linear else [],
            "activation": activations[0] if activations else None,
            "params": self.params,
            "named_layers": [f"{name} ({width})" for name, width in self.layers().items()],
            "normalized": self.normalization is not None,
            "normalization": self.normalization_source,
            "notes": list(self.notes),
            **self.facts,
        }

    @classmethod
    def _of(cls, network: nn.Module) -> type[Teacher]:
        return next((kind for kind in cls.__subclasses__() if isinstance(network, kind.network_kind)), cls)

    @classmethod
    def load(
        cls,
        path_or_name: str | Path,
        *,
        algo: str | None = None,
        normalization: str | None = None,
        extractor: str | None = None,
        trust: bool = False,
    ) -> Teacher:
        """Load an agent from a run's folder, a zip, or by a shipped agent's name. Nothing is unpickled unless ``trust`` is set.

        Args:
            path_or_name: see ``find_agent``.
            algo: the algorithm, if the folder and the file do not contain it or are wrong.
            normalization: the file of its VecNormalize statistics, or ``none``. None: it is searched for, see ``choose_statistics``.
            trust: let Stable-Baselines3 unpickle agents that cannot be rebuilt, such as custom policies. This runs code from the file.
            extractor: ``file.py:Class``, the source of the agent's custom features extractor. The file is run, and the zip's weights are
                loaded into the class.

        Raises:
            RequestError: in one line, if there is no such agent or it is not supported.
        """
        reading = Reading(algo, normalization, extractor, trust)
        files = find_agent(path_or_name, normalization=normalization)
        notes = list(files.notes)
        networks, spaces, facts = networks_of_files(files, reading, notes)
        surroundings = around(files)
        notes += normalization_notes(files, surroundings["normalization"])
        return cls._of(networks.acting)(
            networks.acting, *spaces, algo=networks.algo, notes=tuple(notes), facts=facts, critic=networks.critic, reading=reading,
            **surroundings,
        )  # fmt: skip

    @classmethod
    def from_sb3(cls, model: Any, vec_normalize: Any = None) -> Teacher:
        """A frozen copy of a live Stable-Baselines3 or sb3-contrib model; the model is not changed.

        Args:
            model: a supported model. A custom policy is copied and called directly.
            vec_normalize: the VecNormalize of its training, with ``norm_reward`` as in training. None: that of the model's environment, if
                it has one.

        Raises:
            RequestError: if the model is not supported.
        """
        networks = networks_of_model(model)
        return cls._of(networks.acting)(
            networks.acting, model.observation_space, model.action_space, algo=networks.algo, facts=model_facts(model),
            critic=networks.critic, **inside(vec_normalize if vec_normalize is not None else model.get_vec_normalize_env()),
        )  # fmt: skip

    @classmethod
    def from_callable(
        cls,
        function: Callable[[Any], Any],
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        outputs: Literal["actions", "logits"] = "actions",
        params: int = 0,
    ) -> Teacher:
        """Use any function as a teacher.

        Args:
            function: maps a batch of raw observations (float32 ``[B, ...]``; int64 for discrete spaces; by key for a Dict) to ``outputs``.
                While environments are stepped it is called on one observation at a time.
            observation_space: space of the observations.
            action_space: space of the actions.
            outputs: ``actions`` as for ``env.step`` (continuous actions are clipped to the bounds; the labels put probability 0.999 on a
                discrete action), or ``logits``.
            params: number of parameters of the function, for the compression ratio; 0 if unknown.
        """
        if outputs not in ("actions", "logits"):
            raise RequestError(f"outputs is {outputs!r}; it must be actions or logits")
        if outputs == "logits" and isinstance(action_space, gym.spaces.Box):
            raise RequestError("outputs is 'logits', but the action space is continuous; let the function return actions")
        try:
            network = CallableNetwork(function, action_space, outputs, params)
        except ValueError as error:
            raise RequestError(str(error)) from error
        return cls(network, observation_space, action_space, algo="callable")

    @classmethod
    def ensemble(
        cls, teachers: Sequence[Teacher], *, weights: Sequence[float] | None = None, combine: Literal["mean", "value"] = "mean"
    ) -> Teacher:
        """Several agents of one task as one teacher. Each keeps its normalisation and shares its weights with the ensemble.

        Args:
            teachers: at least two, with the same spaces.
            weights: positive, one for each teacher; only their ratios matter. None: equal weights.
            combine: ``mean`` averages the teachers' outputs, see ``Ensemble``; ``value`` uses in each state the teacher with the highest
                ``values``, whose discounts should be similar.

        Raises:
            RequestError: if the teachers are incompatible, or the weights do not match them.
        """
        network = Ensemble(teachers, weights, combine)
        described = [teacher.describe() for teacher in teachers]
        activations = {facts["activation"] for facts in described}
        facts = {
            "members": [teacher.path for teacher in teachers],
            "activation": activations.pop() if len(activations) == 1 else None,
            "normalized": any(facts["normalized"] for facts in described),
            "normalization": [facts["normalization"] for facts in described],
        }
        return cls(
            network, teachers[0].observation_space, teachers[0].action_space, algo="ensemble",
            saved_env=next((teacher.saved_env for teacher in teachers if teacher.saved_env is not None), None),
            notes=tuple(f"{name_of(teacher)}: {note}" for teacher in teachers for note in teacher.notes),
            facts=facts,
            critic=HighestValue() if combine == "value" else None,
        )  # fmt: skip
