"""Networks of an agent, acting network and critic, from its archive or a live model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from torch import nn

from policy_distill.config import Reading, RequestError
from policy_distill.policies.observations import observation_width
from policy_distill.support.untrusted import refuse_damage
from policy_distill.teachers.algorithms import ALGORITHMS, RECURRENT, algorithm_of_fields, algorithm_of_networks, layout_of
from policy_distill.teachers.files.archive import COMPILED, Archive, class_name, read_archive, read_data
from policy_distill.teachers.files.errors import NotPlainError
from policy_distill.teachers.files.folder import AgentFiles, find_agent
from policy_distill.teachers.files.normalization import (
    ObservationNormalization,
    Statistics,
    read_normalization,
    read_reward_scale,
    reward_scale_of,
)
from policy_distill.teachers.files.training_record import read_training_record
from policy_distill.teachers.files.trusted import SB3_PACKAGES, algorithm_of, load_model
from policy_distill.teachers.networks.counting import acting_family, check_start
from policy_distill.teachers.networks.critics import live_critic, rebuild_critic
from policy_distill.teachers.networks.extractor import extractor_class, extractor_maker
from policy_distill.teachers.networks.live import LivePolicy
from policy_distill.teachers.networks.pixels import pixel_reader
from policy_distill.teachers.networks.rebuild import (
    HAS_MEMORY,
    Reader,
    check_supported,
    own_extractor_of,
    rebuild_network,
    recognise_layout,
)
from policy_distill.teachers.networks.recurrent import rebuild_recurrent


@dataclass(frozen=True)
class Networks:
    """An agent's networks and its algorithm."""

    acting: nn.Module
    critic: nn.Module | None
    algo: str


def networks_of_files(
    files: AgentFiles, reading: Reading, notes: list[str]
) -> tuple[Networks, tuple[gym.Space, gym.Space], dict[str, Any]]:
    """An agent's networks, its observation and action space, and plain facts; notices for the user are added to ``notes``.

    Networks are rebuilt from plain data. If that is impossible and ``reading.trust`` is set, Stable-Baselines3 unpickles the agent, which
    runs code from the file.

    Raises:
        RequestError: if the agent is not supported; ``NotPlainError`` if ``--trust`` might help.
    """
    archive = None
    try:
        archive = read_archive(files.zip_path)
        with refuse_damage(files.zip_path, "its settings and weights do not go together; save the agent again"):
            networks = networks_of_archive(archive, files, reading.algo, notes, reading.extractor)
    except NotPlainError as error:
        if not reading.trust:
            raise
        model = load_model(files.zip_path, algorithm_to_trust(files, reading.algo), spaces_of(archive))
        notes.append(f"unpickled, because: {error}")
        return networks_of_model(model), (model.observation_space, model.action_space), model_facts(model)
    return networks, (archive.observation_space, archive.action_space), archive_facts(archive)


def networks_of_archive(archive: Archive, files: AgentFiles, algo: str | None, notes: list[str], extractor: str | None = None) -> Networks:
    """Rebuild the networks from plain weights; notices for the user are added to ``notes``.

    ``extractor`` is the source of the agent's custom features extractor, ``file.py:Class``.

    Raises:
        RequestError: if they are not supported; ``NotPlainError`` if ``--trust`` might help.
    """
    if archive.policy_module is not None and not archive.policy_module.startswith(SB3_PACKAGES):
        saved_by = algorithm_of_fields(archive.data)
        if saved_by is not None and ALGORITHMS[saved_by].has_memory:
            raise RequestError(f"{archive.path} {HAS_MEMORY}")
        raise NotPlainError(
            f"{archive.path} uses the custom policy class of {archive.policy_module!r}, which weights alone do not describe; "
            "if you trust the file, load it with --trust, which runs its code"
        )
    check_start(archive.observation_space, archive.action_space, archive.path)
    check_supported(archive.state_dict, archive.policy_kwargs, archive.path, extractor_known=extractor is not None)
    layout = recognise_layout(archive.state_dict, archive.path)
    recognised = algorithm_of_networks(layout, archive.data)
    if algo is not None and layout_of(algo) is not layout:
        raise RequestError(f"algo is {algo!r}, but {archive.path} holds the networks of {recognised}; leave algo out")
    if files.algo is not None and layout_of(files.algo) is not layout:
        notes.append(f"the folder says {files.algo}, the weights are those of {recognised}")
    elif algo is None and files.algo is not None:
        recognised = files.algo
    name = algo or recognised
    spaces = archive.observation_space, archive.action_space
    maker = _maker(archive, extractor, notes)
    rebuild = rebuild_recurrent if layout is RECURRENT else rebuild_network
    acting = rebuild(archive.state_dict, layout, *spaces, archive.policy_kwargs, archive.path, maker)
    width = observation_width(archive.observation_space)
    critic = rebuild_critic(archive.state_dict, name, acting, archive.policy_kwargs, width, archive.path, maker)
    return Networks(acting, critic, name)


