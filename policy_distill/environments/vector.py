"""Ways to step environments side by side while transitions are collected, and which of them suits an environment.

Returns are measured in Gymnasium's own environments whatever is chosen here: a backend decides which states a student learns from, and
how fast they come.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from policy_distill.config import EnvironmentFault, RequestError
from policy_distill.environments.border import not_finite, seed_global_generators
from policy_distill.environments.matching import first_difference
from policy_distill.environments.quiet import quiet_known_warnings
from policy_distill.environments.specs import EnvironmentSpec, make, registered
from policy_distill.support import trees

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
    """Where N environments stand; ``step`` moves them on.

    Attributes:
        observations: ``[N, ...]``, on which the next action is taken.
        episodes: ``[N]`` int64, which episode they belong to.
        idle: ``[N]`` bool: the next step resets this environment and executes nothing.
    """

    observations: trees.Tree
    episodes: np.ndarray
    idle: np.ndarray

    def of(self, part: slice) -> Slots:
        """Views of some of them."""
        return Slots(trees.rows(self.observations, part), self.episodes[part], self.idle[part])


class Group(Protocol):
    """Environments that are stepped by one call.

    Attributes:
        action_space: of one environment.
        first: ``[N, ...]``, the observations with which they begin.
    """

    action_space: gym.Space
    first: trees.Tree

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Execute ``actions`` ``[N, ...]``; write the results into the other arrays, all ``[N]``.

        Raises:
            EnvironmentFault: if an environment fails.
        """
        ...

    def not_finite(self, slot: int, observation: trees.Tree) -> EnvironmentFault:
        """What to raise for an observation with NaN or infinity in it."""
        ...


class SequentialEnvs:
    """Gymnasium environments, one after the other; each is reset in the step that ends its episode, with the next one's own seed.

    Args:
        spec: the environment.
        indices: which of the run's environments these are.
        num_envs: of the whole run; an environment's next episode has a number larger by this.
        seed: of the run.
    """

    def __init__(self, spec: EnvironmentSpec, indices: range, num_envs: int, seed: int) -> None:
        self._envs = [make(spec) for _ in indices]
        self._steps = [env.step for env in self._envs]
        self._num_envs, self._seed = num_envs, seed
        self.action_space = self._envs[0].action_space
        self.first = trees.stack([self._reset(slot, index) for slot, index in enumerate(indices)])

    def _reset(self, slot: int, episode: int) -> trees.Tree:
        observation, _ = self._envs[slot].reset(seed=seed_of(self._seed, episode))
        return observation

    def not_finite(self, slot: int, observation: trees.Tree) -> EnvironmentFault:
        return not_finite(self._envs[slot], observation)

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        observations, episodes = slots.observations, slots.episodes
        for slot, step in enumerate(self._steps):
            observation, reward, is_terminal, is_cut, _ = step(actions[slot])
            rewards[slot], terminated[slot], truncated[slot] = reward, is_terminal, is_cut
            if is_terminal or is_cut:
                episodes[slot] += self._num_envs
                observation = self._reset(slot, int(episodes[slot]))
            trees.write(observations, slot, observation)


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
        space, self.action_space = _single_spaces(envs)
        if seed is not None:
            seed_global_generators(seed)
        try:
            first, _ = envs.reset() if seed is None else envs.reset(seed=seed)
        except Exception as error:
            raise self._fault(f"reset raised {type(error).__name__}: {error}") from error
        self.first = np.array(first, space.dtype)

    def step(self, actions: np.ndarray, slots: Slots, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        self._steps += 1
        try:
            observations, earned, is_terminal, is_cut, _ = self._envs.step(actions.astype(self.action_space.dtype, copy=False))
        except Exception as error:
            raise self._fault(f"step raised {type(error).__name__}: {error}") from error
        rewards[:], terminated[:], truncated[:] = earned, is_terminal, is_cut
        over = is_terminal | is_cut
        slots.episodes[slots.idle if self._resets_later else over] += self._num_envs
        slots.idle[:] = over & self._resets_later
        slots.observations[:] = observations

    def not_finite(self, slot: int, observation: np.ndarray) -> EnvironmentFault:
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
            return [(slice(0, len(indices)), SequentialEnvs(spec, indices, num_envs, seed))]
        case "envpool":
            envs = make_envpool(spec, [seed_of(seed, index) for index in indices])
            return [(slice(0, len(indices)), VectorEnvs(envs, spec.id, None, num_envs))]
    found: list[tuple[slice, Group]] = []
    for start in range(0, len(indices), GROUP):
        own = indices[start : start + GROUP]
        envs = make_vector(spec, len(own))
        found.append((slice(start, start + len(own)), VectorEnvs(envs, spec.id, seed_of(seed, own[0]), num_envs)))
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
        if not isinstance(envs.reset()[0], np.ndarray):
            return f"the {what} gives observations that are no numpy arrays"
    finally:
        envs.close()
        plain.close()
    return None


def _single_spaces(envs: Any) -> tuple[gym.Space, gym.Space]:
    """Of one environment; envpool has no others."""
    return getattr(envs, "single_observation_space", envs.observation_space), getattr(envs, "single_action_space", envs.action_space)
