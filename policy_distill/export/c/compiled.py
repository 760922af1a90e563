"""policy.c compiled to a shared library and called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_distill.config import RequestError
from policy_distill.export.c.interface import Interface, interface_of
from policy_distill.export.folded import Folded
from policy_distill.export.runner import Seen

FLAGS = ("-std=c99", "-O3", "-ffp-contract=off", "-fno-tree-slp-vectorize", "-fPIC", "-shared")
"""Without contraction float32 is the same on every processor; gcc 12 contracts some straight-line code all the same."""
FOR_THIS_PROCESSOR = ("-march=native",)
"""Added where the compiler knows it; it changes no result."""
COMPILERS = ("cc", "gcc", "clang")

DRIVER = """\
#include "policy.c"

void run(int64_t rows, {arguments});
void run(int64_t rows, {arguments})
{{
    for (int64_t n = 0; n < rows; n++) {{
{statements}
    }}
}}

static struct {{ {bound} }} one_row;

void bind({arguments});
void bind({arguments})
{{
{binding}
}}

int32_t once(const void *observation);
int32_t once(const void *observation)
{{
    run(1, {given});
    return {returned};
}}
"""
BEFORE = """\
policy_state one;
for (int k = 0; k < {units}; k++) {{
    if (sizeof one.units[k] == sizeof(int16_t)) {{
        const float doubled = states[n * {units} + k] * 65536.0f;
        const int whole = (int)(doubled < -65534.0f ? -65534.0f : doubled > 65534.0f ? 65534.0f : doubled);
        one.units[k] = (whole < 0 ? whole - 1 : whole + 1) / 2;
    }} else {{
        one.units[k] = states[n * {units} + k];
    }}
}}"""
AFTER = """\
for (int k = 0; k < {units}; k++) {{
    states[n * {units} + k] = (float)one.units[k] * (sizeof one.units[k] == sizeof(int16_t) ? 1.0f / 32768.0f : 1.0f);
}}"""


@dataclass(frozen=True)
class Buffers:
    """Arguments of the compiled loop for a number of rows.

    Attributes:
        inputs: ``[B, ...]`` each.
        states: ``[B, units]``, before and after the step.
        actions: ``[B, size]``.
        outputs: ``[B, outputs]``.
        pointers: what the loop is called with.
    """

    inputs: dict[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    outputs: np.ndarray
    pointers: tuple[Any, ...]


class Compiled:
    """A ``Runner`` of compiled C.

    Args:
        folder: holds policy.c and policy.h.
        folded: the policy, for names and shapes.

    Attributes:
        act: the action for one raw observation, of a policy without a memory, with the least overhead. Its arguments are the parts of the
            observation in the order of ``Folded.inputs``; the next call overwrites an action that is an array.

    Raises:
        RequestError: if there is no C compiler, or the file does not compile.
    """

    def __init__(self, folder: Path, folded: Folded) -> None:
        self._folded, self._interface = folded, interface_of(folded)
        self._library = compile_shared(folder, _driver(self._interface))
        self._run = self._library.run
        self._run.restype = None
        self._buffers: dict[int, Buffers] = {}
        self.act = self._decider()

    def __call__(self, seen: Seen, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, rule = len(state), self._folded.rule
        buffers = self._buffers.get(rows)
        if buffers is None:
            self._buffers.clear()  # the number of rows rarely changes
            buffers = self._buffers[rows] = self._allocate(rows)
        for name, buffer in buffers.inputs.items():
            np.copyto(buffer, seen[name], casting="unsafe")
        buffers.states[...] = state
        self._run(*buffers.pointers)
        return buffers.actions.reshape(rows, *rule.shape).astype(rule.dtype), buffers.outputs.copy(), buffers.states.copy()

    def _decider(self) -> Callable[..., Any]:
        buffers, rule = self._allocate(1), self._folded.rule
        self._library.bind(*buffers.pointers[1:])
        self._one = buffers  # the library keeps pointers to them
        parts, actions = list(buffers.inputs.values()), buffers.actions.reshape(rule.shape)
        once, returned, same = self._library.once, self._interface.returned, actions.dtype == rule.dtype
        whole, dtype, size = parts[0][0], parts[0].dtype, parts[0].nbytes

        def action(number: int) -> Any:
            return number if returned else actions if same else actions.astype(rule.dtype)

        def from_parts(*inputs: np.ndarray) -> Any:
            for part, value in zip(parts, inputs, strict=True):
                part[0] = value
            return action(once(None))

        def from_one(observation: np.ndarray) -> Any:
            if observation.dtype is dtype and observation.nbytes == size:
                number = once(observation.tobytes())  # faster than to assign to an array
            else:
                whole[...] = observation
                number = once(None)
            return number if returned else actions if same else actions.astype(rule.dtype)

        return from_one if len(parts) == 1 and whole.shape else from_parts

    def _allocate(self, rows: int) -> Buffers:
        interface = self._interface
        pairs = zip(self._folded.inputs, interface.inputs, strict=True)
        inputs = {part.name: np.zeros((rows, *part.shape), argument.dtype) for part, argument in pairs}
        states = np.zeros((rows, interface.units), np.float32)
        actions = np.zeros((rows, interface.action.size), interface.action.dtype)
        outputs = np.zeros((rows, interface.outputs), np.float32)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*inputs.values(), states, actions, outputs)]
        return Buffers(inputs, states, actions, outputs, (ctypes.c_int64(rows), *pointers))


def find_compiler() -> list[str]:
    """The command of the C compiler: ``$CC``, or the first of ``COMPILERS`` that is installed.

    Raises:
        RequestError: if there is none.
    """
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise RequestError(f"the variable CC cannot be read as a command ({error}): correct or unset it") from None
    if named and shutil.which(named[0]) is None:
        raise RequestError(f"the C compiler {named[0]}, which CC names, is not installed: install it, or unset CC")
    found = named or [name for name in COMPILERS if shutil.which(name)][:1]
    if not found:
        raise RequestError("compiling policy.c needs a C compiler (cc, gcc or clang): install one, or name it in the variable CC")
    return found


def compile_shared(folder: Path, driver: str) -> ctypes.CDLL:
    """A shared library of ``driver``, which includes the policy.c of ``folder``.

    Raises:
        RequestError: if there is no compiler, or it fails.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch, "driver.c"), Path(scratch, "policy.so")
        source.write_text(driver)
        for name in ("policy.c", "policy.h"):  # alone: a stdint.h in a folder from outside would be included instead of the compiler's
            shutil.copyfile(folder / name, Path(scratch, name))
        for flags in ([*FLAGS, *FOR_THIS_PROCESSOR], FLAGS):
            command = [*compiler, *flags, str(source), "-o", str(library)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                break
        else:
            first = next(iter(result.stderr.strip().splitlines()), f"exit code {result.returncode}")
            raise RequestError(f"{compiler[0]} does not compile {folder / 'policy.c'}: {first}")
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise RequestError(f"the compiled policy cannot be loaded ({error}): name a folder for temporary files in TMPDIR") from None


def _driver(interface: Interface) -> str:
    action, units, inputs = interface.action, interface.units, interface.inputs
    declared = [f"const {argument.type} *{argument.name}" for argument in inputs]
    declared += ["float *states", f"{action.type} *actions", "float *all_outputs"]
    given = [f"{argument.name} + n * {argument.size}" for argument in inputs] + (["&one"] if units else [])
    chosen = f"all_outputs + n * {interface.outputs}"
    choose = f"actions[n] = policy_choose({chosen});" if interface.returned else f"policy_choose({chosen}, actions + n * {action.size});"
    statements = [
        *(BEFORE.format(units=units).splitlines() if units else ["(void)states;"]),
        f"policy_outputs({', '.join([*given, chosen])});",
        choose,
        *(AFTER.format(units=units).splitlines() if units else []),
    ]
    names = [*(argument.name for argument in inputs), "states", "actions", "all_outputs"]
    return DRIVER.format(
        arguments=", ".join(declared),
        statements="\n".join(f"        {line}" for line in statements),
        bound=" ".join(f"{one};" for one in declared),
        binding="\n".join(f"    one_row.{name} = {name};" for name in names),
        given=", ".join([f"observation ? observation : one_row.{names[0]}", *(f"one_row.{name}" for name in names[1:])]),
        returned="one_row.actions[0]" if interface.returned else "0",
    )
