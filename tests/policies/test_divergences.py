"""Losses against values worked out by hand, against torch.distributions in float64, at their edges, and in their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from policy_distill.policies.divergences import (
    bounded_error,
    forward_kl,
    gaussian_forward_kl,
    gaussian_negative_log_likelihood,
    gaussian_reverse_kl,
    hard_label_cross_entropy,
    huber,
    jensen_shannon,
    mean_absolute,
    mean_squared,
    reverse_kl,
)
from policy_distill.policies.families.q_values import median_action_gap, q_values_to_logits, standardize_logits
from tests.small_worlds import generator

INF = math.inf
WORST: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}


def matrices(columns: int = 3, low: float = -8, high: float = 8) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float64, (4, columns), elements=st.floats(low, high))


def double(*values: object) -> Tensor:
    return tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


temperatures = st.floats(0.2, 8)

# Forward KL of categorical policies.


def test_forward_kl_by_hand():
    # p = (3/4, 1/4) from logits (ln 3, 0), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287 = 0.130812
    value = forward_kl(double([[math.log(3), 0.0]]), double([[0.0, 0.0]]))
    torch.testing.assert_close(value, double([0.75 * math.log(1.5) + 0.25 * math.log(0.5)]))
    assert value.item() == pytest.approx(0.130812, abs=1e-6)


def test_forward_kl_is_of_the_teacher_not_of_the_student():
    # the other way round: 1/2 ln(2/3) + 1/2 ln 2 = 0.143841
    assert forward_kl(double([[0.0, 0.0]]), double([[math.log(3), 0.0]])).item() == pytest.approx(0.143841, abs=1e-6)


def test_temperature_divides_both_sides_logits_by_hand():
    # T = 2: logits (ln 9, 0) / 2 = (ln 3, 0) and (ln 4, 0) / 2 = (ln 2, 0): p = (3/4, 1/4), q = (2/3, 1/3)
    # 3/4 ln(9/8) + 1/4 ln(3/4) = 0.088337 - 0.071921 = 0.016417; not multiplied by 4
    value = forward_kl(double([[math.log(9), 0.0]]), double([[math.log(4), 0.0]]), temperature=2.0)
    assert value.item() == pytest.approx(0.75 * math.log(9 / 8) + 0.25 * math.log(3 / 4), abs=1e-12)


@given(matrices(), matrices())
def test_forward_kl_agrees_with_torch_distributions(teacher, student):
    p, q = torch.from_numpy(teacher), torch.from_numpy(student)
    torch.testing.assert_close(forward_kl(p, q), kl_divergence(TorchCategorical(logits=p), TorchCategorical(logits=q)), **WORST)


@given(matrices(), matrices(), temperatures)
def test_forward_kl_at_a_temperature_is_that_of_the_divided_logits(teacher, student, temperature):
    p, q = torch.from_numpy(teacher), torch.from_numpy(student)
    torch.testing.assert_close(forward_kl(p, q, temperature=temperature), forward_kl(p / temperature, q / temperature), **WORST)


@given(matrices(), matrices(), st.floats(-50, 50), st.floats(-50, 50))
def test_a_shift_of_the_logits_changes_nothing(teacher, student, one, other):
    p, q = torch.from_numpy(teacher), torch.from_numpy(student)
    torch.testing.assert_close(forward_kl(p + one, q + other), forward_kl(p, q), rtol=1e-6, atol=1e-9)


@given(matrices(), matrices(), temperatures)
def test_forward_kl_is_never_below_zero_and_zero_for_equals(teacher, student, temperature):
    p, q = torch.from_numpy(teacher), torch.from_numpy(student)
    assert (forward_kl(p, q, temperature=temperature) >= -1e-12).all()
    torch.testing.assert_close(forward_kl(p, p + 1, temperature=temperature), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_each_sample_and_each_member_has_its_own_value():
    p, q = torch.randn(2, 3, 5, generator=generator()), torch.randn(2, 3, 5, generator=generator(1))
    whole = forward_kl(p, q, temperature=2.0)
    assert whole.shape == (2, 3)
    torch.testing.assert_close(whole[1, 2], forward_kl(p[1:, 2], q[1:, 2], temperature=2.0)[0])


def test_a_temperature_may_be_given_for_each_sample():
    p, q = torch.randn(3, 4, generator=generator()), torch.randn(3, 4, generator=generator(1))
    each = forward_kl(p, q, temperature=tensor([0.5, 1.0, 4.0]))
    expected = [forward_kl(p[i], q[i], temperature=t) for i, t in enumerate((0.5, 1.0, 4.0))]
    torch.testing.assert_close(each, torch.stack(expected))


def test_a_forbidden_action_contributes_nothing():
    # p = (1/2, 1/2, 0), q = (1/4, 1/4, 1/2): ln 2; where both forbid the third action: 0
    p = double([[0.0, 0.0, -INF], [0.0, 0.0, -INF]])
    q = double([[0.0, 0.0, math.log(2)], [0.0, 0.0, -INF]])
    torch.testing.assert_close(forward_kl(p, q), double([math.log(2), 0.0]))


def test_forbidding_what_the_teacher_allows_costs_infinitely_much():
    assert forward_kl(double([[0.0, 0.0]]), double([[0.0, -INF]])).item() == INF


def test_a_nearly_deterministic_teacher_has_a_finite_value_and_gradient():
    # KL -> -ln q(greedy) = ln(1 + e^-2 + e^-4) + 0: the cross-entropy of the student's logits (0, -2, -4)
    student = tensor([[0.0, -2.0, -4.0]], requires_grad=True)
    value = forward_kl(tensor([[0.0, -300.0, -200.0]]), student)
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2) + math.exp(-4)), rel=1e-6)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - tensor([[1.0, 0.0, 0.0]]))


def test_the_gradient_survives_a_forbidden_action():
    # d KL / d student logits = (q - p) / T
    student = double([[0.0, 1.0, 2.0]]).requires_grad_()
    teacher = double([[0.0, 0.5, -INF]])
    forward_kl(teacher, student, temperature=2.0).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, ((student.detach() / 2).softmax(-1) - (teacher / 2).softmax(-1)) / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gradients_of_the_kls_are_the_numeric_ones(temperature):
    p, q, log_std, other = (torch.randn(3, 4, generator=generator(seed), dtype=torch.float64) for seed in range(4))
    assert torch.autograd.gradcheck(lambda x: forward_kl(p, x, temperature=temperature), q.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: reverse_kl(p, x, temperature=temperature), q)
    assert torch.autograd.gradcheck(lambda x: jensen_shannon(p, x, beta=0.3, temperature=temperature), q)
    assert torch.autograd.gradcheck(standardize_logits, q)
    function = lambda mean, spread: gaussian_forward_kl(p, other, mean, spread, temperature=temperature)  # noqa: E731
    assert torch.autograd.gradcheck(function, (q, log_std.requires_grad_()))
    backwards = lambda mean, spread: gaussian_reverse_kl(p, other, mean, spread, temperature=temperature)  # noqa: E731
    assert torch.autograd.gradcheck(backwards, (q, log_std))
    assert torch.autograd.gradcheck(lambda mean, spread: gaussian_negative_log_likelihood(p, mean, spread), (q, log_std))


def test_a_high_temperature_times_its_square_tends_to_half_the_squared_difference_of_centred_logits():
    # Hinton et al. 2015, sec. 2.1, in KL: T^2 KL -> 1 / (2 N) sum (z - v)^2 for centred logits
    p, q = double([[1.0, 0.0, -1.0]]), double([[0.5, 0.5, -1.0]])
    assert 1000.0**2 * forward_kl(p, q, temperature=1000.0).item() == pytest.approx((0.25 + 0.25) / 6, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, INF, math.nan])
@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, jensen_shannon])
def test_a_temperature_that_is_none_is_refused(loss, temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be > 0"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)
    with pytest.raises(ValueError, match="must be > 0"):
        gaussian_forward_kl(*(torch.zeros(2, 3) for _ in range(4)), temperature=temperature)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, jensen_shannon, bounded_error])
def test_different_shapes_are_refused(loss):
    with pytest.raises(ValueError, match=r"shapes differ: \(2, 3\) and \(2, 4\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"shapes differ: \(2, 3\) and \(3, 3\)"):
        gaussian_forward_kl(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 3), torch.zeros(3))


# Reverse KL and Jensen-Shannon.


def test_reverse_kl_by_hand_and_at_a_temperature():
    # KL(q || p) with q = (1/2, 1/2), p = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 0.143841
    assert reverse_kl(double([[math.log(3), 0.0]]), double([[0.0, 0.0]])).item() == pytest.approx(0.143841, abs=1e-6)
    # T = 2: p = (3/4, 1/4), q = (2/3, 1/3): 2/3 ln(8/9) + 1/3 ln(4/3)
    value = reverse_kl(double([[math.log(9), 0.0]]), double([[math.log(4), 0.0]]), temperature=2.0)
    assert value.item() == pytest.approx(2 / 3 * math.log(8 / 9) + 1 / 3 * math.log(4 / 3), abs=1e-12)


@given(matrices(), matrices(), temperatures)
def test_reverse_kl_agrees_with_torch_distributions(teacher, student, temperature):
    p, q = torch.from_numpy(teacher), torch.from_numpy(student)
    expected = kl_divergence(TorchCategorical(logits=q / temperature), TorchCategorical(logits=p / temperature))
    torch.testing.assert_close(reverse_kl(p, q, temperature=temperature), expected, **WORST)


def test_reverse_kl_forgives_what_the_student_does_not_cover_and_not_what_the_teacher_forbids():
    half, first = double([[0.0, 0.0]]), double([[0.0, -INF]])
    assert reverse_kl(half, first).item() == pytest.approx(math.log(2))
    assert reverse_kl(first, half).item() == INF


def test_jensen_shannon_by_hand():
    # p = (1, 0), q = (0, 1) in the limit, beta 1/2: m = (1/2, 1/2): ln 2
    assert jensen_shannon(double([[0.0, -INF]]), double([[-INF, 0.0]])).item() == pytest.approx(math.log(2))
    # p = (3/4, 1/4), q = (1/2, 1/2), beta = 1/4: m = (9/16, 7/16)
    # 1/4 (3/4 ln(12/9) + 1/4 ln(4/7)) + 3/4 (1/2 ln(8/9) + 1/2 ln(8/7))
    expected = 0.25 * (0.75 * math.log(12 / 9) + 0.25 * math.log(4 / 7)) + 0.75 * 0.5 * (math.log(8 / 9) + math.log(8 / 7))
    assert jensen_shannon(double([[math.log(3), 0.0]]), double([[0.0, 0.0]]), beta=0.25).item() == pytest.approx(expected, abs=1e-12)


@given(matrices(low=-4, high=4), matrices(low=-4, high=4), st.floats(0.05, 0.95), temperatures)
def test_jensen_shannon_is_two_kls_to_the_mixture(teacher, student, beta, temperature):
    p, q = (torch.from_numpy(logits) / temperature for logits in (teacher, student))
    mixture = TorchCategorical(probs=beta * p.softmax(-1) + (1 - beta) * q.softmax(-1))
    expected = beta * kl_divergence(TorchCategorical(logits=p), mixture) + (1 - beta) * kl_divergence(TorchCategorical(logits=q), mixture)
    found = jensen_shannon(p * temperature, q * temperature, beta=beta, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert (found <= math.log(2) + 1e-9).all()
    mirrored = jensen_shannon(q * temperature, p * temperature, beta=1 - beta, temperature=temperature)
    torch.testing.assert_close(found, mirrored, rtol=1e-6, atol=1e-9)


def test_jensen_shannon_tends_to_the_kls_at_its_ends():
    p, q = double([[1.0, 0.0, -1.0]]), double([[0.0, 0.5, 0.0]])
    small = 1e-6
    assert jensen_shannon(p, q, beta=small).item() / small == pytest.approx(forward_kl(p, q).item(), rel=1e-4)
    assert jensen_shannon(p, q, beta=1 - small).item() / small == pytest.approx(reverse_kl(p, q).item(), rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0, math.nan])
def test_a_share_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match=r"it must be in \(0, 1\)"):
        jensen_shannon(torch.zeros(2, 3), torch.zeros(2, 3), beta=beta)


def test_the_gradients_survive_forbidden_actions():
    student = double([[0.0, 1.0, 2.0]]).requires_grad_()
    teacher = double([[0.0, 0.5, -INF]])
    jensen_shannon(teacher, student).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0
    masked = double([[0.0, 1.0, -INF]]).requires_grad_()
    reverse_kl(double([[0.5, 0.0, 0.0]]), masked).sum().backward()
    assert masked.grad is not None
    assert masked.grad[0, :2].isfinite().all()


# Logit standardisation.


def test_standardised_logits_by_hand():
    # mean 2, deviations (-2, 0, 2), variance 8/3
    found = standardize_logits(double([[0.0, 2.0, 4.0]]))
    torch.testing.assert_close(found, double([[-1.0, 0.0, 1.0]]) * math.sqrt(1.5), rtol=1e-5, atol=1e-6)
    assert (standardize_logits(double([[3.0, 3.0]])) == 0).all()


def test_equal_logits_have_no_gradient_when_they_are_standardized():
    """A student whose hidden units are all off in a state has equal logits there: the loss must not become nan."""
    logits = double([[0.0, 0.0, 0.0], [0.0, 2.0, 4.0]]).requires_grad_()
    (standardize_logits(logits) * double([1.0, 2.0, 3.0])).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0] == 0).all()
    assert logits.grad[1].isfinite().all()
    assert (logits.grad[1] != 0).any()


@given(matrices(), st.floats(0.5, 5), st.floats(-10, 10))
def test_standardised_logits_forget_shift_and_scale(logits, scale, shift):
    z = torch.from_numpy(logits)
    z = z + double([[0.0, 1.0, 20.0]])  # never all equal
    torch.testing.assert_close(standardize_logits(z * scale + shift), standardize_logits(z), rtol=1e-4, atol=1e-5)


# Forward KL of Gaussians.


def test_gaussian_kl_by_hand():
    # p = N(1, 1), q = N(0, 2^2): ln 2 + (1 + 1) / (2 * 4) - 1/2 = 0.693147 + 0.25 - 0.5 = 0.443147
    value = gaussian_forward_kl(double([[1.0]]), double([[0.0]]), double([[0.0]]), double([[math.log(2)]]))
    assert value.item() == pytest.approx(math.log(2) - 0.25, abs=1e-12)
    # and the other way round: -ln 2 + (4 + 1) / 2 - 1/2 = 1.306853
    back = gaussian_forward_kl(double([[0.0]]), double([[math.log(2)]]), double([[1.0]]), double([[0.0]]))
    assert back.item() == pytest.approx(2 - math.log(2), abs=1e-12)


def test_gaussian_kl_at_a_temperature_by_hand():
    # T = 2 doubles both variances: p = N(1, 2), q = N(0, 8): ln 2 + (2 + 1) / 16 - 1/2 = 0.380647
    value = gaussian_forward_kl(double([[1.0]]), double([[0.0]]), double([[0.0]]), double([[math.log(2)]]), temperature=2.0)
    assert value.item() == pytest.approx(math.log(2) + 3 / 16 - 0.5, abs=1e-12)


def test_gaussian_reverse_kl_is_the_other_way_round_by_hand():
    # p = N(1, 1), q = N(0, 2^2): KL(q || p) = -ln 2 + (4 + 1) / 2 - 1/2 = 1.306853
    value = gaussian_reverse_kl(double([[1.0]]), double([[0.0]]), double([[0.0]]), double([[math.log(2)]]))
    assert value.item() == pytest.approx(2 - math.log(2), abs=1e-12)
    # T = 2: variances 2 and 8: ln(1/2) + (8 + 1) / 4 - 1/2
    value = gaussian_reverse_kl(double([[1.0]]), double([[0.0]]), double([[0.0]]), double([[math.log(2)]]), temperature=2.0)
    assert value.item() == pytest.approx(math.log(0.5) + 9 / 4 - 0.5, abs=1e-12)


spreads = matrices(low=-2, high=2)


@given(matrices(), matrices(), spreads)
def test_gaussian_likelihood_agrees_with_torch_distributions(drawn, mean, log_std):
    a, m, s = (torch.from_numpy(array) for array in (drawn, mean, log_std))
    torch.testing.assert_close(gaussian_negative_log_likelihood(a, m, s), -Normal(m, s.exp()).log_prob(a).sum(-1), rtol=1e-6, atol=1e-8)


@given(matrices(), spreads, matrices(), spreads, temperatures)
def test_gaussian_kl_agrees_with_torch_distributions(mean, log_std, student_mean, student_log_std, temperature):
    m, s, n, r = (torch.from_numpy(array) for array in (mean, log_std, student_mean, student_log_std))
    root = math.sqrt(temperature)
    expected = kl_divergence(Independent(Normal(m, s.exp() * root), 1), Independent(Normal(n, r.exp() * root), 1))
    torch.testing.assert_close(gaussian_forward_kl(m, s, n, r, temperature=temperature), expected, rtol=1e-6, atol=1e-9)


@given(spreads, spreads, spreads, spreads, st.floats(0.1, 10), st.floats(-5, 5))
def test_gaussian_kl_does_not_depend_on_the_units(mean, log_std, student_mean, student_log_std, scale, offset):
    m, s, n, r = (torch.from_numpy(array) for array in (mean, log_std, student_mean, student_log_std))
    moved = gaussian_forward_kl(m * scale + offset, s + math.log(scale), n * scale + offset, r + math.log(scale))
    torch.testing.assert_close(moved, gaussian_forward_kl(m, s, n, r), rtol=1e-6, atol=1e-8)


def test_standard_deviations_are_broadcast_over_the_batch():
    m, n = torch.randn(2, 5, 3, generator=generator()), torch.randn(2, 5, 3, generator=generator(1))
    s, r = torch.randn(3, generator=generator(2)), torch.randn(2, 1, 3, generator=generator(3))
    whole = gaussian_forward_kl(m, s, n, r)
    assert whole.shape == (2, 5)
    torch.testing.assert_close(whole[1, 4], gaussian_forward_kl(m[1, 4], s, n[1, 4], r[1, 0]))


@given(st.floats(-1.5, 1.5), st.floats(-1.2, 0), st.floats(-1.5, 1.5), st.floats(-1.2, 0))
def test_the_kl_after_tanh_is_that_before_it(mean, log_std, student_mean, student_log_std):
    """KL is invariant under a bijection: integrate the squashed densities themselves, ``p(tanh x) = N(x) / (1 - tanh(x)**2)``."""
    edges = np.tanh(np.linspace(-8, 8, 4001))
    nodes, weights = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    before = np.arctanh(nodes)

    def squashed(centre: float, spread: float) -> np.ndarray:
        gaussian = np.exp(-0.5 * ((before - centre) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        return gaussian / (1 - nodes**2)

    p, q = squashed(mean, math.exp(log_std)), squashed(student_mean, math.exp(student_log_std))
    present = p > 1e-100
    integral = float((weights * p)[present] @ np.log(p[present] / np.maximum(q[present], 1e-300)))
    closed = gaussian_forward_kl(double([mean]), double([log_std]), double([student_mean]), double([student_log_std])).item()
    assert closed == pytest.approx(integral, rel=2e-3, abs=2e-3)


# Softening a family and softening its loss are the same.


@given(matrices(), matrices(), temperatures)
def test_a_softened_loss_is_the_loss_of_softened_policies(teacher, student, temperature):
    p, q = torch.from_numpy(teacher), torch.from_numpy(student)
    spread = torch.full_like(p, -0.5)
    for divergence in (forward_kl, reverse_kl, jensen_shannon):
        torch.testing.assert_close(divergence(p / temperature, q / temperature), divergence(p, q, temperature=temperature), **WORST)
    # a Gaussian's log-density divided by T keeps its mean, and its variance is multiplied by T
    softer = spread + 0.5 * math.log(temperature)
    tempered = gaussian_forward_kl(p, softer, q, softer)
    torch.testing.assert_close(tempered, gaussian_forward_kl(p, spread, q, spread, temperature=temperature), **WORST)


# Hard labels.


def test_cross_entropy_by_hand():
    # q = (3/4, 1/4): -ln(1/4) = 1.386294 for the second action
    assert hard_label_cross_entropy(tensor([1]), double([[math.log(3), 0.0]])).item() == pytest.approx(math.log(4), abs=1e-12)


@given(matrices(), arrays.arrays(np.int64, 4, elements=st.integers(0, 2)))
def test_cross_entropy_is_minus_torchs_log_prob(logits, labels):
    q, chosen = torch.from_numpy(logits), torch.from_numpy(labels)
    torch.testing.assert_close(hard_label_cross_entropy(chosen, q), -TorchCategorical(logits=q).log_prob(chosen), **WORST)


@given(matrices(), arrays.arrays(np.int64, 4, elements=st.integers(0, 2)))
def test_cross_entropy_is_the_kl_from_a_certain_teacher(logits, labels):
    q, chosen = torch.from_numpy(logits), torch.from_numpy(labels)
    certain = torch.full_like(q, -INF).scatter(-1, chosen[:, None], 0.0)
    torch.testing.assert_close(hard_label_cross_entropy(chosen, q), forward_kl(certain, q), **WORST)


def test_the_gradient_of_cross_entropy_is_the_numeric_one():
    q = torch.randn(2, 3, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    labels = tensor([[0, 3, 1], [2, 2, 0]])
    assert hard_label_cross_entropy(labels, q).shape == (2, 3)
    assert torch.autograd.gradcheck(lambda x: hard_label_cross_entropy(labels, x), q)


# Errors of continuous actions.


@pytest.mark.parametrize(
    ("target", "prediction", "error"),
    [
        (0.25, 0.75, 0.5),  # prediction - target
        (0.75, 0.25, -0.5),
        (1.0, 0.5, -0.5),  # short of the bound
        (1.0, 1.0, 0.0),
        (1.0, 7.0, 0.0),  # past the target's own bound: the environment feels no difference
        (1.0, -7.0, -8.0),  # past the other bound
        (-1.0, -7.0, 0.0),
        (-1.0, 7.0, 8.0),
        (-1.0, 0.5, 1.5),
        (0.5, 3.0, 2.5),  # target within the bounds: a prediction beyond them is wrong
        (3.0, 1.5, 0.0),  # a target outside is the bound
        (3.0, 0.5, -0.5),
        (-3.0, -1.5, 0.0),
    ],
)
def test_bounded_error_by_hand(target, prediction, error):
    assert bounded_error(tensor([[target]]), tensor([[prediction]])).item() == error


@pytest.mark.parametrize(
    ("target", "prediction", "error"),
    [
        (0.75, 3.0, 0.0),  # near the bound it is meant for the bound
        (0.875, 0.9375, 0.0),
        (0.875, 0.5, -0.375),  # short of it
        (0.875, -3.0, -3.875),  # past the other bound
        (-0.875, -3.0, 0.0),
        (-0.875, 3.0, 3.875),
        (0.5, 3.0, 2.5),  # not near enough
        (3.0, 1.5, 0.0),
    ],
)
def test_past_a_target_near_its_bound_nothing_is_an_error(target, prediction, error):
    assert bounded_error(tensor([[target]]), tensor([[prediction]]), near_bound=0.75).item() == error


within = st.floats(-1, 1)


@given(st.lists(st.tuples(within, st.floats(-3, 3)), min_size=1, max_size=8))
def test_bounded_error_is_zero_only_where_the_environment_feels_the_same_action(pairs):
    target, prediction = double([pair[0] for pair in pairs]), double([pair[1] for pair in pairs])
    same = prediction.clamp(-1, 1) == target
    assert (bounded_error(target, prediction)[~same] != 0).all()
    felt = same & ((prediction.abs() <= 1) | (target.abs() == 1))
    assert (bounded_error(target, prediction)[felt] == 0).all()


@given(st.lists(st.tuples(within, st.floats(-3, 3)), min_size=1, max_size=8), st.floats(0.1, 1))
def test_bounded_error_is_zero_only_where_the_environment_feels_nearly_the_same_action(pairs, near_bound):
    target, prediction = double([pair[0] for pair in pairs]), double([pair[1] for pair in pairs])
    error, felt = bounded_error(target, prediction, near_bound=near_bound), prediction.clamp(-1, 1) - target
    assert (felt[error == 0].abs() <= 1 - near_bound + 1e-9).all()
    assert (felt[(error == 0) & (target.abs() < near_bound)] == 0).all()


@given(matrices(low=-3, high=3), matrices(low=-3, high=3), st.floats(0.1, 1))
def test_bounded_error_of_mirrored_actions_is_mirrored(target, prediction, near_bound):
    t, p = torch.from_numpy(target), torch.from_numpy(prediction)
    assert torch.equal(bounded_error(-t, -p, near_bound=near_bound), -bounded_error(t, p, near_bound=near_bound))


def test_a_wrong_prediction_beyond_the_bounds_has_a_gradient():
    prediction = tensor([[7.0, 7.0, -7.0]], requires_grad=True)
    bounded_error(tensor([[-1.0, 1.0, 0.5]]), prediction).square().sum().backward()
    # 2 (p - t) where it counts: 2 * 8, none past the target's own bound, 2 * -7.5
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[16.0, 0.0, -15.0]]


def test_mean_squared_and_mean_absolute_by_hand():
    error = double([[1.0, -2.0, 0.0], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(mean_squared(error), double([5 / 3, 0.25]))
    torch.testing.assert_close(mean_absolute(error), double([1.0, 0.5]))


def test_huber_by_hand():
    # delta 0.1: 0.05^2 / 0.2 = 0.0125; 0.5 - 0.05 = 0.45; their mean is 0.23125
    assert huber(double([[0.05, -0.5]])).item() == pytest.approx(0.23125, abs=1e-12)
    # delta 1: 0.5^2 / 2 = 0.125; 3 - 0.5 = 2.5
    assert huber(double([[0.5, 3.0]]), delta=1.0).item() == pytest.approx((0.125 + 2.5) / 2, abs=1e-12)


@given(matrices(low=-2, high=2), st.floats(0.05, 1))
def test_huber_is_torchs_smooth_l1(error, delta):
    e = torch.from_numpy(error)
    expected = torch.nn.functional.smooth_l1_loss(e, torch.zeros_like(e), reduction="none", beta=delta).mean(-1)
    torch.testing.assert_close(huber(e, delta=delta), expected, **WORST)


@given(matrices(low=-2, high=2))
def test_huber_lies_between_no_error_and_the_absolute_one(error):
    e = torch.from_numpy(error)
    assert (huber(e) <= mean_absolute(e)).all()
    assert (huber(e) >= mean_absolute(e) - 0.05 - 1e-12).all()


@pytest.mark.parametrize("loss", [mean_squared, mean_absolute, huber])
def test_gradients_of_the_regressions_are_the_numeric_ones(loss):
    error = torch.randn(2, 3, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert loss(error).shape == (2, 3)
    assert torch.autograd.gradcheck(loss, error)


@pytest.mark.parametrize("delta", [0.0, -0.1, math.nan])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match=f"delta is {delta}; it must be > 0"):
        huber(torch.zeros(1, 1), delta=delta)


# Q-values.


def test_q_values_become_logits_by_hand():
    # (Q - max Q) / 2
    assert q_values_to_logits(tensor([[10.0, 12.0, 6.0]]), 2.0).tolist() == [[-1.0, 0.0, -3.0]]


@given(matrices(), st.floats(0.1, 10), st.floats(-50, 50), st.floats(0.1, 10))
def test_the_scale_and_origin_of_the_reward_do_not_change_the_logits(values, gap, offset, scale):
    q = torch.from_numpy(values)
    torch.testing.assert_close(q_values_to_logits(q * scale + offset, gap * scale), q_values_to_logits(q, gap), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gap", [0.0, -1.0, INF, math.nan])
def test_a_gap_that_is_none_is_refused(gap):
    with pytest.raises(ValueError, match=f"gap is {gap}; it must be > 0"):
        q_values_to_logits(torch.zeros(1, 2), gap)


def test_the_median_gap_by_hand():
    # 5 - 3, 9 - 8, 4 - 0: 2, 1, 4; their median is 2
    assert median_action_gap(tensor([[5.0, 1.0, 3.0], [8.0, 9.0, 0.0], [0.0, 0.0, 4.0]])) == 2.0


def test_the_median_gap_of_one_action_is_one_and_of_ties_above_zero():
    assert median_action_gap(torch.zeros(5, 1)) == 1.0
    assert 0 < median_action_gap(torch.zeros(5, 3)) < 1e-9
