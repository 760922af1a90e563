"""Animated GIF of teacher and student side by side on the same seed; a GIF needs no codec."""

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
"""Height of the caption above each picture, in pixels."""
INK, GROUND = (28, 35, 48), (244, 246, 249)
LAST_SECONDS = 1.5
"""Duration of the last picture before the animation repeats, in seconds."""


@dataclass(frozen=True)
class Film:
    """Pictures of one episode.

    Attributes:
        name: name of the policy.
        frames: T + 1 pictures, uint8 ``[height, width, 3]``: after the reset and after each step.
        rewards: ``[T]``.
        frames_per_second: steps per second of the environment's time.
    """

    name: str
    frames: list[np.ndarray]
    rewards: np.ndarray
    frames_per_second: float


@own_random_state()
def film(name: str, policy: Policy, spec: EnvironmentSpec, seed: int, *, max_steps: int = 1000) -> Film:
    """Play the episode that ``evaluate`` plays on ``seed``, and render each step.

    Args:
        name: name of the policy.
        policy: acts deterministically.
        spec: the environment.
        seed: the episode's seed.
        max_steps: maximum length of the film.

    Raises:
        RequestError: if the environment cannot be rendered, or not on this machine.
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
    """Renders a picture after the reset and after each step."""

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
    """Films side by side, each with its name, return so far and step; a film that has ended shows its last picture.

    Args:
        films: films of the same environment.
        width: width of each picture, in pixels.
        frames_per_second: maximum rate; pictures are left out so that the speed is the environment's.

    Returns:
        The pictures, including the first and the last of the longest film, and the duration of each in seconds.
    """
    rate = films[0].frames_per_second
    stride = max(1, math.ceil(rate / frames_per_second))
    last = max(len(film.rewards) for film in films)
    steps = [*range(0, last, stride), last]
    return [_in_a_row([_captioned(film, step, width) for film in films]) for step in steps], stride / rate


def write_gif(path: str | Path, pictures: Sequence[Image.Image], seconds: float) -> Path:
    """Write a repeating GIF that shows each picture for ``seconds``, rounded to hundredths as in the format."""
    durations = [max(20, round(100 * seconds) * 10)] * (len(pictures) - 1) + [round(1000 * LAST_SECONDS)]
    first, *rest = [picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures]
    return write_atomically(
        path, lambda target: first.save(target, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
    )


def _picture(env: gym.Env, spec: EnvironmentSpec) -> np.ndarray:
    try:
        picture = env.render()
    except Exception as error:  # any error of the renderer's library: no display, no driver, no package
        hint = "; for MuJoCo without a display set MUJOCO_GL to egl or osmesa" if spec.extra == "mujoco" else ""
        raise RequestError(f"{spec.id} cannot be drawn on this machine: {type(error).__name__}: {error}{hint}") from error
    return np.asarray(picture, np.uint8)


def _captioned(film: Film, step: int, width: int) -> Image.Image:
    """The picture of ``step``, or the last one, below its caption."""
    step = min(step, len(film.rewards))
    picture = Image.fromarray(film.frames[step])
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (width, picture.height + BANNER), GROUND)
    framed.paste(picture, (0, BANNER))
    over = "  over" if step == len(film.rewards) else ""
    caption = f"{film.name}   return {return_text(film.rewards[:step].sum())}   step {step}{over}"
    ImageDraw.Draw(framed).text((6, 4), caption, INK, ImageFont.load_default(12))
    return framed


def _in_a_row(pictures: Sequence[Image.Image]) -> Image.Image:
    gap = 4
    row = Image.new("RGB", (sum(picture.width for picture in pictures) + gap * (len(pictures) - 1), pictures[0].height), GROUND)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row
