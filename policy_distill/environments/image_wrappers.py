"""Wrappers for images: Atari's games as the RL Zoo wraps them, and the order of an image's axes."""

from __future__ import annotations

import contextlib
import importlib.util
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from policy_distill.config import RequestError
from policy_distill.environments.wrappers import STACK_BEGINS
from policy_distill.support.images import channels_come_first, is_image
from policy_distill.support.trees import leaf_spaces

Step = tuple[Any, Any, bool, bool, dict[str, Any]]


def check_opencv(name: str) -> None:
    """Refuse the wrapper ``name`` of Stable-Baselines3, which asks for OpenCV only in a step, where that is not installed."""
    if importlib.util.find_spec("cv2") is None:
        raise RequestError(f'the wrapper {name} needs a package that is not installed: pip install "policy-distill[atari]"')


class TransposeImage(gym.ObservationWrapper):
    """Images ``[H, W, C]`` as ``[C, H, W]``, as Stable-Baselines3's VecTransposeImage gives them to each agent that it trains."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        self.turned = [key for key, part in leaf_spaces(space).items() if _channels_last(part)]
        if not self.turned:
            raise RequestError(f"the wrapper VecTransposeImage needs images [height, width, channels] as observation, not {space}")
        parts = OrderedDict((key, _turned_space(part) if key in self.turned else part) for key, part in leaf_spaces(space).items())
        self.observation_space = gym.spaces.Dict(parts) if isinstance(space, gym.spaces.Dict) else parts[""]

    def observation(self, observation: Any) -> Any:
        if not isinstance(observation, dict):
            return observation.transpose(2, 0, 1)
        return {key: part.transpose(2, 0, 1) if key in self.turned else part for key, part in observation.items()}


def _channels_last(space: gym.Space) -> bool:
    return is_image(space) and not channels_come_first(space)


def _turned_space(space: Any) -> gym.spaces.Box:
    low, high = (np.transpose(bound, (2, 0, 1)) for bound in (space.low, space.high))
    return gym.spaces.Box(low, high, dtype=space.dtype.type)


class WholeGame(gym.Wrapper):
    """Stable-Baselines3's AtariWrapper as its evaluation counts: an episode is a whole game, and rewards are not clipped.

    In training each life is an episode, after which the environment is reset: a step without action, then FIRE where the game waits for it.
    An agent relies on that, so it is done here too, and frame stacks begin anew, but the episode goes on. All points of the game are
    counted, also those of the steps within resets.

    Args:
        env: a game of ale-py that skips no frames, such as PongNoFrameskip-v4.
        terminal_on_life_loss: whether the loss of a life is followed by a reset.
        clip_reward: accepted; what is clipped in training is not clipped here.
        arguments: further ones of AtariWrapper.
    """

    def __init__(self, env: gym.Env, terminal_on_life_loss: bool = True, clip_reward: bool = True, **arguments: Any) -> None:
        from stable_baselines3.common.atari_wrappers import AtariWrapper

        if not hasattr(env.unwrapped, "ale"):
            raise RequestError("the wrapper AtariWrapper needs a game of ale-py")
        check_opencv("AtariWrapper")
        self._score = _Score(env)
        super().__init__(AtariWrapper(self._score, terminal_on_life_loss=terminal_on_life_loss, clip_reward=False, **arguments))
        self._lives = terminal_on_life_loss

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self._lives:
            self.env.set_wrapper_attr("was_real_done", True)  # begin a new game, even if the last one was not finished
        with self._score.beginning():
            return super().reset(**kwargs)

    def step(self, action: Any) -> Step:
        observation, _, terminated, truncated, info = super().step(action)
        if (terminated or truncated) and not self._score.is_over:
            observation, _ = super().reset()
            info = {**info, STACK_BEGINS: True}
        return observation, self._score.take(), self._score.terminated, self._score.truncated, info


class _Score(gym.Wrapper):
    """The innermost wrapper: the points since the last ``take``, and whether the game is over."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._points = 0.0
        self._begins = self.terminated = self.truncated = False

    @property
    def is_over(self) -> bool:
        return self.terminated or self.truncated

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Within this block a reset begins a new game and sets its score to zero; later resets only follow the loss of a life."""
        self._begins = True
        try:
            yield
        finally:
            self._begins = False

    def take(self) -> float:
        points, self._points = self._points, 0.0
        return points

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self._begins:
            self._points, self.terminated, self.truncated = 0.0, False, False
        return super().reset(**kwargs)

    def step(self, action: Any) -> Step:
        step = super().step(action)
        if not self.is_over:  # else it is the next game, into which a reset has run
            _, points, self.terminated, self.truncated, _ = step
            self._points += float(points)
        return step
