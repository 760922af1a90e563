"""Small networks that carry their own normalisation: raw observations in, actions out. K of one architecture train as one stack."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policy_distill.actions import DiagGaussian, Family, Parameters, family_of
from policy_distill.config import RequestError
from policy_distill.files import write_atomically
from policy_distill.spaces import encode_observations, observation_width, space_from_dict, space_to_dict

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}
FORMAT = 1
"""Of student.json and student.safetensors."""
SMALLEST_WIDTH = 4
"""No hidden layer is chosen narrower than this: a bottleneck of one or two units loses the policy and saves nothing."""


@dataclass(frozen=True)
class Architecture:
    """What a student looks like, apart from its weights."""

    observation_space: gym.Space
    action_space: gym.Space
    hidden_sizes: tuple[int, ...]
    activation: str = "relu"

    @property
    def family(self) -> Family:
        return family_of(self.action_space)

    @property
    def widths(self) -> tuple[int, ...]:
        """Input, hidden and output widths."""
        return (observation_width(self.observation_space), *self.hidden_sizes, self.family.width)

    @property
    def params(self) -> int:
        """Parameters of the acting network; the normalisation folds into the first layer and adds none."""
        return count_parameters(self.widths)


def count_parameters(widths: tuple[int, ...]) -> int:
    """Weights and biases of fully connected layers between ``widths``."""
    return sum((width_in + 1) * width_out for width_in, width_out in itertools.pairwise(widths))


def hidden_sizes_for(compression: float, teacher_params: int, inputs: int, outputs: int) -> tuple[int, int]:
    """Two equal hidden layers, as wide as ``teacher_params / compression`` parameters allow, and ``SMALLEST_WIDTH`` at least."""
    budget = teacher_params / compression
    linear_term = inputs + outputs + 2
    width = math.floor((-linear_term + math.sqrt(max(linear_term**2 + 4 * (budget - outputs), 0.0))) / 2)
    width = max(width, SMALLEST_WIDTH)
    return (width, width)


class Student(nn.Module):
    """One trained or training policy. Continuous outputs are means in box units; ``log_std`` completes them to a distribution.

    Attributes:
        network: fully connected layers on normalised observations.
        mean, scale: ``[inputs]``; a raw observation is normalised as ``(observation - mean) / scale``, without clipping.
        log_std: ``[action_dim]`` in box units for continuous actions, else empty.
    """

    mean: Tensor
    scale: Tensor
    log_std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.family = architecture.family
        widths = architecture.widths
        layers: list[nn.Module] = []
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            if index:
                layers.append(ACTIVATIONS[architecture.activation]())
            layers.append(nn.Linear(width_in, width_out))
        self.network = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(widths[0]))
        self.register_buffer("scale", torch.ones(widths[0]))
        self.register_buffer("log_std", torch.zeros(widths[-1] if isinstance(self.family, DiagGaussian) else 0))

    @property
    def observation_space(self) -> gym.Space:
        return self.architecture.observation_space

    @property
    def action_space(self) -> gym.Space:
        return self.architecture.action_space

    @property
    def params(self) -> int:
        return self.architecture.params

    @property
    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.network if isinstance(layer, nn.Linear)]

    def forward(self, observations: Tensor) -> Tensor:
        """Raw observations ``[B, ...]`` to logits or means ``[B, outputs]``."""
        encoded = encode_observations(self.observation_space, observations)
        output: Tensor = self.network((encoded - self.mean) / self.scale)
        return output

    def parameters_of(self, observations: Tensor) -> Parameters:
        """The parameters of the student's action distribution."""
        output = self(observations)
        if isinstance(self.family, DiagGaussian):
            return {"mean": output, "log_std": self.log_std.expand_as(output)}
        return {"logits": output}

    @torch.inference_mode()
    def act(self, observations: np.ndarray, *, generator: torch.Generator | None = None) -> np.ndarray:
        """Raw observations ``[B, ...]`` to actions that ``env.step`` accepts; the mode, or a draw if a generator is given."""
        parameters = self.parameters_of(torch.as_tensor(observations))
        actions = self.family.mode(parameters) if generator is None else self.family.sample(parameters, generator)  # type: ignore[union-attr]
        array = actions.numpy()
        return array.reshape(len(array), *self.action_space.shape) if isinstance(self.action_space, gym.spaces.Box) else array

    def save(self, folder: str | Path, *, extra: dict[str, Any] | None = None) -> Path:
        """Write ``student.safetensors`` and ``student.json`` into ``folder``; ``extra`` (the environment, say) goes into the JSON."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        description = {
            "format": FORMAT,
            "hidden_sizes": list(self.architecture.hidden_sizes),
            "activation": self.architecture.activation,
            "params": self.params,
            "observation_space": space_to_dict(self.observation_space),
            "action_space": space_to_dict(self.action_space),
            **(extra or {}),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(path / "student.safetensors", lambda target: save_file(tensors, target))
        write_atomically(path / "student.json", lambda target: target.write_text(json.dumps(description, indent=2) + "\n"))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Student:
        """Read what ``save`` wrote.

        Raises:
            RequestError: if the folder holds no student or the files do not fit together.
        """
        path = Path(folder)
        description = read_description(path)
        if description.get("format") != FORMAT:
            raise RequestError(
                f"{path} is of format {description.get('format')}, this version reads {FORMAT}: install the one that wrote it"
            )
        try:
            architecture = Architecture(
                space_from_dict(description["observation_space"]),
                space_from_dict(description["action_space"]),
                tuple(description["hidden_sizes"]),
                description["activation"],
            )
            student = cls(architecture)
            student.load_state_dict(load_file(path / "student.safetensors"))
        except Exception as error:  # whatever is wrong inside a damaged file, the mend is the same
            raise RequestError(f"{path} holds no readable student ({str(error).splitlines()[0]}): write it again") from error
        return student.eval().requires_grad_(False)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Return the contents of ``student.json``.

    Raises:
        RequestError: if it is not there or not JSON.
    """
    path = Path(folder) / "student.json"
    try:
        description: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise RequestError(f"{folder} holds no student.json: name the folder that a student was saved in") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read ({error}): write the student again") from None
    return description


