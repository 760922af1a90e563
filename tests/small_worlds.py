"""Environments of a few lines whose best policy is known, and teachers that act by it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.environments.specs import EnvironmentSpec
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.families import family_of
from policy_distill.policies.student import Student
from policy_distill.rollouts.transitions import Transitions
from policy_distill.support import trees
from policy_distill.teachers import Teacher
from policy_distill.training.dataset import Dataset

WALK, BANDIT, PUSH = EnvironmentSpec("tests/Walk-v0"), EnvironmentSpec("tests/Bandit-v0"), EnvironmentSpec("tests/Push-v0")
PLACES = EnvironmentSpec("tests/Places-v0")
DIALS, SWITCHES = EnvironmentSpec("tests/Echo-v0", {"sizes": (2, 3)}), EnvironmentSpec("tests/Echo-v0", {"sizes": 3})
RECALL, RECALL_CUES, RECALL_STEPS = EnvironmentSpec("tests/Recall-v0"), 4, 6
PEEK = EnvironmentSpec("tests/Peek-v0")
BEACON, BEFORE = EnvironmentSpec("tests/Beacon-v0"), EnvironmentSpec("tests/Before-v0")
WALK_LIMIT = 12


class Walk(gym.Env):
    """Go to the target, one step left, none or one right; each step costs 1 and the target ends the episode.

    Observed are position and target, both in 0..10 and never equal at the start: the best return is minus their distance.
    """

    observation_space = gym.spaces.Box(0, 10, (2,), np.float32)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(3)
        self.state = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.choice(11, size=2, replace=False).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        self.state[0] = np.clip(self.state[0] + int(action) - 1, 0, 10)
        return self.state.copy(), -1.0, bool(self.state[0] == self.state[1]), False, {}


class Places(Walk):
    """The same walk, observed as a Dict whose keys are not sorted: the target as a number, the position as a vector."""

    observation_space: Any = gym.spaces.Dict(OrderedDict(target=gym.spaces.Discrete(11), position=gym.spaces.Box(0, 10, (1,), np.float64)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._seen(super().reset(seed=seed)[0]), {}

    def step(self, action: Any) -> Any:
        state, *rest = super().step(action)
        return self._seen(state), *rest

    @staticmethod
    def _seen(state: np.ndarray) -> dict[str, Any]:
        return {"position": state[:1].astype(np.float64), "target": int(state[1])}


class Halves(Walk):
    """The same walk, observed as a Dict of two vectors that are the walk's own, one after the other."""

    observation_space: Any = gym.spaces.Dict({"position": gym.spaces.Box(0, 10, (1,)), "target": gym.spaces.Box(0, 10, (1,))})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._seen(super().reset(seed=seed)[0]), {}

    def step(self, action: Any) -> Any:
        state, *rest = super().step(action)
        return self._seen(state), *rest

    @staticmethod
    def _seen(state: np.ndarray) -> dict[str, np.ndarray]:
        return {"target": state[1:], "position": state[:1]}


class Bandit(gym.Env):
    """One step: name the number that is shown. The number is drawn as the action space draws its samples."""

    observation_space = gym.spaces.Discrete(4)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(4)
        self.shown = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.shown = int(self.np_random.integers(4))
        return self.shown, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        return self.shown, float(action == self.shown), True, False, {}


