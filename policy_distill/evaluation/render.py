"""Teacher and student side by side on the same seed, as an animated GIF: it plays wherever pictures are shown, and needs no codec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from policy_distill.config import RequestError
from policy_distill.environments.border import own_random_state
from policy_distill.environments.specs import EnvironmentSpec, make
from policy_distill.policies.policy import Policy
from policy_distill.rollouts.play import Recorder, play
from policy_distill.support.figures import return_text
from policy_distill.support.files import write_atomically

BANNER = 22
"""Height in pixels of the line above each picture."""
INK, GROUND = (28, 35, 48), (244, 246, 249)
LAST_SECONDS = 1.5
"""Seconds that the last picture is shown before the film begins again."""


@dataclass(frozen=True)
class Film:
    """One episode to look at.

    Attributes:
        name: of who acts.
        frames: T + 1 pictures, uint8 ``[height, width, 3]``: after the reset and after each step.
        rewards: ``[T]``.
        frames_per_second: of the environment's own time.
    """

    name: str
    frames: list[np.ndarray]
    rewards: np.ndarray
    frames_per_second: float


@own_random_state()
def film(name: str, policy: Policy, spec: EnvironmentSpec, seed: int, *, max_steps: int = 1000) -> Film:
    """Let ``policy`` play the episode that ``evaluate`` plays on ``seed``, and keep each picture.

    Args:
        name: of who acts.
        policy: acts deterministically.
        spec: the environment.
        seed: of the episode.
        max_steps: the film ends there, if the episode does not.

    Raises:
        RequestError: if the environment cannot be drawn, or not on this machine.
    """
    env = make(spec)
    modes, rate = env.metadata.get("render_modes", ()), float(env.metadata.get("render_fps") or 30)
    env.close()
    if "rgb_array" not in modes:
        raise RequestError(f"{spec.id} cannot be drawn: its render modes are {', '.join(modes) or 'none'}, and rgb_array is needed")
    env = make(spec, render_mode="rgb_array")
    camera = _Camera(spec)
    try:
        play([policy], spec, [seed], camera, max_steps=max_steps, envs=[env])
    finally:
        env.close()
    return Film(name, camera.frames, np.array(camera.rewards), rate)


class _Camera(Recorder):
    """A picture after the reset and after each step."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        self._spec = spec
        self.frames: list[np.ndarray] = []
        self.rewards: list[float] = []

    def opened(self, envs: Sequence[gym.Env]) -> None:
        self._env = envs[0]

    def began(self, slot: int, episode: int) -> None:
        self.frames.append(_picture(self._env, self._spec))

    def stepped(self, rewards: list[float], running: list[int]) -> None:
        self.frames.append(_picture(self._env, self._spec))
        self.rewards += rewards


def side_by_side(films: Sequence[Film], *, width: int = 320, frames_per_second: float = 20.0) -> tuple[list[Image.Image], float]:
    """Films as one, each with its name, its return so far and its step; one that is over stands still.

    Args:
        films: of the same environment.
        width: of each picture, in pixels.
        frames_per_second: at most; pictures are left out so that time runs as it does in the environment.

    Returns:
        The pictures, the first and the last of the longest film among them, and how many seconds each stands.
    """
    rate = films[0].frames_per_second
    stride = max(1, math.ceil(rate / frames_per_second))
    last = max(len(one.rewards) for one in films)
    steps = [*range(0, last, stride), last]
    return [_beside([_captioned(one, step, width) for one in films]) for step in steps], stride / rate


def write_gif(path: str | Path, pictures: Sequence[Image.Image], seconds: float) -> Path:
    """Write an endless GIF, each picture for ``seconds`` (to a hundredth, which is all that the format knows)."""
    standing = [max(20, round(100 * seconds) * 10)] * (len(pictures) - 1) + [round(1000 * LAST_SECONDS)]
    first, *rest = [picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures]
    return write_atomically(
        path, lambda target: first.save(target, "GIF", save_all=True, append_images=rest, duration=standing, loop=0, optimize=False)
    )


def _picture(env: gym.Env, spec: EnvironmentSpec) -> np.ndarray:
    try:
        picture = env.render()
    except Exception as error:  # whatever the renderer's library raises: there is no display, no driver, no package
        hint = "; for MuJoCo without a display set MUJOCO_GL to egl or osmesa" if spec.extra == "mujoco" else ""
        raise RequestError(f"{spec.id} cannot be drawn on this machine: {type(error).__name__}: {error}{hint}") from error
    return np.asarray(picture, np.uint8)


def _captioned(one: Film, step: int, width: int) -> Image.Image:
    """The picture of ``step``, or the last one, beneath its line."""
    step = min(step, len(one.rewards))
    picture = Image.fromarray(one.frames[step])
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (width, picture.height + BANNER), GROUND)
    framed.paste(picture, (0, BANNER))
    over = "  over" if step == len(one.rewards) else ""
    line = f"{one.name}   return {return_text(one.rewards[:step].sum())}   step {step}{over}"
    ImageDraw.Draw(framed).text((6, 4), line, INK, ImageFont.load_default(12))
    return framed


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    gap = 4
    whole = Image.new("RGB", (sum(picture.width for picture in pictures) + gap * (len(pictures) - 1), pictures[0].height), GROUND)
    across = 0
    for picture in pictures:
        whole.paste(picture, (across, 0))
        across += picture.width + gap
    return whole
