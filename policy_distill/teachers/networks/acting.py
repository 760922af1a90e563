"""The acting network of each algorithm family as plain torch modules, rebuilt from weights.

Each module maps preprocessed observations (float32, flat, normalised) to ``ActionTargets``. The formulas are those of Stable-Baselines3's
``common/policies.py``, ``common/distributions.py``, ``sac/policies.py``, ``td3/policies.py``, ``dqn/policies.py`` and of sb3-contrib.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from policy_distill.policies.actions import ActionTargets, Box
from policy_distill.policies.families import Deterministic, DiagGaussian, Family
from policy_distill.policies.fast_forward import run


class DiscreteNetwork(nn.Module):
    """Scores of discrete choices: logits (a2c, ppo, trpo, ars) or Q-values (dqn, qrdqn: the mean over the quantiles)."""

    def __init__(self, body: nn.Module, family: Family, *, scores: str, num_quantiles: int = 1) -> None:
        super().__init__()
        self.body = body
        self.family = family
        self.scores = scores
        self.num_quantiles = num_quantiles

    @property
    def acting_params(self) -> int:
        return count(self.body)

    def forward(self, features: Tensor) -> ActionTargets:
        scores = run(self.body, features)
        if self.num_quantiles > 1:
            scores = scores.view(len(scores), self.num_quantiles, -1).mean(1)
        parameters = {self.scores: scores}
        return ActionTargets(parameters, self.family.mode(parameters))


class SwitchLogits(nn.Module):
    """One logit per binary action, from MaskablePPO's pairs of logits for off and on ``[B, 2 * switches]``."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores[:, 1::2] - scores[:, 0::2]


def scores_both(family: Family, outputs: int) -> bool:
    """Whether a network with this number of outputs has a logit for off and one for on of each binary action."""
    return family.sizes == (2,) * family.width and outputs == 2 * family.width


class DeterministicNetwork(nn.Module):
    """One continuous action: tanh and unscaling (td3, ddpg, ars MLP), or clipping (ars linear)."""

    def __init__(self, body: nn.Module, bounds: ActionBounds, *, squashed: bool) -> None:
        super().__init__()
        self.body = body
        self.bounds = bounds
        self.squashed = squashed
        self.family: Family = Deterministic(bounds.box)

    @property
    def acting_params(self) -> int:
        return count(self.body)

    def forward(self, features: Tensor) -> ActionTargets:
        raw = run(self.body, features)
        return ActionTargets({}, self.bounds.unscale(raw.tanh()) if self.squashed else self.bounds.clip(raw))


class GaussianNetwork(nn.Module):
    """A Gaussian policy: clipped (a2c, ppo, trpo) or squashed by tanh (sac, tqc, and gSDE with ``squash_output``)."""

    def __init__(
        self, latent: nn.Module, mean: nn.Module, spread: nn.Module, bounds: ActionBounds, *, squashed: bool, spread_acts: bool
    ) -> None:
        super().__init__()
        self.latent = latent
        self.mean = mean
        self.spread = spread
        self.bounds = bounds
        self.squashed = squashed
        self.spread_acts = spread_acts
        self.family: Family = DiagGaussian(bounds.box, squashed=squashed)

    @property
    def acting_params(self) -> int:
        """Number of parameters that compute the mean; for sac and tqc also those of the standard deviation, which the actor holds."""
        return count(self.latent) + count(self.mean) + (count(self.spread) if self.spread_acts else 0)

    def forward(self, features: Tensor) -> ActionTargets:
        latent = run(self.latent, features)
        mean = run(self.mean, latent)
        log_std = self.spread.forward(latent, features)
        if self.squashed:
            return ActionTargets({"mean": mean, "log_std": log_std.expand_as(mean)}, self.bounds.unscale(mean.tanh()))
        parameters = {"mean": self.bounds.to_box(mean), "log_std": (log_std - self.bounds.log_scale).expand_as(mean)}
        return ActionTargets(parameters, self.bounds.clip(mean))


class ActionBounds(nn.Module):
    """A box's bounds as buffers, with the mappings between units that Stable-Baselines3 and the families use."""

    low: Tensor
    high: Tensor
    scale: Tensor
    offset: Tensor
    log_scale: Tensor

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.box = box
        scale, offset = box.affine()
        self._is_box = bool((scale == 1).all() and (offset == 0).all())
        for name, values in (("low", box.low), ("high", box.high), ("scale", scale), ("offset", offset)):
            self.register_buffer(name, torch.tensor(np.asarray(values), dtype=torch.float32))
        self.register_buffer("log_scale", self.scale.log(), persistent=False)

    def clip(self, actions: Tensor) -> Tensor:
        return actions.clamp(self.low, self.high)

    def unscale(self, squashed: Tensor) -> Tensor:
        """From [-1, 1] to the environment's bounds, with the same order of operations as SB3."""
        return self.low + 0.5 * (squashed + 1.0) * (self.high - self.low)

    def to_unit(self, actions: Tensor) -> Tensor:
        """From the environment's bounds to [-1, 1], independent of box units; Q-functions of continuous actions read these."""
        return self.to_box(actions) if self.box.units is None else Box(self.box.low, self.box.high).to_box(actions)

    def to_box(self, actions: Tensor) -> Tensor:
        """From the environment's units to box units."""
        return actions if self._is_box else (actions - self.offset) / self.scale


class ConstantSpread(nn.Module):
    """A log standard deviation that does not depend on the state."""

    def __init__(self, log_std: Tensor) -> None:
        super().__init__()
        self.log_std = nn.Parameter(log_std)

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        return self.log_std


class LinearSpread(nn.Module):
    """SAC's log standard deviation: a linear layer, clamped to [-20, 2]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        return run(self.head, latent).clamp(-20.0, 2.0)


class StateDependentSpread(nn.Module):
    """gSDE: variance = latent**2 @ std(log_std)**2 + 1e-6 (Raffin et al. 2022, arXiv 2005.05719, sec. 3)."""

    variance: Tensor

    def __init__(self, log_std: Tensor, *, expln: bool, features: nn.Module | None) -> None:
        super().__init__()
        self.log_std = nn.Parameter(log_std)
        self.features = features
        std = log_std.exp()
        if expln:  # grows like a logarithm above 0
            std = torch.where(log_std <= 0, std, (log_std.clamp_min(0) + 1e-6).log1p() + 1.0)
        self.register_buffer("variance", std.detach().square(), persistent=False)

    def forward(self, latent: Tensor, features: Tensor) -> Tensor:
        if self.features is not None:  # sde_net_arch of old versions: the noise has separate latent features
            latent = run(self.features, features)
        return 0.5 * (latent.square() @ self.variance + 1e-6).log()


def count(module: nn.Module) -> int:
    """Number of parameters. Batch renormalisation adds none: with the statistics of training it is part of the layer behind it."""
    folded = {id(parameter) for part in module.modules() if hasattr(part, "ra_mean") for parameter in part.parameters()}
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in folded)
