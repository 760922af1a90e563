"""policy.h and policy.c: what is the same for every arithmetic."""

from __future__ import annotations

import re
from typing import Protocol

import numpy as np

from policy_distill.export.c.arrays import array, narrowest, number
from policy_distill.export.c.floating import shift_of
from policy_distill.export.c.interface import Argument, Interface
from policy_distill.export.folded import ActionRule, Folded, Input, Normalization, image_shapes
from policy_distill.export.shared import one_hot_columns
from policy_distill.policies.families.choices import FORBIDDEN

NOT_OUTPUTS = {"argmax": "logits", "bits": "logits of 1", "box": "means, before they are scaled to the action space"}


class Source(Protocol):
    """The text of an arithmetic.

    Attributes:
        type, state_type: C types of activations and of the recurrent state.
        about: a sentence for the header.
    """

    type: str
    state_type: str
    about: str

    def tables(self) -> list[str]: ...
    def functions(self) -> list[str]: ...
    def vector(self, name: str, argument: Argument, normalization: Normalization) -> tuple[list[str], str]: ...
    def one_hot(self, name: str, normalization: Normalization) -> tuple[list[str], str, str]: ...
    def pixel(self, part: int, pixel: str) -> str: ...
    def reads_directly(self, part: Input, argument: Argument, normalization: Normalization) -> bool: ...
    def dense(self, name: str, inputs: str, width: int, out: str, outputs: int) -> list[str]: ...
    def last(self, name: str, inputs: str, width: int, outputs: int) -> list[str]: ...
    def remembered(self, features: str, out: str, units: int) -> tuple[list[str], str]: ...


def header(interface: Interface, rule: ActionRule, source: Source) -> str:
    """The text of policy.h."""
    inputs, mask = _inputs(interface), _mask(interface, rule)
    state = ["policy_state *state"] if interface.units else []
    memory = (
        f"/* What the policy remembers of an episode; reset it where one begins. */\ntypedef struct {{\n    {source.state_type} units"
        f"[{interface.units}];\n}} policy_state;\n\nvoid policy_reset(policy_state *state);\n\n"
        if interface.units
        else ""
    )
    returned = "int32_t" if interface.returned else "void"
    action = [] if interface.returned else [f"{interface.action.type} action[{interface.action.size}]"]
    note = " Logits of actions that the mask forbids are -1e8." if mask else ""
    return f"""\
/* A policy, written by policy-distill. {source.about}
   Inputs are raw observations, and actions are those of the environment. Nothing is allocated, and nothing global changes. */
#ifndef POLICY_H
#define POLICY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define POLICY_OUTPUTS {interface.outputs}

{memory}/* The action for an observation. */
{returned} policy_act({", ".join(inputs + state + action)});

/* The numbers of the action distribution: {NOT_OUTPUTS[rule.kind]}.{note} */
void policy_outputs({", ".join([*inputs, *state, "float outputs[POLICY_OUTPUTS]"])});

/* The action for these numbers. */
{returned} policy_choose({", ".join(["const float outputs[POLICY_OUTPUTS]", *action])});

#ifdef __cplusplus
}}
#endif

#endif
"""


def code(folded: Folded, interface: Interface, source: Source) -> str:
    """The text of policy.c."""
    rule, mask = folded.rule, _mask(interface, folded.rule)
    encoders: list[str] = []
    statements, place, features, direct = [], 0, folded_width(folded), None
    for index, (part, normalization, argument) in enumerate(zip(folded.inputs, folded.normalizations, interface.inputs, strict=True)):
        if normalization is not None and len(folded.inputs) == 1 and source.reads_directly(part, argument, normalization):
            direct = argument.name
            continue
        text, width = _encoder(index, part, normalization, argument, source)
        if width:
            encoders += text
            statements.append(f"encode_{argument.name}({argument.name}, first{f' + {place}' if place else ''});")
        place += width
    buffers = {"first": 0 if direct else max(features, 1), "second": 0}
    here, other, width = direct or "first", "second" if not direct else "first", features
    if folded.memory is not None:
        units = folded.memory.units
        remembered, here = source.remembered(here, other, units)
        if here in buffers:
            buffers[here] = max(buffers[here], units)
        statements += remembered
        width, other = units, "first" if here == "second" else "second"
    for index, layer in enumerate(folded.layers[:-1]):
        size = len(layer.bias)
        buffers[other] = max(buffers[other], size)
        statements += source.dense(f"LAYER_{index}", here, width, other, size)
        here, width = other, size
        other = "second" if here == "first" else "first"
    statements += source.last(f"LAYER_{len(folded.layers) - 1}", here, width, folded.outputs)
    if mask:
        statements.append(f"forbid({mask.name}, outputs);")
    used = [f"{source.type} {name}[{size}];" for name, size in buffers.items() if size]
    state = ["policy_state *state"] if interface.units else []
    arguments = [*_inputs(interface), *state, "float outputs[POLICY_OUTPUTS]"]
    unused = [f"(void){argument.name};" for argument in interface.inputs if not _mentions(statements, argument.name)]
    texts = [
        '#include "policy.h"',
        *source.tables(),
        *source.functions(),
        *encoders,
        *([_forbid(rule, mask)] if mask else []),
        *([_reset(interface)] if interface.units else []),
        function("void policy_outputs", arguments, used + unused + statements),
        *_choose(rule, interface),
        _act(interface),
    ]
    return "\n\n".join(texts) + "\n"


