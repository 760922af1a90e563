"""The written files as C programs: warnings, self-test, example, Arduino library, and what compiling needs."""

from __future__ import annotations

import re
import shutil
import subprocess

import gymnasium as gym
import numpy as np
import pytest

from policy_distill.config import RequestError
from policy_distill.export import c
from policy_distill.export.c.arrays import number, packed
from policy_distill.export.c.floating import tanh
from policy_distill.export.c.interface import c_names
from policy_distill.export.folded import fold_student
from policy_distill.export.runner import Visited
from tests.export.c.worlds import compiled, folded_of, needs_compiler, numbers_of, visited_of, written
from tests.export.kinds import ARCHITECTURES
from tests.small_worlds import random_student

COMPILERS = [pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name}")) for name in ("gcc", "clang")]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_compiler_warns(name, bits, compiler, tmp_path):
    written(name, tmp_path, bits)
    result = compiled(tmp_path, compiler, "-O1", "-c", "policy.c", "example.c", "self_test.c")
    assert result.returncode == 0, result.stderr


@needs_compiler
@pytest.mark.parametrize("bits", [None, 8, 4, 2])
@pytest.mark.parametrize("name", ["vector", "tanh", "silu", "parts", "image_in_parts", "memory", "columns"])
def test_the_self_test_is_green_and_turns_red_when_a_weight_changes(name, bits, tmp_path):
    written(name, tmp_path, bits)

    def outcome() -> subprocess.CompletedProcess[str]:
        assert compiled(tmp_path, "cc", "-O2", "policy.c", "self_test.c", "-o", "self_test").returncode == 0
        return subprocess.run([tmp_path / "self_test"], capture_output=True, text=True, check=False)

    green = outcome()
    assert green.returncode == 0
    assert re.fullmatch(r"(\d+) of \1 recorded decisions are the same; checksum [0-9a-f]{8}\n", green.stdout)
    source, table = tmp_path / "policy.c", "LAYER_0_(?:BIASES|ROWS)"
    text = source.read_text()
    first = re.search(rf"{table}\[\d+\] = {{\n\s*(\S+),", text)
    assert first is not None
    changed = "0.75f" if bits is None else "12345"
    assert first.group(1) != changed
    source.write_text(text[: first.start(1)] + changed + text[first.end(1) :])
    red = outcome()
    assert red.returncode == 1
    assert red.stdout != green.stdout


@needs_compiler
@pytest.mark.parametrize("name", ["vector", "tanh", "memory", "parts"])
def test_the_example_prints_the_action_of_a_visited_state(name, tmp_path):
    folded, visited = folded_of(name), visited_of(name)
    written(name, tmp_path, None)
    assert compiled(tmp_path, "cc", "-O2", "example.c", "policy.c", "-o", "example").returncode == 0
    printed = subprocess.run([tmp_path / "example"], capture_output=True, text=True, check=True).stdout
    first = visited.rows(slice(0, 1))
    actions, _, _ = c.reference(folded, numbers_of(name), None)(first.seen, np.zeros_like(first.states))
    assert printed.startswith("action: ")
    np.testing.assert_allclose([float(word) for word in printed.removeprefix("action: ").split()], actions.ravel(), rtol=1e-4)