def _maker(archive: Archive, extractor: str | None, notes: list[str]) -> Reader | None:
    """What makes the features extractor: the user's class, or Stable-Baselines3's own for images; None: observations are flattened."""
    if extractor is None:
        return pixel_reader(archive.observation_space, archive.state_dict, archive.policy_kwargs)
    named = own_extractor_of(archive.state_dict, archive.policy_kwargs)
    if named is None:
        raise RequestError(f"{archive.path} reads its observations without a features extractor of its own; leave --extractor out")
    maker = extractor_maker(extractor, archive.observation_space, archive.policy_kwargs, archive.path)
    differs = class_name(archive.policy_kwargs.get("features_extractor_class")) not in (None, extractor.rpartition(":")[2])
    notes.append(f"observations are read by {extractor}" + (f"; the agent was trained with {named}" if differs else ""))
    return maker


def extractors_of(agents: Sequence[str], extractor: str | None) -> list[str | None]:
    """For each of several agents, ``extractor`` if the agent needs it, else None. This runs the user's file.

    An agent needs it if its own features extractor has the class name that ``extractor`` names, or if its zip names no class. An agent that
    cannot be read does not: the job that reads it says why.

    Args:
        agents: paths or names.
        extractor: ``file.py:Class``; None: no agent gets one.

    Raises:
        RequestError: if there is no such class, or no agent needs it.
    """
    if extractor is None:
        return [None] * len(agents)
    extractor_class(extractor)
    name = extractor.rpartition(":")[2]
    found = [extractor if _needs(agent, name) else None for agent in agents]
    if not any(found):
        raise RequestError(f"extractor is {extractor}, but none of the agents reads its observations through a class {name}: leave it out")
    return found


def _needs(agent: str, wanted: str) -> bool:
    try:
        archive = read_archive(find_agent(agent, normalization="none").zip_path)  # without a search for statistics
    except RequestError:
        return False
    own = own_extractor_of(archive.state_dict, archive.policy_kwargs)
    return own is not None and class_name(archive.policy_kwargs.get("features_extractor_class")) in (None, wanted)


def networks_of_model(model: Any) -> Networks:
    """Rebuild a live model's networks if its policy's class belongs to one of the libraries, else copy the policy.

    Raises:
        RequestError: if the model is not supported.
    """
    name = algorithm_of(model)
    source = f"the {type(model).__name__} model"
    if name is None:
        raise RequestError(f"{source} is not supported: Stable-Baselines3's and sb3-contrib's algorithms are")
    check_observation_space(model.observation_space, source)
    check_start(model.observation_space, model.action_space, source)
    policy = getattr(model.policy, COMPILED.rstrip("."), model.policy)
    if layout_of(name) is not None and type(policy).__module__.startswith(SB3_PACKAGES):
        kwargs = {key: str(value) if isinstance(value, type) else value for key, value in model.policy_kwargs.items()}
        weights = {key: tensor.detach().cpu() for key, tensor in policy.state_dict().items()}
        try:
            check_supported(weights, kwargs, source, extractor_known=False)
            layout = recognise_layout(weights, source)
            rebuild = rebuild_recurrent if layout is RECURRENT else rebuild_network
            reader, width = pixel_reader(model.observation_space, weights, kwargs), observation_width(model.observation_space)
            acting: nn.Module = rebuild(weights, layout, model.observation_space, model.action_space, kwargs, source, reader)
            return Networks(acting, rebuild_critic(weights, name, acting, kwargs, width, source, reader), name)
        except NotPlainError:
            if ALGORITHMS[name].has_memory:
                raise
            # a custom features extractor or activation: copied below
    live = LivePolicy(policy, model.action_space, acting_family(model.action_space, source))
    return Networks(live, live_critic(live), name)


