"""Ways to step environments side by side while transitions are collected, and which of them suits an environment.

Returns are measured in Gymnasium's own environments whatever is chosen here: a backend decides which states a student learns from, and
how fast they come.
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

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.environments.border import Border, not_finite, seed_global_generators
from policy_distill.environments.matching import first_difference
from policy_distill.environments.quiet import quiet_known_warnings
from policy_distill.environments.specs import EnvironmentSpec, make, registered
from policy_distill.support import trees

GOES_ON = -1
"""In ``starts``: the episode began before."""
Backend: TypeAlias = Literal["gymnasium", "vector", "envpool"]
GROUP = 16
"""Environments of a vector entry point that are stepped as one: they share a random generator, so that what one of them sees depends on
the others, and must not depend on how many processes share them out."""
WORDS: dict[Backend, str] = {
    "gymnasium": "environments",
    "vector": "environments of their own vector entry point",
    "envpool": "environments of envpool",
}
"""For a person."""


@dataclass(frozen=True)
class Slots:
    """Where N environments stand; ``reset`` and ``step`` of a ``Group`` move them on.

    Attributes:
        observations: ``[N, ...]``, on which the next action is taken.
        episodes: ``[N]`` int64, the number of the episode that they belong to.
        starts: ``[N]`` int64: the episode's seed where it begins with this observation, its number where it has no seed of its own;
            ``GOES_ON`` elsewhere.
        idle: ``[N]`` bool: the next step resets this environment and executes nothing.
    """

    observations: trees.Tree
    episodes: np.ndarray
    starts: np.ndarray
    idle: np.ndarray

    @classmethod
    def of_space(cls, space: gym.Space, episodes: range) -> Slots:
        """Environments that have not been reset, before these episodes."""
        count = len(episodes)
        return cls(trees.zeros(space, count), np.array(episodes, np.int64), np.full(count, GOES_ON), np.zeros(count, bool))

    def of(self, part: slice) -> Slots:
        """Views of some of them."""
        return Slots(trees.rows(self.observations, part), self.episodes[part], self.starts[part], self.idle[part])


class Group(Protocol):
    """Environments that are stepped by one call.

    Attributes:
        observation_space, action_space: of one environment.
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
        """What to raise for an observation with NaN or infinity in it."""
        ...


class SequentialEnvs:
    """Gymnasium environments, one after the other; each is reset in the step that ends its episode.

    Args:
        envs: the environments.
        num_envs: of the whole run; an environment's next episode has a number larger by this.
        seed_of: from the number of an episode to its seed; None: it goes on with the environment's own generator.
        on_end: told the slot, the last observation and whether time alone ended the episode, before the reset.
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

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        observations, in_parts = slots.observations, isinstance(slots.observations, dict)
        for slot, step in enumerate(self._steps):
            observation, reward, is_terminal, is_cut, _ = step(actions[slot])
            rewards[slot], terminated[slot], truncated[slot] = reward, is_terminal, is_cut
            if is_terminal or is_cut:
                if self._on_end is not None:
                    self._on_end(slot, observation, is_cut and not is_terminal)
                slots.episodes[slot] += self._num_envs
                observation = self._reset(slot, slots)
            if in_parts:
                trees.write(observations, slot, observation)
            else:
                observations[slot] = observation


class VectorEnvs:
    """Environments behind one ``gymnasium.vector.VectorEnv``.

    Most of these reset an environment in the step after the one that ended its episode (NEXT_STEP): the action of that step is not
    executed, and its row is no transition.

    Args:
        envs: that reset in the same step or in the next.
        name: of the environment, for messages.
        seed: that they are reset with; None if they know their seeds already.
        num_envs: of the whole run.
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
        except Exception as error:
            raise self._fault(f"reset raised {type(error).__name__}: {error}") from error
        trees.write(slots.observations, slice(None), first)
        slots.starts[:] = slots.episodes

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        self._steps += 1
        try:
            observations, earned, is_terminal, is_cut, _ = self._envs.step(actions.astype(self.action_space.dtype, copy=False))
        except Exception as error:
            raise self._fault(f"step raised {type(error).__name__}: {error}") from error
        rewards[:], terminated[:], truncated[:] = earned, is_terminal, is_cut
        over = is_terminal | is_cut
        new = slots.idle.copy() if self._resets_later else over
        slots.episodes[new] += self._num_envs
        slots.starts[new] = slots.episodes[new]
        slots.idle[:] = over & self._resets_later
        trees.write(slots.observations, slice(None), observations)

    def not_finite(self, slot: int, observation: trees.Tree) -> EnvironmentFault:
        return self._fault(f"an observation of environment {slot} is not finite: {observation}")

    def _fault(self, what: str) -> EnvironmentFault:
        seed = "" if self._seed is None else f" with seed {self._seed}"
        text = " ".join(what.split())
        return EnvironmentFault(f"{self._name}, vector environments{seed}, step {self._steps}: {text}; try --collect.backend gymnasium")


