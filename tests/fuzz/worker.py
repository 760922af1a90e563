"""Reads damaged files one after the other and says of each what became of it: ``python -m tests.fuzz.worker FOLDER FIRST LAST``."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

from policy_distill.config import RequestError
from tests.fuzz.corpus import CANARY, KINDS, Kind, folder_of, replace_member
from tests.fuzz.mutate import damaged

SEEN: list[str] = []
ALWAYS_WRONG = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: note what reading a file must not do."""
    if event in ALWAYS_WRONG or (event == "import" and CANARY in str(arguments[0])) or (event == "exec" and CANARY in str(arguments[0])):
        SEEN.append(f"{event} {str(arguments)[:200]}")


def peak_mb() -> float:
    """Most memory that this process has held since ``reset_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def case(number: int, root: Path, kinds: tuple[Kind, ...] = KINDS) -> dict[str, Any]:
    """Damage one file, read it, put the good one back, and say what happened."""
    draw = random.Random(number)
    kind = draw.choices(kinds, [kind.share for kind in kinds])[0]
    path = root / kind.path
    good = path.read_bytes()
    if kind.member:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(kind.member)
        replace_member(path, kind.member, damaged(content, kind.form, draw))
    else:
        path.write_bytes(damaged(good, kind.form, draw))
    SEEN.clear()
    reset_peak()
    started, error = time.process_time(), ""
    try:
        kind.read(folder_of(kind, root))
        outcome = "read"
    except RequestError as refusal:
        outcome, error = "refused", str(refusal)
        if not error.isprintable():
            outcome = "not in one printable line"
    except BaseException:
        outcome, error = "traceback", traceback.format_exc()
    seconds = time.process_time() - started
    executed = [*SEEN, *(["a file was written"] if (root / "executed").exists() else [])]
    path.write_bytes(good)
    return {
        "number": number, "kind": kind.name, "outcome": outcome, "error": error, "seconds": seconds, "mb": peak_mb(), "executed": executed,
    }  # fmt: skip


def main(folder: str, first: int, last: int) -> None:
    root = Path(folder)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    sys.path.insert(0, folder)
    for kind in KINDS:  # what is imported when it is first needed is imported now
        kind.read(folder_of(kind, root))
    sys.addaudithook(watch)
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  (a reader must not print into the answers)
    for number in range(first, last):
        print(json.dumps(case(number, root)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