@needs_compiler
@pytest.mark.skipif(not shutil.which("nm"), reason="no nm")
@pytest.mark.parametrize("bits", [None, 8, 2])
@pytest.mark.parametrize("name", ["tanh", "image_memory", "masked_bits"])
def test_the_code_has_no_mutable_global_and_calls_no_library(name, bits, tmp_path):
    written(name, tmp_path, bits)
    assert compiled(tmp_path, "cc", "-O2", "-fno-pie", "-c", "policy.c").returncode == 0
    symbols = [line.split()[-2:] for line in subprocess.check_output(["nm", "policy.o"], cwd=tmp_path, text=True).splitlines()]
    assert not [name for kind, name in symbols if kind in "dDbBC"]
    assert {name for kind, name in symbols if kind == "U"} <= {"memset", "memcpy", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
    assert {"policy_act", "policy_outputs", "policy_choose"} <= {name for kind, name in symbols if kind == "T"}


def test_a_missing_compiler_is_one_line(tmp_path, monkeypatch):
    written("vector", tmp_path, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RequestError, match="needs a C compiler"):
        c.load(tmp_path, folded_of("vector"))
    monkeypatch.setenv("CC", "no-such-cc -m32")
    with pytest.raises(RequestError, match="no-such-cc, which CC names, is not installed"):
        c.load(tmp_path, folded_of("vector"))


@needs_compiler
def test_a_file_that_does_not_compile_is_one_line(tmp_path):
    written("vector", tmp_path, None)
    (tmp_path / "policy.c").write_text("not C\n")
    with pytest.raises(RequestError, match="does not compile") as caught:
        c.load(tmp_path, folded_of("vector"))
    assert "\n" not in str(caught.value)


@needs_compiler
def test_headers_from_outside_are_not_included(tmp_path):
    """A folder from outside may hold a stdint.h beside the files that are compared."""
    written("vector", tmp_path, None)
    (tmp_path / "stdint.h").write_text("#error included\n")
    c.load(tmp_path, folded_of("vector"))


@needs_compiler
@pytest.mark.parametrize("name", ["actions", "recorded", "printf", "null", "encode_a", "layer_0", "policy_choose", "operator"])
def test_no_name_of_an_input_breaks_the_programs(name, tmp_path):
    space = gym.spaces.Dict({name: gym.spaces.Box(-1, 1, (2,)), "a": gym.spaces.Box(-1, 1, (3,))})
    folded = fold_student(random_student(space, gym.spaces.Discrete(2)))
    seen = Visited({part.name: np.zeros((1, *part.shape), np.float32) for part in folded.inputs}, np.zeros((1, 0), np.float32))
    c.write(folded, tmp_path, c.measure(folded, seen))
    for source in ("policy.c", "example.c", "self_test.c"):
        result = compiled(tmp_path, "cc", "-c", source)
        assert result.returncode == 0, result.stderr


def test_names_in_c_are_legible_and_distinct():
    assert c_names(["desired_goal", "Desired Goal", "état", "2d", "state", "int", "", "a-b"]) == [
        "desired_goal", "desired_goal_2", "tat", "input_2d", "input_state", "input_int", "input", "a_b",
    ]  # fmt: skip


def test_numbers_keep_all_their_digits():
    draws = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    assert all(np.float32(number(value).rstrip("f")) == value for value in draws)
    assert [number(value) for value in (1, -2, 1e-40, np.inf)] == ["1.0f", "-2.0f", "0.0f", "3.40282347e+38f"]


@pytest.mark.parametrize(("bits", "field"), [(4, 4), (3, 4), (2, 2)])
def test_codes_are_packed_row_by_row(bits, field):
    codes = np.random.default_rng(bits).integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), (3, 5))
    rows = packed(codes, bits)
    each = 8 // field
    assert rows.shape == (3, -(-5 // each))
    fields = [[(int(row[i // each]) >> (i % each * field)) % 2**field - 2 ** (field - 1) for i in range(5)] for row in rows]
    np.testing.assert_array_equal(fields, codes)


@needs_compiler
@pytest.mark.skipif(not shutil.which("size"), reason="no size")
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_bytes_of_the_tables_are_those_in_the_object_file(bits, tmp_path):
    written("vector", tmp_path, bits)
    assert compiled(tmp_path, "cc", "-O2", "-fno-pie", "-c", "policy.c").returncode == 0
    lines = subprocess.check_output(["size", "-A", "policy.o"], cwd=tmp_path, text=True).splitlines()
    stored = sum(int(line.split()[1]) for line in lines if line.startswith(".rodata"))
    # 4 inputs, 8 and 6 units, 3 outputs; beside them the compiler aligns, and stores structs and constants of its own
    weights, rows = 4 * 8 + 8 * 6 + 6 * 3, 8 + 6 + 3
    inputs = 4 * (2 + 2)  # 16 bits of a factor and of a mean
    expected = {None: 4 * (weights + rows), 8: weights + 2 * rows + inputs, 4: weights // 2 + 4 * rows + inputs}[bits]
    assert c.table_bytes(tmp_path) == expected
    assert expected <= stored <= expected + 256 + 3 * 48


def test_tanh_is_close_everywhere():
    values = np.linspace(-15, 15, 200_001).astype(np.float32)
    exact = np.tanh(values.astype(np.float64))
    np.testing.assert_allclose(tanh(values), exact, rtol=5e-7)
    assert tanh(np.zeros(1, np.float32))[0] == 0
