"""Statistics of a teacher's actions in the states that it visits, and findings from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from policy_distill.evaluation.teacher_check.findings import Finding
from policy_distill.policies.actions import ActionTargets
from policy_distill.policies.families.q_values import median_action_gap
from policy_distill.policies.observations import encode_observations
from policy_distill.support.trees import Tree, length, to_tensors
from policy_distill.teachers import Teacher

NOT_FINITE = Finding("stop", "not_finite", "the agent answers with NaN or infinity", "take an earlier checkpoint: training diverged")


OF_ACTIONS = "no action needed: the default loss compares actions, and counts no error beyond a bound"
OF_MEANS = (
    "the default loss compares distributions, in which differences beyond the bound, which no action depends on, count a fifth "
    "(--loss.beyond_bounds); --loss.kind regression compares the actions that the environment receives"
)


@dataclass(frozen=True)
class Behaviour:
    """Statistics over the visited states; None if not applicable to this teacher.

    Attributes:
        states: number of states.
        finite: whether all outputs are finite.
        constant: whether the action is the same in all states.
        reaction: largest standard deviation over the states of a component of the deterministic action, in units of half its range, or
            of a Gaussian policy's mean standard deviation if that is smaller, since bounds may be far wider than the actions; 0: the
            policy does not react.
        clipped: share of the components of its deterministic action that lie on or beyond a bound.
        loss: kind of the default loss of continuous actions; see ``LossConfig.kind``.
        entropy: mean entropy of its distribution, as a share of the greatest possible: 0 is certain, 1 uniform.
        q_gap: median gap between the best two Q-values.
        q_size: median of the best Q-value's absolute value.
        beyond_clip: share of the normalised components that VecNormalize clips.
        normalized_center: median over the components of the normalised observation of its absolute mean; about 0 where training was.
            Components that are constant, here as in training, are left out.
        normalized_spread: the same of the root of its mean square; about 1 where training was.
    """

    states: int
    finite: bool
    constant: bool
    reaction: float | None = None
    clipped: float | None = None
    loss: str | None = None
    entropy: float | None = None
    q_gap: float | None = None
    q_size: float | None = None
    beyond_clip: float | None = None
    normalized_center: float | None = None
    normalized_spread: float | None = None


def observe(teacher: Teacher, observations: Tree, targets: ActionTargets) -> Behaviour:
    """Statistics of the teacher's labels ``targets`` of raw ``observations`` ``[B, ...]``."""
    said = [targets.actions, *targets.parameters.values()]
    finite = not any(bool(value.isnan().any()) for value in said) and bool(targets.actions.isfinite().all())
    constant = length(observations) > 1 and bool((targets.actions == targets.actions[:1]).all())
    figures: dict[str, Any] = {}
    if finite:
        figures |= _of_actions(teacher, targets)
    if teacher.normalization is not None:
        figures |= _of_normalization(teacher, observations)
    return Behaviour(length(observations), finite, constant, **figures)


def _of_actions(teacher: Teacher, targets: ActionTargets) -> dict[str, Any]:
    parameters, family = targets.parameters, teacher.family
    if "q_values" in parameters:
        q_values = parameters["q_values"]
        if q_values.shape[1] < 2:
            return {}
        return {"q_gap": median_action_gap(q_values), "q_size": float(q_values.amax(-1).abs().median())}
    if family.box is None and has_distribution(teacher):
        greatest = sum(math.log(size) for size in family.sizes)
        return {"entropy": float((family.entropy(parameters) / greatest).mean()) if greatest else 0.0}
    if family.box is None or not _is_bounded(teacher.action_space):
        return {}
    reaction = family.box.to_box(targets.actions.double()).std(0, correction=0)
    log_std, clipped = family.box_log_std(parameters), family.share_on_bound(parameters)
    if log_std is not None:
        reaction = reaction / log_std.double().exp().mean(0).clamp(max=1.0)
    return {"reaction": float(reaction.max()), **({} if clipped is None else {"clipped": clipped, "loss": family.losses[0]})}


