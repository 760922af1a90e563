"""Writes an Arduino library from an exported policy: library.properties, src/ and a sketch that prints the action for one observation.

    python examples/microcontroller/arduino.py FOLDER LIBRARY

FOLDER is what ``export_student`` wrote; LIBRARY is a new folder, to be copied into the sketchbook's ``libraries/``.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

IN_ARDUINO = {
    'printf("action: %ld\\n", (long)': "Serial.println((long)",
    'printf("action:");': 'Serial.print("action:");',
    'printf(" %g", (double)action[j]);': "Serial.print(' ');\n        Serial.print(action[j], 6);",
    'printf(" %ld", (long)action[j]);': "Serial.print(' ');\n        Serial.print((long)action[j]);",
    'printf("\\n");': "Serial.println();",
}
"""What the example prints in C and in Arduino's language."""
SKETCH = """\
#include <policy.h>

{tables}

void setup()
{{
    Serial.begin(9600);
}}

void loop()
{{
{statements}    delay(1000);
}}
"""
LIBRARY = """\
name=Policy
version=1.0.0
author=policy-distill
maintainer=policy-distill
sentence=A distilled policy.
paragraph=Written by policy-distill.
category=Data Processing
url=https://docs.arduino.cc/arduino-cli/library-specification
architectures=*
includes=policy.h
"""


def sketch_of(example: str) -> str:
    """The sketch, from the text of example.c."""
    _, tables, statements = re.split(r'#include "policy.h"\n|int main\(void\)\n\{\n', example)
    for of_c, of_arduino in IN_ARDUINO.items():
        statements = statements.replace(of_c, of_arduino)
    return SKETCH.format(tables=tables.strip(), statements=statements.removesuffix("    return 0;\n}\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("library", type=Path)
    options = parser.parse_args()
    if missing := [name for name in ("policy.h", "policy.c", "example.c") if not (options.folder / name).is_file()]:
        raise SystemExit(f"{options.folder} holds no {', '.join(missing)}: name a folder that export_student --format c wrote")
    source, sketch = options.library / "src", options.library / "examples" / "policy"
    if options.library.exists():
        raise SystemExit(f"{options.library} exists already: name a new folder")
    for folder in (source, sketch):
        folder.mkdir(parents=True)
    for name in ("policy.h", "policy.c"):
        shutil.copy(options.folder / name, source / name)
    (options.library / "library.properties").write_text(LIBRARY)
    (sketch / "policy.ino").write_text(sketch_of((options.folder / "example.c").read_text()))


if __name__ == "__main__":
    main()