def algorithm_to_trust(files: AgentFiles, algo: str | None) -> str | None:
    """The algorithm whose class loads the zip: the user's choice, else the folder's if its layout agrees, else the zip's."""
    saved_by = algorithm_of_fields(read_data(files.zip_path))
    agrees = layout_of(saved_by) is None or layout_of(files.algo) is layout_of(saved_by)
    return algo or (files.algo if files.algo is not None and agrees else saved_by)


def spaces_of(archive: Archive | None) -> dict[str, gym.Space]:
    """The spaces that were read as data, so that Stable-Baselines3 does not unpickle them."""
    return {} if archive is None else {"observation_space": archive.observation_space, "action_space": archive.action_space}


def archive_facts(archive: Archive) -> dict[str, Any]:
    """Plain facts about a saved agent."""
    return {
        "policy_params": sum(tensor.numel() for tensor in archive.state_dict.values()),
        "sb3_version": archive.sb3_version,
        "num_timesteps": archive.num_timesteps,
        "gamma": gamma if isinstance(gamma := archive.data.get("gamma"), int | float) else None,
    }


def around(files: AgentFiles) -> dict[str, Any]:
    """Arguments of ``Teacher`` from the files around an agent's zip."""
    statistics, rewards = files.vecnormalize_path, files.reward_statistics_path
    return {
        "path": str(files.zip_path),
        "saved_env": files.env,
        "normalization": read_normalization(statistics) if statistics else None,
        "normalization_source": files.normalization_source,
        "statistics": statistics,
        "reward_scale": _reward_scale(files) if rewards is None else read_reward_scale(rewards, normalized=files.rewards_normalized),
    }


def normalization_notes(files: AgentFiles, normalization: Statistics | None) -> list[str]:
    """Notices about the source of the statistics; none if it is the RL Zoo's usual place."""
    path = files.vecnormalize_path
    if path is None or (files.env is not None and path.name == "vecnormalize.pkl"):
        return []
    place = f"{path.name} beside the zip" if path.absolute().parent == files.zip_path.absolute().parent else str(path)
    return [f"{place} says that observations were not normalised" if normalization is None else f"normalisation taken from {place}"]


def inside(wrapper: Any) -> dict[str, Any]:
    """Arguments of ``Teacher`` from a live VecNormalize around a model, or None."""
    if wrapper is None:
        return {}

    def of(moments: Any) -> ObservationNormalization:
        mean, var = (np.array(values, np.float64) for values in (moments.mean, moments.var))
        return ObservationNormalization(mean, var, float(wrapper.epsilon), float(wrapper.clip_obs))

    normalization: Statistics | None = None
    if wrapper.norm_obs:
        moments = wrapper.obs_rms
        normalization = {key: of(moments[key]) for key in wrapper.norm_obs_keys} if isinstance(moments, dict) else of(moments)
    scale = reward_scale_of(wrapper.ret_rms.var, wrapper.epsilon) if wrapper.norm_reward else 1.0
    return {"normalization": normalization, "reward_scale": scale, "normalization_source": "VecNormalize"}


def _reward_scale(files: AgentFiles) -> float | None:
    """Scale of the rewards without a statistics file: 1 if they were not normalised, None if unknown."""
    normalized = files.rewards_normalized
    if normalized is None:
        normalized = read_training_record(files.zip_path).inside_vec_normalize
    return None if normalized else 1.0


def model_facts(model: Any) -> dict[str, Any]:
    """Plain facts about a live model."""
    import stable_baselines3

    return {
        "policy_params": sum(tensor.numel() for tensor in model.policy.state_dict().values()),
        "sb3_version": stable_baselines3.__version__,
        "num_timesteps": int(model.num_timesteps),
        "gamma": getattr(model, "gamma", None),
    }


def check_observation_space(space: gym.Space, source: str) -> None:
    """Refuse unsupported observation spaces.

    Raises:
        RequestError: for a Dict within a Dict, and for Tuple.
    """
    try:
        observation_width(space)
    except ValueError as error:
        raise RequestError(f"{source}: {' '.join(str(error).split())}") from error
