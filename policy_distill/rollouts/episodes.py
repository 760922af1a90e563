"""The return of a policy over episodes with one seed each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from policy_distill.environments.border import Finite, not_finite, own_random_state
from policy_distill.environments.specs import EnvironmentSpec, make, resolve
from policy_distill.policies.actions import Box
from policy_distill.rollouts.numpy_policies import actor
from policy_distill.support import trees

SIDE_BY_SIDE = 16
"""Episodes that run side by side by default; results do not depend on it."""

_DRAWS = 64
"""Random actions that are drawn at once; another number would give other actions."""

_FIRST_SEEDS = {"final": 1_000_000, "validation": 2_000_000, "check": 3_000_000, "comparison": 4_000_000, "certificate": 5_000_000}


def evaluation_seeds(purpose: str, episodes: int) -> list[int]:
    """Seeds that the round is chosen on ("validation"), that the figure is taken on ("final"), that the teacher is looked at on before the
    work ("check"), that states for further training may be taken from ("comparison"), and for certificates ("certificate"); no two share
    a seed, all are the same in every run."""
    first = _FIRST_SEEDS[purpose]
    return list(range(first, first + episodes))


class Policy(Protocol):
    """Anything that acts: teacher, student, an exported file."""

    def act(self, observations: trees.Tree) -> np.ndarray:
        """Raw observations ``[B, ...]`` to actions that ``env.step`` accepts."""
        ...


@runtime_checkable
class EpisodicPolicy(Protocol):
    """A policy that is another in each episode, such as one that draws its actions."""

    def for_episode(self, seed: int) -> Policy:
        """The policy of the episode with this seed."""
        ...


@dataclass(frozen=True)
class Episodes:
    """Returns of episodes, in the order of their seeds.

    Attributes:
        seeds: ``[E]``.
        returns: ``[E]`` sum of the rewards, undiscounted.
        lengths: ``[E]`` in environment steps.
        agreement: share of the visited states in which ``reference`` acts alike; None without a reference.
    """

    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    agreement: float | None = None

    @property
    def env_steps(self) -> int:
        return int(self.lengths.sum())


@own_random_state()
def evaluate(
    policy: Policy | EpisodicPolicy | None,
    spec: EnvironmentSpec | str,
    seeds: Sequence[int],
    *,
    num_envs: int = SIDE_BY_SIDE,
    reference: Policy | None = None,
    envs: list[gym.Env] | None = None,
) -> Episodes:
    """Run one episode for each seed and return what it earned.

    The environment is reset with the episode's seed. The returns do not depend on ``num_envs``.

    Args:
        policy: acts deterministically, or is asked for one that acts in this episode alone; None acts at random, see ``random_actions``.
        spec: the environment; a Gymnasium id or an entry of envs/ will do.
        seeds: one for each episode.
        num_envs: episodes run side by side.
        reference: a second policy that is asked about the same states, for ``agreement``: equal actions in a discrete space, every
            component within 5 % of its range in a continuous one; see ``alike``.
        envs: made from ``spec`` before, to be used again; a list that is too short is filled up.

    Raises:
        EnvironmentFault: if an environment fails, does not end, or gives observations or rewards that are not finite.
    """
    spec = resolve(spec) if isinstance(spec, str) else spec
    envs = [] if envs is None else envs
    if isinstance(policy, EpisodicPolicy):  # one after the other: what one draws must not depend on who plays beside it
        alone = [evaluate(policy.for_episode(int(seed)), spec, [seed], num_envs=1, reference=reference, envs=envs) for seed in seeds]
        return merge(alone)
    count = min(num_envs, len(seeds))
    envs.extend(make(spec) for _ in range(count - len(envs)))
    resets, steps = ([getattr(env, name) for env in envs[:count]] for name in ("reset", "step"))
    space = envs[0].action_space
    margin = _margin(space, policy, reference)
    act, act_of_reference = (None if who is None else actor(who, count) for who in (policy, reference))
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    queue = iter(range(len(seeds)))
    episodes, totals, began = [0] * count, [0.0] * count, [0] * count
    chance: list[Iterator[Any]] = [iter(())] * count
    observations: trees.Tree = None
    agreed = step = 0

    def begin(slot: int) -> bool:
        """Start the next episode, if there is one."""
        nonlocal observations
        episode = next(queue, None)
        if episode is None:
            return False
        seed = int(seeds[episode])
        episodes[slot], totals[slot], began[slot] = episode, 0.0, step
        observation, _ = resets[slot](seed=seed)
        if policy is None:
            chance[slot] = random_actions(space, seed)
        if observations is None:
            observations = trees.stack([observation] * count)
        trees.write(observations, slot, observation)
        return True

    running = [slot for slot in range(count) if begin(slot)]
    assert observations is not None or not running
    all_finite = Finite(np.zeros(0) if observations is None else observations)
    actions: Sequence[Any] | np.ndarray = ()
    while running:
        assert observations is not None
        if not all_finite(observations):
            slot = all_finite.first_wrong()
            raise not_finite(envs[slot], trees.rows(observations, slot), actions[slot] if len(actions) else None)
        if act is None:
            actions = [next(stream) for stream in chance]
        else:
            actions = act(observations)
            if act_of_reference is not None:
                agreed += int(_alike_within(margin, actions, act_of_reference(observations))[running].sum())
        step += 1
        over = []
        for slot in running:
            observation, reward, terminated, truncated, _ = steps[slot](actions[slot])
            totals[slot] += float(reward)
            if terminated or truncated:
                returns[episodes[slot]], lengths[episodes[slot]] = totals[slot], step - began[slot]
                if not begin(slot):
                    over.append(slot)
            else:
                trees.write(observations, slot, observation)
        if over:
            running = [slot for slot in running if slot not in over]
    asked = lengths.sum() if policy is not None and reference is not None else 0
    return Episodes(np.asarray(seeds, np.int64), returns, lengths, float(agreed / asked) if asked else None)


def random_actions(space: gym.Space, seed: int) -> Iterator[Any]:
    """The actions of one episode of a policy that acts uniformly at random; as Gymnasium's ``sample`` where a box has no bounds.

    They are drawn many at a time: a draw by itself costs more than a step of a small environment.

    Args:
        space: to draw from.
        seed: the episode's. The stream is not the one that the environment makes of it: otherwise both would draw the same numbers, and
            "random" actions would follow what the environment drew.
    """
    stream = np.random.default_rng([seed, 1])
    if _is_simple(space):
        while True:
            yield from _draw(space, stream)
    own = copy.deepcopy(space)
    own.seed(int(stream.integers(2**31)))
    while True:
        yield own.sample()


def _is_simple(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Box):
        return bool(space.dtype.kind == "f" and np.isfinite(space.low).all() and np.isfinite(space.high).all())
    return isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)


def _draw(space: gym.Space, stream: np.random.Generator) -> np.ndarray:
    """``_DRAWS`` uniform actions."""
    shape = (_DRAWS, *(space.shape or ()))
    match space:
        case gym.spaces.Discrete():
            drawn = space.start + stream.integers(space.n, size=shape)
        case gym.spaces.MultiDiscrete():
            drawn = space.start + stream.integers(space.nvec, size=shape)
        case gym.spaces.MultiBinary():
            drawn = stream.integers(2, size=shape)
        case _:
            assert isinstance(space, gym.spaces.Box)
            drawn = stream.uniform(space.low, space.high, shape)
    return drawn.astype(space.dtype)


def alike(first: np.ndarray, second: np.ndarray, space: gym.Space, *policies: object) -> np.ndarray:
    """Which rows of two batches of actions ``[B, ...]`` are the same decision: equal, or within 5 % of the range in each component.

    The range is that of the box units of the first of ``policies`` that has units of its own, else that of the bounds.
    """
    return _alike_within(_margin(space, *policies), first, second)


def _margin(space: gym.Space, *policies: object) -> np.ndarray | None:
    """How far apart two equal components may be; None where they must be the same."""
    if not isinstance(space, gym.spaces.Box):
        return None
    for policy in policies:
        box = getattr(getattr(policy, "family", None), "box", None)
        if isinstance(box, Box) and box.units is not None:
            return 0.1 * box.affine()[0].reshape(space.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # where the range is beyond float32, or there is none
        between = space.high - space.low
    between = np.where(np.isinf(between), space.high.astype(np.float64) - space.low, between) if np.isinf(between).any() else between
    return 0.05 * np.where(np.isfinite(between), between, 2.0)


def _alike_within(margin: np.ndarray | None, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    same = first == second if margin is None else np.abs(first - second) <= margin
    return same if same.ndim == 1 else same.reshape(len(same), -1).all(axis=1)


def merge(parts: Sequence[Episodes]) -> Episodes:
    """Join episodes that were run apart, weighing agreement by steps, and sort them by seed."""
    order = np.argsort(np.concatenate([part.seeds for part in parts]), kind="stable")
    seeds, returns, lengths = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("seeds", "returns", "lengths"))
    known = [(part.agreement, part.env_steps) for part in parts if part.agreement is not None]
    total = sum(steps for _, steps in known)
    return Episodes(seeds, returns, lengths, sum(share * steps for share, steps in known) / total if total else None)
