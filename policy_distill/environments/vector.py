"""Backends that step environments in parallel during collection, and the choice between them.

A backend affects only the states for training and the speed of collection. Returns are always measured in Gymnasium's environments.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from policy_distill.config import EnvironmentCrash, EnvironmentFault, RequestError
from policy_distill.environments import border
from policy_distill.environments.border import Border, not_finite, seed_global_generators
from policy_distill.environments.matching import first_difference
from policy_distill.environments.quiet import quiet_known_warnings
from policy_distill.environments.specs import EnvironmentSpec, make, registered
from policy_distill.support import trees

GOES_ON = -1
"""Value in ``starts``: the episode began at an earlier step."""
Backend: TypeAlias = Literal["gymnasium", "vector", "envpool"]
GROUP = 16
"""Number of environments in one vector environment. They may share a random generator, so groups have a fixed size: results then do not
depend on the number of processes."""
WORDS: dict[Backend, str] = {
    "gymnasium": "environments",
    "vector": "environments of their own vector entry point",
    "envpool": "environments of envpool",
}
"""Descriptions of the environments in messages."""


@dataclass(frozen=True)
class Slots:
    """Current state of N environments; ``reset`` and ``step`` of a ``Group`` update it.

    Attributes:
        observations: ``[N, ...]``, the observations for the next action.
        episodes: ``[N]`` int64, number of the current episode.
        starts: ``[N]`` int64. Where the episode begins with this observation, its seed, or its number if it has no seed; elsewhere
            ``GOES_ON``.
        idle: ``[N]`` bool, True where the next step resets the environment without executing an action.
    """

    observations: trees.Tree
    episodes: np.ndarray
    starts: np.ndarray
    idle: np.ndarray

    @classmethod
    def of_space(cls, space: gym.Space, episodes: range) -> Slots:
        """Slots before the first reset, for these episodes."""
        count = len(episodes)
        return cls(trees.zeros(space, count), np.array(episodes, np.int64), np.full(count, GOES_ON), np.zeros(count, bool))

    def of(self, part: slice) -> Slots:
        """A slice of the slots, as views."""
        return Slots(trees.rows(self.observations, part), self.episodes[part], self.starts[part], self.idle[part])


class Group(Protocol):
    """Environments that are stepped by one call.

    Attributes:
        observation_space, action_space: spaces of one environment.
    """

    observation_space: gym.Space
    action_space: gym.Space

    def reset(self, slots: Slots) -> None:
        """Begin the first episodes.

        Raises:
            EnvironmentFault: if an environment fails.
        """
        ...

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Execute ``actions`` ``[N, ...]``; write the results into the other arrays, all ``[N]``. ``slots.starts`` is all ``GOES_ON``.

        Raises:
            EnvironmentFault: if an environment fails.
        """
        ...

    def not_finite(self, slot: int, observation: trees.Tree) -> EnvironmentFault:
        """The exception for an observation with NaN or infinity."""
        ...

    def close(self) -> None:
        """Close the environments."""
        ...


class SequentialEnvs:
    """Gymnasium environments, stepped one after the other; each is reset in the step that ends its episode.

    Args:
        envs: the environments.
        num_envs: number of environments in the whole run; an environment's episode numbers increase by it.
        seed_of: maps an episode's number to its seed; None: the environment's generator continues without a new seed.
        on_end: called before the reset with the slot, the last observation and whether only a time limit ended the episode.
    """

    def __init__(
        self,
        envs: Sequence[Border],
        num_envs: int,
        seed_of: Callable[[int], int | None],
        on_end: Callable[[int, trees.Tree, bool], object] | None = None,
    ) -> None:
        self.envs, self._num_envs, self._seed_of, self._on_end = envs, num_envs, seed_of, on_end
        self._steps = [env.step for env in envs]
        self.observation_space, self.action_space = envs[0].observation_space, envs[0].action_space

    def reset(self, slots: Slots) -> None:
        for slot in range(len(self.envs)):
            trees.write(slots.observations, slot, self._reset(slot, slots))

    def _reset(self, slot: int, slots: Slots) -> trees.Tree:
        episode = int(slots.episodes[slot])
        seed = self._seed_of(episode)
        slots.starts[slot] = episode if seed is None else seed
        return self.envs[slot].reset(seed=seed)[0]

    def not_finite(self, slot: int, observation: trees.Tree) -> EnvironmentFault:
        return not_finite(self.envs[slot], observation)

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        observations, in_parts = slots.observations, isinstance(slots.observations, dict)
        for slot, step in enumerate(self._steps):
            observation, reward, is_terminated, is_truncated, _ = step(actions[slot])
            rewards[slot], terminated[slot], truncated[slot] = reward, is_terminated, is_truncated
            if is_terminated or is_truncated:
                if self._on_end is not None:
                    self._on_end(slot, observation, is_truncated and not is_terminated)
                slots.episodes[slot] += self._num_envs
                observation = self._reset(slot, slots)
            if in_parts:
                trees.write(observations, slot, observation)
            else:
                observations[slot] = observation


