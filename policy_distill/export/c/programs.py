"""Programs beside policy.c: an example, and a self-test with recorded decisions."""

from __future__ import annotations

import numpy as np

from policy_distill.export.c.arrays import array
from policy_distill.export.c.interface import Interface
from policy_distill.export.c.source import Source
from policy_distill.export.folded import Folded
from policy_distill.export.runner import Runner, Seen, Visited

STATE_STEP = {"float": 1.0, "int16_t": 2.0**15}
"""Steps of a recurrent state's unit by its C type."""

SELF_TEST = """\
/* Computes {count} recorded decisions again; the exit code is 0 if all are the same. */
#include <stdio.h>
#include <string.h>

#include "policy.h"

#define RECORDED {count}
#ifndef TIMED /* a measurement around each call may be defined here */
#define TIMED(call) call
#endif

{tables}

static int same(float value, float expected)
{{
    {compared}
}}

int main(void)
{{
    unsigned long checksum = 2166136261UL;
    int wrong = 0;
    for (int n = 0; n < RECORDED; n++) {{
        float outputs[POLICY_OUTPUTS];
{declared}
        int matches = 1;
{statements}
        for (int j = 0; j < POLICY_OUTPUTS; j++) {{
            uint32_t bits;
            memcpy(&bits, &outputs[j], sizeof bits);
            checksum = ((checksum ^ bits) * 16777619UL) & 0xffffffffUL;
            matches &= same(outputs[j], OUTPUTS[n * POLICY_OUTPUTS + j]);
        }}
{compare}
        wrong += !matches;
    }}
    printf("%d of %d recorded decisions are the same; checksum %08lx\\n", RECORDED - wrong, RECORDED, checksum);
    return wrong != 0;
}}
"""
EXACT = "return value == expected;"
CLOSE = """const float difference = value > expected ? value - expected : expected - value;
    return difference <= 1e-4f + 1e-4f * (expected < 0.0f ? -expected : expected);"""
EXAMPLE = """\
/* Prints the policy's action for one observation: cc -std=c99 -O2 example.c policy.c -o example && ./example */
#include <stdio.h>

#include "policy.h"

{tables}

int main(void)
{{
{statements}
    return 0;
}}
"""


def recorded_tables(folded: Folded, interface: Interface, source: Source, recorded: Visited, reference: Runner) -> str:
    """Tables of recorded inputs, and of the reference's outputs, actions and states."""
    actions, outputs, states = reference(recorded.seen, recorded.states)
    tables = [
        array(f"RECORDED_{argument.name.upper()}", values)
        for argument, values in zip(interface.inputs, _inputs(folded, interface, recorded.seen), strict=True)
    ]
    tables.append(array("OUTPUTS", outputs.astype(np.float32)))
    tables.append(array("ACTIONS", actions.reshape(len(recorded), -1).astype(interface.action.dtype)))
    if interface.units:
        tables += [array(name, _state(values, source)) for name, values in (("STATES_BEFORE", recorded.states), ("STATES_AFTER", states))]
    return "\n".join(tables)


def self_test(folded: Folded, interface: Interface, source: Source, recorded: Visited, reference: Runner) -> str:
    """The text of self_test.c. Fixed point must be equal bit for bit; float32 may round differently."""
    exact = source.type != "float"
    given = [f"RECORDED_{argument.name.upper()} + n * {argument.size}" for argument in interface.inputs]
    declared, statements, compare = [], [], []
    if interface.units:
        declared.append("policy_state state;")
        statements.append(f"memcpy(state.units, STATES_BEFORE + n * {interface.units}, sizeof state.units);")
        given.append("&state")
        after = f"STATES_AFTER[n * {interface.units} + k]"
        test = f"state.units[k] == {after}" if exact else f"same(state.units[k], {after})"
        compare += [f"for (int k = 0; k < {interface.units}; k++) {{", f"    matches &= {test};", "}"]
    statements.append(f"TIMED(policy_outputs({', '.join([*given, 'outputs'])}));")
    if interface.returned:
        declared.append("int32_t action;")
        compare += ["TIMED(action = policy_choose(outputs));", "matches &= action == ACTIONS[n];"]
    else:
        size, action = interface.action.size, interface.action
        declared.append(f"{action.type} action[{size}];")
        test = f"action[j] == ACTIONS[n * {size} + j]" if exact or action.type != "float" else f"same(action[j], ACTIONS[n * {size} + j])"
        compare += ["TIMED(policy_choose(outputs, action));", f"for (int j = 0; j < {size}; j++) {{", f"    matches &= {test};", "}"]
    return SELF_TEST.format(
        count=len(recorded),
        tables=recorded_tables(folded, interface, source, recorded, reference),
        compared=EXACT if exact else CLOSE,
        declared="\n".join(f"        {line}" for line in declared),
        statements="\n".join(f"        {line}" for line in statements),
        compare="\n".join(f"        {line}" for line in compare),
    ).replace("\n\n        int matches", "\n        int matches")


def example(folded: Folded, interface: Interface, recorded: Visited) -> str:
    """The text of example.c."""
    first = recorded.rows(slice(0, 1))
    tables = [
        array(f"recorded_{argument.name}", values)
        for argument, values in zip(interface.inputs, _inputs(folded, interface, first.seen), strict=True)
    ]
    given, statements = [f"recorded_{argument.name}" for argument in interface.inputs], []
    if interface.units:
        given.append("&state")
        statements += ["policy_state state;", "policy_reset(&state); /* where an episode begins */"]
    if interface.returned:
        statements.append(f'printf("action: %ld\\n", (long)policy_act({", ".join(given)}));')
    else:
        size, is_float = interface.action.size, interface.action.type == "float"
        shown = '" %g", (double)action[j]' if is_float else '" %ld", (long)action[j]'
        statements += [
            f"{interface.action.type} action[{size}];",
            f"policy_act({', '.join([*given, 'action'])});",
            'printf("action:");',
            f"for (int j = 0; j < {size}; j++) {{",
            f"    printf({shown});",
            "}",
            'printf("\\n");',
        ]
    return EXAMPLE.format(tables="\n".join(tables), statements="\n".join(f"    {line}" for line in statements))


def _inputs(folded: Folded, interface: Interface, seen: Seen) -> list[np.ndarray]:
    """Recorded inputs as flat arrays of the C types."""
    pairs = zip(folded.inputs, interface.inputs, strict=True)
    return [seen[part.name].reshape(len(seen[part.name]), -1).astype(argument.dtype) for part, argument in pairs]


def _state(states: np.ndarray, source: Source) -> np.ndarray:
    scaled = states * np.float32(STATE_STEP[source.state_type])
    return scaled.astype(np.float32) if source.state_type == "float" else np.rint(scaled).clip(-32767, 32767).astype(np.int16)