def function(head: str, arguments: list[str], statements: list[str]) -> str:
    """A definition of a function."""
    body = "\n".join(f"    {line}" for line in statements)
    return f"{head}({', '.join(arguments)})\n{{\n{body}\n}}"


def folded_width(folded: Folded) -> int:
    """Number of features of the network."""
    first = folded.layers[0].weight if folded.memory is None else folded.memory.inputs
    return first.shape[1]


def _mentions(statements: list[str], name: str) -> bool:
    return any(re.search(rf"\b{name}\b", statement) for statement in statements)


def _inputs(interface: Interface) -> list[str]:
    return [f"const {argument.type} {argument.name}[{argument.size}]" for argument in interface.inputs]


def _mask(interface: Interface, rule: ActionRule) -> Argument | None:
    return interface.inputs[-1] if rule.masked else None


def _encoder(index: int, part: Input, normalization: Normalization | None, argument: Argument, source: Source) -> tuple[list[str], int]:
    """Tables and the function that computes the features of a part, and their number."""
    name, prefix = argument.name, argument.name.upper()
    if normalization is None:
        channels, height, width = image_shapes(part)[-1]
        return _image(index, part, argument, source), channels * height * width
    columns = normalization.columns
    if not part.sizes:
        tables, feature = source.vector(prefix, argument, normalization)
        place = "i"
        if not np.array_equal(columns, np.arange(part.width)):
            tables, place = [*tables, array(f"{prefix}_COLUMNS", narrowest(columns))], f"{prefix}_COLUMNS[i]"
        body = [f"const {argument.type} x = {name}[{place}];", f"features[i] = {feature};"]
    else:
        component, value = (column[columns] for column in one_hot_columns(part))
        tables, hot, cold = source.one_hot(prefix, normalization)
        tables.append(array(f"{prefix}_VALUES", narrowest(value)))
        place = "0"
        if component.any():
            tables, place = [*tables, array(f"{prefix}_COMPONENTS", narrowest(component))], f"{prefix}_COMPONENTS[i]"
        body = [f"features[i] = {name}[{place}] == {prefix}_VALUES[i] ? {hot} : {cold};"]
    loop = [f"for (int32_t i = 0; i < {len(columns)}; i++) {{", *(f"    {line}" for line in body), "}"]
    arguments = [f"const {argument.type} {name}[{argument.size}]", f"{source.type} features[{len(columns)}]"]
    return [*tables, function(f"static void encode_{name}", arguments, loop)], len(columns)


def _image(index: int, part: Input, argument: Argument, source: Source) -> list[str]:
    """A function for each convolution, and one that applies them."""
    shapes, texts, statements, declared, read = image_shapes(part), [], [], [], argument.name
    for number_of_layer, layer in enumerate(part.convolutions):
        channels, height, width = shapes[number_of_layer]
        outputs, rows, columns = shapes[number_of_layer + 1]
        first, name = not number_of_layer, f"IMAGE_{index}_{number_of_layer}"
        row, column, channel = (width, 1, height * width) if first and part.channels_first else (width * channels, channels, 1)
        kernel, stride = layer.weight.shape[2], layer.stride
        at = f"image[(y * {stride} + down) * {row} + (x * {stride} + right) * {column} + c * {channel}]"
        pixel = source.pixel(index, at) if first else at
        patch = kernel * kernel * channels
        body = [
            f"for (int32_t y = 0; y < {rows}; y++) {{",
            f"    for (int32_t x = 0; x < {columns}; x++) {{",
            f"        {source.type} patch[{patch}];",
            f"        {source.type} *next = patch;",
            f"        for (int32_t down = 0; down < {kernel}; down++) {{",
            f"            for (int32_t right = 0; right < {kernel}; right++) {{",
            f"                for (int32_t c = 0; c < {channels}; c++) {{",
            f"                    *next++ = {pixel};",
            "                }",
            "            }",
            "        }",
            *(f"        {line}" for line in source.dense(name, "patch", patch, "out", outputs)),
            f"        out += {outputs};",
            "    }",
            "}",
        ]
        kind = argument.type if first else source.type
        head = f"static void convolve_{index}_{number_of_layer}"
        texts.append(function(head, [f"const {kind} *image", f"{source.type} *out"], body))
        last = number_of_layer == len(part.convolutions) - 1
        target = "features" if last else f"layer_{number_of_layer}"
        if not last:
            declared.append(f"{source.type} {target}[{outputs * rows * columns}];")
        statements.append(f"convolve_{index}_{number_of_layer}({read}, {target});")
        read = target
    arguments = [f"const {argument.type} *{argument.name}", f"{source.type} *features"]
    return [*texts, function(f"static void encode_{argument.name}", arguments, declared + statements)]