def has_distribution(teacher: Teacher) -> bool:
    """Whether the teacher has a stochastic policy: a Gaussian or logits; not Q-values or the actions of a callable."""
    named = getattr(teacher.network, "scores", "logits") == "q_values" or getattr(teacher.network, "outputs", "logits") == "actions"
    return bool(teacher.family.names) and not named


def _is_bounded(space: gym.Space) -> bool:
    return isinstance(space, gym.spaces.Box) and space.is_bounded()


def _of_normalization(teacher: Teacher, observations: Tree) -> dict[str, float]:
    statistics = teacher.normalization
    assert statistics is not None
    # Of a Dict, keys that are not normalised are left out: nothing clips them.
    clip = np.broadcast_to(statistics.clip, statistics.mean.shape).ravel()
    known, epsilon = np.isfinite(clip), np.broadcast_to(statistics.epsilon, statistics.var.shape).ravel()
    vectors = encode_observations(teacher.observation_space, to_tensors(observations), torch.float64).numpy()
    z = (vectors - statistics.mean.ravel()) / np.sqrt(statistics.var + statistics.epsilon).ravel()
    z = z[:, known]
    figures = {"beyond_clip": float((np.abs(z) >= clip[known]).mean())}
    # A component that was constant in training and still is has no spread: one that a wrapper masks.
    constant = (statistics.var.ravel() < epsilon)[known] & (np.abs(z) < 1).all(0)
    if not constant.all():
        z = z[:, ~constant]
        figures["normalized_center"] = float(np.median(np.abs(z.mean(0))))
        figures["normalized_spread"] = float(np.median(np.sqrt((z**2).mean(0))))
    return figures


def judge(seen: Behaviour) -> list[Finding]:
    """Findings from the statistics. The thresholds lie well outside the values of 18 RL Zoo agents in their training environments."""
    found: list[Finding] = []
    if not seen.finite:
        found.append(NOT_FINITE)
    if seen.constant:
        what = f"the agent takes the same action in all {seen.states:,} states that it visited"
        found.append(
            Finding("warn", "constant_action", what, "check whether it was trained, and whether the observations are those of its training")
        )
    if seen.beyond_clip is not None:
        center = 0.0 if seen.normalized_center is None else seen.normalized_center
        spread = 1.0 if seen.normalized_spread is None else seen.normalized_spread
        if seen.beyond_clip > 0.01 or center > 3 or not 0.1 < spread < 4:
            what = (
                f"the observations here do not fit the normalisation statistics: {seen.beyond_clip:.1%} of the normalised components are "
                f"clipped, their centre is {center:.2g} (0 is usual), their spread {spread:.2g} (1 is usual)"
            )
            fix = "check that the statistics belong to this agent (--normalization PATH) and that the environment is that of its training"
            found.append(Finding("warn", "normalization_does_not_fit", what, fix))
    if seen.entropy is not None and seen.entropy > 0.95:
        what = f"the policy is nearly uniform: {seen.entropy:.0%} of the maximum entropy"
        found.append(Finding("warn", "near_uniform", what, "it hardly prefers its best action: train it longer"))
    if seen.entropy is not None and seen.entropy < 0.02:
        what = f"the policy is nearly deterministic: {seen.entropy:.1%} of the maximum entropy"
        found.append(
            Finding("note", "near_deterministic", what, "its distribution carries little information; --loss.temperature 2 softens it")
        )
    if seen.q_gap is not None and seen.q_size is not None:
        what = f"the best two Q-values are {seen.q_gap:.3g} apart (median) at a size of {seen.q_size:.3g}"
        fix = f"that is a temperature of {0.1 * seen.q_gap:.2g}, which distill_policy takes by itself (loss.q_gap_fraction)"
        found.append(Finding("note", "q_gap", what, fix))
    if seen.clipped is not None and seen.clipped > 0.5:
        what = f"{seen.clipped:.0%} of the action components lie on a bound"
        found.append(Finding("note", "clipped_actions", what, OF_MEANS if seen.loss == "kl" else OF_ACTIONS))
    return found
