"""Actions drawn uniformly from an action space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.environments.action_masks import draw_allowed, mask_among
from policy_distill.environments.vector import GOES_ON
from policy_distill.policies.actions import Box
from policy_distill.policies.policy import State
from policy_distill.support.trees import Tree, rows

_DRAWS = 64
"""Number of random actions drawn in one batch; changing it changes the actions."""


class RandomPolicy:
    """Acts uniformly at random, among the allowed actions where observations hold a mask. Actions depend on the episode's seed alone.

    Args:
        space: the action space.
    """

    def __init__(self, space: gym.Space) -> None:
        self._space = space

    def initial_state(self, num_envs: int) -> State:
        return [None] * num_envs

    def step(self, observations: Tree, state: State, starts: np.ndarray | None) -> tuple[list[Any], State]:
        if starts is not None:
            for row in np.flatnonzero(starts != GOES_ON):
                state[row] = random_actor(self._space, int(starts[row]))
        if isinstance(observations, dict):
            return [draw(rows(observations, row)) for row, draw in enumerate(state)], state
        return [draw(None) for draw in state], state


def random_actor(space: gym.Space, seed: int) -> Callable[[Tree], Any]:
    """``RandomPolicy`` for one episode: a function of the observation, from which it reads only the mask."""
    actions, stream = random_actions(space, seed), np.random.default_rng([seed, 1])

    def draw(observation: Tree) -> Any:
        mask = mask_among(observation)
        return next(actions) if mask is None else draw_allowed(space, mask, stream)

    return draw


def random_actions(space: gym.Space, seed: int) -> Iterator[Any]:
    """The actions of one episode of ``RandomPolicy``; in an unbounded box those of Gymnasium's ``sample``.

    They are drawn in batches: a single draw costs more than a step of a small environment.

    Args:
        space: the action space.
        seed: the episode's seed. The environment seeds its generator with the same number; this stream differs from it, so that actions
            do not correlate with the environment's random numbers.
    """
    stream = np.random.default_rng([seed, 1])
    if _is_simple(space):
        while True:
            yield from uniform_actions(space, stream, (_DRAWS,))
    seeded_space = copy.deepcopy(space)
    seeded_space.seed(int(stream.integers(2**31)))
    while True:
        yield seeded_space.sample()


def uniform_actions(space: gym.Space, stream: np.random.Generator, count: tuple[int, ...] = (), box: Box | None = None) -> np.ndarray:
    """Uniform actions ``[*count, ...]`` of the space's dtype.

    Args:
        space: an action space that students support; a box must have finite bounds unless ``box`` is given.
        stream: random generator.
        count: leading shape of the result.
        box: draw from twice the range of its units, clipped to the bounds.
    """
    shape = (*count, *(space.shape or ()))
    match space:
        case gym.spaces.Discrete():
            drawn = space.start + stream.integers(space.n, size=shape)
        case gym.spaces.MultiDiscrete():
            drawn = space.start + stream.integers(space.nvec, size=shape)
        case gym.spaces.MultiBinary():
            drawn = stream.integers(2, size=shape)
        case gym.spaces.Box():
            low, high = space.low, space.high
            if box is not None:
                scale, offset = (part.reshape(space.shape) for part in box.affine())
                low, high = offset - 2 * scale, offset + 2 * scale
            drawn = stream.uniform(low, high, shape).clip(space.low, space.high)
        case _:
            raise ValueError(f"no student supports the action space {space}")
    return np.asarray(drawn, space.dtype)


def _is_simple(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Box):
        return bool(space.dtype.kind == "f" and np.isfinite(space.low).all() and np.isfinite(space.high).all())
    return isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)