class VectorEnvs:
    """The environments of one ``gymnasium.vector.VectorEnv``.

    Most vector environments reset an environment in the step after the end of its episode (NEXT_STEP). That step executes no action, and
    its row is not a transition.

    Args:
        envs: a vector environment with autoreset in the same or in the next step.
        name: name of the environment in messages.
        seed: seed of the reset; None if the environments are already seeded.
        num_envs: number of environments in the whole run.
    """

    def __init__(self, envs: Any, name: str, seed: int | None, num_envs: int) -> None:
        self._envs, self._num_envs = envs, num_envs
        self._name, self._seed, self._steps = name, seed, 0
        self._resets_later = envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        self.observation_space, self.action_space = _single_spaces(envs)

    def reset(self, slots: Slots) -> None:
        if self._seed is not None:
            seed_global_generators(self._seed)
        try:
            first, _ = self._envs.reset() if self._seed is None else self._envs.reset(seed=self._seed)
            trees.write(slots.observations, slice(None), first)
        except Exception as error:
            raise self._fault(f"reset raised {type(error).__name__}: {error}", EnvironmentCrash) from error
        slots.starts[:] = slots.episodes

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        self._steps += 1
        if border.on_step is not None:
            border.on_step(self._where())
        try:
            observations, rewards[:], terminated[:], truncated[:], _ = self._envs.step(actions.astype(self.action_space.dtype, copy=False))
            trees.write(slots.observations, slice(None), observations)
        except Exception as error:
            raise self._fault(f"step raised {type(error).__name__}: {error}", EnvironmentCrash) from error
        done = terminated | truncated  # of these arrays: the environment's own need not be bool
        began = slots.idle.copy() if self._resets_later else done
        slots.episodes[began] += self._num_envs
        slots.starts[began] = slots.episodes[began]
        slots.idle[:] = done & self._resets_later

    def not_finite(self, slot: int, observation: trees.Tree) -> EnvironmentFault:
        return self._fault(f"an observation of environment {slot} is not finite: {observation}")

    def close(self) -> None:
        self._envs.close()

    def _where(self) -> str:
        seed = "" if self._seed is None else f" with seed {self._seed}"
        return f"{self._name}, vector environments{seed}, step {self._steps}"

    def _fault(self, what: str, kind: type[EnvironmentFault] = EnvironmentFault) -> EnvironmentFault:
        return kind(f"{self._where()}: {' '.join(what.split())}; try --collect.backend gymnasium")


def groups_of(spec: EnvironmentSpec, backend: Backend, indices: range, num_envs: int, seed: int) -> list[tuple[slice, Group]]:
    """Make the run's environments ``indices``, as groups with their slices of the slots.

    Args:
        spec: the environment; it must support ``backend``.
        backend: see ``choose_backend``.
        indices: whole groups of ``group_size(backend)``.
        num_envs: number of environments in the whole run.
        seed: the run's seed. An environment's episodes depend only on it and on the environment's index (vector entry points: on the
            group's first index).
    """
    match backend:
        case "gymnasium":
            envs = [make(spec) for _ in indices]
            return [(slice(0, len(indices)), SequentialEnvs(envs, num_envs, functools.partial(seed_of, seed)))]
        case "envpool":
            pool = make_envpool(spec, [seed_of(seed, index) for index in indices])
            return [(slice(0, len(indices)), VectorEnvs(pool, spec.id, None, num_envs))]
    groups: list[tuple[slice, Group]] = []
    for start in range(0, len(indices), GROUP):
        group = indices[start : start + GROUP]
        vector = make_vector(spec, len(group))
        groups.append((slice(start, start + len(group)), VectorEnvs(vector, spec.id, seed_of(seed, group[0]), num_envs)))
    return groups