def groups_of(spec: EnvironmentSpec, backend: Backend, indices: range, num_envs: int, seed: int) -> list[tuple[slice, Group]]:
    """Make the run's environments ``indices``: groups, each with its place among them.

    Args:
        spec: the environment; ``choose_backend`` has looked at it.
        backend: see ``choose_backend``.
        indices: whole groups of ``group_size(backend)``.
        num_envs: of the whole run.
        seed: of the run. What happens in an environment depends on it and on the environment's index alone, of a vector entry point on
            its group's.
    """
    match backend:
        case "gymnasium":
            envs = [make(spec) for _ in indices]
            return [(slice(0, len(indices)), SequentialEnvs(envs, num_envs, functools.partial(seed_of, seed)))]
        case "envpool":
            pool = make_envpool(spec, [seed_of(seed, index) for index in indices])
            return [(slice(0, len(indices)), VectorEnvs(pool, spec.id, None, num_envs))]
    found: list[tuple[slice, Group]] = []
    for start in range(0, len(indices), GROUP):
        own = indices[start : start + GROUP]
        vector = make_vector(spec, len(own))
        found.append((slice(start, start + len(own)), VectorEnvs(vector, spec.id, seed_of(seed, own[0]), num_envs)))
    return found


def group_size(backend: Backend) -> int:
    """Environments that must not be parted, see ``GROUP``."""
    return GROUP if backend == "vector" else 1


def seed_of(seed: int, episode: int) -> int:
    """Of an episode of the run."""
    return int(np.random.SeedSequence([seed, 1, episode]).generate_state(1)[0] >> 1)


def choose_backend(spec: EnvironmentSpec, wanted: Literal["auto", "gymnasium", "vector", "envpool"]) -> Backend:
    """What ``collect.backend`` means for this environment.

    ``auto`` takes the environment's own vector entry point where there is one that gives the same spaces. envpool simulates a second time
    what Gymnasium has; it is used where a person asks for it.

    Raises:
        RequestError: if the wanted one cannot be had.
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
    """Make ``num_envs`` environments by the vector entry point that the id is registered with.

    Raises:
        RequestError: if there is none.
    """
    if registered(spec.id).vector_entry_point is None:
        raise RequestError(f"{spec.id} is registered without one")
    options: dict[str, Any] = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
    with quiet_known_warnings():
        return gym.make_vec(registered(spec.id), num_envs=num_envs, vectorization_mode="vector_entry_point", **options, **spec.kwargs)


def make_envpool(spec: EnvironmentSpec, seeds: list[int]) -> Any:
    """Make as many environments of envpool as there are seeds, stepped in this thread's core.

    Raises:
        RequestError: if envpool or the environment in it is missing, or arguments are asked for that are Gymnasium's.
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
    """Why environments that come together cannot stand for those of Gymnasium; None if they can."""
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
            return f"the {what} does not reset by itself what has ended"
        if difference := first_difference(_single_spaces(envs), (plain.observation_space, plain.action_space)):
            return f"the {what} has other {difference[0]}: {difference[1]} instead of {difference[2]}"
        if not all(isinstance(leaf, np.ndarray) for leaf in trees.leaves(envs.reset()[0])):
            return f"the {what} gives observations that are no numpy arrays"
    finally:
        envs.close()
        plain.close()
    return None


def _single_spaces(envs: Any) -> tuple[gym.Space, gym.Space]:
    """Of one environment; envpool has no others."""
    return getattr(envs, "single_observation_space", envs.observation_space), getattr(envs, "single_action_space", envs.action_space)