def _forbid(rule: ActionRule, mask: Argument) -> str:
    lowest = number(FORBIDDEN)
    each = f"outputs[j] = mask[j] ? outputs[j] : {lowest};"
    if rule.kind == "bits":
        each = f"outputs[j] = mask[2 * j + 1] ? (mask[2 * j] ? outputs[j] : {number(-FORBIDDEN)}) : (mask[2 * j] ? {lowest} : 0.0f);"
    loop = ["for (int32_t j = 0; j < POLICY_OUTPUTS; j++) {", f"    {each}", "}"]
    return function("static void forbid", [f"const {mask.type} *mask", "float *outputs"], loop)


def _reset(interface: Interface) -> str:
    loop = [f"for (int32_t k = 0; k < {interface.units}; k++) {{", "    state->units[k] = 0;", "}"]
    return function("void policy_reset", ["policy_state *state"], loop)


def _choose(rule: ActionRule, interface: Interface) -> list[str]:
    """Tables and the function that turns outputs to an action."""
    size, outputs = interface.action.size, "const float outputs[POLICY_OUTPUTS]"
    arguments = [outputs] if interface.returned else [outputs, f"{interface.action.type} action[{size}]"]
    head = f"{'int32_t' if interface.returned else 'void'} policy_choose"
    if rule.kind == "bits":
        loop = [f"for (int32_t j = 0; j < {size}; j++) {{", "    action[j] = outputs[j] > 0.0f;", "}"]
        return [function(head, arguments, loop)]
    if rule.kind == "box":
        return _choose_in_box(rule, head, arguments, size)
    best = [
        "int32_t best = 0;",
        "for (int32_t j = 1; j < {size}; j++) {{",
        "    if (outputs[j] > outputs[best]) {{",
        "        best = j;",
        "    }}",
        "}}",
    ]
    if interface.returned:
        start = f" + {rule.starts[0]}" if rule.starts[0] else ""
        return [function(head, arguments, [*(line.format(size=rule.sizes[0]) for line in best), f"return best{start};"])]
    tables = [array("SIZES", narrowest(np.array(rule.sizes))), array("STARTS", narrowest(np.array(rule.starts)))]
    loop = [
        f"for (int32_t k = 0; k < {size}; k++) {{",
        *(f"    {line.format(size='SIZES[k]')}" for line in best),
        "    action[k] = best + STARTS[k];",
        "    outputs += SIZES[k];",
        "}",
    ]
    return [*tables, function(head, arguments, loop)]


def _choose_in_box(rule: ActionRule, head: str, arguments: list[str], size: int) -> list[str]:
    """An action is ``(output + shift) * scale`` within the bounds; tables only for what differs between its components."""
    numbers = {"SHIFT": shift_of(rule), "SCALE": rule.scale, "LOW": rule.low, "HIGH": rule.high}
    tables = [array(name, values) for name, values in numbers.items() if len(set(values.tolist())) > 1]
    shift, scale, low, high = (
        f"{name}[j]" if len(set(values.tolist())) > 1 else number(values.flat[0]) for name, values in numbers.items()
    )
    shifted = "outputs[j]" if shift == "0.0f" else f"(outputs[j] + {shift})"
    scaled = shifted if scale == "1.0f" else f"{shifted} * {scale}"
    loop = [
        f"for (int32_t j = 0; j < {size}; j++) {{",
        f"    const float value = {scaled};",
        f"    action[j] = value < {low} ? {low} : value > {high} ? {high} : value;",
        "}",
    ]
    return [*tables, function(head, arguments, loop)]


def _act(interface: Interface) -> str:
    names = [argument.name for argument in interface.inputs] + (["state"] if interface.units else [])
    arguments = _inputs(interface) + (["policy_state *state"] if interface.units else [])
    statements = ["float outputs[POLICY_OUTPUTS];", f"policy_outputs({', '.join([*names, 'outputs'])});"]
    if interface.returned:
        return function("int32_t policy_act", arguments, [*statements, "return policy_choose(outputs);"])
    action = f"{interface.action.type} action[{interface.action.size}]"
    return function("void policy_act", [*arguments, action], [*statements, "policy_choose(outputs, action);"])
