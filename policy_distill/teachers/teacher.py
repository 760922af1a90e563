"""Teacher: a frozen agent. Raw observation in, ``ActionTargets`` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.actions import ActionTargets, Family
from policy_distill.config import RequestError
from policy_distill.environments import EnvironmentSpec
from policy_distill.spaces import encode_observations, observation_width
from policy_distill.teachers.archive import Archive, read_archive
from policy_distill.teachers.errors import NotPlainError
from policy_distill.teachers.folder import AgentFiles, find_agent
from policy_distill.teachers.live import CallableNetwork, LivePolicy
from policy_distill.teachers.normalization import ObservationNormalization, read_normalization
from policy_distill.teachers.rebuild import KINDS, rebuild_network, recognise_algorithm, recognise_kind
from policy_distill.teachers.trusted import SB3_PACKAGES, algorithm_of, algorithm_of_module, load_model


class Teacher(nn.Module):
    """A trained agent, frozen: always in eval mode, without gradients.

    Attributes:
        algo: ``ppo``, ``sac``, ...; ``callable`` for a function.
        path: of the zip, or None.
        observation_space: of the raw observations.
        action_space: what ``env.step`` takes.
        family: of the distributions in ``targets``.
        params: the acting network's number of parameters, what compression is quoted against; the standard deviation's count where they are
            part of the actor (sac, tqc); 0 if unknown.
        obs_dim: width of the observation as one flat vector.
        normalization: statistics that the agent was trained with, or None.
        saved_env: the environment as the run's folder names it (which may be an id that no longer exists), or None.
        notes: what a user should know about how the agent was read.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        algo: str,
        path: str | None = None,
        normalization: ObservationNormalization | None = None,
        saved_env: EnvironmentSpec | None = None,
        notes: tuple[str, ...] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        source = path or f"the {algo} agent"
        check_observation_space(observation_space, source)
        if normalization is not None and normalization.mean.shape != observation_space.shape:
            raise RequestError(
                f"{source}: the normalisation statistics are of shape {normalization.mean.shape}, its observations of "
                f"{observation_space.shape}; the vecnormalize.pkl is another agent's"
            )
        self.network = network
        self.observation_space = observation_space
        self.action_space = action_space
        self.algo = algo
        self.path = path
        self.normalization = normalization
        self.saved_env = saved_env
        self.notes = notes
        self.facts = dict(facts or {})
        self.obs_dim = observation_width(observation_space)
        if normalization is not None:
            self.register_buffer("mean", torch.from_numpy(normalization.mean.copy()))
            self.register_buffer("scale", torch.from_numpy(np.sqrt(normalization.var + normalization.epsilon)))
        self.requires_grad_(False)
        self.eval()

    @property
    def family(self) -> Family:
        return self.network.family  # type: ignore[return-value]

    @property
    def params(self) -> int:
        return int(self.network.acting_params)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a teacher is frozen."""
        return super().train(False)

    def forward(self, observations: Tensor) -> ActionTargets:
        return self.targets(observations)

    def targets(self, observations: Tensor) -> ActionTargets:
        """Label raw observations in one forward pass.

        Args:
            observations: ``[B, ...]`` as the environment returns them, or boxes flattened to ``[B, obs_dim]``; float64 ones are normalised
                without rounding first.

        Returns:
            ``parameters`` of the family and ``actions``, what Stable-Baselines3's ``predict(deterministic=True)`` returns: int64 ``[B]``
            or ``[B, components]``, or float32 ``[B, action_dim]``.
        """
        if isinstance(self.observation_space, gym.spaces.Box):
            if len(observations) and observations[0].numel() != self.obs_dim:
                raise ValueError(f"an observation has {observations[0].numel()} numbers; this {self.algo} teacher reads {self.obs_dim}")
            observations = observations.reshape(len(observations), *self.observation_space.shape)
        if self.normalization is not None:
            # VecNormalize computes in float64 and rounds once.
            normalized = (observations.double() - self.mean) / self.scale
            observations = normalized.clamp(-self.normalization.clip, self.normalization.clip).float()
        if getattr(self.network, "reads_raw", False):
            return self.network(observations.float() if isinstance(self.observation_space, gym.spaces.Box) else observations.long())
        return self.network(encode_observations(self.observation_space, observations))

    @torch.inference_mode()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Deterministic actions ``[B, ...]`` for ``env.step``, from raw observations ``[B, ...]``."""
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        actions = self.targets(torch.tensor(observations, device=device)).actions.cpu().numpy()
        if isinstance(self.action_space, gym.spaces.Box):
            actions = actions.reshape(len(actions), *self.action_space.shape)
            return actions.astype(self.action_space.dtype) if self.action_space.dtype.kind == "f" else actions
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
            "normalized": self.normalization is not None,
            "notes": list(self.notes),
            **self.facts,
        }

    @classmethod
    def load(cls, path_or_name: str | Path, *, algo: str | None = None, trust: bool = False) -> Teacher:
        """Read an agent from a run's folder, a zip, or by the name of one that ships with the project. Nothing is unpickled.

        Args:
            path_or_name: see ``find_agent``.
            algo: the algorithm, where folder and file do not tell it or tell it wrong.
            trust: let Stable-Baselines3 unpickle an agent that cannot be rebuilt from plain data, such as a custom policy. This runs
                code from the file.

        Raises:
            RequestError: in one line, if there is no such agent or it is not supported.
        """
        files = find_agent(path_or_name)
        notes: list[str] = []
        if files.env is None and files.vecnormalize_path is not None:
            notes.append(f"normalisation taken from {files.vecnormalize_path.name} beside the zip")
        archive = None
        try:
            archive = read_archive(files.zip_path)
            network, name = _rebuild(archive, files, algo, notes)
        except NotPlainError as error:
            if not trust:
                raise
            return cls._load_trusted(files, archive, algo, (*notes, f"unpickled, because: {error}"))
        normalization = read_normalization(files.vecnormalize_path) if files.vecnormalize_path else None
        facts = {
            "policy_params": sum(tensor.numel() for tensor in archive.state_dict.values()),
            "sb3_version": archive.sb3_version,
            "num_timesteps": archive.num_timesteps,
        }
        return cls(
            network, archive.observation_space, archive.action_space, algo=name, path=str(files.zip_path), normalization=normalization,
            saved_env=files.env, notes=tuple(notes), facts=facts,
        )  # fmt: skip

    @classmethod
    def _load_trusted(cls, files: AgentFiles, archive: Archive | None, algo: str | None, notes: tuple[str, ...]) -> Teacher:
        """Load with Stable-Baselines3, which runs what the file says."""
        name = algo or files.algo
        spaces: dict[str, Any] = {}
        if archive is not None:
            spaces = {"observation_space": archive.observation_space, "action_space": archive.action_space}
            name = name or algorithm_of_module(archive.policy_module)
            if name is None:
                name = recognise_algorithm(recognise_kind(archive.state_dict, archive.path), archive.data, archive.policy_module)
        model = load_model(files.zip_path, name, spaces)
        network, name = _from_model(model)
        normalization = read_normalization(files.vecnormalize_path) if files.vecnormalize_path else None
        return cls(
            network, model.observation_space, model.action_space, algo=name, path=str(files.zip_path), normalization=normalization,
            saved_env=files.env, notes=notes, facts=_model_facts(model),
        )  # fmt: skip

    @classmethod
    def from_sb3(cls, model: Any, vec_normalize: Any = None) -> Teacher:
        """Freeze a copy of a live Stable-Baselines3 or sb3-contrib model; the model is not touched.

        Args:
            model: any of their algorithms that acts on the last observation alone. A custom policy is copied and called as it is.
            vec_normalize: the VecNormalize that it was trained in. Left out, the one around the model's environment, if it has one.

        Raises:
            RequestError: if the model is not supported.
        """
        network, name = _from_model(model)
        wrapper = vec_normalize if vec_normalize is not None else model.get_vec_normalize_env()
        normalization = None
        if wrapper is not None and wrapper.norm_obs:
            if isinstance(wrapper.obs_rms, dict):
                raise RequestError("the VecNormalize is one of Dict observations, which are not supported: agents on one flat vector are")
            mean, var = (np.array(values, np.float64) for values in (wrapper.obs_rms.mean, wrapper.obs_rms.var))
            normalization = ObservationNormalization(mean, var, float(wrapper.epsilon), float(wrapper.clip_obs))
        return cls(network, model.observation_space, model.action_space, algo=name, normalization=normalization, facts=_model_facts(model))

    @classmethod
    def from_callable(
        cls,
        function: Callable[[np.ndarray], Any],
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        outputs: Literal["actions", "logits"] = "actions",
        params: int = 0,
    ) -> Teacher:
        """Use any function as a teacher.

        Args:
            function: from a batch of raw observations (float32 ``[B, ...]``; int64 for discrete spaces) to what ``outputs`` says.
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


def check_observation_space(space: gym.Space, source: str) -> None:
    """Refuse spaces that no student reads.

    Raises:
        RequestError: for Dict, Tuple and images.
    """
    if isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        raise RequestError(f"{source} reads images {space.shape}, which are not supported: agents on vector observations are")
    try:
        observation_width(space)
    except ValueError as error:
        raise RequestError(f"{source}: {' '.join(str(error).split())}") from error


def _rebuild(archive: Archive, files: AgentFiles, algo: str | None, notes: list[str]) -> tuple[nn.Module, str]:
    """The archive's acting network and the algorithm's name."""
    if archive.policy_module is not None and not archive.policy_module.startswith(SB3_PACKAGES):
        raise NotPlainError(
            f"{archive.path} uses the custom policy class of {archive.policy_module!r}, which weights alone do not describe; "
            "if you trust the file, load it with --trust, which runs its code"
        )
    kind = recognise_kind(archive.state_dict, archive.path)
    recognised = recognise_algorithm(kind, archive.data, archive.policy_module)
    if algo is not None and KINDS.get(algo) != kind:
        raise RequestError(f"algo is {algo!r}, but {archive.path} holds the networks of {recognised}; leave algo out")
    if files.algo is not None and KINDS.get(files.algo) != kind:
        notes.append(f"the folder says {files.algo}, the weights are those of {recognised}")
    elif algo is None and files.algo is not None:
        recognised = files.algo
    name = algo or recognised
    if name == "ppo_mask":
        notes.append("trained with action masks, which are not applied here")
    spaces = archive.observation_space, archive.action_space
    return rebuild_network(archive.state_dict, kind, *spaces, archive.policy_kwargs, archive.path), name


def _from_model(model: Any) -> tuple[nn.Module, str]:
    """A live model's acting network, rebuilt where its policy is one of the libraries' own, else copied."""
    name = algorithm_of(model)
    source = f"the {type(model).__name__} model"
    if name is None or name == "ppo_lstm":
        raise RequestError(f"{source} is not supported: Stable-Baselines3's and sb3-contrib's algorithms without memory are")
    check_observation_space(model.observation_space, source)
    policy = model.policy
    if name in KINDS and type(policy).__module__.startswith(SB3_PACKAGES):
        kwargs = {key: str(value) if isinstance(value, type) else value for key, value in model.policy_kwargs.items()}
        weights = {key: tensor.detach().cpu() for key, tensor in policy.state_dict().items()}
        try:
            kind = recognise_kind(weights, source)
            return rebuild_network(weights, kind, model.observation_space, model.action_space, kwargs, source), name
        except NotPlainError:
            pass  # a features extractor or activation of the user's own: copied below
    try:
        return LivePolicy(policy, model.action_space), name
    except ValueError as error:
        raise RequestError(f"{source}: {error}") from error


def _model_facts(model: Any) -> dict[str, Any]:
    import stable_baselines3

    return {
        "policy_params": sum(tensor.numel() for tensor in model.policy.state_dict().values()),
        "sb3_version": stable_baselines3.__version__,
        "num_timesteps": int(model.num_timesteps),
    }