def group_size(backend: Backend) -> int:
    """Number of environments that must stay in one process; see ``GROUP``."""
    return GROUP if backend == "vector" else 1


def seed_of(seed: int, episode: int) -> int:
    """Seed of an episode of the run."""
    return int(np.random.SeedSequence([seed, 1, episode]).generate_state(1)[0] >> 1)


def choose_backend(spec: EnvironmentSpec, wanted: Literal["auto", "gymnasium", "vector", "envpool"]) -> Backend:
    """The backend that ``collect.backend`` selects for this environment.

    ``auto`` selects the environment's vector entry point if it exists and has the same spaces, else Gymnasium's environments. envpool
    reimplements environments, so it is used only on request.

    Raises:
        RequestError: if the requested backend is not available.
    """
    if wanted == "gymnasium":
        return "gymnasium"
    backend: Backend = "envpool" if wanted == "envpool" else "vector"
    reason = _why_not(spec, backend)
    if reason is None:
        return backend
    if wanted == "auto":
        return "gymnasium"
    raise RequestError(f"collect.backend is {wanted!r}, but {reason}; leave it out to use what suits {spec.id}")


def make_vector(spec: EnvironmentSpec, num_envs: int) -> Any:
    """Make ``num_envs`` environments by the id's registered vector entry point.

    Raises:
        RequestError: if there is none.
    """
    if registered(spec.id).vector_entry_point is None:
        raise RequestError(f"{spec.id} is registered without one")
    options: dict[str, Any] = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
    with quiet_known_warnings():
        return gym.make_vec(registered(spec.id), num_envs=num_envs, vectorization_mode="vector_entry_point", **options, **spec.kwargs)


def make_envpool(spec: EnvironmentSpec, seeds: list[int]) -> Any:
    """Make one envpool environment for each seed, with one thread.

    Raises:
        RequestError: if envpool or its version of the environment is missing, or the environment has keyword arguments.
    """
    if importlib.util.find_spec("envpool") is None:
        raise RequestError('it is not installed: pip install "policy-distill[envpool]"')
    envpool = importlib.import_module("envpool")
    if spec.id not in envpool.list_all_envs():
        raise RequestError(f"it has no {spec.id}")
    if spec.kwargs:
        raise RequestError(f"it does not know Gymnasium's arguments {dict(spec.kwargs)}")
    limit = spec.max_episode_steps or registered(spec.id).max_episode_steps
    limited = {} if limit is None else {"max_episode_steps": limit}
    with quiet_known_warnings():
        return envpool.make_gymnasium(spec.id, num_envs=len(seeds), env_seed=seeds, num_threads=1, **limited)


def _why_not(spec: EnvironmentSpec, backend: Backend) -> str | None:
    """Why this backend cannot replace Gymnasium's environments; None if it can."""
    what = "envpool" if backend == "envpool" else "vector entry point"
    if spec.wrappers:
        return f"the {what} gives no environment with the wrappers {', '.join(name for name, _ in spec.wrappers)}"
    try:
        envs = make_envpool(spec, [0, 1]) if backend == "envpool" else make_vector(spec, 2)
    except RequestError as error:
        return f"there is no {what}: {error}"
    except (ImportError, TypeError, ValueError, gym.error.Error) as error:
        return f"the {what} does not work here: {' '.join(str(error).split())}"
    plain = make(spec)
    try:
        if envs.metadata.get("autoreset_mode") not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            return f"the {what} does not reset ended episodes automatically"
        if difference := first_difference(_single_spaces(envs), (plain.observation_space, plain.action_space)):
            return f"the {what} has other {difference[0]}: {difference[1]} instead of {difference[2]}"
        if not all(isinstance(leaf, np.ndarray) for leaf in trees.leaves(envs.reset()[0])):
            return f"the {what} gives observations that are not numpy arrays"
    finally:
        envs.close()
        plain.close()
    return None


def _single_spaces(envs: Any) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of one environment; envpool has only these."""
    return getattr(envs, "single_observation_space", envs.observation_space), getattr(envs, "single_action_space", envs.action_space)