@dataclass(frozen=True)
class Activations:
    """What a stack computed on the way, all ``[K, B, width]``.

    Attributes:
        inputs: normalised observations.
        before: of each layer, before its activation.
        after: of each layer, after it; the last one is the output, which has none.
    """

    inputs: Tensor
    before: list[Tensor]
    after: list[Tensor]

    def named(self) -> dict[str, Tensor]:
        """``hidden.0``, ``hidden.1``, ..., ``output``."""
        return dict(zip(layer_names(len(self.after) - 1), self.after, strict=True))


def layer_names(num_hidden: int) -> list[str]:
    """Names of a student's layers, as hints and relations call them."""
    return [*(f"hidden.{index}" for index in range(num_hidden)), "output"]


class StudentStack:
    """K students of one architecture whose parameters are rows of one flat tensor, so that one step trains all of them.

    The backward pass is written out: for networks this small autograd's bookkeeping costs more than its arithmetic.

    Args:
        architecture: of each member.
        generators: one a member, for its first weights.
        mean, scale: ``[inputs]`` of the normalisation, on the training device.
        projections: for each hint the student's and the teacher's width; learned with the rest and left behind by ``member``.

    Attributes:
        flat: ``[K, P]``: weights and biases layer after layer, then ``log_std`` for continuous actions, then the projections.
        gradient: ``[K, P]``; ``backward`` writes here through views.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        generators: list[torch.Generator],
        mean: Tensor,
        scale: Tensor,
        projections: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.architecture = architecture
        self.num_members = len(generators)
        self.mean, self.scale = mean, scale
        self._forward, self._derivative = _FUNCTIONS[architecture.activation]
        widths = architecture.widths
        spread = widths[-1] if isinstance(architecture.family, DiagGaussian) else 0
        size = architecture.params + spread + sum((ours + 1) * theirs for ours, theirs in projections)
        self.flat = torch.zeros(self.num_members, size, device=mean.device)
        self.gradient = torch.zeros_like(self.flat)
        self._offset = 0
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        self._weight_gradients: list[Tensor] = []
        self._bias_gradients: list[Tensor] = []
        self._leaves: list[tuple[Tensor, Tensor]] = []
        for width_in, width_out in itertools.pairwise(widths):
            for parameters, gradients, rows in ((self.weights, self._weight_gradients, width_in), (self.biases, self._bias_gradients, 1)):
                window, gradient = self._windows(rows, width_out)
                parameters.append(window)
                gradients.append(gradient)
        self.log_std = self._leaf(1, spread)
        self.projections = [(self._leaf(ours, theirs), self._leaf(1, theirs)) for ours, theirs in projections]
        self._initialize(generators)

    def _windows(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """The next ``[K, rows, columns]`` of ``flat`` and of ``gradient``."""
        window = slice(self._offset, self._offset + rows * columns)
        self._offset = window.stop
        return self.flat[:, window].unflatten(1, (rows, columns)), self.gradient[:, window].unflatten(1, (rows, columns))

    def _leaf(self, rows: int, columns: int) -> Tensor:
        """The next window as a leaf of autograd's; ``backward`` takes its gradient over."""
        window, gradient = self._windows(rows, columns)
        leaf = window.detach().requires_grad_()
        self._leaves.append((leaf, gradient))
        return leaf

    @torch.no_grad()
    def _initialize(self, generators: list[torch.Generator]) -> None:
        """Orthogonal weights (gain sqrt 2 in hidden layers, 0.1 at the output), zero biases, a standard deviation of exp(-1)."""
        gains = [math.sqrt(2)] * (len(self.weights) - 1) + [0.1] + [1.0] * len(self.projections)
        for weight, gain in zip([*self.weights, *(weight for weight, _ in self.projections)], gains, strict=True):
            for member, generator in enumerate(generators):
                fresh = torch.empty(weight.shape[1:])
                nn.init.orthogonal_(fresh, gain, generator=generator)
                weight[member].copy_(fresh)
        self.log_std.fill_(-1.0)

    @torch.no_grad()
    def forward(self, observations: Tensor) -> Activations:
        """Encoded raw observations ``[K, B, inputs]`` to all layers."""
        inputs = hidden = (observations - self.mean) / self.scale
        before: list[Tensor] = []
        after: list[Tensor] = []
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            before.append(torch.baddbmm(bias, hidden, weight))
            hidden = self._forward(before[-1]) if index < last else before[-1]
            after.append(hidden)
        return Activations(inputs, before, after)

    @torch.no_grad()
    def backward(self, activations: Activations, gradients: Sequence[Tensor | None]) -> None:
        """Write the loss's gradient with respect to all parameters into ``gradient``, after autograd has been through the loss alone.

        Args:
            activations: what ``forward`` returned.
            gradients: of the loss with respect to each of ``activations.after``; None where the loss does not read a hidden layer.
        """
        for leaf, window in self._leaves:
            window.zero_() if leaf.grad is None else window.copy_(leaf.grad)
            leaf.grad = None
        upstream = gradients[-1]
        assert upstream is not None, "every loss reads the output"
        for index in reversed(range(len(self.weights))):
            below = activations.after[index - 1] if index else activations.inputs
            torch.bmm(below.transpose(1, 2), upstream, out=self._weight_gradients[index])
            torch.sum(upstream, 1, keepdim=True, out=self._bias_gradients[index])
            if index:
                upstream = torch.bmm(upstream, self.weights[index].transpose(1, 2))
                hint = gradients[index - 1]
                if hint is not None:
                    upstream += hint
                upstream = self._derivative(upstream, activations.before[index - 1], below)

    @torch.no_grad()
    def member(self, index: int, flat: Tensor | None = None) -> Student:
        """Copy member ``index`` out as a ``Student`` on the CPU; from ``flat`` ``[K, P]`` if given (averaged weights)."""
        source = (self.flat if flat is None else flat)[index].cpu()
        student = Student(self.architecture)
        offset = 0
        for layer in student.linears:
            count = layer.in_features * layer.out_features
            layer.weight.copy_(source[offset : offset + count].view(layer.in_features, layer.out_features).T)
            offset += count
            layer.bias.copy_(source[offset : offset + layer.out_features])
            offset += layer.out_features
        student.mean.copy_(self.mean)
        student.scale.copy_(self.scale)
        student.log_std.copy_(source[offset : offset + len(student.log_std)])
        return student.eval().requires_grad_(False)


_aten = torch.ops.aten
_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "relu": (torch.relu, lambda upstream, before, after: _aten.threshold_backward(upstream, after, 0)),
    "tanh": (torch.tanh, lambda upstream, before, after: _aten.tanh_backward(upstream, after)),
    "elu": (nn.functional.elu, lambda upstream, before, after: _aten.elu_backward(upstream, 1.0, 1.0, 1.0, True, after)),
    "silu": (nn.functional.silu, lambda upstream, before, after: _aten.silu_backward(upstream, before)),
}
"""Each activation, and (gradient after it, value before it, value after it) -> gradient before it."""