class Echo(gym.Env):
    """One step: set dials of these sizes, or so many switches, as they are shown; each right one earns 1."""

    def __init__(self, sizes: tuple[int, ...] | int) -> None:
        switches = isinstance(sizes, int)
        self.sizes = np.full(sizes, 2) if switches else np.array(sizes)
        self.action_space = gym.spaces.MultiBinary(len(self.sizes)) if switches else gym.spaces.MultiDiscrete(self.sizes)
        self.observation_space = self.action_space
        self.shown = np.zeros(0, self.action_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.shown = self.np_random.integers(self.sizes).astype(self.action_space.dtype)
        return self.shown, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        return self.shown, float((action == self.shown).sum()), True, False, {}


class Recall(gym.Env):
    """A number is shown at the start, then nothing; at the end it must be named. Earlier actions do not matter.

    The best return is 1. Who sees single observations alone earns one in ``RECALL_CUES`` at best.
    """

    observation_space = gym.spaces.Discrete(RECALL_CUES + 2)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(RECALL_CUES)
        self.shown = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.shown, self.steps = int(self.np_random.integers(RECALL_CUES)), 0
        return self.shown, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        self.steps += 1
        over = self.steps == RECALL_STEPS
        seen = RECALL_CUES + (self.steps == RECALL_STEPS - 1)
        return seen, float(over and action == self.shown), over, False, {}


class Peek(Recall):
    """The same with two numbers, seen as a vector: what is shown now (-1 or 1, later 0), whether it is time, and what was shown."""

    observation_space: Any = gym.spaces.Box(-1, 1, (3,))

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.shown %= 2
        return self._seen(2 * self.shown - 1, False), {}

    def step(self, action: Any) -> Any:
        seen, *rest = super().step(action)
        return self._seen(0, seen > RECALL_CUES), *rest

    def _seen(self, now: int, asked: bool) -> np.ndarray:
        return np.array([now, asked, 2 * self.shown - 1], np.float32)


class Push(gym.Env):
    """Five steps, each of which costs the distance to ``push_best``; the bounds are not symmetric and the best action often lies on one."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32))
        self.seen = np.zeros(3, np.float32)
        self.steps = 0

    def _look(self) -> np.ndarray:
        self.seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.seen.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        cost = float(np.abs(push_best(self.seen[None])[0] - action).sum())
        self.steps += 1
        return self._look(), -cost, False, self.steps == 5, {}


class Beacon(gym.Env):
    """Walk to the bright cell of a grid by steps to one of four sides, each of which costs 1: the best return is minus their distance.

    Observed are an image ``[6, 6, 2]`` of bytes with one pixel for the walker and one for the bright cell.
    """

    observation_space: gym.Space = gym.spaces.Box(0, 255, (6, 6, 2), np.uint8)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(4)
        self.walker = self.bright = np.zeros(2, np.int64)

    def _look(self) -> Any:
        image = np.zeros((6, 6, 2), np.uint8)
        image[(*self.walker, 0)] = image[(*self.bright, 1)] = 255
        return image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.walker, self.bright = np.stack(np.divmod(self.np_random.choice(36, size=2, replace=False), 6), axis=1)
        return self._look(), {"distance": int(np.abs(self.walker - self.bright).sum())}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        self.walker = np.clip(self.walker + [(-1, 0), (1, 0), (0, -1), (0, 1)][int(action)], 0, 5)
        return self._look(), -1.0, bool((self.walker == self.bright).all()), False, {}


class Before(gym.Env):
    """Name the bit that was shown before this one; each right answer earns 1. Before the first step the first bit was shown as well.

    Observed are the bit, the bit before it, and six numbers that never vary: whoever sees the first alone needs a history of two.
    """

    observation_space = gym.spaces.Box(-1, 1, (8,), np.float32)

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(2)
        self.state = np.zeros(8, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state[:2] = 2 * int(self.np_random.integers(2)) - 1
        self.state[2:] = 0.5
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(int(action) == (self.state[1] > 0))
        self.state[:2] = 2 * int(self.np_random.integers(2)) - 1, self.state[0]
        return self.state.copy(), reward, False, False, {}


def beacon_best(images: np.ndarray) -> np.ndarray:
    """Along the first axis as long as the places differ there, then along the second."""
    walker, bright = (np.stack(np.divmod(images[..., plane].reshape(-1, 36).argmax(1), 6), axis=1) for plane in (0, 1))
    rows, columns = (bright - walker).T
    return np.where(rows != 0, rows > 0, 2 + (columns > 0)).astype(np.int64)


def walk_best(observations: np.ndarray) -> np.ndarray:
    """Towards the target."""
    return (np.sign(observations[:, 1] - observations[:, 0]) + 1).astype(np.int64)


def push_best(observations: np.ndarray) -> np.ndarray:
    """Clipped lines: a third of the first components lie on a bound."""
    lines = np.stack([2 + 6 * observations[:, 0], 0.5 + 0.3 * observations[:, 1]], axis=1)
    return np.clip(lines, [-2, 0], [6, 1]).astype(np.float32)


def walk_teacher() -> Teacher:
    return Teacher.from_callable(walk_best, Walk.observation_space, gym.spaces.Discrete(3))


def places_best(observations: dict[str, np.ndarray]) -> np.ndarray:
    """Towards the target."""
    return (np.sign(observations["target"] - observations["position"][:, 0]) + 1).astype(np.int64)


def places_teacher() -> Teacher:
    return Teacher.from_callable(places_best, Places.observation_space, gym.spaces.Discrete(3))


def before_best(observations: np.ndarray) -> np.ndarray:
    """The bit that was shown before."""
    return (observations[:, 1] > 0).astype(np.int64)


def before_teacher(params: int = 0) -> Teacher:
    return Teacher.from_callable(before_best, Before.observation_space, gym.spaces.Discrete(2), params=params)


def push_teacher() -> Teacher:
    return Teacher.from_callable(push_best, Push.observation_space, Push().action_space)


def bandit_teacher() -> Teacher:
    return Teacher.from_callable(lambda shown: shown.reshape(-1), Bandit.observation_space, gym.spaces.Discrete(4))


def echo_teacher(spec: EnvironmentSpec) -> Teacher:
    space = Echo(**spec.kwargs).action_space
    return Teacher.from_callable(lambda shown: shown, space, space)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_student(observation_space: gym.Space, action_space: gym.Space, *, hidden_sizes: tuple[int, ...] = (8, 8), seed: int = 0,
                   activation: str = "relu") -> Student:  # fmt: skip
    """A student that takes different actions in different states and whose normaliser is not trivial."""
    student = Student(Architecture(observation_space, action_space, hidden_sizes, activation))
    draws = generator(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
        student.mean.copy_(torch.randn(student.mean.shape, generator=draws))
        student.scale.copy_(0.5 + torch.rand(student.scale.shape, generator=draws))
        student.log_std.copy_(-torch.rand(student.log_std.shape, generator=draws))
        outputs, last = student(trees.to_tensors(random_observations(observation_space, 64))), student.linears[-1]
        spread = outputs.std(0)
        spread[spread == 0] = 1  # all of a narrow layer can be dead
        last.bias.sub_(outputs.mean(0)).div_(spread)
        last.weight.div_(spread[:, None])
    return student.eval().requires_grad_(False)


def image_student(
    observation_space: gym.Space, action_space: gym.Space, *, channels: tuple[int, ...] = (3, 4), strides: tuple[int, ...] = ()
) -> Student:
    """A student with convolutions, drawn weights and the scale of bytes."""
    architecture = Architecture(observation_space, action_space, (8,), channels=channels, strides=strides)
    student, draws = Student(architecture), generator()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / max(parameter[0].numel(), 1) ** 0.5)
        for name, buffer in student.encoder.named_buffers():
            buffer.fill_(255.0 if name.endswith("scale") else 0.0)
    return student.eval().requires_grad_(False)


def recurrent_student(observation_space: gym.Space, action_space: gym.Space, *, channels: tuple[int, ...] = (), seed: int = 0) -> Student:
    """A student with a memory of 7 units, drawn weights and a normaliser that is not trivial; its actions vary along an episode."""
    student = Student(Architecture(observation_space, action_space, (8,), "tanh", channels=channels, memory=7))
    draws = generator(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            drawn = 1.5 * torch.randn(parameter.shape, generator=draws) / max(parameter[0].numel(), 1) ** 0.5
            parameter.copy_(drawn if parameter.ndim > 1 else 0.1 * drawn)
        for buffer in student.encoder.buffers():
            buffer.copy_(torch.full(buffer.shape, 255.0) if channels else 0.5 + torch.rand(buffer.shape, generator=draws))
        student.log_std.copy_(-torch.rand(student.log_std.shape, generator=draws))
        assert student.memory is not None
        features = student.encoder(trees.to_tensors(random_observations(observation_space, 128))).unflatten(0, (8, 16))
        outputs, last = student.network(student.memory(features, torch.zeros(16, 7))).flatten(0, 1), student.linears[-1]
        last.bias.sub_(outputs.mean(0)).div_(outputs.std(0))
        last.weight.div_(outputs.std(0)[:, None])
    return student.eval().requires_grad_(False)


def walk_expert() -> Student:
    """A network of 32 x 32 units that walks to the target, worked out by hand: most of its weights are zero."""
    student = Student(Architecture(Walk.observation_space, gym.spaces.Discrete(3), (32, 32)))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
        first, second, last = student.linears
        first.weight[:2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # how far to the left the target is, how far to the right
        second.weight[:2, :2] = torch.eye(2)
        last.weight[0, 0] = last.weight[2, 1] = 5.0
        last.bias.fill_(0.0)[1] = 2.0
    return student.eval().requires_grad_(False)


def random_observations(space: gym.Space, count: int, *, seed: int = 0) -> trees.Tree:
    space.seed(seed)
    return trees.stack([space.sample() for _ in range(count)])


def labelled(observations: trees.Tree, targets: ActionTargets, *, episodes: torch.Tensor | None = None) -> Transitions:
    """Transitions of which only observations, targets and episodes matter."""
    count = trees.length(observations)
    no = torch.zeros(count, dtype=torch.bool)
    ids = torch.zeros(count, dtype=torch.int64) if episodes is None else episodes
    return Transitions(observations, targets, torch.zeros(count), no, no, ids, ~no)


def rows_of(dataset: Dataset) -> tuple[torch.Tensor, ActionTargets]:
    """Copies of all rows: those trained on in the order in which they came, then those held out, the last one first."""
    blocks = list(dataset.blocks())
    names = blocks[0][1].parameters
    parameters = {name: torch.cat([targets.parameters[name] for _, targets in blocks]) for name in names}
    return torch.cat([seen for seen, _ in blocks]), ActionTargets(parameters, torch.cat([targets.actions for _, targets in blocks]))


def random_transitions(action_space: gym.Space, count: int, *, inputs: int = 3, seed: int = 0) -> Transitions:
    """Observations and a teacher's word on them, of any family that is not deterministic."""
    draws = generator(seed)
    family = family_of(action_space)
    observations = torch.randn(count, inputs, generator=draws)
    output = 2 * observations @ torch.randn(inputs, family.width, generator=draws)
    parameters = {"mean": output, "log_std": -torch.rand(output.shape, generator=draws)} if family.spread else {"logits": output}
    actions = family.mode(parameters)
    return labelled(observations, ActionTargets(parameters, actions))


for _name, _limit in (
    *(("Walk", WALK_LIMIT), ("Places", WALK_LIMIT), ("Halves", WALK_LIMIT)),
    *(("Bandit", None), ("Echo", None), ("Push", None), ("Recall", None), ("Peek", None), ("Beacon", 12), ("Before", 10)),
):
    gym.register(f"tests/{_name}-v0", entry_point=f"tests.small_worlds:{_name}", max_episode_steps=_limit)


WORLDS: dict[str, tuple[EnvironmentSpec, Teacher]] = {
    "Discrete": (WALK, walk_teacher()),
    "Box": (PUSH, push_teacher()),
    "discrete observations": (BANDIT, bandit_teacher()),
    "MultiDiscrete": (DIALS, echo_teacher(DIALS)),
    "MultiBinary": (SWITCHES, echo_teacher(SWITCHES)),
}
"""One for each kind of space that a student can act in, and one in which observations are numbers; each with a good teacher."""

SEEN = gym.spaces.Box(-1.0, 1.0, (3,))
ACTED = [
    gym.spaces.Discrete(4),
    gym.spaces.Discrete(3, start=2),
    gym.spaces.MultiDiscrete([2, 3]),
    gym.spaces.MultiBinary(3),
    gym.spaces.Box(np.array([-2, 0], np.float32), np.array([6, 1], np.float32)),
    gym.spaces.Box(-2.0, 6.0, (2, 1)),
]
"""Spaces that students see and act in."""
