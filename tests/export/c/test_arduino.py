"""The Arduino library: its sketch compiles against what an Arduino core provides, and prints the policy's action."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from policy_distill.export import c
from tests.export.c.worlds import compiled, folded_of, numbers_of, visited_of, written

ARDUINO = Path(__file__).parents[3] / "examples" / "microcontroller" / "arduino.py"


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize("name", ["vector", "tanh", "memory", "parts"])
def test_the_arduino_library_s_example_is_a_sketch(name, tmp_path):
    (tmp_path / "exported").mkdir()
    subprocess.run([sys.executable, ARDUINO, written(name, tmp_path / "exported", 8), tmp_path / "library"], check=True)
    fields = dict(line.split("=", 1) for line in (tmp_path / "library" / "library.properties").read_text().splitlines())
    assert {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"} <= fields.keys()
    # what the Arduino core provides
    core = (
        '#include <cstdio>\nstruct { void begin(long) {} template <class T> void print(T value, int = 0) { printf("%g", (double)value); }\n'
        'void print(char value) { putchar(value); } void print(const char *text) { printf("%s", text); }\n'
        "template <class T> void println(T value) { print(value); putchar('\\n'); } void println() { putchar('\\n'); } } Serial;\n"
        "void delay(int) {}\n"
    )
    sketch = (tmp_path / "library/examples/policy/policy.ino").read_text()
    (tmp_path / "sketch.cpp").write_text(core + sketch + "\nint main() { setup(); loop(); }\n")
    assert compiled(tmp_path, "gcc", "-c", "library/src/policy.c").returncode == 0
    built = subprocess.run(
        ["g++", "-Ilibrary/src", "sketch.cpp", "policy.o", "-o", "sketch"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    printed = subprocess.check_output([tmp_path / "sketch"], text=True)
    first = visited_of(name).rows(slice(0, 1))
    actions, _, _ = c.reference(folded_of(name), numbers_of(name), 8)(first.seen, np.zeros_like(first.states))
    np.testing.assert_allclose([float(word) for word in re.findall(r"-?[\d.]+(?:e-?\d+)?", printed)], actions.ravel(), rtol=1e-4)


def test_a_folder_without_c_is_one_line(tmp_path):
    result = subprocess.run([sys.executable, ARDUINO, tmp_path, tmp_path / "library"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "holds no policy.h" in result.stderr
    assert not (tmp_path / "library").exists()
