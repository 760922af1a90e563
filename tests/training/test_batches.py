"""Batches: what the dataset drew, normalised and turned."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_distill.config import FeatureConfig, LossConfig, RelationConfig, TrainConfig
from policy_distill.losses import relations
from policy_distill.losses.objective import Objective
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.architecture import Architecture
from policy_distill.policies.families import family_of
from policy_distill.policies.observations import encode_observations
from policy_distill.training import batches, sequences
from policy_distill.training.batches import CHUNK_STEPS, Batches, draw_shifts, shifted
from policy_distill.training.dataset import Dataset
from policy_distill.training.stacks.analytic import StudentStack
from policy_distill.training.stacks.autograd import AutogradStack
from tests.small_worlds import generator, labelled

ROWS = 90
SEEN = gym.spaces.Box(-np.inf, np.inf, (3,))
CHOICE, DIALS, PUSH = gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Box(-2.0, 6.0, (2,))


def world(seen: gym.Space, acted: gym.Space, loss: LossConfig, **parameters: int) -> tuple[Dataset, StudentStack, Objective]:
    """Ninety rows of an agent that says so many numbers under each name."""
    draws = generator(4)
    observations = torch.as_tensor(np.stack([seen.sample() for _ in range(ROWS)]))
    actions = torch.as_tensor(np.stack([acted.sample() for _ in range(ROWS)]))
    told = {name: torch.randn(ROWS, width, generator=draws) for name, width in parameters.items()}
    dataset = Dataset(ROWS, holdout=0.2, device=torch.device("cpu"))
    dataset.append(labelled(observations, ActionTargets(told, actions), episodes=torch.arange(ROWS) // 5))
    architecture = Architecture(seen, acted, (4,))
    inputs = architecture.widths[0]
    stack = StudentStack(
        architecture, generators=[generator(0), generator(1)], mean=torch.linspace(-1, 1, inputs), scale=torch.linspace(0.5, 2, inputs)
    )
    return dataset, stack, Objective(loss, family_of(acted))


def batches_of(dataset: Dataset, stack: StudentStack, objective: Objective, num_steps: int = 100) -> Batches:
    return Batches(dataset, stack, objective, 6, [generator(7), generator(8)], num_steps)


@pytest.mark.parametrize(
    ("seen", "acted", "loss", "parameters"),
    [
        (SEEN, CHOICE, {}, {"logits": 4}),
        (SEEN, CHOICE, {"hard_weight": 0.5}, {"logits": 4}),
        (gym.spaces.Discrete(5, start=2), DIALS, {"hard_weight": 0.5}, {"logits": 5}),
        (gym.spaces.Box(0, 255, (2, 3), np.uint8), PUSH, {}, {"mean": 2, "log_std": 2}),
        (SEEN, PUSH, {"kind": "kl"}, {"mean": 2, "log_std": 2, "value": 1}),
        (SEEN, CHOICE, {"features": FeatureConfig(weight=1.0, layers={"body": "hidden.0"})}, {"logits": 4, "layer:body": 7, "layer:x": 9}),
    ],
)
def test_batches_are_what_the_dataset_draws(seen, acted, loss, parameters):
    dataset, stack, objective = world(seen, acted, LossConfig(**loss), **parameters)
    made = batches_of(dataset, stack, objective)
    draws = [generator(7), generator(8)]
    for count in (3, 1, 5):  # a chunk overwrites the one before it, and may be shorter
        inputs, targets = made.draw(count)
        assert [step.shape for step in inputs] == [(2, stack.architecture.widths[0] + 1, 6)] * count
        for step in range(count):
            observations, told = dataset.take(dataset.draw(1, 6, draws)[0], objective.reads)
            encoded = encode_observations(seen, observations.flatten(0, 1)).unflatten(0, (2, 6))
            assert torch.equal(inputs[step][:, :-1], ((encoded - stack.mean) / stack.scale).transpose(1, 2))
            assert (inputs[step][:, -1] == 1).all()
            assert targets.parameters.keys() == told.parameters.keys()
            assert all(torch.equal(targets.parameters[name][step], value) for name, value in told.parameters.items())
            if objective.reads_actions:
                assert torch.equal(targets.actions[step], told.actions)
                assert targets.actions.dtype == told.actions.dtype


def test_of_a_layer_that_relations_alone_read_there_are_the_samples_that_they_compare(monkeypatch):
    """And of one that a hint reads too, all of them."""
    monkeypatch.setattr(relations, "PAIR_SAMPLES", 4)
    related = RelationConfig(weight=1.0, layers={"body": "hidden.0", "neck": "hidden.0"})
    loss = LossConfig(relations=related, features=FeatureConfig(weight=1.0, layers={"neck": "hidden.0"}))
    dataset, stack, objective = world(SEEN, CHOICE, loss, **{"logits": 4, "layer:body": 7, "layer:neck": 3})
    _, targets = batches_of(dataset, stack, objective).draw(2)
    draws = [generator(7), generator(8)]
    for step in range(2):
        _, told = dataset.take(dataset.draw(1, 6, draws)[0])
        assert torch.equal(targets.parameters["layer:body"][step], told.parameters["layer:body"][:, :4])
        assert torch.equal(targets.parameters["layer:neck"][step], told.parameters["layer:neck"])
    few = Batches(dataset, stack, objective, 3, [generator(7), generator(8)], 1).draw(1)[1]
    assert few.parameters["layer:body"].shape == (1, 2, 3, 7)  # a batch that is smaller than that


def test_inputs_by_hand():
    dataset = Dataset(1, holdout=0.0, device=torch.device("cpu"))
    dataset.append(
        labelled(torch.tensor([[0.0, 5.0, 1.0]]), ActionTargets({"logits": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}, torch.zeros(1)))
    )
    _, stack, objective = world(SEEN, CHOICE, LossConfig(), logits=4)  # means -1, 0, 1; scales 0.5, 1.25, 2
    inputs, targets = Batches(dataset, stack, objective, 2, [generator(), generator()], 1).draw(1)
    assert inputs[0].tolist() == [[[2.0, 2.0], [4.0, 4.0], [0.0, 0.0], [1.0, 1.0]]] * 2
    assert targets.parameters["logits"].tolist() == [[[[1.0, 2.0, 3.0, 4.0]] * 2] * 2]


def test_forgotten_rows_are_not_drawn():
    dataset, stack, objective = world(SEEN, CHOICE, LossConfig(), logits=4)
    dataset.forget(50)
    inputs, _ = batches_of(dataset, stack, objective).draw(30)
    late = ((dataset.spread(10_000)[0][50:] - stack.mean) / stack.scale).tolist()
    assert all(row in late for row in torch.stack(list(inputs))[:, :, :-1].transpose(2, 3).reshape(-1, 3).tolist())


@pytest.mark.parametrize(("kind", "steps"), [("kl", CHUNK_STEPS), ("nll", 1)])
def test_a_chunk_is_of_some_steps(kind, steps, monkeypatch):
    dataset, stack, objective = world(SEEN, CHOICE, LossConfig(kind=kind), logits=4)
    assert batches_of(dataset, stack, objective).chunk_steps == steps
    few = batches_of(dataset, stack, objective, 1)
    assert few.chunk_steps == 1
    with pytest.raises(ValueError, match="2 steps do not fit: 1 may be drawn at once"):
        few.draw(2)
    # a row is 3 + 4 floats, a step 2 members times 6 of them
    monkeypatch.setattr(batches, "CHUNK_BYTES", 7 * 4 * 12 * 5 + 1)
    assert batches_of(dataset, stack, objective).chunk_steps == min(steps, 5)
    monkeypatch.setattr(batches, "CHUNK_BYTES", 1)
    assert batches_of(dataset, stack, objective).chunk_steps == 1


def test_layers_have_room_of_their_own(monkeypatch):
    loss = LossConfig(features=FeatureConfig(weight=1.0, layers={"body": "hidden.0"}))
    dataset, stack, objective = world(SEEN, CHOICE, loss, **{"logits": 4, "layer:body": 7})
    assert batches_of(dataset, stack, objective).chunk_steps == CHUNK_STEPS
    monkeypatch.setattr(batches, "LAYER_BYTES", 7 * 4 * 12 * 5 + 1)  # a row of the layer is 7 floats, a step 2 members times 6 of them
    assert batches_of(dataset, stack, objective).chunk_steps == 5


def test_what_is_not_read_is_left_out():
    dataset, stack, objective = world(SEEN, PUSH, LossConfig(kind="regression"), mean=2, log_std=2)
    told: Any = batches_of(dataset, stack, objective).draw(2)[1]
    assert told.parameters == {}
    dataset, stack, objective = world(SEEN, CHOICE, LossConfig(), logits=4)
    assert batches_of(dataset, stack, objective).draw(2)[1].actions.numel() == 0


# Random shifts.

NUMBERED = torch.arange(1, 7, dtype=torch.uint8).view(1, 2, 3, 1)  # an image of 2 rows: 1 2 3 / 4 5 6
LAST, FRONT = gym.spaces.Box(0, 255, (2, 3, 1), np.uint8), gym.spaces.Box(0, 255, (1, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("down", "right", "expected"),
    [
        (0, 0, [[1, 2, 3], [4, 5, 6]]),
        (1, 0, [[1, 2, 3], [1, 2, 3]]),
        (0, 1, [[1, 1, 2], [4, 4, 5]]),
        (-1, -2, [[6, 6, 6], [6, 6, 6]]),
    ],
)
def test_a_shift_by_hand(down, right, expected):
    moved = shifted(NUMBERED, LAST, torch.tensor([[down, right]]))
    assert moved[0, :, :, 0].tolist() == expected
    assert moved.dtype == torch.uint8


def test_shifts_of_channels_first_and_of_parts():
    images = torch.arange(18, dtype=torch.uint8).view(2, 1, 3, 3)
    shifts = torch.tensor([[0, 0], [1, 0]])
    moved = shifted(images, FRONT, shifts)
    assert moved[0].equal(images[0])
    assert moved[1, 0].tolist() == [[9, 10, 11], [9, 10, 11], [12, 13, 14]]
    parts = gym.spaces.Dict({"image": FRONT, "speed": SEEN})
    speed = torch.randn(2, 3)
    both = shifted({"image": images, "speed": speed}, parts, shifts)
    assert both["image"].equal(moved)
    assert both["speed"] is speed


def test_drawn_shifts_are_uniform_within_the_limit():
    shifts = draw_shifts(2, 5000, generator(1))
    values, counts = shifts.unique(return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert (abs(counts - 2000) < 200).all()  # 40 standard deviations for 10,000 draws of a fifth each: sqrt(10000 * 0.16) = 40


def numbered_images() -> tuple[Dataset, AutogradStack, Objective]:
    """Ninety images of 5x5 pixels. One bright pixel in the middle names the row, and so does each of its four logits."""
    observations = torch.zeros(ROWS, 5, 5, 1, dtype=torch.uint8)
    observations[:, 2, 2, 0] = torch.arange(ROWS, dtype=torch.uint8) + 1
    dataset = Dataset(ROWS, holdout=0.0, device=torch.device("cpu"))
    logits = torch.arange(ROWS, dtype=torch.float32)[:, None].expand(-1, 4)
    targets = ActionTargets({"logits": logits}, torch.zeros(ROWS, dtype=torch.int64))
    dataset.append(labelled(observations, targets, episodes=torch.arange(ROWS)))
    architecture = Architecture(gym.spaces.Box(0, 255, (5, 5, 1), np.uint8), CHOICE, (4,), channels=(2,))
    stack = AutogradStack(architecture, architecture.new_encoder(), generators=[generator(0), generator(1)])
    return dataset, stack, Objective(LossConfig(), family_of(CHOICE))


def test_batches_are_shifted_and_their_labels_are_not():
    dataset, stack, objective = numbered_images()

    def drawn(steps: list[int], shift: int) -> tuple[torch.Tensor, torch.Tensor]:
        source = Batches(dataset, stack, objective, 8, [generator(7), generator(8)], 6, shift)
        parts = [source.draw(count) for count in steps]
        labels = [targets.parameters["logits"].clone() for _, targets in parts]  # filled before the next draw overwrites them
        return torch.stack([step for inputs, _ in parts for step in inputs]), torch.cat(labels[-1:])

    images, labels = drawn([6], 2)
    assert images.shape == (6, 2, 8, 5, 5, 1)
    rows = images.amax((3, 4, 5)).long() - 1
    assert torch.equal(rows.float(), labels[..., 0])
    places = images[..., 0].flatten(3).argmax(-1)
    assert len(places.unique()) == 25  # shifts of -2 to 2 in both directions
    assert torch.equal(drawn([1, 2, 3], 2)[0], images)  # as single steps
    centred = drawn([6], 0)[0]
    assert (centred[..., 0].flatten(3).argmax(-1) == 12).all()


@pytest.mark.parametrize(("batch_size", "expected"), [(None, 128), (7, 7)])
def test_batches_of_images_are_smaller_unless_their_size_is_given(batch_size, expected):
    dataset, stack, objective = numbered_images()
    config = TrainConfig(batch_size=batch_size)
    inputs, _ = sequences.batches_of(dataset, stack, objective, config, [generator(7), generator(8)], 3).draw(1)
    assert inputs[0].shape == (2, expected, 5, 5, 1)
    vectors = world(SEEN, CHOICE, LossConfig(), logits=4)
    inputs, _ = sequences.batches_of(*vectors, config, [generator(7), generator(8)], 3).draw(1)
    assert inputs[0].shape[-1] == (batch_size or 512)
