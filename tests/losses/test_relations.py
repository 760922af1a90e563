"""Hints and relations: values by hand, against straightforward oracles, what leaves them unchanged, and their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policy_distill.losses import relations
from policy_distill.losses.relations import (
    RELATIONS,
    angle_relation,
    cosine_distance,
    distance_relation,
    normalized_squared_error,
    samples_compared,
    similarity_relation,
)
from tests.small_worlds import generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_the_squared_error_by_hand_and_in_units_of_the_variance():
    teacher, student = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert normalized_squared_error(teacher, student).item() == 2.5  # (1 + 4) / 2
    assert normalized_squared_error(teacher, student, 5.0).item() == 0.5


def test_the_cosine_by_hand():
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    student = torch.tensor([[7.0, 0.0], [1.0, 1.0], [-2.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(cosine_distance(teacher, student), torch.tensor([0.0, 1 - math.sqrt(0.5), 2.0, 1.0]))
    assert cosine_distance(teacher[1:2], student[1:2], 9.0).item() == pytest.approx(1 - math.sqrt(0.5))


def test_distances_by_hand():
    # teacher 0, 1, 3 on a line: distances 1, 3, 2, mean 2 -> 1/2, 3/2, 1; student 0, 1, 2: 1, 2, 1, mean 4/3 -> 3/4, 3/2, 3/4
    # huber (half squares below 1): pair 01: (1/4)^2/2 = 1/32; pair 02: 0; pair 12: (1/4)^2/2 = 1/32; mean over the two others
    found = distance_relation(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([1 / 64, 1 / 32, 1 / 64]))


def test_angles_by_hand():
    # a right angle at the first sample of the teacher, 45 degrees at the others; the student's are 180, 0 and 0 degrees
    teacher, student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    # cosines at sample 0: pairs (1, 2) and (2, 1): 0 against -1: huber 1/2 each, all others equal: 2 * 1/2 / 9
    # at 1 and 2: sqrt(1/2) against 1: difference d, d^2/2 twice / 9
    difference = 1 - math.sqrt(0.5)
    torch.testing.assert_close(angle_relation(teacher, student), torch.tensor([1.0, difference**2, difference**2]) / 9)


def test_angles_agree_with_triple_loops():
    teacher, student = normal(5, 3), normal(5, 2, seed=1)
    expected = torch.zeros(5, dtype=torch.float64)
    for i, j, k in itertools.product(range(5), repeat=3):
        ours, theirs = (F.normalize(x[j] - x[i], dim=0) @ F.normalize(x[k] - x[i], dim=0) for x in (student, teacher))
        expected[i] += F.huber_loss(ours, theirs) / 25
    torch.testing.assert_close(angle_relation(teacher, student), expected)


def test_of_a_large_batch_some_samples_form_triplets_and_the_mean_is_theirs(monkeypatch):
    teacher, student = normal(9, 3), normal(9, 2, seed=1)
    monkeypatch.setattr(relations, "ANGLE_SAMPLES", 5)
    few, all_rows = angle_relation(teacher[:5], student[:5]), angle_relation(teacher, student)
    torch.testing.assert_close(all_rows[:5], few)
    torch.testing.assert_close(all_rows.mean(), few.mean())


def test_similarities_by_hand():
    # teacher's rows (1, 0) and (0, 1): similarities are the unit matrix; student's (1) and (1): all ones, rows / sqrt 2
    found = similarity_relation(torch.eye(2), torch.ones(2, 1))
    each = (1 - math.sqrt(0.5)) ** 2 + 0.5
    torch.testing.assert_close(found, torch.tensor([each, each]))


@pytest.mark.parametrize("name", RELATIONS)
def test_a_relation_is_zero_for_the_layer_itself_and_does_not_see_scale_or_rotation(name):
    relation = RELATIONS[name]
    layer = normal(2, 6, 4)
    rotation = torch.linalg.qr(normal(4, 4, seed=2)).Q
    assert relation(layer, normal(2, 6, 3, seed=1)).min() > 1e-4
    torch.testing.assert_close(relation(layer, 3 * layer @ rotation), torch.zeros(2, 6, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["distance", "angle"])
def test_distances_and_angles_do_not_see_where_the_layer_lies(name):
    layer = normal(6, 4)
    torch.testing.assert_close(RELATIONS[name](layer, layer + 5), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", RELATIONS)
def test_members_have_relations_of_their_own_and_gradients_are_the_numeric_ones(name):
    relation = RELATIONS[name]
    teacher, student = normal(2, 5, 3), normal(2, 5, 2, seed=1)
    whole = relation(teacher, student)
    assert whole.shape == (2, 5)
    torch.testing.assert_close(whole[1], relation(teacher[1], student[1]))
    assert torch.autograd.gradcheck(lambda x: relation(teacher, x), student.requires_grad_())


@pytest.mark.parametrize("name", RELATIONS)
def test_equal_samples_and_a_batch_of_one_have_finite_values_and_gradients(name):
    for rows in (1, 4):
        student = torch.ones(rows, 3, requires_grad=True)
        value = RELATIONS[name](torch.ones(rows, 2), student)
        value.sum().backward()
        assert value.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", RELATIONS)
def test_of_a_large_batch_the_first_samples_are_compared_and_the_others_need_no_teacher(name):
    count = samples_compared(name)
    teacher, student = normal(2, count + 7, 3), normal(2, count + 7, 2, seed=1)
    few, whole = RELATIONS[name](teacher[:, :count], student[:, :count]), RELATIONS[name](teacher, student)
    torch.testing.assert_close(whole[:, :count], few)
    torch.testing.assert_close(whole.mean(-1), few.mean(-1))
    assert torch.equal(RELATIONS[name](teacher[:, :count], student), whole)
    with pytest.raises(ValueError, match="batches differ"):
        RELATIONS[name](teacher[:, : count - 1], student)


def exact_distances(layer: Tensor) -> Tensor:
    """From the differences themselves, pair by pair, in float64."""
    distances = (layer.double().unsqueeze(-2) - layer.double().unsqueeze(-3)).square().sum(-1).sqrt()
    return distances / (distances.sum() / (distances > 0).sum())


def exact_angles(layer: Tensor) -> Tensor:
    """From the differences themselves, triplet by triplet, in float64."""
    ways = F.normalize(layer.double().unsqueeze(-3) - layer.double().unsqueeze(-2), dim=-1)
    return ways @ ways.mT


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("apart", [1.0, 1e-3])
@pytest.mark.parametrize(("name", "exact"), [("distance", exact_distances), ("angle", exact_angles)])
def test_near_samples_far_from_the_origin_are_as_exact_as_float32_can_be(name, exact, apart, offset):
    """|x|^2 + |y|^2 - 2 x y in float32 gives two samples 1e-3 apart a distance that is wrong by a tenth of itself."""
    centres = normal(5, 8).repeat_interleave(4, 0)  # five groups of four samples each
    teacher = (centres + apart * normal(20, 8, seed=1) + offset).float()
    student = (centres[:, :3] + 1.1 * apart * normal(20, 3, seed=2) + offset).float().requires_grad_()
    found = RELATIONS[name](teacher, student)
    many = 19 if name == "distance" else 400

    def oracle(layer: Tensor) -> Tensor:
        return F.huber_loss(exact(layer), exact(teacher), reduction="none").flatten(1).sum(-1) / many

    torch.testing.assert_close(found.double(), oracle(student.detach()), rtol=1e-5, atol=1e-9)
    found.mean().backward()
    assert student.grad is not None
    step = 1e-6 * normal(20, 3, seed=4)
    ahead, behind = (float(oracle(student.detach().double() + sign * step).mean()) for sign in (1, -1))
    assert float((student.grad.double() * step).sum()) == pytest.approx((ahead - behind) / 2, rel=1e-4)


def projected_pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """A teacher's layer, a student's, weight and bias of its projection, of two members."""
    shapes = ((2, 6, 5), (2, 6, 3), (2, 3, 5), (2, 1, 5))
    return tuple(normal(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes))


@pytest.mark.parametrize("distance", [normalized_squared_error, cosine_distance])
def test_a_projected_layer_s_hint_is_the_hint_of_the_projected_layer(distance):
    teacher, layer, weight, bias = projected_pair()
    plain, fused = ([leaf.clone().requires_grad_() for leaf in (layer, weight, bias)] for _ in range(2))
    expected = distance(teacher, torch.baddbmm(plain[2], plain[0], plain[1]), 3.0)
    found = distance(teacher, fused[0], 3.0, (fused[1], fused[2]))
    torch.testing.assert_close(found, expected)
    shares = normal(2, 6, seed=9)  # each sample with a weight of its own
    (expected * shares).sum().backward()
    (found * shares).sum().backward()
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("distance", [normalized_squared_error, cosine_distance])
def test_a_hint_in_float32_is_that_of_float64(distance):
    shapes = ((2, 512, 256), (2, 512, 8), (2, 8, 256), (2, 1, 256))
    wide = [normal(*shape, seed=seed).float().double() for seed, shape in enumerate(shapes)]
    teacher, layer, weight, bias = wide
    narrow = [tensor.float().requires_grad_(index > 0) for index, tensor in enumerate(wide)]
    found = distance(narrow[0], narrow[1], 1.0, (narrow[2], narrow[3]))
    leaves = [tensor.requires_grad_() for tensor in (layer, weight, bias)]
    expected = distance(teacher, torch.baddbmm(leaves[2], leaves[0], leaves[1]))
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-7)
    found.mean().backward()
    expected.mean().backward()
    for mine, theirs in zip(narrow[1:], leaves, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert (mine.grad.double() - theirs.grad).abs().max() < 1e-5 * theirs.grad.abs().max()


@pytest.mark.parametrize("distance", [normalized_squared_error, cosine_distance])
def test_a_projected_layer_of_zeros_has_finite_values(distance):
    teacher, layer, weight, bias = projected_pair()
    layer = torch.zeros_like(layer).requires_grad_()
    found = distance(teacher, layer, 1.0, (weight, torch.zeros_like(bias)))
    found.sum().backward()
    torch.testing.assert_close(found, teacher.square().mean(-1) if distance is normalized_squared_error else torch.ones_like(found))
    assert layer.grad is not None
    assert layer.grad.isfinite().all()


def test_layers_that_do_not_fit_are_refused():
    for distance in (normalized_squared_error, cosine_distance):
        with pytest.raises(ValueError, match=r"shapes differ: \(2, 3\) and \(2, 4\)"):
            distance(torch.zeros(2, 3), torch.zeros(2, 4))
    for relation in RELATIONS.values():
        with pytest.raises(ValueError, match=r"batches differ: \(2,\) and \(3,\)"):
            relation(torch.zeros(2, 3), torch.zeros(3, 3))
