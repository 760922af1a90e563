"""Builds an exported policy.c for Cortex-M4 and Cortex-M0, runs it under QEMU, and compares its decisions with those of this machine.

    python examples/microcontroller/run.py FOLDER [FOLDER ...]

Needs arm-none-eabi-gcc and qemu-system-arm (Debian: gcc-arm-none-eabi, qemu-system-arm). FOLDER is what ``export_student`` wrote.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CYCLES, MEGAHERTZ = 1.5, 80
"""Assumed cycles of an instruction, and the clock of the estimated time."""
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")


@dataclass(frozen=True)
class Target:
    """A processor: the compiler's flags, and QEMU's machine with that processor."""

    name: str
    flags: tuple[str, ...]
    machine: str


TARGETS = (
    Target("M4, FPU", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), "mps2-an386"),
    Target("M4, no FPU", ("-mcpu=cortex-m4", "-mfloat-abi=soft"), "mps2-an386"),
    Target("M0", ("-mcpu=cortex-m0", "-mfloat-abi=soft"), "microbit"),
)


@dataclass(frozen=True)
class Figures:
    """Bytes, stack and instructions of a policy on a target.

    Attributes:
        code, tables: bytes of policy.o in flash: .text and .rodata.
        whole: these and the parts of the compiler's library that they call.
        ram: bytes of .data and .bss of policy.o.
        stack: bytes of stack of the deepest recorded decision.
        instructions: of one decision, mean over the recorded ones.
        checksum: of all outputs, bit for bit.
    """

    code: int
    tables: int
    whole: int
    ram: int
    stack: int
    instructions: int
    checksum: str

    @property
    def microseconds(self) -> float:
        return self.instructions * CYCLES / MEGAHERTZ


def measure(folder: Path, target: Target) -> Figures:
    """Figures of the policy in ``folder``.

    Raises:
        SystemExit: if it does not build, or a decision differs from the recorded one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        flags = ["-mthumb", *target.flags, "-Os", "-ffunction-sections", "-fdata-sections"]
        gcc = ["arm-none-eabi-gcc", *flags]
        source = folder.resolve()
        run([*gcc, *WARNINGS, "-c", str(source / "policy.c"), "-o", "policy.o"], scratch)
        run([*gcc, "-std=c99", "-include", str(HERE / "timed.h"), "-c", str(source / "self_test.c"), "-o", "self_test.o"], scratch)
        run([*gcc, "-std=gnu99", "-fno-builtin", "-c", str(HERE / "board.c"), "-o", "board.o"], scratch)
        objects = ["board.o", "self_test.o", "policy.o"]
        run([*gcc, "-nostdlib", "-T", str(HERE / "link.ld"), "-Wl,--gc-sections", *objects, "-lgcc", "-o", "image"], scratch)
        sections = sections_of("policy.o", scratch)
        # what the policy adds from libgcc: an image of policy.o alone, in which all of its functions are kept
        kept = [f"-Wl,-u,policy_{name}" for name in ("act", "outputs", "choose", "reset")]
        alone_of = [*gcc, "-nostdlib", "-Wl,-e,policy_act,--gc-sections", *kept, "policy.o", "-lgcc", "-x", "c", "-", "-o", "alone"]
        run(alone_of, scratch, WITHOUT_LIBRARY)
        alone = sections_of("alone", scratch)
        output = run(
            ["qemu-system-arm", "-M", target.machine, "-nographic", "-icount", "shift=5", "-semihosting-config", "enable=on,target=native",
             "-kernel", "image"], scratch,
        )  # fmt: skip
    found = re.search(r"(\d+) of \1 recorded decisions are the same; checksum (\w+)\s+instructions (\d+) stack (\d+)", output)
    if found is None:
        raise SystemExit(f"{folder} on {target.name}: {output.strip()}")
    code, tables = (sum(size for name, size in sections if name.startswith(prefix)) for prefix in (".text", ".rodata"))
    whole = sum(size for name, size in alone if name.startswith((".text", ".rodata")))
    ram = sum(size for name, size in sections if name.startswith((".data", ".bss")))
    return Figures(code, tables, whole, ram, int(found[4]), int(found[3]), found[2])


WITHOUT_LIBRARY = (
    "void *memcpy(void *to, const void *from, unsigned n) { char *t = to; const char *f = from; while (n--) *t++ = *f++; return to; }\n"
)
"""The one function of a C library that a compiler may call on its own."""


def sections_of(file: str, folder: str) -> list[tuple[str, int]]:
    """Sections of an object file: name and bytes."""
    lines = run(["arm-none-eabi-size", "-A", file], folder).splitlines()
    return [(words[0], int(words[1])) for line in lines if len(words := line.split()) == 3 and words[1].isdigit()]


def checksum_here(folder: Path) -> str:
    """The checksum of the self-test on this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        source = folder.resolve()
        compiler = ["cc", "-std=c99", "-O2", "-ffp-contract=off", str(source / "policy.c"), str(source / "self_test.c"), "-o", "self_test"]
        run(compiler, scratch)
        return run(["./self_test"], scratch).split()[-1]


def run(command: list[str], folder: str, given: str = "") -> str:
    """Output of a command.

    Raises:
        SystemExit: if it fails.
    """
    result = subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True, timeout=120, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}: {(result.stderr or result.stdout).strip()}")
    return result.stdout + result.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    if missing := [name for name in ("arm-none-eabi-gcc", "qemu-system-arm", "cc") if shutil.which(name) is None]:
        raise SystemExit(f"{', '.join(missing)} not installed: on Debian, apt install gcc-arm-none-eabi qemu-system-arm gcc")
    print(
        f"us: at {MEGAHERTZ} MHz, with {CYCLES} cycles an instruction; same: outputs equal to this machine's, bit for bit", file=sys.stderr
    )
    print("| policy | processor | code | tables | with libgcc | RAM | stack | instructions | us | same |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for folder in folders:
        here = checksum_here(folder)
        for target in TARGETS:
            one = measure(folder, target)
            figures = (one.code, one.tables, one.whole, one.ram, one.stack, one.instructions, round(one.microseconds))
            row = [folder.name, target.name, *(f"{figure:,}" for figure in figures), "yes" if one.checksum == here else "no"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
