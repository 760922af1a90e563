"""Films: the episode that evaluation plays, picture by picture."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from policy_distill.config import RequestError
from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.evaluation.render import BANNER, Film, film, side_by_side, write_gif
from policy_distill.rollouts.episodes import evaluate
from tests.small_worlds import WALK, walk_expert

CARTPOLE = EnvironmentSpec("CartPole-v1")


class Still:
    """Always acts the same."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.zeros(len(observations), np.int64)


class Lean:
    """Pushes to where the pole falls."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        return (observations[:, 2] + 0.3 * observations[:, 3] > 0).astype(np.int64)


def made(steps: int, colour: int = 0, name: str = "one", rate: float = 50.0) -> Film:
    """A film whose pictures get brighter."""
    frames = [np.full((40, 60, 3), colour + step, np.uint8) for step in range(steps + 1)]
    return Film(name, frames, np.ones(steps), rate)


def ground(picture: Image.Image) -> list[int]:
    """Brightness of each film in a picture, from left to right."""
    pixels = np.asarray(picture.convert("RGB"))[BANNER + 2]
    return [int(pixels[across, 0]) for across in range(5, len(pixels), 64)]


def test_a_film_is_the_episode_that_is_evaluated():
    seeds = [1_000_000, 1_000_001]
    for seed, expected in zip(seeds, evaluate(Lean(), CARTPOLE, seeds).returns, strict=True):
        found = film("lean", Lean(), CARTPOLE, seed, max_steps=60)
        assert found.rewards.sum() == min(expected, 60)
        assert len(found.frames) == len(found.rewards) + 1
    assert found.frames[0].shape == (400, 600, 3)
    assert found.frames_per_second == 50


def test_the_policy_is_asked_as_evaluation_asks_it():
    """One observation at a time; a network's film and its evaluation round alike whatever the batch (tests/test_rowwise.py)."""
    asked: list[int] = []

    class Counting(Still):
        def act(self, observations: np.ndarray) -> np.ndarray:
            asked.append(len(observations))
            return super().act(observations)

    film("counting", Counting(), CARTPOLE, 3, max_steps=5)
    assert asked == [1] * 5


def test_pictures_follow_what_happens():
    frames = film("still", Still(), CARTPOLE, 3).frames
    assert 8 <= len(frames) <= 12  # falls over at once
    moved = [(one != other).any() for one, other in itertools.pairwise(frames)]
    assert sum(moved) >= len(moved) - 2  # the first steps move nothing by a whole pixel


def test_an_environment_without_pictures_is_refused():
    with pytest.raises(RequestError, match="rgb_array is needed"):
        film("expert", walk_expert(), WALK, 0)


def test_what_cannot_be_drawn_on_this_machine_is_refused(monkeypatch):
    def no_display(self: gym.Env) -> None:
        raise OSError("no display")

    monkeypatch.setattr("gymnasium.envs.classic_control.cartpole.CartPoleEnv.render", no_display)
    with pytest.raises(RequestError, match="CartPole-v1 cannot be drawn on this machine: OSError: no display"):
        film("still", Still(), CARTPOLE, 0)


def test_films_run_side_by_side_until_the_longest_is_over():
    pictures, seconds = side_by_side([made(7), made(3, colour=100)], width=60, frames_per_second=50)
    assert [ground(picture) for picture in pictures] == [[step, 100 + min(step, 3)] for step in range(8)]
    assert seconds == 1 / 50
    assert pictures[0].size == (60 + 4 + 60, 40 + BANNER)


@pytest.mark.parametrize(("rate", "stride"), [(50, 1), (25, 2), (20, 3), (7, 8)])
def test_pictures_are_left_out_and_the_last_one_never(rate, stride):
    pictures, seconds = side_by_side([made(10)], width=60, frames_per_second=rate)
    assert [ground(picture)[0] for picture in pictures] == [*range(0, 10, stride), 10]
    assert seconds == stride / 50  # time runs as it does in the environment


def test_the_line_above_has_return_and_step():
    one, other = (np.asarray(picture)[:BANNER] for picture in side_by_side([made(2)], width=300)[0])
    assert (one != other).any()
    renamed = np.asarray(side_by_side([made(2, name="two")], width=300)[0][0])[:BANNER]
    assert (one != renamed).any()


def test_the_file_has_each_picture_and_they_differ(tmp_path):
    pictures, seconds = side_by_side([film("lean", Lean(), CARTPOLE, 5, max_steps=24)], width=120, frames_per_second=25)
    path = write_gif(tmp_path / "episode.gif", pictures, seconds)
    with Image.open(path) as gif:
        assert gif.n_frames == len(pictures) == 13  # type: ignore[attr-defined]
        shown, durations = [], []
        for index in range(13):
            gif.seek(index)
            shown.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert durations == [40] * 12 + [1500]
    assert all((one[BANNER:] != other[BANNER:]).any() for one, other in itertools.pairwise(shown))
    assert np.abs(shown[0].astype(int) - np.asarray(pictures[0])).mean() < 3  # few colours, and yet the same picture
