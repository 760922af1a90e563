"""The C interface of a policy: names and types of its inputs, its action and its state."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from policy_distill.config import RequestError
from policy_distill.export.folded import ActionRule, Folded, Input, Normalization

RESERVED = frozenset(
    [
        "auto",
        "break",
        "case",
        "char",
        "const",
        "continue",
        "default",
        "do",
        "double",
        "else",
        "enum",
        "extern",
        "float",
        "for",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "typedef",
        "union",
        "unsigned",
        "void",
        "volatile",
        "while",
        "bool",
        "true",
        "false",
        "and",
        "or",
        "not",
        "class",
        "new",
        "delete",
        "this",
        "catch",
        "explicit",
        "export",
        "friend",
        "mutable",
        "namespace",
        "operator",
        "private",
        "protected",
        "public",
        "template",
        "throw",
        "try",
        "typename",
        "using",
        "virtual",
        "xor",
        "asm",
        "main",
        "unix",
        "linux",
        "action",
        "outputs",
        "state",
        "features",
        "first",
        "second",
        "x",
        "i",
        "j",
        "k",
        "layer",
        "dense",
        "activate",
        "unit",
        "rounded",
        "tangent",
        "sigmoid",
        "remember",
        "forbid",
        "distance_from",
        "vanishing",
        "to_fixed",
        "to_fixed_double",
    ]
)
"""Names that an input cannot have in C: keywords, and names that the written code uses."""
OWN = re.compile(r"(policy|encode|convolve|layer)_|.*_t$")
"""Names of functions, types and buffers of the written code, and types of stdint.h."""
C_TYPES = {
    "float32": "float", "float64": "double", "bool": "uint8_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """A pointer among the arguments of the C functions.

    Attributes:
        name: name in C.
        dtype: dtype of its values, one of ``C_TYPES``.
        size: number of values.
    """

    name: str
    dtype: np.dtype
    size: int

    @property
    def type(self) -> str:
        """The type of a value in C."""
        return C_TYPES[self.dtype.name]


@dataclass(frozen=True)
class Interface:
    """The arguments of the C functions.

    Attributes:
        inputs: one for each of ``Folded.inputs``.
        action: the action.
        returned: whether the action is one integer, which the functions return.
        outputs: number of outputs of the network.
        units: number of units of the memory; 0 without one.
    """

    inputs: tuple[Argument, ...]
    action: Argument
    returned: bool
    outputs: int
    units: int


def interface_of(folded: Folded) -> Interface:
    """The C interface of a policy.

    Raises:
        RequestError: if an action's numbers do not fit 32 bits.
    """
    rule, names = folded.rule, c_names([part.name for part in folded.inputs])
    pairs = zip(folded.inputs, folded.normalizations, strict=True)
    inputs = tuple(
        Argument(name, _dtype(*pair), int(np.prod(pair[0].shape, dtype=np.int64))) for name, pair in zip(names, pairs, strict=True)
    )
    units = 0 if folded.memory is None else folded.memory.units
    size = int(np.prod(rule.shape, dtype=np.int64))
    return Interface(inputs, Argument("action", _action_dtype(rule), size), rule.shape == () and rule.kind != "box", folded.outputs, units)


def c_names(names: Collection[str]) -> list[str]:
    """Distinct legible identifiers, in lower case, for names of any characters; those of C, C++ and the written code are avoided."""
    found: list[str] = []
    for name in names:
        base = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "input"
        base = f"input_{base}" if base[0].isdigit() or base in RESERVED or OWN.match(base) else base
        candidates = [base, *(f"{base}_{number}" for number in range(2, len(names) + 2))]
        found.append(next(candidate for candidate in candidates if candidate not in found))
    return found


def _dtype(part: Input, normalization: Normalization | None) -> np.dtype:
    """Discrete values and images keep their dtype. Numbers are float32, as a student reads them, or float64 where it needs these."""
    if part.sizes or part.dtype.kind in "biu":
        return part.dtype
    return np.dtype(np.float64 if normalization is not None and normalization.mean.dtype == np.float64 else np.float32)


def _action_dtype(rule: ActionRule) -> np.dtype:
    if rule.kind == "box":
        return np.dtype(np.float32)
    if any(abs(start) + max(rule.sizes) >= 2**31 for start in rule.starts):
        raise RequestError(f"actions that start at {rule.starts} cannot be exported as C: its actions have 32 bits")
    return np.dtype(np.int32)
