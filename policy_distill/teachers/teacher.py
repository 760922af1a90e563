"""Teacher: a frozen agent. Raw observation in, ``ActionTargets`` out."""

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
from policy_distill.support.trees import Tree, leaf_spaces, map_leaves, to_tensors, zeros
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
        path: of the zip, or None.
        observation_space: of the raw observations; of ppo_mask, with an action mask among their parts.
        action_space: what ``env.step`` takes.
        family: of the distributions in ``targets``.
        params: the acting network's number of parameters, what compression is quoted against; the standard deviation's count where they are
            part of the actor (sac, tqc); 0 if unknown.
        obs_dim: width of the observation as one flat vector.
        normalization: statistics that the agent was trained with, or None.
        normalization_source: what says how observations were normalised: a file, ``none`` (the user), ``VecNormalize`` (live), or None.
        statistics: the file that the statistics were read from, or None.
        reading: what the user said about its files.
        saved_env: the environment as the run's folder names it (which may be an id that no longer exists), or None.
        notes: what a user should know about how the agent was read.
        critic: says what ``values`` returns, in the rewards of training; None where there is none. It does not act.
        reward_scale: what rewards were divided by in training; None if unknown.
    """

    mean: Tensor
    scale: Tensor
    clip: Tensor
    anchor: Tensor
    network_kind = nn.Module  # a subclass stands for agents with another kind

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
        known = None if normalization is None else required(normalization, observation_space, source, statistics)
        self.network = network
        self.critic = critic
        self.reward_scale = reward_scale
        self.observation_space = observation_space
        self.action_space = action_space
        self.algo = algo
        self.path = path
        self.normalization: ObservationNormalization | None = known
        self._normalized_keys = tuple(normalization) if isinstance(normalization, dict) else ()
        self.normalization_source = normalization_source
        self.statistics = statistics
        self.reading = reading or Reading()
        self.saved_env = saved_env
        self.notes = notes
        self.facts = dict(facts or {})
        self.recorded: tuple[str, ...] = ()
        self.obs_dim = observation_width(observation_space)
        # Holds nothing; it lies where the weights do, and asking it is quicker than walking over all modules.
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        if known is not None:
            self.register_buffer("mean", torch.from_numpy(known.mean.flatten()))
            self.register_buffer("scale", torch.from_numpy(np.sqrt(known.var + known.epsilon).ravel()))
            self.register_buffer("clip", torch.as_tensor(known.clip, dtype=torch.float64), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def family(self) -> Family:
        return self.network.family  # type: ignore[return-value]

    @property
    def needs_float64(self) -> bool:
        """Whether rounding its observations to float32 would lose what they say."""
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
            observations: ``[B, ...]`` as the environment returns them, by key where they are a Dict; or boxes flattened to
                ``[B, obs_dim]``; float64 ones are normalised without rounding first.

        Returns:
            ``parameters`` of the family and ``actions``, what Stable-Baselines3's ``predict(deterministic=True)`` returns: int64 ``[B]``
            or ``[B, components]``, or float32 ``[B, action_dim]``.
        """
        encoded = self.encode(observations)
        if not self.recorded:
            return self.network.forward(encoded)
        with record_layers(self.network, self.recorded) as seen:
            targets = self.network(encoded)
        return ActionTargets({**targets.parameters, **{f"{LAYER}{name}": seen[name] for name in self.recorded}}, targets.actions)

    def values(self, observations: Tree) -> Tensor:
        """The discounted return that the agent's own critic expects of its deterministic action, in the environment's rewards.

        The discount is that of its training; the critics of sac and tqc count their entropy bonus in.

        Args:
            observations: ``[B, ...]`` as for ``targets``.

        Returns:
            float32 ``[B]``.

        Raises:
            RequestError: if the agent has no critic; ``has_values`` tells.
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
        """Why ``values`` cannot answer, and what would help; None if it can."""
        if self.critic is None:
            known = f"{algorithms_with(lambda layout: layout.has_critic)}, or an ensemble combined by value"
            return f"{name_of(self)} has no critic that can be read, so its values are not known: name one of {known}"
        if self.reward_scale is None:
            return f"{name_of(self)} was trained on normalised rewards whose scale is missing: put vecnormalize.pkl where its config.yml is"
        return None

    def encode(self, observations: Tree) -> Tree:
        """Raw observations as the networks read them."""
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
        """The agents that an ensemble is made of; the agent itself where it is none."""
        return tuple(self.network.members) if isinstance(self.network, Ensemble) else (self,)  # type: ignore[arg-type]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that decide how it acts: zips, statistics and extractors' sources; empty for agents from memory."""
        found: list[Path] = []
        for one in self.members:
            source = one.reading.extractor and file_of(one.reading.extractor)
            found += [Path(path) for path in (one.path, one.statistics, source) if path is not None]
        return tuple(found)

    def layers(self) -> dict[str, int]:
        """Name and width of each layer that can be recorded, in the order in which they are computed."""
        probe = map_leaves(lambda part: part.to(self.anchor.device), to_tensors(zeros(self.observation_space, 2)))
        with torch.inference_mode(), record_layers(self.network, layers_inside(self.network)) as seen:
            self.targets(probe)
        return {name: output.shape[1] for name, output in seen.items() if output.ndim == 2}

    def last_hidden_layer(self) -> str | None:
        """Name of the last activation before the output; None where there is none, or each member of an ensemble has its own."""
        if isinstance(self.network, Ensemble):
            return None
        modules = dict(self.network.named_modules())
        hidden = [name for name in self.layers() if type(modules[name]).__module__ == "torch.nn.modules.activation"]
        return hidden[-1] if hidden else None

    def recording(self, names: Iterable[str]) -> Teacher:
        """The same teacher, whose ``targets`` also hold the outputs of these layers as ``layer:NAME``; weights are shared.

        Raises:
            RequestError: if there is no such layer.
        """
        wanted, known = tuple(dict.fromkeys(names)), self.layers()
        if missing := [name for name in wanted if name not in known]:
            listed = ", ".join(f"{layer} ({width})" for layer, width in known.items()) or "none"
            raise RequestError(f"the teacher has no layer {missing[0]!r}; its layers and their widths: {listed}")
        twin = copy.copy(self)
        twin.recorded = wanted
        return twin

    @torch.inference_mode()
    def act(self, observations: Tree) -> np.ndarray:
        """Deterministic actions ``[B, ...]`` for ``env.step``, from raw observations ``[B, ...]``."""
        actions = self.targets(map_leaves(lambda part: torch.tensor(part, device=self.anchor.device), observations)).actions.cpu().numpy()
        if isinstance(self.action_space, gym.spaces.Box):
            actions = actions.reshape(len(actions), *self.action_space.shape)
            return actions.astype(self.action_space.dtype, copy=False) if self.action_space.dtype.kind == "f" else actions
        return actions

    def describe(self) -> dict[str, Any]:
        """Plain facts about the agent: what it is, how it was trained, how it was read."""
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
        """Read an agent from a run's folder, a zip, or by the name of one that ships with the project. Nothing is unpickled.

        Args:
            path_or_name: see ``find_agent``.
            algo: the algorithm, where folder and file do not tell it or tell it wrong.
            normalization: the file of its VecNormalize statistics, or ``none``; left out, it is looked for, see ``choose_statistics``.
            trust: let Stable-Baselines3 unpickle what cannot be rebuilt from plain data, such as a custom policy: runs code from the file.
            extractor: ``file.py:Class``, the source of the features extractor that the agent was trained with. The file is run; the zip's
                weights are loaded into the class, and nothing in the zip is unpickled.

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
        """Freeze a copy of a live Stable-Baselines3 or sb3-contrib model; the model is not touched.

        Args:
            model: any of their algorithms that acts on the last observation alone. A custom policy is copied and called as it is.
            vec_normalize: the VecNormalize that it was trained in, ``norm_reward`` as it was then. Left out, the one around the model's
                environment, if it has one.

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
            function: from a batch of raw observations (float32 ``[B, ...]``; int64 for discrete spaces; by key for a Dict) to what
                ``outputs`` says. While environments are stepped it is asked about one at a time: no answer depends on a batch.
            observation_space: of the observations.
            action_space: of the actions.
            outputs: ``actions`` as ``env.step`` takes them (continuous ones are clipped to the bounds; of discrete ones the distribution
                puts 0.999 on the named action), or ``logits``.
            params: the function's number of parameters, if it has any to compare a student with.
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
        """Several agents of one task as one teacher; each keeps its own normalisation, and shares its weights with the ensemble.

        Args:
            teachers: at least two, with the same spaces.
            weights: ``> 0``, one for each; only their ratios count. Left out: equal.
            combine: ``mean``: the mean of what they say, see ``Ensemble``; ``value``: in each state what the one says whose ``values``
                are highest. Discounts should then be alike.

        Raises:
            RequestError: if the teachers do not go together, or the weights do not fit them.
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
